//! A node that keeps everything in memory and does what a test tells it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::coordinator_double::CoordinatorDouble;
use crate::groups::{self, Coordinator, Ticket};
use crate::kafka::{
    CreatedTopic, FetchPartition, FetchRefusal, FetchedRecords, ListedOffset, NodeSetting,
    OffsetSpec, Produce, ProduceOutcome, ProduceReply, ProducerDescription, Refusal, Service,
    Verification,
};
use crate::metadata::{
    ClusterImage, Command, ConfigChange, CreatePartitionsRequest, CreateTopicRequest, Endpoint,
    FlushPolicy, METADATA_VERSION, Registration, ScramMechanism, ScramVerifier, TopicConfig,
};
use crate::record::{Marker, STAMP_LEN, stamped_prefix};
use crate::transactions;
use crate::types::{
    ClusterId, DirectoryId, ErrorCode, Incarnation, IsolationLevel, LeaderEpoch, MonotonicTime,
    NodeId, Offset, PartitionIndex, ProducerId, TopicId, TopicName, TopicPartition,
};

pub(super) struct Double {
    image: Mutex<ClusterImage>,
    partitions: Mutex<HashMap<TopicPartition, Partition>>,
    pub(super) dead: Mutex<BTreeSet<NodeId>>,
    /// Produces stay unanswered, and uncommitted, until [`Double::commit`].
    pub(super) holds_acks: AtomicBool,
    /// Whether it has not committed the start of its epoch, and so does not know its watermark.
    pub(super) begins_an_epoch: AtomicBool,
    /// Submissions wait while there are none; tests add some.
    pub(super) mailbox: tokio::sync::Semaphore,
    pub(super) reads: AtomicUsize,
    /// Produces that were submitted and not answered.
    pub(super) waiting: AtomicUsize,
    groups: Mutex<Groups>,
    transactions: Mutex<CoordinatorDouble>,
    begin: Instant,
}

#[derive(Debug)]
struct TopicsOf(ClusterImage);

impl groups::Topics for TopicsOf {
    fn topic(&self, name: &str) -> Option<groups::TopicShape> {
        let topic = self.0.topic_named(name)?;
        Some(groups::TopicShape {
            id: topic.id,
            partitions: i32::try_from(topic.partitions.len()).unwrap(),
        })
    }

    fn each(&self, _see: &mut dyn FnMut(&str, groups::TopicShape)) {}
}

/// The coordinator of every group; what it writes is written at once.
struct Groups {
    coordinator: Coordinator,
    replies: HashMap<Ticket, oneshot::Sender<Result<groups::Answer, ErrorCode>>>,
    tickets: u64,
}

type Reply = oneshot::Sender<Result<ProduceOutcome, ErrorCode>>;

struct Partition {
    batches: Vec<(Offset, Offset, Bytes)>,
    end: Offset,
    watch: watch::Sender<Offset>,
    held: Vec<(Option<Offset>, Reply)>,
    leads: bool,
}

pub(super) fn node(id: u32) -> NodeId {
    NodeId::new(id).unwrap()
}

fn endpoint(host: &str, port: u16) -> Endpoint {
    Endpoint {
        host: host.to_owned(),
        port,
    }
}

impl Double {
    /// This is node 1 of three; node 3 has no Kafka listener.
    pub(super) fn new() -> Arc<Double> {
        let mut image = ClusterImage::new();
        let cluster_id = ClusterId::from_random_bits(0xc1);
        image.apply(&Command::InitCluster { cluster_id }).unwrap();
        for id in 1..=3 {
            let port = 9000 + id as u16;
            let registration = Registration {
                node: node(id),
                directory: DirectoryId::from_random_bits(id.into()),
                incarnation: Incarnation::from_random_bits(id.into()),
                quic: endpoint("quic.example", port),
                kafka: (id < 3).then(|| endpoint("kafka.example", port + 100)),
                kafka_listeners: std::collections::BTreeMap::new(),
                boot_id: None,
                metadata_version: METADATA_VERSION,
            };
            image
                .apply(&Command::RegisterNode { registration })
                .unwrap();
        }
        let version = METADATA_VERSION;
        image
            .apply(&Command::RaiseMetadataVersion { version })
            .unwrap();
        Arc::new(Double {
            image: Mutex::new(image),
            partitions: Mutex::default(),
            dead: Mutex::default(),
            holds_acks: AtomicBool::new(false),
            begins_an_epoch: AtomicBool::new(false),
            mailbox: tokio::sync::Semaphore::new(1_000_000),
            reads: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            groups: Mutex::new(Groups {
                coordinator: Coordinator::new(groups::Settings {
                    initial_rebalance_delay: std::time::Duration::ZERO,
                    ..groups::Settings::default()
                }),
                replies: HashMap::new(),
                tickets: 0,
            }),
            transactions: Mutex::new(CoordinatorDouble::new()),
            begin: Instant::now(),
        })
    }

    /// A topic whose partitions are led by node 1.
    pub(super) fn with_topic(self: Arc<Self>, name: &str, partitions: usize) -> Arc<Double> {
        self.make(CreateTopicRequest {
            name: TopicName::new(name).unwrap(),
            id: TopicId::from_random_bits(name.len() as u128 + 0xa00),
            partitions: None,
            replication_factor: None,
            assignment: Some(vec![vec![node(1), node(2), node(3)]; partitions]),
            config: Default::default(),
        })
        .unwrap();
        self
    }

    /// A topic with one partition, which node 2 leads.
    pub(super) fn with_foreign_topic(self: Arc<Self>, name: &str) -> Arc<Double> {
        self.make(CreateTopicRequest {
            name: TopicName::new(name).unwrap(),
            id: TopicId::from_random_bits(name.len() as u128 + 0xb00),
            partitions: None,
            replication_factor: None,
            assignment: Some(vec![vec![node(2), node(1)]]),
            config: Default::default(),
        })
        .unwrap();
        self
    }

    /// What the controller has committed.
    pub(super) fn apply(&self, command: &Command) {
        self.image.lock().unwrap().apply(command).unwrap();
    }

    pub(super) fn topic_id(&self, name: &str) -> TopicId {
        let name = TopicName::new(name).unwrap();
        self.image().topic_by_name(&name).unwrap().id
    }

    pub(super) fn partition(&self, topic: &str, index: u32) -> TopicPartition {
        TopicPartition {
            topic: self.topic_id(topic),
            partition: PartitionIndex(index),
        }
    }

    /// Puts batches of one record each into a partition.
    pub(super) fn append(&self, partition: TopicPartition, values: &[&str]) {
        for value in values {
            let batch = crate::record::Batch::decode(&super::batch(&[value])).unwrap();
            self.with(partition, |p| {
                p.append(&batch);
                p.commit();
            });
        }
    }

    /// Commits everything and answers every produce that waits.
    pub(super) fn commit(&self) {
        for partition in self.lock().values_mut() {
            partition.commit();
            for (base, reply) in partition.held.drain(..) {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                let _ = reply.send(Ok(outcome(base.unwrap())));
            }
        }
    }

    /// Drops every produce that waits, as a partition's owner does that goes away.
    pub(super) fn forget(&self) {
        for partition in self.lock().values_mut() {
            partition.held.clear();
        }
    }

    /// Node 2 leads from here on.
    pub(super) fn resign(&self, partition: TopicPartition) {
        self.with(partition, |p| {
            p.leads = false;
            p.watch.send_modify(|_| {});
        });
    }

    fn make(&self, request: CreateTopicRequest) -> Result<CreatedTopic, Refusal> {
        let mut image = self.image.lock().unwrap();
        let alive = image.nodes().map(|n| n.node).collect();
        let refuse = |rejection: crate::metadata::Rejection| Refusal {
            error: rejection.error_code(),
            message: Some(rejection.to_string()),
        };
        let command = request.resolve(&image, &alive).map_err(refuse)?;
        image.apply(&command).map_err(refuse)?;
        let topic = image.topic(request.id).unwrap();
        let mut partitions = self.lock();
        for (index, state) in topic.indexed_partitions() {
            let key = TopicPartition {
                topic: topic.id,
                partition: index,
            };
            partitions.entry(key).or_insert_with(|| Partition {
                batches: Vec::new(),
                end: Offset::ZERO,
                watch: watch::Sender::new(Offset::ZERO),
                held: Vec::new(),
                leads: state.leader_node() == Some(node(1)),
            });
        }
        Ok(CreatedTopic {
            partitions: topic.partitions.len() as u32,
            replication_factor: topic.replication_factor() as u32,
        })
    }

    fn now(&self) -> groups::Now {
        groups::Now {
            monotonic: MonotonicTime::ZERO + self.begin.elapsed(),
            wall_ms: 1_000,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TopicPartition, Partition>> {
        self.partitions.lock().unwrap()
    }

    fn with<T>(&self, key: TopicPartition, f: impl FnOnce(&mut Partition) -> T) -> T {
        f(self.lock().get_mut(&key).unwrap())
    }
}

fn outcome(base_offset: Offset) -> ProduceOutcome {
    ProduceOutcome {
        base_offset,
        log_append_time_ms: None,
        log_start_offset: Offset::ZERO,
    }
}

impl Partition {
    fn append(&mut self, batch: &crate::record::Batch) -> Offset {
        let base = self.end;
        let end = base.checked_add(batch.header.record_count as u64).unwrap();
        let epoch = LeaderEpoch::new(1).unwrap();
        let mut stamped = stamped_prefix(batch, base, epoch).to_vec();
        stamped.extend_from_slice(&batch.bytes[STAMP_LEN..]);
        self.batches.push((base, end, stamped.into()));
        self.end = end;
        base
    }

    fn commit(&mut self) {
        self.watch.send_replace(self.end);
    }

    fn high_watermark(&self) -> Offset {
        *self.watch.borrow()
    }
}

impl Service for Double {
    fn node_id(&self) -> NodeId {
        node(1)
    }

    fn image(&self) -> Arc<ClusterImage> {
        Arc::new(self.image.lock().unwrap().clone())
    }

    fn active_controller(&self) -> Option<NodeId> {
        Some(node(2))
    }

    fn is_live(&self, node: NodeId) -> bool {
        !self.dead.lock().unwrap().contains(&node)
    }

    async fn submit_produce(&self, produce: Produce) -> ProduceReply {
        self.mailbox.acquire().await.unwrap().forget();
        let (sender, receiver) = oneshot::channel();
        let mut partitions = self.lock();
        let Some(partition) = partitions.get_mut(&produce.partition).filter(|p| p.leads) else {
            let _ = sender.send(Err(ErrorCode::NotLeaderOrFollower));
            return receiver;
        };
        let mut base = None;
        for batch in &produce.batches {
            let at = partition.append(batch);
            base = base.or(Some(at));
        }
        if self.holds_acks.load(Ordering::SeqCst) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            partition.held.push((base, sender));
        } else {
            partition.commit();
            let _ = sender.send(Ok(outcome(base.unwrap())));
        }
        receiver
    }

    async fn verification(
        &self,
        _partition: TopicPartition,
        _producer: (ProducerId, i16),
        _deadline: Instant,
    ) -> Result<Verification, ErrorCode> {
        Ok(Verification::NotNeeded)
    }

    async fn verify_transaction(
        &self,
        _transactional_id: &str,
        _producer: (ProducerId, i16),
        partitions: Vec<TopicPartition>,
        _reach: transactions::Reach,
        _deadline: Instant,
    ) -> Vec<Result<(), ErrorCode>> {
        vec![Ok(()); partitions.len()]
    }

    async fn write_marker(
        &self,
        partition: TopicPartition,
        marker: Marker,
        _deadline: Instant,
    ) -> Result<(), ErrorCode> {
        let batch = crate::record::Batch::decode(&marker.batch(0)).unwrap();
        self.with(partition, |p| {
            p.append(&batch);
            p.commit();
        });
        Ok(())
    }

    async fn describe_producers(
        &self,
        _partition: TopicPartition,
        _deadline: Instant,
    ) -> Result<Vec<ProducerDescription>, ErrorCode> {
        Ok(Vec::new())
    }

    async fn fetch_partition(&self, read: FetchPartition) -> Result<FetchedRecords, FetchRefusal> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let partitions = self.lock();
        let partition = partitions
            .get(&read.partition)
            .ok_or(ErrorCode::UnknownTopicOrPartition)?;
        if !partition.leads {
            return Err(ErrorCode::NotLeaderOrFollower.into());
        }
        let current = LeaderEpoch::new(1).unwrap();
        match read.current_leader_epoch {
            Some(epoch) if epoch < current => return Err(ErrorCode::FencedLeaderEpoch.into()),
            Some(epoch) if epoch > current => return Err(ErrorCode::UnknownLeaderEpoch.into()),
            _ => {}
        }
        let high_watermark = partition.high_watermark();
        if read.from > partition.end {
            return Err(FetchRefusal {
                error: ErrorCode::OffsetOutOfRange,
                bounds: Some((Offset::ZERO, high_watermark)),
            });
        }
        let mut records = Vec::new();
        let mut next = read.from;
        let mut size = 0;
        if read.max_bytes > 0 {
            for (_, end, bytes) in &partition.batches {
                if *end <= read.from || *end > high_watermark {
                    continue;
                }
                if !records.is_empty() && size + bytes.len() > read.max_bytes {
                    break;
                }
                size += bytes.len();
                records.push(bytes.clone());
                next = *end;
            }
        }
        Ok(FetchedRecords {
            records,
            next,
            high_watermark: (!self.begins_an_epoch.load(Ordering::SeqCst))
                .then_some(high_watermark),
            last_stable_offset: high_watermark,
            aborted: Vec::new(),
            log_start_offset: Offset::ZERO,
        })
    }

    fn watch_partition(&self, partition: TopicPartition) -> Option<watch::Receiver<Offset>> {
        Some(self.lock().get(&partition)?.watch.subscribe())
    }

    async fn list_offset(
        &self,
        partition: TopicPartition,
        spec: OffsetSpec,
        _isolation: IsolationLevel,
        _current_leader_epoch: Option<LeaderEpoch>,
    ) -> Result<Option<ListedOffset>, ErrorCode> {
        let partitions = self.lock();
        let partition = partitions
            .get(&partition)
            .ok_or(ErrorCode::UnknownTopicOrPartition)?;
        let listed = |offset, timestamp_ms| ListedOffset {
            offset,
            timestamp_ms,
            leader_epoch: LeaderEpoch::new(1),
        };
        Ok(match spec {
            OffsetSpec::Earliest => Some(listed(Offset::ZERO, None)),
            OffsetSpec::Latest => Some(listed(partition.high_watermark(), None)),
            // Every record has the timestamp 1000.
            OffsetSpec::Timestamp(0..=1_000) => Some(listed(Offset::ZERO, Some(1_000))),
            OffsetSpec::Timestamp(_) => None,
            OffsetSpec::MaxTimestamp => return Err(ErrorCode::OffsetNotAvailable),
        })
    }

    async fn end_of_epoch(
        &self,
        partition: TopicPartition,
        epoch: LeaderEpoch,
        _current_leader_epoch: Option<LeaderEpoch>,
    ) -> Result<Option<(LeaderEpoch, Offset)>, ErrorCode> {
        let partitions = self.lock();
        let partition = partitions
            .get(&partition)
            .filter(|partition| partition.leads)
            .ok_or(ErrorCode::NotLeaderOrFollower)?;
        Ok((epoch.get() == 1).then_some((epoch, partition.end)))
    }

    async fn delete_records(
        &self,
        wanted: Vec<(TopicPartition, Option<Offset>)>,
        _deadline: Instant,
    ) -> Vec<Result<Offset, ErrorCode>> {
        let partitions = self.lock();
        let delete = |(id, before): (TopicPartition, Option<Offset>)| {
            let partition = partitions
                .get(&id)
                .filter(|partition| partition.leads)
                .ok_or(ErrorCode::NotLeaderOrFollower)?;
            let high_watermark = partition.high_watermark();
            let before = before.unwrap_or(high_watermark);
            match before <= high_watermark {
                true => Ok(before),
                false => Err(ErrorCode::OffsetOutOfRange),
            }
        };
        wanted.into_iter().map(delete).collect()
    }

    async fn create_topics(
        &self,
        topics: Vec<CreateTopicRequest>,
        validate_only: bool,
        _deadline: Instant,
    ) -> Vec<Result<CreatedTopic, Refusal>> {
        topics
            .into_iter()
            .map(|topic| {
                if validate_only {
                    return Ok(CreatedTopic {
                        partitions: topic.partitions.unwrap_or(1),
                        replication_factor: topic.replication_factor.unwrap_or(3).into(),
                    });
                }
                self.make(topic)
            })
            .collect()
    }

    async fn delete_topics(
        &self,
        topics: Vec<TopicId>,
        _deadline: Instant,
    ) -> Vec<Result<(), Refusal>> {
        let mut image = self.image.lock().unwrap();
        topics
            .into_iter()
            .map(|topic| match image.apply(&Command::DeleteTopic { topic }) {
                Ok(_) => {
                    self.lock().retain(|key, _| key.topic != topic);
                    Ok(())
                }
                Err(rejection) => Err(rejection.error_code().into()),
            })
            .collect()
    }

    async fn create_partitions(
        &self,
        topics: Vec<CreatePartitionsRequest>,
        validate_only: bool,
        _deadline: Instant,
    ) -> Vec<Result<(), Refusal>> {
        let mut image = self.image.lock().unwrap();
        let alive = image.nodes().map(|n| n.node).collect();
        topics
            .into_iter()
            .map(|topic| {
                let applied = topic.resolve(&image, &alive).and_then(|command| {
                    if validate_only {
                        Ok(())
                    } else {
                        image.apply(&command).map(|_| ())
                    }
                });
                applied.map_err(|rejection| Refusal {
                    error: rejection.error_code(),
                    message: Some(rejection.to_string()),
                })
            })
            .collect()
    }

    async fn alter_topic_config(
        &self,
        topic: TopicId,
        changes: Vec<ConfigChange>,
        validate_only: bool,
        _deadline: Instant,
    ) -> Result<(), Refusal> {
        for change in &changes {
            if let ConfigChange::Set { name, value } = change {
                TopicConfig::check(name, value).map_err(|error| Refusal {
                    error: ErrorCode::InvalidConfig,
                    message: Some(error.to_string()),
                })?;
            }
        }
        if !validate_only {
            let command = Command::SetTopicConfigs { topic, changes };
            self.image.lock().unwrap().apply(&command).unwrap();
        }
        Ok(())
    }

    async fn change_credential(
        &self,
        user: String,
        mechanism: ScramMechanism,
        verifier: Option<ScramVerifier>,
        _deadline: Instant,
    ) -> Result<(), Refusal> {
        let command = match verifier {
            Some(verifier) => Command::SetCredential {
                user,
                mechanism,
                verifier,
            },
            None => Command::DeleteCredential { user, mechanism },
        };
        let mut image = self.image.lock().unwrap();
        image
            .apply(&command)
            .map(|_| ())
            .map_err(|rejection| Refusal {
                error: rejection.error_code(),
                message: Some(rejection.to_string()),
            })
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy::Fsync
    }

    fn node_config(&self) -> Vec<NodeSetting> {
        vec![NodeSetting {
            name: "log.dirs".to_owned(),
            value: "/data".to_owned(),
            is_default: false,
            documentation: "Where the log is.".to_owned(),
        }]
    }

    async fn allocate_producer_id(&self, _deadline: Instant) -> Result<ProducerId, ErrorCode> {
        Ok(ProducerId::new(4_000).unwrap())
    }

    async fn group_coordinator(&self, group: &str, _deadline: Instant) -> Result<NodeId, Refusal> {
        // Node 3 has no Kafka listener.
        match group {
            "unreachable" => Ok(node(3)),
            _ => Ok(node(2)),
        }
    }

    async fn ask_group(
        &self,
        group: &str,
        request: groups::Request,
        _taken_by: Instant,
    ) -> Result<groups::Answer, ErrorCode> {
        match group {
            "elsewhere" => return Err(ErrorCode::NotCoordinator),
            "loading" => return Err(ErrorCode::CoordinatorLoadInProgress),
            _ => {}
        }
        let (reply, answer) = oneshot::channel();
        let topics = Arc::new(TopicsOf(self.image.lock().unwrap().clone()));
        {
            let mut groups = self.groups.lock().unwrap();
            groups.coordinator.handle_topics(topics);
            groups.ask(self.now(), group, request, reply);
        }
        answer.await.unwrap()
    }

    async fn list_groups(
        &self,
        filter: groups::ListFilter,
        deadline: Instant,
    ) -> (Vec<groups::GroupListing>, Option<ErrorCode>) {
        let request = groups::Request::List(filter);
        match self.ask_group("any", request, deadline).await {
            Ok(groups::Answer::Listed(listed)) => (listed, None),
            other => panic!("{other:?}"),
        }
    }

    async fn transaction_coordinator(
        &self,
        _transactional_id: &str,
        _deadline: Instant,
    ) -> Result<NodeId, Refusal> {
        Ok(node(2))
    }

    async fn ask_transaction(
        &self,
        transactional_id: &str,
        request: transactions::Request,
        _taken_by: Instant,
    ) -> Result<transactions::Answer, ErrorCode> {
        let mut transactions = self.transactions.lock().unwrap();
        transactions.ask(transactional_id, request)
    }

    async fn list_transactions(
        &self,
        filter: transactions::Filter,
        deadline: Instant,
    ) -> (Vec<transactions::Listing>, Option<ErrorCode>) {
        let request = transactions::Request::List(filter);
        match self.ask_transaction("any", request, deadline).await {
            Ok(transactions::Answer::Listed(listed)) => (listed, None),
            other => panic!("{other:?}"),
        }
    }
}

impl Groups {
    fn ask(
        &mut self,
        now: groups::Now,
        group: &str,
        request: groups::Request,
        reply: oneshot::Sender<Result<groups::Answer, ErrorCode>>,
    ) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.replies.insert(ticket, reply);
        self.coordinator.handle(now, ticket, group, request);
        self.coordinator.handle_tick(now);
        while self.coordinator.take_write(now).is_some() {
            self.coordinator.handle_written(now, Ok(()));
        }
        while let Some((ticket, answer)) = self.coordinator.poll_answer() {
            let _ = self.replies.remove(&ticket).unwrap().send(answer);
        }
    }
}
