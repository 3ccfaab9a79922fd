//! Whether a link loses so much that what is written on it is worth sending twice.

use std::time::Duration;

use crate::types::MonotonicTime;

/// The share of packets lost from which on copies are worth their price, and below which they are not any more.
const WORTH_FROM: f64 = 0.01;
const WORTH_UNTIL: f64 = 0.005;
/// From here on one copy is too often lost with its original.
const TWO_FROM: f64 = 0.03;
/// Packets of one sample of the loss, and what the newest sample weighs in the estimate.
const SAMPLE_PACKETS: u64 = 100;
const NEWEST: f64 = 0.25;
/// So many samples must have shown the loss before copies begin: by then the estimate is near what it follows.
const SAMPLES_BEFORE: u32 = 6;
/// On a shorter link what is lost is there again before a copy would be of use.
const SHORTEST_RTT: Duration = Duration::from_millis(10);
/// While copies are sent, this much more loss than before them is taken for their own doing, and they are left for a while: they
/// must not add to a congestion.
const OWN_DOING_FACTOR: f64 = 3.0;
const OWN_DOING_MARGIN: f64 = 0.03;
const PAUSE: Duration = Duration::from_secs(30);
/// Loss that stays as high without them was not their doing, and they are taken up again. By then what they had put into a queue has
/// left it, and the estimate has forgotten most of what it saw before.
const STAYS_FOR: Duration = Duration::from_secs(2);
const STAYS_SAMPLES: u32 = 8;

/// Follows the loss of one connection, as this end sees it.
#[derive(Debug, Default)]
pub struct CopyPolicy {
    /// The counts when the present sample began.
    sent: u64,
    lost: u64,
    loss: f64,
    /// Samples in a row after which the estimate was at [`WORTH_FROM`] at least.
    lossy_samples: u32,
    /// The estimate when copies began; `None` while none are sent.
    loss_before: Option<f64>,
    /// While they are left for what they seemed to do.
    pause: Option<Pause>,
    rtt: Duration,
}

#[derive(Debug)]
struct Pause {
    since: MonotonicTime,
    /// Loss above this is what they were left for.
    limit: f64,
    /// Samples of the link without them.
    samples: u32,
}

impl CopyPolicy {
    /// The connection's counts of packets, and its round trip now.
    pub fn note(&mut self, now: MonotonicTime, sent: u64, lost: u64, rtt: Duration) {
        self.rtt = rtt;
        let packets = sent.saturating_sub(self.sent);
        if packets < SAMPLE_PACKETS {
            return;
        }
        let share = lost.saturating_sub(self.lost) as f64 / packets as f64;
        (self.sent, self.lost) = (sent, lost);
        self.loss += NEWEST * (share.min(1.0) - self.loss);
        self.lossy_samples = if self.loss >= WORTH_FROM {
            self.lossy_samples.saturating_add(1)
        } else {
            0
        };
        self.decide(now);
    }

    /// What the newest sample means for copies.
    fn decide(&mut self, now: MonotonicTime) {
        if let Some(pause) = &mut self.pause {
            pause.samples += 1;
            let waited = now.since(pause.since);
            let stays =
                pause.samples >= STAYS_SAMPLES && waited >= STAYS_FOR && self.loss > pause.limit;
            if !stays && waited < PAUSE {
                return;
            }
            self.pause = None;
        }
        match self.loss_before {
            None if self.lossy_samples >= SAMPLES_BEFORE => self.loss_before = Some(self.loss),
            Some(before) => {
                let limit = OWN_DOING_FACTOR * before + OWN_DOING_MARGIN;
                if self.loss > limit {
                    self.loss_before = None;
                    self.pause = Some(Pause {
                        since: now,
                        limit,
                        samples: 0,
                    });
                } else if self.loss < WORTH_UNTIL {
                    self.loss_before = None;
                }
            }
            None => {}
        }
    }

    /// How many copies should be sent now: of 200 packets at 5 % loss, ten are lost, of these every other time one with its copy, and
    /// one time in forty with both copies.
    pub fn copies(&self) -> u8 {
        match self.loss_before {
            Some(_) if self.rtt < SHORTEST_RTT => 0,
            Some(_) if self.loss >= TWO_FROM => 2,
            Some(_) => 1,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    struct Link {
        policy: CopyPolicy,
        random: StdRng,
        now: MonotonicTime,
        sent: u64,
        lost: u64,
    }

    impl Link {
        fn new(seed: u64) -> Link {
            Link {
                policy: CopyPolicy::default(),
                random: StdRng::seed_from_u64(seed),
                now: MonotonicTime::ZERO,
                sent: 0,
                lost: 0,
            }
        }

        /// One that has lost so much for so many packets that copies are sent.
        fn with_copies(seed: u64, packets: u64, loss: f64) -> Link {
            let mut link = Link::new(seed);
            link.run(packets, loss, FAR);
            assert!(link.policy.copies() > 0, "seed {seed}");
            link
        }

        /// So many packets, 40 each 10 ms. How often copies were wanted, of the looks.
        fn run(&mut self, packets: u64, loss: f64, rtt: Duration) -> f64 {
            let mut wanted = 0;
            let looks = packets / 40;
            for _ in 0..looks {
                self.now = self.now + Duration::from_millis(10);
                self.sent += 40;
                self.lost += (0..40).filter(|_| self.random.random_bool(loss)).count() as u64;
                self.policy.note(self.now, self.sent, self.lost, rtt);
                wanted += u32::from(self.policy.copies() > 0);
            }
            f64::from(wanted) / looks as f64
        }
    }

    const FAR: Duration = Duration::from_millis(40);

    #[test]
    fn a_lossy_link_gets_copies_for_as_long_as_it_is_one() {
        for seed in 0..200 {
            let mut link = Link::new(seed);
            assert_eq!(link.run(20_000, 0.0005, FAR), 0.0, "seed {seed}");
            link.run(2_000, 0.05, FAR);
            let share = link.run(20_000, 0.05, FAR);
            assert!(share > 0.99, "seed {seed}: {share}");
            link.run(4_000, 0.0, FAR);
            assert_eq!(link.run(20_000, 0.0, FAR), 0.0, "seed {seed}");
        }
    }

    #[test]
    fn much_loss_is_worth_two_copies() {
        let mut link = Link::new(1);
        link.run(20_000, 0.02, FAR);
        assert_eq!(link.policy.copies(), 1);
        link.run(4_000, 0.045, FAR);
        assert_eq!(link.policy.copies(), 2);
    }

    #[test]
    fn a_short_link_gets_none() {
        let mut link = Link::new(1);
        assert_eq!(link.run(20_000, 0.05, Duration::from_millis(9)), 0.0);
        assert_eq!(link.run(1_000, 0.05, FAR), 1.0);
    }

    #[test]
    fn copies_that_bring_loss_are_left_for_a_while() {
        for seed in 0..200 {
            let mut link = Link::with_copies(seed, 4_000, 0.03);
            link.run(2_000, 0.25, FAR);
            assert_eq!(link.policy.copies(), 0, "seed {seed}");
            // 25 s on they are still left,
            assert_eq!(link.run(4 * 25_000, 0.03, FAR), 0.0, "seed {seed}");
            // and after 30 they are tried again.
            link.run(4 * 10_000, 0.03, FAR);
            assert!(link.policy.copies() > 0, "seed {seed}");
        }
    }

    #[test]
    fn loss_that_stays_without_copies_brings_them_back() {
        for seed in 0..200 {
            let mut link = Link::with_copies(seed, 12_000, 0.018);
            // For two seconds of the five it is tried without.
            let share = link.run(4 * 5_000, 0.15, FAR);
            assert!((0.4..0.65).contains(&share), "seed {seed}: {share}");
            // And then it is the link's own.
            assert_eq!(link.run(20_000, 0.15, FAR), 1.0, "seed {seed}");
        }
    }
}
