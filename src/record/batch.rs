//! One record batch as a slice of the bytes that carried it.

use bytes::Bytes;

use super::header::{BatchError, BatchHeader, CRC_FROM, HEADER_LEN};
use crate::types::{LeaderEpoch, Offset};

/// How many bytes at the start of a batch a leader stamps.
pub const STAMP_LEN: usize = 16;

/// A whole batch, verbatim. `bytes` shares the buffer that it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub header: BatchHeader,
    /// Exactly `header.size()` bytes, header included.
    pub bytes: Bytes,
}

impl Batch {
    /// Takes the batch at the start of `input`, without copying it. Lengths and magic are judged, the CRC is not: see
    /// [`Batch::verify_crc`].
    pub fn decode(input: &Bytes) -> Result<Batch, BatchError> {
        let header = BatchHeader::decode(input)?;
        if header.size() > input.len() {
            return Err(BatchError::Truncated {
                needed: header.size(),
                have: input.len(),
            });
        }
        let bytes = input.slice(..header.size());
        Ok(Batch { header, bytes })
    }

    /// Compares the CRC-32C in the header with the batch's bytes.
    pub fn verify_crc(&self) -> Result<(), BatchError> {
        let computed = crc32c::crc32c(&self.bytes[CRC_FROM..]);
        if computed == self.header.crc {
            Ok(())
        } else {
            Err(BatchError::CrcMismatch {
                found: self.header.crc,
                computed,
            })
        }
    }

    /// The records' bytes, still compressed where the batch is.
    pub fn body(&self) -> Bytes {
        self.bytes.slice(HEADER_LEN..)
    }
}

/// The first bytes of `batch` as the leader stores them: its base offset (8 bytes), the batch length as it was (4), and
/// its leader epoch (4). They lie outside the CRC, so the rest of the batch is written as it came:
/// `[&stamped_prefix(..), &batch.bytes[STAMP_LEN..]]`.
pub fn stamped_prefix(batch: &Batch, base: Offset, epoch: LeaderEpoch) -> [u8; STAMP_LEN] {
    let mut prefix = [0; STAMP_LEN];
    prefix[..8].copy_from_slice(&base.to_wire().to_be_bytes());
    prefix[8..12].copy_from_slice(&batch.header.batch_length.to_be_bytes());
    prefix[12..].copy_from_slice(&epoch.to_wire().to_be_bytes());
    prefix
}

/// Walks over batches that stand one after another, as a fetch response carries them. Ends after the first error;
/// [`BatchError::Truncated`] means that the last batch is cut off, which a broker may do.
#[derive(Clone, Debug)]
pub struct Batches {
    rest: Bytes,
}

impl Batches {
    pub fn new(bytes: Bytes) -> Batches {
        Batches { rest: bytes }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = Batch::decode(&self.rest);
        self.rest = match &batch {
            Ok(batch) => self.rest.slice(batch.bytes.len()..),
            Err(_) => Bytes::new(),
        };
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, Compression};

    fn batch(value: &[u8]) -> Bytes {
        let mut builder = BatchBuilder::new();
        builder.append(None, Some(value), &[], 7).unwrap();
        builder.seal(Compression::None).unwrap().stamp(None)
    }

    #[test]
    fn stamping_leaves_the_crc_valid() {
        let original = Batch::decode(&batch(b"one")).unwrap();
        let base = Offset::new(1 << 40).unwrap();
        let epoch = LeaderEpoch::new(9).unwrap();
        let stamped: Bytes = [
            &stamped_prefix(&original, base, epoch)[..],
            &original.bytes[STAMP_LEN..],
        ]
        .concat()
        .into();
        let stamped = Batch::decode(&stamped).unwrap();
        stamped.verify_crc().unwrap();
        assert_eq!(stamped.header.base_offset, 1 << 40);
        assert_eq!(stamped.header.partition_leader_epoch, 9);
        assert_eq!(stamped.header.next_offset(), (1 << 40) + 1);
        assert_eq!(stamped.bytes[STAMP_LEN..], original.bytes[STAMP_LEN..]);
    }

    #[test]
    fn batches_are_walked_without_copying_and_a_cut_one_is_told() {
        let (one, two) = (batch(b"one"), batch(b"the second"));
        let both: Bytes = [&one[..], &two].concat().into();
        let found: Vec<Batch> = Batches::new(both.clone()).map(Result::unwrap).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].bytes, two);
        assert_eq!(found[1].bytes.as_ptr(), both[one.len()..].as_ptr());

        for cut in one.len() + 1..both.len() {
            let mut batches = Batches::new(both.slice(..cut));
            assert!(batches.next().unwrap().is_ok());
            assert!(
                matches!(batches.next(), Some(Err(BatchError::Truncated { .. }))),
                "cut at {cut}"
            );
            assert!(batches.next().is_none());
        }
    }
}
