//! A coordinator's records into its partition.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::broker::event::{Event, ProduceEvent};
use crate::broker::shared::Shared;
use crate::record::{Batch, BatchBuilder, Compression, LogRecord};
use crate::replication::Acks;
use crate::types::{ErrorCode, LeaderEpoch, TopicPartition};

/// How long in-sync replicas have to confirm a batch: Kafka's `offsets.commit.timeout.ms`. What comes of it later is seen when
/// the partition is read anew.
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);

/// Appends records as one batch, in this leader epoch and no other, and waits until they are committed.
pub(in crate::broker) async fn write(
    shared: Arc<Shared>,
    id: TopicPartition,
    epoch: LeaderEpoch,
    records: Vec<LogRecord>,
    wall_ms: i64,
) -> Result<(), ErrorCode> {
    let batch = build(&records, wall_ms).ok_or(ErrorCode::UnknownServerError)?;
    drop(records);
    let (reply, answer) = oneshot::channel();
    let event = Event::Produce(Box::new(ProduceEvent {
        id,
        batch,
        acks: Acks::All,
        deadline: shared.clock.now() + WRITTEN_WITHIN,
        in_epoch: Some(epoch),
        guard: None,
        reply,
    }));
    shared
        .deliver(id, event)
        .await
        .map_err(|_| ErrorCode::NotLeaderOrFollower)?;
    match answer.await {
        Ok(result) => result.map(|_| ()),
        Err(_) => Err(ErrorCode::NotLeaderOrFollower),
    }
}

/// `None` only where records are larger than a batch can be, which their caps rule out.
fn build(records: &[LogRecord], wall_ms: i64) -> Option<Batch> {
    let mut builder = BatchBuilder::new();
    for record in records {
        builder
            .append(Some(&record.key), record.value.as_deref(), &[], wall_ms)
            .ok()?;
    }
    let bytes = builder.seal(Compression::None).ok()?.stamp(None);
    Batch::decode(&bytes).ok()
}
