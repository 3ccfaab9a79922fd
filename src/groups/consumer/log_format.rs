//! The records of such groups. Kafka's own formats for them are made for a log that keeps more than these need; the keys are
//! numbered as none of its are, so that its tools pass them over.
//!
//! ```text
//! key    Group          i16 version 1002      group
//! value                 i16 version 0         i32 group epoch  i32 target epoch  i64 hash of the topics read
//!                                             i64 empty since, ms
//! key    Member         i16 version 1003      group  member id
//! value                 i16 version 0         instance id?  rack?  client id  client host  i32 rebalance timeout, ms
//!                                             i32 names, each: topic  pattern?  assignor?
//! key    Target         i16 version 1004      group  member id
//! value                 i16 version 0         partitions
//! key    Current        i16 version 1005      group  member id
//! value                 i16 version 0         i32 member epoch  i32 previous epoch  i8 state
//!                                             partitions assigned  partitions to be given up
//!
//! partitions            i32 topics, each: 16 bytes topic id  i32 count, each: i32 partition
//! ```
//!
//! A group is one Group, and of each member a Member, a Current and, once it is to have anything, a Target. What one heartbeat
//! changes is one batch. Text and absent values are as in [`super::super::log_format`].

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::group::ConsumerGroup;
use super::member::{Current, Member, ReconciliationState, Subscription};
use super::partitions::Partitions;
use crate::groups::log_format::{FormatError, put_optional_text, put_text};
use crate::record::{Fields, LogRecord};
use crate::types::{MonotonicTime, TopicId};

const GROUP_KEY_VERSION: i16 = 1002;
const MEMBER_KEY_VERSION: i16 = 1003;
const TARGET_KEY_VERSION: i16 = 1004;
const CURRENT_KEY_VERSION: i16 = 1005;
const VALUE_VERSION: i16 = 0;

/// What a record's key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerKey {
    Group { group: Arc<str> },
    Member { group: Arc<str>, member: Arc<str> },
    Target { group: Arc<str>, member: Arc<str> },
    Current { group: Arc<str>, member: Arc<str> },
}

impl ConsumerKey {
    /// The group that it is of.
    pub fn group(&self) -> &Arc<str> {
        match self {
            ConsumerKey::Group { group }
            | ConsumerKey::Member { group, .. }
            | ConsumerKey::Target { group, .. }
            | ConsumerKey::Current { group, .. } => group,
        }
    }
}

/// A record's value, with what its key names.
#[derive(Debug)]
pub(in crate::groups) enum ConsumerRecord {
    Group(Option<Header>),
    Member(Arc<str>, Option<Subscription>),
    Target(Arc<str>, Option<Partitions>),
    Current(Arc<str>, Option<Current>),
}

/// What is written down of a group as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::groups) struct Header {
    epoch: i32,
    target_epoch: i32,
    topics_hash: i64,
    empty_since_ms: i64,
}

impl ConsumerGroup {
    fn header(&self) -> Header {
        Header {
            epoch: self.epoch,
            target_epoch: self.target_epoch,
            topics_hash: self.topics_hash,
            empty_since_ms: self.empty_since_ms,
        }
    }

    /// Takes in a record of the log. They may come in any order; only the last one of each key counts.
    pub(in crate::groups) fn restore(&mut self, record: ConsumerRecord) {
        match record {
            ConsumerRecord::Group(header) => {
                if let Some(header) = header {
                    self.epoch = header.epoch;
                    self.target_epoch = header.target_epoch;
                    self.topics_hash = header.topics_hash;
                    self.empty_since_ms = header.empty_since_ms;
                }
            }
            ConsumerRecord::Member(id, Some(subscription)) => {
                let member = self.members.entry(id).or_insert_with(unknown);
                member.subscription = Arc::new(subscription);
            }
            ConsumerRecord::Current(id, Some(current)) => {
                let member = self.members.entry(id).or_insert_with(unknown);
                member.current = Arc::new(current);
            }
            ConsumerRecord::Member(id, None) | ConsumerRecord::Current(id, None) => {
                self.members.remove(&id);
            }
            ConsumerRecord::Target(id, Some(target)) => {
                self.targets.insert(id, Arc::new(target));
            }
            ConsumerRecord::Target(id, None) => {
                self.targets.remove(&id);
            }
        }
    }
}

/// A member of which one record has been read and not yet the other.
fn unknown() -> Member {
    Member::new(Subscription::unsaid(None), MonotonicTime::ZERO)
}

/// The records that make `after` of `before`.
pub(super) fn changes(
    group: &str,
    before: &ConsumerGroup,
    after: &ConsumerGroup,
) -> Vec<LogRecord> {
    let mut records = Vec::new();
    let mut put = |key: Bytes, value: Option<Bytes>| records.push(LogRecord { key, value });
    for id in before.members.keys() {
        if !after.members.contains_key(id) {
            put(member_key(group, id), None);
            put(current_key(group, id), None);
        }
    }
    for id in before.targets.keys() {
        if !after.targets.contains_key(id) {
            put(target_key(group, id), None);
        }
    }
    for (id, member) in &after.members {
        let known = before.members.get(id);
        let same = |known: &Member| is_same(&known.subscription, &member.subscription);
        if !known.is_some_and(same) {
            put(
                member_key(group, id),
                Some(member_value(&member.subscription)),
            );
        }
        let same = |known: &Member| is_same(&known.current, &member.current);
        if !known.is_some_and(same) {
            put(current_key(group, id), Some(current_value(&member.current)));
        }
    }
    for (id, target) in &after.targets {
        let known = before.targets.get(id);
        if !known.is_some_and(|known| is_same(known, target)) {
            put(target_key(group, id), Some(target_value(target)));
        }
    }
    if before.header() != after.header() {
        put(group_key(group), Some(header_value(&after.header())));
    }
    records
}

fn is_same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

pub(in crate::groups) fn group_key(group: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 2 + group.len());
    out.put_i16(GROUP_KEY_VERSION);
    put_text(&mut out, group);
    out.freeze()
}

fn member_key(group: &str, member: &str) -> Bytes {
    key(MEMBER_KEY_VERSION, group, member)
}

fn target_key(group: &str, member: &str) -> Bytes {
    key(TARGET_KEY_VERSION, group, member)
}

fn current_key(group: &str, member: &str) -> Bytes {
    key(CURRENT_KEY_VERSION, group, member)
}

fn key(version: i16, group: &str, member: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 2 + group.len() + 2 + member.len());
    out.put_i16(version);
    put_text(&mut out, group);
    put_text(&mut out, member);
    out.freeze()
}

fn header_value(header: &Header) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 4 + 4 + 8 + 8);
    out.put_i16(VALUE_VERSION);
    out.put_i32(header.epoch);
    out.put_i32(header.target_epoch);
    out.put_i64(header.topics_hash);
    out.put_i64(header.empty_since_ms);
    out.freeze()
}

fn member_value(subscription: &Subscription) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(VALUE_VERSION);
    put_optional_text(&mut out, subscription.instance.as_deref());
    put_optional_text(&mut out, subscription.rack.as_deref());
    put_text(&mut out, &subscription.client_id);
    put_text(&mut out, &subscription.client_host);
    let rebalance = subscription.rebalance.as_millis();
    out.put_i32(i32::try_from(rebalance).unwrap_or(i32::MAX));
    // Names are capped by the bytes of a group far below what this holds.
    out.put_i32(i32::try_from(subscription.names.len()).unwrap_or(i32::MAX));
    for name in &subscription.names {
        put_text(&mut out, name);
    }
    put_optional_text(&mut out, subscription.pattern.as_deref());
    put_optional_text(&mut out, subscription.assignor.as_deref());
    out.freeze()
}

fn target_value(target: &Partitions) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(VALUE_VERSION);
    put_partitions(&mut out, target);
    out.freeze()
}

fn current_value(current: &Current) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(VALUE_VERSION);
    out.put_i32(current.epoch);
    out.put_i32(current.previous_epoch);
    out.put_i8(match current.state {
        ReconciliationState::Stable => 0,
        ReconciliationState::UnrevokedPartitions => 1,
        ReconciliationState::UnreleasedPartitions => 2,
    });
    put_partitions(&mut out, &current.assigned);
    put_partitions(&mut out, &current.revoking);
    out.freeze()
}

fn put_partitions(out: &mut BytesMut, partitions: &Partitions) {
    // The partitions of a cluster are capped far below what these hold.
    out.put_i32(i32::try_from(partitions.topics().count()).unwrap_or(i32::MAX));
    for (topic, of) in partitions.topics() {
        out.put_u128(topic.to_bits());
        out.put_i32(i32::try_from(of.len()).unwrap_or(i32::MAX));
        for &partition in of {
            out.put_i32(partition);
        }
    }
}

/// The key behind its version, if it is one of these.
pub(in crate::groups) fn decode_key(
    version: i16,
    fields: &mut Fields<'_>,
) -> Result<Option<ConsumerKey>, FormatError> {
    if !(GROUP_KEY_VERSION..=CURRENT_KEY_VERSION).contains(&version) {
        return Ok(None);
    }
    let group: Arc<str> = fields.text()?.into();
    if version == GROUP_KEY_VERSION {
        return Ok(Some(ConsumerKey::Group { group }));
    }
    let member: Arc<str> = fields.text()?.into();
    Ok(Some(match version {
        MEMBER_KEY_VERSION => ConsumerKey::Member { group, member },
        TARGET_KEY_VERSION => ConsumerKey::Target { group, member },
        _ => ConsumerKey::Current { group, member },
    }))
}

/// What a record says: its value is absent where what its key names is gone.
pub(in crate::groups) fn decode_record(
    key: ConsumerKey,
    value: Option<&[u8]>,
) -> Result<ConsumerRecord, FormatError> {
    let fields = |value: &'_ [u8]| Fields::new(value).i16().map(|version| (version, ()));
    if let Some(value) = value {
        match fields(value)? {
            (VALUE_VERSION, ()) => {}
            (version, ()) => return Err(FormatError::UnknownVersion(version)),
        }
    }
    // Behind the version.
    let body = value.map(|value| Fields::new(value.get(2..).unwrap_or_default()));
    Ok(match key {
        ConsumerKey::Group { .. } => ConsumerRecord::Group(body.map(header).transpose()?),
        ConsumerKey::Member { member, .. } => {
            ConsumerRecord::Member(member, body.map(subscription).transpose()?)
        }
        ConsumerKey::Target { member, .. } => {
            let target = body.map(|mut fields| partitions(&mut fields)).transpose()?;
            ConsumerRecord::Target(member, target)
        }
        ConsumerKey::Current { member, .. } => {
            ConsumerRecord::Current(member, body.map(current).transpose()?)
        }
    })
}

fn header(mut fields: Fields<'_>) -> Result<Header, FormatError> {
    Ok(Header {
        epoch: fields.i32()?,
        target_epoch: fields.i32()?,
        topics_hash: fields.i64()?,
        empty_since_ms: fields.i64()?,
    })
}

fn subscription(mut fields: Fields<'_>) -> Result<Subscription, FormatError> {
    let instance = fields.optional_text()?.map(Arc::from);
    let rack = fields.optional_text()?.map(Arc::from);
    let (client_id, client_host) = (fields.text()?.into(), fields.text()?.into());
    let rebalance = u64::try_from(fields.i32()?);
    let rebalance = rebalance.map_err(|_| FormatError::Negative("rebalance timeout"))?;
    let count = fields.i32()?;
    let mut names = Vec::new();
    // Nothing is reserved by what the count says, here and below.
    for _ in 0..count {
        names.push(fields.text()?.into());
    }
    Ok(Subscription {
        instance,
        rack,
        client_id,
        client_host,
        rebalance: Duration::from_millis(rebalance),
        names,
        pattern: fields.optional_text()?.map(Arc::from),
        assignor: fields.optional_text()?.map(Arc::from),
    })
}

fn current(mut fields: Fields<'_>) -> Result<Current, FormatError> {
    Ok(Current {
        epoch: fields.i32()?,
        previous_epoch: fields.i32()?,
        state: match fields.i8()? {
            0 => ReconciliationState::Stable,
            1 => ReconciliationState::UnrevokedPartitions,
            2 => ReconciliationState::UnreleasedPartitions,
            state => return Err(FormatError::UnknownState(state)),
        },
        assigned: partitions(&mut fields)?,
        revoking: partitions(&mut fields)?,
    })
}

fn partitions(fields: &mut Fields<'_>) -> Result<Partitions, FormatError> {
    let mut partitions = Partitions::default();
    for _ in 0..fields.i32()? {
        let (high, low) = (fields.i64()? as u64, fields.i64()? as u64);
        let topic = TopicId::from_random_bits(u128::from(high) << 64 | u128::from(low));
        for _ in 0..fields.i32()? {
            let partition = fields.i32()?;
            if partition < 0 {
                return Err(FormatError::Negative("partition"));
            }
            partitions.insert(topic, partition);
        }
    }
    Ok(partitions)
}

/// A record as it is written once it was read. For tests and fuzzers.
pub fn reread_consumer_record(
    key: ConsumerKey,
    value: Option<&[u8]>,
) -> Option<(Bytes, Option<Bytes>)> {
    let group = key.group().clone();
    Some(match decode_record(key, value).ok()? {
        ConsumerRecord::Group(header) => (group_key(&group), header.as_ref().map(header_value)),
        ConsumerRecord::Member(id, subscription) => (
            member_key(&group, &id),
            subscription.as_ref().map(member_value),
        ),
        ConsumerRecord::Target(id, target) => {
            (target_key(&group, &id), target.as_ref().map(target_value))
        }
        ConsumerRecord::Current(id, current) => (
            current_key(&group, &id),
            current.as_ref().map(current_value),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions_of(numbers: &[i32]) -> Partitions {
        let topic = TopicId::from_random_bits(7 << 100 | 9);
        numbers.iter().map(|&number| (topic, number)).collect()
    }

    fn records() -> Vec<LogRecord> {
        let mut group = ConsumerGroup {
            epoch: 5,
            target_epoch: 5,
            topics_hash: -77,
            empty_since_ms: 12,
            ..ConsumerGroup::default()
        };
        let mut member = unknown();
        member.subscription = Arc::new(Subscription {
            instance: Some("i".into()),
            rack: Some("r".into()),
            client_id: "c".into(),
            client_host: "/h".into(),
            rebalance: Duration::from_millis(45_000),
            names: vec!["a".into(), "b".into()],
            pattern: Some("x.*".into()),
            assignor: Some("range".into()),
        });
        member.current = Arc::new(Current {
            epoch: 4,
            previous_epoch: 3,
            state: ReconciliationState::UnrevokedPartitions,
            assigned: partitions_of(&[1, 2]),
            revoking: partitions_of(&[3]),
        });
        group
            .targets
            .insert("m".into(), Arc::new(partitions_of(&[1, 2, 4])));
        group.put("m".into(), member);
        changes("g", &ConsumerGroup::default(), &group)
    }

    #[test]
    fn what_is_written_is_read_and_what_is_cut_short_is_refused() {
        let records = records();
        assert_eq!(records.len(), 4);
        for LogRecord { key, value } in records {
            let crate::groups::LogKey::Consumer(known) = crate::groups::decode_key(&key).unwrap()
            else {
                panic!("another kind of key");
            };
            assert_eq!(known.group().as_ref(), "g");
            let value = value.unwrap();
            let again = reread_consumer_record(known.clone(), Some(&value)).unwrap();
            assert_eq!(again, (key.clone(), Some(value.clone())));
            let gone = reread_consumer_record(known.clone(), None).unwrap();
            assert_eq!(gone, (key, None));
            for cut in 0..value.len() {
                assert!(
                    decode_record(known.clone(), Some(&value[..cut])).is_err(),
                    "{cut}"
                );
            }
        }
    }

    #[test]
    fn a_version_that_is_not_known_is_refused() {
        let key = ConsumerKey::Group { group: "g".into() };
        let refused = decode_record(key, Some(&[0, 1, 0, 0])).unwrap_err();
        assert_eq!(refused, FormatError::UnknownVersion(1));
    }
}
