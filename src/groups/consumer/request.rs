//! What a coordinator is asked of such groups, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use super::group::ConsumerState;
use super::partitions::Partitions;
use crate::groups::request::Who;

/// A member lives; and joins with epoch 0, leaves with −1, and leaves for a while with −2 if it is static. Texts are the
/// client's own, of any length; what is absent has not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerHeartbeat {
    /// Without a member id, a member that joins is given one.
    pub who: Who,
    pub epoch: i32,
    pub client_id: String,
    pub client_host: String,
    pub rack: Option<String>,
    /// How long it may take to give up partitions.
    pub rebalance: Option<Duration>,
    /// Topics by name.
    pub names: Option<Vec<String>>,
    /// Topics by pattern; empty for none any more.
    pub pattern: Option<String>,
    pub assignor: Option<String>,
    /// What it holds.
    pub owned: Option<Partitions>,
    /// For the member's id, should it need one.
    pub random: u128,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    pub member: Arc<str>,
    pub epoch: i32,
    /// When to come again.
    pub interval: Duration,
    /// What the member may read, where it cannot know it.
    pub assignment: Option<Partitions>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerDescription {
    pub state: ConsumerState,
    pub epoch: i32,
    /// Of the target assignment.
    pub assignment_epoch: i32,
    pub assignor: &'static str,
    pub members: Vec<ConsumerMemberDescription>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerMemberDescription {
    pub member: Arc<str>,
    pub instance: Option<Arc<str>>,
    pub rack: Option<Arc<str>>,
    pub epoch: i32,
    pub client_id: Arc<str>,
    pub client_host: Arc<str>,
    pub names: Vec<Arc<str>>,
    pub pattern: Option<Arc<str>>,
    pub assigned: Partitions,
    pub target: Partitions,
}
