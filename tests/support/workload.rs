//! Producing while things break, and checking afterwards what was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quorate::client::{
    Client, ConsumerConfig, DeliveryError, Event, Producer, ProducerConfig, ProducerRecord, Start,
};
use quorate::types::{PartitionIndex, TopicName};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, chain, until};

/// Records that a workload has unacknowledged at most.
const OUTSTANDING: usize = 256;
/// One record to each partition this often: some hundreds of records a second, so that a test's whole log is checked quickly.
const PACE: Duration = Duration::from_millis(2);

/// The producer's side of the story so far.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// By partition: sequence number → offset, of what was acknowledged. `None` where the offset was not told.
    pub acknowledged: BTreeMap<u32, BTreeMap<u64, Option<u64>>>,
    pub errors: Vec<String>,
    /// By partition: the longest time between two acknowledgements, and when the last one was.
    gaps: BTreeMap<u32, (Duration, Instant)>,
}

impl Story {
    pub fn count(&self) -> usize {
        self.acknowledged.values().map(BTreeMap::len).sum()
    }

    pub fn longest_gap(&self) -> Duration {
        let gaps = self.gaps.values().map(|(longest, _)| *longest);
        gaps.max().unwrap_or_default()
    }
}

/// A task that produces numbered records to some partitions of a topic until it is stopped.
pub struct Workload {
    topic: TopicName,
    story: Arc<Mutex<Story>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// A record's value: its number in its partition, padded to `size` bytes.
fn value(sequence: u64, size: usize) -> Vec<u8> {
    let mut value = format!("{sequence:010} ").into_bytes();
    value.resize(size.max(value.len()), b'.');
    value
}

fn sequence(value: &[u8]) -> u64 {
    let digits = std::str::from_utf8(&value[..10]).unwrap();
    digits.parse().unwrap()
}

impl Workload {
    /// Produces records of `size` bytes to `partitions` of `topic`.
    pub fn start(
        client: &Client,
        topic: &TopicName,
        partitions: &[u32],
        size: usize,
        config: ProducerConfig,
    ) -> Workload {
        let producer = client.producer(config).unwrap();
        let story = Arc::new(Mutex::new(Story::default()));
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(
            producer,
            topic.clone(),
            partitions.to_vec(),
            size,
            story.clone(),
            stop.clone(),
        ));
        Workload {
            topic: topic.clone(),
            story,
            stop,
            task,
        }
    }

    pub fn story(&self) -> Story {
        self.story.lock().unwrap().clone()
    }

    /// Waits until `count` records more than now are acknowledged, in every partition that the workload writes to.
    pub async fn until_acknowledged(&self, partitions: &[u32], count: usize) {
        let acknowledged =
            |story: &Story, index: &u32| story.acknowledged.get(index).map_or(0, BTreeMap::len);
        let before = self.story();
        until(
            &format!("{count} more records are acknowledged"),
            async || {
                let now = self.story();
                for index in partitions {
                    let (had, has) = (acknowledged(&before, index), acknowledged(&now, index));
                    if has < had + count {
                        return Err(format!(
                            "partition {index}: {has}, was {had}; errors: {:?}",
                            now.errors
                        ));
                    }
                }
                Ok(())
            },
        )
        .await;
    }

    /// From now on the longest gap is counted anew.
    pub fn forget_gaps(&self) {
        let now = Instant::now();
        let mut story = self.story.lock().unwrap();
        for (longest, last) in story.gaps.values_mut() {
            *longest = Duration::ZERO;
            *last = now;
        }
    }

    /// Sends no more, waits for what is outstanding, and tells how it went.
    pub async fn finish(self) -> Story {
        self.stop.cancel();
        tokio::time::timeout(2 * PATIENCE, self.task)
            .await
            .unwrap_or_else(|_| {
                panic!(
                    "records of {} are neither acknowledged nor failed",
                    self.topic
                )
            })
            .unwrap();
        let story = self.story.lock().unwrap();
        story.clone()
    }
}

async fn run(
    producer: Producer,
    topic: TopicName,
    partitions: Vec<u32>,
    size: usize,
    story: Arc<Mutex<Story>>,
    stop: CancellationToken,
) {
    let mut outstanding = FuturesUnordered::new();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut next = 0;
    let note = |index: u32, number: u64, result: Result<_, DeliveryError>| {
        let mut story = story.lock().unwrap();
        match result {
            Ok(offset) => {
                let now = Instant::now();
                let (longest, last) = story.gaps.entry(index).or_insert((Duration::ZERO, now));
                *longest = (*longest).max(now - *last);
                *last = now;
                let own = story.acknowledged.entry(index).or_default();
                own.insert(number, offset);
            }
            Err(error) => story.errors.push(chain(&error)),
        }
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some((index, number, result)) = outstanding.next() => note(index, number, result),
            _ = pace.tick(), if outstanding.len() < OUTSTANDING => {
                for index in &partitions {
                    let record = ProducerRecord {
                        partition: Some(PartitionIndex(*index)),
                        ..ProducerRecord::new(topic.clone(), value(next, size))
                    };
                    let (index, number) = (*index, next);
                    match producer.send(record).await {
                        Ok(delivery) => outstanding.push(async move {
                            let delivered = delivery.await;
                            (index, number, delivered.map(|d| d.offset.map(|o| o.get())))
                        }),
                        Err(error) => story.lock().unwrap().errors.push(chain(&error)),
                    }
                }
                next += 1;
            }
        }
    }
    producer.flush().await;
    while let Some((index, number, result)) = outstanding.next().await {
        note(index, number, result);
    }
    producer.close().await;
}

/// Every record of a topic, by partition: offset and value.
pub async fn consume_all(client: &Client, topic: &TopicName) -> BTreeMap<u32, Vec<(u64, Vec<u8>)>> {
    let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
    let read = async {
        consumer
            .assign_topic(topic, Start::Beginning)
            .await
            .unwrap();
        let mut open: BTreeSet<u32> = consumer.assignment().map(|name| name.partition.0).collect();
        let mut found: BTreeMap<u32, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
        while !open.is_empty() {
            match consumer.next().await {
                Ok(Event::Record(record)) => {
                    let value = record.record.value.as_deref().unwrap_or_default().to_vec();
                    let offset = u64::try_from(record.record.offset).unwrap();
                    let own = found.entry(record.partition.0).or_default();
                    own.push((offset, value));
                }
                Ok(Event::EndOfPartition { partition, .. }) => {
                    open.remove(&partition.0);
                }
                Err(error) => panic!("cannot consume {topic}: {}", chain(&error)),
            }
        }
        found
    };
    tokio::time::timeout(2 * PATIENCE, read)
        .await
        .unwrap_or_else(|_| panic!("{topic} cannot be read to its end"))
}

/// What was acknowledged is there, where it was said to be; in order; nothing twice. Returns each partition's end.
pub async fn check(client: &Client, topic: &TopicName, story: &Story) -> BTreeMap<u32, u64> {
    let found = consume_all(client, topic).await;
    let mut ends = BTreeMap::new();
    for (index, acknowledged) in &story.acknowledged {
        let records = found.get(index).map_or(&[][..], Vec::as_slice);
        let mut at = BTreeMap::new();
        let mut before: Option<(u64, u64)> = None;
        for (offset, value) in records {
            let number = sequence(value);
            if let Some((offset_before, number_before)) = before {
                assert_eq!(*offset, offset_before + 1, "{topic}-{index} has a hole");
                assert!(
                    number > number_before,
                    "{topic}-{index}: record {number} at offset {offset} comes after record {number_before}"
                );
            }
            before = Some((*offset, number));
            at.insert(number, *offset);
        }
        for (number, offset) in acknowledged {
            let there = at.get(number);
            assert!(
                there.is_some(),
                "{topic}-{index}: record {number} was acknowledged at {offset:?} and is lost; {} records are there, {} were acknowledged",
                records.len(),
                acknowledged.len()
            );
            if offset.is_some() {
                assert_eq!(there.copied(), *offset, "{topic}-{index}: record {number}");
            }
        }
        ends.insert(*index, records.last().map_or(0, |(offset, _)| offset + 1));
    }
    ends
}
