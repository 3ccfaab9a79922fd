//! Offsets by time.

use crate::record::{Batch, records};
use crate::storage::{LogReader, ReadError};
use crate::types::Offset;

/// A batch comes whole whatever its size; one is wanted.
const MAX_BATCH_BYTES: usize = 1;

/// The first record below `below` whose timestamp (ms since 1970) is at or after `timestamp`: its offset and timestamp.
pub(super) fn first_at_or_after(
    reader: &LogReader,
    timestamp: i64,
    below: Offset,
) -> Result<Option<(Offset, i64)>, ReadError> {
    let Some((base, max_timestamp)) = reader.offset_for_timestamp(timestamp, below)? else {
        return Ok(None);
    };
    let found = reader.read_records(base, MAX_BATCH_BYTES, below)?;
    let within = found
        .first()
        .and_then(|bytes| Batch::decode(bytes).ok())
        .and_then(|batch| records(&batch).ok())
        .and_then(|mut records| {
            records.find_map(|record| {
                let record = record.ok()?;
                let offset = Offset::from_wire(record.offset)?;
                (record.timestamp >= timestamp).then_some((offset, record.timestamp))
            })
        });
    // A batch that cannot be expanded is answered with its own first offset: a consumer then reads a little too much.
    Ok(Some(within.unwrap_or((base, max_timestamp))))
}

/// The record below `below` with the largest timestamp; of several, the first.
pub(super) fn youngest(
    reader: &LogReader,
    below: Offset,
) -> Result<Option<(Offset, i64)>, ReadError> {
    let mut largest = None;
    for frame in reader.frames(reader.start()) {
        let frame = frame?;
        if frame.end_offset() > below {
            break;
        }
        if frame.is_epoch_start() {
            continue;
        }
        if let Ok(batch) = Batch::decode(&frame.payload()) {
            let timestamp = batch.header.max_timestamp;
            if largest.is_none_or(|known| timestamp > known) {
                largest = Some(timestamp);
            }
        }
    }
    match largest {
        None => Ok(None),
        Some(timestamp) => first_at_or_after(reader, timestamp, below),
    }
}
