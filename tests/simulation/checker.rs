//! The invariants, and the history that they are about.
//!
//! Everything is judged from outside: from the logs as they can be read, from what was sent, and from what the controller has
//! committed. Where a check needs to know what a replica holds, it looks at that replica's own log and not at what anyone
//! believes of it.

use std::collections::BTreeMap;
use std::fmt;

use quorate::replication::{CountedAck, CountedSet, ProducerStates};
use quorate::storage::LogReader;
use quorate::types::{
    Appointment, DirectoryId, Incarnation, IsrChange, LeaderEpoch, LogPosition, Offset,
    PartitionState, SessionId, quorum,
};
use quorate::wire::Ack;

use super::mirror::{Held, Mirror};
use super::node::index_of;
use super::producers::Known;
use super::stability::Outcomes;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's number, or a word for what is none of them.
    pub rule: &'static str,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.rule, self.what)
    }
}

pub type Check = Result<(), Violation>;

pub fn violated(rule: &'static str, what: impl Into<String>) -> Check {
    Err(Violation {
        rule,
        what: what.into(),
    })
}

/// A committed frame of records.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub held: Held,
    /// The epoch of the leader that committed it first.
    pub in_epoch: LeaderEpoch,
}

/// What a leader told a replica to do to its log, while it does it.
#[derive(Clone, Copy, Debug)]
pub struct Cutting {
    /// What lies behind may go.
    pub to: LogPosition,
    /// Where the leader's own log starts: what lies before may go, committed or not. 0 if it is not a reset.
    pub reset_to: Offset,
    pub leader_epoch: LeaderEpoch,
}

/// A session as the leader's side has it: what an ack must name, and come by, to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    pub leader_epoch: LeaderEpoch,
    /// The process that opened it.
    pub process: Appointment,
    /// The connection that its hello came by.
    pub connection: u64,
}

/// What is known of one replica, over all its processes.
#[derive(Default)]
pub struct Replica {
    pub mirror: Mirror,
    /// What it held durably before its disk was lost or harmed, by disk, for as long as the in-sync set does not name what
    /// came after. Its acks of then may have been counted, and no election counts on it.
    voids: BTreeMap<DirectoryId, Mirror>,
    /// What its log says of producers, by a replay of our own.
    pub known: Known,
    /// Whether it kept less than its whole log says when it was last compared.
    pub is_incomplete: bool,
    /// The last stable offset that it showed last, if it led then, and in which epoch.
    pub stable: Option<(LeaderEpoch, Offset)>,
    /// The leader epoch of the role in which its producers were last compared.
    compared_in: LeaderEpoch,
    /// The most that it has acknowledged, by process and session.
    acked: BTreeMap<(Incarnation, SessionId), LogPosition>,
    /// The highest epoch that others have been told of as promised.
    pub promise_told: LeaderEpoch,
    /// The highest position that this replica has told others it holds durably: by an ack, a hello or a fence's answer.
    claimed: LogPosition,
    /// While its log is being cut.
    cutting: Option<Cutting>,
    /// The disk that `mirror` is on.
    directory: Option<DirectoryId>,
    incarnation: Option<Incarnation>,
    high_watermark: Offset,
    /// Its log was of a history that an unclean election has ended when it was last looked at.
    pub was_lost: bool,
    /// The session that the leader on this node has open with each node.
    sessions: BTreeMap<usize, Session>,
}

impl Replica {
    /// Adds what the log on the present disk is known to have held to what is void.
    fn keep_void(&mut self, before: Mirror) {
        let Some(directory) = self.directory else {
            return;
        };
        // What it had earlier still was what was counted then, if nothing newer was.
        match self.voids.get(&directory) {
            Some(void) if void.durable > before.durable => {}
            _ => {
                self.voids.insert(directory, before);
            }
        }
    }

    /// Whether this is the process that runs, or the last one that ran.
    fn is_process(&self, process: &Appointment) -> bool {
        self.directory == Some(process.directory) && self.incarnation == Some(process.incarnation)
    }
}

/// What a leader counts by, and what it was told and has asked for.
pub struct Counting<'a> {
    pub leader_epoch: LeaderEpoch,
    pub sets: Vec<&'a CountedSet>,
    pub acks: Vec<CountedAck>,
    /// The last state that it was told.
    pub told: Option<&'a PartitionState>,
    /// The change that it proposed to that state, if it has.
    pub proposed: Option<&'a IsrChange>,
}

/// One partition's history.
pub struct PartitionChecker {
    pub replicas: Vec<Replica>,
    /// Every frame that any log ever had, by where it ends: there is one, with one beginning and one content. So two logs that
    /// have a frame in common have all before it in common.
    frames: BTreeMap<LogPosition, (LogPosition, u32, bool)>,
    /// By base offset.
    pub committed: BTreeMap<Offset, Committed>,
    /// The offset after the last committed record.
    pub true_high_watermark: Offset,
    /// Who led in each epoch.
    leaders: BTreeMap<LeaderEpoch, Appointment>,
    /// The controller's last state in each epoch.
    pub states: BTreeMap<LeaderEpoch, PartitionState>,
    /// What readers have read: a hash of the batch's bytes by base offset.
    pub read: BTreeMap<Offset, u32>,
    /// The last committed sequence of each producer: (epoch, next sequence).
    pub producers: BTreeMap<i64, (i16, i32)>,
    pub outcomes: Outcomes,
    /// The epoch of the last leader that an operator forced, from where on what was committed before it is lost, and how many
    /// batches were.
    pub forced_epoch: LeaderEpoch,
    pub lost_from: Offset,
    pub lost_frames: u64,
    pub epochs_committed_in: BTreeMap<LeaderEpoch, u64>,
    /// How often what is kept of producers was compared with a replay, and how often it had to be taken for incomplete.
    pub producers_compared: u64,
    pub producers_incomplete: u64,
}

impl PartitionChecker {
    pub fn new(nodes: usize) -> PartitionChecker {
        PartitionChecker {
            replicas: (0..nodes).map(|_| Replica::default()).collect(),
            frames: BTreeMap::new(),
            committed: BTreeMap::new(),
            true_high_watermark: Offset::ZERO,
            leaders: BTreeMap::new(),
            states: BTreeMap::new(),
            read: BTreeMap::new(),
            producers: BTreeMap::new(),
            outcomes: Outcomes::default(),
            forced_epoch: LeaderEpoch::NONE,
            lost_from: Offset::ZERO,
            lost_frames: 0,
            epochs_committed_in: BTreeMap::new(),
            producers_compared: 0,
            producers_incomplete: 0,
        }
    }

    fn state(&self) -> Option<&PartitionState> {
        self.states.last_key_value().map(|(_, state)| state)
    }

    /// Whether the replica counts for a commit at `position`: by its disk, or by an ack that was true when it was given.
    fn counts(&self, member: &Appointment, position: LogPosition) -> bool {
        let replica = &self.replicas[index_of(member.node)];
        // A disk that was never admitted is nobody's vote, whatever is on it.
        let admitted = replica.directory == Some(member.directory);
        (admitted && replica.mirror.holds_durably(position))
            || replica
                .voids
                .get(&member.directory)
                .is_some_and(|void| void.holds_durably(position))
    }

    /// Whether a member is without something that is committed.
    pub fn lags(&self, member: &Appointment) -> bool {
        let last = self.committed.last_key_value();
        last.is_some_and(|(_, committed)| !self.counts(member, committed.held.end))
    }

    fn quorum_holds(&self, isr: &[Appointment], min_insync: u32, position: LogPosition) -> bool {
        let holding = isr
            .iter()
            .filter(|member| self.counts(member, position))
            .count();
        holding >= quorum::commit_quorum(isr.len(), min_insync as usize)
    }

    /// A log may have changed: looks at it. `leader_epoch` is that of the replica's role, 0 without one.
    pub fn look_at_log(
        &mut self,
        node: usize,
        reader: &LogReader,
        durable: LogPosition,
        leader_epoch: LeaderEpoch,
    ) -> Check {
        let replica = &mut self.replicas[node];
        let change = match replica.mirror.update(reader, durable) {
            Ok(change) => change,
            Err(cause) => {
                return violated("3 (no gaps)", format!("node {}: {cause}", node + 1));
            }
        };
        if durable > replica.mirror.end() {
            return violated(
                "3 (durable)",
                format!("node {} says that {durable} is durable", node + 1),
            );
        }
        let added = replica.mirror.frames.len() - change.added;
        let new: Vec<Held> = replica.mirror.frames[added..].to_vec();
        for frame in &new {
            self.check_frame(node, frame)?;
        }
        let is_lost = self.is_of_lost_history(node);
        let was_lost = std::mem::replace(&mut self.replicas[node].was_lost, is_lost);
        if change.is_reset || !change.dropped.is_empty() || was_lost {
            self.replay_producers(node)?;
        } else {
            for frame in &new {
                self.replicas[node].known.take(node, frame)?;
            }
        }
        let replica = &mut self.replicas[node];
        let start = replica.mirror.start;
        let claimed = replica.claimed;
        if !change.dropped.is_empty() {
            replica.claimed = claimed.min(replica.mirror.end());
        }
        for frame in &change.dropped {
            // What nobody was told of is nobody's: a session begins at what its hello said, and the rest is sent again.
            let told = frame.end <= change.durable_before && frame.end <= claimed;
            if !frame.epoch_start && told && frame.end > start {
                self.check_dropped(node, frame, leader_epoch)?;
            }
        }
        Ok(())
    }

    /// What the log says of producers, from the beginning: what lies before its start is committed and known.
    fn replay_producers(&mut self, node: usize) -> Check {
        if self.is_of_lost_history(node) {
            // What lies before its start is known no more.
            self.replicas[node].known = Known::default();
            return Ok(());
        }
        let mirror = &self.replicas[node].mirror;
        let mut known = Known::default();
        for (_, committed) in self.committed.range(..mirror.start.offset) {
            known.take(node, &committed.held)?;
        }
        for frame in &mirror.frames {
            known.take(node, frame)?;
        }
        let replica = &mut self.replicas[node];
        replica.known = known;
        // Whatever was compared is another log's now.
        replica.compared_in = LeaderEpoch::NONE;
        Ok(())
    }

    /// What a replica keeps of producers is what a replay of its log gives. Looked at whenever either may have changed.
    pub fn look_at_producers(
        &mut self,
        node: usize,
        role_epoch: LeaderEpoch,
        kept: &ProducerStates,
    ) -> Check {
        if self.is_of_lost_history(node) {
            return Ok(());
        }
        let replica = &mut self.replicas[node];
        if !replica.known.is_new() && replica.compared_in == role_epoch {
            return Ok(());
        }
        replica.compared_in = role_epoch;
        replica.known.seen();
        self.producers_compared += 1;
        let snapshot = kept.snapshot();
        self.producers_incomplete += u64::from(snapshot.incomplete);
        replica.is_incomplete = snapshot.incomplete;
        let (known, start) = (&replica.known, replica.mirror.start.offset);
        known.check(&snapshot, start).map_err(|what| Violation {
            rule: "11 (a replay of the log)",
            what: format!("node {}: {what}", node + 1),
        })
    }

    fn check_dropped(&self, node: usize, frame: &Held, leader_epoch: LeaderEpoch) -> Check {
        if let Some(committed) = self.committed.get(&frame.start.offset)
            && committed.held == *frame
            && leader_epoch >= committed.in_epoch
        {
            return violated(
                "9 (committed, truncated)",
                format!(
                    "node {} dropped {} to {}, which was committed in epoch {}, for a leader of epoch {leader_epoch}",
                    node + 1,
                    frame.start,
                    frame.end,
                    committed.in_epoch
                ),
            );
        }
        Ok(())
    }

    /// A replica is told by its leader to cut its log, if it is.
    pub fn cut_begins(&mut self, node: usize, cutting: Option<Cutting>) {
        self.replicas[node].cutting = cutting;
    }

    pub fn cut_ends(&mut self, node: usize) {
        self.replicas[node].cutting = None;
    }

    /// A process died while it cut its log, and another finds it so or so: what is gone had to go.
    fn finish_cut(&mut self, node: usize, found: &Mirror) -> Check {
        let Some(Cutting {
            to,
            reset_to,
            leader_epoch,
        }) = self.replicas[node].cutting.take()
        else {
            return Ok(());
        };
        let replica = &mut self.replicas[node];
        let claimed = replica.claimed;
        let mut dropped = Vec::new();
        while let Some(last) = replica.mirror.frames.last().copied()
            && last.end > to
            && found.find(last.end) != Some(&last)
        {
            replica.mirror.frames.pop();
            dropped.push(last);
        }
        let durable_before = replica.mirror.durable;
        replica.mirror.durable = durable_before.min(replica.mirror.end());
        replica.claimed = claimed.min(replica.mirror.end());
        for frame in dropped {
            // What its leader's log no longer has either is not missed.
            let is_below_reset = frame.end.offset <= reset_to;
            if !frame.epoch_start
                && !is_below_reset
                && frame.end <= durable_before
                && frame.end <= claimed
            {
                self.check_dropped(node, &frame, leader_epoch)?;
            }
        }
        Ok(())
    }

    fn check_frame(&mut self, node: usize, frame: &Held) -> Check {
        if frame.start.epoch > frame.end.epoch {
            return violated(
                "8 (log epochs)",
                format!("node {}: {} to {}", node + 1, frame.start, frame.end),
            );
        }
        let this = (frame.start, frame.crc, frame.epoch_start);
        let known = *self.frames.entry(frame.end).or_insert(this);
        if known != this {
            return violated(
                "3 (equal positions, other bytes)",
                format!(
                    "node {}: {} to {} is {this:?}, and was {known:?}",
                    node + 1,
                    frame.start,
                    frame.end
                ),
            );
        }
        Ok(())
    }

    /// A replica has opened its log in a new process. What was durable must be there, unless its disk was harmed.
    pub fn reopened(
        &mut self,
        node: usize,
        me: Appointment,
        reader: &LogReader,
        durable: LogPosition,
        promised: LeaderEpoch,
        may_have_lost: bool,
    ) -> Check {
        let mut mirror = Mirror {
            start: reader.start(),
            ..Mirror::default()
        };
        if let Err(cause) = mirror.update(reader, durable) {
            return violated("3 (no gaps)", format!("node {}: {cause}", node + 1));
        }
        let frames = mirror.frames.clone();
        for frame in &frames {
            self.check_frame(node, frame)?;
        }
        self.finish_cut(node, &mirror)?;
        let replica = &mut self.replicas[node];
        let before = std::mem::replace(&mut replica.mirror, mirror);
        let is_whole = before
            .frames
            .iter()
            .filter(|frame| frame.end <= before.durable && frame.start >= replica.mirror.start)
            .all(|frame| replica.mirror.find(frame.end) == Some(frame));
        let is_whole = is_whole && before.durable.offset <= replica.mirror.end().offset;
        if !is_whole {
            if !may_have_lost {
                return violated(
                    "durability",
                    format!(
                        "node {} held {} durably, and after a restart its log ends at {}",
                        node + 1,
                        before.durable,
                        replica.mirror.end()
                    ),
                );
            }
            replica.claimed = replica.claimed.min(replica.mirror.end());
            replica.keep_void(before);
        }
        if may_have_lost {
            // Another disk has promised nothing.
            if !is_whole {
                replica.promise_told = replica.promise_told.min(promised);
            }
        }
        if promised < replica.promise_told {
            return violated(
                "8 (promise forgotten)",
                format!(
                    "node {} had promised epoch {}, and after a restart {promised}",
                    node + 1,
                    replica.promise_told
                ),
            );
        }
        replica.directory = Some(me.directory);
        replica.incarnation = Some(me.incarnation);
        replica.high_watermark = Offset::ZERO;
        replica.stable = None;
        replica.sessions.clear();
        self.replay_producers(node)
    }

    /// The running process has set the log aside and begun an empty one.
    pub fn set_aside(&mut self, node: usize) {
        let replica = &mut self.replicas[node];
        let before = std::mem::take(&mut replica.mirror);
        replica.keep_void(before);
        replica.claimed = LogPosition::START;
        replica.high_watermark = Offset::ZERO;
        replica.stable = None;
        replica.known = Known::default();
    }

    /// The disk is gone.
    pub fn disk_lost(&mut self, node: usize) {
        let replica = &mut self.replicas[node];
        let before = std::mem::take(&mut replica.mirror);
        replica.keep_void(before);
        replica.known = Known::default();
        replica.promise_told = LeaderEpoch::NONE;
        replica.claimed = LogPosition::START;
        replica.directory = None;
        replica.incarnation = None;
    }

    /// The replica has left this node, and its log with it. It was in no set any more, so nobody counts on it.
    pub fn left(&mut self, node: usize) {
        let replica = &mut self.replicas[node];
        replica.mirror = Mirror::default();
        replica.voids.clear();
        replica.known = Known::default();
        replica.promise_told = LeaderEpoch::NONE;
        replica.claimed = LogPosition::START;
        replica.high_watermark = Offset::ZERO;
        replica.stable = None;
        replica.cutting = None;
        replica.sessions.clear();
    }

    /// A replica says what it holds durably.
    pub fn claims(&mut self, node: usize, position: LogPosition) -> Check {
        let replica = &mut self.replicas[node];
        if position > replica.mirror.durable {
            return violated(
                "7 (claimed, not durable)",
                format!(
                    "node {} claims {position} and holds {} durably",
                    node + 1,
                    replica.mirror.durable
                ),
            );
        }
        replica.claimed = replica.claimed.max(position);
        Ok(())
    }

    /// A replica whose disk was harmed: it counts for nothing new until the in-sync set names it anew.
    pub fn is_void(&self, node: usize) -> bool {
        !self.replicas[node].voids.is_empty()
    }

    /// What it once had is counted on as long as this says.
    pub fn mark_void(&mut self, node: usize) {
        let replica = &mut self.replicas[node];
        let before = replica.mirror.clone();
        replica.keep_void(before);
    }

    /// A replica's watermark and role, after anything that may have moved them.
    pub fn look_at_watermark(
        &mut self,
        node: usize,
        high_watermark: Offset,
        leads_in: Option<(LeaderEpoch, Appointment, bool)>,
        pending: Option<(&[Appointment], u32)>,
    ) -> Check {
        let is_early = leads_in.is_none() && !self.has_new_history_begun();
        if is_early || self.is_of_lost_history(node) {
            self.replicas[node].high_watermark = high_watermark;
            return Ok(());
        }
        let before = self.replicas[node].high_watermark;
        // A follower's watermark is no higher than its durable end, and a leader's may be: it falls to that when the leader
        // begins to follow.
        let became_follower =
            leads_in.is_none() && high_watermark >= self.replicas[node].mirror.durable.offset;
        if high_watermark < before && !became_follower {
            return violated(
                "4 (watermark fell)",
                format!("node {}: from {before} to {high_watermark}", node + 1),
            );
        }
        self.replicas[node].high_watermark = high_watermark;
        if let Some((epoch, me, started)) = leads_in {
            let leader = *self.leaders.entry(epoch).or_insert(me);
            if leader != me {
                return violated(
                    "8 (two leaders)",
                    format!("epoch {epoch}: {leader:?} and {me:?}"),
                );
            }
            let appointed = self.states.get(&epoch).and_then(|state| state.leader);
            if appointed != Some(me) {
                return violated(
                    "8 (not appointed)",
                    format!("{me:?} leads in epoch {epoch}, and {appointed:?} was appointed"),
                );
            }
            if started {
                self.check_commit(node, epoch, high_watermark, pending)?;
                let newest = self.epochs_committed_in.last_key_value();
                if high_watermark < self.true_high_watermark
                    && newest.is_none_or(|(&newest, _)| newest <= epoch)
                {
                    return violated(
                        "4 (below the true watermark)",
                        format!(
                            "node {} leads in epoch {epoch}, has committed its start, and says {high_watermark}; {} is committed",
                            node + 1,
                            self.true_high_watermark
                        ),
                    );
                }
            } else if high_watermark > before && before > Offset::ZERO {
                return violated(
                    "4 (before the epoch start)",
                    format!(
                        "node {} moved its watermark to {high_watermark} before epoch {epoch} had begun",
                        node + 1
                    ),
                );
            }
        }
        if high_watermark > self.true_high_watermark {
            return violated(
                "5 (watermark)",
                format!(
                    "node {} says {high_watermark}, and {} is committed",
                    node + 1,
                    self.true_high_watermark
                ),
            );
        }
        Ok(())
    }

    /// One of the sets that a leader counts by is the controller's of its epoch: by node, disk and process, and by m. What it
    /// counts of each follower is what that very process has acknowledged in the session that is open.
    pub fn check_counting(&self, node: usize, counting: &Counting<'_>) -> Check {
        let epoch = counting.leader_epoch;
        let Some(state) = self.states.get(&epoch) else {
            return violated(
                "8",
                format!("node {} leads in epoch {epoch}, which never was", node + 1),
            );
        };
        if !counting
            .sets
            .iter()
            .any(|set| is_set(set, &state.isr, state.min_insync))
        {
            return violated(
                "6 (the leader's view)",
                format!(
                    "node {} counts by {:?} in epoch {epoch}, and the controller has {:?} with m {}",
                    node + 1,
                    counting.sets,
                    state.isr,
                    state.min_insync
                ),
            );
        }
        for ack in &counting.acks {
            self.check_counted(node, epoch, ack)?;
        }
        Ok(())
    }

    /// Once everything that a leader asked for is done, it counts by what it was told and by what it has proposed.
    pub fn check_proposal(&self, node: usize, counting: &Counting<'_>) -> Check {
        let told = counting
            .told
            .map(|told| (&told.isr[..], told.min_insync))
            .into_iter();
        let proposed = counting
            .proposed
            .map(|change| (&change.new_isr[..], change.min_insync));
        let expected: Vec<(&[Appointment], u32)> = told.chain(proposed).collect();
        let as_expected = counting.sets.len() == expected.len()
            && counting
                .sets
                .iter()
                .zip(&expected)
                .all(|(set, (members, min_insync))| is_set(set, members, *min_insync));
        if !as_expected {
            return violated(
                "6 (what the leader was told and has proposed)",
                format!(
                    "node {} counts by {:?} in epoch {}, and was told and has proposed {expected:?}",
                    node + 1,
                    counting.sets,
                    counting.leader_epoch
                ),
            );
        }
        Ok(())
    }

    fn check_counted(&self, node: usize, epoch: LeaderEpoch, counted: &CountedAck) -> Check {
        if counted.durable == LogPosition::START {
            return Ok(());
        }
        let from = index_of(counted.replica.node);
        let follower = &self.replicas[from];
        let is_open = self.replicas[node].sessions.get(&from).is_some_and(|open| {
            (open.id, open.leader_epoch, open.process) == (counted.session, epoch, counted.replica)
        });
        let acked = follower
            .acked
            .get(&(counted.replica.incarnation, counted.session))
            .copied()
            .unwrap_or(LogPosition::START);
        if !is_open || counted.durable > acked {
            return violated(
                "7 (counted, not acknowledged)",
                format!(
                    "node {} counts {counted:?} in epoch {epoch}; that process has acknowledged {acked} in the session, and open is {:?}",
                    node + 1,
                    self.replicas[node].sessions.get(&from)
                ),
            );
        }
        Ok(())
    }

    /// A leader holds for committed what lies below `high_watermark`.
    fn check_commit(
        &mut self,
        node: usize,
        epoch: LeaderEpoch,
        high_watermark: Offset,
        pending: Option<(&[Appointment], u32)>,
    ) -> Check {
        if high_watermark <= self.true_high_watermark
            && self.epochs_committed_in.contains_key(&epoch)
        {
            return Ok(());
        }
        let position = self.replicas[node].mirror.position_at(high_watermark);
        let who = node + 1;
        if position.offset != high_watermark {
            return violated(
                "5 (watermark)",
                format!("node {who}: no frame ends at {high_watermark}"),
            );
        }
        if position.epoch != epoch {
            return violated(
                "4 (before the epoch start)",
                format!("node {who} leads in epoch {epoch} and has committed {position}"),
            );
        }
        let Some(state) = self.states.get(&epoch).cloned() else {
            return violated(
                "8",
                format!("node {who} leads in epoch {epoch}, which never was"),
            );
        };
        if !self.quorum_holds(&state.isr, state.min_insync, position) {
            let is_start = !self.epochs_committed_in.contains_key(&epoch);
            return violated(
                if is_start {
                    "4 (the epoch start on no commit quorum)"
                } else {
                    "5 (commit quorum)"
                },
                format!(
                    "node {who} commits {position} in epoch {epoch}; of {} with m {} it is durable on {}",
                    names(&state.isr),
                    state.min_insync,
                    self.holding(&state.isr, position),
                ),
            );
        }
        if state.isr.len() < state.min_insync as usize {
            return violated(
                "1 (fewer than m)",
                format!(
                    "node {who} commits {position} with {} of m {}",
                    state.isr.len(),
                    state.min_insync
                ),
            );
        }
        if let Some((isr, min_insync)) = pending
            && !self.quorum_holds(isr, min_insync, position)
        {
            return violated(
                "5 (pending set)",
                format!(
                    "node {who} commits {position} in epoch {epoch} while it proposes {} with m {min_insync}; it is durable on {}",
                    names(isr),
                    self.holding(isr, position)
                ),
            );
        }
        *self.epochs_committed_in.entry(epoch).or_default() += 1;
        self.commit(node, epoch, high_watermark)
    }

    fn holding(&self, isr: &[Appointment], position: LogPosition) -> String {
        let holding: Vec<Appointment> = isr
            .iter()
            .copied()
            .filter(|member| self.counts(member, position))
            .collect();
        names(&holding)
    }

    fn commit(&mut self, node: usize, epoch: LeaderEpoch, high_watermark: Offset) -> Check {
        let from = self.true_high_watermark;
        let frames: Vec<Held> = self.replicas[node]
            .mirror
            .frames
            .iter()
            .filter(|frame| {
                !frame.epoch_start
                    && frame.start.offset >= from
                    && frame.end.offset <= high_watermark
            })
            .copied()
            .collect();
        for held in frames {
            if held.start.offset != self.true_high_watermark {
                return violated(
                    "2 (another history)",
                    format!(
                        "node {} commits {} to {}, and what was committed ends at {}",
                        node + 1,
                        held.start,
                        held.end,
                        self.true_high_watermark
                    ),
                );
            }
            self.true_high_watermark = held.end.offset;
            self.committed.insert(
                held.start.offset,
                Committed {
                    held,
                    in_epoch: epoch,
                },
            );
            self.check_sequence(&held)?;
            self.outcomes.take(&held);
            // No later leader is without it.
            for (later, state) in self.states.range(epoch..) {
                if *later == epoch {
                    continue;
                }
                let Some(leader) = state.leader else { continue };
                let replica = &self.replicas[index_of(leader.node)];
                // One whose disk is gone since, or whose damaged log was set aside since, led with what it had; one that led on a
                // disk that was harmed before has it in its log.
                let lacks = |mirror: &Mirror| {
                    held.start.offset >= mirror.start.offset && mirror.find(held.end) != Some(&held)
                };
                let before = replica.voids.get(&leader.directory);
                if before.is_none_or(lacks) && lacks(&replica.mirror) {
                    return violated(
                        "1 (a later leader is without it)",
                        format!(
                            "epoch {epoch} commits {} to {}, and node {} leads in epoch {later} without it",
                            held.start, held.end, leader.node
                        ),
                    );
                }
            }
        }
        Ok(())
    }

    /// An idempotent producer's batches are in the log once each, in order.
    fn check_sequence(&mut self, held: &Held) -> Check {
        let Some((producer, epoch, sequence)) = held.sequence else {
            return Ok(());
        };
        let expected = self.producers.get(&producer).copied();
        let in_order = match expected {
            _ if held.marker.is_some() => expected.is_none_or(|(known, _)| epoch >= known),
            None => sequence == 0,
            Some((known, next)) if known == epoch => sequence == next,
            Some((known, _)) => epoch > known && sequence == 0,
        };
        if !in_order {
            return violated(
                "11 (once, and in order)",
                format!(
                    "producer {producer} at {}: sequence {sequence} of epoch {epoch}, after {expected:?}",
                    held.start
                ),
            );
        }
        let next = next_after(expected, held).unwrap_or((epoch, 0));
        self.producers.insert(producer, next);
        Ok(())
    }

    /// The controller has committed a state.
    pub fn state_committed(&mut self, state: &PartitionState) -> Check {
        let before = self.state().cloned();
        if let Some(before) = &before {
            if (state.leader_epoch, state.partition_epoch)
                < (before.leader_epoch, before.partition_epoch)
            {
                return violated("8", "the controller's epochs fell".to_owned());
            }
            // A smaller set could commit nothing either, and fewer replicas could lead next.
            let is_change = before.leader.is_some() && before.leader_epoch == state.leader_epoch;
            if state.forced_epoch > before.forced_epoch {
                self.forced(state);
            }
            let members = state.isr.len();
            if is_change && members < before.isr.len() && members < state.min_insync as usize {
                return violated(
                    "1 (a set smaller than m)",
                    format!(
                        "the in-sync set becomes {} with m {}",
                        names(&state.isr),
                        state.min_insync
                    ),
                );
            }
            if before.isr != state.isr || before.min_insync != state.min_insync {
                self.check_isr_change(before, state)?;
            }
        }
        let appointed = before
            .as_ref()
            .is_some_and(|before| before.leader.is_none());
        self.states.insert(state.leader_epoch, state.clone());
        match state.leader {
            Some(leader) if appointed => self.check_elected(leader, state.leader_epoch),
            _ => Ok(()),
        }
    }

    /// Every commit quorum of a set meets the ones before it: what is committed is on a quorum of the new set.
    fn check_isr_change(&mut self, before: &PartitionState, state: &PartitionState) -> Check {
        let known_before = |member: &Appointment| before.isr.contains(member);
        for member in state.isr.iter().filter(|member| !known_before(member)) {
            // Named anew, on what this very process acknowledged; unless it is gone already, and its disk with it.
            let replica = &mut self.replicas[index_of(member.node)];
            if replica.is_process(member) {
                replica.voids.clear();
            }
        }
        let committed = self
            .committed
            .last_key_value()
            .map(|(_, committed)| committed.held.end);
        if let Some(position) = committed
            && !self.quorum_holds(&state.isr, state.min_insync, position)
        {
            return violated(
                "5 (new set)",
                format!(
                    "the in-sync set becomes {} with m {}, and {position} is committed and durable on {}",
                    names(&state.isr),
                    state.min_insync,
                    self.holding(&state.isr, position)
                ),
            );
        }
        Ok(())
    }

    fn check_elected(&self, leader: Appointment, epoch: LeaderEpoch) -> Check {
        let replica = &self.replicas[index_of(leader.node)];
        let is_of_the_disk = replica.directory == Some(leader.directory);
        let is_running = replica.is_process(&leader);
        // It answered the fence, and its disk was lost, or its log set aside by a later process, before the appointment:
        // nobody will lead in this epoch. What is known of before may be old, where the log could not be read all through.
        let void = replica.voids.get(&leader.directory).filter(|_| !is_running);
        let present = (is_of_the_disk || void.is_none()).then_some(&replica.mirror);
        for committed in self.committed.values() {
            let held = committed.held;
            let has = |mirror: &Mirror| {
                held.end.offset <= mirror.start.offset
                    || mirror.find(held.end) == Some(&held) && held.end <= mirror.durable
            };
            if !void.is_some_and(has) && !present.is_some_and(has) {
                let mirror = void.unwrap_or(&replica.mirror);
                return violated(
                    "2 (elected without)",
                    format!(
                        "node {} is elected in epoch {epoch} with a log that ends at {}, and lacks the committed {} to {}",
                        leader.node, mirror.durable, held.start, held.end
                    ),
                );
            }
        }
        Ok(())
    }

    /// A follower sends an ack.
    pub fn ack_sent(&mut self, node: usize, ack: &Ack) -> Check {
        self.claims(node, ack.durable)?;
        let replica = &mut self.replicas[node];
        if let Some(incarnation) = replica.incarnation {
            let acked = replica
                .acked
                .entry((incarnation, ack.session))
                .or_insert(ack.durable);
            *acked = ack.durable.max(*acked);
        }
        if ack.leader_epoch < replica.promise_told {
            return violated(
                "8 (acked below the promise)",
                format!(
                    "node {} acknowledges in epoch {} and has promised {}",
                    node + 1,
                    ack.leader_epoch,
                    replica.promise_told
                ),
            );
        }
        Ok(())
    }

    /// Others learn that the replica has promised `epoch`.
    pub fn promise_told(&mut self, node: usize, epoch: LeaderEpoch) -> Check {
        let told = &mut self.replicas[node].promise_told;
        if epoch < *told {
            return violated(
                "8 (promise fell)",
                format!("node {} promises {epoch} after {told}", node + 1),
            );
        }
        *told = epoch;
        Ok(())
    }

    /// The leader on `node` has answered a hello and begun a session.
    pub fn session_opened(&mut self, node: usize, from: usize, session: Session) {
        self.replicas[node].sessions.insert(from, session);
    }

    pub fn session_of(&self, node: usize, from: usize) -> Option<Session> {
        self.replicas[node].sessions.get(&from).copied()
    }

    /// The leader on `node` has counted an ack: of the session that is open, by the process that opened it, over the connection
    /// that it was opened on; and no more than that process did acknowledge.
    pub fn ack_counted(
        &self,
        node: usize,
        from: usize,
        process: Appointment,
        connection: u64,
        ack: &Ack,
    ) -> Check {
        let came = Session {
            id: ack.session,
            leader_epoch: ack.leader_epoch,
            process,
            connection,
        };
        let current = self.replicas[node].sessions.get(&from);
        if current != Some(&came) {
            return violated(
                "7 (ack of another session)",
                format!(
                    "node {} counts an ack of node {} of {came:?}; current is {current:?}",
                    node + 1,
                    from + 1,
                ),
            );
        }
        let acked = self.replicas[from]
            .acked
            .get(&(process.incarnation, ack.session));
        if acked.is_none_or(|acked| ack.durable > *acked) {
            return violated(
                "7 (an ack that was never sent)",
                format!(
                    "node {} counts {} of node {}, which has acknowledged {acked:?}",
                    node + 1,
                    ack.durable,
                    from + 1
                ),
            );
        }
        Ok(())
    }

    /// A produce at acks=all is about to be answered: its record is committed.
    pub fn acknowledged(
        &self,
        node: usize,
        base: Offset,
        sequence: Option<(i64, i16, i32)>,
    ) -> Check {
        if self.is_of_lost_history(node) {
            return Ok(());
        }
        let Some(committed) = self.committed.get(&base) else {
            return violated(
                "1 (acknowledged, not committed)",
                format!(
                    "offset {base}; committed is up to {}",
                    self.true_high_watermark
                ),
            );
        };
        if committed.held.sequence != sequence {
            return violated(
                "1 (acknowledged, another record)",
                format!(
                    "offset {base}: {:?}, not {sequence:?}",
                    committed.held.sequence
                ),
            );
        }
        self.check_held(committed.held.end, "1 (acknowledged, on no commit quorum)")
    }

    /// A commit quorum of the present in-sync set, so at least m of it, holds everything up to `position`.
    fn check_held(&self, position: LogPosition, rule: &'static str) -> Check {
        let Some(state) = self.state() else {
            return Ok(());
        };
        if !self.quorum_holds(&state.isr, state.min_insync, position) {
            return violated(
                rule,
                format!(
                    "{position} is committed, and of {} with m {} durable on {}",
                    names(&state.isr),
                    state.min_insync,
                    self.holding(&state.isr, position)
                ),
            );
        }
        Ok(())
    }

    /// After every step: what is committed is on a commit quorum of the present set, and the present leader has it all. Both are
    /// asked of the last committed record: no two frames end at one position, so whoever has it has all before it.
    pub fn check_step(&self) -> Check {
        let Some((_, committed)) = self.committed.last_key_value() else {
            return Ok(());
        };
        let held = committed.held;
        self.check_held(held.end, "1 (on no commit quorum)")?;
        let Some((leader, epoch)) = self
            .state()
            .and_then(|state| Some((state.leader?, state.leader_epoch)))
        else {
            return Ok(());
        };
        let replica = &self.replicas[index_of(leader.node)];
        if !replica.voids.is_empty() || !replica.is_process(&leader) {
            return Ok(());
        }
        let has = held.end.offset <= replica.mirror.start.offset
            || replica.mirror.find(held.end) == Some(&held);
        if !has {
            return violated(
                "2 (the leader lacks)",
                format!(
                    "node {} leads in epoch {epoch} without {} to {}",
                    leader.node, held.start, held.end
                ),
            );
        }
        Ok(())
    }

    /// A reader was given the batch from `base` to `end`.
    pub fn read(&mut self, node: usize, base: Offset, end: Offset, crc: u32) -> Check {
        if self.is_of_lost_history(node) {
            return Ok(());
        }
        let known = *self.read.entry(base).or_insert(crc);
        if known != crc {
            return violated("10 (read bytes changed)", format!("offset {base}"));
        }
        match self.committed.get(&base) {
            Some(committed) if committed.held.end.offset == end => Ok(()),
            _ => violated(
                "10 (read above the watermark)",
                format!(
                    "offset {base} was read, and {} is committed",
                    self.true_high_watermark
                ),
            ),
        }
    }

    /// Everything, from the beginning.
    pub fn check_all(&self) -> Check {
        let mut next: Option<Offset> = None;
        for committed in self.committed.values() {
            if next.is_some_and(|next| next != committed.held.start.offset) {
                return violated(
                    "2 (a gap in what is committed)",
                    committed.held.start.to_string(),
                );
            }
            next = Some(committed.held.end.offset);
        }
        for (node, replica) in self.replicas.iter().enumerate() {
            let mut expected = replica.mirror.start;
            for frame in &replica.mirror.frames {
                if frame.start != expected {
                    return violated("3 (no gaps)", format!("node {} at {expected}", node + 1));
                }
                expected = frame.end;
            }
        }
        // The present leader, if there is one, has everything.
        if let Some(state) = self.state()
            && let Some(leader) = state.leader
        {
            return self.check_elected_now(leader, state.leader_epoch);
        }
        Ok(())
    }

    fn check_elected_now(&self, leader: Appointment, epoch: LeaderEpoch) -> Check {
        let replica = &self.replicas[index_of(leader.node)];
        if !replica.voids.is_empty() || !replica.is_process(&leader) {
            return Ok(());
        }
        for committed in self.committed.values() {
            let held = committed.held;
            if held.end.offset > replica.mirror.start.offset
                && replica.mirror.find(held.end) != Some(&held)
            {
                return violated(
                    "2 (the leader lacks)",
                    format!(
                        "node {} leads in epoch {epoch} without {} to {}",
                        leader.node, held.start, held.end
                    ),
                );
            }
        }
        Ok(())
    }

    /// After everything has healed: the replicas are equal.
    pub fn check_equal(&self, nodes: &[usize]) -> Check {
        let mirrors: Vec<&Mirror> = nodes
            .iter()
            .map(|&node| &self.replicas[node].mirror)
            .collect();
        let Some(start) = mirrors.iter().map(|mirror| mirror.start).max() else {
            return Ok(());
        };
        let from_start = |mirror: &Mirror| -> Vec<Held> {
            mirror
                .frames
                .iter()
                .filter(|frame| frame.start >= start)
                .copied()
                .collect()
        };
        let first = from_start(mirrors[0]);
        for (mirror, node) in mirrors.iter().zip(nodes) {
            if from_start(mirror) != first {
                return violated(
                    "divergent",
                    format!(
                        "node {} ends at {}, node {} at {}",
                        nodes[0] + 1,
                        mirrors[0].end(),
                        node + 1,
                        mirror.end()
                    ),
                );
            }
        }
        Ok(())
    }
}

/// The epoch and the sequence number with which a producer goes on behind a batch of it, or behind a marker.
pub fn next_after(before: Option<(i16, i32)>, held: &Held) -> Option<(i16, i32)> {
    let (_, epoch, sequence) = held.sequence?;
    match (held.marker, before) {
        (None, _) => Some((epoch, sequence + i32::try_from(held.records()).unwrap_or(0))),
        (Some(_), Some((known, next))) if known == epoch => Some((epoch, next)),
        (Some(_), _) => Some((epoch, 0)),
    }
}

fn is_set(set: &CountedSet, members: &[Appointment], min_insync: u32) -> bool {
    set.members == members && set.min_insync == min_insync as usize
}

fn names(isr: &[Appointment]) -> String {
    let names: Vec<String> = isr.iter().map(|member| member.node.to_string()).collect();
    format!("{{{}}}", names.join(" "))
}
