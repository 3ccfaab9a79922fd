//! What a partition remembers of its producers and their transactions, as bytes: the same on the disk, in a snapshot beside
//! the log, and on the wire, in the answer that resets a follower. All integers are big-endian.
//!
//! ```text
//! snapshot:    | flags u8 | number of producers u32 | producer | producer | … | ended transactions² |
//! producer:    | producer id u64 | producer epoch u16 | number of batches u8 | state² | batch | … |  ids rise
//! state²:      | coordinator epoch i32 | first offset of the open transaction u64 | last marker u64 | end u64 |
//! batch:       | first sequence u32 | last sequence u32 | base offset u64 | records u32 |    oldest first; offsets rise
//! ended²:      | number u32 | first offset u64 | end u64 | … |                               ends rise
//! ```
//!
//! Flags: 1, a producer may be missing; 2, the parts marked ² are there. Without transactions they are left out, which is
//! what builds that know none write and read. In them −1 and the largest u64 stand for "none".
//!
//! At most [`MAX_SNAPSHOT_PRODUCERS`] producers with [`MAX_SNAPSHOT_BATCHES`] batches each and [`MAX_SNAPSHOT_ENDED`] ended
//! transactions, so at most [`MAX_SNAPSHOT_BYTES`].

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Reader, WireError};
use crate::types::{Offset, ProducerId};

/// The most producers that one partition remembers.
pub const MAX_SNAPSHOT_PRODUCERS: usize = 10_000;
/// The most batches that are remembered of one producer. Kafka's producers have five in flight at most. The native one has
/// more: over a link of 200 ms five a round trip would leave each record waiting for its turn.
pub const MAX_SNAPSHOT_BATCHES: usize = 16;
/// The most transactions that are remembered because their ends were not known to be committed.
pub const MAX_SNAPSHOT_ENDED: usize = 4_096;
/// The most bytes of an encoded snapshot: 3.7 MB.
pub const MAX_SNAPSHOT_BYTES: usize = ProducerSnapshot::encoded_len_of(
    MAX_SNAPSHOT_PRODUCERS,
    MAX_SNAPSHOT_PRODUCERS * MAX_SNAPSHOT_BATCHES,
    MAX_SNAPSHOT_ENDED,
);

const HEADER_BYTES: usize = 5;
const PRODUCER_BYTES: usize = 11;
const STATE_BYTES: usize = 28;
const BATCH_BYTES: usize = 20;
const ENDED_BYTES: usize = 16;

const INCOMPLETE: u8 = 1;
const WITH_TRANSACTIONS: u8 = 2;
const NO_OFFSET: u64 = u64::MAX;
const NO_EPOCH: u32 = u32::MAX;

/// What is remembered of a log's producers at one position of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProducerSnapshot {
    /// Whether a producer may be missing that has records in front of the position.
    pub incomplete: bool,
    /// At most [`MAX_SNAPSHOT_PRODUCERS`], in order of their ids, each once.
    pub producers: Vec<ProducerEntry>,
    /// Transactions that have ended in front of the position, and whose ends were not known to be committed when the snapshot
    /// was taken. At most [`MAX_SNAPSHOT_ENDED`], in the order of their ends.
    pub ended: Vec<EndedEntry>,
}

/// What is remembered of one producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerEntry {
    pub producer: ProducerId,
    /// 0 or above.
    pub epoch: i16,
    /// At most [`MAX_SNAPSHOT_BATCHES`], oldest first; a later one lies behind an earlier one. None only where a marker was
    /// the last that the log has of the producer.
    pub batches: Vec<BatchEntry>,
    pub transaction: TransactionEntry,
}

/// What is remembered of a producer's transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEntry {
    /// The coordinator's epoch in the last marker, 0 or above; `None` before the first.
    pub coordinator_epoch: Option<i32>,
    /// The first offset of the transaction that has not ended yet.
    pub open: Option<Offset>,
    /// The offset of the last marker.
    pub last_marker: Option<Offset>,
    /// The offset after the producer's last batch or marker.
    pub end: Offset,
}

/// A transaction that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedEntry {
    pub first: Offset,
    /// The offset after its marker.
    pub end: Offset,
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

impl TransactionEntry {
    /// Of a producer that never had a transaction in the partition, and whose last batch ends at `end`.
    pub fn none(end: Offset) -> TransactionEntry {
        TransactionEntry {
            coordinator_epoch: None,
            open: None,
            last_marker: None,
            end,
        }
    }

    fn is_none(&self) -> bool {
        *self == TransactionEntry::none(self.end)
    }
}

impl ProducerSnapshot {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len());
        self.encode_into(&mut out);
        out.freeze()
    }

    fn has_transactions(&self) -> bool {
        let is_other = |entry: &ProducerEntry| {
            !entry.transaction.is_none()
                || entry.batches.last().map(|batch| batch.end) != Some(entry.transaction.end)
        };
        !self.ended.is_empty() || self.producers.iter().any(is_other)
    }

    pub(super) fn encode_into(&self, out: &mut BytesMut) {
        debug_assert!(self.producers.len() <= MAX_SNAPSHOT_PRODUCERS);
        let with_transactions = self.has_transactions();
        let mut flags = u8::from(self.incomplete) * INCOMPLETE;
        flags |= u8::from(with_transactions) * WITH_TRANSACTIONS;
        out.put_u8(flags);
        out.put_u32(self.producers.len() as u32);
        for entry in &self.producers {
            debug_assert!(entry.batches.len() <= MAX_SNAPSHOT_BATCHES);
            out.put_i64(entry.producer.get());
            out.put_i16(entry.epoch);
            out.put_u8(entry.batches.len() as u8);
            if with_transactions {
                let state = &entry.transaction;
                out.put_u32(
                    state
                        .coordinator_epoch
                        .map_or(NO_EPOCH, |epoch| epoch as u32),
                );
                out.put_u64(state.open.map_or(NO_OFFSET, Offset::get));
                out.put_u64(state.last_marker.map_or(NO_OFFSET, Offset::get));
                out.put_u64(state.end.get());
            }
            for batch in &entry.batches {
                out.put_i32(batch.base_sequence);
                out.put_i32(batch.last_sequence);
                out.put_u64(batch.base.get());
                // A batch has at most 2³¹ records.
                out.put_u32(batch.end.records_since(batch.base) as u32);
            }
        }
        if with_transactions {
            debug_assert!(self.ended.len() <= MAX_SNAPSHOT_ENDED);
            out.put_u32(self.ended.len() as u32);
            for ended in &self.ended {
                out.put_u64(ended.first.get());
                out.put_u64(ended.end.get());
            }
        }
    }

    fn encoded_len(&self) -> usize {
        let batches = self.producers.iter().map(|entry| entry.batches.len());
        Self::encoded_len_of(self.producers.len(), batches.sum(), self.ended.len())
    }

    /// The most bytes that a snapshot encodes to of so many producers, batches of theirs, and ended transactions.
    pub const fn encoded_len_of(producers: usize, batches: usize, ended: usize) -> usize {
        HEADER_BYTES
            + producers * (PRODUCER_BYTES + STATE_BYTES)
            + batches * BATCH_BYTES
            + 4
            + ended * ENDED_BYTES
    }

    pub fn decode(bytes: Bytes) -> Result<ProducerSnapshot, WireError> {
        let mut reader = Reader::new("a producer snapshot", bytes);
        let snapshot = ProducerSnapshot::read(&mut reader)?;
        reader.finish()?;
        Ok(snapshot)
    }

    pub(super) fn read(reader: &mut Reader) -> Result<ProducerSnapshot, WireError> {
        let flags = reader.u8()?;
        if flags & !(INCOMPLETE | WITH_TRANSACTIONS) != 0 {
            return Err(reader.invalid(flags.into()));
        }
        let with_transactions = flags & WITH_TRANSACTIONS != 0;
        let count = reader.u32()?;
        if count as usize > MAX_SNAPSHOT_PRODUCERS {
            return Err(reader.invalid(count.into()));
        }
        // Grows with what is really there: a false count allocates nothing.
        let mut producers: Vec<ProducerEntry> = Vec::new();
        for _ in 0..count {
            let entry = read_producer(reader, with_transactions)?;
            if let Some(last) = producers.last()
                && last.producer >= entry.producer
            {
                return Err(reader.invalid(entry.producer.get() as u64));
            }
            producers.push(entry);
        }
        let snapshot = ProducerSnapshot {
            incomplete: flags & INCOMPLETE != 0,
            producers,
            ended: if with_transactions {
                read_ended(reader)?
            } else {
                Vec::new()
            },
        };
        // One value has one encoding.
        if with_transactions != snapshot.has_transactions() {
            return Err(reader.invalid(flags.into()));
        }
        Ok(snapshot)
    }
}

fn read_producer(reader: &mut Reader, with_transactions: bool) -> Result<ProducerEntry, WireError> {
    let id = reader.u64()?;
    let producer = i64::try_from(id)
        .ok()
        .and_then(ProducerId::new)
        .ok_or_else(|| reader.invalid(id))?;
    let epoch = reader.u16()?;
    let epoch = i16::try_from(epoch).map_err(|_| reader.invalid(epoch.into()))?;
    let count = reader.u8()?;
    if usize::from(count) > MAX_SNAPSHOT_BATCHES {
        return Err(reader.invalid(count.into()));
    }
    let state = if with_transactions {
        Some(read_state(reader)?)
    } else {
        None
    };
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
    let last = batches.last().map(|batch| batch.end);
    let transaction = match (state, last) {
        (Some(state), last) => {
            let is_known = last.is_some() || state.last_marker.is_some();
            let covers = |offset: Option<Offset>| offset.is_none_or(|offset| offset < state.end);
            if !is_known
                || last.is_some_and(|last| last > state.end)
                || !covers(state.open)
                || !covers(state.last_marker)
            {
                return Err(reader.invalid(state.end.get()));
            }
            state
        }
        (None, Some(last)) => TransactionEntry::none(last),
        (None, None) => return Err(reader.invalid(count.into())),
    };
    Ok(ProducerEntry {
        producer,
        epoch,
        batches,
        transaction,
    })
}

fn read_state(reader: &mut Reader) -> Result<TransactionEntry, WireError> {
    let coordinator_epoch = match reader.u32()? {
        NO_EPOCH => None,
        epoch => Some(i32::try_from(epoch).map_err(|_| reader.invalid(epoch.into()))?),
    };
    Ok(TransactionEntry {
        coordinator_epoch,
        open: optional_offset(reader)?,
        last_marker: optional_offset(reader)?,
        end: reader.offset()?,
    })
}

fn read_ended(reader: &mut Reader) -> Result<Vec<EndedEntry>, WireError> {
    let count = reader.u32()?;
    if count as usize > MAX_SNAPSHOT_ENDED {
        return Err(reader.invalid(count.into()));
    }
    let mut ended: Vec<EndedEntry> = Vec::new();
    for _ in 0..count {
        let entry = EndedEntry {
            first: reader.offset()?,
            end: reader.offset()?,
        };
        if entry.first >= entry.end || ended.last().is_some_and(|last| last.end >= entry.end) {
            return Err(reader.invalid(entry.end.get()));
        }
        ended.push(entry);
    }
    Ok(ended)
}

fn optional_offset(reader: &mut Reader) -> Result<Option<Offset>, WireError> {
    match reader.u64()? {
        NO_OFFSET => Ok(None),
        offset => match Offset::new(offset) {
            Some(offset) => Ok(Some(offset)),
            None => Err(reader.invalid(offset)),
        },
    }
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
            transaction: TransactionEntry::none(batch(batches.saturating_sub(1)).end),
        };
        ProducerSnapshot {
            incomplete: producers % 2 == 1,
            producers: (0..producers).map(entry).collect(),
            ended: Vec::new(),
        }
    }

    /// The same with transactions: of every producer one that is open, and as many that have ended.
    fn with_transactions(producers: usize, batches: usize, ended: usize) -> ProducerSnapshot {
        let mut snapshot = snapshot(producers, batches);
        for entry in &mut snapshot.producers {
            entry.transaction = TransactionEntry {
                coordinator_epoch: Some(4),
                open: Some(offset(7)),
                last_marker: Some(offset(5)),
                end: offset(2000),
            };
        }
        let ended = 0..ended as u64;
        snapshot.ended = ended
            .map(|i| EndedEntry {
                first: offset(3 * i),
                end: offset(3 * i + 9),
            })
            .collect();
        snapshot
    }

    #[test]
    fn a_snapshot_comes_back_and_the_largest_fits_its_bound() {
        for (producers, batches) in [
            (0, 0),
            (1, 1),
            (7, 5),
            (MAX_SNAPSHOT_PRODUCERS, MAX_SNAPSHOT_BATCHES),
        ] {
            let snapshot = snapshot(producers, batches);
            let bytes = snapshot.encode();
            assert!(bytes.len() <= MAX_SNAPSHOT_BYTES);
            assert_eq!(ProducerSnapshot::decode(bytes), Ok(snapshot));
        }
    }

    #[test]
    fn transactions_come_back_and_the_largest_fits_its_bound() {
        for (producers, batches, ended) in [(1, 0, 0), (3, 5, 2), (0, 0, 3)] {
            let snapshot = with_transactions(producers, batches, ended);
            assert_eq!(ProducerSnapshot::decode(snapshot.encode()), Ok(snapshot));
        }
        let largest = with_transactions(
            MAX_SNAPSHOT_PRODUCERS,
            MAX_SNAPSHOT_BATCHES,
            MAX_SNAPSHOT_ENDED,
        );
        assert_eq!(largest.encode().len(), MAX_SNAPSHOT_BYTES);
        assert_eq!(ProducerSnapshot::decode(largest.encode()), Ok(largest));
    }

    #[test]
    fn without_transactions_the_bytes_are_those_of_builds_that_know_none() {
        let bytes = snapshot(2, 1).encode();
        assert_eq!(
            bytes.len(),
            HEADER_BYTES + 2 * (PRODUCER_BYTES + BATCH_BYTES)
        );
        assert_eq!(bytes[0], 0);
    }

    #[test]
    fn transactions_that_cannot_be_are_refused() {
        let good = with_transactions(1, 1, 2);
        assert!(ProducerSnapshot::decode(good.encode()).is_ok());
        let wrong = |change: fn(&mut ProducerSnapshot)| {
            let mut wrong = good.clone();
            change(&mut wrong);
            ProducerSnapshot::decode(wrong.encode())
        };
        for (what, wrong) in [
            (
                "a transaction that begins at the producer's end",
                wrong(|s| s.producers[0].transaction.open = Some(offset(2000))),
            ),
            (
                "a batch behind the producer's end",
                wrong(|s| s.producers[0].transaction.end = offset(9)),
            ),
            (
                "neither a batch nor a marker",
                wrong(|s| {
                    s.producers[0].batches.clear();
                    s.producers[0].transaction.last_marker = None;
                }),
            ),
            ("ends that do not rise", wrong(|s| s.ended[1] = s.ended[0])),
            (
                "a transaction that ends where it begins",
                wrong(|s| s.ended[0].first = s.ended[0].end),
            ),
        ] {
            assert!(wrong.is_err(), "{what}");
        }
        let bytes = good.encode();
        for cut in 0..bytes.len() {
            assert!(ProducerSnapshot::decode(bytes.slice(..cut)).is_err());
        }
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
            ("a flag that is no flag", changed(0, &[4])),
            (
                "more producers than a partition has",
                changed(1, &[0, 0, 0x27, 0x11]),
            ),
            ("an id twice", changed(second, &[0; 8])),
            ("a negative id", changed(second, &[0x80])),
            ("a negative epoch", changed(HEADER_BYTES + 8, &[0x80])),
            ("no batch", changed(HEADER_BYTES + 10, &[0])),
            ("seventeen batches", changed(HEADER_BYTES + 10, &[17])),
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
