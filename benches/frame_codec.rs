//! Encoding and decoding WAL frames: one CRC-32 over the payload, and for encoding one copy of it.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quorate::types::{LeaderEpoch, LogPosition, Offset};
use quorate::wal::Frame;

fn frame_codec(criterion: &mut Criterion) {
    let epoch = LeaderEpoch::new(1).expect("1 is an epoch");
    let previous = LogPosition::new(Offset::ZERO, epoch);
    let end = Offset::new(1).expect("1 is an offset");
    for size in [1024, 64 * 1024] {
        let payload = vec![7u8; size];
        let frame = Frame::records(epoch, previous, end, &[&payload]);
        let mut group = criterion.benchmark_group("frame");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("encode", size), |bencher| {
            bencher.iter(|| {
                // A leader stamps the first 16 bytes and leaves the rest.
                let (stamp, rest) = black_box(&payload).split_at(16);
                Frame::records(epoch, previous, end, &[stamp, rest])
            });
        });
        group.bench_function(BenchmarkId::new("decode", size), |bencher| {
            bencher.iter(|| Frame::decode(black_box(frame.bytes())));
        });
        group.finish();
    }
}

criterion_group!(benches, frame_codec);
criterion_main!(benches);
