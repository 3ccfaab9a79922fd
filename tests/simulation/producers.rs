//! What a log says of idempotent producers and of their transactions, by a replay that shares no code with the product's.

use std::collections::{BTreeMap, VecDeque};

use quorate::record::{AbortedSpan, Marker, TransactionOutcome};
use quorate::types::Offset;
use quorate::wire::{BatchEntry, ProducerSnapshot, TransactionEntry};

use super::checker::{Check, violated};
use super::mirror::Held;

/// How many batches of a producer a partition remembers: as many as the native producer has in flight.
const REMEMBERED: usize = 16;

/// One producer: its epoch, its latest batches in it, and its transaction.
#[derive(Clone, Debug)]
struct One {
    epoch: i16,
    batches: VecDeque<BatchEntry>,
    transaction: TransactionEntry,
}

/// What is known of all producers.
#[derive(Clone, Debug, Default)]
pub struct Known {
    producers: BTreeMap<i64, One>,
    /// Transactions that have ended: the first offset and the one after the marker. Those that can hold nothing back any more
    /// are left out.
    ended: Vec<(Offset, Offset)>,
    /// Whether it was compared since it last changed.
    is_seen: bool,
}

impl Known {
    /// The log goes on with a frame. No number of a producer comes twice, and none is left out.
    pub fn take(&mut self, node: usize, held: &Held) -> Check {
        let Some((producer, epoch, base_sequence)) = held.sequence else {
            return Ok(());
        };
        self.is_seen = false;
        if let Some(marker) = &held.marker {
            return self.take_marker(node, held, marker);
        }
        let more = i32::try_from(held.records()).unwrap_or(i32::MAX);
        let batch = BatchEntry {
            base_sequence,
            last_sequence: base_sequence + more - 1,
            base: held.start.offset,
            end: held.end.offset,
        };
        let known = self.of(producer, epoch, held);
        let last = known.batches.back().map(|last| last.last_sequence);
        let follows = match last {
            Some(last) if known.epoch == epoch => base_sequence == last + 1,
            _ => epoch >= known.epoch && base_sequence == 0,
        };
        let belongs = held.transactional || known.transaction.open.is_none();
        if !follows || !belongs {
            return violated(
                "11 (once, and in order, in each log)",
                format!(
                    "node {}: producer {producer}'s sequence {base_sequence} of epoch {epoch} at {}, after {last:?} of epoch {} (transaction: {:?})",
                    node + 1,
                    held.start,
                    known.epoch,
                    known.transaction
                ),
            );
        }
        known.begin_epoch(epoch);
        known.batches.push_back(batch);
        if known.batches.len() > REMEMBERED {
            known.batches.pop_front();
        }
        known.transaction.end = held.end.offset;
        if held.transactional && known.transaction.open.is_none() {
            known.transaction.open = Some(held.start.offset);
        }
        Ok(())
    }

    fn of(&mut self, producer: i64, epoch: i16, held: &Held) -> &mut One {
        self.producers.entry(producer).or_insert_with(|| One {
            epoch,
            batches: VecDeque::new(),
            transaction: TransactionEntry {
                coordinator_epoch: None,
                open: None,
                last_marker: None,
                end: held.end.offset,
            },
        })
    }

    /// A marker is of no older epoch of its producer and of no older coordinator; and one that aborts names what it takes back.
    fn take_marker(&mut self, node: usize, held: &Held, marker: &Marker) -> Check {
        let producer = marker.producer.get();
        let open: Vec<Offset> = self
            .producers
            .iter()
            .filter(|(id, _)| **id != producer)
            .filter_map(|(_, other)| other.transaction.open)
            .collect();
        let known = self.of(producer, marker.producer_epoch, held);
        let transaction = &known.transaction;
        let first = transaction.open;
        let stable = open.into_iter().min().unwrap_or(held.end.offset);
        let aborted = match marker.outcome {
            TransactionOutcome::Abort => first.map(|first| AbortedSpan { first, stable }),
            TransactionOutcome::Commit => None,
        };
        if marker.producer_epoch < known.epoch
            || Some(marker.coordinator_epoch) < transaction.coordinator_epoch
            || marker.aborted != aborted
        {
            return violated(
                "transactions (a marker in a log)",
                format!(
                    "node {}: {marker:?} at {}, where epoch {} and {transaction:?} were, and {aborted:?} is to be aborted",
                    node + 1,
                    held.start,
                    known.epoch
                ),
            );
        }
        known.begin_epoch(marker.producer_epoch);
        known.transaction = TransactionEntry {
            coordinator_epoch: Some(marker.coordinator_epoch),
            open: None,
            last_marker: Some(held.start.offset),
            end: held.end.offset,
        };
        self.ended
            .extend(first.map(|first| (first, held.end.offset)));
        Ok(())
    }

    /// What ends at or below `high_watermark` holds nothing back any more.
    pub fn forget_ended(&mut self, high_watermark: Offset) {
        self.ended.retain(|(_, end)| *end > high_watermark);
    }

    /// Below `high_watermark`, up to where every transaction has ended for certain if all is committed below `committed`.
    pub fn stable(&self, high_watermark: Offset, committed: Offset) -> Offset {
        let ended = self.ended.iter();
        let ended = ended.filter(|(_, end)| *end > committed);
        let ended = ended.map(|(first, _)| *first);
        let open = self.producers.values();
        let open = open.filter_map(|known| known.transaction.open);
        ended.chain(open).fold(high_watermark, Offset::min)
    }

    pub fn is_new(&self) -> bool {
        !self.is_seen
    }

    pub fn seen(&mut self) {
        self.is_seen = true;
    }

    /// Whether `kept` is what is known, or, where it says that something may be missing, what can be known of a log that begins
    /// at `start`.
    pub fn check(&self, kept: &ProducerSnapshot, start: Offset) -> Result<(), String> {
        for entry in &kept.producers {
            let id = entry.producer.get();
            let Some(One {
                epoch,
                batches,
                transaction,
            }) = self.producers.get(&id)
            else {
                return Err(format!(
                    "producer {id} is kept, and the log has nothing of it"
                ));
            };
            let is_tail = batches
                .iter()
                .rev()
                .zip(entry.batches.iter().rev())
                .all(|(a, b)| a == b)
                && entry.batches.len() <= batches.len();
            let enough = if kept.incomplete {
                let in_log = batches.iter().filter(|batch| batch.base >= start).count();
                entry.batches.len() >= in_log
            } else {
                entry.batches.len() == batches.len() && entry.transaction == *transaction
            };
            if *epoch != entry.epoch || !is_tail || !enough {
                return Err(format!(
                    "producer {id} is kept as epoch {} {:?} {:?}, and a replay gives epoch {epoch} {batches:?} {transaction:?} (incomplete: {})",
                    entry.epoch, entry.batches, entry.transaction, kept.incomplete
                ));
            }
        }
        for (&id, known) in &self.producers {
            let is_kept = kept
                .producers
                .iter()
                .any(|entry| entry.producer.get() == id);
            let may_be_missing = kept.incomplete && known.transaction.end <= start;
            if !is_kept && !may_be_missing {
                return Err(format!(
                    "producer {id} is not kept, and a replay gives {known:?} (incomplete: {})",
                    kept.incomplete
                ));
            }
        }
        Ok(())
    }
}

impl One {
    fn begin_epoch(&mut self, epoch: i16) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.batches.clear();
        }
    }
}
