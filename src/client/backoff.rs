//! How long to wait between attempts.

use std::time::Duration;

/// Doubling waits with jitter: after the n-th failure in a row `initial` × 2ⁿ⁻¹, at most `max`, of which a random part of
/// up to a fifth is taken off, so that clients that failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub initial: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    /// 50 ms doubling to 1 s.
    fn default() -> Self {
        Backoff {
            initial: Duration::from_millis(50),
            max: Duration::from_secs(1),
        }
    }
}

impl Backoff {
    /// The wait after `failures` failures in a row; none for 0. `random` is any number drawn by the caller.
    pub fn after(&self, failures: u32, random: u64) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let full = 1u32
            .checked_shl(doublings)
            .and_then(|factor| self.initial.checked_mul(factor))
            .unwrap_or(self.max)
            .min(self.max);
        // 0 to 204 of 1024.
        let off = full.mul_f64((random % 205) as f64 / 1024.0);
        full.saturating_sub(off)
    }
}

impl Backoff {
    /// The wait after `failures` failures in a row where what is waited for is most often only a moment away, as the news of an
    /// election is: a fifth of `initial` first, and then as [`Backoff::after`].
    pub(super) fn soon(&self, failures: u32, random: u64) -> Duration {
        match failures {
            0 => Duration::ZERO,
            1 => self.after(1, random) / 5,
            more => self.after(more - 1, random),
        }
    }
}

/// A small generator of random numbers (splitmix64) for jitter and for the choice of a partition: nothing that must be
/// hard to guess. Seeded by its owner, so that a test can repeat a run.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_moment_away_is_asked_for_soon_and_then_no_more_often_than_anything() {
        let backoff = Backoff::default();
        assert_eq!(backoff.soon(0, 0), Duration::ZERO);
        assert_eq!(backoff.soon(1, 0), Duration::from_millis(10));
        assert_eq!(backoff.soon(2, 0), Duration::from_millis(50));
        assert_eq!(backoff.soon(3, 0), Duration::from_millis(100));
        assert_eq!(backoff.soon(u32::MAX, 0), backoff.max);
    }

    #[test]
    fn waits_double_up_to_the_cap_and_lose_at_most_a_fifth() {
        let backoff = Backoff::default();
        let ms = |failures, random| backoff.after(failures, random).as_millis();
        assert_eq!(
            [0, 1, 2, 3, 5, 6, 7, 99].map(|n| ms(n, 0)),
            [0, 50, 100, 200, 800, 1000, 1000, 1000]
        );
        let mut random = Random::new(1);
        let waits: Vec<u128> = (0..100).map(|_| ms(6, random.next())).collect();
        assert!(waits.iter().all(|wait| (800..=1000).contains(wait)));
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }
}
