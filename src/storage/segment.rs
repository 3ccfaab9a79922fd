//! Segment files: their names, and reading the frames in them one after the other.
//!
//! A segment is `<base offset, 20 digits>.wal`: WAL frames and nothing else. The last one of a log is *active*, the others
//! are *sealed* and never change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use super::file_system::{File, IoFailure, read_up_to};
use crate::types::{LogPosition, Offset};
use crate::wal::{Decoded, Frame, FrameError, FrameHeader, HEADER_LEN};

const SEGMENT_SUFFIX: &str = ".wal";
const INDEX_SUFFIX: &str = ".idx";
const DIGITS: usize = 20;

/// How much is read from a segment at once where nothing else decides.
pub(super) const SCAN_CHUNK: usize = 256 * 1024;

pub(super) fn segment_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}{SEGMENT_SUFFIX}", base.get()))
}

pub(super) fn index_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}{INDEX_SUFFIX}", base.get()))
}

/// The base offset of a segment file by its name; `None` for any other file.
pub(super) fn parse_segment_name(name: &str) -> Option<Offset> {
    parse_name(name, SEGMENT_SUFFIX)
}

/// The base offset of an index file by its name; `None` for any other file.
pub(super) fn parse_index_name(name: &str) -> Option<Offset> {
    parse_name(name, INDEX_SUFFIX)
}

/// The offset that names a file with `suffix`; `None` for any other file.
pub(super) fn parse_name(name: &str, suffix: &str) -> Option<Offset> {
    let digits = name.strip_suffix(suffix)?;
    if digits.len() != DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Offset::new(digits.parse().ok()?)
}

/// A place in a log's files where a frame should be and is not.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{} at byte {byte}: {cause}", path.display())]
pub struct BadFrame {
    pub path: PathBuf,
    /// Where the frame begins in the file.
    pub byte: u64,
    pub cause: FrameFault,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameFault {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the file ends inside a frame: {available} of {needed} bytes are there")]
    Cut { needed: u64, available: u64 },
    #[error(
        "the frame follows a log that ends at {found} (offset@epoch), and this one ends at {expected}"
    )]
    DoesNotFit {
        expected: LogPosition,
        found: LogPosition,
    },
    #[error("the file is missing: records from offset {from} on are gone")]
    Missing { from: Offset },
    #[error("the disk cannot read it (EIO)")]
    Unreadable,
    #[error("the log ends at {end} (offset@epoch), but it had been synced up to {flushed}")]
    Short {
        end: LogPosition,
        flushed: LogPosition,
    },
}

/// Why a segment could not be read on.
#[derive(Debug, Error)]
pub(super) enum CursorError {
    #[error(transparent)]
    Io(#[from] IoFailure),
    #[error(transparent)]
    Bad(#[from] BadFrame),
}

/// Reads a segment's frames in order, a chunk at a time.
pub(super) struct FrameCursor {
    file: Arc<dyn File>,
    path: PathBuf,
    /// Where the next frame begins.
    byte: u64,
    /// Where the segment ends.
    limit: u64,
    chunk: usize,
    /// What has been read from `byte` on.
    buffer: Bytes,
    /// Where the log ends before the next frame, when that is known.
    expected: Option<LogPosition>,
}

impl FrameCursor {
    /// From `byte`, where a frame begins, up to `limit`. With `expected`, each frame must follow the one before it.
    pub(super) fn new(
        file: Arc<dyn File>,
        path: PathBuf,
        byte: u64,
        limit: u64,
        expected: Option<LogPosition>,
        chunk: usize,
    ) -> FrameCursor {
        FrameCursor {
            file,
            path,
            byte,
            limit,
            chunk: chunk.max(HEADER_LEN),
            buffer: Bytes::new(),
            expected,
        }
    }

    /// Where the next frame begins.
    pub(super) const fn byte(&self) -> u64 {
        self.byte
    }

    /// The next frame; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, CursorError> {
        if self.byte >= self.limit {
            return Ok(None);
        }
        loop {
            match Frame::decode(&self.buffer) {
                Ok(Decoded::Frame(frame)) => {
                    if let Some(expected) = self.expected
                        && frame.start() != expected
                    {
                        return Err(self.bad(FrameFault::DoesNotFit {
                            expected,
                            found: frame.start(),
                        }));
                    }
                    self.expected = Some(frame.end());
                    self.buffer = self.buffer.slice(frame.len()..);
                    self.byte += frame.len() as u64;
                    return Ok(Some(frame));
                }
                Ok(Decoded::Incomplete { needed }) => self.fill(needed)?,
                Err(error) => return Err(self.bad(error.into())),
            }
        }
    }

    /// Skips the next frame without reading its payload, so without checking its CRC, while its end satisfies `skip`.
    /// Returns whether it did. A header that cannot be read is left for [`FrameCursor::next`] to judge.
    pub(super) fn skip_if(
        &mut self,
        skip: impl FnOnce(&FrameHeader) -> bool,
    ) -> Result<bool, CursorError> {
        if self.byte >= self.limit {
            return Ok(false);
        }
        if self.buffer.len() < HEADER_LEN {
            self.fill(HEADER_LEN)?;
        }
        let Ok(Some(header)) = FrameHeader::parse(&self.buffer) else {
            return Ok(false);
        };
        let end = self.byte + header.frame_len() as u64;
        if end > self.limit || self.expected.is_some_and(|e| e != header.start()) || !skip(&header)
        {
            return Ok(false);
        }
        let in_buffer = header.frame_len().min(self.buffer.len());
        self.buffer = self.buffer.slice(in_buffer..);
        self.byte = end;
        self.expected = Some(header.end());
        Ok(true)
    }

    fn fill(&mut self, needed: usize) -> Result<(), CursorError> {
        let available = self.limit - self.byte;
        if needed as u64 > available {
            return Err(self.bad(FrameFault::Cut {
                needed: needed as u64,
                available,
            }));
        }
        let wanted = (needed.max(self.chunk) as u64).min(available) as usize;
        let read = read_up_to(&*self.file, self.byte, wanted)
            .map_err(IoFailure::at("read", &self.path))?;
        if read.len() < needed {
            return Err(self.bad(FrameFault::Cut {
                needed: needed as u64,
                available: read.len() as u64,
            }));
        }
        self.buffer = read.into();
        Ok(())
    }

    fn bad(&self, cause: FrameFault) -> CursorError {
        CursorError::Bad(BadFrame {
            path: self.path.clone(),
            byte: self.byte,
            cause,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_their_offsets_do_and_come_back() {
        let base = Offset::new(1234).unwrap();
        let path = segment_path(Path::new("/d"), base);
        assert_eq!(path, Path::new("/d/00000000000000001234.wal"));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(parse_segment_name(name), Some(base));
        assert_eq!(parse_index_name(name), None);
        for wrong in [
            "1234.wal",
            "00000000000000001234.wal.new",
            "+0000000000000001234.wal",
            "99999999999999999999.wal",
        ] {
            assert_eq!(parse_segment_name(wrong), None, "{wrong}");
        }
    }
}
