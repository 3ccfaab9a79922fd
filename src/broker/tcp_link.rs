//! Both ends of a replication link over one TLS stream on TCP, for measurements only; see [`crate::transport`]'s `TcpLink` for the
//! stream. Messages, owner threads, logs, syncs and acks are those of every link. What differs is the way between the nodes: one
//! stream, the kernel's congestion control and timers. Nothing here suspects a silent peer: as long as the kernel has the stream,
//! it stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rand::RngExt;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::event::{Event, PeerProcess};
use super::follower_channel::{FOLLOWER_BUDGET_BYTES, FollowerChannel};
use super::follower_link::{self, Sessions};
use super::heartbeat::{HEARTBEAT_EVERY, LastHeard};
use super::leader_channel::LeaderChannel;
use super::leader_connection::{self, RECEIVE_BUDGET_BYTES, take_lane_messages};
use super::leader_link::{self, LinkOptions};
use super::shared::Shared;
use crate::transport::{
    DIAL_PATIENCE, FIRST_REDIAL_PAUSE, LaneWriter, MAX_REDIAL_PAUSE, PeerAddress, TcpChannel,
    TcpLink, TcpLinkReader, TcpLinkWriter,
};
use crate::types::{Appointment, ClusterId, NodeId};
use crate::wire::{
    Ack, ControlMessage, Hello, LaneMessage, MAX_CONTROL_MESSAGE_BYTES, MAX_LANE_MESSAGE_BYTES,
    PROTOCOL_VERSION, Welcome,
};

/// How long a silence of the peer counts as normal while its stream stands: only the kernel says when a stream is dead, which takes
/// it a quarter of an hour.
const PATIENCE: Duration = Duration::from_secs(3600);
/// A round trip is taken for this before one was measured.
const UNKNOWN_RTT: Duration = Duration::from_millis(100);
/// How long a follower may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// When the peer was heard, and how long a heartbeat takes there and back, the stream's queues included.
struct Signs {
    heard: LastHeard,
    rtt_us: AtomicU64,
}

impl Signs {
    fn new(shared: &Shared) -> Signs {
        Signs {
            heard: LastHeard::now(shared.clock),
            rtt_us: AtomicU64::new(UNKNOWN_RTT.as_micros() as u64),
        }
    }

    fn rtt(&self) -> Duration {
        Duration::from_micros(self.rtt_us.load(Ordering::Relaxed))
    }

    /// An echo of a heartbeat, which says when it was sent.
    fn take_echo(&self, shared: &Shared, mut echo: Bytes) -> Result<(), String> {
        if echo.len() != 8 {
            return Err(format!("the peer sent an echo of {} bytes", echo.len()));
        }
        let took = shared
            .clock
            .now()
            .as_micros()
            .saturating_sub(echo.get_u64());
        let before = self.rtt_us.load(Ordering::Relaxed);
        let smoothed = before - before / 8 + took / 8;
        self.rtt_us.store(smoothed, Ordering::Relaxed);
        Ok(())
    }
}

/// Sends heartbeats and tells the owner threads when the peer was heard, until the stream is gone.
async fn stay_in_touch(
    shared: &Shared,
    node: NodeId,
    writer: &TcpLinkWriter,
    signs: &Signs,
) -> String {
    let mut every = tokio::time::interval(HEARTBEAT_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = writer.closed() => return "the stream cannot be written".to_owned(),
        }
        let now = shared.clock.now().as_micros();
        // A stream whose queue is full shows its life by what it has taken.
        let _ = writer.try_send(
            TcpChannel::Heartbeat,
            Bytes::copy_from_slice(&now.to_be_bytes()),
        );
        for shard in shared.shards() {
            let event = Event::Heard {
                node,
                at: signs.heard.at(),
                suspicion: PATIENCE,
                rtt: signs.rtt(),
            };
            // A full mailbox means that the thread is busy; the next report will do.
            let _ = shard.mailbox.try_send(event);
        }
    }
}

async fn write_control(control: &mut mpsc::Receiver<Bytes>, writer: &TcpLinkWriter) -> String {
    while let Some(message) = control.recv().await {
        if !writer.send(TcpChannel::Control, message).await {
            return "the stream cannot be written".to_owned();
        }
    }
    "the control queue is closed".to_owned()
}

/// The first control message of a stream.
async fn first_message(
    reader: &mut TcpLinkReader,
    control: &mut BytesMut,
) -> Result<ControlMessage, String> {
    loop {
        let decoded = ControlMessage::decode(control).map_err(|error| error.to_string())?;
        if let Some(message) = decoded {
            return Ok(message);
        }
        match reader.next().await? {
            (TcpChannel::Control, bytes) => take(control, &bytes, MAX_CONTROL_MESSAGE_BYTES)?,
            _ => return Err("the peer did not greet first".to_owned()),
        }
    }
}

/// Adds to what has come of a message, of at most `cap` bytes and its header.
fn take(buffer: &mut BytesMut, bytes: &[u8], cap: usize) -> Result<(), String> {
    buffer.extend_from_slice(bytes);
    // A chunk may hold the end of one message and the beginning of the next.
    match buffer.len() > 2 * cap + LaneMessage::HEADER_BYTES {
        true => Err("the peer sent more than a message can have".to_owned()),
        false => Ok(()),
    }
}

/// The leader's end: serves a follower's stream until it ends.
pub(super) async fn serve(shared: Arc<Shared>, cluster: ClusterId, node: NodeId, link: TcpLink) {
    let remote = link.remote;
    let (mut reader, writer) = link.split();
    let greeting = greet_follower(&shared, cluster, node, &mut reader, &writer);
    let greeted = tokio::time::timeout(HELLO_TIMEOUT, greeting).await;
    let (channel, mut control, early) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(cause)) => {
            tracing::info!(follower = %node, %remote, cause, "follower refused on TCP");
            return;
        }
        Err(_) => {
            tracing::info!(follower = %node, %remote, "follower on TCP said no hello in time");
            return;
        }
    };
    tracing::info!(follower = %node, %remote, incarnation = %channel.peer.incarnation, "follower connected over TCP");
    let channel = Arc::new(channel);
    let signs = Signs::new(&shared);
    let cause = tokio::select! {
        cause = read_follower(&shared, &channel, &mut reader, &writer, &signs, early) => cause,
        cause = write_control(&mut control, &writer) => cause,
        cause = stay_in_touch(&shared, node, &writer, &signs) => cause,
        () = channel.broken.cancelled() => "the connection was given up".to_owned(),
        () = shared.stopping.cancelled() => "this node is stopping".to_owned(),
    };
    channel.broken.cancel();
    for shard in shared.shards() {
        let channel = channel.clone();
        let _ = shard.mailbox.send(Event::FollowerGone { channel }).await;
    }
    tracing::info!(follower = %node, %remote, cause, "follower disconnected from TCP");
}

async fn greet_follower(
    shared: &Shared,
    cluster: ClusterId,
    node: NodeId,
    reader: &mut TcpLinkReader,
    writer: &TcpLinkWriter,
) -> Result<(FollowerChannel, mpsc::Receiver<Bytes>, BytesMut), String> {
    let mut early = BytesMut::new();
    let ControlMessage::Hello(hello) = first_message(reader, &mut early).await? else {
        return Err("the first message is not a hello".to_owned());
    };
    follower_link::check_hello(&hello, cluster, node).map_err(|(_, cause)| cause)?;
    let welcome = ControlMessage::Welcome(Welcome {
        node: shared.me.node,
        incarnation: shared.me.incarnation,
        lanes: 2,
    });
    if !writer.send(TcpChannel::Control, welcome.encode()).await {
        return Err("the stream cannot be written".to_owned());
    }
    let lane = |channel| {
        let lane = LaneWriter::spawn_on_tcp(writer.clone(), channel, 4 * FOLLOWER_BUDGET_BYTES);
        vec![lane]
    };
    let peer = Appointment {
        node,
        directory: hello.directory,
        incarnation: hello.incarnation,
    };
    let id = follower_link::NEXT_CHANNEL.fetch_add(1, Ordering::Relaxed);
    let (channel, control) = FollowerChannel::new(
        id,
        peer,
        lane(TcpChannel::LiveLane),
        lane(TcpChannel::CatchUpLane),
        shared.catch_up_share.clone(),
    );
    Ok((channel, control, early))
}

async fn read_follower(
    shared: &Shared,
    channel: &Arc<FollowerChannel>,
    reader: &mut TcpLinkReader,
    writer: &TcpLinkWriter,
    signs: &Signs,
    mut control: BytesMut,
) -> String {
    let sessions = std::sync::Mutex::new(Sessions::default());
    let mut acks = BytesMut::new();
    let read = async {
        loop {
            while let Some(message) =
                ControlMessage::decode(&mut control).map_err(|error| error.to_string())?
            {
                follower_link::handle_control(shared, channel, &sessions, message).await?;
            }
            let (kind, bytes) = reader.next().await?;
            signs.heard.touch();
            match kind {
                TcpChannel::Control => take(&mut control, &bytes, MAX_CONTROL_MESSAGE_BYTES)?,
                TcpChannel::Acks => {
                    take(&mut acks, &bytes, MAX_CONTROL_MESSAGE_BYTES)?;
                    let acks = Ack::decode_all(&mut acks).map_err(|error| error.to_string())?;
                    follower_link::deliver_acks(shared, channel, &sessions, &acks).await?;
                }
                TcpChannel::Heartbeat => echo(writer, bytes),
                TcpChannel::Echo => signs.take_echo(shared, bytes)?,
                TcpChannel::LiveLane | TcpChannel::CatchUpLane => {
                    return Err("the follower sent frames".to_owned());
                }
            }
        }
    };
    let ended: Result<(), String> = read.await;
    ended.err().unwrap_or_default()
}

fn echo(writer: &TcpLinkWriter, heartbeat: Bytes) {
    // Without room it is not answered: the round trip is that of an earlier one until there is.
    let _ = writer.try_send(TcpChannel::Echo, heartbeat);
}

/// The follower's end: keeps a stream to `leader` until `stop`. Dials at once, then after 50 ms doubling to 1 s, with jitter; and
/// only when there is no stream: one that stands is the kernel's to give up.
pub(super) async fn keep(
    shared: Arc<Shared>,
    options: LinkOptions,
    congestion: String,
    leader: NodeId,
    mut address: watch::Receiver<String>,
    stop: CancellationToken,
) {
    let mut pause = Duration::ZERO;
    loop {
        let host_port = address.borrow_and_update().clone();
        let peer = PeerAddress::node(leader, host_port);
        let connected = tokio::select! {
            () = stop.cancelled() => return,
            connected = connect(&shared, &options, &congestion, &peer) => connected,
        };
        match connected {
            Ok(greeted) => {
                tracing::info!(%leader, address = %peer, "replication stream on TCP up");
                pause = Duration::ZERO;
                // Ends by itself when it is to stop, and tells the owner threads.
                let cause = follow(&shared, greeted, &stop).await;
                tracing::info!(%leader, cause, "replication stream on TCP down");
            }
            Err(cause) => {
                tracing::info!(%leader, address = %peer, cause, "no replication stream on TCP");
                pause = (pause * 2).clamp(FIRST_REDIAL_PAUSE, MAX_REDIAL_PAUSE);
            }
        }
        if stop.is_cancelled() {
            return;
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = stop.cancelled() => return,
            changed = address.changed() => if changed.is_err() { return },
        }
    }
}

type Greeted = (TcpLinkReader, TcpLinkWriter, PeerProcess, BytesMut);

async fn connect(
    shared: &Shared,
    options: &LinkOptions,
    congestion: &str,
    peer: &PeerAddress,
) -> Result<Greeted, String> {
    let identity = options.identity.get();
    let link = TcpLink::dial(&identity, peer, congestion, DIAL_PATIENCE).await?;
    let (mut reader, writer) = link.split();
    let hello = ControlMessage::Hello(Hello {
        version: PROTOCOL_VERSION,
        cluster: options.cluster,
        node: shared.me.node,
        incarnation: shared.me.incarnation,
        directory: shared.me.directory,
    });
    let mut early = BytesMut::new();
    let greeted = async {
        if !writer.send(TcpChannel::Control, hello.encode()).await {
            return Err("the stream cannot be written".to_owned());
        }
        first_message(&mut reader, &mut early).await
    };
    let answer = tokio::time::timeout(DIAL_PATIENCE, greeted)
        .await
        .map_err(|_| {
            format!(
                "no answer to the hello within {} s",
                DIAL_PATIENCE.as_secs()
            )
        })?;
    let ControlMessage::Welcome(welcome) = answer? else {
        return Err("the hello was answered with something else".to_owned());
    };
    if Some(welcome.node) != peer.node {
        return Err(format!(
            "node {} answers where {peer} was dialled",
            welcome.node
        ));
    }
    let process = PeerProcess {
        node: welcome.node,
        incarnation: welcome.incarnation,
    };
    Ok((reader, writer, process, early))
}

/// Follows on a greeted stream until it ends. Says why.
async fn follow(shared: &Arc<Shared>, greeted: Greeted, stop: &CancellationToken) -> String {
    let (mut reader, writer, process, early) = greeted;
    let id = leader_link::NEXT_CHANNEL.fetch_add(1, Ordering::Relaxed);
    let leader = process.node;
    let (channel, mut control) = LeaderChannel::new(id, process);
    let channel = Arc::new(channel);
    for shard in shared.shards() {
        let channel = channel.clone();
        let _ = shard.mailbox.send(Event::LeaderConnected { channel }).await;
    }
    let signs = Signs::new(shared);
    let write_acks = async {
        loop {
            let acks = Ack::encode_all(&channel.next_acks().await);
            if !writer.send(TcpChannel::Acks, acks).await {
                return "the stream cannot be written".to_owned();
            }
        }
    };
    let cause = tokio::select! {
        cause = read_leader(shared, &channel, &mut reader, &writer, &signs, early) => cause,
        cause = write_acks => cause,
        cause = write_control(&mut control, &writer) => cause,
        cause = stay_in_touch(shared, leader, &writer, &signs) => cause,
        () = channel.broken.cancelled() => "the connection was given up".to_owned(),
        () = stop.cancelled() => "it is closed here".to_owned(),
    };
    channel.broken.cancel();
    for shard in shared.shards() {
        let channel = channel.clone();
        let _ = shard.mailbox.send(Event::LeaderGone { channel }).await;
    }
    cause
}

async fn read_leader(
    shared: &Shared,
    channel: &LeaderChannel,
    reader: &mut TcpLinkReader,
    writer: &TcpLinkWriter,
    signs: &Signs,
    mut control: BytesMut,
) -> String {
    let budget = Arc::new(Semaphore::new(RECEIVE_BUDGET_BYTES));
    let (mut live, mut catch_up) = (BytesMut::new(), BytesMut::new());
    let read = async {
        loop {
            while let Some(message) =
                ControlMessage::decode(&mut control).map_err(|error| error.to_string())?
            {
                leader_connection::handle_control(shared, channel, message).await?;
            }
            let (kind, bytes) = reader.next().await?;
            signs.heard.touch();
            let lane = match kind {
                TcpChannel::Control => {
                    take(&mut control, &bytes, MAX_CONTROL_MESSAGE_BYTES)?;
                    continue;
                }
                TcpChannel::Heartbeat => {
                    echo(writer, bytes);
                    continue;
                }
                TcpChannel::Echo => {
                    signs.take_echo(shared, bytes)?;
                    continue;
                }
                TcpChannel::Acks => return Err("the leader sent acks".to_owned()),
                TcpChannel::LiveLane => &mut live,
                TcpChannel::CatchUpLane => &mut catch_up,
            };
            take(lane, &bytes, MAX_LANE_MESSAGE_BYTES)?;
            take_lane_messages(shared, channel, lane, &budget).await?;
        }
    };
    let ended: Result<(), String> = read.await;
    ended.err().unwrap_or_default()
}
