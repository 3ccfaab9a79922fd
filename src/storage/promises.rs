//! The highest leader epoch that each replica of this node has promised, all in one file: a fence of a thousand partitions
//! costs one sync.
//!
//! The file grows by one record for each batch of raises and is written anew, without what is outdated, at every start and
//! when it has grown large. All integers are big-endian.
//!
//! ```text
//!  byte  length  field
//!     0       4  magic     "QPRM"
//!     4       4  version   1
//!     8       …  records, each:
//!             4  length    of the entries in bytes
//!             4  CRC-32    over length and entries
//!            24  per entry: topic id (16), partition (4), leader epoch (4); epoch 0 forgets the partition
//! ```
//!
//! Only the last record can be torn by a crash, and nothing was promised on the strength of it: it is dropped. A bad record
//! with a good one behind it is corruption, and the node refuses to start, because a promise must not fall.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut};
use thiserror::Error;

use super::file_system::{File, FileSystem, IoFailure, OpenMode, is_no_space, read_small};
use crate::types::{LeaderEpoch, PartitionIndex, TopicId, TopicPartition};

const FILE: &str = "promises";
const MAGIC: [u8; 4] = *b"QPRM";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 8;
const RECORD_HEADER_LEN: usize = 8;
const ENTRY_LEN: usize = 24;
/// Refused unread above this: 2.7 million entries.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// The file is written anew when it is this large and four times what it needs to be.
const REWRITE_BYTES: u64 = 256 * 1024;

/// Why promises were not read or not raised.
#[derive(Debug, Error)]
pub enum PromiseError {
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// The promises are as before.
    #[error("no space left on the device for {}: free some", path.display())]
    NoSpace { path: PathBuf },
    #[error(
        "{} is corrupt at byte {byte}, and a promise must not be forgotten: start this node with an empty data directory, \
         as after the loss of its disk",
        path.display()
    )]
    Corrupt { path: PathBuf, byte: usize },
    #[error(
        "{} has format version {found}, and this build reads up to {VERSION}: start the newer version of quorate that \
         wrote it",
        path.display()
    )]
    NewerVersion { path: PathBuf, found: u32 },
    #[error("promises cannot be raised any more since {cause}: restart the node")]
    Poisoned { cause: String },
}

/// This node's promises. Shared between threads; a raise holds up other raises while it syncs, and reads never.
pub struct Promises {
    writer: Mutex<Writer>,
    /// What is durable.
    saved: Mutex<BTreeMap<TopicPartition, LeaderEpoch>>,
}

struct Writer {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    file: Arc<dyn File>,
    len: u64,
    poisoned: Option<String>,
}

impl Promises {
    /// Reads the file in `dir`, or begins an empty one, and writes it anew, so that what was read is durable whatever
    /// became of the last process's syncs.
    pub fn open(fs: Arc<dyn FileSystem>, dir: &Path) -> Result<Promises, PromiseError> {
        let path = dir.join(FILE);
        let bytes =
            read_small(&*fs, &path, MAX_FILE_BYTES).map_err(IoFailure::at("read", &path))?;
        let saved = match bytes {
            Some(bytes) => decode(&bytes, &path)?,
            None => BTreeMap::new(),
        };
        let (file, len) = rewrite(&*fs, dir, &saved)?;
        Ok(Promises {
            writer: Mutex::new(Writer {
                fs,
                dir: dir.to_owned(),
                file,
                len,
                poisoned: None,
            }),
            saved: Mutex::new(saved),
        })
    }

    /// Reads the file in `dir` without changing it. One that does not exist is in order.
    pub fn check(fs: &dyn FileSystem, dir: &Path) -> Result<(), PromiseError> {
        let path = dir.join(FILE);
        match read_small(fs, &path, MAX_FILE_BYTES).map_err(IoFailure::at("read", &path))? {
            Some(bytes) => decode(&bytes, &path).map(|_| ()),
            None => Ok(()),
        }
    }

    /// The highest epoch promised for the partition; [`LeaderEpoch::NONE`] if none was.
    pub fn get(&self, partition: TopicPartition) -> LeaderEpoch {
        lock(&self.saved)
            .get(&partition)
            .copied()
            .unwrap_or(LeaderEpoch::NONE)
    }

    /// Raises promises, all durable when this returns, with one sync. One that is not above the present promise changes
    /// nothing. Blocks for the sync. After an error none is raised, though after a restart some may be found raised.
    pub fn raise(&self, raises: &[(TopicPartition, LeaderEpoch)]) -> Result<(), PromiseError> {
        let mut writer = lock(&self.writer);
        let mut higher: BTreeMap<TopicPartition, LeaderEpoch> = BTreeMap::new();
        {
            let saved = lock(&self.saved);
            for &(partition, epoch) in raises {
                let present = higher.get(&partition).or_else(|| saved.get(&partition));
                if epoch > present.copied().unwrap_or(LeaderEpoch::NONE) {
                    higher.insert(partition, epoch);
                }
            }
        }
        if higher.is_empty() {
            return Ok(());
        }
        writer.append(&higher)?;
        lock(&self.saved).extend(higher);
        self.rewrite_if_large(&mut writer);
        Ok(())
    }

    /// Forgets partitions that are deleted for ever.
    pub fn forget(&self, partitions: &[TopicPartition]) -> Result<(), PromiseError> {
        let mut writer = lock(&self.writer);
        let known: BTreeMap<TopicPartition, LeaderEpoch> = {
            let saved = lock(&self.saved);
            partitions
                .iter()
                .filter(|partition| saved.contains_key(partition))
                .map(|partition| (*partition, LeaderEpoch::NONE))
                .collect()
        };
        if known.is_empty() {
            return Ok(());
        }
        writer.append(&known)?;
        lock(&self.saved).retain(|partition, _| !known.contains_key(partition));
        Ok(())
    }

    fn rewrite_if_large(&self, writer: &mut Writer) {
        let saved = lock(&self.saved).clone();
        let needed = (saved.len() * ENTRY_LEN) as u64;
        if writer.len < REWRITE_BYTES.max(4 * needed) || writer.poisoned.is_some() {
            return;
        }
        // Everything is durable in the old file already; the new one takes its place or does not.
        match rewrite(&*writer.fs, &writer.dir, &saved) {
            Ok((file, len)) => {
                writer.file = file;
                writer.len = len;
            }
            // The name may mean either file now, so neither may be appended to.
            Err(error) => writer.poisoned = Some(error.to_string()),
        }
    }
}

impl Writer {
    fn append(
        &mut self,
        entries: &BTreeMap<TopicPartition, LeaderEpoch>,
    ) -> Result<(), PromiseError> {
        if let Some(cause) = &self.poisoned {
            return Err(PromiseError::Poisoned {
                cause: cause.clone(),
            });
        }
        let path = self.dir.join(FILE);
        let record = encode_record(entries);
        if let Err(error) = self.file.write_at(self.len, &[IoSlice::new(&record)]) {
            if let Err(error) = self.file.set_len(self.len) {
                self.poisoned = Some(error.to_string());
            }
            return Err(if is_no_space(&error) {
                PromiseError::NoSpace { path }
            } else {
                IoFailure::at("write", &path)(error).into()
            });
        }
        if let Err(error) = self.file.sync_data() {
            self.poisoned = Some(error.to_string());
            return Err(IoFailure::at("sync", &path)(error).into());
        }
        self.len += record.len() as u64;
        Ok(())
    }
}

fn encode_record(entries: &BTreeMap<TopicPartition, LeaderEpoch>) -> Vec<u8> {
    let len = entries.len() * ENTRY_LEN;
    let mut record = Vec::with_capacity(RECORD_HEADER_LEN + len);
    record.put_u32(len as u32);
    record.put_u32(0);
    for (partition, epoch) in entries {
        record.put_u128(partition.topic.to_bits());
        record.put_u32(partition.partition.0);
        record.put_u32(epoch.get());
    }
    let crc = record_crc(&record);
    record[4..8].copy_from_slice(&crc.to_be_bytes());
    record
}

fn record_crc(record: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&record[..4]);
    crc.update(&record[RECORD_HEADER_LEN..]);
    crc.finalize()
}

/// The entries of the record at the start of `bytes`, if it is whole.
fn record_at(bytes: &[u8]) -> Option<&[u8]> {
    let (head, rest) = bytes.split_first_chunk::<RECORD_HEADER_LEN>()?;
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let crc = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    if len == 0 || !len.is_multiple_of(ENTRY_LEN) || len > rest.len() {
        return None;
    }
    (record_crc(&bytes[..RECORD_HEADER_LEN + len]) == crc).then(|| &rest[..len])
}

fn decode(
    bytes: &[u8],
    path: &Path,
) -> Result<BTreeMap<TopicPartition, LeaderEpoch>, PromiseError> {
    let corrupt = |byte| PromiseError::Corrupt {
        path: path.to_owned(),
        byte,
    };
    // The file comes to be by a rename, header included, so a short one was never written by us.
    let (header, _) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(corrupt(0))?;
    if header[..4] != MAGIC {
        return Err(corrupt(0));
    }
    let version = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    if version > VERSION {
        return Err(PromiseError::NewerVersion {
            path: path.to_owned(),
            found: version,
        });
    }
    let mut saved = BTreeMap::new();
    let mut at = HEADER_LEN;
    while at < bytes.len() {
        let Some(mut entries) = record_at(&bytes[at..]) else {
            if (at + 1..bytes.len()).any(|later| record_at(&bytes[later..]).is_some()) {
                return Err(corrupt(at));
            }
            break;
        };
        at += RECORD_HEADER_LEN + entries.len();
        while entries.has_remaining() {
            let partition = TopicPartition {
                topic: TopicId::from_random_bits(entries.get_u128()),
                partition: PartitionIndex(entries.get_u32()),
            };
            match LeaderEpoch::new(entries.get_u32()) {
                Some(LeaderEpoch::NONE) => {
                    saved.remove(&partition);
                }
                Some(epoch) => {
                    saved.insert(partition, epoch);
                }
                None => return Err(corrupt(at)),
            }
        }
    }
    Ok(saved)
}

/// Writes a new file with one record and puts it in place of the old one. Returns it and its length.
fn rewrite(
    fs: &dyn FileSystem,
    dir: &Path,
    saved: &BTreeMap<TopicPartition, LeaderEpoch>,
) -> Result<(Arc<dyn File>, u64), IoFailure> {
    let path = dir.join(FILE);
    let beside = dir.join(format!("{FILE}.new"));
    let mut bytes = MAGIC.to_vec();
    bytes.put_u32(VERSION);
    if !saved.is_empty() {
        bytes.extend_from_slice(&encode_record(saved));
    }
    let file = fs
        .open(&beside, OpenMode::Create)
        .map_err(IoFailure::at("create", &beside))?;
    file.set_len(0).map_err(IoFailure::at("write", &beside))?;
    file.write_at(0, &[IoSlice::new(&bytes)])
        .map_err(IoFailure::at("write", &beside))?;
    file.sync_all().map_err(IoFailure::at("sync", &beside))?;
    fs.rename(&beside, &path)
        .map_err(IoFailure::at("replace", &path))?;
    fs.sync_dir(dir).map_err(IoFailure::at("sync", dir))?;
    Ok((file, bytes.len() as u64))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faulty::FaultyFileSystem;
    use crate::storage::test_frames::epoch;

    fn partition(n: u32) -> TopicPartition {
        TopicPartition {
            topic: TopicId::from_random_bits(7),
            partition: PartitionIndex(n),
        }
    }

    fn open(fs: &FaultyFileSystem) -> Promises {
        Promises::open(fs.shared(), Path::new("/")).unwrap()
    }

    #[test]
    fn a_promise_never_falls_and_outlives_a_restart() {
        let fs = FaultyFileSystem::new(0);
        let promises = open(&fs);
        promises
            .raise(&[(partition(0), epoch(5)), (partition(1), epoch(2))])
            .unwrap();
        promises
            .raise(&[
                (partition(0), epoch(3)),
                (partition(2), epoch(9)),
                (partition(2), epoch(8)),
            ])
            .unwrap();
        for _ in 0..2 {
            fs.power_loss();
            let promises = open(&fs);
            assert_eq!(promises.get(partition(0)), epoch(5));
            assert_eq!(promises.get(partition(1)), epoch(2));
            assert_eq!(promises.get(partition(2)), epoch(9));
            assert_eq!(promises.get(partition(3)), LeaderEpoch::NONE);
        }
        let promises = open(&fs);
        promises.forget(&[partition(0)]).unwrap();
        assert_eq!(promises.get(partition(0)), LeaderEpoch::NONE);
        drop(promises);
        fs.power_loss();
        assert_eq!(open(&fs).get(partition(0)), LeaderEpoch::NONE);
        assert_eq!(open(&fs).get(partition(1)), epoch(2));
    }

    #[test]
    fn one_batch_is_one_sync_and_a_repeated_one_is_none() {
        let fs = FaultyFileSystem::new(0);
        let promises = open(&fs);
        let raises: Vec<_> = (0..1000).map(|n| (partition(n), epoch(1))).collect();
        let before = fs.operations();
        promises.raise(&raises).unwrap();
        assert_eq!(fs.operations() - before, 2, "one write, one sync");
        promises.raise(&raises).unwrap();
        assert_eq!(fs.operations() - before, 2);
    }

    #[test]
    fn whatever_was_raised_is_there_after_a_crash_at_any_point() {
        for seed in 0..400 {
            let fs = FaultyFileSystem::new(seed);
            let mut promises = open(&fs);
            let mut raised = 0;
            fs.crash_after(1 + seed % 23);
            for round in 1..40 {
                let raises: Vec<_> = (0..50).map(|n| (partition(n), epoch(round))).collect();
                if promises.raise(&raises).is_err() {
                    break;
                }
                raised = round;
                if round % 5 == 0 {
                    match Promises::open(fs.shared(), Path::new("/")) {
                        Ok(opened) => promises = opened,
                        Err(_) => break,
                    }
                }
            }
            assert!(fs.has_crashed());
            fs.power_loss();
            let promises = open(&fs);
            for n in 0..50 {
                let found = promises.get(partition(n)).get();
                assert!(
                    found >= raised && found <= raised + 1,
                    "seed {seed}: {found}"
                );
            }
        }
    }

    #[test]
    fn rot_before_a_good_record_is_refused() {
        let fs = FaultyFileSystem::new(0);
        let path = Path::new("/promises");
        let promises = open(&fs);
        promises.raise(&[(partition(0), epoch(5))]).unwrap();
        promises.raise(&[(partition(1), epoch(5))]).unwrap();
        fs.kill();
        for bit in
            (HEADER_LEN as u64 * 8)..((HEADER_LEN + RECORD_HEADER_LEN + ENTRY_LEN) as u64 * 8)
        {
            fs.flip_bit(path, bit).unwrap();
            assert!(
                matches!(
                    Promises::open(fs.shared(), Path::new("/")),
                    Err(PromiseError::Corrupt {
                        byte: HEADER_LEN,
                        ..
                    })
                ),
                "bit {bit}"
            );
            fs.flip_bit(path, bit).unwrap();
        }
        assert_eq!(open(&fs).get(partition(0)), epoch(5));
    }

    #[test]
    fn a_failed_sync_ends_all_raising_and_a_full_disk_only_this_one() {
        let fs = FaultyFileSystem::new(0);
        let promises = open(&fs);
        fs.set_capacity(Some(fs.used() + 10));
        let raise = [(partition(0), epoch(1))];
        assert!(matches!(
            promises.raise(&raise),
            Err(PromiseError::NoSpace { .. })
        ));
        assert_eq!(promises.get(partition(0)), LeaderEpoch::NONE);
        fs.set_capacity(None);
        promises.raise(&raise).unwrap();
        fs.fail_syncs(1);
        assert!(promises.raise(&[(partition(0), epoch(2))]).is_err());
        assert_eq!(promises.get(partition(0)), epoch(1));
        assert!(matches!(
            promises.raise(&[(partition(0), epoch(2))]),
            Err(PromiseError::Poisoned { .. })
        ));
    }

    #[test]
    fn the_file_does_not_grow_without_end() {
        let fs = FaultyFileSystem::new(0);
        let promises = open(&fs);
        for round in 1..400 {
            let raises: Vec<_> = (0..100).map(|n| (partition(n), epoch(round))).collect();
            promises.raise(&raises).unwrap();
        }
        assert!(fs.contents(Path::new("/promises")).unwrap().len() < 300 * 1024);
        fs.power_loss();
        assert_eq!(open(&fs).get(partition(99)), epoch(399));
    }
}
