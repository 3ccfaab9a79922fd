//! What the owner threads are told.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::follower_channel::FollowerChannel;
use super::leader_channel::LeaderChannel;
use crate::kafka::ProduceOutcome;
use crate::partition::{FenceAnswer, HandOverError, Partition, PartitionView, RoleView};
use crate::record::{Batch, Marker};
use crate::replication::{Acks, ProducerDescription, Verification, VerificationGuard};
use crate::storage::LogConfig;
use crate::types::{
    ErrorCode, Incarnation, LeaderEpoch, MonotonicTime, NodeId, Offset, PartitionState, ProducerId,
    SessionId, TopicPartition,
};
use crate::wal::Frame;
use crate::wire::{Ack, OpenSession, SessionAnswer, SessionRefusal};

/// An event for one owner thread. Order matters within a partition, and a mailbox keeps it.
pub(super) enum Event {
    /// A partition was opened: this thread owns it from now on.
    Adopt(Box<Adoption>),
    /// The partition leaves this node; its log is closed before `done`.
    Release {
        id: TopicPartition,
        done: oneshot::Sender<()>,
    },
    State {
        id: TopicPartition,
        state: Box<PartitionState>,
    },
    Config {
        id: TopicPartition,
        config: LogConfig,
    },
    /// The cluster has committed that the records below `before` are deleted.
    DeletedRecords {
        id: TopicPartition,
        before: Offset,
    },
    /// A client asks how an epoch ended in the log.
    EndOfEpoch {
        id: TopicPartition,
        epoch: LeaderEpoch,
        reply: oneshot::Sender<Option<(LeaderEpoch, Offset)>>,
    },
    /// The topic's configuration asks for this `min.insync.replicas`.
    MinInsync {
        id: TopicPartition,
        min_insync: usize,
    },
    Produce(Box<ProduceEvent>),
    /// A transaction ends.
    Marker(Box<MarkerEvent>),
    /// Whether the next batch of a producer, in this epoch of it, needs its coordinator's word.
    Verification {
        id: TopicPartition,
        producer: (ProducerId, i16),
        reply: oneshot::Sender<Result<Verification, ErrorCode>>,
    },
    /// A client asks what is known of producers.
    Producers {
        id: TopicPartition,
        reply: oneshot::Sender<Result<Vec<ProducerDescription>, ErrorCode>>,
    },
    OpenSession {
        channel: Arc<FollowerChannel>,
        open: Box<OpenSession>,
    },
    CloseSession {
        channel: Arc<FollowerChannel>,
        id: TopicPartition,
        session: SessionId,
    },
    Acks {
        channel: Arc<FollowerChannel>,
        acks: Vec<(TopicPartition, Ack)>,
    },
    /// A follower's connection is gone, and with it every session on it.
    FollowerGone {
        channel: Arc<FollowerChannel>,
    },
    LeaderConnected {
        channel: Arc<LeaderChannel>,
    },
    LeaderGone {
        channel: Arc<LeaderChannel>,
    },
    Answer {
        from: NodeId,
        id: TopicPartition,
        answer: Box<SessionAnswer>,
    },
    SessionClosed {
        id: TopicPartition,
        session: SessionId,
        reason: SessionRefusal,
    },
    Frames(Box<FramesEvent>),
    Fence {
        items: Vec<(TopicPartition, LeaderEpoch)>,
        reply: oneshot::Sender<Vec<(TopicPartition, Option<FenceAnswer>)>>,
    },
    /// The controller wants another replica to lead. Answered once that one holds everything, or cannot.
    HandOver {
        id: TopicPartition,
        epoch: LeaderEpoch,
        to: NodeId,
        within: Duration,
        reply: HandOverReply,
    },
    /// A reader on another thread found that the log has lost something.
    Damaged {
        id: TopicPartition,
        cause: String,
    },
    Heard {
        node: NodeId,
        at: MonotonicTime,
        suspicion: Duration,
        /// The smoothed round trip.
        rtt: Duration,
    },
    Views {
        reply: oneshot::Sender<Vec<(TopicPartition, PartitionView, RoleView)>>,
    },
    /// Answer everyone, write the last checkpoint, end.
    Stop {
        done: oneshot::Sender<()>,
    },
}

pub(super) type HandOverReply = oneshot::Sender<Result<(), HandOverError>>;

pub(super) struct Adoption {
    pub(super) partition: Partition,
    pub(super) view: watch::Sender<PartitionView>,
    pub(super) watermark: watch::Sender<Offset>,
}

pub(super) struct ProduceEvent {
    pub(super) id: TopicPartition,
    pub(super) batch: Batch,
    pub(super) acks: Acks,
    pub(super) deadline: MonotonicTime,
    /// Append only while this node leads in this very epoch. `None`: in any.
    pub(super) in_epoch: Option<LeaderEpoch>,
    /// Of a batch that may begin a transaction, once its coordinator was asked.
    pub(super) guard: Option<VerificationGuard>,
    pub(super) reply: oneshot::Sender<Result<ProduceOutcome, ErrorCode>>,
}

pub(super) struct MarkerEvent {
    pub(super) id: TopicPartition,
    pub(super) marker: Marker,
    pub(super) deadline: MonotonicTime,
    pub(super) reply: oneshot::Sender<Result<ProduceOutcome, ErrorCode>>,
}

pub(super) struct FramesEvent {
    pub(super) id: TopicPartition,
    pub(super) session: SessionId,
    pub(super) leader_epoch: LeaderEpoch,
    pub(super) high_watermark: Offset,
    pub(super) frames: Vec<Frame>,
    /// Room in the connection's receive budget, given back when the frames are in the log.
    pub(super) budget: Option<OwnedSemaphorePermit>,
}

/// A follower's hello was authenticated by its certificate; this names its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerProcess {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
}
