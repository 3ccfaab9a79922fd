//! What happens, and when: the queue that virtual time runs on.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate::metadata::Command;
use quorate::replication::{Acks, IsrOutcome, ProduceOutcome, VerificationGuard};
use quorate::storage::{SyncError, SyncTicket};
use quorate::types::{
    ErrorCode, Incarnation, IsrChange, LeaderEpoch, LogPosition, MonotonicTime, NodeId,
    TopicPartition,
};

use super::network::StreamId;
use super::transactors::TransactionCall;

/// Times are in microseconds, from 0.
pub enum Event {
    /// The fault at this index of the schedule begins.
    Fault(usize),
    FaultOver(usize),
    /// A node's process is started, if it is down.
    Restart {
        node: usize,
    },
    /// A node's timers are looked at.
    Tick {
        node: usize,
        boot: u64,
    },
    Dial {
        node: usize,
        boot: u64,
        leader: usize,
    },
    Chunk {
        connection: u64,
        stream: StreamId,
        bytes: Bytes,
    },
    /// What a cut held up on a stream comes through.
    Resume {
        connection: u64,
        stream: StreamId,
    },
    Datagram {
        connection: u64,
        to_leader: bool,
        bytes: Bytes,
    },
    /// One end of a connection learns that it is over.
    EndClosed {
        connection: u64,
        leader_end: bool,
    },
    FlushAcks {
        connection: u64,
    },
    /// The disk has done what a ticket asks for.
    SyncRun {
        node: usize,
        boot: u64,
        partition: usize,
        ticket: SyncTicket,
    },
    /// The owners of partitions learn that a follower's connection has room again.
    Room {
        node: usize,
        boot: u64,
        follower: usize,
    },
    /// The partition's owner is told.
    SyncTold {
        node: usize,
        boot: u64,
        partition: usize,
        ticket: SyncTicket,
        result: Result<(), SyncError>,
    },
    PromisesRun {
        node: usize,
        boot: u64,
    },
    PromisesTold {
        node: usize,
        boot: u64,
        raised: Vec<(usize, LeaderEpoch)>,
    },
    /// A fence's promises are written, then it is answered.
    FencePersist {
        node: usize,
        boot: u64,
        call: u64,
        answers: Vec<FenceReplied>,
    },
    ToController(ToController),
    ToNode {
        node: usize,
        message: ToNode,
    },
    ControllerTick,
    Commit {
        command: Command,
        origin: Origin,
    },
    Produce(ProduceCall),
    ProduceReply {
        call: ProduceCall,
        result: Result<ProduceOutcome, ErrorCode>,
    },
    ProducerTick(usize),
    ReaderTick(usize),
    TransactorTick(usize),
    CommittedReaderTick,
    Transaction(TransactionCall),
    /// The coordinator is asked whether it may be appended, by this process.
    Verify {
        call: TransactionCall,
        guard: VerificationGuard,
        boot: u64,
    },
    /// And its answer: `None` for no.
    Verified {
        call: TransactionCall,
        guard: Option<VerificationGuard>,
        boot: u64,
    },
    TransactionReply {
        call: TransactionCall,
        result: Result<ProduceOutcome, ErrorCode>,
    },
}

#[derive(Clone, Debug)]
pub enum ToController {
    Heartbeat {
        node: usize,
        incarnation: Incarnation,
    },
    Register {
        node: usize,
        boot: u64,
    },
    Fenced {
        call: u64,
        node: usize,
        incarnation: Incarnation,
        answers: Vec<FenceReplied>,
    },
    /// A leader has handed over, or goes on leading.
    HandedOver {
        node: usize,
        partition: TopicPartition,
        epoch: LeaderEpoch,
        done: bool,
    },
    FenceTimedOut {
        call: u64,
        node: usize,
    },
    /// A process asks up to where the metadata is committed.
    CommittedEnd {
        node: usize,
        boot: u64,
        number: u64,
    },
    ChangeIsr {
        node: usize,
        boot: u64,
        change: IsrChange,
        /// Whether the proposer still waits for the outcome.
        awaited: bool,
    },
}

#[derive(Clone, Debug)]
pub enum ToNode {
    Fence {
        call: u64,
        items: Vec<(TopicPartition, LeaderEpoch)>,
    },
    /// The image after this many commands is on its way.
    Metadata { index: usize },
    /// The leader of `epoch` is to make way for `to`.
    HandOver {
        partition: usize,
        epoch: LeaderEpoch,
        to: NodeId,
    },
    /// What became of a proposal, as far as its proposer learns.
    IsrOutcome {
        boot: u64,
        change: IsrChange,
        outcome: IsrOutcome,
    },
    /// Past what index everything is that was committed before it was asked.
    CommittedEnd { boot: u64, number: u64, end: u64 },
}

/// A replica's answer to a fence: `None` when it has no promise to give.
#[derive(Clone, Copy, Debug)]
pub struct FenceReplied {
    pub partition: TopicPartition,
    pub epoch: LeaderEpoch,
    pub position: Option<(LogPosition, bool)>,
}

#[derive(Clone, Debug)]
pub enum Origin {
    /// The controller's own election driver, in this reign of it.
    Driver(u64),
    Operator,
    Registration,
    Leader {
        node: usize,
        boot: u64,
        change: IsrChange,
        awaited: bool,
    },
}

/// One attempt to produce one batch.
#[derive(Clone, Debug)]
pub struct ProduceCall {
    pub producer: usize,
    /// Which of the producer's batches.
    pub batch: u64,
    pub attempt: u32,
    pub node: usize,
    pub bytes: Bytes,
    pub acks: Acks,
    /// The epoch of the replica that answered it, once one has.
    pub answered_in: LeaderEpoch,
}

impl Event {
    /// The node whose process this is for: it waits while the process is stopped.
    pub fn node(&self) -> Option<usize> {
        match self {
            Event::Tick { node, .. }
            | Event::Dial { node, .. }
            | Event::SyncRun { node, .. }
            | Event::Room { node, .. }
            | Event::SyncTold { node, .. }
            | Event::PromisesRun { node, .. }
            | Event::PromisesTold { node, .. }
            | Event::FencePersist { node, .. }
            | Event::ToNode { node, .. } => Some(*node),
            Event::Produce(call) => Some(call.node),
            Event::Transaction(call) | Event::Verified { call, .. } => Some(call.node),
            _ => None,
        }
    }

    /// Numbers that tell this event from others, for the trace.
    pub fn fingerprint(&self) -> [u64; 4] {
        match self {
            Event::Fault(i) => [1, *i as u64, 0, 0],
            Event::FaultOver(i) => [2, *i as u64, 0, 0],
            Event::Restart { node } => [3, *node as u64, 0, 0],
            Event::Tick { node, boot } => [4, *node as u64, *boot, 0],
            Event::Dial { node, boot, leader } => [5, *node as u64, *boot, *leader as u64],
            Event::Chunk {
                connection,
                stream,
                bytes,
            } => [
                6 + 256 * *stream as u64,
                *connection,
                bytes.len() as u64,
                u64::from(crc32fast::hash(bytes)),
            ],
            Event::Datagram {
                connection,
                to_leader,
                ..
            } => [7, *connection, u64::from(*to_leader), 0],
            Event::EndClosed {
                connection,
                leader_end,
            } => [8, *connection, u64::from(*leader_end), 0],
            Event::FlushAcks { connection } => [9, *connection, 0, 0],
            Event::SyncRun {
                node, partition, ..
            } => [10, *node as u64, *partition as u64, 0],
            Event::SyncTold {
                node,
                partition,
                result,
                ..
            } => [
                11,
                *node as u64,
                *partition as u64,
                u64::from(result.is_ok()),
            ],
            Event::PromisesRun { node, .. } => [12, *node as u64, 0, 0],
            Event::PromisesTold { node, raised, .. } => [13, *node as u64, raised.len() as u64, 0],
            Event::FencePersist { node, call, .. } => [14, *node as u64, *call, 0],
            Event::ToController(message) => match message {
                ToController::Heartbeat { node, .. } => [15, *node as u64, 0, 0],
                ToController::Register { node, boot } => [16, *node as u64, *boot, 0],
                ToController::Fenced {
                    call,
                    node,
                    answers,
                    ..
                } => {
                    let ends = answers
                        .iter()
                        .filter_map(|answer| answer.position)
                        .map(|(last, _)| last.offset.get())
                        .sum();
                    [17, *node as u64, *call, ends]
                }
                ToController::HandedOver {
                    node, epoch, done, ..
                } => [31, *node as u64, epoch.get().into(), u64::from(*done)],
                ToController::FenceTimedOut { call, node } => [18, *node as u64, *call, 0],
                ToController::CommittedEnd { node, boot, number } => {
                    [33, *node as u64, *boot, *number]
                }
                ToController::ChangeIsr { node, change, .. } => [
                    19,
                    *node as u64,
                    change.new_isr.len() as u64,
                    change.min_insync.into(),
                ],
            },
            Event::ToNode { node, message } => match message {
                ToNode::Fence { call, .. } => [20, *node as u64, *call, 0],
                ToNode::Metadata { index } => [21, *node as u64, *index as u64, 0],
                ToNode::HandOver { epoch, to, .. } => {
                    [32, *node as u64, epoch.get().into(), to.get().into()]
                }
                ToNode::IsrOutcome { outcome, .. } => [22, *node as u64, *outcome as u64, 0],
                ToNode::CommittedEnd { number, end, .. } => [34, *node as u64, *number, *end],
            },
            Event::ControllerTick => [23, 0, 0, 0],
            Event::Commit { origin, .. } => [
                24,
                match origin {
                    Origin::Driver(reign) => *reign,
                    Origin::Operator => 1 << 32,
                    Origin::Registration => 2 << 32,
                    Origin::Leader { node, .. } => (3 << 32) + *node as u64,
                },
                0,
                0,
            ],
            Event::Produce(call) => [25, call.producer as u64, call.batch, call.attempt.into()],
            Event::ProduceReply { call, result } => [
                26,
                call.producer as u64,
                call.batch,
                result.map_or(u64::MAX, |outcome| outcome.base.get()),
            ],
            Event::ProducerTick(i) => [27, *i as u64, 0, 0],
            Event::ReaderTick(i) => [28, *i as u64, 0, 0],
            Event::TransactorTick(i) => [33, *i as u64, 0, 0],
            Event::CommittedReaderTick => [34, 0, 0, 0],
            Event::Transaction(call) => [35, call.transactor as u64, call.number, call.attempt],
            Event::Verify { call, .. } => [36, call.transactor as u64, call.number, call.attempt],
            Event::Verified { call, guard, .. } => {
                [37, call.attempt, call.number, u64::from(guard.is_some())]
            }
            Event::TransactionReply { call, result } => [
                38,
                call.transactor as u64,
                call.attempt,
                result.map_or(u64::MAX, |outcome| outcome.base.get()),
            ],
            Event::Room { node, follower, .. } => [29, *node as u64, *follower as u64, 0],
            Event::Resume { connection, stream } => [30, *connection, *stream as u64, 0],
        }
    }
}

/// Events in order of time, and of equal times in the order in which they were planned.
#[derive(Default)]
pub struct Queue {
    events: BTreeMap<(u64, u64), Event>,
    planned: u64,
}

impl Queue {
    pub fn push(&mut self, at: MonotonicTime, event: Event) {
        self.planned += 1;
        self.events.insert((at.as_micros(), self.planned), event);
    }

    pub fn pop(&mut self) -> Option<(MonotonicTime, Event)> {
        let ((at, _), event) = self.events.pop_first()?;
        Some((MonotonicTime::from_micros(at), event))
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }
}
