//! What the log says of followers' sessions: of each kind a line a second about each follower's session of a partition.

use std::collections::HashMap;
use std::time::Instant;

use crate::transport::LogLimit;
use crate::types::{NodeId, SessionId, TopicPartition};
use crate::wire::{OpenSession, SessionAnswer, SessionOutcome};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Opened,
    Refused,
    Closed,
}

/// Of one partition. Bounded by the nodes that ever followed it.
#[derive(Debug, Default)]
pub(super) struct SessionLines {
    limits: HashMap<(NodeId, Kind), LogLimit>,
}

/// A session that a follower has asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) follower: NodeId,
    pub(super) session: SessionId,
    pub(super) at: Instant,
    /// Why, as far as the leader can see.
    pub(super) cause: &'static str,
}

impl Asked {
    fn elapsed_ms(&self) -> u64 {
        self.at.elapsed().as_millis() as u64
    }
}

impl SessionLines {
    fn allow(&mut self, follower: NodeId, kind: Kind) -> Option<u64> {
        self.limits.entry((follower, kind)).or_default().allow()
    }

    pub(super) fn answered(&mut self, id: TopicPartition, asked: &Asked, answer: &SessionAnswer) {
        let kind = match answer.outcome {
            SessionOutcome::Refused(_) => Kind::Refused,
            _ => Kind::Opened,
        };
        let follower = asked.follower;
        let Some(suppressed) = self.allow(follower, kind) else {
            return;
        };
        let (cause, took_ms) = (asked.cause, asked.elapsed_ms());
        match &answer.outcome {
            SessionOutcome::Truncate(from) => tracing::info!(
                partition = %id, %follower, epoch = %answer.leader_epoch, session = %answer.session, %from,
                cause, took_ms, suppressed, "session opened"
            ),
            SessionOutcome::Reset { start, .. } => tracing::warn!(
                partition = %id, %follower, epoch = %answer.leader_epoch, session = %answer.session, from = %start,
                cause, took_ms, suppressed,
                "session opened; the follower's log is begun anew, because it shares nothing with what is kept here"
            ),
            SessionOutcome::Refused(refusal) => tracing::info!(
                partition = %id, %follower, epoch = %answer.leader_epoch, session = %answer.session,
                cause = ?refusal, took_ms, suppressed, "session refused"
            ),
        }
    }

    pub(super) fn closed(&mut self, id: TopicPartition, asked: &Asked, cause: &'static str) {
        let follower = asked.follower;
        if let Some(suppressed) = self.allow(follower, Kind::Closed) {
            tracing::info!(
                partition = %id, %follower, session = %asked.session, cause,
                lived_ms = asked.elapsed_ms(), suppressed, "session closed"
            );
        }
    }
}

/// A follower wants a session of a partition that is not open here.
pub(super) fn unknown(limit: &LogLimit, follower: NodeId, open: &OpenSession) {
    if let Some(suppressed) = limit.allow() {
        tracing::info!(
            partition = %open.partition, %follower, epoch = %open.leader_epoch, session = %open.session,
            cause = "the partition is not open here", took_ms = 0, suppressed, "session refused"
        );
    }
}
