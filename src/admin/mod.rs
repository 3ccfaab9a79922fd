//! Floor 8: what the node tells about itself, from broker and controller snapshots, and the way of an operator's requests to
//! the active controller.
//!
//! Kafka's API has no word for links and replicas' progress, so these travel as JSON: one request a bidirectional stream of
//! a connection that speaks `quorate-admin/1`, the request up to the stream's end, then the answer up to its end.
//!
//! For what is not ours (probes, Prometheus, curl) the same is served over HTTP, where a node is told to: see [`serve_http`].

mod doctor;
mod exposition;
mod health;
mod http;
mod link_findings;
mod message;
mod metrics;
mod process;
mod serve;
mod status;

pub use doctor::{AdminInquiry, examine_peers};
pub use health::{Readiness, readiness};
pub use http::{MAX_CONNECTION_AGE, MAX_CONNECTIONS, Sources, serve_http};
pub use message::{
    AdminError, AdminRequest, FollowerProgress, MAX_RESPONSE_BYTES, NodeLinks, NodeStatus,
    NodeSummary, PartitionStatus, ReplicaRole, ask, ask_links, operate, reread,
};
pub use serve::serve;
pub use status::node_status;
