//! The highest leader epoch that each replica of this node has promised, all in one file: a fence of a thousand partitions
//! costs one sync.
//!
//! The file grows by one record for each batch of raises and is written anew, without what is outdated, at every start and
//! when it has grown large. All integers are big-endian.
//!
//! ```text
//!  byte  length  field
//!     0       4  magic     "QPRM"
//!     4       4  version   2
//!     8       …  records, each of them twice:
//!             4  length    of the entries in bytes
//!             4  CRC-32    over length, number and entries
//!             4  number    0, 1, 2, …; the same in both copies
//!            24  per entry: topic id (16), partition (4), leader epoch (4); epoch 0 forgets the partition
//! ```
//!
//! Each record stands there twice, because a record that rots must not look like one that a crash has torn: only the last one
//! can be torn, nothing was promised on the strength of it, and it is dropped where neither copy is whole. A number that
//! is missing, the first included, which comes by a rename and is never torn, is corruption, and the node refuses to start,
//! because a promise must not fall. Version 1 had each record once and without a number; it is read, and written anew.

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
const VERSION: u32 = 2;
const HEADER_LEN: usize = 8;
const RECORD_HEADER_LEN: usize = 12;
const COPIES: usize = 2;
const ENTRY_LEN: usize = 24;
/// Refused unread above this: 1.3 million entries.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// The file is written anew when it is this large and four times what it needs to be, copies included.
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
    /// Of the next record.
    number: u32,
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
                number: 1,
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
        let needed = (COPIES * saved.len() * ENTRY_LEN) as u64;
        if writer.len < REWRITE_BYTES.max(4 * needed) || writer.poisoned.is_some() {
            return;
        }
        // Everything is durable in the old file already; the new one takes its place or does not.
        match rewrite(&*writer.fs, &writer.dir, &saved) {
            Ok((file, len)) => {
                writer.file = file;
                writer.len = len;
                writer.number = 1;
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
        let record = encode_record(self.number, entries);
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
        self.number += 1;
        Ok(())
    }
}

/// All copies of a record.
fn encode_record(number: u32, entries: &BTreeMap<TopicPartition, LeaderEpoch>) -> Vec<u8> {
    let len = entries.len() * ENTRY_LEN;
    let mut record = Vec::with_capacity(COPIES * (RECORD_HEADER_LEN + len));
    record.put_u32(len as u32);
    record.put_u32(0);
    record.put_u32(number);
    for (partition, epoch) in entries {
        record.put_u128(partition.topic.to_bits());
        record.put_u32(partition.partition.0);
        record.put_u32(epoch.get());
    }
    let crc = record_crc(&record);
    record[4..8].copy_from_slice(&crc.to_be_bytes());
    record.repeat(COPIES)
}

/// Over everything but itself.
fn record_crc(record: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&record[..4]);
    crc.update(&record[8..]);
    crc.finalize()
}

fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

/// The number and the entries of the record at the start of `bytes`, if it is whole. `header` is the length of what stands before
/// the entries.
fn record_at(bytes: &[u8], header: usize) -> Option<(u32, &[u8])> {
    let len = be_u32(bytes, 0)? as usize;
    let crc = be_u32(bytes, 4)?;
    let number = be_u32(bytes, 8)?;
    let end = header.checked_add(len)?;
    if !len.is_multiple_of(ENTRY_LEN) || end > bytes.len() {
        return None;
    }
    (record_crc(&bytes[..end]) == crc).then(|| (number, &bytes[header..end]))
}

/// Takes entries in. False where an epoch is none.
fn take(saved: &mut BTreeMap<TopicPartition, LeaderEpoch>, mut entries: &[u8]) -> bool {
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
            None => return false,
        }
    }
    true
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
    let version = be_u32(bytes, 4).ok_or(corrupt(0))?;
    if bytes[..4] != MAGIC {
        return Err(corrupt(0));
    }
    match version {
        0 => Err(corrupt(4)),
        1 => decode_version_1(bytes, corrupt),
        VERSION => decode_present(bytes, corrupt),
        found => Err(PromiseError::NewerVersion {
            path: path.to_owned(),
            found,
        }),
    }
}

fn decode_present(
    bytes: &[u8],
    corrupt: impl Fn(usize) -> PromiseError,
) -> Result<BTreeMap<TopicPartition, LeaderEpoch>, PromiseError> {
    let mut saved = BTreeMap::new();
    let mut next = 0;
    // Where something stands that cannot be read; a record that is missing is missed from here.
    let mut bad = None;
    let mut at = HEADER_LEN;
    while at < bytes.len() {
        let Some((number, entries)) = record_at(&bytes[at..], RECORD_HEADER_LEN) else {
            bad.get_or_insert(at);
            at += 1;
            continue;
        };
        if number > next {
            return Err(corrupt(bad.unwrap_or(at)));
        }
        if number == next {
            if !take(&mut saved, entries) {
                return Err(corrupt(at));
            }
            next += 1;
            bad = None;
        }
        at += RECORD_HEADER_LEN + entries.len();
    }
    if next == 0 {
        return Err(corrupt(HEADER_LEN));
    }
    Ok(saved)
}

/// What builds before version 2 wrote: no number, no copies. Its first record came by a rename.
fn decode_version_1(
    bytes: &[u8],
    corrupt: impl Fn(usize) -> PromiseError,
) -> Result<BTreeMap<TopicPartition, LeaderEpoch>, PromiseError> {
    const HEADER: usize = 8;
    let record_at = |bytes: &'_ [u8]| -> Option<usize> {
        let len = be_u32(bytes, 0)? as usize;
        let end = HEADER.checked_add(len)?;
        let is_whole = len > 0
            && len.is_multiple_of(ENTRY_LEN)
            && end <= bytes.len()
            && Some(record_crc(&bytes[..end])) == be_u32(bytes, 4);
        is_whole.then_some(end)
    };
    let mut saved = BTreeMap::new();
    let mut at = HEADER_LEN;
    while at < bytes.len() {
        let Some(end) = record_at(&bytes[at..]) else {
            let is_first = at == HEADER_LEN;
            let mut later = at + 1..bytes.len();
            if is_first || later.any(|later| record_at(&bytes[later..]).is_some()) {
                return Err(corrupt(at));
            }
            break;
        };
        if !take(&mut saved, &bytes[at + HEADER..at + end]) {
            return Err(corrupt(at));
        }
        at += end;
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
    bytes.extend_from_slice(&encode_record(0, saved));
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

    /// The promises that a flipped bit leaves, or the refusal.
    fn after_flips(fs: &FaultyFileSystem, bits: &[u64]) -> Result<Vec<u32>, PromiseError> {
        let path = Path::new("/promises");
        for bit in bits {
            fs.flip_bit(path, *bit).unwrap();
        }
        let bytes = fs.contents(path).unwrap();
        for bit in bits {
            fs.flip_bit(path, *bit).unwrap();
        }
        let saved = decode(&bytes, path)?;
        Ok((0..3)
            .map(|n| saved.get(&partition(n)).map_or(0, |epoch| epoch.get()))
            .collect())
    }

    #[test]
    fn no_flipped_bit_makes_a_promise_forgotten() {
        let fs = FaultyFileSystem::new(0);
        let promises = open(&fs);
        promises.raise(&[(partition(0), epoch(5))]).unwrap();
        // After a restart the file has one record, which a crash could not have torn.
        let promises = open(&fs);
        let clean = fs.contents(Path::new("/promises")).unwrap().len() as u64 * 8;
        for bit in 0..clean {
            match after_flips(&fs, &[bit]) {
                Ok(found) => assert_eq!(found, [5, 0, 0], "bit {bit}"),
                Err(_) => assert!(bit < HEADER_LEN as u64 * 8, "bit {bit}"),
            }
        }
        promises.raise(&[(partition(1), epoch(6))]).unwrap();
        promises.raise(&[(partition(2), epoch(7))]).unwrap();
        let all = fs.contents(Path::new("/promises")).unwrap().len() as u64 * 8;
        for bit in clean..all {
            let found = after_flips(&fs, &[bit]).unwrap();
            assert_eq!(found, [5, 6, 7], "bit {bit}");
        }
    }

    #[test]
    fn a_record_whose_copies_are_both_rotten_is_refused_unless_it_may_be_torn() {
        let fs = FaultyFileSystem::new(0);
        let promises = open(&fs);
        promises.raise(&[(partition(0), epoch(5))]).unwrap();
        promises.raise(&[(partition(1), epoch(6))]).unwrap();
        let copy = (RECORD_HEADER_LEN + ENTRY_LEN) as u64 * 8;
        // The first record is empty.
        let first = HEADER_LEN as u64 * 8;
        let base = first + 2 * RECORD_HEADER_LEN as u64 * 8;
        for (at, length) in [(first, RECORD_HEADER_LEN as u64 * 8), (base, copy)] {
            let refused = after_flips(&fs, &[at + 40, at + length + 40]);
            let byte = (at / 8) as usize;
            match refused {
                Err(PromiseError::Corrupt { byte: b, .. }) => assert_eq!(b, byte),
                other => panic!("{other:?}"),
            }
        }
        let last = base + 2 * copy;
        let torn = after_flips(&fs, &[last + 40, last + copy + 40]).unwrap();
        assert_eq!(torn, [5, 0, 0]);
    }

    #[test]
    fn what_earlier_builds_wrote_is_read_and_its_first_record_is_never_taken_for_torn() {
        let record = |n: u32, leader_epoch: u32| {
            let mut record = Vec::new();
            record.put_u32(ENTRY_LEN as u32);
            record.put_u32(0);
            record.put_u128(partition(n).topic.to_bits());
            record.put_u32(n);
            record.put_u32(leader_epoch);
            let crc = record_crc(&record);
            record[4..8].copy_from_slice(&crc.to_be_bytes());
            record
        };
        let path = Path::new("/promises");
        let mut file = MAGIC.to_vec();
        file.put_u32(1);
        assert!(decode(&file, path).unwrap().is_empty());
        file.extend(record(0, 5));
        let first = file.len();
        file.extend(record(1, 6));
        assert_eq!(decode(&file, path).unwrap().len(), 2);
        assert_eq!(decode(&file[..file.len() - 1], path).unwrap().len(), 1);
        for byte in HEADER_LEN..first {
            let mut rotten = file[..first].to_vec();
            rotten[byte] ^= 1;
            assert!(decode(&rotten, path).is_err(), "byte {byte}");
        }
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
