//! Floor 2: what crosses a replication connection.
//!
//! A follower dials its leader and opens one bidirectional *control stream* and one unidirectional *ack stream*; the leader
//! opens unidirectional *lanes*, on which WAL frames go out. Heartbeats and copies of lane bytes
//! are datagrams. This room holds their messages and
//! the framing that they share: pure functions from values to bytes and back. Every length that comes from the wire is checked
//! before anything is allocated for it.

mod codec;
mod producers;
mod replication;

pub use codec::WireError;
pub use producers::{
    BatchEntry, EndedEntry, MAX_SNAPSHOT_BATCHES, MAX_SNAPSHOT_BYTES, MAX_SNAPSHOT_ENDED,
    MAX_SNAPSHOT_PRODUCERS, ProducerEntry, ProducerSnapshot, TransactionEntry,
};
pub use replication::{
    Ack, ControlMessage, Datagram, Heartbeat, Hello, LaneBody, LaneCopy, LaneHeader, LaneMessage,
    MAX_ANSWER_BYTES, MAX_CONTROL_MESSAGE_BYTES, MAX_HELLO_EPOCHS, MAX_LANE_MESSAGE_BYTES,
    OpenSession, PROTOCOL_VERSION, SessionAnswer, SessionOutcome, SessionRefusal, Welcome,
};
