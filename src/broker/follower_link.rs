//! A follower's connection as its leader serves it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, ConnectionError};

use super::event::Event;
use super::follower_channel::{FOLLOWER_BUDGET_BYTES, FollowerChannel};
use super::heartbeat::{self, LastHeard, suspicion_of};
use super::lane_copies::{self, CopySwitch};
use super::leader_connection::{control_reader, read_control, write_control};
use super::links::LinkDirection;
use super::shared::Shared;
use crate::transport::{
    CloseReason, CopySink, Ear, LOOK_EVERY, LaneOptions, LaneReader, LaneWriter, LogLimit,
    RECORD_BYTES, RecordReader,
};
use crate::types::{Appointment, ClusterId, NodeId, SessionId, TopicPartition};
use crate::wire::{Ack, ControlMessage, Hello, LaneCopy, LaneHeader, PROTOCOL_VERSION, Welcome};

/// Lanes for live frames. A lost packet holds up one of them.
const LIVE_LANES: u16 = 16;
/// Lanes for catch-up frames, at lower priority.
const CATCH_UP_LANES: u16 = 2;
const LIVE_PRIORITY: i32 = 1;
const CATCH_UP_PRIORITY: i32 = 0;
/// How long a connection may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which nothing was heard for so long is closed if the follower has a newer one: it belongs to a process that
/// is gone, or its end was lost on the way. Else what it holds would stay until QUIC's idle timeout.
const REPLACED_PATIENCE: Duration = Duration::from_secs(2);
// A follower's acks are the records of its ack stream.
const _: () = assert!(Ack::BYTES == RECORD_BYTES);

/// The most sessions of one connection: one of each partition that a cluster can have.
const MAX_SESSIONS: usize = crate::metadata::MAX_PARTITIONS;

pub(super) static NEXT_CHANNEL: AtomicU64 = AtomicU64::new(1);

/// Which partition each session of a connection is for. At most [`MAX_SESSIONS`].
#[derive(Default)]
pub(super) struct Sessions {
    partitions: HashMap<SessionId, TopicPartition>,
    current: HashMap<TopicPartition, SessionId>,
}

impl Sessions {
    /// False at the cap.
    fn insert(&mut self, session: SessionId, id: TopicPartition) -> bool {
        if let Some(old) = self.current.insert(id, session) {
            self.partitions.remove(&old);
        }
        self.partitions.insert(session, id);
        self.partitions.len() <= MAX_SESSIONS
    }

    fn remove(&mut self, session: SessionId) -> Option<TopicPartition> {
        let id = self.partitions.remove(&session)?;
        self.current.remove(&id);
        Some(id)
    }
}

/// What the log says of a follower's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum FollowerLine {
    Connected,
    Refused,
    Disconnected,
}

/// Why this end closes a connection: as the follower is told, and in words.
type End = (CloseReason, String);

/// Whatever the follower did that it must not. Says nothing where the connection is gone already.
fn broken(cause: impl ToString) -> End {
    (CloseReason::ProtocolError, cause.to_string())
}

/// Serves a connection whose certificate says that it comes from `node`, until it ends.
pub(super) async fn serve(
    shared: Arc<Shared>,
    cluster: ClusterId,
    node: NodeId,
    connection: Connection,
) {
    let begin = std::time::Instant::now();
    let address = connection.remote_address();
    let greeting = greet(&shared, cluster, node, &connection);
    let (line, (reason, cause)) = match tokio::time::timeout(HELLO_TIMEOUT, greeting).await {
        Ok(Ok((channel, parts))) => {
            let channel = Arc::new(channel);
            if let Some(suppressed) = shared.follower_lines.allow((FollowerLine::Connected, node)) {
                tracing::info!(
                    follower = %node, %address, incarnation = %channel.peer.incarnation,
                    cause = shared.links.why_again(LinkDirection::ToFollower, node),
                    took_ms = begin.elapsed().as_millis() as u64, suppressed, "follower connected"
                );
            }
            let (reason, cause) = run(&shared, &connection, &channel, parts).await;
            channel.broken.cancel();
            let idle = is_done(&connection);
            shared
                .links
                .remove(LinkDirection::ToFollower, node, channel.id, &cause, idle);
            for shard in shared.shards() {
                let channel = channel.clone();
                let _ = shard.mailbox.send(Event::FollowerGone { channel }).await;
            }
            (FollowerLine::Disconnected, (reason, cause))
        }
        Ok(Err(end)) => (FollowerLine::Refused, end),
        Err(_) => {
            let cause = format!("no hello within {} s", HELLO_TIMEOUT.as_secs());
            (FollowerLine::Refused, (CloseReason::TimedOut, cause))
        }
    };
    let detail = match reason {
        // The reason itself says it.
        CloseReason::ShuttingDown => "",
        _ => &cause,
    };
    // Whoever only looks which protocols there are leaves before it says hello, and is no follower.
    let is_look = line == FollowerLine::Refused && is_done(&connection);
    reason.close(&connection, detail);
    if is_look {
        return;
    }
    let Some(suppressed) = shared.follower_lines.allow((line, node)) else {
        return;
    };
    let lasted_ms = begin.elapsed().as_millis() as u64;
    if line == FollowerLine::Refused {
        tracing::warn!(
            follower = %node, %address, cause, took_ms = lasted_ms, suppressed, "follower refused"
        );
    } else {
        tracing::info!(
            follower = %node, address = %connection.remote_address(), cause, lived_ms = lasted_ms,
            suppressed, "follower disconnected"
        );
    }
}

/// Whether the follower closed the connection because it follows nothing here any more.
fn is_done(connection: &Connection) -> bool {
    matches!(
        connection.close_reason(),
        Some(ConnectionError::ApplicationClosed(closed))
            if closed.error_code == CloseReason::Done.var_int()
    )
}

struct Parts {
    send: quinn::SendStream,
    recv: LaneReader,
    control: tokio::sync::mpsc::Receiver<bytes::Bytes>,
    copies: CopySink,
    written: tokio::sync::mpsc::Receiver<LaneCopy>,
}

async fn greet(
    shared: &Shared,
    cluster: ClusterId,
    node: NodeId,
    connection: &Connection,
) -> Result<(FollowerChannel, Parts), End> {
    let (mut send, recv) = connection.accept_bi().await.map_err(broken)?;
    let mut recv = control_reader(recv);
    let ControlMessage::Hello(hello) = read_control(&mut recv).await.map_err(broken)? else {
        return Err(broken("the first message is not a hello"));
    };
    check_hello(&hello, cluster, node)?;
    let welcome = ControlMessage::Welcome(Welcome {
        node: shared.me.node,
        incarnation: shared.me.incarnation,
        lanes: LIVE_LANES + CATCH_UP_LANES,
    });
    send.write_chunk(welcome.encode()).await.map_err(broken)?;
    let (copies, written) = CopySink::new();
    let mut lanes = Vec::new();
    for lane in 0..LIVE_LANES + CATCH_UP_LANES {
        let stream = connection.open_uni().await.map_err(broken)?;
        let (priority, copies) = if lane < LIVE_LANES {
            (LIVE_PRIORITY, Some((lane, copies.clone())))
        } else {
            (CATCH_UP_PRIORITY, None)
        };
        lanes.push(lane_writer(stream, lane, priority, copies));
    }
    let catch_up = lanes.split_off(usize::from(LIVE_LANES));
    let peer = Appointment {
        node,
        directory: hello.directory,
        incarnation: hello.incarnation,
    };
    let id = NEXT_CHANNEL.fetch_add(1, Ordering::Relaxed);
    let (channel, control) =
        FollowerChannel::new(id, peer, lanes, catch_up, shared.catch_up_share.clone());
    Ok((
        channel,
        Parts {
            send,
            recv,
            control,
            copies,
            written,
        },
    ))
}

/// A lane's queue holds whatever the follower's budget lets out: a frame of 100 bytes costs less than three times as much
/// with its message header and the queue's own bookkeeping.
fn lane_writer(
    stream: quinn::SendStream,
    lane: u16,
    priority: i32,
    copies: Option<(u16, CopySink)>,
) -> LaneWriter {
    LaneWriter::spawn(
        stream,
        LaneOptions {
            header: LaneHeader { lane }.encode(),
            priority,
            queue_bytes: 4 * FOLLOWER_BUDGET_BYTES,
            copies,
        },
    )
}

pub(super) fn check_hello(hello: &Hello, cluster: ClusterId, node: NodeId) -> Result<(), End> {
    if hello.version != PROTOCOL_VERSION {
        return Err(broken(format!(
            "the follower speaks replication version {} and this node {PROTOCOL_VERSION}; upgrade the older one",
            hello.version
        )));
    }
    if hello.cluster != cluster {
        let cause = format!(
            "the follower belongs to cluster {} and this node to {cluster}",
            hello.cluster
        );
        return Err((CloseReason::WrongCluster, cause));
    }
    if hello.node != node {
        let cause = format!(
            "the hello says node {} and the certificate node {node}",
            hello.node
        );
        return Err((CloseReason::WrongNode, cause));
    }
    Ok(())
}

async fn run(
    shared: &Arc<Shared>,
    connection: &Connection,
    channel: &Arc<FollowerChannel>,
    parts: Parts,
) -> End {
    let Parts {
        mut send,
        mut recv,
        mut control,
        copies,
        mut written,
    } = parts;
    let heard = Arc::new(LastHeard::now(shared.clock));
    shared.links.insert(
        LinkDirection::ToFollower,
        channel.peer.node,
        channel.id,
        connection.clone(),
        heard.clone(),
    );
    let sessions = Mutex::new(Sessions::default());
    let node = channel.peer.node;

    let read_control = async {
        loop {
            let message = match read_control(&mut recv).await {
                Ok(message) => message,
                Err(cause) => return cause,
            };
            heard.touch();
            if let Err(cause) = handle_control(shared, channel, &sessions, message).await {
                return cause;
            }
        }
    };
    let read_acks = async {
        let mut reader = match connection.accept_uni().await {
            Ok(stream) => RecordReader::new(stream),
            Err(error) => return error.to_string(),
        };
        let mut whole = BytesMut::new();
        loop {
            match reader.next(&mut whole).await {
                Ok(true) => heard.touch(),
                Ok(false) => return "the follower closed its ack stream".to_owned(),
                Err(error) => return format!("cannot read acks: {error}"),
            }
            let acks = match Ack::decode_all(&mut whole) {
                Ok(acks) => acks,
                Err(error) => return error.to_string(),
            };
            if let Err(cause) = deliver_acks(shared, channel, &sessions, &acks).await {
                return cause;
            }
        }
    };
    let count_copied = |bytes| {
        let direction = LinkDirection::ToFollower;
        shared
            .links
            .count_copied(direction, node, channel.id, bytes);
    };
    let switch = CopySwitch::new(copies.clone(), shared.link_copies);
    let end = tokio::select! {
        cause = write_control(&mut control, &mut send) => broken(cause),
        cause = read_control => broken(cause),
        cause = read_acks => broken(cause),
        cause = heartbeat::send(connection, &heard) => broken(cause),
        // Followers send no copies, and what they sent would be of no lane.
        cause = heartbeat::receive(connection, &heard, |_| {}) => broken(cause),
        cause = lane_copies::send(shared.clock, connection, (&copies, &mut written), || channel.under_way(), count_copied) => broken(cause),
        cause = heartbeat::report(shared, connection, node, &heard) => broken(cause),
        cause = watch(shared, connection, channel, &heard, switch) => (CloseReason::Superseded, cause),
        error = connection.closed() => (CloseReason::Done, error.to_string()),
        () = channel.broken.cancelled() => {
            let (reason, cause) = channel.why_given_up();
            (reason, cause.to_owned())
        }
        () = shared.stopping.cancelled() => broken("this node is stopping"),
    };
    // At a stop the owner threads end too, and whichever part notices that first must not blame the follower.
    match shared.stopping.is_cancelled() && connection.close_reason().is_none() {
        true => (
            CloseReason::ShuttingDown,
            "this node is stopping".to_owned(),
        ),
        false => end,
    }
}

/// Notices what the connection does by itself: a follower that moves, that falls silent, that is heard again. This end has
/// nothing to do about it; it lets it be known. Ends when a newer connection has taken this one's place.
async fn watch(
    shared: &Shared,
    connection: &Connection,
    channel: &FollowerChannel,
    heard: &LastHeard,
    mut copies: CopySwitch,
) -> String {
    let (direction, follower) = (LinkDirection::ToFollower, channel.peer.node);
    let mut ear = Ear::new(connection);
    let mut address = connection.remote_address();
    let mut silent = false;
    let mut longest = Duration::ZERO;
    let [moves, silences, returns, switches] = [(); 4].map(|()| LogLimit::default());
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let silence_before = heard.silence();
        if ear.has_heard(connection) {
            heard.touch();
        }
        channel.note_round_trip(connection.rtt());
        if copies.look(shared.clock.now(), connection, channel.under_way())
            && let Some(suppressed) = switches.allow()
        {
            tracing::info!(
                %follower, copies = copies.is_on(), cause = "the link's packet loss", suppressed,
                "small frames go out twice, or no longer"
            );
        }
        let now_at = connection.remote_address();
        if now_at != address {
            shared
                .links
                .count_migration(direction, follower, channel.id);
            if let Some(suppressed) = moves.allow() {
                tracing::info!(
                    %follower, from = %address, to = %now_at, cause = "its packets come from there",
                    silence_ms = silence_before.as_millis() as u64, suppressed,
                    "follower moved to another address; its connection goes on"
                );
            }
            address = now_at;
        }
        let (silence, allowed) = (heard.silence(), suspicion_of(connection));
        if silence > REPLACED_PATIENCE && shared.links.has_newer(direction, follower, channel.id) {
            return "nothing comes over this one".to_owned();
        }
        if silence > allowed {
            longest = silence;
            if !silent {
                silent = true;
                shared.links.suspect(direction, follower, channel.id);
                let cause = format!("nothing heard for {} ms", silence.as_millis());
                shared.links.note_error(direction, follower, &cause);
                if let Some(suppressed) = silences.allow() {
                    tracing::warn!(
                        %follower, cause = "nothing was heard", silence_ms = silence.as_millis() as u64,
                        allowed_ms = allowed.as_millis() as u64, suppressed, "follower silent"
                    );
                }
            }
        } else if silent {
            silent = false;
            shared.links.heard_again(direction, follower, channel.id);
            if let Some(suppressed) = returns.allow() {
                tracing::info!(
                    %follower, cause = "a packet came", silence_ms = longest.as_millis() as u64, suppressed,
                    "follower heard again"
                );
            }
        }
    }
}

pub(super) async fn handle_control(
    shared: &Shared,
    channel: &Arc<FollowerChannel>,
    sessions: &Mutex<Sessions>,
    message: ControlMessage,
) -> Result<(), String> {
    let (id, event) = match message {
        ControlMessage::OpenSession(open) => {
            let id = open.partition;
            if !lock(sessions).insert(open.session, id) {
                return Err(format!(
                    "the follower opened more than {MAX_SESSIONS} sessions"
                ));
            }
            let event = Event::OpenSession {
                channel: channel.clone(),
                open: Box::new(open),
            };
            (id, event)
        }
        ControlMessage::CloseSession { session, .. } => {
            let Some(id) = lock(sessions).remove(session) else {
                return Ok(());
            };
            let event = Event::CloseSession {
                channel: channel.clone(),
                id,
                session,
            };
            (id, event)
        }
        _ => return Err("the follower sent a message that only leaders send".to_owned()),
    };
    shared.deliver(id, event).await
}

/// Sorts acks by owner thread and hands them over.
pub(super) async fn deliver_acks(
    shared: &Shared,
    channel: &Arc<FollowerChannel>,
    sessions: &Mutex<Sessions>,
    acks: &[Ack],
) -> Result<(), String> {
    let mut by_shard: Vec<Vec<(TopicPartition, Ack)>> = Vec::new();
    by_shard.resize_with(shared.shards().len(), Vec::new);
    {
        let sessions = lock(sessions);
        for ack in acks {
            if let Some(&id) = sessions.partitions.get(&ack.session)
                && let Some((index, _)) = shared.shard_of(id)
            {
                by_shard[index].push((id, *ack));
            }
        }
    }
    for (shard, acks) in shared.shards().iter().zip(by_shard) {
        if acks.is_empty() {
            continue;
        }
        let event = Event::Acks {
            channel: channel.clone(),
            acks,
        };
        if shard.mailbox.send(event).await.is_err() {
            return Err("this node is stopping".to_owned());
        }
    }
    Ok(())
}

fn lock(sessions: &Mutex<Sessions>) -> std::sync::MutexGuard<'_, Sessions> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}
