//! Offsets by time.

use std::ops::Range;

use crate::record::{Batch, Record, records};
use crate::storage::{LogReader, ReadError};
use crate::types::Offset;

/// A batch comes whole whatever its size; one is wanted.
const MAX_BATCH_BYTES: usize = 1;

/// The first record within `range` whose timestamp (ms since 1970) is at or after `timestamp`: its offset and timestamp.
pub(super) fn first_at_or_after(
    reader: &LogReader,
    timestamp: i64,
    range: Range<Offset>,
) -> Result<Option<(Offset, i64)>, ReadError> {
    let Some((base, max_timestamp)) = reader.offset_for_timestamp(timestamp, range.end)? else {
        return Ok(None);
    };
    let mut at = base.max(range.start);
    while at < range.end {
        let found = reader.read_records(at, MAX_BATCH_BYTES, range.end)?;
        let Some(batch) = found.first().and_then(|bytes| Batch::decode(bytes).ok()) else {
            return Ok(None);
        };
        // Only where the batch's young records were deleted: the next one may have others.
        let end = Offset::from_wire(batch.header.next_offset()).filter(|end| *end > at);
        if batch.header.max_timestamp < timestamp {
            let Some(end) = end else {
                return Ok(None);
            };
            at = end;
            continue;
        }
        let Ok(mut within) = records(&batch) else {
            // A batch that cannot be expanded is answered with its own first offset: a consumer then reads a little too much.
            return Ok(Some((at, max_timestamp)));
        };
        let young = |(offset, record): &(Offset, i64)| *offset >= at && *record >= timestamp;
        if let Some(first) = within.by_ref().filter_map(place).find(young) {
            return Ok(Some(first));
        }
        let Some(end) = end else {
            return Ok(None);
        };
        at = end;
    }
    Ok(None)
}

/// The record within `range` with the largest timestamp; of several, the first.
pub(super) fn youngest(
    reader: &LogReader,
    range: Range<Offset>,
) -> Result<Option<(Offset, i64)>, ReadError> {
    let mut largest = None;
    for frame in reader.frames(reader.start()) {
        let frame = frame?;
        if frame.end_offset() > range.end {
            break;
        }
        if frame.is_epoch_start() || frame.end_offset() <= range.start {
            continue;
        }
        let Ok(batch) = Batch::decode(&frame.payload()) else {
            continue;
        };
        let timestamp = if frame.base_offset() < range.start {
            let kept = |(offset, _): &(Offset, i64)| *offset >= range.start;
            let within = records(&batch).ok().into_iter().flatten().filter_map(place);
            within.filter(kept).map(|(_, timestamp)| timestamp).max()
        } else {
            Some(batch.header.max_timestamp)
        };
        largest = largest.max(timestamp);
    }
    match largest {
        None => Ok(None),
        Some(timestamp) => first_at_or_after(reader, timestamp, range),
    }
}

/// Offset and timestamp of a record.
fn place<E>(record: Result<Record, E>) -> Option<(Offset, i64)> {
    let record = record.ok()?;
    Some((Offset::from_wire(record.offset)?, record.timestamp))
}
