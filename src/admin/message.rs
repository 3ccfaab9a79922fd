//! Requests to a node about itself, and its answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use quinn::Connection;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::broker::LinkView;
use crate::controller::{Operation, OperationOutcome};
use crate::doctor::{DiskReport, Finding, KnownNode, NodeVitals};
use crate::transport::ImpairmentCounts;
use crate::types::{
    ClusterId, DirectoryId, Incarnation, LeaderEpoch, ListenerName, NodeId, Offset, PartitionEpoch,
    PartitionIndex, TopicId, TopicName,
};

/// The most bytes of a request. A longer one is refused.
pub(super) const MAX_REQUEST_BYTES: usize = 1 << 20;
/// The most bytes of an answer: a partition takes some 500, so this is enough for 100,000 of them.
pub const MAX_RESPONSE_BYTES: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminRequest {
    /// What the node knows of the cluster, of its replicas and of its links: answered by a [`NodeStatus`].
    Status,
    /// Its replication links, with the lags of its followers: answered by [`NodeLinks`].
    Links,
    /// How it is, what time it has, and which nodes it knows: answered by a [`NodeVitals`]. Quick and small.
    Vitals,
    /// A few small writes, synced: answered by a [`DiskReport`].
    MeasureDisk,
    /// What is wrong between the node and each of its peers, as far as it can find out itself: answered by [`Finding`]s.
    ExaminePeers {
        /// How long the client waits, in milliseconds; at most two minutes.
        within_ms: u64,
    },
    /// Something to be done for the cluster: carried to the active controller, and answered with what came of it.
    Operate {
        operation: Operation,
        /// How long the client waits, in milliseconds; at most ten minutes.
        timeout_ms: u64,
    },
}

/// What one node knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub directory: DirectoryId,
    pub version: String,
    /// `None` until the cluster is founded.
    pub cluster: Option<ClusterId>,
    pub active_controller: Option<NodeId>,
    /// Whether this node hears a majority of the controllers.
    pub hears_majority: bool,
    /// Whether the cluster has this very process registered.
    pub registered: bool,
    /// What the metadata of the cluster may contain; 0 from a node that is too old to say.
    #[serde(default)]
    pub metadata_version: u32,
    /// The nodes that vote on metadata, and those that are to. Empty before the cluster is founded.
    #[serde(default)]
    pub voters: BTreeSet<NodeId>,
    #[serde(default)]
    pub wanted_voters: BTreeSet<NodeId>,
    pub nodes: Vec<NodeSummary>,
    pub partitions: Vec<PartitionStatus>,
    pub links: Vec<LinkView>,
    /// How often a native client's connection went on from another address, since the process began.
    #[serde(default)]
    pub client_migrations: u64,
    /// What became of the packets to each node, where links are impaired on purpose; else empty.
    #[serde(default)]
    pub impaired_packets: BTreeMap<NodeId, ImpairmentCounts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSummary {
    pub node: NodeId,
    pub quic: String,
    /// Of the listener without a name.
    pub kafka: Option<String>,
    /// Of those with names. Empty from a node that is too old to have any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kafka_listeners: BTreeMap<ListenerName, String>,
    /// Whether the answering node holds it for alive. Only controllers hear everybody.
    pub alive: bool,
    /// It is about to stop, and is to lead nothing.
    #[serde(default)]
    pub draining: bool,
}

/// One partition as the cluster has committed it, and what the answering node's replica of it is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartitionStatus {
    pub topic: TopicName,
    pub topic_id: TopicId,
    pub partition: PartitionIndex,
    pub leader: Option<NodeId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub replicas: Vec<NodeId>,
    pub isr: Vec<NodeId>,
    pub min_insync: u32,
    /// While the partition is being reassigned: the replicas that it is to have, and those that it had before.
    #[serde(default)]
    pub target_replicas: Vec<NodeId>,
    #[serde(default)]
    pub reassigned_from: Vec<NodeId>,
    /// `None` where the answering node holds no replica that is open.
    pub local: Option<ReplicaRole>,
}

/// The answering node's replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaRole {
    /// `leader`, `follower`, `idle` or `failed`.
    pub role: String,
    pub log_start: Offset,
    pub log_end: Offset,
    pub high_watermark: Offset,
    /// For a leader: whether its epoch start is committed, so that the high watermark is the true one.
    pub watermark_known: bool,
    pub waiting_produces: usize,
    /// For a leader: the other replicas.
    pub followers: Vec<FollowerProgress>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FollowerProgress {
    pub node: NodeId,
    /// `None` for a follower without a session, and for one that is not heard: nothing is known of it, and that is not a lag
    /// of 0.
    pub lag_records: Option<u64>,
    pub unacknowledged_bytes: usize,
    pub catching_up: bool,
}

/// One node's ends of its replication links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeLinks {
    pub node: NodeId,
    /// The nodes that it knows, with the addresses that they have registered.
    pub nodes: Vec<KnownNode>,
    pub links: Vec<LinkView>,
}

/// Why an answer was not had.
#[derive(Debug, Error)]
pub enum AdminError {
    #[error("the connection ended before the node had answered: {0}")]
    Lost(String),
    #[error("the node's answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the node refuses: {0}")]
    Refused(String),
    /// The operation was not carried out.
    #[error("{0}")]
    NotDone(String),
    /// The operation may have been carried out.
    #[error("it is not known what became of it: {0}")]
    Unknown(String),
    #[error("the answer is not one to this request: are all nodes of the same version?")]
    Unexpected,
}

/// What goes back over the stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AdminResponse {
    Status(Box<NodeStatus>),
    Links(NodeLinks),
    Vitals(Box<NodeVitals>),
    Disk(Result<DiskReport, String>),
    Findings(Vec<Finding>),
    Operated(OperationOutcome),
    NotDone(String),
    Unknown(String),
    Refused(String),
}

/// Asks one node what it knows, over a connection that speaks the admin protocol.
pub async fn ask(
    connection: &Connection,
    request: &AdminRequest,
) -> Result<NodeStatus, AdminError> {
    match exchange(connection, request).await? {
        AdminResponse::Status(status) => Ok(*status),
        _ => Err(AdminError::Unexpected),
    }
}

/// Asks one node about its replication links.
pub async fn ask_links(connection: &Connection) -> Result<NodeLinks, AdminError> {
    match exchange(connection, &AdminRequest::Links).await? {
        AdminResponse::Links(links) => Ok(links),
        _ => Err(AdminError::Unexpected),
    }
}

/// Has the cluster carry something out, by way of one node.
pub async fn operate(
    connection: &Connection,
    operation: Operation,
    timeout: Duration,
) -> Result<OperationOutcome, AdminError> {
    let request = AdminRequest::Operate {
        operation,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    };
    match exchange(connection, &request).await? {
        AdminResponse::Operated(outcome) => Ok(outcome),
        AdminResponse::NotDone(reason) => Err(AdminError::NotDone(reason)),
        AdminResponse::Unknown(reason) => Err(AdminError::Unknown(reason)),
        _ => Err(AdminError::Unexpected),
    }
}

pub(super) async fn exchange(
    connection: &Connection,
    request: &AdminRequest,
) -> Result<AdminResponse, AdminError> {
    let lost = |error: &dyn std::error::Error| AdminError::Lost(error.to_string());
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| lost(&error))?;
    let body = serde_json::to_vec(request)?;
    send.write_all(&body).await.map_err(|error| lost(&error))?;
    send.finish()
        .map_err(|_| lost(&io::Error::from(io::ErrorKind::BrokenPipe)))?;
    let answer = receive
        .read_to_end(MAX_RESPONSE_BYTES)
        .await
        .map_err(|error| lost(&error))?;
    match serde_json::from_slice(&answer)? {
        AdminResponse::Refused(reason) => Err(AdminError::Refused(reason)),
        response => Ok(response),
    }
}

/// A message as it is written once it was read: as a request, as an answer, or as both. Empty where nobody takes it. For tests
/// and fuzzers, which hold that no bytes do harm and that what was written is read as it was.
pub fn reread(message: &[u8]) -> Vec<Vec<u8>> {
    let request = serde_json::from_slice::<AdminRequest>(message).ok();
    let response = serde_json::from_slice::<AdminResponse>(message).ok();
    let request = request.and_then(|request| serde_json::to_vec(&request).ok());
    let response = response.and_then(|response| serde_json::to_vec(&response).ok());
    request.into_iter().chain(response).collect()
}
