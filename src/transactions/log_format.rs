//! The records of the internal topic, in Kafka's formats, so that its tools read them and a topic of its making is understood.
//!
//! ```text
//! key    i16 version 0   transactional id
//! value  i16 version 1   i64 producer id  i16 producer epoch  i32 timeout, ms  i8 state
//!                        topics?, each: name  partitions, each: i32  tags
//!                        i64 last change, ms  i64 start, ms  tags
//!        tag 0           i64 the producer id before this one
//!        tag 1           i64 the producer id that comes next
//!        tag 2           i16 the transaction.version that its client speaks
//!        tag 1000        i16 the producer epoch before this one: ours, which Kafka passes over
//!        version 0 is read: other texts and counts, no tags
//! ```
//!
//! Integers are big-endian. In version 1 the length of a text and a count are unsigned variable-length integers, one more than
//! they say, so that 0 is "absent"; in the key and in version 0 they are an i16 and an i32, and −1 is "absent". Tags are a
//! count, then each its number, its length and its bytes. A value that is absent removes what its key names.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::partitions::Partitions;
use super::state::State;
use super::transaction::{Details, NO_EPOCH, NO_PRODUCER};
use super::version::ClientVersion;
use crate::record::{FieldError, Fields};

const KEY_VERSION: i16 = 0;
const VALUE_VERSION: i16 = 1;
const PREVIOUS_PRODUCER_TAG: u32 = 0;
const NEXT_PRODUCER_TAG: u32 = 1;
const CLIENT_VERSION_TAG: u32 = 2;
/// Kafka's own tags are small numbers, and it skips those that it does not know.
const LAST_EPOCH_TAG: u32 = 1000;

/// What a record's key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogKey {
    Id(Arc<str>),
    /// Of a newer broker.
    Unknown {
        version: i16,
    },
}

/// Why a record could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FormatError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("producer id {producer} and epoch {epoch}, which no producer has")]
    BadProducer { producer: i64, epoch: i16 },
    #[error("a state of number {0}, which is never written")]
    UnknownState(i8),
    #[error("a value of version {0}, which this version of the broker does not know")]
    UnknownVersion(i16),
}

pub(super) fn key(id: &str) -> Bytes {
    // An id is capped far below what the length holds.
    let mut out = BytesMut::with_capacity(2 + 2 + id.len());
    out.put_i16(KEY_VERSION);
    out.put_i16(i16::try_from(id.len()).unwrap_or(i16::MAX));
    out.put_slice(id.as_bytes());
    out.freeze()
}

pub(super) fn value(details: &Details) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(VALUE_VERSION);
    out.put_i64(details.producer);
    out.put_i16(details.epoch);
    out.put_i32(details.timeout_ms);
    out.put_i8(details.state.number());
    let topics = details.partitions.topics();
    match details.state {
        // Kafka's word for it: none, rather than none of them.
        State::Empty => put_unsigned(&mut out, 0),
        _ => put_unsigned(&mut out, topics.len() as u32 + 1),
    }
    if details.state != State::Empty {
        for (topic, partitions) in topics {
            put_unsigned(&mut out, topic.len() as u32 + 1);
            out.put_slice(topic.as_bytes());
            put_unsigned(&mut out, partitions.len() as u32 + 1);
            for &partition in partitions {
                out.put_i32(partition);
            }
            put_unsigned(&mut out, 0);
        }
    }
    out.put_i64(details.changed_ms);
    out.put_i64(details.started_ms);
    put_tags(&mut out, details);
    out.freeze()
}

/// What differs from what Kafka takes a tag that is absent for.
fn put_tags(out: &mut BytesMut, details: &Details) {
    let producers = [
        (PREVIOUS_PRODUCER_TAG, details.previous_producer),
        (NEXT_PRODUCER_TAG, details.next_producer),
    ];
    let producers = producers.into_iter().filter(|(_, id)| *id != NO_PRODUCER);
    let shorts = [
        (CLIENT_VERSION_TAG, details.version.number(), 0),
        (LAST_EPOCH_TAG, details.last_epoch, NO_EPOCH),
    ];
    let shorts = shorts
        .into_iter()
        .filter(|(_, value, absent)| value != absent);
    put_unsigned(
        out,
        (producers.clone().count() + shorts.clone().count()) as u32,
    );
    for (tag, producer) in producers {
        put_unsigned(out, tag);
        put_unsigned(out, 8);
        out.put_i64(producer);
    }
    for (tag, value, _) in shorts {
        put_unsigned(out, tag);
        put_unsigned(out, 2);
        out.put_i16(value);
    }
}

/// What a record's key names.
pub fn decode_key(key: &[u8]) -> Result<LogKey, FormatError> {
    let mut fields = Fields::new(key);
    Ok(match fields.i16()? {
        KEY_VERSION => LogKey::Id(fields.text()?.into()),
        version => LogKey::Unknown { version },
    })
}

pub(super) fn decode_value(value: &[u8]) -> Result<Details, FormatError> {
    let mut fields = Fields::new(value);
    let version = fields.i16()?;
    if !(0..=VALUE_VERSION).contains(&version) {
        return Err(FormatError::UnknownVersion(version));
    }
    let flexible = version >= 1;
    let (producer, epoch) = (fields.i64()?, fields.i16()?);
    if producer < 0 || epoch < 0 {
        return Err(FormatError::BadProducer { producer, epoch });
    }
    let timeout_ms = fields.i32()?;
    let number = fields.i8()?;
    let state = State::from_number(number)
        .filter(|state| !matches!(state, State::Dead | State::PrepareEpochFence))
        .ok_or(FormatError::UnknownState(number))?;
    let mut partitions = Partitions::default();
    // Nothing is reserved by what a count says: each entry takes its own bytes, or the reader ends.
    for _ in 0..count(&mut fields, flexible)? {
        let length = match flexible {
            true => i64::from(fields.unsigned()?) - 1,
            false => fields.i16()?.into(),
        };
        let topic = fields.text_of(length)?;
        for _ in 0..count(&mut fields, flexible)? {
            partitions.insert(topic, fields.i32()?);
        }
        if flexible {
            fields.tags(|_, _| Ok::<_, FieldError>(()))?;
        }
    }
    let (changed_ms, started_ms) = (fields.i64()?, fields.i64()?);
    let (mut previous_producer, mut next_producer) = (NO_PRODUCER, NO_PRODUCER);
    let (mut last_epoch, mut version) = (NO_EPOCH, ClientVersion::V1);
    if flexible {
        fields.tags(|tag, mut field| {
            match tag {
                PREVIOUS_PRODUCER_TAG => previous_producer = field.i64()?,
                NEXT_PRODUCER_TAG => next_producer = field.i64()?,
                CLIENT_VERSION_TAG => version = ClientVersion::from_number(field.i16()?),
                LAST_EPOCH_TAG => last_epoch = field.i16()?,
                _ => {}
            }
            Ok::<_, FieldError>(())
        })?;
    }
    if next_producer < NO_PRODUCER {
        return Err(FormatError::BadProducer {
            producer: next_producer,
            epoch: 0,
        });
    }
    Ok(Details {
        producer,
        previous_producer,
        next_producer,
        epoch,
        last_epoch,
        version,
        timeout_ms,
        state,
        partitions,
        started_ms,
        changed_ms,
    })
}

/// A record as it is written once it was read, in the present version. `None` where a coordinator passes it over. For tests
/// and fuzzers, which hold that what was written is read as it was.
pub fn reread_record(record_key: &[u8], record: Option<&[u8]>) -> Option<(Bytes, Option<Bytes>)> {
    match decode_key(record_key).ok()? {
        LogKey::Id(id) => {
            let details = record.map(decode_value).transpose().ok()?;
            Some((key(&id), details.as_ref().map(value)))
        }
        LogKey::Unknown { .. } => None,
    }
}

fn put_unsigned(out: &mut BytesMut, mut value: u32) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// How many entries follow; none where they are absent.
fn count(fields: &mut Fields<'_>, flexible: bool) -> Result<u32, FieldError> {
    if flexible {
        return Ok(fields.unsigned()?.saturating_sub(1));
    }
    match fields.i32()? {
        -1 => Ok(0),
        count => u32::try_from(count).map_err(|_| FieldError::BadLength(count.into())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn details() -> Details {
        let mut partitions = Partitions::default();
        partitions.insert("t", 1);
        partitions.insert("t", 2);
        Details {
            producer: 7,
            previous_producer: 6,
            next_producer: 8,
            epoch: 3,
            last_epoch: 2,
            version: ClientVersion::V2,
            timeout_ms: 60_000,
            state: State::Ongoing,
            partitions,
            started_ms: 8,
            changed_ms: 9,
        }
    }

    #[test]
    fn the_bytes_are_kafkas() {
        assert_eq!(&key("id")[..], [0, 0, 0, 2, b'i', b'd']);
        let expected = [
            &[0, 1][..],
            &[0, 0, 0, 0, 0, 0, 0, 7],
            &[0, 3],
            &[0, 0, 0xea, 0x60],
            &[1],
            // One topic, its name, two partitions, no tags.
            &[2, 2, b't', 3, 0, 0, 0, 1, 0, 0, 0, 2, 0],
            &[0, 0, 0, 0, 0, 0, 0, 9],
            &[0, 0, 0, 0, 0, 0, 0, 8],
            // Four tags.
            &[4, 0, 8, 0, 0, 0, 0, 0, 0, 0, 6],
            &[1, 8, 0, 0, 0, 0, 0, 0, 0, 8],
            &[2, 2, 0, 2],
            &[0xe8, 0x07, 2, 0, 2],
        ]
        .concat();
        assert_eq!(&value(&details())[..], expected);
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(
            decode_key(&key("some id")),
            Ok(LogKey::Id("some id".into()))
        );
        assert_eq!(decode_value(&value(&details())), Ok(details()));
        let empty = Details {
            state: State::Empty,
            partitions: Partitions::default(),
            previous_producer: NO_PRODUCER,
            next_producer: NO_PRODUCER,
            last_epoch: NO_EPOCH,
            version: ClientVersion::V1,
            started_ms: -1,
            ..details()
        };
        assert_eq!(decode_value(&value(&empty)), Ok(empty));
        assert_eq!(decode_key(&[0, 9, 0]), Ok(LogKey::Unknown { version: 9 }));
    }

    #[test]
    fn version_0_is_read() {
        let mut old = BytesMut::new();
        old.put_i16(0);
        old.put_i64(7);
        old.put_i16(3);
        old.put_i32(60_000);
        old.put_i8(1);
        old.put_i32(1);
        old.put_i16(1);
        old.put_slice(b"t");
        old.put_i32(2);
        old.put_i32(1);
        old.put_i32(2);
        old.put_i64(9);
        old.put_i64(8);
        let expected = Details {
            previous_producer: NO_PRODUCER,
            next_producer: NO_PRODUCER,
            last_epoch: NO_EPOCH,
            version: ClientVersion::V1,
            ..details()
        };
        assert_eq!(decode_value(&old), Ok(expected));
        assert_eq!(decode_value(&[0, 2]), Err(FormatError::UnknownVersion(2)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_key(&bytes);
            let _ = decode_value(&bytes);
        }

        #[test]
        fn a_damaged_value_is_read_or_refused(at in 0_usize..90, to in any::<u8>(), cut in 0_usize..100) {
            let mut bytes = value(&details()).to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            bytes.truncate(cut);
            let _ = decode_value(&bytes);
        }
    }
}
