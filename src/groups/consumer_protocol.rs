//! What consumers tell each other through their group: Kafka's embedded protocol of the protocol type "consumer".
//!
//! A coordinator passes these bytes on unread, but for one question: which topics a member reads, which protects their
//! offsets from deletion. Our own consumer writes and reads them.
//!
//! ```text
//! subscription  i16 version 0-3  i32 + topics  i32 + user data
//!               since 1: i32 + owned, each topic  i32 + i32 partitions;  since 2: i32 generation;  since 3: rack?
//! assignment    i16 version 0-3  i32 + assigned, each topic  i32 + i32 partitions  i32 + user data
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::log_format::FormatError;
use crate::record::{FieldError, Fields};

/// The version in which subscriptions are written.
pub const SUBSCRIPTION_VERSION: i16 = 2;
/// The version in which assignments are written.
pub const ASSIGNMENT_VERSION: i16 = 1;

/// Partitions by topic, both in order.
type Partitions = BTreeMap<Arc<str>, Vec<i32>>;

/// What a member wants to read, and has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    pub topics: Vec<Arc<str>>,
    /// What it reads now. Empty before version 1.
    pub owned: Partitions,
    /// The generation in which it was given those; −1 before version 2.
    pub generation: i32,
}

/// What a member is to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    pub partitions: Partitions,
}

/// Why a member's bytes could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not in the consumer protocol: {0}")]
pub struct ProtocolError(#[from] FormatError);

pub fn encode_subscription(subscription: &Subscription) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(SUBSCRIPTION_VERSION);
    out.put_i32(subscription.topics.len() as i32);
    for topic in &subscription.topics {
        put_name(&mut out, topic);
    }
    out.put_i32(-1);
    put_partitions(&mut out, &subscription.owned);
    out.put_i32(subscription.generation);
    out.freeze()
}

pub fn encode_assignment(assignment: &Assignment) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(ASSIGNMENT_VERSION);
    put_partitions(&mut out, &assignment.partitions);
    out.put_i32(-1);
    out.freeze()
}

impl From<FieldError> for ProtocolError {
    fn from(error: FieldError) -> ProtocolError {
        FormatError::from(error).into()
    }
}

/// Versions newer than ours are read as far as ours go, as the protocol wants it.
pub fn decode_subscription(bytes: &[u8]) -> Result<Subscription, ProtocolError> {
    let mut fields = Fields::new(bytes);
    let version = version(&mut fields)?;
    let count = fields.i32()?;
    let mut topics = Vec::new();
    for _ in 0..count {
        topics.push(fields.text()?.into());
    }
    // The user data is some assignors' own.
    fields.bytes()?;
    let owned = if version >= 1 {
        partitions(&mut fields)?
    } else {
        Partitions::new()
    };
    let generation = if version >= 2 { fields.i32()? } else { -1 };
    Ok(Subscription {
        topics,
        owned,
        generation,
    })
}

/// No bytes are an assignment of nothing: what a member has that joined after the leader looked.
pub fn decode_assignment(bytes: &[u8]) -> Result<Assignment, ProtocolError> {
    if bytes.is_empty() {
        return Ok(Assignment::default());
    }
    let mut fields = Fields::new(bytes);
    version(&mut fields)?;
    Ok(Assignment {
        partitions: partitions(&mut fields)?,
    })
}

fn version(fields: &mut Fields<'_>) -> Result<i16, FormatError> {
    match fields.i16()? {
        version if version < 0 => Err(FormatError::UnknownVersion(version)),
        version => Ok(version),
    }
}

fn partitions(fields: &mut Fields<'_>) -> Result<Partitions, FormatError> {
    let mut found = Partitions::new();
    for _ in 0..fields.i32()? {
        let topic = fields.text()?.into();
        let partitions = found.entry(topic).or_default();
        for _ in 0..fields.i32()? {
            partitions.push(fields.i32()?);
        }
    }
    Ok(found)
}

fn put_partitions(out: &mut BytesMut, partitions: &Partitions) {
    out.put_i32(partitions.len() as i32);
    for (topic, partitions) in partitions {
        put_name(out, topic);
        out.put_i32(partitions.len() as i32);
        for &partition in partitions {
            out.put_i32(partition);
        }
    }
}

/// Topic names are short.
fn put_name(out: &mut BytesMut, name: &str) {
    let name = super::limits::cut(name, i16::MAX as usize);
    out.put_i16(name.len() as i16);
    out.put_slice(name.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned() -> Partitions {
        Partitions::from([("a".into(), vec![0, 2]), ("b".into(), vec![1])])
    }

    #[test]
    fn what_is_written_is_read() {
        let subscription = Subscription {
            topics: vec!["a".into(), "b".into()],
            owned: owned(),
            generation: 3,
        };
        let bytes = encode_subscription(&subscription);
        assert_eq!(decode_subscription(&bytes), Ok(subscription));
        let assignment = Assignment {
            partitions: owned(),
        };
        assert_eq!(
            decode_assignment(&encode_assignment(&assignment)),
            Ok(assignment)
        );
        assert_eq!(decode_assignment(&[]), Ok(Assignment::default()));
    }

    #[test]
    fn the_oldest_version_is_read() {
        let bytes = [0, 0, 0, 0, 0, 1, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff];
        let found = decode_subscription(&bytes).unwrap();
        assert_eq!(&*found.topics[0], "a");
        assert_eq!(found.generation, -1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode_subscription(&bytes);
            let _ = decode_assignment(&bytes);
        }
    }
}
