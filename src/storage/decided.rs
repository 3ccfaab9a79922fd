//! What a compaction makes of the frames of transactions, of each of which it is certain how it ended.

use std::collections::{BTreeSet, HashMap};

use super::compaction::{CompactionError, CompactionJob, Judged, Survey, any_batch_of, stamp_of};
use super::reader::Segment;
use crate::record::{
    AbortedTransaction, Batch, Compression, Marker, ProducerStamp, without_transaction,
};
use crate::types::{Offset, ProducerId};
use crate::wal::Frame;

/// See [`CompactionJob::decide`].
pub(super) enum Decided {
    /// It is of no transaction, or not to be looked at.
    Plain,
    /// Of a committed one: a frame like it that is of none.
    Committed(Frame),
    /// What is left of what was aborted, or of a marker that nobody needs.
    Gone(Judged),
    /// A marker that stays.
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
        let found = self
            .shared
            .aborted(segment.start.offset, segment.end.offset)?;
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
            let retention = i64::try_from(self.delete_retention_ms).unwrap_or(i64::MAX);
            let now = i64::try_from(self.wall_clock_ms).unwrap_or(i64::MAX);
            let is_past = header.max_timestamp.saturating_add(retention) <= now;
            if is_needed || !is_past || Marker::read(&batch).is_none() {
                return Decided::Kept;
            }
            return gone(None);
        }
        if aborted.covers(&batch, base) {
            return gone(stamp_of(header).filter(|_| is_needed));
        }
        let plain = without_transaction(&batch);
        Decided::Committed(Frame::records(
            frame.leader_epoch(),
            frame.start(),
            frame.end_offset(),
            &[&plain],
        ))
    }
}
