//! The records of the internal topic, in Kafka's formats, so that its tools read them and a topic of its making is understood.
//!
//! ```text
//! key    OffsetCommit   i16 version 1 (or 0)  group  topic  i32 partition
//! value                 i16 version 3         i64 offset  i32 leader epoch  metadata  i64 commit time, ms
//!                       version 0 to 2 are read: no epoch; 1 also has an i64 expiry time
//! key    GroupMetadata  i16 version 2         group
//! value                 i16 version 3         protocol type  i32 generation  protocol?  leader?  i64 state since, ms
//!                                             i32 members, each: member id  instance id?  client id  client host
//!                                                 i32 rebalance timeout, ms  i32 session timeout, ms
//!                                                 i32 + subscription  i32 + assignment
//!                       versions 0 to 2 are read: 0 has no rebalance timeout, 0 and 1 no time, 0 to 2 no instance id
//! ```
//!
//! Groups of the newer protocol have records of their own kinds: see the room of consumer groups. Two more kinds are not Kafka's, which writes offsets of transactions in transactional batches. Its tools pass them over.
//!
//! ```text
//! key    Pending        i16 version 1000      group  i64 producer id
//! value                 i16 version 0         i16 producer epoch  i32 offsets, each: topic  i32 partition
//!                                                 i64 offset  i32 leader epoch  metadata  i64 commit time, ms
//! key    Ended          i16 version 1001      i64 producer id
//! value                 i16 version 0         i16 producer epoch  i32 coordinator epoch  i64 time, ms
//! ```
//!
//! Pending are all offsets that a producer's open transaction has committed in a group; Ended says how far a producer's
//! transactions have ended in the partition.
//!
//! Integers are big-endian. A text is an i16 length and UTF-8; those with `?` may be absent, which is length −1. A value that
//! is absent removes what its key names.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::committed::Committed;
use super::consumer::{self, ConsumerKey, reread_consumer_record};
use super::pending::{Ended, PendingOffsets};
use crate::record::{FieldError, Fields};
use crate::types::ProducerId;

const OFFSET_KEY_VERSION: i16 = 1;
const GROUP_KEY_VERSION: i16 = 2;
const PENDING_KEY_VERSION: i16 = 1000;
const ENDED_KEY_VERSION: i16 = 1001;
const TRANSACTION_VALUE_VERSION: i16 = 0;
const OFFSET_VALUE_VERSION: i16 = 3;
const GROUP_VALUE_VERSION: i16 = 3;

/// What a record's key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogKey {
    Offset {
        group: Arc<str>,
        topic: Arc<str>,
        partition: i32,
    },
    Group {
        group: Arc<str>,
    },
    Pending {
        group: Arc<str>,
        producer: ProducerId,
    },
    Ended {
        producer: ProducerId,
    },
    /// Of a group of the newer protocol.
    Consumer(ConsumerKey),
    /// Of a newer broker, or of a kind that this one does not keep.
    Unknown {
        version: i16,
    },
}

/// Why a record could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FormatError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("a negative {0}, which is none")]
    Negative(&'static str),
    #[error("a member in state {0}, which this version of the broker does not know")]
    UnknownState(i8),
    #[error("a value of version {0}, which this version of the broker does not know")]
    UnknownVersion(i16),
}

/// A group as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupValue {
    pub(super) protocol_type: Arc<str>,
    pub(super) generation: i32,
    pub(super) protocol: Option<Arc<str>>,
    pub(super) leader: Option<Arc<str>>,
    /// Milliseconds since the Unix epoch; −1 where it is not known.
    pub(super) state_since_ms: i64,
    pub(super) members: Vec<MemberValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemberValue {
    pub(super) member: Arc<str>,
    pub(super) instance: Option<Arc<str>>,
    pub(super) client_id: Arc<str>,
    pub(super) client_host: Arc<str>,
    pub(super) rebalance_ms: i32,
    pub(super) session_ms: i32,
    pub(super) subscription: Bytes,
    pub(super) assignment: Bytes,
}

pub(super) fn offset_key(group: &str, topic: &str, partition: i32) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 2 + group.len() + 2 + topic.len() + 4);
    out.put_i16(OFFSET_KEY_VERSION);
    put_text(&mut out, group);
    put_text(&mut out, topic);
    out.put_i32(partition);
    out.freeze()
}

pub(super) fn group_key(group: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 2 + group.len());
    out.put_i16(GROUP_KEY_VERSION);
    put_text(&mut out, group);
    out.freeze()
}

pub(super) fn pending_key(group: &str, producer: ProducerId) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 2 + group.len() + 8);
    out.put_i16(PENDING_KEY_VERSION);
    put_text(&mut out, group);
    out.put_i64(producer.get());
    out.freeze()
}

pub(super) fn ended_key(producer: ProducerId) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 8);
    out.put_i16(ENDED_KEY_VERSION);
    out.put_i64(producer.get());
    out.freeze()
}

pub(super) fn pending_value(epoch: i16, offsets: &PendingOffsets) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(TRANSACTION_VALUE_VERSION);
    out.put_i16(epoch);
    // What is pending is capped far below what this holds.
    out.put_i32(i32::try_from(offsets.len()).unwrap_or(i32::MAX));
    for ((topic, partition), committed) in offsets {
        put_text(&mut out, topic);
        out.put_i32(*partition);
        out.put_i64(committed.offset);
        out.put_i32(committed.leader_epoch);
        put_text(&mut out, &committed.metadata);
        out.put_i64(committed.timestamp_ms);
    }
    out.freeze()
}

pub(super) fn ended_value(ended: &Ended) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 2 + 4 + 8);
    out.put_i16(TRANSACTION_VALUE_VERSION);
    out.put_i16(ended.epoch);
    out.put_i32(ended.coordinator_epoch);
    out.put_i64(ended.at_ms);
    out.freeze()
}

pub(super) fn offset_value(committed: &Committed) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 8 + 4 + 2 + committed.metadata.len() + 8);
    out.put_i16(OFFSET_VALUE_VERSION);
    out.put_i64(committed.offset);
    out.put_i32(committed.leader_epoch);
    put_text(&mut out, &committed.metadata);
    out.put_i64(committed.timestamp_ms);
    out.freeze()
}

pub(super) fn group_value(value: &GroupValue) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(GROUP_VALUE_VERSION);
    put_text(&mut out, &value.protocol_type);
    out.put_i32(value.generation);
    put_optional_text(&mut out, value.protocol.as_deref());
    put_optional_text(&mut out, value.leader.as_deref());
    out.put_i64(value.state_since_ms);
    // Members are capped far below what this holds, and so are their bytes.
    out.put_i32(i32::try_from(value.members.len()).unwrap_or(i32::MAX));
    for member in &value.members {
        put_text(&mut out, &member.member);
        put_optional_text(&mut out, member.instance.as_deref());
        put_text(&mut out, &member.client_id);
        put_text(&mut out, &member.client_host);
        out.put_i32(member.rebalance_ms);
        out.put_i32(member.session_ms);
        put_bytes(&mut out, &member.subscription);
        put_bytes(&mut out, &member.assignment);
    }
    out.freeze()
}

/// What a record's key names.
pub fn decode_key(key: &[u8]) -> Result<LogKey, FormatError> {
    let mut fields = Fields::new(key);
    let version = fields.i16()?;
    if let Some(key) = consumer::decode_key(version, &mut fields)? {
        return Ok(LogKey::Consumer(key));
    }
    Ok(match version {
        0 | OFFSET_KEY_VERSION => LogKey::Offset {
            group: fields.text()?.into(),
            topic: fields.text()?.into(),
            partition: fields.i32()?,
        },
        GROUP_KEY_VERSION => LogKey::Group {
            group: fields.text()?.into(),
        },
        PENDING_KEY_VERSION => LogKey::Pending {
            group: fields.text()?.into(),
            producer: producer(&mut fields)?,
        },
        ENDED_KEY_VERSION => LogKey::Ended {
            producer: producer(&mut fields)?,
        },
        version => LogKey::Unknown { version },
    })
}

pub(super) fn decode_offset(value: &[u8]) -> Result<Committed, FormatError> {
    let mut fields = Fields::new(value);
    let version = fields.i16()?;
    if !(0..=OFFSET_VALUE_VERSION).contains(&version) {
        return Err(FormatError::UnknownVersion(version));
    }
    Ok(Committed {
        offset: fields.i64()?,
        leader_epoch: if version >= 3 { fields.i32()? } else { -1 },
        metadata: fields.text()?.into(),
        timestamp_ms: fields.i64()?,
    })
}

/// The producer's epoch, and what it has pending.
pub(super) fn decode_pending(value: &[u8]) -> Result<(i16, PendingOffsets), FormatError> {
    let mut fields = Fields::new(value);
    check_transaction_version(&mut fields)?;
    let epoch = epoch(&mut fields)?;
    let count = fields.i32()?;
    let mut offsets = PendingOffsets::new();
    // Nothing is reserved by what the count says.
    for _ in 0..count {
        let key = (fields.text()?.into(), fields.i32()?);
        let committed = Committed {
            offset: fields.i64()?,
            leader_epoch: fields.i32()?,
            metadata: fields.text()?.into(),
            timestamp_ms: fields.i64()?,
        };
        offsets.insert(key, committed);
    }
    Ok((epoch, offsets))
}

pub(super) fn decode_ended(value: &[u8]) -> Result<Ended, FormatError> {
    let mut fields = Fields::new(value);
    check_transaction_version(&mut fields)?;
    Ok(Ended {
        epoch: epoch(&mut fields)?,
        coordinator_epoch: fields.i32()?,
        at_ms: fields.i64()?,
    })
}

pub(super) fn decode_group(value: &[u8]) -> Result<GroupValue, FormatError> {
    let mut fields = Fields::new(value);
    let version = fields.i16()?;
    if !(0..=GROUP_VALUE_VERSION).contains(&version) {
        return Err(FormatError::UnknownVersion(version));
    }
    let protocol_type = fields.text()?.into();
    let generation = fields.i32()?;
    let protocol = fields.optional_text()?.map(Into::into);
    let leader = fields.optional_text()?.map(Into::into);
    let state_since_ms = if version >= 2 { fields.i64()? } else { -1 };
    let count = fields.i32()?;
    let mut members = Vec::new();
    // Nothing is reserved by what the count says: each member takes its own bytes, or the reader ends.
    for _ in 0..count {
        let member = fields.text()?.into();
        let instance = if version >= 3 {
            fields.optional_text()?.map(Into::into)
        } else {
            None
        };
        let (client_id, client_host) = (fields.text()?.into(), fields.text()?.into());
        let rebalance_ms = if version >= 1 {
            Some(fields.i32()?)
        } else {
            None
        };
        let session_ms = fields.i32()?;
        members.push(MemberValue {
            member,
            instance,
            client_id,
            client_host,
            rebalance_ms: rebalance_ms.unwrap_or(session_ms),
            session_ms,
            subscription: Bytes::copy_from_slice(fields.bytes()?),
            assignment: Bytes::copy_from_slice(fields.bytes()?),
        });
    }
    Ok(GroupValue {
        protocol_type,
        generation,
        protocol,
        leader,
        state_since_ms,
        members,
    })
}

/// A record as it is written once it was read, in the present versions. `None` where a coordinator passes it over. For tests and
/// fuzzers, which hold that what was written is read as it was.
pub fn reread_record(key: &[u8], value: Option<&[u8]>) -> Option<(Bytes, Option<Bytes>)> {
    match decode_key(key).ok()? {
        LogKey::Offset {
            group,
            topic,
            partition,
        } => {
            let value = value.map(decode_offset).transpose().ok()?;
            let key = offset_key(&group, &topic, partition);
            Some((key, value.as_ref().map(offset_value)))
        }
        LogKey::Group { group } => {
            let value = value.map(decode_group).transpose().ok()?;
            Some((group_key(&group), value.as_ref().map(group_value)))
        }
        LogKey::Pending { group, producer } => {
            let value = value.map(decode_pending).transpose().ok()?;
            let value = value.map(|(epoch, offsets)| pending_value(epoch, &offsets));
            Some((pending_key(&group, producer), value))
        }
        LogKey::Ended { producer } => {
            let value = value.map(decode_ended).transpose().ok()?;
            Some((ended_key(producer), value.as_ref().map(ended_value)))
        }
        LogKey::Consumer(key) => reread_consumer_record(key, value),
        LogKey::Unknown { .. } => None,
    }
}

pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    // Every text that gets here is capped far below this.
    let text = super::limits::cut(text, i16::MAX as usize);
    out.put_i16(text.len() as i16);
    out.put_slice(text.as_bytes());
}

pub(super) fn put_optional_text(out: &mut BytesMut, text: Option<&str>) {
    match text {
        Some(text) => put_text(out, text),
        None => out.put_i16(-1),
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    out.put_slice(bytes);
}

fn producer(fields: &mut Fields<'_>) -> Result<ProducerId, FormatError> {
    ProducerId::new(fields.i64()?).ok_or(FormatError::Negative("producer id"))
}

fn epoch(fields: &mut Fields<'_>) -> Result<i16, FormatError> {
    let epoch = fields.i16()?;
    if epoch < 0 {
        return Err(FormatError::Negative("producer epoch"));
    }
    Ok(epoch)
}

fn check_transaction_version(fields: &mut Fields<'_>) -> Result<(), FormatError> {
    match fields.i16()? {
        TRANSACTION_VALUE_VERSION => Ok(()),
        version => Err(FormatError::UnknownVersion(version)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member() -> MemberValue {
        MemberValue {
            member: "m-1".into(),
            instance: Some("i".into()),
            client_id: "c".into(),
            client_host: "/h".into(),
            rebalance_ms: 300_000,
            session_ms: 10_000,
            subscription: Bytes::from_static(&[1, 2]),
            assignment: Bytes::from_static(&[3]),
        }
    }

    fn group() -> GroupValue {
        GroupValue {
            protocol_type: "consumer".into(),
            generation: 4,
            protocol: Some("range".into()),
            leader: None,
            state_since_ms: 1_000,
            members: vec![member()],
        }
    }

    #[test]
    fn the_bytes_are_kafkas() {
        assert_eq!(
            &offset_key("g", "t", 7)[..],
            [0, 1, 0, 1, b'g', 0, 1, b't', 0, 0, 0, 7]
        );
        assert_eq!(&group_key("g")[..], [0, 2, 0, 1, b'g']);
        let committed = Committed {
            offset: 5,
            leader_epoch: 2,
            metadata: "m".into(),
            timestamp_ms: 9,
        };
        assert_eq!(
            &offset_value(&committed)[..],
            [
                0, 3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 1, b'm', 0, 0, 0, 0, 0, 0, 0, 9
            ]
        );
        let empty = GroupValue {
            members: Vec::new(),
            protocol: None,
            ..group()
        };
        let expected = [
            &[0, 3, 0, 8][..],
            b"consumer",
            &[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff],
            &[0, 0, 0, 0, 0, 0, 3, 0xe8, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(&group_value(&empty)[..], expected);
    }

    #[test]
    fn what_is_written_is_read() {
        let key = decode_key(&offset_key("group", "topic", 3)).unwrap();
        let offset = LogKey::Offset {
            group: "group".into(),
            topic: "topic".into(),
            partition: 3,
        };
        assert_eq!(key, offset);
        assert_eq!(decode_group(&group_value(&group())), Ok(group()));
        assert_eq!(decode_key(&[0, 9, 0]), Ok(LogKey::Unknown { version: 9 }));
    }

    #[test]
    fn records_of_transactions_are_read_as_they_were_written() {
        let producer = ProducerId::new(77).unwrap();
        let key = LogKey::Pending {
            group: "group".into(),
            producer,
        };
        assert_eq!(decode_key(&pending_key("group", producer)), Ok(key));
        let key = LogKey::Ended { producer };
        assert_eq!(decode_key(&ended_key(producer)), Ok(key));
        let mut offsets = PendingOffsets::new();
        for partition in 0..3 {
            let committed = Committed {
                offset: 5,
                leader_epoch: -1,
                metadata: "m".into(),
                timestamp_ms: 9,
            };
            offsets.insert(("topic".into(), partition), committed);
        }
        let value = pending_value(4, &offsets);
        assert_eq!(decode_pending(&value), Ok((4, offsets)));
        for cut in 0..value.len() {
            assert!(decode_pending(&value[..cut]).is_err(), "{cut}");
        }
        let ended = Ended {
            epoch: 4,
            coordinator_epoch: 2,
            at_ms: 99,
        };
        let value = ended_value(&ended);
        assert_eq!(decode_ended(&value), Ok(ended));
        for cut in 0..value.len() {
            assert!(decode_ended(&value[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn older_versions_are_read() {
        // Version 1 of an offset: with an expiry time and without an epoch.
        let mut old = BytesMut::new();
        old.put_i16(1);
        old.put_i64(5);
        put_text(&mut old, "m");
        old.put_i64(9);
        old.put_i64(10);
        let committed = decode_offset(&old).unwrap();
        assert_eq!((committed.offset, committed.leader_epoch), (5, -1));
        assert_eq!(committed.timestamp_ms, 9);
        // Version 0 of a group: one timeout, no time, no instance.
        let mut old = BytesMut::new();
        old.put_i16(0);
        put_text(&mut old, "consumer");
        old.put_i32(2);
        put_optional_text(&mut old, Some("range"));
        put_optional_text(&mut old, Some("a"));
        old.put_i32(1);
        for text in ["a", "c", "/h"] {
            put_text(&mut old, text);
        }
        old.put_i32(7_000);
        put_bytes(&mut old, &[1]);
        put_bytes(&mut old, &[2]);
        let group = decode_group(&old).unwrap();
        assert_eq!(group.members[0].rebalance_ms, 7_000);
        assert_eq!(group.state_since_ms, -1);
        assert_eq!(decode_group(&[0, 4]), Err(FormatError::UnknownVersion(4)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_key(&bytes);
            let _ = decode_offset(&bytes);
            let _ = decode_pending(&bytes);
            let _ = decode_ended(&bytes);
            let _ = decode_group(&bytes);
        }

        #[test]
        fn a_damaged_group_is_read_or_refused(at in 0_usize..60, to in any::<u8>(), cut in 0_usize..90) {
            let mut bytes = group_value(&group()).to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            bytes.truncate(cut);
            let _ = decode_group(&bytes);
        }
    }
}
