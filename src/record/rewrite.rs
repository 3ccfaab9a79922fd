//! Making a batch again from some of its records, or from those of several batches.
//!
//! Each record keeps its offset, its timestamp and every byte of its key, value and headers. A batch covers a range of
//! offsets, of which it need not hold each; it may hold none at all and still say what lies between its neighbours.

use bytes::Bytes;

use super::batch::Batch;
use super::builder::{ProducerStamp, stamp};
use super::compression::{Compression, CompressionError, MAX_EXPANDED_BYTES};
use super::header::{
    BASE_TIMESTAMP_AT, CONTROL, CRC_AT, CRC_FROM, DELETE_HORIZON, EPOCH_AT, HEADER_LEN,
    LAST_OFFSET_DELTA_AT, LENGTH_END, MAGIC, MAGIC_AT, MAX_TIMESTAMP_AT, RECORD_COUNT_AT,
    TRANSACTIONAL,
};
use super::records::RecordError;
use super::varint;
use crate::types::{LeaderEpoch, Offset};

/// A record as it stands in its batch, taken apart no further than compaction needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    pub key: Option<Bytes>,
    /// Whether it has no value.
    pub is_tombstone: bool,
    attributes: u8,
    /// Key, value and headers, verbatim.
    rest: Bytes,
}

impl RawRecord {
    /// About what it takes in a batch, before compression.
    pub fn size(&self) -> usize {
        self.rest.len() + 2 * varint::MAX_VARINT_LEN + varint::MAX_VARLONG_LEN + 1
    }
}

impl RawRecord {
    /// A copy of its own, so that a few records do not keep the batches alive that they came in. Without its key, which stands
    /// in the copy.
    pub fn detached(self) -> RawRecord {
        RawRecord {
            key: None,
            rest: Bytes::copy_from_slice(&self.rest),
            ..self
        }
    }
}

/// The records of a batch, expanded to at most [`MAX_EXPANDED_BYTES`], in order. Timestamps are the records' own: no batch
/// here has another kind.
pub fn raw_records(batch: &Batch) -> Result<Vec<RawRecord>, RecordError> {
    let header = &batch.header;
    let body = header
        .compression()?
        .expand(&batch.body(), MAX_EXPANDED_BYTES)
        .map_err(|source| RecordError::Expand {
            base_offset: header.base_offset,
            source,
        })?;
    let mut found = Vec::new();
    let mut at = 0;
    for index in 0..header.record_count {
        let read = raw_record(&body, at, batch).map_err(|what| RecordError::Malformed {
            base_offset: header.base_offset,
            index,
            record_count: header.record_count,
            what,
        })?;
        at = read.1;
        found.push(read.0);
    }
    Ok(found)
}

/// The record that starts at `at` in the body, and where it ends.
fn raw_record(body: &Bytes, at: usize, batch: &Batch) -> Result<(RawRecord, usize), &'static str> {
    let mut rest = &body[at..];
    let length = varint::take_int(&mut rest)
        .and_then(|length| usize::try_from(length).ok())
        .ok_or("its length is no length")?;
    let mut rest = rest
        .get(..length)
        .ok_or("it is longer than what is left of the batch")?;
    let end = rest.as_ptr() as usize - body.as_ptr() as usize + length;
    let (&attributes, after) = rest.split_first().ok_or("it is empty")?;
    rest = after;
    let timestamp_delta = varint::take_long(&mut rest).ok_or("its timestamp is cut off")?;
    let offset_delta = varint::take_int(&mut rest).ok_or("its offset is cut off")?;
    if offset_delta < 0 || offset_delta > batch.header.last_offset_delta {
        return Err("its offset lies outside the batch");
    }
    let tail = end - rest.len();
    let key_length = varint::take_int(&mut rest).ok_or("a length is cut off")?;
    let key = match usize::try_from(key_length) {
        Ok(length) => {
            let start = end - rest.len();
            rest = rest
                .get(length..)
                .ok_or("a field is longer than its record")?;
            Some(body.slice(start..start + length))
        }
        Err(_) => None,
    };
    let value_length = varint::take_int(&mut rest).ok_or("a length is cut off")?;
    let header = &batch.header;
    let record = RawRecord {
        offset: header.base_offset.wrapping_add(i64::from(offset_delta)),
        timestamp: header.base_timestamp.wrapping_add(timestamp_delta),
        key,
        is_tombstone: value_length < 0,
        attributes,
        rest: body.slice(tail..end),
    };
    Ok((record, end))
}

/// A copy of a batch of a transaction that is committed: it needs its marker no longer.
pub fn without_transaction(batch: &Batch) -> Bytes {
    let mut out = batch.bytes.to_vec();
    out[CRC_FROM + 1] &= !(TRANSACTIONAL as u8);
    let crc = crc32c::crc32c(&out[CRC_FROM..]);
    out[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
    out.into()
}

/// A copy of a marker that says when it may go: at `horizon`, in milliseconds since 1970. `None` where it cannot be taken apart.
pub fn marker_until(batch: &Batch, horizon: i64) -> Option<Bytes> {
    let header = &batch.header;
    let base = Offset::from_wire(header.base_offset)?;
    let end = Offset::from_wire(header.next_offset())?;
    let epoch = LeaderEpoch::from_wire(header.partition_leader_epoch)?;
    let producer = ProducerStamp {
        id: header.producer_id?,
        epoch: header.producer_epoch,
        base_sequence: header.base_sequence,
    };
    let mut rewrite = Rewrite::new(base, Some(horizon));
    for record in raw_records(batch).ok()? {
        rewrite.push(&record);
    }
    let sealed = rewrite.seal(end, epoch, Compression::None, Some(producer));
    let mut out = sealed.ok()?.to_vec();
    out[CRC_FROM + 1] |= (TRANSACTIONAL | CONTROL) as u8;
    let crc = crc32c::crc32c(&out[CRC_FROM..]);
    out[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
    Some(out.into())
}

/// A batch that is made again.
#[derive(Debug)]
pub struct Rewrite {
    base: Offset,
    /// Room for the header, then the records.
    out: Vec<u8>,
    record_count: i32,
    base_timestamp: Option<i64>,
    max_timestamp: i64,
    horizon: Option<i64>,
}

impl Rewrite {
    /// Of records from `base` on. `horizon`: when tombstones in it may go, in milliseconds since 1970.
    pub fn new(base: Offset, horizon: Option<i64>) -> Rewrite {
        Rewrite {
            base,
            out: vec![0; HEADER_LEN],
            record_count: 0,
            base_timestamp: horizon,
            max_timestamp: -1,
            horizon,
        }
    }

    /// Adds a record. Records come in the order of their offsets, all of which are at or above the base, and less than 2³¹
    /// above it.
    pub fn push(&mut self, record: &RawRecord) {
        let base_timestamp = *self.base_timestamp.get_or_insert(record.timestamp);
        let timestamp_delta = record.timestamp.wrapping_sub(base_timestamp);
        let offset_delta = record.offset.wrapping_sub(self.base.to_wire());
        let length =
            1 + varint::len(timestamp_delta) + varint::len(offset_delta) + record.rest.len();
        let out = &mut self.out;
        varint::put(out, length as i64);
        out.push(record.attributes);
        varint::put(out, timestamp_delta);
        varint::put(out, offset_delta);
        out.extend_from_slice(&record.rest);
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        self.record_count += 1;
    }

    /// The whole batch, which covers the offsets up to `end`, exclusive, in the place of one that the leader of `epoch`
    /// appended. `producer`: whose it is, where that still has to be known.
    pub fn seal(
        self,
        end: Offset,
        epoch: LeaderEpoch,
        compression: Compression,
        producer: Option<ProducerStamp>,
    ) -> Result<Bytes, CompressionError> {
        let mut out = if compression == Compression::None {
            self.out
        } else {
            let mut out = vec![0; HEADER_LEN];
            compression.compress(&self.out[HEADER_LEN..], &mut out)?;
            out
        };
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        let last_offset_delta = end.to_wire() - self.base.to_wire() - 1;
        let mut attributes = i16::from(compression.codec());
        if self.horizon.is_some() {
            attributes |= DELETE_HORIZON;
        }
        put(0, &self.base.to_wire().to_be_bytes());
        put(EPOCH_AT, &epoch.to_wire().to_be_bytes());
        put(MAGIC_AT, &MAGIC.to_be_bytes());
        put(CRC_FROM, &attributes.to_be_bytes());
        put(
            LAST_OFFSET_DELTA_AT,
            &(last_offset_delta as i32).to_be_bytes(),
        );
        put(
            BASE_TIMESTAMP_AT,
            &self.base_timestamp.unwrap_or(-1).to_be_bytes(),
        );
        put(MAX_TIMESTAMP_AT, &self.max_timestamp.to_be_bytes());
        put(RECORD_COUNT_AT, &self.record_count.to_be_bytes());
        let length = (out.len() - LENGTH_END) as i32;
        out[8..12].copy_from_slice(&length.to_be_bytes());
        stamp(&mut out, producer);
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, STAMP_LEN, records, stamped_prefix};
    use crate::types::ProducerId;

    fn original(compression: Compression) -> Batch {
        let mut builder = BatchBuilder::new();
        let headers = [("name".to_owned(), Some(Bytes::from_static(b"x")))];
        for (i, value) in [Some(&b"one"[..]), None, Some(b"three"), Some(b"")]
            .into_iter()
            .enumerate()
        {
            let key = format!("key {i}");
            let key = Some(key.as_bytes()).filter(|_| i != 3);
            builder
                .append(key, value, &headers, 5000 - 7 * i as i64)
                .unwrap();
        }
        let sealed = builder.seal(compression).unwrap().stamp(None);
        let batch = Batch::decode(&sealed).unwrap();
        let prefix = stamped_prefix(&batch, offset(100), epoch(3));
        let stamped = [&prefix[..], &batch.bytes[STAMP_LEN..]].concat();
        Batch::decode(&stamped.into()).unwrap()
    }

    fn offset(at: u64) -> Offset {
        Offset::new(at).unwrap()
    }

    fn epoch(epoch: u32) -> LeaderEpoch {
        LeaderEpoch::new(epoch).unwrap()
    }

    #[test]
    fn what_is_kept_is_as_it_was() {
        for compression in [Compression::None, Compression::Zstd, Compression::Gzip] {
            for horizon in [None, Some(9_000_000)] {
                let batch = original(compression);
                let whole: Vec<_> = records(&batch).unwrap().map(Result::unwrap).collect();
                let raw = raw_records(&batch).unwrap();
                let tombstones: Vec<bool> = raw.iter().map(|record| record.is_tombstone).collect();
                assert_eq!(tombstones, [false, true, false, false]);
                assert_eq!(raw[3].key, None);

                let mut rewrite = Rewrite::new(offset(90), horizon);
                rewrite.push(&raw[1]);
                rewrite.push(&raw[3]);
                let stamp = ProducerStamp {
                    id: ProducerId::new(7).unwrap(),
                    epoch: 1,
                    base_sequence: 12,
                };
                let bytes = rewrite
                    .seal(offset(110), epoch(3), compression, Some(stamp))
                    .unwrap();
                let again = Batch::decode(&bytes).unwrap();
                again.verify_crc().unwrap();
                assert_eq!(again.bytes.len(), bytes.len());
                assert_eq!(again.header.base_offset, 90);
                assert_eq!(again.header.next_offset(), 110);
                assert_eq!(again.header.partition_leader_epoch, 3);
                assert_eq!(again.header.delete_horizon(), horizon);
                assert_eq!(again.header.base_sequence, 12);
                assert_eq!(again.header.max_timestamp, 5000 - 7);
                let kept: Vec<_> = records(&again).unwrap().map(Result::unwrap).collect();
                assert_eq!(kept, [whole[1].clone(), whole[3].clone()]);
            }
        }
    }

    #[test]
    fn a_batch_of_nothing_covers_its_offsets() {
        let bytes = Rewrite::new(offset(5), None)
            .seal(offset(9), epoch(1), Compression::None, None)
            .unwrap();
        let batch = Batch::decode(&bytes).unwrap();
        batch.verify_crc().unwrap();
        assert_eq!(
            (batch.header.base_offset, batch.header.next_offset()),
            (5, 9)
        );
        assert_eq!(records(&batch).unwrap().count(), 0);
    }
}
