//! Who waits for what became of a batch.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::Shard;
use crate::broker::live_answers::LiveAnswers;
use crate::kafka::ProduceOutcome;
use crate::replication::{Acks, ProduceTicket};
use crate::types::{ErrorCode, MonotonicTime, TopicPartition};

pub(super) type Reply = oneshot::Sender<Result<ProduceOutcome, ErrorCode>>;

/// The produce requests of an owner thread that wait for an answer; each partition bounds its own.
#[derive(Default)]
pub(super) struct Replies {
    by_ticket: HashMap<ProduceTicket, Waiting>,
    last_ticket: u64,
    live: LiveAnswers,
}

struct Waiting {
    reply: Reply,
    id: TopicPartition,
    acks: Acks,
    since: MonotonicTime,
}

impl Replies {
    /// The ticket by which the request is answered.
    pub(super) fn wait(
        &mut self,
        now: MonotonicTime,
        id: TopicPartition,
        acks: Acks,
        reply: Reply,
    ) -> ProduceTicket {
        self.last_ticket += 1;
        let ticket = ProduceTicket(self.last_ticket);
        let waiting = Waiting {
            reply,
            id,
            acks,
            since: now,
        };
        self.by_ticket.insert(ticket, waiting);
        if acks == Acks::All {
            self.live.handle_asked(now, ticket, id);
        }
        ticket
    }

    /// Answers a request. `undisturbed` while no follower catches up.
    pub(super) fn answer(
        &mut self,
        now: MonotonicTime,
        ticket: ProduceTicket,
        result: Result<ProduceOutcome, ErrorCode>,
        undisturbed: bool,
    ) {
        let Some(waiting) = self.by_ticket.remove(&ticket) else {
            return;
        };
        if waiting.acks == Acks::All && result.is_ok() {
            let waited = now.since(waiting.since);
            self.live.handle_answered(waiting.id, waited, undisturbed);
        }
        // Who asked may have gone.
        let _ = waiting.reply.send(result);
    }

    /// The partition leaves this thread; its requests have been answered.
    pub(super) fn forget(&mut self, id: TopicPartition) {
        self.live.forget(id);
    }

    /// Whether answers are late, so that those who catch up are to be held back.
    pub(super) fn are_late(&mut self, now: MonotonicTime) -> bool {
        let by_ticket = &self.by_ticket;
        let is_waiting = |ticket| by_ticket.contains_key(&ticket);
        self.live.are_late(now, is_waiting)
    }

    pub(super) fn handle_tick(&mut self) {
        self.live.handle_tick();
    }
}

impl Shard {
    /// Holds back those who catch up while answers are late.
    pub(super) fn look_at_answers(&mut self) {
        let share = &self.shared.catch_up_share;
        let late = self.replies.are_late(self.clock.now()) && (self.holds_back || share.is_used());
        if late == self.holds_back {
            return;
        }
        self.holds_back = late;
        if late {
            share.hold_back();
            return;
        }
        share.let_go();
        let sessions = self.partitions.values().flat_map(|owned| &owned.sessions);
        for (node, session) in sessions {
            if session.channel.takes_turned_away() {
                self.shared.tell_all_of_room(*node);
            }
        }
    }
}
