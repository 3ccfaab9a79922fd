//! Floor 1: the words that every other room speaks.
//!
//! Identities, offsets, epochs, partition state, quorum arithmetic and error codes. Nothing here does I/O, reads a clock
//! or draws a random number; constructors that need randomness take it as an argument.

mod duration_histogram;
mod epoch_history;
mod error_code;
mod fill;
mod ids;
mod internal_topic;
mod isolation;
mod listener_name;
mod offset;
mod partition;
pub mod quorum;
mod time;
mod topic_name;

pub use duration_histogram::{BUCKET_ENDS_US, DurationCounts, DurationHistogram};
pub use epoch_history::{EpochEntry, EpochHistory, EpochHistoryError};
pub use error_code::ErrorCode;
pub use fill::Fill;
pub use ids::{
    ClusterId, DirectoryId, Incarnation, NodeId, ParseIdError, ProducerId, SessionId, TopicId,
};
pub use internal_topic::{OFFSETS_TOPIC, TRANSACTIONS_TOPIC, is_internal, partition_of};
pub use isolation::{IsolationLevel, ParseIsolationError};
pub use listener_name::{InvalidListenerName, ListenerName};
pub use offset::{LeaderEpoch, LogPosition, Offset, PartitionEpoch};
pub use partition::{Appointment, IsrChange, PartitionIndex, PartitionState, TopicPartition};
pub use time::MonotonicTime;
pub use topic_name::{InvalidTopicName, TopicName};
