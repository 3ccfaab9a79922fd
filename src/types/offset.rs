//! Positions in a partition's log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A record's place in its partition, from 0 upward. Kafka's offsets are `i64`; a negative one never names a record, so
/// none can be made here.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Offset(u64);

impl Offset {
    pub const ZERO: Offset = Offset(0);
    /// The largest offset that Kafka's `i64` can carry.
    pub const MAX: Offset = Offset(i64::MAX as u64);

    /// `None` above [`Offset::MAX`].
    pub const fn new(offset: u64) -> Option<Offset> {
        if offset <= i64::MAX as u64 {
            Some(Offset(offset))
        } else {
            None
        }
    }

    /// `None` for a negative number, which on Kafka's wire is a sentinel and not an offset.
    pub fn from_wire(offset: i64) -> Option<Offset> {
        u64::try_from(offset).ok().map(Offset)
    }

    pub const fn to_wire(self) -> i64 {
        self.0 as i64
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The offset `records` further on; `None` where it would pass [`Offset::MAX`].
    pub fn checked_add(self, records: u64) -> Option<Offset> {
        self.0.checked_add(records).and_then(Offset::new)
    }

    /// How many records lie between `earlier` and this offset; 0 where this one is not the later.
    pub const fn records_since(self, earlier: Offset) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a leader's reign over a partition. Every leader has a higher one than the leader before. 0 is "before
/// the first leader": no frame carries it. Kafka's wire carries an `i32`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LeaderEpoch(u32);

impl LeaderEpoch {
    /// Before the first leader. An empty log ends in this epoch.
    pub const NONE: LeaderEpoch = LeaderEpoch(0);
    pub const MAX: LeaderEpoch = LeaderEpoch(i32::MAX as u32);

    /// `None` above [`LeaderEpoch::MAX`].
    pub const fn new(epoch: u32) -> Option<LeaderEpoch> {
        if epoch <= i32::MAX as u32 {
            Some(LeaderEpoch(epoch))
        } else {
            None
        }
    }

    /// `None` for a negative number: Kafka's "no epoch given".
    pub fn from_wire(epoch: i32) -> Option<LeaderEpoch> {
        u32::try_from(epoch).ok().map(LeaderEpoch)
    }

    pub const fn to_wire(self) -> i32 {
        self.0 as i32
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    /// The epoch after this one; `None` at the end of the range.
    pub fn next(self) -> Option<LeaderEpoch> {
        self.0.checked_add(1).and_then(LeaderEpoch::new)
    }
}

impl fmt::Display for LeaderEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the controller's changes to one partition's state, so that a change decided on an old state is refused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PartitionEpoch(pub u32);

impl PartitionEpoch {
    pub const fn next(self) -> PartitionEpoch {
        PartitionEpoch(self.0.saturating_add(1))
    }
}

impl fmt::Display for PartitionEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The end of a log, or of a prefix of it: the offset that the next record gets, and the epoch of the last frame.
///
/// An epoch start consumes no offset, so an offset alone does not say whether a log holds one: positions are compared as
/// (offset, epoch) wherever logs are matched or truncated. The derived order is that of elections, Raft's: the later epoch
/// wins, then the longer log.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LogPosition {
    /// Epoch of the last frame before this position; [`LeaderEpoch::NONE`] for an empty log. First, so that the derived
    /// order compares it first.
    pub epoch: LeaderEpoch,
    /// The offset of the next record.
    pub offset: Offset,
}

impl LogPosition {
    /// The end of an empty log that starts at 0.
    pub const START: LogPosition = LogPosition {
        epoch: LeaderEpoch::NONE,
        offset: Offset::ZERO,
    };

    pub const fn new(offset: Offset, epoch: LeaderEpoch) -> LogPosition {
        LogPosition { epoch, offset }
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.offset, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_election_prefers_the_later_epoch_then_the_longer_log() {
        let at = |offset, epoch| {
            LogPosition::new(
                Offset::new(offset).unwrap(),
                LeaderEpoch::new(epoch).unwrap(),
            )
        };
        assert!(at(3, 2) > at(9, 1));
        assert!(at(9, 2) > at(3, 2));
        assert!(LogPosition::START < at(0, 1));
    }

    #[test]
    fn offsets_stay_within_kafkas_range() {
        assert_eq!(Offset::MAX.checked_add(1), None);
        assert_eq!(Offset::from_wire(-1), None);
        assert_eq!(Offset::new(u64::MAX), None);
        assert_eq!(
            Offset::ZERO.records_since(Offset::MAX),
            0,
            "never wraps below zero"
        );
        assert_eq!(LeaderEpoch::MAX.next(), None);
    }
}
