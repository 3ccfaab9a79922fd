//! Transactions of one partition: those whose end is in the log and not yet certain, and the guard between asking a
//! coordinator about a transaction and appending its first batch.

use std::collections::BTreeSet;

use crate::types::{LeaderEpoch, Offset};
use crate::wire::{EndedEntry, MAX_SNAPSHOT_ENDED};

/// The most transactions that may be open in one partition: a producer with an open transaction is never forgotten, so they
/// must be fewer than the producers that are remembered. A batch that would begin another is refused.
pub const MAX_OPEN_TRANSACTIONS: usize = 5_000;

/// The most ended transactions that are told apart. Beyond it two that ended one after the other count as one, from the
/// first record of both to the last marker: the last stable offset then rises later than it could, and never too early.
const MAX_ENDED: usize = MAX_SNAPSHOT_ENDED;

/// What a coordinator's word about a transaction is good for: one append, in the leader epoch in which it was asked, as long as
/// no transaction of the producer has ended in the partition since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerificationGuard {
    pub(super) leader_epoch: LeaderEpoch,
    /// Where the log ended when the question was asked. A marker at or above it is an answer of its own.
    pub(super) end: Offset,
    /// Whether the batch is the first of its producer's epoch here, so that only sequence number 0 follows on nothing.
    pub(super) is_first: bool,
}

impl VerificationGuard {
    /// The same for a transaction that has an epoch of its own (KIP-890, second part). What is not known of its producer here
    /// was then not forgotten but never there: a batch that others were sent before waits for them.
    pub fn of_first_batch(self) -> VerificationGuard {
        VerificationGuard {
            is_first: true,
            ..self
        }
    }
}

/// Whether a producer's next batch may be appended without asking its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Its transaction is open in the partition.
    NotNeeded,
    /// None is open: the batch would begin one, and is to come with this guard.
    Needed(VerificationGuard),
}

/// Transactions that have ended in the log, while it is not certain that their markers stay.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct EndedTransactions {
    /// By their first offsets: the lowest bounds what is stable.
    by_first: BTreeSet<(Offset, Offset)>,
    /// The same by the offsets after their markers, which rise. At most [`MAX_ENDED`].
    by_end: BTreeSet<(Offset, Offset)>,
}

impl EndedTransactions {
    pub(super) fn len(&self) -> usize {
        self.by_end.len()
    }

    pub(super) const MAX: usize = MAX_ENDED;

    /// One has ended, behind all others.
    pub(super) fn push(&mut self, mut first: Offset, end: Offset) {
        if self.len() >= MAX_ENDED
            && let Some(last) = self.by_end.pop_last()
        {
            self.by_first.remove(&(last.1, last.0));
            first = first.min(last.1);
        }
        self.by_first.insert((first, end));
        self.by_end.insert((end, first));
    }

    /// What ends at or below `high_watermark` is decided for good.
    pub(super) fn handle_committed(&mut self, high_watermark: Offset) {
        while let Some(&(end, first)) = self.by_end.first() {
            if end > high_watermark {
                break;
            }
            self.by_end.pop_first();
            self.by_first.remove(&(first, end));
        }
    }

    /// The lowest first offset of those that end above `high_watermark`.
    pub(super) fn first_above(&self, high_watermark: Offset) -> Option<Offset> {
        let uncertain = |(_, end): &&(Offset, Offset)| *end > high_watermark;
        self.by_first
            .iter()
            .find(uncertain)
            .map(|(first, _)| *first)
    }

    pub(super) fn entries(&self) -> Vec<EndedEntry> {
        let entry = |&(end, first): &(Offset, Offset)| EndedEntry { first, end };
        self.by_end.iter().map(entry).collect()
    }
}

impl From<Vec<EndedEntry>> for EndedTransactions {
    fn from(entries: Vec<EndedEntry>) -> EndedTransactions {
        let mut ended = EndedTransactions::default();
        for entry in entries {
            ended.push(entry.first, entry.end);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    #[test]
    fn the_earliest_that_is_not_certain_bounds_what_is_stable() {
        let mut ended = EndedTransactions::default();
        ended.push(offset(5), offset(9));
        ended.push(offset(2), offset(12));
        assert_eq!(ended.first_above(offset(8)), Some(offset(2)));
        assert_eq!(ended.first_above(offset(12)), None);
        ended.handle_committed(offset(11));
        assert_eq!(ended.len(), 1);
        assert_eq!(ended.first_above(offset(11)), Some(offset(2)));
        ended.handle_committed(offset(12));
        assert_eq!(ended, EndedTransactions::default());
    }

    #[test]
    fn beyond_the_cap_two_count_as_one_and_nothing_is_stable_too_early() {
        let mut ended = EndedTransactions::default();
        for i in 0..MAX_ENDED as u64 + 10 {
            ended.push(offset(2 * i), offset(2 * i + 1));
        }
        assert_eq!(ended.len(), MAX_ENDED);
        let last = offset(2 * (MAX_ENDED as u64 + 9));
        ended.handle_committed(last);
        assert_eq!(ended.len(), 1);
        let first = ended.first_above(last).unwrap();
        assert_eq!(first, offset(2 * (MAX_ENDED as u64 - 1)));
    }
}
