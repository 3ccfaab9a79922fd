//! The follower's end of a replication connection, as the owner threads see it: where hellos and acks go out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::event::PeerProcess;
use crate::types::{SessionId, TopicPartition};
use crate::wire::{Ack, ControlMessage, OpenSession};

/// Control messages that wait for the connection; beyond it the connection is closed and dialled anew.
const MAX_WAITING_CONTROL_MESSAGES: usize = 16_384;

/// One live connection to one leader.
#[derive(Debug)]
pub(super) struct LeaderChannel {
    /// Tells this connection from an earlier or later one to the same leader.
    pub(super) id: u64,
    pub(super) peer: PeerProcess,
    control: mpsc::Sender<Bytes>,
    state: Mutex<State>,
    acks_waiting: Notify,
    /// Cancelled to close the connection.
    pub(super) broken: CancellationToken,
}

/// Bounded by the partitions that this node follows there: one session of each.
#[derive(Debug, Default)]
struct State {
    partitions: HashMap<SessionId, TopicPartition>,
    sessions: HashMap<TopicPartition, SessionId>,
    /// Acks are cumulative, so a newer one replaces the one that still waits.
    acks: HashMap<SessionId, Ack>,
}

impl LeaderChannel {
    /// The channel, and the queue of encoded control messages that the connection's task writes out.
    pub(super) fn new(id: u64, peer: PeerProcess) -> (LeaderChannel, mpsc::Receiver<Bytes>) {
        let (control, messages) = mpsc::channel(MAX_WAITING_CONTROL_MESSAGES);
        let channel = LeaderChannel {
            id,
            peer,
            control,
            state: Mutex::default(),
            acks_waiting: Notify::new(),
            broken: CancellationToken::new(),
        };
        (channel, messages)
    }

    /// Sends a hello for one partition. Its session replaces the partition's earlier one on this connection.
    pub(super) fn open_session(&self, open: OpenSession) {
        {
            let mut state = self.lock();
            if let Some(old) = state.sessions.insert(open.partition, open.session) {
                state.partitions.remove(&old);
                state.acks.remove(&old);
            }
            state.partitions.insert(open.session, open.partition);
        }
        self.send_control(&ControlMessage::OpenSession(open));
    }

    /// This node no longer follows the partition there.
    pub(super) fn close_session(&self, id: TopicPartition) {
        let closed = {
            let mut state = self.lock();
            let session = state.sessions.remove(&id);
            if let Some(session) = session {
                state.partitions.remove(&session);
                state.acks.remove(&session);
            }
            session
        };
        if let Some(session) = closed {
            self.send_control(&ControlMessage::CloseSession {
                session,
                reason: crate::wire::SessionRefusal::NotReplica,
            });
        }
    }

    /// The partition that a session is for; `None` for one that was replaced or never opened.
    pub(super) fn partition_of(&self, session: SessionId) -> Option<TopicPartition> {
        self.lock().partitions.get(&session).copied()
    }

    pub(super) fn ack(&self, ack: Ack) {
        {
            let mut state = self.lock();
            if !state.partitions.contains_key(&ack.session) {
                return;
            }
            state.acks.insert(ack.session, ack);
        }
        self.acks_waiting.notify_one();
    }

    /// Waits for acks and takes those that are there, as many as are written at once.
    pub(super) async fn next_acks(&self) -> Vec<Ack> {
        loop {
            let acks = self.take_acks();
            if !acks.is_empty() {
                return acks;
            }
            self.acks_waiting.notified().await;
        }
    }

    fn take_acks(&self) -> Vec<Ack> {
        let mut state = self.lock();
        if state.acks.len() <= Ack::MAX_AT_ONCE {
            return state.acks.drain().map(|(_, ack)| ack).collect();
        }
        let some: Vec<SessionId> = state.acks.keys().take(Ack::MAX_AT_ONCE).copied().collect();
        some.iter()
            .filter_map(|session| state.acks.remove(session))
            .collect()
    }

    fn send_control(&self, message: &ControlMessage) {
        let sent = self.control.try_send(message.encode());
        // A queue that is closed belongs to a connection that has just ended.
        if let Err(TrySendError::Full(_)) = sent
            && !self.broken.is_cancelled()
        {
            tracing::warn!(
                leader = %self.peer.node,
                "closing the replication connection: the leader does not read its control messages"
            );
            self.broken.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one insertion or removal, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        EpochHistory, Incarnation, LeaderEpoch, LogPosition, NodeId, Offset, PartitionIndex,
        TopicId,
    };

    const EPOCH: LeaderEpoch = LeaderEpoch::new(3).unwrap();
    const PARTITION: TopicPartition = TopicPartition {
        topic: TopicId::from_random_bits(1),
        partition: PartitionIndex(0),
    };

    fn channel() -> (LeaderChannel, mpsc::Receiver<Bytes>) {
        let peer = PeerProcess {
            node: NodeId::new(1).unwrap(),
            incarnation: Incarnation::from_random_bits(1),
        };
        LeaderChannel::new(1, peer)
    }

    fn open(session: u64) -> OpenSession {
        OpenSession {
            partition: PARTITION,
            leader_epoch: EPOCH,
            session: SessionId::from_random_bits(session),
            durable: LogPosition::START,
            epochs: EpochHistory::default(),
            epochs_complete: true,
            log_lost: false,
        }
    }

    fn ack(session: u64, offset: u64) -> Ack {
        let offset = Offset::new(offset).unwrap();
        Ack {
            session: SessionId::from_random_bits(session),
            leader_epoch: EPOCH,
            durable: LogPosition::new(offset, EPOCH),
            received: offset,
        }
    }

    #[test]
    fn of_acks_the_newest_goes_out_and_none_of_a_session_that_was_replaced() {
        let (channel, _control) = channel();
        channel.open_session(open(1));
        channel.ack(ack(1, 5));
        channel.ack(ack(1, 9));
        assert_eq!(channel.take_acks(), [ack(1, 9)]);
        channel.ack(ack(1, 10));
        channel.open_session(open(2));
        channel.ack(ack(1, 11));
        assert_eq!(channel.take_acks(), []);
        channel.ack(ack(2, 7));
        assert_eq!(channel.take_acks(), [ack(2, 7)]);
    }

    #[test]
    fn a_control_message_that_finds_no_room_ends_the_connection_and_is_not_just_dropped() {
        let (channel, mut control) = channel();
        for session in 0..MAX_WAITING_CONTROL_MESSAGES as u64 {
            channel.open_session(open(session));
        }
        assert!(!channel.broken.is_cancelled());
        channel.open_session(open(u64::MAX));
        assert!(channel.broken.is_cancelled());
        let waiting = std::iter::from_fn(|| control.try_recv().ok()).count();
        assert_eq!(waiting, MAX_WAITING_CONTROL_MESSAGES);
    }
}
