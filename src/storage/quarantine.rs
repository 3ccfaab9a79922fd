//! Corrupt logs that are set aside: at opening, or while the node runs, when a read finds what recovery did not look at.

use std::path::{Path, PathBuf};

use super::file_system::{FileSystem, IoFailure};
use super::impairment::{self, Impairment, ImpairmentReason};
use super::index::SegmentIndex;
use super::log::{Flush, Log};
use super::recovery::{OpenError, prepare_dir};
use super::snapshots::Snapshots;
use super::sync;
use crate::types::{EpochHistory, LogPosition};

const QUARANTINE_MARK: &str = ".quarantine-";

impl Log {
    /// Notes durably that a read found damage. From here on, over restarts too, the replica neither votes nor leads until it
    /// is admitted again, and the next start reads every frame. The log itself stays: it may be the only one.
    pub fn note_bad_read(&mut self, cause: &str) -> Result<(), IoFailure> {
        let note = Impairment {
            reason: ImpairmentReason::BadRead,
            detail: cause.to_owned(),
        };
        impairment::write(&*self.shared.fs, &self.shared.dir, &note)?;
        self.impairment = Some(note);
        Ok(())
    }

    /// Sets the log aside, as opening a corrupt one does, and goes on as an empty one, impaired. Returns where the old one
    /// is. Blocks for a few syncs; a sync ticket that is out moves nothing when it comes back. After an error the log takes
    /// no more writes.
    pub fn set_aside(&mut self, cause: &str) -> Result<PathBuf, OpenError> {
        let outcome = self.begin_empty(cause);
        if let Err(error) = &outcome {
            self.poison(format!("it could not be set aside: {error}"));
        }
        outcome
    }

    fn begin_empty(&mut self, cause: &str) -> Result<PathBuf, OpenError> {
        let fs = self.shared.fs.clone();
        let dir = self.shared.dir.clone();
        self.generation += 1;
        self.ticket_out = false;
        let moved_to = {
            // A ticket that runs now writes beside this log or, by its generation, nothing.
            let mut checkpoint = sync::lock(&self.checkpoint);
            checkpoint.generation = self.generation;
            checkpoint.flushed = None;
            let moved_to = set_aside(&*fs, &dir)?;
            prepare_dir(&*fs, &dir, self.id, &self.topic)?;
            moved_to
        };
        let note = Impairment {
            reason: ImpairmentReason::Quarantined,
            detail: cause.to_owned(),
        };
        impairment::write(&*fs, &dir, &note)?;
        {
            let mut checkpoint = sync::lock(&self.checkpoint);
            checkpoint.begin_lineage(&*fs, &dir, LogPosition::START)?;
            self.lineage = checkpoint.lineage;
        }
        {
            let mut state = self.shared.state_mut();
            state.segments.clear();
            state.active_index = SegmentIndex::default();
            state.active_file = None;
            state.start = LogPosition::START;
            state.end = LogPosition::START;
            state.tail.clear();
            state.generation += 1;
        }
        self.shared.forget_indexes();
        self.sealed_unsynced.clear();
        self.dir_unsynced = false;
        self.unsynced = false;
        if self.config.flush == Flush::Os {
            self.note_unsynced()?;
        }
        self.snapshots = Snapshots::default();
        self.epochs = EpochHistory::new();
        self.set_synced_up_to(LogPosition::START);
        self.impairment = Some(note);
        // Whatever it was, it was of files that are no longer this log's.
        self.poisoned = None;
        Ok(moved_to)
    }
}

/// Renames the directory beside itself, and returns where it is.
pub(super) fn set_aside(fs: &dyn FileSystem, dir: &Path) -> Result<PathBuf, IoFailure> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    let taken = fs.list(parent).map_err(IoFailure::at("list", parent))?;
    let mut number = 1u32;
    let moved_to = loop {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(format!("{QUARANTINE_MARK}{number}"));
        if !taken.iter().any(|entry| *entry.name == *name) {
            break parent.join(name);
        }
        number += 1;
    };
    fs.rename(dir, &moved_to)
        .map_err(IoFailure::at("set aside", dir))?;
    fs.sync_dir(parent).map_err(IoFailure::at("sync", parent))?;
    Ok(moved_to)
}

pub(super) fn has_quarantine(fs: &dyn FileSystem, dir: &Path) -> Result<bool, IoFailure> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    let mut prefix = dir.file_name().unwrap_or_default().to_owned();
    prefix.push(QUARANTINE_MARK);
    let entries = fs.list(parent).map_err(IoFailure::at("list", parent))?;
    let prefix = prefix.to_string_lossy();
    Ok(entries.iter().any(|entry| entry.name.starts_with(&*prefix)))
}

/// Whether a directory's name is that of a log that was set aside.
pub(super) fn is_quarantine_name(name: &str) -> bool {
    name.contains(QUARANTINE_MARK)
}
