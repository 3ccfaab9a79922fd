//! Transactions in a log: what is read of them, what compaction leaves, and what a log that is opened again still knows.

use std::path::Path;

use super::faulty::FaultyFileSystem;
use super::index::MAX_ABORTED;
use super::test_frames::{at, start_frame};
use super::test_logs::id;
use super::*;
use crate::record::{
    AbortedSpan, Batch, BatchBuilder, Compression, Marker, ProducerStamp, STAMP_LEN,
    TransactionOutcome, records, stamped_prefix,
};
use crate::types::{LogPosition, Offset, ProducerId, TopicName};
use crate::wal::Frame;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn open(fs: &FaultyFileSystem) -> Log {
    let config = LogConfig {
        segment_bytes: 1000,
        retention_ms: None,
        compact: true,
        ..LogConfig::default()
    };
    let mut options = LogOptions::from(config);
    options.tail_cache_bytes = 0;
    let topic = TopicName::new("t").unwrap();
    let (mut log, report) =
        Log::open(fs.shared(), Path::new("/t-0"), id(), &topic, options).unwrap();
    assert!(report.quarantined.is_none());
    if log.end() == LogPosition::START {
        log.append(&[start_frame(1, log.end())]).unwrap();
    }
    log
}

fn sync(log: &mut Log) {
    while let Some(ticket) = log.begin_sync() {
        ticket.run().unwrap();
        log.finish_sync(ticket);
    }
}

fn put(log: &mut Log, bytes: &bytes::Bytes) -> Offset {
    let batch = Batch::decode(bytes).unwrap();
    let previous = log.end();
    let prefix = stamped_prefix(&batch, previous.offset, previous.epoch);
    let end = previous.offset.checked_add(1).unwrap();
    let rest = &batch.bytes[STAMP_LEN..];
    let frame = Frame::records(previous.epoch, previous, end, &[&prefix, rest]);
    log.append(&[frame]).unwrap();
    previous.offset
}

fn producer(id: i64) -> ProducerId {
    ProducerId::new(id).unwrap()
}

/// One record; of a producer's transaction, where one is named. Returns its offset.
fn append(log: &mut Log, key: &str, value: &str, of: Option<(i64, i32)>) -> Offset {
    let mut builder = BatchBuilder::new();
    let (key, value) = (key.as_bytes(), value.as_bytes());
    builder.append(Some(key), Some(value), &[], 1000).unwrap();
    let sealed = builder.seal(Compression::None).unwrap();
    let bytes = match of {
        None => sealed.stamp(None),
        Some((id, base_sequence)) => sealed.transactional().stamp(Some(ProducerStamp {
            id: producer(id),
            epoch: 0,
            base_sequence,
        })),
    };
    put(log, &bytes)
}

/// Ends a transaction, which had its first record at `first`. No other is open.
fn end(log: &mut Log, id: i64, outcome: TransactionOutcome, first: Offset) -> Offset {
    let stable = log.end().offset.checked_add(1).unwrap();
    let aborted = AbortedSpan { first, stable };
    let marker = Marker {
        producer: producer(id),
        producer_epoch: 0,
        coordinator_epoch: 0,
        outcome,
        aborted: Some(aborted).filter(|_| outcome == TransactionOutcome::Abort),
    };
    put(log, &marker.batch(1000))
}

fn compact(log: &mut Log, now_ms: u64, stable: Offset) {
    if let Some(job) = log.plan_compaction(now_ms, stable, log.end().offset) {
        let compacted = job.run(|| false).unwrap();
        log.finish_compaction(compacted).unwrap();
    }
}

/// Batches with what they are: the log from its start to its end.
fn batches(log: &Log) -> Vec<Batch> {
    let mut at = log.start();
    let mut found = Vec::new();
    for frame in log.frames(at).map(Result::unwrap) {
        assert_eq!(frame.start(), at, "no gap");
        at = frame.end();
        if !frame.is_epoch_start() {
            let batch = Batch::decode(&frame.payload()).unwrap();
            batch.verify_crc().unwrap();
            found.push(batch);
        }
    }
    assert_eq!(at, log.end());
    found
}

/// What a reader of committed transactions is shown of a key: its values in order.
fn shown(log: &Log, key: &str) -> Vec<String> {
    let reader = log.reader();
    let (mut from, below) = (reader.earliest(), reader.end().offset);
    let mut values = Vec::new();
    while from < below {
        let read = reader.read_committed(from, 300, below).unwrap();
        for bytes in &read.records {
            let batch = Batch::decode(bytes).unwrap();
            let header = &batch.header;
            from = Offset::from_wire(header.next_offset()).unwrap();
            let base = Offset::from_wire(header.base_offset).unwrap();
            let aborted = header.is_transactional()
                && header
                    .producer_id
                    .is_some_and(|id| read.aborted.iter().any(|a| a.covers(id, base)));
            if header.is_control() || aborted {
                continue;
            }
            for record in records(&batch).unwrap().map(Result::unwrap) {
                if record.key.as_deref() == Some(key.as_bytes()) {
                    values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
                }
            }
        }
        if read.records.is_empty() {
            break;
        }
    }
    values
}

fn markers(log: &Log) -> Vec<i64> {
    let batches = batches(log).into_iter();
    let markers = batches.filter(|batch| batch.header.is_control());
    markers.map(|batch| batch.header.base_offset).collect()
}

#[test]
fn an_aborted_transaction_is_named_wherever_a_read_meets_it() {
    let fs = FaultyFileSystem::new(1);
    let mut log = open(&fs);
    let first = append(&mut log, "k", "aborted", Some((7, 0)));
    // Over several segments.
    for i in 0..40 {
        append(&mut log, "k", &i.to_string(), None);
    }
    let last = append(&mut log, "k", "aborted too", Some((7, 1)));
    let marker = end(&mut log, 7, TransactionOutcome::Abort, first);
    let again = append(&mut log, "k", "committed", Some((7, 2)));
    end(&mut log, 7, TransactionOutcome::Commit, again);
    sync(&mut log);
    assert!(log.segment_count() > 3);
    let expected = || {
        (0..40)
            .map(|i| i.to_string())
            .chain(["committed".to_owned()])
    };
    assert_eq!(shown(&log, "k"), expected().collect::<Vec<_>>());
    let check = |log: &Log| {
        let reader = log.reader();
        for from in [first, last] {
            let below = last.checked_add(1).unwrap();
            let read = reader.read_committed(from, 1, below).unwrap();
            let [aborted] = &read.aborted[..] else {
                panic!("{read:?}")
            };
            assert_eq!((aborted.first, aborted.last), (first, marker));
        }
        let end = log.end().offset;
        assert_eq!(reader.read_committed(again, 1000, end).unwrap().aborted, []);
    };
    check(&log);
    // From the files of the indexes, and without them.
    log.close().unwrap();
    drop(log);
    check(&open(&fs));
    for entry in fs.list(Path::new("/t-0")).unwrap() {
        if entry.name.ends_with(".idx") {
            let path = Path::new("/t-0").join(&entry.name);
            fs.remove_file(&path).unwrap();
        }
    }
    let log = open(&fs);
    check(&log);
    assert_eq!(shown(&log, "k"), expected().collect::<Vec<_>>());
}

#[test]
fn a_segment_names_so_many_aborted_transactions_and_no_more() {
    let fs = FaultyFileSystem::new(2);
    let mut log = open(&fs);
    log.set_config(LogConfig {
        segment_bytes: 1 << 30,
        ..LogConfig::default()
    });
    for i in 0..3 * MAX_ABORTED as i32 {
        let first = append(&mut log, "k", "v", Some((7, i)));
        end(&mut log, 7, TransactionOutcome::Abort, first);
    }
    sync(&mut log);
    assert_eq!(log.segment_count(), 3);
    assert_eq!(shown(&log, "k"), Vec::<String>::new());
    let reader = log.reader();
    let all = reader.read_committed(Offset::ZERO, usize::MAX, log.end().offset);
    assert!(!all.unwrap().aborted.is_empty());
}

#[test]
fn compaction_takes_what_was_aborted_and_leaves_what_was_committed_as_plain_records() {
    let fs = FaultyFileSystem::new(3);
    let mut log = open(&fs);
    append(&mut log, "a", "kept", None);
    let first = append(&mut log, "a", "aborted", Some((7, 0)));
    let early = end(&mut log, 7, TransactionOutcome::Abort, first);
    append(&mut log, "b", "old", None);
    let first = append(&mut log, "b", "new", Some((8, 0)));
    end(&mut log, 8, TransactionOutcome::Commit, first);
    let first = append(&mut log, "a", "aborted again", Some((7, 1)));
    let late = end(&mut log, 7, TransactionOutcome::Abort, first);
    for i in 0..60 {
        append(&mut log, &format!("filler {i}"), "x", None);
    }
    sync(&mut log);
    let before = (shown(&log, "a"), shown(&log, "b"));
    assert_eq!(before.0, ["kept"]);
    assert_eq!(before.1, ["old", "new"]);
    let all_markers = markers(&log);
    assert_eq!(all_markers.len(), 3);

    let stable = log.end().offset;
    compact(&mut log, 2000, stable);
    assert_eq!(shown(&log, "a"), ["kept"]);
    assert_eq!(shown(&log, "b"), ["new"]);
    // Their markers stay for those who were away.
    assert_eq!(markers(&log), all_markers);
    for batch in batches(&log) {
        assert!(batch.header.is_control() || !batch.header.is_transactional());
    }
    log.close().unwrap();
    drop(log);
    let mut log = open(&fs);
    assert_eq!(shown(&log, "b"), ["new"]);

    // In their time they go, but for the last of each producer.
    for (now, expected) in [(2000 + DAY_MS - 1, 3), (2000 + DAY_MS, 2)] {
        for i in 0..60 {
            append(&mut log, &format!("filler {i}"), "y", None);
        }
        sync(&mut log);
        let stable = log.end().offset;
        compact(&mut log, now, stable);
        let left = markers(&log);
        assert_eq!(left.len(), expected, "at {now}");
        assert_eq!(left.contains(&early.to_wire()), expected == 3);
        assert!(left.contains(&late.to_wire()), "{left:?}");
        let shown = (shown(&log, "a"), shown(&log, "b"));
        assert_eq!(shown, (vec!["kept".to_owned()], vec!["new".to_owned()]));
    }
}

/// However old everything is, a replica that has half of a transaction learns how it ended from a leader that compacts meanwhile.
#[test]
fn a_pass_takes_what_was_aborted_and_leaves_its_marker_to_those_who_have_the_records() {
    let fs = FaultyFileSystem::new(5);
    let mut log = open(&fs);
    append(&mut log, "a", "kept", None);
    let first = append(&mut log, "a", "aborted", Some((7, 0)));
    let held: Vec<Frame> = log.frames(log.start()).map(Result::unwrap).collect();
    end(&mut log, 7, TransactionOutcome::Abort, first);
    let second = append(&mut log, "b", "committed", Some((7, 1)));
    end(&mut log, 7, TransactionOutcome::Commit, second);
    for i in 0..60 {
        append(&mut log, &format!("filler {i}"), "x", None);
    }
    sync(&mut log);
    let stable = log.end().offset;
    compact(&mut log, 1000 + 30 * DAY_MS, stable);

    let other = FaultyFileSystem::new(6);
    let mut replica = open(&other);
    replica.append(&held[1..]).unwrap();
    let rest: Vec<Frame> = log.frames(replica.end()).map(Result::unwrap).collect();
    replica.append(&rest).unwrap();
    sync(&mut replica);
    for log in [&mut log, &mut replica] {
        assert_eq!(shown(log, "a"), ["kept"]);
        assert_eq!(shown(log, "b"), ["committed"]);
        compact(log, 1000 + 30 * DAY_MS, stable);
        assert_eq!(shown(log, "a"), ["kept"]);
    }
}

#[test]
fn what_is_not_decided_is_not_compacted() {
    let fs = FaultyFileSystem::new(4);
    let mut log = open(&fs);
    append(&mut log, "a", "old", None);
    for i in 0..30 {
        append(&mut log, &format!("filler {i}"), "x", None);
    }
    let first = append(&mut log, "a", "undecided", Some((7, 0)));
    for i in 0..30 {
        append(&mut log, &format!("filler {i}"), "y", None);
    }
    sync(&mut log);
    compact(&mut log, 0, first);
    let held: Vec<String> = batches(&log)
        .iter()
        .flat_map(|batch| {
            records(batch)
                .unwrap()
                .map(Result::unwrap)
                .collect::<Vec<_>>()
        })
        .filter(|record| record.key.as_deref() == Some(b"a"))
        .map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap())
        .collect();
    assert_eq!(held, ["old", "undecided"]);
    assert!(matches!(
        log.read(at(first.get(), 9), 1),
        Err(ReadError::NoSuchPosition { .. })
    ));
    end(&mut log, 7, TransactionOutcome::Abort, first);
    for i in 0..30 {
        append(&mut log, &format!("filler {i}"), "z", None);
    }
    sync(&mut log);
    let stable = log.end().offset;
    compact(&mut log, 0, stable);
    assert_eq!(shown(&log, "a"), ["old"]);
}

/// Keys of the crash test.
const KEYS: usize = 4;

/// Plain records, aborted and committed transactions, one after the other. Returns the next sequence numbers.
fn mix(log: &mut Log, count: usize, sequence: &mut i32) {
    for i in 0..count {
        let key = format!("k{}", i % KEYS);
        let value = format!("{}", log.end().offset);
        match i % 3 {
            0 => {
                append(log, &key, &value, None);
            }
            1 => {
                let first = append(log, &key, "aborted", Some((7, *sequence)));
                end(log, 7, TransactionOutcome::Abort, first);
            }
            _ => {
                let first = append(log, &key, &value, Some((8, *sequence)));
                end(log, 8, TransactionOutcome::Commit, first);
            }
        }
        *sequence += 1;
    }
    sync(log);
}

fn last_shown(log: &Log) -> Vec<Option<String>> {
    let keys = (0..KEYS).map(|key| format!("k{key}"));
    keys.map(|key| {
        let shown = shown(log, &key);
        assert!(!shown.contains(&"aborted".to_owned()), "{key}: {shown:?}");
        shown.last().cloned()
    })
    .collect()
}

#[test]
fn what_was_aborted_is_shown_to_nobody_whenever_a_compaction_crashes() {
    let mut points = 0;
    for point in 1.. {
        let mut reached = false;
        for power in [false, true] {
            let fs = FaultyFileSystem::new(point % 3);
            let mut log = open(&fs);
            let mut sequence = 0;
            mix(&mut log, 30, &mut sequence);
            let stable = log.end().offset;
            compact(&mut log, 2000, stable);
            mix(&mut log, 40, &mut sequence);
            let expected = last_shown(&log);
            let stable = log.end().offset;
            // The first markers may go now; the others are met for the first time.
            let now = 2000 + DAY_MS;
            let job = log.plan_compaction(now, stable, stable).unwrap();
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
            let mut log = open(&fs);
            assert_eq!(last_shown(&log), expected, "point {point}, power {power}");
            assert_eq!(log.end().offset, stable);
            for now in [now, now + DAY_MS] {
                mix(&mut log, 30, &mut sequence);
                let expected = last_shown(&log);
                let stable = log.end().offset;
                compact(&mut log, now, stable);
                assert_eq!(last_shown(&log), expected, "point {point}, power {power}");
            }
        }
        if !reached {
            break;
        }
        points = point;
    }
    assert!(points > 10, "{points}");
}
