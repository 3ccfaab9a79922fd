//! Produce requests that wait for the log to become durable or committed up to their last record.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{MonotonicTime, Offset};

/// Names one waiting produce request. The caller gives it and gets it back; it must not name two at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProduceTicket(pub u64);

/// Waiting produces of one partition, completed by a mark that only rises.
///
/// A wait is for an *offset at or above*, never for an exact one: acks are cumulative, so the mark passes many waits at
/// once and lands between their ends. Each wait has a deadline, and each one is taken out exactly once: by the mark, by its
/// deadline, or when all are given up.
#[derive(Debug, Default)]
pub struct AckTracker {
    /// By (end offset, ticket): the mark completes a prefix.
    waiting: BTreeMap<(Offset, ProduceTicket), Wait>,
    /// The same waits by deadline. Always the same set as `waiting`.
    deadlines: BTreeSet<(MonotonicTime, Offset, ProduceTicket)>,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    base: Offset,
    deadline: MonotonicTime,
}

impl AckTracker {
    /// The most waits of one partition. A produce beyond it is refused before the append.
    pub const MAX_WAITS: usize = 65_536;

    pub fn new() -> AckTracker {
        AckTracker::default()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.waiting.len() >= Self::MAX_WAITS
    }

    /// Waits until the mark reaches `end`, the offset after the request's last record. The caller has seen to it that the
    /// mark is below `end` and that the tracker is not full.
    pub fn wait(
        &mut self,
        ticket: ProduceTicket,
        base: Offset,
        end: Offset,
        deadline: MonotonicTime,
    ) {
        self.waiting.insert((end, ticket), Wait { base, deadline });
        self.deadlines.insert((deadline, end, ticket));
    }

    /// The mark has risen to `mark`: hands over every wait for an end at or below it, in offset order, with its base offset.
    pub fn advance(&mut self, mark: Offset, mut done: impl FnMut(ProduceTicket, Offset)) {
        while let Some(entry) = self.waiting.first_entry() {
            let (end, ticket) = *entry.key();
            if end > mark {
                break;
            }
            let wait = entry.remove();
            self.deadlines.remove(&(wait.deadline, end, ticket));
            done(ticket, wait.base);
        }
    }

    /// Hands over every wait whose deadline is at or before `now`.
    pub fn expire(&mut self, now: MonotonicTime, mut expired: impl FnMut(ProduceTicket)) {
        while let Some(&(deadline, end, ticket)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            self.waiting.remove(&(end, ticket));
            expired(ticket);
        }
    }

    /// Hands over every wait: nobody will move the mark any more.
    pub fn give_up(&mut self, mut given_up: impl FnMut(ProduceTicket)) {
        self.deadlines.clear();
        for (_, ticket) in std::mem::take(&mut self.waiting).into_keys() {
            given_up(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    fn at(micros: u64) -> MonotonicTime {
        MonotonicTime::from_micros(micros)
    }

    fn tracker(ends: &[u64]) -> AckTracker {
        let mut tracker = AckTracker::new();
        for (i, &end) in ends.iter().enumerate() {
            let ticket = ProduceTicket(i as u64);
            tracker.wait(ticket, offset(end - 1), offset(end), at(100 + i as u64));
        }
        tracker
    }

    fn advance(tracker: &mut AckTracker, mark: u64) -> Vec<u64> {
        let mut done = Vec::new();
        tracker.advance(offset(mark), |ticket, base| {
            assert!(base < offset(mark));
            done.push(ticket.0);
        });
        done
    }

    #[test]
    fn one_cumulative_mark_completes_every_wait_below_it() {
        let mut tracker = tracker(&[1, 2, 5, 9]);
        assert!(advance(&mut tracker, 0).is_empty());
        assert_eq!(advance(&mut tracker, 7), [0, 1, 2]);
        assert!(advance(&mut tracker, 7).is_empty());
        assert_eq!(advance(&mut tracker, 9), [3]);
        assert!(tracker.is_empty());
    }

    #[test]
    fn an_expired_wait_is_reaped_and_not_completed_later() {
        let mut tracker = tracker(&[1, 2, 3]);
        let mut expired = Vec::new();
        tracker.expire(at(101), |ticket| expired.push(ticket.0));
        assert_eq!(expired, [0, 1]);
        assert_eq!(tracker.len(), 1);
        assert_eq!(advance(&mut tracker, 9), [2]);
        tracker.expire(at(1000), |_| panic!("completed waits do not expire"));
    }

    #[test]
    fn two_waits_for_one_end_are_two_waits() {
        let mut tracker = AckTracker::new();
        for i in 0..2 {
            tracker.wait(ProduceTicket(i), offset(0), offset(4), at(9));
        }
        assert_eq!(advance(&mut tracker, 4), [0, 1]);
    }

    #[test]
    fn giving_up_leaves_nothing_behind() {
        let mut tracker = tracker(&[1, 2]);
        let mut given_up = Vec::new();
        tracker.give_up(|ticket| given_up.push(ticket.0));
        assert_eq!(given_up, [0, 1]);
        tracker.expire(at(u64::MAX), |_| panic!("nothing is left to expire"));
    }
}
