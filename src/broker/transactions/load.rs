//! A coordinator from what its partition holds.

use thiserror::Error;

use crate::broker::internal_topics::{ReplayError, replay};
use crate::storage::LogReader;
use crate::transactions::{Coordinator, FormatError, Settings};
use crate::types::{LeaderEpoch, Offset};

/// Why a partition's transactions could not be read.
#[derive(Debug, Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Replay(#[from] ReplayError),
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
    let read = replay(reader, end, |record| {
        let key = record.key.as_deref();
        let replayed = coordinator.replay(key, record.value.as_deref());
        replayed.map_err(|source| LoadError::Format {
            offset: record.offset,
            source,
        })
    })?;
    tracing::debug!(records = read, "read the transactions of a partition");
    Ok(coordinator)
}
