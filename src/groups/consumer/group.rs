//! One group: its members, who is to read what, and who reads what.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::assignors::Assignor;
use super::member::{Current, Member, ReconciliationState};
use super::partitions::Partitions;
use super::pattern;
use super::request::{ConsumerDescription, ConsumerMemberDescription};
use crate::groups::limits::ENTRY_BYTES;
use crate::types::{ErrorCode, MonotonicTime};

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConsumerState {
    /// Nobody is in it. It may have offsets.
    Empty,
    /// Its partitions are to be given out anew.
    Assigning,
    /// Members are on their way to the target.
    Reconciling,
    Stable,
}

impl ConsumerState {
    /// Kafka's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            ConsumerState::Empty => "Empty",
            ConsumerState::Assigning => "Assigning",
            ConsumerState::Reconciling => "Reconciling",
            ConsumerState::Stable => "Stable",
        }
    }
}

/// A group as the coordinator sees it. What is large in it is shared among its copies, so that one can be kept cheaply while
/// a change is written.
#[derive(Clone, Debug, Default)]
pub(in crate::groups) struct ConsumerGroup {
    /// Rises with everything that may change who reads what.
    pub(super) epoch: i32,
    /// The group epoch that the targets are for.
    pub(super) target_epoch: i32,
    /// Of the topics that its members read, see [`Resolved`](super::target::Resolved).
    pub(super) topics_hash: i64,
    /// Milliseconds since the Unix epoch: since when nobody is in it, if nobody is.
    pub(super) empty_since_ms: i64,
    pub(super) members: BTreeMap<Arc<str>, Member>,
    /// The member id of each static member, by its instance id. Always what `members` says.
    pub(super) statics: BTreeMap<Arc<str>, Arc<str>>,
    /// What each member is to have. None for a member is nothing.
    pub(super) targets: BTreeMap<Arc<str>, Arc<Partitions>>,
    /// Which of the coordinator's views of the topics it knows; 0 for none yet.
    pub(super) topics_seen: u64,
}

impl ConsumerGroup {
    pub(in crate::groups) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(in crate::groups) fn empty_since_ms(&self) -> i64 {
        self.empty_since_ms
    }

    pub(in crate::groups) fn state(&self) -> ConsumerState {
        let arrived = |member: &Member| {
            let current = &member.current;
            current.state == ReconciliationState::Stable && current.epoch == self.target_epoch
        };
        if self.members.is_empty() {
            ConsumerState::Empty
        } else if self.epoch > self.target_epoch {
            ConsumerState::Assigning
        } else if self.members.values().all(arrived) {
            ConsumerState::Stable
        } else {
            ConsumerState::Reconciling
        }
    }

    /// What its members count for, in bytes.
    pub(in crate::groups) fn bytes(&self) -> usize {
        let member = |(id, member): (&Arc<str>, &Member)| {
            // A partition is in the target and in what is held.
            let target = self.targets.get(id).map_or(0, |target| target.len());
            let held = member.current.held().count();
            2 * ENTRY_BYTES + id.len() + member.subscription.bytes() + 16 * (target + held)
        };
        self.members.iter().map(member).sum()
    }

    /// The first moment at which a member may be late.
    pub(super) fn alarm(&self, session: std::time::Duration) -> Option<MonotonicTime> {
        let first = |member: &Member| {
            let expires = member.heard + session;
            member.revoke_by.map_or(expires, |by| by.min(expires))
        };
        self.members.values().map(first).min()
    }

    pub(super) fn target(&self, id: &str) -> Arc<Partitions> {
        self.targets.get(id).cloned().unwrap_or_default()
    }

    /// What others than this member hold of these partitions.
    pub(super) fn held_by_others(&self, id: &str, of: &Partitions) -> Partitions {
        let others = self.members.iter().filter(|(other, _)| ***other != *id);
        let held = others.flat_map(|(_, member)| member.current.held());
        held.filter(|&(topic, partition)| of.contains(topic, partition))
            .collect()
    }

    pub(super) fn put(&mut self, id: Arc<str>, member: Member) {
        if let Some(instance) = &member.subscription.instance {
            self.statics.insert(instance.clone(), id.clone());
        }
        self.members.insert(id, member);
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Member> {
        let member = self.members.remove(id)?;
        self.targets.remove(id);
        if let Some(instance) = &member.subscription.instance
            && self
                .statics
                .get(instance)
                .is_some_and(|known| **known == *id)
        {
            self.statics.remove(instance);
        }
        Some(member)
    }

    /// Whether somebody who says that it is this member in this epoch is, for offsets.
    pub(in crate::groups) fn check_member(
        &self,
        member: &str,
        epoch: i32,
    ) -> Result<(), ErrorCode> {
        match self.members.get(member) {
            None => Err(ErrorCode::UnknownMemberId),
            Some(known) if known.current.epoch != epoch => Err(ErrorCode::StaleMemberEpoch),
            Some(_) => Ok(()),
        }
    }

    /// Whether a member reads the topic.
    pub(in crate::groups) fn reads(&self, topic: &str) -> bool {
        self.members.values().any(|member| {
            let subscription = &member.subscription;
            let matches = |of: &Arc<str>| {
                let compiled = pattern::compile(of);
                compiled.is_some_and(|compiled| compiled.is_match(topic))
            };
            subscription.names.iter().any(|name| **name == *topic)
                || subscription.pattern.as_ref().is_some_and(matches)
        })
    }

    /// The assignor for which most members wish; of equals the first by name.
    pub(super) fn assignor(&self) -> Assignor {
        let mut votes: BTreeMap<Assignor, usize> = BTreeMap::new();
        for member in self.members.values() {
            let wish = member.subscription.assignor.as_deref();
            if let Some(assignor) = wish.and_then(Assignor::from_name) {
                *votes.entry(assignor).or_default() += 1;
            }
        }
        let most = votes
            .iter()
            .max_by_key(|&(assignor, votes)| (votes, std::cmp::Reverse(assignor)));
        most.map_or(Assignor::DEFAULT, |(&assignor, _)| assignor)
    }

    pub(in crate::groups) fn describe(&self) -> ConsumerDescription {
        let member = |(id, member): (&Arc<str>, &Member)| {
            let subscription = &member.subscription;
            ConsumerMemberDescription {
                member: id.clone(),
                instance: subscription.instance.clone(),
                rack: subscription.rack.clone(),
                epoch: member.current.epoch,
                client_id: subscription.client_id.clone(),
                client_host: subscription.client_host.clone(),
                names: subscription.names.clone(),
                pattern: subscription.pattern.clone(),
                assigned: member.current.assigned.clone(),
                target: (*self.target(id)).clone(),
            }
        };
        ConsumerDescription {
            state: self.state(),
            epoch: self.epoch,
            assignment_epoch: self.target_epoch,
            assignor: self.assignor().name(),
            members: self.members.iter().map(member).collect(),
        }
    }

    /// The log has been read: what belongs to nobody goes, and members have from now on the time of their sessions to be heard.
    pub(super) fn loaded(&mut self, now: MonotonicTime) {
        self.targets.retain(|id, _| self.members.contains_key(id));
        self.statics.clear();
        for (id, member) in &mut self.members {
            if let Some(instance) = &member.subscription.instance {
                self.statics.insert(instance.clone(), id.clone());
            }
            member.heard = now;
            member.revoke_by = revoke_by(now, &member.current, member.subscription.rebalance);
        }
    }
}

/// Until when a member must have given up what it is to.
pub(super) fn revoke_by(
    now: MonotonicTime,
    current: &Current,
    rebalance: std::time::Duration,
) -> Option<MonotonicTime> {
    let revokes = current.state == ReconciliationState::UnrevokedPartitions;
    revokes.then(|| now + rebalance)
}
