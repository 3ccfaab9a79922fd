//! A state while a step changes it, and the invariants that are looked at then.

use crate::bounds::{Bounds, Counting, Loss, Sessions};
use crate::log::{Entry, Log, Position, epoch_of, epoch_start, number_of, record};
use crate::rules::Rule;
use crate::state::{
    Appointment, EPOCHS, InSync, Marks, Outcome, Phase, Proposal, REPLICAS, Replica, Reply, Role,
    State,
};
use crate::steps::start_index;
use crate::violation::Violation;
use quorate::types::quorum;

pub(crate) struct Draft<'a> {
    pub bounds: &'a Bounds,
    pub state: State,
    /// The first one.
    pub violation: Option<Violation>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(bounds: &'a Bounds, state: &State) -> Draft<'a> {
        Draft {
            bounds,
            state: *state,
            violation: None,
        }
    }

    pub(crate) fn holds(&self, rule: Rule) -> bool {
        self.bounds.rules.hold(rule)
    }

    /// Notes a violation. With a rule switched off only losses are of interest: the rest is expected.
    pub(crate) fn broken(&mut self, violation: Violation) {
        if self.violation.is_none() && (violation.is_loss() || self.bounds.rules.all_hold()) {
            self.violation = Some(violation);
        }
    }

    fn mark(&mut self, mark: u8) {
        if self.bounds.marks {
            self.state.marks.add(mark);
        }
    }

    /// A position as it is compared.
    fn key(&self, position: Position) -> Position {
        if self.holds(Rule::WholePositions) {
            position
        } else {
            Position::new(0, position.offset())
        }
    }

    // What replicas do.

    pub(crate) fn lead(&mut self, node: usize, epoch: u8, appointed_with: InSync) {
        if self.state.leader_of(epoch).is_some() {
            self.broken(Violation::TwoLeaders { epoch });
        }
        let isr = if epoch == self.state.epoch {
            self.state.isr
        } else {
            appointed_with
        };
        self.end_role(node);
        let replica = &mut self.state.replicas[node];
        replica.role = Role::Leader;
        replica.epoch = epoch;
        replica.promised = replica.promised.max(epoch);
        replica.isr = isr;
        if replica.log.end().epoch() < epoch {
            replica.log.push(epoch_start(epoch));
        }
        let log = replica.log;
        self.check_leader(node, epoch, log);
        self.written(node);
    }

    pub(crate) fn append(&mut self, node: usize) {
        self.state.records += 1;
        let number = self.state.records;
        let replica = &mut self.state.replicas[node];
        replica.log.push(record(replica.epoch, number));
        self.written(node);
    }

    pub(crate) fn sync(&mut self, node: usize, entries: usize) {
        let replica = &mut self.state.replicas[node];
        replica.durable = entries as u8;
        replica.firm = entries as u8;
        self.durable_moved(node);
    }

    /// Something was appended.
    fn written(&mut self, node: usize) {
        let replica = &mut self.state.replicas[node];
        if !self.bounds.separate_sync {
            replica.durable = replica.log.len() as u8;
            replica.firm = replica.durable;
        }
        self.durable_moved(node);
    }

    fn durable_moved(&mut self, node: usize) {
        match self.state.replicas[node].role {
            Role::Leader => self.advance_watermark(node),
            Role::Follower => self.acknowledge(node),
            Role::Idle => {}
        }
    }

    pub(crate) fn follow(&mut self, node: usize, leader: usize) {
        self.end_role(node);
        let epoch = self.state.replicas[leader].epoch;
        let replica = &mut self.state.replicas[node];
        replica.role = Role::Follower;
        replica.epoch = epoch;
        replica.promised = replica.promised.max(epoch);
        self.ask(node);
        if self.bounds.sessions == Sessions::InOneStep {
            self.open_at_once(node);
        }
    }

    /// Sends a hello. The leader goes on with the old session until it takes it.
    pub(crate) fn ask(&mut self, node: usize) {
        let replica = &mut self.state.replicas[node];
        replica.phase = Phase::Asked;
        replica.hello = replica.durable;
    }

    pub(crate) fn open_at_once(&mut self, node: usize) {
        if let Some(leader) = self.state.leader_of(self.state.replicas[node].epoch) {
            self.take_hello(leader, node);
            self.take_answer(node);
        }
    }

    pub(crate) fn take_hello(&mut self, leader: usize, from: usize) {
        let incarnation = self.state.replicas[from].incarnation;
        let answer = self.answer(from);
        let keyed = self.holds(Rule::SessionIsKeyed);
        let its = &mut self.state.replicas[leader];
        its.session[from] = incarnation + 1;
        its.matched[from] = Position::START;
        its.acked[from] = Position::START;
        let replica = &mut self.state.replicas[from];
        replica.phase = Phase::Answered;
        if !keyed {
            let lowest = match replica.old_answer {
                0 => answer.0,
                old => answer.0.min(old - 1),
            };
            replica.old_answer = lowest + 1;
        }
    }

    /// Where a follower's log has to be cut. What the leader appended since it took the hello changes nothing about it.
    fn answer(&self, node: usize) -> Position {
        let replica = &self.state.replicas[node];
        let shown = replica.log.prefix(replica.hello as usize);
        shown.shared_with(self.state.reign(replica.epoch))
    }

    pub(crate) fn take_answer(&mut self, node: usize) {
        let to = self.answer(node);
        self.cut(node, to);
        self.begin_streaming(node);
    }

    pub(crate) fn take_old_answer(&mut self, node: usize) {
        let to = Position(self.state.replicas[node].old_answer - 1);
        self.cut(node, to);
        self.begin_streaming(node);
    }

    fn begin_streaming(&mut self, node: usize) {
        let replica = &mut self.state.replicas[node];
        replica.phase = Phase::Streaming;
        replica.hello = 0;
        self.acknowledge(node);
    }

    /// Cuts a log, durably.
    fn cut(&mut self, node: usize, to: Position) {
        let whole = self.holds(Rule::WholePositions);
        let replica = &mut self.state.replicas[node];
        let before = replica.log;
        let kept = before.entries_up_to(to, whole);
        let epoch = replica.epoch;
        // A tail that the hello did not show was never acknowledged in this epoch; it is cut unseen and sent again.
        let shown = match replica.phase {
            Phase::Answered => replica.hello,
            _ => replica.durable,
        };
        let shown = before.prefix(shown as usize).offset();
        replica.log = before.prefix(kept);
        replica.durable = replica.durable.min(kept as u8);
        replica.firm = replica.firm.min(kept as u8);
        for offset in replica.log.offset()..shown {
            let acknowledged = self.acknowledged(offset);
            if let (Some(cut), Some(entry)) = (before.record_at(offset), acknowledged)
                && number_of(cut) == number_of(entry)
                && epoch_of(entry) <= epoch
            {
                self.broken(Violation::AcknowledgedRecordCut {
                    node,
                    epoch,
                    record: number_of(entry),
                });
            }
        }
    }

    pub(crate) fn take_frame(&mut self, node: usize, entry: Entry) {
        let replica = &mut self.state.replicas[node];
        let falls = replica.log.end().epoch() > epoch_of(entry);
        replica.log.push(entry);
        if falls {
            self.broken(Violation::EpochsFall { node });
        }
        self.written(node);
    }

    /// Sends an ack of the current session, if there is someone to take it.
    fn acknowledge(&mut self, node: usize) {
        let replica = &self.state.replicas[node];
        if replica.phase != Phase::Streaming {
            return;
        }
        let entries = if self.holds(Rule::AckIsDurable) {
            replica.durable as usize
        } else {
            replica.log.len()
        };
        let position = self.key(replica.log.prefix(entries).end());
        let keyed = self.holds(Rule::AckIsKeyed);
        if let Some(leader) = self.state.leader_of(replica.epoch) {
            let leader = &mut self.state.replicas[leader];
            leader.acked[node] = leader.matched[node].max(position);
            if !keyed {
                leader.old_ack[node] = leader.old_ack[node].max(position);
            }
        }
    }

    /// Leaves a role. Frames that a leader has sent may still arrive.
    pub(crate) fn end_role(&mut self, node: usize) {
        let replica = self.state.replicas[node];
        if replica.role == Role::Leader {
            self.state.reigns[replica.epoch as usize - 1] = replica.log;
        }
        self.state.replicas[node] = Replica {
            log: replica.log,
            durable: replica.durable,
            firm: replica.firm,
            promised: replica.promised,
            incarnation: replica.incarnation,
            registered: replica.registered,
            lost_at: replica.lost_at,
            lossy: replica.lossy,
            old_ack: replica.old_ack,
            ..Replica::default()
        };
    }

    pub(crate) fn crash(&mut self, node: usize, kept: usize, lost: bool) {
        let held = (0..self.bounds.records).any(|offset| {
            let acknowledged = self.acknowledged(offset).map(number_of);
            let log = self.state.replicas[node].log;
            acknowledged.is_some() && log.record_at(offset).map(number_of) == acknowledged
        });
        if held {
            self.mark(Marks::CRASHED_AFTER_ACK);
        }
        self.state.crashes += 1;
        self.end_role(node);
        let survives = self.holds(Rule::PromiseSurvives);
        let syncs = self.holds(Rule::RecoverySyncs);
        let replica = &mut self.state.replicas[node];
        replica.log = replica.log.prefix(kept);
        replica.durable = kept as u8;
        replica.firm = if syncs {
            replica.durable
        } else {
            replica.firm.min(replica.durable)
        };
        replica.incarnation += 1;
        if !self.bounds.late_registration {
            replica.registered = replica.incarnation;
        }
        if !survives {
            replica.promised = 0;
        }
        if lost {
            replica.lossy = true;
            replica.lost_at = replica.incarnation;
            if self.bounds.loss == Loss::Directory {
                replica.promised = 0;
            }
        }
        replica.promised = replica.promised.max(replica.log.end().epoch());
    }

    // What a leader counts.

    pub(crate) fn take_ack(&mut self, leader: usize, from: usize, position: Position) {
        self.state.replicas[leader].matched[from] = position;
        let its = &self.state.replicas[leader];
        let replica = &self.state.replicas[from];
        if replica.phase == Phase::Streaming && replica.epoch == its.epoch {
            let covered = its.log.prefix(its.log.entries_up_to(position, true));
            if !replica
                .log
                .prefix(replica.durable as usize)
                .has_prefix(covered)
            {
                self.broken(Violation::AckAboveLog {
                    leader,
                    follower: from,
                });
            }
        }
        self.advance_watermark(leader);
    }

    pub(crate) fn take_old_ack(&mut self, leader: usize, from: usize) {
        let registered = self.state.replicas[from].registered;
        let end = self.key(self.state.replicas[leader].log.end());
        let its = &mut self.state.replicas[leader];
        // More than the leader has is an ack that no leader believes.
        if its.old_ack[from] <= end {
            its.matched[from] = its.old_ack[from];
            if its.session[from] == 0 {
                its.session[from] = registered + 1;
            }
        }
        self.advance_watermark(leader);
    }

    /// Which directory a process of a node has: 0 until one is lost, then 1.
    fn directory(&self, node: usize, incarnation: u8) -> u8 {
        let lost_at = self.state.replicas[node].lost_at;
        let lost = self.bounds.loss == Loss::Directory && lost_at != 0 && incarnation >= lost_at;
        u8::from(lost)
    }

    /// What a leader counts for a member of a set, by the acks of the incarnation that it has a session with.
    fn counted(&self, leader: usize, set: InSync, member: usize) -> Position {
        let its = &self.state.replicas[leader];
        if member == leader {
            return self.own_vote(leader);
        }
        let Some(incarnation) = its.session[member].checked_sub(1) else {
            return Position::START;
        };
        let named = set.incarnation(member);
        let same = match self.bounds.counting {
            Counting::ByIncarnation => incarnation == named,
            Counting::ByDirectory => {
                self.directory(member, incarnation) == self.directory(member, named)
            }
        };
        if same {
            its.matched[member]
        } else {
            Position::START
        }
    }

    fn own_vote(&self, leader: usize) -> Position {
        let its = &self.state.replicas[leader];
        let entries = if self.holds(Rule::OwnVoteIsDurable) {
            its.durable as usize
        } else {
            its.log.len()
        };
        self.key(its.log.prefix(entries).end())
    }

    /// The q-th highest position in a set. `None` while n < m.
    fn quorum_position(&self, leader: usize, set: InSync) -> Option<Position> {
        if set.len() < set.m() as usize {
            return None;
        }
        let mut positions = [Position::START; REPLICAS];
        for member in set.members() {
            positions[member] = self.counted(leader, set, member);
        }
        positions.sort_unstable_by(|one, other| other.cmp(one));
        let q = quorum::commit_quorum(set.len(), set.m() as usize);
        Some(positions[q - 1])
    }

    /// The position after the leader's epoch start.
    fn epoch_begun(&self, leader: usize) -> Position {
        let its = &self.state.replicas[leader];
        let index = start_index(its.log, its.epoch).unwrap_or_default();
        self.key(its.log.prefix(index + 1).end())
    }

    fn advance_watermark(&mut self, leader: usize) {
        let its = self.state.replicas[leader];
        let Some(mut position) = self.quorum_position(leader, its.isr) else {
            return;
        };
        if !its.pending.is_none() && self.holds(Rule::BothSets) {
            let Some(other) = self.quorum_position(leader, its.pending) else {
                return;
            };
            position = position.min(other);
        }
        let begun = position >= self.epoch_begun(leader);
        if (begun || !self.holds(Rule::EpochStartFirst)) && position > its.watermark {
            self.state.replicas[leader].watermark = position;
            self.commit(leader, position);
        }
    }

    fn commit(&mut self, leader: usize, watermark: Position) {
        let its = self.state.replicas[leader];
        for offset in 0..watermark.offset() {
            let Some(mine) = its.log.record_at(offset) else {
                continue;
            };
            match self.acknowledged(offset) {
                None => {
                    self.state.acknowledged[offset as usize] = record(its.epoch, number_of(mine));
                    if self.state.marks.0 & Marks::GREW_AGAIN != 0 {
                        self.mark(Marks::ACK_AFTER_GROWTH);
                    }
                }
                Some(first) if number_of(first) != number_of(mine) => {
                    self.broken(Violation::TwoRecordsAtOneOffset {
                        node: leader,
                        first: number_of(first),
                        second: number_of(mine),
                        offset,
                    });
                }
                Some(_) => {}
            }
        }
        for node in 0..self.bounds.replicas {
            let replica = self.state.replicas[node];
            if replica.role == Role::Leader && replica.epoch > its.epoch {
                self.check_leader(node, replica.epoch, replica.log);
            }
        }
        if self.state.epoch > its.epoch
            && let Some(node) = (self.state.leader as usize).checked_sub(1)
        {
            let replica = self.state.replicas[node];
            let durable = replica.log.prefix(replica.durable as usize);
            if !replica.lossy && replica.role != Role::Leader {
                self.check_leader(node, self.state.epoch, durable);
            }
        }
        if its.isr.members().any(|member| {
            its.session[member] > its.isr.incarnation(member) + 1
                && self.counted(leader, its.isr, member) >= watermark
        }) {
            self.mark(Marks::COUNTED_RESTARTED);
        }
        if self.bounds.rules.all_hold() {
            self.check_watermark(leader, watermark);
        }
    }

    /// Invariants 4 and 5, where a watermark has moved.
    fn check_watermark(&mut self, leader: usize, watermark: Position) {
        let its = self.state.replicas[leader];
        let true_one = (0..self.bounds.records)
            .filter(|&offset| {
                self.acknowledged(offset)
                    .is_some_and(|entry| epoch_of(entry) <= its.epoch)
            })
            .count() as u8;
        if watermark.offset() < true_one {
            self.broken(Violation::WatermarkFell {
                node: leader,
                watermark: watermark.offset(),
                true_one,
            });
        }
        let covered = its.log.prefix(its.log.entries_up_to(watermark, true));
        for set in [its.isr, its.pending] {
            if set.is_none() {
                continue;
            }
            // A member that lost its log after it acknowledged is known to have, and does not vote: it counts as a holder.
            let holders = set
                .members()
                .filter(|&member| {
                    let replica = &self.state.replicas[member];
                    let durable = replica.log.prefix(replica.durable as usize);
                    durable.has_prefix(covered) || replica.lossy
                })
                .count();
            let q = quorum::commit_quorum(set.len(), set.m() as usize);
            if holders < q {
                self.broken(Violation::WatermarkNotHeld {
                    node: leader,
                    watermark,
                    holders,
                    quorum: q,
                });
            }
        }
    }

    fn acknowledged(&self, offset: u8) -> Option<Entry> {
        Some(self.state.acknowledged[offset as usize]).filter(|&entry| entry != 0)
    }

    /// Invariants 1 and 2: a leader has every record that an earlier epoch has acknowledged.
    fn check_leader(&mut self, node: usize, epoch: u8, log: Log) {
        for offset in 0..self.bounds.records {
            if let Some(entry) = self.acknowledged(offset)
                && epoch_of(entry) < epoch
                && log.record_at(offset).map(number_of) != Some(number_of(entry))
            {
                self.broken(Violation::LeaderWithoutRecord {
                    node,
                    epoch,
                    record: number_of(entry),
                });
            }
        }
    }

    // In-sync sets.

    /// Whether a commit quorum of a new set holds what it must.
    pub(crate) fn supports(&self, leader: usize, set: InSync) -> bool {
        let its = &self.state.replicas[leader];
        let mut needed = Position::START;
        if self.holds(Rule::NewSetHoldsStart) {
            needed = needed.max(self.epoch_begun(leader));
        }
        if self.holds(Rule::NewSetHoldsWatermark) {
            needed = needed.max(its.watermark);
        }
        let holders = set
            .members()
            .filter(|&member| {
                if member == leader {
                    return self.own_vote(leader) >= needed;
                }
                let by_it = its.session[member] == set.incarnation(member) + 1;
                let counts = by_it || !self.holds(Rule::NewSetHoldsByIncarnation);
                // What needs no ack is held by everyone.
                needed == Position::START || (counts && its.matched[member] >= needed)
            })
            .count();
        holders >= quorum::commit_quorum(set.len(), set.m() as usize)
    }

    pub(crate) fn propose(&mut self, node: usize, isr: InSync) {
        self.state.changes += 1;
        let epoch = self.state.replicas[node].epoch;
        self.state.replicas[node].pending = isr;
        let fresh = epoch == self.state.epoch;
        if let Some(slot) = self
            .state
            .proposals
            .iter_mut()
            .find(|proposal| proposal.epoch == 0)
        {
            *slot = Proposal {
                epoch,
                proposer: node as u8 + 1,
                fresh,
                isr,
            };
        }
    }

    pub(crate) fn accept(&mut self, index: usize) {
        let proposal = self.state.proposals[index];
        let mut isr = proposal.isr;
        if !self.holds(Rule::CasIncarnations) {
            let present = isr
                .members()
                .map(|member| (member, self.state.replicas[member].registered));
            isr = InSync::new(present, isr.m());
        }
        let before = self.state.isr;
        if isr.len() < before.len() && self.acknowledged(0).is_some() {
            self.mark(Marks::SHRUNK);
        }
        if isr.len() > before.len() && self.state.marks.0 & Marks::SHRUNK != 0 {
            self.mark(Marks::GREW_AGAIN);
        }
        if isr.m() != before.m() {
            self.mark(Marks::M_CHANGED);
        }
        self.state.isr = isr;
        self.partition_epoch_rises();
        for member in isr.members() {
            let replica = &mut self.state.replicas[member];
            if replica.incarnation == isr.incarnation(member) {
                replica.lossy = false;
            }
        }
        self.decided(proposal, Outcome::Accepted);
    }

    /// Other copies of it may still be on their way.
    pub(crate) fn refuse(&mut self, index: usize) {
        let proposal = self.state.proposals[index];
        self.decided(proposal, Outcome::Refused);
    }

    fn decided(&mut self, proposal: Proposal, outcome: Outcome) {
        let proposer = &mut self.state.replicas[proposal.proposer as usize - 1];
        let undecided = match proposer.outcome {
            Outcome::Open => true,
            Outcome::Refused => outcome == Outcome::Accepted,
            Outcome::Accepted | Outcome::Withdrawn => false,
        };
        if proposer.role == Role::Leader
            && proposer.epoch == proposal.epoch
            && proposer.pending == proposal.isr
            && undecided
        {
            proposer.outcome = outcome;
        }
    }

    /// The controller accepts the set that it has already, whoever is registered by now.
    pub(crate) fn withdraw(&mut self, node: usize) {
        self.partition_epoch_rises();
        self.state.replicas[node].outcome = Outcome::Withdrawn;
    }

    fn partition_epoch_rises(&mut self) {
        for proposal in &mut self.state.proposals {
            proposal.fresh = false;
        }
    }

    pub(crate) fn hear_outcome(&mut self, node: usize) {
        let (epoch, isr) = (self.state.epoch, self.state.isr);
        let leader = &mut self.state.replicas[node];
        let late = leader.epoch < epoch;
        if leader.outcome == Outcome::Accepted {
            leader.isr = if late { leader.pending } else { isr };
        }
        let accepted = leader.outcome == Outcome::Accepted;
        leader.pending = InSync::NONE;
        leader.outcome = Outcome::Open;
        if late && accepted {
            self.mark(Marks::HEARD_LATE);
        }
        self.advance_watermark(node);
    }

    pub(crate) fn hear_state(&mut self, node: usize) {
        let isr = self.state.isr;
        let leader = &mut self.state.replicas[node];
        leader.isr = isr;
        self.advance_watermark(node);
    }

    pub(crate) fn give_up(&mut self, node: usize) {
        self.state.replicas[node].pending = InSync::NONE;
        self.advance_watermark(node);
    }

    pub(crate) fn set_min_insync(&mut self, m: u8) {
        self.state.changes += 1;
        self.state.isr = self.state.isr.with_m(m);
        self.partition_epoch_rises();
    }

    // Elections.

    pub(crate) fn start_election(&mut self) {
        self.state.epoch += 1;
        self.state.leader = 0;
        if self.holds(Rule::RepliesOfThisEpoch) {
            self.state.replies = Default::default();
        }
        self.partition_epoch_rises();
    }

    pub(crate) fn fence(&mut self, node: usize, reply: Reply) {
        let stops = match self.state.replicas[node].role {
            Role::Leader => self.holds(Rule::FenceStopsLeader),
            Role::Follower => self.holds(Rule::FenceStopsFollower),
            Role::Idle => true,
        };
        if stops {
            self.end_role(node);
        }
        let epoch = self.state.epoch;
        let replica = &mut self.state.replicas[node];
        replica.promised = replica.promised.max(epoch);
        self.state.replies[node] = reply;
    }

    /// Whether a reply may be counted.
    fn valid_reply(&self, node: usize) -> Option<Reply> {
        let reply = self.state.replies[node];
        let replica = &self.state.replicas[node];
        let member = self.state.isr.has(node) || !self.holds(Rule::RepliesOfMembers);
        let named = self.state.isr.incarnation(node);
        let same_directory = self.directory(node, reply.incarnation) == self.directory(node, named)
            || !self.holds(Rule::LossyDoesNotVote);
        let valid = reply.given
            && reply.eligible
            && member
            && same_directory
            && reply.incarnation == replica.registered;
        valid.then_some(reply)
    }

    /// Whether there is an election quorum of replies among which this node's is the highest. Any subset of the replies may
    /// have arrived, so it is enough that as many are no higher.
    pub(crate) fn may_win(&self, node: usize) -> bool {
        let Some(best) = self.valid_reply(node) else {
            return false;
        };
        let no_higher = |reply: &Reply| {
            if !self.holds(Rule::HighestWins) {
                true
            } else if self.holds(Rule::HighestByPair) {
                reply.end <= best.end
            } else {
                reply.end.offset() <= best.end.offset()
            }
        };
        let isr = self.state.isr;
        let quorum = if self.holds(Rule::ElectionQuorum) {
            quorum::election_quorum(isr.len(), isr.m() as usize)
        } else {
            1
        };
        let replies = (0..self.bounds.replicas).filter_map(|other| self.valid_reply(other));
        replies.filter(no_higher).count() >= quorum
    }

    pub(crate) fn appoint(&mut self, node: usize) {
        let incarnation = self.state.replies[node].incarnation;
        self.state.leader = node as u8 + 1;
        self.state.appointed[self.state.epoch as usize - 1] = Appointment {
            node: node as u8 + 1,
            incarnation,
            isr: self.state.isr,
        };
        self.partition_epoch_rises();
        let replica = self.state.replicas[node];
        // One that has restarted since never acts on it.
        if replica.incarnation == incarnation {
            let durable = replica.log.prefix(replica.durable as usize);
            self.check_leader(node, self.state.epoch, durable);
        }
    }
}
