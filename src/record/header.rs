//! The header of a record batch, format 2.
//!
//! All integers are big-endian. The CRC is CRC-32**C** and covers everything from the attributes to the end of the batch,
//! so the first 21 bytes may be changed without touching it; a leader stamps the first 16.
//!
//! ```text
//! offset  size  field
//!      0     8  base offset              stamped by the leader
//!      8     4  batch length             bytes after this field: the batch's size − 12
//!     12     4  partition leader epoch   stamped by the leader; a producer writes −1
//!     16     1  magic                    2
//!     17     4  CRC-32C                  of bytes 21 and on
//!     21     2  attributes               bits 0-2 codec, 3 timestamp type, 4 transactional, 5 control, 6 delete horizon
//!     23     4  last offset delta        last record's offset − base offset
//!     27     8  base timestamp           ms; the records' timestamps are deltas from it
//!     35     8  max timestamp            ms
//!     43     8  producer id              −1: none
//!     51     2  producer epoch           −1: none
//!     53     4  base sequence            −1: none
//!     57     4  record count
//!     61        records, compressed as one block where the codec is not 0
//! ```

use thiserror::Error;

use super::compression::Compression;
use crate::types::{ErrorCode, ProducerId};

/// The header's size in bytes.
pub const HEADER_LEN: usize = 61;
/// The only batch format that this broker takes.
pub const MAGIC: i8 = 2;

/// Where the batch length's own field ends: the length counts what follows.
pub(super) const LENGTH_END: usize = 12;
pub(super) const EPOCH_AT: usize = 12;
pub(super) const MAGIC_AT: usize = 16;
pub(super) const CRC_AT: usize = 17;
/// The first byte that the CRC covers.
pub(super) const CRC_FROM: usize = 21;
pub(super) const LAST_OFFSET_DELTA_AT: usize = 23;
pub(super) const BASE_TIMESTAMP_AT: usize = 27;
pub(super) const MAX_TIMESTAMP_AT: usize = 35;
pub(super) const PRODUCER_ID_AT: usize = 43;
pub(super) const PRODUCER_EPOCH_AT: usize = 51;
pub(super) const BASE_SEQUENCE_AT: usize = 53;
pub(super) const RECORD_COUNT_AT: usize = 57;

pub(super) const CODEC_MASK: i16 = 0b111;
const LOG_APPEND_TIME: i16 = 1 << 3;
pub(super) const TRANSACTIONAL: i16 = 1 << 4;
pub(super) const CONTROL: i16 = 1 << 5;
pub(super) const DELETE_HORIZON: i16 = 1 << 6;

/// Why bytes are not a record batch that may be appended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BatchError {
    #[error("there is no record batch; a produce request carries at least one for each partition")]
    Empty,
    #[error("the record batch needs {needed} bytes and only {have} are left")]
    Truncated { needed: usize, have: usize },
    #[error("the record batch claims a length of {length}; a header alone takes {}", HEADER_LEN - LENGTH_END)]
    ImpossibleLength { length: i32 },
    #[error(
        "the record batch has format {magic} and only format 2 is supported; use a client of Kafka 0.11 or later"
    )]
    UnsupportedMagic { magic: i8 },
    #[error(
        "the record batch has CRC-32C {found:#010x} and its bytes give {computed:#010x}: it was damaged on its way"
    )]
    CrcMismatch { found: u32, computed: u32 },
    #[error(
        "the record batch is compressed with codec {codec}; 0 none, 1 gzip, 2 snappy, 3 lz4 and 4 zstd are supported"
    )]
    UnknownCodec { codec: u8 },
    #[error(
        "the record batch has {size} bytes and max.message.bytes is {max}; send smaller batches or raise it"
    )]
    TooLarge { size: usize, max: usize },
    #[error("a client cannot write control batches")]
    Control,
    #[error(
        "the record batch is transactional and names no producer id; get one with InitProducerId"
    )]
    TransactionalWithoutProducer,
    #[error(
        "the record batch claims {record_count} records and a last offset delta of {last_offset_delta}"
    )]
    InconsistentCounts {
        record_count: i32,
        last_offset_delta: i32,
    },
    #[error("record {index} of the batch's {record_count} does not fit the bytes that are there")]
    MisplacedRecord { index: i32, record_count: i32 },
    #[error(
        "the record batch of producer {producer_id} has epoch {epoch} and sequence {sequence}; neither may be negative"
    )]
    InvalidSequence {
        producer_id: ProducerId,
        epoch: i16,
        sequence: i32,
    },
    #[error("a producer cannot set the timestamp type to log append time")]
    LogAppendTime,
}

impl BatchError {
    /// What Kafka answers to a producer that sends such a batch.
    pub const fn error_code(&self) -> ErrorCode {
        match self {
            BatchError::UnsupportedMagic { .. } => ErrorCode::UnsupportedForMessageFormat,
            BatchError::Truncated { .. }
            | BatchError::ImpossibleLength { .. }
            | BatchError::CrcMismatch { .. } => ErrorCode::CorruptMessage,
            BatchError::UnknownCodec { .. } => ErrorCode::UnsupportedCompressionType,
            BatchError::TooLarge { .. } => ErrorCode::MessageTooLarge,
            BatchError::LogAppendTime => ErrorCode::InvalidTimestamp,
            BatchError::Empty
            | BatchError::Control
            | BatchError::TransactionalWithoutProducer
            | BatchError::InconsistentCounts { .. }
            | BatchError::MisplacedRecord { .. }
            | BatchError::InvalidSequence { .. } => ErrorCode::InvalidRecord,
        }
    }
}

/// What a batch's timestamps mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// Each record has the time that its producer gave it.
    CreateTime,
    /// Every record has the batch's max timestamp: the time of the append.
    LogAppendTime,
}

/// A batch's header as it stands on the wire; see the drawing at the top of this file. Integers that can be absent or
/// wrong there are plain integers here: [`check_produced`](super::check_produced) judges them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The first record's offset: whatever the producer wrote, until a leader has stamped it.
    pub base_offset: i64,
    /// Bytes after the length field: at least 49. [`BatchHeader::size`] is the whole batch.
    pub batch_length: i32,
    /// The epoch of the leader that appended it; −1 before that.
    pub partition_leader_epoch: i32,
    /// Always [`MAGIC`].
    pub magic: i8,
    /// CRC-32C over the attributes and all that follows.
    pub crc: u32,
    /// The raw bits; the methods below name them.
    pub attributes: i16,
    /// The last record's offset − the first one's.
    pub last_offset_delta: i32,
    /// Milliseconds since 1970.
    pub base_timestamp: i64,
    /// Milliseconds since 1970.
    pub max_timestamp: i64,
    /// `None` for any negative number: a producer that is not idempotent.
    pub producer_id: Option<ProducerId>,
    /// −1 where there is no producer id.
    pub producer_epoch: i16,
    /// The first record's sequence number; −1 where there is no producer id.
    pub base_sequence: i32,
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header at the start of `input`, which may end before the batch does. The magic is judged before
    /// anything that only format 2 has.
    pub fn decode(input: &[u8]) -> Result<BatchHeader, BatchError> {
        let truncated = BatchError::Truncated {
            needed: HEADER_LEN,
            have: input.len(),
        };
        let Some(&magic) = input.get(MAGIC_AT) else {
            return Err(truncated);
        };
        let magic = magic as i8;
        if magic != MAGIC {
            return Err(BatchError::UnsupportedMagic { magic });
        }
        let Some(input) = input.first_chunk::<HEADER_LEN>() else {
            return Err(truncated);
        };
        let batch_length = i32_at(input, 8);
        if (batch_length as i64) < (HEADER_LEN - LENGTH_END) as i64 {
            return Err(BatchError::ImpossibleLength {
                length: batch_length,
            });
        }
        Ok(BatchHeader {
            base_offset: i64_at(input, 0),
            batch_length,
            partition_leader_epoch: i32_at(input, EPOCH_AT),
            magic,
            crc: i32_at(input, CRC_AT) as u32,
            attributes: i16_at(input, CRC_FROM),
            last_offset_delta: i32_at(input, LAST_OFFSET_DELTA_AT),
            base_timestamp: i64_at(input, BASE_TIMESTAMP_AT),
            max_timestamp: i64_at(input, MAX_TIMESTAMP_AT),
            producer_id: ProducerId::new(i64_at(input, PRODUCER_ID_AT)),
            producer_epoch: i16_at(input, PRODUCER_EPOCH_AT),
            base_sequence: i32_at(input, BASE_SEQUENCE_AT),
            record_count: i32_at(input, RECORD_COUNT_AT),
        })
    }

    /// The whole batch in bytes, header included.
    pub const fn size(&self) -> usize {
        // decode() has refused lengths below 49, so this cannot wrap.
        LENGTH_END + self.batch_length as usize
    }

    /// How the records are compressed; the codec's number where it is none that we know.
    pub const fn compression(&self) -> Result<Compression, BatchError> {
        let codec = (self.attributes & CODEC_MASK) as u8;
        match Compression::from_codec(codec) {
            Some(compression) => Ok(compression),
            None => Err(BatchError::UnknownCodec { codec }),
        }
    }

    pub const fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    pub const fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub const fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Milliseconds since 1970: when the batch's tombstones may go. `None` in a batch that no compaction has seen, or that has
    /// none. It stands where the base timestamp does, from which the records' timestamps are deltas as ever.
    pub const fn delete_horizon(&self) -> Option<i64> {
        if self.attributes & DELETE_HORIZON == 0 {
            None
        } else {
            Some(self.base_timestamp)
        }
    }

    /// The offset after the last record. Saturates: a batch near the end of `i64` was never appended.
    pub const fn next_offset(&self) -> i64 {
        self.base_offset
            .saturating_add(self.last_offset_delta as i64)
            .saturating_add(1)
    }
}

fn array_at<const N: usize>(input: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| input[at + i])
}

fn i16_at(input: &[u8; HEADER_LEN], at: usize) -> i16 {
    i16::from_be_bytes(array_at(input, at))
}

fn i32_at(input: &[u8; HEADER_LEN], at: usize) -> i32 {
    i32::from_be_bytes(array_at(input, at))
}

fn i64_at(input: &[u8; HEADER_LEN], at: usize) -> i64 {
    i64::from_be_bytes(array_at(input, at))
}
