//! A node's data directory: whose it is, that only one process uses it, and what stands where in it.
//!
//! ```text
//! lock                  held while a node runs; names its process
//! meta                  format version, directory id, node id, cluster id
//! boot                  the machine's boot id when the directory was last in use
//! promises              see `promises.rs`
//! high-watermarks       watermarks for readers, and how far each log was synced; see `checkpoints.rs`
//! partitions/<topic id>-<partition>/
//!     partition         topic id, topic name, partition
//!     log-start         where the log starts, once it was trimmed or reset
//!     recovery          up to where the log was synced
//!     tail-index        of the newest segment, see `tail_index.rs`
//!     impaired          present while this replica must not vote
//!     <base offset>.wal, <base offset>.idx
//!     <offset>.producers   see `snapshots.rs`
//! partitions/<…>.quarantine-<n>/    a corrupt log that was set aside; for the operator to look at and remove
//! partitions/<…>.deleted/           being removed
//! ```

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::checkpoints::{self, Marks};
use super::file_system::{FileLock, FileSystem, IoFailure, OpenMode, read_small};
use super::log::{Log, LogOptions};
use super::promises::{PromiseError, Promises};
use super::reader::is_not_found;
use super::recovery::{IDENTITY_FILE, IDENTITY_KIND, Identity, OpenError, RecoveryReport};
use super::recovery_budget::RecoveryBudget;
use super::small_file::{self, SmallFileError};
use super::space::DiskSpace;
use super::sync::{Checkpoint, DurableMark};
use crate::types::{
    ClusterId, DirectoryId, LogPosition, NodeId, Offset, TopicName, TopicPartition,
};

const LOCK_FILE: &str = "lock";
const META_FILE: &str = "meta";
const META_KIND: &str = "meta";
const BOOT_FILE: &str = "boot";
const BOOT_KIND: &str = "boot";
pub(super) const PARTITIONS_DIR: &str = "partitions";
const DELETED_SUFFIX: &str = ".deleted";

/// The version of the directory's layout that this build writes.
pub const FORMAT_VERSION: u32 = 1;

/// What a directory says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub format_version: u32,
    pub directory_id: DirectoryId,
    pub node_id: NodeId,
    /// `None` until the node has learnt which cluster it is in.
    pub cluster_id: Option<ClusterId>,
}

/// Who opens a directory.
#[derive(Clone, Debug)]
pub struct Opener {
    pub node_id: NodeId,
    /// The cluster that the node is configured for, where it is; a directory of another one is refused.
    pub cluster_id: Option<ClusterId>,
    /// The id that a new directory gets; drawn at random by the caller.
    pub new_directory_id: DirectoryId,
    /// The kernel's boot id, where it has one.
    pub boot_id: Option<String>,
}

/// Why a data directory was not opened. Nothing in it was changed.
#[derive(Debug, Error)]
pub enum DataDirError {
    #[error(
        "the data directory {} is in use by another process{}: stop it, or give this node another --data-dir",
        path.display(),
        process.as_ref().map_or_else(String::new, |pid| format!(" (pid {pid})"))
    )]
    Locked {
        path: PathBuf,
        process: Option<String>,
    },
    #[error(
        "the data directory {} belongs to node {found}, and this is node {wanted}: give this node its own --data-dir, or \
         start it with --node-id {found}",
        path.display()
    )]
    ForeignNode {
        path: PathBuf,
        wanted: NodeId,
        found: NodeId,
    },
    #[error(
        "the data directory {} belongs to cluster {found}, and this node is in cluster {wanted}: give it another \
         --data-dir, or point it at the controllers of its own cluster",
        path.display()
    )]
    ForeignCluster {
        path: PathBuf,
        wanted: ClusterId,
        found: ClusterId,
    },
    #[error(
        "the data directory {} has format version {found}, and this build reads up to {FORMAT_VERSION}: start the newer \
         version of quorate that wrote it",
        path.display()
    )]
    NewerFormat { path: PathBuf, found: u32 },
    #[error(
        "the data directory {} holds partitions but no file \"{META_FILE}\" that says whose they are: restore that file, \
         or start with an empty directory",
        path.display()
    )]
    NoMeta { path: PathBuf },
    #[error(
        "cannot write to the data directory {}: {source}; make it writable for this user, or choose another --data-dir",
        path.display()
    )]
    Unwritable { path: PathBuf, source: io::Error },
    #[error(
        "cannot use {} as the data directory: a file is in the way; move it away, or choose another --data-dir",
        path.display()
    )]
    FileInTheWay { path: PathBuf },
    #[error(transparent)]
    Io(#[from] IoFailure),
    #[error(transparent)]
    SmallFile(#[from] SmallFileError),
    #[error(transparent)]
    Promises(#[from] PromiseError),
}

/// A data directory that this process has locked. Shared between threads.
pub struct DataDir {
    fs: Arc<dyn FileSystem>,
    path: PathBuf,
    meta: Mutex<Meta>,
    promises: Promises,
    /// As they were written down before this process began, by partition directory.
    marks: Mutex<BTreeMap<String, Marks>>,
    boot_id: Option<String>,
    is_new: bool,
    machine_restarted: bool,
    space: DiskSpace,
    recovery_budget: RecoveryBudget,
    _lock: Box<dyn FileLock>,
}

impl DataDir {
    /// Opens the directory at `path`, making it when it does not exist. Whether it may be used is decided before anything
    /// in it is changed.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        path: &Path,
        opener: &Opener,
    ) -> Result<DataDir, DataDirError> {
        let unwritable = |source| DataDirError::Unwritable {
            path: path.to_owned(),
            source,
        };
        read_and_check_meta(&*fs, path, opener).map_err(|error| match error {
            DataDirError::SmallFile(SmallFileError::Io(failure))
                if failure.source.kind() == io::ErrorKind::NotADirectory =>
            {
                DataDirError::FileInTheWay {
                    path: path.to_owned(),
                }
            }
            error => error,
        })?;
        fs.create_dir_all(path).map_err(unwritable)?;
        let lock_path = path.join(LOCK_FILE);
        let Some(lock) = fs.try_lock(&lock_path).map_err(unwritable)? else {
            return Err(DataDirError::Locked {
                path: path.to_owned(),
                process: lock_holder(&*fs, &lock_path),
            });
        };
        // Once more, now that nobody else can have changed it.
        let found = read_and_check_meta(&*fs, path, opener)?;
        let is_new = found.is_none();
        let meta_path = path.join(META_FILE);
        let meta = match found {
            Some(mut meta) => {
                if meta.cluster_id.is_none() && opener.cluster_id.is_some() {
                    meta.cluster_id = opener.cluster_id;
                    replace_meta(&*fs, &meta_path, &meta).map_err(|e| unwritable(e.source))?;
                }
                meta
            }
            None => {
                let meta = Meta {
                    format_version: FORMAT_VERSION,
                    directory_id: opener.new_directory_id,
                    node_id: opener.node_id,
                    cluster_id: opener.cluster_id,
                };
                replace_meta(&*fs, &meta_path, &meta).map_err(|e| unwritable(e.source))?;
                meta
            }
        };
        // Also where the directory was there: the process that made it may have died before it came to this.
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs.sync_dir(parent).map_err(IoFailure::at("sync", parent))?;
        }
        // As long whatever the number, so that a simulation runs the same in every process.
        let note = format!("{:>10}\n", std::process::id());
        if let Ok(file) = fs.open(&lock_path, OpenMode::Write) {
            // For the message that another process gives; the lock itself needs no content.
            let _ = file.set_len(0);
            let _ = file.write_at(0, &[IoSlice::new(note.as_bytes())]);
        }
        let partitions = path.join(PARTITIONS_DIR);
        fs.create_dir_all(&partitions).map_err(unwritable)?;
        fs.sync_dir(path).map_err(IoFailure::at("sync", path))?;
        let last_boot: Option<String> =
            small_file::read(&*fs, &path.join(BOOT_FILE), BOOT_KIND).unwrap_or_default();
        let machine_restarted =
            !is_new && (opener.boot_id.is_none() || last_boot != opener.boot_id);
        let promises = Promises::open(fs.clone(), path)?;
        // Without them a log's own checkpoint has to do.
        let marks = checkpoints::read_high_watermarks(&*fs, path).unwrap_or_else(|failure| {
            tracing::warn!(%failure, "no log is known to be durable beyond its recovery checkpoint");
            BTreeMap::new()
        });
        let data_dir = DataDir {
            fs,
            path: path.to_owned(),
            meta: Mutex::new(meta),
            promises,
            marks: Mutex::new(marks),
            boot_id: opener.boot_id.clone(),
            is_new,
            machine_restarted,
            space: DiskSpace::default(),
            recovery_budget: RecoveryBudget::default(),
            _lock: lock,
        };
        data_dir.finish_deletions()?;
        Ok(data_dir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file_system(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }

    pub fn meta(&self) -> Meta {
        self.meta
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn directory_id(&self) -> DirectoryId {
        self.meta().directory_id
    }

    /// Whether this call of [`DataDir::open`] made the directory.
    pub const fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether the machine was restarted since the directory was last in use, or may have been. Stays so until
    /// [`DataDir::note_boot`].
    pub const fn machine_restarted(&self) -> bool {
        self.machine_restarted
    }

    /// To be called when every log has been opened with the knowledge of [`DataDir::machine_restarted`].
    pub fn note_boot(&self) -> Result<(), IoFailure> {
        match &self.boot_id {
            Some(boot_id) => {
                small_file::replace(&*self.fs, &self.path.join(BOOT_FILE), BOOT_KIND, boot_id)
            }
            None => Ok(()),
        }
    }

    /// Notes, for ever, which cluster the directory belongs to; refuses another than before.
    pub fn set_cluster_id(&self, cluster_id: ClusterId) -> Result<(), DataDirError> {
        let mut meta = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        match meta.cluster_id {
            Some(found) if found == cluster_id => Ok(()),
            Some(found) => Err(DataDirError::ForeignCluster {
                path: self.path.clone(),
                wanted: cluster_id,
                found,
            }),
            None => {
                let mut new = meta.clone();
                new.cluster_id = Some(cluster_id);
                replace_meta(&*self.fs, &self.path.join(META_FILE), &new)?;
                *meta = new;
                Ok(())
            }
        }
    }

    pub const fn promises(&self) -> &Promises {
        &self.promises
    }

    /// See [`checkpoints::write_high_watermarks`].
    pub fn write_high_watermarks<M: Into<Marks>>(
        &self,
        marks: impl IntoIterator<Item = (TopicPartition, M)>,
    ) -> Result<(), IoFailure> {
        checkpoints::write_high_watermarks(&*self.fs, &self.path, marks)
    }

    /// The high watermark that was written down before this process began; 0 where none was.
    pub fn last_high_watermark(&self, partition: TopicPartition) -> Offset {
        self.last_marks(partition).high_watermark
    }

    /// The same, as far as it can speak of `log`, which was opened since: 0 where that was cut below what was synced after it was
    /// written down. What was committed there may have been given up by an operator.
    pub fn high_watermark_of(&self, log: &Log) -> Offset {
        let marks = self.last_marks(log.id());
        match (marks.durable, log.reader().durable_mark()) {
            (Some(was), Some(is)) if was.lineage != is.lineage => Offset::ZERO,
            _ => marks.high_watermark,
        }
    }

    fn last_marks(&self, partition: TopicPartition) -> Marks {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks
            .get(&partition.to_string())
            .copied()
            .unwrap_or_default()
    }

    /// Bytes that can still be written.
    pub fn available_space(&self) -> Result<u64, IoFailure> {
        self.fs
            .available_space(&self.path)
            .map_err(IoFailure::at("ask for free space in", &self.path))
    }

    /// Looks how much room there is, and lets the logs know. Returns whether records are refused now, if that is new. To be
    /// called every second or so.
    pub fn check_space(&self) -> Result<Option<bool>, IoFailure> {
        Ok(self.space.handle_available(self.available_space()?))
    }

    pub fn partition_dir(&self, partition: TopicPartition) -> PathBuf {
        self.path.join(PARTITIONS_DIR).join(partition.to_string())
    }

    /// Every partition that has a log here, with its topic's name, in order of directory name.
    pub fn partitions(&self) -> Result<Vec<(TopicPartition, TopicName)>, DataDirError> {
        let dir = self.path.join(PARTITIONS_DIR);
        let mut found = Vec::new();
        for entry in self.fs.list(&dir).map_err(IoFailure::at("list", &dir))? {
            let path = dir.join(&entry.name).join(IDENTITY_FILE);
            if !entry.is_dir {
                continue;
            }
            match small_file::read::<Identity>(&*self.fs, &path, IDENTITY_KIND) {
                Ok(Some(identity)) => {
                    let partition = TopicPartition {
                        topic: identity.topic_id,
                        partition: identity.partition,
                    };
                    if partition.to_string() == entry.name {
                        found.push((partition, identity.topic));
                    }
                }
                Ok(None) => {}
                // It is written again when the log is opened under the name that the cluster knows.
                Err(failure) => tracing::warn!(%failure, "skipping a partition's directory"),
            }
        }
        Ok(found)
    }

    /// How much of its logs the next start may have to read; to be told before any is opened.
    pub fn set_recovery_budget(&mut self, budget: RecoveryBudget) {
        self.recovery_budget = budget;
    }

    /// See [`Log::open`]. Says what was known of the log before this process began: see [`LogOptions::durable_mark`].
    pub fn open_log(
        &self,
        partition: TopicPartition,
        topic: &TopicName,
        mut options: LogOptions,
    ) -> Result<(Log, RecoveryReport), OpenError> {
        options.machine_restarted |= self.machine_restarted;
        options.space = self.space.clone();
        options.recovery_budget = self.recovery_budget.clone();
        options.durable_mark = self.last_marks(partition).durable;
        Log::open(
            self.fs.clone(),
            &self.partition_dir(partition),
            partition,
            topic,
            options,
        )
    }

    /// Removes a partition's log for ever, and its promise. The caller has dropped the [`Log`].
    pub fn delete_partition(&self, partition: TopicPartition) -> Result<(), DataDirError> {
        let dir = self.partition_dir(partition);
        let parent = self.path.join(PARTITIONS_DIR);
        let deleted = parent.join(format!("{partition}{DELETED_SUFFIX}"));
        // Should it come back, it is another log, of which the marks that still stand in their file say nothing.
        let known = self.last_marks(partition).durable;
        let own = Checkpoint::read(&*self.fs, &dir).map_or(0, |checkpoint| checkpoint.lineage);
        let nothing = DurableMark {
            end: LogPosition::START,
            lineage: known.map_or(own, |mark| mark.lineage.max(own)),
        };
        match self.fs.rename(&dir, &deleted) {
            Ok(()) => {
                self.fs
                    .sync_dir(&parent)
                    .map_err(IoFailure::at("sync", &parent))?;
                self.fs
                    .remove_dir_all(&deleted)
                    .map_err(IoFailure::at("remove", &deleted))?;
            }
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(IoFailure::at("remove", &dir)(error).into()),
        }
        let marks = Marks {
            high_watermark: Offset::ZERO,
            durable: Some(nothing),
        };
        self.marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(partition.to_string(), marks);
        self.promises.forget(&[partition])?;
        Ok(())
    }

    fn finish_deletions(&self) -> Result<(), DataDirError> {
        let dir = self.path.join(PARTITIONS_DIR);
        for entry in self.fs.list(&dir).map_err(IoFailure::at("list", &dir))? {
            if entry.name.ends_with(DELETED_SUFFIX) {
                let path = dir.join(&entry.name);
                self.fs
                    .remove_dir_all(&path)
                    .map_err(IoFailure::at("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// What the directory at `path` says about itself; `None` when it says nothing. Reads only.
pub fn read_meta(fs: &dyn FileSystem, path: &Path) -> Result<Option<Meta>, DataDirError> {
    let meta: Option<Meta> = small_file::read(fs, &path.join(META_FILE), META_KIND)?;
    match meta {
        Some(meta) if meta.format_version > FORMAT_VERSION => Err(DataDirError::NewerFormat {
            path: path.to_owned(),
            found: meta.format_version,
        }),
        meta => Ok(meta),
    }
}

fn read_and_check_meta(
    fs: &dyn FileSystem,
    path: &Path,
    opener: &Opener,
) -> Result<Option<Meta>, DataDirError> {
    let Some(meta) = read_meta(fs, path)? else {
        let partitions = path.join(PARTITIONS_DIR);
        let has_partitions = fs
            .list(&partitions)
            .is_ok_and(|entries| !entries.is_empty());
        if has_partitions {
            return Err(DataDirError::NoMeta {
                path: path.to_owned(),
            });
        }
        return Ok(None);
    };
    if meta.node_id != opener.node_id {
        return Err(DataDirError::ForeignNode {
            path: path.to_owned(),
            wanted: opener.node_id,
            found: meta.node_id,
        });
    }
    match (opener.cluster_id, meta.cluster_id) {
        (Some(wanted), Some(found)) if wanted != found => Err(DataDirError::ForeignCluster {
            path: path.to_owned(),
            wanted,
            found,
        }),
        _ => Ok(Some(meta)),
    }
}

fn replace_meta(fs: &dyn FileSystem, path: &Path, meta: &Meta) -> Result<(), IoFailure> {
    small_file::replace(fs, path, META_KIND, meta)
}

fn lock_holder(fs: &dyn FileSystem, path: &Path) -> Option<String> {
    let bytes = read_small(fs, path, 32).ok()??;
    let text = String::from_utf8(bytes).ok()?;
    let pid = text.trim();
    pid.parse::<u32>().ok().map(|pid| pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faulty::FaultyFileSystem;
    use crate::storage::log::LogConfig;
    use crate::storage::test_frames::{at, frames, start_frame};
    use crate::types::{LogPosition, PartitionIndex, TopicId};

    fn opener(node: u32) -> Opener {
        Opener {
            node_id: NodeId::new(node).unwrap(),
            cluster_id: None,
            new_directory_id: DirectoryId::from_random_bits(9),
            boot_id: Some("boot-1".to_owned()),
        }
    }

    fn partition(n: u32) -> TopicPartition {
        TopicPartition {
            topic: TopicId::from_random_bits(7),
            partition: PartitionIndex(n),
        }
    }

    const DIR: &str = "/data";

    fn open(fs: &FaultyFileSystem, opener: &Opener) -> Result<DataDir, DataDirError> {
        DataDir::open(fs.shared(), Path::new(DIR), opener)
    }

    #[test]
    fn a_file_in_the_way_is_said_to_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "text").unwrap();
        for path in [file.clone(), file.join("data")] {
            let fs = Arc::new(crate::storage::RealFileSystem);
            let error = DataDir::open(fs, &path, &opener(1)).err().unwrap();
            assert!(
                matches!(&error, DataDirError::FileInTheWay { path: named } if *named == path),
                "{error}"
            );
        }
    }

    #[test]
    fn a_directory_whose_making_was_cut_short_is_durable_after_the_next_start() {
        for operations in 0..60 {
            let fs = FaultyFileSystem::new(operations);
            fs.crash_after(operations);
            let _cut_short = open(&fs, &opener(1));
            fs.kill();
            drop(open(&fs, &opener(1)).unwrap());
            fs.kill();
            fs.power_loss_of_all_unsynced();
            let found = open(&fs, &opener(1)).unwrap();
            assert!(!found.is_new(), "after {operations} operations");
        }
    }

    #[test]
    fn one_process_at_a_time() {
        let fs = FaultyFileSystem::new(0);
        let first = open(&fs, &opener(1)).unwrap();
        let before = fs.operations();
        let error = open(&fs, &opener(1)).err().unwrap();
        assert!(
            matches!(&error, DataDirError::Locked { process: Some(pid), .. }
            if *pid == std::process::id().to_string())
        );
        assert_eq!(fs.operations(), before, "nothing is touched");
        drop(first);
        open(&fs, &opener(1)).unwrap();
    }

    #[test]
    fn a_foreign_directory_is_refused_untouched() {
        let fs = FaultyFileSystem::new(0);
        let first = open(&fs, &opener(1)).unwrap();
        let ours = ClusterId::from_random_bits(1);
        let other = ClusterId::from_random_bits(2);
        first.set_cluster_id(ours).unwrap();
        first.set_cluster_id(ours).unwrap();
        assert!(matches!(
            first.set_cluster_id(other),
            Err(DataDirError::ForeignCluster { .. })
        ));
        drop(first);
        let before = fs.operations();
        assert!(matches!(
            open(&fs, &opener(2)),
            Err(DataDirError::ForeignNode { .. })
        ));
        let mut foreign = opener(1);
        foreign.cluster_id = Some(other);
        assert!(matches!(
            open(&fs, &foreign),
            Err(DataDirError::ForeignCluster { .. })
        ));
        assert_eq!(fs.operations(), before, "nothing is touched");
        let mut newer = open(&fs, &opener(1)).unwrap().meta();
        assert_eq!(newer.directory_id, DirectoryId::from_random_bits(9));
        assert_eq!(newer.cluster_id, Some(ours));
        newer.format_version = FORMAT_VERSION + 1;
        replace_meta(&fs, &Path::new(DIR).join(META_FILE), &newer).unwrap();
        let before = fs.operations();
        assert!(matches!(
            open(&fs, &opener(1)),
            Err(DataDirError::NewerFormat { .. })
        ));
        assert_eq!(fs.operations(), before, "nothing is touched");
    }

    #[test]
    fn partitions_without_a_meta_file_are_not_taken_over() {
        let fs = FaultyFileSystem::new(0);
        fs.create_dir_all(Path::new("/data/partitions/x")).unwrap();
        assert!(matches!(
            open(&fs, &opener(1)),
            Err(DataDirError::NoMeta { .. })
        ));
    }

    #[test]
    fn an_unwritable_directory_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let fs = super::super::file_system::RealFileSystem::shared();
        let error = DataDir::open(fs, &file.join("sub"), &opener(1))
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("--data-dir") || matches!(error, DataDirError::SmallFile(_)),
            "{error}"
        );
    }

    #[test]
    fn marks_reach_the_log_and_an_unreadable_file_of_them_keeps_nobody_from_starting() {
        for readable in [true, false] {
            let fs = FaultyFileSystem::new(0);
            let dir = open(&fs, &opener(1)).unwrap();
            let id = partition(0);
            let topic = TopicName::new("t").unwrap();
            let options = || LogOptions::from(LogConfig::default());
            let (mut log, _) = dir.open_log(id, &topic, options()).unwrap();
            log.append(&[start_frame(1, LogPosition::START)]).unwrap();
            let ticket = log.begin_sync().unwrap();
            ticket.run().unwrap();
            log.finish_sync(ticket);
            let marks = Marks {
                high_watermark: Offset::ZERO,
                durable: log.reader().durable_mark(),
            };
            dir.write_high_watermarks([(id, marks)]).unwrap();
            drop((log, dir));
            fs.kill();
            let segment = Path::new("/data/partitions")
                .join(id.to_string())
                .join("00000000000000000000.wal");
            fs.flip_bit(&segment, 8 * 20).unwrap();
            if !readable {
                fs.flip_bit(Path::new("/data/high-watermarks"), 8 * 60)
                    .unwrap();
            }
            let dir = open(&fs, &opener(1)).unwrap();
            let (_, report) = dir.open_log(id, &topic, options()).unwrap();
            assert_eq!(report.quarantined.is_some(), readable);
            assert_eq!(report.cut.is_some(), !readable);
        }
    }

    #[test]
    fn a_watermark_of_what_was_cut_since_it_was_written_down_is_none() {
        for cut in [false, true] {
            let fs = FaultyFileSystem::new(0);
            let dir = open(&fs, &opener(1)).unwrap();
            let id = partition(0);
            let topic = TopicName::new("t").unwrap();
            let options = || LogOptions::from(LogConfig::default());
            let (mut log, _) = dir.open_log(id, &topic, options()).unwrap();
            log.append(&[start_frame(1, LogPosition::START)]).unwrap();
            log.append(&frames(at(0, 1), 5, 0)).unwrap();
            let ticket = log.begin_sync().unwrap();
            ticket.run().unwrap();
            log.finish_sync(ticket);
            let marks = Marks {
                high_watermark: at(5, 1).offset,
                durable: log.reader().durable_mark(),
            };
            dir.write_high_watermarks([(id, marks)]).unwrap();
            if cut {
                log.truncate(at(3, 1)).unwrap();
                log.append(&frames(at(3, 1), 4, 7)).unwrap();
            }
            drop((log, dir));
            fs.kill();
            let dir = open(&fs, &opener(1)).unwrap();
            let (log, _) = dir.open_log(id, &topic, options()).unwrap();
            assert_eq!(dir.last_high_watermark(id), at(5, 1).offset);
            let expected = if cut { 0 } else { 5 };
            assert_eq!(dir.high_watermark_of(&log).get(), expected);
        }
    }

    #[test]
    fn a_log_that_comes_back_is_not_measured_by_the_marks_of_the_one_before() {
        let fs = FaultyFileSystem::new(0);
        let dir = open(&fs, &opener(1)).unwrap();
        let id = partition(0);
        let topic = TopicName::new("t").unwrap();
        let options = || LogOptions::from(LogConfig::default());
        let (mut log, _) = dir.open_log(id, &topic, options()).unwrap();
        log.append(&[start_frame(1, LogPosition::START)]).unwrap();
        log.append(&frames(at(0, 1), 5, 0)).unwrap();
        log.close().unwrap();
        let marks = Marks {
            high_watermark: at(5, 1).offset,
            durable: log.reader().durable_mark(),
        };
        dir.write_high_watermarks([(id, marks)]).unwrap();
        drop(log);
        dir.delete_partition(id).unwrap();
        let (mut log, _) = dir.open_log(id, &topic, options()).unwrap();
        log.append(&[start_frame(1, LogPosition::START)]).unwrap();
        drop((log, dir));
        // Before the marks were written down anew.
        fs.kill();
        let dir = open(&fs, &opener(1)).unwrap();
        let (log, report) = dir.open_log(id, &topic, options()).unwrap();
        assert_eq!(report.quarantined, None);
        assert_eq!(log.end(), at(0, 1));
        assert_eq!(dir.high_watermark_of(&log), Offset::ZERO);
    }

    #[test]
    fn the_boot_id_is_known_until_every_log_has_heard_of_it() {
        let fs = FaultyFileSystem::new(0);
        let first = open(&fs, &opener(1)).unwrap();
        assert!(first.is_new() && !first.machine_restarted());
        first.note_boot().unwrap();
        drop(first);
        assert!(!open(&fs, &opener(1)).unwrap().machine_restarted());
        let mut rebooted = opener(1);
        rebooted.boot_id = Some("boot-2".to_owned());
        for _ in 0..2 {
            assert!(open(&fs, &rebooted).unwrap().machine_restarted());
        }
        open(&fs, &rebooted).unwrap().note_boot().unwrap();
        assert!(!open(&fs, &rebooted).unwrap().machine_restarted());
    }

    #[test]
    fn logs_are_found_again_and_deleted_for_ever() {
        let fs = FaultyFileSystem::new(0);
        let topic = TopicName::new("orders").unwrap();
        let data_dir = open(&fs, &opener(1)).unwrap();
        for n in 0..3 {
            let (mut log, report) = data_dir
                .open_log(partition(n), &topic, LogConfig::default().into())
                .unwrap();
            assert!(report.created);
            log.append(&[start_frame(1, LogPosition::START)]).unwrap();
            log.append(&frames(at(0, 1), 3, 0)).unwrap();
            log.close().unwrap();
        }
        data_dir
            .promises()
            .raise(&[(partition(1), crate::types::LeaderEpoch::MAX)])
            .unwrap();
        data_dir.delete_partition(partition(1)).unwrap();
        data_dir.delete_partition(partition(1)).unwrap();
        drop(data_dir);
        fs.power_loss();
        let data_dir = open(&fs, &opener(1)).unwrap();
        let found = data_dir.partitions().unwrap();
        assert_eq!(
            found,
            [(partition(0), topic.clone()), (partition(2), topic.clone())]
        );
        assert_eq!(data_dir.promises().get(partition(1)).get(), 0);
        let (log, report) = data_dir
            .open_log(partition(2), &topic, LogConfig::default().into())
            .unwrap();
        assert!(!report.created);
        assert_eq!(log.end(), at(3, 1));
    }
}
