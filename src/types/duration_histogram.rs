//! How long something takes, counted in fixed buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The buckets' upper ends, in µs. A bucket holds what took at most so long and longer than the one before; what took longer
/// than the last is in none of them, and counted all the same.
pub const BUCKET_ENDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// Counts durations. Any number of threads may count at a time and none ever waits.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [AtomicU64; BUCKET_ENDS_US.len()],
    beyond: AtomicU64,
    sum_us: AtomicU64,
}

/// What a [`DurationHistogram`] has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurationCounts {
    /// For each of [`BUCKET_ENDS_US`]: how many took at most so long. Never falls from one to the next.
    pub at_most: [u64; BUCKET_ENDS_US.len()],
    pub count: u64,
    pub sum: Duration,
}

impl DurationHistogram {
    pub fn record(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKET_ENDS_US.partition_point(|&end| end < us);
        let counter = self.buckets.get(bucket).unwrap_or(&self.beyond);
        counter.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was counted until now. While others count, the sum may be of a moment that is a little later than the counts'.
    pub fn counts(&self) -> DurationCounts {
        let mut count = 0;
        let at_most = std::array::from_fn(|bucket| {
            count += self.buckets[bucket].load(Ordering::Relaxed);
            count
        });
        DurationCounts {
            at_most,
            count: count + self.beyond.load(Ordering::Relaxed),
            sum: Duration::from_micros(self.sum_us.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_took_at_most_its_end() {
        let histogram = DurationHistogram::default();
        for us in [0, 100, 101, 10_000_000, 10_000_001] {
            histogram.record(Duration::from_micros(us));
        }
        let counts = histogram.counts();
        assert_eq!(counts.at_most[..3], [2, 3, 3]);
        assert_eq!(counts.at_most[14..], [3, 4]);
        assert_eq!(counts.count, 5);
        assert_eq!(counts.sum, Duration::from_micros(20_000_202));
    }
}
