//! One group: who is in it, and what its members ask between rebalances.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::committed::Offsets;
use super::consumer::Serving;
use super::consumer_protocol::decode_subscription;
use super::effects::{Effects, Then, Ticket, Write};
use super::limits::{ENTRY_BYTES, MAX_ASSIGNMENT_BYTES};
use super::log_format::{GroupValue, group_key, group_value};
use super::member::Member;
use super::rebalance::Rebalance;
use super::request::{
    Answer, Description, GroupType, LeavingMember, MemberDescription, Now, Sync, Synced, Who,
};
use crate::record::LogRecord;
use crate::types::{ErrorCode, MonotonicTime};

/// The protocol type of consumers, whose metadata the coordinator can read.
const CONSUMER: &str = "consumer";

/// Where a group stands. The drawing is in the room's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupState {
    /// Nobody is in it. It may have offsets.
    Empty,
    /// Members are joining.
    PreparingRebalance,
    /// The members are known and wait for the leader's assignment.
    CompletingRebalance,
    Stable,
    /// Its deletion is being written.
    Dead,
}

impl GroupState {
    /// Kafka's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            GroupState::Empty => "Empty",
            GroupState::PreparingRebalance => "PreparingRebalance",
            GroupState::CompletingRebalance => "CompletingRebalance",
            GroupState::Stable => "Stable",
            GroupState::Dead => "Dead",
        }
    }

    /// The state of this name, in any case.
    pub fn from_name(name: &str) -> Option<GroupState> {
        [
            GroupState::Empty,
            GroupState::PreparingRebalance,
            GroupState::CompletingRebalance,
            GroupState::Stable,
            GroupState::Dead,
        ]
        .into_iter()
        .find(|state| state.name().eq_ignore_ascii_case(name))
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: Arc<str>,
    pub(super) state: GroupState,
    /// Milliseconds since the Unix epoch: since when it is empty, if it is.
    pub(super) state_since_ms: i64,
    /// Rises with each rebalance that ends. 0 before the first.
    pub(super) generation: i32,
    /// `None` where nobody ever joined.
    pub(super) protocol_type: Option<Arc<str>>,
    /// Of this generation.
    pub(super) protocol: Option<Arc<str>>,
    /// A member, wherever there are any.
    pub(super) leader: Option<Arc<str>>,
    pub(super) members: BTreeMap<Arc<str>, Member>,
    /// The member id of each static member, by its instance id.
    pub(super) statics: BTreeMap<Arc<str>, Arc<str>>,
    /// Member ids that were given out, and until when they may join.
    pub(super) pending: BTreeMap<Arc<str>, MonotonicTime>,
    /// While the state is `PreparingRebalance`.
    pub(super) rebalance: Option<Rebalance>,
    /// While the state is `CompletingRebalance`: until when members may ask for their assignments.
    pub(super) sync_deadline: Option<MonotonicTime>,
    /// The leader's assignment of this generation is being written.
    pub(super) assigning: bool,
    /// Not later than the group's first deadline.
    pub(super) alarm: Option<MonotonicTime>,
    /// Where the members use the newer protocol, they are here; all else but the offsets is then as in an empty group.
    pub(super) consumer: Option<Box<Serving>>,
    pub(super) offsets: Offsets,
    /// Transactions with pending offsets of it, those included whose first ones are being written.
    pub(super) transactions: usize,
    /// Writes that concern it and have not ended.
    pub(super) writes: usize,
    pub(super) member_bytes: usize,
}

impl Group {
    pub(super) fn new(id: Arc<str>, now_ms: i64) -> Group {
        Group {
            id,
            state: GroupState::Empty,
            state_since_ms: now_ms,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            pending: BTreeMap::new(),
            rebalance: None,
            sync_deadline: None,
            assigning: false,
            alarm: None,
            consumer: None,
            offsets: Offsets::default(),
            transactions: 0,
            writes: 0,
            member_bytes: 0,
        }
    }

    /// What it counts for, in bytes.
    pub(super) fn bytes(&self) -> usize {
        ENTRY_BYTES + self.id.len() + self.member_bytes + self.offsets.bytes()
    }

    /// Nothing of it is worth keeping, and nothing of it is written anywhere.
    pub(super) fn is_nothing(&self) -> bool {
        self.state == GroupState::Empty
            && self.generation == 0
            && self.pending.is_empty()
            && self.consumer.is_none()
            && self.offsets.is_empty()
            && self.transactions == 0
            && self.writes == 0
    }

    /// Counts its members and looks for its first deadline anew. To be called after every change but a heartbeat, which
    /// makes deadlines later and nothing else.
    pub(super) fn settle(&mut self) {
        let pending = self.pending.keys().map(|id| ENTRY_BYTES + id.len());
        self.member_bytes =
            pending.sum::<usize>() + self.members.values().map(Member::bytes).sum::<usize>();
        if let Some(serving) = &self.consumer {
            self.member_bytes += serving.group.bytes();
        }
        let sessions = self.members.values().filter(|member| !member.is_waiting());
        self.alarm = sessions
            .map(Member::expires)
            .chain(self.pending.values().copied())
            .chain(self.rebalance.as_ref().map(|rebalance| rebalance.deadline))
            .chain(self.sync_deadline)
            .chain(self.consumer.as_ref().and_then(|serving| serving.alarm))
            .min();
    }

    /// Whether members of either protocol are in it, or are about to be.
    pub(super) fn is_used(&self) -> bool {
        let is_idle = self
            .consumer
            .as_ref()
            .is_none_or(|serving| serving.is_idle());
        self.state != GroupState::Empty || !self.pending.is_empty() || !is_idle
    }

    pub(super) fn kind(&self) -> GroupType {
        match self.consumer {
            Some(_) => GroupType::Consumer,
            None => GroupType::Classic,
        }
    }

    /// Kafka's word for where it stands, whichever protocol its members use.
    pub(super) fn state_name(&self) -> &'static str {
        match self.consumers() {
            Some(consumers) if self.state == GroupState::Empty => consumers.state().name(),
            _ => self.state.name(),
        }
    }

    /// Nobody ever used the older protocol, for all that is known here.
    pub(super) fn become_unknown_to_classics(&mut self) {
        self.generation = 0;
        self.protocol_type = None;
        self.protocol = None;
        self.leader = None;
    }

    /// The member that a client says it is.
    pub(super) fn identify(&self, who: &Who) -> Result<Arc<str>, ErrorCode> {
        if let Some(instance) = &who.instance {
            match self.statics.get(instance.as_str()) {
                None => return Err(ErrorCode::UnknownMemberId),
                Some(id) if **id != *who.member => return Err(ErrorCode::FencedInstanceId),
                Some(_) => {}
            }
        }
        match self.members.get_key_value(who.member.as_str()) {
            Some((id, _)) => Ok(id.clone()),
            None => Err(ErrorCode::UnknownMemberId),
        }
    }

    fn identify_in(&self, who: &Who, generation: i32) -> Result<Arc<str>, ErrorCode> {
        let id = self.identify(who)?;
        if generation == self.generation {
            Ok(id)
        } else {
            Err(ErrorCode::IllegalGeneration)
        }
    }

    pub(super) fn sync(&mut self, now: Now, ticket: Ticket, sync: &Sync, effects: &mut Effects) {
        if let Err(error) = self.try_sync(now, ticket, sync, effects) {
            effects.refuse(ticket, error);
        }
    }

    fn try_sync(
        &mut self,
        now: Now,
        ticket: Ticket,
        sync: &Sync,
        effects: &mut Effects,
    ) -> Result<(), ErrorCode> {
        let id = self.identify_in(&sync.who, sync.generation)?;
        let differs = |believed: &Option<String>, known: &Option<Arc<str>>| match believed {
            Some(believed) => known.as_deref() != Some(believed.as_str()),
            None => false,
        };
        if differs(&sync.protocol_type, &self.protocol_type)
            || differs(&sync.protocol, &self.protocol)
        {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        match self.state {
            GroupState::Empty | GroupState::Dead => return Err(ErrorCode::UnknownMemberId),
            GroupState::PreparingRebalance => return Err(ErrorCode::RebalanceInProgress),
            GroupState::Stable => {
                let answer = self.synced(&id);
                if let Some(member) = self.members.get_mut(&id) {
                    member.heard = now.monotonic;
                }
                effects.answer(ticket, answer);
                return Ok(());
            }
            GroupState::CompletingRebalance => {}
        }
        if self.leader.as_ref() == Some(&id) && !self.assigning {
            self.assign(&sync.assignments, effects)?;
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.heard = now.monotonic;
            if let Some(earlier) = member.syncing.replace(ticket) {
                effects.refuse(earlier, ErrorCode::RebalanceInProgress);
            }
        }
        Ok(())
    }

    /// Writes down who is in this generation and what each is to do.
    fn assign(
        &mut self,
        given: &[(String, Bytes)],
        effects: &mut Effects,
    ) -> Result<(), ErrorCode> {
        let total: usize = given.iter().map(|(_, bytes)| bytes.len()).sum();
        if total > MAX_ASSIGNMENT_BYTES {
            return Err(ErrorCode::InvalidRequest);
        }
        let mut assignments: BTreeMap<Arc<str>, Bytes> = BTreeMap::new();
        for id in self.members.keys() {
            assignments.insert(id.clone(), Bytes::new());
        }
        for (member, bytes) in given {
            if let Some(assigned) = assignments.get_mut(member.as_str()) {
                // A copy, so that the whole request is not kept for it.
                *assigned = Bytes::copy_from_slice(bytes);
            }
        }
        let record = self.record(|id, _| assignments.get(id).cloned().unwrap_or_default());
        self.assigning = true;
        self.write(
            vec![record],
            Then::Assigned {
                generation: self.generation,
                assignments,
            },
            effects,
        );
        Ok(())
    }

    /// What came of writing an assignment. An error is the answer to everyone who waits for it, and the group begins anew.
    /// True where it has to.
    pub(super) fn assigned(
        &mut self,
        now: Now,
        generation: i32,
        assignments: BTreeMap<Arc<str>, Bytes>,
        result: Result<(), ErrorCode>,
        effects: &mut Effects,
    ) -> bool {
        if self.state != GroupState::CompletingRebalance || self.generation != generation {
            return false;
        }
        self.assigning = false;
        if let Err(error) = result {
            self.refuse_syncing(now, error, effects);
            return true;
        }
        for (id, assignment) in assignments {
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = assignment;
            }
        }
        self.state = GroupState::Stable;
        self.sync_deadline = None;
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for id in ids {
            let answer = self.synced(&id);
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            if let Some(ticket) = member.syncing.take() {
                member.heard = now.monotonic;
                effects.answer(ticket, answer);
            }
        }
        false
    }

    fn synced(&self, id: &Arc<str>) -> Answer {
        let assignment = self.members.get(id).map(|member| member.assignment.clone());
        Answer::Synced(Synced {
            protocol_type: self.protocol_type.clone().unwrap_or_else(|| "".into()),
            protocol: self.protocol.clone().unwrap_or_else(|| "".into()),
            assignment: assignment.unwrap_or_default(),
        })
    }

    /// Whoever waited could not be heard meanwhile: its session begins with the answer.
    pub(super) fn refuse_syncing(&mut self, now: Now, error: ErrorCode, effects: &mut Effects) {
        for member in self.members.values_mut() {
            if let Some(ticket) = member.syncing.take() {
                member.heard = now.monotonic;
                effects.refuse(ticket, error);
            }
        }
    }

    pub(super) fn heartbeat(
        &mut self,
        now: Now,
        who: &Who,
        generation: i32,
    ) -> Result<Answer, ErrorCode> {
        let id = self.identify_in(who, generation)?;
        if let Some(member) = self.members.get_mut(&id) {
            member.heard = now.monotonic;
        }
        match self.state {
            GroupState::PreparingRebalance => Err(ErrorCode::RebalanceInProgress),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(Answer::Done),
            GroupState::Empty | GroupState::Dead => Err(ErrorCode::UnknownMemberId),
        }
    }

    /// Takes members out, one result for each. What the others do about it is for the caller.
    pub(super) fn leave(
        &mut self,
        leaving: &[LeavingMember],
        effects: &mut Effects,
    ) -> Vec<Result<(), ErrorCode>> {
        leaving
            .iter()
            .map(|leaving| {
                let who = &leaving.who;
                let id = match &who.instance {
                    // An administrator names the instance alone.
                    Some(instance) if who.member.is_empty() => {
                        let id = self.statics.get(instance.as_str());
                        id.cloned().ok_or(ErrorCode::UnknownMemberId)?
                    }
                    _ if self.pending.remove(who.member.as_str()).is_some() => return Ok(()),
                    _ => self.identify(who)?,
                };
                self.remove(&id, ErrorCode::UnknownMemberId, effects);
                Ok(())
            })
            .collect()
    }

    /// Takes a member out. Whoever waits for an answer to it gets this error.
    pub(super) fn remove(&mut self, id: &Arc<str>, error: ErrorCode, effects: &mut Effects) {
        let Some(member) = self.members.remove(id) else {
            return;
        };
        for ticket in [member.joining, member.syncing].into_iter().flatten() {
            effects.refuse(ticket, error);
        }
        if let Some(instance) = &member.instance {
            self.statics.remove(instance);
        }
        if self.leader.as_ref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    /// Whether a client may commit offsets, and that it lives.
    pub(super) fn may_commit(
        &mut self,
        now: Now,
        who: &Who,
        generation: i32,
    ) -> Result<(), ErrorCode> {
        if self.state == GroupState::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        if let Some(serving) = self
            .consumer
            .as_ref()
            .filter(|serving| !serving.group.is_empty())
        {
            return serving.group.check_member(&who.member, generation);
        }
        // A client that assigns partitions itself, or an operator: while no member can be in its way.
        if generation < 0 && self.state == GroupState::Empty {
            return Ok(());
        }
        let id = self.identify_in(who, generation)?;
        match self.state {
            // The partitions of this generation are not given out yet, so nobody has read any of them.
            GroupState::CompletingRebalance => return Err(ErrorCode::RebalanceInProgress),
            GroupState::Empty | GroupState::Dead => return Err(ErrorCode::UnknownMemberId),
            GroupState::PreparingRebalance | GroupState::Stable => {}
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.heard = now.monotonic;
        }
        Ok(())
    }

    /// Whether a member reads the topic, as far as anybody can tell. Where the members are no consumers, all topics may be
    /// read.
    pub(super) fn reads(&self, topic: &str) -> bool {
        if let Some(consumers) = self.consumers() {
            return consumers.reads(topic);
        }
        if self.members.is_empty() {
            return false;
        }
        if self.protocol_type.as_deref() != Some(CONSUMER) {
            return true;
        }
        let reads = |member: &Member| {
            member.protocols.names().any(|name| {
                match decode_subscription(&member.protocols.metadata(name)) {
                    Ok(found) => found.topics.iter().any(|read| **read == *topic),
                    Err(_) => true,
                }
            })
        };
        self.members.values().any(reads)
    }

    pub(super) fn describe(&self) -> Description {
        let stable = self.state == GroupState::Stable;
        let protocol = self.protocol.clone().filter(|_| stable);
        let protocol = protocol.unwrap_or_else(|| "".into());
        let members = self.members.iter().map(|(id, member)| MemberDescription {
            member: id.clone(),
            instance: member.instance.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: member.protocols.metadata(&protocol),
            assignment: if stable {
                member.assignment.clone()
            } else {
                Bytes::new()
            },
        });
        Description {
            state: self.state,
            protocol_type: self.protocol_type.clone().unwrap_or_else(|| "".into()),
            members: members.collect(),
            protocol,
        }
    }

    /// The group as it is written down, with these assignments.
    pub(super) fn record(&self, assignment: impl Fn(&Arc<str>, &Member) -> Bytes) -> LogRecord {
        let protocol = self.protocol.clone().unwrap_or_else(|| "".into());
        let members = self
            .members
            .iter()
            .map(|(id, member)| member.value(id, &protocol, assignment(id, member)));
        let value = GroupValue {
            protocol_type: self.protocol_type.clone().unwrap_or_else(|| "".into()),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            state_since_ms: self.state_since_ms,
            members: members.collect(),
        };
        LogRecord {
            key: group_key(&self.id),
            value: Some(group_value(&value)),
        }
    }

    pub(super) fn write(&mut self, records: Vec<LogRecord>, then: Then, effects: &mut Effects) {
        self.writes += 1;
        effects.writes.push_back(Write {
            group: self.id.clone(),
            records,
            then,
        });
    }
}
