//! How fast bytes arrive: right now, and at best over the last rounds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rounds over which the best delivery rate is kept: long enough to outlast a dip, short enough to follow a link.
const BEST_OF_ROUNDS: usize = 10;
/// Points kept of the recent past. At the cap the oldest goes.
const MAX_POINTS: usize = 128;

/// The delivery rate, in bytes a second.
#[derive(Clone, Debug, Default)]
pub(super) struct DeliveryRate {
    delivered: u64,
    /// When how much had been delivered, oldest first.
    points: VecDeque<(Instant, u64)>,
    rounds: VecDeque<f64>,
}

impl DeliveryRate {
    /// Counts bytes that arrived; points closer together than `apart` are merged into the earlier.
    pub(super) fn on_delivered(&mut self, now: Instant, bytes: u64, apart: Duration) {
        self.delivered += bytes;
        let close = self
            .points
            .back()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) < apart);
        if close {
            return;
        }
        if self.points.len() == MAX_POINTS {
            self.points.pop_front();
        }
        self.points.push_back((now, self.delivered));
    }

    /// The rate over about the last `over`; `None` while less than half of that is known. Behind a queue this is the
    /// bottleneck's rate, less what is lost after it.
    pub(super) fn recent(&self, now: Instant, over: Duration) -> Option<f64> {
        let (at, delivered) = self
            .points
            .iter()
            .rev()
            .find(|(at, _)| now.saturating_duration_since(*at) >= over)
            .or_else(|| self.points.front())?;
        let elapsed = now.saturating_duration_since(*at);
        (elapsed * 2 >= over && !elapsed.is_zero())
            .then(|| (self.delivered - delivered) as f64 / elapsed.as_secs_f64())
    }

    /// Takes in the rate of a round in which the window was the limit. A round in which the application was it says
    /// nothing about the path, so it is not offered here.
    pub(super) fn on_round(&mut self, rate: f64) {
        if self.rounds.len() == BEST_OF_ROUNDS {
            self.rounds.pop_front();
        }
        self.rounds.push_back(rate);
    }

    /// The best of the last rounds.
    pub(super) fn best(&self) -> Option<f64> {
        self.rounds.iter().copied().reduce(f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recent_rate_is_that_of_the_last_while_only() {
        let start = Instant::now();
        let apart = Duration::from_micros(100);
        let mut rate = DeliveryRate::default();
        assert_eq!(rate.recent(start, Duration::from_millis(10)), None);
        for ms in 0..100 {
            let bytes = if ms < 50 { 1000 } else { 3000 };
            rate.on_delivered(start + Duration::from_millis(ms), bytes, apart);
        }
        let now = start + Duration::from_millis(99);
        let recent = rate.recent(now, Duration::from_millis(10)).unwrap();
        assert!((recent - 3_000_000.0).abs() < 1.0, "{recent}");
    }

    #[test]
    fn the_best_is_forgotten_after_ten_rounds() {
        let mut rate = DeliveryRate::default();
        assert_eq!(rate.best(), None);
        rate.on_round(9.0);
        for _ in 0..9 {
            rate.on_round(5.0);
        }
        assert_eq!(rate.best(), Some(9.0));
        rate.on_round(5.0);
        assert_eq!(rate.best(), Some(5.0));
    }
}
