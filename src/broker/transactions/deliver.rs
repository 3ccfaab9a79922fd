//! Markers to the leaders of partitions, here and on other nodes.
//!
//! Each node has two queues of its own, for markers that are sent for the first time and for those that have failed before, each
//! with a task that sends what is in it, many markers in one request and a few requests at a time. So a node that is slow or gone
//! fills its own queues and nobody else's, and a partition that cannot commit keeps waiting what has failed too. A marker
//! that finds no room, that fails, or whose partition is led elsewhere by now goes back to its coordinator, which tries it again
//! after a pause.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use kafka_protocol::messages::write_txn_markers_request::{
    WritableTxnMarker, WritableTxnMarkerTopic,
};
use kafka_protocol::messages::{
    self, TopicName as KafkaTopicName, WriteTxnMarkersRequest, WriteTxnMarkersResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::calls::Calls;
use crate::broker::Broker;
use crate::broker::shared::Shared;
use crate::kafka::Service;
use crate::metadata::ClusterImage;
use crate::record::{self, TransactionOutcome};
use crate::transactions::{Marked, Marker};
use crate::transport::LogLimit;
use crate::types::{ErrorCode, NodeId, PartitionIndex, TopicName, TopicPartition};

/// Markers that wait in one queue. At the cap a marker goes back to its coordinator, and comes again after a pause.
const MAX_QUEUED: usize = 4096;
/// Markers in one request: as many as a node writes at a time.
const MAX_BATCH: usize = 256;
/// Requests to one node with markers that are sent for the first time, which wait for their answers.
const MAX_FIRST: usize = 3;
/// The same for markers that have failed before. They may be for partitions that cannot commit, and an answer waits for all
/// that it speaks of: so they keep each other waiting and no others. All together take far less than half of what a
/// connection may have.
const MAX_AGAIN: usize = 1;
/// How long a node has for one request. It answers within 5 s itself, that something timed out if need be, so that what is
/// tried again is most often known to be over.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// How long a node has when it leads a partition of the request no more. One that runs answers at once; one that is dead never.
const ANSWERED_AFTER_MOVE: Duration = Duration::from_secs(1);

/// Where a coordinator hears what became of its markers: each ends once, unless the node stops. Bounded by what is queued and
/// under way; once its task has gone, what waits for it is dropped.
pub(super) type Ends = mpsc::UnboundedSender<(Marker, Marked)>;

/// A marker on its way.
struct Job {
    marker: Marker,
    /// The partition, as the metadata knows it.
    place: TopicPartition,
    ends: Ends,
}

impl Job {
    /// Whether the node still leads the partition that the marker is for.
    fn is_for(&self, image: &ClusterImage, node: NodeId) -> bool {
        image
            .partition(self.place)
            .is_some_and(|state| state.leader_node() == Some(node))
    }

    fn end(self, marked: Marked) {
        // A coordinator that has gone does not need to know.
        let _ = self.ends.send((self.marker, marked));
    }
}

/// The queues of all nodes.
pub(super) struct Deliveries {
    sender: Arc<Sender>,
    /// Of a node, for markers that failed before and for others; of at most as many nodes as the cluster ever had while this
    /// process ran.
    queues: Mutex<HashMap<(NodeId, bool), mpsc::Sender<Job>>>,
    tasks: TaskTracker,
}

/// What every task of a queue needs.
struct Sender {
    shared: Arc<Shared>,
    /// The broker holds the tasks, not they the broker.
    broker: Weak<Broker>,
    images: watch::Receiver<Arc<ClusterImage>>,
    calls: Arc<Calls>,
    lines: LogLimit,
}

/// Where a marker is to go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    To(NodeId, TopicPartition),
    /// Nobody leads the partition at the moment.
    Nobody,
    /// There is no such partition, any more.
    Gone,
}

/// Where the partition is. A transaction reaches only partitions that its coordinator's metadata showed, and a coordinator has
/// at least the metadata by which it leads, which is newer than all that an earlier one has seen: so a partition that is missing
/// was deleted.
pub(super) fn route(image: &ClusterImage, topic: &str, partition: i32) -> Route {
    let found = TopicName::new(topic)
        .ok()
        .and_then(|name| image.topic_by_name(&name));
    let index = PartitionIndex::from_wire(partition);
    let (Some(topic), Some(index)) = (found, index) else {
        return Route::Gone;
    };
    match topic.partition(index) {
        None => Route::Gone,
        Some(state) => match state.leader_node() {
            None => Route::Nobody,
            Some(node) => Route::To(
                node,
                TopicPartition {
                    topic: topic.id,
                    partition: index,
                },
            ),
        },
    }
}

impl Deliveries {
    pub(super) fn new(
        shared: Arc<Shared>,
        broker: Weak<Broker>,
        images: watch::Receiver<Arc<ClusterImage>>,
        calls: Arc<Calls>,
        tasks: TaskTracker,
    ) -> Deliveries {
        Deliveries {
            sender: Arc::new(Sender {
                shared,
                broker,
                images,
                calls,
                lines: LogLimit::default(),
            }),
            queues: Mutex::default(),
            tasks,
        }
    }

    /// Has the leader of its partition write a marker, and says through `ends` what came of it: at once where it cannot even be
    /// sent.
    pub(super) fn deliver(&self, image: &ClusterImage, marker: Marker, ends: &Ends) {
        let place = route(image, &marker.topic, marker.partition);
        let job = |place| Job {
            marker: marker.clone(),
            place,
            ends: ends.clone(),
        };
        match place {
            Route::To(node, place) => {
                if let Err(job) = self.queue(node, job(place)) {
                    job.end(Marked::Failed);
                }
            }
            Route::Nobody => {
                let _ = ends.send((marker, Marked::Failed));
            }
            Route::Gone => {
                let _ = ends.send((marker, Marked::Gone));
            }
        }
    }

    fn queue(&self, node: NodeId, job: Job) -> Result<(), Job> {
        let again = job.marker.attempts > 0;
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry((node, again)).or_insert_with(|| {
            let (queue, jobs) = mpsc::channel(MAX_QUEUED);
            let most = if again { MAX_AGAIN } else { MAX_FIRST };
            let run = run(self.sender.clone(), node, jobs, most, self.tasks.clone());
            self.tasks.spawn(run);
            queue
        });
        queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job) => job,
        })
    }
}

/// Sends one node its markers, `most` requests at a time, until this node stops.
async fn run(
    sender: Arc<Sender>,
    node: NodeId,
    mut jobs: mpsc::Receiver<Job>,
    most: usize,
    tasks: TaskTracker,
) {
    let requests = Arc::new(Semaphore::new(most));
    let stopping = sender.shared.stopping.clone();
    loop {
        // Room first: what comes meanwhile goes in the same request.
        let room = tokio::select! {
            () = stopping.cancelled() => return,
            room = requests.clone().acquire_owned() => room,
        };
        let Ok(room) = room else { return };
        let first = tokio::select! {
            () = stopping.cancelled() => return,
            first = jobs.recv() => first,
        };
        let Some(first) = first else { return };
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        // Those of a coordinator that is one no more: the next one sends its own.
        batch.retain(|job| !job.ends.is_closed());
        let image = sender.images.borrow().clone();
        let (batch, moved): (Vec<Job>, Vec<Job>) =
            batch.into_iter().partition(|job| job.is_for(&image, node));
        moved.into_iter().for_each(|job| job.end(Marked::Failed));
        if batch.is_empty() {
            continue;
        }
        let (sender, stopping) = (sender.clone(), stopping.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = sender.send(node, batch) => {}
            }
            drop(room);
        });
    }
}

impl Sender {
    async fn send(&self, node: NodeId, batch: Vec<Job>) {
        if node == self.shared.me.node {
            self.write_here(batch).await;
            return;
        }
        let image = self.images.borrow().clone();
        let Some(way) = self.calls.to(&image, node) else {
            batch.into_iter().for_each(|job| job.end(Marked::Failed));
            return;
        };
        let request = request(&batch);
        let answer = tokio::select! {
            answer = way.write_markers(&request, Instant::now() + ANSWERED_WITHIN) => {
                answer.map_err(|error| error.to_string())
            }
            () = self.overdue(node, &batch) => {
                Err("it leads some of the partitions no more, and does not answer".to_owned())
            }
        };
        match answer {
            Ok(response) => {
                let results = read(response, &batch);
                for (job, result) in batch.into_iter().zip(results) {
                    self.judge(node, job, result);
                }
            }
            Err(cause) => {
                if let Some(suppressed) = self.lines.allow() {
                    tracing::info!(
                        %node, markers = batch.len(), cause, suppressed,
                        "cannot tell a node how transactions end; trying again"
                    );
                }
                batch.into_iter().for_each(|job| job.end(Marked::Failed));
            }
        }
    }

    /// Ends when the node leads a partition of the batch no more, and has had the time to say so.
    async fn overdue(&self, node: NodeId, batch: &[Job]) {
        let mut images = self.images.clone();
        let here = |image: &Arc<ClusterImage>| batch.iter().all(|job| job.is_for(image, node));
        // A closed channel is a node that stops.
        let _ = images.wait_for(|image| !here(image)).await;
        tokio::time::sleep(ANSWERED_AFTER_MOVE).await;
    }

    /// Each waits for its own commit; none for another's.
    async fn write_here(&self, batch: Vec<Job>) {
        let Some(broker) = self.broker.upgrade() else {
            return;
        };
        let deadline = Instant::now() + ANSWERED_WITHIN / 2;
        let mut writing: futures_util::stream::FuturesUnordered<_> = batch
            .into_iter()
            .map(|job| {
                let broker = broker.clone();
                async move {
                    let marker = written(&job.marker);
                    let written = broker.write_marker(job.place, marker, deadline);
                    let result = tokio::time::timeout_at(deadline, written)
                        .await
                        .unwrap_or(Err(ErrorCode::RequestTimedOut));
                    (job, result)
                }
            })
            .collect();
        while let Some((job, result)) = writing.next().await {
            self.judge(self.shared.me.node, job, result);
        }
    }

    fn judge(&self, node: NodeId, job: Job, result: Result<(), ErrorCode>) {
        let marked = match result {
            Ok(()) => Marked::Written,
            Err(ErrorCode::TransactionCoordinatorFenced) => Marked::Fenced,
            Err(ErrorCode::InvalidProducerEpoch) => {
                // A producer gets its next epoch only once everybody knows how its transaction ended, so it is over there.
                tracing::warn!(
                    %node, partition = %job.place, id = %job.marker.id, producer = %job.marker.producer,
                    epoch = job.marker.producer_epoch,
                    "a partition knows a newer epoch of a producer than the transaction that ends; it counts as ended there"
                );
                Marked::Written
            }
            Err(error) => {
                if job.marker.attempts > 0
                    && let Some(suppressed) = self.lines.allow()
                {
                    tracing::info!(
                        %node, partition = %job.place, id = %job.marker.id, attempts = job.marker.attempts,
                        cause = %error, suppressed,
                        "a partition cannot be told how a transaction ends; trying again"
                    );
                }
                Marked::Failed
            }
        };
        job.end(marked);
    }
}

/// The marker as a partition writes it.
fn written(marker: &Marker) -> record::Marker {
    record::Marker {
        producer: marker.producer,
        producer_epoch: marker.producer_epoch,
        coordinator_epoch: marker.coordinator_epoch,
        outcome: marker.ending,
        aborted: None,
    }
}

/// The markers of each transaction together, the transactions in the order in which they first come.
fn request(batch: &[Job]) -> WriteTxnMarkersRequest {
    let mut markers: Vec<(&Marker, BTreeMap<&str, Vec<i32>>)> = Vec::new();
    let mut known: HashMap<(&str, i16), usize> = HashMap::new();
    for Job { marker, .. } in batch {
        let at = *known
            .entry((&*marker.id, marker.producer_epoch))
            .or_insert_with(|| {
                markers.push((marker, BTreeMap::new()));
                markers.len() - 1
            });
        let topics = &mut markers[at].1;
        topics
            .entry(&marker.topic)
            .or_default()
            .push(marker.partition);
    }
    let markers = markers.into_iter().map(|(marker, topics)| {
        let topics = topics.into_iter().map(|(name, partitions)| {
            WritableTxnMarkerTopic::default()
                .with_name(KafkaTopicName(StrBytes::from_string(name.to_owned())))
                .with_partition_indexes(partitions)
        });
        WritableTxnMarker::default()
            .with_producer_id(messages::ProducerId(marker.producer.get()))
            .with_producer_epoch(marker.producer_epoch)
            .with_transaction_result(marker.ending == TransactionOutcome::Commit)
            .with_coordinator_epoch(marker.coordinator_epoch)
            .with_topics(topics.collect())
    });
    WriteTxnMarkersRequest::default().with_markers(markers.collect())
}

/// What the answer says of each marker of a batch; what it does not name is not known. A producer has one transaction at a
/// time, so its id names the transaction.
fn read(response: WriteTxnMarkersResponse, batch: &[Job]) -> Vec<Result<(), ErrorCode>> {
    let mut codes: HashMap<(i64, String, i32), i16> = HashMap::new();
    for marker in response.markers {
        for topic in marker.topics {
            for partition in &topic.partitions {
                let place = (
                    marker.producer_id.0,
                    topic.name.as_str().to_owned(),
                    partition.partition_index,
                );
                codes.insert(place, partition.error_code);
            }
        }
    }
    batch
        .iter()
        .map(|Job { marker, .. }| {
            let place = (
                marker.producer.get(),
                (*marker.topic).to_owned(),
                marker.partition,
            );
            match codes.get(&place) {
                Some(code) => ErrorCode::from_code(*code),
                None => Err(ErrorCode::UnknownServerError),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::write_txn_markers_response::{
        WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
    };

    use super::*;
    use crate::metadata::{
        Command, ElectionStart, Endpoint, FIRST_METADATA_VERSION, NewPartition, NewTopic,
        Registration,
    };
    use crate::types::{ClusterId, DirectoryId, Incarnation, ProducerId, TopicId};

    fn job(id: &str, producer: i64, partition: i32, ends: &Ends) -> Job {
        Job {
            marker: Marker {
                id: id.into(),
                topic: "orders".into(),
                partition,
                producer: ProducerId::new(producer).unwrap(),
                producer_epoch: 2,
                ending: TransactionOutcome::Commit,
                coordinator_epoch: 5,
                attempts: 0,
            },
            place: TopicPartition {
                topic: TopicId::from_random_bits(1),
                partition: PartitionIndex(0),
            },
            ends: ends.clone(),
        }
    }

    #[test]
    fn a_partition_that_is_not_there_is_gone_and_one_without_a_leader_is_not() {
        let mut image = ClusterImage::new();
        let mut apply = |command: &Command| image.apply(command).unwrap();
        let cluster_id = ClusterId::from_random_bits(1);
        apply(&Command::InitCluster { cluster_id });
        let node = NodeId::new(1).unwrap();
        let registration = Registration {
            node,
            directory: DirectoryId::from_random_bits(1),
            incarnation: Incarnation::from_random_bits(1),
            quic: Endpoint {
                host: "localhost".to_owned(),
                port: 1,
            },
            kafka: None,
            kafka_listeners: std::collections::BTreeMap::new(),
            boot_id: None,
            metadata_version: FIRST_METADATA_VERSION,
        };
        apply(&Command::RegisterNode { registration });
        let topic = TopicId::from_random_bits(1);
        apply(&Command::CreateTopic {
            topic: NewTopic {
                id: topic,
                name: "orders".parse().unwrap(),
                config: BTreeMap::new(),
                partitions: vec![NewPartition {
                    replicas: vec![node],
                    in_sync: vec![node],
                }],
                min_insync: 1,
            },
        });
        let place = TopicPartition {
            topic,
            partition: PartitionIndex(0),
        };
        assert_eq!(route(&image, "orders", 0), Route::To(node, place));
        for (topic, partition) in [("orders", 1), ("orders", -1), ("bills", 0), ("no/name", 0)] {
            assert_eq!(route(&image, topic, partition), Route::Gone);
        }
        let state = image.partition(place).unwrap();
        let start = ElectionStart {
            partition: place,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
        };
        image
            .apply(&Command::StartElections {
                elections: vec![start],
            })
            .unwrap();
        assert_eq!(route(&image, "orders", 0), Route::Nobody);
    }

    #[test]
    fn a_request_names_each_transaction_once_and_its_answer_is_read_by_name() {
        let (ends, _heard) = mpsc::unbounded_channel();
        let batch = [
            job("a", 1, 0, &ends),
            job("b", 2, 0, &ends),
            job("a", 1, 1, &ends),
        ];
        let request = request(&batch);
        assert_eq!(request.markers.len(), 2);
        let first = &request.markers[0];
        assert_eq!(first.topics[0].partition_indexes, [0, 1]);
        assert_eq!((first.producer_epoch, first.coordinator_epoch), (2, 5));
        assert!(first.transaction_result);
        let result = |producer: i64, partition, code| {
            let partition = WritableTxnMarkerPartitionResult::default()
                .with_partition_index(partition)
                .with_error_code(code);
            let topic = WritableTxnMarkerTopicResult::default()
                .with_name(KafkaTopicName(StrBytes::from_static_str("orders")))
                .with_partitions(vec![partition]);
            WritableTxnMarkerResult::default()
                .with_producer_id(messages::ProducerId(producer))
                .with_topics(vec![topic])
        };
        let response = WriteTxnMarkersResponse::default()
            .with_markers(vec![result(2, 0, 52), result(1, 1, 0)]);
        assert_eq!(
            read(response, &batch),
            [
                Err(ErrorCode::UnknownServerError),
                Err(ErrorCode::TransactionCoordinatorFenced),
                Ok(()),
            ]
        );
    }
}
