//! How long a partition takes to open: its log's recovery, and the replay that tells its producers.
//!
//! `QUORATE_BENCH_BYTES` says how large the log is, 256 MiB unless told otherwise; `TMPDIR` where it is made.

// What it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate::partition::{Partition, PartitionOptions};
use quorate::record::{BatchBuilder, Compression, ProducerStamp};
use quorate::storage::{Flush, Log, LogConfig, LogOptions, RealFileSystem};
use quorate::types::{
    Appointment, DirectoryId, Incarnation, LeaderEpoch, LogPosition, NodeId, Offset,
    PartitionIndex, ProducerId, TopicId, TopicName, TopicPartition,
};
use quorate::wal::Frame;

const BATCH_BYTES: usize = 16 * 1024;

fn id() -> TopicPartition {
    TopicPartition {
        topic: TopicId::from_random_bits(1),
        partition: PartitionIndex(0),
    }
}

/// Opens the log, then the partition on it; how long each took, and how many bytes recovery read.
fn open(dir: &Path) -> (Partition, Duration, Duration, u64) {
    let options = LogOptions::from(LogConfig {
        flush: Flush::Os,
        ..LogConfig::default()
    });
    let begin = Instant::now();
    let topic = TopicName::new("t").unwrap();
    let (log, report) = Log::open(RealFileSystem::shared(), dir, id(), &topic, options).unwrap();
    let recovered = begin.elapsed();
    let options = PartitionOptions {
        id: id(),
        me: Appointment {
            node: NodeId::new(1).unwrap(),
            directory: DirectoryId::from_random_bits(1),
            incarnation: Incarnation::from_random_bits(1),
        },
        promised: LeaderEpoch::NONE,
        high_watermark: Offset::ZERO,
        first_session: 1,
    };
    let begin = Instant::now();
    let partition = Partition::new(options, log);
    (partition, recovered, begin.elapsed(), report.bytes_scanned)
}

fn fill(dir: &Path, bytes: u64) {
    let topic = TopicName::new("t").unwrap();
    let config = LogConfig {
        flush: Flush::Os,
        ..LogConfig::default()
    };
    let (mut log, _) =
        Log::open(RealFileSystem::shared(), dir, id(), &topic, config.into()).unwrap();
    let mut builder = BatchBuilder::new();
    let value = Bytes::from(vec![b'x'; BATCH_BYTES]);
    builder.append(None, Some(&value), &[], 0).unwrap();
    let sealed = builder.seal(Compression::None).unwrap();
    let batch = sealed.stamp(Some(ProducerStamp {
        id: ProducerId::new(1).unwrap(),
        epoch: 0,
        base_sequence: 0,
    }));
    let epoch = LeaderEpoch::new(1).unwrap();
    log.append(&[Frame::epoch_start(epoch, LogPosition::START)])
        .unwrap();
    while log.size_bytes() < bytes {
        let end = log.end().offset.checked_add(1).unwrap();
        log.append(&[Frame::records(epoch, log.end(), end, &[&batch])])
            .unwrap();
    }
    log.close().unwrap();
}

fn main() {
    let bytes = std::env::var("QUORATE_BENCH_BYTES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(256 << 20);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    fill(&dir, bytes);
    let tell = |what: &str, opened: &(Partition, Duration, Duration, u64)| {
        let (_, recovery, replay, scanned) = opened;
        println!(
            "{what}: recovery {recovery:.1?} ({} MiB read), producers {replay:.1?}",
            scanned >> 20
        );
    };
    println!("a log of {} MiB", bytes >> 20);
    let without = open(&dir);
    tell("no snapshot", &without);
    let (_, mut log) = without.0.close();
    log.close().unwrap();
    drop(log);
    tell("after a clean stop", &open(&dir));
}
