//! What can be asked of the cluster's metadata, and what is answered.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Registration;
use super::credentials::{ScramMechanism, ScramVerifier};
use super::deletions::RecordDeletion;
use super::image::{FIRST_METADATA_VERSION, LISTENERS_SINCE};
use super::topic_config::ConfigError;
use crate::types::{
    Appointment, ClusterId, DirectoryId, ErrorCode, Incarnation, IsrChange, LeaderEpoch, NodeId,
    PartitionEpoch, PartitionIndex, ProducerId, TopicId, TopicName, TopicPartition,
};

/// One change. Commands are entries of the controller's log: their serialised form is stored on disk, so a variant or a
/// field is added together with a higher metadata version, and never changes its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Founds the cluster. The first command; no other is accepted before it.
    InitCluster {
        cluster_id: ClusterId,
    },
    /// A node's process has started, or its address has changed.
    RegisterNode {
        registration: Registration,
    },
    /// Removes a node from the registry, so that its id may come back with another data directory. Its replicas stay
    /// assigned. With `directory`, only if the node is registered with that one.
    UnregisterNode {
        node: NodeId,
        directory: Option<DirectoryId>,
    },
    CreateTopic {
        topic: NewTopic,
    },
    DeleteTopic {
        topic: TopicId,
    },
    /// Adds partitions to a topic that has `expected_count` of them.
    CreatePartitions {
        topic: TopicId,
        expected_count: u32,
        partitions: Vec<NewPartition>,
        /// `min.insync.replicas` of the new partitions.
        min_insync: u32,
    },
    SetTopicConfigs {
        topic: TopicId,
        changes: Vec<ConfigChange>,
    },
    /// First step of elections: a higher leader epoch without a leader. Each partition by itself.
    StartElections {
        elections: Vec<ElectionStart>,
    },
    /// Last step of elections. Each partition by itself.
    AppointLeaders {
        appointments: Vec<Appointing>,
    },
    /// A leader's changes to in-sync sets. Each partition by itself.
    ChangeIsrs {
        changes: Vec<IsrChange>,
    },
    /// Reserves `count` producer ids for `node`.
    AllocateProducerIds {
        node: NodeId,
        count: u32,
    },
    /// From version 2 on, and so is all that follows: raises the cluster's metadata version. Every registered node
    /// understands the new one.
    RaiseMetadataVersion {
        version: u32,
    },
    /// Says that a node is about to stop, or that it stays after all: a draining node leads only what nobody else can.
    /// Holds for one incarnation.
    SetDraining {
        node: NodeId,
        incarnation: Incarnation,
        on: bool,
    },
    /// Gives partitions other replicas: the old ones stay until the new ones are in sync. Each partition by itself.
    Reassign {
        reassignments: Vec<Reassignment>,
    },
    /// Last step of reassignments: drops the replicas that are to go. Each partition by itself.
    FinishReassignments {
        ends: Vec<ReassignmentEnd>,
    },
    /// An operator's unclean elections: committed records may be lost. Each partition by itself.
    ForceLeaders {
        leaders: Vec<ForcedLeader>,
    },
    /// Who is to vote on metadata, in place of `before` (empty: the founders' list).
    SetControllers {
        before: BTreeSet<NodeId>,
        controllers: BTreeSet<NodeId>,
    },
    /// From version 3 on, and so is all that follows: deletes the first records of partitions. Each partition by itself.
    DeleteRecords {
        deletions: Vec<RecordDeletion>,
    },
    /// Gives a user a password, or another one.
    SetCredential {
        user: String,
        mechanism: ScramMechanism,
        verifier: ScramVerifier,
    },
    /// Takes a user's password away.
    DeleteCredential {
        user: String,
        mechanism: ScramMechanism,
    },
}

impl Command {
    /// The metadata version from which on the command may be in the log: a node that understands less could not read it.
    pub fn since_version(&self) -> u32 {
        match self {
            Command::RegisterNode { registration } if !registration.kafka_listeners.is_empty() => {
                LISTENERS_SINCE
            }
            Command::InitCluster { .. }
            | Command::RegisterNode { .. }
            | Command::UnregisterNode { .. }
            | Command::CreateTopic { .. }
            | Command::DeleteTopic { .. }
            | Command::CreatePartitions { .. }
            | Command::SetTopicConfigs { .. }
            | Command::StartElections { .. }
            | Command::AppointLeaders { .. }
            | Command::ChangeIsrs { .. }
            | Command::AllocateProducerIds { .. } => FIRST_METADATA_VERSION,
            // It is what raises the version: all registered nodes understand the one that it names.
            Command::RaiseMetadataVersion { .. } => FIRST_METADATA_VERSION,
            Command::SetDraining { .. }
            | Command::Reassign { .. }
            | Command::FinishReassignments { .. }
            | Command::ForceLeaders { .. }
            | Command::SetControllers { .. } => 2,
            Command::DeleteRecords { .. }
            | Command::SetCredential { .. }
            | Command::DeleteCredential { .. } => 3,
        }
    }
}

/// A topic with everything resolved: nothing is left for `apply` to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTopic {
    pub id: TopicId,
    pub name: TopicName,
    pub config: BTreeMap<String, String>,
    pub partitions: Vec<NewPartition>,
    /// `m` of each partition, at least 1.
    pub min_insync: u32,
}

/// A new partition's replicas. Its log is empty everywhere, so there is nobody to fence: the first in-sync node leads at
/// once, in leader epoch 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPartition {
    /// The preferred leader first.
    pub replicas: Vec<NodeId>,
    /// The replicas that the proposer held for alive, the leader first. Not empty. Each is admitted under its registered
    /// directory and incarnation.
    pub in_sync: Vec<NodeId>,
}

/// One operation on a topic's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigChange {
    Set {
        name: String,
        value: String,
    },
    /// Back to the default.
    Delete {
        name: String,
    },
}

impl ConfigChange {
    pub fn name(&self) -> &str {
        match self {
            ConfigChange::Set { name, .. } | ConfigChange::Delete { name } => name,
        }
    }
}

/// Takes the leader away and raises the leader epoch by one, if the state is still the one it was decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectionStart {
    pub partition: TopicPartition,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
}

/// Makes `leader` lead in `leader_epoch`, if that epoch is current and has no leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appointing {
    pub partition: TopicPartition,
    pub leader_epoch: LeaderEpoch,
    /// Must be the node's present registration, and in the ISR under the same directory.
    pub leader: Appointment,
}

/// New replicas for a partition, if its state is still the one it was decided on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reassignment {
    pub partition: TopicPartition,
    pub partition_epoch: PartitionEpoch,
    /// The preferred leader first. Not empty. To call off a reassignment that is under way, name the replicas that there
    /// were before it.
    pub target: Vec<NodeId>,
}

/// Ends a reassignment whose target holds the whole ISR, if the state is still the one it was decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReassignmentEnd {
    pub partition: TopicPartition,
    pub partition_epoch: PartitionEpoch,
}

/// Makes `leader` lead, and the ISR consist of it alone, in an epoch that has no leader; whatever it lacks is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForcedLeader {
    pub partition: TopicPartition,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// Must be the node's present registration, and a replica.
    pub leader: Appointment,
}

/// What came of a command that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done; there is nothing to say about it.
    Done,
    /// The state was that already.
    Unchanged,
    TopicCreated {
        topic: TopicId,
    },
    /// The topic's number of partitions now.
    PartitionsCreated {
        count: u32,
    },
    /// One result for each partition of a batch, in its order.
    Partitions(Vec<Result<PartitionChange, Rejection>>),
    /// Ids from `first` to `first + count`, exclusive.
    ProducerIds {
        first: ProducerId,
        count: u32,
    },
}

/// The epochs that a partition has after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionChange {
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
}

/// Why a command, or one partition of a batch, was refused. Nothing of it was done.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("the cluster has no id yet: its first controller has not founded it; try again")]
    NoCluster,
    #[error("this is cluster {present}, not {offered}; a cluster's id never changes")]
    OtherCluster {
        present: ClusterId,
        offered: ClusterId,
    },
    #[error(
        "node {node} is registered with data directory {registered}, not {offered}: either another process runs with this \
         node id, or its data directory was replaced; if it was, say so to the cluster, \"quorate cluster remove-node N --keep-replicas\", and start the node again"
    )]
    DirectoryInUse {
        node: NodeId,
        registered: DirectoryId,
        offered: DirectoryId,
    },
    #[error(
        "the cluster is at metadata version {cluster} and node {node} understands {offered}; upgrade the node"
    )]
    MetadataVersion {
        node: NodeId,
        cluster: u32,
        offered: u32,
    },
    #[error(
        "this needs metadata version {needed} and the cluster is at {present}: it rises by itself once every node runs a version of quorate that understands it"
    )]
    VersionTooLow { needed: u32, present: u32 },
    #[error("node {0} is not registered")]
    UnknownNode(NodeId),
    #[error("node {node} is registered with another incarnation or directory than {offered}")]
    StaleIncarnation { node: NodeId, offered: Incarnation },
    #[error("node {node} cannot be removed: {reason}")]
    NotRemovable { node: NodeId, reason: String },
    #[error("a topic named {0} exists already")]
    TopicExists(TopicName),
    #[error("a topic with the id {0} exists already")]
    TopicIdExists(TopicId),
    #[error("there is no topic with the id {0}")]
    UnknownTopic(TopicId),
    #[error("there is no topic named {0}")]
    UnknownTopicName(TopicName),
    #[error("there is no partition {0}")]
    UnknownPartition(TopicPartition),
    #[error("{count} partitions: {reason}")]
    InvalidPartitions { count: u64, reason: String },
    #[error("replication factor {factor}: {reason}")]
    InvalidReplicationFactor { factor: usize, reason: String },
    #[error("the assignment of partition {partition} is not valid: {reason}")]
    InvalidAssignment {
        partition: PartitionIndex,
        reason: String,
    },
    #[error("the number of partitions is {present}, not {expected}; look again")]
    PartitionCountChanged { present: u32, expected: u32 },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("min.insync.replicas must be at least 1")]
    ZeroMinInsync,
    #[error(
        "the partition is at leader epoch {leader_epoch} and partition epoch {partition_epoch}: the change was decided on an older state"
    )]
    StaleEpoch {
        leader_epoch: LeaderEpoch,
        partition_epoch: PartitionEpoch,
    },
    #[error("the partition has no leader at the moment")]
    NoLeader,
    #[error("leader epoch {0} has a leader already")]
    HasLeader(LeaderEpoch),
    #[error("node {0} is not in the in-sync set under its present data directory")]
    NotInSync(NodeId),
    #[error("the in-sync set is not valid: {0}")]
    InvalidIsr(String),
    #[error("the reassignment is not valid: {0}")]
    InvalidReassignment(String),
    #[error("the controllers are not those that the change was decided on; look again")]
    ControllersChanged,
    #[error("the set of controllers is not valid: {0}")]
    InvalidControllers(String),
    #[error("the partition has used up its epochs; create the topic anew")]
    EpochsUsedUp,
    #[error("the user {user:.255} has no {} password", mechanism.name())]
    UnknownCredential {
        user: String,
        mechanism: ScramMechanism,
    },
    #[error("the credential is not valid: {0}")]
    InvalidCredential(String),
    #[error("the cluster's limit of {limit} {what} is reached")]
    Limit { what: String, limit: usize },
    #[error("the request is malformed: {0}")]
    Malformed(String),
}

impl Rejection {
    /// Whether nobody has to do anything for the same command to be taken later: the cluster is about to be founded, or this
    /// node knows of a rise of the version that the active controller has not applied yet.
    pub fn passes_by_itself(&self) -> bool {
        matches!(self, Rejection::NoCluster | Rejection::VersionTooLow { .. })
    }

    /// The answer to a Kafka client.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            Rejection::NoCluster => ErrorCode::BrokerNotAvailable,
            Rejection::OtherCluster { .. } => ErrorCode::InconsistentClusterId,
            Rejection::DirectoryInUse { .. } => ErrorCode::DuplicateBrokerRegistration,
            Rejection::MetadataVersion { .. } | Rejection::VersionTooLow { .. } => {
                ErrorCode::UnsupportedVersion
            }
            Rejection::UnknownNode(_) => ErrorCode::BrokerIdNotRegistered,
            Rejection::StaleIncarnation { .. } => ErrorCode::StaleBrokerEpoch,
            Rejection::TopicExists(_) | Rejection::TopicIdExists(_) => {
                ErrorCode::TopicAlreadyExists
            }
            Rejection::UnknownTopic(_) => ErrorCode::UnknownTopicId,
            Rejection::UnknownTopicName(_) | Rejection::UnknownPartition(_) => {
                ErrorCode::UnknownTopicOrPartition
            }
            Rejection::InvalidPartitions { .. } | Rejection::PartitionCountChanged { .. } => {
                ErrorCode::InvalidPartitions
            }
            Rejection::InvalidReplicationFactor { .. } => ErrorCode::InvalidReplicationFactor,
            Rejection::InvalidAssignment { .. } | Rejection::InvalidReassignment(_) => {
                ErrorCode::InvalidReplicaAssignment
            }
            Rejection::Config(_) | Rejection::ZeroMinInsync => ErrorCode::InvalidConfig,
            Rejection::StaleEpoch { .. } => ErrorCode::FencedLeaderEpoch,
            Rejection::NoLeader => ErrorCode::LeaderNotAvailable,
            Rejection::HasLeader(_) => ErrorCode::FencedLeaderEpoch,
            Rejection::NotInSync(_)
            | Rejection::InvalidIsr(_)
            | Rejection::ControllersChanged
            | Rejection::InvalidControllers(_)
            | Rejection::EpochsUsedUp
            | Rejection::NotRemovable { .. }
            | Rejection::Malformed(_) => ErrorCode::InvalidRequest,
            Rejection::UnknownCredential { .. } => ErrorCode::ResourceNotFound,
            Rejection::InvalidCredential(_) => ErrorCode::UnacceptableCredential,
            Rejection::Limit { .. } => ErrorCode::PolicyViolation,
        }
    }
}
