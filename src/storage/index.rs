//! A segment's sparse index: from positions and timestamps to byte places, and the transactions that are aborted in it. Always
//! rebuildable from the segment.
//!
//! The active segment's index lives in memory. Once a segment is sealed and synced its index is written beside it, as
//! `<base offset>.idx`, so that opening a log need not read sealed segments. All integers are big-endian.
//!
//! ```text
//!  byte  length  field
//!     0       4  magic              "QIDX"
//!     4       4  version            2; 1 has no aborted transactions
//!     8       8  segment length     in bytes; an index that does not match its segment is rebuilt
//!    16      12  start              of the segment: offset (8), epoch of the frame before it (4)
//!    28      12  end                of the segment: offset (8), epoch of its last frame (4)
//!    40       8  first timestamp    largest timestamp of the first batch, ms since 1970; -1: none
//!    48       8  largest timestamp  of the segment, ms since 1970; -1: none
//!    56       4  number of entries
//!    60       4  number of epoch starts
//!    64      28  each entry: start of a frame (8 + 4), its byte (8), largest timestamp before it (8)
//!     …      12  each epoch start: epoch (4), offset (8)
//!     …       4  number of aborted transactions
//!     …      32  each, in the order of their markers: offset of the marker (8), first offset (8), producer id (8), last stable
//!                offset behind the marker (8)
//!     …       4  CRC-32 over everything before
//! ```

use std::path::Path;

use bytes::{Buf, BufMut};

use super::file_system::{FileSystem, IoFailure, OpenMode, read_small};
use crate::record::{AbortedTransaction, Batch, BatchHeader, Marker};
use crate::types::{EpochEntry, LeaderEpoch, LogPosition, Offset, ProducerId};
use crate::wal::Frame;

const MAGIC: [u8; 4] = *b"QIDX";
const VERSION: u32 = 2;
/// As builds that knew no transactions wrote it.
const WITHOUT_ABORTED: u32 = 1;
const FIXED_LEN: usize = 64;
const ENTRY_LEN: usize = 28;
const EPOCH_LEN: usize = 12;
const ABORTED_LEN: usize = 32;
/// The most transactions that are aborted in one segment: a frame that could bring another goes into a new one. In memory they
/// take 2 MB.
pub(super) const MAX_ABORTED: usize = if cfg!(test) { 64 } else { 65_536 };
/// Far above what the largest segment needs; a longer file is not read but rebuilt.
pub(super) const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// A timestamp of "none", as Kafka writes it.
pub(super) const NO_TIMESTAMP: i64 = -1;

/// One frame that can be found without reading those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub start: LogPosition,
    /// Where the frame begins in the segment's file.
    pub byte: u64,
    /// The largest timestamp in the segment before this frame.
    pub max_timestamp_before: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentIndex {
    /// Places rise. The first frame always has one.
    entries: Vec<IndexEntry>,
    /// Epoch starts in the segment.
    pub epochs: Vec<EpochEntry>,
    /// Transactions whose abort markers are in the segment, in the order of the markers; what is stable behind each never falls.
    pub aborted: Vec<AbortedTransaction>,
    pub first_timestamp: i64,
    pub max_timestamp: i64,
}

/// What the index file says about the segment it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SealedSegment {
    pub len: u64,
    pub start: LogPosition,
    pub end: LogPosition,
}

/// How much is in an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct IndexLens {
    entries: usize,
    epochs: usize,
    aborted: usize,
}

impl Default for SegmentIndex {
    fn default() -> SegmentIndex {
        SegmentIndex {
            entries: Vec::new(),
            epochs: Vec::new(),
            aborted: Vec::new(),
            first_timestamp: NO_TIMESTAMP,
            max_timestamp: NO_TIMESTAMP,
        }
    }
}

impl SegmentIndex {
    /// Adds the frame that was appended at `byte`; an entry is made when the last one is `interval` bytes back.
    pub(super) fn add(&mut self, frame: &Frame, byte: u64, interval: u64) {
        let due = self
            .entries
            .last()
            .is_none_or(|last| byte - last.byte >= interval);
        if due {
            self.entries.push(IndexEntry {
                start: frame.start(),
                byte,
                max_timestamp_before: self.max_timestamp,
            });
        }
        if frame.is_epoch_start() {
            self.epochs.push(EpochEntry {
                epoch: frame.leader_epoch(),
                start: frame.base_offset(),
            });
        } else {
            let timestamp = max_timestamp(frame);
            if self.first_timestamp == NO_TIMESTAMP {
                self.first_timestamp = timestamp;
            }
            self.max_timestamp = self.max_timestamp.max(timestamp);
            self.aborted.extend(aborted_by(frame));
        }
    }

    pub(super) const fn lens(&self) -> IndexLens {
        IndexLens {
            entries: self.entries.len(),
            epochs: self.epochs.len(),
            aborted: self.aborted.len(),
        }
    }

    /// What came since it was `lens` long, to be [carried on](SegmentIndex::carry_on) with.
    pub(super) fn since(&self, lens: IndexLens) -> SegmentIndex {
        fn rest<T: Copy>(all: &[T], from: usize) -> Vec<T> {
            all.get(from..).unwrap_or_default().to_vec()
        }
        SegmentIndex {
            entries: rest(&self.entries, lens.entries),
            epochs: rest(&self.epochs, lens.epochs),
            aborted: rest(&self.aborted, lens.aborted),
            ..*self
        }
    }

    /// Adds what [`SegmentIndex::since`] found in this index later on.
    pub(super) fn carry_on(&mut self, later: SegmentIndex) {
        self.entries.extend(later.entries);
        self.epochs.extend(later.epochs);
        self.aborted.extend(later.aborted);
        self.first_timestamp = later.first_timestamp;
        self.max_timestamp = later.max_timestamp;
    }

    /// Adds to `found` the transactions that are aborted in this segment, or at least one record of which is aborted here, and
    /// which have records between `from` and `to`. False once no later segment can have any.
    pub(super) fn add_aborted(
        &self,
        from: Offset,
        to: Offset,
        found: &mut Vec<AbortedTransaction>,
    ) -> bool {
        let first = self.aborted.partition_point(|entry| entry.last < from);
        for entry in &self.aborted[first..] {
            if entry.first < to {
                found.push(*entry);
            }
            // All that began before it have ended by now.
            if entry.stable >= to {
                return false;
            }
        }
        true
    }

    /// Where to begin looking for the frame that starts at `position`: `None` when it is before the first.
    pub(super) fn before_position(&self, position: LogPosition) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|e| e.start <= position);
        after.checked_sub(1).map(|i| self.entries[i])
    }

    /// Where to begin looking for the frame that holds `offset`.
    pub(super) fn before_offset(&self, offset: Offset) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|e| e.start.offset <= offset);
        after.checked_sub(1).map(|i| self.entries[i])
    }

    /// Where to begin looking for the first batch with a timestamp of at least `timestamp`.
    pub(super) fn before_timestamp(&self, timestamp: i64) -> Option<IndexEntry> {
        let after = self
            .entries
            .partition_point(|e| e.max_timestamp_before < timestamp);
        after.checked_sub(1).map(|i| self.entries[i])
    }

    pub(super) fn encode(&self, segment: &SealedSegment) -> Vec<u8> {
        let len = FIXED_LEN
            + self.entries.len() * ENTRY_LEN
            + self.epochs.len() * EPOCH_LEN
            + 4
            + self.aborted.len() * ABORTED_LEN
            + 4;
        let mut out = Vec::with_capacity(len);
        out.put_slice(&MAGIC);
        out.put_u32(VERSION);
        out.put_u64(segment.len);
        put_position(&mut out, segment.start);
        put_position(&mut out, segment.end);
        out.put_i64(self.first_timestamp);
        out.put_i64(self.max_timestamp);
        out.put_u32(self.entries.len() as u32);
        out.put_u32(self.epochs.len() as u32);
        for entry in &self.entries {
            put_position(&mut out, entry.start);
            out.put_u64(entry.byte);
            out.put_i64(entry.max_timestamp_before);
        }
        for epoch in &self.epochs {
            out.put_u32(epoch.epoch.get());
            out.put_u64(epoch.start.get());
        }
        out.put_u32(self.aborted.len() as u32);
        for aborted in &self.aborted {
            out.put_u64(aborted.last.get());
            out.put_u64(aborted.first.get());
            out.put_i64(aborted.producer.get());
            out.put_u64(aborted.stable.get());
        }
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }

    /// `None` for anything that is not a whole, unharmed index: it is then rebuilt.
    pub(super) fn decode(bytes: &[u8]) -> Option<(SealedSegment, SegmentIndex)> {
        let (mut body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_be_bytes(*crc) || body.len() < FIXED_LEN {
            return None;
        }
        if body[..4] != MAGIC {
            return None;
        }
        body.advance(4);
        let version = body.get_u32();
        if version != VERSION && version != WITHOUT_ABORTED {
            return None;
        }
        let segment = SealedSegment {
            len: body.get_u64(),
            start: get_position(&mut body)?,
            end: get_position(&mut body)?,
        };
        let first_timestamp = body.get_i64();
        let max_timestamp = body.get_i64();
        let entry_count = body.get_u32() as usize;
        let epoch_count = body.get_u32() as usize;
        let expected = entry_count
            .checked_mul(ENTRY_LEN)?
            .checked_add(epoch_count.checked_mul(EPOCH_LEN)?)?;
        let aborted_len = body.len().checked_sub(expected)?;
        let mut entries = Vec::with_capacity(entry_count);
        for _ in 0..entry_count {
            entries.push(IndexEntry {
                start: get_position(&mut body)?,
                byte: body.get_u64(),
                max_timestamp_before: body.get_i64(),
            });
        }
        let mut epochs = Vec::with_capacity(epoch_count);
        for _ in 0..epoch_count {
            epochs.push(EpochEntry {
                epoch: LeaderEpoch::new(body.get_u32())?,
                start: Offset::new(body.get_u64())?,
            });
        }
        let aborted = match version {
            WITHOUT_ABORTED if aborted_len == 0 => Vec::new(),
            VERSION => get_aborted(body)?,
            _ => return None,
        };
        let index = SegmentIndex {
            entries,
            epochs,
            aborted,
            first_timestamp,
            max_timestamp,
        };
        Some((segment, index))
    }

    /// Writes the file, unsynced: it carries a checksum, and what is lost is rebuilt.
    pub(super) fn write(
        &self,
        fs: &dyn FileSystem,
        path: &Path,
        segment: &SealedSegment,
    ) -> Result<(), IoFailure> {
        let bytes = self.encode(segment);
        let file = fs
            .open(path, OpenMode::Create)
            .map_err(IoFailure::at("create", path))?;
        file.set_len(0).map_err(IoFailure::at("write", path))?;
        file.write_at(0, &[std::io::IoSlice::new(&bytes)])
            .map_err(IoFailure::at("write", path))
    }

    /// `None` when the file is missing or unusable.
    pub(super) fn read(fs: &dyn FileSystem, path: &Path) -> Option<(SealedSegment, SegmentIndex)> {
        let bytes = read_small(fs, path, MAX_FILE_BYTES).ok()??;
        SegmentIndex::decode(&bytes)
    }
}

/// The largest timestamp of the frame's batch in ms since 1970, [`NO_TIMESTAMP`] when it has none.
///
/// Storage does not decode batches, but retention and the time index need this one number. In a Kafka v2 batch it stands
/// at byte 35, after base offset (8), batch length (4), leader epoch (4), magic (1), CRC (4), attributes (2), last offset
/// delta (4) and base timestamp (8). The batch was checked when it was produced; a shorter payload has no timestamp.
pub(super) fn max_timestamp(frame: &Frame) -> i64 {
    const MAX_TIMESTAMP_AT: usize = 35;
    const MAGIC_AT: usize = 16;
    let payload = &frame.bytes()[crate::wal::HEADER_LEN..];
    if payload.get(MAGIC_AT) != Some(&2) {
        return NO_TIMESTAMP;
    }
    payload
        .get(MAX_TIMESTAMP_AT..)
        .and_then(|rest| rest.first_chunk::<8>())
        .map_or(NO_TIMESTAMP, |bytes| i64::from_be_bytes(*bytes))
}

/// Whether the frame's batch is a control batch: see [`max_timestamp`] for why storage looks into it.
pub(super) fn is_control(frame: &Frame) -> bool {
    BatchHeader::decode(&frame.bytes()[crate::wal::HEADER_LEN..])
        .is_ok_and(|header| header.is_control())
}

/// The transaction that the frame's batch aborts, if it is a marker that does.
fn aborted_by(frame: &Frame) -> Option<AbortedTransaction> {
    if !is_control(frame) {
        return None;
    }
    let batch = Batch::decode(&frame.payload()).ok()?;
    let aborted = AbortedTransaction::new(&Marker::read(&batch)?, frame.base_offset())?;
    (aborted.first < aborted.last).then_some(aborted)
}

fn get_aborted(mut input: &[u8]) -> Option<Vec<AbortedTransaction>> {
    let count = input.try_get_u32().ok()? as usize;
    if input.len() != count.checked_mul(ABORTED_LEN)? {
        return None;
    }
    let mut aborted = Vec::with_capacity(count);
    for _ in 0..count {
        aborted.push(AbortedTransaction {
            last: Offset::new(input.get_u64())?,
            first: Offset::new(input.get_u64())?,
            producer: ProducerId::new(input.get_i64())?,
            stable: Offset::new(input.get_u64())?,
        });
    }
    Some(aborted)
}

fn put_position(out: &mut Vec<u8>, position: LogPosition) {
    out.put_u64(position.offset.get());
    out.put_u32(position.epoch.get());
}

fn get_position(input: &mut &[u8]) -> Option<LogPosition> {
    let offset = Offset::new(input.get_u64())?;
    let epoch = LeaderEpoch::new(input.get_u32())?;
    Some(LogPosition::new(offset, epoch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::test_frames::{batch, frame_with_timestamp, start_frame};

    fn sample() -> (SealedSegment, SegmentIndex) {
        let mut index = SegmentIndex::default();
        let mut byte = 0;
        let mut end = LogPosition::START;
        let frame = start_frame(1, end);
        index.add(&frame, byte, 100);
        byte += frame.len() as u64;
        end = frame.end();
        for i in 0..10 {
            let frame = frame_with_timestamp(end, 1, 1000 + i);
            index.add(&frame, byte, 100);
            byte += frame.len() as u64;
            end = frame.end();
        }
        let segment = SealedSegment {
            len: byte,
            start: LogPosition::START,
            end,
        };
        (segment, index)
    }

    #[test]
    fn comes_back_and_any_flipped_bit_is_noticed() {
        let (segment, index) = sample();
        let bytes = index.encode(&segment);
        assert_eq!(SegmentIndex::decode(&bytes), Some((segment, index)));
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentIndex::decode(&bytes), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(SegmentIndex::decode(&bytes[..len]), None);
        }
    }

    #[test]
    fn a_lookup_never_lands_behind_what_it_looks_for() {
        let (segment, index) = sample();
        for offset in 0..segment.end.offset.get() {
            let offset = Offset::new(offset).unwrap();
            let entry = index.before_offset(offset).unwrap();
            assert!(entry.start.offset <= offset);
        }
        assert_eq!(index.before_timestamp(0).unwrap().byte, 0);
        for timestamp in 1000..1010 {
            let entry = index.before_timestamp(timestamp).unwrap();
            assert!(entry.max_timestamp_before < timestamp);
        }
        assert_eq!(index.max_timestamp, 1009);
        assert_eq!(index.first_timestamp, 1000);
    }

    #[test]
    fn an_index_of_a_build_without_transactions_is_read() {
        let (segment, index) = sample();
        let mut bytes = index.encode(&segment);
        bytes.truncate(bytes.len() - 8);
        bytes[4..8].copy_from_slice(&WITHOUT_ABORTED.to_be_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        assert_eq!(SegmentIndex::decode(&bytes), Some((segment, index)));
    }

    #[test]
    fn aborted_transactions_are_found_by_what_is_read() {
        let aborted = |first, last, stable| AbortedTransaction {
            last: Offset::new(last).unwrap(),
            first: Offset::new(first).unwrap(),
            producer: ProducerId::new(1).unwrap(),
            stable: Offset::new(stable).unwrap(),
        };
        let (segment, mut index) = sample();
        index.aborted = vec![
            aborted(0, 2, 1),
            aborted(1, 5, 6),
            aborted(7, 9, 8),
            aborted(8, 20, 21),
        ];
        let bytes = index.encode(&segment);
        assert_eq!(SegmentIndex::decode(&bytes), Some((segment, index.clone())));
        let found = |from, to| {
            let mut found = Vec::new();
            let go_on = index.add_aborted(
                Offset::new(from).unwrap(),
                Offset::new(to).unwrap(),
                &mut found,
            );
            let firsts: Vec<u64> = found.iter().map(|a| a.first.get()).collect();
            (firsts, go_on)
        };
        assert_eq!(found(0, 1), (vec![0], false));
        assert_eq!(found(0, 4), (vec![0, 1], false));
        assert_eq!(found(3, 8), (vec![1, 7], false));
        assert_eq!(found(10, 12), (vec![8], false));
        assert_eq!(found(10, 22), (vec![8], true));
        assert_eq!(found(21, 22), (vec![], true));
    }

    #[test]
    fn a_payload_that_is_no_batch_has_no_timestamp() {
        let end = start_frame(1, LogPosition::START).end();
        assert_eq!(max_timestamp(&frame_with_timestamp(end, 1, 77)), 77);
        for len in 1..43 {
            let payload = &batch(1, 77, 0)[..len];
            let frame = Frame::records(
                end.epoch,
                end,
                end.offset.checked_add(1).unwrap(),
                &[payload],
            );
            assert_eq!(max_timestamp(&frame), NO_TIMESTAMP, "{len}");
        }
    }
}
