//! From one generation of a group to the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::effects::{Effects, Then, Ticket};
use super::group::{Group, GroupState};
use super::limits::{
    MAX_CLIENT_ID_BYTES, MAX_GROUP_BYTES, MAX_INSTANCE_ID_BYTES, MAX_PROTOCOL_NAME_BYTES, Settings,
    cut,
};
use super::member::{Member, Protocols};
use super::request::{Answer, Join, JoinMember, Joined, Now};
use crate::types::{ErrorCode, MonotonicTime};

/// A rebalance whose members are joining.
#[derive(Debug)]
pub(super) struct Rebalance {
    /// When it goes on with whoever has joined.
    pub(super) deadline: MonotonicTime,
    /// Where the group was empty before: it waits for more members even when all that it knows have joined.
    gathering: Option<Gathering>,
}

#[derive(Debug)]
struct Gathering {
    /// It waits no longer than this, however many come.
    until: MonotonicTime,
    /// Whether somebody came since the deadline was set.
    more_came: bool,
}

impl Group {
    /// `has_room`: whether the coordinator can keep one more member.
    pub(super) fn join(
        &mut self,
        now: Now,
        ticket: Ticket,
        join: &Join,
        has_room: bool,
        settings: &Settings,
        effects: &mut Effects,
    ) {
        if let Err(error) = self.try_join(now, ticket, join, has_room, settings, effects) {
            effects.refuse(ticket, error);
        }
    }

    fn try_join(
        &mut self,
        now: Now,
        ticket: Ticket,
        join: &Join,
        has_room: bool,
        settings: &Settings,
        effects: &mut Effects,
    ) -> Result<(), ErrorCode> {
        if self.state == GroupState::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        let protocols = Protocols::new(&join.protocols)?;
        if !self.supports(&join.protocol_type, &protocols) {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        let instance = join.who.instance.as_deref();
        if instance.is_some_and(|id| id.is_empty() || id.len() > MAX_INSTANCE_ID_BYTES) {
            return Err(ErrorCode::InvalidRequest);
        }
        if !join.who.member.is_empty() {
            if self.pending.contains_key(join.who.member.as_str()) && instance.is_none() {
                self.check_size(None, &protocols)?;
                let id: Arc<str> = join.who.member.as_str().into();
                self.pending.remove(&id);
                self.admit(now, ticket, id, join, protocols, settings, effects);
                return Ok(());
            }
            let id = self.identify(&join.who)?;
            self.check_size(Some(&id), &protocols)?;
            self.rejoin(now, ticket, &id, join, protocols, settings, effects);
            return Ok(());
        }
        if let Some(known) = instance
            .and_then(|instance| self.statics.get(instance))
            .cloned()
        {
            self.check_size(Some(&known), &protocols)?;
            let id = member_id(join, instance);
            self.replace(
                now,
                ticket,
                (&known, id),
                join,
                protocols,
                settings,
                effects,
            );
            return Ok(());
        }
        if !has_room {
            return Err(ErrorCode::PolicyViolation);
        }
        if self.members.len() + self.pending.len() >= settings.max_size {
            return Err(ErrorCode::GroupMaxSizeReached);
        }
        let id = member_id(join, instance);
        if join.takes_id_first && instance.is_none() {
            // So that a client that gives up waiting and asks again does not leave a member behind each time.
            self.pending
                .insert(id.clone(), now.monotonic + join.session);
            effects.answer(ticket, Answer::MemberIdRequired(id));
            return Ok(());
        }
        self.check_size(None, &protocols)?;
        self.admit(now, ticket, id, join, protocols, settings, effects);
        Ok(())
    }

    /// Whether the group's other members can work with one that offers these.
    fn supports(&self, protocol_type: &str, protocols: &Protocols) -> bool {
        if protocol_type.is_empty() || protocol_type.len() > MAX_PROTOCOL_NAME_BYTES {
            return false;
        }
        if self.members.is_empty() {
            return true;
        }
        let common = |name: &Arc<str>| self.members.values().all(|m| m.protocols.has(name));
        self.protocol_type.as_deref() == Some(protocol_type) && protocols.names().any(common)
    }

    /// Whether the group stays within its bytes with this member's protocols, in the place of `known`'s.
    fn check_size(&self, known: Option<&Arc<str>>, protocols: &Protocols) -> Result<(), ErrorCode> {
        let before = known
            .and_then(|id| self.members.get(id))
            .map_or(0, |member| member.protocols.bytes());
        if self.member_bytes - before.min(self.member_bytes) + protocols.bytes() > MAX_GROUP_BYTES {
            return Err(ErrorCode::GroupMaxSizeReached);
        }
        Ok(())
    }

    /// A new member.
    #[allow(clippy::too_many_arguments)]
    fn admit(
        &mut self,
        now: Now,
        ticket: Ticket,
        id: Arc<str>,
        join: &Join,
        protocols: Protocols,
        settings: &Settings,
        effects: &mut Effects,
    ) {
        let instance: Option<Arc<str>> = join.who.instance.as_deref().map(Arc::from);
        if let Some(instance) = &instance {
            self.statics.insert(instance.clone(), id.clone());
        }
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.as_str().into());
        }
        self.leader.get_or_insert_with(|| id.clone());
        self.members.insert(
            id,
            Member {
                instance,
                client_id: cut(&join.client_id, MAX_CLIENT_ID_BYTES).into(),
                client_host: cut(&join.client_host, MAX_CLIENT_ID_BYTES).into(),
                session: join.session,
                rebalance: join.rebalance,
                protocols,
                assignment: bytes::Bytes::new(),
                heard: now.monotonic,
                joining: Some(ticket),
                syncing: None,
            },
        );
        if let Some(Rebalance {
            gathering: Some(gathering),
            ..
        }) = &mut self.rebalance
        {
            gathering.more_came = true;
        }
        self.look_for_members(now, settings, effects);
    }

    /// A member that is known joins again.
    #[allow(clippy::too_many_arguments)]
    fn rejoin(
        &mut self,
        now: Now,
        ticket: Ticket,
        id: &Arc<str>,
        join: &Join,
        protocols: Protocols,
        settings: &Settings,
        effects: &mut Effects,
    ) {
        let is_leader = self.leader.as_ref() == Some(id);
        let state = self.state;
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        let same = member.protocols == protocols;
        member.heard = now.monotonic;
        member.session = join.session;
        member.rebalance = join.rebalance;
        // The answer to its last JoinGroup may have been lost; and in a stable group a follower that has nothing new to
        // say need not disturb the others. The leader joins again because it has seen a change that it wants to act on.
        let stands = match state {
            GroupState::CompletingRebalance => same,
            GroupState::Stable => same && !is_leader,
            GroupState::Empty | GroupState::PreparingRebalance | GroupState::Dead => false,
        };
        if stands {
            effects.answer(ticket, self.joined(id, false));
            return;
        }
        member.protocols = protocols;
        if let Some(earlier) = member.joining.replace(ticket) {
            effects.refuse(earlier, ErrorCode::RebalanceInProgress);
        }
        self.look_for_members(now, settings, effects);
    }

    /// A static member's new process takes the place of the old one, under a new member id that fences the old one.
    #[allow(clippy::too_many_arguments)]
    fn replace(
        &mut self,
        now: Now,
        ticket: Ticket,
        (old, new): (&Arc<str>, Arc<str>),
        join: &Join,
        protocols: Protocols,
        settings: &Settings,
        effects: &mut Effects,
    ) {
        let Some(mut member) = self.members.remove(old) else {
            return;
        };
        let waiting = [member.joining.take(), member.syncing.take()];
        for ticket in waiting.into_iter().flatten() {
            effects.refuse(ticket, ErrorCode::FencedInstanceId);
        }
        member.heard = now.monotonic;
        member.session = join.session;
        member.rebalance = join.rebalance;
        member.protocols = protocols;
        member.client_id = cut(&join.client_id, MAX_CLIENT_ID_BYTES).into();
        member.client_host = cut(&join.client_host, MAX_CLIENT_ID_BYTES).into();
        if let Some(instance) = &member.instance {
            self.statics.insert(instance.clone(), new.clone());
        }
        let was_leader = self.leader.as_ref() == Some(old);
        if was_leader {
            self.leader = Some(new.clone());
        }
        self.members.insert(new.clone(), member);
        let stands = self.state == GroupState::Stable && self.select_protocol() == self.protocol;
        if !stands {
            if let Some(member) = self.members.get_mut(&new) {
                member.joining = Some(ticket);
            }
            self.look_for_members(now, settings, effects);
            return;
        }
        // Its assignment stands: this is what static members are for. The answer waits until the new id is written, so that
        // it survives a failover.
        let answer = match self.joined(&new, was_leader && join.can_skip_assignment) {
            // A leader that cannot be told that the assignment stands is told that another leads.
            Answer::Joined(joined) if was_leader && !join.can_skip_assignment => {
                Answer::Joined(Joined {
                    leader: old.clone(),
                    members: Vec::new(),
                    ..joined
                })
            }
            answer => answer,
        };
        let record = self.record(|_, member| member.assignment.clone());
        self.write(vec![record], Then::Answer(ticket, answer), effects);
    }

    /// Goes on with a rebalance, or begins one: somebody has joined.
    fn look_for_members(&mut self, now: Now, settings: &Settings, effects: &mut Effects) {
        if self.state == GroupState::PreparingRebalance {
            self.complete_if_all_joined(now, effects);
        } else {
            self.begin_rebalance(now, settings, effects);
        }
    }

    /// Somebody has left.
    pub(super) fn after_leaving(&mut self, now: Now, settings: &Settings, effects: &mut Effects) {
        match self.state {
            GroupState::Stable | GroupState::CompletingRebalance => {
                self.begin_rebalance(now, settings, effects);
            }
            GroupState::PreparingRebalance => self.complete_if_all_joined(now, effects),
            GroupState::Empty | GroupState::Dead => {}
        }
    }

    pub(super) fn begin_rebalance(&mut self, now: Now, settings: &Settings, effects: &mut Effects) {
        self.refuse_syncing(now, ErrorCode::RebalanceInProgress, effects);
        self.assigning = false;
        self.sync_deadline = None;
        let timeout = self.rebalance_timeout();
        let (wait, gathering) = if self.state == GroupState::Empty {
            let gathering = Gathering {
                until: now.monotonic + timeout,
                more_came: false,
            };
            let delay = settings.initial_rebalance_delay.min(timeout);
            (delay, Some(gathering))
        } else {
            (timeout, None)
        };
        self.state = GroupState::PreparingRebalance;
        self.rebalance = Some(Rebalance {
            deadline: now.monotonic + wait,
            gathering,
        });
        self.complete_if_all_joined(now, effects);
    }

    /// The longest that any member may take to join again.
    fn rebalance_timeout(&self) -> Duration {
        let longest = self.members.values().map(|member| member.rebalance).max();
        longest.unwrap_or_default()
    }

    fn complete_if_all_joined(&mut self, now: Now, effects: &mut Effects) {
        let gathers = match &self.rebalance {
            Some(rebalance) => rebalance.gathering.is_some() && !self.members.is_empty(),
            None => return,
        };
        let all = self.members.values().all(|member| member.joining.is_some());
        if !gathers && all && self.pending.is_empty() {
            self.complete(now, effects);
        }
    }

    /// The members of the next generation are those that have joined, and static ones until their sessions end.
    fn complete(&mut self, now: Now, effects: &mut Effects) {
        let gone: Vec<Arc<str>> = self
            .members
            .iter()
            .filter(|(_, member)| member.joining.is_none() && member.instance.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.remove(&id, ErrorCode::UnknownMemberId, effects);
        }
        if self.members.is_empty() {
            self.become_empty(now, effects);
            return;
        }
        let timeout = self.rebalance_timeout();
        let Some(first) = self
            .members
            .iter()
            .find(|(_, member)| member.joining.is_some())
        else {
            // Static members alone, none of them back yet.
            self.rebalance = Some(Rebalance {
                deadline: now.monotonic + timeout.max(Duration::from_secs(1)),
                gathering: None,
            });
            return;
        };
        let leads = self.leader.as_ref().and_then(|id| self.members.get(id));
        if leads.is_none_or(|leader| leader.joining.is_none()) {
            self.leader = Some(first.0.clone());
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.protocol = self.select_protocol();
        self.state = GroupState::CompletingRebalance;
        self.state_since_ms = now.wall_ms;
        self.rebalance = None;
        self.sync_deadline = Some(now.monotonic + timeout);
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for id in ids {
            let answer = self.joined(&id, false);
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            if let Some(ticket) = member.joining.take() {
                member.heard = now.monotonic;
                effects.answer(ticket, answer);
            }
        }
    }

    fn become_empty(&mut self, now: Now, effects: &mut Effects) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.state = GroupState::Empty;
        self.state_since_ms = now.wall_ms;
        self.protocol = None;
        self.leader = None;
        self.rebalance = None;
        let record = self.record(|_, member| member.assignment.clone());
        self.write(vec![record], Then::Nothing, effects);
    }

    fn joined(&self, id: &Arc<str>, skip_assignment: bool) -> Answer {
        let protocol = self.protocol.clone().unwrap_or_else(|| "".into());
        let leader = self.leader.clone().unwrap_or_else(|| "".into());
        let members = if leader == *id {
            let member = |(id, member): (&Arc<str>, &Member)| JoinMember {
                member: id.clone(),
                instance: member.instance.clone(),
                metadata: member.protocols.metadata(&protocol),
            };
            self.members.iter().map(member).collect()
        } else {
            Vec::new()
        };
        Answer::Joined(Joined {
            member: id.clone(),
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_else(|| "".into()),
            protocol,
            leader,
            skip_assignment,
            members,
        })
    }

    /// Each member votes for the first of its protocols that all have; of equal votes the name decides.
    fn select_protocol(&self) -> Option<Arc<str>> {
        let all_have = |name: &Arc<str>| self.members.values().all(|m| m.protocols.has(name));
        let mut votes: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some(first) = member.protocols.names().find(|name| all_have(name)) {
                *votes.entry(first).or_default() += 1;
            }
        }
        let most = votes
            .into_iter()
            .max_by_key(|&(name, votes)| (votes, std::cmp::Reverse(name)));
        most.map(|(name, _)| name.clone())
    }

    /// Time has passed.
    pub(super) fn handle_time(&mut self, now: Now, settings: &Settings, effects: &mut Effects) {
        let time = now.monotonic;
        let pending = self.pending.len();
        self.pending.retain(|_, until| *until > time);
        let mut left = self.pending.len() < pending;
        let late = |member: &Member| !member.is_waiting() && member.expires() <= time;
        left |= self.remove_all(late, effects);
        if self.sync_deadline.is_some_and(|deadline| deadline <= time) {
            self.sync_deadline = None;
            left |= self.remove_all(|member| member.syncing.is_none(), effects);
        }
        if left {
            self.after_leaving(now, settings, effects);
        }
        let Some(rebalance) = &mut self.rebalance else {
            return;
        };
        if rebalance.deadline > time {
            return;
        }
        if let Some(gathering) = &mut rebalance.gathering
            && std::mem::take(&mut gathering.more_came)
            && time < gathering.until
        {
            let later = time + settings.initial_rebalance_delay;
            rebalance.deadline = later.min(gathering.until);
            return;
        }
        self.complete(now, effects);
    }

    fn remove_all(&mut self, which: impl Fn(&Member) -> bool, effects: &mut Effects) -> bool {
        let gone: Vec<Arc<str>> = self
            .members
            .iter()
            .filter(|(_, member)| which(member))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &gone {
            self.remove(id, ErrorCode::UnknownMemberId, effects);
        }
        !gone.is_empty()
    }
}

/// A new member's id, in Kafka's form: what the client is called, and something that nobody else has.
fn member_id(join: &Join, instance: Option<&str>) -> Arc<str> {
    let name = instance.unwrap_or(cut(&join.client_id, MAX_CLIENT_ID_BYTES));
    let hex = format!("{:032x}", join.random);
    format!(
        "{name}-{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
    .into()
}
