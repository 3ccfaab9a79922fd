//! One member: what it says of itself, and how far it has come.

use std::sync::Arc;
use std::time::Duration;

use super::partitions::Partitions;
use crate::types::MonotonicTime;

/// The member epoch by which a member leaves for good.
pub(super) const LEAVE_EPOCH: i32 = -1;
/// The member epoch by which a static member leaves and may come back; it keeps its partitions until its session ends.
pub(super) const STATIC_LEAVE_EPOCH: i32 = -2;

/// Where a member stands on its way to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReconciliationState {
    /// It has everything that it had to get in its epoch.
    Stable,
    /// It is to give up partitions, and stays in its epoch until it has.
    UnrevokedPartitions,
    /// It waits for partitions which others still hold.
    UnreleasedPartitions,
}

/// What a member says of itself; written down when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::groups) struct Subscription {
    pub(super) instance: Option<Arc<str>>,
    pub(super) rack: Option<Arc<str>>,
    pub(super) client_id: Arc<str>,
    pub(super) client_host: Arc<str>,
    /// How long it may take to give up partitions.
    pub(super) rebalance: Duration,
    /// The topics that it reads by name, sorted, each once.
    pub(super) names: Vec<Arc<str>>,
    /// Those that it reads by pattern.
    pub(super) pattern: Option<Arc<str>>,
    /// The name of the assignor that it wishes for.
    pub(super) assignor: Option<Arc<str>>,
}

impl Subscription {
    /// Of a member that has said nothing yet.
    pub(super) fn unsaid(instance: Option<Arc<str>>) -> Subscription {
        Subscription {
            instance,
            rack: None,
            client_id: "".into(),
            client_host: "".into(),
            rebalance: Duration::ZERO,
            names: Vec::new(),
            pattern: None,
            assignor: None,
        }
    }

    /// Its text, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let optional = [&self.instance, &self.rack, &self.pattern, &self.assignor];
        let optional = optional.into_iter().flatten().map(|text| text.len());
        let names = self.names.iter().map(|name| name.len() + 16);
        optional.chain(names).sum::<usize>() + self.client_id.len() + self.client_host.len()
    }

    /// Whether both read the same, and wish for the same assignor.
    pub(super) fn reads_as(&self, other: &Subscription) -> bool {
        self.names == other.names
            && self.pattern == other.pattern
            && self.assignor == other.assignor
    }
}

/// How far a member has come; written down when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::groups) struct Current {
    /// 0 before its first answer; [`STATIC_LEAVE_EPOCH`] while a static member is away.
    pub(super) epoch: i32,
    /// Before this one: whoever says it may have missed the answer that raised it.
    pub(super) previous_epoch: i32,
    pub(super) state: ReconciliationState,
    /// What it may read.
    pub(super) assigned: Partitions,
    /// What it is to give up and still holds.
    pub(super) revoking: Partitions,
}

impl Current {
    pub(super) fn new() -> Current {
        Current {
            epoch: 0,
            previous_epoch: -1,
            state: ReconciliationState::Stable,
            assigned: Partitions::default(),
            revoking: Partitions::default(),
        }
    }

    /// Everything that nobody else may have.
    pub(super) fn held(&self) -> impl Iterator<Item = (crate::types::TopicId, i32)> {
        self.assigned.iter().chain(self.revoking.iter())
    }
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) subscription: Arc<Subscription>,
    pub(super) current: Arc<Current>,
    /// When it was heard last.
    pub(super) heard: MonotonicTime,
    /// While it is to give up partitions: until when.
    pub(super) revoke_by: Option<MonotonicTime>,
}

impl Member {
    /// One that holds nothing yet.
    pub(super) fn new(subscription: Subscription, heard: MonotonicTime) -> Member {
        Member {
            subscription: Arc::new(subscription),
            current: Arc::new(Current::new()),
            heard,
            revoke_by: None,
        }
    }
}
