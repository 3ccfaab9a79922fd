//! Floor 6: agreement on the cluster's metadata.
//!
//! Every node runs openraft on a store of its own: the listed controllers vote, every other registered node learns, so each
//! broker follows the committed metadata from its own replica. The Raft leader is the *active controller*; it makes the
//! proposals of everybody, watches which nodes are alive and runs the elections of partition leaders. (Who leads a partition
//! is another matter than who leads here.)
//!
//! ```text
//!   broker ──submit──▶ active controller ──openraft──▶ every node's store ──▶ image (watch)
//!   broker ──heartbeat──▶ every controller ──liveness──▶ election driver ──fence──▶ ISR members
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `config` | what it is started with; the traits [`PeerNetwork`] and [`FenceHandler`] |
//! | `handle` | [`Controller`]: start, stop, image |
//! | `submit` | proposals and operations on their way to the active controller |
//! | `inbound` | messages of other nodes |
//! | `duties` | the loops of every node: found the cluster, register, heartbeat; of the active one: learners |
//! | `election_driver` | the active controller's elections: start, fence, collect, appoint |
//! | `transfers` | leaderships on their way from one living node to another |
//! | `operation`, `operate`, `unclean` | what an operator asks for, and how it is done |
//! | `upkeep` | what the active controller does for the metadata by itself |
//! | `liveness`, `round_trip` | who is alive, without a clock |
//! | `candidacy` | who becomes active when the active one is gone, without a clock |
//! | `message`, `peers`, `network` | what is said to other nodes, and how |
//! | `store`, `raft`, `runtime` | openraft's log and state machine on redb, its types and its runtime |

mod candidacy;
mod clock_skew;
#[cfg(test)]
mod cluster_tests;
mod config;
mod duties;
mod election_driver;
mod handle;
mod inbound;
mod liveness;
mod message;
mod network;
mod operate;
mod operation;
#[cfg(test)]
mod operation_tests;
mod peers;
mod raft;
mod reread;
mod round_trip;
mod runtime;
#[expect(
    clippy::result_large_err,
    reason = "openraft's storage traits fix the error type"
)]
mod store;
mod submit;
mod transfers;
mod unclean;
mod upkeep;

pub use config::{
    ALLOWED_CONTROLLERS, CallError, ControllerConfig, FenceHandler, LeaderBalance, PeerNetwork,
    StartError, Timing,
};
pub use handle::{Controller, OperateError, RegistrationState, SubmitError};
pub use message::{
    FenceAnswer, FenceItem, FencePosition, FenceRefusal, HandOverAnswer, HandOverItem,
    HandOverRefusal, MAX_COMMAND_BYTES, MAX_FENCE_ITEMS, MAX_HAND_OVER_ITEMS, MAX_MESSAGE_BYTES,
};
pub use operation::{
    MAX_MOVES, Operation, OperationOutcome, OperationRefusal, PartitionOutcome, UncleanElection,
};
pub use reread::{STORED_VALUES, read_store, reread_message, reread_value, write_store};
pub use store::StoreError;
pub use submit::jittered;
