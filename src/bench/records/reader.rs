//! Reads records back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::delivered::Delivered;
use super::ledger::Found;
use crate::bench::BenchError;
use crate::client::{
    Client, ConsumerConfig, ConsumerRecord, Event, OffsetQuery, PartitionName, Start,
};
use crate::types::{Offset, PartitionIndex, TopicName};

/// A reader to which nothing comes for this long is stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What is in the topic, once nobody produces to it any more. Every partition is read from the first record to the last committed
/// one.
pub async fn read_all(client: &Client, topic: &TopicName, mark: u64) -> Result<Found, BenchError> {
    let within = client.config().request_timeout;
    let view = client.topic(topic, false, within).await;
    let view = view.map_err(BenchError::client("look the topic up"))?;
    let partitions = view.topics.get(topic).map(|topic| topic.partitions.iter());
    let starts = partitions
        .into_iter()
        .flatten()
        .map(|p| {
            (
                PartitionName::new(topic.clone(), p.partition),
                Start::Beginning,
            )
        })
        .collect();
    read_from(client, starts, mark).await
}

/// The same from these places on.
pub async fn read_from(
    client: &Client,
    starts: Vec<(PartitionName, Start)>,
    mark: u64,
) -> Result<Found, BenchError> {
    let mut found = Found::default();
    let take = |record: &ConsumerRecord| found.take(mark, record.record.value.as_deref());
    read(client, starts, &BTreeMap::new(), take).await?;
    Ok(found)
}

/// What is in these partitions of a topic below these offsets, or below the last committed record where that comes first.
pub async fn read_up_to(
    client: &Client,
    topic: &TopicName,
    limits: &BTreeMap<PartitionIndex, Offset>,
    mark: u64,
) -> Result<(Found, Delivered), BenchError> {
    let (mut found, mut delivered) = (Found::default(), Delivered::default());
    let starts = limits.keys().map(|partition| {
        let name = PartitionName::new(topic.clone(), *partition);
        (name, Start::Beginning)
    });
    let take = |record: &ConsumerRecord| {
        found.take(mark, record.record.value.as_deref());
        delivered.take(record.partition, record.record.offset.unsigned_abs());
    };
    read(client, starts.collect(), limits, take).await?;
    Ok((found, delivered))
}

async fn read(
    client: &Client,
    starts: Vec<(PartitionName, Start)>,
    limits: &BTreeMap<PartitionIndex, Offset>,
    mut take: impl FnMut(&ConsumerRecord),
) -> Result<(), BenchError> {
    let failed = || BenchError::client("read the records back");
    let mut open: BTreeSet<PartitionName> = starts.iter().map(|(name, _)| name.clone()).collect();
    let mut consumer = client
        .consumer(ConsumerConfig::default())
        .map_err(failed())?;
    consumer.assign(starts).await.map_err(failed())?;
    while !open.is_empty() {
        let event = tokio::time::timeout(PATIENCE, consumer.next())
            .await
            .map_err(|_| {
                BenchError::Failed(format!(
                    "nothing came within {} s while the records were read back",
                    PATIENCE.as_secs()
                ))
            })?
            .map_err(failed())?;
        match event {
            Event::Record(record) => {
                let limit = limits.get(&record.partition).map(|limit| limit.get());
                let next = record.record.offset.unsigned_abs() + 1;
                if limit.is_none_or(|limit| next <= limit) {
                    take(&record);
                }
                if limit.is_some_and(|limit| next >= limit) {
                    open.remove(&PartitionName::new(record.topic, record.partition));
                }
            }
            Event::EndOfPartition {
                topic, partition, ..
            } => {
                open.remove(&PartitionName::new(topic, partition));
            }
        }
    }
    Ok(())
}

/// Where the committed records of each partition end.
pub async fn ends(
    client: &Client,
    topic: &TopicName,
) -> Result<Vec<(PartitionName, Offset)>, BenchError> {
    let within = client.config().request_timeout;
    let view = client.topic(topic, false, within).await;
    let view = view.map_err(BenchError::client("look the topic up"))?;
    let partitions = view.topics.get(topic).map(|topic| topic.partitions.iter());
    let queries: Vec<_> = partitions
        .into_iter()
        .flatten()
        .map(|p| {
            (
                PartitionName::new(topic.clone(), p.partition),
                OffsetQuery::Latest,
            )
        })
        .collect();
    let found = client.offsets(&queries).await;
    let mut ends: Vec<_> = found
        .map_err(BenchError::client("look the ends of the partitions up"))?
        .into_iter()
        .map(|(name, end)| (name, end.unwrap_or(Offset::ZERO)))
        .collect();
    ends.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(ends)
}
