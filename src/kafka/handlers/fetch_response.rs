//! The layout of a Fetch response, versions 4 to 18.
//!
//! It is written by hand because it carries records: the codec would copy them into one buffer.
//!
//! ```text
//! throttle time i32 | 7+: error i16, session id i32 | topics [
//!   to 12: name, 13+: id | partitions [
//!     index i32 | error i16 | high watermark i64 | last stable offset i64 | 5+: log start offset i64
//!     | aborted transactions [ producer id i64 | first offset i64 | 12+: tagged fields ] | 11+: preferred read replica i32 | records | 12+: tagged fields
//!   ] | 12+: tagged fields
//! ] | 12+: tagged fields
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::TopicName;
use uuid::Uuid;

use crate::kafka::chunks::{Chunks, ChunksBuilder};
use crate::record::AbortedTransaction;
use crate::types::ErrorCode;

/// From this version on, lengths are varints, one more than what they count, and structures end in tagged fields.
const FLEXIBLE_SINCE: i16 = 12;
/// From this version on, a topic is named by its id.
pub(super) const TOPIC_IDS_SINCE: i16 = 13;
/// The tagged field of a partition that names its leader.
const CURRENT_LEADER_TAG: u8 = 1;

/// What a fetch found.
pub(super) struct FetchAnswer {
    /// Of the fetch as a whole.
    pub(super) error: Option<ErrorCode>,
    /// 0: none.
    pub(super) session_id: i32,
    pub(super) topics: Vec<TopicAnswer>,
}

pub(super) struct TopicAnswer {
    /// Of these, the one that the version has is written.
    pub(super) name: TopicName,
    pub(super) id: Uuid,
    pub(super) partitions: Vec<PartitionAnswer>,
}

pub(super) struct PartitionAnswer {
    pub(super) index: i32,
    pub(super) error: Option<ErrorCode>,
    /// −1 where unknown, as the two after it.
    pub(super) high_watermark: i64,
    pub(super) last_stable_offset: i64,
    pub(super) log_start_offset: i64,
    /// Who leads, and its epoch, where that is news to the client.
    pub(super) leader: Option<(i32, i32)>,
    /// Transactions whose records are to be left out.
    pub(super) aborted: Vec<AbortedTransaction>,
    pub(super) records: Vec<Bytes>,
}

impl FetchAnswer {
    pub(super) fn refused(error: ErrorCode) -> FetchAnswer {
        FetchAnswer {
            error: Some(error),
            session_id: 0,
            topics: Vec::new(),
        }
    }

    /// The response as it goes on the wire, length included. `None` when it is too long for one.
    pub(super) fn encode(&self, version: i16, correlation_id: i32) -> Option<Chunks> {
        let flexible = version >= FLEXIBLE_SINCE;
        let mut chunks = ChunksBuilder::new();
        let out = chunks.fields();
        out.put_i32(correlation_id);
        if flexible {
            put_no_tags(out);
        }
        out.put_i32(0);
        if version >= 7 {
            out.put_i16(code(self.error));
            out.put_i32(self.session_id);
        }
        put_count(out, self.topics.len(), flexible)?;
        for topic in &self.topics {
            topic.encode(&mut chunks, version)?;
        }
        if flexible {
            put_no_tags(chunks.fields());
        }
        chunks.finish()
    }
}

impl TopicAnswer {
    fn encode(&self, chunks: &mut ChunksBuilder, version: i16) -> Option<()> {
        let flexible = version >= FLEXIBLE_SINCE;
        let out = chunks.fields();
        if version >= TOPIC_IDS_SINCE {
            out.put_slice(self.id.as_bytes());
        } else {
            if flexible {
                put_count(out, self.name.len(), flexible)?;
            } else {
                out.put_i16(i16::try_from(self.name.len()).ok()?);
            }
            out.put_slice(self.name.as_bytes());
        }
        put_count(out, self.partitions.len(), flexible)?;
        for partition in &self.partitions {
            partition.encode(chunks, version)?;
        }
        if flexible {
            put_no_tags(chunks.fields());
        }
        Some(())
    }
}

impl PartitionAnswer {
    /// Nothing known and nothing found.
    pub(super) fn empty(index: i32) -> PartitionAnswer {
        PartitionAnswer {
            index,
            error: None,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            leader: None,
            aborted: Vec::new(),
            records: Vec::new(),
        }
    }

    fn encode(&self, chunks: &mut ChunksBuilder, version: i16) -> Option<()> {
        let flexible = version >= FLEXIBLE_SINCE;
        let out = chunks.fields();
        out.put_i32(self.index);
        out.put_i16(code(self.error));
        out.put_i64(self.high_watermark);
        out.put_i64(self.last_stable_offset);
        if version >= 5 {
            out.put_i64(self.log_start_offset);
        }
        put_aborted(out, &self.aborted, flexible)?;
        if version >= 11 {
            out.put_i32(-1);
        }
        put_count(out, self.records.iter().map(Bytes::len).sum(), flexible)?;
        for piece in &self.records {
            chunks.put_bytes(piece);
        }
        if flexible {
            let out = chunks.fields();
            match self.leader {
                None => put_no_tags(out),
                Some((node, epoch)) => {
                    // One field: its tag, its size, and a structure without tagged fields of its own.
                    out.put_slice(&[1, CURRENT_LEADER_TAG, 9]);
                    out.put_i32(node);
                    out.put_i32(epoch);
                    put_no_tags(out);
                }
            }
        }
        Some(())
    }
}

fn put_aborted(out: &mut BytesMut, aborted: &[AbortedTransaction], flexible: bool) -> Option<()> {
    put_count(out, aborted.len(), flexible)?;
    // Clients go through it beside the records.
    let mut aborted: Vec<_> = aborted.iter().map(|a| (a.first, a.producer)).collect();
    aborted.sort_unstable();
    for (first, producer) in aborted {
        out.put_i64(producer.get());
        out.put_i64(first.to_wire());
        if flexible {
            put_no_tags(out);
        }
    }
    Some(())
}

fn code(error: Option<ErrorCode>) -> i16 {
    error.map_or(0, ErrorCode::code)
}

fn put_no_tags(out: &mut BytesMut) {
    out.put_u8(0);
}

/// The length of a list, or of bytes.
fn put_count(out: &mut BytesMut, count: usize, flexible: bool) -> Option<()> {
    let count = i32::try_from(count).ok()?;
    if !flexible {
        out.put_i32(count);
        return Some(());
    }
    let mut rest = count as u32 + 1;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
    Some(())
}

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use kafka_protocol::messages::{FetchResponse, ResponseHeader};
    use kafka_protocol::protocol::{Decodable, HeaderVersion, StrBytes};

    use super::*;
    use crate::types::{Offset, ProducerId};

    fn decode(mut wire: Bytes, version: i16) -> FetchResponse {
        assert_eq!(wire.get_i32() as usize, wire.len());
        let header =
            ResponseHeader::decode(&mut wire, FetchResponse::header_version(version)).unwrap();
        assert_eq!(header.correlation_id, 7);
        let response = FetchResponse::decode(&mut wire, version).unwrap();
        assert!(
            wire.is_empty(),
            "version {version} left {} bytes",
            wire.len()
        );
        response
    }

    fn aborted(producer: i64, first: u64) -> AbortedTransaction {
        AbortedTransaction {
            last: Offset::new(first + 3).unwrap(),
            first: Offset::new(first).unwrap(),
            producer: ProducerId::new(producer).unwrap(),
            stable: Offset::new(first + 4).unwrap(),
        }
    }

    #[test]
    fn the_codec_reads_every_version_that_is_served() {
        let large = Bytes::from(vec![5; 20_000]);
        let answer = FetchAnswer {
            error: None,
            session_id: 9,
            topics: vec![TopicAnswer {
                name: TopicName(StrBytes::from_static_str("orders")),
                id: Uuid::from_u128(77),
                partitions: vec![
                    PartitionAnswer {
                        high_watermark: 30,
                        last_stable_offset: 29,
                        log_start_offset: 4,
                        aborted: vec![aborted(9, 20), aborted(8, 5)],
                        records: vec![large.clone(), Bytes::from_static(b"x")],
                        ..PartitionAnswer::empty(0)
                    },
                    PartitionAnswer {
                        error: Some(ErrorCode::NotLeaderOrFollower),
                        leader: Some((3, 12)),
                        ..PartitionAnswer::empty(2)
                    },
                ],
            }],
        };
        for version in 4..=18 {
            let mut chunks = answer.encode(version, 7).unwrap();
            let response = decode(chunks.copy_to_bytes(chunks.remaining()), version);
            assert_eq!(response.error_code, 0);
            let topic = &response.responses[0];
            assert_eq!(response.session_id, if version >= 7 { 9 } else { 0 });
            if version >= TOPIC_IDS_SINCE {
                assert_eq!(topic.topic_id, Uuid::from_u128(77));
            } else {
                assert_eq!(topic.topic.as_str(), "orders");
            }
            let [full, refused] = &topic.partitions[..] else {
                panic!("{topic:?}");
            };
            assert_eq!(full.high_watermark, 30);
            assert_eq!(full.last_stable_offset, 29);
            assert_eq!(full.log_start_offset, if version >= 5 { 4 } else { -1 });
            let told = full.aborted_transactions.as_ref().unwrap();
            let told: Vec<_> = told
                .iter()
                .map(|a| (a.producer_id.0, a.first_offset))
                .collect();
            assert_eq!(told, [(8, 5), (9, 20)]);
            let records = full.records.as_ref().unwrap();
            assert_eq!(records[..large.len()], large);
            assert_eq!(records[large.len()..], b"x"[..]);
            assert_eq!(refused.partition_index, 2);
            assert_eq!(refused.error_code, 6);
            assert_eq!(refused.preferred_read_replica.0, -1);
            let leader = &refused.current_leader;
            let told = (leader.leader_id.0, leader.leader_epoch);
            assert_eq!(told, if version >= 12 { (3, 12) } else { (-1, -1) });
        }
    }

    #[test]
    fn a_refused_fetch_has_no_topics() {
        for version in 7..=18 {
            let mut chunks = FetchAnswer::refused(ErrorCode::FetchSessionIdNotFound)
                .encode(version, 7)
                .unwrap();
            let response = decode(chunks.copy_to_bytes(chunks.remaining()), version);
            assert_eq!(response.error_code, 70);
            assert!(response.responses.is_empty());
        }
    }
}
