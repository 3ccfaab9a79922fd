//! One partition's log: frames in segments, appended by one owner.

use std::io::IoSlice;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::file_system::{File, FileSystem, IoFailure, OpenMode, is_no_space};
use super::impairment::{self, Impairment};
use super::index::{MAX_ABORTED, SealedSegment, SegmentIndex, is_control};
use super::reader::{Frames, LogReader, ReadError, Segment, Shared};
use super::recovery::{OpenError, RecoveryReport};
use super::recovery_budget::{BudgetShare, RecoveryBudget};
use super::segment::segment_path;
use super::snapshots::Snapshots;
use super::space::DiskSpace;
use super::sync::{DurableMark, FirstFailure, SealedUnsynced, SharedCheckpoint};
use super::tail_index::Written;
use super::unsynced;
use crate::types::{
    EpochEntry, EpochHistory, LeaderEpoch, LogPosition, Offset, TopicName, TopicPartition,
};
use crate::wal::{Frame, MAX_FRAME_BYTES};

/// When an appended frame counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// After fdatasync.
    Fsync,
    /// At once: what the operating system has not written when the machine goes down is lost. Weaker, and documented so.
    Os,
}

/// What a topic's configuration says about its logs. Times in ms, sizes in bytes; `None`: no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A frame that would make the active segment larger goes into a new one.
    pub segment_bytes: u64,
    /// The active segment is sealed when its first batch is this old.
    pub segment_ms: u64,
    /// Bytes between two index entries; below [`MIN_INDEX_INTERVAL_BYTES`] that is taken.
    pub index_interval_bytes: u64,
    pub retention_ms: Option<u64>,
    pub retention_bytes: Option<u64>,
    /// Of the records with one key only the last is kept.
    pub compact: bool,
    /// How long a compacted log keeps a tombstone.
    pub delete_retention_ms: u64,
    pub flush: Flush,
}

/// An index entry takes about 30 bytes of memory in the active segment; at this interval a segment of 1 GiB has 32,768.
pub const MIN_INDEX_INTERVAL_BYTES: u64 = 32 * 1024;

/// How many bytes of newest frames each log keeps in memory unless [`LogOptions`] says otherwise. A reader that is further
/// behind reads the disk.
pub const TAIL_CACHE_BYTES: usize = 2 * 1024 * 1024;

impl Default for LogConfig {
    /// Kafka's: segments of 1 GiB or 7 days, retention of 7 days.
    fn default() -> LogConfig {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        LogConfig {
            segment_bytes: 1024 * 1024 * 1024,
            segment_ms: 7 * DAY_MS,
            index_interval_bytes: MIN_INDEX_INTERVAL_BYTES,
            retention_ms: Some(7 * DAY_MS),
            retention_bytes: None,
            compact: false,
            delete_retention_ms: DAY_MS,
            flush: Flush::Fsync,
        }
    }
}

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    pub config: LogConfig,
    /// Read and check every frame, not only those above the recovery checkpoint.
    pub verify_all: bool,
    /// The machine was restarted since this data directory was last in use: a log with [`Flush::Os`] may have lost frames.
    pub machine_restarted: bool,
    /// This node has made a promise for the partition, or has known a high watermark of it: a missing log is a loss, and is
    /// noted as one.
    pub known_before: bool,
    /// Other nodes are in sync: a log that the disk cannot read all through is set aside, to be fetched anew. One that may be the
    /// only one with everything stays where it is, and is not opened.
    pub others_in_sync: bool,
    /// Up to where the log was synced, as it was last written down outside it: a log that does not reach so far is corrupt,
    /// where it could otherwise be one whose tail was torn. [`super::DataDir::open_log`] sets it.
    pub durable_mark: Option<DurableMark>,
    /// See [`TAIL_CACHE_BYTES`].
    pub tail_cache_bytes: usize,
    /// Of the disk that the log is on.
    pub space: DiskSpace,
    /// Of the directory that the log is in.
    pub recovery_budget: RecoveryBudget,
}

impl From<LogConfig> for LogOptions {
    fn from(config: LogConfig) -> LogOptions {
        LogOptions {
            config,
            verify_all: false,
            machine_restarted: false,
            known_before: false,
            others_in_sync: false,
            durable_mark: None,
            tail_cache_bytes: TAIL_CACHE_BYTES,
            space: DiskSpace::default(),
            recovery_budget: RecoveryBudget::default(),
        }
    }
}

/// Why nothing was appended.
#[derive(Debug, Error)]
pub enum AppendError {
    #[error(
        "a frame that starts at {found} (offset@epoch) does not fit a log that ends at {expected}"
    )]
    DoesNotFit {
        expected: LogPosition,
        found: LogPosition,
    },
    /// The log is as it was before, and can be read.
    #[error("no space left on the disk for {}: free some, or lower the topic's retention; reads go on", path.display())]
    NoSpace { path: PathBuf },
    /// The log is as it was before.
    #[error(transparent)]
    Io(#[from] IoFailure),
    #[error("the log {} takes no writes since {cause}: restart the node", dir.display())]
    Poisoned { dir: PathBuf, cause: String },
}

/// One partition's log. Owned by one thread, which may change; [`LogReader`]s read it from others.
///
/// `start <= durable_end <= end`, and frames lie between start and end without a gap. `durable_end` moves only by
/// [`Log::finish_sync`], by truncation, and with [`Flush::Os`] by appends.
pub struct Log {
    pub(super) shared: Arc<Shared>,
    pub(super) id: TopicPartition,
    pub(super) topic: TopicName,
    pub(super) config: LogConfig,
    pub(super) epochs: EpochHistory,
    pub(super) durable_end: LogPosition,
    /// Everything below was synced, whatever the policy: `synced_end <= end`.
    pub(super) synced_end: LogPosition,
    /// The recovery checkpoint's, kept here too because that one is locked while it is written.
    pub(super) lineage: u64,
    /// Sealed since the last ticket was taken out.
    pub(super) sealed_unsynced: Vec<SealedUnsynced>,
    /// Whether the directory says that frames may count and be on no disk. True from before the first such frame: always while
    /// the policy is [`Flush::Os`], and after that until a ticket has synced everything.
    pub(super) unsynced: bool,
    /// A segment file was made since the last ticket was taken out.
    pub(super) dir_unsynced: bool,
    /// Bytes appended since a ticket last wrote the recovery checkpoint.
    pub(super) bytes_since_checkpoint: u64,
    /// Bytes of the active segment that the index of the log's tail does not know yet.
    pub(super) bytes_since_tail_index: u64,
    /// So many of them the next start may have to read.
    pub(super) share: BudgetShare,
    /// What is known to be in the index of the log's tail; `None` begins it anew.
    pub(super) tail_written: Option<Written>,
    /// Rises with each truncation and reset; a ticket of an earlier one moves nothing.
    pub(super) generation: u64,
    pub(super) ticket_out: bool,
    /// Why the log takes no more writes.
    pub(super) poisoned: Option<String>,
    pub(super) impairment: Option<Impairment>,
    pub(super) checkpoint: SharedCheckpoint,
    pub(super) first_failure: FirstFailure,
    pub(super) snapshots: Snapshots,
    /// Below it compaction has left one record of each key, as far as this process knows.
    pub(super) compacted_to: Offset,
    pub(super) space: DiskSpace,
}

/// Frames that go into one segment.
struct Run {
    /// Into a segment that is made for them.
    in_new_segment: bool,
    frames: Range<usize>,
}

impl Log {
    /// Opens the log in `dir`, making it when it does not exist, and recovers it: a torn tail is cut, a corrupt log is set
    /// aside, and what is kept is synced before this returns. Blocks for as long as that takes.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        id: TopicPartition,
        topic: &TopicName,
        options: LogOptions,
    ) -> Result<(Log, RecoveryReport), OpenError> {
        super::recovery::open(fs, dir, id, topic, options)
    }

    pub const fn id(&self) -> TopicPartition {
        self.id
    }

    pub const fn topic(&self) -> &TopicName {
        &self.topic
    }

    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Where the first frame starts: the log start offset, and the epoch before it.
    pub fn start(&self) -> LogPosition {
        self.shared.state().start
    }

    /// Where the next frame must start.
    pub fn end(&self) -> LogPosition {
        self.shared.state().end
    }

    /// Everything below survives a power cut (with [`Flush::Os`]: the end of the process).
    pub const fn durable_end(&self) -> LogPosition {
        self.durable_end
    }

    /// The epochs of the log's frames, and the one before the first.
    pub const fn epochs(&self) -> &EpochHistory {
        &self.epochs
    }

    /// Why this replica must not vote or lead until an ISR change names it; kept over restarts until
    /// [`Log::clear_impairment`].
    pub const fn impairment(&self) -> Option<&Impairment> {
        self.impairment.as_ref()
    }

    /// An ISR change has named this replica's present incarnation: what the log holds counts again.
    pub fn clear_impairment(&mut self) -> Result<(), IoFailure> {
        impairment::clear(&*self.shared.fs, &self.shared.dir)?;
        self.impairment = None;
        Ok(())
    }

    /// How an epoch ended here: see [`EpochHistory::last_up_to`].
    pub fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        self.epochs.last_up_to(epoch, self.end().offset)
    }

    /// Bytes in segment files.
    pub fn size_bytes(&self) -> u64 {
        self.shared.state().segments.iter().map(|s| s.len).sum()
    }

    /// About how many bytes of frames hold the records from `from` on, told without reading anything. 0 at the log's end.
    pub fn bytes_from(&self, from: Offset) -> u64 {
        let state = self.shared.state();
        state.segments.iter().map(|s| s.bytes_from(from)).sum()
    }

    pub fn segment_count(&self) -> usize {
        self.shared.state().segments.len()
    }

    /// Whether the log refuses writes since a failure that only a restart mends.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_deref()
    }

    pub const fn config(&self) -> &LogConfig {
        &self.config
    }

    /// Takes effect with the next append or retention pass. A change to [`Flush::Fsync`] makes the frames appended before
    /// it wait for a sync; those already called durable stay so, and the next ticket syncs them too.
    ///
    /// The log takes no more writes if it cannot be noted that frames count without a sync.
    pub fn set_config(&mut self, config: LogConfig) {
        let noted = match (self.config.flush, config.flush) {
            (Flush::Fsync, Flush::Os) => self.note_unsynced(),
            (Flush::Os, Flush::Fsync) => self.reopen_unsynced(),
            _ => Ok(()),
        };
        if let Err(error) = noted {
            self.poison(error.to_string());
            return;
        }
        if config.flush == Flush::Os {
            self.durable_end = self.end();
        }
        self.shared.state_mut().index_interval = index_interval(&config);
        self.config = config;
        self.publish_durable_mark();
    }

    pub(super) fn note_unsynced(&mut self) -> Result<(), IoFailure> {
        if !self.unsynced {
            unsynced::note(&*self.shared.fs, &self.shared.dir)?;
            self.unsynced = true;
        }
        Ok(())
    }

    /// The log was cut, or begins anew, and all of it up to `end` is on the disk.
    pub(super) fn set_synced_up_to(&mut self, end: LogPosition) {
        self.durable_end = end;
        self.synced_end = end;
        self.publish_durable_mark();
    }

    /// To be called when anything that it is made of has changed.
    pub(super) fn publish_durable_mark(&self) {
        let mark = (self.config.flush == Flush::Fsync).then_some(DurableMark {
            end: self.synced_end,
            lineage: self.lineage,
        });
        self.shared.state_mut().durable_mark = mark;
    }

    /// A view for other threads.
    pub fn reader(&self) -> LogReader {
        LogReader {
            shared: self.shared.clone(),
        }
    }

    /// Whole frames in order, the first of which starts at `from`; empty when `from` is the end. At least one frame, then
    /// as many as stay within `max_bytes`; may return fewer bytes than there are. Newest frames come from memory, older
    /// ones from the disk.
    pub fn read(&self, from: LogPosition, max_bytes: usize) -> Result<Vec<Frame>, ReadError> {
        self.shared.read(from, max_bytes)
    }

    /// See [`LogReader::frames`].
    pub fn frames(&self, from: LogPosition) -> Frames {
        self.reader().frames(from)
    }

    /// Appends frames that follow the end of the log and each other: all of them or, after an error, none. One vectored
    /// write for each segment they go into, which is one but for the rare roll. Not durable until a sync.
    pub fn append(&mut self, frames: &[Frame]) -> Result<(), AppendError> {
        self.check_writable()?;
        let mut expected = self.end();
        for frame in frames {
            if frame.start() != expected {
                return Err(AppendError::DoesNotFit {
                    expected,
                    found: frame.start(),
                });
            }
            expected = frame.end();
        }
        if frames.is_empty() {
            return Ok(());
        }
        // A new leader's epoch start is small, and without it the partition could not even be read.
        if self.space.is_short() && !frames.iter().all(Frame::is_epoch_start) {
            return Err(AppendError::NoSpace {
                path: self.shared.dir.clone(),
            });
        }
        let runs = self.plan(frames);
        let mut written = Vec::with_capacity(runs.len());
        for run in &runs {
            match self.write_run(run, frames) {
                Ok(file) => written.push(file),
                Err(error) => {
                    self.cut_back(&runs[..=written.len()], frames);
                    return Err(error);
                }
            }
        }
        for (run, file) in runs.into_iter().zip(written) {
            self.take_in(run, file, frames);
        }
        if self.config.flush == Flush::Os {
            self.durable_end = expected;
        }
        Ok(())
    }

    /// Whether records are refused because the disk is nearly full.
    pub fn is_short_of_space(&self) -> bool {
        self.space.is_short()
    }

    pub(super) fn check_writable(&self) -> Result<(), AppendError> {
        match &self.poisoned {
            None => Ok(()),
            Some(cause) => Err(AppendError::Poisoned {
                dir: self.shared.dir.clone(),
                cause: cause.clone(),
            }),
        }
    }

    pub(super) fn poison(&mut self, cause: String) {
        self.poisoned.get_or_insert(cause);
    }

    /// Which frames go into which segment.
    fn plan(&self, frames: &[Frame]) -> Vec<Run> {
        let state = self.shared.state();
        let active = state.segments.last();
        let mut runs = Vec::with_capacity(1);
        let mut from = 0;
        let mut in_new_segment = active.is_none();
        let (mut base, mut len) =
            active.map_or((state.end.offset, 0), |active| (active.base, active.len));
        let mut aborted = state.active_index.aborted.len();
        for (i, frame) in frames.iter().enumerate() {
            // A segment without records cannot be sealed: the next one would have its name.
            let is_full = len + frame.len() as u64 > self.config.segment_bytes
                || aborted + usize::from(is_control(frame)) > MAX_ABORTED;
            if is_full && frame.base_offset() > base {
                if i > from {
                    runs.push(Run {
                        in_new_segment,
                        frames: from..i,
                    });
                }
                in_new_segment = true;
                from = i;
                base = frame.base_offset();
                len = 0;
                aborted = 0;
            }
            aborted += usize::from(is_control(frame));
            len += frame.len() as u64;
        }
        runs.push(Run {
            in_new_segment,
            frames: from..frames.len(),
        });
        runs
    }

    fn write_run(&self, run: &Run, frames: &[Frame]) -> Result<Arc<dyn File>, AppendError> {
        let frames = &frames[run.frames.clone()];
        let state = self.shared.state();
        let (path, file, at) = match (&state.active_file, state.segments.last()) {
            (Some(file), Some(active)) if !run.in_new_segment => (
                segment_path(&self.shared.dir, active.base),
                file.clone(),
                active.len,
            ),
            _ => {
                let path = segment_path(&self.shared.dir, frames[0].base_offset());
                let file = self
                    .shared
                    .fs
                    .open(&path, OpenMode::Create)
                    .map_err(|error| append_error(&path, "create", error))?;
                // Left of an append that could not be cut back.
                if file
                    .len()
                    .map_err(|error| append_error(&path, "read", error))?
                    > 0
                {
                    file.set_len(0)
                        .map_err(|error| append_error(&path, "truncate", error))?;
                }
                (path, file, 0)
            }
        };
        drop(state);
        let parts: Vec<IoSlice<'_>> = frames.iter().map(|f| IoSlice::new(f.bytes())).collect();
        file.write_at(at, &parts)
            .map_err(|error| append_error(&path, "write", error))?;
        Ok(file)
    }

    /// Undoes runs of which the last may have been written in part. Where that fails, the file holds frames that the caller
    /// was told are not there, and the log takes no more.
    fn cut_back(&mut self, runs: &[Run], frames: &[Frame]) {
        let fs = self.shared.fs.clone();
        for run in runs.iter().rev() {
            let undone = if run.in_new_segment {
                let base = frames[run.frames.start].base_offset();
                match fs.remove_file(&segment_path(&self.shared.dir, base)) {
                    Err(error) if !super::reader::is_not_found(&error) => Err(error),
                    _ => Ok(()),
                }
            } else {
                let state = self.shared.state();
                match (&state.active_file, state.segments.last()) {
                    (Some(file), Some(active)) => file.set_len(active.len),
                    _ => Ok(()),
                }
            };
            if let Err(error) = undone {
                self.poison(format!("a failed write could not be cut back: {error}"));
            }
        }
    }

    /// Makes written frames part of the log.
    fn take_in(&mut self, run: Run, file: Arc<dyn File>, frames: &[Frame]) {
        if run.in_new_segment {
            self.seal_active();
        }
        let frames = &frames[run.frames];
        let mut bytes = 0;
        let mut state = self.shared.state_mut();
        let state = &mut *state;
        if run.in_new_segment {
            state.segments.push(Segment {
                base: state.end.offset,
                start: state.end,
                end: state.end,
                len: 0,
                first_timestamp: super::index::NO_TIMESTAMP,
                max_timestamp: super::index::NO_TIMESTAMP,
                aborted: 0,
            });
            state.active_file = Some(file);
            self.dir_unsynced = true;
            self.snapshots.handle_rolled(state.end);
        }
        let interval = state.index_interval;
        let Some(active) = state.segments.last_mut() else {
            return;
        };
        for frame in frames {
            state.active_index.add(frame, active.len, interval);
            active.len += frame.len() as u64;
            bytes += frame.len() as u64;
            if frame.is_epoch_start() {
                // The frame follows the log's last one, whose epoch no entry is above.
                let entry = EpochEntry {
                    epoch: frame.leader_epoch(),
                    start: frame.base_offset(),
                };
                if let Err(error) = self.epochs.push(entry) {
                    self.poisoned
                        .get_or_insert(format!("the epoch history is broken: {error}"));
                }
            }
            state.tail.push(frame.clone());
            active.end = frame.end();
        }
        active.first_timestamp = state.active_index.first_timestamp;
        active.max_timestamp = state.active_index.max_timestamp;
        active.aborted = state.active_index.aborted.len() as u32;
        state.end = active.end;
        self.bytes_since_checkpoint += bytes;
        self.bytes_since_tail_index += bytes;
        self.snapshots.handle_appended(bytes);
    }

    /// Makes the active segment a sealed one. The caller makes the next.
    pub(super) fn seal_active(&mut self) {
        let mut state = self.shared.state_mut();
        let index = Arc::new(std::mem::take(&mut state.active_index));
        let file = state.active_file.take();
        let active = state.segments.last().copied();
        drop(state);
        let (Some(active), Some(file)) = (active, file) else {
            return;
        };
        self.shared.keep_index(active.sealed(), index.clone());
        self.sealed_unsynced
            .push(self.sealed_unsynced_of(&active, file, index));
    }

    /// Seals the active segment, which has records, and begins an empty one.
    pub(super) fn roll(&mut self) -> Result<(), IoFailure> {
        let end = self.end();
        let path = segment_path(&self.shared.dir, end.offset);
        let file = self
            .shared
            .fs
            .open(&path, OpenMode::Create)
            .map_err(IoFailure::at("create", &path))?;
        file.set_len(0).map_err(IoFailure::at("truncate", &path))?;
        let run = Run {
            in_new_segment: true,
            frames: 0..0,
        };
        self.take_in(run, file, &[]);
        Ok(())
    }

    pub(super) fn sealed_unsynced_of(
        &self,
        segment: &Segment,
        file: Arc<dyn File>,
        index: Arc<SegmentIndex>,
    ) -> SealedUnsynced {
        SealedUnsynced {
            path: segment_path(&self.shared.dir, segment.base),
            file,
            base: segment.base,
            sealed: SealedSegment {
                len: segment.len,
                start: segment.start,
                end: segment.end,
            },
            index,
        }
    }
}

pub(super) fn index_interval(config: &LogConfig) -> u64 {
    config.index_interval_bytes.max(MIN_INDEX_INTERVAL_BYTES)
}

fn append_error(path: &Path, action: &'static str, error: std::io::Error) -> AppendError {
    if is_no_space(&error) {
        AppendError::NoSpace {
            path: path.to_owned(),
        }
    } else {
        AppendError::Io(IoFailure::at(action, path)(error))
    }
}

/// No append is larger than what one call carries; a frame fits any segment size, which is a goal and not a limit.
const _: () = assert!(MAX_FRAME_BYTES < u32::MAX as usize);
