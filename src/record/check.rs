//! What a batch must be before a leader appends it.

use bytes::Bytes;

use super::batch::{Batch, Batches};
use super::compression::Compression;
use super::header::{BatchError, HEADER_LEN, TimestampType};
use super::varint;

/// What the topic allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `max.message.bytes`: the largest batch, header included, as it arrives (that is, compressed), in bytes.
    pub max_batch_bytes: usize,
}

/// Splits one partition's part of a produce request into its batches, each a slice of `records`, and refuses all of them
/// where one is not fit to be appended.
///
/// Checked: structure, magic, codec, size, CRC-32C, that the counts agree, that no client writes control
/// batches, that a transactional batch has a producer, and for batches that are not compressed that the records fill exactly the bytes there are.
/// The inside of a compressed block is its producer's affair: expanding it on the leader would cost more than all the
/// rest, and a consumer that cannot expand it is told so. [`BatchError::error_code`] is Kafka's answer.
pub fn check_produced(records: &Bytes, limits: &Limits) -> Result<Vec<Batch>, BatchError> {
    let mut batches = Vec::new();
    for batch in Batches::new(records.clone()) {
        // A claimed size is compared with the limit first, so that a large batch cut short is told what really ails it.
        let batch = match batch {
            Err(BatchError::Truncated { needed, .. }) if needed > limits.max_batch_bytes => {
                return Err(BatchError::TooLarge {
                    size: needed,
                    max: limits.max_batch_bytes,
                });
            }
            batch => batch?,
        };
        check_batch(&batch, limits)?;
        batches.push(batch);
    }
    if batches.is_empty() {
        return Err(BatchError::Empty);
    }
    Ok(batches)
}

fn check_batch(batch: &Batch, limits: &Limits) -> Result<(), BatchError> {
    let header = &batch.header;
    if header.size() > limits.max_batch_bytes {
        return Err(BatchError::TooLarge {
            size: header.size(),
            max: limits.max_batch_bytes,
        });
    }
    // Before the other fields: what a damaged header says about itself means nothing.
    batch.verify_crc()?;
    let compression = header.compression()?;
    if header.is_control() {
        return Err(BatchError::Control);
    }
    if header.is_transactional() && header.producer_id.is_none() {
        return Err(BatchError::TransactionalWithoutProducer);
    }
    if header.timestamp_type() == TimestampType::LogAppendTime {
        return Err(BatchError::LogAppendTime);
    }
    if header.record_count < 1
        || header.last_offset_delta.checked_add(1) != Some(header.record_count)
    {
        return Err(BatchError::InconsistentCounts {
            record_count: header.record_count,
            last_offset_delta: header.last_offset_delta,
        });
    }
    if let Some(producer_id) = header.producer_id
        && (header.producer_epoch < 0 || header.base_sequence < 0)
    {
        return Err(BatchError::InvalidSequence {
            producer_id,
            epoch: header.producer_epoch,
            sequence: header.base_sequence,
        });
    }
    if compression == Compression::None {
        check_record_lengths(&batch.bytes[HEADER_LEN..], header.record_count)?;
    }
    Ok(())
}

/// Walks from length to length: `record_count` records must fill `body` exactly.
fn check_record_lengths(body: &[u8], record_count: i32) -> Result<(), BatchError> {
    let mut rest = body;
    for index in 0..record_count {
        let misplaced = BatchError::MisplacedRecord {
            index,
            record_count,
        };
        let length = varint::take_int(&mut rest).and_then(|length| usize::try_from(length).ok());
        match length.and_then(|length| rest.get(length..)) {
            Some(after) => rest = after,
            None => return Err(misplaced),
        }
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(BatchError::MisplacedRecord {
            index: record_count,
            record_count,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::header::{
        BASE_SEQUENCE_AT, CRC_AT, CRC_FROM, LAST_OFFSET_DELTA_AT, MAGIC_AT, PRODUCER_ID_AT,
        RECORD_COUNT_AT,
    };
    use crate::record::{BatchBuilder, ProducerStamp};
    use crate::types::{ErrorCode, ProducerId};

    const LIMITS: Limits = Limits {
        max_batch_bytes: 1000,
    };

    fn batch(compression: Compression) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for i in 0..3 {
            builder
                .append(Some(b"key"), Some(b"value"), &[], 1000 + i)
                .unwrap();
        }
        let stamp = ProducerStamp {
            id: ProducerId::new(5).unwrap(),
            epoch: 0,
            base_sequence: 0,
        };
        builder.seal(compression).unwrap().stamp(Some(stamp)).into()
    }

    /// `batch` with the bytes at `at` replaced and, unless the CRC itself is to be wrong, a CRC to match.
    fn altered(mut batch: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
        batch[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32c::crc32c(&batch[CRC_FROM..]);
        batch[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
        batch
    }

    fn refused(batch: Vec<u8>) -> (ErrorCode, BatchError) {
        let error = check_produced(&batch.into(), &LIMITS).unwrap_err();
        (error.error_code(), error)
    }

    #[test]
    fn good_batches_pass_as_slices_of_what_came() {
        for compression in Compression::ALL {
            let two: Bytes = [batch(compression), batch(compression)].concat().into();
            let batches = check_produced(&two, &LIMITS).unwrap();
            assert_eq!(batches.len(), 2);
            assert_eq!(batches[0].bytes.as_ptr(), two.as_ptr());
            assert_eq!(batches[0].header.record_count, 3);
            assert_eq!(batches[0].header.max_timestamp, 1002);
        }
    }

    #[test]
    fn each_fault_has_kafkas_code() {
        let good = batch(Compression::None);
        let cases = [
            (vec![], ErrorCode::InvalidRecord),
            (good[..30].to_vec(), ErrorCode::CorruptMessage),
            (good[..good.len() - 1].to_vec(), ErrorCode::CorruptMessage),
            (
                altered(good.clone(), MAGIC_AT, &[1]),
                ErrorCode::UnsupportedForMessageFormat,
            ),
            (
                altered(good.clone(), 8, &[0, 0, 0, 48]),
                ErrorCode::CorruptMessage,
            ),
            (
                altered(good.clone(), 8, &[0xff, 0xff, 0xff, 0xff]),
                ErrorCode::CorruptMessage,
            ),
            (
                altered(good.clone(), 8, &[0x7f, 0xff, 0xff, 0xff]),
                ErrorCode::MessageTooLarge,
            ),
            (
                altered(good.clone(), CRC_FROM, &[0, 7]),
                ErrorCode::UnsupportedCompressionType,
            ),
            (
                altered(good.clone(), CRC_FROM, &[0, 5]),
                ErrorCode::UnsupportedCompressionType,
            ),
            (
                altered(good.clone(), CRC_FROM, &[0, 1 << 5]),
                ErrorCode::InvalidRecord,
            ),
            (
                altered(
                    altered(good.clone(), PRODUCER_ID_AT, &[0xff; 8]),
                    CRC_FROM,
                    &[0, 1 << 4],
                ),
                ErrorCode::InvalidRecord,
            ),
            (
                altered(good.clone(), CRC_FROM, &[0, 1 << 3]),
                ErrorCode::InvalidTimestamp,
            ),
            (
                altered(good.clone(), LAST_OFFSET_DELTA_AT, &[0, 0, 0, 3]),
                ErrorCode::InvalidRecord,
            ),
            (
                altered(
                    good.clone(),
                    LAST_OFFSET_DELTA_AT,
                    &[0x7f, 0xff, 0xff, 0xff],
                ),
                ErrorCode::InvalidRecord,
            ),
            (
                altered(good.clone(), RECORD_COUNT_AT, &[0, 0, 0, 0]),
                ErrorCode::InvalidRecord,
            ),
            (
                altered(good.clone(), BASE_SEQUENCE_AT, &[0xff; 4]),
                ErrorCode::InvalidRecord,
            ),
            // A record that is longer than the batch.
            (
                altered(good.clone(), HEADER_LEN, &[0x7e]),
                ErrorCode::InvalidRecord,
            ),
        ];
        for (i, (bytes, code)) in cases.into_iter().enumerate() {
            let (found, error) = refused(bytes);
            assert_eq!(found, code, "case {i}: {error}");
        }

        let mut damaged = good;
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(matches!(
            refused(damaged),
            (ErrorCode::CorruptMessage, BatchError::CrcMismatch { .. })
        ));
    }

    #[test]
    fn counts_must_agree_with_the_records_that_are_there() {
        let good = batch(Compression::None);
        for count in [2u8, 4] {
            let mut bad = altered(good.clone(), LAST_OFFSET_DELTA_AT + 3, &[count - 1]);
            bad = altered(bad, RECORD_COUNT_AT + 3, &[count]);
            assert!(
                matches!(refused(bad).1, BatchError::MisplacedRecord { .. }),
                "{count}"
            );
        }
    }

    #[test]
    fn the_largest_batch_is_exactly_the_limit() {
        let good: Bytes = batch(Compression::None).into();
        let limits = |max_batch_bytes| Limits { max_batch_bytes };
        assert!(check_produced(&good, &limits(good.len())).is_ok());
        assert_eq!(
            check_produced(&good, &limits(good.len() - 1)),
            Err(BatchError::TooLarge {
                size: good.len(),
                max: good.len() - 1
            })
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            codec in 0..5u8,
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
            mend_crc: bool,
        ) {
            let mut bytes = batch(Compression::from_codec(codec).unwrap());
            bytes.extend(batch(Compression::None));
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if mend_crc && bytes.len() > CRC_FROM {
                bytes = altered(bytes, 0, &[]);
            }
            let bytes = Bytes::from(bytes);
            if let Ok(batches) = check_produced(&bytes, &LIMITS) {
                let total: usize = batches.iter().map(|batch| batch.bytes.len()).sum();
                prop_assert_eq!(total, bytes.len(), "nothing is dropped in silence");
            }
        }

        #[test]
        fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(check_produced(&noise.into(), &LIMITS).is_err());
        }
    }
}
