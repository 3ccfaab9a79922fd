//! What a compaction makes of the frames of transactions, of each of which it is certain how it ended.

use std::collections::{BTreeSet, HashMap};

use super::compaction::{CompactionError, CompactionJob, Judged, Survey, any_batch_of, stamp_of};
use super::reader::Segment;
use crate::record::{
    AbortedTransaction, Batch, Compression, Marker, ProducerStamp, marker_until,
    without_transaction,
};
use crate::types::{Offset, ProducerId};
use crate::wal::Frame;

/// For how long a marker stays at least after the first pass that met it: longer than any request of a reader, which is shown
/// records and markers of several moments.
const MIN_MARKER_RETENTION_MS: u64 = 5 * 60 * 1000;

/// How often the aborted transactions of a segment are looked up anew because the log was changed meanwhile.
const MAX_RETRIES: usize = 16;

/// See [`CompactionJob::decide`].
pub(super) enum Decided {
    /// It is of no transaction, or not to be looked at.
    Plain,
    /// Of a committed one: a frame like it that is of none.
    Committed(Frame),
    /// What is left of what was aborted, or of a marker that nobody needs.
    Gone(Judged),
    /// A marker that this pass is the first to meet, with the time until which it stays.
    Until(Frame),
    /// A marker that stays as it is.
    Kept,
}

/// The aborted transactions with records in one segment.
pub(super) struct AbortedIn(HashMap<ProducerId, Vec<AbortedTransaction>>);

impl AbortedIn {
    pub(super) fn covers(&self, batch: &Batch, base: Offset) -> bool {
        let Some(producer) = batch.header.producer_id else {
            return false;
        };
        let of_producer = self.0.get(&producer);
        batch.header.is_transactional()
            && of_producer
                .is_some_and(|aborted| aborted.iter().any(|aborted| aborted.covers(producer, base)))
    }
}

impl CompactionJob {
    pub(super) fn aborted_in(&self, segment: &Segment) -> Result<AbortedIn, CompactionError> {
        // Each of them has its marker below the high watermark, and segments above it may be cut off under this read.
        let mut retries = 0;
        let found = loop {
            let before = self.shared.state().generation;
            let found = self.shared.aborted_with_markers_below(
                self.committed_to,
                segment.start.offset..segment.end.offset,
            );
            if before == self.shared.state().generation || retries >= MAX_RETRIES {
                break found?;
            }
            retries += 1;
        };
        let mut by_producer: HashMap<ProducerId, Vec<AbortedTransaction>> = HashMap::new();
        for aborted in found {
            by_producer
                .entry(aborted.producer)
                .or_default()
                .push(aborted);
        }
        Ok(AbortedIn(by_producer))
    }

    /// What becomes of a frame by what is known of transactions. Everything that is read here is below the last stable offset.
    pub(super) fn decide(
        &self,
        frame: &Frame,
        survey: &Survey,
        needed: &BTreeSet<Offset>,
        aborted: &AbortedIn,
    ) -> Decided {
        let Some(batch) = any_batch_of(frame) else {
            return Decided::Plain;
        };
        let header = &batch.header;
        if frame.end_offset() > survey.to || !(header.is_control() || header.is_transactional()) {
            return Decided::Plain;
        }
        let base = frame.base_offset();
        let is_needed = needed.contains(&base);
        let gone = |producer: Option<ProducerStamp>| {
            Decided::Gone(Judged {
                records: Vec::new(),
                changed: true,
                producer,
                compression: Compression::None,
                horizon: None,
            })
        };
        if header.is_control() {
            if Marker::read(&batch).is_none() {
                return Decided::Kept;
            }
            let now = i64::try_from(self.wall_clock_ms).unwrap_or(i64::MAX);
            return match header.delete_horizon() {
                Some(horizon) if horizon <= now && !is_needed => gone(None),
                Some(_) => Decided::Kept,
                None => {
                    let stays = self.delete_retention_ms.max(MIN_MARKER_RETENTION_MS);
                    let horizon = now.saturating_add(i64::try_from(stays).unwrap_or(i64::MAX));
                    match marker_until(&batch, horizon) {
                        Some(until) => Decided::Until(like(frame, &until)),
                        None => Decided::Kept,
                    }
                }
            };
        }
        if aborted.covers(&batch, base) {
            return gone(stamp_of(header).filter(|_| is_needed));
        }
        Decided::Committed(like(frame, &without_transaction(&batch)))
    }
}

/// A frame in the place of another.
fn like(frame: &Frame, batch: &[u8]) -> Frame {
    Frame::records(
        frame.leader_epoch(),
        frame.start(),
        frame.end_offset(),
        &[batch],
    )
}
