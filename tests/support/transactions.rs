//! A producer that uses transactions and does exactly what it is told, and what a reader sees of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, ApiVersionsRequest, ApiVersionsResponse, EndTxnRequest,
    FetchRequest, FindCoordinatorRequest, GroupId, InitProducerIdRequest, OffsetFetchRequest,
    ProduceRequest, ProducerId, TransactionalId, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::StrBytes;
use quorate::record::{BatchBuilder, Batches, Compression, Marker, ProducerStamp, records};
use quorate::types::NodeId;

use super::cluster::Cluster;
use super::kafka::{FETCH_VERSION, Kafka, PRODUCE_VERSION, name};
use super::{topic, until};

/// What a client tries again after: a coordinator or leader that moves, loads, or is busy with the last transaction.
const RETRIABLE: [i16; 12] = [3, 5, 6, 7, 13, 14, 15, 16, 19, 20, 51, 55];
pub const FIND_VERSION: i16 = 4;
pub const INIT_VERSION: i16 = 4;
pub const ADD_VERSION: i16 = 3;
pub const END_VERSION: i16 = 3;
/// The first versions of clients that leave it to the brokers to add partitions, and get an epoch with each end.
pub const NEWER_PRODUCE_VERSION: i16 = 12;
pub const NEWER_END_VERSION: i16 = 5;
pub const NEWER_OFFSETS_VERSION: i16 = 5;
/// ApiVersions, in which features are told from level 0 on.
pub const FEATURES_VERSION: i16 = 4;
pub const GROUP_KEY: i8 = 0;
pub const TRANSACTION_KEY: i8 = 1;

pub struct Transactional {
    pub id: String,
    pub producer: i64,
    pub epoch: i16,
    /// Whether it speaks `transaction.version` 2.
    pub newer: bool,
    sequences: BTreeMap<(String, i32), i32>,
}

/// What an answer's code comes to: done, never, or not yet.
fn judge(code: i16) -> Result<Result<(), i16>, String> {
    match code {
        0 => Ok(Ok(())),
        code if RETRIABLE.contains(&code) => Err(format!("error {code}")),
        code => Ok(Err(code)),
    }
}

fn id(name: &str) -> TransactionalId {
    TransactionalId(StrBytes::from_string(name.to_owned()))
}

/// A batch of a transaction, for one partition.
pub fn produce_request(
    transactional_id: TransactionalId,
    stamp: ProducerStamp,
    (topic, partition): (&str, i32),
    values: &[String],
    timeout_ms: i32,
) -> ProduceRequest {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder
            .append(None, Some(value.as_bytes()), &[], 1_000)
            .unwrap();
    }
    let sealed = builder.seal(Compression::None).unwrap().transactional();
    ProduceRequest::default()
        .with_transactional_id(Some(transactional_id))
        .with_acks(-1)
        .with_timeout_ms(timeout_ms)
        .with_topic_data(vec![
            TopicProduceData::default()
                .with_name(name(topic))
                .with_partition_data(vec![
                    PartitionProduceData::default()
                        .with_index(partition)
                        .with_records(Some(sealed.stamp(Some(stamp)))),
                ]),
        ])
}

/// The node that coordinates an id, and a connection to it, as soon as there is one that runs.
pub async fn coordinator(cluster: &Cluster, name: &str) -> (NodeId, Kafka) {
    coordinator_of(cluster, TRANSACTION_KEY, name).await
}

async fn coordinator_of(cluster: &Cluster, key_type: i8, name: &str) -> (NodeId, Kafka) {
    until("a coordinator", async || {
        let asked = cluster.running()[0];
        let mut kafka = Kafka::connect(cluster.spec(asked).kafka).await;
        let request = FindCoordinatorRequest::default()
            .with_key_type(key_type)
            .with_coordinator_keys(vec![StrBytes::from_string(name.to_owned())]);
        let found = kafka
            .call(&request, FIND_VERSION)
            .await
            .coordinators
            .remove(0);
        if found.error_code != 0 {
            return Err(format!(
                "error {}: {:?}",
                found.error_code, found.error_message
            ));
        }
        let node = NodeId::from_broker_id(found.node_id.0).unwrap();
        if !cluster.running().contains(&node) {
            return Err(format!("node {node}, which is down"));
        }
        Ok((node, Kafka::connect(cluster.spec(node).kafka).await))
    })
    .await
}

/// The level of `transaction.version` that a node tells its clients.
pub fn transaction_level(answer: &ApiVersionsResponse) -> Option<i16> {
    let mut features = answer.finalized_features.iter();
    let found = features.find(|feature| &feature.name[..] == "transaction.version");
    found.map(|feature| feature.max_version_level)
}

/// Waits until every node says that clients may speak `transaction.version` 2.
pub async fn until_newer_clients_may(cluster: &Cluster) {
    for spec in &cluster.specs {
        until("level 2 of transaction.version", async || {
            let mut kafka = Kafka::connect(spec.kafka).await;
            let request = ApiVersionsRequest::default();
            let answer = kafka.call(&request, FEATURES_VERSION).await;
            match transaction_level(&answer) {
                Some(2) => Ok(()),
                other => Err(format!("level {other:?}")),
            }
        })
        .await;
    }
}

impl Transactional {
    /// The same for a client that speaks `transaction.version` 2.
    pub async fn begin_newer(cluster: &Cluster, name: &str, timeout_ms: i32) -> Transactional {
        until_newer_clients_may(cluster).await;
        Transactional {
            newer: true,
            ..Transactional::begin(cluster, name, timeout_ms).await
        }
    }

    /// Begins with a transactional id; whoever had it is fenced.
    pub async fn begin(cluster: &Cluster, name: &str, timeout_ms: i32) -> Transactional {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(id(name)))
            .with_transaction_timeout_ms(timeout_ms);
        until("a producer begins with its transactional id", async || {
            let (_, mut kafka) = coordinator(cluster, name).await;
            let given = kafka.call(&request, INIT_VERSION).await;
            judge(given.error_code)?.expect("a producer id");
            Ok(Transactional {
                id: name.to_owned(),
                producer: given.producer_id.0,
                epoch: given.producer_epoch,
                newer: false,
                sequences: BTreeMap::new(),
            })
        })
        .await
    }

    /// Says that the transaction writes to these partitions. An error is one that no client tries again after.
    pub async fn add(&self, cluster: &Cluster, topic: &str, partitions: &[i32]) -> Result<(), i16> {
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id(&self.id))
            .with_v3_and_below_producer_id(ProducerId(self.producer))
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(vec![
                AddPartitionsToTxnTopic::default()
                    .with_name(name(topic))
                    .with_partitions(partitions.to_vec()),
            ]);
        until("partitions are added", async || {
            let (_, mut kafka) = coordinator(cluster, &self.id).await;
            let added = kafka.call(&request, ADD_VERSION).await;
            let results = &added.results_by_topic_v3_and_below[0].results_by_partition;
            judge(results[0].partition_error_code)
        })
        .await
    }

    /// Writes one batch, whether or not the partition was added.
    pub async fn produce(
        &mut self,
        cluster: &Cluster,
        in_topic: &str,
        partition: i32,
        values: &[String],
    ) -> Result<(), i16> {
        let place = (in_topic.to_owned(), partition);
        let sequence = self.sequences.get(&place).copied().unwrap_or_default();
        let stamp = ProducerStamp {
            id: quorate::types::ProducerId::new(self.producer).unwrap(),
            epoch: self.epoch,
            base_sequence: sequence,
        };
        let written = self
            .send(cluster, stamp, (in_topic, partition), values)
            .await;
        if written.is_ok() {
            let next = sequence + i32::try_from(values.len()).unwrap();
            self.sequences.insert(place, next);
        }
        written
    }

    /// Writes the same to each partition, as it must be possible.
    pub async fn produce_to_each(
        &mut self,
        cluster: &Cluster,
        in_topic: &str,
        partitions: impl IntoIterator<Item = i32>,
        values: &[String],
    ) {
        for partition in partitions {
            let written = self.produce(cluster, in_topic, partition, values).await;
            assert_eq!(written, Ok(()), "{in_topic}-{partition}");
        }
    }

    /// Writes one batch as it is numbered.
    pub async fn send(
        &self,
        cluster: &Cluster,
        stamp: ProducerStamp,
        to: (&str, i32),
        values: &[String],
    ) -> Result<(), i16> {
        let request = produce_request(id(&self.id), stamp, to, values, 5_000);
        let (in_topic, index) = (topic(to.0), u32::try_from(to.1).unwrap());
        let version = match self.newer {
            true => NEWER_PRODUCE_VERSION,
            false => PRODUCE_VERSION,
        };
        until("a batch is written", async || {
            let leader = cluster.until_led(&in_topic, index, |_| true).await;
            let mut kafka = Kafka::connect(cluster.spec(leader).kafka).await;
            let response = kafka.call(&request, version).await;
            judge(response.responses[0].partition_responses[0].error_code)
        })
        .await
    }

    fn end_request(&self, epoch: i16, commit: bool) -> EndTxnRequest {
        EndTxnRequest::default()
            .with_transactional_id(id(&self.id))
            .with_producer_id(ProducerId(self.producer))
            .with_producer_epoch(epoch)
            .with_committed(commit)
    }

    pub async fn end(&self, cluster: &Cluster, commit: bool) -> Result<(), i16> {
        let request = self.end_request(self.epoch, commit);
        until("the transaction is ended", async || {
            let (_, mut kafka) = coordinator(cluster, &self.id).await;
            judge(kafka.call(&request, END_VERSION).await.error_code)
        })
        .await
    }

    /// Ends the transaction of an epoch as a client does that speaks `transaction.version` 2: what the producer is after it.
    pub async fn end_epoch(
        &self,
        cluster: &Cluster,
        epoch: i16,
        commit: bool,
    ) -> Result<(i64, i16), i16> {
        let request = self.end_request(epoch, commit);
        until("the transaction is ended", async || {
            let (_, mut kafka) = coordinator(cluster, &self.id).await;
            let ended = kafka.call(&request, NEWER_END_VERSION).await;
            let next = (ended.producer_id.0, ended.producer_epoch);
            Ok(judge(ended.error_code)?.map(|()| next))
        })
        .await
    }

    /// The same for the transaction that is open; then the producer goes on in its next epoch.
    pub async fn finish(&mut self, cluster: &Cluster, commit: bool) {
        let next = self.end_epoch(cluster, self.epoch, commit).await.unwrap();
        (self.producer, self.epoch) = next;
        self.sequences.clear();
    }

    /// Commits the offset of a group as part of the transaction, without saying so to the transaction's coordinator before.
    pub async fn commit_offset(
        &self,
        cluster: &Cluster,
        group: &str,
        of: (&str, i32),
        offset: i64,
    ) -> Result<(), i16> {
        let partition = TxnOffsetCommitRequestPartition::default()
            .with_partition_index(of.1)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(-1);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(id(&self.id))
            .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
            .with_producer_id(ProducerId(self.producer))
            .with_producer_epoch(self.epoch)
            .with_generation_id(-1)
            .with_topics(vec![
                TxnOffsetCommitRequestTopic::default()
                    .with_name(name(of.0))
                    .with_partitions(vec![partition]),
            ]);
        until("an offset is committed in a transaction", async || {
            let (_, mut kafka) = coordinator_of(cluster, GROUP_KEY, group).await;
            let committed = kafka.call(&request, NEWER_OFFSETS_VERSION).await;
            judge(committed.topics[0].partitions[0].error_code)
        })
        .await
    }
}

/// What a group has committed of a partition, once no transaction may change that; −1 for nothing.
pub async fn stable_offset(cluster: &Cluster, group: &str, of: (&str, i32)) -> i64 {
    let topic = OffsetFetchRequestTopics::default()
        .with_name(name(of.0))
        .with_partition_indexes(vec![of.1]);
    let group_id = GroupId(StrBytes::from_string(group.to_owned()));
    let wanted = OffsetFetchRequestGroup::default()
        .with_group_id(group_id)
        .with_topics(Some(vec![topic]));
    let request = OffsetFetchRequest::default()
        .with_groups(vec![wanted])
        .with_require_stable(true);
    until("an offset is stable", async || {
        let (_, mut kafka) = coordinator_of(cluster, GROUP_KEY, group).await;
        let mut found = kafka.call(&request, 8).await.groups.remove(0);
        if found.error_code != 0 {
            return Err(format!("error {}", found.error_code));
        }
        let found = found.topics.remove(0).partitions.remove(0);
        match found.error_code {
            0 => Ok(found.committed_offset),
            code => Err(format!("error {code}")),
        }
    })
    .await
}

/// The values that a reader sees of a partition from its start, those of transactions only once they are committed where
/// `committed`; and the last stable offset and the high watermark.
pub async fn read(
    cluster: &Cluster,
    in_topic: &str,
    partition: i32,
    committed: bool,
) -> Result<(Vec<String>, i64, i64), String> {
    let index = u32::try_from(partition).unwrap();
    let leader = cluster.until_led(&topic(in_topic), index, |_| true).await;
    let mut kafka = Kafka::connect(cluster.spec(leader).kafka).await;
    let mut values = Vec::new();
    let mut from = 0;
    loop {
        let request = FetchRequest::default()
            .with_max_wait_ms(0)
            .with_max_bytes(8 << 20)
            .with_session_epoch(-1)
            .with_isolation_level(i8::from(committed))
            .with_topics(vec![
                FetchTopic::default()
                    .with_topic(name(in_topic))
                    .with_partitions(vec![
                        FetchPartition::default()
                            .with_partition(partition)
                            .with_current_leader_epoch(-1)
                            .with_fetch_offset(from)
                            .with_partition_max_bytes(1 << 20),
                    ]),
            ]);
        let response = kafka.call(&request, FETCH_VERSION).await;
        let answer = &response.responses[0].partitions[0];
        if answer.error_code != 0 {
            return Err(format!("error {}", answer.error_code));
        }
        let aborted: Vec<(i64, i64)> = answer
            .aborted_transactions
            .iter()
            .flatten()
            .map(|aborted| (aborted.first_offset, aborted.producer_id.0))
            .collect();
        let mut taken = Vec::new();
        let records = answer.records.clone().unwrap_or_default();
        let next = take(records, from, aborted, &mut taken);
        values.extend(taken.into_iter().map(|(_, value)| value));
        if next == from {
            return Ok((values, answer.last_stable_offset, answer.high_watermark));
        }
        from = next;
    }
}

/// Takes offsets and values of what was fetched but for aborted ones, as consumers do, and says where the next fetch goes on.
/// `aborted` has the first offset and the producer of each aborted transaction.
pub fn take(
    bytes: Bytes,
    from: i64,
    mut aborted: Vec<(i64, i64)>,
    values: &mut Vec<(i64, String)>,
) -> i64 {
    aborted.sort_unstable();
    let mut next = from;
    let mut aborted = aborted.into_iter().peekable();
    let mut aborting = BTreeSet::new();
    for batch in Batches::new(bytes) {
        let batch = batch.unwrap();
        next = batch.header.next_offset();
        while let Some((_, producer)) = aborted.next_if(|(first, _)| *first < next) {
            aborting.insert(producer);
        }
        let producer = batch.header.producer_id.map_or(-1, |id| id.get());
        if let Some(marker) = Marker::read(&batch) {
            if marker.outcome == quorate::record::TransactionOutcome::Abort {
                aborting.remove(&producer);
            }
            continue;
        }
        if batch.header.is_transactional() && aborting.contains(&producer) {
            continue;
        }
        for record in records(&batch).unwrap() {
            let record = record.unwrap();
            if record.offset >= from {
                let value = record.value.unwrap().to_vec();
                values.push((record.offset, String::from_utf8(value).unwrap()));
            }
        }
    }
    next
}
