//! The `kafka` room: Kafka's protocol over any ordered byte stream.
//!
//! A QUIC bidirectional stream and a TCP connection are served by the same code. The room knows the node only through
//! [`Service`], which it defines.

mod service;

pub use service::{
    Acks, CreatedTopic, FetchPartition, FetchRefusal, FetchedRecords, ListedOffset, NodeSetting,
    OffsetSpec, Produce, ProduceOutcome, ProduceReply, Refusal, Service, produce_replied,
};
