//! What nodes say to each other about metadata: JSON, one request and one reply a call.
//!
//! Every message carries who sends it and to which cluster it belongs. The receiver refuses a foreign cluster, a sender
//! other than the one that the connection was authenticated as, and a node whose data directory is not the registered one:
//! such a node has lost what it voted for and promised.

use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::operation::{Operation, OperationOutcome, OperationRefusal};
use super::raft::{LogId, TypeConfig};
use super::round_trip::RoundTrip;
use crate::metadata::{Command, CreatePartitionsRequest, CreateTopicRequest, Outcome, Rejection};
use crate::types::{
    ClusterId, DirectoryId, Incarnation, LeaderEpoch, LogPosition, NodeId, Offset, TopicPartition,
};

/// The largest message, serialised. A larger one is not sent, and refused before it is parsed.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// The largest command, serialised: well below [`MAX_MESSAGE_BYTES`], so that its log entry fits a message.
pub const MAX_COMMAND_BYTES: usize = 8 * 1024 * 1024;
/// Partitions in one fence request. More go in the next one.
pub const MAX_FENCE_ITEMS: usize = 2_000;
/// Partitions in one request to hand over. More are refused.
pub const MAX_HAND_OVER_ITEMS: usize = 2_000;

/// Around every message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope<T> {
    /// `None` while the sender does not know its cluster yet.
    pub(super) cluster: Option<ClusterId>,
    pub(super) from: NodeId,
    pub(super) directory: DirectoryId,
    pub(super) incarnation: Incarnation,
    pub(super) body: T,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
    /// "I am here": to every controller.
    Heartbeat(Vitals),
    /// "I am about to stop": to every controller, as the last that this process says.
    Leaving,
    /// "Would you vote for me?", from a controller that misses the active one. Binds nobody.
    Canvass {
        /// The end of its log.
        last_log: Option<LogId>,
    },
    /// "Have you a cluster yet?"
    Probe,
    /// To the active controller.
    Propose {
        proposal: Proposal,
        /// How long the sender waits, in milliseconds.
        timeout_ms: u64,
    },
    /// From the active controller to an ISR member.
    Fence {
        /// The log index that made the epochs: the receiver waits a little until it has it too.
        applied_index: u64,
        items: Vec<FenceItem>,
    },
    /// From the active controller to a leader: the leadership is to go to another replica.
    HandOver {
        items: Vec<HandOverItem>,
        /// How long the leader has for it, in milliseconds.
        within_ms: u64,
    },
    /// To the active controller.
    Operate {
        operation: Operation,
        /// How long the sender waits, in milliseconds.
        timeout_ms: u64,
    },
}

/// What a node tells of itself with every heartbeat, and a controller with every answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vitals {
    /// Of the sender's heartbeats to the receiver, as far as it has measured any.
    pub(super) round_trip: Option<RoundTrip>,
    /// The term in which the sender is the active controller, if it is.
    pub(super) leads: Option<u64>,
    /// The sender's wall clock, in ms since 1970, from one that says it. Decides nothing.
    #[serde(default)]
    pub(super) unix_ms: Option<i64>,
}

/// What the active controller is asked to commit. Requests are resolved there, against the nodes that are alive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Proposal {
    Command(Command),
    CreateTopic(CreateTopicRequest),
    CreatePartitions(CreatePartitionsRequest),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Snapshot(InstallSnapshotResponse<u64>),
    SnapshotRefused(RaftError<u64, InstallSnapshotError>),
    Heard(Vitals),
    Canvassed {
        willing: bool,
    },
    Probe {
        /// The store holds a cluster's log.
        initialised: bool,
    },
    /// Committed and applied.
    Proposed {
        result: Result<Outcome, Rejection>,
        /// The log index at which it was applied.
        applied_index: u64,
    },
    /// This node is not the active controller; perhaps that one is.
    NotActive {
        active: Option<NodeId>,
        /// Where that one is reached: the asker may not have heard of it.
        #[serde(default)]
        address: Option<String>,
    },
    /// What became of the proposal is not known, or it could not be made: no majority of the controllers answers.
    NoQuorum,
    Fenced(Vec<FenceAnswer>),
    HandedOver(Vec<HandOverAnswer>),
    Operated(Result<OperationOutcome, OperationRefusal>),
    Refused(Refusal),
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub(super) enum Refusal {
    #[error(
        "it belongs to cluster {own}, and the message to {offered}; check the addresses of the controllers"
    )]
    OtherCluster { own: ClusterId, offered: ClusterId },
    #[error(
        "the message says that it comes from node {claimed}, the certificate names node {authenticated}"
    )]
    OtherSender {
        claimed: NodeId,
        authenticated: NodeId,
    },
    #[error(
        "node {node} is registered with data directory {registered}, not {offered}; say so to the cluster, \"quorate cluster remove-node N --keep-replicas\", and start the node again"
    )]
    OtherDirectory {
        node: NodeId,
        registered: DirectoryId,
        offered: DirectoryId,
    },
    #[error("node {0} is not a controller and may not send this")]
    NotController(NodeId),
    #[error("the message cannot be read: {0}")]
    Malformed(String),
    #[error("the controller has stopped: {0}")]
    Stopped(String),
}

/// One partition to fence, in a leader epoch that is committed without a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceItem {
    pub partition: TopicPartition,
    pub epoch: LeaderEpoch,
}

/// What a replica answers to one [`FenceItem`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceAnswer {
    pub partition: TopicPartition,
    pub result: Result<FencePosition, FenceRefusal>,
}

/// A kept promise, and where the log stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencePosition {
    /// The epoch of the item: promised durably.
    pub epoch: LeaderEpoch,
    /// Durable LEO and the epoch of the last durable frame.
    pub last: LogPosition,
    /// `false` when the log may lack what it acknowledged and no ISR change has named the present incarnation since.
    pub eligible: bool,
    /// The high watermark that the replica knows of; it decides nothing, and tells an operator what an unclean election
    /// costs.
    #[serde(default)]
    pub high_watermark: Option<Offset>,
    /// It could not take records, because its disk is full: it should lead only where no other can.
    #[serde(default)]
    pub is_reluctant: bool,
}

/// Why a replica did not promise. The controller asks again while the election lasts.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum FenceRefusal {
    #[error("it has promised the higher epoch {0}")]
    HigherPromise(LeaderEpoch),
    #[error("it knows no such partition yet")]
    UnknownPartition,
    #[error("it could not: {0}")]
    Failed(String),
}

/// A leadership that is to go to another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOverItem {
    pub partition: TopicPartition,
    /// The epoch in which the receiver leads.
    pub epoch: LeaderEpoch,
    pub to: NodeId,
}

/// What a leader answers to one [`HandOverItem`]. `Ok`: the other replica holds durably all that the leader has, and the
/// leader takes nothing more until a higher epoch or the end of the time that it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOverAnswer {
    pub partition: TopicPartition,
    pub result: Result<(), HandOverRefusal>,
}

/// Why a leader did not hand over. It goes on leading.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum HandOverRefusal {
    #[error("it does not lead the partition in that epoch")]
    NotLeader,
    #[error("the other replica has no session with it, or is not in sync")]
    NotFollowing,
    #[error("the other replica did not catch up in time")]
    TimedOut,
    #[error("it cannot hand over")]
    NotSupported,
    #[error("it could not: {0}")]
    Failed(String),
}
