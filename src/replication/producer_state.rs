//! What a partition remembers of its idempotent producers, so that a batch that is sent twice is stored once.

use std::collections::{BTreeMap, VecDeque};

use crate::types::{ErrorCode, Fill, Offset, ProducerId};
use crate::wire::{
    BatchEntry, MAX_SNAPSHOT_BATCHES, MAX_SNAPSHOT_PRODUCERS, ProducerEntry, ProducerSnapshot,
};

/// The most producers that one partition remembers. Beyond it the one that has been silent longest, in records, is
/// forgotten; its next batch starts anew, as Kafka's does after `producer.id.expiration.ms`.
pub const MAX_PRODUCERS: usize = MAX_SNAPSHOT_PRODUCERS;

/// How many of a producer's latest batches are remembered: as many as Kafka lets an idempotent producer have in flight.
const REMEMBERED_BATCHES: usize = MAX_SNAPSHOT_BATCHES;

/// An idempotent producer's numbering of one batch, from the batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSequence {
    pub producer: ProducerId,
    /// 0 or above.
    pub producer_epoch: i16,
    /// The first record's number, 0 or above; numbers wrap from `i32::MAX` to 0.
    pub base_sequence: i32,
    /// At least 1.
    pub records: u32,
}

impl BatchSequence {
    fn last_sequence(self) -> i32 {
        wrapping_sequence(self.base_sequence, self.records.saturating_sub(1))
    }
}

/// Kafka's sequence numbers run from 0 to `i32::MAX` and start again at 0.
fn wrapping_sequence(sequence: i32, more: u32) -> i32 {
    let modulus = i64::from(i32::MAX) + 1;
    ((i64::from(sequence) + i64::from(more)) % modulus) as i32
}

/// What the remembered batches say of a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceCheck {
    /// It follows the last one, or nothing is known of its producer: append it.
    InOrder,
    /// It is in the log already, at these offsets.
    Duplicate { base: Offset, end: Offset },
    /// `OUT_OF_ORDER_SEQUENCE_NUMBER`, `DUPLICATE_SEQUENCE_NUMBER` or `INVALID_PRODUCER_EPOCH`.
    Refused(ErrorCode),
}

/// A pure function of the log: replaying the log's batches in order gives the same state (invariant 11), from the log's
/// first record on, or from a [`ProducerSnapshot`] of an earlier position.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ProducerStates {
    producers: BTreeMap<ProducerId, ProducerState>,
    /// Whether something may be missing: the log no longer begins at its first record, or a producer was forgotten.
    incomplete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ProducerState {
    epoch: i16,
    /// The latest batches of `epoch`, oldest first; never empty, at most [`REMEMBERED_BATCHES`].
    batches: VecDeque<RememberedBatch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RememberedBatch {
    base_sequence: i32,
    last_sequence: i32,
    base: Offset,
    end: Offset,
}

impl ProducerStates {
    pub fn new() -> ProducerStates {
        ProducerStates::default()
    }

    /// Whether `batch` may be appended now.
    pub fn check(&self, batch: BatchSequence) -> SequenceCheck {
        let Some(state) = self.producers.get(&batch.producer) else {
            if batch.base_sequence == 0 || self.incomplete {
                // New here, or forgotten: then any number has to be taken for the next one, as Kafka does.
                return SequenceCheck::InOrder;
            }
            // Batches that were sent before it, to a node that did not lead yet, are still to come. To take this one now
            // would refuse them for good.
            return SequenceCheck::Refused(ErrorCode::OutOfOrderSequenceNumber);
        };
        if batch.producer_epoch < state.epoch {
            return SequenceCheck::Refused(ErrorCode::InvalidProducerEpoch);
        }
        if batch.producer_epoch > state.epoch {
            return match batch.base_sequence {
                0 => SequenceCheck::InOrder,
                _ => SequenceCheck::Refused(ErrorCode::OutOfOrderSequenceNumber),
            };
        }
        let same = |known: &&RememberedBatch| {
            known.base_sequence == batch.base_sequence
                && known.last_sequence == batch.last_sequence()
        };
        if let Some(known) = state.batches.iter().find(same) {
            return SequenceCheck::Duplicate {
                base: known.base,
                end: known.end,
            };
        }
        match state.batches.back() {
            Some(last) if batch.base_sequence == wrapping_sequence(last.last_sequence, 1) => {
                SequenceCheck::InOrder
            }
            _ => SequenceCheck::Refused(ErrorCode::OutOfOrderSequenceNumber),
        }
    }

    /// `batch` is in the log, from `base` up to `end`.
    pub fn handle_appended(&mut self, batch: BatchSequence, base: Offset, end: Offset) {
        let state = self
            .producers
            .entry(batch.producer)
            .or_insert_with(|| ProducerState {
                epoch: batch.producer_epoch,
                batches: VecDeque::new(),
            });
        if state.epoch != batch.producer_epoch {
            state.epoch = batch.producer_epoch;
            state.batches.clear();
        }
        if state.batches.len() == REMEMBERED_BATCHES {
            state.batches.pop_front();
        }
        state.batches.push_back(RememberedBatch {
            base_sequence: batch.base_sequence,
            last_sequence: batch.last_sequence(),
            base,
            end,
        });
        if self.producers.len() > MAX_PRODUCERS {
            self.forget_most_silent();
        }
    }

    /// The log that is replayed no longer begins at its first record.
    pub fn handle_log_cut_in_front(&mut self) {
        self.incomplete = true;
    }

    /// Everything that is remembered, to go on from later or elsewhere.
    pub fn snapshot(&self) -> ProducerSnapshot {
        let entry = |(&producer, state): (&ProducerId, &ProducerState)| ProducerEntry {
            producer,
            epoch: state.epoch,
            batches: state.batches.iter().map(|&batch| batch.into()).collect(),
        };
        ProducerSnapshot {
            incomplete: self.incomplete,
            producers: self.producers.iter().map(entry).collect(),
        }
    }

    pub fn len(&self) -> usize {
        self.producers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// How full it is.
    pub fn fills(&self) -> [Fill; 2] {
        let batches = self.producers.values().map(|state| state.batches.len());
        [
            Fill::new("producers that are remembered", self.len(), MAX_PRODUCERS),
            Fill::new(
                "batches of one producer",
                batches.max().unwrap_or(0),
                REMEMBERED_BATCHES,
            ),
        ]
    }

    fn forget_most_silent(&mut self) {
        self.incomplete = true;
        let last_end = |state: &ProducerState| state.batches.back().map(|batch| batch.end);
        let most_silent = self
            .producers
            .iter()
            .min_by_key(|(_, state)| last_end(state))
            .map(|(&producer, _)| producer);
        if let Some(producer) = most_silent {
            self.producers.remove(&producer);
        }
    }
}

impl From<ProducerSnapshot> for ProducerStates {
    fn from(snapshot: ProducerSnapshot) -> ProducerStates {
        let state = |entry: ProducerEntry| {
            let batches = entry.batches.into_iter().map(RememberedBatch::from);
            let state = ProducerState {
                epoch: entry.epoch,
                batches: batches.collect(),
            };
            (entry.producer, state)
        };
        ProducerStates {
            producers: snapshot.producers.into_iter().map(state).collect(),
            incomplete: snapshot.incomplete,
        }
    }
}

impl From<RememberedBatch> for BatchEntry {
    fn from(batch: RememberedBatch) -> BatchEntry {
        BatchEntry {
            base_sequence: batch.base_sequence,
            last_sequence: batch.last_sequence,
            base: batch.base,
            end: batch.end,
        }
    }
}

impl From<BatchEntry> for RememberedBatch {
    fn from(entry: BatchEntry) -> RememberedBatch {
        RememberedBatch {
            base_sequence: entry.base_sequence,
            last_sequence: entry.last_sequence,
            base: entry.base,
            end: entry.end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: i16, base_sequence: i32, records: u32) -> BatchSequence {
        BatchSequence {
            producer: ProducerId::new(7).unwrap(),
            producer_epoch: epoch,
            base_sequence,
            records,
        }
    }

    fn offset(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    /// Batches of two records each, from sequence 0 and offset 100 upward.
    fn states(batches: u64) -> ProducerStates {
        let mut states = ProducerStates::new();
        for i in 0..batches {
            let sent = batch(0, 2 * i as i32, 2);
            assert_eq!(states.check(sent), SequenceCheck::InOrder);
            states.handle_appended(sent, offset(100 + 2 * i), offset(102 + 2 * i));
        }
        states
    }

    #[test]
    fn a_batch_sent_again_is_answered_with_its_first_offset() {
        let states = states(6);
        assert_eq!(
            states.check(batch(0, 4, 2)),
            SequenceCheck::Duplicate {
                base: offset(104),
                end: offset(106)
            }
        );
        // The oldest of six is no longer remembered, and a batch cut differently is not the same batch.
        for forgotten in [batch(0, 0, 2), batch(0, 4, 3)] {
            assert_eq!(
                states.check(forgotten),
                SequenceCheck::Refused(ErrorCode::OutOfOrderSequenceNumber)
            );
        }
    }

    #[test]
    fn a_first_batch_waits_for_those_before_it_unless_they_may_be_forgotten() {
        let mut states = ProducerStates::new();
        assert_eq!(
            states.check(batch(0, 2, 2)),
            SequenceCheck::Refused(ErrorCode::OutOfOrderSequenceNumber)
        );
        assert_eq!(states.check(batch(0, 0, 2)), SequenceCheck::InOrder);
        states.handle_log_cut_in_front();
        assert_eq!(states.check(batch(0, 2, 2)), SequenceCheck::InOrder);
    }

    #[test]
    fn a_gap_is_refused() {
        assert_eq!(
            states(2).check(batch(0, 6, 1)),
            SequenceCheck::Refused(ErrorCode::OutOfOrderSequenceNumber)
        );
    }

    #[test]
    fn a_new_producer_epoch_starts_at_zero_and_fences_the_old_one() {
        let mut states = states(2);
        assert_eq!(
            states.check(batch(1, 4, 1)),
            SequenceCheck::Refused(ErrorCode::OutOfOrderSequenceNumber)
        );
        assert_eq!(states.check(batch(1, 0, 1)), SequenceCheck::InOrder);
        states.handle_appended(batch(1, 0, 1), offset(200), offset(201));
        assert_eq!(
            states.check(batch(0, 4, 2)),
            SequenceCheck::Refused(ErrorCode::InvalidProducerEpoch)
        );
    }

    #[test]
    fn sequence_numbers_wrap_to_zero() {
        let mut states = ProducerStates::new();
        let last = batch(0, i32::MAX - 1, 2);
        states.handle_appended(last, offset(0), offset(2));
        assert_eq!(states.check(batch(0, 0, 1)), SequenceCheck::InOrder);
        states.handle_appended(batch(0, i32::MAX, 3), offset(2), offset(5));
        assert_eq!(states.check(batch(0, 2, 1)), SequenceCheck::InOrder);
    }

    #[test]
    fn a_snapshot_goes_on_as_the_state_itself_does() {
        // Thirty producers, wrapping numbers, new producer epochs, forgotten ones: whatever was replayed up to the snapshot,
        // the rest of the log then comes to the same.
        let mut whole = ProducerStates::new();
        let mut resumed = ProducerStates::new();
        for i in 0..2000u64 {
            if i % 97 == 0 {
                resumed = ProducerStates::from(resumed.snapshot());
            }
            if i == 1500 {
                whole.handle_log_cut_in_front();
                resumed.handle_log_cut_in_front();
            }
            let sent = BatchSequence {
                producer: ProducerId::new((i * 7 % 30) as i64).unwrap(),
                ..batch((i / 700) as i16, i32::MAX - 40 + (i / 30) as i32 % 40, 3)
            };
            for states in [&mut whole, &mut resumed] {
                states.handle_appended(sent, offset(3 * i), offset(3 * i + 3));
            }
            assert_eq!(whole, resumed, "after batch {i}");
        }
        assert_eq!(whole.len(), 30);
    }

    #[test]
    fn producers_are_bounded() {
        let mut states = ProducerStates::new();
        for i in 0..MAX_PRODUCERS as u64 + 3 {
            let sent = BatchSequence {
                producer: ProducerId::new(i as i64).unwrap(),
                ..batch(0, 0, 1)
            };
            states.handle_appended(sent, offset(i), offset(i + 1));
        }
        assert_eq!(states.len(), MAX_PRODUCERS);
        assert!(!states.producers.contains_key(&ProducerId::new(0).unwrap()));
    }
}
