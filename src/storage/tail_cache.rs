//! The newest frames of a log in memory, so that the live replication cursor and a consumer at the end never read the
//! disk.

use std::collections::VecDeque;

use crate::types::{LogPosition, Offset};
use crate::wal::Frame;

/// Frames in a row that end where the log ends. When `capacity` bytes are exceeded the oldest leave; a frame that is
/// larger than that alone leaves the cache empty, and is read from the disk.
#[derive(Debug)]
pub(super) struct TailCache {
    frames: VecDeque<Frame>,
    bytes: usize,
    capacity: usize,
}

impl TailCache {
    pub(super) fn new(capacity: usize) -> TailCache {
        TailCache {
            frames: VecDeque::new(),
            bytes: 0,
            capacity,
        }
    }

    /// The bytes that it holds, and the most that it may.
    pub(super) fn fill(&self) -> (usize, usize) {
        (self.bytes, self.capacity)
    }

    pub(super) fn push(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.bytes > self.capacity {
            match self.frames.pop_front() {
                Some(oldest) => self.bytes -= oldest.len(),
                None => break,
            }
        }
    }

    /// Forgets the frames that end after `end`.
    pub(super) fn truncate(&mut self, end: LogPosition) {
        while self.frames.back().is_some_and(|last| last.end() > end) {
            if let Some(last) = self.frames.pop_back() {
                self.bytes -= last.len();
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
    }

    /// The frames from the one that starts at `from`, at least one, until `max_bytes`; `None` when that frame is not here.
    pub(super) fn frames_from(&self, from: LogPosition, max_bytes: usize) -> Option<Vec<Frame>> {
        let first = self.frames.partition_point(|frame| frame.start() < from);
        if self.frames.get(first)?.start() != from {
            return None;
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        for frame in self.frames.range(first..) {
            bytes += frame.len();
            if !taken.is_empty() && bytes > max_bytes {
                break;
            }
            taken.push(frame.clone());
        }
        Some(taken)
    }

    /// As [`TailCache::frames_from`], from the frame that holds the record at `from`, epoch starts left out, below
    /// `below`. Empty when that frame reaches above `below`.
    pub(super) fn records_from(
        &self,
        from: Offset,
        max_bytes: usize,
        below: Offset,
    ) -> Option<Vec<Frame>> {
        let first = self
            .frames
            .partition_point(|frame| frame.end_offset() <= from);
        if self.frames.get(first)?.base_offset() > from {
            return None;
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        for frame in self.frames.range(first..) {
            if frame.end_offset() > below {
                break;
            }
            if frame.is_epoch_start() {
                continue;
            }
            bytes += frame.len();
            if !taken.is_empty() && bytes > max_bytes {
                break;
            }
            taken.push(frame.clone());
        }
        Some(taken)
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::test_frames::{at, frames, offset, start_frame};

    #[test]
    fn stays_within_its_bytes_and_ends_where_the_log_ends() {
        let all = frames(at(0, 1), 20, 100);
        let len = all[0].len();
        let mut cache = TailCache::new(5 * len);
        for frame in &all {
            cache.push(frame.clone());
            assert!(cache.bytes() <= 5 * len);
        }
        assert!(cache.frames_from(at(14, 1), 1).is_none());
        assert_eq!(cache.frames_from(at(15, 1), 1).unwrap(), all[15..16]);
        assert_eq!(cache.frames_from(at(15, 1), usize::MAX).unwrap(), all[15..]);
        cache.truncate(at(17, 1));
        assert_eq!(
            cache.frames_from(at(15, 1), usize::MAX).unwrap(),
            all[15..17]
        );
        assert_eq!(cache.bytes(), 2 * len);
        let mut tiny = TailCache::new(len - 1);
        tiny.push(all[0].clone());
        assert_eq!(tiny.bytes(), 0);
    }

    #[test]
    fn an_epoch_start_is_a_position_but_no_record() {
        let mut cache = TailCache::new(1 << 20);
        let first = frames(at(0, 1), 2, 0);
        let start = start_frame(2, at(2, 1));
        let second = frames(at(2, 2), 2, 0);
        for frame in first.iter().chain([&start]).chain(&second) {
            cache.push(frame.clone());
        }
        assert_eq!(cache.frames_from(at(2, 1), 1).unwrap(), [start]);
        let records = cache
            .records_from(offset(1), usize::MAX, offset(3))
            .unwrap();
        assert_eq!(records, [first[1].clone(), second[0].clone()]);
        cache.truncate(at(2, 1));
        assert!(cache.frames_from(at(2, 1), 1).is_none());
    }
}
