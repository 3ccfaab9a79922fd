//! The messages of a replication connection, drawn field by field. All integers are big-endian.
//!
//! ```text
//! control stream: messages, each                  | length u32 | kind u8 | fields … |      length counts kind and fields
//! ack stream:     acks, one after another         | ack | ack | … |                         32 bytes each, read in any order
//! ack:                                            | session u64 | leader epoch u32 | durable position | received u64 |
//! lane:  one header | lane u16 |, then messages   | kind u8 | session u64 | leader epoch u32 | high watermark u64 | length u32 | body |
//! datagram: a heartbeat                           | kind u8 = 1 | sequence u64 |
//! datagram: a copy of some of a lane's bytes      | kind u8 = 2 | lane u16 | offset u64 | bytes … |    offset in the lane's stream
//! position:                                       | offset u64 | leader epoch u32 |
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Reader, WireError};
use super::producers::{MAX_SNAPSHOT_BYTES, ProducerSnapshot};
use crate::types::{
    ClusterId, DirectoryId, EpochEntry, EpochHistory, Incarnation, LeaderEpoch, LogPosition,
    NodeId, Offset, PartitionIndex, SessionId, TopicId, TopicPartition,
};

/// The version that this node speaks; it also stands in the connection's ALPN name.
pub const PROTOCOL_VERSION: u16 = 1;

/// The most epochs that a hello carries, the latest ones. A follower whose history parts from the leader's before these is
/// asked for older ones by a refusal of the session with [`SessionRefusal::NeedOlderEpochs`].
pub const MAX_HELLO_EPOCHS: usize = 64;

/// The most bytes of one control message. A hello that was asked for the whole epoch history carries 12 bytes an
/// epoch, so this allows some 80,000 epochs; a longer claim closes the connection.
pub const MAX_CONTROL_MESSAGE_BYTES: usize = 1 << 20;

/// The most bytes of a session's answer on a lane. One that resets a follower carries the epoch history, as a hello does,
/// and what the partition remembers of its producers; a longer claim closes the connection.
pub const MAX_ANSWER_BYTES: usize = MAX_CONTROL_MESSAGE_BYTES + MAX_SNAPSHOT_BYTES;

/// The most bytes of frames in one lane message. A frame is at most some 16 MiB and is never split; a message holds one frame
/// or as many as a send order asks for. A longer claim closes the connection.
pub const MAX_LANE_MESSAGE_BYTES: usize = 20 << 20;

/// The first message of a connection, from the follower: who dials, and for which cluster. The node id must be the one in
/// its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub version: u16,
    pub cluster: ClusterId,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub directory: DirectoryId,
}

/// The leader's answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// How many lanes the leader will open.
    pub lanes: u16,
}

/// A follower asks to be sent a partition's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSession {
    pub partition: TopicPartition,
    /// The epoch in which the follower believes that the receiver leads.
    pub leader_epoch: LeaderEpoch,
    /// Chosen by the follower, unique within its incarnation.
    pub session: SessionId,
    /// The durable end of the follower's log.
    pub durable: LogPosition,
    /// The latest epochs of the follower's log.
    pub epochs: EpochHistory,
    /// Whether `epochs` begins where the follower's log begins, or older ones were left out.
    pub epochs_complete: bool,
    /// Whether this very process has lost what it acknowledged, because its log was damaged and set aside: as a member of
    /// the in-sync set it must leave that, and may come back.
    pub log_lost: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionAnswer {
    pub session: SessionId,
    pub leader_epoch: LeaderEpoch,
    pub outcome: SessionOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionOutcome {
    /// Keep the log up to here, drop the rest; frames follow from here.
    Truncate(LogPosition),
    /// Nothing of the follower's log can be kept: start an empty one here, with this history of the epochs before, and with
    /// what the leader knows of the producers whose records lie before.
    Reset {
        start: LogPosition,
        epochs: EpochHistory,
        producers: ProducerSnapshot,
    },
    Refused(SessionRefusal),
}

/// Why a session was not opened, or was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionRefusal {
    /// The receiver does not lead the partition in the epoch that was named; its metadata or the follower's is behind.
    NotLeader,
    /// The receiver has no such partition (yet).
    UnknownPartition,
    /// The sender is not among the partition's replicas.
    NotReplica,
    /// The follower's history does not reach back far enough: open again with the whole of it.
    NeedOlderEpochs,
    /// The leader cannot take another session now: try again after a pause.
    Overloaded,
}

impl SessionRefusal {
    const fn code(self) -> u8 {
        match self {
            SessionRefusal::NotLeader => 1,
            SessionRefusal::UnknownPartition => 2,
            SessionRefusal::NotReplica => 3,
            SessionRefusal::NeedOlderEpochs => 4,
            SessionRefusal::Overloaded => 5,
        }
    }

    const fn from_code(code: u8) -> Option<SessionRefusal> {
        Some(match code {
            1 => SessionRefusal::NotLeader,
            2 => SessionRefusal::UnknownPartition,
            3 => SessionRefusal::NotReplica,
            4 => SessionRefusal::NeedOlderEpochs,
            5 => SessionRefusal::Overloaded,
            _ => return None,
        })
    }
}

/// One message of the control stream, in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlMessage {
    Hello(Hello),
    Welcome(Welcome),
    OpenSession(OpenSession),
    SessionAnswer(SessionAnswer),
    /// From either end: this session is over. A leader gives the reason; the follower then opens another.
    CloseSession {
        session: SessionId,
        reason: SessionRefusal,
    },
}

/// What a follower holds of one partition. Cumulative: of two acks of the same session the one that says more holds, in
/// whichever order they come, so their stream is read without waiting for what was lost of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub session: SessionId,
    pub leader_epoch: LeaderEpoch,
    /// The end of what is durable on the follower. Only this counts towards a commit.
    pub durable: LogPosition,
    /// The end of what it has received, durable or not; for display and for flow control.
    pub received: Offset,
}

/// The first bytes on a lane, so that the follower learns of the stream before the first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneHeader {
    pub lane: u16,
}

/// One message of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneMessage {
    pub session: SessionId,
    pub leader_epoch: LeaderEpoch,
    pub high_watermark: Offset,
    pub body: LaneBody,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaneBody {
    /// Whole WAL frames, one after another, as they lie on the leader's disk. None at all is legal: the message then carries
    /// the high watermark alone.
    Frames(Bytes),
    /// How the session begins. It travels on the lane that the session's first frames take, in front of them: on another
    /// stream it could come after them, and the follower, which takes no frame before the answer, would drop them.
    Answer(SessionOutcome),
}

/// A sign of life, in a datagram, so that lost stream data cannot hold it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    pub sequence: u64,
}

/// Some of the bytes of a lane a second time, in a datagram: where a packet with the first was lost, the follower need not wait for
/// it to be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneCopy {
    pub lane: u16,
    /// Where the bytes lie in the lane's stream, the lane's header included.
    pub offset: u64,
    /// As they are in the stream; cut anywhere.
    pub bytes: Bytes,
}

/// What a datagram brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagram {
    Heartbeat(Heartbeat),
    LaneCopy(LaneCopy),
}

const KIND_HELLO: u8 = 1;
const KIND_WELCOME: u8 = 2;
const KIND_OPEN_SESSION: u8 = 3;
const KIND_SESSION_ANSWER: u8 = 4;
const KIND_CLOSE_SESSION: u8 = 5;

const LANE_FRAMES: u8 = 1;
const LANE_ANSWER: u8 = 2;

const OUTCOME_TRUNCATE: u8 = 1;
const OUTCOME_RESET: u8 = 2;
const OUTCOME_REFUSED: u8 = 3;

impl ControlMessage {
    /// The message with its length in front.
    pub fn encode(&self) -> Bytes {
        length_prefixed(|out| match self {
            ControlMessage::Hello(hello) => {
                out.put_u8(KIND_HELLO);
                out.put_u16(hello.version);
                out.put_u128(hello.cluster.to_bits());
                out.put_u32(hello.node.get());
                out.put_u64(hello.incarnation.to_bits());
                out.put_u128(hello.directory.to_bits());
            }
            ControlMessage::Welcome(welcome) => {
                out.put_u8(KIND_WELCOME);
                out.put_u32(welcome.node.get());
                out.put_u64(welcome.incarnation.to_bits());
                out.put_u16(welcome.lanes);
            }
            ControlMessage::OpenSession(open) => {
                out.put_u8(KIND_OPEN_SESSION);
                out.put_u128(open.partition.topic.to_bits());
                out.put_u32(open.partition.partition.0);
                out.put_u32(open.leader_epoch.get());
                out.put_u64(open.session.to_bits());
                put_position(out, open.durable);
                out.put_u8(open.epochs_complete.into());
                out.put_u8(open.log_lost.into());
                put_epochs(out, &open.epochs);
            }
            ControlMessage::SessionAnswer(answer) => {
                out.put_u8(KIND_SESSION_ANSWER);
                out.put_u64(answer.session.to_bits());
                out.put_u32(answer.leader_epoch.get());
                put_outcome(out, &answer.outcome);
            }
            ControlMessage::CloseSession { session, reason } => {
                out.put_u8(KIND_CLOSE_SESSION);
                out.put_u64(session.to_bits());
                out.put_u8(reason.code());
            }
        })
    }

    /// Takes one message off the front of `input`; `None` until a whole one is there.
    pub fn decode(input: &mut BytesMut) -> Result<Option<ControlMessage>, WireError> {
        let Some(message) = take_message(input, "a control message")? else {
            return Ok(None);
        };
        let mut reader = Reader::new("a control message", message);
        let decoded = match reader.u8()? {
            KIND_HELLO => ControlMessage::Hello(Hello {
                version: reader.u16()?,
                cluster: ClusterId::from_random_bits(reader.u128()?),
                node: node(&mut reader)?,
                incarnation: Incarnation::from_random_bits(reader.u64()?),
                directory: DirectoryId::from_random_bits(reader.u128()?),
            }),
            KIND_WELCOME => ControlMessage::Welcome(Welcome {
                node: node(&mut reader)?,
                incarnation: Incarnation::from_random_bits(reader.u64()?),
                lanes: reader.u16()?,
            }),
            KIND_OPEN_SESSION => ControlMessage::OpenSession(OpenSession {
                partition: TopicPartition {
                    topic: TopicId::from_random_bits(reader.u128()?),
                    partition: PartitionIndex(reader.u32()?),
                },
                leader_epoch: reader.epoch()?,
                session: session(&mut reader)?,
                durable: reader.position()?,
                epochs_complete: flag(&mut reader)?,
                log_lost: flag(&mut reader)?,
                epochs: epochs(&mut reader)?,
            }),
            KIND_SESSION_ANSWER => ControlMessage::SessionAnswer(SessionAnswer {
                session: session(&mut reader)?,
                leader_epoch: reader.epoch()?,
                outcome: outcome(&mut reader)?,
            }),
            KIND_CLOSE_SESSION => ControlMessage::CloseSession {
                session: session(&mut reader)?,
                reason: refusal(&mut reader)?,
            },
            other => return Err(reader.invalid(other.into())),
        };
        reader.finish()?;
        Ok(Some(decoded))
    }
}

impl Ack {
    /// The size of each, so that a stream of them can be cut anywhere.
    pub const BYTES: usize = 32;
    /// The most that are written at once.
    pub const MAX_AT_ONCE: usize = 4096;

    /// One after another.
    pub fn encode_all(acks: &[Ack]) -> Bytes {
        let mut out = BytesMut::with_capacity(acks.len() * Self::BYTES);
        for ack in acks {
            out.put_u64(ack.session.to_bits());
            out.put_u32(ack.leader_epoch.get());
            put_position(&mut out, ack.durable);
            out.put_u64(ack.received.get());
        }
        out.freeze()
    }

    /// Takes the acks that are whole off the front of `input`, and leaves the rest.
    pub fn decode_all(input: &mut BytesMut) -> Result<Vec<Ack>, WireError> {
        let count = input.len() / Self::BYTES;
        let whole = input.split_to(count * Self::BYTES).freeze();
        let mut reader = Reader::new("an ack", whole);
        let mut acks = Vec::with_capacity(count);
        for _ in 0..count {
            acks.push(Ack {
                session: session(&mut reader)?,
                leader_epoch: reader.epoch()?,
                durable: reader.position()?,
                received: reader.offset()?,
            });
        }
        reader.finish()?;
        Ok(acks)
    }
}

impl LaneHeader {
    pub const BYTES: usize = 2;

    pub fn encode(self) -> Bytes {
        Bytes::copy_from_slice(&self.lane.to_be_bytes())
    }

    /// Takes the header off the front of `input`; `None` until it is there.
    pub fn decode(input: &mut BytesMut) -> Option<LaneHeader> {
        if input.len() < Self::BYTES {
            return None;
        }
        let bytes = input.split_to(Self::BYTES);
        Some(LaneHeader {
            lane: u16::from_be_bytes([bytes[0], bytes[1]]),
        })
    }
}

impl LaneMessage {
    /// Bytes before the body.
    pub const HEADER_BYTES: usize = 25;

    /// The bytes that go in front of `frames_len` bytes of frames, so that the frames themselves are never copied.
    pub fn encode_header(
        session: SessionId,
        leader_epoch: LeaderEpoch,
        high_watermark: Offset,
        frames_len: usize,
    ) -> Bytes {
        debug_assert!(frames_len <= MAX_LANE_MESSAGE_BYTES);
        let mut out = BytesMut::with_capacity(Self::HEADER_BYTES);
        out.put_u8(LANE_FRAMES);
        out.put_u64(session.to_bits());
        out.put_u32(leader_epoch.get());
        out.put_u64(high_watermark.get());
        out.put_u32(frames_len as u32);
        out.freeze()
    }

    /// A whole message that begins a session.
    pub fn encode_answer(answer: &SessionAnswer, high_watermark: Offset) -> Bytes {
        let mut body = BytesMut::new();
        put_outcome(&mut body, &answer.outcome);
        let mut out = BytesMut::with_capacity(Self::HEADER_BYTES + body.len());
        out.put_u8(LANE_ANSWER);
        out.put_u64(answer.session.to_bits());
        out.put_u32(answer.leader_epoch.get());
        out.put_u64(high_watermark.get());
        out.put_u32(body.len() as u32);
        out.extend_from_slice(&body);
        out.freeze()
    }

    /// Takes one message off the front of `input`; `None` until a whole one is there. Frames are a slice of the input's own
    /// memory. A claimed length above [`MAX_LANE_MESSAGE_BYTES`] is refused as soon as the header is there.
    pub fn decode(input: &mut BytesMut) -> Result<Option<LaneMessage>, WireError> {
        const WHAT: &str = "a lane message";
        if input.len() < Self::HEADER_BYTES {
            return Ok(None);
        }
        let header = Bytes::copy_from_slice(&input[..Self::HEADER_BYTES]);
        let mut reader = Reader::new(WHAT, header);
        let kind = reader.u8()?;
        let session = session(&mut reader)?;
        let leader_epoch = reader.epoch()?;
        let high_watermark = reader.offset()?;
        let length = reader.u32()? as usize;
        let max = match kind {
            LANE_FRAMES => MAX_LANE_MESSAGE_BYTES,
            LANE_ANSWER => MAX_ANSWER_BYTES,
            other => return Err(reader.invalid(other.into())),
        };
        check_length(WHAT, length, max)?;
        if input.len() < Self::HEADER_BYTES + length {
            return Ok(None);
        }
        let mut message = input.split_to(Self::HEADER_BYTES + length).freeze();
        let body = message.split_off(Self::HEADER_BYTES);
        let body = if kind == LANE_FRAMES {
            LaneBody::Frames(body)
        } else {
            let mut reader = Reader::new(WHAT, body);
            let outcome = outcome(&mut reader)?;
            reader.finish()?;
            LaneBody::Answer(outcome)
        };
        Ok(Some(LaneMessage {
            session,
            leader_epoch,
            high_watermark,
            body,
        }))
    }
}

impl Heartbeat {
    const KIND: u8 = 1;

    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(9);
        out.put_u8(Self::KIND);
        out.put_u64(self.sequence);
        out.freeze()
    }
}

impl LaneCopy {
    const KIND: u8 = 2;
    /// Bytes before those of the lane.
    pub const HEADER_BYTES: usize = 11;

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(Self::HEADER_BYTES + self.bytes.len());
        out.put_u8(Self::KIND);
        out.put_u16(self.lane);
        out.put_u64(self.offset);
        out.extend_from_slice(&self.bytes);
        out.freeze()
    }
}

impl Datagram {
    /// `None` for a kind that this version does not know. Any datagram may be lost, so none may matter to who does not understand it.
    pub fn decode(datagram: Bytes) -> Result<Option<Datagram>, WireError> {
        let mut reader = Reader::new("a datagram", datagram);
        Ok(match reader.u8()? {
            Heartbeat::KIND => {
                let sequence = reader.u64()?;
                reader.finish()?;
                Some(Datagram::Heartbeat(Heartbeat { sequence }))
            }
            LaneCopy::KIND => Some(Datagram::LaneCopy(LaneCopy {
                lane: reader.u16()?,
                offset: reader.u64()?,
                bytes: reader.rest(),
            })),
            _ => None,
        })
    }
}

fn length_prefixed(fields: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    out.put_u32(0);
    fields(&mut out);
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

fn take_message(input: &mut BytesMut, what: &'static str) -> Result<Option<Bytes>, WireError> {
    let Some(prefix) = input.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*prefix) as usize;
    check_length(what, length, MAX_CONTROL_MESSAGE_BYTES)?;
    if input.len() < 4 + length {
        return Ok(None);
    }
    Ok(Some(input.split_to(4 + length).freeze().slice(4..)))
}

fn check_length(what: &'static str, length: usize, max: usize) -> Result<(), WireError> {
    if length > max {
        return Err(WireError::TooLong { what, length, max });
    }
    Ok(())
}

fn put_position(out: &mut BytesMut, position: LogPosition) {
    out.put_u64(position.offset.get());
    out.put_u32(position.epoch.get());
}

fn put_epochs(out: &mut BytesMut, epochs: &EpochHistory) {
    out.put_u32(epochs.entries().len() as u32);
    for entry in epochs.entries() {
        out.put_u32(entry.epoch.get());
        out.put_u64(entry.start.get());
    }
}

fn put_outcome(out: &mut BytesMut, outcome: &SessionOutcome) {
    match outcome {
        SessionOutcome::Truncate(to) => {
            out.put_u8(OUTCOME_TRUNCATE);
            put_position(out, *to);
        }
        SessionOutcome::Reset {
            start,
            epochs,
            producers,
        } => {
            out.put_u8(OUTCOME_RESET);
            put_position(out, *start);
            put_epochs(out, epochs);
            producers.encode_into(out);
        }
        SessionOutcome::Refused(refusal) => {
            out.put_u8(OUTCOME_REFUSED);
            out.put_u8(refusal.code());
        }
    }
}

fn outcome(reader: &mut Reader) -> Result<SessionOutcome, WireError> {
    Ok(match reader.u8()? {
        OUTCOME_TRUNCATE => SessionOutcome::Truncate(reader.position()?),
        OUTCOME_RESET => SessionOutcome::Reset {
            start: reader.position()?,
            epochs: epochs(reader)?,
            producers: ProducerSnapshot::read(reader)?,
        },
        OUTCOME_REFUSED => SessionOutcome::Refused(refusal(reader)?),
        other => return Err(reader.invalid(other.into())),
    })
}

fn epochs(reader: &mut Reader) -> Result<EpochHistory, WireError> {
    const ENTRY_BYTES: usize = 12;
    let count = reader.u32()? as usize;
    // The bytes are taken before anything is allocated, so a false count fails here.
    let bytes = reader.bytes(count.saturating_mul(ENTRY_BYTES))?;
    let mut entries = Reader::new("an epoch history", bytes);
    let mut history = EpochHistory::new();
    for _ in 0..count {
        let entry = EpochEntry {
            epoch: entries.epoch()?,
            start: entries.offset()?,
        };
        history
            .push(entry)
            .map_err(|_| entries.invalid(entry.epoch.get().into()))?;
    }
    Ok(history)
}

fn node(reader: &mut Reader) -> Result<NodeId, WireError> {
    let id = reader.u32()?;
    NodeId::new(id).ok_or_else(|| reader.invalid(id.into()))
}

/// One spelling of each value, so that two different messages never mean the same.
fn flag(reader: &mut Reader) -> Result<bool, WireError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(reader.invalid(other.into())),
    }
}

fn session(reader: &mut Reader) -> Result<SessionId, WireError> {
    reader.u64().map(SessionId::from_random_bits)
}

fn refusal(reader: &mut Reader) -> Result<SessionRefusal, WireError> {
    let code = reader.u8()?;
    SessionRefusal::from_code(code).ok_or_else(|| reader.invalid(code.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::ProducerId;
    use crate::wire::{BatchEntry, ProducerEntry, TransactionEntry};

    fn position(offset: u64, epoch: u32) -> LogPosition {
        LogPosition::new(
            Offset::new(offset).unwrap(),
            LeaderEpoch::new(epoch).unwrap(),
        )
    }

    fn history() -> EpochHistory {
        vec![
            EpochEntry {
                epoch: LeaderEpoch::new(2).unwrap(),
                start: Offset::ZERO,
            },
            EpochEntry {
                epoch: LeaderEpoch::new(5).unwrap(),
                start: Offset::new(9).unwrap(),
            },
        ]
        .try_into()
        .unwrap()
    }

    fn producers() -> ProducerSnapshot {
        ProducerSnapshot {
            incomplete: true,
            producers: vec![ProducerEntry {
                producer: ProducerId::new(4).unwrap(),
                epoch: 1,
                batches: vec![BatchEntry {
                    base_sequence: 0,
                    last_sequence: 2,
                    base: Offset::ZERO,
                    end: Offset::new(3).unwrap(),
                }],
                transaction: TransactionEntry::none(Offset::new(3).unwrap()),
            }],
            ended: Vec::new(),
        }
    }

    fn control_messages() -> Vec<ControlMessage> {
        let session = SessionId::from_random_bits(77);
        let answer = |outcome| {
            ControlMessage::SessionAnswer(SessionAnswer {
                session,
                leader_epoch: LeaderEpoch::new(5).unwrap(),
                outcome,
            })
        };
        vec![
            ControlMessage::Hello(Hello {
                version: PROTOCOL_VERSION,
                cluster: ClusterId::from_random_bits(1),
                node: NodeId::new(2).unwrap(),
                incarnation: Incarnation::from_random_bits(3),
                directory: DirectoryId::from_random_bits(4),
            }),
            ControlMessage::Welcome(Welcome {
                node: NodeId::new(1).unwrap(),
                incarnation: Incarnation::from_random_bits(8),
                lanes: 8,
            }),
            ControlMessage::OpenSession(OpenSession {
                partition: TopicPartition {
                    topic: TopicId::from_random_bits(6),
                    partition: PartitionIndex(3),
                },
                leader_epoch: LeaderEpoch::new(5).unwrap(),
                session,
                durable: position(12, 5),
                epochs: history(),
                epochs_complete: true,
                log_lost: false,
            }),
            answer(SessionOutcome::Truncate(position(9, 2))),
            answer(SessionOutcome::Reset {
                start: position(40, 4),
                epochs: history(),
                producers: producers(),
            }),
            answer(SessionOutcome::Refused(SessionRefusal::NotLeader)),
            ControlMessage::CloseSession {
                session,
                reason: SessionRefusal::Overloaded,
            },
        ]
    }

    #[test]
    fn control_messages_come_back_and_arrive_in_pieces() {
        for message in control_messages() {
            let encoded = message.encode();
            let mut input = BytesMut::new();
            for &byte in &encoded[..encoded.len() - 1] {
                input.put_u8(byte);
                assert_eq!(ControlMessage::decode(&mut input), Ok(None));
            }
            input.put_u8(encoded[encoded.len() - 1]);
            assert_eq!(ControlMessage::decode(&mut input), Ok(Some(message)));
            assert!(input.is_empty());
        }
    }

    #[test]
    fn acks_come_back() {
        let acks: Vec<_> = (0..3)
            .map(|i| Ack {
                session: SessionId::from_random_bits(i),
                leader_epoch: LeaderEpoch::new(2).unwrap(),
                durable: position(i, 2),
                received: Offset::new(i + 5).unwrap(),
            })
            .collect();
        let encoded = Ack::encode_all(&acks);
        assert_eq!(encoded.len(), 3 * Ack::BYTES);
        let mut input = BytesMut::from(&encoded[..]);
        input.extend_from_slice(&encoded[..7]);
        assert_eq!(Ack::decode_all(&mut input), Ok(acks));
        assert_eq!(input, encoded[..7]);
    }

    #[test]
    fn datagrams_come_back_and_unknown_ones_are_passed_over() {
        let beat = Heartbeat { sequence: 7 };
        let copy = LaneCopy {
            lane: 3,
            offset: 1 << 40,
            bytes: Bytes::from_static(b"some of it"),
        };
        let decode = |bytes: &[u8]| Datagram::decode(Bytes::copy_from_slice(bytes));
        let encoded = beat.encode();
        assert_eq!(decode(&encoded), Ok(Some(Datagram::Heartbeat(beat))));
        assert!(decode(&encoded[..8]).is_err());
        let encoded = copy.encode();
        assert_eq!(encoded.len(), LaneCopy::HEADER_BYTES + 10);
        assert_eq!(decode(&encoded), Ok(Some(Datagram::LaneCopy(copy))));
        assert!(decode(&encoded[..LaneCopy::HEADER_BYTES - 1]).is_err());
        assert_eq!(decode(&[200, 1, 2]), Ok(None));
        assert!(decode(&[]).is_err());
    }

    #[test]
    fn a_lane_message_is_refused_by_its_length_alone() {
        let message = LaneMessage {
            session: SessionId::from_random_bits(1),
            leader_epoch: LeaderEpoch::new(1).unwrap(),
            high_watermark: Offset::ZERO,
            body: LaneBody::Frames(Bytes::from_static(b"frames")),
        };
        let header = LaneMessage::encode_header(
            message.session,
            message.leader_epoch,
            message.high_watermark,
            6,
        );
        let mut input = BytesMut::from(&header[..]);
        assert_eq!(LaneMessage::decode(&mut input), Ok(None));
        input.extend_from_slice(b"frames");
        assert_eq!(LaneMessage::decode(&mut input), Ok(Some(message.clone())));

        let mut huge = BytesMut::from(&header[..]);
        huge[21..25].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(
            LaneMessage::decode(&mut huge),
            Err(WireError::TooLong { .. })
        ));
    }

    #[test]
    fn an_answer_travels_in_front_of_the_frames() {
        let answer = SessionAnswer {
            session: SessionId::from_random_bits(3),
            leader_epoch: LeaderEpoch::new(2).unwrap(),
            outcome: SessionOutcome::Reset {
                start: position(40, 4),
                epochs: history(),
                producers: producers(),
            },
        };
        let watermark = Offset::new(44).unwrap();
        let mut input = BytesMut::from(&LaneMessage::encode_answer(&answer, watermark)[..]);
        let decoded = LaneMessage::decode(&mut input).unwrap().unwrap();
        assert_eq!(decoded.session, answer.session);
        assert_eq!(decoded.leader_epoch, answer.leader_epoch);
        assert_eq!(decoded.body, LaneBody::Answer(answer.outcome));
        assert!(input.is_empty());
    }

    #[test]
    fn a_false_count_allocates_nothing() {
        let ControlMessage::OpenSession(open) = control_messages().remove(2) else {
            panic!("the third message opens a session");
        };
        let encoded = ControlMessage::OpenSession(open).encode();
        let mut input = BytesMut::from(&encoded[..]);
        let count_at = encoded.len() - 2 * 12 - 4;
        input[count_at..count_at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(
            ControlMessage::decode(&mut input),
            Err(WireError::Truncated { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ControlMessage::decode(&mut BytesMut::from(&bytes[..]));
            let _ = Ack::decode_all(&mut BytesMut::from(&bytes[..]));
            let _ = LaneMessage::decode(&mut BytesMut::from(&bytes[..]));
            let _ = LaneHeader::decode(&mut BytesMut::from(&bytes[..]));
            let _ = Datagram::decode(Bytes::from(bytes));
        }

        #[test]
        fn a_changed_byte_is_an_error_or_another_message(index in 0usize..7, at in 4usize..200, flip in 1u8..) {
            let message = control_messages().remove(index);
            let mut input = BytesMut::from(&message.encode()[..]);
            let at = at % input.len();
            input[at] ^= flip;
            if let Ok(Some(decoded)) = ControlMessage::decode(&mut input) {
                prop_assert_ne!(decoded, message);
            }
        }
    }
}
