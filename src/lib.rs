//! Quorate: a replicated log broker for links that fail.

#![forbid(unsafe_code)]

pub mod admin;
pub mod broker;
pub mod cli;
pub mod client;
pub mod controller;
pub mod kafka;
pub mod metadata;
pub mod node;
pub mod partition;
pub mod record;
pub mod replication;
pub mod storage;
pub mod transport;
pub mod types;
pub mod wal;
pub mod wire;
