//! Files that hold secrets: made with mode 0600, refused when anyone else could read them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The most that a key, certificate or endpoint-key file may hold, in bytes. A larger one is refused unread: none that
/// this program writes comes near it.
pub(super) const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why a key or certificate file could not be read or written.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("{path} does not exist")]
    Missing { path: PathBuf },
    #[error(
        "{path} may be read by others (mode {mode:04o}); nothing was read from it. Run: chmod 0600 {}",
        shell_word(path)
    )]
    LooseMode { path: PathBuf, mode: u32 },
    #[error("{path} exists already and was left alone. Give --overwrite to replace it")]
    Exists { path: PathBuf },
    #[error(
        "{path} holds {length} bytes, more than the {MAX_FILE_BYTES} that such a file may have"
    )]
    TooLarge { path: PathBuf, length: u64 },
    #[error("cannot {action} {path}: check that this user may do so, and that the disk has room")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl FileError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| match source.kind() {
            io::ErrorKind::NotFound if action == "read" => FileError::Missing { path: path.into() },
            io::ErrorKind::AlreadyExists => FileError::Exists { path: path.into() },
            _ => FileError::Io {
                action,
                path: path.into(),
                source,
            },
        }
    }
}

/// Makes a directory, and its parents, that only this user may enter. One that exists is left as it is.
pub(super) fn create_private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(FileError::io("create directory", path))
}

/// Reads a file that anyone may read.
pub(super) fn read_public(path: &Path) -> Result<Vec<u8>, FileError> {
    read(path, |_| Ok(()))
}

/// Reads a secret. The mode is checked on the open file, so that it cannot change in between.
pub(super) fn read_private(path: &Path) -> Result<Vec<u8>, FileError> {
    read(path, |file| {
        let mode = file.metadata().map_err(FileError::io("read", path))?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(FileError::LooseMode {
                path: path.into(),
                mode,
            });
        }
        Ok(())
    })
}

/// Writes a certificate (mode 0644) and syncs it.
pub(super) fn write_public(path: &Path, bytes: &[u8], overwrite: bool) -> Result<(), FileError> {
    write(path, bytes, 0o644, overwrite)
}

/// Writes a secret and syncs it. The file has mode 0600 from its first instant: no moment passes in which it is readable
/// and not yet protected.
pub(super) fn write_private(path: &Path, bytes: &[u8], overwrite: bool) -> Result<(), FileError> {
    write(path, bytes, 0o600, overwrite)
}

fn read(
    path: &Path,
    check: impl FnOnce(&File) -> Result<(), FileError>,
) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(FileError::io("read", path))?;
    check(&file)?;
    let length = file.metadata().map_err(FileError::io("read", path))?.len();
    if length > MAX_FILE_BYTES {
        return Err(FileError::TooLarge {
            path: path.into(),
            length,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(FileError::io("read", path))?;
    Ok(bytes)
}

/// A replacement is written beside the old file and renamed over it, so that a crash leaves one of the two, whole.
fn write(path: &Path, bytes: &[u8], mode: u32, overwrite: bool) -> Result<(), FileError> {
    let target = if overwrite {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let beside = PathBuf::from(name);
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::io("write", &beside)(error));
            }
            _ => beside,
        }
    } else {
        path.to_owned()
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&target)
        .map_err(FileError::io("write", &target))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(FileError::io("write", &target))?;
    if overwrite {
        std::fs::rename(&target, path).map_err(FileError::io("write", path))?;
    }
    // The new name must survive a crash as well as the bytes.
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(FileError::io("sync directory", directory))
}

/// A path as one word of a shell command line, so that a printed command can be pasted.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_secret_is_0600_and_a_looser_one_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b.key");
        write_private(&path, b"secret", false).unwrap();
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(read_private(&path).unwrap(), b"secret");
        for mode in [0o640, 0o604, 0o644, 0o610] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = read_private(&path).unwrap_err().to_string();
            let command = format!("chmod 0600 '{}'", path.display());
            assert!(error.ends_with(&command), "{error}");
        }
        assert!(read_public(&path).is_ok());
    }

    #[test]
    fn nothing_is_overwritten_unasked_and_a_replacement_tightens_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        write_private(&path, b"old", false).unwrap();
        let error = write_private(&path, b"new", false).unwrap_err();
        assert!(matches!(error, FileError::Exists { .. }), "{error}");
        assert_eq!(read_private(&path).unwrap(), b"old");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        write_private(&path, b"new", true).unwrap();
        assert_eq!(read_private(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_too_large_to_be_a_key_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        let file = File::create(&path).unwrap();
        file.set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(matches!(
            read_public(&path),
            Err(FileError::TooLarge { .. })
        ));
    }
}
