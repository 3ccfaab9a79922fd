//! Compaction on a disk that fails on purpose: what is read last of each key is there before, during and after.

use std::collections::BTreeMap;
use std::path::Path;

use super::faulty::FaultyFileSystem;
use super::test_frames::{at, epoch, start_frame};
use super::test_logs::{disk, id};
use super::*;
use crate::record::{
    Batch, BatchBuilder, Compression, ProducerStamp, STAMP_LEN, records, stamped_prefix,
};
use crate::types::{LogPosition, Offset, ProducerId, TopicName};
use crate::wal::Frame;
use crate::wire::MAX_SNAPSHOT_BATCHES;

const DIR: &str = "/logs/t-0";
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 2000,
        retention_ms: None,
        compact: true,
        ..LogConfig::default()
    }
}

fn open(fs: &FaultyFileSystem) -> (Log, RecoveryReport) {
    let mut options = LogOptions::from(config());
    options.tail_cache_bytes = 0;
    let topic = TopicName::new("t").unwrap();
    Log::open(fs.shared(), Path::new(DIR), id(), &topic, options).unwrap()
}

fn sync(log: &mut Log) {
    while let Some(ticket) = log.begin_sync() {
        ticket.run().unwrap();
        log.finish_sync(ticket);
    }
}

type Pair<'a> = (&'a str, Option<&'a str>);

/// One batch after `previous`, as a leader appends it.
fn batch(
    previous: LogPosition,
    pairs: &[Pair<'_>],
    compression: Compression,
    producer: Option<ProducerStamp>,
) -> Frame {
    let mut builder = BatchBuilder::new();
    for (key, value) in pairs {
        builder
            .append(Some(key.as_bytes()), value.map(str::as_bytes), &[], 1000)
            .unwrap();
    }
    let batch = Batch::decode(&builder.seal(compression).unwrap().stamp(producer)).unwrap();
    let prefix = stamped_prefix(&batch, previous.offset, previous.epoch);
    let end = previous.offset.checked_add(pairs.len() as u64).unwrap();
    Frame::records(
        previous.epoch,
        previous,
        end,
        &[&prefix, &batch.bytes[STAMP_LEN..]],
    )
}

fn append(log: &mut Log, pairs: &[Pair<'_>]) {
    let frame = batch(log.end(), pairs, Compression::None, None);
    log.append(&[frame]).unwrap();
}

fn begin(log: &mut Log, e: u32) {
    log.append(&[start_frame(e, log.end())]).unwrap();
}

/// `count` batches of one record, over `keys` keys, of which each fifth is a tombstone; epochs begin on the way.
fn fill(log: &mut Log, count: usize, keys: usize) {
    if log.end() == LogPosition::START {
        begin(log, 1);
    }
    for i in 0..count {
        if i % 40 == 39 {
            begin(log, log.end().epoch.get() + 1);
        }
        let key = format!("key {}", i * 7 % keys);
        let value = format!("value {i} {}", "x".repeat(i % 50));
        append(log, &[(&key, Some(&*value).filter(|_| i % 5 != 4))]);
    }
    sync(log);
}

fn compact(log: &mut Log, now_ms: u64) -> Option<CompactionReport> {
    let job = log.plan_compaction(now_ms, log.end().offset, log.end().offset)?;
    let compacted = job.run(|| false).unwrap();
    Some(log.finish_compaction(compacted).unwrap())
}

/// Every record by its offset: key and value.
fn all(log: &Log) -> BTreeMap<i64, (String, Option<String>)> {
    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let mut found = BTreeMap::new();
    let mut end = log.start();
    for frame in log.frames(log.start()) {
        let frame = frame.unwrap();
        assert_eq!(frame.start(), end, "no gap");
        end = frame.end();
        if frame.is_epoch_start() {
            continue;
        }
        let batch = Batch::decode(&frame.payload()).unwrap();
        batch.verify_crc().unwrap();
        assert_eq!(batch.header.base_offset, frame.base_offset().to_wire());
        assert_eq!(batch.header.next_offset(), frame.end_offset().to_wire());
        for record in records(&batch).unwrap() {
            let record = record.unwrap();
            let value = (text(record.key.unwrap()), record.value.map(text));
            assert_eq!(found.insert(record.offset, value), None);
        }
    }
    assert_eq!(end, log.end());
    found
}

/// What is known of each key in the end; nothing of one that was deleted.
fn last_values(log: &Log) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (_, (key, value)) in all(log) {
        match value {
            Some(value) => found.insert(key, value),
            None => found.remove(&key),
        };
    }
    found
}

#[test]
fn of_each_key_the_last_record_is_kept_and_the_log_has_no_gap() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    fill(&mut log, 300, 20);
    let (before, values) = (all(&log), last_values(&log));
    let (end, epochs) = (log.end(), log.epochs().clone());
    let segments = log.segment_count();
    assert!(segments > 8, "{segments}");

    let report = compact(&mut log, 0).unwrap();
    assert_eq!(report.segments_before, segments - 1);
    assert!(report.bytes_after * 3 < report.bytes_before, "{report:?}");
    assert_eq!((log.end(), log.epochs()), (end, &epochs));
    let after = all(&log);
    assert_eq!(last_values(&log), values);
    for (offset, record) in &after {
        assert_eq!(before.get(offset), Some(record));
    }
    // Below the active segment each key is there once at most.
    let active = log.active_base().to_wire();
    let mut keys: Vec<&str> = after
        .range(..active)
        .map(|(_, (key, _))| key.as_str())
        .collect();
    let kept = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), kept);

    assert!(compact(&mut log, 0).is_none(), "nothing has come since");
    drop(log);
    let (mut log, report) = open(&fs);
    assert_eq!((report.cut, report.quarantined), (None, None));
    assert_eq!(all(&log), after);
    assert_eq!((log.end(), log.epochs()), (end, &epochs));

    // Again and again: it does not grow.
    let size = log.size_bytes();
    for _ in 0..5 {
        fill(&mut log, 300, 20);
        compact(&mut log, 0).unwrap();
    }
    let values = last_values(&log);
    compact(&mut log, 0);
    assert_eq!(last_values(&log), values);
    assert!(
        log.size_bytes() < 3 * size,
        "{} after {size}",
        log.size_bytes()
    );
    let after = log.segment_count();
    assert!(after < 2 * segments, "{after} after {segments}");
}

#[test]
fn nothing_that_is_not_committed_or_still_active_is_touched() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    fill(&mut log, 100, 5);
    assert!(log.plan_compaction(0, Offset::ZERO, Offset::ZERO).is_none());
    let middle = Offset::new(50).unwrap();
    let before = all(&log);
    let job = log.plan_compaction(0, middle, middle).unwrap();
    log.finish_compaction(job.run(|| false).unwrap()).unwrap();
    let after = all(&log);
    assert!(after.len() < before.len());
    for (offset, record) in before.range(50..) {
        assert_eq!(after.get(offset), Some(record));
    }
}

#[test]
fn a_log_that_is_not_to_be_compacted_is_not() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    fill(&mut log, 100, 5);
    log.set_config(LogConfig {
        compact: false,
        ..config()
    });
    assert!(
        log.plan_compaction(0, log.end().offset, log.end().offset)
            .is_none()
    );
}

#[test]
fn a_tombstone_goes_when_its_time_is_over_and_not_before() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    begin(&mut log, 1);
    append(&mut log, &[("gone", Some("a value"))]);
    append(&mut log, &[("gone", None)]);
    fill(&mut log, 100, 3);
    let is_there = |log: &Log| all(log).values().any(|(key, _)| key == "gone");
    compact(&mut log, 1_000_000).unwrap();
    let of_key: Vec<_> = all(&log)
        .into_values()
        .filter(|(key, _)| key == "gone")
        .collect();
    assert_eq!(of_key, [("gone".to_owned(), None)]);
    for (now, expected) in [
        (1_000_000 + DAY_MS - 1, true),
        (1_000_000 + DAY_MS + 1, false),
    ] {
        fill(&mut log, 300, 3);
        compact(&mut log, now).unwrap();
        assert_eq!(is_there(&log), expected, "at {now}");
    }
}

#[test]
fn a_reader_in_the_middle_of_what_was_joined_gets_the_rest() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    fill(&mut log, 200, 10);
    let places: Vec<LogPosition> = log
        .frames(log.start())
        .map(|frame| frame.unwrap().start())
        .collect();
    compact(&mut log, 0).unwrap();
    let after = all(&log);
    let mut inside = 0;
    for from in places {
        let frames = log.read(from, 1).unwrap();
        let [frame] = &frames[..] else {
            panic!("one frame from {from}, not {}", frames.len())
        };
        assert_eq!(frame.start(), from);
        let whole = log.frames(log.start()).map(Result::unwrap);
        let is_whole = whole.into_iter().any(|whole| whole == *frame);
        inside += usize::from(!is_whole);
        // What the log holds behind it, from here to the end.
        let mut found = Vec::new();
        for frame in log.frames(from) {
            let frame = frame.unwrap();
            if !frame.is_epoch_start() {
                let batch = Batch::decode(&frame.payload()).unwrap();
                batch.verify_crc().unwrap();
                found.extend(
                    records(&batch)
                        .unwrap()
                        .map(|record| record.unwrap().offset),
                );
            }
        }
        let expected: Vec<i64> = after
            .range(from.offset.to_wire()..)
            .map(|(offset, _)| *offset)
            .collect();
        assert_eq!(found, expected, "from {from}");
    }
    assert!(inside > 20, "{inside}");
    // Another history is none of this one's middle.
    assert!(matches!(
        log.read(at(5, 7), 1),
        Err(ReadError::NoSuchPosition { .. })
    ));
}

#[test]
fn a_log_that_is_sent_from_any_place_is_the_same_log() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    fill(&mut log, 200, 10);
    let originals: Vec<Frame> = log.frames(log.start()).map(Result::unwrap).collect();
    compact(&mut log, 0).unwrap();
    let values = last_values(&log);
    for held in [1, 7, 50, 90, 150, originals.len()] {
        let other = disk(1);
        let (mut follower, _) = open(&other);
        follower.append(&originals[..held]).unwrap();
        let rest: Vec<Frame> = log.frames(follower.end()).map(Result::unwrap).collect();
        follower.append(&rest).unwrap();
        assert_eq!(follower.end(), log.end());
        assert_eq!(follower.epochs(), log.epochs());
        assert_eq!(last_values(&follower), values, "after {held} frames");
        sync(&mut follower);
        compact(&mut follower, 0);
        assert_eq!(last_values(&follower), values);
    }
}

#[test]
fn a_producers_last_batches_stay_and_are_known_by_their_numbers() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    begin(&mut log, 1);
    let mut sent = Vec::new();
    for sequence in 0..30 {
        for producer in [8, 9] {
            let stamp = ProducerStamp {
                id: ProducerId::new(producer).unwrap(),
                epoch: 2,
                base_sequence: sequence * 2,
            };
            let pairs = [("a", Some("first")), ("b", Some("second"))];
            let codec = [Compression::None, Compression::Lz4][sequence as usize % 2];
            let frame = batch(log.end(), &pairs, codec, Some(stamp));
            sent.push((producer, sequence * 2, frame.base_offset()));
            log.append(&[frame]).unwrap();
        }
    }
    fill(&mut log, 100, 3);
    compact(&mut log, 0).unwrap();
    let kept: Vec<_> = log
        .frames(log.start())
        .map(Result::unwrap)
        .filter(|frame| !frame.is_epoch_start())
        .filter_map(|frame| {
            let header = Batch::decode(&frame.payload()).unwrap().header;
            assert!(header.producer_id.is_none() || header.last_offset_delta == 1);
            Some((
                header.producer_id?.get(),
                header.base_sequence,
                frame.base_offset(),
            ))
        })
        .collect();
    assert_eq!(kept, sent[sent.len() - 2 * MAX_SNAPSHOT_BATCHES..]);
}

#[test]
fn more_keys_than_fit_are_compacted_in_several_passes() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    fill(&mut log, 300, 40);
    let values = last_values(&log);
    let mut passes = 0;
    let before = all(&log).len();
    while let Some(mut job) = log.plan_compaction(0, log.end().offset, log.end().offset) {
        job.remember_at_most(15);
        log.finish_compaction(job.run(|| false).unwrap()).unwrap();
        assert_eq!(last_values(&log), values);
        passes += 1;
        assert!(passes < 100);
    }
    assert!(passes > 2, "{passes}");
    assert!(all(&log).len() * 2 < before);
}

#[test]
fn a_compaction_survives_a_crash_at_every_point() {
    let prepare = |seed| {
        let fs = disk(seed);
        let (mut log, _) = open(&fs);
        fill(&mut log, 120, 8);
        compact(&mut log, 0).unwrap();
        fill(&mut log, 200, 8);
        (fs, log)
    };
    let mut points = 0;
    for point in 1.. {
        let mut reached = false;
        for power in [false, true] {
            let seed = point % 3;
            let (fs, mut log) = prepare(seed);
            let (values, end) = (last_values(&log), log.end());
            let epochs = log.epochs().clone();
            let job = log
                .plan_compaction(0, log.end().offset, log.end().offset)
                .unwrap();
            fs.crash_after(point);
            if let Ok(compacted) = job.run(|| false) {
                let _ = log.finish_compaction(compacted);
            }
            reached |= fs.has_crashed();
            drop(log);
            match power {
                true => fs.power_loss(),
                false => fs.kill(),
            }
            let (mut log, report) = open(&fs);
            let case = format!("point {point}, power {power}, seed {seed}");
            assert_eq!(report.quarantined, None, "{case}");
            assert_eq!(report.cut, None, "{case}");
            assert_eq!((log.end(), log.epochs()), (end, &epochs), "{case}");
            assert_eq!(last_values(&log), values, "{case}");
            let names = fs.list(Path::new(DIR)).unwrap();
            assert!(
                !names.iter().any(|entry| entry.name.ends_with(".new")),
                "{case}: {names:?}"
            );
            // And it goes on from there.
            fill(&mut log, 60, 8);
            let values = last_values(&log);
            compact(&mut log, 0);
            assert_eq!(last_values(&log), values, "{case}");
        }
        if !reached {
            break;
        }
        points = point;
    }
    assert!(points > 20, "{points}");
}

#[test]
fn what_happens_to_a_log_meanwhile_makes_a_compaction_void() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    fill(&mut log, 200, 8);
    let job = log
        .plan_compaction(0, log.end().offset, log.end().offset)
        .unwrap();
    let compacted = job.run(|| false).unwrap();
    log.truncate(LogPosition::new(Offset::new(20).unwrap(), epoch(1)))
        .unwrap();
    let before = all(&log);
    log.finish_compaction(compacted).unwrap();
    let after = all(&log);
    assert!(after.len() <= before.len());
    assert_eq!(log.end().offset.get(), 20);
    drop(log);

    // A log that was opened anew is another one.
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    fill(&mut log, 200, 8);
    let before = all(&log);
    let job = log
        .plan_compaction(0, log.end().offset, log.end().offset)
        .unwrap();
    let compacted = job.run(|| false).unwrap();
    drop(log);
    let (mut log, _) = open(&fs);
    let report = log.finish_compaction(compacted).unwrap();
    assert_eq!(report, CompactionReport::default());
    assert_eq!(all(&log), before);
}

#[test]
fn readers_on_other_threads_see_old_or_new_and_nothing_else() {
    let fs = disk(0);
    let (mut log, _) = open(&fs);
    fill(&mut log, 200, 8);
    let reader = log.reader();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let (mut from, end) = (Offset::ZERO, reader.end().offset);
                while from < end {
                    let read = reader.read_records(from, 300, end).unwrap();
                    let Some(last) = read.last() else { break };
                    let header = Batch::decode(last).unwrap().header;
                    from = Offset::from_wire(header.next_offset()).unwrap();
                }
                // What was the end may by now lie within what was joined; it is then read with the next watermark.
                assert!(from == end || reader.end().offset > end, "{from} of {end}");
            }
        });
        for _ in 0..20 {
            compact(&mut log, 0);
            fill(&mut log, 40, 8);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
