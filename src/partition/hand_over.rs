//! A leader makes way for another replica, and nobody loses anything.
//!
//! While it hands over, the leader takes nothing new, and produce requests wait. So its log stands still, and as soon as the
//! other replica holds all of it durably, an election may pick that one: none can hold more. What waits is sent away when the
//! next leader is known here, and not when the reign ends: its producers would look for a leader where there is none yet.
//!
//! It is a courtesy and no promise. If the controller goes away in the middle, the deadline passes, what waits is appended
//! in the order in which it came, and the reign goes on.

use std::collections::VecDeque;

use thiserror::Error;

use super::Partition;
use super::output::Output;
use super::produce::ProduceRequest;
use super::replica::Role;
use crate::replication::{Peers, ProduceTicket};
use crate::types::{ErrorCode, Fill, LeaderEpoch, MonotonicTime, NodeId};

/// Produce requests that wait while a leader hands over. The next one is told to come again.
pub(super) const MAX_HELD: usize = 4_096;
/// The bytes of their batches.
pub(super) const MAX_HELD_BYTES: usize = 16 * 1024 * 1024;

/// Why a leader does not hand over. It goes on leading, if it does lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HandOverError {
    #[error("this replica does not lead in that epoch")]
    NotLeader,
    #[error("the other replica has no session, or is not in sync")]
    NotFollowing,
    #[error("the other replica did not catch up in time")]
    TimedOut,
}

/// A hand-over that is under way.
pub(super) struct HandOver {
    to: NodeId,
    /// When the reign goes on if it has not ended.
    deadline: MonotonicTime,
    /// `to` holds everything, and the caller knows.
    is_announced: bool,
    /// The reign has ended; who comes next is not known yet.
    has_ended: bool,
    /// In the order in which they came.
    held: VecDeque<ProduceRequest>,
    held_bytes: usize,
    /// One was turned away, so all that follow are: an idempotent producer's batches must not overtake each other.
    is_full: bool,
}

impl HandOver {
    pub(super) fn fills(&self) -> [Fill; 2] {
        [
            Fill::new("requests held back", self.held.len(), MAX_HELD),
            Fill::new("bytes held back", self.held_bytes, MAX_HELD_BYTES),
        ]
    }

    fn hold(&mut self, request: ProduceRequest) -> Result<(), ProduceTicket> {
        let bytes = self.held_bytes + request.batch.bytes.len();
        if self.is_full || self.held.len() >= MAX_HELD || bytes > MAX_HELD_BYTES {
            self.is_full = true;
            return Err(request.ticket);
        }
        self.held_bytes = bytes;
        self.held.push_back(request);
        Ok(())
    }
}

impl Partition {
    /// The controller wants `to` to lead. If this replica leads in `epoch` and `to` is in sync, new produce requests wait
    /// from here on, and [`Output::HandedOver`] says once when `to` holds everything, or that it did not until `deadline`. They
    /// wait until the next leader is known; if the reign has not ended by `deadline`, they are appended and it goes on.
    ///
    /// Asked again, it begins with the new `to` and `deadline`; what waits goes on waiting.
    pub fn handle_hand_over(
        &mut self,
        epoch: LeaderEpoch,
        to: NodeId,
        deadline: MonotonicTime,
    ) -> Result<(), HandOverError> {
        let Role::Leader(leader) = &self.role else {
            return Err(HandOverError::NotLeader);
        };
        if leader.epoch() != epoch || to == self.me.node {
            return Err(HandOverError::NotLeader);
        }
        if !leader.is_in_sync(to) {
            return Err(HandOverError::NotFollowing);
        }
        let hand_over = self.hand_over.get_or_insert(HandOver {
            to,
            deadline,
            is_announced: false,
            has_ended: false,
            held: VecDeque::new(),
            held_bytes: 0,
            is_full: false,
        });
        hand_over.to = to;
        hand_over.deadline = deadline;
        hand_over.is_announced = false;
        self.announce_hand_over();
        Ok(())
    }

    /// Takes a produce request in if it has to wait; gives it back if it has not.
    pub(super) fn hold_back(&mut self, request: ProduceRequest) -> Option<ProduceRequest> {
        let Some(hand_over) = &mut self.hand_over else {
            return Some(request);
        };
        if let Err(ticket) = hand_over.hold(request) {
            self.refuse(ticket, ErrorCode::ThrottlingQuotaExceeded);
        }
        None
    }

    /// Says that the other replica holds everything, as soon as it does.
    pub(super) fn announce_hand_over(&mut self) {
        if let Some(hand_over) = &mut self.hand_over
            && !hand_over.is_announced
            && let Role::Leader(leader) = &self.role
            && leader.is_in_sync(hand_over.to)
            && leader.holds_everything(hand_over.to)
        {
            hand_over.is_announced = true;
            self.outputs.push_back(Output::HandedOver {
                to: hand_over.to,
                result: Ok(()),
            });
        }
    }

    /// Time passes.
    pub(super) fn look_after_hand_over(&mut self, now: MonotonicTime, peers: &Peers) {
        let Some(hand_over) = &mut self.hand_over else {
            return;
        };
        let is_over = now >= hand_over.deadline;
        if is_over && hand_over.has_ended {
            self.end_hand_over(ErrorCode::NotLeaderOrFollower);
            return;
        }
        let is_lost =
            matches!(&self.role, Role::Leader(leader) if !leader.is_in_sync(hand_over.to));
        let error = if hand_over.is_announced {
            // An election is about to begin, with the other replica or without it.
            None
        } else if is_over {
            Some(HandOverError::TimedOut)
        } else {
            is_lost.then_some(HandOverError::NotFollowing)
        };
        if let Some(error) = error {
            self.outputs.push_back(Output::HandedOver {
                to: hand_over.to,
                result: Err(error),
            });
        }
        if is_over || error.is_some() {
            self.go_on_leading(now, peers);
            return;
        }
        let (overdue, held): (VecDeque<_>, _) = std::mem::take(&mut hand_over.held)
            .into_iter()
            .partition(|request| request.deadline <= now);
        hand_over.held = held;
        // Their bytes go on counting: a hand-over is short.
        for request in overdue {
            self.refuse(request.ticket, ErrorCode::RequestTimedOut);
        }
    }

    /// The reign goes on: what has waited is appended as if it had come now.
    fn go_on_leading(&mut self, now: MonotonicTime, peers: &Peers) {
        let Some(hand_over) = self.hand_over.take() else {
            return;
        };
        for request in hand_over.held {
            self.handle_produce(now, request, peers);
        }
    }

    /// The reign ends. Where the election was asked for, what has waited goes on waiting until that has an outcome.
    pub(super) fn interrupt_hand_over(&mut self, error: ErrorCode) {
        match &mut self.hand_over {
            Some(hand_over)
                if hand_over.is_announced && error == ErrorCode::NotLeaderOrFollower =>
            {
                hand_over.has_ended = true;
            }
            _ => self.end_hand_over(error),
        }
    }

    /// A state was taken in: if it names a leader, what has waited since the reign ended is sent there.
    pub(super) fn hand_over_to_next_leader(&mut self) {
        let is_led = self
            .state
            .as_ref()
            .is_some_and(|state| state.leader.is_some());
        if is_led && self.hand_over.as_ref().is_some_and(|ended| ended.has_ended) {
            self.end_hand_over(ErrorCode::NotLeaderOrFollower);
        }
    }

    /// What has waited is answered `error`.
    pub(super) fn end_hand_over(&mut self, error: ErrorCode) {
        let Some(hand_over) = self.hand_over.take() else {
            return;
        };
        if !hand_over.is_announced {
            self.outputs.push_back(Output::HandedOver {
                to: hand_over.to,
                result: Err(HandOverError::NotLeader),
            });
        }
        for request in hand_over.held {
            self.refuse(request.ticket, error);
        }
    }
}
