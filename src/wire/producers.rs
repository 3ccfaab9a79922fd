//! What a partition remembers of its idempotent producers, as bytes: the same on the disk, in a snapshot beside the log, and
//! on the wire, in the answer that resets a follower. All integers are big-endian.
//!
//! ```text
//! snapshot:    | incomplete u8 | number of producers u32 | producer | producer | … |
//! producer:    | producer id u64 | producer epoch u16 | number of batches u8 | batch | … |      ids rise
//! batch:       | first sequence u32 | last sequence u32 | base offset u64 | records u32 |        oldest first; offsets rise
//! ```
//!
//! At most [`MAX_SNAPSHOT_PRODUCERS`] producers with [`MAX_SNAPSHOT_BATCHES`] batches each, so at most
//! [`MAX_SNAPSHOT_BYTES`].

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Reader, WireError};
use crate::types::{Offset, ProducerId};

/// The most producers that one partition remembers.
pub const MAX_SNAPSHOT_PRODUCERS: usize = 10_000;
/// The most batches that are remembered of one producer: as many as Kafka lets an idempotent producer have in flight.
pub const MAX_SNAPSHOT_BATCHES: usize = 5;
/// The most bytes of an encoded snapshot: 1.1 MB.
pub const MAX_SNAPSHOT_BYTES: usize =
    HEADER_BYTES + MAX_SNAPSHOT_PRODUCERS * (PRODUCER_BYTES + MAX_SNAPSHOT_BATCHES * BATCH_BYTES);

const HEADER_BYTES: usize = 5;
const PRODUCER_BYTES: usize = 11;
const BATCH_BYTES: usize = 20;

/// What is remembered of a log's producers at one position of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProducerSnapshot {
    /// Whether a producer may be missing that has records in front of the position.
    pub incomplete: bool,
    /// At most [`MAX_SNAPSHOT_PRODUCERS`], in order of their ids, each once.
    pub producers: Vec<ProducerEntry>,
}

/// One producer's latest batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerEntry {
    pub producer: ProducerId,
    /// 0 or above.
    pub epoch: i16,
    /// One to [`MAX_SNAPSHOT_BATCHES`], oldest first; a later one lies behind an earlier one.
    pub batches: Vec<BatchEntry>,
}

/// One batch of a producer, in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchEntry {
    /// The first and the last record's sequence number, both 0 or above.
    pub base_sequence: i32,
    pub last_sequence: i32,
    /// From its first record's offset to the offset after its last.
    pub base: Offset,
    pub end: Offset,
}

impl ProducerSnapshot {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len());
        self.encode_into(&mut out);
        out.freeze()
    }

    pub(super) fn encode_into(&self, out: &mut BytesMut) {
        debug_assert!(self.producers.len() <= MAX_SNAPSHOT_PRODUCERS);
        out.put_u8(self.incomplete.into());
        out.put_u32(self.producers.len() as u32);
        for entry in &self.producers {
            debug_assert!((1..=MAX_SNAPSHOT_BATCHES).contains(&entry.batches.len()));
            out.put_i64(entry.producer.get());
            out.put_i16(entry.epoch);
            out.put_u8(entry.batches.len() as u8);
            for batch in &entry.batches {
                out.put_i32(batch.base_sequence);
                out.put_i32(batch.last_sequence);
                out.put_u64(batch.base.get());
                // A batch has at most 2³¹ records.
                out.put_u32(batch.end.records_since(batch.base) as u32);
            }
        }
    }

    fn encoded_len(&self) -> usize {
        let batches: usize = self.producers.iter().map(|entry| entry.batches.len()).sum();
        HEADER_BYTES + self.producers.len() * PRODUCER_BYTES + batches * BATCH_BYTES
    }

    pub fn decode(bytes: Bytes) -> Result<ProducerSnapshot, WireError> {
        let mut reader = Reader::new("a producer snapshot", bytes);
        let snapshot = ProducerSnapshot::read(&mut reader)?;
        reader.finish()?;
        Ok(snapshot)
    }

    pub(super) fn read(reader: &mut Reader) -> Result<ProducerSnapshot, WireError> {
        let incomplete = match reader.u8()? {
            0 => false,
            1 => true,
            other => return Err(reader.invalid(other.into())),
        };
        let count = reader.u32()?;
        if count as usize > MAX_SNAPSHOT_PRODUCERS {
            return Err(reader.invalid(count.into()));
        }
        // Grows with what is really there: a false count allocates nothing.
        let mut producers: Vec<ProducerEntry> = Vec::new();
        for _ in 0..count {
            let entry = read_producer(reader)?;
            if let Some(last) = producers.last()
                && last.producer >= entry.producer
            {
                return Err(reader.invalid(entry.producer.get() as u64));
            }
            producers.push(entry);
        }
        Ok(ProducerSnapshot {
            incomplete,
            producers,
        })
    }
}

fn read_producer(reader: &mut Reader) -> Result<ProducerEntry, WireError> {
    let id = reader.u64()?;
    let producer = i64::try_from(id)
        .ok()
        .and_then(ProducerId::new)
        .ok_or_else(|| reader.invalid(id))?;
    let epoch = reader.u16()?;
    let epoch = i16::try_from(epoch).map_err(|_| reader.invalid(epoch.into()))?;
    let count = reader.u8()?;
    if !(1..=MAX_SNAPSHOT_BATCHES).contains(&usize::from(count)) {
        return Err(reader.invalid(count.into()));
    }
    let mut batches: Vec<BatchEntry> = Vec::with_capacity(count.into());
    for _ in 0..count {
        let base_sequence = sequence(reader)?;
        let last_sequence = sequence(reader)?;
        let base = reader.offset()?;
        let records = reader.u32()?;
        let end = base
            .checked_add(records.into())
            .filter(|end| *end > base)
            .ok_or_else(|| reader.invalid(records.into()))?;
        if batches.last().is_some_and(|last| last.end > base) {
            return Err(reader.invalid(base.get()));
        }
        batches.push(BatchEntry {
            base_sequence,
            last_sequence,
            base,
            end,
        });
    }
    Ok(ProducerEntry {
        producer,
        epoch,
        batches,
    })
}

fn sequence(reader: &mut Reader) -> Result<i32, WireError> {
    let value = reader.u32()?;
    i32::try_from(value).map_err(|_| reader.invalid(value.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offset(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    fn snapshot(producers: usize, batches: usize) -> ProducerSnapshot {
        let batch = |i: usize| BatchEntry {
            base_sequence: 10 * i as i32,
            last_sequence: 10 * i as i32 + 9,
            base: offset(100 * i as u64),
            end: offset(100 * i as u64 + 10),
        };
        let entry = |id: usize| ProducerEntry {
            producer: ProducerId::new(3 * id as i64).unwrap(),
            epoch: 2,
            batches: (0..batches).map(batch).collect(),
        };
        ProducerSnapshot {
            incomplete: producers % 2 == 1,
            producers: (0..producers).map(entry).collect(),
        }
    }

    #[test]
    fn a_snapshot_comes_back_and_the_largest_fits_its_bound() {
        for (producers, batches) in [(0, 0), (1, 1), (7, 5), (MAX_SNAPSHOT_PRODUCERS, 5)] {
            let snapshot = snapshot(producers, batches);
            let bytes = snapshot.encode();
            assert!(bytes.len() <= MAX_SNAPSHOT_BYTES);
            assert_eq!(ProducerSnapshot::decode(bytes), Ok(snapshot));
        }
        let largest = snapshot(MAX_SNAPSHOT_PRODUCERS, MAX_SNAPSHOT_BATCHES);
        assert_eq!(largest.encode().len(), MAX_SNAPSHOT_BYTES);
    }

    #[test]
    fn what_no_partition_remembers_is_refused() {
        let good = snapshot(3, 2).encode();
        let changed = |at: usize, bytes: &[u8]| {
            let mut wrong = good.to_vec();
            wrong[at..at + bytes.len()].copy_from_slice(bytes);
            ProducerSnapshot::decode(wrong.into())
        };
        let second = HEADER_BYTES + PRODUCER_BYTES + 2 * BATCH_BYTES;
        let first_batch = HEADER_BYTES + PRODUCER_BYTES;
        for (what, wrong) in [
            ("a flag that is no flag", changed(0, &[2])),
            (
                "more producers than a partition has",
                changed(1, &[0, 0, 0x27, 0x11]),
            ),
            ("an id twice", changed(second, &[0; 8])),
            ("a negative id", changed(second, &[0x80])),
            ("a negative epoch", changed(HEADER_BYTES + 8, &[0x80])),
            ("no batch", changed(HEADER_BYTES + 10, &[0])),
            ("six batches", changed(HEADER_BYTES + 10, &[6])),
            ("a negative sequence", changed(first_batch, &[0xff])),
            (
                "a batch without records",
                changed(first_batch + 16, &[0; 4]),
            ),
            (
                "batches that overlap",
                changed(first_batch + 16, &[0, 1, 0, 0]),
            ),
        ] {
            assert!(wrong.is_err(), "{what}");
        }
        for cut in 0..good.len() {
            assert!(
                ProducerSnapshot::decode(good.slice(..cut)).is_err(),
                "{cut}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ProducerSnapshot::decode(bytes.into());
        }
    }
}
