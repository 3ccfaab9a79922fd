//! Which leader epoch began at which offset in a log.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{LeaderEpoch, LogPosition, Offset};

/// One epoch start in a log: the first record of `epoch`, if it has one, is at `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochEntry {
    pub epoch: LeaderEpoch,
    pub start: Offset,
}

/// The epoch starts of a log, oldest first.
///
/// Because every leader's first frame is an epoch start, this list says for each record which epoch wrote it, and for two
/// logs where they part: equal epochs have equal starts (invariant 3 of the protocol).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<EpochEntry>", into = "Vec<EpochEntry>")]
pub struct EpochHistory {
    /// Epochs strictly rise and are never [`LeaderEpoch::NONE`]; starts never fall. An empty epoch shares its start with
    /// the next one.
    entries: Vec<EpochEntry>,
}

/// An epoch start that does not follow the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("epoch {} at offset {} does not follow epoch {} at offset {}", next.epoch, next.start, last.epoch, last.start)]
pub struct EpochHistoryError {
    pub last: EpochEntry,
    pub next: EpochEntry,
}

impl EpochHistory {
    pub const fn new() -> EpochHistory {
        EpochHistory {
            entries: Vec::new(),
        }
    }

    /// Adds the start of a later epoch.
    pub fn push(&mut self, next: EpochEntry) -> Result<(), EpochHistoryError> {
        let last = self.entries.last().copied().unwrap_or(EpochEntry {
            epoch: LeaderEpoch::NONE,
            start: Offset::ZERO,
        });
        if next.epoch <= last.epoch || next.start < last.start {
            return Err(EpochHistoryError { last, next });
        }
        self.entries.push(next);
        Ok(())
    }

    pub fn entries(&self) -> &[EpochEntry] {
        &self.entries
    }

    /// The last `count` entries: what a hello carries.
    pub fn latest(&self, count: usize) -> EpochHistory {
        let skip = self.entries.len().saturating_sub(count);
        EpochHistory {
            entries: self.entries[skip..].to_vec(),
        }
    }

    pub fn last_epoch(&self) -> LeaderEpoch {
        self.entries
            .last()
            .map_or(LeaderEpoch::NONE, |entry| entry.epoch)
    }

    /// The epoch that wrote the record at `offset`, were the log that long. `None` before the first entry.
    pub fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        let after = self.entries.partition_point(|entry| entry.start <= offset);
        after.checked_sub(1).map(|i| self.entries[i].epoch)
    }

    /// Where `epoch` began; `None` if this log has no start of it.
    pub fn start_of(&self, epoch: LeaderEpoch) -> Option<Offset> {
        self.find(epoch).map(|i| self.entries[i].start)
    }

    /// Where `epoch` ended in a log whose end is `log_end`: the start of the next epoch, or the log's end.
    pub fn end_of(&self, epoch: LeaderEpoch, log_end: Offset) -> Option<Offset> {
        let i = self.find(epoch)?;
        Some(self.entries.get(i + 1).map_or(log_end, |next| next.start))
    }

    /// The last epoch in this log that is not above `epoch`, and where it ended in it: what Kafka's OffsetForLeaderEpoch asks
    /// for. `None` where `epoch` is above the log's last one; where it is below the first, that one's start is its end.
    pub fn last_up_to(&self, epoch: LeaderEpoch, log_end: Offset) -> Option<(LeaderEpoch, Offset)> {
        if epoch > self.last_epoch() {
            return None;
        }
        let after = self.entries.partition_point(|entry| entry.epoch <= epoch);
        let end = self.entries.get(after).map_or(log_end, |next| next.start);
        let found = after.checked_sub(1).map(|i| self.entries[i].epoch);
        Some((found.unwrap_or(epoch), end))
    }

    /// Forgets what lies after `to`: later epochs, empty ones at the same offset included.
    pub fn truncate(&mut self, to: LogPosition) {
        self.entries
            .retain(|entry| entry.epoch <= to.epoch && entry.start <= to.offset);
    }

    /// Forgets epochs that ended at or before `log_start`, except the one that the first kept record is in.
    pub fn trim_front(&mut self, log_start: Offset) {
        let after = self
            .entries
            .partition_point(|entry| entry.start <= log_start);
        self.entries.drain(..after.saturating_sub(1));
    }

    /// The end of the longest prefix that two logs share: the last epoch that both have, up to where the first of them
    /// leaves it. `None` where the histories have no epoch in common; the position is then before both of them.
    pub fn shared_prefix(
        &self,
        own_end: Offset,
        other: &EpochHistory,
        other_end: Offset,
    ) -> Option<LogPosition> {
        let shared = self
            .entries
            .iter()
            .rev()
            .find(|entry| other.find(entry.epoch).is_some())?;
        let own = self.end_of(shared.epoch, own_end)?;
        let others = other.end_of(shared.epoch, other_end)?;
        Some(LogPosition::new(own.min(others), shared.epoch))
    }

    fn find(&self, epoch: LeaderEpoch) -> Option<usize> {
        self.entries
            .binary_search_by_key(&epoch, |entry| entry.epoch)
            .ok()
    }
}

impl TryFrom<Vec<EpochEntry>> for EpochHistory {
    type Error = EpochHistoryError;

    fn try_from(entries: Vec<EpochEntry>) -> Result<Self, Self::Error> {
        let mut history = EpochHistory::new();
        for entry in entries {
            history.push(entry)?;
        }
        Ok(history)
    }
}

impl From<EpochHistory> for Vec<EpochEntry> {
    fn from(history: EpochHistory) -> Self {
        history.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(epoch: u32) -> LeaderEpoch {
        LeaderEpoch::new(epoch).unwrap()
    }

    fn offset(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    fn history(entries: &[(u32, u64)]) -> EpochHistory {
        entries
            .iter()
            .map(|&(e, s)| EpochEntry {
                epoch: epoch(e),
                start: offset(s),
            })
            .collect::<Vec<_>>()
            .try_into()
            .unwrap()
    }

    #[test]
    fn an_empty_epoch_hides_behind_the_next_one() {
        let h = history(&[(1, 0), (2, 5), (3, 5)]);
        assert_eq!(h.epoch_of(offset(4)), Some(epoch(1)));
        assert_eq!(h.epoch_of(offset(5)), Some(epoch(3)));
        assert_eq!(h.end_of(epoch(2), offset(9)), Some(offset(5)));
        assert_eq!(h.end_of(epoch(3), offset(9)), Some(offset(9)));
        assert_eq!(h.end_of(epoch(4), offset(9)), None);
    }

    #[test]
    fn an_epoch_that_the_log_lacks_ends_where_the_one_before_it_does() {
        let h = history(&[(2, 5), (4, 5), (6, 8)]);
        let ends = |e: u32| {
            let found = h.last_up_to(epoch(e), offset(9));
            found.map(|(epoch, end)| (epoch.get(), end.get()))
        };
        assert_eq!(ends(1), Some((1, 5)));
        assert_eq!(ends(2), Some((2, 5)));
        assert_eq!(ends(3), Some((2, 5)));
        assert_eq!(ends(5), Some((4, 8)));
        assert_eq!(ends(6), Some((6, 9)));
        assert_eq!(ends(7), None);
    }

    #[test]
    fn epochs_must_rise() {
        let mut h = history(&[(2, 5)]);
        for wrong in [(2, 6), (1, 9), (3, 4)] {
            let entry = EpochEntry {
                epoch: epoch(wrong.0),
                start: offset(wrong.1),
            };
            assert!(h.push(entry).is_err(), "{wrong:?}");
        }
        let none = EpochEntry {
            epoch: LeaderEpoch::NONE,
            start: Offset::ZERO,
        };
        assert!(EpochHistory::new().push(none).is_err());
    }

    #[test]
    fn truncation_drops_empty_epochs_at_the_same_offset() {
        let mut h = history(&[(1, 0), (2, 5), (3, 5)]);
        h.truncate(LogPosition::new(offset(5), epoch(1)));
        assert_eq!(h, history(&[(1, 0)]));
    }

    #[test]
    fn the_shared_prefix_ends_where_the_first_log_leaves_the_last_common_epoch() {
        let leader = history(&[(1, 0), (3, 7)]);
        let follower = history(&[(1, 0), (2, 4)]);
        assert_eq!(
            leader.shared_prefix(offset(9), &follower, offset(6)),
            Some(LogPosition::new(offset(4), epoch(1)))
        );
        // Its own empty epoch 2 is not shared, though no record of it is in the way.
        let empty_epoch = history(&[(1, 0), (2, 7)]);
        assert_eq!(
            leader.shared_prefix(offset(9), &empty_epoch, offset(7)),
            Some(LogPosition::new(offset(7), epoch(1)))
        );
        assert_eq!(
            leader.shared_prefix(offset(9), &history(&[(2, 0)]), offset(3)),
            None
        );
    }

    #[test]
    fn trimming_keeps_the_epoch_of_the_first_kept_record() {
        let mut h = history(&[(1, 0), (2, 5), (3, 8)]);
        h.trim_front(offset(6));
        assert_eq!(h, history(&[(2, 5), (3, 8)]));
        h.trim_front(offset(8));
        assert_eq!(h, history(&[(3, 8)]));
    }
}
