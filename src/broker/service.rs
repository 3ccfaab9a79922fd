//! What the Kafka API asks of this node.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Broker;
use super::event::{Event, ProduceEvent};
use super::shared::PartitionHandle;
use crate::groups::{self, EndTransaction, GroupListing, ListFilter};
use crate::kafka::{
    CreatedTopic, FetchPartition, FetchRefusal, FetchedRecords, ListedOffset, NodeSetting,
    OffsetSpec, Produce, ProduceReply, Refusal, Service, produce_replied,
};
use crate::metadata::{
    ClusterImage, Command, ConfigChange, CreatePartitionsRequest, CreateTopicRequest, FlushPolicy,
    ScramMechanism, ScramVerifier,
};
use crate::partition::PartitionView;
use crate::record::{BatchHeader, Marker, TimestampType, TransactionOutcome};
use crate::replication::{ProducerDescription, Verification};
use crate::storage::{CommittedRecords, ReadError};
use crate::transactions;
use crate::types::{
    ErrorCode, IsolationLevel, LeaderEpoch, NodeId, Offset, ProducerId, TopicId, TopicPartition,
};

impl Broker {
    /// The partition, if it is open here. A replica of another node is "not leader", one of nobody is unknown.
    pub(super) fn partition(&self, id: TopicPartition) -> Result<PartitionHandle, ErrorCode> {
        if let Some(handle) = self.shared.partition(id) {
            return Ok(handle);
        }
        match self.image().partition(id) {
            Some(_) => Err(ErrorCode::NotLeaderOrFollower),
            None => Err(ErrorCode::UnknownTopicOrPartition),
        }
    }

    /// The partition and its view, if this node leads it in an epoch that agrees with what the client believes.
    pub(super) fn led(
        &self,
        id: TopicPartition,
        believed: Option<LeaderEpoch>,
    ) -> Result<(PartitionHandle, PartitionView), ErrorCode> {
        let handle = self.partition(id)?;
        let view = *handle.view.borrow();
        view.check_leader(believed)?;
        Ok((handle, view))
    }
}

impl Broker {
    /// Lets the partition's owner know what a reader found. What a thread that ends misses, the next start's reader finds.
    async fn tell_damage(&self, id: TopicPartition, error: &ReadError) {
        if error.is_damage() {
            let cause = error.to_string();
            let _ = self.shared.deliver(id, Event::Damaged { id, cause }).await;
        }
    }
}

impl Service for Broker {
    fn node_id(&self) -> NodeId {
        self.shared.me.node
    }

    fn image(&self) -> Arc<ClusterImage> {
        self.controller.image_with_own_place()
    }

    fn active_controller(&self) -> Option<NodeId> {
        self.controller.active_controller()
    }

    fn is_live(&self, node: NodeId) -> bool {
        let alive = self.controller.alive();
        alive.is_empty() || alive.contains(&node)
    }

    async fn submit_produce(&self, produce: Produce) -> ProduceReply {
        let id = produce.partition;
        if let Err(error) = self.partition(id) {
            return produce_replied(Err(error));
        }
        let Some((_, shard)) = self.shared.shard_of(id) else {
            return produce_replied(Err(ErrorCode::NotLeaderOrFollower));
        };
        // Kafka's rule for format 2, and the reason why one answer speaks for the whole request.
        let Ok([batch]) = <[_; 1]>::try_from(produce.batches) else {
            return produce_replied(Err(ErrorCode::InvalidRecord));
        };
        let (reply, answer) = oneshot::channel();
        let event = Event::Produce(Box::new(ProduceEvent {
            id,
            batch,
            acks: produce.acks,
            deadline: self.shared.clock.at(produce.deadline.into_std()),
            in_epoch: None,
            guard: produce.guard,
            reply,
        }));
        match tokio::time::timeout_at(produce.deadline, shard.mailbox.send(event)).await {
            Ok(Ok(())) => answer,
            Ok(Err(_)) => produce_replied(Err(ErrorCode::NotLeaderOrFollower)),
            Err(_) => produce_replied(Err(ErrorCode::RequestTimedOut)),
        }
    }

    async fn verification(
        &self,
        partition: TopicPartition,
        producer: (ProducerId, i16),
        deadline: Instant,
    ) -> Result<Verification, ErrorCode> {
        self.ask_verification(partition, producer, deadline).await
    }

    async fn verify_transaction(
        &self,
        transactional_id: &str,
        producer: (ProducerId, i16),
        partitions: Vec<TopicPartition>,
        reach: transactions::Reach,
        deadline: Instant,
    ) -> Vec<Result<(), ErrorCode>> {
        self.verify_with_coordinator(transactional_id, producer, &partitions, reach, deadline)
            .await
    }

    async fn write_marker(
        &self,
        partition: TopicPartition,
        marker: Marker,
        deadline: Instant,
    ) -> Result<(), ErrorCode> {
        let end = EndTransaction {
            producer: marker.producer,
            producer_epoch: marker.producer_epoch,
            coordinator_epoch: marker.coordinator_epoch,
            is_commit: marker.outcome == TransactionOutcome::Commit,
        };
        let image = self.image();
        let of_groups = self
            .groups
            .end_transaction(&image, partition, end, deadline);
        match of_groups.await {
            Some(ended) => ended,
            None => self.append_marker(partition, marker, deadline).await,
        }
    }

    async fn describe_producers(
        &self,
        partition: TopicPartition,
        deadline: Instant,
    ) -> Result<Vec<ProducerDescription>, ErrorCode> {
        self.ask_producers(partition, deadline).await
    }

    async fn fetch_partition(&self, read: FetchPartition) -> Result<FetchedRecords, FetchRefusal> {
        let (handle, view) = self.led(read.partition, read.current_leader_epoch)?;
        let out_of_range = FetchRefusal {
            error: ErrorCode::OffsetOutOfRange,
            bounds: Some((view.log_start, view.high_watermark)),
        };
        if read.from < view.log_start || read.from > view.log_end {
            return Err(out_of_range);
        }
        let mut fetched = FetchedRecords {
            records: Vec::new(),
            next: read.from,
            high_watermark: view.watermark_known.then_some(view.high_watermark),
            last_stable_offset: view.last_stable_offset,
            aborted: Vec::new(),
            log_start_offset: view.log_start,
        };
        let below = match read.isolation {
            IsolationLevel::ReadUncommitted => view.high_watermark,
            IsolationLevel::ReadCommitted => view.last_stable_offset,
        };
        if read.max_bytes == 0 || read.from >= below {
            return Ok(fetched);
        }
        let reader = handle.reader;
        let records = tokio::task::spawn_blocking(move || match read.isolation {
            IsolationLevel::ReadCommitted => {
                reader.read_committed(read.from, read.max_bytes, below)
            }
            IsolationLevel::ReadUncommitted => {
                let records = reader.read_records(read.from, read.max_bytes, below)?;
                Ok(CommittedRecords {
                    records,
                    aborted: Vec::new(),
                })
            }
        })
        .await;
        match records {
            Ok(Ok(CommittedRecords { records, aborted })) => {
                fetched.aborted = aborted;
                if let Some(next) = records.last().and_then(end_of_batch) {
                    fetched.next = next;
                }
                fetched.records = records;
                Ok(fetched)
            }
            Ok(Err(ReadError::OutOfRange { .. })) => Err(out_of_range),
            Ok(Err(error)) => {
                tracing::error!(partition = %read.partition, offset = %read.from, cause = %error, "cannot read the log");
                self.tell_damage(read.partition, &error).await;
                Err(ErrorCode::KafkaStorageError.into())
            }
            Err(_) => Err(ErrorCode::UnknownServerError.into()),
        }
    }

    fn watch_partition(&self, partition: TopicPartition) -> Option<watch::Receiver<Offset>> {
        Some(self.shared.partition(partition)?.watermark)
    }

    async fn list_offset(
        &self,
        partition: TopicPartition,
        spec: OffsetSpec,
        isolation: IsolationLevel,
        current_leader_epoch: Option<LeaderEpoch>,
    ) -> Result<Option<ListedOffset>, ErrorCode> {
        let (handle, view) = self.led(partition, current_leader_epoch)?;
        let end = match isolation {
            IsolationLevel::ReadUncommitted => view.high_watermark,
            IsolationLevel::ReadCommitted => view.last_stable_offset,
        };
        let plain = |offset| ListedOffset {
            offset,
            timestamp_ms: None,
            leader_epoch: Some(view.leader_epoch),
        };
        let timestamp = match spec {
            OffsetSpec::Earliest => return Ok(Some(plain(view.log_start))),
            _ if !view.watermark_known => return Err(ErrorCode::OffsetNotAvailable),
            OffsetSpec::Latest => return Ok(Some(plain(end))),
            OffsetSpec::Timestamp(timestamp) => Some(timestamp),
            OffsetSpec::MaxTimestamp => None,
        };
        let range = view.log_start..end;
        let found = tokio::task::spawn_blocking(move || match timestamp {
            Some(timestamp) => super::offsets::first_at_or_after(&handle.reader, timestamp, range),
            None => super::offsets::youngest(&handle.reader, range),
        })
        .await;
        match found {
            Ok(Ok(found)) => Ok(found.map(|(offset, timestamp_ms)| ListedOffset {
                offset,
                timestamp_ms: Some(timestamp_ms),
                leader_epoch: Some(view.leader_epoch),
            })),
            Ok(Err(error)) => {
                tracing::error!(%partition, cause = %error, "cannot look up an offset");
                self.tell_damage(partition, &error).await;
                Err(ErrorCode::KafkaStorageError)
            }
            Err(_) => Err(ErrorCode::UnknownServerError),
        }
    }

    async fn end_of_epoch(
        &self,
        partition: TopicPartition,
        epoch: LeaderEpoch,
        current_leader_epoch: Option<LeaderEpoch>,
    ) -> Result<Option<(LeaderEpoch, Offset)>, ErrorCode> {
        self.ask_end_of_epoch(partition, epoch, current_leader_epoch)
            .await
    }

    async fn delete_records(
        &self,
        wanted: Vec<(TopicPartition, Option<Offset>)>,
        deadline: Instant,
    ) -> Vec<Result<Offset, ErrorCode>> {
        self.delete(&wanted, deadline).await
    }

    async fn create_topics(
        &self,
        topics: Vec<CreateTopicRequest>,
        validate_only: bool,
        deadline: Instant,
    ) -> Vec<Result<CreatedTopic, Refusal>> {
        let mut results = Vec::with_capacity(topics.len());
        for topic in topics {
            results.push(self.create_topic(topic, validate_only, deadline).await);
        }
        results
    }

    async fn delete_topics(
        &self,
        topics: Vec<TopicId>,
        deadline: Instant,
    ) -> Vec<Result<(), Refusal>> {
        let mut results = Vec::with_capacity(topics.len());
        for topic in topics {
            let command = Command::DeleteTopic { topic };
            let gone = |image: &ClusterImage| image.topic(topic).is_none();
            results.push(self.command(command, gone, deadline).await);
        }
        results
    }

    async fn create_partitions(
        &self,
        topics: Vec<CreatePartitionsRequest>,
        validate_only: bool,
        deadline: Instant,
    ) -> Vec<Result<(), Refusal>> {
        let mut results = Vec::with_capacity(topics.len());
        for request in topics {
            results.push(self.add_partitions(request, validate_only, deadline).await);
        }
        results
    }

    async fn alter_topic_config(
        &self,
        topic: TopicId,
        changes: Vec<ConfigChange>,
        validate_only: bool,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        if validate_only {
            return self.validate_config(topic, &changes);
        }
        let command = Command::SetTopicConfigs { topic, changes };
        self.command(command, |_| true, deadline).await
    }

    async fn change_credential(
        &self,
        user: String,
        mechanism: ScramMechanism,
        verifier: Option<ScramVerifier>,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let wanted = verifier.clone();
        let name = user.clone();
        let shown =
            move |image: &ClusterImage| image.scram_verifier(&name, mechanism) == wanted.as_ref();
        let command = match verifier {
            Some(verifier) => Command::SetCredential {
                user,
                mechanism,
                verifier,
            },
            None => Command::DeleteCredential { user, mechanism },
        };
        self.command(command, shown, deadline).await
    }

    fn flush_policy(&self) -> FlushPolicy {
        self.options.default_flush
    }

    fn node_config(&self) -> Vec<NodeSetting> {
        self.options.settings.clone()
    }

    async fn allocate_producer_id(&self, deadline: Instant) -> Result<ProducerId, ErrorCode> {
        self.producer_ids.next(deadline).await
    }

    async fn group_coordinator(&self, group: &str, deadline: Instant) -> Result<NodeId, Refusal> {
        self.find_coordinator(group, deadline).await
    }

    async fn ask_group(
        &self,
        group: &str,
        request: groups::Request,
        taken_by: Instant,
    ) -> Result<groups::Answer, ErrorCode> {
        let image = self.image();
        self.groups.ask(&image, group, request, taken_by).await
    }

    async fn list_groups(
        &self,
        filter: ListFilter,
        deadline: Instant,
    ) -> (Vec<GroupListing>, Option<ErrorCode>) {
        self.groups.list(filter, deadline).await
    }

    async fn transaction_coordinator(
        &self,
        transactional_id: &str,
        deadline: Instant,
    ) -> Result<NodeId, Refusal> {
        self.find_transaction_coordinator(transactional_id, deadline)
            .await
    }

    async fn ask_transaction(
        &self,
        transactional_id: &str,
        request: transactions::Request,
        taken_by: Instant,
    ) -> Result<transactions::Answer, ErrorCode> {
        self.ask_transaction_of(transactional_id, request, taken_by)
            .await
    }

    async fn list_transactions(
        &self,
        filter: transactions::Filter,
        deadline: Instant,
    ) -> (Vec<transactions::Listing>, Option<ErrorCode>) {
        self.list_transactions_here(filter, deadline).await
    }
}

/// The offset after the last record of a batch that the log holds.
fn end_of_batch(batch: &bytes::Bytes) -> Option<Offset> {
    let header = BatchHeader::decode(batch).ok()?;
    debug_assert_eq!(header.timestamp_type(), TimestampType::CreateTime);
    Offset::from_wire(header.next_offset())
}
