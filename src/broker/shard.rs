//! An owner thread: it owns some of the node's partitions and is the only one that touches them.
//!
//! A partition's core and log are synchronous, so they run on a thread of their own and may wait for the disk without
//! holding up a network task. Everything else talks to them through a bounded mailbox.

mod compaction;
mod replies;
mod session_lines;
mod sessions;
mod transactions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use self::replies::Replies;
use self::session_lines::{Asked, SessionLines};
use self::sessions::FollowerSession;
use super::clock::{Clock, wall_clock_ms};
use super::event::{Adoption, Event, FramesEvent, HandOverReply, ProduceEvent};
use super::follower_channel::{FollowerChannel, Sending};
use super::inbox::Inbox;
use super::leader_channel::LeaderChannel;
use super::shared::Shared;
use crate::kafka::ProduceOutcome;
use crate::metadata::ElectionStart;
use crate::partition::{
    FenceAnswer, FramesReady, HandOverError, Output, Partition, PartitionView, ProduceRequest,
};
use crate::replication::{AckRefused, FramesRefused, IsrOutcome, Peers};
use crate::storage::{Compacted, CompactionError, SyncError, SyncTicket};
use crate::transport::{CloseReason, LogLimit};
use crate::types::{ErrorCode, IsrChange, LeaderEpoch, NodeId, Offset, SessionId, TopicPartition};
use crate::wire::{Ack, OpenSession, SessionOutcome};

/// Events that wait for one owner thread. At the cap senders wait: a connection then reads no more from its peer.
const MAILBOX_EVENTS: usize = 8192;
/// How many events are handled before syncs, acks and timers get a turn.
const EVENTS_PER_TURN: usize = 256;
/// How often the protocol's timers are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often segments are looked at for retention.
const RETENTION_EVERY: Duration = Duration::from_secs(30);
/// How often it is looked for a partition to compact, while none of this thread's is being compacted.
const COMPACTION_EVERY: Duration = Duration::from_secs(5);

/// A handle to one owner thread.
#[derive(Clone)]
pub(super) struct ShardHandle {
    pub(super) mailbox: mpsc::Sender<Event>,
    /// For what must not wait for room in the mailbox, because its sender is what makes the room.
    pub(super) inbox: Arc<Inbox<Internal>>,
}

/// What other threads of the broker tell an owner thread.
pub(super) enum Internal {
    /// A sync has ended. At most one a partition.
    Synced {
        id: TopicPartition,
        ticket: SyncTicket,
        result: Result<(), SyncError>,
    },
    /// A promise is durable. At most one a partition.
    PromiseDurable {
        id: TopicPartition,
        epoch: LeaderEpoch,
    },
    /// An attempt to change an in-sync set has ended. At most one a partition.
    IsrOutcome {
        attempt: IsrChange,
        outcome: IsrOutcome,
    },
    /// A compaction has run. One at a time.
    Compacted {
        id: TopicPartition,
        outcome: Result<Compacted, CompactionError>,
    },
    /// The connection to a follower has room again. Said once each time an owner thread was turned away.
    FollowerHasRoom { node: NodeId },
}

struct Shard {
    shared: Arc<Shared>,
    clock: Clock,
    partitions: HashMap<TopicPartition, Owned>,
    replies: Replies,
    /// Whether this thread holds back those who catch up, because answers are late.
    holds_back: bool,
    peers: Peers,
    /// The current connection to each leader that is followed.
    leaders: HashMap<NodeId, Arc<LeaderChannel>>,
    inbox: Arc<Inbox<Internal>>,
    last_retention: Instant,
    last_compaction: Instant,
    /// A job is out.
    compacting: bool,
    /// One line a second about sessions that followers want of partitions that are not open here.
    unknown_lines: LogLimit,
}

struct Owned {
    partition: Partition,
    view: watch::Sender<PartitionView>,
    watermark: watch::Sender<Offset>,
    /// The session of each follower, and the connection that it came on. Bounded by the replicas.
    sessions: HashMap<NodeId, FollowerSession>,
    /// Waits for what comes of a hand-over.
    hand_over: Option<HandOverReply>,
    session_lines: SessionLines,
    /// One line a second about this replica's own session.
    anew_lines: LogLimit,
    /// The session that this replica asked for last, and when.
    asked: Option<(SessionId, Instant)>,
}

/// Starts an owner thread. It ends when it is told to stop, or when every handle is gone.
pub(super) fn spawn(
    index: usize,
    shared: Arc<Shared>,
    clock: Clock,
) -> std::io::Result<ShardHandle> {
    let (mailbox, events) = mpsc::channel(MAILBOX_EVENTS);
    let inbox = Arc::new(Inbox::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let shard = Shard {
        shared,
        clock,
        partitions: HashMap::new(),
        replies: Replies::default(),
        holds_back: false,
        peers: Peers::new(),
        leaders: HashMap::new(),
        inbox: inbox.clone(),
        last_retention: Instant::now(),
        last_compaction: Instant::now(),
        compacting: false,
        unknown_lines: LogLimit::default(),
    };
    std::thread::Builder::new()
        .name(format!("partitions-{index}"))
        .spawn(move || runtime.block_on(shard.run(events)))?;
    Ok(ShardHandle { mailbox, inbox })
}

impl Shard {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let inbox = self.inbox.clone();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    if self.handle(event) {
                        return;
                    }
                    for _ in 1..EVENTS_PER_TURN {
                        let Ok(event) = events.try_recv() else { break };
                        if self.handle(event) {
                            return;
                        }
                    }
                }
                () = inbox.arrived() => {}
                _ = tick.tick() => self.handle_tick(),
            }
            self.handle_inbox();
            self.look_at_answers();
        }
    }

    /// True when the thread is to end.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Adopt(adoption) => self.adopt(*adoption),
            Event::Release { id, done } => {
                self.release(id);
                let _ = done.send(());
            }
            Event::State { id, state } => {
                let now = self.clock.now();
                let Some(owned) = self.partitions.get_mut(&id) else {
                    return false;
                };
                let before = owned.partition.followed_leader();
                let connected = state
                    .leader_node()
                    .is_some_and(|leader| self.leaders.contains_key(&leader));
                owned.partition.handle_state(now, &state, connected);
                if let Some(leader) = before
                    && owned.partition.followed_leader() != Some(leader)
                    && let Some(channel) = self.leaders.get(&leader)
                {
                    channel.close_session(id);
                }
                self.drain(id);
            }
            Event::Config { id, config } => {
                if let Some(owned) = self.partitions.get_mut(&id) {
                    owned.partition.handle_config(config);
                }
            }
            Event::DeletedRecords { id, before } => {
                if let Some(owned) = self.partitions.get_mut(&id) {
                    owned
                        .partition
                        .handle_deleted_records(before, wall_clock_ms());
                    self.drain(id);
                }
            }
            Event::EndOfEpoch { id, epoch, reply } => {
                if let Some(owned) = self.partitions.get(&id) {
                    let _ = reply.send(owned.partition.end_of_epoch(epoch));
                }
            }
            Event::MinInsync { id, min_insync } => {
                if let Some(owned) = self.partitions.get_mut(&id) {
                    owned.partition.handle_min_insync(min_insync);
                }
            }
            Event::Produce(produce) => self.handle_produce(*produce),
            Event::Marker(marker) => self.handle_marker(*marker),
            Event::Verification {
                id,
                producer,
                reply,
            } => {
                let _ = reply.send(self.verification(id, producer));
            }
            Event::Producers { id, reply } => {
                let _ = reply.send(self.describe_producers(id));
            }
            Event::OpenSession { channel, open } => self.handle_open_session(channel, &open),
            Event::CloseSession {
                channel,
                id,
                session,
            } => {
                let from = channel.peer.node;
                if let Some(owned) = self.partitions.get_mut(&id)
                    && owned.has_session_on(&channel)
                {
                    owned
                        .partition
                        .handle_session_closed_by_follower(from, session);
                    let is_meant = |known: &FollowerSession| known.session == session;
                    owned.forget_session(from, is_meant, "the follower closed it", &self.shared);
                }
            }
            Event::Acks { channel, acks } => self.handle_acks(&channel, &acks),
            Event::FollowerGone { channel } => self.handle_follower_gone(&channel),
            Event::LeaderConnected { channel } => {
                let leader = channel.peer.node;
                // A connection that is replaced takes its sessions with it.
                self.link_changed(leader, false);
                self.leaders.insert(leader, channel);
                self.link_changed(leader, true);
            }
            Event::LeaderGone { channel } => {
                let leader = channel.peer.node;
                if self
                    .leaders
                    .get(&leader)
                    .is_some_and(|current| current.id == channel.id)
                {
                    self.leaders.remove(&leader);
                    self.link_changed(leader, false);
                }
            }
            Event::Answer { from, id, answer } => {
                let now = self.clock.now();
                if let Some(owned) = self.partitions.get_mut(&id) {
                    owned.partition.handle_answer(now, from, &answer);
                    self.drain(id);
                }
            }
            Event::SessionClosed {
                id,
                session,
                reason,
            } => {
                let now = self.clock.now();
                if let Some(owned) = self.partitions.get_mut(&id) {
                    owned
                        .partition
                        .handle_session_closed_by_leader(now, session, reason);
                    self.drain(id);
                }
            }
            Event::Frames(frames) => self.handle_frames(*frames),
            Event::Fence { items, reply } => {
                let answers = items
                    .into_iter()
                    .map(|(id, epoch)| (id, self.handle_fence(id, epoch)))
                    .collect();
                let _ = reply.send(answers);
            }
            Event::HandOver {
                id,
                epoch,
                to,
                within,
                reply,
            } => self.handle_hand_over(id, (epoch, to), within, reply),
            Event::Damaged { id, cause } => {
                if let Some(owned) = self.partitions.get_mut(&id) {
                    owned.partition.handle_damage(&cause);
                    self.drain(id);
                }
            }
            Event::Heard {
                node,
                at,
                suspicion,
                rtt,
            } => self.peers.handle_heard(node, at, suspicion, rtt),
            Event::Views { reply } => {
                let now = self.clock.now();
                let views = self
                    .partitions
                    .iter()
                    .map(|(&id, owned)| {
                        (id, owned.partition.view(), owned.partition.role_view(now))
                    })
                    .collect();
                let _ = reply.send(views);
            }
            Event::Stop { done } => {
                for id in self.ids() {
                    self.release(id);
                }
                let _ = done.send(());
                return true;
            }
        }
        false
    }

    fn handle_fence(&mut self, id: TopicPartition, epoch: LeaderEpoch) -> Option<FenceAnswer> {
        let owned = self.partitions.get_mut(&id)?;
        let followed = owned.partition.followed_leader();
        let answer = owned.partition.handle_fence(epoch);
        if let FenceAnswer::Promised { .. } = answer
            && let Some(leader) = followed
            && let Some(channel) = self.leaders.get(&leader)
        {
            // An ack of the older epoch that still waits to be sent is dropped with its session.
            channel.close_session(id);
        }
        self.drain(id);
        Some(answer)
    }

    fn handle_hand_over(
        &mut self,
        id: TopicPartition,
        (epoch, to): (LeaderEpoch, NodeId),
        within: Duration,
        reply: HandOverReply,
    ) {
        let deadline = self.clock.now() + within;
        let Some(owned) = self.partitions.get_mut(&id) else {
            let _ = reply.send(Err(HandOverError::NotLeader));
            return;
        };
        match owned.partition.handle_hand_over(epoch, to, deadline) {
            // Who asked before gets no answer, because this one has taken its place.
            Ok(()) => owned.hand_over = Some(reply),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
        self.drain(id);
    }

    fn ids(&self) -> Vec<TopicPartition> {
        self.partitions.keys().copied().collect()
    }

    fn adopt(&mut self, adoption: Adoption) {
        let id = adoption.partition.id();
        self.partitions.insert(
            id,
            Owned {
                partition: adoption.partition,
                view: adoption.view,
                watermark: adoption.watermark,
                sessions: HashMap::new(),
                hand_over: None,
                session_lines: SessionLines::default(),
                anew_lines: LogLimit::default(),
                asked: None,
            },
        );
        self.drain(id);
    }

    fn release(&mut self, id: TopicPartition) {
        let Some(mut owned) = self.partitions.remove(&id) else {
            return;
        };
        for node in owned.sessions.keys().copied().collect::<Vec<_>>() {
            owned.forget_session(node, |_| true, "the replica is closed here", &self.shared);
        }
        if let Some(leader) = owned.partition.followed_leader()
            && let Some(channel) = self.leaders.get(&leader)
        {
            channel.close_session(id);
        }
        let (outputs, mut log) = owned.partition.close();
        if let Err(error) = log.close() {
            tracing::error!(partition = %id, cause = %error, "cannot sync the log at its end");
        }
        for output in outputs {
            if let Output::Complete {
                ticket,
                result: Err(error),
            } = output
            {
                self.replies
                    .answer(self.clock.now(), ticket, Err(error), true);
            }
        }
        self.replies.forget(id);
    }

    fn handle_produce(&mut self, produce: ProduceEvent) {
        let Some(owned) = self.partitions.get_mut(&produce.id) else {
            let _ = produce.reply.send(Err(ErrorCode::UnknownTopicOrPartition));
            return;
        };
        let epoch = owned.partition.view().leader_epoch;
        if produce.in_epoch.is_some_and(|wanted| wanted != epoch) {
            let _ = produce.reply.send(Err(ErrorCode::NotLeaderOrFollower));
            return;
        }
        let now = self.clock.now();
        let ticket = self
            .replies
            .wait(now, produce.id, produce.acks, produce.reply);
        let request = ProduceRequest {
            ticket,
            batch: produce.batch,
            acks: produce.acks,
            deadline: produce.deadline,
            guard: produce.guard,
        };
        owned.partition.handle_produce(now, request, &self.peers);
        self.drain(produce.id);
    }

    fn handle_open_session(&mut self, channel: Arc<FollowerChannel>, open: &OpenSession) {
        let id = open.partition;
        let peer = channel.peer;
        let Some(owned) = self.partitions.get_mut(&id) else {
            session_lines::unknown(&self.unknown_lines, peer.node, open);
            channel.send_control(&crate::wire::ControlMessage::SessionAnswer(
                crate::wire::SessionAnswer {
                    session: open.session,
                    leader_epoch: open.leader_epoch,
                    outcome: SessionOutcome::Refused(crate::wire::SessionRefusal::UnknownPartition),
                },
            ));
            return;
        };
        if let Some(replaced) = owned.sessions.get(&peer.node)
            && replaced.channel.id != channel.id
        {
            // What comes over an older connection, or from a process that is gone, may come last. Then the replaced session is
            // the living one, and its follower must learn that it has to open another; to all others this says nothing.
            replaced
                .channel
                .send_control(&crate::wire::ControlMessage::CloseSession {
                    session: replaced.session,
                    reason: crate::wire::SessionRefusal::Overloaded,
                });
        }
        let cause = match owned.sessions.get(&peer.node) {
            None => "it had none",
            Some(known) if known.channel.id == channel.id => "it began another",
            Some(_) => "it came over another connection",
        };
        owned.forget_session(peer.node, |_| true, cause, &self.shared);
        owned.sessions.insert(
            peer.node,
            FollowerSession {
                channel,
                session: open.session,
                outstanding: 0,
                catching_up: 0,
                asked: Asked {
                    follower: peer.node,
                    session: open.session,
                    at: Instant::now(),
                    cause,
                },
            },
        );
        owned.partition.handle_open_session(peer, open);
        self.drain(id);
    }

    fn handle_acks(&mut self, channel: &Arc<FollowerChannel>, acks: &[(TopicPartition, Ack)]) {
        let now = self.clock.now();
        let from = channel.peer.node;
        for (id, ack) in acks {
            let Some(owned) = self.partitions.get_mut(id) else {
                continue;
            };
            // What waited here while the follower dialled anew is of a session that is no more.
            if !owned.has_session_on(channel) {
                continue;
            }
            match owned.partition.handle_ack(now, channel.peer, ack) {
                Ok(confirmed) => {
                    if confirmed.bytes > 0 {
                        self.peers.handle_delivered(from, now, confirmed.waited);
                    }
                    if let Some(session) = owned.sessions.get_mut(&from)
                        && session.session == ack.session
                    {
                        session.release(confirmed.bytes, &self.shared);
                    }
                }
                Err(AckRefused::Stale) => {}
                Err(impossible @ AckRefused::Impossible { .. }) => {
                    tracing::error!(
                        partition = %id, follower = %from, cause = %impossible,
                        "closing the replication connection: the follower claims what does not exist"
                    );
                    channel.give_up(
                        CloseReason::ProtocolError,
                        "an ack was for what does not exist",
                    );
                }
            }
            self.drain(*id);
        }
    }

    fn handle_follower_gone(&mut self, gone: &Arc<FollowerChannel>) {
        let from = gone.peer.node;
        for (_, owned) in self.partitions.iter_mut() {
            let Some(session) = owned.sessions.get(&from) else {
                continue;
            };
            if session.channel.id == gone.id {
                let session = session.session;
                owned
                    .partition
                    .handle_session_closed_by_follower(from, session);
                if let Some(ended) = owned.sessions.remove(&from) {
                    let lines = &mut owned.session_lines;
                    lines.closed(owned.partition.id(), &ended.asked, "its connection ended");
                }
            }
        }
    }

    fn link_changed(&mut self, leader: NodeId, connected: bool) {
        let now = self.clock.now();
        for id in self.ids() {
            if let Some(owned) = self.partitions.get_mut(&id) {
                owned.partition.handle_link(now, leader, connected);
            }
            self.drain(id);
        }
    }

    fn handle_frames(&mut self, event: FramesEvent) {
        let now = self.clock.now();
        if let Some(owned) = self.partitions.get_mut(&event.id) {
            let refused = owned.partition.handle_frames(
                now,
                event.session,
                event.leader_epoch,
                event.high_watermark,
                event.frames,
            );
            if let Err(refused @ FramesRefused::DoesNotFit { .. }) = refused
                && let Some(suppressed) = owned.anew_lines.allow()
            {
                let asked = owned.asked.filter(|(session, _)| *session == event.session);
                tracing::warn!(
                    partition = %event.id, session = %event.session,
                    leader = owned.partition.followed_leader().map(tracing::field::display),
                    cause = %refused, lived_ms = asked.map(|(_, at)| at.elapsed().as_millis() as u64),
                    suppressed, "opening the session anew"
                );
            }
            self.drain(event.id);
        }
        // The frames are in the log, or dropped: their room is free.
        drop(event.budget);
    }

    fn handle_inbox(&mut self) {
        for internal in self.inbox.drain() {
            match internal {
                Internal::Synced { id, ticket, result } => {
                    if let Some(owned) = self.partitions.get_mut(&id) {
                        owned.partition.handle_synced(ticket, result);
                        self.drain(id);
                    }
                }
                Internal::IsrOutcome { attempt, outcome } => {
                    let now = self.clock.now();
                    if let Some(owned) = self.partitions.get_mut(&attempt.partition) {
                        owned.partition.handle_isr_outcome(now, &attempt, outcome);
                    }
                }
                Internal::PromiseDurable { id, epoch } => {
                    let now = self.clock.now();
                    if let Some(owned) = self.partitions.get_mut(&id) {
                        owned.partition.handle_promise_durable(now, epoch);
                        self.drain(id);
                    }
                }
                Internal::Compacted { id, outcome } => self.handle_compacted(id, outcome),
                Internal::FollowerHasRoom { node } => {
                    for id in self.ids() {
                        if let Some(owned) = self.partitions.get_mut(&id) {
                            owned.partition.handle_unblocked(node);
                        }
                        self.drain(id);
                    }
                }
            }
        }
    }

    fn handle_tick(&mut self) {
        self.replies.handle_tick();
        let now = self.clock.now();
        let retention = self.last_retention.elapsed() >= RETENTION_EVERY;
        for id in self.ids() {
            if let Some(owned) = self.partitions.get_mut(&id) {
                owned.partition.handle_tick(now, &self.peers);
                if retention {
                    owned.partition.handle_retention(wall_clock_ms());
                }
            }
            self.drain(id);
        }
        if retention {
            self.last_retention = Instant::now();
        }
        if !self.compacting && self.last_compaction.elapsed() >= COMPACTION_EVERY {
            self.last_compaction = Instant::now();
            self.compact();
        }
    }

    /// Carries out what a partition asks for.
    fn drain(&mut self, id: TopicPartition) {
        let Some(owned) = self.partitions.get_mut(&id) else {
            return;
        };
        while let Some(output) = owned.partition.poll_output() {
            match output {
                Output::Sync(ticket) => {
                    let inbox = self.inbox.clone();
                    self.shared
                        .group_commit
                        .submit(ticket, move |ticket, result| {
                            inbox.push(Internal::Synced { id, ticket, result });
                        });
                }
                Output::PersistPromise(epoch) => self.shared.promises.push((id, epoch)),
                Output::OpenSession(hello) => {
                    owned.asked = Some((hello.open.session, Instant::now()));
                    if let Some(channel) = self.leaders.get(&hello.to) {
                        channel.open_session(hello.open);
                    }
                }
                Output::Ack { to, ack } => {
                    if let Some(channel) = self.leaders.get(&to) {
                        channel.ack(ack);
                    }
                }
                Output::Answer {
                    to,
                    answer,
                    catch_up,
                } => {
                    if let Some(session) = owned.sessions.get(&to)
                        && session.session == answer.session
                    {
                        owned.session_lines.answered(id, &session.asked, &answer);
                        let watermark = owned.partition.high_watermark();
                        session.channel.send_answer(id, answer, catch_up, watermark);
                    }
                }
                Output::FramesReady(order) => owned.send(order),
                Output::Watermark(frames) => {
                    if let Some(session) = owned.sessions.get(&frames.to)
                        && session.session == frames.session
                    {
                        session.channel.send_frames(id, frames);
                    }
                }
                Output::Complete { ticket, result } => {
                    let log_start_offset = owned.partition.view().log_start;
                    let result = result.map(|outcome| ProduceOutcome {
                        base_offset: outcome.base,
                        log_append_time_ms: None,
                        log_start_offset,
                    });
                    let undisturbed = !self.holds_back && !self.shared.catch_up_share.is_used();
                    self.replies
                        .answer(self.clock.now(), ticket, result, undisturbed);
                }
                Output::ProposeIsr(change) => self.shared.isr_changes.push(change),
                Output::HandedOver { to, result } => {
                    match &result {
                        Ok(()) => tracing::info!(partition = %id, %to, "handed over"),
                        Err(error) => {
                            tracing::warn!(partition = %id, %to, cause = %error, "not handed over");
                        }
                    }
                    if let Some(reply) = owned.hand_over.take() {
                        let _ = reply.send(result);
                    }
                }
                Output::Resign {
                    leader_epoch,
                    partition_epoch,
                } => self.shared.resignations.push(ElectionStart {
                    partition: id,
                    leader_epoch,
                    partition_epoch,
                }),
                Output::ViewChanged => owned.publish(),
                Output::Failed {
                    cause,
                    stop_process,
                } => self.shared.handle_failure(id, &cause, stop_process),
            }
        }
    }
}

impl Owned {
    fn send(&mut self, order: FramesReady) {
        let id = self.partition.id();
        let Some(session) = self
            .sessions
            .get_mut(&order.to)
            .filter(|session| session.session == order.session)
        else {
            self.partition
                .handle_session_closed_by_follower(order.to, order.session);
            return;
        };
        let sending = match order.catch_up {
            false => Sending::Live,
            true if self.partition.lacks_replicas() => Sending::NeededCatchUp,
            true => Sending::CatchUp,
        };
        if !session.channel.has_room(sending) {
            self.partition.handle_blocked(order);
            return;
        }
        if let Some(frames) = self.partition.take_frames(order) {
            session.outstanding += frames.bytes;
            if frames.catch_up {
                session.catching_up += frames.bytes;
            }
            session.channel.send_frames(id, frames);
        }
    }

    /// Drops a follower's session record, if it is the one meant, and gives its room back.
    fn publish(&self) {
        let view = self.partition.view();
        let before = self.view.send_replace(view);
        let same_answers = before.high_watermark == view.high_watermark
            && before.is_leader == view.is_leader
            && before.leader_epoch == view.leader_epoch
            && before.watermark_known == view.watermark_known;
        if !same_answers {
            self.watermark.send_replace(view.high_watermark);
        }
    }
}

/// A promise to make durable.
pub(super) type Promise = (TopicPartition, LeaderEpoch);
