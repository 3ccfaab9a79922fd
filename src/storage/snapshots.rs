//! Snapshots of what a log says of its idempotent producers, so that opening a log need not read all of it, and so that what
//! retention removes is not forgotten. What is in one is the caller's; here it is bytes that belong to a position.
//!
//! One is written where a segment begins and with the index of a log's tail, unless that would cost more than
//! [`LOG_BYTES_PER_SNAPSHOT_BYTE`] allows, at a clean stop, and always where the log starts. All integers are big-endian. The
//! file `<offset, 20 digits>.producers` is
//!
//! ```text
//!  byte  length  field
//!     0       4  magic     "QPSN"
//!     4       4  version   1
//!     8      12  position  offset (8), epoch of the frame before it (4)
//!    20       …  body
//!     …       4  CRC-32    over everything before
//! ```
//!
//! A position is an offset and an epoch, and logs that share one share everything before it: so a file that a truncation
//! left behind says nothing wrong of the log that grew in its place, and is recognised by its epoch. One that is damaged, or
//! of another history, is skipped for an older one.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes};

use super::file_system::{FileSystem, IoFailure, OpenMode, read_small};
use super::log::Log;
use super::reader::{CACHED_INDEXES, Segment};
use super::recovery::remove_if_there;
use super::segment::{parse_name, parse_segment_name};
use crate::types::{Fill, LeaderEpoch, LogPosition, Offset};

const SUFFIX: &str = ".producers";
const MAGIC: [u8; 4] = *b"QPSN";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 20;
/// Far above what a snapshot needs; a longer file is skipped unread.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// A snapshot is due when so many bytes of log were appended since the last one for each byte of it: all of them together
/// take a sixteenth of the log at most.
const LOG_BYTES_PER_SNAPSHOT_BYTE: u64 = 16;
/// Snapshots that wait for the next sync. Beyond it the oldest is dropped, which costs a longer replay and nothing else.
const MAX_WAITING: usize = 4;
/// Snapshots within segments that stay.
const WITHIN_SEGMENTS: usize = 2;
/// Segments begun since the owner last asked. Beyond it the oldest is dropped: that place gets no snapshot.
const MAX_ROLLS: usize = 64;

/// A snapshot that waits to be written.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) at: LogPosition,
    pub(super) body: Bytes,
}

/// What a log keeps in memory about its snapshots.
#[derive(Debug)]
pub(super) struct Snapshots {
    /// Written by the next sync.
    pub(super) waiting: Vec<Snapshot>,
    /// Where segments were begun since [`Log::take_rolls`].
    rolls: Vec<LogPosition>,
    /// Bytes appended since the last snapshot was given.
    bytes_since: u64,
    /// The two newest that were taken within segments. The newest is not synced, so a power cut may take it.
    within: Vec<Offset>,
    /// Older ones, which the next sync removes.
    stale: Vec<Offset>,
}

impl Default for Snapshots {
    /// Of a log that was just opened: how far its last snapshot is back is not known, so the next roll makes one.
    fn default() -> Snapshots {
        Snapshots {
            waiting: Vec::new(),
            rolls: Vec::new(),
            bytes_since: u64::MAX,
            within: Vec::new(),
            stale: Vec::new(),
        }
    }
}

impl Snapshots {
    pub(super) fn handle_appended(&mut self, bytes: u64) {
        self.bytes_since = self.bytes_since.saturating_add(bytes);
    }

    pub(super) fn handle_rolled(&mut self, at: LogPosition) {
        if self.rolls.len() == MAX_ROLLS {
            self.rolls.remove(0);
        }
        self.rolls.push(at);
    }

    /// Takes the places of those that are to go. Where a segment has begun at one since, it stays, as the one of that segment, and
    /// perhaps of the log's start.
    pub(super) fn take_stale(&mut self, segments: &[Segment]) -> Vec<Offset> {
        let begins_none = |place: &Offset| {
            segments
                .binary_search_by_key(place, |segment| segment.base)
                .is_err()
        };
        self.stale.drain(..).filter(begins_none).collect()
    }
}

impl Log {
    /// How full it is of what it keeps in memory, its readers included.
    pub fn fills(&self) -> [Fill; 4] {
        let (tail_bytes, tail_capacity) = self.shared.state().tail.fill();
        [
            Fill::new(
                "snapshots to be written",
                self.snapshots.waiting.len(),
                MAX_WAITING,
            ),
            Fill::new("segments begun", self.snapshots.rolls.len(), MAX_ROLLS),
            Fill::new("bytes of the log's tail", tail_bytes, tail_capacity),
            Fill::new(
                "indexes of segments",
                self.shared.kept_indexes(),
                CACHED_INDEXES,
            ),
        ]
    }

    /// Where segments were begun since the last call: the places at which a snapshot is worth its bytes.
    pub fn take_rolls(&mut self) -> Vec<LogPosition> {
        std::mem::take(&mut self.snapshots.rolls)
    }

    /// Whether a snapshot of about `bytes` bytes is due, or would be written too soon after the last one.
    pub fn is_snapshot_due(&self, bytes: usize) -> bool {
        self.snapshots.bytes_since / LOG_BYTES_PER_SNAPSHOT_BYTE >= bytes as u64
    }

    /// Takes a snapshot of the log up to `at`, for the next sync to write. It may be lost with a crash before that, or if
    /// it cannot be written: an older one is then used.
    pub fn keep_snapshot(&mut self, at: LogPosition, body: Bytes) {
        if self.snapshots.waiting.len() == MAX_WAITING {
            self.snapshots.waiting.remove(0);
        }
        self.snapshots.waiting.push(Snapshot { at, body });
        self.snapshots.bytes_since = 0;
    }

    /// Takes a snapshot of the log up to its end, where no segment begins: of those only the newest ones stay.
    pub fn keep_snapshot_within(&mut self, body: Bytes) {
        let end = self.end();
        self.keep_snapshot(end, body);
        let Snapshots { within, stale, .. } = &mut self.snapshots;
        within.push(end.offset);
        if within.len() > WITHIN_SEGMENTS {
            stale.push(within.remove(0));
        }
        if stale.len() > MAX_WAITING {
            // It goes at the next roll.
            stale.remove(0);
        }
    }

    /// The newest snapshot of this log at or below `position` that `decode` can read.
    pub fn latest_snapshot<T>(
        &self,
        position: LogPosition,
        decode: impl Fn(Bytes) -> Option<T>,
    ) -> Option<(LogPosition, T)> {
        let waiting = self.snapshots.waiting.iter().rev();
        let mut unwritten = waiting
            .filter(|snapshot| snapshot.at <= position && self.holds(snapshot.at))
            .filter_map(|snapshot| Some((snapshot.at, decode(snapshot.body.clone())?)));
        if let Some(found) = unwritten.next() {
            return Some(found);
        }
        let fs = &*self.shared.fs;
        let mut offsets = list(fs, self.dir()).unwrap_or_default();
        offsets.retain(|offset| *offset <= position.offset);
        offsets.iter().rev().find_map(|&offset| {
            let path = path(self.dir(), offset);
            let found = match read(fs, &path) {
                Ok(found) => found,
                Err(failure) => {
                    tracing::warn!(%failure, "skipping a snapshot of producers");
                    None
                }
            };
            let Some(snapshot) = found.filter(|snapshot| snapshot.at.offset == offset) else {
                tracing::warn!(path = %path.display(), "a snapshot of producers is damaged; an older one is used");
                return None;
            };
            if snapshot.at > position || !self.holds(snapshot.at) {
                return None;
            }
            Some((snapshot.at, decode(snapshot.body)?))
        })
    }

    /// Whether the log passes through `position`.
    fn holds(&self, position: LogPosition) -> bool {
        let (start, end) = (self.start(), self.end());
        if position == start || position == end {
            return true;
        }
        let began = self.epochs.start_of(position.epoch);
        let ended = self.epochs.end_of(position.epoch, end.offset);
        start < position
            && position < end
            && began.is_some_and(|began| began <= position.offset)
            && ended.is_some_and(|ended| position.offset <= ended)
    }
}

/// Writes a snapshot in one step. Synced, it is there when this returns; else a power loss may take it, and its checksum
/// tells.
pub(super) fn write(
    fs: &dyn FileSystem,
    dir: &Path,
    snapshot: &Snapshot,
    sync: bool,
) -> Result<(), IoFailure> {
    let path = path(dir, snapshot.at.offset);
    let beside = dir.join(format!("{:020}{SUFFIX}.new", snapshot.at.offset.get()));
    let written = write_beside(fs, &beside, &encode(snapshot), sync);
    if let Err(failure) = written {
        // Whatever was written takes room that a full disk has better use for.
        let _ = fs.remove_file(&beside);
        return Err(failure);
    }
    fs.rename(&beside, &path)
        .map_err(IoFailure::at("replace", &path))?;
    if sync {
        fs.sync_dir(dir).map_err(IoFailure::at("sync", dir))?;
    }
    Ok(())
}

fn write_beside(
    fs: &dyn FileSystem,
    beside: &Path,
    bytes: &[u8],
    sync: bool,
) -> Result<(), IoFailure> {
    let file = fs
        .open(beside, OpenMode::Create)
        .map_err(IoFailure::at("create", beside))?;
    file.set_len(0).map_err(IoFailure::at("write", beside))?;
    file.write_at(0, &[IoSlice::new(bytes)])
        .map_err(IoFailure::at("write", beside))?;
    if sync {
        file.sync_data().map_err(IoFailure::at("sync", beside))?;
    }
    Ok(())
}

/// The offsets of the snapshots in a log's directory, rising.
pub(super) fn list(fs: &dyn FileSystem, dir: &Path) -> Result<Vec<Offset>, IoFailure> {
    let entries = fs.list(dir).map_err(IoFailure::at("list", dir))?;
    let mut offsets: Vec<Offset> = entries
        .iter()
        .filter_map(|entry| parse_name(&entry.name, SUFFIX))
        .collect();
    offsets.sort_unstable();
    Ok(offsets)
}

/// Removes the snapshots that `is_kept` does not want. They are a help and no part of the log, so a failure is only told.
pub(super) fn prune(fs: &dyn FileSystem, dir: &Path, is_kept: impl Fn(Offset) -> bool) {
    let pruned = list(fs, dir).and_then(|offsets| {
        offsets
            .into_iter()
            .filter(|offset| !is_kept(*offset))
            .try_for_each(|offset| remove_if_there(fs, &path(dir, offset)))
    });
    if let Err(failure) = pruned {
        tracing::warn!(%failure, "cannot remove an old snapshot of producers");
    }
}

/// Removes all the snapshots that were taken within segments, but for the newest ones: also those of earlier processes.
pub(super) fn prune_within_segments(fs: &dyn FileSystem, dir: &Path) {
    let names = match fs.list(dir) {
        Ok(entries) => entries,
        // No more than are there already stay.
        Err(failure) => {
            return tracing::warn!(cause = %failure, dir = %dir.display(), "cannot look for old snapshots of producers");
        }
    };
    let bases: BTreeSet<Offset> = names
        .iter()
        .filter_map(|entry| parse_segment_name(&entry.name))
        .collect();
    let mut within: Vec<Offset> = names
        .iter()
        .filter_map(|entry| parse_name(&entry.name, SUFFIX))
        .filter(|offset| !bases.contains(offset))
        .collect();
    within.sort_unstable();
    within.truncate(within.len().saturating_sub(WITHIN_SEGMENTS));
    remove(fs, dir, &within);
}

/// Removes the snapshots at `places`. They are a help and no part of the log, so a failure is only told.
pub(super) fn remove(fs: &dyn FileSystem, dir: &Path, places: &[Offset]) {
    for place in places {
        if let Err(failure) = remove_if_there(fs, &path(dir, *place)) {
            tracing::warn!(%failure, "cannot remove an old snapshot of producers");
        }
    }
}

/// The snapshots in a log's directory that cannot be read.
pub(super) fn damaged(fs: &dyn FileSystem, dir: &Path) -> Result<Vec<PathBuf>, IoFailure> {
    let mut damaged = Vec::new();
    for offset in list(fs, dir)? {
        let path = path(dir, offset);
        if read(fs, &path)?.is_none_or(|snapshot| snapshot.at.offset != offset) {
            damaged.push(path);
        }
    }
    Ok(damaged)
}

/// `None` when the file is not a whole, unharmed snapshot.
fn read(fs: &dyn FileSystem, path: &Path) -> Result<Option<Snapshot>, IoFailure> {
    let bytes = read_small(fs, path, MAX_FILE_BYTES).map_err(IoFailure::at("read", path))?;
    Ok(bytes.and_then(|bytes| decode(bytes.into())))
}

fn path(dir: &Path, offset: Offset) -> PathBuf {
    dir.join(format!("{:020}{SUFFIX}", offset.get()))
}

fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + snapshot.body.len() + 4);
    out.put_slice(&MAGIC);
    out.put_u32(VERSION);
    out.put_u64(snapshot.at.offset.get());
    out.put_u32(snapshot.at.epoch.get());
    out.put_slice(&snapshot.body);
    let crc = crc32fast::hash(&out);
    out.put_u32(crc);
    out
}

fn decode(mut bytes: Bytes) -> Option<Snapshot> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if body.len() < HEADER_LEN || crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return None;
    }
    if body[..4] != MAGIC {
        return None;
    }
    bytes.truncate(bytes.len() - 4);
    bytes.advance(4);
    if bytes.get_u32() != VERSION {
        return None;
    }
    let offset = Offset::new(bytes.get_u64())?;
    let epoch = LeaderEpoch::new(bytes.get_u32())?;
    Some(Snapshot {
        at: LogPosition::new(offset, epoch),
        body: bytes,
    })
}
