//! A group as the log tells of it.

use std::sync::Arc;
use std::time::Duration;

use super::group::{Group, GroupState};
use super::log_format::{GroupValue, MemberValue};
use super::member::{Member, Protocols};
use super::request::Now;
use crate::types::MonotonicTime;

impl Group {
    /// Takes over what was written down last of its members. What they do meanwhile is known only when they are heard again.
    pub(super) fn restore(&mut self, value: GroupValue) {
        let known = |text: Arc<str>| Some(text).filter(|text| !text.is_empty());
        self.generation = value.generation;
        self.protocol_type = known(value.protocol_type);
        self.protocol = value.protocol;
        self.state_since_ms = value.state_since_ms;
        self.members.clear();
        self.statics.clear();
        let protocol: Arc<str> = self.protocol.clone().unwrap_or_else(|| "".into());
        for member in value.members {
            if let Some(instance) = &member.instance {
                self.statics.insert(instance.clone(), member.member.clone());
            }
            self.members
                .insert(member.member.clone(), restored(member, protocol.clone()));
        }
        self.leader = value
            .leader
            .filter(|leader| self.members.contains_key(leader))
            .or_else(|| self.members.keys().next().cloned());
        self.state = if self.members.is_empty() {
            GroupState::Empty
        } else {
            GroupState::Stable
        };
        self.settle();
    }

    /// The group was removed; its offsets go by records of their own.
    pub(super) fn forget_members(&mut self) {
        let offsets = std::mem::take(&mut self.offsets);
        let transactions = self.transactions;
        let consumer = self.consumer.take();
        *self = Group::new(self.id.clone(), self.state_since_ms);
        self.offsets = offsets;
        self.transactions = transactions;
        self.consumer = consumer;
    }

    /// The log has been read: members have from now on the time of their sessions to be heard.
    pub(super) fn loaded(&mut self, now: Now) {
        for member in self.members.values_mut() {
            member.heard = now.monotonic;
        }
        if self.state_since_ms < 0 {
            self.state_since_ms = now.wall_ms;
        }
        self.settle();
    }
}

fn restored(value: MemberValue, protocol: Arc<str>) -> Member {
    let milliseconds = |ms: i32| Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    Member {
        instance: value.instance,
        client_id: value.client_id,
        client_host: value.client_host,
        session: milliseconds(value.session_ms),
        rebalance: milliseconds(value.rebalance_ms),
        protocols: Protocols::restored(protocol, value.subscription),
        assignment: value.assignment,
        heard: MonotonicTime::ZERO,
        joining: None,
        syncing: None,
    }
}
