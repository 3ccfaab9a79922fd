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
//! idempotent producer has up to sixteen in flight; should one of them fail while those behind it arrive, the leader refuses
//! these by their sequence numbers, and all are sent again in the same order with the same numbers. Without idempotence
//! nothing would refuse them, so then one batch is in flight at a time, unless the configuration says otherwise.
//!
//! The sixteen are counted from the oldest batch without an answer, and those behind it that were acknowledged before it count
//! too: a leader remembers a producer's latest sixteen batches. One that waits at a leader that is paused, say, while its
//! successor acknowledges more than fifteen behind it would be neither next nor known when it is sent again.
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
//!
//! # Batches that are too large
//! A topic may take smaller batches than this producer makes. A batch that is refused for its size goes on as two, under the
//! numbers that it had, so that in the end only a record that is too large by itself fails. Later batches are made smaller.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::MAX_IN_FLIGHT_BATCHES;
use super::delivery::{BatchDone, BatchOutcome, BatchResult, DeliveryCause, DeliveryError};
use super::halves::{add_sequence, halves, restamp};
use super::hold::Hold;
use crate::client::backoff::{Backoff, Random};
use crate::client::error::ClientError;
use crate::client::metadata::PartitionName;
use crate::record::{AppendError, BatchBuilder, Header, ProducerStamp};
use crate::types::{ErrorCode, ProducerId};

/// A batch's number within its partition's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BatchId(u64);

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
    /// A batch of the present identity is in the log. Until then one batch is in flight at most: a leader takes any first
    /// number from a producer that it does not know, so were the first batch turned away (the leader has just been
    /// appointed, say) and the second taken, the first could never be.
    introduced: bool,
    /// How many are in flight.
    in_flight: usize,
    /// Of the next batch that is sent for the first time.
    next_sequence: i32,
    next_id: u64,
    /// How many batches take no more records.
    closed_batches: u64,
    random: Random,
    /// The newest leader epoch that is known; −1 where none is.
    leader_epoch: i32,
    /// Whether the leader of that epoch has said that it leads no more.
    is_deposed: bool,
    hold: Hold,
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
    /// How often a node said, of the present leader epoch, that it does not lead.
    refusals: u32,
    /// An attempt's outcome is unknown: the records may be in the log already.
    uncertain: bool,
    /// Everything before it was acknowledged when it was last sent.
    from_front: bool,
    /// When it was last sent, or else made.
    sent_at: Instant,
    /// How many of those behind it were acknowledged while it was not.
    overtaken: usize,
    /// Why it was not delivered so far.
    last: Option<ClientError>,
    done: oneshot::Sender<BatchResult>,
    /// The other end of `done`.
    wait: BatchDone,
    /// What it holds of the producer's memory.
    memory: OwnedSemaphorePermit,
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
            introduced: false,
            in_flight: 0,
            next_sequence: 0,
            next_id: 0,
            closed_batches: 0,
            random: Random::new(seed),
            leader_epoch: -1,
            is_deposed: false,
            hold: Hold::default(),
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
            memory: held,
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
            refusals: 0,
            uncertain: false,
            from_front: false,
            sent_at: now,
            overtaken: 0,
            last: None,
            done,
            wait: wait.clone(),
            memory,
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

    /// The oldest batch that is not in flight: the only one that may be sent next.
    fn next_to_send(&self) -> Option<usize> {
        self.batches
            .iter()
            .position(|batch| batch.state != State::InFlight)
    }

    /// The next batch to send, if one is due. With `hurry` an open batch does not wait for more records.
    pub(super) fn take(&mut self, now: Instant, hurry: bool) -> Option<Outgoing> {
        if self.is_blocked() {
            return None;
        }
        let next = self.next_to_send()?;
        if self.is_too_far_ahead(next) {
            return None;
        }
        let wait = self.open_wait();
        let batch = &mut self.batches[next];
        match batch.state {
            State::Open if !hurry && now < batch.created + wait => return None,
            State::Open => self.closed_batches += 1,
            State::Closed => {}
            State::Waiting { not_before } if now < not_before => return None,
            State::Waiting { .. } => {}
            State::InFlight => return None,
        }
        batch.state = State::InFlight;
        batch.sent_at = now;
        batch.from_front = next == 0;
        self.in_flight += 1;
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
        self.in_flight -= 1;
        let mut effects = Effects::default();
        let (cause, retry) = match attempt {
            Attempt::Appended { offset } => {
                self.is_deposed = false;
                self.hold
                    .answered(now.saturating_duration_since(batch.sent_at));
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
            Attempt::Refused {
                code: ErrorCode::MessageTooLarge,
                ..
            } if self.split(index) => return effects,
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

    /// Puts two batches in the place of one that was refused for its size. Returns whether it could: not where it is but one
    /// record, or where an earlier attempt may have been appended as a whole.
    fn split(&mut self, index: usize) -> bool {
        let Some(batch) = self.batches.get_mut(index).filter(|batch| !batch.uncertain) else {
            return false;
        };
        let Content::Sealed(bytes) = &batch.content else {
            return false;
        };
        let smaller = bytes.len() / 2;
        let Some(halves) = halves(bytes) else {
            return false;
        };
        let part = batch.memory.num_permits() / 2;
        let Some(second_memory) = batch.memory.split(part) else {
            return false;
        };
        let Some(batch) = self.batches.remove(index) else {
            return false;
        };
        self.config.batch_bytes = self.config.batch_bytes.min(smaller).max(1);
        let Pending {
            created,
            record_count,
            sequence,
            attempts,
            overtaken,
            done,
            memory,
            ..
        } = batch;
        let first_count = halves.first_count;
        let mut half = |bytes, skipped, record_count, memory| {
            let (done, wait) = oneshot::channel();
            let id = BatchId(self.next_id);
            self.next_id += 1;
            Pending {
                id,
                created,
                state: State::Closed,
                content: Content::Sealed(bytes),
                record_count,
                sequence: sequence.map(|sequence| add_sequence(sequence, skipped)),
                attempts,
                refusals: 0,
                uncertain: false,
                from_front: false,
                sent_at: created,
                overtaken,
                last: None,
                done,
                wait: wait.shared(),
                memory,
            }
        };
        let first = half(halves.first, 0, first_count, memory);
        let second = half(
            halves.second,
            first_count,
            record_count - first_count,
            second_memory,
        );
        let outcome = BatchOutcome::Split {
            first_count,
            first: first.wait.clone(),
            second: second.wait.clone(),
        };
        self.batches.insert(index, second);
        self.batches.insert(index, first);
        self.closed_batches += 1;
        // Nobody may have kept the delivery.
        let _ = done.send(Ok(outcome));
        true
    }

    /// Whether the batch is to be sent again after the node refused it.
    fn judge_refusal(&mut self, index: usize, code: ErrorCode, effects: &mut Effects) -> bool {
        let batch = &mut self.batches[index];
        match (code, self.sequencing) {
            // Where it was sent behind others, it may have overtaken one that was acknowledged since: by another connection, say.
            // Only what was sent with all before it acknowledged proves that those are not there.
            (ErrorCode::OutOfOrderSequenceNumber, Sequencing::Given(_)) => !batch.from_front,
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
                self.is_deposed |= code == ErrorCode::NotLeaderOrFollower;
                code.is_retriable()
            }
        }
    }

    /// The partition has a leader, of this epoch. Where that is a new one, nobody waits on because of what an earlier leader
    /// has answered.
    pub(super) fn handle_leader(&mut self, epoch: i32, now: Instant) {
        if epoch <= self.leader_epoch {
            return;
        }
        self.leader_epoch = epoch;
        self.is_deposed = false;
        for batch in &mut self.batches {
            batch.refusals = 0;
            if let State::Waiting { not_before } = &mut batch.state {
                *not_before = now.min(*not_before);
            }
        }
    }

    /// Whether batches wait for a leader of a later epoch than the last that was known: metadata without one is out of date.
    pub(super) fn wants_later_leader(&self) -> bool {
        self.is_deposed && !self.is_empty()
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
        // Batches are in the order of their age.
        while let Some(index) = self.next_to_send()
            && now >= self.batches[index].created + timeout
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
        if identity.generation <= after || self.in_flight > 0 {
            return;
        }
        self.sequencing = Sequencing::Given(identity);
        self.introduced = false;
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
            batch.overtaken = 0;
        }
    }

    /// When something is due next: a batch becomes due, or one expires. A batch that is due by `now` and was not taken waits
    /// for its leader's lane, which wakes the sender by itself.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let timeout = self.config.delivery_timeout;
        let waiting = |batch: &&Pending| batch.state != State::InFlight;
        let expiry = self.batches.iter().find(waiting)?.created + timeout;
        let due = self
            .next_to_send()
            .filter(|&next| !self.is_blocked() && !self.is_too_far_ahead(next))
            .and_then(|next| match self.batches[next].state {
                State::Open => Some(self.batches[next].created + self.open_wait()),
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
        let wait = match &cause {
            // The leader of this epoch may not have heard of its election yet.
            ClientError::Refused {
                code: ErrorCode::NotLeaderOrFollower,
                ..
            } => {
                batch.refusals += 1;
                self.config.backoff.soon(batch.refusals, random)
            }
            _ => self.config.backoff.after(batch.attempts.max(1), random),
        };
        batch.state = State::Waiting {
            not_before: now + wait,
        };
        batch.last = Some(cause);
    }

    /// How long an open batch waits for more records.
    fn open_wait(&self) -> Duration {
        self.config.linger.max(self.hold.wait(self.in_flight))
    }

    /// Whether nothing can be sent before something else has come back.
    fn is_blocked(&self) -> bool {
        let cap = match self.sequencing {
            Sequencing::Wanted { .. } => 0,
            Sequencing::Given(_) if !self.introduced => 1,
            Sequencing::Given(_) | Sequencing::Off => self.config.max_in_flight,
        };
        self.in_flight >= cap
    }

    /// Whether the leader would no longer know the oldest batch by its number once the one at `next` is in the log. The oldest
    /// one itself may always be sent.
    fn is_too_far_ahead(&self, next: usize) -> bool {
        let oldest = self.batches.front().filter(|_| next > 0);
        matches!(self.sequencing, Sequencing::Given(_))
            && oldest.is_some_and(|oldest| next + oldest.overtaken >= MAX_IN_FLIGHT_BATCHES)
    }

    fn acknowledge(&mut self, index: usize, offset: Option<i64>) {
        self.introduced = true;
        for before in self.batches.iter_mut().take(index) {
            before.overtaken += 1;
        }
        if let Some(batch) = self.batches.remove(index) {
            // Nobody may have kept the delivery.
            let _ = batch.done.send(Ok(BatchOutcome::Stored(offset)));
        }
    }

    fn fail(&mut self, index: usize, cause: DeliveryCause, now: Instant) {
        let Some(batch) = self.batches.remove(index) else {
            return;
        };
        match batch.state {
            State::Open => self.closed_batches += 1,
            State::InFlight => self.in_flight -= 1,
            State::Closed | State::Waiting { .. } => {}
        }
        if let Some(sequence) = batch.sequence {
            let behind = self.batches.iter().skip(index);
            let last_numbered = behind.filter(|b| b.sequence.is_some()).count() == 0;
            if last_numbered && !batch.uncertain && !cause.is_loss() {
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

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::super::delivery::Delivery;
    use super::super::hold::{HOLD, HOLD_BELOW};
    use super::*;
    use crate::record::Batch;
    use crate::types::{PartitionIndex, TopicName};

    const LINGER: Duration = Duration::from_millis(5);
    const TIMEOUT: Duration = Duration::from_secs(120);

    struct Test {
        queue: PartitionQueue,
        memory: Arc<Semaphore>,
        now: Instant,
    }

    impl Test {
        fn new(idempotent: bool) -> Test {
            let name = PartitionName::new(TopicName::new("t").unwrap(), PartitionIndex(0));
            let config = QueueConfig {
                batch_bytes: 200,
                linger: LINGER,
                delivery_timeout: TIMEOUT,
                max_in_flight: if idempotent { 5 } else { 1 },
                backoff: Backoff::default(),
            };
            let mut test = Test {
                queue: PartitionQueue::new(name, config, idempotent, 1),
                memory: Arc::new(Semaphore::new(1 << 20)),
                now: Instant::now(),
            };
            if idempotent {
                test.identity(1);
            }
            test
        }

        fn identity(&mut self, generation: u64) {
            let identity = Identity {
                generation,
                id: ProducerId::new(100 + generation as i64).unwrap(),
                epoch: 0,
            };
            self.queue.offer_identity(identity, self.now);
            // Most tests are about what comes after the first acknowledgement.
            self.queue.introduced = true;
        }

        fn append(&mut self, value: &[u8]) -> (BatchDone, i32) {
            let memory = self.memory.clone().try_acquire_owned().unwrap();
            let appended = self
                .queue
                .append(None, Some(value), &[], 0, memory, self.now)
                .unwrap();
            (appended.done, appended.index)
        }

        /// A batch of one record that is full.
        fn batch(&mut self) -> BatchDone {
            self.append(&[b'x'; 200]).0
        }

        fn take(&mut self) -> Option<(BatchId, Bytes)> {
            let outgoing = self.queue.take(self.now, false)?;
            let bytes = match outgoing.content {
                OutgoingContent::New { builder, stamp } => builder
                    .seal(crate::record::Compression::None)
                    .unwrap()
                    .stamp(stamp),
                OutgoingContent::Sealed(bytes) => bytes,
            };
            Some((outgoing.id, bytes))
        }

        fn refuse(&mut self, sent: (BatchId, Bytes), code: ErrorCode) -> Effects {
            let attempt = Attempt::Refused {
                code,
                message: None,
            };
            self.queue.complete(sent.0, sent.1, attempt, self.now)
        }

        fn accept(&mut self, sent: (BatchId, Bytes), offset: i64) {
            let attempt = Attempt::Appended {
                offset: Some(offset),
            };
            self.queue.complete(sent.0, sent.1, attempt, self.now);
        }

        fn lose(&mut self, sent: (BatchId, Bytes)) {
            let attempt = Attempt::Unknown(ClientError::TimedOut {
                address: "a:1".to_owned(),
                request: "Produce",
                after: LINGER,
            });
            self.queue.complete(sent.0, sent.1, attempt, self.now);
        }

        fn later(&mut self, duration: Duration) {
            self.now += duration;
        }
    }

    fn sequence(sent: &(BatchId, Bytes)) -> (i64, i32) {
        let header = Batch::decode(&sent.1).unwrap();
        header.verify_crc().unwrap();
        let id = header.header.producer_id.map_or(-1, ProducerId::get);
        (id, header.header.base_sequence)
    }

    fn result(done: BatchDone) -> Option<Result<Option<i64>, Arc<DeliveryError>>> {
        let result = done.now_or_never()?.unwrap();
        Some(result.map(|outcome| match outcome {
            BatchOutcome::Stored(offset) => offset,
            split @ BatchOutcome::Split { .. } => panic!("{split:?}"),
        }))
    }

    fn cause(done: BatchDone) -> DeliveryError {
        DeliveryError::clone(&result(done).unwrap().unwrap_err())
    }

    #[test]
    fn a_batch_leaves_when_it_is_full_or_has_lingered_or_is_flushed() {
        let mut t = Test::new(true);
        drop(t.append(b"a"));
        assert!(t.take().is_none());
        assert_eq!(t.queue.next_due(t.now), Some(t.now + LINGER));
        t.later(LINGER);
        assert!(t.take().is_some());

        drop(t.append(b"b"));
        assert!(t.take().is_none());
        t.queue.flush();
        assert!(t.take().is_some());

        drop(t.append(b"c"));
        let (_, index) = t.append(&[b'x'; 60]);
        assert_eq!(index, 1);
        let (_, index) = t.append(&[b'x'; 60]);
        assert_eq!(index, 0, "it did not fit into the batch before");
        assert!(t.take().is_some(), "full");
        assert!(t.take().is_none(), "open");
    }

    #[test]
    fn alone_a_batch_leaves_at_once_and_behind_another_it_waits_where_answers_come_soon() {
        let mut t = Test::new(true);
        t.queue.config.linger = Duration::ZERO;
        drop(t.append(b"a"));
        let first = t.take().unwrap();
        drop(t.append(b"b"));
        assert!(t.take().is_none());
        assert_eq!(t.queue.next_due(t.now), Some(t.now + HOLD));
        t.later(HOLD);
        let second = t.take().unwrap();
        drop(t.append(b"c"));
        // What is answered leaves nothing to wait behind.
        t.accept(first, 0);
        assert!(t.take().is_none());
        t.accept(second, 1);
        let mut sent = t.take().unwrap();
        for offset in 2..100 {
            t.later(HOLD_BELOW * 2);
            t.accept(sent, offset);
            drop(t.append(b"d"));
            sent = t.take().unwrap();
        }
        // Far away, it waits for nothing.
        drop(t.append(b"e"));
        assert!(t.take().is_some());
    }

    #[test]
    fn five_are_in_flight_and_acknowledged_by_offset() {
        let mut t = Test::new(true);
        let dones: Vec<_> = (0..7).map(|_| t.batch()).collect();
        let mut sent = Vec::new();
        while let Some(batch) = t.take() {
            sent.push(batch);
        }
        let sequences: Vec<_> = sent.iter().map(sequence).collect();
        assert_eq!(sequences, [0, 1, 2, 3, 4].map(|s| (101, s)));
        t.accept(sent.remove(0), 40);
        assert_eq!(result(dones[0].clone()).unwrap().unwrap(), Some(40));
        assert!(result(dones[1].clone()).is_none());
        assert_eq!(sequence(&t.take().unwrap()), (101, 5));
        assert!(t.take().is_none());
    }

    #[test]
    fn retries_keep_the_order_and_the_numbers() {
        let mut t = Test::new(true);
        for _ in 0..4 {
            drop(t.batch());
        }
        let (a, b, c) = (t.take().unwrap(), t.take().unwrap(), t.take().unwrap());
        assert!(!t.queue.wants_later_leader());
        let effects = t.refuse(a, ErrorCode::NotLeaderOrFollower);
        assert!(effects.refresh_metadata);
        assert!(t.queue.wants_later_leader());
        t.refuse(b, ErrorCode::OutOfOrderSequenceNumber);
        assert!(t.take().is_none(), "the fourth does not overtake");
        t.lose(c);
        assert!(t.take().is_none(), "not before the backoff is over");
        t.later(Duration::from_millis(50));
        let sequences: Vec<_> = std::iter::from_fn(|| t.take())
            .map(|sent| sequence(&sent))
            .collect();
        assert_eq!(sequences, [0, 1, 2, 3].map(|s| (101, s)));
    }

    #[test]
    fn a_new_leader_ends_the_wait_once() {
        let mut t = Test::new(true);
        drop(t.batch());
        t.queue.handle_leader(4, t.now);
        let first = t.take().unwrap();
        t.refuse(first, ErrorCode::NotLeaderOrFollower);
        t.queue.handle_leader(4, t.now);
        assert!(t.take().is_none(), "the same that refused it");
        t.queue.handle_leader(5, t.now);
        let again = t.take().unwrap();
        t.refuse(again, ErrorCode::NotLeaderOrFollower);
        t.queue.handle_leader(5, t.now);
        assert!(t.take().is_none());
    }

    #[test]
    fn nothing_overtakes_the_first_batch_of_an_identity() {
        let mut t = Test::new(true);
        t.queue.introduced = false;
        for _ in 0..3 {
            drop(t.batch());
        }
        let first = t.take().unwrap();
        assert!(t.take().is_none());
        assert!(t.queue.next_due(t.now).unwrap() > t.now + LINGER);
        t.refuse(first, ErrorCode::NotLeaderOrFollower);
        t.later(Duration::from_secs(1));
        let again = t.take().unwrap();
        assert_eq!(sequence(&again), (101, 0));
        assert!(t.take().is_none());
        t.accept(again, 0);
        assert_eq!(sequence(&t.take().unwrap()), (101, 1));
        assert_eq!(sequence(&t.take().unwrap()), (101, 2));
    }

    #[test]
    fn without_idempotence_one_is_in_flight_so_that_none_is_overtaken() {
        let mut t = Test::new(false);
        drop(t.batch());
        drop(t.batch());
        let first = t.take().unwrap();
        assert_eq!(sequence(&first), (-1, -1));
        assert!(t.take().is_none());
        let again = first.1.clone();
        t.lose(first);
        t.later(Duration::from_secs(1));
        assert_eq!(t.take().unwrap().1, again);
        assert!(t.take().is_none());
    }

    #[test]
    fn what_cannot_succeed_fails_at_once() {
        let mut t = Test::new(true);
        let done = t.batch();
        let sent = t.take().unwrap();
        t.refuse(sent, ErrorCode::MessageTooLarge);
        let error = cause(done);
        assert_eq!(error.error_code(), Some(ErrorCode::MessageTooLarge));
        assert_eq!(error.attempts, 1);
        assert!(!error.may_be_stored);
        // Its numbers are free: nothing came after it.
        drop(t.batch());
        assert_eq!(sequence(&t.take().unwrap()), (101, 0));
    }

    #[test]
    fn a_batch_that_is_too_large_goes_on_as_two_under_its_numbers() {
        let mut t = Test::new(true);
        let records: Vec<_> = (0..5).map(|_| t.append(b"123456789")).collect();
        let behind = t.batch();
        let (whole, next) = (t.take().unwrap(), t.take().unwrap());
        assert_eq!((sequence(&whole), sequence(&next)), ((101, 0), (101, 5)));
        t.refuse(whole, ErrorCode::MessageTooLarge);
        t.refuse(next, ErrorCode::OutOfOrderSequenceNumber);
        t.later(Duration::from_secs(1));
        let (first, second) = (t.take().unwrap(), t.take().unwrap());
        assert_eq!((sequence(&first), sequence(&second)), ((101, 0), (101, 2)));
        assert_eq!(sequence(&t.take().unwrap()), (101, 5));
        t.accept(first, 40);
        // Only the record that is too large by itself is lost.
        t.refuse(second, ErrorCode::MessageTooLarge);
        let third = t.take().unwrap();
        assert_eq!(sequence(&third), (101, 2));
        t.refuse(third, ErrorCode::MessageTooLarge);
        assert_eq!(t.queue.wants_identity(), Some(1));
        let name = t.queue.name.clone();
        let outcomes: Vec<_> = records
            .into_iter()
            .map(|(done, index)| Delivery::new(name.clone(), index, done).now_or_never())
            .collect();
        let offset = |index: usize| outcomes[index].clone().unwrap().unwrap().offset.unwrap();
        assert_eq!((offset(0).get(), offset(1).get()), (40, 41));
        let error = outcomes[2].clone().unwrap().unwrap_err();
        assert_eq!(error.error_code(), Some(ErrorCode::MessageTooLarge));
        assert!(outcomes[3].is_none() && outcomes[4].is_none(), "they go on");
        assert!(behind.now_or_never().is_none());
    }

    #[test]
    fn a_gap_in_the_numbers_asks_for_another_identity() {
        let mut t = Test::new(true);
        let (done_a, done_b) = (t.batch(), t.batch());
        let (a, b) = (t.take().unwrap(), t.take().unwrap());
        t.refuse(a, ErrorCode::InvalidRecord);
        assert!(result(done_a).unwrap().is_err());
        assert_eq!(t.queue.wants_identity(), Some(1));
        t.identity(2);
        assert_eq!(t.queue.wants_identity(), Some(1), "one is still in flight");
        t.refuse(b, ErrorCode::OutOfOrderSequenceNumber);
        t.later(Duration::from_secs(1));
        assert!(t.take().is_none());
        t.identity(2);
        let b = t.take().unwrap();
        assert_eq!(sequence(&b), (102, 0));
        t.accept(b, 7);
        assert_eq!(result(done_b).unwrap().unwrap(), Some(7));
    }

    #[test]
    fn an_unknown_producer_id_resends_only_what_was_certainly_not_appended() {
        let mut t = Test::new(true);
        let (uncertain, certain) = (t.batch(), t.batch());
        let (a, b) = (t.take().unwrap(), t.take().unwrap());
        t.lose(a);
        t.refuse(b, ErrorCode::UnknownProducerId);
        t.later(Duration::from_secs(1));
        t.identity(2);
        let error = cause(uncertain);
        assert!(error.may_be_stored);
        assert!(
            matches!(error.cause, DeliveryCause::OutcomeUnknown { last: Some(_) }),
            "{error:?}"
        );
        let b = t.take().unwrap();
        assert_eq!(sequence(&b), (102, 0));
        t.accept(b, 9);
        assert_eq!(result(certain).unwrap().unwrap(), Some(9));
        assert_eq!(t.queue.wants_identity(), None);
    }

    #[test]
    fn a_batch_that_overtook_another_is_no_loss() {
        let mut t = Test::new(true);
        let (_first, done) = (t.batch(), t.batch());
        let (a, b) = (t.take().unwrap(), t.take().unwrap());
        // The second came first; the word of it comes last.
        t.accept(a, 40);
        t.refuse(b, ErrorCode::OutOfOrderSequenceNumber);
        assert_eq!(t.queue.wants_identity(), None);
        t.later(Duration::from_secs(1));
        let again = t.take().unwrap();
        assert_eq!(sequence(&again), (101, 1));
        t.accept(again, 41);
        assert_eq!(result(done).unwrap().unwrap(), Some(41));
    }

    #[test]
    fn nothing_goes_so_far_ahead_that_the_oldest_batch_would_be_forgotten() {
        let mut t = Test::new(true);
        let most = MAX_IN_FLIGHT_BATCHES as i32;
        let dones: Vec<_> = (0..most + 2).map(|_| t.batch()).collect();
        // It is in the log, and the leader that has taken it is paused before it answers. Its successor knows it.
        let unanswered = t.take().unwrap();
        for i in 1..most {
            let sent = t.take().unwrap();
            assert_eq!(sequence(&sent), (101, i));
            t.accept(sent, 40 + i64::from(i));
        }
        assert!(
            t.take().is_none(),
            "one more would make it forget the first"
        );
        assert!(t.queue.next_due(t.now).unwrap() > t.now + LINGER);
        t.lose(unanswered);
        t.later(Duration::from_secs(1));
        let again = t.take().unwrap();
        assert_eq!(sequence(&again), (101, 0));
        assert!(t.take().is_none());
        t.accept(again, 40);
        assert_eq!(result(dones[0].clone()).unwrap().unwrap(), Some(40));
        // From the new oldest on, as many again.
        assert_eq!(sequence(&t.take().unwrap()), (101, most));
        assert_eq!(sequence(&t.take().unwrap()), (101, most + 1));
    }

    #[test]
    fn a_leader_that_lost_records_is_heard_of() {
        let mut t = Test::new(true);
        let done = t.batch();
        let a = t.take().unwrap();
        t.refuse(a, ErrorCode::OutOfOrderSequenceNumber);
        assert_eq!(
            cause(done).error_code(),
            Some(ErrorCode::OutOfOrderSequenceNumber)
        );
        drop(t.batch());
        assert!(t.take().is_none());
        t.identity(2);
        assert_eq!(sequence(&t.take().unwrap()), (102, 0));
    }

    #[test]
    fn a_duplicate_is_a_success_without_an_offset() {
        let mut t = Test::new(true);
        let done = t.batch();
        let sent = t.take().unwrap();
        t.refuse(sent, ErrorCode::DuplicateSequenceNumber);
        assert_eq!(result(done).unwrap().unwrap(), None);
    }

    #[test]
    fn the_delivery_timeout_names_the_last_cause() {
        let mut t = Test::new(true);
        let done = t.batch();
        let sent = t.take().unwrap();
        t.refuse(sent, ErrorCode::NotEnoughReplicas);
        t.later(TIMEOUT - Duration::from_millis(1));
        t.queue.expire(t.now);
        assert!(result(done.clone()).is_none());
        t.later(Duration::from_millis(1));
        t.queue.expire(t.now);
        let error = cause(done);
        assert_eq!(error.error_code(), Some(ErrorCode::NotEnoughReplicas));
        assert_eq!(error.elapsed, TIMEOUT);
        assert!(!error.may_be_stored);
        let text = error.cause.to_string();
        assert!(text.contains("min.insync.replicas"), "{text}");
        assert!(t.queue.is_empty());
        assert_eq!(
            t.memory.available_permits(),
            1 << 20,
            "memory is given back"
        );
    }

    #[test]
    fn sequence_numbers_wrap_to_zero() {
        assert_eq!(add_sequence(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(add_sequence(i32::MAX, 1), 0);
        assert_eq!(add_sequence(i32::MAX - 1, 5), 3);
    }
}
