//! How long a small write takes to become durable in a directory, measured.

use std::io::{self, IoSlice};
use std::path::Path;
use std::time::{Duration, Instant};

use super::file_system::{FileSystem, IoFailure, OpenMode};

/// In the directory while it is measured; one that a crash left behind is written over.
const FILE: &str = "probe";
const WRITE_BYTES: usize = 4096;
const ROUNDS: u32 = 9;
/// No further round begins after this much time.
const ENOUGH: Duration = Duration::from_secs(2);

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskProbe {
    /// Of `syncs` writes of 4 KiB, each followed by fdatasync: the one in the middle, and the slowest.
    pub median: Duration,
    pub worst: Duration,
    pub syncs: u32,
    pub free_bytes: u64,
}

/// Writes and syncs a small file in `dir` a few times, and removes it. Blocks for as long as the disk takes. Touches nothing
/// else there, and needs no lock.
pub fn probe_disk(fs: &dyn FileSystem, dir: &Path) -> Result<DiskProbe, IoFailure> {
    let path = dir.join(FILE);
    let free_bytes = fs
        .available_space(dir)
        .map_err(IoFailure::at("ask for free space in", dir))?;
    let measured = measure(fs, &path);
    let removed = fs.remove_file(&path);
    let mut durations = measured.map_err(IoFailure::at("write and sync", &path))?;
    removed.map_err(IoFailure::at("remove", &path))?;
    durations.sort();
    let syncs = u32::try_from(durations.len()).unwrap_or(u32::MAX);
    Ok(DiskProbe {
        median: durations
            .get(durations.len() / 2)
            .copied()
            .unwrap_or_default(),
        worst: durations.last().copied().unwrap_or_default(),
        syncs,
        free_bytes,
    })
}

fn measure(fs: &dyn FileSystem, path: &Path) -> io::Result<Vec<Duration>> {
    let file = fs.open(path, OpenMode::Create)?;
    let block = vec![0x51; WRITE_BYTES];
    let begin = Instant::now();
    let mut durations = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        file.write_at(
            u64::from(round) * WRITE_BYTES as u64,
            &[IoSlice::new(&block)],
        )?;
        file.sync_data()?;
        durations.push(start.elapsed());
        if begin.elapsed() > ENOUGH {
            break;
        }
    }
    Ok(durations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::RealFileSystem;

    #[test]
    fn a_directory_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let probe = probe_disk(&RealFileSystem, dir.path()).unwrap();
        assert_eq!(probe.syncs, ROUNDS);
        assert!(probe.median <= probe.worst && probe.median > Duration::ZERO);
        assert!(probe.free_bytes > 0);
        assert_eq!(RealFileSystem.list(dir.path()).unwrap(), []);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = probe_disk(&RealFileSystem, Path::new("/nowhere/at/all")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
