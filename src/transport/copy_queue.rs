//! What was written on lanes and is to be sent a second time, each as a copy that needs no other.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, BytesMut};

use crate::types::MonotonicTime;
use crate::wire::LaneCopy;

/// How long after the original its copy leaves. quinn fills a packet with datagrams and stream data of one turn, and a copy in
/// the same packet is lost with it; and where losses come in bursts, the burst should be over.
const COPY_AFTER: Duration = Duration::from_millis(4);
/// What is younger than this is not taken along with what is due: its original may not have left yet.
const YOUNGEST: Duration = Duration::from_millis(2);
/// The most bytes that wait for their time. At the cap what was written last is not copied. Small frames come in bursts: when a hole
/// is filled, all that waited behind it is acknowledged at once, and as much is sent anew.
const MAX_WAITING_BYTES: usize = 512 * 1024;

#[derive(Debug)]
struct Waiting {
    /// When it was written, or sent last.
    since: MonotonicTime,
    piece: LaneCopy,
    /// How many copies of it are to be sent.
    copies: u8,
}

/// The pieces that wait. At most [`MAX_WAITING_BYTES`].
#[derive(Debug, Default)]
pub struct CopyQueue {
    lanes: BTreeMap<u16, VecDeque<Waiting>>,
    bytes: usize,
}

impl CopyQueue {
    /// What has just been written, and how many copies of it are wanted. Empty pieces and what is beyond the cap are dropped.
    pub fn push(&mut self, now: MonotonicTime, piece: LaneCopy, copies: u8) {
        let length = piece.bytes.len();
        if length == 0 || copies == 0 || self.bytes + length > MAX_WAITING_BYTES {
            return;
        }
        self.bytes += length;
        let lane = self.lanes.entry(piece.lane).or_default();
        lane.push_back(Waiting {
            since: now,
            piece,
            copies,
        });
    }

    /// When the next copy is due; `None` while nothing waits.
    pub fn due(&self) -> Option<MonotonicTime> {
        let oldest = self.lanes.values().filter_map(|lane| lane.front());
        oldest.map(|waiting| waiting.since + COPY_AFTER).min()
    }

    /// A copy that is due, of at most `most` bytes: what follows on the same lane is taken along. Where another copy of it is wanted, it
    /// waits once more. `most` is at least 1.
    pub fn pop(&mut self, now: MonotonicTime, most: usize) -> Option<LaneCopy> {
        let is_due = |waiting: &Waiting| waiting.since + COPY_AFTER <= now;
        let mut fronts = self.lanes.iter();
        let lane = fronts.find_map(|(lane, pieces)| is_due(pieces.front()?).then_some(*lane))?;
        let pieces = self.lanes.get_mut(&lane)?;
        let (offset, copies) = pieces
            .front()
            .map(|front| (front.piece.offset, front.copies))?;
        let mut copy = BytesMut::new();
        while let Some(Waiting {
            since,
            piece,
            copies: wanted,
        }) = pieces.front_mut()
            && now.since(*since) >= YOUNGEST
            && (piece.offset, *wanted) == (offset + copy.len() as u64, copies)
            && copy.len() < most
        {
            let taken = piece.bytes.len().min(most - copy.len());
            copy.extend_from_slice(&piece.bytes[..taken]);
            piece.bytes.advance(taken);
            piece.offset += taken as u64;
            if piece.bytes.is_empty() {
                pieces.pop_front();
            }
        }
        self.bytes -= copy.len();
        let piece = LaneCopy {
            lane,
            offset,
            bytes: copy.freeze(),
        };
        if copies > 1 && !piece.bytes.is_empty() {
            self.bytes += piece.bytes.len();
            pieces.push_back(Waiting {
                since: now,
                piece: piece.clone(),
                copies: copies - 1,
            });
        }
        if pieces.is_empty() {
            self.lanes.remove(&lane);
        }
        (!piece.bytes.is_empty()).then_some(piece)
    }

    /// Nothing of what waits is sent.
    pub fn clear(&mut self) {
        self.lanes.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_micros(millis * 1000)
    }

    fn piece(lane: u16, offset: u64, bytes: &'static [u8]) -> LaneCopy {
        let bytes = Bytes::from_static(bytes);
        LaneCopy {
            lane,
            offset,
            bytes,
        }
    }

    #[test]
    fn neighbours_share_a_copy_and_the_youngest_wait() {
        let mut queue = CopyQueue::default();
        queue.push(at(0), piece(3, 10, b"abc"), 1);
        queue.push(at(1), piece(3, 13, b"de"), 1);
        queue.push(at(1), piece(5, 0, b"xy"), 1);
        // Something was not copied in between.
        queue.push(at(2), piece(3, 20, b"f"), 1);
        queue.push(at(3), piece(3, 21, b"g"), 1);
        assert_eq!(queue.due(), Some(at(4)));
        assert_eq!(queue.pop(at(3), 100), None);
        assert_eq!(queue.pop(at(4), 100), Some(piece(3, 10, b"abcde")));
        assert_eq!(queue.pop(at(4), 100), None);
        assert_eq!(queue.due(), Some(at(5)));
        assert_eq!(queue.pop(at(6), 100), Some(piece(3, 20, b"fg")));
        assert_eq!(queue.pop(at(6), 100), Some(piece(5, 0, b"xy")));
        assert_eq!((queue.due(), queue.bytes), (None, 0));
        queue.push(at(6), piece(3, 22, b"h"), 1);
        queue.push(at(9), piece(3, 23, b"i"), 1);
        assert_eq!(queue.pop(at(10), 100), Some(piece(3, 22, b"h")));
        assert_eq!(queue.due(), Some(at(13)));
    }

    #[test]
    fn a_piece_larger_than_a_copy_is_cut_and_the_queue_is_bounded() {
        let mut queue = CopyQueue::default();
        queue.push(at(0), piece(1, 7, b"abcdefg"), 1);
        queue.push(at(0), piece(1, 14, b""), 1);
        assert_eq!(queue.pop(at(4), 3), Some(piece(1, 7, b"abc")));
        assert_eq!(queue.pop(at(4), 3), Some(piece(1, 10, b"def")));
        assert_eq!(queue.pop(at(4), 3), Some(piece(1, 13, b"g")));
        assert_eq!(queue.pop(at(4), 3), None);
        let large: &'static [u8] = &[0; MAX_WAITING_BYTES];
        queue.push(at(5), piece(1, 0, large), 1);
        queue.push(at(5), piece(2, 0, b"a"), 1);
        assert_eq!(queue.bytes, MAX_WAITING_BYTES);
        queue.clear();
        assert_eq!((queue.due(), queue.bytes), (None, 0));
        queue.push(at(6), piece(2, 0, b"a"), 1);
        assert_eq!(queue.pop(at(10), 3), Some(piece(2, 0, b"a")));
    }

    #[test]
    fn a_second_copy_follows_the_first() {
        let mut queue = CopyQueue::default();
        queue.push(at(0), piece(1, 0, b"ab"), 2);
        queue.push(at(0), piece(1, 2, b"c"), 2);
        queue.push(at(0), piece(1, 3, b"d"), 1);
        queue.push(at(0), piece(1, 4, b"e"), 0);
        assert_eq!(queue.pop(at(4), 9), Some(piece(1, 0, b"abc")));
        assert_eq!(queue.pop(at(4), 9), Some(piece(1, 3, b"d")));
        assert_eq!(queue.pop(at(4), 9), None);
        assert_eq!((queue.due(), queue.bytes), (Some(at(8)), 3));
        assert_eq!(queue.pop(at(8), 2), Some(piece(1, 0, b"ab")));
        assert_eq!(queue.pop(at(8), 2), Some(piece(1, 2, b"c")));
        assert_eq!((queue.due(), queue.bytes), (None, 0));
    }
}
