//! Floor 6: what is wrong between two machines, found out rung by rung, and what to do about it.
//!
//! A [`climb`] goes up one ladder to one endpoint: does its name resolve, does its UDP port answer, do large packets pass,
//! which QUIC, which protocol, whose certificate, which node, which cluster, what time, how good a path, how good a disk.
//! Each rung is a [`Check`] and gives a [`Finding`]; where one fails, those that need it are skipped and say so. A program
//! climbs to nodes from where it runs, and each node can climb to its peers.
//!
//! What is asked of networks and disks is in `climb` and `local`; what it means is in `judge`, which does no I/O.

mod climb;
mod finding;
mod judge;
mod local;
mod vitals;

pub(crate) use climb::unix_ms;
pub use climb::{Climb, Endpoint, MAX_RUNG_WAIT, climb};
pub use finding::{Check, Finding, Outcome, Verdict};
pub use judge::{cluster as judge_cluster, disk as judge_disk, most_common_cluster, span};
pub use local::{examine_identity, examine_socket, probe_directory};
pub use vitals::{Answered, DiskReport, Inquiry, KnownNode, NodeVitals};

/// Who looks, when it is this program and not a node.
pub const HERE: &str = "here";
