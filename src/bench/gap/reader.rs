//! Reads everything back, from the first record to the last committed one.

use std::time::Duration;

use super::GapError;
use super::ledger::Found;
use crate::client::{Client, ConsumerConfig, Event, Start};
use crate::types::TopicName;

/// A reader to which nothing comes for this long is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is in the topic, once nobody produces to it any more. Every partition is read to its end.
pub(super) async fn read_all(
    client: &Client,
    topic: &TopicName,
    mark: u64,
) -> Result<Found, GapError> {
    let failed = |source| GapError::Client {
        doing: "read the records back",
        source: Box::new(source),
    };
    let mut consumer = client.consumer(ConsumerConfig::default()).map_err(failed)?;
    consumer
        .assign_topic(topic, Start::Beginning)
        .await
        .map_err(failed)?;
    let mut open = consumer.assignment().count();
    let mut found = Found::default();
    while open > 0 {
        let event = tokio::time::timeout(PATIENCE, consumer.next())
            .await
            .map_err(|_| {
                GapError::Failed(format!(
                    "nothing came within {} s while the records were read back",
                    PATIENCE.as_secs()
                ))
            })?
            .map_err(failed)?;
        match event {
            Event::Record(record) => found.take(mark, record.record.value.as_deref()),
            Event::EndOfPartition { .. } => open -= 1,
        }
    }
    Ok(found)
}
