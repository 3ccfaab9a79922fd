//! A cluster in which nothing is left to chance: real replicas on disks in memory, the controller's rules, and a network that
//! delivers at once what the transcript does not hold. Time stands still until the transcript lets it pass.

use std::collections::{BTreeMap, BTreeSet};

use quorate::metadata::{ClusterImage, Election};
use quorate::partition::{FenceAnswer, Frames, Output, RoleView};
use quorate::replication::{IsrOutcome, ProduceTicket};
use quorate::types::{Appointment, LeaderEpoch, MonotonicTime, NodeId, Offset, SessionId};
use quorate::wire::{OpenSession, SessionAnswer, SessionOutcome};

use super::network::{Body, Network, Party, Pending};
use super::node::{Node, PARTITION, Process, index_of, node_id};
use super::words::{self, Names};

/// More events than any transcript has in one command: a message that is sent for ever is a mistake.
const MOST_EVENTS: usize = 10_000;

#[derive(Default)]
pub struct World {
    pub now: MonotonicTime,
    pub nodes: Vec<Node>,
    pub names: Names,
    pub network: Network,
    pub image: ClusterImage,
    /// While the partition has no leader.
    pub election: Option<Election>,
    /// The connections that followers have dialled: (follower, leader).
    pub links: BTreeSet<(usize, usize)>,
    /// The sessions that followers have open, by their own lights.
    sessions: BTreeMap<usize, (usize, SessionId)>,
    pub waiting: BTreeMap<ProduceTicket, Waiting>,
    /// What was acknowledged at `acks=all`.
    pub acknowledged: BTreeMap<Offset, String>,
    /// Every process that there was.
    pub processes: Vec<Appointment>,
    /// `min.insync.replicas`, once the transcript has changed the topic's configuration.
    pub configured_min_insync: Option<usize>,
    lines: Vec<String>,
    tickets: u64,
}

/// A produce request that is not answered yet.
pub struct Waiting {
    pub node: usize,
    pub record: String,
    pub is_acks_all: bool,
}

impl World {
    pub fn tell(&mut self, line: String) {
        self.lines.push(line);
    }

    pub fn next_ticket(&mut self) -> ProduceTicket {
        self.tickets += 1;
        ProduceTicket(self.tickets)
    }

    pub fn take_lines(&mut self) -> String {
        std::mem::take(&mut self.lines).join("\n")
    }

    pub fn name(&self, party: Party) -> String {
        match party {
            Party::Node(index) => match &self.nodes[index].process {
                Some(process) => self.names.process(&process.me),
                None => self.nodes[index].name.clone(),
            },
            other => other.to_string(),
        }
    }

    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].process.is_some()
    }

    /// Lets everything happen that is not held.
    pub fn settle(&mut self) {
        for _ in 0..MOST_EVENTS {
            if let Some(pending) = self.network.next() {
                self.arrive(pending);
            } else if !self.dial() && !self.try_appoint() {
                return;
            }
        }
        panic!("{MOST_EVENTS} events and no end: {:?}", self.take_lines());
    }

    /// A follower without a connection to its leader dials. True if one did.
    fn dial(&mut self) -> bool {
        for follower in 0..self.nodes.len() {
            let Some(process) = &self.nodes[follower].process else {
                continue;
            };
            let Some(leader) = process.partition.followed_leader().map(index_of) else {
                continue;
            };
            let cut = self
                .network
                .is_cut(Party::Node(follower), Party::Node(leader));
            if !cut && self.is_up(leader) && self.links.insert((follower, leader)) {
                self.link_changed(follower, leader, true);
                return true;
            }
        }
        false
    }

    /// The follower's end of a connection.
    pub fn link_changed(&mut self, follower: usize, leader: usize, connected: bool) {
        let now = self.now;
        if let Some(process) = &mut self.nodes[follower].process {
            process
                .partition
                .handle_link(now, node_id(leader), connected);
        }
        self.look_after(follower);
    }

    /// A connection is gone, with everything on it, and both ends know.
    pub fn disconnect(&mut self, follower: usize, leader: usize) {
        if self.links.remove(&(follower, leader)) {
            self.link_changed(follower, leader, false);
            if let Some(process) = &mut self.nodes[leader].process {
                process.partition.handle_follower_gone(node_id(follower));
            }
            self.look_after(leader);
        }
    }

    pub fn send(&mut self, from: Party, to: Party, body: Body) {
        if self.network.is_cut(from, to) {
            if let Body::Propose { change, .. } = body {
                self.tell(format!(
                    "{} cannot reach the controller: {}",
                    self.name(from),
                    self.set_in_words(&change.new_isr, change.min_insync)
                ));
                self.outcome_unknown(from, change);
            }
            return;
        }
        let was_held = self.network.is_held(from, to);
        if was_held {
            let what = self.body_in_words(&body);
            self.tell(format!(
                "{} -> {} (held): {what}",
                self.name(from),
                self.name(to)
            ));
        }
        self.network.pending.push_back(Pending {
            from,
            to,
            sender: self.name(from),
            body,
            was_held,
        });
    }

    /// A proposal, or the answer to it, was lost: its leader waits in vain.
    pub fn outcome_unknown(&mut self, leader: Party, change: quorate::types::IsrChange) {
        let now = self.now;
        if let Party::Node(leader) = leader
            && let Some(process) = &mut self.nodes[leader].process
        {
            process
                .partition
                .handle_isr_outcome(now, &change, IsrOutcome::Unknown);
            self.look_after(leader);
        }
    }

    /// A message, or a disk's work, reaches its end.
    pub fn arrive(&mut self, pending: Pending) {
        let Pending {
            from,
            to,
            sender,
            body,
            was_held,
        } = pending;
        let what = self.body_in_words(&body);
        let way = format!("{sender} -> {}", self.name(to));
        match to {
            Party::Controller => {
                self.tell(format!("{way}: {what}"));
                self.controller_receives(from, body);
            }
            Party::Disk => {
                if let Party::Node(node) = from {
                    self.disk_works(node, body);
                }
            }
            Party::Node(node) => {
                // What everybody is told of a commit stands in the line of the commit.
                let is_told_already = matches!(body, Body::State(_) | Body::Close(_));
                let at = self.lines.len();
                let remark = self.node_receives(node, from, body);
                if was_held || !is_told_already {
                    let remark = remark.map_or_else(String::new, |remark| format!(" ({remark})"));
                    self.lines.insert(at, format!("{way}: {what}{remark}"));
                }
                self.look_after(node);
            }
        }
    }

    /// Returns what is to be remarked about it.
    fn node_receives(&mut self, node: usize, from: Party, body: Body) -> Option<String> {
        let now = self.now;
        let links = &self.links;
        let disk = &self.nodes[node].disk.clone();
        let Some(process) = &mut self.nodes[node].process else {
            return Some("lost: nobody is there".to_owned());
        };
        let partition = &mut process.partition;
        let sender = match from {
            Party::Node(index) => Some(index),
            _ => None,
        };
        match (body, sender) {
            (Body::Hello { from, open }, _) => partition.handle_open_session(from, &open),
            (Body::Close(session), Some(sender)) => {
                partition.handle_session_closed_by_follower(node_id(sender), session);
            }
            (Body::Answer(answer), Some(sender)) => {
                let before = partition.role_view(now);
                partition.handle_answer(now, node_id(sender), &answer);
                if before == partition.role_view(now) {
                    return Some("not taken".to_owned());
                }
            }
            (Body::Frames(frames), Some(_)) => {
                let end = process.reader.end();
                let decoded = words::decode(&frames.frames);
                let is_empty = decoded.is_empty();
                let taken = partition.handle_frames(
                    now,
                    frames.session,
                    frames.leader_epoch,
                    frames.high_watermark,
                    decoded,
                );
                return match taken {
                    Err(refused) => Some(format!("not taken: {refused}")),
                    Ok(()) if process.reader.end() == end && !is_empty && !disk.has_crashed() => {
                        Some("nothing new".to_owned())
                    }
                    Ok(()) => {
                        process.told.log = words::log(&process.reader);
                        None
                    }
                };
            }
            (Body::Ack { process, ack }, _) => {
                if let Err(refused) = partition.handle_ack(now, process, &ack) {
                    return Some(format!("not counted: {refused}"));
                }
            }
            (Body::State(state), _) => {
                let connected = state
                    .leader_node()
                    .is_some_and(|leader| links.contains(&(node, index_of(leader))));
                partition.handle_state(now, &state, connected);
            }
            (Body::Fence(epoch), _) => {
                let answer = partition.handle_fence(epoch);
                let view = partition.view();
                let me = process.me;
                match answer {
                    FenceAnswer::Refused { promised } => self.send(
                        Party::Node(node),
                        Party::Controller,
                        Body::FenceReply(Err(promised)),
                    ),
                    FenceAnswer::Promised { last, eligible } => {
                        let reply = quorate::metadata::FenceReply {
                            epoch,
                            node: me.node,
                            incarnation: me.incarnation,
                            last,
                            eligible,
                            is_reluctant: view.is_short_of_space,
                        };
                        let body = Body::Promise {
                            epoch,
                            reply: Some(reply),
                        };
                        self.send(Party::Node(node), Party::Disk, body);
                    }
                }
            }
            (Body::Outcome { change, outcome }, _) => {
                partition.handle_isr_outcome(now, &change, outcome);
            }
            _ => panic!("no node takes this from {from}"),
        }
        None
    }

    fn disk_works(&mut self, node: usize, body: Body) {
        let now = self.now;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        match body {
            Body::Sync(ticket) => {
                let result = ticket.run();
                process.partition.handle_synced(ticket, result);
            }
            Body::Promise { epoch, reply } => {
                process
                    .data_dir
                    .promises()
                    .raise(&[(PARTITION, epoch)])
                    .unwrap();
                process.partition.handle_promise_durable(now, epoch);
                if let Some(reply) = reply {
                    self.send(
                        Party::Node(node),
                        Party::Controller,
                        Body::FenceReply(Ok(reply)),
                    );
                }
            }
            _ => panic!("a disk syncs and nothing else"),
        }
        self.look_after(node);
    }

    /// Carries out what a replica asks for, and tells what is different about it.
    pub fn look_after(&mut self, node: usize) {
        if self.nodes[node].disk.has_crashed() {
            self.die_in_write(node);
            return;
        }
        self.close_left_session(node);
        self.tell_differences(node);
        while let Some(output) = self.nodes[node]
            .process
            .as_mut()
            .and_then(|process| process.partition.poll_output())
        {
            self.carry_out(node, output);
        }
    }

    fn carry_out(&mut self, node: usize, output: Output) {
        let me = Party::Node(node);
        match output {
            Output::Sync(ticket) => self.send(me, Party::Disk, Body::Sync(ticket)),
            Output::PersistPromise(epoch) => {
                self.send(me, Party::Disk, Body::Promise { epoch, reply: None });
            }
            Output::OpenSession(hello) => {
                let to = index_of(hello.to);
                self.sessions.insert(node, (to, hello.open.session));
                if let Some(from) = self.nodes[node].process.as_ref().map(|process| process.me) {
                    self.send_linked(
                        node,
                        to,
                        true,
                        Body::Hello {
                            from,
                            open: hello.open,
                        },
                    );
                }
            }
            Output::Ack { to, ack } => {
                let Some(process) = self.nodes[node].process.as_ref().map(|process| process.me)
                else {
                    return;
                };
                self.send_linked(node, index_of(to), true, Body::Ack { process, ack });
            }
            Output::Answer { to, answer, .. } => {
                self.send_linked(node, index_of(to), false, Body::Answer(answer));
            }
            Output::FramesReady(order) => {
                let frames = self.nodes[node]
                    .process
                    .as_mut()
                    .and_then(|process| process.partition.take_frames(order));
                if let Some(frames) = frames {
                    self.send_linked(node, index_of(order.to), false, Body::Frames(frames));
                }
            }
            Output::Watermark(frames) => {
                self.send_linked(node, index_of(frames.to), false, Body::Frames(frames));
            }
            Output::Complete { ticket, result } => {
                let Some(waiting) = self.waiting.remove(&ticket) else {
                    panic!("node {} answers a request twice", node + 1);
                };
                let answer = match result {
                    Ok(outcome) => {
                        if waiting.is_acks_all {
                            self.acknowledged
                                .insert(outcome.base, waiting.record.clone());
                        }
                        format!("acknowledged at offset {}", outcome.base)
                    }
                    Err(code) => words::error(code),
                };
                self.tell(format!(
                    "{} answers {:?}: {answer}",
                    self.name(me),
                    waiting.record
                ));
            }
            Output::ProposeIsr(change) => {
                if let Some(from) = self.nodes[node].process.as_ref().map(|process| process.me) {
                    self.send(
                        me,
                        Party::Controller,
                        Body::Propose {
                            from,
                            change,
                            is_awaited: true,
                        },
                    );
                }
            }
            Output::Failed { cause, .. } => {
                let cause = self.names.in_words(&cause, &self.processes);
                self.tell(format!(
                    "{}: {}",
                    self.name(me),
                    cause.replace(&format!("partition {PARTITION}"), "the partition")
                ));
            }
            Output::ViewChanged | Output::HandedOver { .. } | Output::Resign { .. } => {}
        }
    }

    /// Sends on the connection between a follower and its leader, if there is one.
    fn send_linked(&mut self, from: usize, to: usize, is_follower: bool, body: Body) {
        let link = if is_follower { (from, to) } else { (to, from) };
        if self.links.contains(&link) {
            self.send(Party::Node(from), Party::Node(to), body);
        }
    }

    /// A replica that has left its leader closes its session there.
    fn close_left_session(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let followed = process.partition.followed_leader().map(index_of);
        if let Some(&(leader, session)) = self.sessions.get(&node)
            && followed != Some(leader)
        {
            self.sessions.remove(&node);
            self.send_linked(node, leader, true, Body::Close(session));
        }
    }

    fn tell_differences(&mut self, node: usize) {
        let now = self.now;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let Process {
            me,
            partition,
            reader,
            told,
            ..
        } = process;
        let name = self.names.process(me);
        let role = self.names.role(&partition.role_view(now));
        if role != told.role {
            self.lines.push(format!("{name} {role}"));
            told.role = role;
        }
        let log = words::log(reader);
        let common = log.iter().zip(&told.log).take_while(|(a, b)| a == b);
        let common = common.count();
        let (cut, added) = (&told.log[common..], &log[common..]);
        if !cut.is_empty() {
            self.lines.push(format!("{name} cuts {}", cut.join(", ")));
        }
        if !added.is_empty() {
            self.lines
                .push(format!("{name} appends {}", added.join(", ")));
        }
        told.log = log;
        let durable = partition.durable_end();
        if durable > told.durable {
            self.lines
                .push(format!("{name} has synced up to {durable}"));
        }
        told.durable = durable;
        let high_watermark = partition.high_watermark();
        if high_watermark != told.high_watermark {
            self.lines.push(format!("{name} HW {high_watermark}"));
            told.high_watermark = high_watermark;
        }
    }

    pub fn body_in_words(&mut self, body: &Body) -> String {
        match body {
            Body::Hello { open, .. } => self.hello_in_words(open),
            Body::Close(session) => format!("closes session {}", self.names.session(*session)),
            Body::Answer(answer) => self.answer_in_words(answer),
            Body::Frames(frames) => self.frames_in_words(frames),
            Body::Ack { ack, .. } => format!(
                "session {}, ack {}",
                self.names.session(ack.session),
                ack.durable
            ),
            Body::State(state) => self.names.state(state),
            Body::Fence(epoch) => format!("fence for epoch {epoch}"),
            Body::FenceReply(Ok(reply)) => {
                let doubt = if reply.eligible {
                    ""
                } else {
                    ", but may have lost what it acknowledged"
                };
                format!(
                    "promises epoch {}, holds {} durably{doubt}",
                    reply.epoch, reply.last
                )
            }
            Body::FenceReply(Err(promised)) => format!("has promised epoch {promised} already"),
            Body::Propose { change, .. } => format!(
                "proposes {} on leader epoch {}, partition epoch {}",
                self.set_in_words(&change.new_isr, change.min_insync),
                change.leader_epoch,
                change.partition_epoch
            ),
            Body::Outcome { outcome, .. } => match outcome {
                IsrOutcome::Accepted => "accepted".to_owned(),
                IsrOutcome::Refused => "refused".to_owned(),
                IsrOutcome::Unknown => "unknown".to_owned(),
            },
            Body::Sync(_) => "sync".to_owned(),
            Body::Promise { epoch, .. } => format!("write the promise of epoch {epoch}"),
        }
    }

    pub fn set_in_words(&self, members: &[Appointment], min_insync: u32) -> String {
        format!("ISR {}, min.insync {min_insync}", self.names.set(members))
    }

    fn hello_in_words(&mut self, open: &OpenSession) -> String {
        let lost = if open.log_lost {
            "; it has lost its log"
        } else {
            ""
        };
        format!(
            "hello, session {} in epoch {}, log durable to {}, epochs {}{lost}",
            self.names.session(open.session),
            open.leader_epoch,
            open.durable,
            words::epochs(&open.epochs)
        )
    }

    fn answer_in_words(&mut self, answer: &SessionAnswer) -> String {
        let session = self.names.session(answer.session);
        match &answer.outcome {
            SessionOutcome::Truncate(to) => format!("session {session}, keep your log up to {to}"),
            SessionOutcome::Reset { start, .. } => {
                format!("session {session}, begin an empty log at {start}")
            }
            SessionOutcome::Refused(refusal) => format!("session {session} refused, {refusal:?}"),
        }
    }

    fn frames_in_words(&mut self, frames: &Frames) -> String {
        let texts: Vec<String> = words::decode(&frames.frames)
            .iter()
            .map(words::frame_text)
            .collect();
        let texts = if texts.is_empty() {
            String::new()
        } else {
            format!("{}; ", texts.join(", "))
        };
        format!(
            "session {}, {texts}HW {}",
            self.names.session(frames.session),
            frames.high_watermark
        )
    }

    /// Everything that was acknowledged and that the log of the leader in office does not hold.
    pub fn lost(&self) -> Vec<String> {
        let leader = self
            .image
            .partition(PARTITION)
            .and_then(|state| state.leader);
        let Some(process) = leader
            .and_then(|leader| self.nodes[index_of(leader.node)].process.as_ref())
            .filter(|process| Some(process.me) == leader)
        else {
            return Vec::new();
        };
        let held = words::records_by_offset(&process.reader);
        self.acknowledged
            .iter()
            .filter(|&(offset, record)| held.get(offset) != Some(record))
            .map(|(offset, record)| format!("{record:?} at offset {offset}"))
            .collect()
    }

    pub fn view(&self, node: usize) -> Option<RoleView> {
        let process = self.nodes[node].process.as_ref()?;
        Some(process.partition.role_view(self.now))
    }

    pub fn promised(&self, node: usize) -> LeaderEpoch {
        let process = self.nodes[node].process.as_ref();
        process.map_or(LeaderEpoch::NONE, |process| process.partition.promised())
    }

    pub fn node_ids(&self) -> Vec<NodeId> {
        (0..self.nodes.len()).map(node_id).collect()
    }
}
