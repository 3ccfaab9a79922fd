//! Taking old segments off the front of a log.

use super::file_system::IoFailure;
use super::index::NO_TIMESTAMP;
use super::log::Log;
use super::log_start::{LogStart, from_start};
use super::recovery::remove_if_there;
use super::segment::{index_path, segment_path};
use super::snapshots::{self, Snapshot};
use bytes::Bytes;

use crate::types::{LogPosition, Offset};

/// What a retention pass did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    pub segments_removed: usize,
    pub bytes_removed: u64,
    /// Where the log starts now.
    pub start: LogPosition,
}

impl Log {
    /// Seals an active segment that is old enough, then says where the log should start: behind the oldest segments that the
    /// configuration no longer wants kept, those whose newest record is older than `retention_ms`, those beyond
    /// `retention_bytes`, and those that hold nothing but records that were deleted, below `deleted_before`. Whole segments only; never the active one, and none with a record at or above `high_watermark`,
    /// which a follower may still need. `None` when there is nothing to remove.
    ///
    /// `wall_clock_ms` is the time since 1970, as the records' timestamps are. A segment whose records carry no timestamps
    /// is removed for size only. A clock that went back, or timestamps ahead of it, keep segments longer.
    pub fn plan_retention(
        &mut self,
        wall_clock_ms: u64,
        high_watermark: Offset,
        deleted_before: Offset,
    ) -> Result<Option<LogPosition>, IoFailure> {
        if self.poisoned.is_some() {
            return Ok(None);
        }
        self.roll_if_old(wall_clock_ms, high_watermark, deleted_before)?;
        let segments = self.shared.state().segments.clone();
        let total: u64 = segments.iter().map(|segment| segment.len).sum();
        let mut bytes_removed = 0;
        let mut count = 0;
        let sealed = segments.len().saturating_sub(1);
        for segment in &segments[..sealed] {
            if segment.end.offset > high_watermark || segment.end > self.durable_end {
                break;
            }
            let expired = self.is_expired(segment.max_timestamp, wall_clock_ms);
            let in_excess = self
                .config
                .retention_bytes
                .is_some_and(|limit| total - bytes_removed - segment.len >= limit);
            let deleted = segment.end.offset <= deleted_before;
            if !expired && !in_excess && !deleted {
                break;
            }
            bytes_removed += segment.len;
            count += 1;
        }
        let first_kept = segments.get(count).filter(|_| count > 0);
        Ok(first_kept.map(|segment| segment.start))
    }

    /// Removes the segments before `start`, which [`Log::plan_retention`] gave. `snapshot` is what the log says of its
    /// producers there: the removed frames will not tell it again. `None` where the caller could not find it out.
    pub fn trim(
        &mut self,
        start: LogPosition,
        snapshot: Option<Bytes>,
    ) -> Result<Retained, IoFailure> {
        let segments = self.shared.state().segments.clone();
        let count = segments
            .iter()
            .position(|segment| segment.start == start)
            .unwrap_or(0);
        let bytes_removed = segments[..count].iter().map(|segment| segment.len).sum();
        let fs = self.shared.fs.clone();
        let dir = self.shared.dir.clone();
        if count == 0 {
            return Ok(Retained {
                segments_removed: 0,
                bytes_removed,
                start: self.start(),
            });
        }
        // On a full disk what follows may need the room that this gives. An index can always be made again.
        for segment in &segments[..count] {
            remove_if_there(&*fs, &index_path(&dir, segment.base))?;
        }
        // First what the frames tell of the producers and epochs before them, then the frames.
        if let Some(body) = snapshot {
            let snapshot = Snapshot { at: start, body };
            if let Err(failure) = snapshots::write(&*fs, &dir, &snapshot, true) {
                // Old records must go, above all where the disk is full. What is lost can make the partition take a batch
                // again that it had long ago.
                tracing::warn!(%failure, "cannot keep what was known of producers at the log's start");
            }
        }
        LogStart::new(start, &from_start(&self.epochs, start)).write(&*fs, &dir)?;
        {
            let mut state = self.shared.state_mut();
            state.segments.drain(..count);
            state.start = start;
            state.generation += 1;
        }
        self.shared.forget_indexes();
        self.epochs = from_start(&self.epochs, start);
        // Oldest first: what a crash leaves has no gap, and the rest is removed at the next start.
        for segment in &segments[..count] {
            remove_if_there(&*fs, &segment_path(&dir, segment.base))?;
        }
        snapshots::prune(&*fs, &dir, |offset| offset >= start.offset);
        Ok(Retained {
            segments_removed: count,
            bytes_removed,
            start,
        })
    }

    /// Plans and trims, without a snapshot.
    #[cfg(test)]
    pub(super) fn apply_retention(
        &mut self,
        wall_clock_ms: u64,
        high_watermark: Offset,
    ) -> Result<Retained, IoFailure> {
        let start = self.plan_retention(wall_clock_ms, high_watermark, Offset::ZERO)?;
        self.trim(start.unwrap_or(self.start()), None)
    }

    fn is_expired(&self, newest_timestamp: i64, wall_clock_ms: u64) -> bool {
        let Some(limit) = self.config.retention_ms else {
            return false;
        };
        match u64::try_from(newest_timestamp) {
            Ok(newest) => newest.saturating_add(limit) < wall_clock_ms,
            Err(_) => false,
        }
    }

    fn roll_if_old(
        &mut self,
        wall_clock_ms: u64,
        high_watermark: Offset,
        deleted_before: Offset,
    ) -> Result<(), IoFailure> {
        let Some(active) = self.shared.state().segments.last().copied() else {
            return Ok(());
        };
        if active.end.offset == active.base {
            return Ok(());
        }
        if active.end.offset <= high_watermark.min(deleted_before) {
            return self.roll();
        }
        if active.first_timestamp == NO_TIMESTAMP {
            return Ok(());
        }
        let first = u64::try_from(active.first_timestamp).unwrap_or(u64::MAX);
        let is_old = first.saturating_add(self.config.segment_ms) < wall_clock_ms;
        let all_expired = active.end.offset <= high_watermark
            && self.is_expired(active.max_timestamp, wall_clock_ms);
        if is_old || all_expired {
            self.roll()?;
        }
        Ok(())
    }
}
