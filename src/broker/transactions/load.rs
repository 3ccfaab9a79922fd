//! A coordinator from what its partition holds.

use thiserror::Error;

use crate::record::{BatchError, Batches, RecordError, records};
use crate::storage::{LogReader, ReadError};
use crate::transactions::{Coordinator, FormatError, Settings};
use crate::types::{LeaderEpoch, Offset};

/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// Why a partition's transactions could not be read.
#[derive(Debug, Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Record(#[from] RecordError),
    /// To pass it over would leave an earlier state of its id in force.
    #[error("the record at offset {offset}: {source}")]
    Format { offset: i64, source: FormatError },
}

/// Reads everything below `end`, for a coordinator that leads in `epoch`. Blocks; takes as long as the log is.
pub(super) fn load(
    reader: &LogReader,
    end: Offset,
    settings: Settings,
    epoch: LeaderEpoch,
) -> Result<Coordinator, LoadError> {
    let mut coordinator = Coordinator::new(settings, epoch);
    let mut from = reader.earliest();
    let mut read = 0_u64;
    while from < end {
        let chunks = reader.read_records(from, READ_BYTES, end)?;
        let mut next = from;
        for chunk in chunks {
            for batch in Batches::new(chunk) {
                let batch = batch?;
                for record in records(&batch)? {
                    let record = record?;
                    // A batch that compaction has joined begins before.
                    if record.offset < from.to_wire() {
                        continue;
                    }
                    read += 1;
                    let key = record.key.as_deref();
                    let replayed = coordinator.replay(key, record.value.as_deref());
                    replayed.map_err(|source| LoadError::Format {
                        offset: record.offset,
                        source,
                    })?;
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
    tracing::debug!(records = read, "read the transactions of a partition");
    Ok(coordinator)
}
