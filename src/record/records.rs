//! The records inside a batch.
//!
//! Each record is, with every integer a zigzag varint except the attributes:
//!
//! ```text
//! length of what follows · attributes (1 byte, 0) · timestamp delta · offset delta
//! · key length (−1: none) · key · value length (−1: none) · value
//! · header count · for each: name length · name · value length (−1: none) · value
//! ```

use bytes::Bytes;
use thiserror::Error;

use super::batch::Batch;
use super::compression::{CompressionError, MAX_EXPANDED_BYTES};
use super::header::{BatchError, TimestampType};
use super::varint;

/// A record header: a name and a value that may be absent.
pub type Header = (String, Option<Bytes>);

/// One record. Key, value and header values share the batch's buffer, or the one that it was expanded into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    /// Milliseconds since 1970; the batch's max timestamp where it says that it was appended then.
    pub timestamp: i64,
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub value: Option<Bytes>,
    /// In the producer's order; a name may occur twice. A name that is not UTF-8 has its bad bytes replaced by U+FFFD, so
    /// that one odd header does not make its record unreadable.
    pub headers: Vec<Header>,
}

/// Why a batch's records could not be read.
#[derive(Debug, Error)]
pub enum RecordError {
    #[error(transparent)]
    Codec(#[from] BatchError),
    #[error("the batch at offset {base_offset} cannot be expanded")]
    Expand {
        base_offset: i64,
        #[source]
        source: CompressionError,
    },
    #[error(
        "record {index} of the {record_count} in the batch at offset {base_offset} is malformed: {what}"
    )]
    Malformed {
        base_offset: i64,
        index: i32,
        record_count: i32,
        what: &'static str,
    },
}

/// The records of `batch`, expanded to at most [`MAX_EXPANDED_BYTES`]. The CRC is the caller's to check.
pub fn records(batch: &Batch) -> Result<Records, RecordError> {
    records_within(batch, MAX_EXPANDED_BYTES)
}

/// The records of `batch`, expanded to at most `max_expanded_bytes`.
pub fn records_within(batch: &Batch, max_expanded_bytes: usize) -> Result<Records, RecordError> {
    let header = &batch.header;
    let body = header
        .compression()?
        .expand(&batch.body(), max_expanded_bytes)
        .map_err(|source| RecordError::Expand {
            base_offset: header.base_offset,
            source,
        })?;
    Ok(Records {
        body,
        at: 0,
        next: 0,
        record_count: header.record_count,
        base_offset: header.base_offset,
        last_offset_delta: header.last_offset_delta,
        base_timestamp: header.base_timestamp,
        append_time: match header.timestamp_type() {
            TimestampType::CreateTime => None,
            TimestampType::LogAppendTime => Some(header.max_timestamp),
        },
    })
}

/// Walks over a batch's records in offset order. Ends after the first error.
#[derive(Debug)]
pub struct Records {
    /// The records, expanded.
    body: Bytes,
    /// Where in `body` the next record starts.
    at: usize,
    /// How many were given out.
    next: i32,
    record_count: i32,
    base_offset: i64,
    last_offset_delta: i32,
    base_timestamp: i64,
    append_time: Option<i64>,
}

impl Records {
    fn malformed(&self, what: &'static str) -> RecordError {
        RecordError::Malformed {
            base_offset: self.base_offset,
            index: self.next,
            record_count: self.record_count,
            what,
        }
    }

    fn read(&mut self) -> Result<Record, &'static str> {
        let mut rest = &self.body[self.at..];
        let length = varint::take_int(&mut rest)
            .and_then(|length| usize::try_from(length).ok())
            .ok_or("its length is no length")?;
        let record = rest
            .get(..length)
            .ok_or("it is longer than what is left of the batch")?;
        let end = self.body.len() - rest.len() + length;

        let mut rest = record;
        // The attributes: no bit of them has a meaning.
        rest = rest.get(1..).ok_or("it is empty")?;
        let timestamp_delta = varint::take_long(&mut rest).ok_or("its timestamp is cut off")?;
        let offset_delta = varint::take_int(&mut rest).ok_or("its offset is cut off")?;
        if offset_delta < 0 || offset_delta > self.last_offset_delta {
            return Err("its offset lies outside the batch");
        }
        let key = self.take_bytes(&mut rest, end)?;
        let value = self.take_bytes(&mut rest, end)?;
        let header_count = varint::take_int(&mut rest)
            .and_then(|count| usize::try_from(count).ok())
            .ok_or("its header count is no count")?;
        // A header takes two bytes at least, so this is checked before anything is allocated for it.
        if header_count > rest.len() / 2 {
            return Err("it claims more headers than it can hold");
        }
        let mut headers = Vec::with_capacity(header_count);
        for _ in 0..header_count {
            let name = self
                .take_bytes(&mut rest, end)?
                .ok_or("a header has no name")?;
            let name = String::from_utf8_lossy(&name).into_owned();
            headers.push((name, self.take_bytes(&mut rest, end)?));
        }
        if !rest.is_empty() {
            return Err("something follows its last header");
        }
        self.at = end;
        Ok(Record {
            offset: self.base_offset.wrapping_add(i64::from(offset_delta)),
            timestamp: self
                .append_time
                .unwrap_or(self.base_timestamp.wrapping_add(timestamp_delta)),
            key,
            value,
            headers,
        })
    }

    /// Takes a length and as many bytes off `rest`, which is the part of the body that ends at `end`.
    fn take_bytes(&self, rest: &mut &[u8], end: usize) -> Result<Option<Bytes>, &'static str> {
        let length = varint::take_int(rest).ok_or("a length is cut off")?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| "a length is negative")?;
        let after = rest
            .get(length..)
            .ok_or("a field is longer than its record")?;
        let start = end - rest.len();
        *rest = after;
        Ok(Some(self.body.slice(start..start + length)))
    }
}

impl Iterator for Records {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.record_count {
            if self.at >= self.body.len() {
                return None;
            }
            let error = self.malformed("bytes follow the last record");
            self.at = self.body.len();
            return Some(Err(error));
        }
        match self.read() {
            Ok(record) => {
                self.next += 1;
                Some(Ok(record))
            }
            Err(what) => {
                let error = self.malformed(what);
                self.next = self.record_count;
                self.at = self.body.len();
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::indexmap::IndexMap;
    use kafka_protocol::protocol::StrBytes;
    use kafka_protocol::records as reference;
    use proptest::prelude::*;

    use super::*;
    use crate::record::{
        BatchBuilder, Compression, HEADER_LEN, Limits, ProducerStamp, check_produced,
    };
    use crate::types::ProducerId;

    fn read(batch: &Bytes) -> Result<Vec<Record>, RecordError> {
        records(&Batch::decode(batch)?)?.collect()
    }

    fn build(given: &[Record], codec: Compression) -> Bytes {
        let mut builder = BatchBuilder::new();
        for record in given {
            builder
                .append(
                    record.key.as_deref(),
                    record.value.as_deref(),
                    &record.headers,
                    record.timestamp,
                )
                .unwrap();
        }
        builder.seal(codec).unwrap().stamp(Some(ProducerStamp {
            id: ProducerId::new(77).unwrap(),
            epoch: 3,
            base_sequence: 1000,
        }))
    }

    fn ours() -> Vec<Record> {
        vec![
            Record {
                offset: 0,
                timestamp: 1_700_000_000_000,
                key: Some(Bytes::from_static(b"key")),
                value: Some(Bytes::from_static(b"value")),
                headers: vec![
                    ("a".into(), Some(Bytes::from_static(b"1"))),
                    ("b".into(), None),
                ],
            },
            Record {
                offset: 1,
                timestamp: 1_699_999_999_000,
                key: None,
                value: None,
                headers: vec![],
            },
            Record {
                offset: 2,
                timestamp: 1_700_000_000_500,
                key: Some(Bytes::new()),
                value: Some(vec![b'x'; 300].into()),
                headers: vec![],
            },
        ]
    }

    fn theirs() -> Vec<reference::Record> {
        ours()
            .into_iter()
            .map(|record| reference::Record {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: -1,
                producer_id: 77,
                producer_epoch: 3,
                timestamp_type: reference::TimestampType::Creation,
                offset: record.offset,
                sequence: 1000 + record.offset as i32,
                timestamp: record.timestamp,
                key: record.key,
                value: record.value,
                headers: record
                    .headers
                    .into_iter()
                    .map(|(name, value)| (StrBytes::from_string(name), value))
                    .collect::<IndexMap<_, _>>(),
            })
            .collect()
    }

    #[test]
    fn a_batch_of_another_implementation_is_read() {
        let mut out = bytes::BytesMut::new();
        let options = reference::RecordEncodeOptions {
            version: 2,
            compression: reference::Compression::None,
        };
        reference::RecordBatchEncoder::encode(&mut out, &theirs(), &options).unwrap();
        let batch = out.freeze();
        let limits = Limits {
            max_batch_bytes: 10_000,
        };
        let checked = check_produced(&batch, &limits).unwrap();
        assert_eq!(checked.len(), 1);
        assert_eq!(checked[0].header.producer_id, ProducerId::new(77));
        assert_eq!(checked[0].header.producer_epoch, 3);
        assert_eq!(checked[0].header.base_sequence, 1000);
        assert_eq!(read(&batch).unwrap(), ours());
    }

    #[test]
    fn another_implementation_reads_our_batch() {
        let batch = build(&ours(), Compression::None);
        let set = reference::RecordBatchDecoder::decode(&mut batch.clone()).unwrap();
        assert_eq!(set.version, 2);
        assert_eq!(set.records, theirs());
    }

    #[test]
    fn keys_and_values_share_the_batch() {
        let batch = build(&ours(), Compression::None);
        let value = read(&batch).unwrap()[2].value.clone().unwrap();
        assert!(batch.as_ptr_range().contains(&value.as_ptr()));
    }

    #[test]
    fn a_record_that_lies_is_named() {
        let good = build(&ours(), Compression::None);
        // The first record's length, and a batch that claims a record more than it has.
        for (at, byte, index) in [(HEADER_LEN, 0xff, 0), (60, 4, 3)] {
            let mut bad = good.to_vec();
            bad[at] = byte;
            match read(&bad.into()) {
                Err(RecordError::Malformed { index: found, .. }) => assert_eq!(found, index),
                other => panic!("{other:?}"),
            }
        }
        let mut fewer = good.to_vec();
        fewer[60] = 2;
        assert!(matches!(
            read(&fewer.into()),
            Err(RecordError::Malformed {
                what: "bytes follow the last record",
                ..
            })
        ));
    }

    #[test]
    fn headers_are_not_allocated_by_a_count_that_lies() {
        let record = Record {
            headers: vec![],
            ..ours().remove(1)
        };
        let mut batch = build(&[record], Compression::None).to_vec();
        // The record's last byte is its header count.
        if let Some(count) = batch.last_mut() {
            *count = 0x7e;
        }
        match read(&batch.into()) {
            Err(RecordError::Malformed { what, .. }) => {
                assert_eq!(what, "it claims more headers than it can hold");
            }
            other => panic!("{other:?}"),
        }
    }

    fn any_bytes(max: usize) -> impl Strategy<Value = Option<Bytes>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from))
    }

    fn any_records() -> impl Strategy<Value = Vec<Record>> {
        let headers = proptest::collection::vec(("\\PC{0,6}", any_bytes(8)), 0..3);
        let record = (any::<i64>(), any_bytes(40), any_bytes(3000), headers);
        proptest::collection::vec(record, 1..20).prop_map(|records| {
            records
                .into_iter()
                .enumerate()
                .map(|(offset, (timestamp, key, value, headers))| Record {
                    offset: offset as i64,
                    timestamp,
                    key,
                    value,
                    headers,
                })
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn records_come_back_from_every_codec(given in any_records()) {
            let limits = Limits { max_batch_bytes: 1 << 20 };
            for codec in Compression::ALL {
                let batch = build(&given, codec);
                let checked = check_produced(&batch, &limits).unwrap();
                prop_assert_eq!(checked[0].header.compression(), Ok(codec));
                prop_assert_eq!(read(&batch).unwrap(), given.clone());
            }
        }

        #[test]
        fn damaged_records_are_an_error_and_no_panic(
            given in any_records(),
            codec in 0..5u8,
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut batch = build(&given, Compression::from_codec(codec).unwrap()).to_vec();
            for (at, byte) in damage {
                let at = at.index(batch.len());
                batch[at] = byte;
            }
            // No CRC check in between, so that the damage reaches the decoder.
            if let Ok(batch) = Batch::decode(&batch.into())
                && let Ok(records) = records_within(&batch, 1 << 20)
            {
                let _ = records.count();
            }
        }
    }
}
