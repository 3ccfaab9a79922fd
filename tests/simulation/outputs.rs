//! Carries out what a partition asks for, as the broker's owner threads do, and shows the checks what it did.

use bytes::BytesMut;
use quorate::metadata::ElectionStart;
use quorate::partition::{Frames, FramesReady, Output};
use quorate::replication::{IsrOutcome, ProduceOutcome, ProduceTicket};
use quorate::types::{ErrorCode, IsrChange, LeaderEpoch, LogPosition, NodeId, PartitionState};
use quorate::wire::{Ack, ControlMessage, LaneMessage, SessionAnswer, SessionOutcome};

use super::checker::{Check, Session, violated};
use super::event::Event;
use super::mistakes::{tamper_with_change, tamper_with_frames};
use super::network::StreamId;
use super::node::{Call, Replica, index_of, partition_id, partition_index};
use super::planted::Planted;
use super::world::{MAX_QUEUED, World, unexpected};

/// What one order may bring beyond a connection's budget.
const MOST_BYTES_OF_AN_ORDER: usize = 256 * 1024;
/// A leader's end outlives its follower's until it has been silent for long enough, and a follower dials anew meanwhile.
const MOST_CONNECTIONS_OF_A_PAIR: usize = 64;

impl World {
    /// Everything that a partition has asked for since.
    pub fn drain(&mut self, node: usize, partition: usize) -> Check {
        loop {
            if self.nodes[node].process.is_none() || self.has_died(node) {
                return Ok(());
            }
            self.look_at(node, partition)?;
            let Some(replica) = self.nodes[node].replica(partition) else {
                return Ok(());
            };
            let Some(output) = replica.partition.poll_output() else {
                return Ok(());
            };
            self.carry_out(node, partition, output)?;
        }
    }

    /// Shows a replica to the checks.
    fn look_at(&mut self, node: usize, partition: usize) -> Check {
        let Some(process) = &self.nodes[node].process else {
            return Ok(());
        };
        let me = process.me;
        self.notice_set_aside(node, partition);
        let Some(replica) = self.nodes[node].view_replica(partition) else {
            return Ok(());
        };
        let mut high_watermark = replica.partition.view().high_watermark;
        if self.planted == Some(Planted::WatermarkFalls)
            && replica.partition.followed_leader().is_some()
        {
            high_watermark = replica.overheard.unwrap_or(high_watermark);
        }
        let role_epoch = replica.partition.role_epoch();
        let pending = replica.proposal_that_counts();
        let pending = pending.map(|change| (&change.new_isr[..], change.min_insync));
        let leader = replica.partition.leader();
        let mut leads_in = leader.map(|leader| (leader.epoch(), me, leader.epoch_started()));
        if let Some((_, _, started)) = &mut leads_in {
            let own = replica.partition.durable_end().offset;
            match self.planted {
                Some(Planted::OwnDiskCommits) if *started => high_watermark = own,
                Some(Planted::StartNotAwaited)
                    if replica.partition.durable_end().epoch == role_epoch =>
                {
                    *started = true;
                    high_watermark = own;
                }
                _ => {}
            }
        }
        check_fills(node, replica)?;
        let checker = &mut self.checkers[partition];
        if let Some(counting) = replica.counting() {
            checker.check_counting(node, &counting)?;
        }
        let looked = checker.look_at_log(
            node,
            &replica.reader,
            replica.partition.durable_end(),
            role_epoch,
        );
        if looked.is_err() && self.nodes[node].disk.has_crashed() {
            return Ok(());
        }
        if looked.is_err() && self.nodes[node].was_harmed[partition] {
            return self.verify_at_next_start(node);
        }
        looked?;
        // What is damaged cannot be replayed, and is about to be set aside.
        let is_sound = !replica.partition.is_damaged() && !replica.partition.has_failed();
        if is_sound {
            checker.look_at_producers(node, role_epoch, replica.partition.producers())?;
        }
        checker.look_at_watermark(node, high_watermark, leads_in, pending)?;
        if is_sound {
            checker.look_at_stable(node, &replica.partition.view())?;
        }
        Ok(())
    }

    /// After every step: the cluster as a whole.
    pub fn check_step(&self) -> Check {
        for (partition, checker) in self.checkers.iter().enumerate() {
            checker.check_step()?;
            // The controller may have committed something since the leader last moved.
            for (index, node) in self.nodes.iter().enumerate() {
                let counting = node.view_replica(partition).and_then(Replica::counting);
                if let Some(counting) = counting {
                    checker.check_counting(index, &counting)?;
                    checker.check_proposal(index, &counting)?;
                }
            }
        }
        self.check_bounds()
    }

    /// A harmed log that is empty of a sudden was set aside.
    fn notice_set_aside(&mut self, node: usize, partition: usize) {
        let is_empty = self.nodes[node]
            .view_replica(partition)
            .is_some_and(|replica| replica.reader.end() == LogPosition::START);
        let harmed = &mut self.nodes[node];
        let had_something = self.checkers[partition].replicas[node].mirror.end();
        if is_empty && harmed.was_harmed[partition] && had_something > LogPosition::START {
            harmed.was_harmed[partition] = false;
            harmed.was_set_aside[partition] = true;
            self.checkers[partition].set_aside(node);
            self.figures.set_aside_running += 1;
            self.tell(|| format!("node {} has set partition {partition} aside", node + 1));
        }
    }

    fn carry_out(&mut self, node: usize, partition: usize, output: Output) -> Check {
        let boot = self.nodes[node].boot;
        match output {
            Output::Sync(ticket) => {
                let after = self.disk_us(node);
                self.plan_us(
                    after,
                    Event::SyncRun {
                        node,
                        boot,
                        partition,
                        ticket,
                    },
                );
            }
            Output::PersistPromise(epoch) => {
                if let Some(process) = &mut self.nodes[node].process {
                    process.promises.push((partition, epoch));
                }
                self.plan_promises(node);
            }
            Output::OpenSession(hello) => {
                self.checkers[partition].promise_told(node, hello.open.leader_epoch)?;
                self.checkers[partition].claims(node, hello.open.durable)?;
                let connection = self.connection_to(node, hello.to);
                if let Some(id) = connection
                    && let Some(connection) = self.network.connections.get_mut(&id)
                {
                    let side = &mut connection.follower_side;
                    if let Some(old) = side.sessions.insert(partition, hello.open.session) {
                        side.partitions.remove(&old);
                        side.acks.remove(&old);
                    }
                    side.partitions.insert(hello.open.session, partition);
                    if self.planted == Some(Planted::OldSessionsAnswer) {
                        self.take_old_answer(node, partition, &hello.open, hello.to);
                    }
                    let message = ControlMessage::OpenSession(hello.open);
                    self.send(id, StreamId::ControlUp, message.encode());
                }
            }
            Output::Ack { to, ack } => self.send_ack(node, partition, to, ack)?,
            Output::Answer {
                to,
                answer,
                catch_up,
            } => self.send_answer(node, partition, index_of(to), &answer, catch_up),
            Output::FramesReady(order) => self.send_order(node, partition, order),
            Output::Watermark(frames) => self.send_frames(node, partition, frames),
            Output::Complete { ticket, result } => self.answer_produce(node, ticket, result)?,
            Output::ProposeIsr(change) => {
                self.tell(|| format!("node {} proposes {change:?}", node + 1));
                if let Some(replica) = self.nodes[node].replica(partition) {
                    // Once refused, what is asked for next is the present set, and the refused one still counts.
                    if replica.proposal_that_counts().is_none() {
                        replica.proposed = Some(change.clone());
                    }
                }
                self.propose_isr(node, partition, change)?;
            }
            Output::Resign {
                leader_epoch,
                partition_epoch,
            } => {
                self.tell(|| format!("node {} asks for another leader", node + 1));
                self.resign(ElectionStart {
                    partition: partition_id(partition),
                    leader_epoch,
                    partition_epoch,
                });
            }
            Output::HandedOver { result, .. } => {
                let replica = self.nodes[node].replica(partition);
                if let Some(epoch) = replica.and_then(|replica| replica.handing_over) {
                    self.say_handed_over(node, partition, epoch, result.is_ok());
                }
            }
            Output::ViewChanged => {}
            Output::Failed {
                cause,
                stop_process,
            } => {
                self.tell(|| format!("node {}: {cause} (stop: {stop_process})", node + 1));
                // That a forced leader has others cut what it lacks is said, and no failure.
                let is_forced = self.checkers[partition].forced_epoch > LeaderEpoch::NONE;
                let is_lost = is_forced && !stop_process && !self.has_failed(node);
                let harmed = &self.nodes[node];
                if !harmed.is_excused() && !harmed.was_set_aside[partition] && !is_lost {
                    return unexpected(format!("node {}: {cause}", node + 1));
                }
                let has_failed = self.has_failed(node);
                if stop_process {
                    self.figures.stopped_by_disk += 1;
                    self.end_process(node, false);
                } else if has_failed && self.nodes[node].was_harmed[partition] {
                    self.verify_at_next_start(node)?;
                } else if has_failed && self.healing_since.is_some() {
                    // An error that was waiting for its moment; the operator who heals is still about.
                    self.end_process(node, false);
                } else {
                    self.figures.no_room += u64::from(self.nodes[node].full > 0);
                }
            }
        }
        Ok(())
    }

    /// A produce is answered, and what is said is checked.
    pub fn answer_produce(
        &mut self,
        node: usize,
        ticket: ProduceTicket,
        result: Result<ProduceOutcome, ErrorCode>,
    ) -> Check {
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let Some(waiting) = process.waiting.remove(&ticket) else {
            return unexpected(format!("node {} answers {ticket:?} twice", node + 1));
        };
        if let Ok(outcome) = result {
            self.check_answer(node, &waiting, outcome)?;
        }
        let answered_in = self.nodes[node]
            .view_replica(waiting.partition)
            .map_or(LeaderEpoch::NONE, |replica| replica.partition.role_epoch());
        match waiting.call {
            Call::Produce(mut call) => {
                let clients = self.setup.clients();
                if let Some(after) = self.network.send_call(node, clients) {
                    call.answered_in = answered_in;
                    self.plan(after, Event::ProduceReply { call, result });
                }
            }
            Call::Transaction(mut call) => {
                call.answered_in = answered_in;
                self.answer_transaction(call, result);
            }
        }
        Ok(())
    }

    /// A leader's proposal leaves it; or what a planted mistake makes of it.
    fn propose_isr(&mut self, node: usize, partition: usize, mut change: IsrChange) -> Check {
        let now = self.now;
        if let Some(planted) = self.planted
            && let Some(replica) = self.nodes[node].replica(partition)
            && let Some(told) = replica.told.clone()
        {
            let checker = &self.checkers[partition];
            tamper_with_change(planted, &told, &mut change, |member| checker.lags(member));
            if planted == Planted::ShrinkNotSettled && change.new_isr.len() < told.isr.len() {
                let settled = PartitionState {
                    isr: change.new_isr.clone(),
                    min_insync: change.min_insync,
                    partition_epoch: told.partition_epoch.next(),
                    ..told
                };
                replica.partition.handle_state(now, &settled, false);
            }
        }
        self.submit_isr_change(node, change);
        Ok(())
    }

    /// An ack waits a moment for others on its connection, and a newer one takes its place.
    pub fn send_ack(&mut self, node: usize, partition: usize, to: NodeId, ack: Ack) -> Check {
        self.checkers[partition].ack_sent(node, &ack)?;
        if let Some(replica) = self.nodes[node].replica(partition) {
            replica.last_sent = Some((to, ack));
        }
        let connection = self.connection_to(node, to);
        if let Some(id) = connection
            && let Some(connection) = self.network.connections.get_mut(&id)
            && connection
                .follower_side
                .partitions
                .contains_key(&ack.session)
        {
            let side = &mut connection.follower_side;
            side.acks.insert(ack.session, ack);
            if !std::mem::replace(&mut side.flush_planned, true) {
                let after = self.random.below(300);
                self.plan_us(after, Event::FlushAcks { connection: id });
            }
        }
        Ok(())
    }

    fn connection_to(&self, node: usize, leader: NodeId) -> Option<u64> {
        let link = self.nodes[node]
            .process
            .as_ref()?
            .links
            .get(&index_of(leader))?;
        link.connection.filter(|_| link.up)
    }

    fn send_answer(
        &mut self,
        node: usize,
        partition: usize,
        to: usize,
        answer: &SessionAnswer,
        catch_up: bool,
    ) {
        let Some(replica) = self.nodes[node].replica(partition) else {
            return;
        };
        let Some(session) = replica
            .sessions
            .get(&to)
            .filter(|session| session.session == answer.session)
        else {
            return;
        };
        let connection = session.connection;
        let watermark = replica.partition.high_watermark();
        self.tell(|| format!("node {} answers node {}: {answer:?}", node + 1, to + 1));
        if matches!(answer.outcome, SessionOutcome::Refused(_)) {
            let message = ControlMessage::SessionAnswer(answer.clone());
            self.send(connection, StreamId::ControlDown, message.encode());
            return;
        }
        if let Some(process) = self.follower_process(connection) {
            let opened = Session {
                id: answer.session,
                leader_epoch: answer.leader_epoch,
                process,
                connection,
            };
            self.checkers[partition].session_opened(node, to, opened);
            if self.planted == Some(Planted::OlderProcessAck) {
                self.count_older_ack(node, partition, to, &opened);
            }
        }
        let lane = if catch_up {
            StreamId::CatchUp
        } else {
            StreamId::Live
        };
        self.send(
            connection,
            lane,
            LaneMessage::encode_answer(answer, watermark),
        );
    }

    /// A planted mistake: the process before has acknowledged something, and the present one is to have it.
    fn count_older_ack(&mut self, node: usize, partition: usize, to: usize, opened: &Session) {
        let now = self.now;
        if let Some(replica) = self.nodes[node].replica(partition)
            && let Some(&(incarnation, ack)) = replica.last_acks.get(&to)
            && incarnation != opened.process.incarnation
        {
            let ack = Ack {
                session: opened.id,
                leader_epoch: opened.leader_epoch,
                ..ack
            };
            // What the leader could not have sent, it does not take from anybody.
            let _ = replica.partition.handle_ack(now, opened.process, &ack);
        }
    }

    fn send_order(&mut self, node: usize, partition: usize, order: FramesReady) {
        let budget = self.setup.follower_budget_bytes;
        let to = index_of(order.to);
        let Some(replica) = self.nodes[node].replica(partition) else {
            return;
        };
        let Some(session) = replica
            .sessions
            .get_mut(&to)
            .filter(|session| session.session == order.session)
        else {
            replica
                .partition
                .handle_session_closed_by_follower(order.to, order.session);
            return;
        };
        let Some(connection) = self.network.connections.get_mut(&session.connection) else {
            replica.partition.handle_blocked(order);
            return;
        };
        if connection.leader_side.outstanding >= budget {
            connection.leader_side.turned_away = true;
            replica.partition.handle_blocked(order);
            self.tell(|| format!("node {} has no room for node {}", node + 1, to + 1));
            return;
        }
        if let Some(mut frames) = replica.partition.take_frames(order) {
            if let Some(planted) = self.planted {
                tamper_with_frames(planted, session, &mut frames);
            }
            session.outstanding += frames.bytes;
            self.tell(|| {
                format!(
                    "node {} sends node {} {} frames of partition {partition} from {} in session {}",
                    node + 1, to + 1, frames.frames.len(), order.from, order.session
                )
            });
            self.send_frames(node, partition, frames);
        }
    }

    fn send_frames(&mut self, node: usize, partition: usize, frames: Frames) {
        let to = index_of(frames.to);
        let Some(replica) = self.nodes[node].replica(partition) else {
            return;
        };
        let Some(id) = replica
            .sessions
            .get(&to)
            .filter(|session| session.session == frames.session)
            .map(|session| session.connection)
        else {
            return;
        };
        if let Some(connection) = self.network.connections.get_mut(&id) {
            connection.leader_side.outstanding += frames.bytes;
        }
        let header = LaneMessage::encode_header(
            frames.session,
            frames.leader_epoch,
            frames.high_watermark,
            frames.bytes,
        );
        let mut message = BytesMut::with_capacity(header.len() + frames.bytes);
        message.extend_from_slice(&header);
        for frame in &frames.frames {
            message.extend_from_slice(frame);
        }
        let lane = if frames.catch_up {
            StreamId::CatchUp
        } else {
            StreamId::Live
        };
        self.send(id, lane, message.freeze());
    }

    pub fn isr_outcome(
        &mut self,
        node: usize,
        boot: u64,
        change: &IsrChange,
        outcome: IsrOutcome,
    ) -> Check {
        if !self.is_current(node, boot) {
            return Ok(());
        }
        let now = self.now;
        let partition = partition_index(change.partition);
        if let Some(replica) = self.nodes[node].replica(partition) {
            replica.partition.handle_isr_outcome(now, change, outcome);
        }
        self.drain(node, partition)
    }

    /// Bounds that stand around the replicas: on connections, on what is under way on them, on what waits to be answered.
    pub fn check_bounds(&self) -> Check {
        let (nodes, partitions) = (self.setup.nodes, self.setup.partitions);
        let check = |what: &str, count: usize, bound: usize| {
            if count <= bound {
                return Ok(());
            }
            violated("12 (bounds)", format!("{count} {what}, at most {bound}"))
        };
        // One order beyond it, and an order is one frame or what fits 256 KiB.
        let under_way = self.setup.follower_budget_bytes + MOST_BYTES_OF_AN_ORDER;
        let mut dialled = vec![0; nodes * nodes];
        for connection in self.network.connections.values() {
            check(
                "bytes under way to a follower",
                connection.leader_side.outstanding,
                under_way,
            )?;
            check("acks wait", connection.follower_side.acks.len(), partitions)?;
            check(
                "sessions on one connection",
                connection.leader_side.sessions.len(),
                partitions,
            )?;
            if connection.follower_holds {
                let count = &mut dialled[connection.follower * nodes + connection.leader];
                *count += 1;
                check("connections dialled to one leader", *count, 1)?;
            }
        }
        check(
            "connections",
            self.network.connections.len(),
            nodes * nodes * MOST_CONNECTIONS_OF_A_PAIR,
        )?;
        for node in &self.nodes {
            let Some(process) = &node.process else {
                continue;
            };
            check(
                "promises to be written",
                process.promises.len(),
                // A replica that has just come back may have one of before.
                2 * partitions,
            )?;
            check("links", process.links.len(), nodes - 1)?;
            for replica in process.replicas.iter().flatten() {
                check("sessions of a partition", replica.sessions.len(), nodes - 1)?;
            }
        }
        check("events wait", self.queue.len(), MAX_QUEUED)?;
        self.controller.check_bounds(nodes, partitions)
    }
}

/// Everything that may grow in a replica, against its stated bound.
fn check_fills(node: usize, replica: &Replica) -> Check {
    let mut over = None;
    replica.partition.each_fill(|fill| {
        if !fill.is_within() {
            over = Some(fill);
        }
    });
    match over {
        None => Ok(()),
        Some(fill) => violated("12 (bounds)", format!("node {}: {fill:?}", node + 1)),
    }
}
