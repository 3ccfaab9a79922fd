//! Which records were acknowledged, and which are there: one bit or two a record, so that minutes of them fit.
//!
//! A record's value says which one it is: the run's mark and the record's number, then filler.

use bytes::{BufMut, Bytes, BytesMut};

/// Mark and number.
pub(super) const VALUE_HEADER_BYTES: usize = 16;

/// A set of numbers that are near to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    words: Vec<u64>,
    count: u64,
}

impl Numbers {
    /// Returns whether the number is new.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = place(number);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(is_new);
        is_new
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// How many of these are not in `others`.
    pub(super) fn missing_in(&self, others: &Numbers) -> u64 {
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
pub(super) struct Found {
    numbers: Numbers,
    /// Copies beyond the first.
    pub(super) duplicated: u64,
    /// Records that are not this run's.
    pub(super) strange: u64,
}

impl Found {
    /// Counts a record by its value.
    pub(super) fn take(&mut self, mark: u64, value: Option<&[u8]>) {
        match value.and_then(|value| number_of(mark, value)) {
            Some(number) => {
                let is_new = self.numbers.insert(number);
                self.duplicated += u64::from(!is_new);
            }
            None => self.strange += 1,
        }
    }

    /// How many of these numbers are not there.
    pub(super) fn lacks(&self, acknowledged: &Numbers) -> u64 {
        acknowledged.missing_in(&self.numbers)
    }
}

/// A value of `size` bytes, which are at least [`VALUE_HEADER_BYTES`].
pub(super) fn value(mark: u64, number: u64, size: usize) -> Bytes {
    const FILLER: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut value = BytesMut::with_capacity(size);
    value.put_u64(mark);
    value.put_u64(number);
    while value.len() < size {
        let left = (size - value.len()).min(FILLER.len());
        value.extend_from_slice(&FILLER[..left]);
    }
    value.freeze()
}

fn number_of(mark: u64, value: &[u8]) -> Option<u64> {
    let (its_mark, rest) = value.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    (u64::from_be_bytes(*its_mark) == mark).then(|| u64::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            found.take(7, Some(&value(7, number, 40)));
        }
        // 63 and 1000; 5 was never acknowledged, and that is no fault.
        assert_eq!(found.lacks(&acknowledged), 2);
        assert_eq!(found.duplicated, 0);
    }

    #[test]
    fn each_copy_beyond_the_first_is_one_too_many() {
        let mut found = Found::default();
        for number in [3, 3, 4, 3] {
            found.take(7, Some(&value(7, number, 16)));
        }
        assert_eq!(found.duplicated, 2);
    }

    #[test]
    fn what_is_no_record_of_this_run_is_strange() {
        let mut found = Found::default();
        found.take(7, Some(&value(8, 1, 40)));
        found.take(7, Some(b"short"));
        found.take(7, None);
        assert_eq!((found.strange, found.duplicated), (3, 0));
        assert_eq!(found.lacks(&Numbers::default()), 0);
    }

    #[test]
    fn a_value_has_its_size() {
        for size in [16, 17, 100, 1024] {
            assert_eq!(value(1, 2, size).len(), size);
        }
    }
}
