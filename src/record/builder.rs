//! Making a batch.
//!
//! A record is written once, into the buffer that becomes the batch; without compression nothing is copied after that.
//! A batch goes through two steps, because a producer compresses it as soon as it is full but learns its sequence number
//! only when it is sent: [`BatchBuilder::seal`], then [`SealedBatch::stamp`].

use bytes::Bytes;
use thiserror::Error;

use super::batch::Batch;
use super::compression::{Compression, CompressionError};
use super::header::{
    BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, CONTROL, CRC_AT, CRC_FROM, EPOCH_AT, HEADER_LEN,
    LAST_OFFSET_DELTA_AT, LENGTH_END, MAGIC, MAGIC_AT, MAX_TIMESTAMP_AT, PRODUCER_EPOCH_AT,
    PRODUCER_ID_AT, RECORD_COUNT_AT, TRANSACTIONAL,
};
use super::records::Header;
use super::varint;
use crate::types::ProducerId;

/// The largest batch that can be built, in bytes before compression: its length field is an `i32`.
const MAX_BATCH_BYTES: usize = i32::MAX as usize;

/// Who produced a batch, and its place in that producer's sequence for the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerStamp {
    pub id: ProducerId,
    pub epoch: i16,
    /// The first record's sequence number.
    pub base_sequence: i32,
}

/// A record that cannot go into a batch.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AppendError {
    #[error("the batch would grow to {size} bytes and its format allows {MAX_BATCH_BYTES}")]
    TooLarge { size: usize },
}

/// A batch being filled.
#[derive(Debug)]
pub struct BatchBuilder {
    /// Room for the header, then the records.
    out: Vec<u8>,
    record_count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        BatchBuilder::new()
    }
}

impl BatchBuilder {
    pub fn new() -> BatchBuilder {
        BatchBuilder::with_capacity(HEADER_LEN)
    }

    /// `bytes`: the whole batch's expected size.
    pub fn with_capacity(bytes: usize) -> BatchBuilder {
        let mut out = Vec::with_capacity(bytes.max(HEADER_LEN));
        out.resize(HEADER_LEN, 0);
        BatchBuilder {
            out,
            record_count: 0,
            base_timestamp: -1,
            max_timestamp: -1,
        }
    }

    /// Adds a record; `timestamp` is in milliseconds since 1970. Returns the batch's size in bytes so far, before
    /// compression. After an error the batch is as it was.
    pub fn append(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
        timestamp: i64,
    ) -> Result<usize, AppendError> {
        let first = self.record_count == 0;
        let base_timestamp = if first {
            timestamp
        } else {
            self.base_timestamp
        };
        let timestamp_delta = timestamp.wrapping_sub(base_timestamp);
        let length = 1
            + varint::len(timestamp_delta)
            + varint::len(i64::from(self.record_count))
            + bytes_len(key)
            + bytes_len(value)
            + varint::len(headers.len() as i64)
            + headers
                .iter()
                .map(|(name, value)| bytes_len(Some(name.as_bytes())) + bytes_len(value.as_deref()))
                .sum::<usize>();
        let size = self
            .out
            .len()
            .saturating_add(varint::len(length as i64))
            .saturating_add(length);
        // With this the record count stays within an i32 too, as a record takes seven bytes at least.
        if size > MAX_BATCH_BYTES {
            return Err(AppendError::TooLarge { size });
        }
        let out = &mut self.out;
        varint::put(out, length as i64);
        out.push(0);
        varint::put(out, timestamp_delta);
        varint::put(out, i64::from(self.record_count));
        put_bytes(out, key);
        put_bytes(out, value);
        varint::put(out, headers.len() as i64);
        for (name, value) in headers {
            put_bytes(out, Some(name.as_bytes()));
            put_bytes(out, value.as_deref());
        }
        self.base_timestamp = base_timestamp;
        self.max_timestamp = if first {
            timestamp
        } else {
            self.max_timestamp.max(timestamp)
        };
        self.record_count += 1;
        Ok(size)
    }

    /// A control batch of one record: see [`super::control`].
    pub(super) fn control(
        key: &[u8],
        value: &[u8],
        headers: &[Header],
        timestamp: i64,
        producer: ProducerStamp,
    ) -> Bytes {
        let mut builder = BatchBuilder::new();
        // A few dozen bytes, far below the limit of a batch.
        let _ = builder.append(Some(key), Some(value), headers, timestamp);
        let mut out = builder.into_uncompressed();
        put_at(&mut out, CRC_FROM, &(TRANSACTIONAL | CONTROL).to_be_bytes());
        stamp(&mut out, Some(producer));
        out.into()
    }

    /// The most bytes that a record of these parts adds to a batch, whatever its timestamp and place.
    pub fn record_size_bound(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
    ) -> usize {
        let bytes = |bytes: Option<&[u8]>| varint::MAX_VARINT_LEN + bytes.map_or(0, <[u8]>::len);
        varint::MAX_VARINT_LEN
            + 1
            + varint::MAX_VARLONG_LEN
            + varint::MAX_VARINT_LEN
            + bytes(key)
            + bytes(value)
            + varint::MAX_VARINT_LEN
            + headers
                .iter()
                .map(|(name, value)| bytes(Some(name.as_bytes())) + bytes(value.as_deref()))
                .sum::<usize>()
    }

    /// The batch's size in bytes so far, before compression.
    pub fn size(&self) -> usize {
        self.out.len()
    }

    pub fn record_count(&self) -> i32 {
        self.record_count
    }

    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Compresses the records and writes all of the header but what [`SealedBatch::stamp`] adds. A batch without records
    /// can be sealed, but no broker takes it.
    pub fn seal(self, compression: Compression) -> Result<SealedBatch, CompressionError> {
        let record_count = self.record_count;
        let out = if compression == Compression::None {
            self.into_uncompressed()
        } else {
            let mut out = Vec::with_capacity(HEADER_LEN + self.out.len() / 2);
            out.resize(HEADER_LEN, 0);
            compression.compress(&self.out[HEADER_LEN..], &mut out)?;
            self.put_header(&mut out, compression);
            out
        };
        Ok(SealedBatch { out, record_count })
    }

    fn into_uncompressed(mut self) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.out);
        self.put_header(&mut out, Compression::None);
        out
    }

    /// All of the header but the producer's stamp and the CRC; `out` is as long as the batch.
    fn put_header(&self, out: &mut [u8], compression: Compression) {
        // Incompressible records can grow a little, but append() leaves the sum within an i32 for any real batch; a
        // batch of 2 GiB that grows further has a length that no reader takes.
        let length = (out.len() - LENGTH_END) as i32;
        put_at(out, 8, &length.to_be_bytes());
        put_at(out, EPOCH_AT, &(-1i32).to_be_bytes());
        put_at(out, MAGIC_AT, &MAGIC.to_be_bytes());
        put_at(out, CRC_FROM, &i16::from(compression.codec()).to_be_bytes());
        let last_offset_delta = self.record_count - 1;
        put_at(out, LAST_OFFSET_DELTA_AT, &last_offset_delta.to_be_bytes());
        put_at(out, BASE_TIMESTAMP_AT, &self.base_timestamp.to_be_bytes());
        put_at(out, MAX_TIMESTAMP_AT, &self.max_timestamp.to_be_bytes());
        put_at(out, RECORD_COUNT_AT, &self.record_count.to_be_bytes());
    }
}

/// A batch whose records are final. It lacks the producer's stamp and the CRC.
#[derive(Debug)]
pub struct SealedBatch {
    out: Vec<u8>,
    record_count: i32,
}

impl SealedBatch {
    /// The batch's size in bytes, as it will be sent.
    pub fn size(&self) -> usize {
        self.out.len()
    }

    pub fn record_count(&self) -> i32 {
        self.record_count
    }

    /// Makes it a batch of its producer's transaction.
    #[must_use]
    pub fn transactional(mut self) -> SealedBatch {
        self.out[CRC_FROM + 1] |= TRANSACTIONAL as u8;
        self
    }

    /// Writes the producer's stamp (`None`: not idempotent) and the CRC. Does not copy.
    pub fn stamp(mut self, producer: Option<ProducerStamp>) -> Bytes {
        stamp(&mut self.out, producer);
        self.out.into()
    }
}

/// A copy of `batch` with another producer's stamp and so another CRC: for a producer that was given a new id or epoch
/// while batches waited.
pub fn restamp_producer(batch: &Batch, producer: Option<ProducerStamp>) -> Bytes {
    let mut out = batch.bytes.to_vec();
    stamp(&mut out, producer);
    out.into()
}

/// `out` is a whole batch.
pub(super) fn stamp(out: &mut [u8], producer: Option<ProducerStamp>) {
    let (id, epoch, sequence) = match producer {
        Some(stamp) => (stamp.id.get(), stamp.epoch, stamp.base_sequence),
        None => (-1, -1, -1),
    };
    put_at(out, PRODUCER_ID_AT, &id.to_be_bytes());
    put_at(out, PRODUCER_EPOCH_AT, &epoch.to_be_bytes());
    put_at(out, BASE_SEQUENCE_AT, &sequence.to_be_bytes());
    let crc = crc32c::crc32c(&out[CRC_FROM..]);
    put_at(out, CRC_AT, &crc.to_be_bytes());
}

fn put_at(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn bytes_len(bytes: Option<&[u8]>) -> usize {
    match bytes {
        Some(bytes) => varint::len(bytes.len() as i64) + bytes.len(),
        None => 1,
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            varint::put(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
        None => varint::put(out, -1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::records;

    #[test]
    fn the_size_is_known_before_the_batch_is_sealed() {
        let headers = [("h".to_owned(), Some(Bytes::from_static(b"v")))];
        let mut builder = BatchBuilder::new();
        let mut size = builder.size();
        for (key, value, timestamp) in [
            (None, Some(&b"v"[..]), 5),
            (Some(&b"k"[..]), None, i64::MIN),
            (Some(&[7; 500][..]), Some(&[8; 70_000][..]), i64::MAX),
        ] {
            let bound = BatchBuilder::record_size_bound(key, value, &headers);
            let grown = builder.append(key, value, &headers, timestamp).unwrap();
            assert!(grown - size <= bound, "{} > {bound}", grown - size);
            assert_eq!(grown, builder.size());
            size = grown;
        }
        let sealed = builder.seal(Compression::None).unwrap();
        assert_eq!(sealed.size(), size);
        assert_eq!(sealed.stamp(None).len(), size);
    }

    #[test]
    fn a_new_stamp_leaves_the_records_alone() {
        let mut builder = BatchBuilder::new();
        builder.append(None, Some(b"v"), &[], 5).unwrap();
        let bytes = builder.seal(Compression::Zstd).unwrap().stamp(None);
        let old = Batch::decode(&bytes).unwrap();
        assert_eq!(old.header.producer_id, None);
        assert_eq!(old.header.base_sequence, -1);

        let stamp = ProducerStamp {
            id: ProducerId::new(9).unwrap(),
            epoch: 1,
            base_sequence: 42,
        };
        let new = Batch::decode(&restamp_producer(&old, Some(stamp))).unwrap();
        new.verify_crc().unwrap();
        assert_eq!(new.header.producer_id, Some(stamp.id));
        assert_eq!(new.header.producer_epoch, 1);
        assert_eq!(new.header.base_sequence, 42);
        let values = |batch: &Batch| -> Vec<_> {
            records(batch).unwrap().map(|r| r.unwrap().value).collect()
        };
        assert_eq!(values(&new), values(&old));
    }
}
