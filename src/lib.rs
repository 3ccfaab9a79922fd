//! Quorate: a replicated log broker for links that fail.
//!
//! This file is the map. Each module is a room of one house; a room uses only rooms on lower floors, and
//! `tests/architecture.rs` holds it to that. Floors 1 to 3 and `partition` do no I/O and read no clock: time and randomness
//! come in as arguments, so a simulation runs the very code that the broker runs.
//!
//! ```text
//! 11  cli          one file a command
//! 10  bench        clusters of processes on this machine, and what is measured with them
//!  9  node         one process: configuration, start, stop
//!  8  admin        what a node tells about itself
//!  7  broker       owner threads, replication links, reading; implements kafka::Service
//!     proxy        a Kafka endpoint on a client's machine, carried to the cluster over QUIC
//!  6  kafka        Kafka's protocol over any byte stream   client  producer, consumer, admin   controller  openraft on redb
//!     doctor       what is wrong between two machines, rung by rung
//!  5  partition    one partition's core joined to its log
//!  4  storage      segments, recovery, group commit, promises   transport  QUIC, TLS identity, lanes, calls
//!  3  replication  leader, follower, ack tracker, sans-IO   metadata  the cluster image, and who leads next
//!     groups       consumer groups and their offsets, sans-IO   transactions  who writes what, and how it ends, sans-IO
//!  2  record       Kafka record batches   wal  the frame, on disk and on the wire   wire  replication messages
//!  1  types        ids, offsets, epochs, quorum arithmetic, error codes
//! ```
//!
//! # A batch's way, at `acks=all`
//!
//! ```text
//!  client::producer     seals a batch, stamps it with its sequence number, sends it on a QUIC stream
//!        │
//!  kafka                checks lengths, structure, CRC-32C; the payload stays one slice of what arrived
//!        │  mailbox of the partition's owner thread (broker::shard)
//!  partition            Leader::admit: epoch, min.insync.replicas heard, sequence; offsets are given
//!        │
//!        ├── storage    one frame appended; GroupCommit syncs it ───────────────┐ Leader::handle_durable
//!        │                                                                      │
//!        └── lane ──▶ follower: wal CRC ▶ partition ▶ storage ▶ sync ▶ ack ─────┤ Leader::handle_ack
//!                                                                               ▼
//!  kafka  ◀──────────── AckTracker completes all waits at or below the high watermark: the q-th largest durable end
//! ```
//!
//! Inward is a call, outward is an action or output that is polled. Only `partition` touches both the core and the log.

#![forbid(unsafe_code)]

pub mod admin;
pub mod bench;
pub mod broker;
pub mod cli;
pub mod client;
pub mod controller;
pub mod doctor;
pub mod groups;
pub mod kafka;
pub mod metadata;
pub mod node;
pub mod partition;
pub mod proxy;
pub mod record;
pub mod replication;
pub mod storage;
pub mod transactions;
pub mod transport;
pub mod types;
pub mod wal;
pub mod wire;
