//! Compaction: of the records with one key, only the last is kept.
//!
//! A log stays a chain without a gap. What is compacted are sealed segments that are committed and known to be synced; each is
//! written again as frames that cover the same positions and hold fewer records, neighbours joined, so that a small segment
//! takes little more than its records. Several small segments become one file. Offsets, epochs, and the places where epochs
//! start stay what they were; a reader that comes to a position inside a joined frame gets the rest of it
//! ([`super::LogReader::read`]).
//!
//! ```text
//! before   [0 k=a][1 k=b][2 k=a]|[3 k=c][4 k=b]|[5 …        segments 0, 3, and 5, which is active
//! after    [0 ─────── k=a@2 ────── k=c@3 k=b@4]|[5 …        segments 0 and 5
//! ```
//!
//! A new file is whole and synced before it takes the old one's name, in one step; then the files that it makes needless are
//! removed. A crash leaves old or new segments, or files that lie within the one before them, which the next start removes.
//!
//! A tombstone stays for `delete.retention.ms` after the first compaction that sees it, which is written in its batch as Kafka
//! writes it, so that readers have the time to learn of it. A producer's last batches stay as batches of their own, because
//! what is known of producers is read from them.
//!
//! Only what is below the last stable offset is compacted, so of each transaction it is certain how it ended. Records of aborted
//! ones go and are never the last of their keys; those of committed ones become plain records. Then the markers have nothing left
//! to say here, and stay for `delete.retention.ms` after that pass, as tombstones do, for a replica that has the records and was
//! away; so no pass takes both the records and their marker. The last one of each producer stays, because what is known of the producer is read from it.
//!
//! Replicas compact by themselves, each at its own time. So their files differ, and of what is below a compacted position
//! they have equal records only as far as both have kept them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use super::decided::Decided;
use super::file_system::{File, IoFailure, OpenMode};
use super::index::{MAX_ABORTED, SealedSegment, SegmentIndex};
use super::log::{Log, index_interval};
use super::reader::{ReadError, Segment, Shared};
use super::recovery::remove_if_there;
use super::segment::{SCAN_CHUNK, index_path, segment_path};
use super::sync;
use crate::record::{
    Batch, BatchHeader, Compression, ProducerStamp, RawRecord, Rewrite, raw_records,
};
use crate::types::{LogPosition, Offset, ProducerId};
use crate::wal::{Frame, MAX_PAYLOAD_BYTES};
use crate::wire::{MAX_SNAPSHOT_BATCHES, MAX_SNAPSHOT_PRODUCERS};

/// Keys that one pass remembers, at about 40 bytes each. Where there are more, the pass ends where they begin, and the next one
/// goes on from there.
const MAX_KEYS: usize = 1 << 20;
/// Records of neighbouring batches are put into one batch up to this size, before compression. A reader gets whole batches.
const JOINED_BYTES: usize = 256 * 1024;
/// How much is written to a new file at once.
const WRITE_BYTES: usize = 1024 * 1024;

/// The first half of a BLAKE3 hash of a key: two keys of one partition with the same 128 bits will not be met.
type KeyHash = [u8; 16];

/// Why nothing was compacted. The log is as it was.
#[derive(Debug, Error)]
pub enum CompactionError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Io(#[from] IoFailure),
    #[error("the log was changed meanwhile")]
    Changed,
    #[error("the node stops")]
    Stopped,
}

/// What a pass is about to read and write: see [`Log::plan_compaction`].
pub struct CompactionJob {
    pub(super) shared: Arc<Shared>,
    /// From the log's start, without a gap.
    segments: Vec<Segment>,
    /// Below it the keys are known to be distinct.
    dirty_from: Offset,
    /// The high watermark when it was planned.
    pub(super) committed_to: Offset,
    /// Of the log when it was planned.
    generation: u64,
    /// A file of several segments stays below it, as far as can be told before it is written.
    segment_bytes: u64,
    index_interval: u64,
    pub(super) delete_retention_ms: u64,
    pub(super) wall_clock_ms: u64,
    max_keys: usize,
}

/// A pass that has been written, and waits to take the old segments' places.
pub struct Compacted {
    shared: Arc<Shared>,
    replacements: Vec<Replacement>,
    /// Below it the keys will be distinct.
    dirty_from: Offset,
}

/// A file in the place of one or several segments.
struct Replacement {
    of: Vec<Segment>,
    by: Segment,
    index: SegmentIndex,
    path: PathBuf,
}

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionReport {
    pub segments_before: usize,
    pub segments_after: usize,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

impl Log {
    /// What there is to compact, once the part that was not looked at since this process began is at least half of what can
    /// be. Nothing at or above `last_stable_offset`, nothing that may still have to be synced, and never the active segment.
    /// `high_watermark` is at or above it. `wall_clock_ms` is the time since 1970. The job may run on any thread, and goes to [`Log::finish_compaction`].
    pub fn plan_compaction(
        &self,
        wall_clock_ms: u64,
        last_stable_offset: Offset,
        high_watermark: Offset,
    ) -> Option<CompactionJob> {
        if !self.config.compact || self.poisoned.is_some() {
            return None;
        }
        // A ticket that has a segment writes its index when it has synced it; the checkpoint says that this is over.
        let flushed = sync::lock(&self.checkpoint).flushed?;
        let state = self.shared.state();
        let sealed = state.segments.len().saturating_sub(1);
        let segments: Vec<Segment> = state.segments[..sealed]
            .iter()
            .take_while(|segment| {
                segment.end.offset <= last_stable_offset
                    && segment.end <= flushed
                    && segment.end <= self.durable_end
            })
            .copied()
            .collect();
        let generation = state.generation;
        drop(state);
        let dirty = |segment: &&Segment| segment.end.offset > self.compacted_to;
        let dirty: u64 = segments.iter().filter(dirty).map(|s| s.len).sum();
        let all: u64 = segments.iter().map(|s| s.len).sum();
        if dirty == 0 || dirty < all - dirty {
            return None;
        }
        Some(CompactionJob {
            shared: self.shared.clone(),
            segments,
            dirty_from: self.compacted_to,
            committed_to: high_watermark,
            generation,
            segment_bytes: self.config.segment_bytes,
            index_interval: index_interval(&self.config),
            delete_retention_ms: self.config.delete_retention_ms,
            wall_clock_ms,
            max_keys: MAX_KEYS,
        })
    }

    /// Puts new segments in the place of the old ones, as far as those are still there: the log may have been trimmed,
    /// truncated or opened again meanwhile. A failure leaves a log that is whole.
    pub fn finish_compaction(
        &mut self,
        compacted: Compacted,
    ) -> Result<CompactionReport, IoFailure> {
        let mut report = CompactionReport::default();
        let fs = self.shared.fs.clone();
        let dir = self.shared.dir.clone();
        let is_there = |shared: &Shared, replacement: &Replacement| {
            let state = shared.state();
            let sealed = &state.segments[..state.segments.len().saturating_sub(1)];
            let of = &replacement.of;
            sealed.windows(of.len()).any(|window| window == of)
        };
        let is_mine = Arc::ptr_eq(&self.shared, &compacted.shared) && self.poisoned.is_none();
        let (wanted, void): (Vec<Replacement>, Vec<Replacement>) = compacted
            .replacements
            .into_iter()
            .partition(|replacement| is_mine && is_there(&self.shared, replacement));
        for replacement in &void {
            remove_if_there(&*fs, &replacement.path)?;
        }
        if !is_mine {
            return Ok(report);
        }
        // First the indexes go, so that none is taken for one of the new files; and with them the active segment's name
        // becomes durable, behind which nothing may be missing.
        for segment in wanted.iter().flat_map(|replacement| &replacement.of) {
            remove_if_there(&*fs, &index_path(&dir, segment.base))?;
        }
        if !wanted.is_empty() {
            fs.sync_dir(&dir).map_err(IoFailure::at("sync", &dir))?;
        }
        let mut needless = Vec::new();
        let mut indexes = Vec::new();
        let mut outcome = Ok(());
        {
            // Under the lock, alone of all that touches the disk: a reader that has looked a place up before, and opens the file
            // after, then finds that the generation has changed, and looks again.
            let mut state = self.shared.state_mut();
            for replacement in wanted {
                let first = state.segments.iter().position(|s| *s == replacement.of[0]);
                let Some(first) = first else { continue };
                let path = segment_path(&dir, replacement.by.base);
                if let Err(error) = fs.rename(&replacement.path, &path) {
                    outcome = Err(IoFailure::at("replace", &path)(error));
                    break;
                }
                let count = replacement.of.len();
                state
                    .segments
                    .splice(first..first + count, [replacement.by]);
                state.generation += 1;
                report.segments_before += count;
                report.segments_after += 1;
                report.bytes_before += replacement.of.iter().map(|s| s.len).sum::<u64>();
                report.bytes_after += replacement.by.len;
                needless.extend(replacement.of[1..].iter().map(|segment| segment.base));
                indexes.push((replacement.by, replacement.index));
            }
        }
        self.shared.forget_indexes();
        outcome?;
        self.compacted_to = compacted.dirty_from;
        if report.segments_before > 0 {
            fs.sync_dir(&dir).map_err(IoFailure::at("sync", &dir))?;
        }
        for (segment, index) in indexes {
            let sealed = SealedSegment {
                len: segment.len,
                start: segment.start,
                end: segment.end,
            };
            // Where it cannot be kept it is made anew.
            let _ = index.write(&*fs, &index_path(&dir, segment.base), &sealed);
        }
        for base in needless {
            remove_if_there(&*fs, &segment_path(&dir, base))?;
        }
        Ok(report)
    }
}

/// What the first reading finds.
#[derive(Default)]
pub(super) struct Survey {
    /// The last offset of each key, of the part that was read for keys.
    last: HashMap<KeyHash, i64>,
    /// Where that part ends.
    pub(super) to: Offset,
    /// Where each producer's last batches start.
    producers: HashMap<ProducerId, VecDeque<Offset>>,
    /// Where each producer's last marker is.
    markers: HashMap<ProducerId, Offset>,
}

impl CompactionJob {
    /// Reads the segments twice and writes what takes their places. Blocks; `is_stopping` is asked with each frame. What it
    /// has written is removed again after an error.
    pub fn run(self, is_stopping: impl Fn() -> bool) -> Result<Compacted, CompactionError> {
        let (shared, generation) = (self.shared.clone(), self.generation);
        let outcome = self.compact(is_stopping);
        // What is missing now may have been taken away by right.
        match outcome {
            Err(CompactionError::Read(error))
                if error.is_damage() && shared.state().generation != generation =>
            {
                Err(CompactionError::Changed)
            }
            outcome => outcome,
        }
    }

    fn compact(self, is_stopping: impl Fn() -> bool) -> Result<Compacted, CompactionError> {
        let survey = self.survey(&is_stopping)?;
        let batches = survey.producers.values().flatten();
        // A partition remembers so many producers and no more.
        let mut markers: Vec<Offset> = survey.markers.values().copied().collect();
        markers.sort_unstable_by(|a, b| b.cmp(a));
        markers.truncate(MAX_SNAPSHOT_PRODUCERS);
        let needed: BTreeSet<Offset> = batches.copied().chain(markers).collect();
        let mut replacements = Vec::new();
        let mut rest = &self.segments[..];
        while !rest.is_empty() {
            match self.rewrite(rest, &survey, &needed, &is_stopping) {
                Ok((taken, replacement)) => {
                    replacements.extend(replacement);
                    rest = rest.get(taken.max(1)..).unwrap_or_default();
                }
                Err(error) => {
                    for replacement in &replacements {
                        self.discard(replacement);
                    }
                    return Err(error);
                }
            }
        }
        Ok(Compacted {
            shared: self.shared,
            replacements,
            dirty_from: survey.to,
        })
    }

    fn each_frame(
        &self,
        segment: &Segment,
        is_stopping: &impl Fn() -> bool,
        mut visit: impl FnMut(Frame) -> Result<(), CompactionError>,
    ) -> Result<(), CompactionError> {
        let mut cursor = self
            .shared
            .cursor(segment, None, 0, Some(segment.start), SCAN_CHUNK)?;
        while let Some(frame) = cursor.next().map_err(ReadError::from)? {
            if is_stopping() {
                return Err(CompactionError::Stopped);
            }
            visit(frame)?;
        }
        Ok(())
    }

    fn survey(&self, is_stopping: &impl Fn() -> bool) -> Result<Survey, CompactionError> {
        let mut survey = Survey::default();
        let mut full = false;
        for segment in &self.segments {
            let aborted = self.aborted_in(segment)?;
            self.each_frame(segment, is_stopping, |frame| {
                let Some(batch) = any_batch_of(&frame) else {
                    return Ok(());
                };
                if batch.header.is_control() {
                    if let Some(producer) = batch.header.producer_id {
                        survey.markers.insert(producer, frame.base_offset());
                    }
                    return Ok(());
                }
                if let Some(producer) = batch.header.producer_id {
                    let last = survey.producers.entry(producer).or_default();
                    if last.len() == MAX_SNAPSHOT_BATCHES {
                        last.pop_front();
                    }
                    last.push_back(frame.base_offset());
                }
                if full || frame.end_offset() <= self.dirty_from {
                    return Ok(());
                }
                if survey.last.len() >= self.max_keys {
                    full = true;
                    survey.to = frame.base_offset();
                    return Ok(());
                }
                if aborted.covers(&batch, frame.base_offset()) {
                    return Ok(());
                }
                for record in raw_records(&batch).unwrap_or_default() {
                    if let Some(key) = &record.key {
                        survey.last.insert(hash(key), record.offset);
                    }
                }
                Ok(())
            })?;
            if !full {
                survey.to = segment.end.offset;
            }
        }
        Ok(survey)
    }

    /// Makes one file of the first of these segments, and of those behind it as far as there is room. Returns how many were
    /// taken, and the file where it gains anything.
    fn rewrite(
        &self,
        segments: &[Segment],
        survey: &Survey,
        needed: &BTreeSet<Offset>,
        is_stopping: &impl Fn() -> bool,
    ) -> Result<(usize, Option<Replacement>), CompactionError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(first) = segments.first() else {
            return Ok((0, None));
        };
        // A name of its own for each attempt: a log that was opened anew may be compacted while an older job still writes. The
        // ending lets the next start remove it.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self
            .shared
            .dir
            .join(format!("{:020}.wal.{number}.new", first.base.get()));
        let written = self.write(&path, segments, survey, needed, is_stopping);
        if !matches!(written, Ok((_, Some(_)))) {
            let _ = remove_if_there(&*self.shared.fs, &path);
        }
        let (taken, writer) = written?;
        let of = segments[..taken].to_vec();
        let replacement = writer.map(|writer| Replacement {
            by: Segment::new(
                first.base,
                first.start..of.last().map_or(first.end, |last| last.end),
                writer.len,
                &writer.index,
            ),
            index: writer.index,
            path: writer.path,
            of,
        });
        Ok((taken, replacement))
    }

    fn write(
        &self,
        path: &Path,
        segments: &[Segment],
        survey: &Survey,
        needed: &BTreeSet<Offset>,
        is_stopping: &impl Fn() -> bool,
    ) -> Result<(usize, Option<Writer>), CompactionError> {
        let file = self
            .shared
            .fs
            .open(path, OpenMode::Create)
            .map_err(IoFailure::at("create", path))?;
        let mut writer = Writer {
            file,
            path: path.to_owned(),
            waiting: Vec::new(),
            len: 0,
            index: SegmentIndex::default(),
            index_interval: self.index_interval,
            run: None,
            changed: false,
            decided: false,
        };
        let (mut taken, mut before) = (0, 0);
        for segment in segments {
            let run = writer.run.as_ref().map_or(0, |run| run.bytes as u64);
            let many_aborted = writer.index.aborted.len() + segment.aborted as usize > MAX_ABORTED;
            if taken > 0 && (writer.len + run + segment.len > self.segment_bytes || many_aborted) {
                break;
            }
            taken += 1;
            before += segment.len;
            let aborted = self.aborted_in(segment)?;
            self.each_frame(segment, is_stopping, |frame| {
                let (frame, judged) = match self.decide(&frame, survey, needed, &aborted) {
                    Decided::Plain => {
                        let judged = self.judge(&frame, survey, needed);
                        (frame, judged)
                    }
                    Decided::Committed(plain) => {
                        writer.decided = true;
                        let judged = self.judge(&plain, survey, needed);
                        (plain, judged)
                    }
                    Decided::Gone(judged) => (frame, Some(judged)),
                    Decided::Until(marker) => {
                        writer.decided = true;
                        (marker, None)
                    }
                    Decided::Kept => (frame, None),
                };
                match judged {
                    Some(judged) => writer.add(frame, judged),
                    None => {
                        writer.flush_run()?;
                        writer.put(&frame)
                    }
                }
            })?;
        }
        writer.flush_run()?;
        writer.write_waiting()?;
        // One that is as long as before has nothing but tombstones' time in it, which is worth a file only once.
        if taken == 1 && !writer.decided && (!writer.changed || writer.len == before) {
            return Ok((taken, None));
        }
        writer
            .file
            .sync_all()
            .map_err(IoFailure::at("sync", path))?;
        Ok((taken, Some(writer)))
    }

    /// What is kept of a frame. `None` for one that stays as it is, for itself.
    fn judge(&self, frame: &Frame, survey: &Survey, needed: &BTreeSet<Offset>) -> Option<Judged> {
        if frame.end_offset() > survey.to {
            return None;
        }
        let batch = batch_of(frame)?;
        let header = &batch.header;
        // What cannot be read is kept: a reader may know better.
        let records = raw_records(&batch).ok()?;
        let before = records.len();
        let now = i64::try_from(self.wall_clock_ms).unwrap_or(i64::MAX);
        let is_past = header
            .delete_horizon()
            .is_some_and(|horizon| horizon <= now);
        let kept: Vec<RawRecord> = records
            .into_iter()
            .filter(|record| {
                let Some(key) = &record.key else { return true };
                let is_last = survey
                    .last
                    .get(&hash(key))
                    .is_none_or(|last| record.offset >= *last);
                is_last && !(record.is_tombstone && is_past)
            })
            .collect();
        let has_tombstones = kept.iter().any(|record| record.is_tombstone);
        let retention = i64::try_from(self.delete_retention_ms).unwrap_or(i64::MAX);
        let horizon = header
            .delete_horizon()
            .filter(|_| !is_past)
            .or(Some(now.saturating_add(retention)))
            .filter(|_| has_tombstones);
        let stamp = stamp_of(header);
        Some(Judged {
            changed: kept.len() < before || horizon != header.delete_horizon(),
            producer: stamp.filter(|_| needed.contains(&frame.base_offset())),
            compression: header.compression().ok()?,
            records: kept,
            horizon,
        })
    }

    fn discard(&self, replacement: &Replacement) {
        let _ = remove_if_there(&*self.shared.fs, &replacement.path);
    }
}

#[cfg(test)]
impl Log {
    pub(super) fn active_base(&self) -> Offset {
        let state = self.shared.state();
        state.segments.last().map_or(Offset::ZERO, |s| s.base)
    }
}

#[cfg(test)]
impl CompactionJob {
    pub(super) fn remember_at_most(&mut self, keys: usize) {
        self.max_keys = keys;
    }
}

pub(super) fn any_batch_of(frame: &Frame) -> Option<Batch> {
    if frame.is_epoch_start() {
        return None;
    }
    Batch::decode(&frame.payload()).ok()
}

pub(super) fn stamp_of(header: &BatchHeader) -> Option<ProducerStamp> {
    header.producer_id.map(|id| ProducerStamp {
        id,
        epoch: header.producer_epoch,
        base_sequence: header.base_sequence,
    })
}

/// The batch of a frame whose records may be taken apart.
fn batch_of(frame: &Frame) -> Option<Batch> {
    let batch = any_batch_of(frame)?;
    let is_plain = !batch.header.is_control() && !batch.header.is_transactional();
    is_plain.then_some(batch)
}

fn hash(key: &[u8]) -> KeyHash {
    let mut first = [0; 16];
    first.copy_from_slice(&blake3::hash(key).as_bytes()[..16]);
    first
}

pub(super) struct Judged {
    pub(super) records: Vec<RawRecord>,
    /// It is not what its frame holds.
    pub(super) changed: bool,
    /// A producer that is still to be known by this batch: then it is not joined with others.
    pub(super) producer: Option<ProducerStamp>,
    pub(super) compression: Compression,
    pub(super) horizon: Option<i64>,
}

/// Frames that become one.
struct Run {
    start: LogPosition,
    end: LogPosition,
    records: Vec<RawRecord>,
    bytes: usize,
    producer: Option<ProducerStamp>,
    compression: Compression,
    horizon: Option<i64>,
    /// The frame, while it is one.
    single: Option<Frame>,
    /// The frame does not say any more what the run holds.
    changed: bool,
}

impl Run {
    fn takes(&self, frame: &Frame, judged: &Judged) -> bool {
        let bytes: usize = judged.records.iter().map(RawRecord::size).sum();
        let span = frame.end_offset().get() - self.start.offset.get();
        let agrees = self.records.is_empty()
            || judged.records.is_empty()
            || self.compression == judged.compression;
        let horizons_agree =
            self.horizon.is_none() || judged.horizon.is_none() || self.horizon == judged.horizon;
        self.producer.is_none()
            && judged.producer.is_none()
            && frame.start() == self.end
            && agrees
            && horizons_agree
            && self.bytes + bytes <= JOINED_BYTES
            && span < i32::MAX as u64
    }
}

struct Writer {
    file: Arc<dyn File>,
    path: PathBuf,
    waiting: Vec<u8>,
    /// What was put, written or not.
    len: u64,
    index: SegmentIndex,
    index_interval: u64,
    run: Option<Run>,
    changed: bool,
    /// Records of a committed transaction became plain ones, or a marker got its time: a later pass takes the marker away, so this
    /// file must take its place, however little it gains.
    decided: bool,
}

impl Writer {
    fn add(&mut self, frame: Frame, judged: Judged) -> Result<(), CompactionError> {
        let bytes: usize = judged.records.iter().map(RawRecord::size).sum();
        self.changed |= judged.changed;
        if let Some(run) = &mut self.run
            && run.takes(&frame, &judged)
        {
            if run.records.is_empty() {
                run.compression = judged.compression;
            }
            run.end = frame.end();
            run.bytes += bytes;
            run.horizon = run.horizon.or(judged.horizon);
            let records = judged.records.into_iter().map(RawRecord::detached);
            run.records.extend(records);
            run.single = None;
            run.changed = true;
            self.changed = true;
            return Ok(());
        }
        self.flush_run()?;
        self.run = Some(Run {
            start: frame.start(),
            end: frame.end(),
            records: judged
                .records
                .into_iter()
                .map(RawRecord::detached)
                .collect(),
            bytes,
            producer: judged.producer,
            compression: judged.compression,
            horizon: judged.horizon,
            single: Some(frame),
            changed: judged.changed,
        });
        Ok(())
    }

    fn flush_run(&mut self) -> Result<(), CompactionError> {
        let Some(run) = self.run.take() else {
            return Ok(());
        };
        let made = run.changed.then(|| {
            made_of(
                run.start,
                run.end,
                &run.records,
                run.horizon,
                run.compression,
                run.producer,
            )
        });
        // A frame that cannot be made again, as where other settings compress worse than its producer's, stays; what is joined
        // is far below a frame's limits.
        let frame = made.flatten().or(run.single).ok_or_else(|| {
            IoFailure::at("compact", &self.path)(std::io::Error::other(
                "joined batches do not fit a frame",
            ))
        })?;
        self.put(&frame)
    }

    fn put(&mut self, frame: &Frame) -> Result<(), CompactionError> {
        self.index.add(frame, self.len, self.index_interval);
        self.waiting.extend_from_slice(frame.bytes());
        self.len += frame.len() as u64;
        if self.waiting.len() >= WRITE_BYTES {
            self.write_waiting()?;
        }
        Ok(())
    }

    fn write_waiting(&mut self) -> Result<(), CompactionError> {
        let at = self.len - self.waiting.len() as u64;
        self.file
            .write_at(at, &[IoSlice::new(&self.waiting)])
            .map_err(IoFailure::at("write", &self.path))?;
        self.waiting.clear();
        Ok(())
    }
}

/// One frame from `start` to `end`, which lie in one epoch, of these records. `None` where it cannot be made.
fn made_of(
    start: LogPosition,
    end: LogPosition,
    records: &[RawRecord],
    horizon: Option<i64>,
    compression: Compression,
    producer: Option<ProducerStamp>,
) -> Option<Frame> {
    let mut rewrite = Rewrite::new(start.offset, horizon);
    for record in records {
        rewrite.push(record);
    }
    let batch = rewrite
        .seal(end.offset, end.epoch, compression, producer)
        .ok()?;
    (batch.len() <= MAX_PAYLOAD_BYTES)
        .then(|| Frame::records(end.epoch, start, end.offset, &[&batch]))
}

/// The rest of `frame`, which holds `from` between its ends: for a reader that has everything before. `None` where it does not,
/// or where its batch cannot be taken apart.
pub(super) fn rest_of(frame: &Frame, from: LogPosition) -> Option<Frame> {
    let is_inside = frame.start() < from
        && from.offset < frame.end_offset()
        && from.epoch == frame.leader_epoch();
    if !is_inside {
        return None;
    }
    let batch = batch_of(frame)?;
    let first = from.offset.to_wire();
    let mut records = raw_records(&batch).ok()?;
    records.retain(|record| record.offset >= first);
    let header = &batch.header;
    made_of(
        from,
        frame.end(),
        &records,
        header.delete_horizon(),
        header.compression().ok()?,
        None,
    )
}
