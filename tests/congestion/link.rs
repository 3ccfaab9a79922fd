//! The link that the flows share: a bottleneck with a queue, then loss, then distance. Virtual time, seeded chance.

use std::time::Duration;

use crate::random::Random;

/// Bytes of IP and UDP headers before each datagram.
const HEADERS: u64 = 28;

/// What a link does. May be changed while it runs.
#[derive(Clone, Copy, Debug)]
pub struct LinkSettings {
    /// Bits a second at the bottleneck, IP headers included.
    pub rate_bps: u64,
    /// Without queue.
    pub round_trip: Duration,
    /// Bytes that may wait at the bottleneck; what comes beyond is dropped.
    pub queue_bytes: u64,
    /// Chance of each packet to be lost after the bottleneck, and of each on the way back.
    pub loss: f64,
    /// Delay of up to this much, evenly drawn, on the way there.
    pub jitter: Duration,
    /// The same on the way back.
    pub jitter_back: Duration,
    /// Share of packets, both ways, that are held back by up to the jitter again while later ones go on.
    pub held_back: f64,
    /// Whether jitter lets packets overtake each other.
    pub reorders: bool,
    /// Packets are marked when more than this many bytes wait, if they carry ECN.
    pub mark_above: Option<u64>,
    /// Nothing gets through in either direction.
    pub cut: bool,
}

impl LinkSettings {
    /// A clean link with a queue of one bandwidth-delay product.
    pub fn new(mbit: u64, round_trip_ms: u64) -> LinkSettings {
        let mut settings = LinkSettings {
            rate_bps: mbit * 1_000_000,
            round_trip: Duration::from_millis(round_trip_ms),
            queue_bytes: 0,
            loss: 0.0,
            jitter: Duration::ZERO,
            jitter_back: Duration::ZERO,
            held_back: 0.0,
            reorders: false,
            mark_above: None,
            cut: false,
        };
        settings.queue_bytes = settings.bandwidth_delay_product();
        settings
    }

    pub fn bandwidth_delay_product(&self) -> u64 {
        (self.rate_bps as f64 / 8.0 * self.round_trip.as_secs_f64()) as u64
    }

    pub fn loss(mut self, loss: f64) -> LinkSettings {
        self.loss = loss;
        self
    }

    /// As a part of the bandwidth-delay product.
    pub fn queue(mut self, part: f64) -> LinkSettings {
        self.queue_bytes = (self.bandwidth_delay_product() as f64 * part) as u64;
        self
    }
}

/// What one flow's packets met on the way there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub offered: u64,
    pub tail_dropped: u64,
    pub randomly_lost: u64,
    pub marked: u64,
    /// IP bytes that the bottleneck carried.
    pub carried_bytes: u64,
    /// Time that carried packets waited in the queue, in seconds, in all.
    pub queued: f64,
}

impl Counters {
    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            offered: self.offered - before.offered,
            tail_dropped: self.tail_dropped - before.tail_dropped,
            randomly_lost: self.randomly_lost - before.randomly_lost,
            marked: self.marked - before.marked,
            carried_bytes: self.carried_bytes - before.carried_bytes,
            queued: self.queued - before.queued,
        }
    }

    /// The share of packets that the flow lost by its own doing.
    pub fn self_loss(&self) -> f64 {
        self.tail_dropped as f64 / self.offered.max(1) as f64
    }

    /// The mean time in the queue.
    pub fn mean_queue(&self) -> Duration {
        let carried = self.offered - self.tail_dropped;
        Duration::from_secs_f64(self.queued / carried.max(1) as f64)
    }
}

/// When a packet arrives, and whether it was marked on the way.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Duration,
    pub marked: bool,
}

pub struct Link {
    pub settings: LinkSettings,
    random: Random,
    /// When the bottleneck will have sent all that waits.
    free_at: Duration,
    last_arrival: Duration,
    last_return: Duration,
}

impl Link {
    pub fn new(settings: LinkSettings, seed: u64) -> Link {
        Link {
            settings,
            random: Random::new(seed, 1),
            free_at: Duration::ZERO,
            last_arrival: Duration::ZERO,
            last_return: Duration::ZERO,
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        (self.random.next() >> 11) as f64 / (1u64 << 53) as f64 <= probability && probability > 0.0
    }

    /// Sends a datagram through the bottleneck. Returns when it arrives, if it does.
    pub fn forward(
        &mut self,
        now: Duration,
        payload: usize,
        ecn_capable: bool,
        counters: &mut Counters,
    ) -> Option<Arrival> {
        let settings = self.settings;
        let bytes = payload as u64 + HEADERS;
        if settings.cut {
            return None;
        }
        counters.offered += 1;
        let wait = self.free_at.saturating_sub(now);
        let waiting = (wait.as_secs_f64() * settings.rate_bps as f64 / 8.0) as u64;
        if waiting + bytes > settings.queue_bytes.max(bytes) {
            counters.tail_dropped += 1;
            return None;
        }
        let marked = ecn_capable && settings.mark_above.is_some_and(|above| waiting > above);
        let sending = Duration::from_secs_f64(bytes as f64 * 8.0 / settings.rate_bps as f64);
        self.free_at = self.free_at.max(now) + sending;
        counters.carried_bytes += bytes;
        counters.queued += wait.as_secs_f64();
        counters.marked += u64::from(marked);
        if self.chance(settings.loss) {
            counters.randomly_lost += 1;
            return None;
        }
        let mut at = self.free_at + settings.round_trip / 2 + self.drawn(settings.jitter);
        if self.chance(settings.held_back) {
            at += self.drawn(settings.jitter);
        } else if !settings.reorders {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        Some(Arrival { at, marked })
    }

    /// Sends a datagram back, where nothing is narrow.
    pub fn back(&mut self, now: Duration) -> Option<Arrival> {
        if self.settings.cut || self.chance(self.settings.loss) {
            return None;
        }
        let jitter = self.settings.jitter_back;
        let mut at = now + self.settings.round_trip / 2 + self.drawn(jitter);
        if self.chance(self.settings.held_back) {
            at += self.drawn(jitter);
        } else {
            at = at.max(self.last_return);
            self.last_return = at;
        }
        Some(Arrival { at, marked: false })
    }

    /// A part of `most`, evenly drawn.
    fn drawn(&mut self, most: Duration) -> Duration {
        match most.as_nanos() as u64 {
            0 => Duration::ZERO,
            most => Duration::from_nanos(self.random.below(most + 1)),
        }
    }
}
