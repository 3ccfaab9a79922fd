//! Taking frames off the end of a log, and starting a log anew somewhere else.

use std::path::PathBuf;

use bytes::Bytes;
use thiserror::Error;

use super::file_system::{IoFailure, OpenMode};
use super::index::SegmentIndex;
use super::log::Log;
use super::log_start::{LogStart, from_start};
use super::reader::ReadError;
use super::recovery::{remove_if_there, remove_segments};
use super::segment::{FrameCursor, SCAN_CHUNK, index_path, segment_path};
use super::snapshots::{self, Snapshot, Snapshots};
use super::sync;
use crate::types::{EpochHistory, LogPosition, Offset};

/// Why a log was not truncated or reset. Except for [`TruncateError::BelowStart`], where nothing changed, the log takes no
/// writes afterwards and must be opened again.
#[derive(Debug, Error)]
pub enum TruncateError {
    #[error(
        "cannot truncate to {to} (offset@epoch), before the log's start {start}: reset the log to the leader's start instead"
    )]
    BelowStart { to: LogPosition, start: LogPosition },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Io(#[from] IoFailure),
    #[error("the log {} takes no writes since {cause}: restart the node", dir.display())]
    Poisoned { dir: PathBuf, cause: String },
}

impl TruncateError {
    /// See [`ReadError::is_damage`].
    pub fn is_damage(&self) -> bool {
        matches!(self, TruncateError::Read(error) if error.is_damage())
    }
}

impl Log {
    /// Removes every frame that ends after `to`: records at or above its offset, and epoch starts of later epochs at its
    /// offset. Where nothing lies after `to`, nothing changes. When this returns, the removed frames cannot come back, and
    /// everything that is left is durable. Blocks for a few syncs.
    ///
    /// The log then ends at `to`, or before it if `to` is inside a frame or names an epoch that the log does not have:
    /// [`Log::end`] tells. A sync ticket that is out moves nothing when it comes back.
    ///
    /// At the log's own start, `to` may be of the epoch before: then all that goes is empty epochs, and the log starts at `to`.
    pub fn truncate(&mut self, to: LogPosition) -> Result<(), TruncateError> {
        let (start, end) = (self.start(), self.end());
        if end.offset <= to.offset && end.epoch <= to.epoch {
            return Ok(());
        }
        if !self.reaches_back_to(to) {
            return Err(TruncateError::BelowStart { to, start });
        }
        self.check_not_poisoned()?;
        // A failure half-way leaves memory and disk apart: only opening the log again tells what is there.
        let outcome = if to < start {
            // No record lies between the two, so what is known of the producers at the one holds at the other.
            let known = self.latest_snapshot(start, Some);
            let body = known.and_then(|(at, body)| (at == start).then_some(body));
            let epochs = self.epochs.clone();
            self.start_anew(to, &epochs, body)
        } else {
            self.cut(to)
        };
        if let Err(error) = &outcome {
            self.poison(format!("a truncation failed: {error}"));
        }
        outcome
    }

    /// Whether the log can be cut at `to`: nothing that it would then have to hold lies before its start.
    pub fn reaches_back_to(&self, to: LogPosition) -> bool {
        let start = self.start();
        let is_at_start = to.offset == start.offset && self.epochs.start_of(to.epoch).is_some();
        to.offset >= start.offset && (to.epoch >= start.epoch || is_at_start)
    }

    fn cut(&mut self, to: LogPosition) -> Result<(), TruncateError> {
        let keeps = |end: LogPosition| end.offset <= to.offset && end.epoch <= to.epoch;
        let fs = self.shared.fs.clone();
        let dir = self.shared.dir.clone();
        let (mut segments, start, interval) = {
            let state = self.shared.state();
            (state.segments.clone(), state.start, state.index_interval)
        };
        // The last segment that keeps a frame, and what is left of it.
        let mut dropped: Vec<Offset> = Vec::new();
        let mut active_index = SegmentIndex::default();
        let mut shortened = None;
        while let Some(last) = segments.last_mut() {
            let path = segment_path(&dir, last.base);
            let file = fs
                .open(&path, OpenMode::Write)
                .map_err(IoFailure::at("open", &path))?;
            let mut cursor = FrameCursor::new(
                file.clone(),
                path.clone(),
                0,
                last.len,
                Some(last.start),
                SCAN_CHUNK,
            );
            let mut index = SegmentIndex::default();
            let mut byte = 0;
            let mut kept_end = last.start;
            if !keeps(last.start) {
                dropped.push(last.base);
                segments.pop();
                continue;
            }
            while let Some(frame) = cursor.next().map_err(ReadError::from)? {
                if !keeps(frame.end()) {
                    break;
                }
                index.add(&frame, byte, interval);
                byte = cursor.byte();
                kept_end = frame.end();
            }
            if byte == 0 {
                dropped.push(last.base);
                segments.pop();
                continue;
            }
            last.len = byte;
            last.end = kept_end;
            last.first_timestamp = index.first_timestamp;
            last.max_timestamp = index.max_timestamp;
            last.aborted = index.aborted.len() as u32;
            active_index = index;
            shortened = Some((path, file));
            break;
        }
        let (end, left) = segments
            .last()
            .map_or((start, 0), |last| (last.end, last.len));

        // From here on tickets that are out count for nothing, and neither do their checkpoints.
        self.generation += 1;
        self.ticket_out = false;
        {
            let mut checkpoint = sync::lock(&self.checkpoint);
            checkpoint.generation = self.generation;
            // A ticket that has run and has not come back has moved the checkpoint alone.
            let flushed_end = checkpoint.vouched.unwrap_or(LogPosition::START);
            if self.synced_end.max(flushed_end) > end {
                // Before the frames go, or a crash in between looks like the loss of synced frames.
                checkpoint.begin_lineage(&*fs, &dir, flushed_end.min(end))?;
                self.lineage = checkpoint.lineage;
            }
        }
        dropped.reverse();
        remove_segments(&*fs, &dir, &dropped)?;
        if let (Some((path, file)), Some(last)) = (&shortened, segments.last()) {
            remove_if_there(&*fs, &index_path(&dir, last.base))?;
            file.set_len(last.len)
                .map_err(IoFailure::at("truncate", path))?;
            file.sync_all().map_err(IoFailure::at("sync", path))?;
        }
        // What is left may still wait for its first sync.
        let sealed = &segments[..segments.len().saturating_sub(1)];
        for segment in sealed.iter().filter(|s| s.end > self.durable_end) {
            let path = segment_path(&dir, segment.base);
            let file = fs
                .open(&path, OpenMode::Write)
                .map_err(IoFailure::at("open", &path))?;
            file.sync_all().map_err(IoFailure::at("sync", &path))?;
        }
        fs.sync_dir(&dir).map_err(IoFailure::at("sync", &dir))?;

        snapshots::prune(&*fs, &dir, |offset| offset <= end.offset);
        self.snapshots = Snapshots::default();
        self.shared.forget_indexes();
        {
            let mut state = self.shared.state_mut();
            state.segments = segments;
            state.active_index = active_index;
            state.active_file = shortened.map(|(_, file)| file);
            state.end = end;
            state.tail.truncate(end);
            state.generation += 1;
        }
        self.compacted_to = self.compacted_to.min(end.offset);
        self.sealed_unsynced.clear();
        self.tail_written = None;
        self.bytes_since_tail_index = left;
        self.dir_unsynced = false;
        self.epochs.truncate(end);
        self.set_synced_up_to(end);
        Ok(())
    }

    /// Removes every frame and starts the log at `start`, as a follower does that is below its leader's log start. `epochs`
    /// are the leader's up to there, and `snapshot` is what it knows of the producers there. Durable when this returns; after
    /// a crash in between, the log is empty at `start` too, and has the snapshot, or is as before.
    pub fn reset(
        &mut self,
        start: LogPosition,
        epochs: EpochHistory,
        snapshot: Bytes,
    ) -> Result<(), TruncateError> {
        self.check_not_poisoned()?;
        let outcome = self.start_anew(start, &epochs, Some(snapshot));
        if let Err(error) = &outcome {
            self.poison(format!("a reset failed: {error}"));
        }
        outcome
    }

    fn start_anew(
        &mut self,
        position: LogPosition,
        epochs: &EpochHistory,
        snapshot: Option<Bytes>,
    ) -> Result<(), TruncateError> {
        let fs = self.shared.fs.clone();
        let dir = self.shared.dir.clone();
        // First, so that a log that is found empty at `position` has it. Should the old log be found instead, the snapshot
        // belongs to it or, by its epoch, does not.
        if let Some(body) = snapshot {
            let snapshot = Snapshot { at: position, body };
            snapshots::write(&*fs, &dir, &snapshot, true)?;
        }
        self.snapshots = Snapshots::default();
        self.generation += 1;
        self.ticket_out = false;
        let mut start = LogStart::new(position, epochs);
        start.discard_segments = true;
        {
            let mut checkpoint = sync::lock(&self.checkpoint);
            checkpoint.generation = self.generation;
            // It says less than is true until the reset is done, and nothing of what was before holds after.
            checkpoint.begin_lineage(&*fs, &dir, LogPosition::START)?;
            self.lineage = checkpoint.lineage;
        }
        start.write(&*fs, &dir)?;
        let bases: Vec<Offset> = {
            let mut state = self.shared.state_mut();
            let bases = state.segments.iter().map(|segment| segment.base).collect();
            state.segments.clear();
            state.active_index = SegmentIndex::default();
            state.active_file = None;
            state.start = position;
            state.end = position;
            state.tail.clear();
            state.generation += 1;
            bases
        };
        self.shared.forget_indexes();
        remove_segments(&*fs, &dir, &bases)?;
        start.discard_segments = false;
        start.write(&*fs, &dir)?;
        snapshots::prune(&*fs, &dir, |offset| offset == position.offset);
        self.sealed_unsynced.clear();
        self.tail_written = None;
        self.bytes_since_tail_index = 0;
        self.dir_unsynced = false;
        self.compacted_to = Offset::ZERO;
        self.epochs = from_start(&start.epochs, position);
        self.set_synced_up_to(position);
        Ok(())
    }

    fn check_not_poisoned(&self) -> Result<(), TruncateError> {
        match &self.poisoned {
            None => Ok(()),
            Some(cause) => Err(TruncateError::Poisoned {
                dir: self.shared.dir.clone(),
                cause: cause.clone(),
            }),
        }
    }
}
