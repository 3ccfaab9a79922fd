//! Small files that are replaced as a whole: one line that says what the file is, a JSON body, and a checksum over both.
//!
//! ```text
//! quorate <kind> 1 <CRC-32 of the body, 8 hex digits>
//! { … }
//! ```
//!
//! A person can read them, and a torn or rotten one is noticed.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::file_system::{FileSystem, IoFailure, OpenMode, is_media_error, read_small};

/// The version of the envelope and of every body written in it.
pub(super) const VERSION: u32 = 1;
/// More than any of them needs; a longer one is refused unread.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A small file that cannot be used.
#[derive(Debug, Error)]
pub enum SmallFileError {
    #[error(transparent)]
    Io(#[from] IoFailure),
    #[error("{} is corrupt: {cause}", path.display())]
    Corrupt { path: PathBuf, cause: String },
    #[error(
        "{} has format version {found}, and this build reads up to {VERSION}: start the newer version of quorate that \
         wrote it",
        path.display()
    )]
    NewerVersion { path: PathBuf, found: u32 },
}

/// `None` when the file does not exist.
pub(super) fn read<T: DeserializeOwned>(
    fs: &dyn FileSystem,
    path: &Path,
    kind: &str,
) -> Result<Option<T>, SmallFileError> {
    let corrupt = |cause: &str| SmallFileError::Corrupt {
        path: path.to_owned(),
        cause: cause.to_owned(),
    };
    let bytes = match read_small(fs, path, MAX_BYTES) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => bytes,
        // What the disk cannot give is as good as rotten.
        Err(error) if is_media_error(&error) => return Err(corrupt(&error.to_string())),
        Err(error) => return Err(IoFailure::at("read", path)(error).into()),
    };
    let line_end = bytes
        .iter()
        .position(|&byte| byte == b'\n')
        .ok_or_else(|| corrupt("it has no first line"))?;
    let (line, body) = (&bytes[..line_end], &bytes[line_end + 1..]);
    let line = std::str::from_utf8(line).map_err(|_| corrupt("its first line is not text"))?;
    let mut words = line.split(' ');
    if words.next() != Some("quorate") || words.next() != Some(kind) {
        return Err(corrupt(&format!(
            "it does not begin with \"quorate {kind}\""
        )));
    }
    let version: u32 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| corrupt("its first line names no version"))?;
    if version > VERSION {
        return Err(SmallFileError::NewerVersion {
            path: path.to_owned(),
            found: version,
        });
    }
    let crc = words
        .next()
        .and_then(|word| u32::from_str_radix(word, 16).ok())
        .ok_or_else(|| corrupt("its first line names no checksum"))?;
    if crc32fast::hash(body) != crc {
        return Err(corrupt("its checksum does not match"));
    }
    serde_json::from_slice(body)
        .map(Some)
        .map_err(|error| corrupt(&error.to_string()))
}

/// Replaces the file in one step that survives a power cut: written beside it, synced, renamed, directory synced.
pub(super) fn replace<T: Serialize>(
    fs: &dyn FileSystem,
    path: &Path,
    kind: &str,
    value: &T,
) -> Result<(), IoFailure> {
    write_beside(fs, path, kind, value, true)
}

/// Replaces the file in one step, without waiting for the disk: after a power cut it may be the old one, or unreadable.
/// For what can do without.
pub(super) fn replace_unsynced<T: Serialize>(
    fs: &dyn FileSystem,
    path: &Path,
    kind: &str,
    value: &T,
) -> Result<(), IoFailure> {
    write_beside(fs, path, kind, value, false)
}

fn write_beside<T: Serialize>(
    fs: &dyn FileSystem,
    path: &Path,
    kind: &str,
    value: &T,
    sync: bool,
) -> Result<(), IoFailure> {
    let mut body = serde_json::to_vec_pretty(value)
        .map_err(std::io::Error::from)
        .map_err(IoFailure::at("encode", path))?;
    body.push(b'\n');
    let line = format!("quorate {kind} {VERSION} {:08x}\n", crc32fast::hash(&body));
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let file = fs
        .open(&beside, OpenMode::Create)
        .map_err(IoFailure::at("create", &beside))?;
    file.set_len(0).map_err(IoFailure::at("write", &beside))?;
    file.write_at(0, &[IoSlice::new(line.as_bytes()), IoSlice::new(&body)])
        .map_err(IoFailure::at("write", &beside))?;
    if sync {
        file.sync_data().map_err(IoFailure::at("sync", &beside))?;
    }
    fs.rename(&beside, path)
        .map_err(IoFailure::at("replace", path))?;
    if sync && let Some(dir) = path.parent() {
        fs.sync_dir(dir).map_err(IoFailure::at("sync", dir))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faulty::FaultyFileSystem;

    #[test]
    fn any_flipped_bit_is_noticed() {
        let fs = FaultyFileSystem::new(0);
        let path = Path::new("/f");
        assert!(read::<u32>(&fs, path, "kind").unwrap().is_none());
        replace(&fs, path, "kind", &7u32).unwrap();
        assert_eq!(read::<u32>(&fs, path, "kind").unwrap(), Some(7));
        assert!(read::<u32>(&fs, path, "other").is_err());
        let bits = fs.contents(path).unwrap().len() as u64 * 8;
        for bit in 0..bits {
            fs.flip_bit(path, bit).unwrap();
            // The case of a hexadecimal digit carries nothing.
            if let Ok(Some(value)) = read::<u32>(&fs, path, "kind") {
                assert_eq!(value, 7, "bit {bit}");
            }
            fs.flip_bit(path, bit).unwrap();
        }
    }

    #[test]
    fn after_a_power_loss_it_is_the_old_one_or_the_new_one() {
        let path = Path::new("/f");
        for seed in 0..200 {
            let fs = FaultyFileSystem::new(seed);
            replace(&fs, path, "kind", &1u32).unwrap();
            fs.crash_after(seed % 7);
            let done = replace(&fs, path, "kind", &2u32).is_ok();
            fs.power_loss();
            let found = read::<u32>(&fs, path, "kind").unwrap();
            assert!(
                found == Some(2) || (!done && found == Some(1)),
                "seed {seed}: {found:?}"
            );
        }
    }
}
