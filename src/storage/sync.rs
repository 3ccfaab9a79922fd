//! Making appended frames durable, away from the owner's thread; the recovery checkpoint; and what is remembered of a
//! failed sync.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::file_system::{File, FileSystem, IoFailure, OpenMode};
use super::impairment::{self, Impairment};
use super::index::{SealedSegment, SegmentIndex};
use super::log::{Flush, Log};
use super::reader::{Shared, State};
use super::segment::{index_path, segment_path};
use super::small_file;
use super::snapshots::{self, Snapshot};
use super::tail_index::TailPart;
use super::unsynced;
use crate::types::{LogPosition, Offset};

const CHECKPOINT_FILE: &str = "recovery";
const CHECKPOINT_KIND: &str = "recovery-checkpoint";

/// The recovery checkpoint is written when this much has been synced since the last one. Unlike the blocks of a tail's index, which
/// come as often at least, it is synced itself, and outlives a power cut.
const CHECKPOINT_BYTES: u64 = 32 * 1024 * 1024;

/// A sync that failed. What it should have covered may be lost though it can still be read, and no later sync can tell: the
/// process must stop, and the next start writes the log's tail to a new file.
#[derive(Clone, Debug, Error)]
#[error("cannot sync {}: {cause}; the node must stop, and recovers the log when it is started again", path.display())]
pub struct SyncError {
    pub path: PathBuf,
    pub cause: Arc<std::io::Error>,
}

/// Everything in this log below `flushed` was synced at some time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct CheckpointBody {
    pub(super) flushed: LogPosition,
    /// See [`DurableMark::lineage`]. Builds that wrote no marks wrote none here.
    #[serde(default)]
    pub(super) lineage: u64,
}

/// That a log was synced up to `end`. It is kept outside the log and may be older than it, so it says of which log it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableMark {
    pub end: LogPosition,
    /// Rises, before anything is removed, whenever a log loses what was synced by right: by truncation, by a reset, or when it
    /// is set aside. A mark of another lineage says nothing of the log.
    pub lineage: u64,
}

/// The recovery checkpoint as this process knows it. Tickets write it on other threads while the owner may truncate, so
/// the generation says whose word counts.
pub(super) struct Checkpoint {
    pub(super) generation: u64,
    /// What is on the disk; `None` when nothing usable is.
    pub(super) flushed: Option<LogPosition>,
    /// Likewise, or what a block of the tail's index says.
    pub(super) vouched: Option<LogPosition>,
    /// See [`DurableMark::lineage`].
    pub(super) lineage: u64,
}

pub(super) type SharedCheckpoint = Arc<Mutex<Checkpoint>>;

/// Held by whoever syncs a log, ticket or close: the first failure, after which nobody syncs it again. The kernel tells of a lost
/// page once; who asks beside or after the one that was told hears that all is well, and would vouch for it in the checkpoint.
pub(super) type FirstFailure = Arc<Mutex<Option<SyncError>>>;

/// A sealed segment that waits for its last sync, after which its index is written.
pub(super) struct SealedUnsynced {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) base: Offset,
    pub(super) sealed: SealedSegment,
    pub(super) index: Arc<SegmentIndex>,
}

/// One round of syncs for one log: everything that was appended before it was taken out. It may run on any thread; then
/// it goes back to its log with [`super::Log::finish_sync`].
pub struct SyncTicket {
    /// Boxed: tickets travel in messages whose other kinds are small.
    pub(super) work: Box<SyncWork>,
}

/// What a ticket carries.
pub(super) struct SyncWork {
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) dir: PathBuf,
    /// What is durable once it has run.
    pub(super) target: LogPosition,
    /// Whether nothing below the target is left unsynced by it, whoever appended it.
    pub(super) covers_all: bool,
    /// The log's, when the ticket was taken out.
    pub(super) generation: u64,
    pub(super) sealed: Vec<SealedUnsynced>,
    /// Path and file; none in a log that does not sync each append.
    pub(super) active: Option<(PathBuf, Arc<dyn File>)>,
    /// Whether a segment file was made since the directory was last synced.
    pub(super) sync_dir: bool,
    /// Whether enough was appended for a new recovery checkpoint.
    pub(super) checkpoint_due: bool,
    pub(super) checkpoint: SharedCheckpoint,
    pub(super) first_failure: FirstFailure,
    /// Of the active segment up to `target`, where that is due.
    pub(super) tail: Option<TailPart>,
    /// Of positions at or below `target`.
    pub(super) snapshots: Vec<Snapshot>,
    /// Places of older ones that are to go.
    pub(super) stale_snapshots: Vec<Offset>,
    pub(super) outcome: OnceLock<Result<(), SyncError>>,
}

impl SyncTicket {
    /// Syncs. Blocks for as long as the disk takes. A failure is never retried: running a ticket again gives the first
    /// outcome.
    pub fn run(&self) -> Result<(), SyncError> {
        self.work.run()
    }
}

impl SyncWork {
    fn run(&self) -> Result<(), SyncError> {
        self.outcome
            .get_or_init(|| {
                let mut failed = self
                    .first_failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Some(error) = &*failed {
                    return Err(error.clone());
                }
                let outcome = self.sync();
                if let Err(error) = &outcome {
                    *failed = Some(error.clone());
                    // Where even this cannot be written, recovery still rewrites what no checkpoint covers.
                    let note = Impairment::sync_failed(error.to_string());
                    if let Err(failure) = impairment::write(&*self.fs, &self.dir, &note) {
                        tracing::error!(%failure, "cannot note that a sync failed");
                    }
                }
                outcome
            })
            .clone()
    }

    fn sync(&self) -> Result<(), SyncError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| SyncError {
                path,
                cause: Arc::new(error),
            }
        };
        for segment in &self.sealed {
            segment.file.sync_data().map_err(failed(&segment.path))?;
        }
        if let Some((path, file)) = &self.active {
            file.sync_data().map_err(failed(path))?;
        }
        if self.sync_dir {
            self.fs.sync_dir(&self.dir).map_err(failed(&self.dir))?;
        }
        self.take_notes();
        Ok(())
    }

    /// Writes down what spares the next start work. Nothing depends on it.
    fn take_notes(&self) {
        let mut checkpoint = lock(&self.checkpoint);
        if checkpoint.generation != self.generation {
            return;
        }
        if self.checkpoint_due || !self.sealed.is_empty() {
            // First, so that what has an index is known to have been synced: rot in it is then never taken for a torn tail.
            if let Err(failure) = checkpoint.write(&*self.fs, &self.dir, self.target) {
                tracing::warn!(%failure, "cannot write the recovery checkpoint; the next start reads more of the log");
                return;
            }
        }
        for segment in &self.sealed {
            let path = index_path(&self.dir, segment.base);
            if let Err(failure) = segment.index.write(&*self.fs, &path, &segment.sealed) {
                tracing::warn!(%failure, "cannot write a segment's index; it will be rebuilt");
            }
        }
        if let Some(tail) = &self.tail {
            // Before, because a write that failed may have written.
            checkpoint.vouched = checkpoint.vouched.max(Some(self.target));
            if let Err(failure) = tail.write(&*self.fs, &self.dir) {
                tracing::warn!(%failure, "cannot write the index of a log's tail; the next start reads more of the log");
            }
        }
        for snapshot in &self.snapshots {
            if let Err(failure) = snapshots::write(&*self.fs, &self.dir, snapshot, false) {
                tracing::warn!(%failure, "cannot write a snapshot of producers; an older one will do");
            }
        }
        snapshots::remove(&*self.fs, &self.dir, &self.stale_snapshots);
        if !self.sealed.is_empty() {
            snapshots::prune_within_segments(&*self.fs, &self.dir);
        }
    }
}

impl Log {
    /// Whether the next ticket will write down the index of the log's tail: then a snapshot of the producers at its end spares the
    /// next start what the index spares it.
    pub fn is_tail_index_due(&self) -> bool {
        self.config.flush == Flush::Fsync
            && !self.ticket_out
            && self.durable_end != self.end()
            && self.bytes_since_tail_index >= self.share.bytes()
    }

    /// Takes out what must be synced: `None` when there is nothing to sync or a ticket is out already. With
    /// [`Flush::Os`] only sealed segments are synced, once each.
    ///
    /// One ticket at a time: it covers every frame appended before, and the next one all that came meanwhile. It must come
    /// back by [`Log::finish_sync`], whatever its outcome, or no other is given out.
    pub fn begin_sync(&mut self) -> Option<SyncTicket> {
        if self.ticket_out || self.poisoned.is_some() {
            return None;
        }
        let state = self.shared.state();
        let active = match self.config.flush {
            Flush::Fsync => {
                let is_synced = self.durable_end == state.end && self.sealed_unsynced.is_empty();
                if is_synced && !self.unsynced {
                    return None;
                }
                active_file(&self.shared, &state)
            }
            Flush::Os => {
                if self.sealed_unsynced.is_empty() {
                    return None;
                }
                None
            }
        };
        let target = match (self.config.flush, self.sealed_unsynced.last()) {
            (Flush::Os, Some(last)) => last.sealed.end,
            _ => state.end,
        };
        let checkpoint_due = self.bytes_since_checkpoint >= CHECKPOINT_BYTES;
        if checkpoint_due {
            self.bytes_since_checkpoint = 0;
        }
        let mut tail = None;
        if active.is_some()
            && self.bytes_since_tail_index >= self.share.bytes()
            && let Some(segment) = state.segments.last()
        {
            self.bytes_since_tail_index = 0;
            let before = self.tail_written.take();
            let part = TailPart::new(before, segment, &state.active_index, self.lineage);
            tail = Some(part);
        }
        drop(state);
        self.ticket_out = true;
        let work = SyncWork {
            checkpoint_due,
            tail,
            ..self.take_work(target, active)
        };
        Some(SyncTicket {
            work: Box::new(work),
        })
    }

    /// All that is to be synced and written down up to `target`, but for what is due now and then.
    fn take_work(
        &mut self,
        target: LogPosition,
        active: Option<(PathBuf, Arc<dyn File>)>,
    ) -> SyncWork {
        let stale_snapshots = self.snapshots.take_stale(&self.shared.state().segments);
        SyncWork {
            fs: self.shared.fs.clone(),
            dir: self.shared.dir.clone(),
            target,
            covers_all: self.config.flush == Flush::Fsync,
            generation: self.generation,
            sealed: std::mem::take(&mut self.sealed_unsynced),
            active,
            sync_dir: std::mem::take(&mut self.dir_unsynced),
            checkpoint_due: false,
            checkpoint: self.checkpoint.clone(),
            first_failure: self.first_failure.clone(),
            tail: None,
            snapshots: std::mem::take(&mut self.snapshots.waiting),
            stale_snapshots,
            outcome: OnceLock::new(),
        }
    }

    /// Takes back a ticket that has run, and moves [`Log::durable_end`] if it succeeded and the log was not truncated
    /// meanwhile. After a failure the log takes no more writes. A ticket that has not run counts as failed. One of another log says
    /// nothing: a replica may have left this directory, and come back, while it was out.
    pub fn finish_sync(&mut self, ticket: SyncTicket) {
        let ticket = ticket.work;
        if !Arc::ptr_eq(&ticket.checkpoint, &self.checkpoint) {
            return;
        }
        let outcome = ticket.outcome.get().cloned();
        let is_current = ticket.generation == self.generation;
        if is_current {
            self.ticket_out = false;
        }
        match outcome {
            Some(Ok(())) => {
                if is_current {
                    if let Some(tail) = &ticket.tail {
                        self.tail_written = tail.written();
                    }
                    self.synced_end = self.synced_end.max(ticket.target);
                    if self.config.flush == Flush::Fsync {
                        self.durable_end = self.durable_end.max(ticket.target);
                        if self.unsynced && ticket.covers_all {
                            self.unsynced = false;
                            if let Err(error) = unsynced::clear(&*self.shared.fs, &self.shared.dir)
                            {
                                // It then says more than is so, until the next start.
                                tracing::warn!(cause = %error, "a note that frames are not synced is left");
                            }
                        }
                    }
                    self.publish_durable_mark();
                }
            }
            Some(Err(error)) => self.poison(error.to_string()),
            None => self.poison("a sync was given up".to_owned()),
        }
    }

    /// Syncs everything and writes the recovery checkpoint: before a clean stop. A ticket that is out comes to nothing.
    pub fn close(&mut self) -> Result<(), SyncError> {
        let failed = |path: &Path, cause: std::io::Error| SyncError {
            path: path.to_owned(),
            cause: Arc::new(cause),
        };
        if let Some(cause) = &self.poisoned {
            return Err(failed(
                &self.shared.dir,
                std::io::Error::other(cause.clone()),
            ));
        }
        if self.ticket_out {
            // What it took with it is synced here once more.
            self.reopen_unsynced()
                .map_err(|e| failed(&e.path, e.source))?;
        }
        let state = self.shared.state();
        let (end, active) = (state.end, active_file(&self.shared, &state));
        drop(state);
        let work = SyncWork {
            sync_dir: true,
            checkpoint_due: true,
            ..self.take_work(end, active)
        };
        let ticket = SyncTicket {
            work: Box::new(work),
        };
        let outcome = ticket.run();
        self.finish_sync(ticket);
        outcome
    }

    /// Lists again every sealed segment that the recovery checkpoint does not cover, though a ticket has it.
    pub(super) fn reopen_unsynced(&mut self) -> Result<(), IoFailure> {
        let flushed = lock(&self.checkpoint).flushed;
        let (segments, interval) = {
            let state = self.shared.state();
            (state.segments.clone(), state.index_interval)
        };
        let sealed = &segments[..segments.len().saturating_sub(1)];
        let mut unsynced = Vec::new();
        for segment in sealed.iter().filter(|s| flushed.is_none_or(|f| s.end > f)) {
            let path = segment_path(&self.shared.dir, segment.base);
            let file = self
                .shared
                .fs
                .open(&path, OpenMode::Write)
                .map_err(IoFailure::at("open", &path))?;
            if let Ok(index) = self.shared.sealed_index(segment, interval) {
                unsynced.push(self.sealed_unsynced_of(segment, file, index));
            }
        }
        self.sealed_unsynced = unsynced;
        Ok(())
    }
}

fn active_file(shared: &Shared, state: &State) -> Option<(PathBuf, Arc<dyn File>)> {
    let active = state.segments.last()?;
    let file = state.active_file.clone()?;
    Some((segment_path(&shared.dir, active.base), file))
}

impl Checkpoint {
    /// What the file says; `None` when it is missing or unusable.
    pub(super) fn read(fs: &dyn FileSystem, dir: &Path) -> Option<CheckpointBody> {
        small_file::read(fs, &dir.join(CHECKPOINT_FILE), CHECKPOINT_KIND)
            .ok()
            .flatten()
    }

    pub(super) fn write(
        &mut self,
        fs: &dyn FileSystem,
        dir: &Path,
        flushed: LogPosition,
    ) -> Result<(), IoFailure> {
        small_file::replace(
            fs,
            &dir.join(CHECKPOINT_FILE),
            CHECKPOINT_KIND,
            &CheckpointBody {
                flushed,
                lineage: self.lineage,
            },
        )?;
        self.flushed = Some(flushed);
        self.vouched = self.vouched.max(self.flushed);
        Ok(())
    }

    /// Begins another lineage, in which the log is synced up to `flushed` at least. To be durable before anything is removed.
    pub(super) fn begin_lineage(
        &mut self,
        fs: &dyn FileSystem,
        dir: &Path,
        flushed: LogPosition,
    ) -> Result<(), IoFailure> {
        self.lineage = self.lineage.saturating_add(1);
        // Blocks of an earlier lineage count for nothing.
        self.vouched = None;
        self.write(fs, dir, flushed)
    }
}

pub(super) fn lock(checkpoint: &SharedCheckpoint) -> std::sync::MutexGuard<'_, Checkpoint> {
    checkpoint.lock().unwrap_or_else(PoisonError::into_inner)
}
