//! The groups of one partition of the internal topic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::committed::Committed;
use super::consumer::{self, ConsumerKey, NoTopics, Topics, decode_record};
use super::effects::{Effects, Then, Ticket};
use super::group::{Group, GroupState};
use super::limits::{
    BATCH_BYTES, ENTRY_BYTES, MAX_COMMIT_BYTES, MAX_GROUP_ID_BYTES, MAX_GROUPS, MAX_METADATA_BYTES,
    MAX_STATE_BYTES, REMOVAL_BATCH_BYTES, Settings,
};
use super::log_format::{
    FormatError, LogKey, decode_ended, decode_group, decode_key, decode_offset, decode_pending,
    group_key, offset_key, offset_value,
};
use super::pending::{Pending, Transactions};
use super::request::{
    Answer, CommitOffset, Description, FetchedOffset, GroupListing, GroupType, Join, ListFilter,
    Now, OffsetCommit, Request,
};
use crate::record::LogRecord;
use crate::types::{ErrorCode, MonotonicTime};

/// The protocol type of groups of the newer protocol: only consumers use it.
const CONSUMER: &str = "consumer";
/// How often it is looked for offsets that are past their retention. Kafka's `offsets.retention.check.interval.ms`.
const RETENTION_EVERY: Duration = Duration::from_secs(600);

/// Looks after the groups of one partition of the internal topic, for as long as this node leads that partition in one leader
/// epoch.
///
/// First everything that the partition holds goes through [`Coordinator::replay`], then [`Coordinator::loaded`] begins the
/// work. The caller writes what [`Coordinator::take_write`] gives, one batch at a time and in order, and says through
/// [`Coordinator::handle_written`] what came of it. When it cannot be told whether a batch was written, the caller throws
/// this away and begins anew from the log.
#[derive(Debug)]
pub struct Coordinator {
    settings: Settings,
    pub(super) groups: BTreeMap<Arc<str>, Group>,
    pub(super) transactions: Transactions,
    /// The cluster's topics, as they were told last.
    pub(super) topics: Arc<dyn Topics>,
    /// How often they were told.
    pub(super) topics_version: u64,
    pub(super) effects: Effects,
    /// The writes of the batch that is out.
    out: Vec<(Arc<str>, Then)>,
    /// What the groups count for; see [`MAX_STATE_BYTES`].
    bytes: usize,
    retained_at: MonotonicTime,
    /// When it began its work: no two coordinators of one process began at once.
    pub(super) loaded_at: MonotonicTime,
}

impl Coordinator {
    pub fn new(settings: Settings) -> Coordinator {
        Coordinator {
            settings,
            groups: BTreeMap::new(),
            transactions: Transactions::default(),
            topics: Arc::new(NoTopics),
            topics_version: 0,
            effects: Effects::default(),
            out: Vec::new(),
            bytes: 0,
            retained_at: MonotonicTime::ZERO,
            loaded_at: MonotonicTime::ZERO,
        }
    }

    /// One record of the partition, in order. After an error go on with the next: a record that cannot be read concerns its
    /// own group alone.
    pub fn replay(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<(), FormatError> {
        let Some(key) = key else {
            return Ok(());
        };
        match decode_key(key)? {
            LogKey::Offset {
                group,
                topic,
                partition,
            } => {
                let committed = value.map(decode_offset).transpose()?;
                let group = self.known(&group);
                match committed {
                    Some(committed) => group.offsets.insert(&topic, partition, committed),
                    None => group.offsets.remove(&topic, partition),
                }
            }
            LogKey::Group { group } => {
                let value = value.map(decode_group).transpose()?;
                let group = self.known(&group);
                match value {
                    Some(value) => group.restore(value),
                    None => group.forget_members(),
                }
            }
            LogKey::Pending { group, producer } => {
                let pending = value.map(decode_pending).transpose()?;
                let before = self.transactions.take(&group, producer).is_some();
                let known = self.known(&group);
                known.transactions -= usize::from(before);
                if let Some((epoch, offsets)) = pending {
                    known.transactions += 1;
                    let pending = Pending {
                        epoch,
                        offsets,
                        writing: None,
                        is_written: true,
                    };
                    self.transactions.put(&group, producer, pending);
                }
            }
            LogKey::Ended { producer } => match value.map(decode_ended).transpose()? {
                Some(ended) => {
                    if let Some(oldest) = self.transactions.too_many_with(producer) {
                        self.transactions.forget_ended(oldest);
                    }
                    self.transactions.set_ended(producer, ended);
                }
                None => self.transactions.forget_ended(producer),
            },
            LogKey::Consumer(key) => {
                let is_header = matches!(key, ConsumerKey::Group { .. });
                let id = key.group().clone();
                let record = decode_record(key, value)?;
                let serving = self.known(&id).consumer.get_or_insert_default();
                if is_header {
                    serving.is_written = value.is_some();
                }
                serving.group.restore(record);
            }
            LogKey::Unknown { .. } => {}
        }
        Ok(())
    }

    fn known(&mut self, id: &Arc<str>) -> &mut Group {
        self.groups
            .entry(id.clone())
            .or_insert_with(|| Group::new(id.clone(), -1))
    }

    /// The whole partition was replayed.
    pub fn loaded(&mut self, now: Now) {
        for group in self.groups.values_mut() {
            group.consumers_loaded(now, &self.settings);
        }
        self.groups.retain(|_, group| !group.is_nothing());
        for group in self.groups.values_mut() {
            group.loaded(now);
        }
        self.bytes = self.groups.values().map(Group::bytes).sum();
        self.retained_at = now.monotonic;
        self.loaded_at = now.monotonic;
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Answers through [`Coordinator::poll_answer`], now or later.
    pub fn handle(&mut self, now: Now, ticket: Ticket, group: &str, request: Request) {
        match request {
            Request::List(filter) => {
                let listed = self.list(&filter);
                self.effects.answer(ticket, Answer::Listed(listed));
            }
            Request::EndTransaction(end) => self.end_transaction(now, ticket, end),
            _ if group.is_empty() || group.len() > MAX_GROUP_ID_BYTES => {
                self.effects.refuse(ticket, ErrorCode::InvalidGroupId);
            }
            Request::Join(join) => self.join(now, ticket, group, &join),
            Request::Commit(commit) => self.commit(now, ticket, group, commit),
            Request::VerifyOffsets {
                producer,
                producer_epoch,
            } => {
                let verification = self.verify_offsets(group, producer, producer_epoch);
                self.effects
                    .answer(ticket, Answer::Verification(verification));
            }
            Request::CommitInTransaction(commit) => {
                self.commit_in_transaction(now, ticket, group, commit);
            }
            Request::FetchOffsets { wanted, asker } => {
                let may = self.may_fetch(group, asker.as_ref());
                let found = may.map(|()| Answer::Offsets(self.fetch_offsets(group, wanted)));
                self.effects.reply(ticket, found);
            }
            Request::ConsumerHeartbeat(beat) => self.consumer_heartbeat(now, ticket, group, beat),
            Request::DescribeConsumers => {
                let found = self.groups.get(group).and_then(Group::consumers);
                let described = found.map(|found| Answer::ConsumerDescribed(found.describe()));
                let described = described.ok_or(ErrorCode::GroupIdNotFound);
                self.effects.reply(ticket, described);
            }
            Request::Describe => {
                // One of the newer protocol is, to who knows the older one alone, not there.
                let found = self.groups.get(group);
                let found = found.filter(|group| group.consumer.is_none());
                let found = found.map(Group::describe);
                let found = found.unwrap_or_else(|| Description {
                    state: GroupState::Dead,
                    protocol_type: "".into(),
                    protocol: "".into(),
                    members: Vec::new(),
                });
                self.effects.answer(ticket, Answer::Described(found));
            }
            Request::Delete => self.delete(ticket, group),
            Request::DeleteOffsets(offsets) => self.delete_offsets(ticket, group, &offsets),
            Request::Sync(sync) => {
                self.with(group, ticket, |group, _, effects| {
                    group.sync(now, ticket, &sync, effects);
                    group.settle();
                });
            }
            Request::Heartbeat { who, generation } => {
                self.with(group, ticket, |group, _, effects| {
                    effects.reply(ticket, group.heartbeat(now, &who, generation));
                });
            }
            Request::Leave(leaving) => {
                self.with(group, ticket, |group, settings, effects| {
                    let results = group.leave(&leaving, effects);
                    if results.contains(&Ok(())) {
                        group.after_leaving(now, settings, effects);
                    }
                    group.settle();
                    effects.answer(ticket, Answer::Results(results));
                });
            }
        }
    }

    /// Works on a group that is there; there are no members in one that is not.
    fn with(
        &mut self,
        group: &str,
        ticket: Ticket,
        work: impl FnOnce(&mut Group, &Settings, &mut Effects),
    ) {
        match self.groups.get_mut(group) {
            Some(_) => self.change(group, work),
            None => self.effects.refuse(ticket, ErrorCode::UnknownMemberId),
        }
    }

    /// Works on a group, if it is there, and keeps count of what it holds.
    pub(super) fn change(
        &mut self,
        id: &str,
        work: impl FnOnce(&mut Group, &Settings, &mut Effects),
    ) {
        let Some(group) = self.groups.get_mut(id) else {
            return;
        };
        let before = group.bytes();
        work(group, &self.settings, &mut self.effects);
        self.bytes = (self.bytes + group.bytes()).saturating_sub(before);
        if group.is_nothing() {
            self.bytes = self.bytes.saturating_sub(group.bytes());
            self.groups.remove(id);
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes + self.transactions.bytes() < MAX_STATE_BYTES
    }

    /// The group, made if there is room for it.
    pub(super) fn make(&mut self, now: Now, id: &str) -> Result<(), ErrorCode> {
        if self.groups.contains_key(id) {
            return Ok(());
        }
        if self.groups.len() >= MAX_GROUPS || !self.has_room() {
            return Err(ErrorCode::PolicyViolation);
        }
        let id: Arc<str> = id.into();
        let group = Group::new(id.clone(), now.wall_ms);
        self.bytes += group.bytes();
        self.groups.insert(id, group);
        Ok(())
    }

    fn join(&mut self, now: Now, ticket: Ticket, id: &str, join: &Join) {
        let allowed = self.settings.min_session..=self.settings.max_session;
        let made = if !allowed.contains(&join.session) {
            Err(ErrorCode::InvalidSessionTimeout)
        } else if join.who.member.is_empty() {
            self.make(now, id)
        } else if self.groups.contains_key(id) {
            Ok(())
        } else {
            Err(ErrorCode::UnknownMemberId)
        };
        if let Err(error) = made {
            self.effects.refuse(ticket, error);
            return;
        }
        let has_room = self.has_room();
        self.change(id, |group, settings, effects| {
            if let Err(error) = group.leave_newer_protocol(effects) {
                effects.refuse(ticket, error);
                return;
            }
            group.join(now, ticket, join, has_room, settings, effects);
            group.settle();
        });
    }

    fn commit(&mut self, now: Now, ticket: Ticket, id: &str, commit: OffsetCommit) {
        let may = match self.groups.get_mut(id) {
            Some(group) => group.may_commit(now, &commit.who, commit.generation),
            None if commit.generation >= 0 => Err(ErrorCode::IllegalGeneration),
            None => self.make(now, id),
        };
        if let Err(error) = may {
            self.effects.refuse(ticket, error);
            return;
        }
        let has_room = self.has_room();
        self.change(id, |group, _, effects| {
            write_commit(group, now, ticket, commit.offsets, has_room, effects);
        });
    }

    fn fetch_offsets(&self, id: &str, wanted: Option<Vec<(String, i32)>>) -> Vec<FetchedOffset> {
        let group = self.groups.get(id);
        let pending = match group {
            Some(group) if group.transactions > 0 => self.transactions.pending_in(&group.id),
            _ => BTreeMap::new(),
        };
        let is_pending = |topic: &str, partition: i32| {
            let of_topic = pending.get(topic);
            of_topic.is_some_and(|partitions| partitions.contains(&partition))
        };
        match wanted {
            None => group
                .into_iter()
                .flat_map(|group| group.offsets.iter())
                .map(|(topic, partition, committed)| FetchedOffset {
                    is_pending: is_pending(topic, partition),
                    topic: topic.clone(),
                    partition,
                    committed: Some(committed.clone()),
                })
                .collect(),
            Some(wanted) => wanted
                .into_iter()
                .map(|(topic, partition)| FetchedOffset {
                    committed: group
                        .and_then(|group| group.offsets.get(&topic, partition))
                        .cloned(),
                    is_pending: is_pending(&topic, partition),
                    topic: topic.into(),
                    partition,
                })
                .collect(),
        }
    }

    fn may_fetch(&self, id: &str, asker: Option<&(String, i32)>) -> Result<(), ErrorCode> {
        let Some((member, epoch)) = asker else {
            return Ok(());
        };
        match self.groups.get(id).map(Group::consumers) {
            Some(Some(consumers)) => consumers.check_member(member, *epoch),
            // Of the older protocol, whose members never had to say who they are.
            Some(None) => Ok(()),
            None => Err(ErrorCode::UnknownMemberId),
        }
    }

    fn list(&self, filter: &ListFilter) -> Vec<GroupListing> {
        let listed = |group: &&Group| {
            let state = || group.state_name().to_ascii_lowercase();
            let states = filter.states.as_ref();
            let types = filter.types.as_ref();
            states.is_none_or(|states| states.contains(&state()))
                && types.is_none_or(|types| types.contains(&group.kind()))
        };
        self.groups
            .values()
            .filter(listed)
            .map(|group| GroupListing {
                group: group.id.clone(),
                protocol_type: match group.kind() {
                    GroupType::Consumer => CONSUMER.into(),
                    GroupType::Classic => group.protocol_type.clone().unwrap_or_else(|| "".into()),
                },
                kind: group.kind(),
                state: group.state_name(),
            })
            .collect()
    }

    fn delete(&mut self, ticket: Ticket, id: &str) {
        let Some(group) = self.groups.get_mut(id) else {
            self.effects.refuse(ticket, ErrorCode::GroupIdNotFound);
            return;
        };
        match group.state {
            GroupState::Dead => self.effects.refuse(ticket, ErrorCode::GroupIdNotFound),
            _ if !group.is_used() && group.transactions == 0 => {
                remove_group(group, Some(ticket), &mut self.effects);
            }
            _ => self.effects.refuse(ticket, ErrorCode::NonEmptyGroup),
        }
    }

    fn delete_offsets(&mut self, ticket: Ticket, id: &str, offsets: &[(String, i32)]) {
        let group = self
            .groups
            .get_mut(id)
            .filter(|group| group.state != GroupState::Dead);
        let Some(group) = group else {
            self.effects.refuse(ticket, ErrorCode::GroupIdNotFound);
            return;
        };
        let judged: Vec<Result<(), ErrorCode>> = offsets
            .iter()
            .map(|(topic, _)| match group.reads(topic) {
                true => Err(ErrorCode::GroupSubscribedToTopic),
                false => Ok(()),
            })
            .collect();
        let gone: Vec<(Arc<str>, i32)> = offsets
            .iter()
            .zip(&judged)
            .filter(|((topic, partition), judged)| {
                judged.is_ok() && group.offsets.get(topic, *partition).is_some()
            })
            .map(|((topic, partition), _)| (topic.as_str().into(), *partition))
            .collect();
        remove_offsets(group, gone, &mut self.effects);
        // Behind the removals: what is written in order is also done in order.
        group.write(
            Vec::new(),
            Then::Answer(ticket, Answer::Results(judged)),
            &mut self.effects,
        );
    }

    /// Time has passed; to be called every 100 ms or so.
    pub fn handle_tick(&mut self, now: Now) {
        let due: Vec<Arc<str>> = self
            .groups
            .values()
            .filter(|group| group.alarm.is_some_and(|alarm| alarm <= now.monotonic))
            .map(|group| group.id.clone())
            .collect();
        for id in due {
            self.expire_consumers(now, &id);
            self.change(&id, |group, settings, effects| {
                group.handle_time(now, settings, effects);
                group.settle();
            });
        }
        if now.monotonic.since(self.retained_at) >= RETENTION_EVERY {
            self.retained_at = now.monotonic;
            self.expire(now);
        }
    }

    /// Removes offsets that nobody has used for `offsets.retention`, and groups that have nothing left.
    fn expire(&mut self, now: Now) {
        let retention =
            i64::try_from(self.settings.offsets_retention.as_millis()).unwrap_or(i64::MAX);
        let past = |since_ms: i64| now.wall_ms.saturating_sub(since_ms) >= retention;
        for group in self.groups.values_mut() {
            // A commit that is being written is younger than anything that is known here.
            if group.writes > 0 || group.transactions > 0 || group.is_used() {
                continue;
            }
            let since_ms = match group.consumers() {
                Some(consumers) => Some(consumers.empty_since_ms()),
                None => group
                    .protocol_type
                    .is_some()
                    .then_some(group.state_since_ms),
            };
            // Where members were, the time without them counts; where a client only ever committed, that of its commits.
            let unused = since_ms.is_none_or(past);
            let gone: Vec<(Arc<str>, i32)> = group
                .offsets
                .iter()
                .filter(|(_, _, committed)| unused && past(committed.timestamp_ms))
                .map(|(topic, partition, _)| (topic.clone(), partition))
                .collect();
            if unused && gone.len() == group.offsets.iter().count() {
                remove_group(group, None, &mut self.effects);
            } else {
                remove_offsets(group, gone, &mut self.effects);
            }
        }
    }

    /// These topics were deleted: offsets in them mean nothing any more, least of all in a topic that is made again under the
    /// same name.
    pub fn handle_topics_deleted(&mut self, topics: &BTreeSet<String>) {
        self.drop_pending_of(|topic| topics.contains(topic));
        for group in self.groups.values_mut() {
            let gone: Vec<(Arc<str>, i32)> = group
                .offsets
                .iter()
                .filter(|(topic, _, _)| topics.contains(&***topic))
                .map(|(topic, partition, _)| (topic.clone(), partition))
                .collect();
            remove_offsets(group, gone, &mut self.effects);
        }
    }

    /// The next batch to write, unless one is out already. Empty batches are passed over.
    pub fn take_write(&mut self, now: Now) -> Option<Vec<LogRecord>> {
        while self.out.is_empty() {
            let mut records = Vec::new();
            let mut bytes = 0;
            while bytes < BATCH_BYTES
                && let Some(write) = self.effects.writes.pop_front()
            {
                bytes += write.records.iter().map(LogRecord::bytes).sum::<usize>();
                records.extend(write.records);
                self.out.push((write.group, write.then));
            }
            if !records.is_empty() {
                return Some(records);
            }
            if self.out.is_empty() {
                return None;
            }
            self.finish(now, Ok(()));
        }
        None
    }

    /// What came of the batch that was taken last: written for good, or not written at all. An error is Kafka's, of a
    /// produce.
    pub fn handle_written(&mut self, now: Now, result: Result<(), ErrorCode>) {
        self.finish(now, result.map_err(coordinators));
    }

    fn finish(&mut self, now: Now, result: Result<(), ErrorCode>) {
        for (id, then) in std::mem::take(&mut self.out) {
            let then = match then {
                Then::TransactionEnded(ended) => {
                    self.transaction_ended(ended, result);
                    continue;
                }
                then => then,
            };
            if !self.groups.contains_key(&id) {
                // It was removed by a batch before; the log says in the same order what has come since.
                let group = Group::new(id.clone(), now.wall_ms);
                self.bytes += group.bytes();
                self.groups.insert(id.clone(), group);
            }
            if let Then::Pending(written) = then {
                self.change(&id, |group, _, _| {
                    group.writes = group.writes.saturating_sub(1);
                });
                self.pending_written(&id, written, result);
                continue;
            }
            self.change(&id, |group, settings, effects| {
                group.writes = group.writes.saturating_sub(1);
                follow(group, then, now, result, settings, effects);
            });
            self.go_on_with_consumers(now, &id);
            let dead = |group: &Group| group.state == GroupState::Dead && group.writes == 0;
            if self.groups.get(&id).is_some_and(dead)
                && let Some(group) = self.groups.remove(&id)
            {
                self.bytes = self.bytes.saturating_sub(group.bytes());
            }
        }
    }

    /// Every answer once, in the order in which they came about.
    pub fn poll_answer(&mut self) -> Option<(Ticket, Result<Answer, ErrorCode>)> {
        self.effects.answers.pop_front()
    }
}

/// What an error of a write means to a client of the coordinator.
fn coordinators(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::NotLeaderOrFollower
        | ErrorCode::KafkaStorageError
        | ErrorCode::UnknownTopicOrPartition => ErrorCode::NotCoordinator,
        _ => ErrorCode::CoordinatorNotAvailable,
    }
}

fn follow(
    group: &mut Group,
    then: Then,
    now: Now,
    result: Result<(), ErrorCode>,
    settings: &Settings,
    effects: &mut Effects,
) {
    match then {
        Then::ConsumerChanged(changed) => {
            group.consumers_changed(changed, result, settings, effects);
        }
        // The last two are the coordinator's own affair.
        Then::Nothing | Then::Pending(_) | Then::TransactionEnded(_) => {}
        Then::Answer(ticket, answer) => effects.reply(ticket, result.map(|()| answer)),
        Then::Assigned {
            generation,
            assignments,
        } => {
            if group.assigned(now, generation, assignments, result, effects) {
                group.begin_rebalance(now, settings, effects);
            }
            group.settle();
        }
        Then::Committed {
            ticket,
            offsets,
            results,
        } => {
            if let Err(error) = result {
                effects.refuse(ticket, error);
                return;
            }
            for (topic, partition, committed) in offsets {
                group.offsets.insert(&topic, partition, committed);
            }
            effects.answer(ticket, Answer::Results(results));
        }
        Then::OffsetsGone { offsets } => match result {
            Ok(()) => {
                for (topic, partition) in offsets {
                    group.offsets.remove(&topic, partition);
                }
            }
            // The group cannot go while offsets of it stay.
            Err(_) if group.state == GroupState::Dead => group.state = GroupState::Empty,
            Err(_) => {}
        },
        Then::GroupGone { ticket } => {
            let gone = match result {
                Ok(()) if group.state == GroupState::Dead => Ok(Answer::Done),
                Ok(()) => Err(ErrorCode::CoordinatorNotAvailable),
                Err(error) => {
                    group.state = GroupState::Empty;
                    Err(error)
                }
            };
            if let Some(ticket) = ticket {
                effects.reply(ticket, gone);
            }
        }
    }
}

fn write_commit(
    group: &mut Group,
    now: Now,
    ticket: Ticket,
    offsets: Vec<CommitOffset>,
    has_room: bool,
    effects: &mut Effects,
) {
    let mut records = Vec::new();
    let mut accepted = Vec::new();
    let mut results = Vec::with_capacity(offsets.len());
    let mut bytes = 0;
    let mut topic: Arc<str> = "".into();
    for wanted in offsets {
        let is_new = || group.offsets.get(&wanted.topic, wanted.partition).is_none();
        let judged = match wanted.refused {
            Some(error) => Err(error),
            None if wanted.metadata.len() > MAX_METADATA_BYTES => {
                Err(ErrorCode::OffsetMetadataTooLarge)
            }
            None if !has_room && is_new() => Err(ErrorCode::PolicyViolation),
            None => Ok(()),
        };
        if judged.is_ok() {
            if *topic != *wanted.topic {
                topic = wanted.topic.as_str().into();
            }
            let committed = Committed {
                offset: wanted.offset,
                leader_epoch: wanted.leader_epoch,
                metadata: wanted.metadata.as_str().into(),
                timestamp_ms: now.wall_ms,
            };
            let record = LogRecord {
                key: offset_key(&group.id, &topic, wanted.partition),
                value: Some(offset_value(&committed)),
            };
            bytes += record.bytes();
            if bytes > MAX_COMMIT_BYTES {
                effects.refuse(ticket, ErrorCode::InvalidCommitOffsetSize);
                return;
            }
            records.push(record);
            accepted.push((topic.clone(), wanted.partition, committed));
        }
        results.push(judged);
    }
    group.write(
        records,
        Then::Committed {
            ticket,
            offsets: accepted,
            results,
        },
        effects,
    );
}

/// Writes the removal of offsets, in batches that fit a frame.
pub(super) fn remove_offsets(group: &mut Group, gone: Vec<(Arc<str>, i32)>, effects: &mut Effects) {
    let mut rest = gone.into_iter().peekable();
    while rest.peek().is_some() {
        let mut records = Vec::new();
        let mut offsets = Vec::new();
        let mut bytes = 0;
        while bytes < REMOVAL_BATCH_BYTES
            && let Some((topic, partition)) = rest.next()
        {
            let record = LogRecord {
                key: offset_key(&group.id, &topic, partition),
                value: None,
            };
            bytes += record.bytes() + ENTRY_BYTES;
            records.push(record);
            offsets.push((topic, partition));
        }
        group.write(records, Then::OffsetsGone { offsets }, effects);
    }
}

/// Writes the removal of a group with everything that it has.
fn remove_group(group: &mut Group, ticket: Option<Ticket>, effects: &mut Effects) {
    group.state = GroupState::Dead;
    let all = group
        .offsets
        .iter()
        .map(|(topic, partition, _)| (topic.clone(), partition))
        .collect();
    remove_offsets(group, all, effects);
    let mut keys = vec![group_key(&group.id)];
    if group.consumer.is_some() {
        keys.push(consumer::group_key(&group.id));
    }
    let gone = |key| LogRecord { key, value: None };
    let records = keys.into_iter().map(gone).collect();
    group.write(records, Then::GroupGone { ticket }, effects);
}
