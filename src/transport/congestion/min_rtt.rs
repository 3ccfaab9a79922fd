//! The path's round trip without queues: the smallest that was measured lately.

use std::time::{Duration, Instant};

/// The smallest round trip of the last while, and whether it is due to be looked for again.
///
/// Two values are kept: the minimum, and the smallest since the minimum was last met. When the minimum has not been met for
/// [`MinRtt::memory`], the second takes its place, so a path that became longer is learnt.
#[derive(Clone, Debug)]
pub(super) struct MinRtt {
    min: Option<Duration>,
    met: Instant,
    /// The least and the most since then.
    since_met: Option<(Duration, Duration)>,
    /// How often it was kept although it was stale.
    kept: u32,
    last_sample: Instant,
}

/// How long a minimum stands that is not met again: BBR's 10 s. Routes change rarely, and looking costs throughput.
const MEMORY: Duration = Duration::from_secs(10);
/// At least this many round trips, for paths where 10 s are few of them.
const MEMORY_ROUNDS: u32 = 50;
/// How often in a row a stale minimum is kept.
const KEPT_MAX: u32 = 6;
/// A silence longer than this does not count as time in which the minimum was not met: nothing was measured.
const SILENCE: Duration = Duration::from_millis(500);

impl MinRtt {
    pub(super) fn new(now: Instant) -> MinRtt {
        MinRtt {
            min: None,
            met: now,
            since_met: None,
            kept: 0,
            last_sample: now,
        }
    }

    pub(super) fn get(&self) -> Option<Duration> {
        self.min
    }

    fn memory(&self) -> Duration {
        self.min
            .map_or(MEMORY, |min| MEMORY.max(min * MEMORY_ROUNDS))
    }

    /// Takes a sample in.
    pub(super) fn sample(&mut self, now: Instant, rtt: Duration) {
        let silence = now.saturating_duration_since(self.last_sample);
        if silence > SILENCE.max(rtt * 2) {
            self.met += silence;
        }
        self.last_sample = now;
        match self.min {
            // A sixty-fourth above counts as met: clocks and interrupts are not exact.
            Some(min) if rtt > min + min / 64 + Duration::from_micros(20) => {
                let (least, most) = self.since_met.unwrap_or((rtt, rtt));
                self.since_met = Some((least.min(rtt), most.max(rtt)));
            }
            Some(min) => {
                self.min = Some(min.min(rtt));
                self.met = now;
                self.since_met = None;
                self.kept = 0;
            }
            None => {
                self.min = Some(rtt);
                self.met = now;
            }
        }
    }

    /// Whether the minimum has not been met for so long that the queue must be emptied to measure it.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.min.is_some() && now.saturating_duration_since(self.met) > self.memory()
    }

    /// Forgets the minimum for `rtt`, which was measured with the queue as empty as this end can make it.
    pub(super) fn replace(&mut self, now: Instant, rtt: Duration) {
        self.min = Some(rtt);
        self.met = now;
        self.since_met = None;
        self.kept = 0;
    }

    /// Ends staleness: the minimum was met closely enough.
    pub(super) fn keep(&mut self, now: Instant) {
        self.met = now;
        self.since_met = None;
        self.kept = 0;
    }

    /// Ends staleness: `rtt` was measured with the queue as empty as this end can make it.
    ///
    /// If round trips differed by more than `noise` since the minimum was met, there was a queue of someone else's all the
    /// while, and the minimum is kept, for a minute at most. If they did not, the path has become longer.
    pub(super) fn renew(&mut self, now: Instant, rtt: Duration, noise: Duration) {
        let (least, most) = self.since_met.unwrap_or((rtt, rtt));
        if most.saturating_sub(least) > noise && self.kept < KEPT_MAX {
            self.kept += 1;
            self.met = now;
            self.since_met = None;
        } else {
            self.replace(now, least.min(rtt));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_minimum_that_is_not_met_for_ten_seconds_is_stale() {
        let start = Instant::now();
        let mut filter = MinRtt::new(start);
        filter.sample(start, ms(20));
        for tick in 1..=100 {
            filter.sample(start + ms(100 * tick), ms(30));
        }
        assert_eq!(filter.get(), Some(ms(20)));
        assert!(!filter.is_stale(start + ms(10_000)));
        assert!(filter.is_stale(start + ms(10_001)));
        filter.renew(start + ms(10_001), ms(31), ms(5));
        assert_eq!(filter.get(), Some(ms(30)));
        assert!(!filter.is_stale(start + ms(10_002)));
        filter.sample(start + ms(10_003), ms(10));
        assert_eq!(filter.get(), Some(ms(10)));
    }

    #[test]
    fn a_minimum_is_kept_for_a_minute_while_a_queue_comes_and_goes() {
        let start = Instant::now();
        let mut filter = MinRtt::new(start);
        filter.sample(start, ms(20));
        let mut now = start;
        for kept in 0..=KEPT_MAX {
            for tick in 1..=101 {
                filter.sample(now + ms(100 * tick), ms(30 + tick % 10));
            }
            now += ms(10_100);
            assert!(filter.is_stale(now));
            filter.renew(now, ms(30), ms(5));
            let expected = if kept < KEPT_MAX { 20 } else { 30 };
            assert_eq!(filter.get(), Some(ms(expected)), "after {kept} times");
        }
    }

    #[test]
    fn a_blackout_does_not_make_it_stale() {
        let start = Instant::now();
        let mut filter = MinRtt::new(start);
        filter.sample(start, ms(20));
        filter.sample(start + ms(60_000), ms(25));
        assert!(!filter.is_stale(start + ms(60_001)));
        assert!(filter.is_stale(start + ms(70_001)));
    }
}
