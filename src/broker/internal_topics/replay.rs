//! A partition of an internal topic, read record by record.

use thiserror::Error;

use crate::record::{BatchError, Batches, Record, RecordError, records};
use crate::storage::{LogReader, ReadError};
use crate::types::Offset;

/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// Why a partition could not be read.
#[derive(Debug, Error)]
pub(in crate::broker) enum ReplayError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Shows every record below `end`, in order, and returns how many there were. Blocks; takes as long as the log is.
pub(in crate::broker) fn replay<E: From<ReplayError>>(
    reader: &LogReader,
    end: Offset,
    mut show: impl FnMut(&Record) -> Result<(), E>,
) -> Result<u64, E> {
    let mut from = reader.earliest();
    let mut shown = 0;
    while from < end {
        let chunks = reader
            .read_records(from, READ_BYTES, end)
            .map_err(ReplayError::from)?;
        let mut next = from;
        for chunk in chunks {
            for batch in Batches::new(chunk) {
                let batch = batch.map_err(ReplayError::from)?;
                for record in records(&batch).map_err(ReplayError::from)? {
                    let record = record.map_err(ReplayError::from)?;
                    // A batch that compaction has joined begins before.
                    if record.offset < from.to_wire() {
                        continue;
                    }
                    shown += 1;
                    show(&record)?;
                }
                next = Offset::from_wire(batch.header.next_offset()).unwrap_or(end);
            }
        }
        if next <= from {
            // Nothing is left there: the last records were compacted away.
            break;
        }
        from = next;
    }
    Ok(shown)
}
