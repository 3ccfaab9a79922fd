//! The in-sync set as a leader counts by it, and the change of it that is under way.

use std::time::Duration;

use crate::types::{
    Appointment, IsrChange, LogPosition, MonotonicTime, NodeId, PartitionEpoch, PartitionState,
    quorum,
};

/// The first pause before a change is proposed again whose outcome is not known, or another one after a refusal. It doubles
/// up to [`LAST_RETRY`]; what submits the proposals adds jitter.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// What is known of a proposed change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsrOutcome {
    /// It was committed. The state that shows it is on its way.
    Accepted,
    /// It was committed as a refusal. An earlier attempt of the same change may still be under way, so this alone settles
    /// nothing.
    Refused,
    /// Anything else. It may be committed later: a timeout is not an outcome.
    Unknown,
}

/// A set of replicas whose disks count, with its `m`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedSet {
    /// The leader among them. No node twice.
    pub members: Vec<Appointment>,
    /// `m`, at least 1.
    pub min_insync: usize,
}

impl CountedSet {
    /// The commit rule: the q-th largest durable position over the set, where `held` says what a member holds. Positions are
    /// compared as (epoch, offset): a follower's log is a prefix of the leader's, so their order is the order of the log.
    pub(super) fn quorum_position(
        &self,
        held: impl Fn(&Appointment) -> LogPosition,
    ) -> Option<LogPosition> {
        let quorum = quorum::commit_quorum(self.members.len(), self.min_insync);
        let mut positions: Vec<LogPosition> = self.members.iter().map(held).collect();
        positions.sort_unstable_by(|a, b| b.cmp(a));
        positions.get(quorum.checked_sub(1)?).copied()
    }

    /// n ≥ m: without as many members nothing is committed.
    pub(super) fn is_large_enough(&self) -> bool {
        self.members.len() >= self.min_insync
    }

    fn heard(&self, is_heard: &impl Fn(NodeId) -> bool) -> usize {
        let heard = |member: &&Appointment| is_heard(member.node);
        self.members.iter().filter(heard).count()
    }
}

/// The committed set, and the proposed one until it is settled.
///
/// From the moment at which a change is proposed until the controller's state says what became of it, either set may be the
/// one by which the controller elects. So whatever is committed meanwhile has a commit quorum in both (invariants 5 and 6).
#[derive(Debug)]
pub(super) struct InSync {
    /// As the controller last committed it.
    committed: CountedSet,
    /// The state that `committed` is of, and that a proposal names.
    partition_epoch: PartitionEpoch,
    /// At most one: a second one could not be told from the first in what becomes of it.
    proposal: Option<Proposal>,
    /// Before the next attempt at the same.
    pause: Duration,
    /// No other change is proposed before then: the last one was refused, and the next may be for the same reason.
    not_before: MonotonicTime,
    /// After the next refusal. Grows until a change is accepted.
    refusal_pause: Duration,
}

#[derive(Debug)]
struct Proposal {
    /// The proposed set. It counts until a state with another partition epoch comes, whatever is heard of the attempts.
    set: CountedSet,
    /// What is, or will be, asked for: the change itself or, once that was refused, the committed set again, which changes
    /// nothing but the partition epoch and so rules out that any attempt is still to come.
    attempt: IsrChange,
    /// When `attempt` is made (again), if nothing has settled the matter by then. `None` while it is under way.
    retry_at: Option<MonotonicTime>,
}

impl InSync {
    pub(super) fn new(state: &PartitionState) -> InSync {
        InSync {
            committed: counted_set(state),
            partition_epoch: state.partition_epoch,
            proposal: None,
            pause: FIRST_RETRY,
            not_before: MonotonicTime::ZERO,
            refusal_pause: FIRST_RETRY,
        }
    }

    /// The controller has committed another state of the same leader epoch. A proposal on an earlier state is settled by it:
    /// it either is this state, or can never be committed any more.
    pub(super) fn handle_state(&mut self, state: &PartitionState) {
        if state.partition_epoch == self.partition_epoch {
            return;
        }
        let committed = counted_set(state);
        if committed != self.committed {
            self.committed = committed;
            self.not_before = MonotonicTime::ZERO;
            self.refusal_pause = FIRST_RETRY;
        }
        self.partition_epoch = state.partition_epoch;
        self.proposal = None;
        self.pause = FIRST_RETRY;
    }

    pub(super) fn committed(&self) -> &CountedSet {
        &self.committed
    }

    pub(super) fn partition_epoch(&self) -> PartitionEpoch {
        self.partition_epoch
    }

    /// The members of the set that is proposed.
    pub(super) fn proposed(&self) -> Option<&[Appointment]> {
        self.proposal
            .as_ref()
            .map(|proposal| proposal.set.members.as_slice())
    }

    /// Every set that a commit must satisfy.
    pub(super) fn sets(&self) -> impl Iterator<Item = &CountedSet> {
        let proposed = self.proposal.as_ref().map(|proposal| &proposal.set);
        std::iter::once(&self.committed).chain(proposed)
    }

    /// The position up to which a commit quorum of every set holds the log; `None` while one of them is too small.
    pub(super) fn quorum_position(
        &self,
        held: impl Fn(&Appointment) -> LogPosition,
    ) -> Option<LogPosition> {
        if !self.is_large_enough() {
            return None;
        }
        self.sets()
            .filter_map(|set| set.quorum_position(&held))
            .min()
    }

    pub(super) fn is_large_enough(&self) -> bool {
        self.sets().all(CountedSet::is_large_enough)
    }

    /// Whether as many members as `acks=all` needs are heard, in every set.
    pub(super) fn hears_enough(&self, is_heard: impl Fn(NodeId) -> bool) -> bool {
        self.sets()
            .all(|set| set.heard(&is_heard) >= set.min_insync)
    }

    /// Whether another change may be proposed now.
    pub(super) fn may_propose(&self, now: MonotonicTime) -> bool {
        self.proposal.is_none() && now >= self.not_before
    }

    pub(super) fn propose(&mut self, change: IsrChange) {
        self.proposal = Some(Proposal {
            set: CountedSet {
                members: change.new_isr.clone(),
                min_insync: change.min_insync as usize,
            },
            attempt: change,
            retry_at: None,
        });
    }

    /// The outstanding change, if it is time for another attempt.
    pub(super) fn take_retry(&mut self, now: MonotonicTime) -> Option<IsrChange> {
        let proposal = self.proposal.as_mut()?;
        if proposal.retry_at? > now {
            return None;
        }
        proposal.retry_at = None;
        Some(proposal.attempt.clone())
    }

    /// An attempt has ended. The end of any but the latest says nothing.
    pub(super) fn handle_outcome(
        &mut self,
        now: MonotonicTime,
        attempt: &IsrChange,
        outcome: IsrOutcome,
    ) {
        let Some(proposal) = self.proposal.as_mut() else {
            return;
        };
        if proposal.attempt != *attempt {
            return;
        }
        proposal.retry_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LAST_RETRY);
        match outcome {
            // The state will come; it is asked for again should it fail to.
            IsrOutcome::Accepted | IsrOutcome::Unknown => {}
            IsrOutcome::Refused => {
                self.not_before = now + self.refusal_pause;
                self.refusal_pause = (self.refusal_pause * 2).min(LAST_RETRY);
                proposal.attempt.new_isr = self.committed.members.clone();
                proposal.attempt.min_insync =
                    u32::try_from(self.committed.min_insync).unwrap_or(u32::MAX);
            }
        }
    }
}

fn counted_set(state: &PartitionState) -> CountedSet {
    CountedSet {
        members: state.isr.clone(),
        min_insync: state.min_insync as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        DirectoryId, Incarnation, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition,
    };

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::ZERO + Duration::from_millis(millis)
    }

    fn member(id: u32) -> Appointment {
        Appointment {
            node: NodeId::new(id).unwrap(),
            directory: DirectoryId::from_random_bits(id.into()),
            incarnation: Incarnation::from_random_bits(id.into()),
        }
    }

    fn members(ids: &[u32]) -> Vec<Appointment> {
        ids.iter().map(|&id| member(id)).collect()
    }

    fn state(isr: &[u32], min_insync: u32, partition_epoch: u32) -> PartitionState {
        PartitionState {
            replicas: isr.iter().map(|&id| member(id).node).collect(),
            isr: members(isr),
            leader: Some(member(1)),
            leader_epoch: LeaderEpoch::new(1).unwrap(),
            partition_epoch: PartitionEpoch(partition_epoch),
            min_insync,
            target_replicas: Vec::new(),
            forced_epoch: LeaderEpoch::NONE,
        }
    }

    fn change(isr: &[u32], min_insync: u32) -> IsrChange {
        IsrChange {
            partition: TopicPartition {
                topic: TopicId::from_random_bits(1),
                partition: PartitionIndex(0),
            },
            leader_epoch: LeaderEpoch::new(1).unwrap(),
            partition_epoch: PartitionEpoch(1),
            new_isr: members(isr),
            min_insync,
        }
    }

    /// Node `id` holds ten times its id.
    fn held(member: &Appointment) -> LogPosition {
        let offset = Offset::new(10 * u64::from(member.node.get())).unwrap();
        LogPosition::new(offset, LeaderEpoch::new(1).unwrap())
    }

    fn committed(in_sync: &InSync) -> Option<u64> {
        in_sync
            .quorum_position(held)
            .map(|position| position.offset.get())
    }

    #[test]
    fn until_a_change_is_settled_both_sets_must_hold_a_record() {
        let mut in_sync = InSync::new(&state(&[1, 2, 3], 2, 1));
        assert_eq!(committed(&in_sync), Some(20));
        in_sync.propose(change(&[1, 2], 2));
        assert_eq!(committed(&in_sync), Some(10), "node 1 of the smaller set");
        for outcome in [IsrOutcome::Unknown, IsrOutcome::Accepted] {
            in_sync.handle_outcome(at(0), &change(&[1, 2], 2), outcome);
            assert_eq!(committed(&in_sync), Some(10), "{outcome:?} settles nothing");
        }
        in_sync.handle_state(&state(&[1, 2, 3], 2, 2));
        assert_eq!(committed(&in_sync), Some(20));
    }

    #[test]
    fn a_set_below_m_commits_nothing_even_while_it_is_only_proposed() {
        let mut in_sync = InSync::new(&state(&[1, 2], 2, 1));
        in_sync.propose(change(&[1, 2], 3));
        assert_eq!(committed(&in_sync), None);
        assert!(!in_sync.hears_enough(|_| true));
        in_sync.handle_state(&state(&[1, 2], 2, 2));
        assert!(in_sync.hears_enough(|_| true));
        assert!(!in_sync.hears_enough(|node| node.get() == 1));
    }

    #[test]
    fn an_unknown_outcome_is_asked_for_again_with_growing_pauses() {
        let mut in_sync = InSync::new(&state(&[1, 2, 3], 2, 1));
        let proposed = change(&[1, 2], 2);
        in_sync.propose(proposed.clone());
        assert_eq!(in_sync.take_retry(at(9999)), None, "it is under way");
        in_sync.handle_outcome(at(0), &proposed, IsrOutcome::Unknown);
        assert_eq!(in_sync.take_retry(at(99)), None);
        assert_eq!(in_sync.take_retry(at(100)), Some(proposed.clone()));
        in_sync.handle_outcome(at(100), &proposed, IsrOutcome::Unknown);
        assert_eq!(in_sync.take_retry(at(299)), None);
        assert_eq!(in_sync.take_retry(at(300)), Some(proposed));
    }

    #[test]
    fn a_refused_change_is_settled_by_proposing_the_present_set_again() {
        let mut in_sync = InSync::new(&state(&[1, 2, 3], 2, 1));
        in_sync.propose(change(&[1, 2], 2));
        in_sync.handle_outcome(at(0), &change(&[1, 2], 2), IsrOutcome::Refused);
        assert_eq!(
            committed(&in_sync),
            Some(10),
            "an earlier attempt may still be under way"
        );
        assert_eq!(in_sync.take_retry(at(100)), Some(change(&[1, 2, 3], 2)));
        assert_eq!(in_sync.proposed(), Some(members(&[1, 2]).as_slice()));
        in_sync.handle_outcome(at(100), &change(&[1, 2, 3], 2), IsrOutcome::Accepted);
        in_sync.handle_state(&state(&[1, 2, 3], 2, 2));
        assert_eq!(in_sync.proposed(), None);
    }

    #[test]
    fn after_refusals_the_next_change_waits_longer_and_longer() {
        let mut in_sync = InSync::new(&state(&[1, 2, 3], 2, 1));
        let refuse = |in_sync: &mut InSync, now, partition_epoch| {
            let mut refused = change(&[1, 2], 2);
            refused.partition_epoch = PartitionEpoch(partition_epoch);
            assert!(in_sync.may_propose(now));
            in_sync.propose(refused.clone());
            in_sync.handle_outcome(now, &refused, IsrOutcome::Refused);
            // The present set again settles it.
            in_sync.handle_state(&state(&[1, 2, 3], 2, partition_epoch + 1));
        };
        refuse(&mut in_sync, at(0), 1);
        assert!(!in_sync.may_propose(at(99)));
        refuse(&mut in_sync, at(100), 2);
        assert!(!in_sync.may_propose(at(299)));
        refuse(&mut in_sync, at(300), 3);
        assert!(!in_sync.may_propose(at(699)));
        in_sync.handle_state(&state(&[1, 2], 2, 5));
        assert!(in_sync.may_propose(at(301)), "something was accepted");
    }
}
