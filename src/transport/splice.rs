//! Puts a stream together from pieces that come from anywhere in it.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

/// What a piece takes beside its bytes, about: its entry and its allocation. A peer may send one byte at a time.
const PIECE_BYTES: usize = 96;

/// The pieces of one stream that came before those in front of them. Pieces may overlap; what is there already is dropped.
#[derive(Debug, Default)]
pub(super) struct Splice {
    /// Where the next byte goes that is handed out.
    next: u64,
    /// What came too early, by its place: nothing of it overlaps, and nothing lies at or before `next`. Copied, so that no piece
    /// keeps the packets alive that came along with it.
    ahead: BTreeMap<u64, Bytes>,
    /// The bytes of them.
    ahead_bytes: usize,
}

impl Splice {
    /// Where the next byte goes that is handed out.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Bytes that wait for others in front of them.
    #[cfg(test)]
    pub(super) fn ahead_bytes(&self) -> usize {
        self.ahead_bytes
    }

    /// The memory that those take, about.
    pub(super) fn held(&self) -> usize {
        self.ahead_bytes + self.ahead.len() * PIECE_BYTES
    }

    /// How many bytes are missing in front of those that wait; `None` when none wait.
    pub(super) fn gap(&self) -> Option<u64> {
        let (first, _) = self.ahead.first_key_value()?;
        Some(first - self.next)
    }

    /// Takes a piece, and appends to `out` what is now in order. What would lie beyond the largest number is dropped.
    pub(super) fn take(&mut self, offset: u64, bytes: &[u8], out: &mut BytesMut) {
        let Some(end) = offset.checked_add(bytes.len() as u64) else {
            return;
        };
        if end <= self.next {
            return;
        }
        if offset > self.next {
            self.keep(offset, end, bytes);
            return;
        }
        out.extend_from_slice(&bytes[(self.next - offset) as usize..]);
        self.next = end;
        while let Some(first) = self.ahead.first_entry()
            && *first.key() <= self.next
        {
            let (offset, bytes) = first.remove_entry();
            self.ahead_bytes -= bytes.len();
            let end = offset + bytes.len() as u64;
            if end > self.next {
                out.extend_from_slice(&bytes[(self.next - offset) as usize..]);
                self.next = end;
            }
        }
    }

    /// Keeps of a piece what is not there yet.
    fn keep(&mut self, offset: u64, end: u64, bytes: &[u8]) {
        let mut start = offset;
        while start < end {
            let covered = self.ahead.range(..=start).next_back();
            let covered = covered.map_or(0, |(at, held)| at + held.len() as u64);
            if covered > start {
                start = covered;
                continue;
            }
            let after = self.ahead.range(start..end).next();
            let stop = after.map_or(end, |(at, _)| *at);
            let piece = &bytes[(start - offset) as usize..(stop - offset) as usize];
            self.ahead.insert(start, Bytes::copy_from_slice(piece));
            self.ahead_bytes += piece.len();
            start = stop;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// The bytes of a stream that tell their place.
    fn content(offset: u64, length: usize) -> Vec<u8> {
        (offset..)
            .take(length)
            .map(|at| (at * 7 + at / 251) as u8)
            .collect()
    }

    /// Everything before `next` has been handed out.
    fn from(next: u64) -> Splice {
        let mut splice = Splice::default();
        splice.take(0, &content(0, next as usize), &mut BytesMut::new());
        splice
    }

    #[test]
    fn a_gap_holds_up_what_is_behind_it_until_it_is_filled() {
        let mut splice = from(100);
        let mut out = BytesMut::new();
        splice.take(110, &content(110, 5), &mut out);
        assert_eq!(
            (out.len(), splice.gap(), splice.ahead_bytes()),
            (0, Some(10), 5)
        );
        // Again, and over what is there.
        splice.take(108, &content(108, 10), &mut out);
        assert_eq!((splice.gap(), splice.ahead_bytes()), (Some(8), 10));
        assert_eq!(splice.held(), 10 + splice.ahead.len() * PIECE_BYTES);
        splice.take(90, &content(90, 10), &mut out);
        assert_eq!(out.len(), 0, "what was handed out is not handed out again");
        splice.take(95, &content(95, 13), &mut out);
        assert_eq!(&out[..], content(100, 18));
        assert_eq!(
            (splice.next(), splice.gap(), splice.ahead_bytes()),
            (118, None, 0)
        );
    }

    #[test]
    fn a_place_beyond_all_numbers_is_dropped() {
        let mut splice = from(0);
        let mut out = BytesMut::new();
        splice.take(u64::MAX - 2, &[1; 3], &mut out);
        splice.take(u64::MAX - 1, &[1; 3], &mut out);
        splice.take(u64::MAX, &[1], &mut out);
        assert_eq!((splice.ahead_bytes(), out.len()), (0, 0));
        splice.take(u64::MAX - 3, &[1; 3], &mut out);
        assert_eq!(splice.ahead_bytes(), 3);
    }

    #[test]
    fn any_pieces_in_any_order_give_every_byte_once() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let begin = random.random_range(0..1000);
            let total = 3000u64;
            let mut splice = from(begin);
            let mut out = BytesMut::new();
            let mut pieces: Vec<(u64, usize)> =
                (0..total / 50).map(|at| (begin + at * 50, 50)).collect();
            for _ in 0..40 {
                let at = begin.saturating_sub(20) + random.random_range(0..total);
                let most = (begin + total - at).min(200);
                pieces.push((at, random.random_range(0..=most) as usize));
            }
            while !pieces.is_empty() {
                let (at, length) = pieces.swap_remove(random.random_range(0..pieces.len()));
                splice.take(at, &content(at, length), &mut out);
                let held: usize = splice.ahead.values().map(Bytes::len).sum();
                assert_eq!(held, splice.ahead_bytes(), "seed {seed}");
                assert!(splice.gap() != Some(0), "seed {seed}");
            }
            assert_eq!(&out[..], content(begin, total as usize), "seed {seed}");
            assert_eq!(splice.ahead_bytes(), 0, "seed {seed}");
        }
    }
}
