//! Floor 3: what the cluster has agreed on, and the rules by which that changes.
//!
//! [`ClusterImage`] is the state: nodes, topics, partition states. [`Command`] is the only way to change it, and
//! [`ClusterImage::apply`] holds every check and every compare-and-swap, so that each node that applies the same commands
//! in the same order has the same image. [`Election`] and [`needs_election`] decide leadership without doing any I/O.

mod apply;
mod assignment;
mod command;
mod credentials;
mod deletions;
mod election;
mod evacuation;
mod image;
mod leadership;
mod operations;
#[cfg(test)]
mod random_commands;
mod topic_config;

pub use assignment::{
    CreatePartitionsRequest, CreateTopicRequest, DEFAULT_REPLICATION_FACTOR, assign,
};
pub use command::{
    Appointing, Command, ConfigChange, ElectionStart, ForcedLeader, NewPartition, NewTopic,
    Outcome, PartitionChange, Reassignment, ReassignmentEnd, Rejection,
};
pub use credentials::{
    DEFAULT_SCRAM_ITERATIONS, MAX_SALT_BYTES, MAX_SCRAM_ITERATIONS, MAX_USER_NAME_BYTES, MAX_USERS,
    MIN_SCRAM_ITERATIONS, ScramMechanism, ScramVerifier,
};
pub use deletions::RecordDeletion;
pub use election::{Election, FenceReply, Unused, can_elect, needs_election};
pub use evacuation::{NoRoom, evacuate};
pub use image::{
    CONSUMER_GROUPS_SINCE, ClusterImage, Endpoint, FIRST_METADATA_VERSION, InvalidImage,
    LISTENERS_SINCE, MAX_CHANGES_PER_COMMAND, MAX_CONFIG_VALUE_BYTES, MAX_CONTROLLERS,
    MAX_HOST_BYTES, MAX_LISTENERS, MAX_NODES, MAX_PARTITIONS, MAX_PARTITIONS_PER_TOPIC,
    MAX_PRODUCER_ID_BLOCK, MAX_REPLICAS, MAX_TOPICS, METADATA_VERSION, Registration,
    TRANSACTION_VERSION_2_SINCE, TRANSACTIONS_SINCE, Topic,
};
pub use leadership::{Move, can_take_over, moves_away, moves_to_preferred};
pub use topic_config::{
    ConfigDefinition, ConfigEntry, ConfigError, ConfigKind, ConfigSource, FlushPolicy, ListEdit,
    TopicConfig,
};
