//! The index of the active segment as far as it was synced: so that opening a log need not read all of its last segment, which
//! may be as long as a segment can be.
//!
//! The file `tail-index` is a row of blocks, each of which carries on the one before. One is appended when a log's share of the
//! budget (`recovery_budget.rs`) has been written since the last, after the sync that covers it: so a block is also a recovery
//! checkpoint, which costs no sync of its own. All integers are big-endian. A block is
//!
//! ```text
//!  byte  length  field
//!     0       4  length   of the index in bytes
//!     4       8  lineage  of the log, see [`super::DurableMark::lineage`]
//!    12       8  base     offset of the segment
//!    20       …  index    as `index.rs` writes it, of the frames since the block before
//!     …       4  CRC-32   over everything before
//! ```
//!
//! It is written unsynced: what a power cut takes is read again from the segment. Blocks of another lineage or segment say
//! nothing, and neither does anything behind the first that is damaged or does not follow.

use std::io::IoSlice;
use std::path::Path;
use std::sync::OnceLock;

use bytes::{Buf, BufMut};

use super::file_system::{FileSystem, IoFailure, OpenMode, read_small};
use super::index::{IndexLens, MAX_FILE_BYTES, SealedSegment, SegmentIndex};
use super::reader::Segment;
use crate::types::{LogPosition, Offset};

const FILE: &str = "tail-index";
const HEADER_LEN: usize = 20;
const CRC_LEN: usize = 4;

/// What the file holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    base: Offset,
    lineage: u64,
    /// Where its last block ends in the file.
    file_len: u64,
    /// Where the frames that it knows end.
    end: LogPosition,
    lens: IndexLens,
}

/// What a ticket adds to the file.
pub(super) struct TailPart {
    base: Offset,
    lineage: u64,
    /// Where in the file, behind what is there. 0 replaces all of it.
    at: u64,
    /// The frames that are added; `len` is where in the segment they end.
    frames: SealedSegment,
    index: SegmentIndex,
    /// Of the whole index.
    lens: IndexLens,
    written: OnceLock<Written>,
}

impl TailPart {
    /// Of the active segment, as far as it goes now. `before` is what the file is known to hold.
    pub(super) fn new(
        before: Option<Written>,
        segment: &Segment,
        index: &SegmentIndex,
        lineage: u64,
    ) -> TailPart {
        let before = before.filter(|known| known.base == segment.base && known.lineage == lineage);
        let known = before.map_or(IndexLens::default(), |known| known.lens);
        TailPart {
            base: segment.base,
            lineage,
            at: before.map_or(0, |known| known.file_len),
            frames: SealedSegment {
                len: segment.len,
                start: before.map_or(segment.start, |known| known.end),
                end: segment.end,
            },
            index: index.since(known),
            lens: index.lens(),
            written: OnceLock::new(),
        }
    }

    pub(super) fn write(&self, fs: &dyn FileSystem, dir: &Path) -> Result<(), IoFailure> {
        let path = dir.join(FILE);
        let block = self.encode();
        let file = fs
            .open(&path, OpenMode::Create)
            .map_err(IoFailure::at("create", &path))?;
        file.set_len(self.at)
            .map_err(IoFailure::at("write", &path))?;
        file.write_at(self.at, &[IoSlice::new(&block)])
            .map_err(IoFailure::at("write", &path))?;
        let _ = self.written.set(Written {
            base: self.base,
            lineage: self.lineage,
            file_len: self.at + block.len() as u64,
            end: self.frames.end,
            lens: self.lens,
        });
        Ok(())
    }

    /// What the file holds now, if this was written.
    pub(super) fn written(&self) -> Option<Written> {
        self.written.get().copied()
    }

    fn encode(&self) -> Vec<u8> {
        let index = self.index.encode(&self.frames);
        let mut out = Vec::with_capacity(HEADER_LEN + index.len() + CRC_LEN);
        out.put_u32(index.len() as u32);
        out.put_u64(self.lineage);
        out.put_u64(self.base.get());
        out.put_slice(&index);
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }
}

struct Block {
    lineage: u64,
    base: u64,
    frames: SealedSegment,
    index: SegmentIndex,
}

/// The block that `input` begins with, and what is behind it.
fn decode(input: &[u8]) -> Option<(Block, &[u8])> {
    let index_len = input
        .first_chunk::<4>()
        .map(|len| u32::from_be_bytes(*len))? as usize;
    let block_len = index_len.checked_add(HEADER_LEN + CRC_LEN)?;
    let (block, rest) = input.split_at_checked(block_len)?;
    let (mut body, crc) = block.split_last_chunk::<CRC_LEN>()?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return None;
    }
    body.advance(4);
    let (lineage, base) = (body.get_u64(), body.get_u64());
    let (frames, index) = SegmentIndex::decode(body)?;
    let block = Block {
        lineage,
        base,
        frames,
        index,
    };
    Some((block, rest))
}

/// How far the segment at `start` was synced, and its index up to there. `lineage` is the recovery checkpoint's.
pub(super) fn read(
    fs: &dyn FileSystem,
    dir: &Path,
    start: LogPosition,
    lineage: u64,
) -> Option<(SealedSegment, SegmentIndex)> {
    let bytes = read_small(fs, &dir.join(FILE), MAX_FILE_BYTES).ok()??;
    let mut rest = bytes.as_slice();
    let mut known = SealedSegment {
        len: 0,
        start,
        end: start,
    };
    let mut index = SegmentIndex::default();
    while let Some((block, behind)) = decode(rest) {
        let is_next = block.lineage == lineage
            && block.base == start.offset.get()
            && block.frames.start == known.end
            && block.frames.len > known.len;
        if !is_next {
            break;
        }
        known.len = block.frames.len;
        known.end = block.frames.end;
        index.carry_on(block.index);
        rest = behind;
    }
    (known.len > 0).then_some((known, index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::AbortedTransaction;
    use crate::storage::faulty::FaultyFileSystem;
    use crate::storage::test_frames::{at, frames, start_frame};
    use crate::types::ProducerId;

    const LINEAGE: u64 = 7;

    /// A file of three blocks, and after each what it vouches for.
    fn filled(fs: &FaultyFileSystem) -> Vec<(SealedSegment, SegmentIndex)> {
        let mut index = SegmentIndex::default();
        let mut segment = Segment::new(Offset::ZERO, at(0, 0)..at(0, 0), 0, &index);
        let mut written = None;
        let mut stages = Vec::new();
        let add = |index: &mut SegmentIndex, segment: &mut Segment, frame: &crate::wal::Frame| {
            index.add(frame, segment.len, 200);
            segment.len += frame.len() as u64;
            segment.end = frame.end();
        };
        add(&mut index, &mut segment, &start_frame(1, at(0, 0)));
        for _ in 0..3 {
            for frame in frames(segment.end, 5, 100) {
                add(&mut index, &mut segment, &frame);
            }
            index.aborted.push(AbortedTransaction {
                first: segment.start.offset,
                last: segment.end.offset,
                producer: ProducerId::new(1).unwrap(),
                stable: segment.end.offset,
            });
            let part = TailPart::new(written, &segment, &index, LINEAGE);
            part.write(fs, Path::new("/")).unwrap();
            written = part.written();
            stages.push((segment.sealed(), index.clone()));
        }
        stages
    }

    fn read(fs: &FaultyFileSystem) -> Option<(SealedSegment, SegmentIndex)> {
        super::read(fs, Path::new("/"), at(0, 0), LINEAGE)
    }

    #[test]
    fn blocks_add_up_to_the_index_of_their_segment_and_say_nothing_of_another() {
        let fs = FaultyFileSystem::new(0);
        let stages = filled(&fs);
        assert!(stages[0].1.lens() != stages[1].1.lens());
        assert_eq!(read(&fs).as_ref(), stages.last());
        let dir = Path::new("/");
        assert_eq!(super::read(&fs, dir, at(0, 0), LINEAGE + 1), None);
        assert_eq!(super::read(&fs, dir, at(5, 1), LINEAGE), None);
    }

    #[test]
    fn what_is_behind_any_damage_is_not_believed() {
        let fs = FaultyFileSystem::new(0);
        let stages = filled(&fs);
        let path = Path::new("/").join(FILE);
        let len = fs.contents(&path).unwrap().len() as u64;
        let mut seen = [false; 3];
        for bit in 0..len * 8 {
            fs.flip_bit(&path, bit).unwrap();
            let found = read(&fs);
            let stage = match &found {
                None => 0,
                Some(found) => 1 + stages.iter().position(|stage| stage == found).unwrap(),
            };
            assert!(stage < 3, "bit {bit}");
            seen[stage] = true;
            fs.flip_bit(&path, bit).unwrap();
        }
        assert_eq!(seen, [true; 3]);
        let file = fs.open(&path, OpenMode::Write).unwrap();
        for len in (0..len).rev() {
            file.set_len(len).unwrap();
            assert_ne!(read(&fs).as_ref(), Some(&stages[2]));
        }
    }

    #[test]
    fn another_segment_or_lineage_begins_the_file_anew() {
        let fs = FaultyFileSystem::new(0);
        let stages = filled(&fs);
        let (sealed, index) = &stages[2];
        let segment = Segment::new(Offset::ZERO, sealed.start..sealed.end, sealed.len, index);
        let old = TailPart::new(None, &segment, index, LINEAGE);
        old.write(&fs, Path::new("/")).unwrap();
        let new = TailPart::new(old.written(), &segment, index, LINEAGE + 1);
        new.write(&fs, Path::new("/")).unwrap();
        assert_eq!(read(&fs), None);
        let found = super::read(&fs, Path::new("/"), at(0, 0), LINEAGE + 1);
        assert_eq!(found, Some((*sealed, index.clone())));
    }
}
