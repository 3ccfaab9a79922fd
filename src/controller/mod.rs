//! The `controller` room.
mod liveness;
mod raft;
mod store;
