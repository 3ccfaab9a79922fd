//! Changing batches that were sealed: one that is too large for its topic becomes two, and one gets another stamp.

use bytes::Bytes;

use crate::record::{Batch, BatchBuilder, ProducerStamp, records, restamp_producer};

/// The two batches that take the place of one.
#[derive(Debug)]
pub(super) struct Halves {
    pub(super) first: Bytes,
    pub(super) second: Bytes,
    /// How many of the records are in the first.
    pub(super) first_count: i32,
}

/// The records of a sealed batch in two batches, in their order, with the same codec and the sequence numbers that they have.
/// `None` for a batch of one record, and for one that cannot be read.
pub(super) fn halves(batch: &Bytes) -> Option<Halves> {
    let batch = Batch::decode(batch).ok()?;
    let header = &batch.header;
    let first_count = header.record_count / 2;
    if first_count == 0 {
        return None;
    }
    let mut builders = [BatchBuilder::new(), BatchBuilder::new()];
    for (index, record) in (0..).zip(records(&batch).ok()?) {
        let record = record.ok()?;
        let builder = &mut builders[usize::from(index >= first_count)];
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        builder
            .append(key, value, &record.headers, record.timestamp)
            .ok()?;
    }
    let compression = header.compression().ok()?;
    let stamp = |skipped: i32| {
        header.producer_id.map(|id| ProducerStamp {
            id,
            epoch: header.producer_epoch,
            base_sequence: add_sequence(header.base_sequence, skipped),
        })
    };
    let [first, second] = builders.map(|builder| builder.seal(compression));
    Some(Halves {
        first: first.ok()?.stamp(stamp(0)),
        second: second.ok()?.stamp(stamp(first_count)),
        first_count,
    })
}

/// Kafka's sequence numbers run from 0 to `i32::MAX` and then start at 0 again.
pub(super) fn add_sequence(sequence: i32, records: i32) -> i32 {
    ((i64::from(sequence) + i64::from(records)) % (i64::from(i32::MAX) + 1)) as i32
}

/// The batch with another stamp. It was made here, so it can be read.
pub(super) fn restamp(bytes: Bytes, stamp: Option<ProducerStamp>) -> Bytes {
    match Batch::decode(&bytes) {
        Ok(batch) => restamp_producer(&batch, stamp),
        Err(_) => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Compression;
    use crate::types::ProducerId;

    #[test]
    fn both_halves_together_are_the_batch() {
        for compression in [Compression::None, Compression::Zstd] {
            let mut builder = BatchBuilder::new();
            for n in 0..7_i64 {
                let key = n.to_string();
                let headers = [("h".to_owned(), (n == 3).then(|| Bytes::from("v")))];
                let value = (n != 5).then_some(&b"value"[..]);
                builder
                    .append(Some(key.as_bytes()), value, &headers, 1000 - n)
                    .unwrap();
            }
            let stamp = ProducerStamp {
                id: ProducerId::new(9).unwrap(),
                epoch: 2,
                base_sequence: i32::MAX - 1,
            };
            let whole = builder.seal(compression).unwrap().stamp(Some(stamp));
            let halves = halves(&whole).unwrap();
            assert_eq!(halves.first_count, 3);
            let content = |bytes: &Bytes| {
                let batch = Batch::decode(bytes).unwrap();
                batch.verify_crc().unwrap();
                assert_eq!(batch.header.compression(), Ok(compression));
                assert_eq!(batch.header.producer_epoch, 2);
                let records: Vec<_> = records(&batch)
                    .unwrap()
                    .map(|record| {
                        let record = record.unwrap();
                        (record.key, record.value, record.headers, record.timestamp)
                    })
                    .collect();
                (batch.header.base_sequence, records)
            };
            let (first_sequence, mut first) = content(&halves.first);
            let (second_sequence, second) = content(&halves.second);
            assert_eq!((first_sequence, second_sequence), (i32::MAX - 1, 1));
            first.extend(second);
            assert_eq!(first, content(&whole).1);
        }
    }

    #[test]
    fn one_record_cannot_be_parted() {
        let mut builder = BatchBuilder::new();
        builder.append(None, Some(b"x"), &[], 0).unwrap();
        let batch = builder.seal(Compression::None).unwrap().stamp(None);
        assert!(halves(&batch).is_none());
        assert!(halves(&Bytes::from("no batch")).is_none());
    }
}
