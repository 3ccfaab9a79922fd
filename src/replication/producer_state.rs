//! What a partition remembers of its producers: their latest batches, so that a batch that is sent twice is stored once, and
//! their transactions, so that nobody who asks for committed records only is shown others.

use std::collections::{BTreeMap, VecDeque};

use super::transactions::{EndedTransactions, MAX_OPEN_TRANSACTIONS};
use crate::record::{AbortedSpan, Marker};
use crate::types::{ErrorCode, Fill, Offset, ProducerId};
use crate::wire::{
    BatchEntry, MAX_SNAPSHOT_BATCHES, MAX_SNAPSHOT_PRODUCERS, ProducerEntry, ProducerSnapshot,
    TransactionEntry,
};

/// The most producers that one partition remembers. Beyond it the one that has been silent longest, in records, is
/// forgotten; its next batch starts anew, as Kafka's does after `producer.id.expiration.ms`. One with an open transaction is
/// not forgotten.
pub const MAX_PRODUCERS: usize = MAX_SNAPSHOT_PRODUCERS;

const _: () = assert!(MAX_OPEN_TRANSACTIONS < MAX_PRODUCERS);

/// How many of a producer's latest batches are remembered: as many as an idempotent producer may have in flight.
const REMEMBERED_BATCHES: usize = MAX_SNAPSHOT_BATCHES;

/// A producer's numbering of one batch, from the batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSequence {
    pub producer: ProducerId,
    /// 0 or above.
    pub producer_epoch: i16,
    /// The first record's number, 0 or above; numbers wrap from `i32::MAX` to 0.
    pub base_sequence: i32,
    /// At least 1.
    pub records: u32,
    /// Whether it belongs to its producer's transaction.
    pub transactional: bool,
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
    /// `OUT_OF_ORDER_SEQUENCE_NUMBER`, `DUPLICATE_SEQUENCE_NUMBER`, `INVALID_PRODUCER_EPOCH`, or `INVALID_TXN_STATE` for a
    /// batch outside the transaction that its producer has open.
    Refused(ErrorCode),
}

/// A function of the log: replaying the log's batches in order gives the same state (invariant 11), from the log's first record
/// on, or from a [`ProducerSnapshot`] of an earlier position. Only which ended transactions are still remembered depends on what
/// was known to be committed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ProducerStates {
    producers: BTreeMap<ProducerId, ProducerState>,
    /// The producers with an open transaction by its first offset. Always what `producers` says.
    open: BTreeMap<Offset, ProducerId>,
    /// Transactions whose markers are in the log and may still be lost with its tail. With `open` they hold the last stable
    /// offset down: it is the first offset of the earliest transaction that is open, or whose marker is not below the high
    /// watermark. So it never passes the high watermark nor an undecided record, and falls only where the high watermark does:
    /// a transaction begins at the log's end, and its end, once it is committed, is not lost.
    ended: EndedTransactions,
    /// Whether something may be missing: the log no longer begins at its first record, or a producer was forgotten.
    incomplete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ProducerState {
    /// Of its latest batch or marker. Never falls while the producer is remembered: what is older is refused.
    epoch: i16,
    /// The latest batches of `epoch`, oldest first; at most [`REMEMBERED_BATCHES`]. Empty only where a marker came last.
    batches: VecDeque<RememberedBatch>,
    transaction: TransactionEntry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RememberedBatch {
    base_sequence: i32,
    last_sequence: i32,
    base: Offset,
    end: Offset,
}

/// What a partition knows of one producer, for those who look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerDescription {
    pub producer: ProducerId,
    pub epoch: i16,
    /// The last record's sequence number; `None` where a marker came last.
    pub last_sequence: Option<i32>,
    pub coordinator_epoch: Option<i32>,
    /// The first offset of its open transaction.
    pub open: Option<Offset>,
    /// The offset after its last batch or marker.
    pub end: Offset,
}

impl ProducerStates {
    pub fn new() -> ProducerStates {
        ProducerStates::default()
    }

    /// Whether `batch` may be appended now. Whether it may begin a transaction is the leader's to say.
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
        if batch.producer_epoch == state.epoch {
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
        }
        let last = state.batches.back();
        let expected = match last {
            Some(last) if batch.producer_epoch == state.epoch => {
                wrapping_sequence(last.last_sequence, 1)
            }
            _ => 0,
        };
        // Of a producer that was forgotten and then named by a marker, the batches before are not known.
        let unknown = last.is_none() && self.incomplete && batch.producer_epoch == state.epoch;
        if batch.base_sequence != expected && !unknown {
            return SequenceCheck::Refused(ErrorCode::OutOfOrderSequenceNumber);
        }
        if state.transaction.open.is_some() && !batch.transactional {
            return SequenceCheck::Refused(ErrorCode::InvalidTxnState);
        }
        SequenceCheck::InOrder
    }

    /// Whether a marker may be appended: not one of an older epoch of its producer, or of a coordinator that is not the current
    /// one any more. One that ends no open transaction may: its coordinator asks again until it is answered.
    pub fn check_marker(&self, marker: &Marker) -> Result<(), ErrorCode> {
        let Some(state) = self.producers.get(&marker.producer) else {
            return Ok(());
        };
        if marker.producer_epoch < state.epoch {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        let known = state.transaction.coordinator_epoch;
        if known.is_some_and(|known| marker.coordinator_epoch < known) {
            return Err(ErrorCode::TransactionCoordinatorFenced);
        }
        Ok(())
    }

    /// `batch` is in the log, from `base` up to `end`. Returns up to where the log speaks of a producer that was forgotten for it.
    pub fn handle_appended(
        &mut self,
        batch: BatchSequence,
        base: Offset,
        end: Offset,
    ) -> Option<Offset> {
        let state = self.state_of(batch.producer, batch.producer_epoch, end);
        if state.batches.len() == REMEMBERED_BATCHES {
            state.batches.pop_front();
        }
        state.batches.push_back(RememberedBatch {
            base_sequence: batch.base_sequence,
            last_sequence: batch.last_sequence(),
            base,
            end,
        });
        if batch.transactional && state.transaction.open.is_none() {
            state.transaction.open = Some(base);
            self.open.insert(base, batch.producer);
        }
        self.forget_one_too_many()
    }

    /// A marker is in the log, from `base` up to `end`. Returns what [`ProducerStates::handle_appended`] does.
    pub fn handle_marker(&mut self, marker: &Marker, base: Offset, end: Offset) -> Option<Offset> {
        let state = self.state_of(marker.producer, marker.producer_epoch, end);
        let transaction = &mut state.transaction;
        transaction.coordinator_epoch = transaction
            .coordinator_epoch
            .max(Some(marker.coordinator_epoch));
        transaction.last_marker = Some(base);
        if let Some(first) = transaction.open.take() {
            self.open.remove(&first);
            self.ended.push(first, end);
        }
        self.forget_one_too_many()
    }

    /// The state of a producer of which something was appended that ends at `end`.
    fn state_of(&mut self, producer: ProducerId, epoch: i16, end: Offset) -> &mut ProducerState {
        let state = self
            .producers
            .entry(producer)
            .or_insert_with(|| ProducerState {
                epoch,
                batches: VecDeque::new(),
                transaction: TransactionEntry::none(end),
            });
        if state.epoch != epoch {
            state.epoch = epoch;
            state.batches.clear();
        }
        state.transaction.end = end;
        state
    }

    /// Everything below `high_watermark` is committed.
    pub fn handle_committed(&mut self, high_watermark: Offset) {
        self.ended.handle_committed(high_watermark);
    }

    /// The offset below which every record is committed, and belongs to no transaction of which it is not certain how it ends.
    /// At most `high_watermark`. Transactions that were removed with the front of the log are the caller's to leave out.
    pub fn last_stable_offset(&self, high_watermark: Offset) -> Offset {
        let open = self.open.keys().next().copied();
        let ended = self.ended.first_above(high_watermark);
        [open, ended]
            .into_iter()
            .flatten()
            .fold(high_watermark, Offset::min)
    }

    /// The producer's transaction that is open in its `epoch`: its first offset.
    pub fn open_transaction(&self, producer: ProducerId, epoch: i16) -> Option<Offset> {
        let state = self.producers.get(&producer)?;
        state.transaction.open.filter(|_| state.epoch == epoch)
    }

    /// Whether batches of the producer's `epoch` are remembered.
    pub fn has_batches(&self, producer: ProducerId, epoch: i16) -> bool {
        let state = self.producers.get(&producer);
        state.is_some_and(|state| state.epoch == epoch && !state.batches.is_empty())
    }

    /// How many transactions are open.
    pub fn open_transactions(&self) -> usize {
        self.open.len()
    }

    /// The offset of the producer's last marker.
    pub fn last_marker(&self, producer: ProducerId) -> Option<Offset> {
        self.producers.get(&producer)?.transaction.last_marker
    }

    /// What a marker that is appended at `at` and ends before `end` would take back, if it aborts. `None` where its producer has
    /// no transaction open.
    pub fn span_to_abort(&self, producer: ProducerId, end: Offset) -> Option<AbortedSpan> {
        let first = self.producers.get(&producer)?.transaction.open?;
        let mut others = self.open.keys().copied().filter(|open| *open != first);
        Some(AbortedSpan {
            first,
            stable: others.next().unwrap_or(end),
        })
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
            transaction: state.transaction,
        };
        ProducerSnapshot {
            incomplete: self.incomplete,
            producers: self.producers.iter().map(entry).collect(),
            ended: self.ended.entries(),
        }
    }

    /// About how many bytes [`ProducerStates::snapshot`] encodes to, without making it.
    pub fn snapshot_bytes(&self) -> usize {
        let batches = self.producers.values().map(|state| state.batches.len());
        ProducerSnapshot::encoded_len_of(self.producers.len(), batches.sum(), 0)
    }

    /// What is known of each producer, in order of their ids.
    pub fn describe(&self) -> Vec<ProducerDescription> {
        let describe = |(&producer, state): (&ProducerId, &ProducerState)| ProducerDescription {
            producer,
            epoch: state.epoch,
            last_sequence: state.batches.back().map(|batch| batch.last_sequence),
            coordinator_epoch: state.transaction.coordinator_epoch,
            open: state.transaction.open,
            end: state.transaction.end,
        };
        self.producers.iter().map(describe).collect()
    }

    pub fn len(&self) -> usize {
        self.producers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// How full it is.
    pub fn fills(&self) -> [Fill; 4] {
        let batches = self.producers.values().map(|state| state.batches.len());
        [
            Fill::new("producers that are remembered", self.len(), MAX_PRODUCERS),
            Fill::new(
                "batches of one producer",
                batches.max().unwrap_or(0),
                REMEMBERED_BATCHES,
            ),
            Fill::new("open transactions", self.open.len(), MAX_OPEN_TRANSACTIONS),
            Fill::new(
                "ended transactions",
                self.ended.len(),
                EndedTransactions::MAX,
            ),
        ]
    }

    fn forget_one_too_many(&mut self) -> Option<Offset> {
        if self.producers.len() <= MAX_PRODUCERS {
            return None;
        }
        self.incomplete = true;
        let (&producer, state) = self
            .producers
            .iter()
            .filter(|(_, state)| state.transaction.open.is_none())
            .min_by_key(|(_, state)| state.transaction.end)?;
        let end = state.transaction.end;
        self.producers.remove(&producer);
        Some(end)
    }
}

impl From<ProducerSnapshot> for ProducerStates {
    fn from(snapshot: ProducerSnapshot) -> ProducerStates {
        let open = snapshot
            .producers
            .iter()
            .filter_map(|entry| Some((entry.transaction.open?, entry.producer)))
            .collect();
        let state = |entry: ProducerEntry| {
            let batches = entry.batches.into_iter().map(RememberedBatch::from);
            let state = ProducerState {
                epoch: entry.epoch,
                batches: batches.collect(),
                transaction: entry.transaction,
            };
            (entry.producer, state)
        };
        ProducerStates {
            producers: snapshot.producers.into_iter().map(state).collect(),
            open,
            ended: snapshot.ended.into(),
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
    use crate::record::TransactionOutcome;

    fn batch(epoch: i16, base_sequence: i32, records: u32) -> BatchSequence {
        BatchSequence {
            producer: ProducerId::new(7).unwrap(),
            producer_epoch: epoch,
            base_sequence,
            records,
            transactional: false,
        }
    }

    fn in_transaction(epoch: i16, base_sequence: i32) -> BatchSequence {
        BatchSequence {
            transactional: true,
            ..batch(epoch, base_sequence, 1)
        }
    }

    fn marker(epoch: i16, coordinator_epoch: i32) -> Marker {
        Marker {
            producer: ProducerId::new(7).unwrap(),
            producer_epoch: epoch,
            coordinator_epoch,
            outcome: TransactionOutcome::Commit,
            aborted: None,
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
        let states = states(REMEMBERED_BATCHES as u64 + 1);
        assert_eq!(
            states.check(batch(0, 4, 2)),
            SequenceCheck::Duplicate {
                base: offset(104),
                end: offset(106)
            }
        );
        // The oldest of seventeen is no longer remembered, and a batch cut differently is not the same batch.
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

    #[test]
    fn what_is_stable_waits_for_the_end_of_each_transaction_and_for_its_commit() {
        let mut states = ProducerStates::new();
        states.handle_appended(in_transaction(0, 0), offset(4), offset(5));
        let other = BatchSequence {
            producer: ProducerId::new(8).unwrap(),
            ..in_transaction(0, 0)
        };
        states.handle_appended(other, offset(5), offset(6));
        assert_eq!(states.last_stable_offset(offset(3)), offset(3));
        assert_eq!(states.last_stable_offset(offset(6)), offset(4));
        let span = states.span_to_abort(other.producer, offset(7)).unwrap();
        assert_eq!((span.first, span.stable), (offset(5), offset(4)));

        states.handle_marker(&marker(0, 1), offset(6), offset(7));
        assert_eq!(states.last_stable_offset(offset(6)), offset(4));
        assert_eq!(states.last_stable_offset(offset(7)), offset(5));
        states.handle_committed(offset(7));
        let span = states.span_to_abort(other.producer, offset(8)).unwrap();
        assert_eq!(span.stable, offset(8));
        states.handle_marker(
            &Marker {
                producer: other.producer,
                ..marker(0, 1)
            },
            offset(7),
            offset(8),
        );
        assert_eq!(states.last_stable_offset(offset(7)), offset(5));
        assert_eq!(states.last_stable_offset(offset(9)), offset(9));
    }

    #[test]
    fn a_marker_fences_older_epochs_of_its_producer_and_of_the_coordinator() {
        let mut states = ProducerStates::new();
        states.handle_appended(in_transaction(3, 0), offset(0), offset(1));
        assert_eq!(
            states.check_marker(&marker(2, 5)),
            Err(ErrorCode::InvalidProducerEpoch)
        );
        assert_eq!(states.check_marker(&marker(4, 5)), Ok(()));
        states.handle_marker(&marker(4, 5), offset(1), offset(2));
        assert_eq!(
            states.check_marker(&marker(4, 4)),
            Err(ErrorCode::TransactionCoordinatorFenced)
        );
        // The same marker again, and that of a later coordinator.
        assert_eq!(states.check_marker(&marker(4, 5)), Ok(()));
        assert_eq!(states.check_marker(&marker(4, 6)), Ok(()));
        for late in [in_transaction(3, 1), in_transaction(3, 0), batch(3, 1, 1)] {
            assert_eq!(
                states.check(late),
                SequenceCheck::Refused(ErrorCode::InvalidProducerEpoch)
            );
        }
        assert_eq!(states.check(in_transaction(4, 0)), SequenceCheck::InOrder);
        assert_eq!(
            states.check(in_transaction(4, 1)),
            SequenceCheck::Refused(ErrorCode::OutOfOrderSequenceNumber)
        );
    }

    #[test]
    fn numbers_go_on_over_transactions_and_a_repeated_batch_is_found_after_its_marker() {
        let mut states = ProducerStates::new();
        states.handle_appended(in_transaction(0, 0), offset(0), offset(1));
        assert_eq!(
            states.check(batch(0, 1, 1)),
            SequenceCheck::Refused(ErrorCode::InvalidTxnState)
        );
        states.handle_marker(&marker(0, 1), offset(1), offset(2));
        assert_eq!(
            states.check(in_transaction(0, 0)),
            SequenceCheck::Duplicate {
                base: offset(0),
                end: offset(1)
            }
        );
        assert_eq!(states.check(in_transaction(0, 1)), SequenceCheck::InOrder);
        assert_eq!(states.check(batch(0, 1, 1)), SequenceCheck::InOrder);
    }

    #[test]
    fn transactions_survive_a_snapshot() {
        let mut states = ProducerStates::new();
        states.handle_appended(in_transaction(0, 0), offset(3), offset(4));
        states.handle_marker(&marker(1, 2), offset(4), offset(5));
        states.handle_appended(in_transaction(1, 0), offset(5), offset(6));
        let restored = ProducerStates::from(states.snapshot());
        assert_eq!(restored, states);
        assert_eq!(restored.last_stable_offset(offset(4)), offset(3));
        assert_eq!(restored.last_stable_offset(offset(6)), offset(5));
        assert_eq!(
            restored.open_transaction(ProducerId::new(7).unwrap(), 1),
            Some(offset(5))
        );
    }

    #[test]
    fn a_producer_with_an_open_transaction_is_not_forgotten() {
        let mut states = ProducerStates::new();
        states.handle_appended(in_transaction(0, 0), offset(0), offset(1));
        let mut forgotten = Vec::new();
        for i in 1..MAX_PRODUCERS as u64 + 3 {
            let sent = BatchSequence {
                producer: ProducerId::new(1000 + i as i64).unwrap(),
                ..batch(0, 0, 1)
            };
            forgotten.extend(states.handle_appended(sent, offset(i), offset(i + 1)));
        }
        assert_eq!(states.len(), MAX_PRODUCERS);
        assert_eq!(forgotten, [offset(2), offset(3), offset(4)]);
        assert_eq!(states.last_stable_offset(offset(100)), offset(0));
    }
}
