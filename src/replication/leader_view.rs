//! What a leader shows of what it knows.

use std::time::Duration;

use crate::types::{
    Appointment, Incarnation, LeaderEpoch, LogPosition, MonotonicTime, NodeId, SessionId,
};

/// What a leader counts of one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedAck {
    /// The process that opened the session.
    pub replica: Appointment,
    pub session: SessionId,
    /// What it holds durably, by its acks of this session.
    pub durable: LogPosition,
}

/// A snapshot of what the leader knows, for views and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderView {
    pub epoch: LeaderEpoch,
    pub epoch_started: bool,
    pub waiting_produces: usize,
    pub followers: Vec<FollowerView>,
    /// The in-sync set by which commits are counted.
    pub isr: Vec<NodeId>,
    /// The set that is proposed, and counts too until the controller has decided.
    pub proposed_isr: Option<Vec<NodeId>>,
    /// For how long nothing has been committed although something waits; zero when nothing does.
    pub stalled: Duration,
}

/// What the leader knows of one follower. No session, no claim: a follower that has none is not shown as caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerView {
    pub node: NodeId,
    /// The process that has the session open; `None` without one.
    pub incarnation: Option<Incarnation>,
    /// `None` without a session; never "0" for a follower that cannot be heard.
    pub lag_records: Option<u64>,
    /// Bytes of frames that it does not hold durably: exact once all of them have been sent. `None` without a session, and
    /// from the leader alone while some wait to be read from the log; the partition fills that in, roughly.
    pub lag_bytes: Option<u64>,
    pub durable: Option<LogPosition>,
    pub unacknowledged_bytes: usize,
    pub catching_up: bool,
    pub caught_up_at: Option<MonotonicTime>,
}
