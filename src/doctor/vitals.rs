//! What a node says of itself when it is asked how it is.

use std::time::Duration;

use futures_util::future::BoxFuture;
use quinn::Connection;
use serde::{Deserialize, Serialize};

use super::finding::Finding;
use crate::types::{ClusterId, Incarnation, NodeId};

/// A node's answer: quick to give, and small.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVitals {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub version: String,
    /// `None` until the cluster is founded.
    pub cluster: Option<ClusterId>,
    /// Its clock as it answered, in ms since 1970.
    pub unix_ms: i64,
    /// The nodes that it knows, with the addresses that they have registered. At most as many as a cluster may have.
    pub nodes: Vec<KnownNode>,
    /// Of its UDP socket, in bytes.
    pub udp_asked_bytes: u64,
    pub udp_receive_bytes: u64,
    pub udp_send_bytes: u64,
    /// When its certificate ends, in s since 1970.
    pub certificate_ends_unix_s: i64,
    /// What it says of its own replication links.
    pub links: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownNode {
    pub node: NodeId,
    /// `HOST:PORT`.
    pub quic: String,
}

/// A node's disk, or a directory of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    pub directory: String,
    /// Of small writes that were synced one after the other, in µs: the one in the middle, and the slowest.
    pub sync_median_us: u64,
    pub sync_worst_us: u64,
    pub syncs: u32,
    pub free_bytes: u64,
    /// Below this much free space records are refused.
    pub reserved_bytes: u64,
}

/// How a node is asked, over a connection to it that has passed every check. The protocol is that of a higher floor.
pub trait Inquiry: Send + Sync {
    fn vitals<'a>(
        &'a self,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Result<NodeVitals, String>>;

    /// Has the node write and sync a little: takes as long as its disk does.
    fn disk<'a>(&'a self, connection: &'a Connection) -> BoxFuture<'a, Result<DiskReport, String>>;
}

/// An answer, and how long it took: the node's clock was read somewhere in between.
#[derive(Debug, Clone)]
pub struct Answered {
    pub vitals: NodeVitals,
    /// This machine's clock when the question was sent, in ms since 1970.
    pub asked_unix_ms: i64,
    pub took: Duration,
}
