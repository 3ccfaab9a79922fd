//! A note in a partition's directory that its log has lost, or may have lost, what this replica once acknowledged. Such a
//! replica neither votes nor leads until an ISR change names its present incarnation; the note outlives restarts until
//! then.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file_system::{FileSystem, IoFailure};
use super::small_file::{self, SmallFileError};

const FILE: &str = "impaired";
const KIND: &str = "impairment";

/// Why a log cannot be trusted to hold everything that it acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Impairment {
    pub reason: ImpairmentReason,
    /// For people: which file, which byte, which error.
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImpairmentReason {
    /// The log was corrupt and has been set aside.
    Quarantined,
    /// A read found a bad or missing frame while the node ran. The log is set aside when the replica next follows a leader,
    /// or when the node is started again and finds it once more.
    BadRead,
    /// There was no log where there had been one.
    Lost,
    /// A sync failed.
    SyncFailed,
    /// The machine went down under a log that does not sync each append (`flush=os`).
    PowerLost,
}

impl Impairment {
    pub(super) fn sync_failed(detail: String) -> Impairment {
        Impairment {
            reason: ImpairmentReason::SyncFailed,
            detail,
        }
    }
}

/// An unreadable note is still a note: something was wrong, and the worst is assumed.
pub(super) fn read(fs: &dyn FileSystem, dir: &Path) -> Result<Option<Impairment>, IoFailure> {
    match small_file::read(fs, &dir.join(FILE), KIND) {
        Ok(note) => Ok(note),
        Err(SmallFileError::Io(error)) => Err(error),
        Err(unreadable) => Ok(Some(Impairment::sync_failed(unreadable.to_string()))),
    }
}

pub(super) fn write(fs: &dyn FileSystem, dir: &Path, note: &Impairment) -> Result<(), IoFailure> {
    small_file::replace(fs, &dir.join(FILE), KIND, note)
}

pub(super) fn clear(fs: &dyn FileSystem, dir: &Path) -> Result<(), IoFailure> {
    let path = dir.join(FILE);
    match fs.remove_file(&path) {
        Ok(()) => fs.sync_dir(dir).map_err(IoFailure::at("sync", dir)),
        Err(error) if super::reader::is_not_found(&error) => Ok(()),
        Err(error) => Err(IoFailure::at("remove", &path)(error)),
    }
}
