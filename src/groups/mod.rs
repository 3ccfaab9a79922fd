//! Floor 3: consumer groups, without I/O.
//!
//! A [`Coordinator`] looks after the groups of one partition of the internal topic [`OFFSETS_TOPIC`](crate::types::OFFSETS_TOPIC): who is in them, in
//! which generation, and which offsets they have committed. The leader of that partition runs it. Requests, time and
//! randomness come in as arguments; answers, and records to write, are polled. What must survive a failover is answered
//! only once it is written, so a coordinator that is rebuilt from the log knows everything that was ever acknowledged.
//!
//! ```text
//!            first member joins                 all have joined, or time is over
//!   Empty ───────────────────────▶ PreparingRebalance ───────────────────────▶ CompletingRebalance
//!     ▲                              ▲      ▲   │                                │        │
//!     │ the last member left         │      │   └── nobody is left ──▶ Empty     │        │ the leader's assignment
//!     └──────────────────────────────┘      │      joined, left, expired         │        ▼ is written
//!                                           └────────────────────────────────────┴───── Stable
//! ```
//!
//! `Dead` is a group whose deletion is being written. The rules are Kafka's (the "classic" protocol, KIP-62, KIP-345,
//! KIP-394, KIP-429), so that any client's group works here; the record formats are Kafka's, so that tools read them.

mod committed;
mod consumer;
mod consumer_protocol;
mod coordinator;
mod effects;
mod group;
mod limits;
mod log_format;
mod member;
mod pending;
mod rebalance;
mod request;
mod restore;
#[cfg(test)]
mod tests;
mod transactions;

pub use committed::Committed;
pub use consumer::{
    Assignor, ConsumerDescription, ConsumerHeartbeat, ConsumerKey, ConsumerMemberDescription,
    ConsumerState, HeartbeatAnswer, NoTopics, Partitions, ReconciliationState, TopicShape, Topics,
    reread_consumer_record,
};
pub use consumer_protocol::{
    ASSIGNMENT_VERSION, Assignment, ProtocolError, SUBSCRIPTION_VERSION, Subscription,
    decode_assignment, decode_subscription, encode_assignment, encode_subscription,
};
pub use coordinator::Coordinator;
pub use effects::Ticket;
pub use group::GroupState;
pub use limits::{
    MAX_ASSIGNMENT_BYTES, MAX_COMMIT_BYTES, MAX_ENDED_PRODUCERS, MAX_GROUP_BYTES,
    MAX_GROUP_ID_BYTES, MAX_GROUPS, MAX_METADATA_BYTES, MAX_PENDING_BYTES, MAX_PROTOCOLS,
    MAX_STATE_BYTES, Settings,
};
pub use log_format::{FormatError, LogKey, decode_key, reread_record};
pub use pending::OffsetsGuard;
pub use request::{
    Answer, CommitOffset, Description, EndTransaction, FetchedOffset, GroupListing, GroupType,
    Join, JoinMember, Joined, LeavingMember, ListFilter, MemberDescription, Now, OffsetCommit,
    OffsetsVerification, Request, Sync, Synced, TransactionCommit, Who,
};
