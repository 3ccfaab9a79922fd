//! What the log says of producers and their transactions.

use bytes::Bytes;

use super::Partition;
use crate::record::{Batch, BatchHeader, Marker};
use crate::replication::{BatchSequence, ProducerBatch, ProducerStates, VerificationGuard};
use crate::storage::{Log, ReadError};
use crate::types::{LogPosition, Offset};
use crate::wal::Frame;
use crate::wire::ProducerSnapshot;

/// What the core has to know of a batch; `None` for numbers that no checked batch has.
pub(super) fn producer_batch(
    batch: &Batch,
    guard: Option<VerificationGuard>,
) -> Option<ProducerBatch> {
    let batch = producer_header(&batch.header)?;
    Some(ProducerBatch { guard, ..batch })
}

fn producer_header(header: &BatchHeader) -> Option<ProducerBatch> {
    // As many as its producer wrote: compaction takes records out of a batch and leaves it its numbers.
    let records = u32::try_from(header.last_offset_delta)
        .ok()?
        .checked_add(1)?;
    let sequence = match header.producer_id {
        Some(producer) if header.base_sequence >= 0 && header.producer_epoch >= 0 => {
            Some(BatchSequence {
                producer,
                producer_epoch: header.producer_epoch,
                base_sequence: header.base_sequence,
                records,
                transactional: header.is_transactional(),
            })
        }
        _ => None,
    };
    Some(ProducerBatch {
        records,
        sequence,
        guard: None,
    })
}

pub(super) fn remember_producer(producers: &mut ProducerStates, frame: &Frame) {
    if frame.is_epoch_start() {
        return;
    }
    // The frame's own checksum was right, and the batch's was when it was produced.
    let payload = frame.payload();
    let Ok(header) = BatchHeader::decode(&payload) else {
        return;
    };
    if header.is_control() {
        if let Ok(batch) = Batch::decode(&payload)
            && let Some(marker) = Marker::read(&batch)
        {
            producers.handle_marker(&marker, frame.base_offset(), frame.end_offset());
        }
        return;
    }
    if let Some(sequence) = producer_header(&header).and_then(|batch| batch.sequence) {
        producers.handle_appended(sequence, frame.base_offset(), frame.end_offset());
    }
}

/// Snapshots `producers`, the state up to `at`, where a segment begins there and it is worth its bytes.
pub(super) fn snapshot_roll(log: &mut Log, producers: &ProducerStates, at: LogPosition) {
    if log.is_snapshot_due(producers.snapshot_bytes()) {
        log.keep_snapshot(at, producers.snapshot().encode());
    }
}

/// What the log up to `position` says of its producers: from the newest snapshot that can be used, and the frames behind it.
/// Everything below `committed` is known to be committed.
fn producers_at(
    log: &Log,
    position: LogPosition,
    committed: Offset,
) -> Result<ProducerStates, ReadError> {
    let decode = |bytes: Bytes| ProducerSnapshot::decode(bytes).ok();
    let (from, mut producers) = match log.latest_snapshot(position, decode) {
        Some((at, snapshot)) => (at, ProducerStates::from(snapshot)),
        None => {
            let mut producers = ProducerStates::new();
            if log.start().offset > Offset::ZERO {
                producers.handle_log_cut_in_front();
            }
            (log.start(), producers)
        }
    };
    for frame in log.frames(from) {
        let frame = frame?;
        if frame.start() >= position {
            break;
        }
        remember_producer(&mut producers, &frame);
        // As it goes, so that no more is put together than is undecided.
        producers.handle_committed(committed);
    }
    producers.handle_committed(committed);
    Ok(producers)
}

impl Partition {
    /// Rebuilds what is known of producers from the log (invariant 11).
    pub(super) fn replay_producers(&mut self) {
        match producers_at(&self.log, self.log.end(), self.high_watermark) {
            Ok(producers) => self.producers = producers,
            Err(error) if error.is_damage() => self.handle_damage(&error.to_string()),
            Err(error) => self.fail(
                format!("cannot replay partition {}: {error}", self.id),
                false,
            ),
        }
    }

    /// What is known of producers where the log starts: for a follower that begins there.
    pub(super) fn producers_at_start(&self) -> ProducerSnapshot {
        // A log starts at or below its high watermark.
        let start = self.log.start();
        match producers_at(&self.log, start, start.offset) {
            Ok(producers) => producers.snapshot(),
            // Nothing behind the start was read, so there is nothing that can fail; what is not known is said to be unknown.
            Err(_) => ProducerSnapshot {
                incomplete: true,
                ..ProducerSnapshot::default()
            },
        }
    }

    /// The same where the log is about to start, as a snapshot. `None` where the frames before it cannot be read: then what is
    /// remembered is kept with the log's end, where a restart finds it too.
    pub(super) fn producers_at_new_start(&mut self, start: LogPosition) -> Option<Bytes> {
        match producers_at(&self.log, start, start.offset) {
            Ok(producers) => Some(producers.snapshot().encode()),
            Err(error) => {
                tracing::warn!(
                    partition = %self.id, cause = %error,
                    "cannot read the segments that are removed; what is remembered of producers is kept with the log's end"
                );
                self.keep_last_snapshot();
                None
            }
        }
    }

    /// What is known of producers at the log's end, if it is worth its bytes by now.
    pub(super) fn due_snapshot(&self) -> Option<Bytes> {
        let producers = self.producers();
        let is_due = self.log.is_snapshot_due(producers.snapshot_bytes());
        is_due.then(|| producers.snapshot().encode())
    }

    /// For the next start, which then has no frame to read again.
    pub(super) fn keep_last_snapshot(&mut self) {
        if self.log.poisoned().is_none() {
            let snapshot = self.producers().snapshot().encode();
            self.log.keep_snapshot(self.log.end(), snapshot);
        }
    }
}
