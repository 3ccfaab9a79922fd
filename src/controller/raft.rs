//! openraft's types, filled in with ours.

use std::io::Cursor;

use crate::metadata::{Command, Outcome, Rejection};
use crate::types::NodeId;

openraft::declare_raft_types!(
    /// A log of [`Command`]s, each answered with what applying it gave.
    pub(super) TypeConfig:
        D = Command,
        R = Result<Outcome, Rejection>,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = super::runtime::Runtime,
);

pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, openraft::BasicNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::BasicNode>;
pub(super) type StorageError = openraft::StorageError<u64>;

/// openraft asks for ids with a default, which a [`NodeId`] does not have.
pub(super) fn raft_id(node: NodeId) -> u64 {
    u64::from(node.get())
}

/// `None` for a number that no node can have.
pub(super) fn node_id(id: u64) -> Option<NodeId> {
    u32::try_from(id).ok().and_then(NodeId::new)
}
