//! How long the way to another node and back takes, and how much that varies.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Before anything was measured.
const UNKNOWN: RoundTrip = RoundTrip {
    smoothed_us: 50_000,
    variance_us: 25_000,
};

/// Smoothed round trip and its mean deviation, as RFC 6298 computes them: of each new sample an eighth goes into the mean and
/// a quarter into the deviation. In µs, because it is also what a heartbeat carries.
///
/// Samples are whole calls. What QUIC needed to send something again is in them, and so is what a busy machine needed to
/// answer: both delay the next sign of life just as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RoundTrip {
    pub(super) smoothed_us: u64,
    pub(super) variance_us: u64,
}

impl Default for RoundTrip {
    /// The guess that holds until something is measured.
    fn default() -> Self {
        UNKNOWN
    }
}

impl RoundTrip {
    /// The first sample: half of it stands in for the deviation.
    pub(super) fn first(sample: Duration) -> RoundTrip {
        let sample = micros(sample);
        RoundTrip {
            smoothed_us: sample,
            variance_us: sample / 2,
        }
    }

    /// Takes in a further sample.
    pub(super) fn add(&mut self, sample: Duration) {
        let sample = micros(sample);
        let deviation = self.smoothed_us.abs_diff(sample);
        // The sums cannot overflow: each is at most the larger of what it is made of.
        self.variance_us = self.variance_us - self.variance_us / 4 + deviation / 4;
        self.smoothed_us = self.smoothed_us - self.smoothed_us / 8 + sample / 8;
    }

    pub(super) fn smoothed(self) -> Duration {
        Duration::from_micros(self.smoothed_us)
    }

    pub(super) fn variance(self) -> Duration {
        Duration::from_micros(self.variance_us)
    }
}

/// More than an hour is an hour: nothing waits that long.
fn micros(time: Duration) -> u64 {
    const MAX: u64 = 3_600_000_000;
    u64::try_from(time.as_micros()).map_or(MAX, |micros| micros.min(MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_samples_and_forgets_a_single_late_one() {
        let ms = Duration::from_millis;
        let mut rtt = RoundTrip::first(ms(80));
        assert_eq!((rtt.smoothed(), rtt.variance()), (ms(80), ms(40)));
        for _ in 0..60 {
            rtt.add(ms(200));
        }
        assert!(rtt.smoothed() > ms(198) && rtt.smoothed() <= ms(200));
        assert!(rtt.variance() < ms(5));
        rtt.add(ms(600));
        assert!(rtt.smoothed() < ms(260) && rtt.variance() > ms(90));
        for _ in 0..40 {
            rtt.add(ms(200));
        }
        assert!(rtt.variance() < ms(10));
        rtt.add(Duration::MAX);
        assert!(rtt.smoothed() < Duration::from_secs(3600));
    }
}
