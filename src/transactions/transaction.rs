//! One transactional id: what is written of it, and what may become of that.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::limits::ID_BYTES;
use super::partitions::Partitions;
use super::state::{Ending, State};
use super::version::ClientVersion;
use crate::types::{ErrorCode, MonotonicTime};

/// No producer id, where there need not be one.
pub(super) const NO_PRODUCER: i64 = -1;
/// No producer epoch: of an id that no producer has begun with, or of which no last one is known.
pub(super) const NO_EPOCH: i16 = -1;
/// The last producer epoch that is given to a producer. Kafka's rule: the one above it is for fencing that producer, and then a
/// new producer id begins at 0.
pub(super) const LAST_EPOCH: i16 = i16::MAX - 1;

/// What is written of a transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Details {
    pub(super) producer: i64,
    /// The producer id before this one, where its epochs were used up; else [`NO_PRODUCER`].
    pub(super) previous_producer: i64,
    /// The producer id after this one, from epoch 0 on, where the epochs were used up with the transaction that ends now; else
    /// [`NO_PRODUCER`]. The client has it as soon as the end is decided, the partitions never: their markers carry this one's.
    pub(super) next_producer: i64,
    /// [`NO_EPOCH`] until the first producer's is written.
    pub(super) epoch: i16,
    /// The epoch that the same producer had before, where it has asked for the next one itself, by beginning anew or by ending a
    /// transaction: its retry is known by it. Else [`NO_EPOCH`].
    pub(super) last_epoch: i16,
    /// What the client speaks that has begun the transaction or, from its end on, has ended it.
    pub(super) version: ClientVersion,
    pub(super) timeout_ms: i32,
    pub(super) state: State,
    /// Those that the transaction writes to, until it is complete.
    pub(super) partitions: Partitions,
    /// When the transaction began, in milliseconds since the Unix epoch; −1 where there was none.
    pub(super) started_ms: i64,
    /// When this was last changed, likewise.
    pub(super) changed_ms: i64,
}

impl Details {
    /// The producer id and epoch that may go on, as the client knows them.
    pub(super) fn holder(&self) -> (i64, i16) {
        match self.state.ending() {
            Some(_) if self.next_producer != NO_PRODUCER => (self.next_producer, 0),
            _ => (self.producer, self.epoch),
        }
    }
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
        self.check_nothing_pending()?;
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
            let is_holder = expected == now.holder();
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
            next_producer: NO_PRODUCER,
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

    /// What is being written of the transaction comes first: until then nobody can say what it is.
    fn check_nothing_pending(&self) -> Result<(), ErrorCode> {
        match self.pending {
            None => Ok(()),
            Some(_) => Err(ErrorCode::ConcurrentTransactions),
        }
    }

    /// Whether the request comes from the producer that holds the id.
    fn check_producer(&self, producer: i64, epoch: i16) -> Result<(), ErrorCode> {
        let holder = self.details.holder();
        if holder.0 != producer {
            Err(ErrorCode::InvalidProducerIdMapping)
        } else if holder.1 != epoch {
            Err(ErrorCode::ProducerFenced)
        } else {
            Ok(())
        }
    }

    /// The transaction is going to write to these too.
    pub(super) fn add(
        &self,
        (producer, epoch): (i64, i16),
        added: &[(String, i32)],
        version: ClientVersion,
        wall_ms: i64,
    ) -> Result<Judged, ErrorCode> {
        self.check_nothing_pending()?;
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
            version,
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

    /// Its producer, of [`ClientVersion::V1`], ends the transaction.
    pub(super) fn end(
        &self,
        producer: i64,
        epoch: i16,
        ending: Ending,
        wall_ms: i64,
    ) -> Result<Judged, ErrorCode> {
        self.check_nothing_pending()?;
        self.check_producer(producer, epoch)?;
        let now = &self.details;
        if now.state == State::Ongoing {
            return Ok(Judged::Write(Details {
                next_producer: NO_PRODUCER,
                version: ClientVersion::V1,
                state: ending.prepare(),
                changed_ms: wall_ms,
                ..now.clone()
            }));
        }
        self.end_again(ending)
    }

    /// A transaction that is not open is to end, perhaps as it has ended already. What is known here may be out of date: there may
    /// be a later coordinator, with which the producer has begun its next transaction. So the same is written once more, which that
    /// makes impossible.
    fn end_again(&self, ending: Ending) -> Result<Judged, ErrorCode> {
        let now = &self.details;
        if now.state.ended() == Some(ending) {
            return Ok(Judged::Write(now.clone()));
        }
        match now.state.ending() == Some(ending) {
            true => Err(ErrorCode::ConcurrentTransactions),
            false => Err(ErrorCode::InvalidTxnState),
        }
    }

    /// Its producer, of [`ClientVersion::V2`], ends the transaction and gets the next epoch, under which the markers are written:
    /// so what comes late of this one is refused wherever it has written. `fresh` is a producer id that nobody has.
    pub(super) fn end_and_bump(
        &self,
        (producer, epoch): (i64, i16),
        ending: Ending,
        fresh: Option<i64>,
        wall_ms: i64,
    ) -> Result<Judged, ErrorCode> {
        self.check_nothing_pending()?;
        if self.was_ended_by(producer, epoch) {
            return self.end_again(ending);
        }
        self.check_producer(producer, epoch)?;
        let now = &self.details;
        let started_ms = match now.state {
            State::Ongoing => now.started_ms,
            // A partition's leader may have failed to add it, of which the client does not know more than that it must abort.
            state if state.is_at_rest() && ending == Ending::Abort => wall_ms,
            state if state.is_at_rest() => return Err(ErrorCode::InvalidTxnState),
            // It is the next transaction that is ended, before the last one is over.
            _ => return Err(ErrorCode::ConcurrentTransactions),
        };
        let next_producer = match (epoch >= LAST_EPOCH, fresh) {
            (false, _) => NO_PRODUCER,
            (true, Some(fresh)) => fresh,
            (true, None) => return Ok(Judged::NeedsProducerId),
        };
        Ok(Judged::Write(Details {
            next_producer,
            // See `LAST_EPOCH`; the log of another broker may say otherwise.
            epoch: epoch.saturating_add(1),
            last_epoch: epoch,
            version: ClientVersion::V2,
            state: ending.prepare(),
            started_ms,
            changed_ms: wall_ms,
            ..now.clone()
        }))
    }

    /// Whether it was this producer in this epoch that has ended the last transaction, and got another epoch or id for it. Since
    /// then no transaction has begun.
    fn was_ended_by(&self, producer: i64, epoch: i16) -> bool {
        let now = &self.details;
        let has_ended = now.state.ending().is_some() || now.state.ended().is_some();
        let is_bumped = now.version == ClientVersion::V2 && now.last_epoch == epoch;
        let is_same = match producer == now.producer {
            true => epoch.checked_add(1) == Some(now.epoch),
            false => producer == now.previous_producer && epoch >= LAST_EPOCH && now.epoch == 0,
        };
        has_ended && is_bumped && is_same
    }

    /// The end of an ongoing transaction that its producer does not end, under the next epoch: so that one is fenced, here and,
    /// by the markers, wherever it has written.
    pub(super) fn fenced(&self, wall_ms: i64) -> Details {
        Details {
            // No producer has the last epoch there is; see `LAST_EPOCH`. The log of another broker may say otherwise.
            epoch: self.details.epoch.saturating_add(1),
            next_producer: NO_PRODUCER,
            last_epoch: NO_EPOCH,
            state: State::PrepareAbort,
            changed_ms: wall_ms,
            ..self.details.clone()
        }
    }

    /// Every partition has its marker.
    pub(super) fn complete(&self, ending: Ending, wall_ms: i64) -> Details {
        let now = &self.details;
        let (producer, epoch) = now.holder();
        Details {
            producer,
            previous_producer: match producer == now.producer {
                true => now.previous_producer,
                false => now.producer,
            },
            next_producer: NO_PRODUCER,
            epoch,
            state: ending.complete(),
            partitions: Partitions::default(),
            changed_ms: wall_ms,
            ..now.clone()
        }
    }
}
