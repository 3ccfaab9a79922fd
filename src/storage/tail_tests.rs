//! How little of a log's last segment is read when it is opened, and that nothing is believed of it that is not so.

use std::io::IoSlice;
use std::path::Path;

use bytes::Bytes;

use super::faulty::FaultyFileSystem;
use super::segment::segment_path;
use super::test_frames::{at, epoch, frames, offset, start_frame};
use super::test_logs::{DIR, contents, disk, id, sync};
use super::*;
use crate::types::{LogPosition, Offset, TopicName};
use crate::wal::Frame;

const BUDGET: u64 = 2000;

fn options(mark: Option<DurableMark>) -> LogOptions {
    let config = LogConfig {
        retention_ms: None,
        ..LogConfig::default()
    };
    LogOptions {
        recovery_budget: RecoveryBudget::of(BUDGET),
        tail_cache_bytes: 0,
        durable_mark: mark,
        ..LogOptions::from(config)
    }
}

fn open_with(fs: &FaultyFileSystem, options: LogOptions) -> (Log, RecoveryReport) {
    let topic = TopicName::new("t").unwrap();
    Log::open(fs.shared(), Path::new(DIR), id(), &topic, options).unwrap()
}

fn open(fs: &FaultyFileSystem) -> (Log, RecoveryReport) {
    open_with(fs, options(None))
}

/// Appends frames one by one, each made durable, until the disk fails. Returns those that are durable for certain.
fn append(log: &mut Log, frames: &[Frame]) -> usize {
    for (i, frame) in frames.iter().enumerate() {
        if log.append(std::slice::from_ref(frame)).is_err() {
            return i;
        }
        if log.is_tail_index_due() {
            log.keep_snapshot_within(named(log.end()));
        }
        if sync(log).is_err() {
            return i;
        }
    }
    frames.len()
}

fn named(at: LogPosition) -> Bytes {
    Bytes::from(at.to_string())
}

/// A log of one segment with `count` records of epoch 1.
fn filled(fs: &FaultyFileSystem, count: usize) -> (Log, Vec<Frame>) {
    let (mut log, _) = open(fs);
    let mut all = vec![start_frame(1, LogPosition::START)];
    all.extend(frames(at(0, 1), count, 100));
    append(&mut log, &all);
    (log, all)
}

#[test]
fn a_killed_log_is_read_from_its_last_checkpoint_on_and_no_further_back() {
    let fs = disk(0);
    let (mut log, mut all) = filled(&fs, 200);
    let all_bytes = |all: &[Frame]| all.iter().map(|f| f.len() as u64).sum::<u64>();
    for round in 0..8 {
        let mark = log.reader().durable_mark();
        drop(log);
        fs.kill();
        let (opened, report) = open_with(&fs, options(mark));
        assert!(
            report.bytes_scanned <= BUDGET,
            "round {round}: {} of {} bytes were read",
            report.bytes_scanned,
            all_bytes(&all)
        );
        assert_eq!((&report.cut, &report.quarantined), (&None, &None));
        assert_eq!(contents(&opened), all, "round {round}");
        assert_eq!(opened.end(), all[all.len() - 1].end());
        // The index leads to each frame, whichever process made its entry.
        for frame in &all {
            let found = opened.read(frame.start(), 1).unwrap();
            assert_eq!(&found[0], frame);
        }
        log = opened;
        let more = if round == 4 {
            vec![start_frame(2, log.end())]
        } else {
            // Also where nothing, or less than a share, comes between two kills.
            frames(log.end(), [0, 3, 50][round % 3], 100)
        };
        append(&mut log, &more);
        all.extend(more);
    }
    assert_eq!(log.epochs().entries().len(), 2);
    drop(log);
    fs.kill();
    let mut checked = options(None);
    checked.verify_all = true;
    let (log, report) = open_with(&fs, checked);
    assert_eq!(report.bytes_scanned, all_bytes(&all), "asked for, all is");
    assert_eq!(log.segment_count(), 1);
}

#[test]
fn whatever_operation_a_power_cut_interrupts_what_was_durable_is_there() {
    let mut cut = 0;
    for operation in 1.. {
        let fs = disk(operation);
        let (mut log, all) = filled(&fs, 40);
        fs.crash_after(operation);
        let more = frames(log.end(), 40, 100);
        let kept = append(&mut log, &more);
        drop(log);
        fs.power_loss();
        let (log, report) = open(&fs);
        assert_eq!(report.quarantined, None, "operation {operation}");
        let found = contents(&log);
        let certain = all.len() + kept;
        assert!(found.len() >= certain, "operation {operation}");
        let written: Vec<Frame> = all.iter().chain(&more).cloned().collect();
        assert_eq!(found, written[..found.len()], "operation {operation}");
        if kept == more.len() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 80, "{cut}");
}

#[test]
fn the_index_of_a_history_that_was_cut_off_is_not_believed() {
    let fs = disk(0);
    let (mut log, all) = filled(&fs, 100);
    let path = Path::new(DIR).join("tail-index");
    let old = fs.contents(&path).unwrap();
    log.truncate(at(30, 1)).unwrap();
    let mut kept = all[..31].to_vec();
    let mut others = vec![start_frame(2, log.end())];
    // Longer frames, so that none begins where one of the old ones did.
    others.extend(frames(at(30, 2), 100, 137));
    append(&mut log, &others);
    kept.extend(others);
    assert_eq!(contents(&log), kept);
    drop(log);
    fs.kill();
    assert_eq!(contents(&open(&fs).0), kept);
    // Nor where a power cut has brought the old file back.
    let file = fs.open(&path, OpenMode::Write).unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, &[IoSlice::new(&old)]).unwrap();
    let (log, report) = open(&fs);
    assert_eq!((report.cut, report.quarantined), (None, None));
    assert_eq!(contents(&log), kept);
    for frame in &kept {
        assert_eq!(log.read(frame.start(), 1).unwrap()[0], *frame);
    }
}

#[test]
fn the_index_of_a_sync_that_had_not_come_back_when_the_log_was_cut_is_not_believed() {
    let fs = disk(0);
    let (mut log, all) = filled(&fs, 100);
    let mut kept = all;
    kept.extend(frames(log.end(), 60, 100));
    log.append(&kept[101..]).unwrap();
    let ticket = log.begin_sync().unwrap();
    ticket.run().unwrap();
    // Above all that the log has been told is synced.
    let to = at(130, 1);
    assert!(log.durable_end() < to && to < log.end());
    log.truncate(to).unwrap();
    kept.truncate(131);
    // Longer ones, and the process ends before the next sync, with which the index would begin anew.
    kept.extend(frames(log.end(), 40, 137));
    log.append(&kept[131..]).unwrap();
    assert!(log.is_tail_index_due());
    assert_eq!(contents(&log), kept);
    drop(log);
    fs.kill();
    let (log, report) = open(&fs);
    assert_eq!((report.cut, report.quarantined), (None, None));
    assert_eq!(contents(&log), kept);
}

#[test]
fn rot_below_the_index_is_found_by_who_reads_it_and_by_the_start_after_that() {
    let fs = disk(0);
    let (log, all) = filled(&fs, 100);
    drop(log);
    fs.kill();
    let second: usize = all[..3].iter().map(Frame::len).sum();
    let path = segment_path(Path::new(DIR), Offset::ZERO);
    fs.flip_bit(&path, 8 * (second as u64 + 50)).unwrap();
    let (log, report) = open(&fs);
    assert_eq!((report.cut, report.quarantined), (None, None));
    let error = log.frames(log.start()).find_map(Result::err).unwrap();
    assert!(error.is_damage(), "{error}");
    drop(log);
    fs.kill();
    let mut checked = options(None);
    checked.verify_all = true;
    let (_, report) = open_with(&fs, checked);
    assert!(report.quarantined.is_some());
}

#[test]
fn only_what_is_above_the_durable_mark_is_written_once_more() {
    let fs = disk(0);
    let (mut log, mut all) = filled(&fs, 100);
    let mark = log.reader().durable_mark();
    // What this sync should have covered never reaches the disk, and nobody is told.
    fs.fail_syncs_in_silence(1);
    let more = frames(log.end(), 3, 100);
    log.append(&more).unwrap();
    all.extend(more);
    let ticket = log.begin_sync().unwrap();
    let _ = ticket.run();
    drop(log);
    fs.kill();
    let (log, report) = open_with(&fs, options(mark));
    assert_eq!((report.cut, report.quarantined), (None, None));
    assert_eq!(contents(&log), all);
    drop(log);
    fs.power_loss_of_all_unsynced();
    assert_eq!(contents(&open(&fs).0), all, "and now the disk has it");
}

#[test]
fn snapshots_within_a_segment_are_two_at_most() {
    let fs = disk(0);
    let (log, _) = filled(&fs, 200);
    let of_producers = |fs: &FaultyFileSystem| {
        let entries = fs.list(Path::new(DIR)).unwrap();
        entries
            .iter()
            .filter(|entry| entry.name.ends_with(".producers"))
            .count()
    };
    assert_eq!(of_producers(&fs), 2);
    drop(log);
    fs.kill();
    let (log, _) = open(&fs);
    let (place, body) = log.latest_snapshot(log.end(), Some).unwrap();
    assert_eq!(body, named(place));
    let behind = log.frames(place).map(|frame| frame.unwrap().len() as u64);
    assert!(behind.sum::<u64>() <= BUDGET, "what is left to replay");
    assert_eq!(place.epoch, epoch(1));
    assert!(place.offset > offset(150));
}

#[test]
fn a_snapshot_where_a_segment_has_begun_since_it_was_taken_stays() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 100);
    while !log.is_tail_index_due() {
        log.append(&frames(log.end(), 1, 100)).unwrap();
    }
    let place = log.end();
    log.keep_snapshot_within(named(place));
    sync(&mut log).unwrap();
    // The next frame finds the segment full.
    log.set_config(LogConfig {
        segment_bytes: 1,
        ..log.config().clone()
    });
    log.append(&frames(log.end(), 1, 100)).unwrap();
    assert_eq!(log.take_rolls().last(), Some(&place));
    log.set_config(options(None).config);
    let more = frames(log.end(), 200, 100);
    append(&mut log, &more);
    let found = log.latest_snapshot(place, Some);
    assert_eq!(found, Some((place, named(place))));
}
