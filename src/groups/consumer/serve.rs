//! How a coordinator serves such groups: one change of a group at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use super::group::ConsumerGroup;
use super::heartbeat::{Light, check};
use super::log_format::{changes, group_key};
use super::request::ConsumerHeartbeat;
use super::topics::Topics;
use crate::groups::coordinator::Coordinator;
use crate::groups::effects::{Effects, Then, Ticket};
use crate::groups::group::{Group, GroupState};
use crate::groups::limits::Settings;
use crate::groups::log_format::group_key as classic_key;
use crate::groups::request::{Answer, Now};
use crate::record::LogRecord;
use crate::types::{ErrorCode, MonotonicTime};

/// A group with what is under way in it.
#[derive(Debug, Default)]
pub(in crate::groups) struct Serving {
    pub(in crate::groups) group: ConsumerGroup,
    /// Whether the log has anything of it.
    pub(in crate::groups) is_written: bool,
    /// A change of it is being written.
    pub(in crate::groups) is_writing: bool,
    /// Not later than the first moment at which a member may be late.
    pub(in crate::groups) alarm: Option<MonotonicTime>,
    /// What came meanwhile: at most one heartbeat of each connection.
    waiting: VecDeque<(Ticket, ConsumerHeartbeat)>,
}

impl Serving {
    /// Nothing of it is worth keeping.
    fn is_nothing(&self) -> bool {
        !self.is_written && !self.is_writing && self.waiting.is_empty() && self.group.is_empty()
    }

    /// Nobody is in it, for all that is known.
    pub(in crate::groups) fn is_idle(&self) -> bool {
        self.group.is_empty() && !self.is_writing && self.waiting.is_empty()
    }
}

/// What follows when a change has been written, or has not.
#[derive(Debug)]
pub(in crate::groups) struct ConsumerChanged {
    /// Who asked for it, if anybody did, and the answer.
    ticket: Option<(Ticket, Answer)>,
    before: Box<ConsumerGroup>,
}

impl Coordinator {
    /// The cluster's topics have changed, or are known for the first time. Groups look at them with their next heartbeats.
    pub fn handle_topics(&mut self, topics: Arc<dyn Topics>) {
        self.topics = topics;
        self.topics_version += 1;
    }

    pub(in crate::groups) fn consumer_heartbeat(
        &mut self,
        now: Now,
        ticket: Ticket,
        id: &str,
        beat: ConsumerHeartbeat,
    ) {
        let ready = check(&beat).and_then(|()| match self.groups.contains_key(id) {
            true => Ok(()),
            false if beat.epoch == 0 => self.make(now, id),
            false => Err(ErrorCode::UnknownMemberId),
        });
        if let Err(error) = ready {
            self.effects.refuse(ticket, error);
            return;
        }
        self.change_in_light(now, id, |group, light, effects| {
            group.consumer_heartbeat(ticket, beat, light, effects);
        });
    }

    /// Has a group changed by what is known of the cluster's topics.
    fn change_in_light(
        &mut self,
        now: Now,
        id: &str,
        change: impl FnOnce(&mut Group, &Light<'_>, &mut Effects),
    ) {
        let (topics, topics_version) = (self.topics.clone(), self.topics_version);
        let has_room = self.has_room();
        self.change(id, |group, settings, effects| {
            let light = Light {
                now,
                topics: &*topics,
                topics_version,
                settings,
                has_room,
            };
            change(group, &light, effects);
        });
    }

    /// Takes up what has waited for a change to be written.
    pub(in crate::groups) fn go_on_with_consumers(&mut self, now: Now, id: &Arc<str>) {
        loop {
            let Some(serving) = self.groups.get_mut(id).and_then(|g| g.consumer.as_mut()) else {
                return;
            };
            if serving.is_writing {
                return;
            }
            let Some((ticket, beat)) = serving.waiting.pop_front() else {
                break;
            };
            self.consumer_heartbeat(now, ticket, id, beat);
        }
        self.change(id, |group, settings, _| {
            group.forget_unused_consumers();
            group.settle_consumers(settings);
        });
    }

    pub(in crate::groups) fn expire_consumers(&mut self, now: Now, id: &Arc<str>) {
        self.change_in_light(now, id, Group::expire_consumers);
    }
}

impl Group {
    /// The members that it has, if it is such a group.
    pub(in crate::groups) fn consumers(&self) -> Option<&ConsumerGroup> {
        self.consumer.as_ref().map(|serving| &serving.group)
    }

    fn consumer_heartbeat(
        &mut self,
        ticket: Ticket,
        beat: ConsumerHeartbeat,
        light: &Light<'_>,
        effects: &mut Effects,
    ) {
        if self.consumer.is_none() && beat.epoch != 0 {
            // Also of a group of the older protocol: such a member is not in it.
            effects.refuse(ticket, ErrorCode::UnknownMemberId);
            return;
        }
        if self.state != GroupState::Empty || !self.pending.is_empty() {
            let error = match self.state {
                GroupState::Dead => ErrorCode::CoordinatorNotAvailable,
                // What Kafka says of a group whose members use the older protocol.
                _ => ErrorCode::GroupIdNotFound,
            };
            effects.refuse(ticket, error);
            return;
        }
        let is_classic = self.generation > 0;
        let serving = self.consumer.get_or_insert_default();
        if serving.is_writing {
            serving.waiting.push_back((ticket, beat));
            return;
        }
        if let Some(answer) = serving.group.hear(&beat, light) {
            effects.answer(ticket, Answer::Beat(answer));
            return;
        }
        let before = serving.group.clone();
        match serving.group.heartbeat(&beat, light) {
            Ok(answer) => {
                let mut records = changes(&self.id, &before, &serving.group);
                if is_classic {
                    // An empty group of the older protocol becomes one of the newer: it has one record only.
                    self.become_unknown_to_classics();
                    records.push(LogRecord {
                        key: classic_key(&self.id),
                        value: None,
                    });
                }
                let answer = Some((ticket, Answer::Beat(answer)));
                self.write_consumers(records, answer, before, effects);
            }
            Err(error) => {
                serving.group = before;
                effects.refuse(ticket, error);
            }
        }
        self.forget_unused_consumers();
        self.settle_consumers(light.settings);
    }

    fn expire_consumers(&mut self, light: &Light<'_>, effects: &mut Effects) {
        // While a change is written nobody is out: at the next look it is.
        let Some(serving) = self.consumer.as_mut().filter(|serving| !serving.is_writing) else {
            return;
        };
        let before = serving.group.clone();
        if serving.group.expire(light) {
            let records = changes(&self.id, &before, &serving.group);
            self.write_consumers(records, None, before, effects);
        }
        self.settle_consumers(light.settings);
    }

    fn write_consumers(
        &mut self,
        records: Vec<LogRecord>,
        ticket: Option<(Ticket, Answer)>,
        before: ConsumerGroup,
        effects: &mut Effects,
    ) {
        if records.is_empty() {
            if let Some((ticket, answer)) = ticket {
                effects.answer(ticket, answer);
            }
            return;
        }
        if let Some(serving) = &mut self.consumer {
            serving.is_writing = true;
        }
        let before = Box::new(before);
        let then = Then::ConsumerChanged(ConsumerChanged { ticket, before });
        self.write(records, then, effects);
    }

    pub(in crate::groups) fn consumers_changed(
        &mut self,
        changed: ConsumerChanged,
        result: Result<(), ErrorCode>,
        settings: &Settings,
        effects: &mut Effects,
    ) {
        if let Some(serving) = &mut self.consumer {
            serving.is_writing = false;
            match result {
                Ok(()) => serving.is_written = true,
                Err(_) => serving.group = *changed.before,
            }
        }
        if let Some((ticket, answer)) = changed.ticket {
            effects.reply(ticket, result.map(|()| answer));
        }
        self.settle_consumers(settings);
    }

    /// A client of the older protocol joins: a group that nobody is in may change to that.
    pub(in crate::groups) fn leave_newer_protocol(
        &mut self,
        effects: &mut Effects,
    ) -> Result<(), ErrorCode> {
        let Some(serving) = &self.consumer else {
            return Ok(());
        };
        if !serving.is_idle() {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        self.consumer = None;
        let gone = LogRecord {
            key: group_key(&self.id),
            value: None,
        };
        self.write(vec![gone], Then::Nothing, effects);
        Ok(())
    }

    /// As [`Group::settle`], after what may have made a deadline earlier.
    fn settle_consumers(&mut self, settings: &Settings) {
        if let Some(serving) = &mut self.consumer {
            serving.alarm = serving.group.alarm(settings.consumer_session);
        }
        self.settle();
    }

    /// The log has been read. Of an empty group that was changed from one protocol to the other, the log may still have both.
    pub(in crate::groups) fn consumers_loaded(&mut self, now: Now, settings: &Settings) {
        let Some(serving) = &mut self.consumer else {
            return;
        };
        if !serving.is_written || !self.members.is_empty() {
            self.consumer = None;
            return;
        }
        serving.group.loaded(now.monotonic);
        self.become_unknown_to_classics();
        self.settle_consumers(settings);
    }

    fn forget_unused_consumers(&mut self) {
        if self
            .consumer
            .as_ref()
            .is_some_and(|serving| serving.is_nothing())
        {
            self.consumer = None;
        }
    }
}
