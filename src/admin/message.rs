//! Requests to a node about itself, and its answers.

use std::io;

use quinn::Connection;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::broker::LinkView;
use crate::types::{
    ClusterId, DirectoryId, Incarnation, LeaderEpoch, NodeId, Offset, PartitionEpoch,
    PartitionIndex, TopicId, TopicName,
};

/// The most bytes of a request. A longer one is refused.
pub(super) const MAX_REQUEST_BYTES: usize = 64 << 10;
/// The most bytes of an answer: a partition takes some 500, so this is enough for 100,000 of them.
pub const MAX_RESPONSE_BYTES: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminRequest {
    /// What the node knows of the cluster, of its replicas and of its links: answered by a [`NodeStatus`].
    Status,
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
    pub nodes: Vec<NodeSummary>,
    pub partitions: Vec<PartitionStatus>,
    pub links: Vec<LinkView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSummary {
    pub node: NodeId,
    pub quic: String,
    pub kafka: Option<String>,
    /// Whether the answering node holds it for alive. Only controllers hear everybody.
    pub alive: bool,
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
    /// `None` for a follower without a session: nothing is known of it, and that is not a lag of 0.
    pub lag_records: Option<u64>,
    pub unacknowledged_bytes: usize,
    pub catching_up: bool,
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
}

/// What goes back over the stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AdminResponse {
    Status(Box<NodeStatus>),
    Refused(String),
}

/// Asks one node, over a connection that speaks the admin protocol.
pub async fn ask(
    connection: &Connection,
    request: &AdminRequest,
) -> Result<NodeStatus, AdminError> {
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
        AdminResponse::Status(status) => Ok(*status),
        AdminResponse::Refused(reason) => Err(AdminError::Refused(reason)),
    }
}
