//! A log on a disk that fails on purpose: what was durable is there after every crash, and nothing torn is served.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::faulty::FaultyFileSystem;
use super::segment::{index_path, segment_path};
use super::test_frames::{at, epoch, frame, frame_with_timestamp, frames, offset, start_frame};
use super::test_logs::{DIR, contents, disk, id, sync};
use super::*;
use crate::types::{
    EpochEntry, EpochHistory, LogPosition, Offset, PartitionIndex, TopicName, TopicPartition,
};
use crate::wal::Frame;

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 2000,
        retention_ms: None,
        ..LogConfig::default()
    }
}

fn try_open(
    fs: &FaultyFileSystem,
    options: impl Into<LogOptions>,
) -> Result<(Log, RecoveryReport), OpenError> {
    let topic = TopicName::new("t").unwrap();
    Log::open(fs.shared(), Path::new(DIR), id(), &topic, options.into())
}

fn open(fs: &FaultyFileSystem) -> (Log, RecoveryReport) {
    try_open(fs, config()).unwrap()
}

/// Without a cache of the tail, so that every read comes from the disk.
fn open_uncached(fs: &FaultyFileSystem) -> (Log, RecoveryReport) {
    let mut options = LogOptions::from(config());
    options.tail_cache_bytes = 0;
    try_open(fs, options).unwrap()
}

/// A log of epoch 1 with `count` records of one frame each, durable. Returns its frames too.
fn filled(fs: &FaultyFileSystem, count: usize) -> (Log, Vec<Frame>) {
    let (mut log, _) = open(fs);
    let mut all = vec![start_frame(1, LogPosition::START)];
    all.extend(frames(at(0, 1), count, 100));
    for frame in &all {
        log.append(std::slice::from_ref(frame)).unwrap();
    }
    sync(&mut log).unwrap();
    (log, all)
}

fn segments(fs: &FaultyFileSystem) -> Vec<PathBuf> {
    fs.list(Path::new(DIR))
        .unwrap()
        .into_iter()
        .filter(|entry| entry.name.ends_with(".wal"))
        .map(|entry| Path::new(DIR).join(entry.name))
        .collect()
}

#[test]
fn appended_frames_are_read_back_from_memory_and_from_disk() {
    let fs = disk(0);
    let (log, all) = filled(&fs, 50);
    assert!(log.segment_count() > 3);
    assert_eq!(
        (log.start(), log.end(), log.durable_end()),
        (at(0, 0), at(50, 1), at(50, 1))
    );
    assert_eq!(contents(&log), all);
    drop(log);
    let (log, report) = open_uncached(&fs);
    assert_eq!(report.cut, None);
    assert_eq!(contents(&log), all);
    for (i, frame) in all.iter().enumerate() {
        let one = log.read(frame.start(), 1).unwrap();
        assert_eq!(
            one,
            all[i..=i],
            "always one frame, and exactly the one asked for"
        );
        let more = log.read(frame.start(), 1000).unwrap();
        assert_eq!(more, all[i..i + more.len()]);
        assert!(more.iter().map(Frame::len).sum::<usize>() <= 1000);
    }
    assert!(log.read(log.end(), 1).unwrap().is_empty());
    assert!(matches!(
        log.read(at(51, 1), 1),
        Err(ReadError::OutOfRange { .. })
    ));
    assert!(matches!(
        log.read(at(7, 2), 1),
        Err(ReadError::NoSuchPosition { .. })
    ));
    assert!(matches!(
        log.read(at(7, 0), 1),
        Err(ReadError::NoSuchPosition { .. })
    ));
}

#[test]
fn a_frame_that_does_not_fit_changes_nothing() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 5);
    let good = frame(at(5, 1), 1, 10);
    for wrong in [
        frame(at(4, 1), 1, 10),
        frame(at(6, 1), 1, 10),
        frame(at(5, 2), 1, 10),
    ] {
        assert!(matches!(
            log.append(std::slice::from_ref(&wrong)),
            Err(AppendError::DoesNotFit { .. })
        ));
        assert!(log.append(&[good.clone(), good.clone()]).is_err());
    }
    assert_eq!(log.end(), at(5, 1));
    log.append(&[good]).unwrap();
}

#[test]
fn consumers_get_whole_batches_below_the_watermark_and_no_epoch_starts() {
    let fs = disk(0);
    for cached in [true, false] {
        let (mut log, _) = if cached {
            open(&fs)
        } else {
            open_uncached(&fs)
        };
        if cached {
            let mut end = LogPosition::START;
            for e in 1..4 {
                let start = start_frame(e, end);
                let batches = [
                    frame(start.end(), 5, 300),
                    frame(at(start.end().offset.get() + 5, e), 3, 300),
                ];
                log.append(&[start]).unwrap();
                log.append(&batches).unwrap();
                end = log.end();
            }
            sync(&mut log).unwrap();
        }
        let reader = log.reader();
        let base = |bytes: &bytes::Bytes| i64::from_be_bytes(bytes[27..35].try_into().unwrap());
        let bases = |from, max, below| -> Vec<i64> {
            let batches = reader
                .read_records(offset(from), max, offset(below))
                .unwrap();
            batches.iter().map(base).collect()
        };
        // From the middle of a batch its whole batch; never one that reaches above `below`.
        assert_eq!(bases(2, 1, 24), [0]);
        assert!(bases(2, 1, 4).is_empty());
        assert_eq!(bases(5, 1, 24), [5]);
        assert!(bases(24, 1, 24).is_empty());
        assert!(bases(9, 1, 8).is_empty());
        let mut seen = Vec::new();
        let mut from = 0;
        while from < 24 {
            let got = bases(from, 1 << 20, 24);
            from = match got.last().unwrap() % 8 {
                0 => *got.last().unwrap() as u64 + 5,
                _ => *got.last().unwrap() as u64 + 3,
            };
            seen.extend(got);
        }
        assert_eq!(seen, [0, 5, 8, 13, 16, 21], "cached {cached}");
        assert!(matches!(
            reader.read_records(offset(25), 1, offset(30)),
            Err(ReadError::OutOfRange { .. })
        ));
        // Each test batch's timestamp is its base offset.
        for t in 0..=21 {
            let expected = [0, 5, 8, 13, 16, 21]
                .into_iter()
                .find(|base| *base >= t)
                .unwrap();
            assert_eq!(
                reader.offset_for_timestamp(t, offset(24)).unwrap(),
                Some((offset(expected as u64), expected)),
            );
        }
        assert_eq!(reader.offset_for_timestamp(22, offset(24)).unwrap(), None);
        assert_eq!(reader.offset_for_timestamp(21, offset(23)).unwrap(), None);
    }
}

/// The main promise. Appends, rolls, syncs and truncates at random, dies at any operation, loses power or only the process,
/// and opens again: everything durable is there, frames chain, and nothing is there that was not appended.
#[test]
fn what_was_durable_survives_a_crash_at_every_point() {
    let mut cuts = 0;
    for seed in 0..1500u64 {
        let fs = disk(seed);
        let (mut log, _) = open(&fs);
        let mut model: Vec<Frame> = Vec::new();
        let mut written: Vec<Frame> = Vec::new();
        let mut random = seed;
        let mut draw = |bound: u64| {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) % bound
        };
        let mut ticket = None;
        let mut truncating_to = None;
        fs.crash_after(1 + draw(120));
        let mut next_epoch = 1;
        for _ in 0..500 {
            let end = log.end();
            let ok = match draw(10) {
                0..=4 => {
                    let new = if end.epoch == LeaderEpochNone || draw(8) == 0 {
                        next_epoch += 1;
                        vec![start_frame(next_epoch, end)]
                    } else {
                        frames(end, 1 + draw(12) as usize, draw(300) as usize)
                    };
                    written.extend(new.iter().cloned());
                    let done = log.append(&new);
                    if done.is_ok() {
                        model.extend(new);
                    }
                    done.is_ok()
                }
                5..=6 => {
                    if ticket.is_none() {
                        ticket = log.begin_sync();
                    }
                    true
                }
                7..=8 => match ticket.take() {
                    Some(ticket) => {
                        let done = SyncTicket::run(&ticket).is_ok();
                        log.finish_sync(ticket);
                        done
                    }
                    None => true,
                },
                _ => {
                    let keep = draw(model.len() as u64 + 1) as usize;
                    let to = keep
                        .checked_sub(1)
                        .map_or(LogPosition::START, |i| model[i].end());
                    truncating_to = Some(to);
                    let done = log.truncate(to);
                    if done.is_ok() {
                        truncating_to = None;
                        model.truncate(keep);
                        assert_eq!(
                            (log.end(), log.durable_end()),
                            (to, log.durable_end().min(to))
                        );
                    }
                    done.is_ok()
                }
            };
            if !ok {
                break;
            }
        }
        assert!(fs.has_crashed(), "seed {seed}");
        let mut durable = log.durable_end();
        if let Some(to) = truncating_to {
            durable = durable.min(to);
        }
        if draw(3) == 0 {
            fs.kill();
        } else {
            fs.power_loss();
        }
        drop(log);
        let (log, report) = open(&fs);
        assert_eq!(report.quarantined, None, "seed {seed}");
        cuts += usize::from(report.cut.is_some());
        assert!(
            log.end() >= durable,
            "seed {seed}: {} < {durable}",
            log.end()
        );
        assert_eq!(log.durable_end(), log.end());
        let found = contents(&log);
        assert_eq!(
            found.last().map_or(LogPosition::START, Frame::end),
            log.end(),
            "seed {seed}"
        );
        let kept = model
            .iter()
            .take_while(|frame| frame.end() <= durable)
            .count();
        assert_eq!(found[..kept], model[..kept], "seed {seed}");
        for frame in &found[kept..] {
            assert!(
                written.contains(frame),
                "seed {seed}: {frame:?} was never written"
            );
        }
        let starts: Vec<_> = found
            .iter()
            .filter(|frame| frame.is_epoch_start())
            .map(|frame| EpochEntry {
                epoch: frame.leader_epoch(),
                start: frame.base_offset(),
            })
            .collect();
        assert_eq!(log.epochs().entries(), starts, "seed {seed}");
        // What opening kept is durable: it survives another power cut.
        let end = log.end();
        drop(log);
        fs.power_loss();
        let (log, report) = open(&fs);
        assert_eq!((log.end(), report.cut), (end, None), "seed {seed}");
        assert_eq!(contents(&log), found, "seed {seed}");
    }
    assert!(cuts > 50, "{cuts} torn tails: the test tears too little");
}

#[allow(non_upper_case_globals)]
const LeaderEpochNone: crate::types::LeaderEpoch = crate::types::LeaderEpoch::NONE;

#[test]
fn a_crash_during_recovery_is_recovered_from() {
    for seed in 0..300u64 {
        let fs = disk(seed);
        let (mut log, mut all) = filled(&fs, 20);
        let durable = log.durable_end();
        let more = frames(log.end(), 30, 100);
        for frame in &more {
            log.append(std::slice::from_ref(frame)).unwrap();
        }
        all.extend(more);
        if seed % 2 == 0 {
            fs.fail_syncs(1);
            sync(&mut log).unwrap_err();
        }
        fs.power_loss();
        for step in 1..6 {
            fs.crash_after(step * 2 + seed % 3);
            let _ = try_open(&fs, config());
            fs.power_loss();
        }
        let (log, report) = open(&fs);
        assert_eq!(report.quarantined, None, "seed {seed}");
        assert!(log.end() >= durable, "seed {seed}");
        let found = contents(&log);
        assert_eq!(found[..], all[..found.len()], "seed {seed}");
    }
}

#[test]
fn a_torn_tail_is_cut_and_reported() {
    let fs = disk(0);
    let (mut log, all) = filled(&fs, 3);
    let len = log.size_bytes();
    log.append(&frames(log.end(), 2, 100)).unwrap();
    let path = segment_path(Path::new(DIR), Offset::ZERO);
    let file = fs.open(&path, OpenMode::Write).unwrap();
    file.set_len(len + 150).unwrap();
    fs.kill();
    let (log, report) = open(&fs);
    let cut = report.cut.unwrap();
    assert_eq!((cut.at.byte, cut.bytes, cut.end), (len, 150, at(3, 1)));
    assert!(
        matches!(
            cut.at.cause,
            FrameFault::Cut {
                needed: 201,
                available: 150
            }
        ),
        "{cut:?}"
    );
    assert_eq!(cut.at.path, path);
    assert_eq!(contents(&log), all);
    assert_eq!(fs.contents(&path).unwrap().len() as u64, len);
}

#[test]
fn rot_in_a_sealed_segment_is_set_aside_and_remembered() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 50);
    log.close().unwrap();
    drop(log);
    let second = segments(&fs)[1].clone();
    fs.flip_bit(&second, 8 * 300).unwrap();
    // Its index is there, so opening does not read it; reading does, and says what is wrong.
    let (log, report) = open_uncached(&fs);
    assert_eq!(report.quarantined, None);
    let broken = log.frames(log.start()).find_map(Result::err).unwrap();
    assert!(
        matches!(&broken, ReadError::Corrupt(bad) if bad.path == second),
        "{broken}"
    );
    drop(log);
    let mut options = LogOptions::from(config());
    options.verify_all = true;
    let (log, report) = try_open(&fs, options).unwrap();
    let quarantine = report.quarantined.unwrap();
    assert_eq!(quarantine.cause.path, second);
    assert!(matches!(quarantine.cause.cause, FrameFault::Frame(_)));
    assert_eq!(quarantine.moved_to, Path::new("/logs/p.quarantine-1"));
    assert_eq!(
        (log.start(), log.end()),
        (LogPosition::START, LogPosition::START)
    );
    assert_eq!(
        log.impairment().unwrap().reason,
        ImpairmentReason::Quarantined
    );
    drop(log);
    fs.power_loss();
    // Remembered until an ISR change names the replica again.
    let (mut log, report) = open(&fs);
    assert!(report.quarantined.is_none() && report.impairment.is_some());
    log.clear_impairment().unwrap();
    drop(log);
    assert_eq!(open(&fs).1.impairment, None);
}

#[test]
fn rot_below_the_synced_position_is_never_cut() {
    // In the only, active segment: a tail scan must not take it for a torn tail.
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 5);
    log.close().unwrap();
    fs.kill();
    let path = segment_path(Path::new(DIR), Offset::ZERO);
    fs.flip_bit(&path, 8 * 300).unwrap();
    let (_, report) = open(&fs);
    assert!(report.quarantined.is_some() && report.cut.is_none());
}

#[test]
fn sectors_that_cannot_be_read_are_no_torn_tail_and_their_log_is_set_aside_where_there_are_others()
{
    for replicated in [false, true] {
        let fs = disk(0);
        let (mut log, written) = filled(&fs, 5);
        // Above everything that is known to have been synced: a bad frame there would be cut.
        log.append(&frames(log.end(), 1, 100)).unwrap();
        drop(log);
        fs.kill();
        let path = segment_path(Path::new(DIR), Offset::ZERO);
        let len = fs.contents(&path).unwrap().len();
        fs.make_unreadable(&path, len - 10..len).unwrap();
        let mut options = LogOptions::from(config());
        options.others_in_sync = replicated;
        let opened = try_open(&fs, options);
        if replicated {
            let (log, report) = opened.unwrap();
            let quarantine = report.quarantined.unwrap();
            assert_eq!(quarantine.cause.cause, FrameFault::Unreadable);
            assert_eq!(quarantine.cause.path, path);
            assert_eq!(report.cut, None);
            assert_eq!(log.end(), LogPosition::START);
            assert!(log.impairment().is_some(), "it may not vote");
            assert_eq!(quarantine.moved_to, Path::new("/logs/p.quarantine-1"));
        } else {
            let refused = opened.err().map(|error| error.to_string()).unwrap();
            assert!(refused.contains("00000000000000000000.wal"), "{refused}");
            assert!(refused.contains("left as it is"), "{refused}");
            // Nothing was touched: what the disk gives again is there.
            fs.make_unreadable(&path, 0..0).unwrap();
            let (log, report) = open(&fs);
            assert_eq!((report.cut, report.quarantined), (None, None));
            assert_eq!(contents(&log)[..written.len()], written[..]);
        }
    }
}

#[test]
fn notes_that_cannot_be_read_are_taken_for_the_worst() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 40);
    log.note_bad_read("a read found it").unwrap();
    log.close().unwrap();
    drop(log);
    for note in ["impaired", "recovery", "partition"] {
        let path = Path::new(DIR).join(note);
        let len = fs.contents(&path).unwrap().len();
        fs.make_unreadable(&path, 0..len).unwrap();
    }
    let (log, report) = open(&fs);
    let impairment = report.impairment.unwrap();
    assert_eq!(impairment.reason, ImpairmentReason::SyncFailed);
    assert!(impairment.detail.contains("impaired"), "{impairment:?}");
    assert!(report.tail_rewritten && report.quarantined.is_none());
    assert_eq!(contents(&log).len(), 41);
}

#[test]
fn a_sync_of_the_log_that_was_here_before_makes_nothing_durable() {
    let fs = disk(0);
    let (mut before, _) = filled(&fs, 5);
    before.append(&frames(before.end(), 20, 100)).unwrap();
    // It waits for its turn at a busy disk while the partition is moved away and back.
    let late = before.begin_sync().unwrap();
    before.close().unwrap();
    drop(before);
    fs.remove_dir_all(Path::new(DIR)).unwrap();
    let (mut log, _) = open(&fs);
    log.append(&[start_frame(2, LogPosition::START)]).unwrap();
    let own = log.begin_sync().unwrap();
    let _ = late.run();
    log.finish_sync(late);
    assert_eq!(log.durable_end(), LogPosition::START);
    assert!(log.begin_sync().is_none(), "its own is still out");
    assert!(own.run().is_ok() && log.poisoned().is_none());
    log.finish_sync(own);
    assert_eq!(log.durable_end(), log.end());
}

fn marked(mark: Option<DurableMark>) -> LogOptions {
    LogOptions {
        durable_mark: mark,
        ..LogOptions::from(config())
    }
}

#[test]
fn rot_below_the_durable_mark_is_never_cut_and_above_it_is_a_torn_tail() {
    // Synced, but by a process that was killed before it wrote a recovery checkpoint.
    for (marks, expected) in [
        (None, "cut"),
        (Some(at(2, 1)), "cut"),
        (Some(at(5, 1)), "set aside"),
    ] {
        let fs = disk(0);
        let (mut log, all) = filled(&fs, 5);
        let end = log.end();
        let mark = log.reader().durable_mark().unwrap();
        assert_eq!(mark.end, end, "every append was synced");
        log.append(&frames(end, 3, 100)).unwrap();
        assert_eq!(log.reader().durable_mark(), Some(mark), "and this one not");
        drop(log);
        fs.kill();
        let path = segment_path(Path::new(DIR), Offset::ZERO);
        let third: usize = all[..4].iter().map(Frame::len).sum();
        fs.flip_bit(&path, 8 * (third as u64 + 50)).unwrap();
        let mark = marks.map(|end| DurableMark { end, ..mark });
        let (log, report) = try_open(&fs, marked(mark)).unwrap();
        assert_eq!(
            (report.cut.is_some(), report.quarantined.is_some()),
            (expected == "cut", expected == "set aside"),
            "{marks:?}"
        );
        // The same mark, which may still be the last one written, says nothing of the log that was begun anew.
        drop(log);
        fs.kill();
        let (_, report) = try_open(&fs, marked(mark)).unwrap();
        assert_eq!((report.cut, report.quarantined), (None, None), "{marks:?}");
    }
}

#[test]
fn a_log_shorter_than_its_durable_mark_is_corrupt_and_an_epoch_start_counts() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 5);
    log.append(&[start_frame(2, log.end())]).unwrap();
    sync(&mut log).unwrap();
    let mark = log.reader().durable_mark();
    assert_eq!(mark.unwrap().end, at(5, 2));
    drop(log);
    fs.kill();
    let path = segment_path(Path::new(DIR), Offset::ZERO);
    let len = fs.contents(&path).unwrap().len() as u64;
    let file = fs.shared().open(&path, OpenMode::Write).unwrap();
    file.set_len(len - crate::wal::HEADER_LEN as u64).unwrap();
    drop(file);
    let (_, report) = try_open(&fs, marked(mark)).unwrap();
    let cause = report.quarantined.unwrap().cause.cause;
    assert!(matches!(cause, FrameFault::Short { .. }), "{cause}");
}

#[test]
fn a_durable_mark_of_before_a_truncation_says_nothing_wherever_that_was_interrupted() {
    let mut interrupted = 0;
    for operation in 1.. {
        let fs = disk(operation);
        let (mut log, _) = filled(&fs, 30);
        let mark = log.reader().durable_mark();
        fs.crash_after(operation);
        let done = log.truncate(at(7, 1)).is_ok();
        drop(log);
        fs.power_loss();
        let (log, report) = try_open(&fs, marked(mark)).unwrap();
        assert_eq!(report.quarantined, None, "operation {operation}");
        drop(log);
        if done {
            break;
        }
        interrupted += 1;
    }
    assert!(interrupted > 3, "{interrupted}");
}

#[test]
fn durable_marks_of_before_a_reset_or_a_setting_aside_say_nothing() {
    type Change = fn(&mut Log);
    let changes: [Change; 2] = [
        |log| {
            let (start, epochs) = (at(3, 1), log.epochs().clone());
            log.reset(start, epochs, Bytes::new()).unwrap();
        },
        |log| {
            log.set_aside("a test").unwrap();
        },
    ];
    for change in changes {
        let fs = disk(0);
        let (mut log, _) = filled(&fs, 30);
        let before = log.reader().durable_mark();
        change(&mut log);
        let after = log.reader().durable_mark();
        assert!(after.unwrap().lineage > before.unwrap().lineage);
        drop(log);
        fs.kill();
        let (log, report) = try_open(&fs, marked(before)).unwrap();
        assert_eq!(report.quarantined, None);
        assert_eq!(
            log.reader().durable_mark(),
            after,
            "and the new one goes on"
        );
    }
}

#[test]
fn what_a_log_calls_durable_without_a_sync_is_never_marked() {
    let fs = disk(0);
    let os = LogConfig {
        flush: Flush::Os,
        ..config()
    };
    let (mut log, _) = try_open(&fs, os).unwrap();
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    log.append(&frames(at(0, 1), 3, 100)).unwrap();
    assert_eq!(log.durable_end(), at(3, 1));
    assert_eq!(log.reader().durable_mark(), None);
    // The policy changes, and what was appended before has still not been synced.
    log.set_config(config());
    let end = |log: &Log| log.reader().durable_mark().unwrap().end;
    assert_eq!(end(&log), LogPosition::START);
    log.append(&frames(log.end(), 1, 100)).unwrap();
    sync(&mut log).unwrap();
    assert_eq!(end(&log), at(4, 1));
}

#[test]
fn a_lost_segment_is_corruption() {
    for (lost, with_index) in [(0, true), (1, true), (1, false), (usize::MAX, true)] {
        let fs = disk(0);
        let (mut log, _) = filled(&fs, 50);
        log.close().unwrap();
        fs.kill();
        let all = segments(&fs);
        let path = all[lost.min(all.len() - 1)].clone();
        fs.remove_file(&path).unwrap();
        if !with_index {
            for entry in fs.list(Path::new(DIR)).unwrap() {
                if entry.name.ends_with(".idx") {
                    fs.remove_file(&Path::new(DIR).join(entry.name)).unwrap();
                }
            }
        }
        let (_, report) = open(&fs);
        let quarantine = report.quarantined.unwrap();
        assert!(report.cut.is_none(), "{lost}");
        assert!(
            matches!(
                quarantine.cause.cause,
                FrameFault::Missing { .. }
                    | FrameFault::Short { .. }
                    | FrameFault::DoesNotFit { .. }
            ),
            "{quarantine:?}"
        );
    }
}

#[test]
fn an_index_that_is_lost_or_corrupt_is_rebuilt() {
    for seed in 0..20 {
        let fs = disk(seed);
        let (mut log, all) = filled(&fs, 50);
        log.close().unwrap();
        fs.kill();
        let base = offset(
            segments(&fs)[1]
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .parse()
                .unwrap(),
        );
        let path = index_path(Path::new(DIR), base);
        assert!(fs.contents(&path).is_ok());
        if seed == 0 {
            fs.remove_file(&path).unwrap();
        } else {
            fs.flip_bit(&path, seed * 37).unwrap();
        }
        let (log, report) = open_uncached(&fs);
        assert_eq!(
            (report.indexes_rebuilt, report.quarantined),
            (1, None),
            "seed {seed}"
        );
        assert_eq!(contents(&log), all);
        drop(log);
        assert_eq!(open(&fs).1.indexes_rebuilt, 0);
        // Lost beneath a running log: a read rebuilds it.
        let (log, _) = open_uncached(&fs);
        fs.remove_file(&path).unwrap();
        assert_eq!(contents(&log), all);
        assert!(fs.contents(&path).is_ok());
    }
}

#[test]
fn a_truncation_where_nothing_lies_behind_changes_nothing() {
    let fs = disk(0);
    let (mut log, all) = filled(&fs, 50);
    log.append(&[frame(log.end(), 1, 0)]).unwrap();
    let ticket = log.begin_sync().unwrap();
    let before = fs.operations();
    for to in [log.end(), at(51, 2), at(60, 1), at(u32::MAX as u64, 9)] {
        log.truncate(to).unwrap();
    }
    assert_eq!((log.end(), log.durable_end()), (at(51, 1), at(50, 1)));
    assert_eq!(fs.operations(), before, "the disk is not touched");
    ticket.run().unwrap();
    log.finish_sync(ticket);
    assert_eq!(
        log.durable_end(),
        at(51, 1),
        "and neither is a sync under way"
    );
    assert_eq!(contents(&log)[..51], all);
}

#[test]
fn truncation_takes_empty_epochs_at_the_same_offset_too() {
    let fs = disk(0);
    let (mut log, all) = filled(&fs, 4);
    let second = start_frame(2, at(4, 1));
    let third = start_frame(3, at(4, 2));
    log.append(&[second.clone(), third]).unwrap();
    sync(&mut log).unwrap();
    log.truncate(at(4, 2)).unwrap();
    assert_eq!((log.end(), log.epochs().last_epoch()), (at(4, 2), epoch(2)));
    log.truncate(at(4, 1)).unwrap();
    assert_eq!((log.end(), log.durable_end()), (at(4, 1), at(4, 1)));
    assert_eq!(log.epochs().last_epoch(), epoch(1));
    fs.power_loss();
    let (log, _) = open(&fs);
    assert_eq!(contents(&log), all, "they do not come back");
}

#[test]
fn truncation_stops_at_the_log_start_and_goes_across_segments() {
    let fs = disk(0);
    let (mut log, all) = filled(&fs, 50);
    log.truncate(at(7, 1)).unwrap();
    assert_eq!((log.end(), log.durable_end()), (at(7, 1), at(7, 1)));
    assert_eq!(contents(&log), all[..8]);
    log.append(&frames(at(7, 1), 30, 50)).unwrap();
    fs.power_loss();
    let (mut log, report) = open(&fs);
    assert_eq!(
        report.quarantined, None,
        "the checkpoint fell before the frames did"
    );
    assert!(log.end() >= at(7, 1));
    assert_eq!(contents(&log)[..8], all[..8]);
    log.truncate(LogPosition::START).unwrap();
    assert_eq!(log.end(), LogPosition::START);
    assert!(contents(&log).is_empty());
    log.append(&[start_frame(5, LogPosition::START)]).unwrap();
    log.reset(at(100, 7), EpochHistory::new(), Bytes::new())
        .unwrap();
    assert!(matches!(
        log.truncate(at(99, 7)),
        Err(TruncateError::BelowStart { .. })
    ));
    assert!(matches!(
        log.truncate(at(100, 6)),
        Err(TruncateError::BelowStart { .. })
    ));
    assert_eq!(log.end(), at(100, 7));
}

#[test]
fn a_log_that_starts_behind_an_empty_epoch_can_be_cut_to_the_epoch_before() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 50);
    // A leader of epoch 2 whose first frame ends a segment, and retention up to there.
    log.append(&[start_frame(2, at(50, 1))]).unwrap();
    sync(&mut log).unwrap();
    log.set_config(LogConfig {
        segment_bytes: 1,
        retention_bytes: Some(0),
        ..config()
    });
    log.append(&frames(at(50, 2), 3, 100)).unwrap();
    sync(&mut log).unwrap();
    let known = Bytes::from_static(b"what is known of producers");
    let start = log.plan_retention(0, offset(50), Offset::ZERO).unwrap();
    assert_eq!(start, Some(at(50, 2)));
    log.trim(at(50, 2), Some(known.clone())).unwrap();
    fs.power_loss();
    let (mut log, _) = open(&fs);
    assert_eq!((log.start(), log.end()), (at(50, 2), at(53, 2)));
    // The leader of epoch 3 never had epoch 2: the two logs part where this one starts.
    let mut leaders = EpochHistory::new();
    leaders
        .push(EpochEntry {
            epoch: epoch(1),
            start: Offset::ZERO,
        })
        .unwrap();
    let parts = leaders.shared_prefix(offset(50), log.epochs(), log.end().offset);
    assert_eq!(parts, Some(at(50, 1)));
    assert!(log.reaches_back_to(at(50, 1)));
    log.truncate(at(50, 1)).unwrap();
    for _ in 0..2 {
        assert_eq!((log.start(), log.end()), (at(50, 1), at(50, 1)));
        assert_eq!(log.durable_end(), at(50, 1));
        assert_eq!(log.epochs().last_epoch(), epoch(1));
        let kept = log.latest_snapshot(at(50, 1), Some);
        assert_eq!(kept, Some((at(50, 1), known.clone())));
        fs.power_loss();
        log = open(&fs).0;
    }
    assert!(!log.reaches_back_to(at(49, 1)));
}

#[test]
fn a_sync_that_was_under_way_does_not_confirm_what_was_truncated() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 10);
    log.append(&frames(at(10, 1), 40, 100)).unwrap();
    let old = log.begin_sync().unwrap();
    assert!(log.begin_sync().is_none(), "one at a time");
    log.truncate(at(12, 1)).unwrap();
    // Other frames at the same offsets.
    log.append(&[start_frame(2, at(12, 1))]).unwrap();
    log.append(&frames(at(12, 2), 60, 100)).unwrap();
    let new = log.begin_sync().unwrap();
    old.run().unwrap();
    log.finish_sync(old);
    assert_eq!(log.durable_end(), at(12, 1));
    assert!(log.begin_sync().is_none(), "the new one is still out");
    new.run().unwrap();
    log.finish_sync(new);
    assert_eq!(log.durable_end(), at(72, 2));
    let all = contents(&log);
    fs.power_loss();
    assert_eq!(contents(&open(&fs).0), all);
}

#[test]
fn a_failed_sync_stops_all_writing_and_the_next_start_rewrites_the_tail() {
    let mut noted = 0;
    for seed in 0..60 {
        let fs = disk(seed);
        let (mut log, mut all) = filled(&fs, 10);
        let more = frames(log.end(), 5, 100);
        log.append(&more).unwrap();
        // With many failures not even the note can be written.
        fs.fail_syncs(if seed % 2 == 0 { 1 } else { 100 });
        sync(&mut log).unwrap_err();
        assert_eq!(log.durable_end(), at(10, 1));
        assert!(log.begin_sync().is_none(), "never retried");
        assert!(matches!(
            log.append(&frames(log.end(), 1, 0)),
            Err(AppendError::Poisoned { .. })
        ));
        assert_eq!(contents(&log).len(), 16, "reads go on");
        fs.kill();
        let (log, report) = open(&fs);
        all.extend(more);
        assert_eq!(contents(&log), all, "the page cache had it");
        noted += usize::from(report.tail_rewritten);
        assert_eq!(report.tail_rewritten, report.impairment.is_some());
        drop(log);
        fs.power_loss();
        let (log, report) = open(&fs);
        assert_eq!(contents(&log), all, "seed {seed}: and now the disk has it");
        assert!(!report.tail_rewritten, "once is enough");
    }
    assert_eq!(noted, 30);
}

#[test]
fn a_log_that_is_closed_while_its_sync_fails_is_not_synced_by_the_close() {
    let fs = disk(0);
    let (mut log, mut all) = filled(&fs, 10);
    let more = frames(log.end(), 5, 100);
    log.append(&more).unwrap();
    all.extend(more);
    let ticket = log.begin_sync().unwrap();
    fs.fail_syncs(1);
    ticket.run().unwrap_err();
    // Nobody has told the log yet.
    log.close().unwrap_err();
    fs.kill();
    let (log, report) = open(&fs);
    assert!(report.tail_rewritten);
    drop(log);
    fs.power_loss();
    assert_eq!(contents(&open(&fs).0), all, "the disk has it");
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let fs = disk(0);
    let (mut log, all) = filled(&fs, 10);
    for room in [0, 10, 250, 2500] {
        fs.set_capacity(Some(fs.used() + room));
        let before = fs.used();
        let many = frames(log.end(), 40, 100);
        assert!(matches!(
            log.append(&many),
            Err(AppendError::NoSpace { .. })
        ));
        assert_eq!(contents(&log), all, "reads go on");
        fs.kill();
        fs.set_capacity(None);
        // What did not fit was cut back, on the disk too.
        let live: u64 = segments(&fs)
            .iter()
            .map(|p| fs.contents(p).unwrap().len() as u64)
            .sum();
        assert_eq!(live, all.iter().map(|f| f.len() as u64).sum::<u64>());
        let _ = before;
        let (reopened, report) = open(&fs);
        assert_eq!(report.cut, None);
        log = reopened;
    }
    log.append(&frames(log.end(), 40, 100)).unwrap();
    assert_eq!(log.end(), at(50, 1));
}

#[test]
fn a_write_that_fails_in_the_second_segment_leaves_nothing_in_the_first() {
    let fs = disk(3);
    let (mut log, all) = filled(&fs, 5);
    let many = frames(log.end(), 40, 100);
    fs.set_capacity(Some(fs.used() + 4000));
    assert!(log.append(&many).is_err());
    assert_eq!(log.poisoned(), None);
    fs.set_capacity(None);
    assert_eq!((log.end(), log.segment_count()), (at(5, 1), 1));
    assert_eq!(segments(&fs).len(), 1);
    log.append(&many).unwrap();
    sync(&mut log).unwrap();
    fs.power_loss();
    let (log, _) = open(&fs);
    assert_eq!(contents(&log), [all, many].concat());
}

#[test]
fn retention_keeps_the_active_segment_and_all_at_or_above_the_watermark() {
    let fs = disk(0);
    let (mut log, all) = filled(&fs, 50);
    log.set_config(LogConfig {
        retention_bytes: Some(0),
        ..config()
    });
    for hw in 0..=50 {
        let done = log.apply_retention(0, offset(hw)).unwrap();
        assert!(log.start().offset <= offset(hw), "{hw}");
        assert_eq!(done.start, log.start());
        assert_eq!(log.end(), at(50, 1));
        let kept = contents(&log);
        assert_eq!(kept, all[all.len() - kept.len()..]);
        assert_eq!(log.epochs().epoch_of(log.start().offset), Some(epoch(1)));
    }
    assert_eq!(log.segment_count(), 1, "the active one stays");
    let (start, kept) = (log.start(), contents(&log));
    assert!(start > LogPosition::START);
    assert!(matches!(
        log.reader().read_records(Offset::ZERO, 1, offset(50)),
        Err(ReadError::OutOfRange { .. })
    ));
    drop(log);
    fs.power_loss();
    let (log, report) = open(&fs);
    assert_eq!((log.start(), contents(&log)), (start, kept));
    assert_eq!(log.epochs().entries().len(), 1);
    assert!(!report.start_rebuilt && report.quarantined.is_none());
}

#[test]
fn retention_never_takes_what_is_not_durable() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    log.append(&frames(at(0, 1), 50, 100)).unwrap();
    log.set_config(LogConfig {
        retention_bytes: Some(0),
        ..config()
    });
    let done = log.apply_retention(0, offset(50)).unwrap();
    assert_eq!(done.segments_removed, 0);
}

#[test]
fn retention_by_time_goes_by_the_newest_record() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    for i in 0..100 {
        let frame = frame_with_timestamp(log.end(), 1, 10_000 + i);
        log.append(&[frame]).unwrap();
    }
    sync(&mut log).unwrap();
    let segments = log.segment_count();
    assert!(segments > 3);
    log.set_config(LogConfig {
        retention_ms: Some(1000),
        ..config()
    });
    let hw = offset(100);
    // A clock that went back takes nothing.
    for clock in [0, 5, 11_000] {
        assert_eq!(log.apply_retention(clock, hw).unwrap().segments_removed, 0);
    }
    let done = log.apply_retention(11_050, hw).unwrap();
    assert!(done.segments_removed > 0 && done.segments_removed < segments - 1);
    assert!(done.start.offset <= offset(50));
    // In the end the active segment is sealed for its age, and goes too; the log goes on where it was.
    log.apply_retention(20_000, hw).unwrap();
    sync(&mut log).unwrap();
    assert_eq!((log.start(), log.end()), (at(100, 1), at(100, 1)));
    fs.power_loss();
    let (mut log, report) = open(&fs);
    assert_eq!(report.cut, None);
    assert_eq!((log.start(), log.end()), (at(100, 1), at(100, 1)));
    log.append(&frames(at(100, 1), 3, 0)).unwrap();
    assert_eq!(contents(&log).len(), 3);
}

#[test]
fn retention_survives_a_crash_at_every_point() {
    for point in 1..40 {
        for seed in 0..10 {
            let fs = disk(seed);
            let (mut log, all) = filled(&fs, 50);
            log.set_config(LogConfig {
                retention_bytes: Some(0),
                ..config()
            });
            fs.crash_after(point);
            let _ = log.apply_retention(0, offset(30));
            fs.power_loss();
            let (log, report) = open(&fs);
            assert_eq!(report.quarantined, None, "point {point} seed {seed}");
            assert_eq!(log.end(), at(50, 1));
            assert!(log.start().offset <= offset(30));
            let kept = contents(&log);
            assert_eq!(kept, all[all.len() - kept.len()..]);
        }
    }
}

#[test]
fn a_reset_log_starts_where_it_was_told_after_a_crash_at_every_point() {
    let mut history = EpochHistory::new();
    for (e, start) in [(1, 0), (4, 300)] {
        history
            .push(EpochEntry {
                epoch: epoch(e),
                start: offset(start),
            })
            .unwrap();
    }
    for point in 1..60 {
        for seed in 0..5 {
            let fs = disk(seed);
            let (mut log, all) = filled(&fs, 50);
            fs.crash_after(point);
            let snapshot = Bytes::from_static(b"state");
            let done = log.reset(at(500, 4), history.clone(), snapshot).is_ok();
            fs.power_loss();
            let (mut log, report) = open(&fs);
            assert_eq!(report.quarantined, None, "point {point} seed {seed}");
            if done || log.start() == at(500, 4) {
                assert_eq!((log.start(), log.end()), (at(500, 4), at(500, 4)));
                assert_eq!(log.epochs().entries().len(), 1);
                assert_eq!(log.epochs().epoch_of(offset(500)), Some(epoch(4)));
                let found = log.latest_snapshot(log.end(), Some);
                assert_eq!(found, Some((at(500, 4), Bytes::from_static(b"state"))));
                log.append(&frames(at(500, 4), 2, 0)).unwrap();
                sync(&mut log).unwrap();
                fs.power_loss();
                assert_eq!(open(&fs).0.end(), at(502, 4));
            } else {
                assert_eq!(contents(&log), all);
                assert_eq!(log.latest_snapshot(log.end(), Some), None);
            }
        }
    }
}

/// A snapshot that says where it was taken.
fn named(at: LogPosition) -> Bytes {
    Bytes::from(at.to_string())
}

/// Fills a log and snapshots it where its segments begin; returns those places.
fn snapshotted(fs: &FaultyFileSystem) -> (Log, Vec<LogPosition>) {
    let (mut log, _) = open(fs);
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    let mut places = vec![];
    for frame in frames(at(0, 1), 60, 100) {
        log.append(std::slice::from_ref(&frame)).unwrap();
        for place in log.take_rolls() {
            assert!(log.is_snapshot_due(10));
            log.keep_snapshot(place, named(place));
            places.push(place);
        }
        sync(&mut log).unwrap();
    }
    // The place where the very first segment begins needs none.
    places.remove(0);
    assert!(places.len() > 3);
    (log, places)
}

fn latest(log: &Log, below: LogPosition) -> Option<LogPosition> {
    let (place, body) = log.latest_snapshot(below, Some)?;
    assert_eq!(body, named(place), "the right file under the right name");
    Some(place)
}

#[test]
fn the_newest_snapshot_below_a_position_is_found_after_a_restart_and_damaged_ones_are_skipped() {
    let fs = disk(0);
    let (log, places) = snapshotted(&fs);
    for pair in places.windows(2) {
        let between = at(pair[1].offset.get() - 1, 1);
        assert_eq!(latest(&log, between), Some(pair[0]));
        assert_eq!(latest(&log, pair[1]), Some(pair[1]));
    }
    drop(log);
    fs.kill();
    let newest = places[places.len() - 1];
    let path = Path::new(DIR).join(format!("{:020}.producers", newest.offset.get()));
    let bits = fs.contents(&path).unwrap().len() as u64 * 8;
    for bit in 0..bits {
        fs.flip_bit(&path, bit).unwrap();
        let log = open(&fs).0;
        assert_eq!(
            latest(&log, log.end()),
            Some(places[places.len() - 2]),
            "bit {bit}"
        );
        drop(log);
        fs.flip_bit(&path, bit).unwrap();
    }
    let log = open(&fs).0;
    assert_eq!(latest(&log, log.end()), Some(newest));
    // One that the caller cannot read is skipped too.
    let older = log.latest_snapshot(log.end(), |body| (body != named(newest)).then_some(body));
    assert_eq!(older.unwrap().0, places[places.len() - 2]);
}

#[test]
fn a_snapshot_of_a_history_that_was_truncated_is_never_used() {
    let fs = disk(0);
    let (mut log, places) = snapshotted(&fs);
    let newest = places[places.len() - 1];
    let stale = Path::new(DIR).join(format!("{:020}.producers", newest.offset.get()));
    let left_behind = fs.contents(&stale).unwrap();
    log.truncate(places[1]).unwrap();
    assert_eq!(latest(&log, log.end()), Some(places[1]));
    assert!(fs.contents(&stale).is_err());
    // Even where the removal is undone by a crash: another leader's records stand there now.
    log.append(&[start_frame(2, log.end())]).unwrap();
    log.append(&frames(log.end(), 60, 100)).unwrap();
    log.close().unwrap();
    drop(log);
    fs.kill();
    let file = fs.open(&stale, OpenMode::Create).unwrap();
    file.write_at(0, &[std::io::IoSlice::new(&left_behind)])
        .unwrap();
    let log = open(&fs).0;
    assert!(log.end() > newest);
    assert_eq!(latest(&log, log.end()), Some(places[1]));
}

#[test]
fn snapshots_are_as_many_as_segments_and_one_and_go_with_them() {
    let fs = disk(0);
    let (mut log, _) = snapshotted(&fs);
    let count = || {
        let entries = fs.list(Path::new(DIR)).unwrap();
        let named = |entry: &&DirEntry| entry.name.ends_with(".producers");
        entries.iter().filter(named).count()
    };
    for _ in 0..5 {
        log.append(&frames(log.end(), 1, 100)).unwrap();
        log.keep_snapshot(log.end(), named(log.end()));
        log.close().unwrap();
        log = open(&fs).0;
        assert_eq!(latest(&log, log.end()), Some(log.end()), "the last stop's");
    }
    assert!(count() <= log.segment_count() + 1, "{}", count());
    log.set_config(LogConfig {
        retention_bytes: Some(0),
        ..config()
    });
    let start = log
        .plan_retention(0, log.end().offset, Offset::ZERO)
        .unwrap()
        .unwrap();
    assert!(log.segment_count() > 1);
    log.trim(start, Some(Bytes::from_static(b"at the start")))
        .unwrap();
    assert_eq!((log.start(), log.segment_count()), (start, 1));
    assert!(count() <= 2, "{}", count());
    fs.power_loss();
    let (log, _) = open(&fs);
    let found = log.latest_snapshot(log.start(), Some);
    assert_eq!(found, Some((start, Bytes::from_static(b"at the start"))));
}

#[test]
fn snapshots_take_a_sixteenth_of_the_log_at_most() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    assert!(log.is_snapshot_due(1 << 20), "none was made yet");
    log.keep_snapshot(log.end(), Bytes::from(vec![0; 1000]));
    let mut bytes = 0;
    while !log.is_snapshot_due(1000) {
        let frames = frames(log.end(), 1, 1000);
        bytes += frames[0].len();
        log.append(&frames).unwrap();
    }
    assert!((16_000..18_000).contains(&bytes), "{bytes}");
}

#[test]
fn a_full_disk_still_lets_retention_make_room() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 50);
    log.close().unwrap();
    log.set_config(LogConfig {
        retention_bytes: Some(0),
        ..config()
    });
    fs.set_capacity(Some(fs.used()));
    let start = log
        .plan_retention(0, offset(40), Offset::ZERO)
        .unwrap()
        .unwrap();
    // What is known of producers may find no room; that must not keep the records from going.
    let large = Bytes::from(vec![0; 10_000]);
    assert!(log.trim(start, Some(large)).unwrap().bytes_removed > 0);
    assert_eq!(log.start(), start);
    log.append(&frames(log.end(), 1, 100)).unwrap();
    sync(&mut log).unwrap();
    fs.power_loss();
    assert_eq!(open(&fs).0.start(), start);
}

#[test]
fn a_machine_that_was_restarted_impairs_a_log_that_does_not_sync_and_no_other() {
    for flush in [Flush::Os, Flush::Fsync] {
        let fs = disk(0);
        let (mut log, _) = filled(&fs, 5);
        log.close().unwrap();
        drop(log);
        fs.power_loss();
        let mut options = LogOptions::from(LogConfig { flush, ..config() });
        options.machine_restarted = true;
        let (log, report) = try_open(&fs, options).unwrap();
        let reason = report.impairment.map(|note| note.reason);
        let expected = (flush == Flush::Os).then_some(ImpairmentReason::PowerLost);
        assert_eq!(reason, expected, "{flush:?}");
        // And it stays so over a restart of the process alone.
        drop(log);
        assert_eq!(open(&fs).0.impairment().map(|note| note.reason), expected);
    }
}

/// Opens the log after its machine was restarted, as one that syncs each append, and says what is wrong with it.
fn after_a_power_loss(fs: &FaultyFileSystem) -> Option<ImpairmentReason> {
    fs.power_loss();
    let mut options = LogOptions::from(config());
    options.machine_restarted = true;
    let (log, _) = try_open(fs, options).unwrap();
    log.impairment().map(|note| note.reason)
}

fn os() -> LogConfig {
    LogConfig {
        flush: Flush::Os,
        ..config()
    }
}

#[test]
fn what_counted_without_a_sync_is_missed_after_a_power_loss_whatever_the_policy_is_by_then() {
    // The policy is changed while the log is open, and nothing is synced since.
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 5);
    log.set_config(os());
    log.append(&frames(log.end(), 3, 100)).unwrap();
    log.set_config(config());
    drop(log);
    assert_eq!(after_a_power_loss(&fs), Some(ImpairmentReason::PowerLost));
    // It is changed while the process is down.
    let fs = disk(0);
    let (mut log, _) = try_open(&fs, os()).unwrap();
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    log.append(&frames(log.end(), 3, 100)).unwrap();
    drop(log);
    assert_eq!(after_a_power_loss(&fs), Some(ImpairmentReason::PowerLost));
    // What was set aside takes its note along, and what begins anew counts without a sync as well.
    let fs = disk(0);
    let (mut log, _) = try_open(&fs, os()).unwrap();
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    log.set_aside("a test").unwrap();
    log.clear_impairment().unwrap();
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    drop(log);
    assert_eq!(after_a_power_loss(&fs), Some(ImpairmentReason::PowerLost));
}

#[test]
fn once_everything_is_synced_after_the_policy_has_changed_a_power_loss_is_none() {
    let fs = disk(0);
    let (mut log, _) = try_open(&fs, os()).unwrap();
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    log.append(&frames(at(0, 1), 50, 100)).unwrap();
    assert!(log.segment_count() > 2);
    let all = contents(&log);
    log.set_config(config());
    // Nothing is appended, and yet there is something to sync.
    sync(&mut log).unwrap();
    assert!(log.begin_sync().is_none());
    drop(log);
    assert_eq!(after_a_power_loss(&fs), None);
    assert_eq!(contents(&open(&fs).0), all);
    // A start syncs what it keeps, too.
    let fs = disk(0);
    let (mut log, _) = try_open(&fs, os()).unwrap();
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    drop(log);
    fs.kill();
    drop(open(&fs));
    assert_eq!(after_a_power_loss(&fs), None);
}

#[test]
fn a_log_that_vanished_is_noted_as_lost_over_restarts_until_it_is_cleared() {
    let fs = disk(0);
    let known = || LogOptions {
        known_before: true,
        ..LogOptions::from(config())
    };
    let reason = |report: &RecoveryReport| report.impairment.as_ref().map(|note| note.reason);
    let (mut log, _) = filled(&fs, 5);
    log.close().unwrap();
    drop(log);
    let (log, report) = try_open(&fs, known()).unwrap();
    assert!(!report.created && log.impairment().is_none());
    drop(log);
    fs.shared().remove_dir_all(Path::new(DIR)).unwrap();
    fs.shared().sync_dir(Path::new("/logs")).unwrap();
    for restart in 0..3 {
        let (mut log, report) = try_open(&fs, known()).unwrap();
        assert_eq!(reason(&report), Some(ImpairmentReason::Lost), "{restart}");
        assert_eq!(report.created, restart == 0);
        // What it fetches meanwhile makes it no sounder.
        log.append(&[start_frame(restart + 1, log.end())]).unwrap();
        sync(&mut log).unwrap();
        log.close().unwrap();
        drop(log);
        fs.kill();
    }
    let (mut log, _) = try_open(&fs, known()).unwrap();
    log.clear_impairment().unwrap();
    drop(log);
    assert!(try_open(&fs, known()).unwrap().0.impairment().is_none());
}

#[test]
fn an_unreadable_log_start_is_rebuilt_from_the_first_frame() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 50);
    log.set_config(LogConfig {
        retention_bytes: Some(0),
        ..config()
    });
    log.apply_retention(0, offset(20)).unwrap();
    let (start, kept) = (log.start(), contents(&log));
    log.close().unwrap();
    fs.kill();
    fs.flip_bit(&Path::new(DIR).join("log-start"), 500).unwrap();
    let (log, report) = open(&fs);
    assert!(report.start_rebuilt);
    assert_eq!((log.start(), contents(&log)), (start, kept));
}

#[test]
fn without_fsync_appends_count_at_once_and_sealed_segments_are_synced_once() {
    let fs = disk(0);
    let os = LogConfig {
        flush: Flush::Os,
        ..config()
    };
    let (mut log, _) = try_open(&fs, os.clone()).unwrap();
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    assert_eq!(log.durable_end(), at(0, 1));
    assert!(log.begin_sync().is_none());
    log.append(&frames(at(0, 1), 30, 100)).unwrap();
    assert_eq!(log.durable_end(), at(30, 1));
    sync(&mut log).unwrap();
    assert!(log.begin_sync().is_none());
    drop(log);
    fs.power_loss();
    let mut options = LogOptions::from(os);
    options.machine_restarted = true;
    let (log, report) = try_open(&fs, options).unwrap();
    assert_eq!(report.quarantined, None);
    assert_eq!(
        log.impairment().unwrap().reason,
        ImpairmentReason::PowerLost
    );
    assert!(
        log.end().offset >= offset(18),
        "sealed segments were synced: {}",
        log.end()
    );
}

#[test]
fn opening_a_closed_log_reads_only_its_last_segment() {
    let fs = disk(0);
    let (mut log, _) = filled(&fs, 500);
    log.close().unwrap();
    let segments = log.segment_count();
    drop(log);
    let (log, report) = open(&fs);
    assert_eq!(log.segment_count(), segments);
    assert!(report.bytes_scanned <= 2000, "{report:?}");
}

#[test]
fn another_partitions_directory_is_refused() {
    let fs = disk(0);
    drop(filled(&fs, 3));
    let other = TopicPartition {
        partition: PartitionIndex(1),
        ..id()
    };
    let topic = TopicName::new("t").unwrap();
    let before = fs.operations();
    assert!(matches!(
        Log::open(fs.shared(), Path::new(DIR), other, &topic, config().into()),
        Err(OpenError::ForeignPartition { .. })
    ));
    assert_eq!(fs.operations(), before);
}

#[test]
fn group_commit_runs_every_ticket_and_gives_it_back() {
    let fs = disk(0);
    let group = GroupCommit::start(2).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut logs: Vec<Log> = (0..20)
        .map(|n| {
            let id = TopicPartition {
                partition: PartitionIndex(n),
                ..id()
            };
            let dir = Path::new("/logs").join(id.to_string());
            let topic = TopicName::new("t").unwrap();
            let (mut log, _) = Log::open(fs.shared(), &dir, id, &topic, config().into()).unwrap();
            log.append(&[start_frame(1, LogPosition::START)]).unwrap();
            log
        })
        .collect();
    for (i, log) in logs.iter_mut().enumerate() {
        let sender = sender.clone();
        group.submit(log.begin_sync().unwrap(), move |ticket, outcome| {
            sender.send((i, ticket, outcome)).unwrap();
        });
    }
    for _ in 0..20 {
        let (i, ticket, outcome) = receiver.recv().unwrap();
        outcome.unwrap();
        logs[i].finish_sync(ticket);
        assert_eq!(logs[i].durable_end(), at(0, 1));
    }
    assert_eq!(group.waiting(), 0);
    drop(group);
}

#[test]
fn a_real_disk_does_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p");
    let topic = TopicName::new("t").unwrap();
    let open = || {
        Log::open(
            RealFileSystem::shared(),
            &path,
            id(),
            &topic,
            config().into(),
        )
        .unwrap()
    };
    let (mut log, report) = open();
    assert!(report.created);
    let mut all = vec![start_frame(1, LogPosition::START)];
    all.extend(frames(at(0, 1), 60, 100));
    log.append(&all).unwrap();
    sync(&mut log).unwrap();
    log.truncate(at(33, 1)).unwrap();
    log.append(&frames(at(33, 1), 10, 5)).unwrap();
    log.close().unwrap();
    let end = log.end();
    drop(log);
    let (log, report) = open();
    assert_eq!((log.end(), report.cut, report.created), (end, None, false));
    assert_eq!(contents(&log)[..34], all[..34]);
}

#[test]
fn readers_on_other_threads_see_whole_frames_while_the_log_is_written_and_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p");
    let topic = TopicName::new("t").unwrap();
    let mut options = LogOptions::from(LogConfig {
        segment_bytes: 20_000,
        retention_bytes: Some(60_000),
        ..config()
    });
    options.tail_cache_bytes = 2000;
    let (mut log, _) = Log::open(RealFileSystem::shared(), &path, id(), &topic, options).unwrap();
    log.append(&[start_frame(1, LogPosition::START)]).unwrap();
    let reader = log.reader();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut next = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let below = reader.end().offset;
                    match reader.read_records(offset(next), 4000, below) {
                        Ok(batches) => {
                            for batch in batches {
                                let base = i64::from_be_bytes(batch[27..35].try_into().unwrap());
                                assert_eq!(base as u64, next);
                                next += 1;
                            }
                        }
                        Err(ReadError::OutOfRange { start, .. }) => next = start.get(),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for _ in 0..300 {
            log.append(&frames(log.end(), 10, 100)).unwrap();
            sync(&mut log).unwrap();
            log.apply_retention(0, log.end().offset).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(log.start().offset > offset(0));
}

#[test]
fn the_bytes_behind_an_offset_are_told_without_reading_them() {
    let fs = disk(1);
    let (log, _) = filled(&fs, 60);
    let all = log.size_bytes();
    assert!(log.segment_count() > 2);
    assert_eq!(log.bytes_from(offset(0)), all);
    assert_eq!(log.bytes_from(log.end().offset), 0);
    let mut last = all;
    for from in 1..=log.end().offset.get() {
        let left = log.bytes_from(offset(from));
        assert!(left <= last, "{left} from {from}, {last} before");
        last = left;
    }
    let half = log.bytes_from(offset(log.end().offset.get() / 2));
    assert!((all / 3..=2 * all / 3).contains(&half), "{half} of {all}");
}
