//! Floor 3: the replication protocol, sans-IO.
//!
//! Raft's log rule, with elections held by a linearizable controller, flexible quorums, and an in-sync set that the
//! controller keeps. Events come in as calls (`handle_*`, with the time as an argument where it matters); effects go out as
//! [`LeaderAction`]s and [`FollowerAction`]s, polled until there are none. No clock, no socket, no disk: the broker and the
//! simulator run the same code.
//!
//! The rules are told in `docs/protocol.md`; each stands in the code beside the field that it binds.

mod ack_tracker;
mod admission;
mod caught_up;
mod deliveries;
mod follower;
mod in_sync;
mod isr_changes;
mod leader;
mod leader_action;
mod leader_view;
mod peers;
mod producer_state;
mod progress;
mod transactions;

pub use ack_tracker::{AckTracker, ProduceTicket};
pub use admission::{Admission, MarkerAdmission, ProducerBatch};
pub use deliveries::Deliveries;
pub use follower::{Follower, FollowerAction, FramesRefused, SessionState};
pub use in_sync::{CountedSet, IsrOutcome};
pub use leader::{AckRefused, Acks, Leader, LogEnds, ProduceOutcome, suspicion_time};
pub use leader_action::LeaderAction;
pub use leader_view::{CountedAck, FollowerView, LeaderView};
pub use peers::{MINIMUM_SUSPICION, Peers};
pub use producer_state::{
    BatchSequence, MAX_PRODUCERS, ProducerDescription, ProducerStates, SequenceCheck,
};
pub use progress::Confirmed;
pub use transactions::{MAX_OPEN_TRANSACTIONS, Verification, VerificationGuard};
