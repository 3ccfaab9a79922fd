//! One transactional id: what is written of it, and what may become of that.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::limits::ID_BYTES;
use super::partitions::Partitions;
use super::state::{Ending, State};
use crate::types::{ErrorCode, MonotonicTime};

/// No producer epoch: of an id that no producer has begun with, or of which no last one is known.
pub(super) const NO_EPOCH: i16 = -1;
/// The last producer epoch that is given to a producer. Kafka's rule: the one above it is for fencing that producer, and then a
/// new producer id begins at 0.
pub(super) const LAST_EPOCH: i16 = i16::MAX - 1;

/// What is written of a transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Details {
    pub(super) producer: i64,
    /// The producer id before this one, where its epochs were used up; else −1.
    pub(super) previous_producer: i64,
    /// [`NO_EPOCH`] until the first producer's is written.
    pub(super) epoch: i16,
    /// The epoch that the same producer had before, where it has asked for the next one itself: its retry is known by it. Else
    /// [`NO_EPOCH`].
    pub(super) last_epoch: i16,
    pub(super) timeout_ms: i32,
    pub(super) state: State,
    /// Those that the transaction writes to, until it is complete.
    pub(super) partitions: Partitions,
    /// When the transaction began, in milliseconds since the Unix epoch; −1 where there was none.
    pub(super) started_ms: i64,
    /// When this was last changed, likewise.
    pub(super) changed_ms: i64,
}

/// A transactional id and what is under way for it.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) id: Arc<str>,
    pub(super) details: Details,
    /// The state that is being written. Nothing else is begun meanwhile.
    pub(super) pending: Option<State>,
    /// The partitions that have no marker yet; empty unless it ends. Those of `details` at most.
    pub(super) unmarked: BTreeSet<(Arc<str>, i32)>,
    /// When it has to be looked after: its transaction is too old, or a write is to be tried again.
    pub(super) alarm: Option<MonotonicTime>,
    /// Writes that have failed in a row where nobody is there to try again.
    pub(super) failures: u32,
}

/// What is to be written, where the request is a good one, and else what to answer at once.
pub(super) enum Judged {
    Write(Details),
    /// Nothing is to be written.
    Done,
    /// A transaction is in the way: it is to be aborted under the next epoch, and the producer asks again.
    AbortFirst,
    NeedsProducerId,
}

impl Transaction {
    pub(super) fn new(id: Arc<str>, details: Details) -> Transaction {
        Transaction {
            id,
            details,
            pending: None,
            unmarked: BTreeSet::new(),
            alarm: None,
            failures: 0,
        }
    }

    /// What it counts for; see [`MAX_STATE_BYTES`](super::MAX_STATE_BYTES).
    pub(super) fn bytes(&self) -> usize {
        ID_BYTES + self.id.len() + self.details.partitions.bytes()
    }

    /// A producer begins with the id. `fresh` is a producer id that nobody has.
    pub(super) fn init(
        &self,
        timeout_ms: i32,
        expected: Option<(i64, i16)>,
        fresh: Option<i64>,
        wall_ms: i64,
    ) -> Result<Judged, ErrorCode> {
        if self.pending.is_some() {
            return Err(ErrorCode::ConcurrentTransactions);
        }
        let now = &self.details;
        // Whether it is the retry of a producer that has got a new id or epoch and does not know it.
        let is_retry = |(producer, epoch): (i64, i16)| {
            let same = match producer == now.producer {
                true => now.last_epoch != NO_EPOCH,
                false => producer == now.previous_producer && epoch >= LAST_EPOCH,
            };
            same && epoch == now.last_epoch
        };
        if let Some(expected) = expected
            && now.epoch != NO_EPOCH
        {
            let is_holder = expected == (now.producer, now.epoch);
            if !is_holder && !is_retry(expected) {
                return Err(ErrorCode::ProducerFenced);
            }
        }
        match now.state {
            State::PrepareCommit | State::PrepareAbort => {
                return Err(ErrorCode::ConcurrentTransactions);
            }
            State::Ongoing => return Ok(Judged::AbortFirst),
            State::Empty | State::CompleteCommit | State::CompleteAbort => {}
            // Only ever pending, which was looked at above.
            State::Dead | State::PrepareEpochFence => return Err(ErrorCode::UnknownServerError),
        }
        let started = Details {
            timeout_ms,
            state: State::Empty,
            partitions: Partitions::default(),
            started_ms: -1,
            changed_ms: wall_ms,
            ..now.clone()
        };
        Ok(match expected {
            // It is given once more what it was given already.
            Some(expected) if now.epoch != NO_EPOCH && is_retry(expected) => Judged::Write(started),
            _ if now.epoch >= LAST_EPOCH => match fresh {
                None => Judged::NeedsProducerId,
                Some(fresh) => Judged::Write(Details {
                    producer: fresh,
                    previous_producer: now.producer,
                    epoch: 0,
                    last_epoch: expected.map_or(NO_EPOCH, |(_, epoch)| epoch),
                    ..started
                }),
            },
            _ => Judged::Write(Details {
                epoch: now.epoch + 1,
                // Nobody but the one who has asked may go on from here.
                last_epoch: expected.map_or(NO_EPOCH, |_| now.epoch),
                ..started
            }),
        })
    }

    /// Whether the request comes from the producer that holds the id.
    fn check_producer(&self, producer: i64, epoch: i16) -> Result<(), ErrorCode> {
        if self.details.producer != producer {
            Err(ErrorCode::InvalidProducerIdMapping)
        } else if self.details.epoch != epoch {
            Err(ErrorCode::ProducerFenced)
        } else {
            Ok(())
        }
    }

    /// The transaction is going to write to these too.
    pub(super) fn add(
        &self,
        producer: i64,
        epoch: i16,
        added: &[(String, i32)],
        wall_ms: i64,
    ) -> Result<Judged, ErrorCode> {
        if self.pending.is_some() {
            return Err(ErrorCode::ConcurrentTransactions);
        }
        self.check_producer(producer, epoch)?;
        let now = &self.details;
        let started_ms = match now.state {
            State::Ongoing => now.started_ms,
            state if state.is_at_rest() => wall_ms,
            _ => return Err(ErrorCode::ConcurrentTransactions),
        };
        let is_known =
            |(topic, partition): &(String, i32)| now.partitions.contains(topic, *partition);
        if now.state == State::Ongoing && added.iter().all(is_known) {
            return Ok(Judged::Done);
        }
        let mut partitions = now.partitions.clone();
        for (topic, partition) in added {
            partitions.insert(topic, *partition);
        }
        Ok(Judged::Write(Details {
            state: State::Ongoing,
            partitions,
            started_ms,
            changed_ms: wall_ms,
            ..now.clone()
        }))
    }

    /// Whether the transaction writes to each of these, now and not only once something is written.
    pub(super) fn verify(
        &self,
        producer: i64,
        epoch: i16,
        wanted: &[(String, i32)],
    ) -> Result<Vec<bool>, ErrorCode> {
        self.check_producer(producer, epoch)?;
        let now = &self.details;
        // One whose end is being written must not begin to write anywhere: its markers may overtake it.
        let is_ending = self.pending.is_some_and(|state| state != State::Ongoing);
        if is_ending || now.state.ending().is_some() {
            return Err(ErrorCode::ConcurrentTransactions);
        }
        Ok(wanted
            .iter()
            .map(|(topic, partition)| {
                now.state == State::Ongoing && now.partitions.contains(topic, *partition)
            })
            .collect())
    }

    /// Its producer ends the transaction.
    pub(super) fn end(
        &self,
        producer: i64,
        epoch: i16,
        ending: Ending,
        wall_ms: i64,
    ) -> Result<Judged, ErrorCode> {
        if self.pending.is_some() {
            return Err(ErrorCode::ConcurrentTransactions);
        }
        self.check_producer(producer, epoch)?;
        let now = &self.details;
        if now.state == State::Ongoing {
            return Ok(Judged::Write(Details {
                state: ending.prepare(),
                changed_ms: wall_ms,
                ..now.clone()
            }));
        }
        // A retry. What is known here may be out of date: there may be a later coordinator, with which the producer has begun its
        // next transaction. So the same is written once more, which that makes impossible.
        if now.state.ended() == Some(ending) {
            return Ok(Judged::Write(now.clone()));
        }
        match now.state.ending() == Some(ending) {
            true => Err(ErrorCode::ConcurrentTransactions),
            false => Err(ErrorCode::InvalidTxnState),
        }
    }

    /// The end of an ongoing transaction that its producer does not end, under the next epoch: so that one is fenced, here and,
    /// by the markers, wherever it has written.
    pub(super) fn fenced(&self, wall_ms: i64) -> Details {
        Details {
            // No producer has the last epoch there is; see `LAST_EPOCH`. The log of another broker may say otherwise.
            epoch: self.details.epoch.saturating_add(1),
            last_epoch: NO_EPOCH,
            state: State::PrepareAbort,
            changed_ms: wall_ms,
            ..self.details.clone()
        }
    }

    /// Every partition has its marker.
    pub(super) fn complete(&self, ending: Ending, wall_ms: i64) -> Details {
        Details {
            state: ending.complete(),
            partitions: Partitions::default(),
            changed_ms: wall_ms,
            ..self.details.clone()
        }
    }
}
