//! Taking old segments off the front of a log.

use super::file_system::IoFailure;
use super::index::NO_TIMESTAMP;
use super::log::Log;
use super::log_start::{LogStart, from_start};
use super::recovery::remove_if_there;
use super::segment::{index_path, segment_path};
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
    /// Seals an active segment that is old enough, then removes the oldest segments that the configuration no longer wants
    /// kept: those whose newest record is older than `retention_ms`, and those beyond `retention_bytes`. Whole segments
    /// only; never the active one, and none with a record at or above `high_watermark`, which a follower may still need.
    ///
    /// `wall_clock_ms` is the time since 1970, as the records' timestamps are. A segment whose records carry no timestamps
    /// is removed for size only. A clock that went back, or timestamps ahead of it, keep segments longer.
    pub fn apply_retention(
        &mut self,
        wall_clock_ms: u64,
        high_watermark: Offset,
    ) -> Result<Retained, IoFailure> {
        let kept_as_is = |log: &Log| Retained {
            segments_removed: 0,
            bytes_removed: 0,
            start: log.start(),
        };
        if self.poisoned.is_some() {
            return Ok(kept_as_is(self));
        }
        self.roll_if_old(wall_clock_ms, high_watermark)?;
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
            if !expired && !in_excess {
                break;
            }
            bytes_removed += segment.len;
            count += 1;
        }
        let Some(first_kept) = segments.get(count).filter(|_| count > 0) else {
            return Ok(kept_as_is(self));
        };
        let start = first_kept.start;
        let fs = self.shared.fs.clone();
        let dir = self.shared.dir.clone();
        // First what the frames tell of the epochs before them, then the frames.
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
            remove_if_there(&*fs, &index_path(&dir, segment.base))?;
            remove_if_there(&*fs, &segment_path(&dir, segment.base))?;
        }
        Ok(Retained {
            segments_removed: count,
            bytes_removed,
            start,
        })
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

    fn roll_if_old(&mut self, wall_clock_ms: u64, high_watermark: Offset) -> Result<(), IoFailure> {
        let Some(active) = self.shared.state().segments.last().copied() else {
            return Ok(());
        };
        if active.first_timestamp == NO_TIMESTAMP || active.end.offset == active.base {
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
