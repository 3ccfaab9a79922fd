//! What becomes of the packets that go one way over one link. No clock and no I/O: time comes in, fates go out.
//!
//! A packet meets, in this order: the cut, the loss, the queue before the slow link, the link itself, and the delay.
//!
//! ```text
//!  packet ─▶ cut? ─▶ lost? ─▶ [queue, tail drop]─▶ rate ─▶ delay ± jitter ─▶ in order ─▶ arrives
//!                    └ doubled: the copy takes the same way behind it       └ held back: arrives later, out of order
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// What IPv4 and UDP add to each packet; a slow link carries that too. In bytes.
pub const PACKET_OVERHEAD: usize = 28;
/// Packets that wait before a slow link unless it is said: about 30 ms at 100 Mbit/s.
const DEFAULT_QUEUE: usize = 250;
/// A packet that is held back arrives later by up to this, or by twice the jitter where that is more.
const HELD_BACK: Duration = Duration::from_millis(5);

/// What packets of one way suffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Impairment {
    /// Share of packets that vanish, 0 to 1, each for itself.
    pub loss: f64,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// Share of packets that are held back by a further 0 to 5 ms, or to twice the jitter, while later ones go on.
    pub reorder: f64,
    /// Added to the way of each packet.
    pub delay: Duration,
    /// The delay is drawn evenly from `delay - jitter` (never below 0) to `delay + jitter`. Packets stay in order all the same.
    pub jitter: Duration,
    /// Bits a second, headers of IP and UDP included; `None`: no limit.
    pub rate: Option<u64>,
    /// Packets that may be waiting before the slow link or on it. A further one is dropped.
    pub queue: usize,
    /// Nothing passes. What is under way arrives.
    pub cut: bool,
}

impl Default for Impairment {
    fn default() -> Impairment {
        Impairment {
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            rate: None,
            queue: DEFAULT_QUEUE,
            cut: false,
        }
    }
}

impl Impairment {
    /// Whether packets pass as if nothing were there.
    pub fn is_none(&self) -> bool {
        let queue = self.queue;
        *self
            == Impairment {
                queue,
                ..Impairment::default()
            }
    }
}

/// Why a packet does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropCause {
    Cut,
    Lost,
    QueueFull,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Dropped(DropCause),
    /// It arrives at a time that is never before it was sent, and so does its copy if there is one.
    Arrives {
        at: Duration,
        copy: Option<Duration>,
    },
}

/// Packets of one way of one link since it is impaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImpairmentCounts {
    pub packets: u64,
    pub cut: u64,
    pub lost: u64,
    pub queue_full: u64,
    pub doubled: u64,
    pub held_back: u64,
    /// Packets that the emulation itself had no room for: neither the link nor its queue.
    pub overflowed: u64,
    /// Of the packets that pass, with the headers of IP and UDP.
    pub passed_bytes: u64,
}

impl ImpairmentCounts {
    /// What was counted since `before`.
    pub fn since(&self, before: &ImpairmentCounts) -> ImpairmentCounts {
        ImpairmentCounts {
            packets: self.packets.saturating_sub(before.packets),
            cut: self.cut.saturating_sub(before.cut),
            lost: self.lost.saturating_sub(before.lost),
            queue_full: self.queue_full.saturating_sub(before.queue_full),
            doubled: self.doubled.saturating_sub(before.doubled),
            held_back: self.held_back.saturating_sub(before.held_back),
            overflowed: self.overflowed.saturating_sub(before.overflowed),
            passed_bytes: self.passed_bytes.saturating_sub(before.passed_bytes),
        }
    }

    /// Adds what another link counted.
    pub fn add(&mut self, other: &ImpairmentCounts) {
        self.packets += other.packets;
        self.cut += other.cut;
        self.lost += other.lost;
        self.queue_full += other.queue_full;
        self.doubled += other.doubled;
        self.held_back += other.held_back;
        self.overflowed += other.overflowed;
        self.passed_bytes += other.passed_bytes;
    }
}

/// One way of one link.
#[derive(Debug)]
pub struct ImpairmentModel {
    impairment: Impairment,
    random: StdRng,
    /// When each packet that waits before the slow link, or is on it, will have left it; in order. No more than the queue holds.
    leaving: VecDeque<Duration>,
    /// When the last packet that keeps the order arrives.
    last_arrival: Duration,
    counts: ImpairmentCounts,
}

impl ImpairmentModel {
    /// The same seed, impairment and packets make the same fates.
    pub fn new(impairment: Impairment, seed: u64) -> ImpairmentModel {
        ImpairmentModel {
            impairment,
            random: StdRng::seed_from_u64(seed),
            leaving: VecDeque::new(),
            last_arrival: Duration::ZERO,
            counts: ImpairmentCounts::default(),
        }
    }

    pub fn impairment(&self) -> &Impairment {
        &self.impairment
    }

    pub fn counts(&self) -> ImpairmentCounts {
        self.counts
    }

    /// Later packets suffer this instead, at once: they do not wait for those that the old impairment delays.
    pub fn set(&mut self, impairment: Impairment) {
        if self.impairment.rate != impairment.rate {
            self.leaving.clear();
        }
        self.last_arrival = Duration::ZERO;
        self.impairment = impairment;
    }

    /// A packet of `bytes` of UDP payload is sent at `now`, which never goes back.
    pub fn packet(&mut self, now: Duration, bytes: usize) -> Fate {
        self.ip_packet(now, bytes + PACKET_OVERHEAD)
    }

    /// The same of a packet of which all `bytes` are known, its IP header included.
    pub fn ip_packet(&mut self, now: Duration, bytes: usize) -> Fate {
        self.counts.packets += 1;
        if self.impairment.cut {
            self.counts.cut += 1;
            return Fate::Dropped(DropCause::Cut);
        }
        if self.drawn(self.impairment.loss) {
            self.counts.lost += 1;
            return Fate::Dropped(DropCause::Lost);
        }
        let doubled = self.drawn(self.impairment.duplicate);
        let Some(at) = self.arrival(now, bytes) else {
            self.counts.queue_full += 1;
            return Fate::Dropped(DropCause::QueueFull);
        };
        // A copy that finds the queue full is lost alone.
        let copy = doubled.then(|| self.arrival(now, bytes)).flatten();
        self.counts.doubled += u64::from(copy.is_some());
        self.counts.passed_bytes += bytes as u64 * (1 + u64::from(copy.is_some()));
        Fate::Arrives { at, copy }
    }

    /// A packet that arrives could not be held until then.
    pub fn note_overflow(&mut self) {
        self.counts.overflowed += 1;
    }

    /// When a packet that is not lost arrives; `None` when the queue is full.
    fn arrival(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let Impairment { delay, jitter, .. } = self.impairment;
        let left = match self.impairment.rate {
            None => now,
            Some(rate) => self.leaves(now, bytes, rate)?,
        };
        let jittered = if jitter.is_zero() {
            delay
        } else {
            let drawn = jitter.mul_f64(2.0 * self.random.random::<f64>());
            (delay + drawn).saturating_sub(jitter)
        };
        let at = left + jittered;
        if self.drawn(self.impairment.reorder) {
            self.counts.held_back += 1;
            let most = HELD_BACK.max(2 * jitter);
            return Some(at + most.mul_f64(self.random.random::<f64>()));
        }
        let at = at.max(self.last_arrival);
        self.last_arrival = at;
        Some(at)
    }

    /// When a packet has left the slow link.
    fn leaves(&mut self, now: Duration, bytes: usize, rate: u64) -> Option<Duration> {
        while self.leaving.front().is_some_and(|left| *left <= now) {
            self.leaving.pop_front();
        }
        if self.leaving.len() >= self.impairment.queue {
            return None;
        }
        let begins = self.leaving.back().copied().unwrap_or(now).max(now);
        let bits = bytes as u64 * 8;
        let takes = Duration::from_nanos(bits.saturating_mul(1_000_000_000) / rate.max(1));
        let left = begins + takes;
        self.leaving.push_back(left);
        Some(left)
    }

    fn drawn(&mut self, share: f64) -> bool {
        share > 0.0 && self.random.random::<f64>() < share
    }
}

/// Two numbers into one that neither shows in: the finalizer of SplitMix64.
pub fn mixed(seed: u64, with: u64) -> u64 {
    let mut bits = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(with)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn arrivals(model: &mut ImpairmentModel, packets: u64, every: Duration) -> Vec<Duration> {
        (0..packets)
            .filter_map(|i| match model.packet(every * i as u32, 1000) {
                Fate::Arrives { at, .. } => Some(at),
                Fate::Dropped(_) => None,
            })
            .collect()
    }

    #[test]
    fn without_an_impairment_a_packet_arrives_when_it_is_sent() {
        let mut model = ImpairmentModel::new(Impairment::default(), 1);
        assert!(model.impairment().is_none());
        let fate = model.packet(ms(7), 1200);
        assert_eq!(
            fate,
            Fate::Arrives {
                at: ms(7),
                copy: None
            }
        );
    }

    #[test]
    fn the_share_that_is_lost_is_the_share_that_was_asked_for() {
        for share in [0.0, 0.03, 0.5, 1.0] {
            let impairment = Impairment {
                loss: share,
                ..Impairment::default()
            };
            let mut model = ImpairmentModel::new(impairment, 1);
            arrivals(&mut model, 20_000, ms(1));
            let lost = model.counts().lost as f64 / 20_000.0;
            assert!((lost - share).abs() < 0.01, "{lost} for {share}");
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_fates() {
        let impairment = Impairment {
            loss: 0.1,
            duplicate: 0.1,
            reorder: 0.1,
            delay: ms(20),
            jitter: ms(10),
            rate: Some(10_000_000),
            queue: 10,
            cut: false,
        };
        let fates = |seed| -> Vec<Fate> {
            let mut model = ImpairmentModel::new(impairment, seed);
            (0..1000)
                .map(|i| model.packet(Duration::from_micros(500 * i), 1200))
                .collect()
        };
        assert_eq!(fates(42), fates(42));
        assert_ne!(fates(42), fates(43));
    }

    #[test]
    fn a_slow_link_spaces_packets_and_drops_what_its_queue_cannot_hold() {
        // 1000 bytes and their headers take 8.224 ms at 1 Mbit/s.
        let impairment = Impairment {
            rate: Some(1_000_000),
            queue: 3,
            delay: ms(10),
            ..Impairment::default()
        };
        let mut model = ImpairmentModel::new(impairment, 1);
        let takes = Duration::from_micros(8_224);
        for turn in 1..=3 {
            let at = takes * turn + ms(10);
            assert_eq!(model.packet(ms(0), 1000), Fate::Arrives { at, copy: None });
        }
        let full = Fate::Dropped(DropCause::QueueFull);
        assert_eq!(model.packet(ms(8), 1000), full);
        // The first has left the link by now.
        let at = takes * 4 + ms(10);
        assert_eq!(model.packet(ms(9), 1000), Fate::Arrives { at, copy: None });
        assert_eq!(model.packet(ms(9), 1000), full);
        // After a pause the link is free at once.
        let at = ms(100) + takes + ms(10);
        assert_eq!(
            model.packet(ms(100), 1000),
            Fate::Arrives { at, copy: None }
        );
        assert_eq!(model.counts().queue_full, 2);
    }

    #[test]
    fn a_whole_packet_takes_the_link_as_long_as_its_payload_and_headers() {
        let impairment = Impairment {
            rate: Some(1_000_000),
            ..Impairment::default()
        };
        let mut payload = ImpairmentModel::new(impairment, 1);
        let mut whole = ImpairmentModel::new(impairment, 1);
        assert_eq!(payload.packet(ms(0), 1000), whole.ip_packet(ms(0), 1028));
    }

    #[test]
    fn a_saturated_link_carries_its_rate_and_no_more() {
        let impairment = Impairment {
            rate: Some(10_000_000),
            ..Impairment::default()
        };
        let mut model = ImpairmentModel::new(impairment, 1);
        // 1028 bytes each 0.5 ms are 16.4 Mbit/s.
        let arrived = arrivals(&mut model, 20_000, Duration::from_micros(500));
        let within = arrived.iter().filter(|at| **at <= ms(10_000)).count();
        let mbits = within as f64 * 1028.0 * 8.0 / 10.0 / 1e6;
        assert!((mbits - 10.0).abs() < 0.02, "{mbits} Mbit/s");
    }

    #[test]
    fn jitter_spreads_arrivals_and_keeps_their_order() {
        let impairment = Impairment {
            delay: ms(40),
            jitter: ms(20),
            ..Impairment::default()
        };
        let mut model = ImpairmentModel::new(impairment, 1);
        let sparse = arrivals(&mut model, 500, ms(100));
        let delays: Vec<_> = (0..)
            .zip(&sparse)
            .map(|(i, at)| *at - ms(100) * i)
            .collect();
        assert!(delays.iter().all(|delay| (ms(20)..=ms(60)).contains(delay)));
        assert!(delays.iter().any(|delay| *delay < ms(24)));
        assert!(delays.iter().any(|delay| *delay > ms(56)));
        let mut model = ImpairmentModel::new(impairment, 1);
        assert!(arrivals(&mut model, 500, ms(1)).is_sorted());
    }

    #[test]
    fn a_jitter_above_the_delay_never_goes_back_in_time() {
        let impairment = Impairment {
            delay: ms(1),
            jitter: ms(50),
            ..Impairment::default()
        };
        let mut model = ImpairmentModel::new(impairment, 3);
        for i in 0..200 {
            let now = ms(200) * i;
            let Fate::Arrives { at, .. } = model.packet(now, 100) else {
                panic!("dropped");
            };
            assert!(at >= now);
        }
    }

    #[test]
    fn only_the_share_that_is_held_back_loses_its_order() {
        let impairment = Impairment {
            delay: ms(40),
            reorder: 0.05,
            ..Impairment::default()
        };
        let mut model = ImpairmentModel::new(impairment, 1);
        let arrived = arrivals(&mut model, 10_000, Duration::from_micros(100));
        let exact = (0..)
            .zip(&arrived)
            .filter(|(i, at)| **at == Duration::from_micros(100) * *i + ms(40))
            .count();
        assert_eq!(10_000 - exact as u64, model.counts().held_back);
        assert!((450..550).contains(&model.counts().held_back));
        let overtaken = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!(overtaken > 300, "{overtaken}");
    }

    #[test]
    fn a_copy_arrives_too_and_takes_its_turn_on_a_slow_link() {
        let impairment = Impairment {
            duplicate: 1.0,
            rate: Some(1_000_000),
            queue: 3,
            ..Impairment::default()
        };
        let mut model = ImpairmentModel::new(impairment, 1);
        let takes = Duration::from_micros(8_224);
        let twice = Fate::Arrives {
            at: takes,
            copy: Some(takes * 2),
        };
        assert_eq!(model.packet(ms(0), 1000), twice);
        // There is room for one more, and not for its copy.
        let once = Fate::Arrives {
            at: takes * 3,
            copy: None,
        };
        assert_eq!(model.packet(ms(0), 1000), once);
        assert_eq!(model.counts().doubled, 1);
    }

    #[test]
    fn nothing_passes_a_cut_and_everything_passes_after_it() {
        let cut = Impairment {
            cut: true,
            ..Impairment::default()
        };
        let mut model = ImpairmentModel::new(cut, 1);
        for i in 0..10 {
            assert_eq!(model.packet(ms(i), 100), Fate::Dropped(DropCause::Cut));
        }
        model.set(Impairment::default());
        let at = ms(20);
        assert_eq!(model.packet(at, 100), Fate::Arrives { at, copy: None });
        assert_eq!(model.counts().cut, 10);
    }

    #[test]
    fn a_change_holds_for_the_next_packet() {
        let slow = Impairment {
            delay: ms(10_000),
            rate: Some(1_000),
            ..Impairment::default()
        };
        let mut model = ImpairmentModel::new(slow, 1);
        model.packet(ms(0), 1000);
        model.set(Impairment::default());
        let at = ms(1);
        assert_eq!(model.packet(at, 100), Fate::Arrives { at, copy: None });
    }
}
