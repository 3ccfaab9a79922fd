//! The controller's log and state on disk: one redb file.
//!
//! Two tables. `meta`, by name: `format` (the version below), `owner` (node and directory id), `vote`, `committed`, `purged`,
//! `snapshot_meta`, `snapshot`. `log`, by index: one entry each. All values are JSON.
//!
//! Vote, entries, truncations and snapshots are on disk (fsync) before the call that stores them returns. The image lives in
//! memory and comes back after a restart as the last snapshot plus the entries up to `committed`. `committed` itself
//! reaches the disk with the next synced write: an older value only means that entries are applied again later, when the
//! active controller says how far they are committed.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Cursor};
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    Entry, EntryPayload, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader,
    RaftSnapshotBuilder, Snapshot,
};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use super::raft::{LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig, Vote};
use crate::metadata::{ClusterImage, Outcome, Rejection};
use crate::types::{DirectoryId, NodeId};

/// Version of the tables and of their values.
const FORMAT: u32 = 1;
/// Memory that redb may use for its page cache.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// Serialised entries that one append request carries; a single entry may be larger. More follow in the next request.
const MAX_APPEND_BYTES: usize = 1024 * 1024;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

/// Why the store could not be opened.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error(
        "cannot open the controller's store {path}: {source}; if another process uses it, stop that one; if the file is \
         damaged, remove this node from the cluster and add it again with an empty data directory"
    )]
    Database {
        path: PathBuf,
        source: Box<redb::Error>,
    },
    #[error("cannot sync the directory of the controller's store {path}: {source}; check the disk")]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "the controller's store {path} has format {found}, and this build reads format {FORMAT}; use the version of quorate that wrote it"
    )]
    Format { path: PathBuf, found: u32 },
    #[error(
        "the controller's store {path} belongs to node {node} and data directory {directory}; start that node with it"
    )]
    Owner {
        path: PathBuf,
        node: NodeId,
        directory: DirectoryId,
    },
    #[error(
        "the controller's store {path} holds a {what} that cannot be read: {source}; it is damaged, or was written by a newer \
         version of quorate"
    )]
    Content {
        path: PathBuf,
        what: &'static str,
        source: serde_json::Error,
    },
}

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) node: NodeId,
    pub(super) directory: DirectoryId,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    /// Dropped with the database: whoever waits for it knows that the file is free.
    _open: watch::Sender<()>,
}

/// The log half of the store.
#[derive(Clone, Debug)]
pub(super) struct LogStore {
    inner: Arc<Inner>,
}

/// The state half: the image that committed commands have made.
pub(super) struct StateMachine {
    inner: Arc<Inner>,
    image: ClusterImage,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    published: watch::Sender<Arc<ClusterImage>>,
}

/// Both halves, and what watches them.
pub(super) struct Opened {
    pub(super) log: LogStore,
    pub(super) state: StateMachine,
    /// The image after each batch of commands.
    pub(super) image: watch::Receiver<Arc<ClusterImage>>,
    /// Closed when the last user of the file has gone.
    pub(super) open: watch::Receiver<()>,
}

/// Opens the store, or makes it.
pub(super) fn open(path: &Path, owner: Owner) -> Result<Opened, StoreError> {
    let failed = |source: redb::Error| StoreError::Database {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let existed = path.exists();
    let database = builder().create(path).map_err(|e| failed(e.into()))?;
    if !existed {
        sync_parent(path)?;
    }
    opened(database, path, owner)
}

/// The same for a store that is in memory; `path` is for errors.
pub(super) fn open_in(
    backend: impl StorageBackend,
    path: &Path,
    owner: Owner,
) -> Result<Opened, StoreError> {
    let database = builder().create_with_backend(backend);
    let database = database.map_err(|error| StoreError::Database {
        path: path.to_owned(),
        source: Box::new(error.into()),
    })?;
    opened(database, path, owner)
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    // A store that was closed in good order is believed otherwise, and one that has rotted since makes redb panic, at the
    // start or later. It is small: reading all of it takes no time.
    builder.set_check_integrity_on_open(true);
    builder
}

fn opened(database: Database, path: &Path, owner: Owner) -> Result<Opened, StoreError> {
    let failed = |source: redb::Error| StoreError::Database {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let (opened, open) = watch::channel(());
    let inner = Arc::new(Inner {
        database,
        _open: opened,
    });
    check_owner(&inner, path, owner)?;
    let content = |what| {
        move |source| StoreError::Content {
            path: path.to_owned(),
            what,
            source,
        }
    };
    let meta: Option<SnapshotMeta> = parse(inner.meta("snapshot_meta").map_err(failed)?)
        .map_err(content("snapshot's description"))?;
    let image: Option<ClusterImage> =
        parse(inner.meta("snapshot").map_err(failed)?).map_err(content("snapshot"))?;
    let (last_applied, membership, image) = match (meta, image) {
        (Some(meta), Some(image)) => (meta.last_log_id, meta.last_membership, image),
        _ => (None, StoredMembership::default(), ClusterImage::new()),
    };
    let (published, watched) = watch::channel(Arc::new(image.clone()));
    Ok(Opened {
        log: LogStore {
            inner: Arc::clone(&inner),
        },
        state: StateMachine {
            inner,
            image,
            last_applied,
            membership,
            published,
        },
        image: watched,
        open,
    })
}

impl Opened {
    /// Puts values in their places, whatever they are; see [`write_store`](super::reread::write_store).
    pub(super) fn fill(&self, values: &[(&str, Vec<u8>)], path: &Path) -> Result<(), StoreError> {
        let change = |transaction: &WriteTransaction| {
            let mut meta = transaction.open_table(META)?;
            let mut log = transaction.open_table(LOG)?;
            for (name, value) in values {
                if *name == "entry" {
                    let next = log.last()?.map_or(0, |(index, _)| index.value() + 1);
                    log.insert(next, value.as_slice())?;
                } else {
                    meta.insert(*name, value.as_slice())?;
                }
            }
            Ok(())
        };
        let written = self.log.inner.write(Durability::Immediate, change);
        written.map_err(|source| StoreError::Database {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Reads what [`open`] leaves for later; see [`read_store`](super::reread::read_store).
    pub(super) fn read_all(&self, path: &Path) -> Result<usize, StoreError> {
        let failed = |source: redb::Error| StoreError::Database {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let content = |what| {
            move |source| StoreError::Content {
                path: path.to_owned(),
                what,
                source,
            }
        };
        let inner = &self.log.inner;
        let _: Option<Vote> =
            parse(inner.meta("vote").map_err(failed)?).map_err(content("vote"))?;
        let _: Option<Option<LogId>> =
            parse(inner.meta("committed").map_err(failed)?).map_err(content("committed index"))?;
        let _: Option<LogId> =
            parse(inner.meta("purged").map_err(failed)?).map_err(content("purged index"))?;
        inner.last_entry().map_err(failed)?;
        let all = (Bound::Unbounded, Bound::Unbounded);
        let entries = inner.entries(all, usize::MAX).map_err(failed)?;
        for entry in &entries {
            let _: Entry<TypeConfig> =
                serde_json::from_slice(entry).map_err(content("log entry"))?;
        }
        Ok(entries.len())
    }
}

fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| StoreError::Directory {
            path: path.to_owned(),
            source,
        })
}

fn check_owner(inner: &Inner, path: &Path, owner: Owner) -> Result<(), StoreError> {
    let failed = |source: redb::Error| StoreError::Database {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let content = |what| {
        move |source| StoreError::Content {
            path: path.to_owned(),
            what,
            source,
        }
    };
    let format: Option<u32> =
        parse(inner.meta("format").map_err(failed)?).map_err(content("format version"))?;
    match format {
        Some(FORMAT) => {}
        Some(found) => {
            return Err(StoreError::Format {
                path: path.to_owned(),
                found,
            });
        }
        None => {
            let format = serde_json::to_vec(&FORMAT).map_err(content("format version"))?;
            let owner = serde_json::to_vec(&owner).map_err(content("owner"))?;
            return inner
                .write(Durability::Immediate, |transaction| {
                    transaction.open_table(LOG)?;
                    let mut meta = transaction.open_table(META)?;
                    meta.insert("format", format.as_slice())?;
                    meta.insert("owner", owner.as_slice())?;
                    Ok(())
                })
                .map_err(failed);
        }
    }
    let found: Option<Owner> =
        parse(inner.meta("owner").map_err(failed)?).map_err(content("owner"))?;
    match found {
        Some(found) if found != owner => Err(StoreError::Owner {
            path: path.to_owned(),
            node: found.node,
            directory: found.directory,
        }),
        _ => Ok(()),
    }
}

fn parse<T: DeserializeOwned>(bytes: Option<Vec<u8>>) -> Result<Option<T>, serde_json::Error> {
    bytes
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose()
}

impl Inner {
    /// `None` also before the table exists.
    fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        Ok(table.get(name)?.map(|value| value.value().to_vec()))
    }

    fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(durability)?;
        change(&transaction)?;
        transaction.commit()?;
        Ok(())
    }

    fn entries(
        &self,
        range: (Bound<u64>, Bound<u64>),
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(LOG)?;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for item in table.range(range)? {
            let entry = item?.1.value().to_vec();
            bytes += entry.len();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn last_entry(&self) -> Result<Option<Vec<u8>>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(LOG)?;
        Ok(table.last()?.map(|(_, value)| value.value().to_vec()))
    }
}

/// Runs a write, which waits for the disk, on a thread where that does no harm.
async fn write(
    inner: &Arc<Inner>,
    durability: Durability,
    subject: ErrorSubject<u64>,
    change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error> + Send + 'static,
) -> Result<(), StorageError> {
    let inner = Arc::clone(inner);
    let written = tokio::task::spawn_blocking(move || inner.write(durability, change)).await;
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(subject, ErrorVerb::Write, error)),
        Err(panicked) => Err(failed(subject, ErrorVerb::Write, panicked)),
    }
}

fn failed(
    subject: ErrorSubject<u64>,
    verb: ErrorVerb,
    source: impl std::error::Error + Send + Sync + 'static,
) -> StorageError {
    StorageError::from_io_error(subject, verb, io::Error::other(source))
}

fn encode(subject: ErrorSubject<u64>, value: &impl Serialize) -> Result<Vec<u8>, StorageError> {
    serde_json::to_vec(value).map_err(|error| failed(subject, ErrorVerb::Write, error))
}

fn decode<T: DeserializeOwned>(
    subject: ErrorSubject<u64>,
    bytes: &[u8],
) -> Result<T, StorageError> {
    serde_json::from_slice(bytes).map_err(|error| failed(subject, ErrorVerb::Read, error))
}

impl LogStore {
    fn read_meta<T: DeserializeOwned>(
        &self,
        name: &str,
        subject: ErrorSubject<u64>,
    ) -> Result<Option<T>, StorageError> {
        match self.inner.meta(name) {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => decode(subject, &bytes).map(Some),
            Err(error) => Err(failed(subject, ErrorVerb::Read, error)),
        }
    }

    fn read_entries(
        &self,
        range: impl RangeBounds<u64>,
        max_bytes: usize,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        self.inner
            .entries(range, max_bytes)
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, error))?
            .iter()
            .map(|entry| decode(ErrorSubject::Logs, entry))
            .collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError> {
        self.read_entries(range, usize::MAX)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError> {
        self.read_entries(start..end, MAX_APPEND_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let last_purged_log_id: Option<LogId> = self.read_meta("purged", ErrorSubject::Logs)?;
        let last = self
            .inner
            .last_entry()
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, error))?;
        let last_log_id = match last {
            Some(bytes) => Some(decode::<Entry<TypeConfig>>(ErrorSubject::Logs, &bytes)?.log_id),
            None => last_purged_log_id,
        };
        Ok(LogState {
            last_purged_log_id,
            last_log_id,
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = encode(ErrorSubject::Vote, vote)?;
        let change = move |transaction: &WriteTransaction| {
            transaction
                .open_table(META)?
                .insert("vote", vote.as_slice())?;
            Ok(())
        };
        write(
            &self.inner,
            Durability::Immediate,
            ErrorSubject::Vote,
            change,
        )
        .await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.read_meta("vote", ErrorSubject::Vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let committed = encode(ErrorSubject::Store, &committed)?;
        let change = move |transaction: &WriteTransaction| {
            transaction
                .open_table(META)?
                .insert("committed", committed.as_slice())?;
            Ok(())
        };
        // Not synced: see the head of this file.
        write(&self.inner, Durability::None, ErrorSubject::Store, change).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed: Option<Option<LogId>> = self.read_meta("committed", ErrorSubject::Store)?;
        Ok(committed.flatten())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        for entry in entries {
            let bytes = encode(ErrorSubject::Log(entry.log_id), &entry)?;
            encoded.push((entry.log_id.index, bytes));
        }
        let change = move |transaction: &WriteTransaction| {
            let mut log = transaction.open_table(LOG)?;
            for (index, bytes) in &encoded {
                log.insert(index, bytes.as_slice())?;
            }
            Ok(())
        };
        let written = write(
            &self.inner,
            Durability::Immediate,
            ErrorSubject::Logs,
            change,
        )
        .await;
        match written {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(io::Error::other(error.to_string())));
                Err(error)
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let change = move |transaction: &WriteTransaction| {
            transaction
                .open_table(LOG)?
                .retain_in(log_id.index.., |_, _| false)?;
            Ok(())
        };
        let subject = ErrorSubject::Log(log_id);
        write(&self.inner, Durability::Immediate, subject, change).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let purged = encode(ErrorSubject::Log(log_id), &log_id)?;
        let change = move |transaction: &WriteTransaction| {
            transaction
                .open_table(META)?
                .insert("purged", purged.as_slice())?;
            transaction
                .open_table(LOG)?
                .retain_in(..=log_id.index, |_, _| false)?;
            Ok(())
        };
        let subject = ErrorSubject::Log(log_id);
        write(&self.inner, Durability::Immediate, subject, change).await
    }
}

impl StateMachine {
    fn publish(&self) {
        self.published.send_replace(Arc::new(self.image.clone()));
    }
}

async fn save_snapshot(
    inner: &Arc<Inner>,
    meta: &SnapshotMeta,
    data: Vec<u8>,
) -> Result<(), StorageError> {
    let subject = ErrorSubject::Snapshot(Some(meta.signature()));
    let meta = encode(subject.clone(), meta)?;
    let change = move |transaction: &WriteTransaction| {
        let mut table = transaction.open_table(META)?;
        table.insert("snapshot_meta", meta.as_slice())?;
        table.insert("snapshot", data.as_slice())?;
        Ok(())
    };
    write(inner, Durability::Immediate, subject, change).await
}

/// A copy of the state at one point of the log, which is cheap to take, to be written out while the state moves on.
pub(super) struct SnapshotBuilder {
    inner: Arc<Inner>,
    image: ClusterImage,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let subject = ErrorSubject::Snapshot(Some(self.meta.signature()));
        let data = encode(subject, &self.image)?;
        save_snapshot(&self.inner, &self.meta, data.clone()).await?;
        Ok(Snapshot {
            meta: self.meta.clone(),
            snapshot: Box::new(Cursor::new(data)),
        })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<I>(
        &mut self,
        entries: I,
    ) -> Result<Vec<Result<Outcome, Rejection>>, StorageError>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut results = Vec::new();
        for entry in entries {
            self.last_applied = Some(entry.log_id);
            results.push(match entry.payload {
                EntryPayload::Blank => Ok(Outcome::Done),
                EntryPayload::Normal(command) => self.image.apply(&command),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Ok(Outcome::Done)
                }
            });
            self.image.set_applied_index(entry.log_id.index);
        }
        // Before the answers, so that whoever gets one finds the change in the image.
        self.publish();
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let snapshot_id = match self.last_applied {
            Some(log_id) => format!("{}-{}", log_id.leader_id, log_id.index),
            None => "empty".to_owned(),
        };
        SnapshotBuilder {
            inner: Arc::clone(&self.inner),
            image: self.image.clone(),
            meta: SnapshotMeta {
                last_log_id: self.last_applied,
                last_membership: self.membership.clone(),
                snapshot_id,
            },
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let data = snapshot.into_inner();
        let subject = ErrorSubject::Snapshot(Some(meta.signature()));
        let image: ClusterImage = decode(subject, &data)?;
        save_snapshot(&self.inner, meta, data).await?;
        self.image = image;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let read = |name| {
            self.inner
                .meta(name)
                .map_err(|error| failed(ErrorSubject::Snapshot(None), ErrorVerb::Read, error))
        };
        let (Some(meta), Some(data)) = (read("snapshot_meta")?, read("snapshot")?) else {
            return Ok(None);
        };
        Ok(Some(Snapshot {
            meta: decode(ErrorSubject::Snapshot(None), &meta)?,
            snapshot: Box::new(Cursor::new(data)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use openraft::storage::RaftLogStorageExt;
    use openraft::testing::{StoreBuilder, Suite};
    use tempfile::TempDir;

    use super::*;
    use crate::metadata::Command;
    use crate::types::ClusterId;

    const OWNER: Owner = Owner {
        node: NodeId::new(1).unwrap(),
        directory: DirectoryId::from_random_bits(1),
    };

    struct Builder;

    impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
        async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
            let dir = tempfile::tempdir().unwrap();
            let opened = open(&dir.path().join("controller.redb"), OWNER).unwrap();
            Ok((dir, opened.log, opened.state))
        }
    }

    #[test]
    fn openrafts_own_suite_passes() {
        Suite::test_all(Builder).unwrap();
    }

    fn entry(index: u64, command: Command) -> Entry<TypeConfig> {
        Entry {
            log_id: LogId::new(openraft::CommittedLeaderId::new(1, 1), index),
            payload: EntryPayload::Normal(command),
        }
    }

    fn init(cluster: u128) -> Command {
        Command::InitCluster {
            cluster_id: ClusterId::from_random_bits(cluster),
        }
    }

    #[tokio::test]
    async fn what_was_stored_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.redb");
        let mut opened = open(&path, OWNER).unwrap();
        let entries = [entry(1, init(5)), entry(2, init(6))];
        let vote = Vote::new(3, 1);
        opened.log.save_vote(&vote).await.unwrap();
        opened.log.blocking_append(entries.clone()).await.unwrap();
        let results = opened.state.apply(entries[..1].to_vec()).await.unwrap();
        assert_eq!(results, [Ok(Outcome::Done)]);
        let mut builder = opened.state.get_snapshot_builder().await;
        builder.build_snapshot().await.unwrap();
        opened.state.apply(entries[1..].to_vec()).await.unwrap();
        assert_eq!(opened.image.borrow().applied_index(), 2);
        opened.log.purge(entries[0].log_id).await.unwrap();
        opened
            .log
            .save_committed(Some(entries[1].log_id))
            .await
            .unwrap();
        drop((opened, builder));

        let mut opened = open(&path, OWNER).unwrap();
        assert_eq!(opened.log.read_vote().await.unwrap(), Some(vote));
        let state = opened.log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(entries[0].log_id));
        assert_eq!(state.last_log_id, Some(entries[1].log_id));
        assert_eq!(
            opened.log.read_committed().await.unwrap(),
            Some(entries[1].log_id)
        );
        let (applied, _) = opened.state.applied_state().await.unwrap();
        assert_eq!(applied, Some(entries[0].log_id), "as of the snapshot");
        assert_eq!(
            opened.image.borrow().cluster_id(),
            Some(ClusterId::from_random_bits(5))
        );
    }

    #[test]
    fn a_store_of_another_node_or_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.redb");
        drop(open(&path, OWNER).unwrap());
        let other = Owner {
            directory: DirectoryId::from_random_bits(2),
            ..OWNER
        };
        assert!(matches!(open(&path, other), Err(StoreError::Owner { .. })));
        let first = open(&path, OWNER).unwrap();
        let Err(locked) = open(&path, OWNER) else {
            panic!("a store in use was opened again");
        };
        assert!(locked.to_string().contains("controller.redb"), "{locked}");
        first
            .log
            .inner
            .write(Durability::Immediate, |transaction| {
                transaction
                    .open_table(META)?
                    .insert("format", b"2".as_slice())?;
                Ok(())
            })
            .unwrap();
        drop(first);
        assert!(matches!(
            open(&path, OWNER),
            Err(StoreError::Format { found: 2, .. })
        ));
    }

    #[tokio::test]
    async fn a_store_that_has_rotted_is_refused_wherever_the_rot_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.redb");
        let vote = Vote::new(3, 1);
        {
            let mut opened = open(&path, OWNER).unwrap();
            opened.log.save_vote(&vote).await.unwrap();
            let entries = [entry(1, init(5)), entry(2, init(6))];
            opened.log.blocking_append(entries).await.unwrap();
        }
        let sound = std::fs::read(&path).unwrap();
        let written: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
        let mut refused = 0;
        for at in written.iter().step_by(7) {
            let mut rotten = sound.clone();
            rotten[*at] ^= 0x11;
            std::fs::write(&path, &rotten).unwrap();
            match open(&path, OWNER) {
                // What is not in use any more, or stands twice.
                Ok(mut opened) => {
                    assert_eq!(opened.log.read_vote().await.unwrap(), Some(vote), "{at}");
                    let state = opened.log.get_log_state().await.unwrap();
                    assert_eq!(state.last_log_id.map(|id| id.index), Some(2), "{at}");
                }
                Err(error) => {
                    refused += 1;
                    let told = error.to_string();
                    assert!(told.contains("controller.redb"), "{told}");
                }
            }
        }
        assert!(refused > 0);
    }

    #[tokio::test]
    async fn large_entries_travel_in_several_requests() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(&dir.path().join("controller.redb"), OWNER).unwrap();
        let large = |index| {
            let elections = vec![
                crate::metadata::ElectionStart {
                    partition: crate::types::TopicPartition {
                        topic: crate::types::TopicId::from_random_bits(u128::MAX),
                        partition: crate::types::PartitionIndex(0),
                    },
                    leader_epoch: crate::types::LeaderEpoch::NONE,
                    partition_epoch: crate::types::PartitionEpoch(0),
                };
                MAX_APPEND_BYTES / 100
            ];
            entry(index, Command::StartElections { elections })
        };
        let entries = [large(0), large(1), large(2)];
        opened.log.blocking_append(entries).await.unwrap();
        let some = opened.log.limited_get_log_entries(0, 3).await.unwrap();
        assert_eq!(some.len(), 1);
        let all = opened.log.try_get_log_entries(0..3).await.unwrap();
        assert_eq!(all.len(), 3);
    }
}
