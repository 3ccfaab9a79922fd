//! What a replica shows of itself.

use super::Partition;
use super::output::{PartitionView, RoleView};
use super::replica::Role;
use crate::replication::{Leader, ProducerStates};
use crate::types::{Fill, LeaderEpoch, MonotonicTime};

impl Partition {
    /// The core of this replica while it leads, to be looked at.
    pub fn leader(&self) -> Option<&Leader> {
        match &self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    /// Whether one more replica in sync is needed: nothing is committed for want of it, or what is lies on one node alone.
    pub fn lacks_replicas(&self) -> bool {
        self.state.as_ref().is_some_and(|state| {
            let enough = usize::try_from(state.min_insync)
                .unwrap_or(usize::MAX)
                .max(2);
            state.isr.len() < enough.min(state.replicas.len())
        })
    }

    /// What is known of producers: a replay of the log, at any time (invariant 11).
    pub fn producers(&self) -> &ProducerStates {
        match &self.role {
            Role::Leader(leader) => leader.producers(),
            _ => &self.producers,
        }
    }

    /// Shows how full each queue, buffer and map of this replica is (invariant 12). `see` is called once for each.
    pub fn each_fill(&self, mut see: impl FnMut(Fill)) {
        if let Some(leader) = self.leader() {
            leader.fills().into_iter().for_each(&mut see);
        }
        if let Some(hand_over) = &self.hand_over {
            hand_over.fills().into_iter().for_each(&mut see);
        }
        self.producers().fills().into_iter().for_each(&mut see);
        self.log.fills().into_iter().for_each(&mut see);
    }

    /// Whether the partition has failed: it serves nothing until the process starts again.
    pub fn has_failed(&self) -> bool {
        matches!(self.role, Role::Failed)
    }

    /// The leader epoch of the present role; the promise without one.
    pub fn role_epoch(&self) -> LeaderEpoch {
        match &self.role {
            Role::Leader(leader) => leader.epoch(),
            Role::Follower(follower) => follower.epoch(),
            Role::Idle | Role::Failed => self.promised,
        }
    }

    pub fn view(&self) -> PartitionView {
        let (is_leader, watermark_known) = match &self.role {
            Role::Leader(leader) => (true, leader.epoch_started()),
            _ => (false, false),
        };
        // A new leader that does not know its watermark yet shows no start above it either.
        let log_start = self
            .log
            .start()
            .offset
            .max(self.deleted_before.min(self.high_watermark));
        PartitionView {
            leader_epoch: self
                .state
                .as_ref()
                .map_or(LeaderEpoch::NONE, |state| state.leader_epoch),
            is_leader,
            watermark_known,
            high_watermark: self.high_watermark,
            last_stable_offset: self.last_stable_offset(log_start),
            log_start,
            log_end: self.log.end().offset,
            is_short_of_space: self.is_short_of_space(),
        }
    }

    pub fn role_view(&self, now: MonotonicTime) -> RoleView {
        match &self.role {
            Role::Idle => RoleView::Idle,
            Role::Leader(leader) => {
                let mut view = leader.view(now);
                for follower in &mut view.followers {
                    // What was not sent yet is counted from the log, roughly.
                    if let (None, Some(durable)) = (follower.lag_bytes, follower.durable) {
                        follower.lag_bytes = Some(self.log.bytes_from(durable.offset));
                    }
                }
                RoleView::Leader(view)
            }
            Role::Follower(follower) => RoleView::Follower {
                leader: follower.leader(),
                epoch: follower.epoch(),
                session: follower.session(),
            },
            Role::Failed => RoleView::Failed,
        }
    }
}
