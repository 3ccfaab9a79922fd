//! Groups of the newer protocol, KIP-848, in which the coordinator itself gives out partitions.
//!
//! ```text
//!   a member joins, leaves, is late,               the coordinator gives            each member's own heartbeats
//!   or changes what it reads; topics change        partitions out anew              bring it to the target
//!   ─────────────────────────▶ group epoch + 1 ─────────────────────▶ target epoch ─────────────────────▶ member epoch
//!
//!   one member:
//!              it holds what it should not                 it holds that no more
//!   Stable ───────────────────────────────▶ UnrevokedPartitions ───────────────────▶ Stable, in the target's epoch
//!     │  ▲                                                      │
//!     │  └────────── the others hold it no more ──────────┐     │ others still hold what it should
//!     └── others still hold what it should ──▶ UnreleasedPartitions ◀──┘
//! ```
//!
//! Nobody waits for anybody but for a partition: a partition is given to a member only when no other holds it, and a member
//! holds it until it says that it does not, leaves, or is late.
//!
//! One change of a group is written at a time, and answered once it is written; what is asked meanwhile waits. A change that
//! was not written is taken back, so that the group is never ahead of its log but by the one change which is under way.

mod assignors;
mod group;
mod heartbeat;
mod log_format;
mod member;
mod partitions;
mod pattern;
mod reconcile;
mod request;
mod serve;
mod target;
#[cfg(test)]
mod tests;
mod topics;

pub use assignors::Assignor;
pub use group::ConsumerState;
pub use log_format::{ConsumerKey, reread_consumer_record};
pub use member::ReconciliationState;
pub use partitions::Partitions;
pub use request::{
    ConsumerDescription, ConsumerHeartbeat, ConsumerMemberDescription, HeartbeatAnswer,
};
pub use topics::{NoTopics, TopicShape, Topics};

pub(super) use log_format::{decode_key, decode_record, group_key};
pub(super) use serve::{ConsumerChanged, Serving};
