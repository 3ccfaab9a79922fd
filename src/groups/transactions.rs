//! Offsets that are committed in transactions: pending until the transaction's marker comes, then committed or gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::committed::Committed;
use super::coordinator::{Coordinator, remove_offsets};
use super::effects::{Then, Ticket, Write};
use super::group::{Group, GroupState};
use super::limits::{MAX_METADATA_BYTES, MAX_PENDING_BYTES};
use super::log_format::{
    ended_key, ended_value, offset_key, offset_value, pending_key, pending_value,
};
use super::pending::{Ended, OffsetsGuard, Pending, PendingOffsets};
use super::request::{Answer, EndTransaction, Now, OffsetsVerification, TransactionCommit, Who};
use crate::record::LogRecord;
use crate::types::{ErrorCode, ProducerId};

/// What follows once a transaction's end is written.
#[derive(Debug)]
pub(super) struct TransactionEnded {
    pub(super) ticket: Ticket,
    pub(super) producer: ProducerId,
    pub(super) ended: Ended,
    pub(super) groups: Vec<Arc<str>>,
    pub(super) is_commit: bool,
    /// The producer that was forgotten for this one.
    pub(super) forgotten: Option<ProducerId>,
}

/// What follows once offsets of a transaction are written.
#[derive(Debug)]
pub(super) struct PendingWritten {
    pub(super) ticket: Ticket,
    pub(super) producer: ProducerId,
    pub(super) results: Vec<Result<(), ErrorCode>>,
}

/// Whether an offset was committed outside transactions after this one was in its. Then that one holds, as in Kafka, where it
/// stands later in the log.
fn holds_newer(group: &Group, topic: &str, partition: i32, committed: &Committed) -> bool {
    let known = group.offsets.get(topic, partition);
    known.is_some_and(|known| known.timestamp_ms > committed.timestamp_ms)
}

impl Group {
    /// Whether a client may commit offsets of the group in a transaction: as its member in this generation, or, as clients of
    /// before KIP-447 do, as nobody. It is no sign of life of the member.
    fn may_commit_in_transaction(&self, who: &Who, generation: i32) -> Result<(), ErrorCode> {
        if self.state == GroupState::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        let is_nobody = generation < 0 && who.member.is_empty() && who.instance.is_none();
        if is_nobody {
            return Ok(());
        }
        if let Some(consumers) = self.consumers() {
            return match consumers.check_member(&who.member, generation) {
                // What clients of transactions know.
                Err(ErrorCode::StaleMemberEpoch) => Err(ErrorCode::IllegalGeneration),
                checked => checked,
            };
        }
        self.identify(who)?;
        if generation == self.generation {
            Ok(())
        } else {
            Err(ErrorCode::IllegalGeneration)
        }
    }
}

impl Coordinator {
    /// Whether the coordinator of the producer's transaction is to be asked before offsets are committed in it.
    pub(super) fn verify_offsets(
        &self,
        group: &str,
        producer: ProducerId,
        epoch: i16,
    ) -> OffsetsVerification {
        let known = self.transactions.get(&Arc::from(group), producer);
        if known.is_some_and(|pending| pending.epoch == epoch) {
            return OffsetsVerification::NotNeeded;
        }
        OffsetsVerification::Needed(OffsetsGuard {
            loaded_at: self.loaded_at,
            markers: self.transactions.markers,
        })
    }

    pub(super) fn commit_in_transaction(
        &mut self,
        now: Now,
        ticket: Ticket,
        id: &str,
        commit: TransactionCommit,
    ) {
        if let Err(error) = self.try_commit_in_transaction(now, ticket, id, commit) {
            self.effects.refuse(ticket, error);
        }
    }

    fn try_commit_in_transaction(
        &mut self,
        now: Now,
        ticket: Ticket,
        id: &str,
        commit: TransactionCommit,
    ) -> Result<(), ErrorCode> {
        let (producer, epoch) = (commit.producer, commit.producer_epoch);
        match self.groups.get(id) {
            Some(group) => group.may_commit_in_transaction(&commit.who, commit.generation)?,
            None if commit.generation >= 0 => return Err(ErrorCode::IllegalGeneration),
            None => {}
        }
        self.may_be_of_transaction(id, &commit)?;
        let id: Arc<str> = id.into();
        let known = self.transactions.get(&id, producer);
        let mut offsets = known.map_or_else(PendingOffsets::new, |known| known.offsets.clone());
        let mut results = Vec::with_capacity(commit.offsets.len());
        let has_room = self.has_room();
        for wanted in commit.offsets {
            let key = (Arc::from(wanted.topic.as_str()), wanted.partition);
            let judged = match wanted.refused {
                Some(error) => Err(error),
                None if wanted.metadata.len() > MAX_METADATA_BYTES => {
                    Err(ErrorCode::OffsetMetadataTooLarge)
                }
                None if !has_room && !offsets.contains_key(&key) => Err(ErrorCode::PolicyViolation),
                None => Ok(()),
            };
            if judged.is_ok() {
                let committed = Committed {
                    offset: wanted.offset,
                    leader_epoch: wanted.leader_epoch,
                    metadata: wanted.metadata.as_str().into(),
                    timestamp_ms: now.wall_ms,
                };
                offsets.insert(key, committed);
            }
            results.push(judged);
        }
        if offsets.is_empty() {
            self.effects.answer(ticket, Answer::Results(results));
            return Ok(());
        }
        let before = known.map_or(0, Pending::bytes);
        let mut pending = known.cloned().unwrap_or(Pending {
            epoch,
            offsets: PendingOffsets::new(),
            writing: None,
            is_written: false,
        });
        let value = pending_value(epoch, &offsets);
        pending.writing = Some(offsets);
        let others = self.transactions.bytes_of(producer) - before;
        if others + pending.bytes() > MAX_PENDING_BYTES {
            return Err(ErrorCode::InvalidCommitOffsetSize);
        }
        self.make(now, &id)?;
        let is_new = before == 0;
        self.transactions.put(&id, producer, pending);
        let records = vec![LogRecord {
            key: pending_key(&id, producer),
            value: Some(value),
        }];
        self.change(&id, |group, _, effects| {
            group.transactions += usize::from(is_new);
            let then = Then::Pending(PendingWritten {
                ticket,
                producer,
                results,
            });
            group.write(records, then, effects);
        });
        Ok(())
    }

    /// Refuses what is of a transaction that has ended, or may have.
    fn may_be_of_transaction(&self, id: &str, commit: &TransactionCommit) -> Result<(), ErrorCode> {
        let (producer, epoch) = (commit.producer, commit.producer_epoch);
        let ended = self.transactions.ended(producer);
        if ended.is_some_and(|ended| epoch < ended.epoch) {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        if self.transactions.ending.contains(&producer) {
            return Err(ErrorCode::CoordinatorLoadInProgress);
        }
        if let Some(known) = self.transactions.get(&Arc::from(id), producer) {
            if epoch < known.epoch {
                return Err(ErrorCode::InvalidProducerEpoch);
            }
            if epoch > known.epoch {
                // The marker of the older one is still to come, and the client asks again.
                return Err(ErrorCode::CoordinatorLoadInProgress);
            }
            if known.writing.is_some() {
                // One request after another: each adds to what the one before has written.
                return Err(ErrorCode::CoordinatorLoadInProgress);
            }
            return Ok(());
        }
        let guard = commit.guard.ok_or(ErrorCode::InvalidTxnState)?;
        if guard.loaded_at != self.loaded_at {
            return Err(ErrorCode::CoordinatorLoadInProgress);
        }
        if self.transactions.has_ended_since(producer, guard.markers) {
            return Err(ErrorCode::InvalidTxnState);
        }
        if self.transactions.has_forgotten_since(guard.markers) {
            // Nobody can tell any more; the client asks again, and so does who asks for it.
            return Err(ErrorCode::CoordinatorLoadInProgress);
        }
        Ok(())
    }

    pub(super) fn pending_written(
        &mut self,
        id: &Arc<str>,
        written: PendingWritten,
        result: Result<(), ErrorCode>,
    ) {
        let producer = written.producer;
        if let Some(mut pending) = self.transactions.take(id, producer) {
            let writing = pending.writing.take();
            if result.is_ok() {
                pending.offsets = writing.unwrap_or_default();
                pending.is_written = true;
            }
            let deleted = self.transactions.deleted_late.clone();
            if !pending.is_written {
                self.change(id, |group, _, _| {
                    group.transactions = group.transactions.saturating_sub(1);
                });
            } else if pending.names(|topic| deleted.contains(topic)) {
                self.forget_pending(id, producer, pending, |topic| deleted.contains(topic));
            } else {
                self.transactions.put(id, producer, pending);
            }
            self.transactions.settle_deleted();
        }
        let answer = result.map(|()| Answer::Results(written.results));
        self.effects.reply(written.ticket, answer);
    }

    /// A transaction has ended: what it committed in the groups here holds from now on, or never did. All of it is one batch.
    pub(super) fn end_transaction(&mut self, now: Now, ticket: Ticket, end: EndTransaction) {
        if let Err(error) = self.try_end_transaction(now, ticket, end) {
            self.effects.refuse(ticket, error);
        }
    }

    fn try_end_transaction(
        &mut self,
        now: Now,
        ticket: Ticket,
        end: EndTransaction,
    ) -> Result<(), ErrorCode> {
        let producer = end.producer;
        if self.transactions.forgetting.contains(&producer) {
            // Its removal is being written, and must not come behind what this would write. The marker comes again.
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        let known = self.transactions.ended(producer).copied();
        if known.is_some_and(|known| end.producer_epoch < known.epoch) {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        if known.is_some_and(|known| end.coordinator_epoch < known.coordinator_epoch) {
            return Err(ErrorCode::TransactionCoordinatorFenced);
        }
        let groups = self.transactions.groups_of(producer);
        let mut is_busy = self.transactions.ending.contains(&producer);
        for group in &groups {
            let pending = self.transactions.get(group, producer);
            if pending.is_some_and(|pending| end.producer_epoch < pending.epoch) {
                return Err(ErrorCode::InvalidProducerEpoch);
            }
            is_busy |= pending.is_some_and(|pending| pending.writing.is_some());
        }
        // From here on whatever its coordinator was asked about before is void.
        self.transactions.note_marker(producer);
        if is_busy {
            // What is being written is not known to be there; the marker comes again.
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        let is_known = known.is_some_and(|known| {
            (known.epoch, known.coordinator_epoch) == (end.producer_epoch, end.coordinator_epoch)
        });
        if groups.is_empty() && is_known {
            self.effects.answer(ticket, Answer::Done);
            return Ok(());
        }
        let mut records = Vec::new();
        for id in &groups {
            let pending = self.transactions.get(id, producer);
            let offsets = pending.into_iter().flat_map(|pending| &pending.offsets);
            let group = self.groups.get(id);
            for ((topic, partition), committed) in offsets.filter(|_| end.is_commit) {
                if group.is_some_and(|group| holds_newer(group, topic, *partition, committed)) {
                    continue;
                }
                records.push(LogRecord {
                    key: offset_key(id, topic, *partition),
                    value: Some(offset_value(committed)),
                });
            }
            records.push(LogRecord {
                key: pending_key(id, producer),
                value: None,
            });
            if let Some(group) = self.groups.get_mut(id) {
                group.writes += 1;
            }
        }
        let ended = Ended {
            epoch: end.producer_epoch,
            coordinator_epoch: end.coordinator_epoch,
            at_ms: now.wall_ms,
        };
        records.push(LogRecord {
            key: ended_key(producer),
            value: Some(ended_value(&ended)),
        });
        let forgotten = self.transactions.too_many_with(producer);
        self.transactions.forgetting.extend(forgotten);
        records.extend(forgotten.map(|forgotten| LogRecord {
            key: ended_key(forgotten),
            value: None,
        }));
        self.transactions.ending.insert(producer);
        self.effects.writes.push_back(Write {
            group: "".into(),
            records,
            then: Then::TransactionEnded(TransactionEnded {
                ticket,
                producer,
                ended,
                groups,
                is_commit: end.is_commit,
                forgotten,
            }),
        });
        Ok(())
    }

    pub(super) fn transaction_ended(
        &mut self,
        end: TransactionEnded,
        result: Result<(), ErrorCode>,
    ) {
        self.transactions.ending.remove(&end.producer);
        if let Some(forgotten) = &end.forgotten {
            self.transactions.forgetting.remove(forgotten);
        }
        let deleted = self.transactions.deleted_late.clone();
        for id in &end.groups {
            let pending = match result {
                Ok(()) => self.transactions.take(id, end.producer),
                Err(_) => None,
            };
            self.change(id, |group, _, effects| {
                group.writes = group.writes.saturating_sub(1);
                let Some(pending) = pending else { return };
                group.transactions = group.transactions.saturating_sub(1);
                if !end.is_commit {
                    return;
                }
                let mut gone = Vec::new();
                for ((topic, partition), committed) in pending.offsets {
                    if deleted.contains(&topic) {
                        gone.push((topic.clone(), partition));
                    }
                    if !holds_newer(group, &topic, partition, &committed) {
                        group.offsets.insert(&topic, partition, committed);
                    }
                }
                remove_offsets(group, gone, effects);
            });
        }
        self.transactions.settle_deleted();
        if result.is_ok() {
            if let Some(forgotten) = end.forgotten {
                self.transactions.forget_ended(forgotten);
            }
            let marker = end.producer;
            self.transactions.set_ended(marker, end.ended);
            self.transactions.note_marker(marker);
        }
        let answer = result.map(|()| Answer::Done);
        self.effects.reply(end.ticket, answer);
    }

    /// Pending offsets in these topics mean nothing any more. What is being written is forgotten once it is written.
    pub(super) fn drop_pending_of(&mut self, is_deleted: impl Fn(&str) -> bool) {
        let groups: BTreeSet<Arc<str>> = self.transactions.all_groups().cloned().collect();
        for id in groups {
            let of_group = self.transactions.of_group(&id);
            let affected: Vec<(ProducerId, Pending)> = of_group
                .filter(|(_, pending)| pending.names(&is_deleted))
                .map(|(producer, pending)| (producer, pending.clone()))
                .collect();
            for (producer, pending) in affected {
                if pending.writing.is_some() || self.transactions.ending.contains(&producer) {
                    let names = pending.keys().map(|(topic, _)| topic);
                    let names = names.filter(|topic| is_deleted(topic)).cloned();
                    self.transactions.deleted_late.extend(names);
                } else {
                    self.forget_pending(&id, producer, pending, &is_deleted);
                }
            }
        }
    }

    /// The transaction stays, even without offsets: its marker removes what is written of it.
    fn forget_pending(
        &mut self,
        id: &Arc<str>,
        producer: ProducerId,
        mut pending: Pending,
        is_deleted: impl Fn(&str) -> bool,
    ) {
        pending.offsets.retain(|(topic, _), _| !is_deleted(topic));
        let record = LogRecord {
            key: pending_key(id, producer),
            value: Some(pending_value(pending.epoch, &pending.offsets)),
        };
        self.transactions.put(id, producer, pending);
        self.change(id, |group, _, effects| {
            group.write(vec![record], Then::Nothing, effects);
        });
    }
}
