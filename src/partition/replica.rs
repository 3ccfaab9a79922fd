//! One replica of one partition: its role, its promise and its log.

use std::collections::VecDeque;

use super::hand_over::HandOver;
use super::output::{FenceAnswer, Frames, FramesReady, Output, PartitionView};
use super::producers::{remember_producer, snapshot_roll};
use super::resign::Resignation;
use crate::replication::{
    AckRefused, Confirmed, Follower, FramesRefused, IsrOutcome, Leader, LeaderAction, LogEnds,
    Peers, ProducerStates,
};
use crate::storage::{
    Compacted, CompactionError, CompactionJob, CompactionReport, IoFailure, Log, LogConfig,
    LogReader, ReadError, SyncError, SyncTicket,
};
use crate::types::{
    Appointment, ErrorCode, IsrChange, LeaderEpoch, LogPosition, MonotonicTime, NodeId, Offset,
    PartitionState, SessionId, TopicPartition,
};
use crate::wal::Frame;
use crate::wire::{Ack, OpenSession, SessionAnswer, SessionRefusal};

/// What a partition is opened with, beside its log.
#[derive(Debug, Clone)]
pub struct PartitionOptions {
    pub id: TopicPartition,
    /// This node, its data directory and its process.
    pub me: Appointment,
    /// The promise that was persisted before, or [`LeaderEpoch::NONE`].
    pub promised: LeaderEpoch,
    /// The high watermark that was checkpointed before, or 0. It never truncates anything.
    pub high_watermark: Offset,
    /// Begins a range of 2³² session ids that no other partition of this process uses.
    pub first_session: u64,
}

/// One replica. All calls come from the one thread that owns it.
pub struct Partition {
    pub id: TopicPartition,
    pub(super) me: Appointment,
    pub(super) log: Log,
    pub(super) role: Role,
    /// The highest leader epoch that this replica has promised to serve under. Never falls. It refuses appointments,
    /// sessions and appends below it. At least the epoch of the last durable frame.
    pub(super) promised: LeaderEpoch,
    /// How much of `promised` would survive a crash. A hello waits until it is all of it.
    pub(super) promised_durably: LeaderEpoch,
    /// The promise that was handed out to be made durable and has not come back: one at a time, so that nobody has to queue more.
    promise_out: Option<LeaderEpoch>,
    /// The last state that was taken from the controller.
    pub(super) state: Option<PartitionState>,
    /// At least what the current role knows; survives roles.
    pub(super) high_watermark: Offset,
    /// While this replica does not lead. A leader has it inside.
    pub(super) producers: ProducerStates,
    /// Whether there is a connection to the leader that is followed.
    pub(super) connected: bool,
    next_session: u64,
    /// As the topic's configuration has it, once it is known.
    configured_min_insync: Option<usize>,
    /// Whether the log holds everything that this replica acknowledged. If not, it neither votes nor leads.
    pub(super) trusted: bool,
    /// The log was damaged while this very process was a member of the in-sync set: being named in it says nothing until a
    /// state without it has shown that it was admitted anew.
    pub(super) must_leave_isr: bool,
    /// What a read found wrong with the log, until the log is set aside.
    pub(super) damage: Option<String>,
    /// While this replica leads and makes way for another.
    pub(super) hand_over: Option<HandOver>,
    /// The last append found no room on the disk.
    pub(super) found_no_room: bool,
    /// Records below it were deleted: they are not shown, and removed with their segments.
    pub(super) deleted_before: Offset,
    pub(super) resignation: Resignation,
    last_view: Option<PartitionView>,
    /// The durable end that the current role was last told of.
    pub(super) durable_told: LogPosition,
    /// Drained by the caller after every call.
    pub(super) outputs: VecDeque<Output>,
}

pub(super) enum Role {
    /// No leader is known in the promised epoch, or this node holds no part of it.
    Idle,
    Leader(Box<Leader>),
    Follower(Box<Follower>),
    /// The log failed; nothing is served until the process starts again.
    Failed,
}

impl Partition {
    /// Joins a log that was opened, and recovered, to a new core. Replays the log's tail for its producers.
    pub fn new(options: PartitionOptions, log: Log) -> Partition {
        let promised = options.promised.max(log.durable_end().epoch);
        let high_watermark = options
            .high_watermark
            .max(log.start().offset)
            .min(log.durable_end().offset);
        let log_is_sound = log.impairment().is_none();
        let mut partition = Partition {
            id: options.id,
            me: options.me,
            log,
            role: Role::Idle,
            promised,
            promised_durably: promised,
            promise_out: None,
            state: None,
            high_watermark,
            producers: ProducerStates::new(),
            connected: false,
            next_session: options.first_session,
            configured_min_insync: None,
            // A log that lost something neither votes nor leads until an ISR change names this incarnation.
            trusted: log_is_sound,
            must_leave_isr: false,
            damage: None,
            hand_over: None,
            found_no_room: false,
            deleted_before: Offset::ZERO,
            resignation: Resignation::default(),
            last_view: None,
            durable_told: LogPosition::START,
            outputs: VecDeque::new(),
        };
        partition.replay_producers();
        partition
    }

    pub fn id(&self) -> TopicPartition {
        self.id
    }

    pub fn promised(&self) -> LeaderEpoch {
        self.promised
    }

    pub fn reader(&self) -> LogReader {
        self.log.reader()
    }

    /// The end of what this replica's disk is certain to hold.
    pub fn durable_end(&self) -> LogPosition {
        self.log.durable_end()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The node that this replica follows now.
    pub fn followed_leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower(follower) => Some(follower.leader()),
            _ => None,
        }
    }

    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// The controller's committed state of this partition. `connected` says whether there is a connection to the leader
    /// that it names. An older state than the one known is ignored.
    pub fn handle_state(&mut self, now: MonotonicTime, state: &PartitionState, connected: bool) {
        if matches!(self.role, Role::Failed) {
            return;
        }
        if let Some(known) = &self.state
            && (state.leader_epoch, state.partition_epoch)
                <= (known.leader_epoch, known.partition_epoch)
        {
            return;
        }
        let names_me = |member: &Appointment| *member == self.me;
        if !state.isr.iter().any(names_me) {
            self.must_leave_isr = false;
        } else if !self.must_leave_isr {
            // An ISR change that names this incarnation was granted on what this very process acknowledged.
            self.trust();
        }
        let tell_again = self.has_to_tell_again(state);
        self.state = Some(state.clone());
        if state.leader_epoch < self.promised {
            // A higher epoch is under way already; its state will come.
            self.changed();
            return;
        }
        match (&mut self.role, state.leader) {
            (Role::Leader(leader), Some(appointed))
                if appointed == self.me && leader.epoch() == state.leader_epoch =>
            {
                leader.handle_state(state);
                self.drain_leader();
            }
            (Role::Follower(follower), Some(appointed))
                if follower.leader() == appointed.node
                    && follower.epoch() == state.leader_epoch =>
            {
                if tell_again {
                    follower.reopen(now);
                    self.drain_follower();
                }
            }
            (_, leader) => {
                self.step_down(ErrorCode::NotLeaderOrFollower);
                self.promised = state.leader_epoch;
                match leader {
                    None => {}
                    Some(appointed) if appointed == self.me => self.lead(now),
                    // This node, but an earlier process of it: it never leads in its old epoch. The controller elects again.
                    Some(appointed) if appointed.node == self.me.node => {}
                    Some(appointed) => self.follow(now, appointed.node, connected),
                }
            }
        }
        self.hand_over_to_next_leader();
        self.changed();
    }

    /// A controller fences this replica for `epoch`: it steps down and closes older sessions, and from here on neither
    /// acknowledges nor counts anything for an older epoch, even if a tail becomes durable later.
    pub fn handle_fence(&mut self, epoch: LeaderEpoch) -> FenceAnswer {
        let serving = match &self.role {
            Role::Leader(leader) => leader.epoch() >= epoch,
            Role::Follower(follower) => follower.epoch() >= epoch,
            Role::Idle | Role::Failed => false,
        };
        if epoch < self.promised || serving {
            return FenceAnswer::Refused {
                promised: self.promised,
            };
        }
        self.step_down(ErrorCode::NotLeaderOrFollower);
        self.promised = epoch;
        self.changed();
        FenceAnswer::Promised {
            last: self.log.durable_end(),
            eligible: self.trusted && !matches!(self.role, Role::Failed),
        }
    }

    /// A promise up to `epoch` is durable now.
    pub fn handle_promise_durable(&mut self, now: MonotonicTime, epoch: LeaderEpoch) {
        self.promised_durably = self.promised_durably.max(epoch);
        if self.promise_out == Some(epoch) {
            self.promise_out = None;
        }
        self.persist_promise();
        self.connect_if_ready(now);
    }

    /// A follower opens a session.
    pub fn handle_open_session(&mut self, from: Appointment, open: &OpenSession) {
        let Role::Leader(leader) = &mut self.role else {
            self.outputs.push_back(Output::Answer {
                to: from.node,
                answer: SessionAnswer {
                    session: open.session,
                    leader_epoch: self.promised,
                    outcome: crate::wire::SessionOutcome::Refused(SessionRefusal::NotLeader),
                },
                catch_up: false,
            });
            return;
        };
        let log = LogEnds {
            start: self.log.start(),
            end: self.log.end(),
            epochs: self.log.epochs(),
        };
        leader.handle_open_session(from, open, log);
        self.drain_leader();
    }

    /// A follower's session is over.
    pub fn handle_session_closed_by_follower(&mut self, from: NodeId, session: SessionId) {
        if let Role::Leader(leader) = &mut self.role {
            leader.handle_session_closed(from, session);
        }
    }

    /// A follower's connection is gone, and its session with it.
    pub fn handle_follower_gone(&mut self, from: NodeId) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(session) = leader.session_of(from)
        {
            leader.handle_session_closed(from, session);
        }
    }

    /// A follower acknowledges. Returns what it confirms of what was sent.
    pub fn handle_ack(
        &mut self,
        now: MonotonicTime,
        from: Appointment,
        ack: &Ack,
    ) -> Result<Confirmed, AckRefused> {
        let Role::Leader(leader) = &mut self.role else {
            return Err(AckRefused::Stale);
        };
        let confirmed = leader.handle_ack(now, from, ack)?;
        self.drain_leader();
        self.announce_hand_over();
        self.changed();
        Ok(confirmed)
    }

    /// Reads the frames of an order, for the caller to send at once. `None` if the order is no longer current.
    pub fn take_frames(&mut self, order: FramesReady) -> Option<Frames> {
        let Role::Leader(leader) = &mut self.role else {
            return None;
        };
        if leader.session_of(order.to) != Some(order.session) {
            return None;
        }
        let frames = match self.log.read(order.from, order.max_bytes) {
            Ok(frames) => frames,
            Err(error) => {
                // Without this stretch of the log the follower cannot go on, and no other replica is worse off for it: the
                // session ends, and the follower asks again.
                leader.handle_session_closed(order.to, order.session);
                self.outputs.push_back(Output::Answer {
                    to: order.to,
                    answer: SessionAnswer {
                        session: order.session,
                        leader_epoch: leader.epoch(),
                        outcome: crate::wire::SessionOutcome::Refused(SessionRefusal::Overloaded),
                    },
                    catch_up: false,
                });
                if error.is_damage() {
                    self.handle_damage(&error.to_string());
                } else if !matches!(error, ReadError::OutOfRange { .. }) {
                    // Retention may have passed a follower that is far behind, which is no failure: it is reset to the log's
                    // start.
                    self.outputs.push_back(Output::Failed {
                        cause: format!(
                            "cannot read partition {} at {}: {error}",
                            self.id, order.from
                        ),
                        stop_process: false,
                    });
                }
                return None;
            }
        };
        let end = frames.last()?.end();
        let frames: Vec<_> = frames.iter().map(|frame| frame.bytes().clone()).collect();
        let bytes = frames.iter().map(bytes::Bytes::len).sum();
        let sent = Frames {
            to: order.to,
            session: order.session,
            leader_epoch: leader.epoch(),
            high_watermark: leader.high_watermark(),
            frames,
            bytes,
            catch_up: order.catch_up,
        };
        leader.handle_sent(order.to, order.session, end, bytes);
        self.drain_leader();
        Some(sent)
    }

    /// The link has no room for an order.
    pub fn handle_blocked(&mut self, order: FramesReady) {
        if let Role::Leader(leader) = &mut self.role {
            leader.handle_blocked(order.to, order.session);
        }
    }

    /// The link to a follower has room again.
    pub fn handle_unblocked(&mut self, to: NodeId) {
        if let Role::Leader(leader) = &mut self.role {
            leader.handle_unblocked(to);
            self.drain_leader();
        }
    }

    /// There is a connection to `leader`, or there is none any more.
    pub fn handle_link(&mut self, now: MonotonicTime, leader: NodeId, connected: bool) {
        if self.followed_leader() != Some(leader) || self.connected == connected {
            return;
        }
        self.connected = connected;
        if connected {
            self.connect_if_ready(now);
        } else if let Role::Follower(follower) = &mut self.role {
            follower.handle_disconnected();
        }
    }

    /// The leader answers a hello.
    pub fn handle_answer(&mut self, now: MonotonicTime, from: NodeId, answer: &SessionAnswer) {
        if let Role::Follower(follower) = &mut self.role
            && follower.leader() == from
        {
            follower.handle_answer(now, answer);
            self.drain_follower();
        }
    }

    /// The leader closes a session.
    pub fn handle_session_closed_by_leader(
        &mut self,
        now: MonotonicTime,
        session: SessionId,
        reason: SessionRefusal,
    ) {
        if let Role::Follower(follower) = &mut self.role {
            follower.handle_session_closed(now, session, reason);
        }
    }

    /// Frames of a session came, already decoded and CRC-checked.
    pub fn handle_frames(
        &mut self,
        now: MonotonicTime,
        session: SessionId,
        leader_epoch: LeaderEpoch,
        high_watermark: Offset,
        frames: Vec<Frame>,
    ) -> Result<(), FramesRefused> {
        let Role::Follower(follower) = &mut self.role else {
            return Err(FramesRefused::Stale);
        };
        let fitting = follower.handle_frames(now, session, leader_epoch, frames, self.log.epochs());
        let fitting = match fitting {
            Ok(fitting) => fitting,
            Err(refused) => {
                self.drain_follower();
                return Err(refused);
            }
        };
        if !fitting.is_empty() {
            if let Err(error) = self.log.append(&fitting) {
                follower.handle_append_failed(now);
                self.append_failed(error);
                return Ok(());
            }
            let rolls = self.log.take_rolls();
            for frame in &fitting {
                if rolls.contains(&frame.start()) {
                    snapshot_roll(&mut self.log, &self.producers, frame.start());
                }
                remember_producer(&mut self.producers, frame);
            }
            self.found_no_room = false;
            follower.handle_appended(self.log.end());
        }
        follower.handle_watermark(session, high_watermark);
        self.drain_follower();
        self.sync();
        self.changed();
        Ok(())
    }

    /// A sync has ended. An error ends the process: what the disk holds is unknown, and asking it again would only hide that.
    pub fn handle_synced(&mut self, ticket: SyncTicket, result: Result<(), SyncError>) {
        // Also where it failed: the log then takes no more writes, and is not synced once more when it is closed.
        self.log.finish_sync(ticket);
        if let Err(error) = result {
            self.fail(
                format!("cannot make partition {} durable: {error}", self.id),
                true,
            );
            return;
        }
        self.durable_moved();
        self.sync();
        self.changed();
    }

    /// The topic's configuration asks for this `min.insync.replicas`. A leader proposes it as a change of the in-sync set.
    pub fn handle_min_insync(&mut self, min_insync: usize) {
        self.configured_min_insync = Some(min_insync);
        if let Role::Leader(leader) = &mut self.role {
            leader.handle_min_insync(min_insync);
        }
    }

    /// What came of an [`Output::ProposeIsr`].
    pub fn handle_isr_outcome(
        &mut self,
        now: MonotonicTime,
        attempt: &IsrChange,
        outcome: IsrOutcome,
    ) {
        if let Role::Leader(leader) = &mut self.role {
            leader.handle_isr_outcome(now, attempt, outcome);
        }
    }

    /// Time passes; to be called every 50 to 100 ms. `peers` says who was heard.
    pub fn handle_tick(&mut self, now: MonotonicTime, peers: &Peers) {
        match &mut self.role {
            Role::Leader(leader) => {
                leader.handle_tick(now, peers);
                self.drain_leader();
            }
            Role::Follower(follower) => {
                follower.handle_tick(now);
                self.drain_follower();
                self.begin_anew_if_damaged(now);
            }
            Role::Idle | Role::Failed => {}
        }
        self.look_after_hand_over(now, peers);
        self.give_way_to_others();
        self.consider_resigning(now, peers);
        self.changed();
    }

    /// The topic's configuration has changed.
    pub fn handle_config(&mut self, config: LogConfig) {
        self.log.set_config(config);
    }

    /// The cluster has committed that the records below `before` are deleted.
    pub fn handle_deleted_records(&mut self, before: Offset, wall_clock_ms: u64) {
        self.deleted_before = before;
        self.handle_retention(wall_clock_ms);
    }

    /// How an epoch ended in the log: see [`EpochHistory::last_up_to`](crate::types::EpochHistory::last_up_to).
    pub fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        self.log.end_of_epoch(epoch)
    }

    /// Drops segments that are past their retention; never anything at or above the high watermark.
    pub fn handle_retention(&mut self, wall_clock_ms: u64) {
        if matches!(self.role, Role::Failed) {
            return;
        }
        if let Err(error) = self.retain(wall_clock_ms) {
            self.fail(
                format!("cannot apply retention to partition {}: {error}", self.id),
                false,
            );
        }
        self.changed();
    }

    /// What of the log is to be compacted now. At most one job is to be out.
    pub fn plan_compaction(&self, wall_clock_ms: u64) -> Option<CompactionJob> {
        if matches!(self.role, Role::Failed) {
            return None;
        }
        let stable = self.producers().last_stable_offset(self.high_watermark);
        self.log
            .plan_compaction(wall_clock_ms, stable, self.high_watermark)
    }

    /// A job has run.
    pub fn handle_compacted(
        &mut self,
        compacted: Compacted,
    ) -> Result<CompactionReport, IoFailure> {
        self.log.finish_compaction(compacted)
    }

    /// A read by another thread found something bad: only recovery, which checks each frame, tells what.
    pub fn handle_compaction_failed(&mut self, error: &CompactionError) {
        if let CompactionError::Read(error) = error
            && error.is_damage()
        {
            self.handle_damage(&error.to_string());
        }
    }

    fn retain(&mut self, wall_clock_ms: u64) -> Result<(), IoFailure> {
        let start =
            self.log
                .plan_retention(wall_clock_ms, self.high_watermark, self.deleted_before)?;
        if !self.log.take_rolls().is_empty()
            && let Some(snapshot) = self.due_snapshot()
        {
            self.log.keep_snapshot(self.log.end(), snapshot);
        }
        if let Some(start) = start {
            let snapshot = self.producers_at_new_start(start);
            self.log.trim(start, snapshot)?;
        }
        Ok(())
    }

    /// The process stops, or the partition leaves this node: everyone who waits is answered. The caller closes the log.
    pub fn close(mut self) -> (Vec<Output>, Log) {
        self.step_down(ErrorCode::NotLeaderOrFollower);
        self.end_hand_over(ErrorCode::NotLeaderOrFollower);
        if !matches!(self.role, Role::Failed) {
            self.keep_last_snapshot();
        }
        (self.outputs.into(), self.log)
    }

    fn lead(&mut self, now: MonotonicTime) {
        let Some(state) = self.state.clone() else {
            return;
        };
        if self.log.end().epoch >= state.leader_epoch {
            // Only a leader of this epoch writes in it, so this process has led in it before and was fenced out of it.
            return;
        }
        let before = self.log.end();
        let start = Frame::epoch_start(state.leader_epoch, before);
        let end = start.end();
        if let Err(error) = self.log.append(&[start]) {
            self.append_failed(error);
            return;
        }
        if !self.log.take_rolls().is_empty() {
            snapshot_roll(&mut self.log, &self.producers, before);
        }
        self.durable_told = self.log.durable_end();
        let mut leader = Leader::new(
            now,
            self.id,
            self.me,
            &state,
            end,
            self.log.durable_end(),
            self.high_watermark,
            std::mem::take(&mut self.producers),
        );
        if let Some(min_insync) = self.configured_min_insync {
            leader.handle_min_insync(min_insync);
        }
        self.role = Role::Leader(Box::new(leader));
        self.drain_leader();
        self.sync();
    }

    pub(super) fn follow(&mut self, now: MonotonicTime, leader: NodeId, connected: bool) {
        if let Some(cause) = self.damage.take()
            && !self.begin_anew(&cause)
        {
            return;
        }
        let epoch = self.promised;
        self.durable_told = self.log.durable_end();
        // A leader's watermark may be above what its own disk holds, a follower's never is: what is not durable here is cut
        // and sent again.
        self.high_watermark = self.high_watermark.min(self.durable_told.offset);
        self.role = Role::Follower(Box::new(Follower::new(
            leader,
            epoch,
            self.log.end(),
            self.log.durable_end(),
            self.high_watermark,
            self.next_session,
        )));
        self.connected = connected;
        self.persist_promise();
        self.connect_if_ready(now);
    }

    /// Has a follower's promise made durable. What a fence promises is made so by whoever answers it.
    fn persist_promise(&mut self) {
        let epoch = match &self.role {
            Role::Follower(follower) => follower.epoch(),
            Role::Leader(_) | Role::Idle | Role::Failed => return,
        };
        if self.promised_durably < epoch && self.promise_out.is_none() {
            self.promise_out = Some(epoch);
            self.outputs.push_back(Output::PersistPromise(epoch));
        }
    }

    /// Opening a session raises the promise, and a hello is a claim to have made it: so it waits until the promise is
    /// durable.
    fn connect_if_ready(&mut self, now: MonotonicTime) {
        if let Role::Follower(follower) = &mut self.role
            && self.connected
            && self.promised_durably >= follower.epoch()
            && follower.session() == crate::replication::SessionState::Disconnected
        {
            follower.handle_connected(now);
            self.drain_follower();
        }
    }

    /// Leaves the current role. What waits is answered `error`; sessions are void from here.
    pub(super) fn step_down(&mut self, error: ErrorCode) {
        self.interrupt_hand_over(error);
        match std::mem::replace(&mut self.role, Role::Idle) {
            Role::Leader(leader) => {
                let (actions, producers) = leader.resign(error);
                self.producers = producers;
                for action in actions {
                    if let LeaderAction::Complete { ticket, result } = action {
                        self.outputs.push_back(Output::Complete { ticket, result });
                    }
                }
            }
            Role::Follower(follower) => self.next_session = follower.next_session(),
            Role::Idle => {}
            Role::Failed => self.role = Role::Failed,
        }
        self.connected = false;
    }

    fn durable_moved(&mut self) {
        let durable = self.log.durable_end();
        if durable == self.durable_told {
            return;
        }
        self.durable_told = durable;
        match &mut self.role {
            Role::Leader(leader) => {
                leader.handle_durable(durable);
                self.drain_leader();
                self.announce_hand_over();
            }
            Role::Follower(follower) => {
                follower.handle_durable(durable);
                self.drain_follower();
            }
            Role::Idle | Role::Failed => {}
        }
    }

    /// Asks for a sync, if something is not durable and none is out. With `flush=os` what is written counts at once.
    pub(super) fn sync(&mut self) {
        if self.log.is_tail_index_due()
            && let Some(snapshot) = self.due_snapshot()
        {
            self.log.keep_snapshot_within(snapshot);
        }
        match self.log.begin_sync() {
            Some(ticket) => self.outputs.push_back(Output::Sync(ticket)),
            None => self.durable_moved(),
        }
    }

    pub(super) fn fail(&mut self, cause: String, stop_process: bool) {
        self.step_down(ErrorCode::KafkaStorageError);
        self.role = Role::Failed;
        self.trusted = false;
        self.outputs.push_back(Output::Failed {
            cause,
            stop_process,
        });
        self.changed();
    }

    fn trust(&mut self) {
        if self.log.impairment().is_some()
            && let Err(error) = self.log.clear_impairment()
        {
            // It stays untrusted, which costs availability and nothing else.
            self.outputs.push_back(Output::Failed {
                cause: format!(
                    "cannot clear the impairment note of partition {}: {error}",
                    self.id
                ),
                stop_process: false,
            });
            return;
        }
        self.trusted = true;
    }

    pub(super) fn changed(&mut self) {
        let view = self.view();
        if self.last_view != Some(view) {
            self.last_view = Some(view);
            self.outputs.push_back(Output::ViewChanged);
        }
    }
}
