//! What the Kafka handlers need of the node they serve, in the project's own words. `broker` implements it; tests have a
//! double.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::groups;
use crate::metadata::{
    ClusterImage, ConfigChange, CreatePartitionsRequest, CreateTopicRequest, FlushPolicy,
    ScramMechanism, ScramVerifier,
};
use crate::record::{AbortedTransaction, Batch, Marker};
pub use crate::replication::{Acks, ProducerDescription, Verification, VerificationGuard};
use crate::transactions;
use crate::types::{
    ErrorCode, IsolationLevel, LeaderEpoch, NodeId, Offset, ProducerId, TopicId, TopicPartition,
};

/// One node, as the Kafka API sees it.
///
/// Every method takes topics by id. The handlers look names up once, in the image of the moment a request is handled, so a
/// request that was accepted before its topic was deleted never reaches a topic made again under the same name.
///
/// No method panics, and none waits without a bound: each ends by the deadline it is given, or at once.
pub trait Service: Send + Sync + 'static {
    /// The node that answers.
    fn node_id(&self) -> NodeId;

    /// The newest committed metadata that this node has applied. Cheap: an `Arc` is cloned. Metadata that the controller
    /// has committed and this node has not yet applied is missing from it, so "unknown topic" is a retriable answer.
    fn image(&self) -> Arc<ClusterImage>;

    /// The node that leads the metadata quorum, as far as this node knows.
    fn active_controller(&self) -> Option<NodeId>;

    /// Whether a registered node is thought to be up. Metadata lists those nodes only, so that clients do not dial dead
    /// ones.
    fn is_live(&self, node: NodeId) -> bool;

    /// Hands batches to the owner of a partition.
    ///
    /// The future ends when the batches stand in the partition's bounded mailbox (waiting while that is full, until the
    /// deadline) or were refused without one; what it returns answers later. A connection awaits this future before it
    /// reads its next request: so pipelined requests reach a partition in the order in which they were sent.
    ///
    /// The batches are checked already: structure, CRC, codec and size. They go through verbatim.
    fn submit_produce(&self, produce: Produce) -> impl Future<Output = ProduceReply> + Send;

    /// Whether the next batch of a producer's transaction, in this epoch of the producer, begins one in the partition: then its
    /// coordinator is asked first, and the batch comes with the guard. Errors: as for a produce.
    fn verification(
        &self,
        partition: TopicPartition,
        producer: (ProducerId, i16),
        deadline: Instant,
    ) -> impl Future<Output = Result<Verification, ErrorCode>> + Send;

    /// Asks the coordinator of a transactional id whether the producer's transaction is open and reaches these partitions, or
    /// has them added to it: one answer for each, in the same order.
    fn verify_transaction(
        &self,
        transactional_id: &str,
        producer: (ProducerId, i16),
        partitions: Vec<TopicPartition>,
        reach: transactions::Reach,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<(), ErrorCode>>> + Send;

    /// Ends a producer's transaction in a partition that this node leads. Ends once a commit quorum holds the marker durably.
    /// A marker may come again, also after its transaction has ended here. In a partition of the groups' own topic it decides
    /// over the offsets that were committed in the transaction. What the marker takes back is found out here.
    ///
    /// Errors: `InvalidProducerEpoch`, `TransactionCoordinatorFenced`, and those of a produce with acks=all.
    fn write_marker(
        &self,
        partition: TopicPartition,
        marker: Marker,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), ErrorCode>> + Send;

    /// What a partition that this node leads remembers of its producers, in order of their ids.
    fn describe_producers(
        &self,
        partition: TopicPartition,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<ProducerDescription>, ErrorCode>> + Send;

    /// Reads committed record batches from a partition that this node leads.
    ///
    /// A read between the high watermark and the log's end is empty, never out of range. Errors: `OffsetOutOfRange`,
    /// `NotLeaderOrFollower`, `FencedLeaderEpoch`, `UnknownLeaderEpoch`, `UnknownTopicOrPartition`, `KafkaStorageError`.
    fn fetch_partition(
        &self,
        read: FetchPartition,
    ) -> impl Future<Output = Result<FetchedRecords, FetchRefusal>> + Send;

    /// A value that changes whenever a fetch of the partition may have another answer than before: its high watermark
    /// moved, its leader changed, it went away. The value is the high watermark; waiters only wait for the change. A closed
    /// channel is a change too. `None` where this node holds no such partition.
    fn watch_partition(&self, partition: TopicPartition) -> Option<watch::Receiver<Offset>>;

    /// Looks up one offset of a partition that this node leads. `Ok(None)`: no record is as young as the timestamp asked
    /// for. Where only committed transactions are to be seen, the last stable offset is the end. `OffsetNotAvailable` until the
    /// leader's epoch start is committed.
    fn list_offset(
        &self,
        partition: TopicPartition,
        spec: OffsetSpec,
        isolation: IsolationLevel,
        current_leader_epoch: Option<LeaderEpoch>,
    ) -> impl Future<Output = Result<Option<ListedOffset>, ErrorCode>> + Send;

    /// How `epoch`, or the last one before it that is known, ended in the log of a partition that this node leads: that epoch,
    /// and the offset after its last record. `None` where `epoch` is above the log's last one.
    fn end_of_epoch(
        &self,
        partition: TopicPartition,
        epoch: LeaderEpoch,
        current_leader_epoch: Option<LeaderEpoch>,
    ) -> impl Future<Output = Result<Option<(LeaderEpoch, Offset)>, ErrorCode>> + Send;

    /// Deletes the records of partitions that this node leads below an offset, or below the high watermark where none is given;
    /// one result for each, the log start, in the same order. Ends once the cluster has committed it, so that it holds for
    /// every replica, and this node shows it.
    fn delete_records(
        &self,
        wanted: Vec<(TopicPartition, Option<Offset>)>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<Offset, ErrorCode>>> + Send;

    /// Makes topics, one result for each in the same order. With `validate_only`, everything is checked and nothing made.
    /// Ends once the controller has committed them, and tries to end only when [`Service::image`] shows them. Names are
    /// legal and no name comes twice; counts are at least 1; everything else is for the controller to judge.
    fn create_topics(
        &self,
        topics: Vec<CreateTopicRequest>,
        validate_only: bool,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<CreatedTopic, Refusal>>> + Send;

    /// Deletes topics, one result for each in the same order.
    fn delete_topics(
        &self,
        topics: Vec<TopicId>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<(), Refusal>>> + Send;

    /// Adds partitions to topics, one result for each in the same order.
    fn create_partitions(
        &self,
        topics: Vec<CreatePartitionsRequest>,
        validate_only: bool,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<(), Refusal>>> + Send;

    /// Changes a topic's configuration: all the changes or none.
    fn alter_topic_config(
        &self,
        topic: TopicId,
        changes: Vec<ConfigChange>,
        validate_only: bool,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Gives a user a password, or with no verifier takes it away. Ends once the controller has committed it.
    fn change_credential(
        &self,
        user: String,
        mechanism: ScramMechanism,
        verifier: Option<ScramVerifier>,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// What `flush` is where a topic does not set it.
    fn flush_policy(&self) -> FlushPolicy;

    /// The node's own settings, for DescribeConfigs of a broker. Read only.
    fn node_config(&self) -> Vec<NodeSetting>;

    /// A producer id that no producer ever had. Its epoch is 0.
    fn allocate_producer_id(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Result<ProducerId, ErrorCode>> + Send;

    /// The node that looks after a consumer group: the leader of the group's partition of the internal topic, which is made
    /// when it is first asked for. The group's name is a legal one.
    fn group_coordinator(
        &self,
        group: &str,
        deadline: Instant,
    ) -> impl Future<Output = Result<NodeId, Refusal>> + Send;

    /// Asks this node's coordinator of a group. The deadline is for the request to be taken in hand; when the answer comes is
    /// up to the coordinator, and it comes at the latest when that goes away.
    ///
    /// Errors besides the coordinator's own: `NotCoordinator`, `CoordinatorLoadInProgress`, `CoordinatorNotAvailable`.
    fn ask_group(
        &self,
        group: &str,
        request: groups::Request,
        taken_by: Instant,
    ) -> impl Future<Output = Result<groups::Answer, ErrorCode>> + Send;

    /// The groups of all of this node's coordinators, those in these states or all; and an error where some of them could not
    /// be asked.
    fn list_groups(
        &self,
        filter: groups::ListFilter,
        deadline: Instant,
    ) -> impl Future<Output = (Vec<groups::GroupListing>, Option<ErrorCode>)> + Send;

    /// The node that coordinates the transactions of a transactional id: the leader of the id's partition of the internal
    /// topic, which is made when it is first asked for. The id is a legal one. `UnsupportedVersion` while the cluster has nodes
    /// that do not know transactions.
    fn transaction_coordinator(
        &self,
        transactional_id: &str,
        deadline: Instant,
    ) -> impl Future<Output = Result<NodeId, Refusal>> + Send;

    /// Asks this node's coordinator of a transactional id. Where a producer id is needed, it is fetched: the answer is never
    /// [`transactions::Answer::NeedsProducerId`]. The deadline is for the request to be taken in hand; the answer comes with a
    /// write, and at the latest when the coordinator goes away.
    ///
    /// Errors besides the coordinator's own: `NotCoordinator`, `CoordinatorLoadInProgress`, `CoordinatorNotAvailable`,
    /// `UnsupportedVersion`.
    fn ask_transaction(
        &self,
        transactional_id: &str,
        request: transactions::Request,
        taken_by: Instant,
    ) -> impl Future<Output = Result<transactions::Answer, ErrorCode>> + Send;

    /// The transactional ids of all of this node's coordinators that fit the filter; and an error where some of them could not
    /// be asked.
    fn list_transactions(
        &self,
        filter: transactions::Filter,
        deadline: Instant,
    ) -> impl Future<Output = (Vec<transactions::Listing>, Option<ErrorCode>)> + Send;
}

/// One partition's share of a Produce request.
#[derive(Debug)]
pub struct Produce {
    pub partition: TopicPartition,
    /// At least one. Zero-copy slices of the request.
    pub batches: Vec<Batch>,
    pub acks: Acks,
    /// When to give up waiting and answer `RequestTimedOut`. One for the whole request.
    pub deadline: Instant,
    /// What [`Service::verification`] asked for, once the coordinator has given its word.
    pub guard: Option<VerificationGuard>,
}

/// Answers when a produce is over. A sender that is dropped without an answer (the partition's owner went away) counts as
/// `NotLeaderOrFollower`: nothing is known of the records, and the producer asks again. With [`Acks::None`] nobody listens.
pub type ProduceReply = oneshot::Receiver<Result<ProduceOutcome, ErrorCode>>;

/// A reply that is there already: what [`Service::submit_produce`] returns for a produce that it refuses at once.
pub fn produce_replied(result: Result<ProduceOutcome, ErrorCode>) -> ProduceReply {
    let (sender, receiver) = oneshot::channel();
    // The receiver is alive, so this cannot fail.
    let _ = sender.send(result);
    receiver
}

/// Where a produce's records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceOutcome {
    /// The offset of the first record; of a duplicate, the one it got the first time.
    pub base_offset: Offset,
    /// Milliseconds since the Unix epoch, where the topic stamps records with the time of the append. `None` otherwise.
    pub log_append_time_ms: Option<i64>,
    pub log_start_offset: Offset,
}

/// What to read from one partition.
#[derive(Clone, Copy, Debug)]
pub struct FetchPartition {
    pub partition: TopicPartition,
    /// The first record that is wanted. The whole batch that holds it is returned.
    pub from: Offset,
    /// Stop before the batch that passes this many bytes; but the first batch comes whole, however large. 0 asks for the
    /// offsets alone and reads nothing.
    pub max_bytes: usize,
    /// The epoch that the client believes in; `None` where it names none.
    pub current_leader_epoch: Option<LeaderEpoch>,
    /// Whether to stop at the last stable offset, and to name the aborted transactions.
    pub isolation: IsolationLevel,
}

/// What a partition holds at an offset.
#[derive(Clone, Debug)]
pub struct FetchedRecords {
    /// Whole record batches, in order; one chunk may hold several. Nothing at or above the high watermark.
    pub records: Vec<Bytes>,
    /// Where the next read goes on: the end of the last batch returned, or `from` where there is none.
    pub next: Offset,
    /// `None` while a new leader does not know it yet: more may be committed than it can show, so nobody is told that the
    /// partition ends there.
    pub high_watermark: Option<Offset>,
    /// Never above the high watermark.
    pub last_stable_offset: Offset,
    /// The aborted transactions that may have records among these. None where all committed records were asked for.
    pub aborted: Vec<AbortedTransaction>,
    pub log_start_offset: Offset,
}

/// Why a partition was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRefusal {
    pub error: ErrorCode,
    /// Log start offset and high watermark, where the partition is here: `OffsetOutOfRange` names the range.
    pub bounds: Option<(Offset, Offset)>,
}

impl From<ErrorCode> for FetchRefusal {
    fn from(error: ErrorCode) -> FetchRefusal {
        FetchRefusal {
            error,
            bounds: None,
        }
    }
}

/// Which offset ListOffsets asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The log start offset.
    Earliest,
    /// The high watermark.
    Latest,
    /// The first record whose timestamp (milliseconds since the Unix epoch) is at or after this one.
    Timestamp(i64),
    /// The record with the largest timestamp.
    MaxTimestamp,
}

/// An offset that was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    pub offset: Offset,
    /// The record's, in milliseconds since the Unix epoch. `None` for earliest and latest.
    pub timestamp_ms: Option<i64>,
    /// The epoch that wrote the record at the offset, where known.
    pub leader_epoch: Option<LeaderEpoch>,
}

/// A topic that was made, or would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedTopic {
    pub partitions: u32,
    pub replication_factor: u32,
}

/// One of a node's own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSetting {
    pub name: String,
    pub value: String,
    /// Whether the value is what the node has where nothing is configured.
    pub is_default: bool,
    pub documentation: String,
}

/// Why the cluster refused to change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub error: ErrorCode,
    /// For people: what is wrong, with which value, and what to do. `None` where the code says it all.
    pub message: Option<String>,
}

impl From<ErrorCode> for Refusal {
    fn from(error: ErrorCode) -> Refusal {
        Refusal {
            error,
            message: None,
        }
    }
}
