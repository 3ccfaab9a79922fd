//! Control batches: the markers that end a producer's transaction in a partition.
//!
//! A marker is a batch of one record, written by the partition's leader and never by a client. Its attributes say
//! "transactional" and "control"; its producer id and epoch are those of the transaction's producer. All integers are
//! big-endian, and the first two parts are Kafka's:
//!
//! ```text
//! key:     | version i16 = 0 | type i16: 0 abort, 1 commit |
//! value:   | version i16 = 0 | epoch of the transaction coordinator i32 |
//! header:  "quorate.aborted" = | first offset u64 | last stable offset u64 |      only where records were aborted
//! ```
//!
//! The header says what no single segment could tell: where the aborted transaction began, and up to where everything is
//! decided once it has ended. With it the index of aborted transactions can be made again from a segment alone. Clients read
//! the key and nothing else of a marker.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::batch::Batch;
use super::builder::{BatchBuilder, ProducerStamp};
use super::compression::Compression;
use super::header::BatchHeader;
use super::records::{Header, records_within};
use crate::types::{Offset, ProducerId};

const VERSION: i16 = 0;
const ABORT: i16 = 0;
const COMMIT: i16 = 1;
const ABORTED_HEADER: &str = "quorate.aborted";
/// Markers are not compressed; whatever says otherwise is none.
const MAX_MARKER_BYTES: usize = 1024;

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransactionOutcome {
    Abort,
    Commit,
}

/// The records that an abort takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedSpan {
    /// The first offset of the transaction in the partition.
    pub first: Offset,
    /// Up to where every transaction of the partition has ended, this one included. At most the offset after the marker.
    pub stable: Offset,
}

/// The end of one producer's transaction, as it stands in a partition's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    pub producer: ProducerId,
    /// 0 or above.
    pub producer_epoch: i16,
    /// The epoch of the coordinator that decided. 0 or above.
    pub coordinator_epoch: i32,
    pub outcome: TransactionOutcome,
    /// `None` for a commit, and for an abort of a transaction that has no record here.
    pub aborted: Option<AbortedSpan>,
}

/// A transaction of a partition that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AbortedTransaction {
    /// The offset of its marker.
    pub last: Offset,
    /// Its first offset in the partition.
    pub first: Offset,
    pub producer: ProducerId,
    /// See [`AbortedSpan::stable`]. Never falls from one marker to the next.
    pub stable: Offset,
}

impl Marker {
    /// The marker as a batch. `timestamp_ms` is the time of the append, in milliseconds since 1970.
    pub fn batch(&self, timestamp_ms: i64) -> Bytes {
        let mut key = BytesMut::with_capacity(4);
        key.put_i16(VERSION);
        key.put_i16(match self.outcome {
            TransactionOutcome::Abort => ABORT,
            TransactionOutcome::Commit => COMMIT,
        });
        let mut value = BytesMut::with_capacity(6);
        value.put_i16(VERSION);
        value.put_i32(self.coordinator_epoch);
        let headers: Vec<Header> = self.aborted.iter().map(aborted_header).collect();
        let stamp = ProducerStamp {
            id: self.producer,
            epoch: self.producer_epoch,
            base_sequence: -1,
        };
        BatchBuilder::control(&key, &value, &headers, timestamp_ms, stamp)
    }

    /// What a batch says as a marker; `None` for any other batch, also for a control batch of another kind.
    pub fn read(batch: &Batch) -> Option<Marker> {
        let header = &batch.header;
        if !is_marker(header) || header.compression().ok()? != Compression::None {
            return None;
        }
        let record = records_within(batch, MAX_MARKER_BYTES).ok()?.next()?.ok()?;
        let mut key = record.key?;
        if key.len() < 4 || key.get_i16() < VERSION {
            return None;
        }
        let outcome = match key.get_i16() {
            ABORT => TransactionOutcome::Abort,
            COMMIT => TransactionOutcome::Commit,
            _ => return None,
        };
        let mut value = record.value?;
        if value.len() < 6 || value.get_i16() < VERSION {
            return None;
        }
        let aborted = record.headers.iter().find_map(read_aborted);
        Some(Marker {
            producer: header.producer_id?,
            producer_epoch: header.producer_epoch,
            coordinator_epoch: value.get_i32(),
            outcome,
            aborted: aborted.filter(|_| outcome == TransactionOutcome::Abort),
        })
    }
}

/// Whether a batch is to be looked at with [`Marker::read`].
pub const fn is_marker(header: &BatchHeader) -> bool {
    header.is_control() && header.is_transactional()
}

impl AbortedTransaction {
    /// The transaction that the marker at `last` has aborted, if it had any record.
    pub fn new(marker: &Marker, last: Offset) -> Option<AbortedTransaction> {
        let span = marker.aborted?;
        Some(AbortedTransaction {
            last,
            first: span.first,
            producer: marker.producer,
            stable: span.stable,
        })
    }

    /// Whether a batch of `producer` that begins at `base` belongs to it.
    pub fn covers(&self, producer: ProducerId, base: Offset) -> bool {
        self.producer == producer && self.first <= base && base < self.last
    }
}

fn aborted_header(span: &AbortedSpan) -> Header {
    let mut value = BytesMut::with_capacity(16);
    value.put_u64(span.first.get());
    value.put_u64(span.stable.get());
    (ABORTED_HEADER.to_owned(), Some(value.freeze()))
}

fn read_aborted((name, value): &Header) -> Option<AbortedSpan> {
    let mut value = value.clone().filter(|value| value.len() == 16)?;
    if name != ABORTED_HEADER {
        return None;
    }
    Some(AbortedSpan {
        first: Offset::new(value.get_u64())?,
        stable: Offset::new(value.get_u64())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::check::{Limits, check_produced};
    use crate::record::{BatchError, STAMP_LEN, marker_until, stamped_prefix};
    use crate::types::LeaderEpoch;

    fn marker(outcome: TransactionOutcome, aborted: bool) -> Marker {
        Marker {
            producer: ProducerId::new(77).unwrap(),
            producer_epoch: 3,
            coordinator_epoch: 9,
            outcome,
            aborted: aborted.then_some(AbortedSpan {
                first: Offset::new(5).unwrap(),
                stable: Offset::new(8).unwrap(),
            }),
        }
    }

    #[test]
    fn a_marker_comes_back_as_it_was_written() {
        for marker in [
            marker(TransactionOutcome::Commit, false),
            marker(TransactionOutcome::Abort, false),
            marker(TransactionOutcome::Abort, true),
        ] {
            let batch = Batch::decode(&marker.batch(1234)).unwrap();
            batch.verify_crc().unwrap();
            assert!(batch.bytes.len() <= MAX_MARKER_BYTES);
            assert_eq!(batch.header.attributes, 0b11_0000);
            assert_eq!(
                (batch.header.record_count, batch.header.base_sequence),
                (1, -1)
            );
            assert_eq!(batch.header.max_timestamp, 1234);
            assert_eq!(Marker::read(&batch), Some(marker));
        }
    }

    #[test]
    fn the_key_and_the_value_are_kafkas() {
        let batch = Batch::decode(&marker(TransactionOutcome::Commit, false).batch(0)).unwrap();
        let record = crate::record::records(&batch)
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(record.key.unwrap(), [0, 0, 0, 1][..]);
        assert_eq!(record.value.unwrap(), [0, 0, 0, 0, 0, 9][..]);
    }

    #[test]
    fn one_that_is_to_go_says_the_same_as_before() {
        let marker = marker(TransactionOutcome::Abort, true);
        let batch = Batch::decode(&marker.batch(1234)).unwrap();
        let prefix = stamped_prefix(
            &batch,
            Offset::new(50).unwrap(),
            LeaderEpoch::new(3).unwrap(),
        );
        let stamped = [&prefix[..], &batch.bytes[STAMP_LEN..]].concat();
        let batch = Batch::decode(&stamped.into()).unwrap();
        let until = Batch::decode(&marker_until(&batch, 99_000).unwrap()).unwrap();
        until.verify_crc().unwrap();
        assert_eq!(Marker::read(&until), Some(marker));
        assert_eq!(until.header.delete_horizon(), Some(99_000));
        assert_eq!(until.header.attributes, 0b111_0000);
        assert_eq!(until.header.max_timestamp, 1234);
        assert_eq!(
            (
                until.header.base_offset,
                until.header.partition_leader_epoch
            ),
            (50, 3)
        );
    }

    #[test]
    fn no_client_writes_one() {
        let limits = Limits {
            max_batch_bytes: 1000,
        };
        let bytes = marker(TransactionOutcome::Commit, false).batch(0);
        assert_eq!(check_produced(&bytes, &limits), Err(BatchError::Control));
    }

    #[test]
    fn damage_is_no_marker_and_no_panic() {
        let good = marker(TransactionOutcome::Abort, true).batch(7).to_vec();
        for at in 0..good.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                if let Ok(batch) = Batch::decode(&bad.into()) {
                    let _ = Marker::read(&batch);
                }
            }
        }
    }
}
