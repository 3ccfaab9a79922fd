//! A coordinator from what its partition holds.

use crate::broker::internal_topics::{ReplayError, replay};
use crate::groups::{Coordinator, Settings};
use crate::storage::LogReader;
use crate::types::Offset;

/// Reads everything below `end`. Blocks; takes as long as the log is.
pub(super) fn load(
    reader: &LogReader,
    end: Offset,
    settings: Settings,
) -> Result<Coordinator, ReplayError> {
    let mut coordinator = Coordinator::new(settings);
    let mut unreadable = 0_u64;
    let read = replay(reader, end, |record| {
        let key = record.key.as_deref();
        if let Err(error) = coordinator.replay(key, record.value.as_deref()) {
            unreadable += 1;
            tracing::warn!(offset = record.offset, cause = %error, "a record of a consumer group cannot be read");
        }
        Ok::<_, ReplayError>(())
    })?;
    tracing::debug!(
        records = read,
        unreadable,
        "read the consumer groups of a partition"
    );
    Ok(coordinator)
}
