//! A log of at most eight entries in one word, and the positions in it.

use std::fmt;

/// One entry is a byte: the epoch that wrote it in the high half, the record's number in the low half. Number 0 is the
/// epoch's start, which consumes no offset.
pub(crate) type Entry = u8;

pub(crate) const MAX_ENTRIES: usize = 8;

pub(crate) const fn epoch_start(epoch: u8) -> Entry {
    epoch << 4
}

pub(crate) const fn record(epoch: u8, number: u8) -> Entry {
    epoch << 4 | number
}

pub(crate) const fn epoch_of(entry: Entry) -> u8 {
    entry >> 4
}

/// 0 for an epoch start.
pub(crate) const fn number_of(entry: Entry) -> u8 {
    entry & 15
}

/// The end of a log or of a prefix of it: epoch of the last entry, then the next offset, in the order of elections.
/// As in the product, an offset alone does not say whether a log holds an epoch start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(pub u8);

impl Position {
    pub(crate) const START: Position = Position(0);

    pub(crate) const fn new(epoch: u8, offset: u8) -> Position {
        Position(epoch << 4 | offset)
    }

    pub(crate) const fn epoch(self) -> u8 {
        self.0 >> 4
    }

    pub(crate) const fn offset(self) -> u8 {
        self.0 & 15
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, e{})", self.offset(), self.epoch())
    }
}

/// The first entry in the lowest byte. An entry is never 0, because epochs begin at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Log(pub u64);

const LOW_HALVES: u64 = 0x0f0f_0f0f_0f0f_0f0f;
const ONES: u64 = 0x0101_0101_0101_0101;

impl Log {
    pub(crate) const fn len(self) -> usize {
        (64 - self.0.leading_zeros() as usize).div_ceil(8)
    }

    pub(crate) const fn entry(self, index: usize) -> Entry {
        (self.0 >> (8 * index)) as u8
    }

    pub(crate) const fn prefix(self, entries: usize) -> Log {
        if entries >= MAX_ENTRIES {
            self
        } else {
            Log(self.0 & ((1 << (8 * entries)) - 1))
        }
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        let end = self.len();
        assert!(end < MAX_ENTRIES, "the bounds allow longer logs than fit");
        self.0 |= u64::from(entry) << (8 * end);
    }

    /// How many records it has: the next offset.
    pub(crate) const fn offset(self) -> u8 {
        // A low half that is not 0 carries into the bit above it.
        ((((self.0 & LOW_HALVES) + LOW_HALVES) >> 4) & ONES).count_ones() as u8
    }

    pub(crate) const fn end(self) -> Position {
        let len = self.len();
        if len == 0 {
            return Position::START;
        }
        Position::new(epoch_of(self.entry(len - 1)), self.offset())
    }

    pub(crate) const fn has_prefix(self, other: Log) -> bool {
        self.prefix(other.len()).0 == other.0
    }

    pub(crate) fn contains(self, entry: Entry) -> bool {
        (0..self.len()).any(|index| self.entry(index) == entry)
    }

    /// The record at an offset, if the log has one there.
    pub(crate) fn record_at(self, offset: u8) -> Option<Entry> {
        let mut next = 0;
        for index in 0..self.len() {
            let entry = self.entry(index);
            if number_of(entry) != 0 {
                if next == offset {
                    return Some(entry);
                }
                next += 1;
            }
        }
        None
    }

    /// The offset at which the log leaves an epoch that it has.
    fn end_of_epoch(self, epoch: u8) -> Option<u8> {
        (0..self.len())
            .rev()
            .find(|&index| epoch_of(self.entry(index)) == epoch)
            .map(|index| self.prefix(index + 1).offset())
    }

    /// What a leader answers to a hello: the last epoch that both logs have, where the first of the two leaves it.
    pub(crate) fn shared_with(self, leader: Log) -> Position {
        for index in (0..self.len()).rev() {
            let epoch = epoch_of(self.entry(index));
            if let (Some(mine), Some(its)) = (self.end_of_epoch(epoch), leader.end_of_epoch(epoch))
            {
                return Position::new(epoch, mine.min(its));
            }
        }
        Position::START
    }

    /// How many entries end at or below a position; by the offset alone if `whole` is false.
    pub(crate) fn entries_up_to(self, to: Position, whole: bool) -> usize {
        (0..self.len())
            .take_while(|&index| {
                let end = self.prefix(index + 1).end();
                if whole {
                    end <= to
                } else {
                    end.offset() <= to.offset()
                }
            })
            .count()
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for index in 0..self.len() {
            let separator = if index == 0 { "" } else { " " };
            let entry = self.entry(index);
            match number_of(entry) {
                0 => write!(f, "{separator}S{}", epoch_of(entry))?,
                number => write!(f, "{separator}r{number}@e{}", epoch_of(entry))?,
            }
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(entries: &[Entry]) -> Log {
        let mut log = Log::default();
        entries.iter().for_each(|&entry| log.push(entry));
        log
    }

    #[test]
    fn an_epoch_start_moves_the_position_and_not_the_offset() {
        let before = log(&[epoch_start(1), record(1, 1)]);
        let after = log(&[epoch_start(1), record(1, 1), epoch_start(2)]);
        assert_eq!(before.end(), Position::new(1, 1));
        assert_eq!(after.end(), Position::new(2, 1));
        assert_eq!(after.prefix(2), before);
        assert_eq!(after.record_at(0), Some(record(1, 1)));
        assert_eq!(after.record_at(1), None);
        assert_eq!(after.to_string(), "[S1 r1@e1 S2]");
    }

    #[test]
    fn the_shared_prefix_ends_where_the_first_log_leaves_the_last_common_epoch() {
        let leader = log(&[epoch_start(1), record(1, 1), epoch_start(3), record(3, 3)]);
        let longer = log(&[epoch_start(1), record(1, 1), record(1, 2), epoch_start(2)]);
        assert_eq!(longer.shared_with(leader), Position::new(1, 1));
        assert_eq!(leader.prefix(3).shared_with(leader), Position::new(3, 1));
        assert_eq!(Log::default().shared_with(leader), Position::START);
        assert_eq!(longer.entries_up_to(Position::new(1, 1), true), 2);
        let only_starts = log(&[epoch_start(1), epoch_start(2)]);
        assert_eq!(only_starts.entries_up_to(Position::new(1, 0), true), 1);
        assert_eq!(only_starts.entries_up_to(Position::new(1, 0), false), 2);
    }
}
