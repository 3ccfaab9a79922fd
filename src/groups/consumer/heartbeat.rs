//! What a heartbeat changes.

use std::sync::Arc;
use std::time::Duration;

use super::assignors::Assignor;
use super::group::{ConsumerGroup, revoke_by};
use super::member::{
    Current, LEAVE_EPOCH, Member, ReconciliationState, STATIC_LEAVE_EPOCH, Subscription,
};
use super::partitions::Partitions;
use super::pattern;
use super::reconcile::{Target, step};
use super::request::{ConsumerHeartbeat, HeartbeatAnswer};
use super::topics::Topics;
use crate::groups::limits::{
    MAX_CLIENT_ID_BYTES, MAX_GROUP_BYTES, MAX_INSTANCE_ID_BYTES, MAX_MEMBER_ID_BYTES, MAX_PATTERNS,
    MAX_RACK_BYTES, Settings, cut,
};
use crate::groups::request::Now;
use crate::types::{ErrorCode, TopicName};

/// When a member comes again that waits for others, or for which others wait. All else waits for
/// [`Settings::consumer_heartbeat`].
const WAITING_HEARTBEAT: Duration = Duration::from_secs(1);

/// What a heartbeat is seen in the light of.
pub(super) struct Light<'a> {
    pub(super) now: Now,
    pub(super) topics: &'a dyn Topics,
    /// Of `topics`; another one for each view of them, never 0.
    pub(super) topics_version: u64,
    pub(super) settings: &'a Settings,
    /// Whether the coordinator has room for more members.
    pub(super) has_room: bool,
}

/// What can be said of a heartbeat without knowing the group. Rules and errors are Kafka's, the caps ours.
pub(super) fn check(beat: &ConsumerHeartbeat) -> Result<(), ErrorCode> {
    let (who, epoch) = (&beat.who, beat.epoch);
    let fits = |text: &Option<String>, most: usize| {
        let text = text.as_ref();
        text.is_none_or(|text| !text.is_empty() && text.len() <= most)
    };
    let names_itself = !who.member.is_empty() || epoch == 0;
    let joins = epoch != 0
        || beat.rebalance.is_some()
            && beat.owned.as_ref().is_some_and(Partitions::is_empty)
            && (beat.names.is_some() || beat.pattern.is_some());
    let may_leave = epoch != STATIC_LEAVE_EPOCH || who.instance.is_some();
    let is_sound = epoch >= STATIC_LEAVE_EPOCH
        && names_itself
        && who.member.len() <= MAX_MEMBER_ID_BYTES
        && fits(&who.instance, MAX_INSTANCE_ID_BYTES)
        && fits(&beat.rack, MAX_RACK_BYTES)
        && joins
        && may_leave;
    if !is_sound {
        return Err(ErrorCode::InvalidRequest);
    }
    let assignor = beat.assignor.as_deref();
    if assignor.is_some_and(|name| Assignor::from_name(name).is_none()) {
        return Err(ErrorCode::UnsupportedAssignor);
    }
    let mut names = beat.names.iter().flatten();
    if names.any(|name| TopicName::new(name).is_err()) {
        return Err(ErrorCode::InvalidTopicException);
    }
    let pattern = beat.pattern.as_deref().filter(|text| !text.is_empty());
    if pattern.is_some_and(|text| pattern::compile(text).is_none()) {
        return Err(ErrorCode::InvalidRegularExpression);
    }
    Ok(())
}

impl ConsumerGroup {
    /// Whether a heartbeat changes nothing but when its member was heard, which is noted. What most heartbeats come to.
    pub(super) fn hear(
        &mut self,
        beat: &ConsumerHeartbeat,
        light: &Light<'_>,
    ) -> Option<HeartbeatAnswer> {
        let says_nothing = beat.names.is_none()
            && beat.pattern.is_none()
            && beat.assignor.is_none()
            && beat.rebalance.is_none()
            && beat.rack.is_none()
            && beat.who.instance.is_none();
        if !says_nothing || light.topics_version != self.topics_seen {
            return None;
        }
        let target_epoch = self.target_epoch;
        let (id, _) = self.members.get_key_value(beat.who.member.as_str())?;
        let id = id.clone();
        let member = self.members.get_mut(&id)?;
        let current = &member.current;
        let is_settled =
            current.state == ReconciliationState::Stable && current.epoch == target_epoch;
        let is_same_client = *member.subscription.client_id == *beat.client_id
            && *member.subscription.client_host == *beat.client_host;
        if !is_settled || !is_same_client || beat.epoch != current.epoch || beat.epoch <= 0 {
            return None;
        }
        member.heard = light.now.monotonic;
        Some(HeartbeatAnswer {
            epoch: member.current.epoch,
            member: id,
            interval: light.settings.consumer_heartbeat,
            assignment: None,
        })
    }

    /// Takes in a heartbeat that [`check`] has passed. After an error the group may have changed all the same, and is to be
    /// thrown away for what it was before.
    pub(super) fn heartbeat(
        &mut self,
        beat: &ConsumerHeartbeat,
        light: &Light<'_>,
    ) -> Result<HeartbeatAnswer, ErrorCode> {
        if beat.epoch < 0 {
            return self.leave(beat, light);
        }
        let is_new = !self.members.contains_key(beat.who.member.as_str());
        let id = match beat.epoch {
            0 => self.join(beat, light)?,
            _ => self.identify(beat)?,
        };
        let Some(member) = self.members.get_mut(&id) else {
            return Err(ErrorCode::UnknownMemberId);
        };
        member.heard = light.now.monotonic;
        let before = member.current.clone();
        let subscription = updated(&member.subscription, beat);
        let changed = is_new && before.epoch == 0 && before.assigned.is_empty()
            || !subscription.reads_as(&member.subscription);
        if subscription != *member.subscription {
            member.subscription = Arc::new(subscription);
            self.check_size(light, is_new)?;
        }
        self.follow_change(changed, light);
        self.reconcile(&id, beat.owned.as_ref(), light);
        let Some(member) = self.members.get(&id) else {
            return Err(ErrorCode::UnknownMemberId);
        };
        let current = &member.current;
        let says_all = beat.owned.is_some()
            && beat.rebalance.is_some()
            && (beat.names.is_some() || beat.pattern.is_some());
        let is_news = beat.epoch == 0 || says_all || current.assigned != before.assigned;
        let waits = current.state != ReconciliationState::Stable;
        Ok(HeartbeatAnswer {
            epoch: current.epoch,
            interval: match waits {
                true => WAITING_HEARTBEAT.min(light.settings.consumer_heartbeat),
                false => light.settings.consumer_heartbeat,
            },
            assignment: is_news.then(|| current.assigned.clone()),
            member: id,
        })
    }

    /// A member that is known, in its epoch, or in the one before with nothing but what it has had since.
    fn identify(&self, beat: &ConsumerHeartbeat) -> Result<Arc<str>, ErrorCode> {
        self.check_instance(beat)?;
        let known = self.members.get_key_value(beat.who.member.as_str());
        let (id, member) = known.ok_or(ErrorCode::UnknownMemberId)?;
        let current = &member.current;
        // The answer that raised the epoch may have been lost.
        let owned = beat.owned.as_ref();
        let missed_answer = beat.epoch == current.previous_epoch
            && beat.epoch < current.epoch
            && owned.is_some_and(|owned| owned.is_within(&current.assigned));
        if beat.epoch == current.epoch || missed_answer {
            Ok(id.clone())
        } else {
            Err(ErrorCode::FencedMemberEpoch)
        }
    }

    fn check_instance(&self, beat: &ConsumerHeartbeat) -> Result<(), ErrorCode> {
        let Some(instance) = &beat.who.instance else {
            return Ok(());
        };
        match self.statics.get(instance.as_str()) {
            None => Err(ErrorCode::UnknownMemberId),
            Some(id) if **id != *beat.who.member => Err(ErrorCode::FencedInstanceId),
            Some(_) => Ok(()),
        }
    }

    /// A member comes, comes back holding nothing, or takes the place of a static one that has left.
    fn join(&mut self, beat: &ConsumerHeartbeat, light: &Light<'_>) -> Result<Arc<str>, ErrorCode> {
        let id: Arc<str> = match beat.who.member.as_str() {
            "" => format!("{:032x}", beat.random).into(),
            named => named.into(),
        };
        let instance = beat.who.instance.as_deref();
        let earlier = instance.and_then(|instance| self.statics.get(instance).cloned());
        if let Some(earlier) = earlier {
            let left = self.members.get(&earlier);
            let left = left.is_some_and(|member| member.current.epoch == STATIC_LEAVE_EPOCH);
            if left {
                if earlier != id && self.members.contains_key(&id) {
                    return Err(ErrorCode::InvalidRequest);
                }
                self.take_over(&earlier, &id);
                return Ok(id);
            }
            if earlier != id {
                return Err(ErrorCode::UnreleasedInstanceId);
            }
        }
        if let Some(member) = self.members.get_mut(&id) {
            // It says that it holds nothing: what it had is free again.
            member.current = Arc::new(Current::new());
            member.revoke_by = None;
            if member.subscription.instance.as_deref() != instance {
                let mut subscription = (*member.subscription).clone();
                let before = subscription.instance.take();
                subscription.instance = instance.map(Arc::from);
                member.subscription = Arc::new(subscription);
                if let Some(before) = before {
                    self.statics.remove(&before);
                }
                if let Some(instance) = instance {
                    self.statics.insert(instance.into(), id.clone());
                }
            }
            return Ok(id);
        }
        if self.members.len() >= light.settings.max_size {
            return Err(ErrorCode::GroupMaxSizeReached);
        }
        if !light.has_room {
            return Err(ErrorCode::PolicyViolation);
        }
        let subscription = Subscription::unsaid(instance.map(Arc::from));
        self.put(id.clone(), Member::new(subscription, light.now.monotonic));
        Ok(id)
    }

    /// What a static member had is its next process's.
    fn take_over(&mut self, earlier: &Arc<str>, id: &Arc<str>) {
        let target = self.targets.get(earlier).cloned();
        let Some(mut member) = self.remove(earlier) else {
            return;
        };
        let mut current = Current::new();
        current.assigned = member.current.assigned.clone();
        member.current = Arc::new(current);
        self.put(id.clone(), member);
        if let Some(target) = target {
            self.targets.insert(id.clone(), target);
        }
    }

    fn leave(
        &mut self,
        beat: &ConsumerHeartbeat,
        light: &Light<'_>,
    ) -> Result<HeartbeatAnswer, ErrorCode> {
        self.check_instance(beat)?;
        let known = self.members.get_key_value(beat.who.member.as_str());
        let id = known.map(|(id, _)| id.clone());
        let id = id.ok_or(ErrorCode::UnknownMemberId)?;
        if beat.epoch == LEAVE_EPOCH {
            self.remove(&id);
            self.follow_change(true, light);
        } else if let Some(member) = self.members.get_mut(&id) {
            let mut current = Current::new();
            current.epoch = STATIC_LEAVE_EPOCH;
            current.assigned = member.current.assigned.clone();
            member.current = Arc::new(current);
            member.revoke_by = None;
            member.heard = light.now.monotonic;
        }
        Ok(HeartbeatAnswer {
            member: id,
            epoch: beat.epoch,
            interval: light.settings.consumer_heartbeat,
            assignment: None,
        })
    }

    /// Members that were not heard for a session, or did not give up in time what they had to, are out. Whether there were any.
    pub(super) fn expire(&mut self, light: &Light<'_>) -> bool {
        let time = light.now.monotonic;
        let late = |member: &Member| {
            member.heard + light.settings.consumer_session <= time
                || member.revoke_by.is_some_and(|by| by <= time)
        };
        let gone = self.members.iter().filter(|(_, member)| late(member));
        let gone: Vec<Arc<str>> = gone.map(|(id, _)| id.clone()).collect();
        for id in &gone {
            self.remove(id);
        }
        if !gone.is_empty() {
            self.follow_change(true, light);
        }
        !gone.is_empty()
    }

    /// Looks at the topics where there is cause to, and gives the partitions out anew where anything has changed.
    fn follow_change(&mut self, changed: bool, light: &Light<'_>) {
        if !changed && light.topics_version == self.topics_seen {
            return;
        }
        let resolved = self.resolve(light.topics);
        self.topics_seen = light.topics_version;
        if !changed && resolved.hash == self.topics_hash {
            return;
        }
        self.topics_hash = resolved.hash;
        // It would take thousands of changes each second for years to come to the end of them.
        self.epoch = self.epoch.saturating_add(1);
        self.retarget(&resolved);
        if self.members.is_empty() {
            self.empty_since_ms = light.now.wall_ms;
        }
    }

    /// Brings a member nearer to the target.
    fn reconcile(&mut self, id: &Arc<str>, owned: Option<&Partitions>, light: &Light<'_>) {
        let Some(member) = self.members.get(id) else {
            return;
        };
        let current = member.current.clone();
        if current.state == ReconciliationState::Stable && current.epoch == self.target_epoch {
            return;
        }
        let partitions = self.target(id);
        let held = self.held_by_others(id, &partitions);
        let target = Target {
            epoch: self.target_epoch,
            partitions: &partitions,
            is_held: &|topic, partition| held.contains(topic, partition),
        };
        let next = step(&current, owned, &target);
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        if next == *current {
            return;
        }
        let goes_on = current.state == ReconciliationState::UnrevokedPartitions
            && next.state == ReconciliationState::UnrevokedPartitions
            && next.epoch == current.epoch;
        if !goes_on {
            let rebalance = member.subscription.rebalance;
            member.revoke_by = revoke_by(light.now.monotonic, &next, rebalance);
        }
        member.current = Arc::new(next);
    }

    fn check_size(&self, light: &Light<'_>, is_new: bool) -> Result<(), ErrorCode> {
        let subscriptions = self
            .members
            .values()
            .map(|member| member.subscription.bytes());
        let patterns = self.members.values();
        let patterns = patterns.filter_map(|member| member.subscription.pattern.as_deref());
        let patterns: std::collections::BTreeSet<&str> = patterns.collect();
        if subscriptions.sum::<usize>() > MAX_GROUP_BYTES {
            return Err(ErrorCode::GroupMaxSizeReached);
        }
        if patterns.len() > MAX_PATTERNS {
            return Err(ErrorCode::InvalidRegularExpression);
        }
        match is_new && !light.has_room {
            true => Err(ErrorCode::PolicyViolation),
            false => Ok(()),
        }
    }
}

/// What the member says of itself now.
fn updated(known: &Subscription, beat: &ConsumerHeartbeat) -> Subscription {
    let mut subscription = known.clone();
    let text = |text: &str, most: usize| -> Arc<str> { cut(text, most).into() };
    subscription.client_id = text(&beat.client_id, MAX_CLIENT_ID_BYTES);
    subscription.client_host = text(&beat.client_host, MAX_CLIENT_ID_BYTES);
    if let Some(rack) = &beat.rack {
        subscription.rack = Some(rack.as_str().into());
    }
    if let Some(rebalance) = beat.rebalance {
        subscription.rebalance = rebalance;
    }
    if let Some(names) = &beat.names {
        let names: std::collections::BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let same = names
            .iter()
            .copied()
            .eq(known.names.iter().map(|name| &**name));
        if !same {
            subscription.names = names.into_iter().map(Arc::from).collect();
        }
    }
    if let Some(pattern) = &beat.pattern {
        let pattern = Some(pattern.as_str()).filter(|pattern| !pattern.is_empty());
        subscription.pattern = pattern.map(Arc::from);
    }
    if let Some(assignor) = &beat.assignor {
        subscription.assignor = Some(assignor.as_str().into());
    }
    subscription
}
