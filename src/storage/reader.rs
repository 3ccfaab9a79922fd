//! Reading a log, from its owner's thread or any other, without holding up the writer: what is looked up under the lock is
//! memory only, and the disk is read outside it.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use thiserror::Error;

use super::compaction::rest_of;
use super::file_system::{File, FileSystem, IoFailure, OpenMode, is_media_error};
use super::index::{IndexEntry, SealedSegment, SegmentIndex, max_timestamp};
use super::segment::{BadFrame, CursorError, FrameCursor, SCAN_CHUNK, index_path, segment_path};
use super::sync::DurableMark;
use super::tail_cache::TailCache;
use crate::record::{Batch, records};
use crate::types::{LogPosition, Offset};
use crate::wal::{Frame, MAX_FRAME_BYTES};

/// How many indexes of sealed segments a log keeps in memory: as many consumers can read old records at different places
/// without reading an index anew for each fetch. About 30 bytes per index interval each.
pub(super) const CACHED_INDEXES: usize = 4;
/// The least that a disk read asks for, and the most that it asks for at once beyond one frame.
const MIN_CHUNK: usize = 64 * 1024;
const MAX_CHUNK: usize = 1024 * 1024;
/// How often a read begins anew because the log was truncated or trimmed under it. It cannot happen without end: each time
/// the owner has changed the log.
const MAX_RETRIES: usize = 16;

/// What the owner writes and readers read.
pub(super) struct Shared {
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) dir: PathBuf,
    state: RwLock<State>,
    /// Newest last.
    indexes: Mutex<VecDeque<(SealedSegment, Arc<SegmentIndex>)>>,
}

pub(super) struct State {
    /// Where the first frame of the log starts.
    pub(super) start: LogPosition,
    pub(super) end: LogPosition,
    /// Oldest first, without a gap; the last one is active. Empty only when the log is.
    pub(super) segments: Vec<Segment>,
    /// Of the last segment.
    pub(super) active_index: SegmentIndex,
    pub(super) active_file: Option<Arc<dyn File>>,
    pub(super) tail: TailCache,
    /// Rises when anything but an append happens, so that a reader can tell a changed log from a corrupt one.
    pub(super) generation: u64,
    pub(super) index_interval: u64,
    /// See [`LogReader::durable_mark`].
    pub(super) durable_mark: Option<DurableMark>,
}

/// One segment's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) base: Offset,
    pub(super) start: LogPosition,
    pub(super) end: LogPosition,
    pub(super) len: u64,
    pub(super) first_timestamp: i64,
    pub(super) max_timestamp: i64,
    /// How many transactions are aborted in it: where there are none, its index need not be read for them.
    pub(super) aborted: u32,
}

impl Segment {
    /// `range`: from its first frame's start to its last one's end.
    pub(super) fn new(
        base: Offset,
        range: Range<LogPosition>,
        len: u64,
        index: &SegmentIndex,
    ) -> Segment {
        Segment {
            base,
            start: range.start,
            end: range.end,
            len,
            first_timestamp: index.first_timestamp,
            max_timestamp: index.max_timestamp,
            aborted: index.aborted.len() as u32,
        }
    }

    pub(super) fn sealed(&self) -> SealedSegment {
        SealedSegment {
            len: self.len,
            start: self.start,
            end: self.end,
        }
    }

    /// About how many of its bytes hold records from `from` on: exact at its two ends, and as if all records were alike between.
    pub(super) fn bytes_from(&self, from: Offset) -> u64 {
        let (base, end) = (self.base.get(), self.end.offset.get());
        let left = end.saturating_sub(from.get().max(base));
        let all = end.saturating_sub(base);
        match all {
            0 => 0,
            // In 128 bits, because a length times a count of records may not fit in 64.
            _ => (u128::from(self.len) * u128::from(left) / u128::from(all)) as u64,
        }
    }
}

/// Why nothing was read.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("offset {wanted} is outside the log, which holds offsets {start} to {end} (exclusive)")]
    OutOfRange {
        wanted: Offset,
        start: Offset,
        end: Offset,
    },
    #[error(
        "no frame starts at {wanted} (offset@epoch): the reader follows another history and must find the shared prefix \
         again"
    )]
    NoSuchPosition { wanted: LogPosition },
    #[error(
        "the log is corrupt at {0}; restart the node to set it aside and fetch it anew from the leader"
    )]
    Corrupt(#[from] BadFrame),
    #[error(transparent)]
    Io(#[from] IoFailure),
}

impl ReadError {
    /// Whether the log has lost what it should hold: a bad frame, a missing file, a sector that cannot be read. Anything else
    /// is the reader's fault, or passes.
    pub fn is_damage(&self) -> bool {
        match self {
            ReadError::Corrupt(_) => true,
            ReadError::Io(failure) => {
                is_not_found(&failure.source) || is_media_error(&failure.source)
            }
            ReadError::OutOfRange { .. } | ReadError::NoSuchPosition { .. } => false,
        }
    }
}

/// A view of a log for other threads. Sees every append at once; `below` keeps it from what is not committed.
#[derive(Clone)]
pub struct LogReader {
    pub(super) shared: Arc<Shared>,
}

/// Frames in order, read lazily: see [`LogReader::frames`].
pub struct Frames {
    shared: Arc<Shared>,
    next: LogPosition,
    ready: std::vec::IntoIter<Frame>,
    failed: bool,
}

/// Where on the disk to begin.
struct Place {
    segment: Segment,
    file: Option<Arc<dyn File>>,
    /// Known for the active segment.
    entry: Option<IndexEntry>,
    generation: u64,
    index_interval: u64,
}

impl Shared {
    pub(super) fn new(fs: Arc<dyn FileSystem>, dir: PathBuf, state: State) -> Arc<Shared> {
        Arc::new(Shared {
            fs,
            dir,
            state: RwLock::new(state),
            indexes: Mutex::new(VecDeque::new()),
        })
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the index of one file: another that takes its place, as compaction does, has another length or another end, or the
    /// same frames.
    pub(super) fn keep_index(&self, of: SealedSegment, index: Arc<SegmentIndex>) {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        indexes.retain(|(kept, _)| kept.start != of.start);
        indexes.push_back((of, index));
        if indexes.len() > CACHED_INDEXES {
            indexes.pop_front();
        }
    }

    /// How many indexes are in memory.
    pub(super) fn kept_indexes(&self) -> usize {
        let indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        indexes.len()
    }

    pub(super) fn forget_indexes(&self) {
        self.indexes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// The index of a sealed segment: from memory, from its file, or made anew.
    pub(super) fn sealed_index(
        &self,
        segment: &Segment,
        interval: u64,
    ) -> Result<Arc<SegmentIndex>, ReadError> {
        let sealed = segment.sealed();
        let generation = {
            let indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, index)) = indexes.iter().find(|(of, _)| *of == sealed) {
                return Ok(index.clone());
            }
            drop(indexes);
            self.state().generation
        };
        let path = index_path(&self.dir, segment.base);
        let index = match SegmentIndex::read(&*self.fs, &path) {
            Some((of, index)) if of == sealed => index,
            _ => {
                let mut cursor = self.cursor(segment, None, 0, Some(segment.start), SCAN_CHUNK)?;
                let mut index = SegmentIndex::default();
                let mut byte = 0;
                while let Some(frame) = cursor.next()? {
                    index.add(&frame, byte, interval);
                    byte = cursor.byte();
                }
                // Where it cannot be kept it is made anew once more.
                let _ = index.write(&*self.fs, &path, &sealed);
                index
            }
        };
        let index = Arc::new(index);
        // Of a file that may have been replaced meanwhile nothing is kept.
        if self.state().generation == generation {
            self.keep_index(sealed, index.clone());
        }
        Ok(index)
    }

    pub(super) fn cursor(
        &self,
        segment: &Segment,
        file: Option<Arc<dyn File>>,
        byte: u64,
        expected: Option<LogPosition>,
        chunk: usize,
    ) -> Result<FrameCursor, ReadError> {
        let path = segment_path(&self.dir, segment.base);
        let file = match file {
            Some(file) => file,
            None => self
                .fs
                .open(&path, OpenMode::Read)
                .map_err(IoFailure::at("open", &path))?,
        };
        Ok(FrameCursor::new(
            file,
            path,
            byte,
            segment.len,
            expected,
            chunk,
        ))
    }

    /// Runs a read again when the log was truncated or trimmed under it.
    fn retrying<T>(
        &self,
        mut read: impl FnMut() -> Result<(T, u64), (ReadError, u64)>,
    ) -> Result<T, ReadError> {
        let mut retries = 0;
        loop {
            match read() {
                Ok((found, generation)) => {
                    if generation == self.state().generation || retries >= MAX_RETRIES {
                        return Ok(found);
                    }
                }
                Err((error, generation)) => {
                    if generation == self.state().generation || retries >= MAX_RETRIES {
                        return Err(error);
                    }
                }
            }
            retries += 1;
        }
    }

    pub(super) fn read(
        &self,
        from: LogPosition,
        max_bytes: usize,
    ) -> Result<Vec<Frame>, ReadError> {
        self.retrying(|| {
            let place = {
                let state = self.state();
                if from == state.end {
                    return Ok((Vec::new(), state.generation));
                }
                if from.offset < state.start.offset || from.offset > state.end.offset {
                    return Err((state.out_of_range(from.offset), state.generation));
                }
                if from < state.start || from > state.end {
                    return Err((ReadError::NoSuchPosition { wanted: from }, state.generation));
                }
                if let Some(frames) = state.tail.frames_from(from, max_bytes) {
                    return Ok((frames, state.generation));
                }
                state.place(
                    |segment| segment.start <= from,
                    |index| index.before_position(from),
                )
            };
            let generation = place.generation;
            self.read_frames(&place, from, max_bytes)
                .map(|frames| (frames, generation))
                .map_err(|error| (error, generation))
        })
    }

    fn read_frames(
        &self,
        place: &Place,
        from: LogPosition,
        max_bytes: usize,
    ) -> Result<Vec<Frame>, ReadError> {
        let mut cursor = self.cursor_at(place, max_bytes, |i| i.before_position(from))?;
        while cursor.skip_if(|header| header.start() < from && header.end() <= from)? {}
        let mut frames = Vec::new();
        let mut bytes = 0;
        while bytes < max_bytes || frames.is_empty() {
            let Some(mut frame) = cursor.next()? else {
                break;
            };
            if frames.is_empty() && frame.start() != from {
                // Compaction joins frames; whoever has come as far as the middle of such a one gets its rest.
                frame = rest_of(&frame, from).ok_or(ReadError::NoSuchPosition { wanted: from })?;
            }
            bytes += frame.len();
            if bytes > max_bytes && !frames.is_empty() {
                break;
            }
            frames.push(frame);
        }
        if frames.is_empty() {
            return Err(ReadError::NoSuchPosition { wanted: from });
        }
        Ok(frames)
    }

    fn cursor_at(
        &self,
        place: &Place,
        max_bytes: usize,
        look_up: impl FnOnce(&SegmentIndex) -> Option<IndexEntry>,
    ) -> Result<FrameCursor, ReadError> {
        let entry = match place.file {
            Some(_) => place.entry,
            None => look_up(&*self.sealed_index(&place.segment, place.index_interval)?),
        };
        let (byte, expected) = entry.map_or((0, place.segment.start), |e| (e.byte, e.start));
        let chunk = max_bytes.clamp(MIN_CHUNK, MAX_CHUNK);
        self.cursor(
            &place.segment,
            place.file.clone(),
            byte,
            Some(expected),
            chunk,
        )
    }

    fn read_records(
        &self,
        from: Offset,
        max_bytes: usize,
        below: Offset,
    ) -> Result<Vec<Frame>, ReadError> {
        self.retrying(|| {
            let place = {
                let state = self.state();
                if from < state.start.offset || from > state.end.offset {
                    return Err((state.out_of_range(from), state.generation));
                }
                if from >= below || from == state.end.offset {
                    return Ok((Vec::new(), state.generation));
                }
                if let Some(frames) = state.tail.records_from(from, max_bytes, below) {
                    return Ok((frames, state.generation));
                }
                state.place(
                    |segment| segment.base <= from,
                    |index| index.before_offset(from),
                )
            };
            let generation = place.generation;
            self.read_batches(&place, from, max_bytes, below)
                .map(|frames| (frames, generation))
                .map_err(|error| (error, generation))
        })
    }

    fn read_batches(
        &self,
        place: &Place,
        from: Offset,
        max_bytes: usize,
        below: Offset,
    ) -> Result<Vec<Frame>, ReadError> {
        let mut cursor = self.cursor_at(place, max_bytes, |i| i.before_offset(from))?;
        while cursor.skip_if(|header| header.end_offset <= from)? {}
        let mut frames: Vec<Frame> = Vec::new();
        let mut bytes = 0;
        while bytes < max_bytes || frames.is_empty() {
            let Some(frame) = cursor.next()? else { break };
            if frame.end_offset() > below {
                break;
            }
            if frame.is_epoch_start() {
                continue;
            }
            bytes += frame.len();
            if bytes > max_bytes && !frames.is_empty() {
                break;
            }
            frames.push(frame);
        }
        Ok(frames)
    }

    /// The first batch below `below` with a timestamp of at least `timestamp`.
    fn batch_for_timestamp(
        &self,
        timestamp: i64,
        below: Offset,
    ) -> Result<Option<Frame>, ReadError> {
        self.retrying(|| {
            let place = {
                let state = self.state();
                let found = state
                    .segments
                    .iter()
                    .position(|segment| segment.max_timestamp >= timestamp);
                match found {
                    None => return Ok((None, state.generation)),
                    Some(i) => state.place_at(i, |index| index.before_timestamp(timestamp)),
                }
            };
            let generation = place.generation;
            self.search_timestamp(&place, timestamp, below)
                .map(|frame| (frame, generation))
                .map_err(|error| (error, generation))
        })
    }

    fn search_timestamp(
        &self,
        place: &Place,
        timestamp: i64,
        below: Offset,
    ) -> Result<Option<Frame>, ReadError> {
        let mut cursor = self.cursor_at(place, SCAN_CHUNK, |i| i.before_timestamp(timestamp))?;
        while let Some(frame) = cursor.next()? {
            if frame.end_offset() > below {
                return Ok(None);
            }
            if !frame.is_epoch_start() && max_timestamp(&frame) >= timestamp {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}

impl State {
    fn out_of_range(&self, wanted: Offset) -> ReadError {
        ReadError::OutOfRange {
            wanted,
            start: self.start.offset,
            end: self.end.offset,
        }
    }

    /// In the last segment that satisfies `at_or_before`, which the first one does.
    fn place(
        &self,
        at_or_before: impl Fn(&Segment) -> bool,
        look_up: impl FnOnce(&SegmentIndex) -> Option<IndexEntry>,
    ) -> Place {
        let after = self.segments.partition_point(at_or_before);
        self.place_at(after.saturating_sub(1), look_up)
    }

    /// The caller has seen that the log is not empty, so there is a segment.
    fn place_at(
        &self,
        i: usize,
        look_up: impl FnOnce(&SegmentIndex) -> Option<IndexEntry>,
    ) -> Place {
        let is_active = i + 1 == self.segments.len();
        Place {
            segment: self.segments[i],
            file: self.active_file.clone().filter(|_| is_active),
            entry: if is_active {
                look_up(&self.active_index)
            } else {
                None
            },
            generation: self.generation,
            index_interval: self.index_interval,
        }
    }
}

impl LogReader {
    /// Up to where the log is known to be on the disk, to be kept outside it: by a recent one, recovery tells rot in the
    /// log's tail from a tail that was torn. `None` for a log that does not sync its appends ([`super::Flush::Os`]): what its
    /// owner calls durable is not.
    pub fn durable_mark(&self) -> Option<DurableMark> {
        self.shared.state().durable_mark
    }

    /// Where the log begins: its first offset, and the epoch of the frame before it.
    pub fn start(&self) -> LogPosition {
        self.shared.state().start
    }

    /// Where the log ends, whether durable or not.
    pub fn end(&self) -> LogPosition {
        self.shared.state().end
    }

    /// The log start offset.
    pub fn earliest(&self) -> Offset {
        self.start().offset
    }

    /// Whole frames, the first of which starts at `from`: see [`super::Log::read`].
    pub fn read(&self, from: LogPosition, max_bytes: usize) -> Result<Vec<Frame>, ReadError> {
        self.shared.read(from, max_bytes)
    }

    /// Whole record batches, one [`Bytes`] each, that lie below `below` (the high watermark), from the one that holds the
    /// record at `from`: its earlier records come with it. Stops before `max_bytes` are exceeded, except that the first
    /// batch comes whole whatever its size. Empty when `from` is at or above `below`, or when its batch is not wholly
    /// below it. May return fewer bytes than there are.
    pub fn read_records(
        &self,
        from: Offset,
        max_bytes: usize,
        below: Offset,
    ) -> Result<Vec<Bytes>, ReadError> {
        let frames = self.shared.read_records(from, max_bytes, below)?;
        Ok(frames.iter().map(Frame::payload).collect())
    }

    /// The first record below `below` whose timestamp is at least `timestamp_ms` (since 1970): its offset and its timestamp.
    /// `None` when there is none. Reads, and expands, one batch.
    pub fn offset_for_timestamp(
        &self,
        timestamp_ms: i64,
        below: Offset,
    ) -> Result<Option<(Offset, i64)>, ReadError> {
        let batch = self.shared.batch_for_timestamp(timestamp_ms, below)?;
        Ok(batch.map(|frame| {
            first_record_since(&frame, timestamp_ms)
                .unwrap_or_else(|| (frame.base_offset(), max_timestamp(&frame)))
        }))
    }

    /// Every frame from the one that starts at `from` to the end of the log, read a chunk at a time as the iterator
    /// advances: what producer state is rebuilt from. After an error it ends.
    pub fn frames(&self, from: LogPosition) -> Frames {
        Frames {
            shared: self.shared.clone(),
            next: from,
            ready: Vec::new().into_iter(),
            failed: false,
        }
    }
}

impl Iterator for Frames {
    type Item = Result<Frame, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if let Some(frame) = self.ready.next() {
            self.next = frame.end();
            return Some(Ok(frame));
        }
        match self.shared.read(self.next, MAX_CHUNK) {
            Ok(frames) => {
                self.ready = frames.into_iter();
                let frame = self.ready.next()?;
                self.next = frame.end();
                Some(Ok(frame))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

impl From<CursorError> for ReadError {
    fn from(error: CursorError) -> ReadError {
        match error {
            CursorError::Io(error) => error.into(),
            CursorError::Bad(bad) => bad.into(),
        }
    }
}

/// Within a batch whose largest timestamp is at least `timestamp_ms`. `None` where the batch cannot be expanded: then its
/// first offset is the best answer, since a consumer gets whole batches anyway.
fn first_record_since(frame: &Frame, timestamp_ms: i64) -> Option<(Offset, i64)> {
    let batch = Batch::decode(&frame.payload()).ok()?;
    let record = records(&batch)
        .ok()?
        .map_while(Result::ok)
        .find(|record| record.timestamp >= timestamp_ms)?;
    Some((Offset::from_wire(record.offset)?, record.timestamp))
}

/// A read holds at most this many bytes beyond what it was asked for.
pub const READ_OVERHEAD_BYTES: usize = MAX_FRAME_BYTES + MAX_CHUNK;

/// Whether a failure says that the file is not there.
pub(super) fn is_not_found(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
