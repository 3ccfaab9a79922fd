//! A node's process: how it starts and ends, its timers, its disk's work, the fences that it answers, and the metadata that it
//! follows. Around the partitions it does what the broker's threads do.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate::partition::{FenceAnswer, Output};
use quorate::storage::{SyncError, SyncTicket};
use quorate::types::{LeaderEpoch, NodeId, TopicPartition};

use super::checker::{Check, violated};
use super::controller::fenced_partitions;
use super::event::{Event, FenceReplied, ToController, ToNode};
use super::mistakes::tamper_with_disk;
use super::node::{index_of, partition_dir, partition_id};
use super::planted::Planted;
use super::world::{TICK, World, unexpected};

const TICKS_BETWEEN_HEARTBEATS: u64 = 2;
const TICKS_BETWEEN_RETENTIONS: u64 = 10;
const TICKS_BETWEEN_CHECKPOINTS: u64 = 20;
const REGISTER_AGAIN: Duration = Duration::from_millis(300);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// The wall clock at the beginning; retention alone looks at it.
pub const WALL_CLOCK_MS: u64 = 1_700_000_000_000;

impl World {
    /// Whether this is the process that an event was meant for.
    pub fn is_current(&self, node: usize, boot: u64) -> bool {
        self.nodes[node].boot == boot && self.nodes[node].process.is_some()
    }

    pub fn process_started(&mut self, node: usize) -> Check {
        let boot = self.nodes[node].boot;
        self.figures.restarts += u64::from(boot > 1);
        let first = self.random.below(TICK.as_micros() as u64);
        self.plan_us(first, Event::Tick { node, boot });
        // What the last process had of the metadata is on the disk; the last entries may have to be applied again.
        let again = self.random.below(3) as usize;
        let applied = self.nodes[node].applied;
        let index = applied.saturating_sub(again);
        self.nodes[node].applied = index;
        self.apply_metadata(node, index)?;
        if self.nodes[node].process.is_some() {
            self.nodes[node].is_new_disk = false;
            self.nodes[node].verify_all = false;
        }
        Ok(())
    }

    pub fn restart(&mut self, node: usize) -> Check {
        if self.nodes[node].process.is_some() {
            return Ok(());
        }
        let keeps_name = self.planted == Some(Planted::EmptyDiskKeepsItsName);
        let (now, partitions) = (self.now, self.setup.partitions);
        let started = self.nodes[node].start(now, partitions, keeps_name);
        self.tell(|| format!("node {} starts: {started:?}", node + 1));
        match started {
            Ok(()) => self.process_started(node),
            Err(cause) => self.could_not_start(node, &cause),
        }
    }

    fn could_not_start(&mut self, node: usize, cause: &str) -> Check {
        if !self.nodes[node].is_excused() {
            return unexpected(format!("node {} cannot start: {cause}", node + 1));
        }
        self.end_process(node, false);
        Ok(())
    }

    /// A partition cannot be opened. The node serves the others; whoever heals the cluster starts it again.
    fn stays_shut(&mut self, node: usize, partition: usize, cause: &str) -> Check {
        if !self.nodes[node].is_excused() {
            return unexpected(format!(
                "node {} cannot open partition {partition}: {cause}",
                node + 1
            ));
        }
        self.tell(|| {
            format!(
                "node {}: partition {partition} stays shut: {cause}",
                node + 1
            )
        });
        self.figures.shut += 1;
        if self.healing_since.is_some() {
            self.end_process(node, false);
        } else if let Some(process) = &mut self.nodes[node].process {
            process.unopened[partition] = true;
        }
        Ok(())
    }

    /// The process ends without having meant to, and is started again after a while.
    pub fn end_process(&mut self, node: usize, power_loss: bool) {
        self.kill(node, power_loss);
        let after = self.random.between(100, 800);
        self.plan(Duration::from_millis(after), Event::Restart { node });
    }

    pub fn kill(&mut self, node: usize, power_loss: bool) {
        self.tell(|| {
            format!(
                "node {} is gone{}",
                node + 1,
                if power_loss { ", its power too" } else { "" }
            )
        });
        self.drop_ends_of(node);
        let harmed = &mut self.nodes[node];
        harmed.kill(power_loss);
        harmed.errors_injected = false;
    }

    /// If the process has reached the point at which it was to die, it does. True when it is gone.
    pub fn has_died(&mut self, node: usize) -> bool {
        if self.nodes[node].process.is_none() {
            return true;
        }
        if !self.nodes[node].disk.has_crashed() {
            return false;
        }
        let power_loss = self.nodes[node].dies_with_power;
        self.end_process(node, power_loss);
        true
    }

    pub fn apply_metadata(&mut self, node: usize, index: usize) -> Check {
        self.nodes[node].applied = self.nodes[node].applied.max(index);
        let Some(image) = self.controller.images.get(index).cloned() else {
            return Ok(());
        };
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let me = process.me;
        process.registered = image.registered(me.node) == Some(me);
        let leaders: BTreeSet<NodeId> = image
            .partitions_of(me.node)
            .filter_map(|(_, state)| state.leader_node())
            .filter(|&leader| leader != me.node)
            .collect();
        let leaders: BTreeSet<usize> = leaders.into_iter().map(index_of).collect();
        self.settle_departures(node)?;
        if self.nodes[node].process.is_none() {
            return Ok(());
        }
        self.keep_links(node, &leaders)?;
        for partition in 0..self.setup.partitions {
            let Some(state) = image.partition(partition_id(partition)) else {
                continue;
            };
            let early = self.planted == Some(Planted::LeavesEarly);
            let is_to_go = early && !state.wanted_replicas().contains(&me.node);
            if !state.replicas.contains(&me.node) || is_to_go {
                self.leave(node, partition)?;
                continue;
            }
            let others_in_sync = state.isr.iter().any(|member| member.node != me.node);
            self.open_partition(node, partition, others_in_sync)?;
            let Some(process) = &mut self.nodes[node].process else {
                return Ok(());
            };
            let connected = state.leader_node().is_some_and(|leader| {
                process
                    .links
                    .get(&index_of(leader))
                    .is_some_and(|link| link.up)
            });
            let Some(replica) = process.replicas[partition].as_mut() else {
                continue;
            };
            if replica.told.as_ref() == Some(state) {
                continue;
            }
            replica.told = Some(state.clone());
            let before = replica.partition.followed_leader();
            let mut state = state.clone();
            if self.planted == Some(Planted::LeadsAgain)
                && let Some(leader) = &mut state.leader
                && leader.node == me.node
            {
                *leader = me;
            }
            replica.partition.handle_state(self.now, &state, connected);
            if let Some(leader) = before
                && replica.partition.followed_leader() != Some(leader)
            {
                self.close_session_at(node, index_of(leader), partition);
            }
            self.drain(node, partition)?;
        }
        Ok(())
    }

    /// The cluster has committed that nobody needs the replica on this node: it is closed, and its log goes once it is sure that
    /// it was not put back. One that this process never opened goes at once, when the metadata is as new as everything before
    /// this process began.
    fn leave(&mut self, node: usize, partition: usize) -> Check {
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let replica = process.replicas[partition].take();
        let id = partition_id(partition);
        let Some(mut replica) = replica else {
            let dir = partition_dir(partition);
            let is_left_over = process.registered
                && !process.departures.contains(&id)
                && self.nodes[node].disk.shared().list(&dir).is_ok();
            return if is_left_over {
                self.remove_log(node, partition)
            } else {
                Ok(())
            };
        };
        process.departures.closed(id);
        self.tell(|| format!("node {} leaves partition {partition}", node + 1));
        for (from, session) in std::mem::take(&mut replica.sessions) {
            self.release(node, from, session.connection, session.outstanding);
        }
        if let Some(leader) = replica.partition.followed_leader() {
            self.close_session_at(node, index_of(leader), partition);
        }
        let (outputs, mut log) = replica.partition.close();
        // What it could not sync counts for nobody: it is in no set.
        let _ = log.close();
        for output in outputs {
            if let Output::Complete { ticket, result } = output {
                self.answer_produce(node, ticket, result)?;
            }
        }
        if self.has_died(node) {
            return Ok(());
        }
        self.ask_for_committed_end(node);
        Ok(())
    }

    fn remove_log(&mut self, node: usize, partition: usize) -> Check {
        self.tell(|| format!("node {} removes the log of partition {partition}", node + 1));
        self.figures.left += 1;
        self.checkers[partition].left(node);
        self.nodes[node].was_left[partition] = true;
        self.nodes[node].was_harmed[partition] = false;
        let Some(process) = &self.nodes[node].process else {
            return Ok(());
        };
        let removed = process.data_dir.delete_partition(partition_id(partition));
        if self.has_died(node) || removed.is_ok() || self.nodes[node].is_excused() {
            return Ok(());
        }
        unexpected(format!("node {}: {removed:?}", node + 1))
    }

    /// Asks, or asks again what was not answered.
    fn ask_for_committed_end(&mut self, node: usize) {
        let (now, boot) = (self.now, self.nodes[node].boot);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let number = match process.question {
            Some((number, again)) if again <= now => number,
            Some(_) => return,
            None => match process.departures.question() {
                Some(number) => number,
                None => return,
            },
        };
        process.question = Some((number, now + ASK_AGAIN));
        let controller = self.setup.controller();
        if let Some(after) = self.network.send_call(node, controller) {
            let message = ToController::CommittedEnd { node, boot, number };
            self.plan(after, Event::ToController(message));
        }
    }

    fn take_committed_end(&mut self, node: usize, boot: u64, number: u64, end: u64) -> Check {
        if !self.is_current(node, boot) {
            return Ok(());
        }
        if let Some(process) = &mut self.nodes[node].process {
            process.question.take_if(|(asked, _)| *asked == number);
            process.departures.handle_answer(number, end);
        }
        self.settle_departures(node)?;
        self.ask_for_committed_end(node);
        Ok(())
    }

    fn settle_departures(&mut self, node: usize) -> Check {
        let applied = self.nodes[node].applied;
        let Some(image) = self.controller.images.get(applied).cloned() else {
            return Ok(());
        };
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let me = process.me.node;
        let is_replica = |id: &TopicPartition| image.is_replica(*id, me);
        let gone = process.departures.settle(image.applied_index(), is_replica);
        for partition in 0..self.setup.partitions {
            if gone.contains(&partition_id(partition)) {
                self.remove_log(node, partition)?;
            }
        }
        Ok(())
    }

    fn open_partition(&mut self, node: usize, partition: usize, others_in_sync: bool) -> Check {
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        if process.replicas[partition].is_some() || process.unopened[partition] {
            return Ok(());
        }
        let forget = self.planted == Some(Planted::PromiseForgotten);
        let verify_all = self.nodes[node].verify_all;
        if let Some(planted) = self.planted
            && self.nodes[node].boot > 1
        {
            tamper_with_disk(planted, &self.nodes[node].disk, partition);
        }
        let process = match &mut self.nodes[node].process {
            Some(process) => process,
            None => return Ok(()),
        };
        let opened = match process.open(&self.setup, partition, forget, verify_all, others_in_sync)
        {
            Ok(opened) => opened,
            Err(cause) => {
                if self.has_died(node) {
                    return Ok(());
                }
                return self.stays_shut(node, partition, &cause);
            }
        };
        if self.has_died(node) {
            return Ok(());
        }
        self.figures.tails_spared += u64::from(opened.was_spared);
        let boot = self.nodes[node].boot;
        let Some(me) = self.nodes[node].process.as_ref().map(|process| process.me) else {
            return Ok(());
        };
        let harmed = self.nodes[node].was_harmed[partition];
        let was_left = std::mem::take(&mut self.nodes[node].was_left[partition]);
        let may_have_lost = harmed || was_left || self.nodes[node].is_new_disk;
        if (opened.quarantined || (opened.created && boot > 1)) && !may_have_lost {
            return violated(
                "durability",
                format!(
                    "node {} found partition {partition} gone or corrupt, and nothing had harmed it",
                    node + 1
                ),
            );
        }
        if opened.quarantined {
            self.figures.quarantines += 1;
            self.nodes[node].was_harmed[partition] = false;
        }
        let Some(replica) = self.nodes[node].view_replica(partition) else {
            return Ok(());
        };
        let (reader, durable, promised) = (
            replica.reader.clone(),
            replica.partition.durable_end(),
            replica.partition.promised(),
        );
        let checker = &mut self.checkers[partition];
        let reopened = checker.reopened(node, me, &reader, durable, promised, may_have_lost);
        // Even a read may be what the process dies at: it writes an index down that is missing.
        if reopened.is_err() && self.has_died(node) {
            return Ok(());
        }
        if harmed && reopened.is_err() {
            return self.verify_at_next_start(node);
        }
        reopened?;
        if opened.impairment.is_some() {
            self.checkers[partition].mark_void(node);
        }
        self.tell(|| {
            format!(
                "node {} opens partition {partition}: {} to {}, promised {promised}{}",
                node + 1,
                reader.start(),
                reader.end(),
                opened
                    .impairment
                    .map_or_else(String::new, |note| format!(", impaired: {:?}", note.reason))
            )
        });
        self.drain(node, partition)
    }

    /// A log that does not read all through is found by its operator.
    pub fn verify_at_next_start(&mut self, node: usize) -> Check {
        self.nodes[node].verify_all = true;
        self.end_process(node, false);
        Ok(())
    }

    pub fn tick_node(&mut self, node: usize, boot: u64) -> Check {
        if !self.is_current(node, boot) {
            return Ok(());
        }
        self.plan(TICK, Event::Tick { node, boot });
        let now = self.now;
        let min_insync = self.min_insync as usize;
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        process.ticks += 1;
        let ticks = process.ticks;
        if ticks.is_multiple_of(TICKS_BETWEEN_HEARTBEATS) {
            self.send_heartbeats(node)?;
        }
        for partition in 0..self.setup.partitions {
            let Some(process) = &mut self.nodes[node].process else {
                return Ok(());
            };
            if let Some(replica) = process.replicas[partition].as_mut() {
                let wanted = replica
                    .told
                    .as_ref()
                    .map(|told| told.wanted_replicas().len());
                let min_insync = min_insync.min(wanted.unwrap_or(min_insync));
                replica.partition.handle_min_insync(min_insync);
                replica.partition.handle_tick(now, &process.peers);
                if ticks.is_multiple_of(TICKS_BETWEEN_RETENTIONS) {
                    let before = replica.reader.start();
                    let wall_clock_ms = WALL_CLOCK_MS + now.as_micros() / 1000;
                    replica.partition.handle_retention(wall_clock_ms);
                    self.figures.trimmed += u64::from(replica.reader.start() != before);
                }
            }
            self.drain(node, partition)?;
        }
        let Some(process) = &self.nodes[node].process else {
            return Ok(());
        };
        if ticks.is_multiple_of(TICKS_BETWEEN_CHECKPOINTS) {
            // It decides nothing, so a failure is for the log only.
            let _ = process.write_high_watermarks();
            if self.has_died(node) {
                return Ok(());
            }
        }
        self.keep_connections(node)
    }

    fn send_heartbeats(&mut self, node: usize) -> Check {
        let controller = self.setup.controller();
        let boot = self.nodes[node].boot;
        let incarnation = self.nodes[node].incarnation(boot);
        for after in self.network.send_once(node, controller) {
            let message = ToController::Heartbeat { node, incarnation };
            self.plan(after, Event::ToController(message));
            // The answer tells how far the metadata is.
            self.send_metadata(node);
        }
        let now = self.now;
        if let Some(process) = &mut self.nodes[node].process
            && !process.registered
            && process.register_at <= now
        {
            process.register_at = now + REGISTER_AGAIN;
            if let Some(after) = self.network.send_call(node, controller) {
                let message = ToController::Register { node, boot };
                self.plan(after, Event::ToController(message));
            }
        }
        self.ask_for_committed_end(node);
        self.heartbeat_connections(node);
        Ok(())
    }

    /// How long the disk takes for one sync now.
    pub fn disk_us(&mut self, node: usize) -> u64 {
        let usual = self.setup.sync_us;
        let slowness = self.nodes[node].slowness;
        (self.random.between(usual / 4, usual) * slowness).min(3_000_000)
    }

    pub fn run_sync(
        &mut self,
        node: usize,
        boot: u64,
        partition: usize,
        ticket: SyncTicket,
    ) -> Check {
        if !self.is_current(node, boot) {
            return Ok(());
        }
        let result = ticket.run();
        if self.has_died(node) {
            return Ok(());
        }
        let after = self.random.between(1, 500);
        self.plan_us(
            after,
            Event::SyncTold {
                node,
                boot,
                partition,
                ticket,
                result,
            },
        );
        Ok(())
    }

    pub fn sync_told(
        &mut self,
        node: usize,
        boot: u64,
        partition: usize,
        ticket: SyncTicket,
        result: Result<(), SyncError>,
    ) -> Check {
        if !self.is_current(node, boot) {
            return Ok(());
        }
        if let Some(replica) = self.nodes[node].replica(partition) {
            replica.partition.handle_synced(ticket, result);
        }
        self.drain(node, partition)
    }

    pub fn plan_promises(&mut self, node: usize) {
        let boot = self.nodes[node].boot;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.promises_under_way || process.promises.is_empty() {
            return;
        }
        process.promises_under_way = true;
        let after = self.disk_us(node);
        self.plan_us(after, Event::PromisesRun { node, boot });
    }

    pub fn run_promises(&mut self, node: usize, boot: u64) -> Check {
        if !self.is_current(node, boot) {
            return Ok(());
        }
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let raised = std::mem::take(&mut process.promises);
        if !self.raise_promises(node, &raised)? {
            return Ok(());
        }
        self.plan_us(200, Event::PromisesTold { node, boot, raised });
        Ok(())
    }

    /// Makes promises durable. False when that has ended the process.
    fn raise_promises(
        &mut self,
        node: usize,
        raised: &[(usize, LeaderEpoch)],
    ) -> Result<bool, super::checker::Violation> {
        let Some(process) = &self.nodes[node].process else {
            return Ok(false);
        };
        let batch: Vec<(TopicPartition, LeaderEpoch)> = raised
            .iter()
            .map(|&(partition, epoch)| (partition_id(partition), epoch))
            .collect();
        let written = process.data_dir.promises().raise(&batch);
        if self.has_died(node) {
            return Ok(false);
        }
        if let Err(error) = written {
            if !self.nodes[node].is_excused() {
                unexpected(format!("node {}: {error}", node + 1))?;
            }
            self.end_process(node, false);
            return Ok(false);
        }
        Ok(true)
    }

    pub fn promises_told(
        &mut self,
        node: usize,
        boot: u64,
        raised: &[(usize, LeaderEpoch)],
    ) -> Check {
        if !self.is_current(node, boot) {
            return Ok(());
        }
        if let Some(process) = &mut self.nodes[node].process {
            process.promises_under_way = false;
        }
        let now = self.now;
        for &(partition, epoch) in raised {
            if let Some(replica) = self.nodes[node].replica(partition) {
                replica.partition.handle_promise_durable(now, epoch);
            }
            self.drain(node, partition)?;
        }
        self.plan_promises(node);
        Ok(())
    }

    pub fn tell_node(&mut self, node: usize, message: ToNode) -> Check {
        match message {
            ToNode::Fence { call, items } => self.fence(node, call, &items),
            ToNode::Metadata { index } => {
                if index > self.nodes[node].applied && self.nodes[node].process.is_some() {
                    self.apply_metadata(node, index)?;
                    if index < self.controller.latest() {
                        self.send_metadata(node);
                    }
                }
                Ok(())
            }
            ToNode::HandOver {
                partition,
                epoch,
                to,
            } => self.hand_over(node, partition, epoch, to),
            ToNode::IsrOutcome {
                boot,
                change,
                outcome,
            } => self.isr_outcome(node, boot, &change, outcome),
            ToNode::CommittedEnd { boot, number, end } => {
                self.take_committed_end(node, boot, number, end)
            }
        }
    }

    /// Every replica steps down first; then the promises are made durable; only then is anything answered.
    fn fence(&mut self, node: usize, call: u64, items: &[(TopicPartition, LeaderEpoch)]) -> Check {
        if self.nodes[node].process.is_none() {
            return Ok(());
        }
        let mut answers = Vec::new();
        for (partition, epoch) in fenced_partitions(items) {
            let Some(replica) = self.nodes[node].replica(partition) else {
                continue;
            };
            let followed = replica.partition.followed_leader();
            let answer = replica.partition.handle_fence(epoch);
            let position = match answer {
                FenceAnswer::Promised { last, eligible } => {
                    if let Some(leader) = followed {
                        self.close_session_at(node, index_of(leader), partition);
                    }
                    self.figures.ineligible += u64::from(!eligible);
                    self.checkers[partition].claims(node, last)?;
                    Some((last, eligible))
                }
                FenceAnswer::Refused { .. } => None,
            };
            answers.push(FenceReplied {
                partition: partition_id(partition),
                epoch,
                position,
            });
            self.drain(node, partition)?;
        }
        if self.nodes[node].process.is_none() {
            return Ok(());
        }
        let boot = self.nodes[node].boot;
        let after = self.disk_us(node);
        self.plan_us(
            after,
            Event::FencePersist {
                node,
                boot,
                call,
                answers,
            },
        );
        Ok(())
    }

    pub fn persist_fence(
        &mut self,
        node: usize,
        boot: u64,
        call: u64,
        answers: Vec<FenceReplied>,
    ) -> Check {
        if !self.is_current(node, boot) {
            return Ok(());
        }
        let promised: Vec<(usize, LeaderEpoch)> = answers
            .iter()
            .filter(|answer| answer.position.is_some())
            .map(|answer| (super::node::partition_index(answer.partition), answer.epoch))
            .collect();
        let persist = self.planted != Some(Planted::FenceNotPersisted);
        if persist && !promised.is_empty() && !self.raise_promises(node, &promised)? {
            return Ok(());
        }
        let now = self.now;
        for &(partition, epoch) in &promised {
            if let Some(replica) = self.nodes[node].replica(partition) {
                replica.partition.handle_promise_durable(now, epoch);
            }
            // A later fence may have been answered in the meantime.
            let told = self.checkers[partition].replicas[node].promise_told;
            if epoch > told {
                self.checkers[partition].promise_told(node, epoch)?;
            }
            let last_sent = self.nodes[node]
                .replica(partition)
                .and_then(|r| r.last_sent);
            if self.planted == Some(Planted::AckAfterFence)
                && let Some((to, ack)) = last_sent
            {
                self.send_ack(node, partition, to, ack)?;
            }
            self.drain(node, partition)?;
        }
        let incarnation = self.nodes[node].incarnation(boot);
        let controller = self.setup.controller();
        for after in self.network.send_once(node, controller) {
            let message = ToController::Fenced {
                call,
                node,
                incarnation,
                answers: answers.clone(),
            };
            self.plan(after, Event::ToController(message));
        }
        Ok(())
    }

    /// The process is stopped (SIGSTOP).
    pub fn stop(&mut self, node: usize) {
        if self.nodes[node].is_running() {
            self.nodes[node].stopped = Some(Vec::new());
            self.tell(|| format!("node {} is stopped", node + 1));
        }
    }

    /// And goes on (SIGCONT), with everything that came meanwhile, before anything that comes from now on: streams are ordered.
    pub fn go_on(&mut self, node: usize) -> Check {
        let Some(waiting) = self.nodes[node].stopped.take() else {
            return Ok(());
        };
        self.tell(|| format!("node {} goes on", node + 1));
        for event in waiting {
            self.handle(event)?;
        }
        Ok(())
    }
}
