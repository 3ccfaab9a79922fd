//! What the log says of idempotent producers.

use super::Partition;
use crate::record::Batch;
use crate::replication::{BatchSequence, ProducerBatch, ProducerStates};
use crate::types::Offset;
use crate::wal::Frame;

/// What the core has to know of a batch; `None` for numbers that no checked batch has.
pub(super) fn producer_batch(batch: &Batch) -> Option<ProducerBatch> {
    let header = &batch.header;
    let records = u32::try_from(header.record_count)
        .ok()
        .filter(|&count| count > 0)?;
    let sequence = match header.producer_id {
        Some(producer) if header.base_sequence >= 0 && header.producer_epoch >= 0 => {
            Some(BatchSequence {
                producer,
                producer_epoch: header.producer_epoch,
                base_sequence: header.base_sequence,
                records,
            })
        }
        _ => None,
    };
    Some(ProducerBatch { records, sequence })
}

pub(super) fn remember_producer(producers: &mut ProducerStates, frame: &Frame) {
    if frame.is_epoch_start() {
        return;
    }
    let Ok(batch) = Batch::decode(&frame.payload()) else {
        return;
    };
    if let Some(sequence) = producer_batch(&batch).and_then(|batch| batch.sequence) {
        producers.handle_appended(sequence, frame.base_offset(), frame.end_offset());
    }
}

impl Partition {
    /// Rebuilds what is known of producers from the log (invariant 11).
    pub(super) fn replay_producers(&mut self) {
        let mut producers = ProducerStates::new();
        if self.log.start().offset > Offset::ZERO {
            producers.handle_log_cut_in_front();
        }
        for frame in self.log.frames(self.log.start()) {
            match frame {
                Ok(frame) => remember_producer(&mut producers, &frame),
                Err(error) => {
                    self.fail(
                        format!("cannot replay partition {}: {error}", self.id),
                        false,
                    );
                    return;
                }
            }
        }
        self.producers = producers;
    }
}
