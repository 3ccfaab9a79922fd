//! Consumer groups: asking their coordinators, looking at them, and being a member.
//!
//! - [`coordinator`]: who looks after a group, and requests to it
//! - [`operate`]: what an operator asks
//! - [`newer`]: the same of groups of the newer protocol
//! - [`assign`]: which member reads what
//! - [`membership`]: joining, heartbeats, leaving
//! - [`consumer`]: a consumer that reads what its group gives it

mod assign;
mod consumer;
mod coordinator;
mod membership;
mod newer;
mod operate;

pub use consumer::{GroupConfig, GroupConsumer, GroupEvent};
pub use newer::GroupEpochs;
pub use operate::{GroupDescription, GroupMember, GroupOffset, GroupSummary};
