//! A follower's connection to one leader: dialled, kept, dialled again, for as long as this node follows that leader.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::SendStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::event::{Event, FramesEvent, PeerProcess};
use super::heartbeat::{self, LastHeard};
use super::leader_channel::LeaderChannel;
use super::links::LinkDirection;
use super::shared::Shared;
use crate::transport::{
    Alpn, CloseReason, CurrentIdentity, Dialled, LaneReader, PeerAddress, dial_unconfirmed,
};
use crate::types::{ClusterId, NodeId};
use crate::wal::{Decoded, Frame};
use crate::wire::{
    ControlMessage, Hello, LaneBody, LaneHeader, LaneMessage, MAX_CONTROL_MESSAGE_BYTES,
    MAX_LANE_MESSAGE_BYTES, PROTOCOL_VERSION, SessionAnswer, SessionOutcome,
};

/// How long a dial may take, the hello's answer included.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// The first pause between dials; it doubles up to [`MAX_REDIAL_PAUSE`]. The first redial after a connection that worked
/// comes at once.
const FIRST_REDIAL_PAUSE: Duration = Duration::from_millis(50);
const MAX_REDIAL_PAUSE: Duration = Duration::from_secs(1);
/// Received frame bytes that wait for the owner threads, over one connection. At the cap the lanes are read no further, and
/// QUIC's flow control holds the leader up.
const RECEIVE_BUDGET_BYTES: usize = 16 << 20;
/// The most lanes that a leader may open.
const MAX_LANES: u16 = 64;

static NEXT_CHANNEL: AtomicU64 = AtomicU64::new(1);

/// What a link needs to know of this node.
#[derive(Clone)]
pub(super) struct LinkOptions {
    pub(super) identity: Arc<CurrentIdentity>,
    pub(super) cluster: ClusterId,
}

/// Keeps a connection to `leader` until `stop`. `address` is where the leader is registered; a change of it redials at once.
pub(super) async fn keep(
    shared: Arc<Shared>,
    options: LinkOptions,
    leader: NodeId,
    mut address: watch::Receiver<String>,
    stop: CancellationToken,
) {
    let mut pause = Duration::ZERO;
    loop {
        let host_port = address.borrow_and_update().clone();
        let peer = PeerAddress::node(leader, host_port);
        let started = std::time::Instant::now();
        shared.links.count_dial(leader, &peer.host_port);
        let (worked, cause) = run(&shared, &options, &peer, &mut address, &stop).await;
        if stop.is_cancelled() {
            shared.links.rest(leader);
            return;
        }
        if !worked {
            shared
                .links
                .note_error(LinkDirection::ToLeader, leader, &cause);
        }
        pause = next_pause(pause, worked);
        // Half of the pause is drawn at random, so that followers that lost one leader do not come back in step.
        let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        tracing::info!(
            %leader, address = %peer.host_port, cause, lived_ms = started.elapsed().as_millis() as u64,
            next_dial_ms = jittered.as_millis() as u64, "replication link down"
        );
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(jittered) => {}
            changed = address.changed() => {
                if changed.is_err() {
                    return;
                }
                pause = Duration::ZERO;
            }
        }
    }
}

/// How long to wait after `pause` did, and a connection that `worked` or did not come about.
fn next_pause(pause: Duration, worked: bool) -> Duration {
    if worked {
        Duration::ZERO
    } else {
        (pause * 2).clamp(FIRST_REDIAL_PAUSE, MAX_REDIAL_PAUSE)
    }
}

/// One connection, from dial to end. Says whether it ever worked, and why it ended.
async fn run(
    shared: &Arc<Shared>,
    options: &LinkOptions,
    peer: &PeerAddress,
    address: &mut watch::Receiver<String>,
    stop: &CancellationToken,
) -> (bool, String) {
    let started = std::time::Instant::now();
    let identity = options.identity.get();
    let dialled = tokio::select! {
        () = stop.cancelled() => return (false, "the leader is followed no more".to_owned()),
        dialled = dial_unconfirmed(&identity, peer, Alpn::Replication, DIAL_TIMEOUT) => match dialled {
            Ok(dialled) => dialled,
            Err(error) => return (false, error.to_string()),
        },
    };
    let greeted = tokio::time::timeout(DIAL_TIMEOUT, greet(shared, options, &dialled, peer));
    let (send, recv, process) = match greeted.await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(cause)) => return (false, cause),
        Err(_) => {
            CloseReason::TimedOut.close(&dialled.connection, "no answer to the hello");
            return (
                false,
                format!("no answer to the hello within {} s", DIAL_TIMEOUT.as_secs()),
            );
        }
    };
    let rtt = dialled.connection.rtt();
    tracing::info!(
        leader = %process.node, address = %peer.host_port, incarnation = %process.incarnation,
        took_ms = started.elapsed().as_millis() as u64, rtt_us = rtt.as_micros() as u64,
        "replication link up"
    );
    let id = NEXT_CHANNEL.fetch_add(1, Ordering::Relaxed);
    let (channel, control) = LeaderChannel::new(id, process);
    let channel = Arc::new(channel);
    for shard in shared.shards() {
        let channel = channel.clone();
        let _ = shard.mailbox.send(Event::LeaderConnected { channel }).await;
    }
    let cause = serve(
        shared, &dialled, &channel, send, recv, control, address, stop,
    )
    .await;
    channel.broken.cancel();
    let idle = stop.is_cancelled();
    shared
        .links
        .remove(LinkDirection::ToLeader, process.node, id, &cause, idle);
    for shard in shared.shards() {
        let channel = channel.clone();
        let _ = shard.mailbox.send(Event::LeaderGone { channel }).await;
    }
    let reason = if stop.is_cancelled() {
        CloseReason::Done
    } else {
        CloseReason::Superseded
    };
    reason.close(&dialled.connection, &cause);
    (true, cause)
}

type Greeted = (SendStream, LaneReader, PeerProcess);

async fn greet(
    shared: &Shared,
    options: &LinkOptions,
    dialled: &Dialled,
    peer: &PeerAddress,
) -> Result<Greeted, String> {
    let lost = |error: &quinn::ConnectionError| dialled.explain(error).to_string();
    let (mut send, recv) = dialled.connection.open_bi().await.map_err(|e| lost(&e))?;
    let mut recv = control_reader(recv);
    let hello = ControlMessage::Hello(Hello {
        version: PROTOCOL_VERSION,
        cluster: options.cluster,
        node: shared.me.node,
        incarnation: shared.me.incarnation,
        directory: shared.me.directory,
    });
    let explained = |error: String| match dialled.connection.close_reason() {
        Some(reason) => lost(&reason),
        None => error,
    };
    send.write_chunk(hello.encode())
        .await
        .map_err(|e| explained(e.to_string()))?;
    match read_control(&mut recv).await {
        Ok(ControlMessage::Welcome(welcome)) => {
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
            Ok((send, recv, process))
        }
        Ok(_) => Err("the hello was answered with something else".to_owned()),
        Err(error) => Err(explained(error)),
    }
}

/// Runs a greeted connection until something ends it.
#[expect(
    clippy::too_many_arguments,
    reason = "one connection's parts, used once"
)]
async fn serve(
    shared: &Arc<Shared>,
    dialled: &Dialled,
    channel: &Arc<LeaderChannel>,
    mut send: SendStream,
    mut recv: LaneReader,
    mut control: mpsc::Receiver<Bytes>,
    address: &mut watch::Receiver<String>,
    stop: &CancellationToken,
) -> String {
    let connection = &dialled.connection;
    let heard = Arc::new(LastHeard::now(shared.clock));
    let leader = channel.peer.node;
    shared.links.insert(
        LinkDirection::ToLeader,
        leader,
        channel.id,
        connection.clone(),
        heard.clone(),
    );

    let write_control = async {
        while let Some(message) = control.recv().await {
            if let Err(error) = send.write_chunk(message).await {
                return format!("cannot write to the control stream: {error}");
            }
        }
        "the control queue is closed".to_owned()
    };
    let read_control = async {
        loop {
            match read_control(&mut recv).await {
                Ok(message) => {
                    heard.touch();
                    if let Err(cause) = handle_control(shared, channel, message).await {
                        return cause;
                    }
                }
                Err(cause) => return cause,
            }
        }
    };
    let write_acks = async {
        let mut acks = match connection.open_uni().await {
            Ok(acks) => acks,
            Err(error) => return error.to_string(),
        };
        loop {
            let message = channel.next_acks().await;
            if let Err(error) = acks.write_chunk(message.encode()).await {
                return format!("cannot write acks: {error}");
            }
        }
    };
    let read_lanes = async {
        let budget = Arc::new(Semaphore::new(RECEIVE_BUDGET_BYTES));
        let mut lanes = JoinSet::new();
        loop {
            tokio::select! {
                lane = connection.accept_uni() => match lane {
                    Ok(stream) if lanes.len() < usize::from(MAX_LANES) => {
                        let (shared, channel) = (shared.clone(), channel.clone());
                        let (heard, budget) = (heard.clone(), budget.clone());
                        lanes.spawn(async move {
                            read_lane(&shared, &channel, stream, &heard, &budget).await
                        });
                    }
                    Ok(_) => return format!("the leader opened more than {MAX_LANES} lanes"),
                    Err(error) => return error.to_string(),
                },
                Some(ended) = lanes.join_next() => match ended {
                    Ok(cause) => return cause,
                    Err(error) => return error.to_string(),
                },
            }
        }
    };
    tokio::select! {
        cause = write_control => cause,
        cause = read_control => cause,
        cause = write_acks => cause,
        cause = read_lanes => cause,
        cause = heartbeat::send(connection) => cause,
        cause = heartbeat::receive(connection, &heard) => cause,
        cause = heartbeat::report(shared, connection, leader, &heard) => cause,
        cause = heartbeat::watch_silence(connection, &heard) => cause,
        error = connection.closed() => dialled.explain(&error).to_string(),
        () = channel.broken.cancelled() => "the connection was given up".to_owned(),
        changed = address.changed() => match changed {
            Ok(()) => "the leader registered another address".to_owned(),
            Err(_) => "the leader is followed no more".to_owned(),
        },
        () = stop.cancelled() => "the leader is followed no more".to_owned(),
    }
}

async fn handle_control(
    shared: &Shared,
    channel: &LeaderChannel,
    message: ControlMessage,
) -> Result<(), String> {
    let from = channel.peer.node;
    let session = match &message {
        ControlMessage::SessionAnswer(answer) => answer.session,
        ControlMessage::CloseSession { session, .. } => *session,
        _ => return Err("the leader sent a message that only followers send".to_owned()),
    };
    // An answer to a session that was replaced in the meantime is for nobody.
    let Some(id) = channel.partition_of(session) else {
        return Ok(());
    };
    let event = match message {
        ControlMessage::SessionAnswer(answer) => {
            if let SessionOutcome::Refused(refusal) = answer.outcome {
                tracing::debug!(partition = %id, leader = %from, ?refusal, "session refused");
            }
            Event::Answer {
                from,
                id,
                answer: Box::new(answer),
            }
        }
        ControlMessage::CloseSession { session, reason } => Event::SessionClosed {
            id,
            session,
            reason,
        },
        _ => return Ok(()),
    };
    shared.deliver(id, event).await
}

/// Reads one lane: decodes and checks frames here, on the network's threads, so that the owner only appends them.
async fn read_lane(
    shared: &Shared,
    channel: &LeaderChannel,
    stream: quinn::RecvStream,
    heard: &LastHeard,
    budget: &Arc<Semaphore>,
) -> String {
    let mut lane = LaneReader::new(stream, LaneMessage::HEADER_BYTES + MAX_LANE_MESSAGE_BYTES);
    let mut header = None;
    loop {
        match lane.fill::<Infallible>().await {
            Ok(true) => heard.touch(),
            Ok(false) => return "the leader closed a lane".to_owned(),
            Err(error) => return format!("cannot read a lane: {error}"),
        }
        if header.is_none() {
            header = LaneHeader::decode(lane.buffer());
            if header.is_none() {
                continue;
            }
        }
        loop {
            let message = match LaneMessage::decode(lane.buffer()) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return format!("a lane brought {error}"),
            };
            let Some(id) = channel.partition_of(message.session) else {
                continue;
            };
            let bytes = match message.body {
                LaneBody::Frames(bytes) => bytes,
                LaneBody::Answer(outcome) => {
                    let answer = SessionAnswer {
                        session: message.session,
                        leader_epoch: message.leader_epoch,
                        outcome,
                    };
                    let event = Event::Answer {
                        from: channel.peer.node,
                        id,
                        answer: Box::new(answer),
                    };
                    if let Err(cause) = shared.deliver(id, event).await {
                        return cause;
                    }
                    continue;
                }
            };
            let size = bytes.len().min(RECEIVE_BUDGET_BYTES) as u32;
            let frames = match decode_frames(bytes) {
                Ok(frames) => frames,
                Err(cause) => return cause,
            };
            let Ok(permit) = budget.clone().acquire_many_owned(size).await else {
                return "this node is stopping".to_owned();
            };
            let event = Event::Frames(Box::new(FramesEvent {
                id,
                session: message.session,
                leader_epoch: message.leader_epoch,
                high_watermark: message.high_watermark,
                frames,
                budget: Some(permit),
            }));
            if let Err(cause) = shared.deliver(id, event).await {
                return cause;
            }
        }
    }
}

fn decode_frames(mut bytes: Bytes) -> Result<Vec<Frame>, String> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        match Frame::decode(&bytes) {
            Ok(Decoded::Frame(frame)) => {
                let _ = bytes.split_to(frame.len());
                frames.push(frame);
            }
            Ok(Decoded::Incomplete { .. }) => {
                return Err("a lane message ends in the middle of a frame".to_owned());
            }
            Err(error) => return Err(format!("a lane brought a bad frame: {error}")),
        }
    }
    Ok(frames)
}

/// Reads control or ack messages, whole.
pub(super) fn control_reader(stream: quinn::RecvStream) -> LaneReader {
    LaneReader::new(stream, 4 + MAX_CONTROL_MESSAGE_BYTES)
}

/// Reads one control message.
pub(super) async fn read_control(recv: &mut LaneReader) -> Result<ControlMessage, String> {
    loop {
        match ControlMessage::decode(recv.buffer()) {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        match recv.fill::<Infallible>().await {
            Ok(true) => {}
            Ok(false) => return Err("the control stream was closed".to_owned()),
            Err(error) => return Err(format!("cannot read the control stream: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_link_is_dialled_at_once_and_a_leader_that_is_down_each_second_at_least() {
        let mut pause = next_pause(MAX_REDIAL_PAUSE, true);
        assert_eq!(
            pause,
            Duration::ZERO,
            "at once after a connection that worked"
        );
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pause = next_pause(pause, false);
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
    }
}
