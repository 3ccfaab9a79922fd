//! Which in-sync set a leader would rather have.
//!
//! These rules are about availability: who is in the set decides whom commits wait for and who may lead next. That a change
//! is *safe* is not decided here; it is proposed only once a commit quorum of the new set holds the epoch start and
//! everything committed, and until it is settled both sets count.

use std::time::Duration;

use super::deliveries::Deliveries;
use super::in_sync::CountedSet;
use crate::types::{Appointment, MonotonicTime, NodeId};

/// How long commits may wait for a member that is not caught up before it leaves: max(this, 12 round trips).
const MIN_PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_ROUND_TRIPS: u32 = 12;
/// One that is heard, and that acknowledges what it is sent, has this many times as long as that takes, so that a queue that it
/// works off is no reason to leave; up to [`REPLICA_LAG_TIME_MAX`].
const PATIENCE_DELIVERIES: u32 = 3;
/// How long a member for which nothing waits may stay behind. Kafka's `replica.lag.time.max.ms`, by its default.
const REPLICA_LAG_TIME_MAX: Duration = Duration::from_secs(10);

/// What is known of a follower when the set is decided on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) node: NodeId,
    /// The replica that has a session open.
    pub(super) session: Option<Appointment>,
    /// Whether it is a member that lost what it acknowledged.
    pub(super) log_lost: bool,
    /// When it last held everything; `None` if it did not since the reign began.
    pub(super) caught_up_at: Option<MonotonicTime>,
    /// The smoothed round trip to it; zero while it is not known.
    pub(super) rtt: Duration,
    /// When it was last heard, if that is within its suspicion time.
    pub(super) heard_at: Option<MonotonicTime>,
    /// How long it takes until what it is sent is acknowledged, in any partition.
    pub(super) deliveries: Option<Deliveries>,
}

impl Standing {
    fn patience(&self) -> Duration {
        MIN_PATIENCE.max(PATIENCE_ROUND_TRIPS * self.rtt)
    }

    /// How long a member may keep commits waiting. One that is silent, or acknowledges nothing of what it is sent, has its
    /// patience and no more.
    fn patience_with_a_member(&self, now: MonotonicTime) -> Duration {
        let patience = self.patience();
        let is_heard = self
            .heard_at
            .is_some_and(|heard_at| now.since(heard_at) <= patience);
        match self.deliveries {
            // In a queue, one delivery comes at most as long after the other as each of them takes.
            Some(deliveries)
                if is_heard
                    && self.session.is_some()
                    && now.since(deliveries.at) <= patience.max(deliveries.longest()) =>
            {
                let delivered = PATIENCE_DELIVERIES * deliveries.longest();
                patience.max(delivered.min(REPLICA_LAG_TIME_MAX))
            }
            _ => patience,
        }
    }

    /// The replica as it would be admitted, if it keeps up.
    fn candidate(&self, now: MonotonicTime) -> Option<Appointment> {
        let caught_up_at = self.caught_up_at?;
        self.session
            .filter(|_| now.since(caught_up_at) <= self.patience())
    }

    /// Whether it keeps others waiting, lost its log, or has been away for long, having been `behind` for that time. `stalled`: for how long
    /// commits have waited.
    fn should_leave(&self, now: MonotonicTime, behind: Duration, stalled: Duration) -> bool {
        let patience = self.patience_with_a_member(now);
        self.log_lost
            || behind > REPLICA_LAG_TIME_MAX.max(patience)
            || (behind > patience && stalled > patience)
    }
}

/// Everything that the decision depends on.
#[derive(Debug)]
pub(super) struct Situation<'a> {
    pub(super) now: MonotonicTime,
    /// When the reign began.
    pub(super) since: MonotonicTime,
    /// The leader, as it was appointed.
    pub(super) me: Appointment,
    pub(super) committed: &'a CountedSet,
    /// Of every replica but the leader.
    pub(super) followers: Vec<Standing>,
    /// For how long nothing was committed although something could have been.
    pub(super) stalled: Duration,
    /// `min.insync.replicas` as it is configured.
    pub(super) min_insync: usize,
    /// The replicas that a reassignment is to end with; empty when there is none.
    pub(super) target: &'a [NodeId],
}

impl Situation<'_> {
    /// The sets that would be better than the committed one, best first; none if that is as good as any.
    pub(super) fn better_sets(&self) -> Vec<CountedSet> {
        let admitted = self.admitted();
        let reduced = self.reduced(admitted.clone());
        let mut better: Vec<CountedSet> = Vec::new();
        for members in [reduced, admitted, self.committed.members.clone()] {
            for min_insync in [self.min_insync, self.committed.min_insync] {
                let set = CountedSet {
                    members: members.clone(),
                    min_insync,
                };
                if set != *self.committed && !better.contains(&set) {
                    better.push(set);
                }
            }
        }
        better
    }

    /// The committed members, those that have restarted under their present incarnation, and the replicas that have caught
    /// up.
    fn admitted(&self) -> Vec<Appointment> {
        let candidate = |node| {
            if node == self.me.node {
                return Some(self.me);
            }
            self.followers
                .iter()
                .find(|follower| follower.node == node)
                .and_then(|follower| follower.candidate(self.now))
        };
        let mut members: Vec<Appointment> = self
            .committed
            .members
            .iter()
            .map(|&member| candidate(member.node).unwrap_or(member))
            .collect();
        for follower in &self.followers {
            if let Some(new) = follower.candidate(self.now)
                && members.iter().all(|member| member.node != new.node)
            {
                members.push(new);
            }
        }
        members
    }

    /// Without those that should leave, the one that was caught up longest ago first. No fewer than `m` stay: a smaller set
    /// could commit nothing either, and fewer replicas could lead next.
    fn reduced(&self, mut members: Vec<Appointment>) -> Vec<Appointment> {
        let fewest = self.min_insync.max(self.committed.min_insync).max(1);
        let behind =
            |follower: &Standing| self.now.since(follower.caught_up_at.unwrap_or(self.since));
        let mut leaving: Vec<&Standing> = self
            .followers
            .iter()
            .filter(|follower| follower.should_leave(self.now, behind(follower), self.stalled))
            .collect();
        leaving.sort_by_key(|follower| std::cmp::Reverse(behind(follower)));
        for follower in leaving {
            if members.len() > fewest {
                members.retain(|member| member.node != follower.node);
            }
        }
        let is_member = |node| members.iter().any(|member| member.node == node);
        if self.target.contains(&self.me.node) && self.target.iter().all(|&node| is_member(node)) {
            members.retain(|member| self.target.contains(&member.node));
        }
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DirectoryId, Incarnation};

    const NOW: u64 = 60_000;

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::ZERO + Duration::from_millis(millis)
    }

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn member(id: u32, incarnation: u64) -> Appointment {
        Appointment {
            node: node(id),
            directory: DirectoryId::from_random_bits(id.into()),
            incarnation: Incarnation::from_random_bits(incarnation),
        }
    }

    /// A follower in its first incarnation that was caught up `behind_ms` ago.
    fn standing(id: u32, behind_ms: u64) -> Standing {
        Standing {
            node: node(id),
            session: Some(member(id, 1)),
            log_lost: false,
            caught_up_at: Some(at(NOW - behind_ms)),
            rtt: Duration::ZERO,
            heard_at: None,
            deliveries: None,
        }
    }

    fn set(ids: &[u32], min_insync: usize) -> CountedSet {
        CountedSet {
            members: ids.iter().map(|&id| member(id, 1)).collect(),
            min_insync,
        }
    }

    fn situation(committed: &CountedSet, followers: Vec<Standing>) -> Situation<'_> {
        Situation {
            now: at(NOW),
            since: MonotonicTime::ZERO,
            me: member(1, 1),
            committed,
            followers,
            stalled: Duration::ZERO,
            min_insync: committed.min_insync,
            target: &[],
        }
    }

    #[test]
    fn a_set_in_which_all_keep_up_stays_as_it_is() {
        let committed = set(&[1, 2, 3], 2);
        let situation = situation(&committed, vec![standing(2, 0), standing(3, 400)]);
        assert_eq!(situation.better_sets(), []);
    }

    #[test]
    fn a_member_that_lost_its_log_leaves_at_once_unless_too_few_would_stay() {
        let mut committed = set(&[1, 2, 3], 2);
        let lost = Standing {
            log_lost: true,
            ..standing(3, 0)
        };
        let followers = vec![standing(2, 0), lost];
        assert_eq!(
            situation(&committed, followers.clone()).better_sets(),
            [set(&[1, 2], 2)]
        );
        committed.min_insync = 3;
        assert_eq!(situation(&committed, followers).better_sets(), []);
    }

    #[test]
    fn a_member_leaves_when_commits_wait_for_it() {
        let committed = set(&[1, 2], 1);
        let mut situation = situation(&committed, vec![standing(2, 600)]);
        assert_eq!(situation.better_sets(), [], "nothing waits for it");
        situation.stalled = Duration::from_millis(600);
        assert_eq!(situation.better_sets(), [set(&[1], 1)]);
        // On a link with a long round trip that is no time at all.
        situation.followers[0].rtt = Duration::from_millis(100);
        assert_eq!(situation.better_sets(), []);
    }

    /// A member of two of which commits have waited for as long as it is behind. It was heard and has acknowledged something so
    /// many ms ago, which had been under way for `waited_ms`.
    fn leaves(behind_ms: u64, heard_ms: u64, delivered_ms: u64, waited_ms: u64) -> bool {
        let committed = set(&[1, 2], 1);
        let follower = Standing {
            heard_at: Some(at(NOW - heard_ms)),
            deliveries: Some(Deliveries::first(
                at(NOW - delivered_ms),
                Duration::from_millis(waited_ms),
            )),
            ..standing(2, behind_ms)
        };
        let mut situation = situation(&committed, vec![follower]);
        situation.stalled = Duration::from_millis(behind_ms);
        !situation.better_sets().is_empty()
    }

    #[test]
    fn a_member_that_works_off_its_queue_stays_for_three_times_as_long_as_that_takes() {
        assert!(!leaves(2000, 10, 200, 1000));
        assert!(!leaves(3000, 10, 200, 1000));
        assert!(leaves(3001, 10, 200, 1000));
        // No longer than ten seconds, however slow it is.
        assert!(!leaves(9_999, 10, 200, 30_000));
        assert!(leaves(10_001, 10, 200, 30_000));
        // Short deliveries change nothing.
        assert!(!leaves(500, 10, 20, 100));
        assert!(leaves(501, 10, 20, 100));
    }

    #[test]
    fn a_member_that_is_heard_and_acknowledges_nothing_more_leaves() {
        assert!(!leaves(2000, 10, 999, 1000));
        assert!(leaves(2000, 10, 1001, 1000));
        assert!(leaves(501, 10, 501, 100));
    }

    #[test]
    fn a_member_that_falls_silent_leaves_as_soon_as_without_a_queue() {
        assert!(leaves(501, 501, 501, 3000));
        // Not heard within its suspicion time, which is the shorter one.
        let committed = set(&[1, 2], 1);
        let silent = Standing {
            heard_at: None,
            deliveries: Some(Deliveries::first(at(NOW - 301), Duration::from_secs(3))),
            ..standing(2, 501)
        };
        let mut situation = situation(&committed, vec![silent]);
        situation.stalled = Duration::from_millis(501);
        assert_eq!(situation.better_sets(), [set(&[1], 1)]);
        // One without a session has nobody who could work anything off.
        situation.followers[0].heard_at = Some(at(NOW));
        assert_eq!(situation.better_sets(), []);
        situation.followers[0].session = None;
        assert_eq!(situation.better_sets(), [set(&[1], 1)]);
    }

    #[test]
    fn a_queue_lets_nobody_in() {
        let committed = set(&[1, 2], 2);
        let queued = Standing {
            heard_at: Some(at(NOW)),
            deliveries: Some(Deliveries::first(at(NOW), Duration::from_secs(3))),
            ..standing(3, 501)
        };
        let situation = situation(&committed, vec![standing(2, 0), queued]);
        assert_eq!(situation.better_sets(), []);
    }

    #[test]
    fn a_member_that_commits_do_not_wait_for_has_ten_seconds() {
        let committed = set(&[1, 2, 3], 2);
        let sets = |behind| {
            let followers = vec![standing(2, 0), standing(3, behind)];
            situation(&committed, followers).better_sets()
        };
        assert_eq!(sets(9_999), []);
        assert_eq!(sets(10_001), [set(&[1, 2], 2)]);
    }

    #[test]
    fn no_fewer_than_m_stay_and_the_longest_behind_goes_first() {
        let committed = set(&[1, 2, 3], 2);
        let followers = vec![standing(2, 20_000), standing(3, 30_000)];
        assert_eq!(
            situation(&committed, followers).better_sets(),
            [set(&[1, 2], 2)]
        );
        let committed = set(&[1, 2], 2);
        let followers = vec![standing(2, 30_000)];
        assert_eq!(situation(&committed, followers).better_sets(), []);
    }

    #[test]
    fn a_member_that_never_came_has_its_time_from_the_beginning_of_the_reign() {
        let committed = set(&[1, 2], 1);
        let never = Standing {
            session: None,
            log_lost: false,
            caught_up_at: None,
            ..standing(2, 0)
        };
        let mut situation = situation(&committed, vec![never]);
        situation.stalled = Duration::from_secs(1);
        situation.since = at(NOW - 400);
        assert_eq!(situation.better_sets(), []);
        situation.since = at(NOW - 600);
        assert_eq!(situation.better_sets(), [set(&[1], 1)]);
    }

    #[test]
    fn a_replica_joins_when_it_has_caught_up() {
        let committed = set(&[1, 2], 2);
        let sets = |follower| {
            let followers = vec![standing(2, 0), follower];
            situation(&committed, followers).better_sets()
        };
        assert_eq!(sets(standing(3, 501)), []);
        assert_eq!(sets(standing(3, 100)), [set(&[1, 2, 3], 2)]);
        let gone = Standing {
            session: None,
            log_lost: false,
            ..standing(3, 100)
        };
        assert_eq!(sets(gone), []);
        let not_yet = Standing {
            caught_up_at: None,
            ..standing(3, 100)
        };
        assert_eq!(sets(not_yet), []);
    }

    #[test]
    fn a_member_that_has_restarted_is_named_anew_once_it_has_caught_up() {
        let committed = set(&[1, 2], 2);
        let restarted = Standing {
            session: Some(member(2, 7)),
            log_lost: false,
            ..standing(2, 0)
        };
        let better = situation(&committed, vec![restarted]).better_sets();
        assert_eq!(better[0].members, [member(1, 1), member(2, 7)]);
        let behind = Standing {
            caught_up_at: Some(at(NOW - 5000)),
            ..restarted
        };
        assert_eq!(situation(&committed, vec![behind]).better_sets(), []);
    }

    #[test]
    fn a_leader_that_restarted_before_its_reign_names_itself_anew() {
        let committed = set(&[1, 2], 2);
        let mut situation = situation(&committed, vec![standing(2, 0)]);
        situation.me = member(1, 9);
        let better = situation.better_sets();
        assert_eq!(better[0].members, [member(1, 9), member(2, 1)]);
    }

    #[test]
    fn a_configured_m_is_proposed_with_the_set_or_alone() {
        let committed = set(&[1, 2], 1);
        let mut situation = situation(&committed, vec![standing(2, 0), standing(3, 0)]);
        situation.min_insync = 2;
        assert_eq!(
            situation.better_sets(),
            [set(&[1, 2, 3], 2), set(&[1, 2, 3], 1), set(&[1, 2], 2)]
        );
    }

    #[test]
    fn a_reassignment_drops_the_others_once_all_its_replicas_are_members() {
        let committed = set(&[1, 2, 3], 2);
        let followers = || vec![standing(2, 0), standing(3, 0), standing(4, 0)];
        let target = [node(1), node(3), node(4)];
        let mut moving = situation(&committed, followers());
        moving.target = &target;
        assert_eq!(moving.better_sets()[0], set(&[1, 3, 4], 2));
        moving.followers[2].caught_up_at = Some(at(NOW - 5000));
        assert_eq!(moving.better_sets(), [], "node 4 is still to catch up");
        // A leader that is to go hands over first.
        let target = [node(2), node(3)];
        let mut leaving = situation(&committed, vec![standing(2, 0), standing(3, 0)]);
        leaving.target = &target;
        assert_eq!(leaving.better_sets(), []);
    }
}
