//! What a partition asks of the world around it.

use bytes::Bytes;

use super::hand_over::HandOverError;
use crate::replication::{LeaderView, ProduceOutcome, ProduceTicket, SessionState};
use crate::storage::SyncTicket;
use crate::types::{
    ErrorCode, IsrChange, LeaderEpoch, LogPosition, NodeId, Offset, PartitionEpoch, SessionId,
};
use crate::wire::{Ack, OpenSession, SessionAnswer};

/// An effect for the caller to carry out. The order of outputs is the order in which they must take effect.
pub enum Output {
    /// Run this on any thread, then hand it back through `Partition::handle_synced`. At most one is out at a time.
    Sync(SyncTicket),
    /// Make this promise durable, then call `Partition::handle_promise_durable`.
    PersistPromise(LeaderEpoch),
    /// Send a hello to the leader.
    OpenSession(Hello),
    /// Send an ack to the leader that the session is with.
    Ack { to: NodeId, ack: Ack },
    /// Answer a follower's hello, on the lane that the session's first frames will take.
    Answer {
        to: NodeId,
        answer: SessionAnswer,
        catch_up: bool,
    },
    /// There are frames to send: call `Partition::take_frames` if the link has room, or `Partition::handle_blocked`.
    FramesReady(FramesReady),
    /// Send the high watermark alone, on the lane that live frames take.
    Watermark(Frames),
    /// A produce request is done.
    Complete {
        ticket: ProduceTicket,
        result: Result<ProduceOutcome, ErrorCode>,
    },
    /// Propose this change to the controller, then call `Partition::handle_isr_outcome`. One is out at a time.
    ProposeIsr(IsrChange),
    /// What came of `Partition::handle_hand_over`: `to` holds durably all that this leader does, or the reign goes on.
    HandedOver {
        to: NodeId,
        result: Result<(), HandOverError>,
    },
    /// Ask the controller to elect another leader of this partition, if it still stands as these epochs say. It may be said
    /// again when nothing comes of it.
    Resign {
        leader_epoch: LeaderEpoch,
        partition_epoch: PartitionEpoch,
    },
    /// What readers may see has changed: ask for `Partition::view`.
    ViewChanged,
    /// The log can no longer be written or trusted: `cause` is for the operator. The partition has stepped down and holds
    /// still; after a failed fsync the whole process must stop.
    Failed { cause: String, stop_process: bool },
}

/// A hello to the leader of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub to: NodeId,
    pub open: OpenSession,
}

/// An order to send frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramesReady {
    pub to: NodeId,
    pub session: SessionId,
    pub from: LogPosition,
    pub max_bytes: usize,
    pub catch_up: bool,
}

/// Frames under way to a follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    pub to: NodeId,
    pub session: SessionId,
    pub leader_epoch: LeaderEpoch,
    pub high_watermark: Offset,
    /// Whole frames; none for a watermark alone.
    pub frames: Vec<Bytes>,
    /// The sum of their lengths.
    pub bytes: usize,
    pub catch_up: bool,
}

/// A replica's answer to a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceAnswer {
    /// It has stepped down and promised, in memory; the caller makes the promise durable before it replies.
    Promised {
        /// The end of its durable log.
        last: LogPosition,
        /// Whether its log can be trusted to hold what it acknowledged.
        eligible: bool,
    },
    /// It has promised this higher epoch already, or serves in the very epoch.
    Refused { promised: LeaderEpoch },
}

/// What others may know of a partition on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionView {
    pub leader_epoch: LeaderEpoch,
    /// Whether this node leads in `leader_epoch`.
    pub is_leader: bool,
    /// Whether `high_watermark` is the true one: the leader's epoch start is committed.
    pub watermark_known: bool,
    pub high_watermark: Offset,
    /// What those may read who ask for committed transactions only: everything below it. From `log_start` to
    /// `high_watermark`.
    pub last_stable_offset: Offset,
    pub log_start: Offset,
    pub log_end: Offset,
    /// The disk has no room for records: it should lead only where no other can.
    pub is_short_of_space: bool,
}

impl PartitionView {
    /// Whether a client that takes this node for the leader, in the epoch `believed` if it names one, may be served. One that
    /// knows an older or a newer epoch than this node is told so before anything else: it, or this node, has missed an
    /// election.
    pub fn check_leader(&self, believed: Option<LeaderEpoch>) -> Result<(), ErrorCode> {
        if let Some(believed) = believed {
            if believed < self.leader_epoch {
                return Err(ErrorCode::FencedLeaderEpoch);
            }
            if believed > self.leader_epoch {
                return Err(ErrorCode::UnknownLeaderEpoch);
            }
        }
        if !self.is_leader {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        Ok(())
    }
}

/// A partition's role, in detail, for views and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleView {
    Idle,
    Leader(LeaderView),
    Follower {
        leader: NodeId,
        epoch: LeaderEpoch,
        session: SessionState,
    },
    Failed,
}
