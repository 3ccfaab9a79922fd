//! How long things took: a histogram of three digits, from 1 µs to an hour.

use std::time::Duration;

use hdrhistogram::{CreationError, Histogram};

/// Longer times are counted as this long, in µs.
const MAX_US: u64 = 3_600_000_000;
/// Points of a distribution that is drawn: each percent, and then within the last one.
const LAST_SHARES: [f64; 8] = [
    0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999, 0.99995, 0.99999,
];

#[derive(Clone, Debug)]
pub struct Times {
    us: Histogram<u64>,
}

impl Times {
    pub fn new() -> Result<Times, CreationError> {
        Ok(Times {
            us: Histogram::new_with_bounds(1, MAX_US, 3)?,
        })
    }

    pub fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.us.saturating_record(us.min(MAX_US));
    }

    /// Takes in what others have recorded.
    pub fn add(&mut self, others: &Times) {
        // All have the same bounds, so that nothing is out of them.
        let _ = self.us.add(&others.us);
    }

    pub fn count(&self) -> u64 {
        self.us.len()
    }

    /// The shortest time that this share of all did not exceed; `None` if there was none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        (!self.us.is_empty()).then(|| Duration::from_micros(self.us.value_at_quantile(share)))
    }

    /// Times in ms with the share of all that took no longer, as far as there was at least one that took longer; empty if there was
    /// none.
    pub fn distribution(&self) -> Vec<(f64, f64)> {
        let shares = (0..100).map(|percent| f64::from(percent) / 100.0);
        shares
            .chain(LAST_SHARES)
            .filter(|share| (1.0 - share) * self.count() as f64 >= 1.0 - 1e-9)
            .filter_map(|share| Some((millis(self.quantile(share)?), share)))
            .collect()
    }
}

/// In ms, to the µs.
pub fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_all_that_was_recorded() {
        let mut times = Times::new().unwrap();
        assert_eq!(times.quantile(0.5), None);
        assert!(times.distribution().is_empty());
        for ms in 1..=1000 {
            times.record(Duration::from_millis(ms));
        }
        let close = |share, ms: f64| {
            let found = millis(times.quantile(share).unwrap());
            assert!((found / ms - 1.0).abs() < 0.002, "{found} for {ms}");
        };
        close(0.5, 500.0);
        close(0.99, 990.0);
        close(1.0, 1000.0);
        let drawn = times.distribution();
        assert!(drawn.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
        assert_eq!(
            drawn.last().unwrap().1,
            0.999,
            "one of a thousand took longer"
        );
    }

    #[test]
    fn what_takes_longer_than_an_hour_counts_as_an_hour() {
        let mut times = Times::new().unwrap();
        times.record(Duration::from_secs(1_000_000));
        assert_eq!(times.count(), 1);
        let hour = millis(times.quantile(1.0).unwrap());
        assert!((hour / 3_600_000.0 - 1.0).abs() < 0.002, "{hour}");
    }
}
