//! How a planted mistake is made, where that takes more than to leave something out.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate::partition::Frames;
use quorate::record::{Batch, restamp_producer};
use quorate::storage::faulty::FaultyFileSystem;
use quorate::storage::{OpenMode, read_high_watermarks};
use quorate::types::{Appointment, IsrChange, LogPosition, PartitionState};
use quorate::wal::{Decoded, Frame};
use quorate::wire::{ProducerSnapshot, SessionOutcome};

use super::mirror::Mirror;
use super::node::{DATA_DIR, FollowerSession, partition_dir, partition_id};
use super::planted::Planted;

/// The batch without its producer's id and number.
pub fn without_sequence(batch: &Batch) -> Option<Batch> {
    Batch::decode(&restamp_producer(batch, None)).ok()
}

/// What becomes of frames on their way out.
pub fn tamper_with_frames(planted: Planted, session: &mut FollowerSession, frames: &mut Frames) {
    match planted {
        Planted::SeamSkipsFrame => skip_at_seam(session, frames),
        Planted::BatchTwice if !frames.catch_up => send_last_twice(frames),
        Planted::StampedByEach => stamp_with_another_time(frames),
        _ => {}
    }
    frames.bytes = frames.frames.iter().map(Bytes::len).sum();
}

fn skip_at_seam(session: &mut FollowerSession, frames: &mut Frames) {
    let Some(first) = frames.frames.first().and_then(frame_of) else {
        return;
    };
    let was_catching_up = std::mem::replace(&mut session.was_catching_up, frames.catch_up);
    if was_catching_up && !frames.catch_up && !first.is_epoch_start() {
        session.skipped = Some(first.start());
        frames.frames.remove(0);
    }
    let Some(next) = frames.frames.first().and_then(frame_of) else {
        return;
    };
    if let Some(place) = session.skipped.take()
        && let Some(moved) = moved_to(&next, place)
    {
        frames.frames[0] = moved.bytes().clone();
    }
}

fn send_last_twice(frames: &mut Frames) {
    if let Some(last) = frames.frames.last().and_then(frame_of)
        && let Some(again) = moved_to(&last, last.end())
    {
        frames.frames.push(again.bytes().clone());
    }
}

fn stamp_with_another_time(frames: &mut Frames) {
    const BASE_TIMESTAMP_LAST_BYTE: usize = 34;
    for bytes in &mut frames.frames {
        let Some(frame) = frame_of(bytes).filter(|frame| !frame.is_epoch_start()) else {
            continue;
        };
        let mut payload = frame.payload().to_vec();
        payload[BASE_TIMESTAMP_LAST_BYTE] ^= 1;
        let stamped = Frame::records(
            frame.leader_epoch(),
            frame.start(),
            frame.end_offset(),
            &[&payload],
        );
        *bytes = stamped.bytes().clone();
    }
}

fn frame_of(bytes: &Bytes) -> Option<Frame> {
    match Frame::decode(bytes) {
        Ok(Decoded::Frame(frame)) => Some(frame),
        _ => None,
    }
}

/// The same records at another place of the same epoch.
fn moved_to(frame: &Frame, place: LogPosition) -> Option<Frame> {
    let records = frame.end_offset().records_since(frame.base_offset());
    let end = place.offset.checked_add(records)?;
    let fits = !frame.is_epoch_start() && place.epoch == frame.leader_epoch();
    fits.then(|| Frame::records(place.epoch, place, end, &[&frame.payload()]))
}

/// What a leader asks for in place of a change by which one member leaves.
pub fn tamper_with_change(
    planted: Planted,
    told: &PartitionState,
    change: &mut IsrChange,
    lags: impl Fn(&Appointment) -> bool,
) {
    let leaves = |member: &&Appointment| {
        let is_same = |other: &Appointment| other.node == member.node;
        !change.new_isr.iter().any(is_same)
    };
    let Some(leaving) = told.isr.iter().find(leaves).copied() else {
        return;
    };
    let Some(leader) = told.leader else { return };
    match planted {
        Planted::ShrinkBelowM => change.new_isr.retain(|member| *member == leader),
        Planted::WrongOneLeaves if lags(&leaving) => {
            let stays = change.new_isr.iter_mut().find(|member| **member != leader);
            if let Some(stays) = stays {
                *stays = leaving;
            }
        }
        _ => {}
    }
}

/// What a follower takes a leader's answer for.
pub fn tamper_with_answer(
    planted: Planted,
    mirror: &Mirror,
    known: LogPosition,
    outcome: &mut SessionOutcome,
) {
    match (planted, outcome) {
        (Planted::CutToWatermark, SessionOutcome::Truncate(to)) => {
            *to = known.min(mirror.end()).min(*to)
        }
        (Planted::ProducersForgottenAtReset, SessionOutcome::Reset { producers, .. }) => {
            *producers = ProducerSnapshot::default();
        }
        _ => {}
    }
}

/// What a process finds of a partition, in place of what the one before it left.
pub fn tamper_with_disk(planted: Planted, disk: &FaultyFileSystem, partition: usize) {
    match planted {
        Planted::ProducersForgottenAtRestart => empty_snapshots(disk, partition),
        Planted::RecoveryCutsAtMark => cut_at_mark(disk, partition),
        _ => {}
    }
}

fn files_of(disk: &FaultyFileSystem, partition: usize, suffix: &str) -> Vec<PathBuf> {
    let dir = partition_dir(partition);
    let entries = disk.shared().list(&dir).unwrap_or_default();
    let mut names: Vec<String> = entries.into_iter().map(|entry| entry.name).collect();
    names.retain(|name| name.ends_with(suffix));
    names.sort();
    names.into_iter().map(|name| dir.join(name)).collect()
}

fn replace(disk: &FaultyFileSystem, path: &Path, bytes: &[u8]) {
    // The process may be about to die, and then it does not matter what it finds.
    let Ok(file) = disk.shared().open(path, OpenMode::Write) else {
        return;
    };
    if file.set_len(bytes.len() as u64).is_ok() && file.write_at(0, &[IoSlice::new(bytes)]).is_ok()
    {
        let _ = file.sync_data();
    }
}

/// Header and position of a snapshot stay, and its checksum is right.
fn empty_snapshots(disk: &FaultyFileSystem, partition: usize) {
    const HEADER_LEN: usize = 20;
    for path in files_of(disk, partition, ".producers") {
        let Ok(mut bytes) = disk.contents(&path) else {
            continue;
        };
        bytes.truncate(HEADER_LEN);
        bytes.extend_from_slice(&ProducerSnapshot::default().encode());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        replace(disk, &path, &bytes);
    }
}

fn cut_at_mark(disk: &FaultyFileSystem, partition: usize) {
    let marks = read_high_watermarks(&*disk.shared(), Path::new(DATA_DIR)).unwrap_or_default();
    let mark = marks
        .get(&partition_id(partition).to_string())
        .and_then(|marks| marks.durable);
    let Some(mark) = mark else { return };
    for path in files_of(disk, partition, ".wal") {
        let Ok(bytes) = disk.contents(&path) else {
            continue;
        };
        let mut left = Bytes::from(bytes.clone());
        let mut kept = 0;
        while let Some(frame) = frame_of(&left).filter(|frame| frame.end() <= mark.end) {
            kept += frame.len();
            left = left.slice(frame.len()..);
        }
        if kept == 0 {
            let _ = disk.shared().remove_file(&path);
            let _ = disk.shared().remove_file(&path.with_extension("idx"));
        } else if kept < bytes.len() {
            replace(disk, &path, &bytes[..kept]);
        }
    }
}
