//! What a log says of idempotent producers, by a replay that shares no code with the product's.

use std::collections::{BTreeMap, VecDeque};

use quorate::types::Offset;
use quorate::wire::{BatchEntry, ProducerSnapshot};

use super::checker::{Check, violated};
use super::mirror::Held;

/// How many batches of a producer a partition remembers: Kafka's limit of what may be in flight.
const REMEMBERED: usize = 5;

/// Each producer's epoch and its latest batches in it.
#[derive(Clone, Debug, Default)]
pub struct Known {
    producers: BTreeMap<i64, (i16, VecDeque<BatchEntry>)>,
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
        let more = i32::try_from(held.records()).unwrap_or(i32::MAX);
        let batch = BatchEntry {
            base_sequence,
            last_sequence: base_sequence + more - 1,
            base: held.start.offset,
            end: held.end.offset,
        };
        let known = self
            .producers
            .entry(producer)
            .or_insert_with(|| (epoch, VecDeque::new()));
        let last = known.1.back().map(|last| last.last_sequence);
        let follows = match last {
            Some(last) if known.0 == epoch => base_sequence == last + 1,
            Some(_) => epoch > known.0 && base_sequence == 0,
            None => base_sequence == 0,
        };
        if !follows {
            return violated(
                "11 (once, and in order, in each log)",
                format!(
                    "node {}: producer {producer}'s sequence {base_sequence} of epoch {epoch} at {}, after {last:?} of epoch {}",
                    node + 1,
                    held.start,
                    known.0
                ),
            );
        }
        if known.0 != epoch {
            *known = (epoch, VecDeque::new());
        }
        known.1.push_back(batch);
        if known.1.len() > REMEMBERED {
            known.1.pop_front();
        }
        Ok(())
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
            let Some((epoch, batches)) = self.producers.get(&id) else {
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
                entry.batches.len() == batches.len()
            };
            if *epoch != entry.epoch || !is_tail || !enough {
                return Err(format!(
                    "producer {id} is kept as epoch {} {:?}, and a replay gives epoch {epoch} {batches:?} (incomplete: {})",
                    entry.epoch, entry.batches, kept.incomplete
                ));
            }
        }
        for (&id, (_, batches)) in &self.producers {
            let is_kept = kept
                .producers
                .iter()
                .any(|entry| entry.producer.get() == id);
            let may_be_missing =
                kept.incomplete && batches.back().is_none_or(|last| last.base < start);
            if !is_kept && !may_be_missing {
                return Err(format!(
                    "producer {id} is not kept, and a replay gives {batches:?} (incomplete: {})",
                    kept.incomplete
                ));
            }
        }
        Ok(())
    }
}
