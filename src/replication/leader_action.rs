//! What the leader of a partition asks of its caller.

use std::collections::VecDeque;

use super::ack_tracker::ProduceTicket;
use super::leader::ProduceOutcome;
use crate::types::{ErrorCode, IsrChange, LeaderEpoch, LogPosition, NodeId, Offset, SessionId};
use crate::wire::{SessionAnswer, SessionOutcome, SessionRefusal};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaderAction {
    /// Tell a follower how its session begins, in front of its first frames: on the lane that they take, which is a
    /// catch-up lane if `catch_up`. A refusal is followed by none and may take any way.
    Answer {
        to: NodeId,
        answer: SessionAnswer,
        catch_up: bool,
    },
    /// Read up to `max_bytes` of whole frames from `from` on, at least one, and send them under `session`; then call
    /// [`super::Leader::handle_sent`], or [`super::Leader::handle_blocked`] where the link has no room.
    Send {
        to: NodeId,
        session: SessionId,
        from: LogPosition,
        max_bytes: usize,
        catch_up: bool,
    },
    /// Send the high watermark alone, behind what is under way: on another lane it could overtake the session's answer, and a
    /// follower whose session has not begun takes none.
    SendWatermark {
        to: NodeId,
        session: SessionId,
        catch_up: bool,
    },
    /// A produce request is done.
    Complete {
        ticket: ProduceTicket,
        result: Result<ProduceOutcome, ErrorCode>,
    },
    /// The high watermark, or whether it is known at all, has changed.
    WatermarkMoved,
    /// Propose this change to the controller, and tell [`super::Leader::handle_isr_outcome`] what came of it. Never more than one at
    /// a time.
    ProposeIsr(IsrChange),
}

impl LeaderAction {
    /// Tells a follower that its session is over.
    pub(super) fn refuse(
        to: NodeId,
        session: SessionId,
        leader_epoch: LeaderEpoch,
        why: SessionRefusal,
    ) -> LeaderAction {
        LeaderAction::Answer {
            to,
            answer: SessionAnswer {
                session,
                leader_epoch,
                outcome: SessionOutcome::Refused(why),
            },
            catch_up: false,
        }
    }
}

pub(super) fn complete_err(
    actions: &mut VecDeque<LeaderAction>,
    ticket: ProduceTicket,
    error: ErrorCode,
) {
    actions.push_back(LeaderAction::Complete {
        ticket,
        result: Err(error),
    });
}

pub(super) fn complete_ok(
    actions: &mut VecDeque<LeaderAction>,
    ticket: ProduceTicket,
    base: Offset,
) {
    actions.push_back(LeaderAction::Complete {
        ticket,
        result: Ok(ProduceOutcome { base }),
    });
}
