//! One partition's batches: filling them, the order in which they are sent, retries and sequence numbers.
//!
//! Plain and synchronous: `now` is an argument, and what is to be sent comes out of [`PartitionQueue::take`].
//!
//! ```text
//!            append            take                complete
//!   (none) ────────▶ open ───────────▶ in flight ────────────▶ acknowledged or failed
//!                     │ full, flush ▲  ▲       │
//!                     ▼             │  │       │ may succeed later
//!                   closed ─────────┘  └──── waiting (backoff)
//! ```
//!
//! # Order
//! Batches leave in the order in which they were opened, and a batch never overtakes one that waits to be sent again. An
//! idempotent producer has up to five in flight; should one of them fail while those behind it arrive, the leader refuses
//! these by their sequence numbers, and all are sent again in the same order with the same numbers. Without idempotence
//! nothing would refuse them, so then one batch is in flight at a time, unless the configuration says otherwise.
//!
//! # Sequence numbers
//! They are given when a batch is first sent, per partition, from 0 under each producer id. The partition asks for another
//! producer id where the old one is of no more use:
//!
//! - the leader does not know the id or its epoch (`UNKNOWN_PRODUCER_ID`, `INVALID_PRODUCER_EPOCH`). Batches that were
//!   certainly not appended are sent again under the new id. One whose earlier attempt has an unknown outcome is failed: to
//!   send it under another id might append it twice.
//! - the leader refuses the oldest batch as out of order (`OUT_OF_ORDER_SEQUENCE_NUMBER`): records that it had acknowledged
//!   are gone. That batch fails, so that the loss is heard of; the ones behind it go on under the new id.
//! - a batch failed for good while later ones had their numbers already: they can no longer follow it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Shared;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::delivery::{DeliveryCause, DeliveryError};
use crate::client::backoff::{Backoff, Random};
use crate::client::error::ClientError;
use crate::client::metadata::PartitionName;
use crate::record::{AppendError, Batch, BatchBuilder, Header, ProducerStamp, restamp_producer};
use crate::types::{ErrorCode, ProducerId};

/// A batch's number within its partition's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BatchId(u64);

/// What became of a batch: the first record's offset, or why it failed. `None` where the offset is not known: `acks=0`, or
/// a duplicate that the leader no longer remembers the offset of.
pub(super) type BatchResult = Result<Option<i64>, Arc<DeliveryError>>;
pub(super) type BatchDone = Shared<oneshot::Receiver<BatchResult>>;

/// What governs a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueConfig {
    pub(super) batch_bytes: usize,
    pub(super) linger: Duration,
    pub(super) delivery_timeout: Duration,
    pub(super) max_in_flight: usize,
    pub(super) backoff: Backoff,
}

/// A producer id as the cluster gave it, numbered by this producer in the order in which it got them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) generation: u64,
    pub(super) id: ProducerId,
    pub(super) epoch: i16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sequencing {
    /// Not idempotent.
    Off,
    /// Nothing is sent until an identity later than this generation is there.
    Wanted {
        after: u64,
    },
    Given(Identity),
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct PartitionQueue {
    name: PartitionName,
    config: QueueConfig,
    /// Oldest first. Those that were ever sent come before those that were not. Bounded by the producer's memory.
    batches: VecDeque<Pending>,
    sequencing: Sequencing,
    /// Of the next batch that is sent for the first time.
    next_sequence: i32,
    next_id: u64,
    /// How many batches take no more records.
    closed_batches: u64,
    random: Random,
}

#[derive(Debug)]
struct Pending {
    id: BatchId,
    created: Instant,
    state: State,
    content: Content,
    record_count: i32,
    /// Set when it is first sent under the present identity.
    sequence: Option<i32>,
    attempts: u32,
    /// An attempt's outcome is unknown: the records may be in the log already.
    uncertain: bool,
    /// Why it was not delivered so far.
    last: Option<ClientError>,
    done: oneshot::Sender<BatchResult>,
    /// The other end of `done`.
    wait: BatchDone,
    /// What it holds of the producer's memory.
    _memory: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Closed,
    InFlight,
    Waiting { not_before: Instant },
}

#[derive(Debug)]
enum Content {
    Filling(BatchBuilder),
    /// With whoever sends it.
    Away,
    Sealed(Bytes),
}

/// A batch to be sent now. It comes back through [`PartitionQueue::complete`].
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) id: BatchId,
    pub(super) content: OutgoingContent,
    /// When it is too late for it.
    pub(super) deadline: Instant,
}

#[derive(Debug)]
pub(super) enum OutgoingContent {
    /// Not compressed yet; that is done outside the producer's lock.
    New {
        builder: BatchBuilder,
        stamp: Option<ProducerStamp>,
    },
    Sealed(Bytes),
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Attempt {
    Appended {
        offset: Option<i64>,
    },
    /// The node's answer.
    Refused {
        code: ErrorCode,
        message: Option<String>,
    },
    /// It never left this process.
    NotSent(ClientError),
    /// It may have been appended.
    Unknown(ClientError),
}

/// What the owner of the queue is to do after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// What is known of the partition's leader is wrong.
    pub(super) refresh_metadata: bool,
}

/// A record was taken in.
#[derive(Debug)]
pub(super) struct Appended {
    pub(super) done: BatchDone,
    /// Its place in the batch.
    pub(super) index: i32,
    /// Something may be sent now, or a new timer runs.
    pub(super) wake: bool,
}

impl PartitionQueue {
    pub(super) fn new(
        name: PartitionName,
        config: QueueConfig,
        idempotent: bool,
        seed: u64,
    ) -> PartitionQueue {
        PartitionQueue {
            name,
            config,
            batches: VecDeque::new(),
            sequencing: if idempotent {
                Sequencing::Wanted { after: 0 }
            } else {
                Sequencing::Off
            },
            next_sequence: 0,
            next_id: 0,
            closed_batches: 0,
            random: Random::new(seed),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(super) fn closed_batches(&self) -> u64 {
        self.closed_batches
    }

    /// Takes in a record. `memory` is what it holds of the producer's memory.
    pub(super) fn append(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
        timestamp: i64,
        memory: OwnedSemaphorePermit,
        now: Instant,
    ) -> Result<Appended, AppendError> {
        let bound = BatchBuilder::record_size_bound(key, value, headers);
        if let Some(last) = self.batches.back_mut()
            && let (State::Open, Content::Filling(builder)) = (last.state, &last.content)
            && builder.size() + bound > self.config.batch_bytes
        {
            last.state = State::Closed;
            self.closed_batches += 1;
        }
        let open = self
            .batches
            .back()
            .is_some_and(|last| last.state == State::Open);
        if !open {
            let mut builder = BatchBuilder::new();
            builder.append(key, value, headers, timestamp)?;
            return Ok(self.open(builder, memory, now));
        }
        // There is one, and it is open: that was just seen.
        let Some(Pending {
            state,
            content: Content::Filling(builder),
            record_count,
            wait,
            _memory: held,
            ..
        }) = self.batches.back_mut()
        else {
            return Err(AppendError::TooLarge { size: bound });
        };
        let size = builder.append(key, value, headers, timestamp)?;
        held.merge(memory);
        let index = *record_count;
        *record_count += 1;
        let full = size >= self.config.batch_bytes;
        if full {
            *state = State::Closed;
            self.closed_batches += 1;
        }
        Ok(Appended {
            done: wait.clone(),
            index,
            wake: full,
        })
    }

    fn open(
        &mut self,
        builder: BatchBuilder,
        memory: OwnedSemaphorePermit,
        now: Instant,
    ) -> Appended {
        let (done, wait) = oneshot::channel();
        let wait = wait.shared();
        let full = builder.size() >= self.config.batch_bytes;
        self.closed_batches += u64::from(full);
        self.batches.push_back(Pending {
            id: BatchId(self.next_id),
            created: now,
            state: if full { State::Closed } else { State::Open },
            record_count: builder.record_count(),
            content: Content::Filling(builder),
            sequence: None,
            attempts: 0,
            uncertain: false,
            last: None,
            done,
            wait: wait.clone(),
            _memory: memory,
        });
        self.next_id += 1;
        Appended {
            done: wait,
            index: 0,
            wake: true,
        }
    }

    /// Closes the open batch, so that it is sent without waiting for more records.
    pub(super) fn flush(&mut self) {
        if let Some(last) = self.batches.back_mut()
            && last.state == State::Open
        {
            last.state = State::Closed;
            self.closed_batches += 1;
        }
    }

    fn in_flight(&self) -> usize {
        let sent = |batch: &&Pending| batch.state == State::InFlight;
        self.batches.iter().filter(sent).count()
    }

    /// The oldest batch that is not in flight: the only one that may be sent next.
    fn next_to_send(&self) -> Option<usize> {
        self.batches
            .iter()
            .position(|batch| batch.state != State::InFlight)
    }

    /// The next batch to send, if one is due. With `hurry` an open batch does not wait for more records.
    pub(super) fn take(&mut self, now: Instant, hurry: bool) -> Option<Outgoing> {
        if matches!(self.sequencing, Sequencing::Wanted { .. })
            || self.in_flight() >= self.config.max_in_flight
        {
            return None;
        }
        let next = self.next_to_send()?;
        let batch = &mut self.batches[next];
        match batch.state {
            State::Open if !hurry && now < batch.created + self.config.linger => return None,
            State::Open => self.closed_batches += 1,
            State::Closed => {}
            State::Waiting { not_before } if now < not_before => return None,
            State::Waiting { .. } => {}
            State::InFlight => return None,
        }
        batch.state = State::InFlight;
        batch.attempts += 1;
        let fresh = batch.sequence.is_none();
        let stamp = match self.sequencing {
            Sequencing::Given(identity) => {
                let base_sequence = *batch.sequence.get_or_insert(self.next_sequence);
                Some(ProducerStamp {
                    id: identity.id,
                    epoch: identity.epoch,
                    base_sequence,
                })
            }
            Sequencing::Off | Sequencing::Wanted { .. } => None,
        };
        if fresh {
            self.next_sequence = add_sequence(self.next_sequence, batch.record_count);
        }
        let content = match std::mem::replace(&mut batch.content, Content::Away) {
            Content::Filling(builder) => OutgoingContent::New { builder, stamp },
            // It was sent before under another identity, so the stamp is not the one that it has.
            Content::Sealed(bytes) if fresh && stamp.is_some() => {
                OutgoingContent::Sealed(restamp(bytes, stamp))
            }
            Content::Sealed(bytes) => OutgoingContent::Sealed(bytes),
            Content::Away => return None,
        };
        Some(Outgoing {
            id: batch.id,
            content,
            deadline: batch.created + self.config.delivery_timeout,
        })
    }

    /// Takes a batch back after an attempt. `bytes` is what was sent.
    pub(super) fn complete(
        &mut self,
        id: BatchId,
        bytes: Bytes,
        attempt: Attempt,
        now: Instant,
    ) -> Effects {
        let Some(index) = self.batches.iter().position(|batch| batch.id == id) else {
            return Effects::default();
        };
        let batch = &mut self.batches[index];
        batch.content = Content::Sealed(bytes);
        batch.state = State::Waiting { not_before: now };
        let mut effects = Effects::default();
        let (cause, retry) = match attempt {
            Attempt::Appended { offset } => {
                self.acknowledge(index, offset);
                return effects;
            }
            Attempt::Refused {
                code: ErrorCode::DuplicateSequenceNumber,
                ..
            } => {
                self.acknowledge(index, None);
                return effects;
            }
            Attempt::NotSent(error) => {
                batch.attempts -= 1;
                effects.refresh_metadata = true;
                let retry = error.is_retriable();
                (error, retry)
            }
            Attempt::Unknown(error) => {
                batch.uncertain = true;
                effects.refresh_metadata = true;
                (error, true)
            }
            Attempt::Refused { code, message } => {
                let retry = self.judge_refusal(index, code, &mut effects);
                let cause = ClientError::Refused {
                    what: format!("producing to {}", self.name),
                    code,
                    message,
                };
                (cause, retry)
            }
        };
        if retry {
            self.wait(index, cause, now);
        } else {
            self.fail(index, DeliveryCause::Failed(cause), now);
        }
        effects
    }

    /// Whether the batch is to be sent again after the node refused it.
    fn judge_refusal(&mut self, index: usize, code: ErrorCode, effects: &mut Effects) -> bool {
        let batch = &mut self.batches[index];
        match (code, self.sequencing) {
            (ErrorCode::OutOfOrderSequenceNumber, Sequencing::Given(_)) => index > 0,
            // What it was to follow has failed; it gets new numbers.
            (ErrorCode::OutOfOrderSequenceNumber, Sequencing::Wanted { .. }) => true,
            (
                ErrorCode::UnknownProducerId | ErrorCode::InvalidProducerEpoch,
                Sequencing::Given(_) | Sequencing::Wanted { .. },
            ) => {
                let again = !batch.uncertain;
                self.want_identity();
                again
            }
            (code, _) => {
                batch.uncertain |= matches!(
                    code,
                    ErrorCode::RequestTimedOut
                        | ErrorCode::NotEnoughReplicasAfterAppend
                        | ErrorCode::NetworkException
                        | ErrorCode::KafkaStorageError
                );
                effects.refresh_metadata = code.is_retriable();
                code.is_retriable()
            }
        }
    }

    /// A note of why nothing moves, for the error that a batch may end with.
    pub(super) fn note(&mut self, cause: &ClientError) {
        for batch in &mut self.batches {
            if batch.state != State::InFlight {
                batch.last = Some(cause.clone());
            }
        }
    }

    /// Fails the batches that are not in flight and whose time is over. Those in flight have a deadline of their own.
    pub(super) fn expire(&mut self, now: Instant) {
        let timeout = self.config.delivery_timeout;
        while let Some(index) = self
            .batches
            .iter()
            .position(|b| b.state != State::InFlight && now >= b.created + timeout)
        {
            let last = self.batches[index].last.take().map(Box::new);
            self.fail(index, DeliveryCause::TimedOut { last }, now);
        }
    }

    /// Fails everything: no identity can be had, or the producer is closed.
    pub(super) fn fail_all(&mut self, cause: &DeliveryCause, now: Instant) {
        while !self.batches.is_empty() {
            self.fail(0, cause.clone(), now);
        }
    }

    /// The generation that a new identity must be later than, where one is needed.
    pub(super) fn wants_identity(&self) -> Option<u64> {
        match self.sequencing {
            Sequencing::Wanted { after } if !self.batches.is_empty() => Some(after),
            _ => None,
        }
    }

    /// Takes an identity if one is needed and this one is new. It waits until every batch that is in flight under the old
    /// one has come back.
    pub(super) fn offer_identity(&mut self, identity: Identity, now: Instant) {
        let Sequencing::Wanted { after } = self.sequencing else {
            return;
        };
        if identity.generation <= after || self.in_flight() > 0 {
            return;
        }
        self.sequencing = Sequencing::Given(identity);
        self.next_sequence = 0;
        let is_uncertain = |batch: &Pending| batch.uncertain && batch.sequence.is_some();
        while let Some(index) = self.batches.iter().position(is_uncertain) {
            // Without this, its failure would ask for yet another identity.
            self.batches[index].sequence = None;
            let last = self.batches[index].last.take().map(Box::new);
            self.fail(index, DeliveryCause::OutcomeUnknown { last }, now);
        }
        for batch in &mut self.batches {
            batch.sequence = None;
        }
    }

    /// When something is due next: a batch becomes due, or one expires. A batch that is due by `now` and was not taken waits
    /// for its leader's lane, which wakes the sender by itself.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let timeout = self.config.delivery_timeout;
        let waiting = |batch: &&Pending| batch.state != State::InFlight;
        let expiry = self.batches.iter().find(waiting)?.created + timeout;
        let blocked = matches!(self.sequencing, Sequencing::Wanted { .. })
            || self.in_flight() >= self.config.max_in_flight;
        let due = self
            .next_to_send()
            .filter(|_| !blocked)
            .and_then(|next| match self.batches[next].state {
                State::Open => Some(self.batches[next].created + self.config.linger),
                State::Waiting { not_before } => Some(not_before),
                State::Closed | State::InFlight => None,
            })
            .filter(|due| *due > now);
        Some(due.map_or(expiry, |due| due.min(expiry)))
    }

    /// What to wait for until everything that is here now is acknowledged or has failed.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = BatchDone> {
        self.batches.iter().map(|batch| batch.wait.clone())
    }

    fn want_identity(&mut self) {
        if let Sequencing::Given(identity) = self.sequencing {
            self.sequencing = Sequencing::Wanted {
                after: identity.generation,
            };
        }
    }

    fn wait(&mut self, index: usize, cause: ClientError, now: Instant) {
        let random = self.random.next();
        let batch = &mut self.batches[index];
        let wait = self.config.backoff.after(batch.attempts.max(1), random);
        batch.state = State::Waiting {
            not_before: now + wait,
        };
        batch.last = Some(cause);
    }

    fn acknowledge(&mut self, index: usize, offset: Option<i64>) {
        if let Some(batch) = self.batches.remove(index) {
            // Nobody may have kept the delivery.
            let _ = batch.done.send(Ok(offset));
        }
    }

    fn fail(&mut self, index: usize, cause: DeliveryCause, now: Instant) {
        let Some(batch) = self.batches.remove(index) else {
            return;
        };
        if batch.state == State::Open {
            self.closed_batches += 1;
        }
        if let Some(sequence) = batch.sequence {
            let behind = self.batches.iter().skip(index);
            let last_numbered = behind.filter(|b| b.sequence.is_some()).count() == 0;
            if last_numbered && !batch.uncertain && index == 0 && !cause.is_loss() {
                // It is not in the log and nothing follows it: its numbers are free again.
                self.next_sequence = sequence;
            } else {
                self.want_identity();
            }
        }
        let error = DeliveryError {
            topic: self.name.topic.clone(),
            partition: self.name.partition,
            attempts: batch.attempts,
            elapsed: now.saturating_duration_since(batch.created),
            may_be_stored: batch.uncertain || batch.state == State::InFlight,
            cause,
        };
        // Nobody may have kept the delivery.
        let _ = batch.done.send(Err(Arc::new(error)));
    }
}

/// Kafka's sequence numbers run from 0 to `i32::MAX` and then start at 0 again.
fn add_sequence(sequence: i32, records: i32) -> i32 {
    ((i64::from(sequence) + i64::from(records)) % (i64::from(i32::MAX) + 1)) as i32
}

/// The batch with another stamp. It was made here, so it can be read.
fn restamp(bytes: Bytes, stamp: Option<ProducerStamp>) -> Bytes {
    match Batch::decode(&bytes) {
        Ok(batch) => restamp_producer(&batch, stamp),
        Err(_) => bytes,
    }
}
