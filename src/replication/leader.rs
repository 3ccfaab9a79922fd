//! The leader of one partition.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use thiserror::Error;

use super::ack_tracker::{AckTracker, ProduceTicket};
use super::caught_up::EndTimes;
use super::in_sync::{CountedSet, InSync, IsrOutcome};
use super::isr_changes::{Situation, Standing};
use super::leader_action::{LeaderAction, complete_err, complete_ok};
use super::leader_view::{CountedAck, FollowerView, LeaderView};
use super::peers::Peers;
use super::producer_state::ProducerStates;
use super::progress::{Confirmed, Progress, SEND_BYTES};
use crate::types::{
    Appointment, EpochHistory, ErrorCode, Fill, IsrChange, LeaderEpoch, LogPosition, MonotonicTime,
    NodeId, Offset, PartitionState, SessionId, TopicPartition,
};
use crate::wire::{
    Ack, OpenSession, ProducerSnapshot, SessionAnswer, SessionOutcome, SessionRefusal,
};

/// When a produce request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// `acks=0`: never; the producer does not wait.
    None,
    /// `acks=1`: at the leader's own durable append.
    Leader,
    /// `acks=all`: when a commit quorum of the in-sync set holds it durably.
    All,
}

/// A produce request's good end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceOutcome {
    pub base: Offset,
}

/// The ends of the leader's own log.
#[derive(Clone, Copy, Debug)]
pub struct LogEnds<'a> {
    pub start: LogPosition,
    pub end: LogPosition,
    pub epochs: &'a EpochHistory,
}

/// Why an ack was not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AckRefused {
    /// Of another session or epoch; a connection of the past may still bring one. Harmless.
    #[error("the ack is of another session or leader epoch")]
    Stale,
    /// It claims more than there is: the follower is broken, and its connection should be closed.
    #[error("the ack claims {claimed} and the log ends at {end}")]
    Impossible {
        claimed: LogPosition,
        end: LogPosition,
    },
}

/// One partition's leader, in one epoch.
#[derive(Debug)]
pub struct Leader {
    id: TopicPartition,
    /// This replica, as it was appointed.
    pub(super) me: Appointment,
    pub(super) epoch: LeaderEpoch,
    /// When the reign began: followers get their suspicion time from here to dial.
    pub(super) since: MonotonicTime,
    /// The latest time that it was told: what is sent is sent then.
    latest: MonotonicTime,
    replicas: Vec<NodeId>,
    /// See [`PartitionState::target_replicas`].
    target_replicas: Vec<NodeId>,
    /// The in-sync set, this node included, as the controller last committed it, and the one that is proposed (invariants 5
    /// and 6).
    pub(super) in_sync: InSync,
    /// `min.insync.replicas` as the topic's configuration has it; `m` follows it by a change of the in-sync set.
    configured_min_insync: usize,
    /// When each follower last held everything, since the reign began. It outlives sessions: it says who keeps up, and
    /// counts for no commit. Bounded by the replicas.
    caught_up: BTreeMap<NodeId, MonotonicTime>,
    ends: EndTimes,
    /// Since when something waits to be committed and nothing is. `None` when nothing waits.
    stalled_since: Option<MonotonicTime>,
    /// What was committed at the last tick, to see whether anything was since.
    committed_at_tick: Option<Offset>,
    /// The end of the log, durable or not. Never falls while this node leads.
    pub(super) end: LogPosition,
    /// The end of what is durable in this node's own log: its own vote for a commit. At or below `end`.
    durable: LogPosition,
    /// The offset after the last committed record, as far as this leader knows. Never falls (invariant 4), and moves only
    /// while `epoch_started` and n ≥ m.
    high_watermark: Offset,
    /// Whether a commit quorum holds this epoch's start durably. Until then no ack moves the high watermark, because a
    /// record of an older epoch on a quorum may still be lost to a leader that never saw it.
    epoch_started: bool,
    /// One session a follower at most: the latest. Bounded by the replicas.
    followers: BTreeMap<NodeId, Progress>,
    /// `acks=all`, by the high watermark.
    pub(super) commit_waits: AckTracker,
    /// `acks=1`, by this node's durable end.
    pub(super) durable_waits: AckTracker,
    pub(super) producers: ProducerStates,
    /// Up to where the log spoke of producers that were forgotten in this reign.
    pub(super) forgotten_to: Offset,
    /// Drained by the caller after every call; one call adds at most one order a follower and one end a wait.
    actions: VecDeque<LeaderAction>,
}

impl Leader {
    /// Begins a reign. The caller has appended the epoch start: `end` is the position after it, of `state`'s leader epoch.
    /// `high_watermark` is what this node knew before; it may be behind the true one.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a fact of its own, known at the one place that begins a reign"
    )]
    pub fn new(
        now: MonotonicTime,
        id: TopicPartition,
        me: Appointment,
        state: &PartitionState,
        end: LogPosition,
        durable: LogPosition,
        high_watermark: Offset,
        producers: ProducerStates,
    ) -> Leader {
        debug_assert_eq!(end.epoch, state.leader_epoch);
        Leader {
            id,
            me,
            epoch: state.leader_epoch,
            since: now,
            latest: now,
            replicas: state.replicas.clone(),
            target_replicas: state.target_replicas.clone(),
            in_sync: InSync::new(state),
            configured_min_insync: state.min_insync as usize,
            caught_up: BTreeMap::new(),
            ends: EndTimes::new(),
            stalled_since: None,
            committed_at_tick: None,
            end,
            durable,
            high_watermark: high_watermark.min(end.offset),
            epoch_started: false,
            followers: BTreeMap::new(),
            commit_waits: AckTracker::new(),
            durable_waits: AckTracker::new(),
            producers,
            forgotten_to: Offset::ZERO,
            actions: VecDeque::new(),
        }
    }

    pub fn poll_action(&mut self) -> Option<LeaderAction> {
        self.actions.pop_front()
    }

    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// What the log up to [`Leader::handle_appended`]'s last call says of its producers.
    pub fn producers(&self) -> &ProducerStates {
        &self.producers
    }

    /// Whether this epoch has committed its start, so that [`Leader::high_watermark`] is the true one.
    pub fn epoch_started(&self) -> bool {
        self.epoch_started
    }

    /// Every set by which a commit is counted: the one that the controller committed last, as far as this leader was told, and
    /// the one that is proposed until it is settled (invariants 5 and 6).
    pub fn counted_sets(&self) -> impl Iterator<Item = &CountedSet> {
        self.in_sync.sets()
    }

    /// What is counted of each follower that has a session (invariant 7).
    pub fn counted_acks(&self) -> impl Iterator<Item = CountedAck> {
        self.followers.values().map(|progress| CountedAck {
            replica: progress.replica,
            session: progress.session,
            durable: progress.durable,
        })
    }

    /// How full everything is that grows here, beside what is told of producers.
    pub fn fills(&self) -> [Fill; 5] {
        let replicas = self.replicas.len();
        [
            Fill::new(
                "commits that are waited for",
                self.commit_waits.len(),
                AckTracker::MAX_WAITS,
            ),
            Fill::new(
                "syncs that are waited for",
                self.durable_waits.len(),
                AckTracker::MAX_WAITS,
            ),
            // None with the leader itself.
            Fill::new("sessions", self.followers.len(), replicas.saturating_sub(1)),
            Fill::new("caught-up times", self.caught_up.len(), replicas),
            Fill::new(
                "ends that are remembered",
                self.ends.len(),
                EndTimes::MAX_ENDS,
            ),
        ]
    }

    /// The session that `follower` has open, if any.
    pub fn session_of(&self, follower: NodeId) -> Option<SessionId> {
        self.followers
            .get(&follower)
            .map(|progress| progress.session)
    }

    /// The controller has committed a change of this epoch's state: of the in-sync set, of m, of the replicas. Where fewer
    /// than m are left, what waits for a commit is told so.
    pub fn handle_state(&mut self, state: &PartitionState) {
        debug_assert_eq!(state.leader_epoch, self.epoch);
        // A replica may have left and come back in a state between. It may never see such a state, or do so long after: what
        // it acknowledged may be of a log that it has removed, or will. One in the in-sync set has not left since, as this
        // leader alone could have put it back there.
        let one_is_missing = self.in_sync.partition_epoch().next() < state.partition_epoch;
        let stays = |node: &NodeId| {
            state.replicas.contains(node) && (!one_is_missing || state.isr_contains(*node))
        };
        self.replicas = state.replicas.clone();
        self.target_replicas = state.target_replicas.clone();
        self.in_sync.handle_state(state);
        // It may never see a state without itself: it is told, so that it asks again if it is a replica by then.
        let (epoch, actions) = (self.epoch, &mut self.actions);
        self.followers.retain(|to, progress| {
            let stays = stays(to);
            if !stays {
                let why = SessionRefusal::NotReplica;
                actions.push_back(LeaderAction::refuse(*to, progress.session, epoch, why));
            }
            stays
        });
        for progress in self.followers.values_mut() {
            progress.log_lost &= state.isr.contains(&progress.replica);
        }
        self.caught_up.retain(|node, _| stays(node));
        if !self.in_sync.is_large_enough() {
            let actions = &mut self.actions;
            let error = ErrorCode::NotEnoughReplicasAfterAppend;
            self.commit_waits
                .give_up(|ticket| complete_err(actions, ticket, error));
        }
        self.advance_high_watermark();
    }

    /// The topic's configuration asks for this `m`, at least 1.
    pub fn handle_min_insync(&mut self, min_insync: usize) {
        self.configured_min_insync = min_insync.max(1);
    }

    /// What came of a [`LeaderAction::ProposeIsr`].
    pub fn handle_isr_outcome(
        &mut self,
        now: MonotonicTime,
        attempt: &IsrChange,
        outcome: IsrOutcome,
    ) {
        if attempt.leader_epoch == self.epoch {
            self.in_sync.handle_outcome(now, attempt, outcome);
        }
    }

    /// Whether `node` could take over: an in-sync replica with a session, whose acks count.
    pub fn is_in_sync(&self, node: NodeId) -> bool {
        self.followers.get(&node).is_some_and(|progress| {
            let members = &self.in_sync.committed().members;
            members.contains(&progress.replica) && !progress.log_lost
        })
    }

    /// How many of the in-sync set, beside this node, could take over: they have sessions here, are heard, and have lost
    /// nothing.
    pub fn successors(&self, now: MonotonicTime, peers: &Peers) -> usize {
        let able = |member: &&Appointment| {
            self.is_in_sync(member.node) && peers.is_heard(member.node, self.since, now)
        };
        self.in_sync.committed().members.iter().filter(able).count()
    }

    /// Whether `node` is known to hold everything durably that is in this log, and everything here is durable as well.
    pub fn holds_everything(&self, node: NodeId) -> bool {
        let holds = |progress: &Progress| progress.durable == self.end;
        self.durable == self.end && self.followers.get(&node).is_some_and(holds)
    }

    /// Answers `ticket` when the records from `base` up to `end` are as safe as `acks` asks, or at `deadline`.
    pub fn wait(
        &mut self,
        ticket: ProduceTicket,
        acks: Acks,
        base: Offset,
        end: Offset,
        deadline: MonotonicTime,
    ) {
        let (waits, mark) = match acks {
            Acks::None => (None, end),
            Acks::Leader => (Some(&mut self.durable_waits), self.durable.offset),
            Acks::All => (Some(&mut self.commit_waits), self.high_watermark),
        };
        match waits {
            Some(waits) if mark < end => waits.wait(ticket, base, end, deadline),
            _ => self.complete(ticket, Ok(ProduceOutcome { base })),
        }
    }

    /// This node's own log is durable up to `durable`.
    pub fn handle_durable(&mut self, durable: LogPosition) {
        debug_assert!(durable <= self.end);
        self.durable = self.durable.max(durable);
        let mark = self.durable.offset;
        let actions = &mut self.actions;
        self.durable_waits
            .advance(mark, |ticket, base| complete_ok(actions, ticket, base));
        self.advance_high_watermark();
    }

    /// A follower asks for this partition. Answers it, and begins to send if the answer allows.
    pub fn handle_open_session(
        &mut self,
        replica: Appointment,
        open: &OpenSession,
        log: LogEnds<'_>,
    ) {
        let from = replica.node;
        let outcome = match self.session_start(from, open, log) {
            Ok(outcome) => outcome,
            Err(refusal) => SessionOutcome::Refused(refusal),
        };
        let next = match &outcome {
            SessionOutcome::Truncate(to) => Some(*to),
            SessionOutcome::Reset { start, .. } => Some(*start),
            SessionOutcome::Refused(_) => None,
        };
        self.actions.push_back(LeaderAction::Answer {
            to: from,
            answer: SessionAnswer {
                session: open.session,
                leader_epoch: self.epoch,
                outcome,
            },
            catch_up: next != Some(self.end),
        });
        if let Some(next) = next {
            // The insertion drops the old session, and with it whatever the follower had acknowledged under it.
            let mut progress = Progress::new(replica, open.session, next, self.end);
            progress.log_lost = open.log_lost;
            self.followers.insert(from, progress);
            self.pump();
        }
    }

    fn session_start(
        &self,
        from: NodeId,
        open: &OpenSession,
        log: LogEnds<'_>,
    ) -> Result<SessionOutcome, SessionRefusal> {
        if open.leader_epoch != self.epoch {
            return Err(SessionRefusal::NotLeader);
        }
        if from == self.me.node || !self.replicas.contains(&from) {
            return Err(SessionRefusal::NotReplica);
        }
        let shared = log
            .epochs
            .shared_prefix(log.end.offset, &open.epochs, open.durable.offset);
        let keep = match shared {
            Some(position) => position,
            // No epoch in common. Two logs that both reach back to the first record share at least the empty prefix.
            None if log.start == LogPosition::START && open.epochs_complete => LogPosition::START,
            None if !open.epochs_complete => return Err(SessionRefusal::NeedOlderEpochs),
            None => return Ok(reset(log)),
        };
        if keep.offset < log.start.offset || keep < log.start {
            return Ok(reset(log));
        }
        Ok(SessionOutcome::Truncate(keep))
    }

    /// A follower's session is over: its connection broke, or it said so. What it acknowledged under the session stays
    /// committed where it was, and counts for nothing new.
    pub fn handle_session_closed(&mut self, from: NodeId, session: SessionId) {
        if self.session_of(from) == Some(session) {
            self.followers.remove(&from);
        }
    }

    /// Frames went out on `session`, up to `to`.
    pub fn handle_sent(
        &mut self,
        to_node: NodeId,
        session: SessionId,
        to: LogPosition,
        bytes: usize,
    ) {
        let (latest, end, watermark) = (self.latest, self.end, self.high_watermark);
        if let Some(progress) = self.current(to_node, session) {
            progress.handle_sent(latest, to, bytes, end);
            progress.watermark_sent = watermark;
        }
        self.pump();
    }

    /// The link to a follower had no room for a send order. Nothing more is ordered until it has.
    pub fn handle_blocked(&mut self, to_node: NodeId, session: SessionId) {
        if let Some(progress) = self.current(to_node, session) {
            progress.handle_blocked();
        }
    }

    /// The link to a follower has room again.
    pub fn handle_unblocked(&mut self, to_node: NodeId) {
        if let Some(progress) = self.followers.get_mut(&to_node) {
            progress.handle_unblocked();
            self.pump();
        }
    }

    /// Counts an ack, if it is of the process that opened the follower's current session, of that session, and of this epoch
    /// (invariant 7). Returns what it confirms of what was sent.
    ///
    /// The process counts because nothing makes a session's number different from one that an earlier process of the node
    /// drew: what that one held may be gone, and its ack may have waited in a queue since.
    pub fn handle_ack(
        &mut self,
        now: MonotonicTime,
        from: Appointment,
        ack: &Ack,
    ) -> Result<Confirmed, AckRefused> {
        if ack.leader_epoch != self.epoch {
            return Err(AckRefused::Stale);
        }
        let end = self.end;
        self.latest = self.latest.max(now);
        let Some(progress) = self
            .current(from.node, ack.session)
            .filter(|progress| progress.replica == from)
        else {
            return Err(AckRefused::Stale);
        };
        if ack.durable > end || ack.durable.offset > end.offset || ack.received > end.offset {
            return Err(AckRefused::Impossible {
                claimed: ack.durable,
                end,
            });
        }
        let confirmed = progress.handle_ack(now, ack);
        progress.heard_at = now;
        self.advance_high_watermark();
        self.pump();
        Ok(confirmed)
    }

    /// Time passes: overdue produces are answered REQUEST_TIMED_OUT, followers that had nothing else to receive learn the
    /// high watermark, and the in-sync set is looked at. To be called every 50 to 100 ms.
    pub fn handle_tick(&mut self, now: MonotonicTime, peers: &Peers) {
        self.latest = self.latest.max(now);
        self.ends.note(now, self.end);
        self.note_caught_up(peers);
        self.note_stall(now);
        self.consider_isr(now, peers);
        let actions = &mut self.actions;
        let mut expired = |ticket| complete_err(actions, ticket, ErrorCode::RequestTimedOut);
        self.commit_waits.expire(now, &mut expired);
        self.durable_waits.expire(now, &mut expired);
        for (&to, progress) in &mut self.followers {
            if progress.watermark_sent < self.high_watermark && progress.next == self.end {
                progress.watermark_sent = self.high_watermark;
                let (session, catch_up) = (progress.session, progress.is_catching_up());
                let action = LeaderAction::SendWatermark {
                    to,
                    session,
                    catch_up,
                };
                self.actions.push_back(action);
            }
        }
    }

    fn note_caught_up(&mut self, peers: &Peers) {
        for (&node, progress) in &self.followers {
            let heard = peers
                .last_heard(node)
                .map_or(progress.heard_at, |heard| heard.max(progress.heard_at));
            if let Some(at) = self.ends.caught_up_at(progress.durable, self.end, heard) {
                let known = self.caught_up.entry(node).or_insert(at);
                *known = at.max(*known);
            }
        }
    }

    /// A stall begins when nothing was committed since the last tick although something waits.
    fn note_stall(&mut self, now: MonotonicTime) {
        let committed = self.epoch_started.then_some(self.high_watermark);
        let waits = committed != Some(self.end.offset);
        let moved = committed != self.committed_at_tick;
        self.committed_at_tick = committed;
        self.stalled_since = match self.stalled_since {
            _ if !waits => None,
            Some(since) if !moved => Some(since),
            _ => Some(now),
        };
    }

    fn stalled(&self, now: MonotonicTime) -> Duration {
        self.stalled_since
            .map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Proposes a better in-sync set, if there is one that would be safe; or asks again about the one that is proposed.
    fn consider_isr(&mut self, now: MonotonicTime, peers: &Peers) {
        if self.in_sync.proposed().is_some() {
            let retry = self.in_sync.take_retry(now);
            self.actions.extend(retry.map(LeaderAction::ProposeIsr));
            return;
        }
        if !self.in_sync.may_propose(now) {
            return;
        }
        let standing = |&node: &NodeId| Standing {
            node,
            session: self.followers.get(&node).map(|progress| progress.replica),
            log_lost: self.has_lost_its_log(node),
            caught_up_at: self.caught_up.get(&node).copied(),
            rtt: peers.rtt(node),
            heard_at: peers
                .last_heard(node)
                .filter(|_| peers.is_heard(node, self.since, now)),
            deliveries: peers.deliveries(node),
        };
        let others = self.replicas.iter().filter(|&&node| node != self.me.node);
        let situation = Situation {
            now,
            since: self.since,
            me: self.me,
            committed: self.in_sync.committed(),
            followers: others.map(standing).collect(),
            stalled: self.stalled(now),
            min_insync: self.configured_min_insync,
            target: &self.target_replicas,
        };
        let better = situation.better_sets();
        let Some(set) = better.into_iter().find(|set| self.may_propose(set)) else {
            return;
        };
        let change = IsrChange {
            partition: self.id,
            leader_epoch: self.epoch,
            partition_epoch: self.in_sync.partition_epoch(),
            min_insync: u32::try_from(set.min_insync).unwrap_or(u32::MAX),
            new_isr: set.members,
        };
        self.in_sync.propose(change.clone());
        self.actions.push_back(LeaderAction::ProposeIsr(change));
    }

    /// Whether a member of the in-sync set has told that it lost what it acknowledged. Once it is outside, it may come back by
    /// what it acknowledges in its present session.
    fn has_lost_its_log(&self, node: NodeId) -> bool {
        self.followers.get(&node).is_some_and(|progress| {
            progress.log_lost && self.in_sync.committed().members.contains(&progress.replica)
        })
    }

    /// Whether a commit quorum of the *new* set holds the epoch start and everything that is committed, by acks of this epoch
    /// and of the very incarnations that the set names. Then no election in the new set can miss a committed record. The
    /// present set is not asked: a pair with one dead member could otherwise never become a single replica.
    fn may_propose(&self, set: &CountedSet) -> bool {
        let held = |member: &Appointment| {
            if *member == self.me {
                return self.durable;
            }
            self.followers
                .get(&member.node)
                .filter(|progress| progress.replica == *member)
                .map_or(LogPosition::START, |progress| progress.durable)
        };
        set.quorum_position(held).is_some_and(|position| {
            position.epoch == self.epoch && position.offset >= self.high_watermark
        })
    }

    /// The reign is over. Every waiting produce is answered `error`: its records are in this log, and whether they survive
    /// is for the next leader to say. Returns the last actions and what it remembers of producers.
    pub fn resign(mut self, error: ErrorCode) -> (VecDeque<LeaderAction>, ProducerStates) {
        let actions = &mut self.actions;
        let mut given_up = |ticket| complete_err(actions, ticket, error);
        self.commit_waits.give_up(&mut given_up);
        self.durable_waits.give_up(&mut given_up);
        (self.actions, self.producers)
    }

    pub fn view(&self, now: MonotonicTime) -> LeaderView {
        let follower = |&node: &NodeId| {
            let progress = self.followers.get(&node);
            FollowerView {
                node,
                incarnation: progress.map(|progress| progress.replica.incarnation),
                lag_records: progress
                    .map(|progress| self.end.offset.records_since(progress.durable.offset)),
                lag_bytes: progress
                    .filter(|progress| progress.next == self.end)
                    .map(|progress| progress.unacknowledged_bytes() as u64),
                durable: progress.map(|progress| progress.durable),
                unacknowledged_bytes: progress.map_or(0, Progress::unacknowledged_bytes),
                catching_up: progress.is_some_and(Progress::is_catching_up),
                caught_up_at: self.caught_up.get(&node).copied(),
            }
        };
        LeaderView {
            epoch: self.epoch,
            epoch_started: self.epoch_started,
            waiting_produces: self.commit_waits.len() + self.durable_waits.len(),
            followers: self
                .replicas
                .iter()
                .filter(|&&node| node != self.me.node)
                .map(follower)
                .collect(),
            isr: nodes(&self.in_sync.committed().members),
            proposed_isr: self.in_sync.proposed().map(nodes),
            stalled: self.stalled(now),
        }
    }

    /// The follower's progress, if `session` is the current one.
    fn current(&mut self, node: NodeId, session: SessionId) -> Option<&mut Progress> {
        self.followers
            .get_mut(&node)
            .filter(|progress| progress.session == session)
    }

    /// Orders a send for every follower that has something to receive and nothing in the way.
    pub(super) fn pump(&mut self) {
        for (&to, progress) in &mut self.followers {
            if progress.take_order(self.end) {
                self.actions.push_back(LeaderAction::Send {
                    to,
                    session: progress.session,
                    from: progress.next,
                    max_bytes: SEND_BYTES,
                    catch_up: progress.is_catching_up(),
                });
            }
        }
    }

    /// Commits what a quorum of the in-sync set holds durably, this leader included; of the proposed set as well, while one
    /// is.
    fn advance_high_watermark(&mut self) {
        let held = |member: &Appointment| self.held_by(member);
        let Some(committed) = self.in_sync.quorum_position(held) else {
            return;
        };
        if committed.epoch != self.epoch {
            return;
        }
        let started_now = !std::mem::replace(&mut self.epoch_started, true);
        if committed.offset <= self.high_watermark && !started_now {
            return;
        }
        self.high_watermark = self.high_watermark.max(committed.offset);
        self.producers.handle_committed(self.high_watermark);
        self.actions.push_back(LeaderAction::WatermarkMoved);
        let actions = &mut self.actions;
        self.commit_waits
            .advance(self.high_watermark, |ticket, base| {
                complete_ok(actions, ticket, base);
            });
    }

    /// What a member of the in-sync set is known to hold durably: by its acks of the current session, or by this node's own
    /// disk. A member that has restarted is the same member; with another data directory it is not.
    fn held_by(&self, member: &Appointment) -> LogPosition {
        if member.node == self.me.node {
            return self.durable;
        }
        self.followers
            .get(&member.node)
            .filter(|progress| progress.replica.directory == member.directory)
            .map_or(LogPosition::START, |progress| progress.durable)
    }

    fn complete(&mut self, ticket: ProduceTicket, result: Result<ProduceOutcome, ErrorCode>) {
        self.actions
            .push_back(LeaderAction::Complete { ticket, result });
    }
}

fn nodes(members: &[Appointment]) -> Vec<NodeId> {
    members.iter().map(|member| member.node).collect()
}

/// A follower whose log shares nothing with what the leader still has starts anew at the leader's start. What is known of
/// the producers there is on the disk, so the caller adds it to the answer.
fn reset(log: LogEnds<'_>) -> SessionOutcome {
    let mut epochs = log.epochs.clone();
    epochs.truncate(log.start);
    SessionOutcome::Reset {
        start: log.start,
        epochs,
        producers: ProducerSnapshot::default(),
    }
}

/// How long a silence of a follower is normal, from its link's round trip: the rule of [`Peers`].
pub fn suspicion_time(smoothed_rtt: Duration, variance: Duration) -> Duration {
    (2 * smoothed_rtt + 4 * variance).max(super::peers::MINIMUM_SUSPICION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Marker, TransactionOutcome};
    use crate::replication::{Admission, BatchSequence, ProducerBatch, Verification};
    use crate::types::{
        DirectoryId, EpochEntry, Incarnation, PartitionEpoch, PartitionIndex, ProducerId, TopicId,
        TopicPartition,
    };

    const ME: NodeId = NodeId::new(1).unwrap();
    const TWO: NodeId = NodeId::new(2).unwrap();
    const THREE: NodeId = NodeId::new(3).unwrap();

    const PARTITION: TopicPartition = TopicPartition {
        topic: TopicId::from_random_bits(1),
        partition: PartitionIndex(0),
    };

    /// The replica of a node in its first incarnation.
    fn appointment(node: NodeId) -> Appointment {
        Appointment {
            node,
            directory: DirectoryId::from_random_bits(node.get().into()),
            incarnation: Incarnation::from_random_bits(node.get().into()),
        }
    }

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::ZERO + Duration::from_millis(millis)
    }

    fn position(offset: u64, epoch: u32) -> LogPosition {
        LogPosition::new(
            Offset::new(offset).unwrap(),
            LeaderEpoch::new(epoch).unwrap(),
        )
    }

    fn offset(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    fn history(entries: &[(u32, u64)]) -> EpochHistory {
        let entry = |&(epoch, start): &(u32, u64)| EpochEntry {
            epoch: LeaderEpoch::new(epoch).unwrap(),
            start: Offset::new(start).unwrap(),
        };
        entries
            .iter()
            .map(entry)
            .collect::<Vec<_>>()
            .try_into()
            .unwrap()
    }

    fn state(epoch: u32, isr: &[NodeId], min_insync: u32) -> PartitionState {
        PartitionState {
            replicas: vec![ME, TWO, THREE],
            isr: isr.iter().copied().map(appointment).collect(),
            leader: Some(appointment(ME)),
            leader_epoch: LeaderEpoch::new(epoch).unwrap(),
            partition_epoch: PartitionEpoch(1),
            min_insync,
            target_replicas: Vec::new(),
            forced_epoch: LeaderEpoch::NONE,
        }
    }

    /// A leader in epoch 2 of a log of five records of epoch 1, none of which it knows to be committed.
    fn leader() -> Leader {
        Leader::new(
            at(0),
            PARTITION,
            appointment(ME),
            &state(2, &[ME, TWO, THREE], 2),
            position(5, 2),
            position(5, 1),
            Offset::ZERO,
            ProducerStates::new(),
        )
    }

    fn actions(leader: &mut Leader) -> Vec<LeaderAction> {
        std::iter::from_fn(|| leader.poll_action()).collect()
    }

    fn open(leader: &mut Leader, from: NodeId, session: u64, durable: LogPosition) {
        let mut epochs = history(&[(1, 0), (2, 5)]);
        epochs.truncate(durable);
        let open = OpenSession {
            partition: PARTITION,
            leader_epoch: LeaderEpoch::new(2).unwrap(),
            session: SessionId::from_random_bits(session),
            durable,
            epochs,
            epochs_complete: true,
            log_lost: false,
        };
        let log = LogEnds {
            start: LogPosition::START,
            end: leader.end,
            epochs: &history(&[(1, 0), (2, 5)]),
        };
        leader.handle_open_session(appointment(from), &open, log);
    }

    fn ack(leader: &mut Leader, from: NodeId, session: u64, durable: LogPosition) {
        try_ack(leader, from, session, durable).unwrap();
    }

    fn try_ack(
        leader: &mut Leader,
        from: NodeId,
        session: u64,
        durable: LogPosition,
    ) -> Result<Confirmed, AckRefused> {
        let ack = Ack {
            session: SessionId::from_random_bits(session),
            leader_epoch: LeaderEpoch::new(2).unwrap(),
            durable,
            received: durable.offset,
        };
        leader.handle_ack(at(1), appointment(from), &ack)
    }

    fn produce(leader: &mut Leader, ticket: u64, records: u32, acks: Acks) {
        let batch = ProducerBatch {
            records,
            sequence: None,
            guard: None,
        };
        let Ok(Admission::Append { previous, end }) =
            leader.admit(at(1), batch, acks, &Peers::new())
        else {
            panic!("an ordinary batch is admitted");
        };
        leader.handle_appended(batch, previous.offset, LogPosition::new(end, leader.epoch));
        let ticket = ProduceTicket(ticket);
        leader.wait(ticket, acks, previous.offset, end, at(1000));
    }

    fn completed(leader: &mut Leader) -> Vec<(u64, Result<u64, ErrorCode>)> {
        actions(leader)
            .into_iter()
            .filter_map(|action| match action {
                LeaderAction::Complete { ticket, result } => {
                    Some((ticket.0, result.map(|outcome| outcome.base.get())))
                }
                _ => None,
            })
            .collect()
    }

    /// A leader whose epoch start is committed, with follower two in session 1.
    fn started() -> Leader {
        let mut leader = leader();
        leader.handle_durable(position(5, 2));
        open(&mut leader, TWO, 1, position(5, 1));
        ack(&mut leader, TWO, 1, position(5, 2));
        assert!(leader.epoch_started());
        actions(&mut leader);
        leader
    }

    #[test]
    fn nothing_is_committed_before_the_epoch_start_is() {
        let mut leader = leader();
        leader.handle_durable(position(5, 2));
        open(&mut leader, TWO, 1, position(5, 1));
        ack(&mut leader, TWO, 1, position(5, 1));
        assert_eq!(leader.high_watermark(), Offset::ZERO);
        assert!(!leader.epoch_started());
        ack(&mut leader, TWO, 1, position(5, 2));
        assert_eq!(leader.high_watermark(), offset(5));
        assert!(leader.epoch_started());
    }

    #[test]
    fn three_replicas_commit_on_the_fastest_two() {
        let mut leader = started();
        produce(&mut leader, 1, 3, Acks::All);
        produce(&mut leader, 2, 1, Acks::All);
        leader.handle_durable(position(9, 2));
        assert_eq!(completed(&mut leader), []);
        // One cumulative ack, between the ends of nothing in particular, completes what it passes.
        ack(&mut leader, TWO, 1, position(8, 2));
        assert_eq!(completed(&mut leader), [(1, Ok(5))]);
        ack(&mut leader, TWO, 1, position(9, 2));
        assert_eq!(completed(&mut leader), [(2, Ok(8))]);
    }

    #[test]
    fn the_leaders_own_disk_is_one_vote_and_no_more() {
        let mut leader = started();
        produce(&mut leader, 1, 1, Acks::All);
        ack(&mut leader, TWO, 1, position(6, 2));
        assert_eq!(completed(&mut leader), [], "the leader's disk is behind");
        leader.handle_durable(position(6, 2));
        assert_eq!(completed(&mut leader), [(1, Ok(5))]);

        produce(&mut leader, 2, 1, Acks::All);
        leader.handle_durable(position(7, 2));
        assert_eq!(
            completed(&mut leader),
            [],
            "its own ack alone commits nothing"
        );
    }

    #[test]
    fn acks_one_waits_for_the_leaders_own_disk_only() {
        let mut leader = started();
        produce(&mut leader, 1, 1, Acks::Leader);
        assert_eq!(completed(&mut leader), []);
        leader.handle_durable(position(6, 2));
        assert_eq!(completed(&mut leader), [(1, Ok(5))]);
        assert_eq!(leader.high_watermark(), offset(5));
    }

    #[test]
    fn a_new_session_forgets_what_the_old_one_acknowledged() {
        let mut leader = started();
        produce(&mut leader, 1, 1, Acks::All);
        ack(&mut leader, TWO, 1, position(6, 2));
        open(&mut leader, TWO, 2, position(5, 2));
        leader.handle_durable(position(6, 2));
        assert_eq!(completed(&mut leader), []);
        // And an ack of the old session, brought late, counts for nothing.
        assert_eq!(
            try_ack(&mut leader, TWO, 1, position(6, 2)),
            Err(AckRefused::Stale)
        );
        assert_eq!(completed(&mut leader), []);
        ack(&mut leader, TWO, 2, position(6, 2));
        assert_eq!(completed(&mut leader), [(1, Ok(5))]);
    }

    #[test]
    fn an_ack_of_an_earlier_process_with_the_same_session_counts_for_nothing() {
        let mut leader = started();
        produce(&mut leader, 1, 1, Acks::All);
        leader.handle_durable(position(6, 2));
        // It has restarted, with an empty log, and drew the same number. What its last process acknowledged comes only now.
        open(&mut leader, TWO, 1, position(5, 1));
        let ack = Ack {
            session: SessionId::from_random_bits(1),
            leader_epoch: LeaderEpoch::new(2).unwrap(),
            durable: position(6, 2),
            received: offset(6),
        };
        let earlier = Appointment {
            incarnation: Incarnation::from_random_bits(99),
            ..appointment(TWO)
        };
        let stale = Err(AckRefused::Stale);
        assert_eq!(leader.handle_ack(at(1), earlier, &ack), stale);
        let other_disk = Appointment {
            directory: DirectoryId::from_random_bits(99),
            ..appointment(TWO)
        };
        assert_eq!(leader.handle_ack(at(1), other_disk, &ack), stale);
        assert_eq!(leader.high_watermark(), offset(5));
        assert!(leader.handle_ack(at(1), appointment(TWO), &ack).is_ok());
        assert_eq!(leader.high_watermark(), offset(6));
    }

    #[test]
    fn an_ack_of_an_older_epoch_or_of_one_without_a_session_counts_for_nothing() {
        let mut leader = started();
        produce(&mut leader, 1, 1, Acks::All);
        leader.handle_durable(position(6, 2));
        // The connection may be the same one, and so may be the session's number: the reign is another.
        let of_the_last_reign = Ack {
            session: SessionId::from_random_bits(1),
            leader_epoch: LeaderEpoch::new(1).unwrap(),
            durable: position(6, 2),
            received: offset(6),
        };
        assert_eq!(
            leader.handle_ack(at(1), appointment(TWO), &of_the_last_reign),
            Err(AckRefused::Stale)
        );
        // The leader's own disk has its vote without an ack, and an ack in its name is no second one.
        for from in [ME, THREE] {
            assert_eq!(
                try_ack(&mut leader, from, 1, position(6, 2)),
                Err(AckRefused::Stale)
            );
        }
        assert_eq!(completed(&mut leader), []);
        ack(&mut leader, TWO, 1, position(6, 2));
        assert_eq!(completed(&mut leader), [(1, Ok(5))]);
    }

    #[test]
    fn an_ack_beyond_the_log_is_refused() {
        let mut leader = started();
        for claimed in [position(6, 2), position(4, 3)] {
            assert!(matches!(
                try_ack(&mut leader, TWO, 1, claimed),
                Err(AckRefused::Impossible { .. })
            ));
        }
        assert_eq!(leader.high_watermark(), offset(5));
    }

    #[test]
    fn a_replica_that_leaves_is_told_that_its_session_is_over() {
        let mut leader = started();
        let mut without = state(2, &[ME, THREE], 2);
        without.partition_epoch = without.partition_epoch.next();
        without.replicas.retain(|&node| node != TWO);
        leader.handle_state(&without);
        let told = actions(&mut leader);
        let refused = SessionOutcome::Refused(SessionRefusal::NotReplica);
        let is_told = told.iter().any(|action| {
            matches!(action, LeaderAction::Answer { to, answer, .. }
                if *to == TWO && answer.session == SessionId::from_random_bits(1) && answer.outcome == refused)
        });
        assert!(is_told, "{told:?}");
    }

    #[test]
    fn what_a_replica_acknowledged_before_a_state_that_was_missed_does_not_count() {
        let told = |skipped: u32| {
            let mut leader = started();
            open(&mut leader, THREE, 1, position(5, 2));
            let mut next = state(2, &[ME, THREE], 2);
            next.partition_epoch = PartitionEpoch(1 + 1 + skipped);
            leader.handle_state(&next);
            let has_session = |node| leader.session_of(node).is_some();
            (has_session(TWO), has_session(THREE))
        };
        assert_eq!(told(0), (true, true));
        // Two may have been elsewhere in between, and have to remove its log yet.
        assert_eq!(told(1), (false, true));
    }

    #[test]
    fn the_watermark_never_falls() {
        let mut leader = started();
        open(&mut leader, THREE, 1, position(5, 2));
        produce(&mut leader, 1, 4, Acks::Leader);
        leader.handle_durable(position(9, 2));
        ack(&mut leader, TWO, 1, position(9, 2));
        assert_eq!(leader.high_watermark(), offset(9));
        actions(&mut leader);
        // With its session what follower two has acknowledged is forgotten, and the quorum is left with what three holds: in
        // this epoch, so nothing but the rule itself keeps the watermark where it is.
        open(&mut leader, TWO, 2, position(9, 2));
        ack(&mut leader, THREE, 1, position(7, 2));
        assert_eq!(leader.high_watermark(), offset(9));
        ack(&mut leader, TWO, 2, position(6, 2));
        assert_eq!(leader.high_watermark(), offset(9));
        let moved = actions(&mut leader).contains(&LeaderAction::WatermarkMoved);
        assert!(!moved, "nobody is told of a watermark that stands still");
        ack(&mut leader, TWO, 2, position(9, 2));
        assert_eq!(leader.high_watermark(), offset(9));
    }

    #[test]
    fn acks_all_is_refused_before_the_append_when_too_few_are_heard() {
        let leader = started();
        let batch = ProducerBatch {
            records: 1,
            sequence: None,
            guard: None,
        };
        let mut peers = Peers::new();
        let late = at(5000);
        assert_eq!(
            leader.admit(late, batch, Acks::All, &peers),
            Err(ErrorCode::NotEnoughReplicas)
        );
        assert!(leader.admit(late, batch, Acks::Leader, &peers).is_ok());
        peers.handle_heard(THREE, at(4900), Duration::ZERO, Duration::ZERO);
        assert!(leader.admit(late, batch, Acks::All, &peers).is_ok());
    }

    #[test]
    fn an_overdue_produce_is_told_so_and_never_completed() {
        let mut leader = started();
        produce(&mut leader, 1, 1, Acks::All);
        leader.handle_tick(at(1000), &Peers::new());
        assert_eq!(
            completed(&mut leader),
            [(1, Err(ErrorCode::RequestTimedOut))]
        );
        leader.handle_durable(position(6, 2));
        ack(&mut leader, TWO, 1, position(6, 2));
        assert_eq!(completed(&mut leader), []);
    }

    #[test]
    fn a_duplicate_is_answered_only_once_its_records_are_committed() {
        let mut leader = started();
        let batch = ProducerBatch {
            records: 2,
            sequence: Some(BatchSequence {
                producer: ProducerId::new(1).unwrap(),
                producer_epoch: 0,
                base_sequence: 0,
                records: 2,
                transactional: false,
            }),
            guard: None,
        };
        leader.handle_appended(batch, offset(5), position(7, 2));
        let admitted = leader.admit(at(1), batch, Acks::All, &Peers::new());
        let Ok(Admission::Duplicate { base, end }) = admitted else {
            panic!("{admitted:?}");
        };
        assert_eq!((base, end), (offset(5), offset(7)));
        leader.wait(ProduceTicket(9), Acks::All, base, end, at(1000));
        assert_eq!(completed(&mut leader), []);
        leader.handle_durable(position(7, 2));
        ack(&mut leader, TWO, 1, position(7, 2));
        assert_eq!(completed(&mut leader), [(9, Ok(5))]);
    }

    #[test]
    fn a_transaction_with_an_epoch_of_its_own_begins_with_its_first_batch() {
        let mut leader = started();
        // What it knew of producers went with the front of the log.
        leader.producers.handle_log_cut_in_front();
        let producer = ProducerId::new(1).unwrap();
        let Verification::Needed(guard) = leader.verification(producer, 4) else {
            panic!("no transaction is open");
        };
        let batch = |base_sequence, guard| ProducerBatch {
            records: 2,
            sequence: Some(BatchSequence {
                producer,
                producer_epoch: 4,
                base_sequence,
                records: 2,
                transactional: true,
            }),
            guard: Some(guard),
        };
        let admit = |leader: &mut Leader, batch| {
            let admitted = leader.admit(at(1), batch, Acks::All, &Peers::new());
            if let Ok(Admission::Append { previous, end }) = admitted {
                let end = LogPosition::new(end, leader.epoch);
                leader.handle_appended(batch, previous.offset, end);
            }
            admitted.map(|_| ())
        };
        let out_of_order = Err(ErrorCode::OutOfOrderSequenceNumber);
        let first = guard.of_first_batch();
        assert_eq!(admit(&mut leader, batch(2, first)), out_of_order);
        assert_eq!(admit(&mut leader, batch(0, first)), Ok(()));
        assert_eq!(admit(&mut leader, batch(2, first)), Ok(()));
        // An older client's epoch may have begun before what is known.
        let mut leader = started();
        leader.producers.handle_log_cut_in_front();
        assert_eq!(admit(&mut leader, batch(2, guard)), Ok(()));
        // A client that has come to speak the newer version goes on in its epoch.
        leader.producers.handle_marker(
            &Marker {
                producer,
                producer_epoch: 4,
                coordinator_epoch: 1,
                outcome: TransactionOutcome::Commit,
                aborted: None,
            },
            offset(7),
            offset(8),
        );
        leader.end = position(8, 2);
        let Verification::Needed(guard) = leader.verification(producer, 4) else {
            panic!("no transaction is open");
        };
        let first = guard.of_first_batch();
        assert_eq!(admit(&mut leader, batch(4, first)), Ok(()));
    }

    #[test]
    fn a_session_begins_where_the_logs_part() {
        let answers = |durable, epochs: &[(u32, u64)], complete, start| {
            let mut leader = leader();
            let open = OpenSession {
                partition: PARTITION,
                leader_epoch: LeaderEpoch::new(2).unwrap(),
                session: SessionId::from_random_bits(1),
                durable,
                epochs: history(epochs),
                epochs_complete: complete,
                log_lost: false,
            };
            let own = history(&[(1, 0), (2, 5)]);
            let log = LogEnds {
                start,
                end: position(5, 2),
                epochs: &own,
            };
            leader.handle_open_session(appointment(TWO), &open, log);
            let Some(LeaderAction::Answer { answer, .. }) = leader.poll_action() else {
                panic!("a hello is answered");
            };
            (answer.outcome, leader.session_of(TWO).is_some())
        };
        let start = LogPosition::START;
        // A prefix is kept whole; a longer log of the same epoch is cut to what the leader has.
        assert_eq!(
            answers(position(3, 1), &[(1, 0)], true, start),
            (SessionOutcome::Truncate(position(3, 1)), true)
        );
        assert_eq!(
            answers(position(9, 1), &[(1, 0)], true, start),
            (SessionOutcome::Truncate(position(5, 1)), true)
        );
        // Nothing at all is a prefix too.
        assert_eq!(
            answers(start, &[], true, start),
            (SessionOutcome::Truncate(start), true)
        );
        // Below the leader's log start there is nothing to send: begin at the start.
        assert_eq!(
            answers(position(3, 1), &[(1, 0)], true, position(4, 1)),
            (
                SessionOutcome::Reset {
                    start: position(4, 1),
                    epochs: history(&[(1, 0)]),
                    producers: ProducerSnapshot::default(),
                },
                true
            )
        );
        // A history that was cut short is asked for again.
        assert_eq!(
            answers(position(9, 1), &[], false, start),
            (
                SessionOutcome::Refused(SessionRefusal::NeedOlderEpochs),
                false
            )
        );
    }

    #[test]
    fn sends_leave_one_at_a_time_from_one_cursor() {
        let mut leader = leader();
        open(&mut leader, TWO, 1, position(2, 1));
        let sends = |leader: &mut Leader| -> Vec<(LogPosition, bool)> {
            actions(leader)
                .into_iter()
                .filter_map(|action| match action {
                    LeaderAction::Send { from, catch_up, .. } => Some((from, catch_up)),
                    _ => None,
                })
                .collect()
        };
        let session = SessionId::from_random_bits(1);
        assert_eq!(sends(&mut leader), [(position(2, 1), true)]);
        produce(&mut leader, 1, 1, Acks::All);
        assert_eq!(sends(&mut leader), [], "one order at a time");
        leader.handle_sent(TWO, session, position(5, 2), 100);
        assert_eq!(sends(&mut leader), [(position(5, 2), true)]);
        leader.handle_sent(TWO, session, position(6, 2), 100);
        // The tail is reached: live frames wait for the last catch-up frame's ack, then leave on the live lane.
        produce(&mut leader, 2, 1, Acks::All);
        assert_eq!(sends(&mut leader), []);
        ack(&mut leader, TWO, 1, position(6, 2));
        assert_eq!(sends(&mut leader), [(position(6, 2), false)]);
        // A link without room stops the cursor where it is.
        leader.handle_blocked(TWO, session);
        produce(&mut leader, 3, 1, Acks::All);
        assert_eq!(sends(&mut leader), []);
        leader.handle_unblocked(TWO);
        assert_eq!(sends(&mut leader), [(position(6, 2), false)]);
    }

    #[test]
    fn a_watermark_does_not_overtake_the_catch_up_that_it_follows() {
        let mut leader = started();
        open(&mut leader, TWO, 2, position(2, 1));
        let watermarks = |leader: &mut Leader, now| -> Vec<bool> {
            leader.handle_tick(at(now), &Peers::new());
            actions(leader)
                .into_iter()
                .filter_map(|action| match action {
                    LeaderAction::SendWatermark { catch_up, .. } => Some(catch_up),
                    _ => None,
                })
                .collect()
        };
        let session = SessionId::from_random_bits(2);
        assert_eq!(watermarks(&mut leader, 10), [] as [bool; 0]);
        leader.handle_sent(TWO, session, position(5, 2), 100);
        // The third replica's ack commits a record of which the second has been sent the frame, on the catch-up lane.
        produce(&mut leader, 1, 1, Acks::All);
        actions(&mut leader);
        leader.handle_sent(TWO, session, position(6, 2), 100);
        leader.handle_durable(position(6, 2));
        open(&mut leader, THREE, 3, position(6, 2));
        ack(&mut leader, THREE, 3, position(6, 2));
        assert_eq!(leader.high_watermark(), offset(6));
        assert_eq!(
            watermarks(&mut leader, 20),
            [true, false],
            "two's and three's"
        );
        ack(&mut leader, TWO, 2, position(6, 2));
    }

    #[test]
    fn a_follower_without_a_session_has_no_lag_of_zero() {
        let mut leader = started();
        let lag = |leader: &Leader, node| {
            let view = leader.view(at(1));
            view.followers
                .iter()
                .find(|follower| follower.node == node)
                .unwrap()
                .lag_records
        };
        assert_eq!(lag(&leader, TWO), Some(0));
        assert_eq!(lag(&leader, THREE), None);
        leader.handle_session_closed(TWO, SessionId::from_random_bits(1));
        assert_eq!(lag(&leader, TWO), None);
    }

    #[test]
    fn resigning_answers_everyone_who_waits() {
        let mut leader = started();
        produce(&mut leader, 1, 1, Acks::All);
        produce(&mut leader, 2, 1, Acks::Leader);
        actions(&mut leader);
        let (last, _) = leader.resign(ErrorCode::NotLeaderOrFollower);
        let answered: Vec<_> = last
            .into_iter()
            .filter(|action| {
                matches!(
                    action,
                    LeaderAction::Complete {
                        result: Err(ErrorCode::NotLeaderOrFollower),
                        ..
                    }
                )
            })
            .collect();
        assert_eq!(answered.len(), 2);
    }

    #[test]
    fn with_fewer_members_than_m_the_watermark_stands_still() {
        let mut leader = started();
        leader.handle_state(&PartitionState {
            partition_epoch: PartitionEpoch(2),
            ..state(2, &[ME], 2)
        });
        produce(&mut leader, 1, 1, Acks::Leader);
        leader.handle_durable(position(6, 2));
        assert_eq!(leader.high_watermark(), offset(5));
    }

    fn proposals(leader: &mut Leader) -> Vec<IsrChange> {
        actions(leader)
            .into_iter()
            .filter_map(|action| match action {
                LeaderAction::ProposeIsr(change) => Some(change),
                _ => None,
            })
            .collect()
    }

    fn change(isr: &[NodeId], min_insync: u32) -> IsrChange {
        IsrChange {
            partition: PARTITION,
            leader_epoch: LeaderEpoch::new(2).unwrap(),
            partition_epoch: PartitionEpoch(1),
            new_isr: isr.iter().copied().map(appointment).collect(),
            min_insync,
        }
    }

    fn with_state(isr: &[NodeId], min_insync: u32) -> Leader {
        Leader::new(
            at(0),
            PARTITION,
            appointment(ME),
            &state(2, isr, min_insync),
            position(5, 2),
            position(5, 2),
            Offset::ZERO,
            ProducerStates::new(),
        )
    }

    /// Ticks every 50 ms up to `until`, with the nodes `heard` at each.
    fn tick(leader: &mut Leader, from: u64, until: u64, heard: &[NodeId]) -> Vec<IsrChange> {
        let mut peers = Peers::new();
        let mut proposed = Vec::new();
        for now in (from..=until).step_by(50) {
            for &node in heard {
                peers.handle_heard(node, at(now), Duration::ZERO, Duration::ZERO);
            }
            leader.handle_tick(at(now), &peers);
            proposed.extend(proposals(leader));
        }
        proposed
    }

    #[test]
    fn a_pair_with_a_dead_member_becomes_one_replica_and_commits() {
        let mut leader = with_state(&[ME, TWO], 1);
        assert_eq!(tick(&mut leader, 0, 500, &[]), []);
        assert_eq!(tick(&mut leader, 550, 600, &[]), [change(&[ME], 1)]);
        assert!(
            !leader.epoch_started(),
            "both sets count until it is settled"
        );
        leader.handle_isr_outcome(at(600), &change(&[ME], 1), IsrOutcome::Accepted);
        assert!(!leader.epoch_started(), "the state is what settles it");
        leader.handle_state(&PartitionState {
            partition_epoch: PartitionEpoch(2),
            ..state(2, &[ME], 1)
        });
        assert!(leader.epoch_started());
        assert_eq!(leader.high_watermark(), offset(5));
    }

    #[test]
    fn while_a_change_is_proposed_both_sets_must_hold_a_record() {
        let mut leader = started();
        // Node three, silent for ten seconds, leaves; node two, which has everything, stays.
        let proposed = tick(&mut leader, 0, 10_100, &[TWO]);
        assert_eq!(proposed, [change(&[ME, TWO], 2)]);
        open(&mut leader, THREE, 1, position(5, 2));
        produce(&mut leader, 1, 1, Acks::All);
        leader.handle_durable(position(6, 2));
        ack(&mut leader, THREE, 1, position(6, 2));
        assert_eq!(
            completed(&mut leader),
            [],
            "the old set holds it, the proposed one does not"
        );
        ack(&mut leader, TWO, 1, position(6, 2));
        assert_eq!(completed(&mut leader), [(1, Ok(5))]);
    }

    #[test]
    fn a_change_is_proposed_only_where_the_new_set_holds_what_is_committed() {
        // Nobody but the leader has the epoch start: the set without node three could not be shown to hold it.
        let mut leader = with_state(&[ME, TWO, THREE], 2);
        assert_eq!(tick(&mut leader, 0, 12_000, &[]), []);
    }

    #[test]
    fn an_ack_tells_how_long_what_it_confirms_was_under_way() {
        let mut leader = started();
        let session = SessionId::from_random_bits(1);
        for (ticket, sent) in [(1, 100), (2, 300), (3, 300)] {
            leader.handle_tick(at(sent), &Peers::new());
            produce(&mut leader, ticket, 1, Acks::All);
            leader.handle_sent(TWO, session, position(5 + ticket, 2), 100);
        }
        let ack = |offset| Ack {
            session,
            leader_epoch: LeaderEpoch::new(2).unwrap(),
            durable: position(offset, 2),
            received: Offset::new(offset).unwrap(),
        };
        let confirmed = |bytes, ms| Confirmed {
            bytes,
            waited: Duration::from_millis(ms),
        };
        let told = leader.handle_ack(at(700), appointment(TWO), &ack(7));
        assert_eq!(told, Ok(confirmed(200, 600)), "the longer one of two");
        assert_eq!(
            leader.handle_ack(at(800), appointment(TWO), &ack(7)),
            Ok(confirmed(0, 0))
        );
        assert_eq!(
            leader.handle_ack(at(800), appointment(TWO), &ack(8)),
            Ok(confirmed(100, 500))
        );
    }

    /// A pair whose follower has a queue of two seconds before it, in which frames of many partitions wait: this one's come out of it
    /// once a second. Until `delivers_until` ms it works it off, and until `heard_until` ms it is heard. Returns when it is to leave.
    fn leaves_at(delivers_until: u64, heard_until: u64) -> Option<u64> {
        let mut leader = with_state(&[ME, TWO], 1);
        leader.handle_durable(position(5, 2));
        open(&mut leader, TWO, 1, position(5, 1));
        ack(&mut leader, TWO, 1, position(5, 2));
        let mut peers = Peers::new();
        let mut sent = 5;
        for now in (0..=20_000).step_by(50) {
            if now % 1000 == 0 {
                sent += 1;
                produce(&mut leader, sent, 1, Acks::All);
                leader.handle_sent(TWO, SessionId::from_random_bits(1), position(sent, 2), 100);
                leader.handle_durable(position(sent, 2));
            }
            if now <= heard_until {
                peers.handle_heard(TWO, at(now), Duration::ZERO, Duration::ZERO);
            }
            if now <= delivers_until && now > 0 {
                let waited = Duration::from_millis(now.min(2000));
                peers.handle_delivered(TWO, at(now), waited);
                if now % 1000 == 0 && now >= 2000 {
                    ack(&mut leader, TWO, 1, position(sent - 2, 2));
                }
            }
            leader.handle_tick(at(now), &peers);
            if !proposals(&mut leader).is_empty() {
                return Some(now);
            }
        }
        None
    }

    #[test]
    fn a_member_that_works_off_a_backlog_stays_until_it_stands_still_or_falls_silent() {
        assert_eq!(leaves_at(20_000, 20_000), None);
        // Nothing came for as long as the queue is.
        assert_eq!(leaves_at(5_000, 20_000), Some(7_050));
        // As soon after its last sign of life as one that never had a queue.
        assert_eq!(leaves_at(5_000, 5_000), Some(5_550));
        assert_eq!(leaves_at(0, 0), Some(550));
    }

    #[test]
    fn a_replica_that_has_caught_up_joins_and_an_unknown_outcome_is_asked_for_again() {
        let mut leader = with_state(&[ME, TWO], 2);
        open(&mut leader, TWO, 1, position(5, 1));
        ack(&mut leader, TWO, 1, position(5, 2));
        open(&mut leader, THREE, 1, position(3, 1));
        assert_eq!(tick(&mut leader, 50, 300, &[TWO, THREE]), []);
        ack(&mut leader, THREE, 1, position(5, 2));
        let grown = change(&[ME, TWO, THREE], 2);
        assert_eq!(
            tick(&mut leader, 350, 500, &[TWO, THREE]),
            std::slice::from_ref(&grown)
        );
        leader.handle_isr_outcome(at(500), &grown, IsrOutcome::Unknown);
        assert_eq!(tick(&mut leader, 550, 900, &[TWO, THREE]), [grown]);
    }

    #[test]
    fn the_configured_m_is_proposed_and_holds_once_it_is_committed() {
        let mut leader = started();
        leader.handle_min_insync(3);
        // All three must hold what is committed before all three are what a commit needs.
        assert_eq!(tick(&mut leader, 50, 300, &[TWO, THREE]), []);
        open(&mut leader, THREE, 1, position(5, 1));
        ack(&mut leader, THREE, 1, position(5, 2));
        let raised = change(&[ME, TWO, THREE], 3);
        assert_eq!(tick(&mut leader, 350, 400, &[TWO, THREE]), [raised]);
    }

    #[test]
    fn an_ack_of_another_data_directory_commits_nothing() {
        let mut leader = with_state(&[ME, TWO], 2);
        let replaced = Appointment {
            directory: DirectoryId::from_random_bits(99),
            ..appointment(TWO)
        };
        let hello = OpenSession {
            partition: PARTITION,
            leader_epoch: LeaderEpoch::new(2).unwrap(),
            session: SessionId::from_random_bits(1),
            durable: LogPosition::START,
            epochs: history(&[]),
            epochs_complete: true,
            log_lost: false,
        };
        let own = history(&[(1, 0), (2, 5)]);
        let log = LogEnds {
            start: LogPosition::START,
            end: position(5, 2),
            epochs: &own,
        };
        leader.handle_open_session(replaced, &hello, log);
        let ack = Ack {
            session: SessionId::from_random_bits(1),
            leader_epoch: LeaderEpoch::new(2).unwrap(),
            durable: position(5, 2),
            received: offset(5),
        };
        leader.handle_ack(at(1), replaced, &ack).unwrap();
        assert!(!leader.epoch_started());
        // The set that names it as it is now counts it.
        let proposed = tick(&mut leader, 50, 100, &[TWO]);
        assert_eq!(proposed[0].new_isr, [appointment(ME), replaced]);
    }

    #[test]
    fn what_waits_when_too_few_are_left_is_told_so() {
        let mut leader = started();
        produce(&mut leader, 1, 1, Acks::All);
        leader.handle_state(&PartitionState {
            partition_epoch: PartitionEpoch(2),
            ..state(2, &[ME, TWO], 3)
        });
        assert_eq!(
            completed(&mut leader),
            [(1, Err(ErrorCode::NotEnoughReplicasAfterAppend))]
        );
    }
}
