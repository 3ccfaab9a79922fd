//! Which markers have still to be written, and when.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::limits::{FIRST_PAUSE, MAX_PAUSE};
use super::state::Ending;
use crate::types::{MonotonicTime, ProducerId};

/// A marker that the leader of a partition is to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Whose transaction it ends.
    pub id: Arc<str>,
    pub topic: Arc<str>,
    pub partition: i32,
    pub producer: ProducerId,
    pub producer_epoch: i16,
    pub ending: Ending,
    /// The leader epoch of the coordinator's partition: what writes the marker refuses those of earlier coordinators.
    pub coordinator_epoch: i32,
    /// How often it was tried before.
    pub attempts: u32,
}

/// What came of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// It is committed in the partition, or a newer epoch of the producer is: either way its transaction is over there.
    Written,
    /// The partition is deleted.
    Gone,
    /// Not written, or nobody knows: to be tried again.
    Failed,
    /// A later coordinator has written there.
    Fenced,
}

/// A marker, but for what its transaction says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) id: Arc<str>,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) attempts: u32,
}

/// Markers that wait for their turn. Each stands in one of the two, or is out; so there are never more of them than partitions
/// in transactions that end.
#[derive(Debug, Default)]
pub(super) struct Markers {
    ready: VecDeque<Waiting>,
    /// By the time at which they are to be tried again.
    later: BTreeMap<(MonotonicTime, u64), Waiting>,
    sequence: u64,
}

impl Markers {
    pub(super) fn push(&mut self, waiting: Waiting) {
        self.ready.push_back(waiting);
    }

    /// Tries it again after a pause.
    pub(super) fn put_off(&mut self, now: MonotonicTime, random: u64, mut waiting: Waiting) {
        waiting.attempts = waiting.attempts.saturating_add(1);
        let at = now + pause(waiting.attempts, random);
        self.sequence += 1;
        self.later.insert((at, self.sequence), waiting);
    }

    /// The next whose time has come.
    pub(super) fn pop(&mut self, now: MonotonicTime) -> Option<Waiting> {
        if let Some(due) = self.later.first_entry()
            && due.key().0 <= now
        {
            return Some(due.remove());
        }
        self.ready.pop_front()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.later.len()
    }
}

/// How long to wait after so many failures in a row, at least one. `random` is any number.
pub(super) fn pause(failures: u32, random: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = (FIRST_PAUSE * (1 << doublings)).min(MAX_PAUSE);
    // Half of it, and up to as much again.
    full / 2 + (full / 2).mul_f64((random % 1024) as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(partition: i32) -> Waiting {
        Waiting {
            id: "id".into(),
            topic: "orders".into(),
            partition,
            attempts: 0,
        }
    }

    #[test]
    fn what_failed_waits_longer_each_time_and_keeps_nothing_else_waiting() {
        let mut markers = Markers::default();
        let start = MonotonicTime::ZERO;
        markers.push(waiting(0));
        markers.push(waiting(1));
        let first = markers.pop(start).unwrap();
        markers.put_off(start, 1023, first);
        assert_eq!(markers.pop(start).unwrap().partition, 1);
        assert_eq!(markers.pop(start), None);
        assert_eq!(markers.len(), 1);
        let again = markers.pop(start + FIRST_PAUSE).unwrap();
        assert_eq!((again.partition, again.attempts), (0, 1));
        for failures in 1..40 {
            let (least, most) = (pause(failures, 0), pause(failures, 1023));
            assert!(least >= FIRST_PAUSE / 2 && most <= MAX_PAUSE, "{failures}");
            assert!(least < most);
        }
        assert_eq!(pause(40, 0), MAX_PAUSE / 2);
    }
}
