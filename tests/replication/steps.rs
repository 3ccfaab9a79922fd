//! What each command of a transcript does.

use std::error::Error;
use std::time::Duration;

use goldenscript::Context;
use quorate::metadata::{Command, ConfigChange};
use quorate::partition::{ProduceRequest, RoleView};
use quorate::record::{Batch, BatchBuilder, Compression, ProducerStamp};
use quorate::replication::{Acks, MINIMUM_SUSPICION, ProduceTicket};
use quorate::types::{ErrorCode, LeaderEpoch, Offset, ProducerId};

use super::language::{Keep, Step};
use super::network::{Body, Party};
use super::node::{Node, PARTITION, node_id};
use super::words;
use super::world::{Waiting, World};

/// How often replicas are told the time, while it passes.
const TICK: Duration = Duration::from_millis(100);
/// A producer's patience.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

type Done = Result<(), Box<dyn Error>>;

impl goldenscript::Runner for World {
    type Command = Step;

    fn run(&mut self, step: &Step, _: &Context) -> Result<String, Box<dyn Error>> {
        self.carry_out_step(step)?;
        Ok(self.take_lines())
    }
}

impl World {
    fn carry_out_step(&mut self, step: &Step) -> Done {
        match step {
            Step::Cluster { nodes, min_insync } => self.cluster(nodes, *min_insync),
            Step::Produce {
                node,
                records,
                acks,
                producer,
                sequence,
                padding,
            } => {
                let node = self.node(node)?;
                let first = producer.map(|id| (id, sequence.unwrap_or(0)));
                let before = self.waiting.len() as u64;
                for (i, record) in records.iter().enumerate() {
                    let stamp = first.map(|(id, sequence)| (id, sequence + i as i32));
                    self.produce(node, record, acks.0, stamp, padding.unwrap_or(0))?;
                }
                self.settle();
                self.tell_waiting(before);
                return Ok(());
            }
            Step::Fetch { node, from, epoch } => {
                let node = self.node(node)?;
                self.fetch(node, *from, *epoch)?;
            }
            Step::Hold { from, to } => {
                let (from, to) = (self.party(from)?, self.party(to)?);
                self.network.hold(from, to);
            }
            Step::Release { from, to } => {
                let (from, to) = (self.party(from)?, self.party(to)?);
                if !self.network.release(from, to) {
                    return Err("it was not held".into());
                }
            }
            Step::Deliver { from, to, count } => {
                let (from, to) = (self.party(from)?, self.party(to)?);
                for _ in 0..count.unwrap_or(1) {
                    let pending = self.network.take(from, to).ok_or("nothing is under way")?;
                    self.arrive(pending);
                }
            }
            Step::DeliverNewest { from, to } => {
                let (from, to) = (self.party(from)?, self.party(to)?);
                let newest = self.network.take_newest(from, to);
                self.arrive(newest.ok_or("nothing is under way")?);
            }
            Step::Drop { from, to, count } => {
                let (from, to) = (self.party(from)?, self.party(to)?);
                for _ in 0..count.unwrap_or(1) {
                    self.lose(from, to)?;
                }
            }
            Step::GiveUp { node } => {
                let node = self.node(node)?;
                self.give_up(node)?;
            }
            Step::Cut { one, other } => self.cut(one, other)?,
            Step::Heal { one, other } => self.heal(one, other)?,
            Step::Redial { follower, leader } => {
                let (follower, leader) = (self.node(follower)?, self.node(leader)?);
                if !self.links.contains(&(follower, leader)) {
                    return Err("there is no connection to replace".into());
                }
                self.forget_unheld(Party::Node(follower), Party::Node(leader));
                self.link_changed(follower, leader, false);
                self.link_changed(follower, leader, true);
            }
            Step::Crash { node, keep } => {
                let node = self.node(node)?;
                self.crash(node, keep)?;
            }
            Step::CrashInNextWrite { node } => {
                let node = self.node(node)?;
                self.nodes[node].disk.crash_after(1);
            }
            Step::Rot { node } => {
                let node = self.node(node)?;
                self.nodes[node].rot()?;
            }
            Step::Restart { node, disk } => {
                let node = self.node(node)?;
                self.restart(node, disk.is_some())?;
            }
            Step::Elect => self.elect()?,
            Step::Configure { min_insync } => self.configure(*min_insync)?,
            Step::Tick { time } => self.tick(time.0),
            Step::Show(nodes) => self.show(nodes)?,
        }
        self.settle();
        if matches!(
            step,
            Step::Elect | Step::Restart { .. } | Step::Release { .. }
        ) {
            self.tell_election();
        }
        Ok(())
    }

    fn node(&self, name: &str) -> Result<usize, String> {
        self.nodes
            .iter()
            .position(|node| node.name == name)
            .ok_or_else(|| format!("there is no node {name}"))
    }

    fn party(&self, name: &str) -> Result<Party, String> {
        match name {
            "controller" => Ok(Party::Controller),
            "disk" => Ok(Party::Disk),
            _ => self.node(name).map(Party::Node),
        }
    }

    fn cluster(&mut self, names: &[String], min_insync: u32) {
        self.names.nodes = names.to_vec();
        self.nodes = names
            .iter()
            .enumerate()
            .map(|(index, name)| Node::new(name, index))
            .collect();
        self.found_cluster(min_insync);
        self.settle();
    }

    fn produce(
        &mut self,
        node: usize,
        record: &str,
        acks: Acks,
        stamp: Option<(i64, i32)>,
        padding: usize,
    ) -> Done {
        let mut builder = BatchBuilder::new();
        let padded = format!("{record}{}", words::PADDING.repeat(padding));
        builder.append(None, Some(padded.as_bytes()), &[], 0)?;
        let stamp = stamp.map(|(id, base_sequence)| ProducerStamp {
            id: ProducerId::new(id).unwrap(),
            epoch: 0,
            base_sequence,
        });
        let bytes = builder.seal(Compression::None)?.stamp(stamp);
        self.hear();
        let now = self.now;
        let ticket = self.next_ticket();
        let name = self.nodes[node].name.clone();
        let process = self.nodes[node]
            .process
            .as_mut()
            .ok_or_else(|| format!("{name} is down"))?;
        let waiting = Waiting {
            node,
            record: record.to_owned(),
            is_acks_all: acks == Acks::All,
        };
        let request = ProduceRequest {
            ticket,
            batch: Batch::decode(&bytes)?,
            acks,
            deadline: now + DELIVERY_TIMEOUT,
            guard: None,
        };
        process
            .partition
            .handle_produce(now, request, &process.peers);
        // With acks=0 nobody waits.
        if acks != Acks::None {
            self.waiting.insert(ticket, waiting);
        }
        self.look_after(node);
        Ok(())
    }

    fn tell_waiting(&mut self, before: u64) {
        if self.waiting.len() as u64 > before {
            let records: Vec<String> = self
                .waiting
                .values()
                .map(|waiting| format!("{:?}", waiting.record))
                .collect();
            self.tell(format!("not answered yet: {}", records.join(", ")));
        }
    }

    fn fetch(&mut self, node: usize, from: u64, epoch: Option<u32>) -> Done {
        let from = Offset::new(from).ok_or("no such offset")?;
        let believed = epoch.and_then(LeaderEpoch::new);
        let process = self.nodes[node].process.as_ref().ok_or("it is down")?;
        let view = process.partition.view();
        let answer = match view.check_leader(believed) {
            Err(code) => words::error(code),
            Ok(()) if from < view.log_start || from > view.log_end => {
                words::error(ErrorCode::OffsetOutOfRange)
            }
            Ok(()) => {
                let batches = process
                    .reader
                    .read_records(from, 1 << 20, view.high_watermark)?;
                let texts: Vec<String> = batches.iter().map(words::batch_text).collect();
                if texts.is_empty() {
                    format!("nothing yet; HW {}", view.high_watermark)
                } else {
                    texts.join(", ")
                }
            }
        };
        self.tell(format!(
            "{} answers the consumer: {answer}",
            self.name(Party::Node(node))
        ));
        Ok(())
    }

    fn lose(&mut self, from: Party, to: Party) -> Done {
        let mut pending = self.network.take(from, to).ok_or("nothing is under way")?;
        let what = self.body_in_words(&pending.body);
        let way = format!("{} -> {}", pending.sender, self.name(to));
        self.tell(format!("{way}: lost: {what}"));
        pending.was_held = false;
        match pending.body {
            Body::Propose { change, .. } => self.outcome_unknown(from, change),
            Body::Outcome { change, .. } => self.outcome_unknown(to, change),
            _ => {}
        }
        Ok(())
    }

    fn give_up(&mut self, node: usize) -> Done {
        let me = Party::Node(node);
        let proposed =
            self.network
                .pending
                .iter_mut()
                .find_map(|pending| match &mut pending.body {
                    Body::Propose {
                        change, is_awaited, ..
                    } if pending.from == me => {
                        *is_awaited = false;
                        Some(change.clone())
                    }
                    _ => None,
                });
        let change = proposed.ok_or("no proposal of it is under way")?;
        self.tell(format!(
            "{} gives up waiting for the controller's answer",
            self.name(me)
        ));
        self.outcome_unknown(me, change);
        Ok(())
    }

    fn cut(&mut self, one: &str, other: &str) -> Done {
        let (one, other) = (self.party(one)?, self.party(other)?);
        self.network.cut(one, other);
        self.forget(one, other);
        if let (Party::Node(one), Party::Node(other)) = (one, other) {
            self.disconnect(one, other);
            self.disconnect(other, one);
        }
        Ok(())
    }

    fn heal(&mut self, one: &str, other: &str) -> Done {
        let (one, other) = (self.party(one)?, self.party(other)?);
        if !self.network.heal(one, other) {
            return Err("nothing was cut there".into());
        }
        if let (Party::Node(node), Party::Controller) | (Party::Controller, Party::Node(node)) =
            (one, other)
        {
            self.register(node);
            self.push_state(node);
            self.fence_missing();
        }
        Ok(())
    }

    /// What is between two parties is lost, held or not.
    fn forget(&mut self, one: Party, other: Party) {
        self.network.pending.retain(|pending| {
            (pending.from, pending.to) != (one, other) && (pending.from, pending.to) != (other, one)
        });
    }

    /// What is on a connection is lost, but for what is held: that comes late.
    fn forget_unheld(&mut self, one: Party, other: Party) {
        self.network.pending.retain(|pending| {
            let ends = [(one, other), (other, one)];
            pending.was_held
                || !pending.body.is_replication()
                || !ends.contains(&(pending.from, pending.to))
        });
    }

    fn crash(&mut self, node: usize, keep: &Keep) -> Done {
        if !self.is_up(node) {
            return Err("it is down already".into());
        }
        let name = self.name(Party::Node(node));
        match keep {
            Keep::Synced => {
                self.tell(format!("{name} loses its power"));
                self.nodes[node].disk.power_loss_of_all_unsynced();
            }
            Keep::Written => {
                self.tell(format!("{name} is killed"));
                self.nodes[node].disk.kill();
            }
        }
        self.end_process(node);
        Ok(())
    }

    pub fn die_in_write(&mut self, node: usize) {
        self.tell(format!(
            "{} dies in the middle of a write",
            self.name(Party::Node(node))
        ));
        self.nodes[node].disk.kill();
        self.end_process(node);
    }

    fn end_process(&mut self, node: usize) {
        let me = Party::Node(node);
        self.nodes[node].process = None;
        self.network.pending.retain(|pending| {
            pending.to != me
                && (pending.from != me || (pending.was_held && pending.to != Party::Disk))
        });
        let unanswered: Vec<(ProduceTicket, String)> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.node == node)
            .map(|(&ticket, waiting)| (ticket, waiting.record.clone()))
            .collect();
        for (ticket, record) in unanswered {
            self.waiting.remove(&ticket);
            self.tell(format!("nobody answers {record:?}"));
        }
        for other in 0..self.nodes.len() {
            self.disconnect(node, other);
            self.disconnect(other, node);
        }
    }

    fn restart(&mut self, node: usize, on_new_disk: bool) -> Done {
        if self.is_up(node) {
            return Err("it is running".into());
        }
        if on_new_disk {
            self.nodes[node].change_disk();
        }
        let report = self.nodes[node].start()?;
        let Some(process) = &self.nodes[node].process else {
            return Err("it did not start".into());
        };
        let me = process.me;
        let log = words::log_line(
            &process.reader,
            process.partition.durable_end(),
            process.partition.high_watermark(),
        );
        self.processes.push(me);
        let name = self.names.process(&me);
        if let Some(cut) = report.cut {
            self.tell(format!(
                "{name} finds a frame that is not whole after {}, and cuts it off",
                cut.end
            ));
        }
        if report.quarantined.is_some() {
            self.tell(format!("{name} finds its log damaged, and sets it aside"));
        }
        self.tell(format!(
            "{name} starts, promised epoch {}: {log}",
            self.promised(node)
        ));
        self.register(node);
        self.push_state(node);
        self.fence_missing();
        Ok(())
    }

    fn tell_election(&mut self) {
        if self.election.is_some()
            && let Some(quorum) = self.state().map(|state| state.election_quorum())
        {
            self.tell(format!(
                "controller waits for {quorum} members of the ISR that count"
            ));
        }
    }

    fn configure(&mut self, min_insync: usize) -> Done {
        self.commit(&Command::SetTopicConfigs {
            topic: PARTITION.topic,
            changes: vec![ConfigChange::Set {
                name: "min.insync.replicas".to_owned(),
                value: min_insync.to_string(),
            }],
        })?;
        self.configured_min_insync = Some(min_insync);
        Ok(())
    }

    /// Whoever is connected hears the other end: heartbeats come as long as a connection works.
    fn hear(&mut self) {
        let now = self.now;
        for &(follower, leader) in &self.links {
            for (hears, heard) in [(follower, leader), (leader, follower)] {
                if let Some(process) = &mut self.nodes[hears].process {
                    process.peers.handle_heard(
                        node_id(heard),
                        now,
                        MINIMUM_SUSPICION,
                        Duration::ZERO,
                    );
                }
            }
        }
    }

    fn tick(&mut self, time: Duration) {
        let mut left = time;
        while left > Duration::ZERO {
            let step = left.min(TICK);
            left -= step;
            self.now = self.now + step;
            self.hear();
            let now = self.now;
            for node in 0..self.nodes.len() {
                let min_insync = self.configured_min_insync;
                if let Some(process) = &mut self.nodes[node].process {
                    if let Some(min_insync) = min_insync {
                        process.partition.handle_min_insync(min_insync);
                    }
                    process.partition.handle_tick(now, &process.peers);
                }
                self.look_after(node);
            }
            self.settle();
        }
        for process in self.nodes.iter().filter_map(|node| node.process.as_ref()) {
            // Where it fails, as on a disk that is about to fail its process, less is known at the next start.
            let _ = process.write_marks();
        }
    }

    fn show(&mut self, wanted: &[String]) -> Done {
        let nodes: Vec<usize> = if wanted.is_empty() {
            let state = self.state().ok_or("there is no cluster yet")?;
            let line = format!("controller: {}", self.names.state(state));
            self.tell(line);
            (0..self.nodes.len()).collect()
        } else {
            wanted
                .iter()
                .map(|name| self.node(name))
                .collect::<Result<_, _>>()?
        };
        for node in nodes {
            let name = self.name(Party::Node(node));
            let (Some(process), Some(view)) = (&self.nodes[node].process, self.view(node)) else {
                self.tell(format!("{name} is down"));
                continue;
            };
            let partition = &process.partition;
            let log = words::log_line(
                &process.reader,
                partition.durable_end(),
                partition.high_watermark(),
            );
            let mut remarks = String::new();
            if let RoleView::Leader(leader) = &view {
                if !leader.epoch_started {
                    remarks.push_str(", and this epoch's start is not committed");
                }
                if let Some(proposed) = &leader.proposed_isr {
                    let names: Vec<&str> = proposed
                        .iter()
                        .map(|&id| self.names.nodes[super::node::index_of(id)].as_str())
                        .collect();
                    remarks.push_str(&format!(", and it has proposed ISR {}", names.join(" ")));
                }
            }
            let role = self.names.role(&view);
            self.tell(format!("{name} {role}: {log}{remarks}"));
        }
        Ok(())
    }
}
