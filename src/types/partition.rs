//! What the controller has committed about one partition.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{DirectoryId, Incarnation, LeaderEpoch, NodeId, PartitionEpoch, TopicId, quorum};

/// A partition's number within its topic, from 0. Kafka's wire carries an `i32`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PartitionIndex(pub u32);

impl PartitionIndex {
    /// `None` for a negative number, or one that Kafka's `i32` cannot carry.
    pub fn from_wire(index: i32) -> Option<PartitionIndex> {
        u32::try_from(index).ok().map(PartitionIndex)
    }

    pub const fn to_wire(self) -> i32 {
        self.0 as i32
    }
}

impl fmt::Display for PartitionIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One partition of one topic, by the topic's id: a name may come to mean another topic, an id never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    pub topic: TopicId,
    pub partition: PartitionIndex,
}

impl fmt::Display for TopicPartition {
    /// `<topic id>-<partition>`: also the name of its directory on disk.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// One start of one node. The controller appoints a leader by both, so that a node that restarts has lost the appointment.
/// An ISR member is named by all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Appointment {
    pub node: NodeId,
    /// The data directory that held the replica when it was named.
    pub directory: DirectoryId,
    /// The process that held the replica when it was named.
    pub incarnation: Incarnation,
}

/// A partition's state as the controller has committed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// Every node that holds, or is to hold, a replica; the first is the preferred leader. No node twice.
    pub replicas: Vec<NodeId>,
    /// The in-sync set. A subset of `replicas`, never empty, no node twice. Each member is named with the directory and
    /// incarnation under which it was admitted.
    pub isr: Vec<Appointment>,
    /// `None` between the commit of a higher leader epoch and the appointment in it: an election is under way.
    pub leader: Option<Appointment>,
    /// Never falls. Rises with each election.
    pub leader_epoch: LeaderEpoch,
    /// Never falls. Rises with each change of this state.
    pub partition_epoch: PartitionEpoch,
    /// `m`: how many ISR members, leader included, must hold a record durably before it is committed. At least 1. It is
    /// partition state and not plain configuration, because the quorum arithmetic of an election depends on it.
    pub min_insync: u32,
    /// The replicas that a reassignment under way is to end with, in order of preference. Empty when none is. While one is,
    /// `replicas` holds them all beside those that are to go; when every one of them is in the ISR, the leader takes the
    /// others out of it, and then the controller drops them.
    #[serde(default)]
    pub target_replicas: Vec<NodeId>,
    /// The last leader epoch whose leader an operator forced, or [`LeaderEpoch::NONE`]. What was committed before it may be
    /// cut by it: the loss that the operator chose.
    #[serde(default)]
    pub forced_epoch: LeaderEpoch,
}

/// Replaces ISR and `m`, by compare-and-swap on both epochs and on each member's registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsrChange {
    pub partition: TopicPartition,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// The leader among them. Each as it is registered now: naming an incarnation says that the leader has counted its
    /// acks, which is what makes a replica that has lost its log eligible again.
    pub new_isr: Vec<Appointment>,
    pub min_insync: u32,
}

impl PartitionState {
    /// The replicas that the partition is to have in the end: the target of a reassignment, where one is under way.
    pub fn wanted_replicas(&self) -> &[NodeId] {
        if self.target_replicas.is_empty() {
            &self.replicas
        } else {
            &self.target_replicas
        }
    }

    pub fn isr_contains(&self, node: NodeId) -> bool {
        self.isr.iter().any(|member| member.node == node)
    }

    pub fn leader_node(&self) -> Option<NodeId> {
        self.leader.map(|leader| leader.node)
    }

    /// See [`quorum::commit_quorum`].
    pub fn commit_quorum(&self) -> usize {
        quorum::commit_quorum(self.isr.len(), self.min_insync as usize)
    }

    /// See [`quorum::election_quorum`].
    pub fn election_quorum(&self) -> usize {
        quorum::election_quorum(self.isr.len(), self.min_insync as usize)
    }
}
