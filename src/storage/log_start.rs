//! What is known of a log before its first frame: where it starts, and the epochs before that.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file_system::{FileSystem, IoFailure};
use super::small_file::{self, SmallFileError};
use crate::types::{EpochHistory, LogPosition};

const FILE: &str = "log-start";
const KIND: &str = "log-start";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogStart {
    pub(super) position: LogPosition,
    /// Epochs up to the position's, the only ones that no frame of the log tells of.
    pub(super) epochs: EpochHistory,
    /// A reset had begun: every segment is to be removed before the log is used.
    #[serde(default)]
    pub(super) discard_segments: bool,
}

impl LogStart {
    pub(super) fn new(position: LogPosition, epochs: &EpochHistory) -> LogStart {
        LogStart {
            position,
            epochs: up_to(epochs, position),
            discard_segments: false,
        }
    }

    pub(super) fn read(
        fs: &dyn FileSystem,
        dir: &Path,
    ) -> Result<Option<LogStart>, SmallFileError> {
        small_file::read(fs, &dir.join(FILE), KIND)
    }

    pub(super) fn write(&self, fs: &dyn FileSystem, dir: &Path) -> Result<(), IoFailure> {
        small_file::replace(fs, &dir.join(FILE), KIND, self)
    }
}

/// The epochs that began at or before `position`.
fn up_to(epochs: &EpochHistory, position: LogPosition) -> EpochHistory {
    let mut epochs = epochs.clone();
    epochs.truncate(position);
    epochs
}

/// Without the epochs that ended before the frame at `start` was written. Where a log starts behind nothing but the epoch start
/// of its first epoch, that start may not be committed, and the leader of a later epoch may have a log without it: so the epoch
/// before it is kept too, in which the two logs part at that very offset.
pub(super) fn from_start(epochs: &EpochHistory, start: LogPosition) -> EpochHistory {
    let entries = epochs.entries();
    let first = entries.partition_point(|entry| entry.epoch < start.epoch);
    let begins_there = entries
        .get(first)
        .is_some_and(|entry| entry.start >= start.offset);
    let kept = &entries[first.saturating_sub(usize::from(begins_there))..];
    // A part of a history that rises rises too.
    kept.to_vec().try_into().unwrap_or_default()
}
