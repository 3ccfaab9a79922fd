//! Logs on a disk that fails on purpose, for this room's tests.

use std::path::Path;

use super::faulty::FaultyFileSystem;
use super::{FileSystem, Log, SyncError};
use crate::types::{PartitionIndex, TopicId, TopicPartition};
use crate::wal::Frame;

pub(super) const DIR: &str = "/logs/p";

pub(super) fn id() -> TopicPartition {
    TopicPartition {
        topic: TopicId::from_random_bits(1),
        partition: PartitionIndex(0),
    }
}

/// An empty one, but for the directory that logs are made in.
pub(super) fn disk(seed: u64) -> FaultyFileSystem {
    let fs = FaultyFileSystem::new(seed);
    fs.create_dir_all(Path::new("/logs")).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    fs
}

/// One round, if there is anything to sync.
pub(super) fn sync(log: &mut Log) -> Result<(), SyncError> {
    let Some(ticket) = log.begin_sync() else {
        return Ok(());
    };
    let outcome = ticket.run();
    log.finish_sync(ticket);
    outcome
}

/// All frames.
pub(super) fn contents(log: &Log) -> Vec<Frame> {
    log.frames(log.start())
        .map(|frame| frame.unwrap())
        .collect()
}
