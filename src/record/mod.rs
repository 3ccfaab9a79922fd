//! Floor 2: Kafka's record batch, version 2.
//!
//! A batch is stored, replicated and served exactly as its producer wrote it. This room reads its header, checks what a
//! client sends, stamps the offset and epoch that a leader gives it, and, for clients, builds batches and takes them
//! apart.
//!
//! - [`header`]: the 61 bytes in front, drawn field by field
//! - [`batch`]: one batch as a slice of what carried it; walking over several; stamping
//! - [`check`]: what a batch must be before a leader appends it
//! - [`records`]: the records inside
//! - [`builder`]: making a batch
//! - [`rewrite`]: a batch made again from some of its records, or from those of several, each with its old offset
//! - [`control`]: the markers that end transactions
//! - [`compression`]: the five codecs, with a cap on what they may expand to
//! - `varint`: the zigzag integers inside a record
//!
//! Nothing here allocates by a length from the wire that the remaining bytes cannot hold.

pub mod batch;
pub mod builder;
pub mod check;
pub mod compression;
pub mod control;
mod fields;
pub mod header;
mod log_record;
pub mod records;
pub mod rewrite;
mod varint;

pub use batch::{Batch, Batches, STAMP_LEN, stamped_prefix};
pub use builder::{AppendError, BatchBuilder, ProducerStamp, SealedBatch, restamp_producer};
pub use check::{Limits, check_produced};
pub use compression::{Compression, CompressionError, MAX_EXPANDED_BYTES};
pub use control::{AbortedSpan, AbortedTransaction, Marker, TransactionOutcome, is_marker};
pub use fields::{FieldError, Fields};
pub use header::{BatchError, BatchHeader, HEADER_LEN, TimestampType};
pub use log_record::LogRecord;
pub use records::{Header, Record, RecordError, Records, records, records_within};
pub use rewrite::{RawRecord, Rewrite, marker_until, raw_records, without_transaction};
