//! What the proxy must know of a request: its kind and number, and whether it will be answered.

/// The longest piece of a request that is looked at.
pub(super) const PEEK_BYTES: usize = 4096;

/// `Produce`.
const PRODUCE: i16 = 0;
/// Since this version a Produce request has varint lengths, and its header tagged fields.
const FLEXIBLE_PRODUCE_SINCE: i16 = 9;

/// A request's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peeked {
    pub(super) api_key: i16,
    pub(super) version: i16,
    pub(super) correlation_id: i32,
    /// A produce with acks=0 is not.
    pub(super) is_answered: bool,
}

/// Reads a request's beginning: its first bytes behind the length, [`PEEK_BYTES`] or all of them. `None` where there is no
/// header; what cannot be understood further counts as answered, and the node closes its connection.
pub(super) fn peek(begin: &[u8]) -> Option<Peeked> {
    let (fixed, rest) = begin.split_first_chunk::<8>()?;
    let [k0, k1, v0, v1, correlation_id @ ..] = *fixed;
    let api_key = i16::from_be_bytes([k0, k1]);
    let version = i16::from_be_bytes([v0, v1]);
    Some(Peeked {
        api_key,
        version,
        correlation_id: i32::from_be_bytes(correlation_id),
        is_answered: api_key != PRODUCE || acks(rest, version) != Some(0),
    })
}

/// What a Produce request wants, from what follows the fixed part of its header.
fn acks(rest: &[u8], version: i16) -> Option<i16> {
    // The client id.
    let rest = skip_text(rest)?;
    let rest = if version >= FLEXIBLE_PRODUCE_SINCE {
        skip_compact_text(skip_tags(rest)?)?
    } else if version >= 3 {
        skip_text(rest)?
    } else {
        rest
    };
    rest.first_chunk().copied().map(i16::from_be_bytes)
}

fn skip_text(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    match i16::from_be_bytes(*length) {
        -1 => Some(rest),
        length => rest.get(usize::try_from(length).ok()?..),
    }
}

fn skip_compact_text(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = varint(bytes)?;
    rest.get((length as usize).saturating_sub(1)..)
}

fn skip_tags(bytes: &[u8]) -> Option<&[u8]> {
    let (count, mut rest) = varint(bytes)?;
    // Each takes two bytes at least, so that this ends.
    for _ in 0..count {
        (_, rest) = varint(rest)?;
        let (size, after) = varint(rest)?;
        rest = after.get(size as usize..)?;
    }
    Some(rest)
}

fn varint(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(5).enumerate() {
        value |= u32::from(byte & 0x7f) << (place * 7);
        if *byte < 0x80 {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::messages::{ApiKey, ProduceRequest, RequestHeader, TransactionalId};
    use kafka_protocol::protocol::{Encodable, HeaderVersion, StrBytes};

    use super::*;

    fn produce(
        version: i16,
        acks: i16,
        client: Option<&'static str>,
        transaction: bool,
    ) -> BytesMut {
        let mut out = BytesMut::new();
        RequestHeader::default()
            .with_request_api_key(ApiKey::Produce as i16)
            .with_request_api_version(version)
            .with_correlation_id(-7)
            .with_client_id(client.map(StrBytes::from_static_str))
            .encode(&mut out, ProduceRequest::header_version(version))
            .unwrap();
        let id = transaction.then(|| TransactionalId(StrBytes::from_static_str("t")));
        ProduceRequest::default()
            .with_acks(acks)
            .with_transactional_id(id)
            .encode(&mut out, version)
            .unwrap();
        out
    }

    #[test]
    fn a_produce_without_acks_is_known_in_every_version() {
        for version in 3..=13 {
            for client in [None, Some(""), Some("me")] {
                for (acks, transaction) in [(0, false), (1, false), (-1, true), (0, true)] {
                    let request = produce(version, acks, client, transaction);
                    let peeked = peek(&request).unwrap();
                    let wanted = Peeked {
                        api_key: 0,
                        version,
                        correlation_id: -7,
                        is_answered: acks != 0,
                    };
                    assert_eq!(peeked, wanted);
                }
            }
        }
    }

    #[test]
    fn whatever_comes_is_looked_at_without_harm() {
        let request = produce(9, 0, Some("me"), true);
        for cut in 0..request.len() {
            assert_eq!(peek(&request[..cut]).is_some(), cut >= 8);
        }
        let mut endless = vec![0, 0, 0, 9, 0, 0, 0, 1, 0xff, 0xff];
        endless.extend([0xff; 64]);
        assert!(peek(&endless).unwrap().is_answered);
    }
}
