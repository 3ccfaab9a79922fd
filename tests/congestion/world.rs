//! Flows over one link, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::EcnCodepoint;

use crate::flow::{Factory, Flow, FlowOptions, Load, Side, Tls};
use crate::link::{Counters, Link, LinkSettings};

struct Packet {
    at: Duration,
    number: u64,
    flow: usize,
    to: Side,
    ecn: Option<EcnCodepoint>,
    bytes: BytesMut,
}

impl PartialEq for Packet {
    fn eq(&self, other: &Packet) -> bool {
        self.number == other.number
    }
}

impl Eq for Packet {}

impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Packet) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Packet {
    fn cmp(&self, other: &Packet) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What a flow did between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub counters: Counters,
    /// Stream bytes that arrived.
    pub received: u64,
    pub lasted: Duration,
    rate_bps: u64,
    loss: f64,
}

impl Usage {
    /// The share of the link that this flow's packets used, IP headers included, less what was lost after the bottleneck,
    /// against the best that is possible: 1 is all that the loss leaves.
    pub fn of_possible(&self) -> f64 {
        self.utilisation() * (1.0 - self.counters.randomly_lost as f64 / self.carried_packets())
            / (1.0 - self.loss)
    }

    fn carried_packets(&self) -> f64 {
        (self.counters.offered - self.counters.tail_dropped).max(1) as f64
    }

    /// The share of the bottleneck that this flow took.
    pub fn utilisation(&self) -> f64 {
        self.counters.carried_bytes as f64 * 8.0
            / (self.rate_bps as f64 * self.lasted.as_secs_f64())
    }

    /// Stream bits a second that arrived, in Mbit/s.
    pub fn goodput_mbit(&self) -> f64 {
        self.received as f64 * 8e-6 / self.lasted.as_secs_f64()
    }
}

pub struct World {
    pub link: Link,
    pub flows: Vec<Flow>,
    pub now: Duration,
    start: Instant,
    seed: u64,
    tls: Tls,
    packets: BinaryHeap<Reverse<Packet>>,
    sent: u64,
    counters: Vec<Counters>,
    marks: Vec<(Duration, Counters, u64)>,
    /// When each flow's stream bytes last arrived first after [`World::mark`].
    first_after_mark: Vec<Option<Duration>>,
}

impl World {
    pub fn new(settings: LinkSettings, seed: u64) -> World {
        World {
            link: Link::new(settings, seed),
            flows: Vec::new(),
            now: Duration::ZERO,
            start: Instant::now(),
            seed,
            tls: Tls::new(),
            packets: BinaryHeap::new(),
            sent: 0,
            counters: Vec::new(),
            marks: Vec::new(),
            first_after_mark: Vec::new(),
        }
    }

    /// Starts a flow now. Returns its number.
    pub fn add(&mut self, controller: Factory, load: Load) -> usize {
        let product = self.link.settings.bandwidth_delay_product();
        let options = FlowOptions {
            load,
            packet_threshold: 3,
            send_window: (4 * product).max(8 << 20),
        };
        self.add_with(controller, options)
    }

    pub fn add_with(&mut self, controller: Factory, options: FlowOptions) -> usize {
        let number = self.flows.len();
        let now = self.start + self.now;
        self.flows.push(Flow::new(
            now,
            number as u8,
            self.seed,
            &self.tls,
            controller,
            options,
        ));
        self.counters.push(Counters::default());
        self.marks.push((self.now, Counters::default(), 0));
        self.first_after_mark.push(None);
        self.run_end(number, Side::Sender);
        number
    }

    /// Usage is counted from here on.
    pub fn mark(&mut self) {
        for (flow, mark) in self.marks.iter_mut().enumerate() {
            *mark = (self.now, self.counters[flow], self.flows[flow].received);
            self.first_after_mark[flow] = None;
        }
    }

    pub fn usage(&self, flow: usize) -> Usage {
        let (at, counters, received) = &self.marks[flow];
        Usage {
            counters: self.counters[flow].since(counters),
            received: self.flows[flow].received - received,
            lasted: self.now - *at,
            rate_bps: self.link.settings.rate_bps,
            loss: self.link.settings.loss,
        }
    }

    /// How long after the mark the first stream byte arrived.
    pub fn first_arrival(&self, flow: usize) -> Option<Duration> {
        Some(self.first_after_mark[flow]? - self.marks[flow].0)
    }

    pub fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            let mut next = self.packets.peek().map(|Reverse(packet)| packet.at);
            let mut timer = None;
            for number in 0..self.flows.len() {
                for side in [Side::Sender, Side::Receiver] {
                    let Some(at) = self.flows[number].wakes(self.start, side) else {
                        continue;
                    };
                    let at = at.saturating_duration_since(self.start);
                    if next.is_none_or(|next| at < next) {
                        next = Some(at);
                        timer = Some((number, side));
                    }
                }
            }
            let Some(at) = next.filter(|at| *at <= until) else {
                break;
            };
            self.now = self.now.max(at);
            match timer {
                Some((number, side)) => self.run_end(number, side),
                None => self.deliver(),
            }
        }
        self.now = until;
    }

    /// Delivers what has arrived, all that came for one end at once, as a socket would.
    fn deliver(&mut self) {
        let now = self.start + self.now;
        let mut ends: Vec<(usize, Side)> = Vec::new();
        while self
            .packets
            .peek()
            .is_some_and(|Reverse(packet)| packet.at <= self.now)
        {
            let Some(Reverse(packet)) = self.packets.pop() else {
                break;
            };
            self.flows[packet.flow].deliver(now, packet.to, packet.ecn, packet.bytes);
            if !ends.contains(&(packet.flow, packet.to)) {
                ends.push((packet.flow, packet.to));
            }
        }
        for (flow, side) in ends {
            self.run_end(flow, side);
        }
    }

    fn run_end(&mut self, number: usize, side: Side) {
        let mut out = Vec::new();
        let before = self.flows[number].received;
        self.flows[number].run(self.start + self.now, side, &mut out);
        if self.flows[number].received > before {
            self.first_after_mark[number].get_or_insert(self.now);
        }
        for datagram in out {
            let arrival = match side {
                Side::Sender => self.link.forward(
                    self.now,
                    datagram.bytes.len(),
                    datagram.ecn.is_some(),
                    &mut self.counters[number],
                ),
                Side::Receiver => self.link.back(self.now),
            };
            let Some(arrival) = arrival else {
                continue;
            };
            self.sent += 1;
            self.packets.push(Reverse(Packet {
                at: arrival.at,
                number: self.sent,
                flow: number,
                to: match side {
                    Side::Sender => Side::Receiver,
                    Side::Receiver => Side::Sender,
                },
                ecn: if arrival.marked {
                    Some(EcnCodepoint::Ce)
                } else {
                    datagram.ecn
                },
                bytes: datagram.bytes,
            }));
        }
    }
}
