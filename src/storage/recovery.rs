//! Opening a log: what was there before the process is checked, cut or set aside, and made durable, before anything is
//! voted or acknowledged on the strength of it.
//!
//! What is read is decided by the recovery checkpoint, a position up to which the log is known to have been synced.
//! Segments below it are trusted to their index, and the last one as far as its index was written down (`tail_index.rs`); all
//! else is read frame by frame. How much that is at most: `recovery_budget.rs`.
//!
//! What a bad frame means is decided by the checkpoint, by the index of the tail, and by the log's durable mark
//! ([`LogOptions::durable_mark`]), the furthest one of the three. The checkpoint is seldom written, and may be 32 MiB behind; the
//! mark stands in one file with those of all other logs ([`super::checkpoints`]), a second behind. A bad frame above all three
//! is the torn tail of a crash, and the log is cut there. A bad or missing frame below one of them was once on the disk: that
//! is corruption, and the whole directory is set aside (`<name>.quarantine-<n>`) for the replica to be fetched anew; to cut
//! there would leave a replica that votes without what it acknowledged. Where the checkpoint itself is unusable, every segment
//! but the last counts as synced, and the mark counts.
//!
//! What the disk cannot read at all (EIO) may have been anything, so it is never taken for a torn tail: the log is set aside like
//! a corrupt one where other nodes are in sync ([`LogOptions::others_in_sync`]), and is not opened where none is.
//!
//! A mark that is older than a truncation speaks of frames that were removed by right. So each truncation below what was
//! synced, each reset, and each setting aside begins another *lineage* in the checkpoint before it removes anything, and a
//! mark, or an index of the tail, of another lineage than the checkpoint's counts for nothing. The mark itself never cuts a
//! log. Without a mark, because its file is missing or unreadable, a power cut took its newest version, or the log does not
//! sync its appends, the other two decide: then rot above them is taken for a torn tail.
//!
//! After kill -9, frames may be in the page cache only, so the kept tail is synced. A process that stopped on a failed sync
//! leaves the kernel believing that its pages are clean though they never reached the disk, and a sync would do nothing:
//! - when the failure was noted, the segments above the checkpoint are copied to new files;
//! - when even the note could not be written, nobody can tell; so with `flush=fsync` the bytes above all three, a second's
//!   at most where the mark is written, are always written once more in place before the sync. Below them each sync had succeeded.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::file_system::{DirEntry, File, FileSystem, IoFailure, OpenMode, is_media_error};
use super::impairment::{self, Impairment, ImpairmentReason};
use super::index::{SealedSegment, SegmentIndex};
use super::kept_tail::{KnownSynced, cut_tail, make_durable};
use super::log::{Flush, Log, LogOptions, index_interval};
use super::log_start::{LogStart, from_start};
use super::quarantine::{has_quarantine, set_aside};
use super::reader::{Segment, Shared, State, is_not_found};
use super::segment::{
    BadFrame, CursorError, FrameCursor, FrameFault, SCAN_CHUNK, index_path, parse_index_name,
    parse_segment_name, segment_path,
};
use super::small_file::{self, SmallFileError};
use super::snapshots::{self, Snapshots};
use super::sync::{Checkpoint, CheckpointBody};
use super::tail_cache::TailCache;
use super::tail_index;
use super::unsynced;
use crate::types::{
    EpochHistory, LeaderEpoch, LogPosition, Offset, PartitionIndex, TopicId, TopicName,
    TopicPartition,
};

pub(super) const IDENTITY_FILE: &str = "partition";
pub(super) const IDENTITY_KIND: &str = "partition";

/// Whose log a directory holds, for readers who know topics by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) topic: TopicName,
    pub(super) topic_id: TopicId,
    pub(super) partition: PartitionIndex,
}

/// Why a log was not opened. Nothing in it was changed, except that what was unfinished at the last stop may have been
/// finished.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error(transparent)]
    Io(#[from] IoFailure),
    #[error(transparent)]
    SmallFile(#[from] SmallFileError),
    #[error(
        "the disk cannot read {} from byte {byte} on, and no other replica is in sync: the log is left as it is, because it may be all \
         that there is; mend the disk, or copy {} to another one, and start the node again",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    Unreadable { path: PathBuf, byte: u64 },
    #[error(
        "{} holds partition {found}, not {wanted}: it was moved by hand; move it back, or away",
        dir.display()
    )]
    ForeignPartition {
        dir: PathBuf,
        wanted: TopicPartition,
        found: TopicPartition,
    },
}

/// What opening a log found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// There was no log; if the cluster's metadata expects one, it is lost.
    pub created: bool,
    /// The torn tail that was cut.
    pub cut: Option<Cut>,
    /// The log was corrupt, was set aside, and is now empty.
    pub quarantined: Option<Quarantine>,
    /// Why this replica must not vote or lead until an ISR change names it.
    pub impairment: Option<Impairment>,
    /// The tail was copied to new files, because a sync had failed before the last stop.
    pub tail_rewritten: bool,
    /// Sealed segments whose index was missing or unusable.
    pub indexes_rebuilt: usize,
    /// Bytes of frames that were read and checked.
    pub bytes_scanned: u64,
    /// Bytes of the last segment that need not be, because its index was written down.
    pub bytes_indexed: u64,
    /// The record of the log's start was lost; epochs before the first frame are forgotten.
    pub start_rebuilt: bool,
}

/// A torn tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The first frame that could not be kept.
    pub at: BadFrame,
    /// Where the log ends now.
    pub end: LogPosition,
    /// Bytes removed, whole segments included.
    pub bytes: u64,
}

/// A log that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    pub moved_to: PathBuf,
    pub cause: BadFrame,
}

/// What scanning the directory came to.
enum Scan {
    Sound(Box<Recovered>),
    Corrupt(BadFrame),
}

struct Recovered {
    start: LogPosition,
    segments: Vec<Segment>,
    active_index: SegmentIndex,
    epochs: EpochHistory,
    cut: Option<BadFrame>,
    /// Up to where the log is known to have been synced.
    synced: Option<LogPosition>,
    /// Bytes of the last segment that were read.
    tail_scanned: u64,
    report: RecoveryReport,
}

pub(super) fn open(
    fs: Arc<dyn FileSystem>,
    dir: &Path,
    id: TopicPartition,
    topic: &TopicName,
    options: LogOptions,
) -> Result<(Log, RecoveryReport), OpenError> {
    let fs_ref = &*fs;
    let mut created = prepare_dir(fs_ref, dir, id, topic)?;
    let mut impairment = impairment::read(fs_ref, dir)?;
    if created && impairment.is_none() && has_quarantine(fs_ref, dir)? {
        // The last process stopped between setting the log aside and noting it.
        let note = Impairment {
            reason: ImpairmentReason::Quarantined,
            detail: "the log was set aside before".to_owned(),
        };
        impairment::write(fs_ref, dir, &note)?;
        impairment = Some(note);
    }
    // Whatever the policy is by now: what counted without a sync may be gone.
    let unsynced = options.config.flush == Flush::Os || unsynced::is_noted(fs_ref, dir)?;
    if options.machine_restarted && unsynced && !created {
        let note = Impairment {
            reason: ImpairmentReason::PowerLost,
            detail: "the machine was restarted, and this log was not synced at each append".into(),
        };
        if impairment.is_none() {
            impairment::write(fs_ref, dir, &note)?;
            impairment = Some(note);
        }
    }
    let mut options = options;
    // What a read found bad may lie where the index is trusted.
    options.verify_all |= impairment
        .as_ref()
        .is_some_and(|note| note.reason == ImpairmentReason::BadRead);
    let mut quarantined = None;
    let before = Checkpoint::read(fs_ref, dir);
    // What is set aside takes its checkpoint along.
    let mut checkpoint = before;
    let recovered = loop {
        match scan(fs_ref, dir, &options, checkpoint)? {
            Scan::Sound(recovered) => break recovered,
            Scan::Corrupt(cause) => {
                let moved_to = set_aside(fs_ref, dir)?;
                prepare_dir(fs_ref, dir, id, topic)?;
                let note = Impairment {
                    reason: ImpairmentReason::Quarantined,
                    detail: cause.to_string(),
                };
                impairment::write(fs_ref, dir, &note)?;
                impairment = Some(note);
                created = false;
                checkpoint = None;
                quarantined = Some(Quarantine { moved_to, cause });
            }
        }
    };
    let Recovered {
        start,
        segments,
        active_index,
        epochs,
        cut,
        synced,
        tail_scanned,
        mut report,
    } = *recovered;
    let end = segments.last().map_or(start, |segment| segment.end);
    if let Some(at) = cut {
        let bytes = cut_tail(fs_ref, dir, &segments)?;
        report.cut = Some(Cut { at, end, bytes });
    }
    let flushed = checkpoint.map(|body| body.flushed);
    let created =
        created || (quarantined.is_none() && flushed.is_none() && end == LogPosition::START);
    if created && options.known_before && impairment.is_none() {
        // Before the checkpoint, by which the next start would take the log for one that was always empty.
        let note = Impairment {
            reason: ImpairmentReason::Lost,
            detail: "the log is gone".to_owned(),
        };
        impairment::write(fs_ref, dir, &note)?;
        impairment = Some(note);
    }
    let sync_had_failed = impairment
        .as_ref()
        .is_some_and(|note| note.reason == ImpairmentReason::SyncFailed);
    for (i, segment) in segments.iter().enumerate() {
        // By the checkpoint alone where a sync had failed: to copy more than need be does no harm.
        let from = if sync_had_failed { flushed } else { synced };
        if from.is_some_and(|from| segment.end <= from) {
            continue;
        }
        report.tail_rewritten |= sync_had_failed;
        let near = if i + 1 == segments.len() {
            from.and_then(|from| active_index.before_position(from))
        } else {
            None
        };
        make_durable(
            fs_ref,
            dir,
            segment,
            from.map(|position| KnownSynced { position, near }),
            sync_had_failed,
            options.config.flush,
        )?;
    }
    let active_file = match segments.last() {
        Some(active) => {
            let path = segment_path(dir, active.base);
            remove_if_there(fs_ref, &index_path(dir, active.base))?;
            Some(
                fs.open(&path, OpenMode::Write)
                    .map_err(IoFailure::at("open", &path))?,
            )
        }
        None => None,
    };
    fs.sync_dir(dir).map_err(IoFailure::at("sync", dir))?;
    // All that is kept is on the disk now.
    match options.config.flush {
        Flush::Os => unsynced::note(fs_ref, dir)?,
        Flush::Fsync => unsynced::clear(fs_ref, dir)?,
    }
    // Where the log has no checkpoint, it is the one that the mark speaks of or, if it is empty, another.
    let known = before.map_or(0, |body| body.lineage);
    let marked = options.durable_mark.map_or(0, |mark| mark.lineage);
    let lineage = match (before, &quarantined) {
        (Some(body), None) => body.lineage,
        (None, None) if end != LogPosition::START => marked,
        _ => known.max(marked).saturating_add(1),
    };
    let mut checkpoint = Checkpoint {
        generation: 0,
        flushed,
        vouched: synced,
        lineage,
    };
    if flushed != Some(end) {
        checkpoint.write(fs_ref, dir, end)?;
    }
    report.created = created;
    report.quarantined = quarantined;
    report.impairment = impairment.clone();
    // One where each segment begins is what retention will ask for, and the newest is the next replay's.
    let newest = snapshots::list(fs_ref, dir)?
        .into_iter()
        .rfind(|offset| *offset <= end.offset);
    snapshots::prune(fs_ref, dir, |offset| {
        Some(offset) == newest
            || offset == start.offset
            || segments
                .binary_search_by_key(&offset, |segment| segment.base)
                .is_ok()
    });
    let state = State {
        start,
        end,
        segments,
        active_index,
        active_file,
        tail: TailCache::new(options.tail_cache_bytes),
        generation: 0,
        index_interval: index_interval(&options.config),
        durable_mark: None,
    };
    let log = Log {
        shared: Shared::new(fs, dir.to_owned(), state),
        id,
        topic: topic.clone(),
        epochs,
        durable_end: end,
        synced_end: end,
        lineage,
        sealed_unsynced: Vec::new(),
        unsynced: options.config.flush == Flush::Os,
        config: options.config,
        dir_unsynced: false,
        bytes_since_checkpoint: 0,
        bytes_since_tail_index: tail_scanned,
        share: options.recovery_budget.join(),
        tail_written: None,
        generation: 0,
        ticket_out: false,
        poisoned: None,
        impairment,
        checkpoint: Arc::new(Mutex::new(checkpoint)),
        first_failure: Arc::default(),
        snapshots: Snapshots::default(),
        compacted_to: Offset::ZERO,
        space: options.space,
    };
    log.publish_durable_mark();
    Ok((log, report))
}

/// Makes the directory if need be and checks whose it is. Returns whether there was no log.
pub(super) fn prepare_dir(
    fs: &dyn FileSystem,
    dir: &Path,
    id: TopicPartition,
    topic: &TopicName,
) -> Result<bool, OpenError> {
    let path = dir.join(IDENTITY_FILE);
    let found = match small_file::read::<Identity>(fs, &path, IDENTITY_KIND) {
        // For readers only; the directory's own name carries the id.
        Err(SmallFileError::Corrupt { .. }) => None,
        found => found?,
    };
    let identity = Identity {
        topic: topic.clone(),
        topic_id: id.topic,
        partition: id.partition,
    };
    if let Some(found) = &found {
        let found_id = TopicPartition {
            topic: found.topic_id,
            partition: found.partition,
        };
        if found_id != id {
            return Err(OpenError::ForeignPartition {
                dir: dir.to_owned(),
                wanted: id,
                found: found_id,
            });
        }
        if *found == identity {
            return Ok(false);
        }
    }
    let is_new = match fs.list(dir) {
        Ok(entries) => !entries
            .iter()
            .any(|entry| entry.name != format!("{IDENTITY_FILE}.new")),
        Err(error) if is_not_found(&error) => true,
        Err(error) => return Err(IoFailure::at("list", dir)(error).into()),
    };
    fs.create_dir_all(dir)
        .map_err(IoFailure::at("create", dir))?;
    if let Some(parent) = dir.parent() {
        fs.sync_dir(parent).map_err(IoFailure::at("sync", parent))?;
    }
    small_file::replace(fs, &path, IDENTITY_KIND, &identity)?;
    Ok(is_new)
}

fn scan(
    fs: &dyn FileSystem,
    dir: &Path,
    options: &LogOptions,
    checkpoint: Option<CheckpointBody>,
) -> Result<Scan, OpenError> {
    let mut report = RecoveryReport::default();
    let entries = fs.list(dir).map_err(IoFailure::at("list", dir))?;
    remove_unfinished(fs, dir, &entries)?;
    let mut bases: Vec<Offset> = entries
        .iter()
        .filter_map(|entry| parse_segment_name(&entry.name))
        .collect();
    bases.sort_unstable();
    let mut start_unreadable = false;
    let start = match LogStart::read(fs, dir) {
        Ok(start) => start,
        Err(SmallFileError::Corrupt { .. }) => {
            start_unreadable = true;
            None
        }
        Err(error) => return Err(error.into()),
    };
    let (mut expected, mut epochs) = match start {
        Some(mut start) => {
            if start.discard_segments {
                remove_segments(fs, dir, &bases)?;
                bases.clear();
                start.discard_segments = false;
                start.write(fs, dir)?;
            }
            let old: Vec<Offset> = bases
                .iter()
                .copied()
                .filter(|base| *base < start.position.offset)
                .collect();
            remove_segments(fs, dir, &old)?;
            bases.retain(|base| *base >= start.position.offset);
            (Some(start.position), start.epochs)
        }
        // A log that was never trimmed or reset has no record of its start, and starts at 0.
        None if !start_unreadable => (Some(LogPosition::START), EpochHistory::new()),
        // Its first frame says where it starts.
        None => {
            report.start_rebuilt = true;
            (None, EpochHistory::new())
        }
    };
    let flushed = checkpoint.map(|body| body.flushed);
    let mut marked = options
        .durable_mark
        .filter(|mark| match checkpoint {
            Some(body) => body.lineage == mark.lineage,
            // Nothing at all is a log that is new, or gone; a corrupt one has something.
            None => !bases.is_empty(),
        })
        .map(|mark| mark.end);
    let mut first = expected;
    let mut segments: Vec<Segment> = Vec::with_capacity(bases.len());
    let mut active_index = SegmentIndex::default();
    let mut bad: Option<BadFrame> = None;
    let mut tail_scanned = 0;
    let interval = index_interval(&options.config);
    for (i, &base) in bases.iter().enumerate() {
        let is_last = i + 1 == bases.len();
        let path = segment_path(dir, base);
        if let Some(expected) = expected
            && !segments.is_empty()
            && base < expected.offset
        {
            // It was compacted into the one before, and the process stopped before it was removed.
            remove_segments(fs, dir, &[base])?;
            continue;
        }
        if let Some(expected) = expected
            && base != expected.offset
        {
            // A segment is gone, or the one before it is shorter than it was.
            bad = Some(BadFrame {
                path: segment_path(dir, expected.offset),
                byte: 0,
                cause: FrameFault::Missing {
                    from: expected.offset,
                },
            });
        } else {
            let file = fs
                .open(&path, OpenMode::Read)
                .map_err(IoFailure::at("open", &path))?;
            let len = file.len().map_err(IoFailure::at("read", &path))?;
            if len == 0 && is_last {
                // Made by a roll, and nothing was appended since: the log is the same without it.
                remove_segments(fs, dir, &[base])?;
                break;
            }
            let trusted = if is_last || options.verify_all {
                None
            } else {
                trusted_index(fs, dir, base, len, expected, flushed)
            };
            let (segment, index) = match trusted {
                Some(trusted) => trusted,
                None => {
                    let known = match (checkpoint, expected) {
                        (Some(body), Some(start)) => tail_index::read(fs, dir, start, body.lineage),
                        _ => None,
                    };
                    if let Some((known, _)) = &known {
                        marked = marked.max(Some(known.end));
                    }
                    let known = known.filter(|(known, _)| known.len <= len && !options.verify_all);
                    let unread = known.as_ref().map_or(0, |(known, _)| known.len);
                    let scanned = scan_segment(file, &path, base, len, expected, known, interval)?;
                    tail_scanned = scanned.segment.len - unread;
                    report.bytes_scanned += tail_scanned;
                    report.bytes_indexed += unread;
                    bad = scanned.bad;
                    if !is_last && bad.is_none() {
                        keep_index(fs, dir, &scanned.segment, &scanned.index, &mut report);
                    }
                    (scanned.segment, scanned.index)
                }
            };
            for entry in &index.epochs {
                if epochs.push(*entry).is_err() && bad.is_none() {
                    bad = Some(BadFrame {
                        path: path.clone(),
                        byte: 0,
                        cause: FrameFault::Frame(crate::wal::FrameError::EpochDoesNotRise {
                            epoch: entry.epoch,
                            previous: epochs.last_epoch(),
                        }),
                    });
                }
            }
            // A segment without a frame is no segment: it is removed with the rest of the tail.
            if segment.len > 0 {
                first.get_or_insert(segment.start);
                expected = Some(segment.end);
                segments.push(segment);
                active_index = index;
            } else if bad.is_none() {
                bad = Some(BadFrame {
                    path,
                    byte: 0,
                    cause: FrameFault::Cut {
                        needed: crate::wal::HEADER_LEN as u64,
                        available: 0,
                    },
                });
            }
        }
        if let Some(bad) = &bad {
            if bad.cause == FrameFault::Unreadable {
                return unreadable(bad, options);
            }
            let end = expected.unwrap_or(LogPosition::START);
            let was_synced = match flushed {
                Some(flushed) => end < flushed,
                None => !is_last || matches!(bad.cause, FrameFault::Missing { .. }),
            } || marked.is_some_and(|marked| end < marked);
            if was_synced {
                return Ok(Scan::Corrupt(bad.clone()));
            }
            break;
        }
    }
    let start = first.unwrap_or(LogPosition::START);
    let end = expected.unwrap_or(start);
    let synced = flushed.max(marked);
    if let Some(flushed) = synced.filter(|flushed| end < *flushed) {
        let last = segments.last();
        return Ok(Scan::Corrupt(BadFrame {
            path: segment_path(dir, last.map_or(start.offset, |segment| segment.base)),
            byte: last.map_or(0, |segment| segment.len),
            cause: FrameFault::Short { end, flushed },
        }));
    }
    Ok(Scan::Sound(Box::new(Recovered {
        start,
        segments,
        active_index,
        epochs: from_start(&epochs, start),
        cut: bad,
        synced,
        tail_scanned,
        report,
    })))
}

/// What becomes of a log that cannot be read all through. Where recovery did not look, readers will find it.
fn unreadable(at: &BadFrame, options: &LogOptions) -> Result<Scan, OpenError> {
    if options.others_in_sync {
        return Ok(Scan::Corrupt(at.clone()));
    }
    Err(OpenError::Unreadable {
        path: at.path.clone(),
        byte: at.byte,
    })
}

/// A sealed segment below the checkpoint whose index is there and matches is not read.
fn trusted_index(
    fs: &dyn FileSystem,
    dir: &Path,
    base: Offset,
    len: u64,
    expected: Option<LogPosition>,
    flushed: Option<LogPosition>,
) -> Option<(Segment, SegmentIndex)> {
    let (sealed, index) = SegmentIndex::read(fs, &index_path(dir, base))?;
    let matches = sealed.len == len
        && sealed.start.offset == base
        && expected.is_none_or(|expected| sealed.start == expected)
        && flushed.is_some_and(|flushed| sealed.end <= flushed);
    let segment = Segment::new(base, sealed.start..sealed.end, len, &index);
    matches.then_some((segment, index))
}

struct ScannedSegment {
    /// As far as its frames are good.
    segment: Segment,
    index: SegmentIndex,
    bad: Option<BadFrame>,
}

/// Reads a segment's frames, from where it is `known` on.
fn scan_segment(
    file: Arc<dyn File>,
    path: &Path,
    base: Offset,
    len: u64,
    expected: Option<LogPosition>,
    known: Option<(SealedSegment, SegmentIndex)>,
    interval: u64,
) -> Result<ScannedSegment, IoFailure> {
    let unknown = LogPosition::new(base, LeaderEpoch::NONE);
    let mut start = expected;
    let (mut byte, next, mut index) = match known {
        Some((known, index)) => (known.len, Some(known.end), index),
        None => (0, expected, SegmentIndex::default()),
    };
    let mut cursor = FrameCursor::new(file, path.to_owned(), byte, len, next, SCAN_CHUNK);
    let mut end = next.unwrap_or(unknown);
    let mut bad = None;
    loop {
        match cursor.next() {
            Ok(Some(frame)) => {
                if start.is_none() && frame.base_offset() != base {
                    bad = Some(BadFrame {
                        path: path.to_owned(),
                        byte,
                        cause: FrameFault::DoesNotFit {
                            expected: unknown,
                            found: frame.start(),
                        },
                    });
                    break;
                }
                start.get_or_insert(frame.start());
                index.add(&frame, byte, interval);
                byte = cursor.byte();
                end = frame.end();
            }
            Ok(None) => break,
            Err(CursorError::Bad(found)) => {
                bad = Some(found);
                break;
            }
            Err(CursorError::Io(error)) if is_media_error(&error.source) => {
                bad = Some(BadFrame {
                    path: path.to_owned(),
                    byte,
                    cause: FrameFault::Unreadable,
                });
                break;
            }
            Err(CursorError::Io(error)) => return Err(error),
        }
    }
    Ok(ScannedSegment {
        segment: Segment::new(base, start.unwrap_or(unknown)..end, byte, &index),
        index,
        bad,
    })
}

/// Writes the index of a sealed segment that had none which could be used.
fn keep_index(
    fs: &dyn FileSystem,
    dir: &Path,
    segment: &Segment,
    index: &SegmentIndex,
    report: &mut RecoveryReport,
) {
    let path = index_path(dir, segment.base);
    let sealed = SealedSegment {
        len: segment.len,
        start: segment.start,
        end: segment.end,
    };
    if SegmentIndex::read(fs, &path).is_some_and(|(of, _)| of == sealed) {
        return;
    }
    report.indexes_rebuilt += 1;
    if let Err(failure) = index.write(fs, &path, &sealed) {
        tracing::warn!(%failure, "cannot write a segment's index; it is rebuilt at the next start");
    }
}

/// Newest first, so that what a crash leaves is a log without a gap; then the directory is synced.
pub(super) fn remove_segments(
    fs: &dyn FileSystem,
    dir: &Path,
    bases: &[Offset],
) -> Result<(), IoFailure> {
    for base in bases.iter().rev() {
        remove_if_there(fs, &index_path(dir, *base))?;
        remove_if_there(fs, &segment_path(dir, *base))?;
    }
    if !bases.is_empty() {
        fs.sync_dir(dir).map_err(IoFailure::at("sync", dir))?;
    }
    Ok(())
}

pub(super) fn remove_if_there(fs: &dyn FileSystem, path: &Path) -> Result<(), IoFailure> {
    match fs.remove_file(path) {
        Err(error) if !is_not_found(&error) => Err(IoFailure::at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes files that a process was writing when it stopped, and indexes without a segment.
fn remove_unfinished(
    fs: &dyn FileSystem,
    dir: &Path,
    entries: &[DirEntry],
) -> Result<(), IoFailure> {
    for entry in entries {
        let orphan = parse_index_name(&entry.name).is_some_and(|base| {
            !entries
                .iter()
                .any(|other| parse_segment_name(&other.name) == Some(base))
        });
        if entry.name.ends_with(".new") || orphan {
            remove_if_there(fs, &dir.join(&entry.name))?;
        }
    }
    Ok(())
}
