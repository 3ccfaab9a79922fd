//! The ack tracker with 10,000 waiting produces: one cumulative ack completes a hundred of them, and a hundred new ones
//! take their place.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use quorate::replication::{AckTracker, ProduceTicket};
use quorate::types::{MonotonicTime, Offset};

const WAITING: u64 = 10_000;
const STEP: u64 = 100;

fn offset(offset: u64) -> Offset {
    Offset::new(offset).unwrap_or(Offset::MAX)
}

fn wait(tracker: &mut AckTracker, record: u64) {
    tracker.wait(
        ProduceTicket(record),
        offset(record),
        offset(record + 1),
        MonotonicTime::from_micros(30_000_000 + record),
    );
}

fn full() -> AckTracker {
    let mut tracker = AckTracker::new();
    for record in 0..WAITING {
        wait(&mut tracker, record);
    }
    tracker
}

fn ack_tracker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ack_tracker/10000_waiting");

    group.throughput(Throughput::Elements(STEP));
    let mut tracker = full();
    let mut next = WAITING;
    group.bench_function("advance_100_and_refill", |bencher| {
        bencher.iter(|| {
            let mut done = 0;
            tracker.advance(offset(next - WAITING + STEP), |_, _| done += 1);
            for record in next..next + STEP {
                wait(&mut tracker, record);
            }
            next += STEP;
            assert_eq!(done, STEP);
        });
    });

    group.throughput(Throughput::Elements(WAITING));
    group.bench_function("complete_all_at_once", |bencher| {
        bencher.iter_batched(
            full,
            |mut tracker| {
                tracker.advance(offset(WAITING), |_, _| {});
                tracker
            },
            BatchSize::LargeInput,
        );
    });

    group.throughput(Throughput::Elements(1));
    let mut idle = full();
    group.bench_function("expire_nothing", |bencher| {
        bencher.iter(|| {
            idle.expire(MonotonicTime::from_micros(1), |_| unreachable!());
        });
    });
    group.finish();
}

criterion_group!(benches, ack_tracker);
criterion_main!(benches);
