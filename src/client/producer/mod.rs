//! The producer: batches records, sends many requests at a time, retries without reordering.
//!
//! - [`partitioner`]: which partition a record goes to
//! - [`accumulator`]: one partition's batches, their order, retries and sequence numbers
//! - [`sender`]: the task that sends them
//! - [`delivery`]: what comes back to the caller

mod accumulator;
mod delivery;
mod halves;
mod hold;
mod mean_time;
mod partitioner;
mod passes;
mod sender;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::accumulator::{PartitionQueue, QueueConfig};
use self::delivery::BatchOutcome;
pub use self::delivery::{Delivered, Delivery, DeliveryCause, DeliveryError};
use self::partitioner::Partitioner;
pub use self::partitioner::Partitioning;
use self::sender::Sender;
use super::error::ClientError;
use super::metadata::PartitionName;
use super::{Client, lock};
use crate::record::{BatchBuilder, Compression, Header};
use crate::types::{ErrorCode, PartitionIndex, TopicName};

/// When a record counts as delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// When it was sent. Nobody says whether it arrived.
    None,
    /// When the leader alone holds it. It is lost if the leader is.
    Leader,
    /// When the partition's commit quorum holds it durably.
    #[default]
    All,
}

impl Acks {
    /// Kafka's number for it.
    const fn to_wire(self) -> i16 {
        match self {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        }
    }

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Acks::None => "0",
            Acks::Leader => "1",
            Acks::All => "all",
        }
    }
}

/// Text that is none of the three.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("write all, 1 or 0")]
pub struct InvalidAcks;

impl FromStr for Acks {
    type Err = InvalidAcks;

    fn from_str(text: &str) -> Result<Acks, InvalidAcks> {
        match text {
            "all" | "-1" => Ok(Acks::All),
            "1" => Ok(Acks::Leader),
            "0" => Ok(Acks::None),
            _ => Err(InvalidAcks),
        }
    }
}

/// How a producer behaves. The defaults are Kafka's but for `batch_bytes` and `compression`, which are said below.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Default [`Acks::All`].
    pub acks: Acks,
    /// `linger.ms`: how long an open batch waits for more records, whatever else is on its way. Default 5 ms. With 0 it waits only
    /// behind another batch of its partition, for 1 ms, and not where answers take longer than 16 ms.
    pub linger: Duration,
    /// `batch.size`: a batch is closed at this size, in bytes before compression. Default 256 KiB and not Kafka's 16 KiB:
    /// sixteen batches are in flight for a partition, and that much is needed to fill a long link with them. It costs nothing
    /// where records are few, as a batch's memory grows with its records. A larger record gets a batch of its own.
    pub batch_bytes: usize,
    /// Default none.
    pub compression: Compression,
    /// `enable.idempotence`: the leader drops what it already has when a batch is sent again. `None`, the default: with
    /// [`Acks::All`], which it needs.
    pub idempotence: Option<bool>,
    /// `buffer.memory`: how much, in bytes, may wait for its acknowledgement in all. [`Producer::send`] waits at this cap.
    /// Default 32 MiB.
    pub max_in_flight_bytes: usize,
    /// How many batches of one partition may be unacknowledged: 1 to 5. `None`, the default: 5 with idempotence and with
    /// [`Acks::None`], else 1, because without sequence numbers a batch that is sent again may land behind one that was
    /// sent after it.
    pub max_in_flight_batches: Option<usize>,
    /// `max.request.size`: the most that one request carries, and the largest record, in bytes. Default 8 MiB; what a topic
    /// takes in one batch is limited by its `max.message.bytes` besides.
    pub max_request_bytes: usize,
    /// `delivery.timeout.ms`: from when a record's batch is opened to when it is acknowledged, retries included. Default
    /// 120 s.
    pub delivery_timeout: Duration,
    /// `max.block.ms`: how long [`Producer::send`] waits to learn of the topic. Default 60 s.
    pub max_block: Duration,
    pub partitioning: Partitioning,
    /// Whether a topic that does not exist is created, where the cluster allows it. Default true, as in Kafka.
    pub create_topics: bool,
    /// Lanes to each node. A partition's batches all take the same one. Default 4.
    pub lanes: usize,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        ProducerConfig {
            acks: Acks::All,
            linger: Duration::from_millis(5),
            batch_bytes: 256 << 10,
            compression: Compression::None,
            idempotence: None,
            max_in_flight_bytes: 32 << 20,
            max_in_flight_batches: None,
            max_request_bytes: 8 << 20,
            delivery_timeout: Duration::from_secs(120),
            max_block: Duration::from_secs(60),
            partitioning: Partitioning::KeyHash,
            create_topics: true,
            lanes: 16,
        }
    }
}

/// The most batches of one partition that an idempotent producer may have unacknowledged: a leader remembers so many.
const MAX_IN_FLIGHT_BATCHES: usize = 16;

impl ProducerConfig {
    fn is_idempotent(&self) -> bool {
        self.idempotence.unwrap_or(self.acks == Acks::All)
    }

    fn in_flight_batches(&self) -> usize {
        self.max_in_flight_batches
            .unwrap_or(if self.is_idempotent() || self.acks == Acks::None {
                MAX_IN_FLIGHT_BATCHES
            } else {
                1
            })
    }

    fn check(&self) -> Result<(), ClientError> {
        let fault = if self.is_idempotent() && self.acks != Acks::All {
            "an idempotent producer needs acks=all: drop one of the two"
        } else if !(1..=MAX_IN_FLIGHT_BATCHES).contains(&self.in_flight_batches()) {
            "1 to 16 batches of a partition can be in flight"
        } else if self.batch_bytes == 0 || self.lanes == 0 || self.max_request_bytes == 0 {
            "batch size, request size and number of lanes must be at least 1"
        } else if !(1..=u32::MAX as usize).contains(&self.max_in_flight_bytes) {
            "1 byte to 4 GiB can be in flight"
        } else {
            return Ok(());
        };
        Err(ClientError::Configuration {
            what: fault.to_owned(),
        })
    }
}

/// A record to be produced.
#[derive(Clone, Debug)]
pub struct ProducerRecord {
    pub topic: TopicName,
    /// `None`: the producer chooses; see [`Partitioning`].
    pub partition: Option<PartitionIndex>,
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
    /// Milliseconds since 1970; `None`: now.
    pub timestamp: Option<i64>,
}

impl ProducerRecord {
    /// A record with a value only.
    pub fn new(topic: TopicName, value: impl Into<Bytes>) -> ProducerRecord {
        ProducerRecord {
            topic,
            partition: None,
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp: None,
        }
    }
}

/// Sends records to topics. Share it behind an `Arc` to send from several tasks.
///
/// Dropping it fails what is not acknowledged yet: [`Producer::close`] it.
pub struct Producer {
    client: Client,
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

/// What the callers and the sending task share.
struct Shared {
    config: ProducerConfig,
    accumulator: Mutex<Accumulator>,
    /// A permit is a byte of [`ProducerConfig::max_in_flight_bytes`].
    memory: Arc<Semaphore>,
    /// Callers that wait for memory. While there are any, open batches are sent at once.
    waiting_for_memory: AtomicUsize,
    /// There may be something to do for the sending task.
    wake: Notify,
}

struct Accumulator {
    queues: HashMap<PartitionName, PartitionQueue>,
    partitioner: Partitioner,
    closed: bool,
}

impl Producer {
    pub(super) fn new(client: Client, config: ProducerConfig) -> Result<Producer, ClientError> {
        config.check()?;
        let shared = Arc::new(Shared {
            accumulator: Mutex::new(Accumulator {
                queues: HashMap::new(),
                partitioner: Partitioner::new(config.partitioning, client.random()),
                closed: false,
            }),
            memory: Arc::new(Semaphore::new(config.max_in_flight_bytes)),
            waiting_for_memory: AtomicUsize::new(0),
            wake: Notify::new(),
            config,
        });
        let sender = Sender::new(client.clone(), shared.clone());
        let task = Mutex::new(Some(tokio::spawn(sender.run())));
        Ok(Producer {
            client,
            shared,
            task,
        })
    }

    /// Hands over a record. Returns once it has its place in a batch; waits for that while as much is in flight as the
    /// producer may hold, or while the topic is not known yet. The records of calls made one after another go out in that
    /// order, partition by partition.
    ///
    /// # Errors
    /// The record was not taken: the topic or partition does not exist or could not be looked up, the record is larger
    /// than [`ProducerConfig::max_request_bytes`], or the producer is closed.
    pub async fn send(&self, record: ProducerRecord) -> Result<Delivery, ClientError> {
        let config = &self.shared.config;
        let view = self
            .client
            .topic(&record.topic, config.create_topics, config.max_block)
            .await?;
        let Some(topic) = view.topics.get(&record.topic) else {
            return Err(ClientError::UnknownTopic {
                topic: record.topic,
            });
        };
        if let Some(partition) = record.partition
            && partition.0 as usize >= topic.partitions.len()
        {
            return Err(ClientError::UnknownPartition {
                partitions: topic.partitions.len(),
                topic: record.topic,
                partition,
            });
        }
        let key = record.key.as_deref();
        let value = record.value.as_deref();
        let size = BatchBuilder::record_size_bound(key, value, &record.headers);
        if size > config.max_request_bytes {
            return Err(too_large(&record.topic, size, config.max_request_bytes));
        }
        let memory = self.reserve(size).await?;
        let timestamp = record.timestamp.unwrap_or_else(now_ms);

        let now = Instant::now();
        let mut accumulator = lock(&self.shared.accumulator);
        let Accumulator {
            queues,
            partitioner,
            closed,
        } = &mut *accumulator;
        if *closed {
            return Err(ClientError::Closed);
        }
        let name = |partition| PartitionName::new(record.topic.clone(), partition);
        let partition = record.partition.unwrap_or_else(|| {
            partitioner.choose(topic, key, |partition| {
                queues
                    .get(&name(partition))
                    .map_or(0, PartitionQueue::closed_batches)
            })
        });
        let name = name(partition);
        let queue = queues.entry(name.clone()).or_insert_with(|| {
            let queue_config = QueueConfig {
                batch_bytes: config.batch_bytes,
                linger: config.linger,
                delivery_timeout: config.delivery_timeout,
                max_in_flight: config.in_flight_batches(),
                backoff: self.client.config().backoff,
            };
            let seed = self.client.random();
            PartitionQueue::new(name.clone(), queue_config, config.is_idempotent(), seed)
        });
        let appended = queue
            .append(key, value, &record.headers, timestamp, memory, now)
            .map_err(|_| too_large(&record.topic, size, config.max_request_bytes))?;
        drop(accumulator);
        if appended.wake {
            self.shared.wake.notify_one();
        }
        Ok(Delivery::new(name, appended.index, appended.done))
    }

    /// Waits until there is room for `size` bytes. A record larger than the whole cap gets all of it.
    async fn reserve(&self, size: usize) -> Result<OwnedSemaphorePermit, ClientError> {
        let shared = &self.shared;
        // The cap was checked to be within a u32.
        let permits = size.min(shared.config.max_in_flight_bytes) as u32;
        if let Ok(memory) = shared.memory.clone().try_acquire_many_owned(permits) {
            return Ok(memory);
        }
        let _waiting = Waiting::new(shared);
        shared
            .memory
            .clone()
            .acquire_many_owned(permits)
            .await
            .map_err(|_| ClientError::Closed)
    }

    /// Sends everything that was handed over so far without waiting for more, and waits until all of it is acknowledged or
    /// has failed. Which of the two, each record's [`Delivery`] says.
    pub async fn flush(&self) {
        let unfinished = {
            let mut accumulator = lock(&self.shared.accumulator);
            let queues = accumulator.queues.values_mut();
            queues
                .flat_map(|queue| {
                    queue.flush();
                    queue.unfinished().collect::<Vec<_>>()
                })
                .collect::<Vec<_>>()
        };
        self.shared.wake.notify_one();
        let mut unfinished = unfinished;
        while let Some(batch) = unfinished.pop() {
            // How it ended is its deliveries' affair; but one that was parted goes on as two.
            if let Ok(Ok(BatchOutcome::Split { first, second, .. })) = batch.await {
                unfinished.extend([first, second]);
            }
        }
    }

    /// [`Producer::flush`], then the end. No record is taken any more from the moment of the call.
    pub async fn close(&self) {
        lock(&self.shared.accumulator).closed = true;
        self.flush().await;
        self.shared.memory.close();
        self.shared.wake.notify_one();
        let task = lock(&self.task).take();
        if let Some(task) = task {
            // It ends by itself, and an error means that the runtime is shutting down.
            let _ = task.await;
        }
    }

    /// How many bytes are in flight: handed over and not yet acknowledged or failed.
    pub fn in_flight_bytes(&self) -> usize {
        let free = self.shared.memory.available_permits();
        self.shared.config.max_in_flight_bytes.saturating_sub(free)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        lock(&self.shared.accumulator).closed = true;
        self.shared.memory.close();
        self.shared.wake.notify_one();
    }
}

/// Counts a caller that waits for memory, also when it gives up.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Waiting<'a> {
        shared.waiting_for_memory.fetch_add(1, Ordering::Relaxed);
        shared.wake.notify_one();
        Waiting(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting_for_memory.fetch_sub(1, Ordering::Relaxed);
    }
}

fn too_large(topic: &TopicName, size: usize, max: usize) -> ClientError {
    ClientError::Refused {
        what: format!("producing to {topic}"),
        code: ErrorCode::MessageTooLarge,
        message: Some(format!(
            "the record takes {size} bytes and the producer's max.request.size is {max}"
        )),
    }
}

/// Milliseconds since 1970; 0 on a machine that believes it is earlier.
fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::testing::{FakeNode, Fault};
    use crate::types::{Offset, ProducerId};

    fn record(value: &str) -> ProducerRecord {
        ProducerRecord {
            partition: Some(PartitionIndex(0)),
            ..ProducerRecord::new(TopicName::new("t").unwrap(), value.to_owned())
        }
    }

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    /// One record a batch, sent at once.
    fn single() -> ProducerConfig {
        ProducerConfig {
            batch_bytes: 1,
            linger: Duration::ZERO,
            ..ProducerConfig::default()
        }
    }

    async fn send_all(producer: &Producer, count: usize) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for i in 0..count {
            deliveries.push(producer.send(record(&i.to_string())).await.unwrap());
        }
        deliveries
    }

    fn numbers(count: usize) -> Vec<String> {
        (0..count).map(|i| i.to_string()).collect()
    }

    #[tokio::test]
    async fn records_arrive_in_order_with_their_offsets() {
        let node = FakeNode::start(1);
        for compression in Compression::ALL {
            let producer = node
                .client()
                .await
                .producer(ProducerConfig {
                    compression,
                    batch_bytes: 100,
                    ..ProducerConfig::default()
                })
                .unwrap();
            let base = lock(&node.state).end(0);
            let deliveries = send_all(&producer, 100).await;
            producer.flush().await;
            for (i, delivery) in deliveries.into_iter().enumerate() {
                let delivered = delivery.await.unwrap();
                assert_eq!(delivered.offset, Offset::from_wire(base + i as i64));
            }
            producer.close().await;
        }
        let state = lock(&node.state);
        assert_eq!(
            state.values(0),
            (0..5).flat_map(|_| numbers(100)).collect::<Vec<_>>()
        );
        assert!(state.produce_requests > 5, "batches were split");
    }

    #[tokio::test]
    async fn many_requests_wait_for_their_answers_at_once() {
        let node = FakeNode::start(1);
        let producer = node.client().await.producer(single()).unwrap();
        // The first of all goes alone.
        let first = producer.send(record("first")).await.unwrap();
        first.await.unwrap();
        node.faults(&[Fault::Hold; MAX_IN_FLIGHT_BATCHES]);
        let more = MAX_IN_FLIGHT_BATCHES + 3;
        let deliveries = send_all(&producer, more).await;
        let mut produced = node.produced.clone();
        // Sixteen are there although none was answered; the next one waits for the first of them.
        let there = 1 + MAX_IN_FLIGHT_BATCHES;
        let waited = produced.wait_for(|count| *count == there);
        tokio::time::timeout(LONG, waited).await.unwrap().unwrap();
        assert!(producer.in_flight_bytes() > 0);
        node.release();
        for delivery in deliveries {
            delivery.await.unwrap();
        }
        assert_eq!(lock(&node.state).values(0)[1..], numbers(more));
        producer.close().await;
    }

    #[tokio::test]
    async fn every_kind_of_failure_is_survived_without_loss_duplicates_or_reordering() {
        let node = FakeNode::start(1);
        node.faults(&[
            Fault::AppendAndBreak,
            Fault::Refuse(ErrorCode::NotLeaderOrFollower),
            Fault::BreakStream,
            Fault::Refuse(ErrorCode::NotEnoughReplicas),
            Fault::BreakConnection,
            Fault::AppendAndBreak,
        ]);
        let producer = node.client().await.producer(single()).unwrap();
        let deliveries = send_all(&producer, 30).await;
        for (i, delivery) in deliveries.into_iter().enumerate() {
            assert_eq!(delivery.await.unwrap().offset, Offset::new(i as u64));
        }
        producer.close().await;
        let state = lock(&node.state);
        assert_eq!(state.values(0), numbers(30));
        assert!(state.connections > 1);
        assert!(state.faults.is_empty());
        assert_eq!(state.producer_ids, 1);
    }

    #[tokio::test]
    async fn a_stalled_node_is_given_up_after_the_request_timeout() {
        let node = FakeNode::start(1);
        node.faults(&[Fault::Silence]);
        let mut config = node.config();
        config.request_timeout = Duration::from_millis(100);
        let client = Client::connect(config, node.dialer()).await.unwrap();
        let producer = client.producer(single()).unwrap();
        let deliveries = send_all(&producer, 3).await;
        for delivery in deliveries {
            delivery.await.unwrap();
        }
        assert_eq!(lock(&node.state).values(0), numbers(3));
        producer.close().await;
    }

    #[tokio::test]
    async fn the_delivery_timeout_names_topic_partition_cause_and_time() {
        let node = FakeNode::start(1);
        node.faults(&[Fault::Refuse(ErrorCode::NotEnoughReplicas); 100]);
        let producer = node
            .client()
            .await
            .producer(ProducerConfig {
                delivery_timeout: Duration::from_millis(300),
                ..single()
            })
            .unwrap();
        let error = producer.send(record("x")).await.unwrap().await.unwrap_err();
        assert_eq!(error.topic.as_str(), "t");
        assert_eq!(error.partition, PartitionIndex(0));
        assert_eq!(error.error_code(), Some(ErrorCode::NotEnoughReplicas));
        assert!(error.attempts > 1);
        assert!(error.elapsed >= Duration::from_millis(300));
        assert!(!error.may_be_stored);
        producer.close().await;
    }

    #[tokio::test]
    async fn what_cannot_succeed_fails_at_once_and_the_rest_goes_on() {
        let node = FakeNode::start(1);
        node.faults(&[Fault::Refuse(ErrorCode::MessageTooLarge)]);
        let producer = node.client().await.producer(single()).unwrap();
        let mut deliveries = send_all(&producer, 4).await.into_iter();
        let error = deliveries.next().unwrap().await.unwrap_err();
        assert_eq!(error.error_code(), Some(ErrorCode::MessageTooLarge));
        for delivery in deliveries {
            delivery.await.unwrap();
        }
        assert_eq!(lock(&node.state).values(0), ["1", "2", "3"]);
        producer.close().await;
    }

    #[tokio::test]
    async fn a_forgotten_producer_id_is_replaced() {
        let node = FakeNode::start(1);
        node.faults(&[Fault::Refuse(ErrorCode::UnknownProducerId)]);
        let producer = node.client().await.producer(single()).unwrap();
        for delivery in send_all(&producer, 20).await {
            delivery.await.unwrap();
        }
        producer.close().await;
        let state = lock(&node.state);
        assert_eq!(state.values(0), numbers(20));
        assert_eq!(state.producer_ids, 2);
        assert!(
            state.logs[0]
                .iter()
                .all(|batch| batch.header.producer_id == ProducerId::new(1002))
        );
    }

    #[tokio::test]
    async fn send_waits_at_the_memory_cap() {
        let node = FakeNode::start(1);
        node.faults(&[Fault::Hold]);
        let producer = node
            .client()
            .await
            .producer(ProducerConfig {
                max_in_flight_bytes: 100,
                linger: Duration::from_secs(3600),
                ..ProducerConfig::default()
            })
            .unwrap();
        let first = producer
            .send(record("a record of some size"))
            .await
            .unwrap();
        let second = producer.send(record("another record of some size"));
        tokio::pin!(second);
        let mut produced = node.produced.clone();
        // That the second one waits sends the first one, whose batch would linger for an hour.
        tokio::select! {
            _ = &mut second => panic!("there is no room for it"),
            count = produced.wait_for(|count| *count == 1) => { count.unwrap(); }
        }
        node.release();
        first.await.unwrap();
        let second = second.await.unwrap();
        producer.close().await;
        second.await.unwrap();
    }

    #[tokio::test]
    async fn acks_none_and_acks_leader() {
        let node = FakeNode::start(1);
        for (acks, known) in [(Acks::Leader, true), (Acks::None, false)] {
            let client = node.client().await;
            let producer = client
                .producer(ProducerConfig { acks, ..single() })
                .unwrap();
            let deliveries = send_all(&producer, 10).await;
            for delivery in deliveries {
                assert_eq!(delivery.await.unwrap().offset.is_some(), known, "{acks:?}");
            }
            producer.close().await;
        }
        let state = lock(&node.state);
        assert_eq!(state.values(0), [numbers(10), numbers(10)].concat());
        assert_eq!(state.producer_ids, 0);
    }

    #[tokio::test]
    async fn a_record_that_cannot_go_anywhere_is_refused_by_send() {
        let node = FakeNode::start(1);
        let producer = node.client().await.producer(single()).unwrap();
        let mut lost = record("x");
        lost.partition = Some(PartitionIndex(9));
        assert!(matches!(
            producer.send(lost).await,
            Err(ClientError::UnknownPartition { partitions: 1, .. })
        ));
        let mut large = record("x");
        large.value = Some(vec![0; 9 << 20].into());
        let error = producer.send(large).await.unwrap_err();
        assert_eq!(error.error_code(), Some(ErrorCode::MessageTooLarge));
        producer.close().await;
    }

    #[tokio::test]
    async fn a_dropped_producer_says_so() {
        let node = FakeNode::start(1);
        node.faults(&[Fault::Hold]);
        let producer = node.client().await.producer(single()).unwrap();
        let delivery = producer.send(record("x")).await.unwrap();
        let mut produced = node.produced.clone();
        produced.wait_for(|count| *count == 1).await.unwrap();
        drop(producer);
        let error = delivery.await.unwrap_err();
        assert!(matches!(error.cause, DeliveryCause::Closed));
        assert!(error.may_be_stored);
    }

    #[test]
    fn contradictions_in_the_configuration_are_named() {
        let check = |config: ProducerConfig| config.check();
        assert!(check(ProducerConfig::default()).is_ok());
        for bad in [
            ProducerConfig {
                acks: Acks::Leader,
                idempotence: Some(true),
                ..ProducerConfig::default()
            },
            ProducerConfig {
                max_in_flight_batches: Some(MAX_IN_FLIGHT_BATCHES + 1),
                ..ProducerConfig::default()
            },
            ProducerConfig {
                max_in_flight_bytes: 0,
                ..ProducerConfig::default()
            },
        ] {
            assert!(check(bad).is_err());
        }
    }
}
