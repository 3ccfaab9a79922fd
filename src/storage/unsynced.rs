//! Whether a log may hold frames that count as durable and are not on the disk.
//!
//! With [`Flush::Os`](super::Flush::Os) a frame counts once the kernel has it. A file in the log's directory says so, from before
//! the first such frame until everything is synced under [`Flush::Fsync`](super::Flush::Fsync). Without it a power loss would go
//! unnoticed where the policy was changed in between: what counted is gone, and the log would vote as if it had never had it.

use std::path::Path;

use super::file_system::{FileSystem, IoFailure, OpenMode, read_small};
use super::reader::is_not_found;

const FILE: &str = "unsynced";
/// It is empty; whatever else it holds says the same.
const MAX_BYTES: u64 = 4096;

pub(super) fn is_noted(fs: &dyn FileSystem, dir: &Path) -> Result<bool, IoFailure> {
    let path = dir.join(FILE);
    let found = read_small(fs, &path, MAX_BYTES).map_err(IoFailure::at("read", &path))?;
    Ok(found.is_some())
}

/// Durable when this returns.
pub(super) fn note(fs: &dyn FileSystem, dir: &Path) -> Result<(), IoFailure> {
    let path = dir.join(FILE);
    let file = fs
        .open(&path, OpenMode::Create)
        .map_err(IoFailure::at("create", &path))?;
    file.sync_all().map_err(IoFailure::at("sync", &path))?;
    fs.sync_dir(dir).map_err(IoFailure::at("sync", dir))
}

/// A removal that a crash undoes is made up for at the next start.
pub(super) fn clear(fs: &dyn FileSystem, dir: &Path) -> Result<(), IoFailure> {
    let path = dir.join(FILE);
    match fs.remove_file(&path) {
        Err(error) if !is_not_found(&error) => Err(IoFailure::at("remove", &path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
