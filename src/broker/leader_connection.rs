//! One greeted connection to a leader, from its adoption to its end: control messages, lanes, acks, heartbeats.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::event::{Event, FramesEvent};
use super::heartbeat::{self, LastHeard};
use super::lane_copies::CopyRouter;
use super::leader_channel::LeaderChannel;
use super::shared::Shared;
use crate::transport::{Dialled, LaneReader};
use crate::wal::Frame;
use crate::wire::{
    Ack, ControlMessage, LaneBody, LaneHeader, LaneMessage, MAX_CONTROL_MESSAGE_BYTES,
    MAX_LANE_MESSAGE_BYTES, SessionAnswer, SessionOutcome,
};

/// Received frame bytes that wait for the owner threads, over one connection. At the cap the lanes are read no further, and
/// QUIC's flow control holds the leader up.
pub(super) const RECEIVE_BUDGET_BYTES: usize = 16 << 20;
/// The most lanes that a leader may open.
const MAX_LANES: u16 = 64;

/// The parts of a greeted connection.
pub(super) struct Greeted {
    pub(super) dialled: Dialled,
    pub(super) send: SendStream,
    pub(super) recv: LaneReader,
}

/// Runs a greeted connection until something ends it, or `end` is cancelled. Says why it ended.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    greeted: Greeted,
    channel: &Arc<LeaderChannel>,
    control: &mut mpsc::Receiver<Bytes>,
    heard: &Arc<LastHeard>,
    end: &CancellationToken,
) -> String {
    let Greeted {
        dialled,
        mut send,
        mut recv,
    } = greeted;
    let connection = &dialled.connection;
    let leader = channel.peer.node;

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
            let next = Ack::encode_all(&channel.next_acks().await);
            if let Err(error) = acks.write_chunk(next).await {
                return format!("cannot write acks: {error}");
            }
        }
    };
    let copies = Arc::new(CopyRouter::new());
    let read_lanes = async {
        let budget = Arc::new(Semaphore::new(RECEIVE_BUDGET_BYTES));
        let mut lanes = JoinSet::new();
        loop {
            tokio::select! {
                lane = connection.accept_uni() => match lane {
                    Ok(stream) if lanes.len() < usize::from(MAX_LANES) => {
                        let (shared, channel) = (shared.clone(), channel.clone());
                        let (heard, budget) = (heard.clone(), budget.clone());
                        let copies = copies.clone();
                        lanes.spawn(async move {
                            read_lane(&shared, &channel, stream, &heard, (&budget, &copies)).await
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
    let cause = tokio::select! {
        cause = write_control(control, &mut send) => cause,
        cause = read_control => cause,
        cause = write_acks => cause,
        cause = read_lanes => cause,
        cause = heartbeat::send(connection, heard) => cause,
        cause = heartbeat::receive(connection, heard, |copy| copies.deliver(copy)) => cause,
        cause = heartbeat::report(shared, connection, leader, heard) => cause,
        error = connection.closed() => dialled.explain(&error).to_string(),
        () = channel.broken.cancelled() => "the connection was given up".to_owned(),
        () = end.cancelled() => "it is closed here".to_owned(),
    };
    // All of them hear of a connection's end at once, and whoever is first has only QUIC's own word for it.
    match connection.close_reason() {
        None | Some(ConnectionError::LocallyClosed) => cause,
        Some(error) => dialled.explain(&error).to_string(),
    }
}

pub(super) async fn handle_control(
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
    (budget, copies): (&Arc<Semaphore>, &CopyRouter),
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
            match header {
                Some(LaneHeader { lane: number }) => copies.open(number, &mut lane),
                None => continue,
            }
        }
        if let Err(cause) = take_lane_messages(shared, channel, lane.buffer(), budget).await {
            return cause;
        }
    }
}

/// Hands over the lane messages that are whole, and takes them from the buffer.
pub(super) async fn take_lane_messages(
    shared: &Shared,
    channel: &LeaderChannel,
    buffer: &mut BytesMut,
    budget: &Arc<Semaphore>,
) -> Result<(), String> {
    loop {
        let message = match LaneMessage::decode(buffer) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(error) => return Err(format!("a lane brought {error}")),
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
                shared.deliver(id, event).await?;
                continue;
            }
        };
        let size = bytes.len().min(RECEIVE_BUDGET_BYTES) as u32;
        let frames = Frame::decode_all(bytes).map_err(|error| format!("a lane brought {error}"))?;
        let Ok(permit) = budget.clone().acquire_many_owned(size).await else {
            return Err("this node is stopping".to_owned());
        };
        let event = Event::Frames(Box::new(FramesEvent {
            id,
            session: message.session,
            leader_epoch: message.leader_epoch,
            high_watermark: message.high_watermark,
            frames,
            budget: Some(permit),
        }));
        shared.deliver(id, event).await?;
    }
}

/// Reads control messages, whole.
pub(super) fn control_reader(stream: quinn::RecvStream) -> LaneReader {
    LaneReader::new(stream, 4 + MAX_CONTROL_MESSAGE_BYTES)
}

/// Writes what is put into a control queue, until the queue is closed or the stream is.
pub(super) async fn write_control(
    control: &mut mpsc::Receiver<Bytes>,
    send: &mut quinn::SendStream,
) -> String {
    while let Some(message) = control.recv().await {
        if let Err(error) = send.write_chunk(message).await {
            return format!("cannot write to the control stream: {error}");
        }
    }
    "the control queue is closed".to_owned()
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
