//! Looking at a data directory from outside: without its lock, without changing anything, also while its node runs.
//!
//! A node that runs appends, trims and truncates meanwhile. So the end of the newest segment may be a frame that is just
//! being written, and segments may go; neither is taken for damage. What can be told only by the node itself, whether a
//! torn end was ever acknowledged, is left to its recovery.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::checkpoints::read_high_watermarks;
use super::data_dir::{DataDirError, PARTITIONS_DIR, read_meta};
use super::file_system::{FileSystem, IoFailure, OpenMode, read_up_to};
use super::impairment::{self, Impairment};
use super::index::SegmentIndex;
use super::log_start::LogStart;
use super::promises::Promises;
use super::quarantine::is_quarantine_name;
use super::reader::is_not_found;
use super::recovery::{IDENTITY_FILE, IDENTITY_KIND, Identity};
use super::segment::{
    BadFrame, CursorError, FrameCursor, FrameFault, SCAN_CHUNK, index_path, parse_segment_name,
    segment_path,
};
use super::small_file;
use super::snapshots;
use super::sync::Checkpoint;
use crate::record::Batch;
use crate::types::{LogPosition, Offset, TopicName, TopicPartition};
use crate::wal::{Decoded, Frame, MAGIC, MAX_FRAME_BYTES};

/// Why a directory could not be looked at.
#[derive(Debug, Error)]
pub enum InspectError {
    #[error(
        "{} is not a data directory: it has no file \"meta\"; name the directory that the node was started with",
        path.display()
    )]
    NotADataDir { path: PathBuf },
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    SmallFile(#[from] small_file::SmallFileError),
    #[error(transparent)]
    Io(#[from] IoFailure),
}

/// A data directory as it stands.
pub struct Inspection {
    /// In order of topic name and partition.
    pub partitions: Vec<PartitionView>,
    /// Corrupt logs that were set aside earlier.
    pub quarantined: Vec<PathBuf>,
    /// What is wrong outside the logs.
    pub damage: Vec<Damage>,
}

/// One partition's log as it stands.
#[derive(Clone, Debug)]
pub struct PartitionView {
    pub id: TopicPartition,
    pub topic: TopicName,
    pub dir: PathBuf,
    /// At most a second older than the directory; `None` when none was written yet.
    pub high_watermark: Option<Offset>,
    /// Why the replica must not vote at present.
    pub impairment: Option<Impairment>,
}

/// Something that should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    /// Where in the file.
    pub byte: u64,
    pub cause: String,
}

/// What reading a log from one end to the other came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    pub start: LogPosition,
    /// Where the last good frame ends.
    pub end: LogPosition,
    pub frames: u64,
    pub bytes: u64,
    /// In order of place; after one in a segment the rest of that segment is not read.
    pub damage: Vec<Damage>,
    /// A frame at the very end that is not all there: it is being written, or the node was stopped while writing it and
    /// cuts it off at its next start.
    pub torn_tail: Option<BadFrame>,
    /// Indexes that are missing though their segment is sealed, or unusable; the node rebuilds them.
    pub unusable_indexes: Vec<PathBuf>,
    /// Snapshots of producers that cannot be read; the node does without them.
    pub damaged_snapshots: Vec<PathBuf>,
}

/// A frame and where it stands.
pub struct Placed<'a> {
    pub frame: &'a Frame,
    pub path: &'a Path,
    pub byte: u64,
}

/// Reads what a data directory says of itself. Frames are not read yet.
pub fn inspect(fs: &dyn FileSystem, data_dir: &Path) -> Result<Inspection, InspectError> {
    if read_meta(fs, data_dir)?.is_none() {
        return Err(InspectError::NotADataDir {
            path: data_dir.to_owned(),
        });
    }
    let mut damage = Vec::new();
    let mut whole_file = |path: PathBuf, cause: String| {
        damage.push(Damage {
            path,
            byte: 0,
            cause,
        });
    };
    // Before the logs, so that each log is found to reach at least its watermark.
    let high_watermarks = read_high_watermarks(fs, data_dir).unwrap_or_else(|error| {
        whole_file(data_dir.join("high-watermarks"), error.to_string());
        BTreeMap::new()
    });
    if let Err(error) = Promises::check(fs, data_dir) {
        whole_file(data_dir.join("promises"), error.to_string());
    }
    let root = data_dir.join(PARTITIONS_DIR);
    let entries = match fs.list(&root) {
        Ok(entries) => entries,
        Err(error) if is_not_found(&error) => Vec::new(),
        Err(error) => return Err(IoFailure::at("list", &root)(error).into()),
    };
    let mut partitions = Vec::new();
    let mut quarantined = Vec::new();
    for entry in entries.into_iter().filter(|entry| entry.is_dir) {
        let dir = root.join(&entry.name);
        if is_quarantine_name(&entry.name) {
            quarantined.push(dir);
            continue;
        }
        let path = dir.join(IDENTITY_FILE);
        match small_file::read::<Identity>(fs, &path, IDENTITY_KIND) {
            Ok(Some(identity)) => partitions.push(PartitionView {
                id: TopicPartition {
                    topic: identity.topic_id,
                    partition: identity.partition,
                },
                topic: identity.topic,
                high_watermark: high_watermarks
                    .get(&entry.name)
                    .map(|marks| marks.high_watermark),
                impairment: impairment::read(fs, &dir)?,
                dir,
            }),
            // Being made or removed just now.
            Ok(None) => {}
            Err(error) => whole_file(path, error.to_string()),
        }
    }
    partitions.sort_by(|a, b| (&a.topic, a.id.partition).cmp(&(&b.topic, b.id.partition)));
    Ok(Inspection {
        partitions,
        quarantined,
        damage,
    })
}

impl PartitionView {
    /// Reads every frame in order and shows it to `visit`, until that breaks off.
    pub fn scan(
        &self,
        fs: &dyn FileSystem,
        mut visit: impl FnMut(Placed<'_>) -> ControlFlow<()>,
    ) -> Result<Scan, InspectError> {
        let flushed = Checkpoint::read(fs, &self.dir).map(|body| body.flushed);
        let recorded_start = LogStart::read(fs, &self.dir).unwrap_or_default();
        let mut scan = Scan {
            start: LogPosition::START,
            end: LogPosition::START,
            frames: 0,
            bytes: 0,
            damage: Vec::new(),
            torn_tail: None,
            unusable_indexes: Vec::new(),
            damaged_snapshots: snapshots::damaged(fs, &self.dir)?,
        };
        if let Some(recorded) = &recorded_start {
            scan.start = recorded.position;
            scan.end = recorded.position;
        }
        let mut bases = self.segments(fs)?;
        bases.retain(|base| *base >= scan.start.offset);
        let mut expected = Some(scan.start);
        let mut next = 0;
        while let Some(&base) = bases.get(next) {
            next += 1;
            let path = segment_path(&self.dir, base);
            let file = match fs.open(&path, OpenMode::Read) {
                Ok(file) => file,
                // Trimmed or truncated since it was listed.
                Err(error) if is_not_found(&error) => {
                    if scan.frames == 0 {
                        expected = None;
                    }
                    continue;
                }
                Err(error) => return Err(IoFailure::at("open", &path)(error).into()),
            };
            if let Some(at) = expected
                && at.offset != base
            {
                scan.damage.push(Damage {
                    path: segment_path(&self.dir, at.offset),
                    byte: 0,
                    cause: FrameFault::Missing { from: at.offset }.to_string(),
                });
                expected = None;
            }
            let mut byte = 0;
            // Reads on where the segment has grown meanwhile.
            loop {
                let len = file.len().map_err(IoFailure::at("read", &path))?;
                let mut cursor =
                    FrameCursor::new(file.clone(), path.clone(), byte, len, expected, SCAN_CHUNK);
                let bad = loop {
                    let at = cursor.byte();
                    match cursor.next() {
                        Ok(Some(frame)) => {
                            if scan.frames == 0 {
                                scan.start = frame.start();
                            }
                            scan.frames += 1;
                            scan.bytes += frame.len() as u64;
                            scan.end = frame.end();
                            expected = Some(frame.end());
                            if let Some(cause) = wrong_batch(&frame) {
                                scan.damage.push(Damage {
                                    path: path.clone(),
                                    byte: at,
                                    cause,
                                });
                            }
                            let placed = Placed {
                                frame: &frame,
                                path: &path,
                                byte: at,
                            };
                            if visit(placed).is_break() {
                                return Ok(scan);
                            }
                        }
                        Ok(None) => break None,
                        Err(CursorError::Bad(bad)) => break Some(bad),
                        Err(CursorError::Io(error)) => return Err(error.into()),
                    }
                };
                let stopped_at = cursor.byte();
                if next == bases.len() {
                    // Only now: a segment that was begun meanwhile makes this one a sealed one, with all its frames.
                    let known = bases.len();
                    let newest = bases.last().copied();
                    bases.extend(self.segments(fs)?.into_iter().filter(|b| Some(*b) > newest));
                    let grew = file.len().map_err(IoFailure::at("read", &path))? > len;
                    if stopped_at > byte && (bases.len() > known || (bad.is_some() && grew)) {
                        byte = stopped_at;
                        continue;
                    }
                }
                let is_newest = next == bases.len();
                if let Some(bad) = bad {
                    let was_synced = flushed.is_some_and(|flushed| scan.end < flushed);
                    if is_newest && !was_synced && !self.good_frame_after(fs, &bad)? {
                        scan.torn_tail = Some(bad);
                    } else {
                        scan.damage.push(Damage {
                            path: bad.path,
                            byte: bad.byte,
                            cause: bad.cause.to_string(),
                        });
                        // What the next segment follows is not known.
                        expected = None;
                    }
                } else if !is_newest {
                    let index = index_path(&self.dir, base);
                    if SegmentIndex::read(fs, &index).is_none_or(|(of, _)| of.len != stopped_at) {
                        scan.unusable_indexes.push(index);
                    }
                }
                break;
            }
        }
        if scan.damage.is_empty()
            && scan.torn_tail.is_none()
            && let Some(flushed) = flushed.filter(|flushed| scan.end < *flushed)
            // Truncated or reset meanwhile?
            && Checkpoint::read(fs, &self.dir).is_some_and(|body| body.flushed == flushed)
        {
            scan.damage.push(Damage {
                path: segment_path(&self.dir, bases.last().copied().unwrap_or_default()),
                byte: 0,
                cause: FrameFault::Short {
                    end: scan.end,
                    flushed,
                }
                .to_string(),
            });
        }
        Ok(scan)
    }

    fn segments(&self, fs: &dyn FileSystem) -> Result<Vec<Offset>, IoFailure> {
        let entries = fs
            .list(&self.dir)
            .map_err(IoFailure::at("list", &self.dir))?;
        let mut bases: Vec<Offset> = entries
            .iter()
            .filter_map(|entry| parse_segment_name(&entry.name))
            .collect();
        bases.sort_unstable();
        Ok(bases)
    }

    /// Whether a whole frame stands somewhere behind a bad one: then that was not the end of the log.
    fn good_frame_after(&self, fs: &dyn FileSystem, bad: &BadFrame) -> Result<bool, IoFailure> {
        let file = fs
            .open(&bad.path, OpenMode::Read)
            .map_err(IoFailure::at("open", &bad.path))?;
        // A frame behind one of the largest size is still found.
        let window = 2 * MAX_FRAME_BYTES;
        let bytes =
            read_up_to(&*file, bad.byte + 1, window).map_err(IoFailure::at("read", &bad.path))?;
        let bytes = bytes::Bytes::from(bytes);
        let mut at = 0;
        while let Some(found) = find(&bytes[at..], &MAGIC) {
            at += found;
            if matches!(Frame::decode(&bytes.slice(at..)), Ok(Decoded::Frame(_))) {
                return Ok(true);
            }
            at += 1;
        }
        Ok(false)
    }

    /// The digest of the committed records: a BLAKE3 hash over the frames of records that lie wholly below the high
    /// watermark, at or above `from` and below `to`. For each, in order: base offset (8 bytes, big-endian), end offset (8),
    /// leader epoch (4), payload length (4), payload.
    ///
    /// Replicas that hold the same committed records have the same digest, because a follower stores its leader's frames
    /// byte for byte. What may differ between them is left out: segments, indexes, epoch starts (one that is not followed by
    /// a committed record may be on one replica only), and records not yet committed. Where the log starts differ, `from`
    /// names the common start.
    pub fn digest(
        &self,
        fs: &dyn FileSystem,
        from: Option<Offset>,
        to: Option<Offset>,
    ) -> Result<Digest, InspectError> {
        let mut hasher = blake3::Hasher::new();
        let from = from.unwrap_or(Offset::ZERO);
        let below = self
            .high_watermark
            .unwrap_or(Offset::ZERO)
            .min(to.unwrap_or(Offset::MAX));
        let scan = self.scan(fs, |placed| {
            let frame = placed.frame;
            let inside = frame.base_offset() >= from && frame.end_offset() <= below;
            if inside && !frame.is_epoch_start() {
                let payload = frame.payload();
                hasher.update(&frame.base_offset().get().to_be_bytes());
                hasher.update(&frame.end_offset().get().to_be_bytes());
                hasher.update(&frame.leader_epoch().get().to_be_bytes());
                // A payload is at most MAX_PAYLOAD_BYTES long.
                hasher.update(&(payload.len() as u32).to_be_bytes());
                hasher.update(&payload);
            }
            ControlFlow::Continue(())
        })?;
        let high_watermark = self
            .high_watermark
            .unwrap_or(scan.start.offset)
            .clamp(scan.start.offset, scan.end.offset.max(scan.start.offset));
        Ok(Digest {
            log_start_offset: scan.start.offset,
            log_end_offset: scan.end.offset,
            high_watermark,
            digest: hasher.finalize().to_hex().to_string(),
            damage: scan.damage,
        })
    }
}

/// See [`PartitionView::digest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    pub log_start_offset: Offset,
    /// Where the last good frame ends.
    pub log_end_offset: Offset,
    /// As last written by the node, brought within the log.
    pub high_watermark: Offset,
    /// 64 hexadecimal digits.
    pub digest: String,
    /// With any, the digest is over what could be read.
    pub damage: Vec<Damage>,
}

/// What a frame whose CRC is right says about its batch, and the batch does not.
fn wrong_batch(frame: &Frame) -> Option<String> {
    if frame.is_epoch_start() {
        return None;
    }
    let batch = match Batch::decode(&frame.payload()) {
        Ok(batch) => batch,
        Err(error) => return Some(format!("the frame holds no record batch: {error}")),
    };
    if let Err(error) = batch.verify_crc() {
        return Some(format!("the frame's record batch is corrupt: {error}"));
    }
    let (base, end) = (frame.base_offset().to_wire(), frame.end_offset().to_wire());
    if batch.header.base_offset != base || batch.header.next_offset() != end {
        return Some(format!(
            "the frame holds offsets {base} to {end}, its record batch {} to {}",
            batch.header.base_offset,
            batch.header.next_offset()
        ));
    }
    None
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::{BatchBuilder, Compression, STAMP_LEN, stamped_prefix};
    use crate::storage::faulty::FaultyFileSystem;
    use crate::storage::test_frames::{epoch, offset, start_frame};
    use crate::storage::{DataDir, Log, LogConfig, Opener};
    use crate::types::{DirectoryId, NodeId, PartitionIndex, TopicId};

    const DIR: &str = "/data";

    fn id() -> TopicPartition {
        TopicPartition {
            topic: TopicId::from_random_bits(1),
            partition: PartitionIndex(0),
        }
    }

    fn open(fs: &FaultyFileSystem, segment_bytes: u64) -> (DataDir, Log) {
        let opener = Opener {
            node_id: NodeId::new(1).unwrap(),
            cluster_id: None,
            new_directory_id: DirectoryId::from_random_bits(1),
            boot_id: None,
        };
        let data_dir = DataDir::open(fs.shared(), Path::new(DIR), &opener).unwrap();
        let config = LogConfig {
            segment_bytes,
            retention_ms: None,
            ..LogConfig::default()
        };
        let topic = TopicName::new("orders").unwrap();
        let (log, _) = data_dir.open_log(id(), &topic, config.into()).unwrap();
        (data_dir, log)
    }

    /// A real batch of two records.
    fn records(previous: LogPosition) -> Frame {
        let mut builder = BatchBuilder::new();
        for i in 0..2 {
            let value = format!("value {} {i}", previous.offset);
            builder
                .append(Some(b"key"), Some(value.as_bytes()), &[], 1000 + i)
                .unwrap();
        }
        let bytes: Bytes = builder.seal(Compression::None).unwrap().stamp(None);
        let batch = Batch::decode(&bytes).unwrap();
        let prefix = stamped_prefix(&batch, previous.offset, previous.epoch);
        let end = previous.offset.checked_add(2).unwrap();
        Frame::records(
            previous.epoch,
            previous,
            end,
            &[&prefix, &batch.bytes[STAMP_LEN..]],
        )
    }

    fn fill(log: &mut Log, count: usize) {
        if log.end() == LogPosition::START {
            log.append(&[start_frame(1, LogPosition::START)]).unwrap();
        }
        for _ in 0..count {
            log.append(&[records(log.end())]).unwrap();
        }
    }

    fn view(fs: &FaultyFileSystem) -> PartitionView {
        let inspection = inspect(fs, Path::new(DIR)).unwrap();
        assert!(inspection.damage.is_empty(), "{:?}", inspection.damage);
        inspection.partitions[0].clone()
    }

    fn scan(fs: &FaultyFileSystem) -> Scan {
        view(fs).scan(fs, |_| ControlFlow::Continue(())).unwrap()
    }

    fn segment(fs: &FaultyFileSystem, i: usize) -> PathBuf {
        let view = view(fs);
        segment_path(&view.dir, view.segments(fs).unwrap()[i])
    }

    #[test]
    fn looking_changes_nothing_and_needs_no_lock() {
        let fs = FaultyFileSystem::new(0);
        let (data_dir, mut log) = open(&fs, 1000);
        fill(&mut log, 30);
        data_dir
            .write_high_watermarks([(id(), offset(40))])
            .unwrap();
        let before = fs.operations();
        let found = scan(&fs);
        assert_eq!((found.start, found.end), (log.start(), log.end()));
        assert_eq!((found.frames, found.damage.len()), (31, 0));
        let digest = view(&fs).digest(&fs, None, None).unwrap();
        assert_eq!(digest.high_watermark, offset(40));
        assert_eq!(fs.operations(), before);
        assert!(matches!(
            inspect(&fs, Path::new("/")),
            Err(InspectError::NotADataDir { .. })
        ));
    }

    #[test]
    fn a_frame_being_written_is_no_damage_and_rot_is() {
        let fs = FaultyFileSystem::new(0);
        let (_data_dir, mut log) = open(&fs, 1 << 20);
        fill(&mut log, 10);
        log.close().unwrap();
        let end = log.end();
        fill(&mut log, 1);
        let path = segment(&fs, 0);
        let whole = fs.contents(&path).unwrap().len() as u64;
        let file = fs.open(&path, OpenMode::Write).unwrap();
        file.set_len(whole - 10).unwrap();
        let found = scan(&fs);
        assert_eq!((found.end, found.damage.len()), (end, 0));
        assert!(found.torn_tail.is_some());
        // Above what was synced, but with good frames behind it.
        fill(&mut log, 0);
        drop(log);
        let fs = FaultyFileSystem::new(0);
        let (_data_dir, mut log) = open(&fs, 1 << 20);
        fill(&mut log, 10);
        fs.flip_bit(&path, 8 * 700).unwrap();
        let found = scan(&fs);
        assert_eq!((found.torn_tail, found.damage.len()), (None, 1));
        assert_eq!(found.damage[0].path, path);
        assert!(found.damage[0].byte <= 700 && found.damage[0].byte > 500);
        assert!(found.damage[0].cause.contains("CRC"), "{:?}", found.damage);
        // The last frame, once it was synced.
        fs.flip_bit(&path, 8 * 700).unwrap();
        log.close().unwrap();
        let last = fs.contents(&path).unwrap().len() as u64 * 8 - 1;
        fs.flip_bit(&path, last).unwrap();
        assert_eq!(scan(&fs).damage.len(), 1);
    }

    #[test]
    fn a_timestamp_finds_its_record_within_a_batch() {
        let fs = FaultyFileSystem::new(0);
        let (_data_dir, mut log) = open(&fs, 1 << 20);
        fill(&mut log, 3);
        let reader = log.reader();
        for (timestamp, expected) in [(0, 0), (1000, 0), (1001, 1)] {
            let found = reader.offset_for_timestamp(timestamp, offset(6)).unwrap();
            assert_eq!(found.unwrap().0, offset(expected), "{timestamp}");
        }
        assert_eq!(reader.offset_for_timestamp(1002, offset(6)).unwrap(), None);
    }

    #[test]
    fn every_damaged_segment_is_named() {
        let fs = FaultyFileSystem::new(0);
        let (_data_dir, mut log) = open(&fs, 1000);
        fill(&mut log, 60);
        log.close().unwrap();
        let (second, fourth) = (segment(&fs, 1), segment(&fs, 3));
        fs.flip_bit(&second, 8 * 100).unwrap();
        fs.remove_file(&fourth).unwrap();
        let damage = scan(&fs).damage;
        let paths: Vec<_> = damage.iter().map(|damage| &damage.path).collect();
        assert_eq!(paths, [&second, &fourth]);
        let last = segment(&fs, view(&fs).segments(&fs).unwrap().len() - 1);
        fs.remove_file(&last).unwrap();
        assert_eq!(
            scan(&fs).damage.len(),
            2,
            "a lost end shows only without other damage"
        );
    }

    #[test]
    fn replicas_with_the_same_committed_records_have_the_same_digest() {
        let digest = |segment_bytes, epoch_starts: u32, uncommitted, retain, from, to| {
            let fs = FaultyFileSystem::new(0);
            let (data_dir, mut log) = open(&fs, segment_bytes);
            fill(&mut log, 30);
            log.close().unwrap();
            if retain {
                log.set_config(LogConfig {
                    retention_bytes: Some(3000),
                    retention_ms: None,
                    segment_bytes,
                    ..LogConfig::default()
                });
                let done = log.apply_retention(0, offset(60)).unwrap();
                assert!(done.segments_removed > 0 && done.start.offset < offset(40));
            }
            for e in 0..epoch_starts {
                log.append(&[start_frame(2 + e, log.end())]).unwrap();
            }
            fill(&mut log, uncommitted);
            data_dir
                .write_high_watermarks([(id(), offset(60))])
                .unwrap();
            view(&fs).digest(&fs, from, to).unwrap().digest
        };
        let all = digest(1000, 0, 0, false, None, None);
        assert_eq!(digest(5000, 0, 0, false, None, None), all);
        assert_eq!(digest(1000, 2, 5, false, None, None), all);
        assert_ne!(digest(1000, 0, 0, true, None, None), all);
        let from = Some(offset(40));
        assert_eq!(
            digest(1000, 0, 0, true, from, None),
            digest(1000, 0, 0, false, from, None)
        );
        assert_ne!(digest(1000, 0, 0, false, from, None), all);
        assert_eq!(digest(1000, 0, 0, false, None, Some(offset(60))), all);
        assert_ne!(digest(1000, 0, 0, false, None, Some(offset(59))), all);
    }

    #[test]
    fn the_digest_knows_offset_epoch_and_payload() {
        let digest = |e: u32, skip: usize, flip: bool| {
            let fs = FaultyFileSystem::new(0);
            let (data_dir, mut log) = open(&fs, 1 << 20);
            log.append(&[start_frame(e, LogPosition::START)]).unwrap();
            for i in 0..3 {
                let previous = log.end();
                let same_records =
                    records(LogPosition::new(offset(2 * (i + skip) as u64), epoch(1)));
                let mut payload = same_records.payload().to_vec();
                if flip {
                    payload[70] ^= 1;
                }
                let end = previous.offset.checked_add(2).unwrap();
                log.append(&[Frame::records(previous.epoch, previous, end, &[&payload])])
                    .unwrap();
            }
            data_dir.write_high_watermarks([(id(), offset(6))]).unwrap();
            view(&fs).digest(&fs, None, None).unwrap()
        };
        let base = digest(1, 0, false);
        assert!(base.damage.is_empty());
        let other = digest(2, 0, false);
        assert_ne!(other.digest, base.digest);
        let shifted = digest(1, 1, false);
        assert_ne!(shifted.digest, base.digest);
        assert_eq!(
            shifted.damage.len(),
            3,
            "the batches name other offsets than their frames"
        );
        let flipped = digest(1, 0, true);
        assert_ne!(flipped.digest, base.digest);
        assert_eq!(flipped.damage.len(), 3, "the batches' own CRC is checked");
    }

    #[test]
    fn a_trimmed_and_a_reset_log_say_where_they_start() {
        let fs = FaultyFileSystem::new(0);
        let (_data_dir, mut log) = open(&fs, 1000);
        fill(&mut log, 30);
        log.reset(
            LogPosition::new(offset(500), epoch(7)),
            crate::types::EpochHistory::new(),
            bytes::Bytes::new(),
        )
        .unwrap();
        let digest = view(&fs).digest(&fs, None, None).unwrap();
        assert_eq!(
            (
                digest.log_start_offset,
                digest.log_end_offset,
                digest.high_watermark
            ),
            (offset(500), offset(500), offset(500))
        );
        assert!(digest.damage.is_empty(), "{:?}", digest.damage);
    }
}
