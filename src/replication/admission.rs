//! What a leader appends: batches, and the markers that end transactions.

use super::leader::{Acks, Leader};
use super::peers::Peers;
use super::producer_state::{BatchSequence, SequenceCheck};
use super::transactions::{MAX_OPEN_TRANSACTIONS, Verification, VerificationGuard};
use crate::record::{Marker, TransactionOutcome};
use crate::types::{ErrorCode, LogPosition, MonotonicTime, Offset, ProducerId};

/// What the leader has to know of a batch to admit it. The bytes stay with the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerBatch {
    /// At least 1.
    pub records: u32,
    /// `None` for a batch without a producer id.
    pub sequence: Option<BatchSequence>,
    /// What the producer's coordinator was asked under. A batch that begins a transaction here is refused without it.
    pub guard: Option<VerificationGuard>,
}

/// What becomes of an admitted batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Append it as a frame from `previous` to `end`, then call [`Leader::handle_appended`].
    Append { previous: LogPosition, end: Offset },
    /// It is in the log already; the request waits like any other until its last record is committed.
    Duplicate { base: Offset, end: Offset },
}

/// Where a marker goes, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkerAdmission {
    pub previous: LogPosition,
    pub end: Offset,
    /// With the records that it takes back.
    pub marker: Marker,
}

impl Leader {
    /// Whether a batch may be appended, and where. Refusals come before the append, so that a refused batch is nowhere.
    pub fn admit(
        &self,
        now: MonotonicTime,
        batch: ProducerBatch,
        acks: Acks,
        peers: &Peers,
    ) -> Result<Admission, ErrorCode> {
        // Before all else: a duplicate waits for its records like any other.
        if self.commit_waits.is_full() || self.durable_waits.is_full() {
            return Err(ErrorCode::ThrottlingQuotaExceeded);
        }
        if let Some(sequence) = batch.sequence {
            match self.producers.check(sequence) {
                SequenceCheck::InOrder => {}
                SequenceCheck::Duplicate { base, end } => {
                    return Ok(Admission::Duplicate { base, end });
                }
                SequenceCheck::Refused(error) => return Err(error),
            }
        }
        if acks == Acks::All && !self.hears_enough(now, peers) {
            return Err(ErrorCode::NotEnoughReplicas);
        }
        if let Some(sequence) = batch.sequence.filter(|sequence| sequence.transactional) {
            self.may_be_of_transaction(sequence, batch.guard)?;
        }
        let end = self
            .end
            .offset
            .checked_add(batch.records.into())
            .ok_or(ErrorCode::KafkaStorageError)?;
        Ok(Admission::Append {
            previous: self.end,
            end,
        })
    }

    /// Whether m members of the in-sync set can be heard, this node included. With fewer, a record could only be committed by
    /// replicas that this leader has lost, so it does not take one, even if the controller cannot record it.
    fn hears_enough(&self, now: MonotonicTime, peers: &Peers) -> bool {
        self.in_sync
            .hears_enough(|node| node == self.me.node || peers.is_heard(node, self.since, now))
    }

    /// An admitted batch is in the log, written but not yet durable.
    pub fn handle_appended(&mut self, batch: ProducerBatch, base: Offset, end: LogPosition) {
        debug_assert!(end > self.end && end.epoch == self.epoch);
        if let Some(sequence) = batch.sequence {
            let forgotten = self.producers.handle_appended(sequence, base, end.offset);
            self.note_forgotten(forgotten);
        }
        self.end = end;
        self.pump();
    }

    /// Whether the producer's next batch may be appended without asking the coordinator of its transaction.
    pub fn verification(&self, producer: ProducerId, epoch: i16) -> Verification {
        if self.producers.open_transaction(producer, epoch).is_some() {
            return Verification::NotNeeded;
        }
        Verification::Needed(VerificationGuard {
            leader_epoch: self.epoch,
            end: self.end.offset,
            is_first: false,
        })
    }

    /// A batch of a transaction that is open here goes on with it. Any other begins one, and only with the coordinator's word
    /// that the transaction reaches this partition: without it nobody would ever end the transaction here.
    fn may_be_of_transaction(
        &self,
        batch: BatchSequence,
        guard: Option<VerificationGuard>,
    ) -> Result<(), ErrorCode> {
        let is_open = self
            .producers
            .open_transaction(batch.producer, batch.producer_epoch);
        if is_open.is_some() {
            return Ok(());
        }
        let guard = guard.ok_or(ErrorCode::InvalidTxnState)?;
        if guard.leader_epoch != self.epoch {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        let knows = |batch: BatchSequence| {
            self.producers
                .has_batches(batch.producer, batch.producer_epoch)
        };
        if guard.is_first && batch.base_sequence != 0 && !knows(batch) {
            return Err(ErrorCode::OutOfOrderSequenceNumber);
        }
        // The coordinator may have ended the transaction after it gave its word. Then the marker is here.
        let ended = self.producers.last_marker(batch.producer);
        if ended.is_some_and(|marker| marker >= guard.end) {
            // Where each transaction has its own epoch, it may be the marker of the one before: the client asks again, and so the
            // coordinator is.
            return Err(match guard.is_first {
                true => ErrorCode::ConcurrentTransactions,
                false => ErrorCode::InvalidTxnState,
            });
        }
        if self.forgotten_to > guard.end {
            // Or its producer was forgotten together with it, which nobody can tell any more. The client tries again, and so
            // the coordinator is asked again.
            return Err(ErrorCode::NotEnoughReplicas);
        }
        if self.producers.open_transactions() >= MAX_OPEN_TRANSACTIONS {
            return Err(ErrorCode::ThrottlingQuotaExceeded);
        }
        Ok(())
    }

    /// Whether a marker may be appended, and where. It is answered as with acks=all, so it is refused as such a batch is. One
    /// that ends no open transaction is appended like any other: it fences older epochs.
    pub fn admit_marker(
        &self,
        now: MonotonicTime,
        marker: Marker,
        peers: &Peers,
    ) -> Result<MarkerAdmission, ErrorCode> {
        if self.commit_waits.is_full() {
            return Err(ErrorCode::ThrottlingQuotaExceeded);
        }
        self.producers.check_marker(&marker)?;
        if !self.hears_enough(now, peers) {
            return Err(ErrorCode::NotEnoughReplicas);
        }
        let end = self.end.offset.checked_add(1);
        let end = end.ok_or(ErrorCode::KafkaStorageError)?;
        let aborted = match marker.outcome {
            TransactionOutcome::Abort => self.producers.span_to_abort(marker.producer, end),
            TransactionOutcome::Commit => None,
        };
        Ok(MarkerAdmission {
            previous: self.end,
            end,
            marker: Marker { aborted, ..marker },
        })
    }

    /// An admitted marker is in the log, written but not yet durable.
    pub fn handle_marker_appended(&mut self, marker: &Marker, base: Offset, end: LogPosition) {
        debug_assert!(end > self.end && end.epoch == self.epoch);
        let forgotten = self.producers.handle_marker(marker, base, end.offset);
        self.note_forgotten(forgotten);
        self.end = end;
        self.pump();
    }

    fn note_forgotten(&mut self, up_to: Option<Offset>) {
        self.forgotten_to = self.forgotten_to.max(up_to.unwrap_or(Offset::ZERO));
    }
}
