//! Appending to a log on the disk that holds the temporary directory (`TMPDIR` chooses another), with and without a sync
//! after each append.

use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quorate::storage::{Flush, Log, LogConfig, RealFileSystem};
use quorate::types::{
    LeaderEpoch, LogPosition, Offset, PartitionIndex, TopicId, TopicName, TopicPartition,
};
use quorate::wal::Frame;

/// The log is begun anew at this size, so that the disk does not fill up.
const MAX_LOG_BYTES: u64 = 256 * 1024 * 1024;

fn open(dir: &Path, flush: Flush) -> Log {
    let id = TopicPartition {
        topic: TopicId::from_random_bits(1),
        partition: PartitionIndex(0),
    };
    let topic = TopicName::new("bench").expect("a topic name");
    let config = LogConfig {
        flush,
        ..LogConfig::default()
    };
    let (mut log, _) =
        Log::open(RealFileSystem::shared(), dir, id, &topic, config.into()).expect("the log opens");
    begin(&mut log);
    log
}

fn begin(log: &mut Log) {
    let epoch = LeaderEpoch::new(1).expect("1 is an epoch");
    log.append(&[Frame::epoch_start(epoch, LogPosition::START)])
        .expect("the epoch start fits");
}

fn frames(log: &mut Log, count: usize, payload: &[u8]) -> Vec<Frame> {
    if log.size_bytes() > MAX_LOG_BYTES {
        log.truncate(LogPosition::START).expect("the log is cut");
        begin(log);
    }
    let mut end = log.end();
    let frame = |_| {
        let next = Offset::new(end.offset.get() + 1).expect("an offset");
        let frame = Frame::records(end.epoch, end, next, &[payload]);
        end = frame.end();
        frame
    };
    (0..count).map(frame).collect()
}

fn log_append(criterion: &mut Criterion) {
    for (name, flush) in [("os", Flush::Os), ("fsync", Flush::Fsync)] {
        let mut group = criterion.benchmark_group(format!("append_{name}"));
        if flush == Flush::Fsync {
            group.sample_size(20);
        }
        for (count, size) in [(1, 1024), (16, 1024), (1, 64 * 1024), (16, 64 * 1024)] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let mut log = open(&dir.path().join("log"), flush);
            let payload = vec![7u8; size];
            group.throughput(Throughput::Bytes((count * size) as u64));
            group.bench_function(BenchmarkId::new(format!("{count}_frames"), size), |b| {
                let log = std::cell::RefCell::new(&mut log);
                b.iter_batched(
                    || frames(&mut log.borrow_mut(), count, &payload),
                    |frames| {
                        let mut log = log.borrow_mut();
                        log.append(&frames).expect("the frames fit");
                        if flush == Flush::Fsync
                            && let Some(ticket) = log.begin_sync()
                        {
                            ticket.run().expect("the disk syncs");
                            log.finish_sync(ticket);
                        }
                    },
                    // One at a time: each batch of frames follows the one before it.
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, log_append);
criterion_main!(benches);
