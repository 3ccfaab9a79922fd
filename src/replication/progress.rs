//! What a leader knows of one follower.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::{Appointment, LogPosition, MonotonicTime, Offset, SessionId};
use crate::wire::Ack;

/// The most frame bytes that one send order asks for: small enough that a partition's owner is never long at one
/// follower, large enough that a stream chunk is full.
pub(super) const SEND_BYTES: usize = 256 * 1024;

/// One follower's current session, from the leader's side. A new session replaces it whole, so nothing that was learnt
/// under an old session can be counted under a new one.
#[derive(Debug)]
pub(super) struct Progress {
    /// The follower's node, data directory and process.
    pub(super) replica: Appointment,
    pub(super) session: SessionId,
    /// It lost what it acknowledged while it was in the in-sync set, and has not left that since.
    pub(super) log_lost: bool,
    /// The end of what the follower holds durably, by an ack of this session. Starts at nothing, whatever an earlier
    /// session acknowledged; only rises; never above the leader's own end.
    pub(super) durable: LogPosition,
    /// The end of what it says that it has received. For display.
    pub(super) received: Offset,
    /// The cursor: where the next frame to send starts. One cursor from the first catch-up frame to the live tail, so there
    /// is no seam between the two.
    pub(super) next: LogPosition,
    /// What was sent and not acknowledged, oldest first.
    unacknowledged: VecDeque<Sent>,
    /// The sum of the sizes in `unacknowledged`.
    unacknowledged_bytes: usize,
    flow: Flow,
    /// Whether a send order is with the caller. At most one is, so that frames leave in order.
    ordered: bool,
    /// Set when the link had no room; cleared when it has again.
    blocked: bool,
    /// The last high watermark that went out on this session.
    pub(super) watermark_sent: Offset,
    /// When its last ack of this session arrived.
    pub(super) heard_at: MonotonicTime,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    /// Where it ends.
    end: LogPosition,
    bytes: usize,
    at: MonotonicTime,
}

/// What an ack confirms of what was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// Of frames.
    pub bytes: usize,
    /// The longest that one of them was under way, by the leader's latest look at the clock when it was sent: up to a tick too
    /// long.
    pub waited: Duration,
}

/// On which lane a session's frames travel. Catch-up must not hold up other partitions' live frames, and no live frame may
/// overtake a catch-up frame of its own partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    CatchUp,
    /// The cursor has reached the tail; live frames wait until the last catch-up frame is acknowledged.
    Draining,
    Live,
}

impl Progress {
    /// A session whose frames start at `next`. It may go live at once if the log ends there.
    pub(super) fn new(
        replica: Appointment,
        session: SessionId,
        next: LogPosition,
        end: LogPosition,
    ) -> Progress {
        Progress {
            replica,
            session,
            log_lost: false,
            durable: LogPosition::START,
            received: Offset::ZERO,
            next,
            unacknowledged: VecDeque::new(),
            unacknowledged_bytes: 0,
            flow: if next == end {
                Flow::Live
            } else {
                Flow::CatchUp
            },
            ordered: false,
            blocked: false,
            watermark_sent: Offset::ZERO,
            heard_at: MonotonicTime::ZERO,
        }
    }

    /// Takes the next send order, if there is something to send and nothing in its way.
    pub(super) fn take_order(&mut self, end: LogPosition) -> bool {
        if self.ordered || self.blocked || self.next == end || self.flow == Flow::Draining {
            return false;
        }
        self.ordered = true;
        true
    }

    pub(super) fn is_catching_up(&self) -> bool {
        self.flow != Flow::Live
    }

    /// Frames up to `to` went out, `bytes` of them. The leader's log ends at `end`.
    pub(super) fn handle_sent(
        &mut self,
        now: MonotonicTime,
        to: LogPosition,
        bytes: usize,
        end: LogPosition,
    ) {
        self.ordered = false;
        self.next = to;
        self.unacknowledged.push_back(Sent {
            end: to,
            bytes,
            at: now,
        });
        self.unacknowledged_bytes += bytes;
        if self.flow == Flow::CatchUp && self.next == end {
            self.flow = Flow::Draining;
        }
    }

    /// The link had no room for the order.
    pub(super) fn handle_blocked(&mut self) {
        self.ordered = false;
        self.blocked = true;
    }

    pub(super) fn handle_unblocked(&mut self) {
        self.blocked = false;
    }

    /// Counts an ack that was found to be of this session.
    pub(super) fn handle_ack(&mut self, now: MonotonicTime, ack: &Ack) -> Confirmed {
        self.durable = self.durable.max(ack.durable);
        self.received = self.received.max(ack.received);
        let mut confirmed = Confirmed::default();
        while let Some(&sent) = self.unacknowledged.front() {
            if sent.end > self.durable {
                break;
            }
            self.unacknowledged.pop_front();
            confirmed.bytes += sent.bytes;
            confirmed.waited = confirmed.waited.max(now.since(sent.at));
        }
        self.unacknowledged_bytes -= confirmed.bytes;
        if self.flow == Flow::Draining && self.unacknowledged.is_empty() {
            self.flow = Flow::Live;
        }
        confirmed
    }

    /// Bytes sent and not yet acknowledged as durable.
    pub(super) fn unacknowledged_bytes(&self) -> usize {
        self.unacknowledged_bytes
    }
}
