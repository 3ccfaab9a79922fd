//! Which offsets a reader was given, and which ones it should have been.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::types::{Offset, PartitionIndex};

/// What one reading of a topic gave, by offsets. Offsets that hold no record for readers, such as the marks of transactions, are
/// told by nobody: so what is missing in one reading is known by another reading of the same partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    partitions: BTreeMap<PartitionIndex, Stretch>,
    /// Offsets that were given again.
    duplicated: u64,
}

/// Of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stretch {
    /// In rising order, with something between each two: as many as there are gaps, and one more.
    given: Vec<Range<u64>>,
    /// Everything below should have been given.
    passed: u64,
}

impl Delivered {
    /// A record was given.
    pub fn take(&mut self, partition: PartitionIndex, offset: u64) {
        let stretch = self.partitions.entry(partition).or_default();
        self.duplicated += u64::from(!stretch.insert(offset));
        stretch.passed = stretch.passed.max(offset + 1);
    }

    /// The reader said that everything below `end` was given.
    pub fn pass(&mut self, partition: PartitionIndex, end: Offset) {
        let stretch = self.partitions.entry(partition).or_default();
        stretch.passed = stretch.passed.max(end.get());
    }

    /// Up to where each partition was read that has anything.
    pub fn passed(&self) -> BTreeMap<PartitionIndex, Offset> {
        let passed = self.partitions.iter();
        passed
            .filter(|(_, stretch)| stretch.passed > 0)
            .filter_map(|(partition, stretch)| Some((*partition, Offset::new(stretch.passed)?)))
            .collect()
    }

    /// Records that were given again, at the same offset.
    pub fn duplicated(&self) -> u64 {
        self.duplicated
    }

    /// How many records are missing here that `other` was given, as far as this reading came.
    pub fn lacks(&self, other: &Delivered) -> u64 {
        let of = |(partition, stretch): (&PartitionIndex, &Stretch)| {
            let theirs = other.partitions.get(partition)?;
            Some(stretch.lacks(&theirs.given))
        };
        self.partitions.iter().filter_map(of).sum()
    }
}

impl Stretch {
    /// Returns whether the offset is new.
    fn insert(&mut self, offset: u64) -> bool {
        // Nearly always right behind the last one.
        match self.given.last_mut() {
            Some(last) if last.end == offset => {
                last.end += 1;
                return true;
            }
            Some(last) if last.end < offset => {
                self.given.push(offset..offset + 1);
                return true;
            }
            None => {
                self.given.push(offset..offset + 1);
                return true;
            }
            Some(_) => {}
        }
        let after = self.given.partition_point(|range| range.end <= offset);
        match self.given.get_mut(after) {
            Some(range) if range.contains(&offset) => false,
            // One that comes late stands alone; that it touches its neighbours changes no count.
            _ => {
                self.given.insert(after, offset..offset + 1);
                true
            }
        }
    }

    fn lacks(&self, theirs: &[Range<u64>]) -> u64 {
        let mut lacking = 0;
        let mut given = self.given.iter().peekable();
        for range in theirs {
            let end = range.end.min(self.passed);
            let mut at = range.start;
            while at < end {
                match given.peek() {
                    Some(mine) if mine.end <= at => {
                        given.next();
                    }
                    Some(mine) if mine.start <= at => at = mine.end,
                    Some(mine) => {
                        let next = mine.start.min(end);
                        lacking += next - at;
                        at = next;
                    }
                    None => {
                        lacking += end - at;
                        at = end;
                    }
                }
            }
        }
        lacking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: PartitionIndex = PartitionIndex(0);
    const SECOND: PartitionIndex = PartitionIndex(1);

    fn delivered(offsets: impl IntoIterator<Item = u64>) -> Delivered {
        let mut delivered = Delivered::default();
        for offset in offsets {
            delivered.take(FIRST, offset);
        }
        delivered
    }

    #[test]
    fn what_another_reading_has_and_this_one_passed_over_is_missing() {
        // Nothing at 7 for anybody: no record is there.
        let there = delivered([3, 4, 5, 6, 8, 9, 10, 11]);
        assert_eq!(there.lacks(&there), 0);
        assert_eq!(delivered([3, 4, 6, 8, 10]).lacks(&there), 2, "5 and 9");
        assert_eq!(delivered([5, 6]).lacks(&there), 2, "3 and 4");
        let mut stopped = delivered([3, 4]);
        assert_eq!(stopped.lacks(&there), 0, "it came no further");
        stopped.pass(FIRST, Offset::new(10).unwrap());
        assert_eq!(stopped.lacks(&there), 4, "5, 6, 8 and 9");
        // What was removed between this reading and the other one is nobody's loss.
        assert_eq!(there.lacks(&delivered([8, 9])), 0);
    }

    #[test]
    fn a_partition_of_which_nothing_came_is_missing_up_to_its_end() {
        let mut there = delivered([0]);
        there.take(SECOND, 4);
        there.take(SECOND, 5);
        let mut read = delivered([0]);
        assert_eq!(read.lacks(&there), 0, "it was not looked at");
        read.pass(SECOND, Offset::new(5).unwrap());
        assert_eq!(read.lacks(&there), 1);
        let passed: Vec<_> = read.passed().into_iter().collect();
        let offset = |offset| Offset::new(offset).unwrap();
        assert_eq!(passed, [(FIRST, offset(1)), (SECOND, offset(5))]);
    }

    #[test]
    fn an_offset_that_is_given_again_is_one_too_many_and_a_late_one_is_not() {
        let read = delivered([0, 1, 5, 1, 3, 3, 2, 5]);
        assert_eq!(read.duplicated(), 3, "1, 3 and 5");
        assert_eq!(read.lacks(&delivered(0..6)), 1, "4");
        assert_eq!(delivered(0..1000).partitions[&FIRST].given.len(), 1);
    }
}
