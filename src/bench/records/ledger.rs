//! Which records were acknowledged, and which are there: one bit or two a record, so that minutes of them fit.
//!
//! A record's value says which one it is: the run's mark, the record's number and, where there is room for it, when it was meant
//! to be sent, each 8 bytes, big-endian; then filler.

use bytes::{BufMut, Bytes, BytesMut};

/// Mark and number.
pub const VALUE_HEADER_BYTES: usize = 16;
/// The same with the time.
pub const STAMPED_HEADER_BYTES: usize = 24;
const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// What stands behind a value's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filler {
    /// The same letters again and again.
    #[default]
    Letters,
    /// Half of it is noise, so that codecs have something to do, and cannot make nothing of it: they leave a little more than a
    /// half.
    HalfNoise,
}

/// A set of numbers that are near to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    words: Vec<u64>,
    count: u64,
}

impl Numbers {
    /// Returns whether the number is new.
    pub fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = place(number);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(is_new);
        is_new
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many of these are not in `others`.
    pub fn missing_in(&self, others: &Numbers) -> u64 {
        let missing = self.words.iter().enumerate().map(|(i, word)| {
            let found = others.words.get(i).copied().unwrap_or(0);
            u64::from((word & !found).count_ones())
        });
        missing.sum()
    }
}

fn place(number: u64) -> (usize, u64) {
    // A record of 16 bytes for each number: no machine holds as many as a usize of 32 bits could not count.
    ((number / 64) as usize, 1 << (number % 64))
}

/// What a reader found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    numbers: Numbers,
    /// Copies beyond the first.
    pub duplicated: u64,
    /// Records that are not this run's.
    pub strange: u64,
}

impl Found {
    /// Counts a record by its value.
    pub fn take(&mut self, mark: u64, value: Option<&[u8]>) {
        match value.and_then(|value| number_of(mark, value)) {
            Some(number) => {
                let is_new = self.numbers.insert(number);
                self.duplicated += u64::from(!is_new);
            }
            None => self.strange += 1,
        }
    }

    /// How many different records of this run there are.
    pub fn count(&self) -> u64 {
        self.numbers.count()
    }

    /// How many records are missing and how many too many, of those that were acknowledged, where several readers looked for them:
    /// as the one has it that found more of them.
    pub fn verdict(readers: &[&Found], acknowledged: &Numbers) -> (u64, u64) {
        let lost = readers.iter().map(|found| found.lacks(acknowledged));
        let duplicated = readers.iter().map(|found| found.duplicated);
        (lost.max().unwrap_or(0), duplicated.max().unwrap_or(0))
    }

    /// How many of these numbers are not there.
    pub fn lacks(&self, acknowledged: &Numbers) -> u64 {
        acknowledged.missing_in(&self.numbers)
    }
}

/// A value of `size` bytes, which are at least [`VALUE_HEADER_BYTES`]. `stamp` is any time, in µs.
pub fn value(mark: u64, number: u64, stamp: u64, size: usize, filler: Filler) -> Bytes {
    let mut value = BytesMut::with_capacity(size);
    value.put_u64(mark);
    value.put_u64(number);
    if size >= STAMPED_HEADER_BYTES {
        value.put_u64(stamp);
    }
    if filler == Filler::HalfNoise {
        let end = size.midpoint(value.len());
        // Marsaglia's xorshift: noise enough for a codec, at a few nanoseconds for 8 bytes.
        let mut bits = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        while value.len() < end {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            let bytes = bits.to_be_bytes();
            value.extend_from_slice(&bytes[..(end - value.len()).min(bytes.len())]);
        }
    }
    while value.len() < size {
        let left = (size - value.len()).min(LETTERS.len());
        value.extend_from_slice(&LETTERS[..left]);
    }
    value.freeze()
}

/// The number of a record of this run, and its time in µs; `None` for any other record, or one without room for the time.
pub fn stamp_of(mark: u64, value: &[u8]) -> Option<(u64, u64)> {
    let number = number_of(mark, value)?;
    let (_, rest) = value.split_at_checked(VALUE_HEADER_BYTES)?;
    let (stamp, _) = rest.split_first_chunk()?;
    Some((number, u64::from_be_bytes(*stamp)))
}

fn number_of(mark: u64, value: &[u8]) -> Option<u64> {
    let (its_mark, rest) = value.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    (u64::from_be_bytes(*its_mark) == mark).then(|| u64::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mark: u64, number: u64, size: usize) -> Bytes {
        value(mark, number, 0, size, Filler::Letters)
    }

    #[test]
    fn what_was_acknowledged_and_is_not_there_is_lost() {
        let mut acknowledged = Numbers::default();
        for number in [0, 1, 63, 64, 1000] {
            assert!(acknowledged.insert(number));
        }
        assert!(!acknowledged.insert(64));
        assert_eq!(acknowledged.count(), 5);
        let mut found = Found::default();
        for number in [0, 1, 64, 5] {
            found.take(7, Some(&of(7, number, 40)));
        }
        // 63 and 1000; 5 was never acknowledged, and that is no fault.
        assert_eq!(found.lacks(&acknowledged), 2);
        assert_eq!(found.duplicated, 0);
    }

    #[test]
    fn each_copy_beyond_the_first_is_one_too_many() {
        let mut found = Found::default();
        for number in [3, 3, 4, 3] {
            found.take(7, Some(&of(7, number, 16)));
        }
        assert_eq!(found.duplicated, 2);
    }

    #[test]
    fn what_one_of_several_readers_missed_or_has_seen_twice_counts() {
        let mut acknowledged = Numbers::default();
        let (mut consumer, mut afterwards) = (Found::default(), Found::default());
        for number in 0..4 {
            acknowledged.insert(number);
            afterwards.take(7, Some(&of(7, number, 40)));
        }
        for number in 0..3 {
            consumer.take(7, Some(&of(7, number, 40)));
        }
        // It came again when the consumer had everything that it waited for.
        afterwards.take(7, Some(&of(7, 2, 40)));
        let both = [&consumer, &afterwards];
        assert_eq!(Found::verdict(&both, &acknowledged), (1, 1));
        assert_eq!(Found::verdict(&both[..1], &acknowledged), (1, 0));
        assert_eq!(Found::verdict(&both[1..], &acknowledged), (0, 1));
    }

    #[test]
    fn what_is_no_record_of_this_run_is_strange() {
        let mut found = Found::default();
        found.take(7, Some(&of(8, 1, 40)));
        found.take(7, Some(b"short"));
        found.take(7, None);
        assert_eq!((found.strange, found.duplicated), (3, 0));
        assert_eq!(found.lacks(&Numbers::default()), 0);
    }

    #[test]
    fn a_value_has_its_size_and_tells_its_time() {
        for size in [16, 17, 24, 25, 100, 1024] {
            for filler in [Filler::Letters, Filler::HalfNoise] {
                let value = value(1, 2, 77, size, filler);
                assert_eq!(value.len(), size);
                let told = (size >= STAMPED_HEADER_BYTES).then_some((2, 77));
                assert_eq!(stamp_of(1, &value), told);
                assert_eq!(stamp_of(3, &value), None);
            }
        }
    }

    #[test]
    fn codecs_leave_half_of_what_is_half_noise() {
        let size = |filler| {
            let values: Vec<u8> = (0..100)
                .flat_map(|n| value(1, n, 0, 1024, filler))
                .collect();
            let packed = lz4_flex::block::compress(&values).len();
            packed as f64 / values.len() as f64
        };
        assert!(size(Filler::Letters) < 0.1, "{}", size(Filler::Letters));
        let half = size(Filler::HalfNoise);
        assert!((0.45..0.65).contains(&half), "{half}");
    }
}
