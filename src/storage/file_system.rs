//! The door to the disk: every file that storage reads or writes is reached through [`FileSystem`], so that the same code
//! runs on a real disk and on one that fails on purpose ([`super::faulty`]).

use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading only; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; made when it does not exist.
    Create,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The last component of its path. Names that are not UTF-8 are none of ours and are not listed.
    pub name: String,
    pub is_dir: bool,
}

/// An open file. Reads and writes name their place, so that one handle serves many threads.
#[allow(clippy::len_without_is_empty)]
pub trait File: Send + Sync {
    /// Reads at byte `at`; 0 at the end of the file. May read less than asked for.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all parts, one after the other, from byte `at`. After an error any part of them may have been written.
    fn write_at(&self, at: u64, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// fdatasync: the file's bytes, and what is needed to find them again, survive a power cut once this returns. After
    /// an error nothing is known about what was written since the last success, and asking again proves nothing.
    fn sync_data(&self) -> io::Result<()>;

    /// fsync: as [`File::sync_data`], with all of the file's metadata. For truncations.
    fn sync_all(&self) -> io::Result<()>;

    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
}

/// Holds a lock until it is dropped, or until the process ends in any way.
pub trait FileLock: Send + Sync {}

/// Files and directories. A created, renamed or removed name survives a power cut only after [`FileSystem::sync_dir`] of
/// the directory it stands in.
pub trait FileSystem: Send + Sync + 'static {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;

    /// Makes the directory and those above it that do not exist. Not an error when it is there already.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The directory's entries in order of name.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;

    /// Replaces `to`, if it is a file, in one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove_file(&self, path: &Path) -> io::Result<()>;

    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the lock on the file at `path`, making the file when it does not exist, without waiting: `None` when another
    /// holder has it.
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn FileLock>>>;

    /// Bytes that can still be written under `path`.
    fn available_space(&self, path: &Path) -> io::Result<u64>;
}

/// An operation on a file or directory that failed, and where.
#[derive(Debug, Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct IoFailure {
    /// A verb: "read", "write", "sync", …
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl IoFailure {
    pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IoFailure {
        move |source| IoFailure {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Whether the disk, or the quota on it, is full.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether the device itself could not read (EIO).
pub(super) fn is_media_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Reads up to `len` bytes at byte `at`; fewer only at the end of the file.
pub(super) fn read_up_to(file: &dyn File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(at + filled as u64, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// The whole file, `None` when it does not exist. Refuses to read more than `limit` bytes: a small file that has grown
/// large is not what it should be.
pub(super) fn read_small(
    fs: &dyn FileSystem,
    path: &Path,
    limit: u64,
) -> io::Result<Option<Vec<u8>>> {
    let file = match fs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.len()?;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the file has {len} bytes where at most {limit} are expected"),
        ));
    }
    read_up_to(&*file, 0, usize::try_from(len).unwrap_or(usize::MAX)).map(Some)
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFileSystem;

impl RealFileSystem {
    pub fn shared() -> Arc<dyn FileSystem> {
        Arc::new(RealFileSystem)
    }
}

struct RealFile(std::fs::File);

struct RealLock {
    /// Closing it gives up the lock.
    _file: std::fs::File,
}

impl FileLock for RealLock {}

impl fmt::Debug for RealFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl File for RealFile {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.0, buffer, at)
    }

    fn write_at(&self, at: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // The kernel takes at most this many parts in one call.
        const MAX_PARTS: usize = 1024;
        let mut at = at;
        for parts in parts.chunks(MAX_PARTS) {
            let total: usize = parts.iter().map(|part| part.len()).sum();
            let mut written = 0;
            while written < total {
                let result = if written == 0 {
                    rustix::io::pwritev(&self.0, parts, at)
                } else {
                    // A partial write is rare: only then are the parts copied, to be advanced.
                    let mut rest = parts.to_vec();
                    let mut rest = &mut rest[..];
                    IoSlice::advance_slices(&mut rest, written);
                    rustix::io::pwritev(&self.0, rest, at)
                };
                match result {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        written += count;
                        at += count as u64;
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl FileSystem for RealFileSystem {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(mode != OpenMode::Read)
            .create(mode == OpenMode::Create)
            .truncate(false)
            .open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                let is_dir = entry.file_type()?.is_dir();
                entries.push(DirEntry { name, is_dir });
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::File::open(dir)?.sync_all()
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn FileLock>>> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(RealLock { _file: file }))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn available_space(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_parts_land_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let fs = RealFileSystem;
        let path = dir.path().join("f");
        let file = fs.open(&path, OpenMode::Create).unwrap();
        let parts: Vec<Vec<u8>> = (0..3000u32).map(|i| i.to_be_bytes().to_vec()).collect();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        file.write_at(2, &slices).unwrap();
        assert_eq!(file.len().unwrap(), 2 + 12000);
        let back = read_up_to(&*file, 0, 20_000).unwrap();
        assert_eq!(back[2..], parts.concat()[..]);
    }

    #[test]
    fn a_lock_is_held_once_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = RealFileSystem.try_lock(&path).unwrap();
        assert!(held.is_some());
        assert!(RealFileSystem.try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(RealFileSystem.try_lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_small_file_that_is_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(read_small(&RealFileSystem, &path, 4).unwrap().is_none());
        std::fs::write(&path, b"12345").unwrap();
        assert!(read_small(&RealFileSystem, &path, 4).is_err());
        assert_eq!(
            read_small(&RealFileSystem, &path, 5).unwrap().unwrap(),
            b"12345"
        );
    }
}
