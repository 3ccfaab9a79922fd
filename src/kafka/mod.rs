//! The `kafka` room: Kafka's protocol over any ordered byte stream.
//!
//! A QUIC bidirectional stream and a TCP connection are served by the same code. The room knows the node only through
//! [`Service`], which it defines.
//!
//! A request's way: `framing` cuts it off the stream, within the memory that `budget` grants; `codec` reads its
//! header and looks it up in the table of `versions`; `preflight` walks it by its `schema`, so that decoding it
//! allocates no more than it brought; a file of `handlers` asks the [`Service`]; `connection` writes the answer, in
//! the order of the requests.

mod budget;
mod chunks;
mod codec;
mod connection;
mod context;
mod features;
mod framing;
mod handlers;
pub mod limits;
mod login;
mod meters;
mod preflight;
mod schema;
mod scram;
mod service;
#[cfg(test)]
mod tests;
mod versions;

pub use codec::is_request;
pub use connection::{Connection, Ended, Peer, Server};
pub use context::{Config, ListenerKind};
pub use login::Login;
pub use meters::{Meters, RequestMeter};
pub use scram::{read_plain, read_scram};
pub use service::{
    Acks, CreatedTopic, FetchPartition, FetchRefusal, FetchedRecords, ListedOffset, NodeSetting,
    OffsetSpec, Produce, ProduceOutcome, ProduceReply, ProducerDescription, Refusal, Service,
    Verification, VerificationGuard, produce_replied,
};
pub use versions::{SERVED_APIS, ServedApi};
