//! What becomes of IP packets between the hosts of a lab. No clock and no I/O: packets and the time come in, packets come out when
//! they are due.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::transport::{
    Fate, HeldPackets, Impairment, ImpairmentModel, ImpairmentSpec, mixed_seed,
};
use crate::types::NodeId;

/// The hosts that a lab can have.
pub const MAX_HOSTS: u16 = 16;
/// What is under way to one host, at most: 1 Gbit/s for half a second. What comes beyond it is dropped and counted.
const MAX_HELD_BYTES: usize = 64 << 20;
const MAX_HELD_PACKETS: usize = 131_072;
/// The shortest header of IPv4, in bytes.
const IPV4_HEADER: usize = 20;

/// The address of a host, by its number, from 1.
pub fn address_of(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// What has become of the packets from one host to another. The field names are part of the command line's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WayCounts {
    /// The numbers of the hosts.
    pub from: u16,
    pub to: u16,
    /// What came from the sender: the sum of `cut`, `lost`, `queue_full` and those that were or will be carried.
    pub packets: u64,
    /// What was given to the receiver, copies included; and its bytes, IP headers included.
    pub carried: u64,
    pub carried_bytes: u64,
    /// By chance.
    pub lost: u64,
    /// At the queue before the slow link.
    pub queue_full: u64,
    pub cut: u64,
    pub doubled: u64,
    pub held_back: u64,
    /// Dropped because more was under way than a lab holds. Not 0: choose a shorter delay or a lower rate.
    pub no_room: u64,
}

#[derive(Debug)]
struct Way {
    model: ImpairmentModel,
    carried: u64,
    carried_bytes: u64,
}

/// A packet that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub from: u16,
    pub to: u16,
    pub packet: Bytes,
}

/// A switch with one port a host. Hosts are numbered from 1.
#[derive(Debug)]
pub struct Switch {
    hosts: u16,
    seed: u64,
    spec: ImpairmentSpec,
    /// By [`Switch::index`].
    ways: Vec<Way>,
    /// What is under way to each host.
    lines: Vec<HeldPackets<Due>>,
    /// Packets of each host that are for nobody here.
    strange: Vec<u64>,
}

impl Switch {
    /// For at most [`MAX_HOSTS`]. The same seed, rules, packets and times put the same packets out; the seed of the rules, where
    /// one is given, is laid over it.
    pub fn new(hosts: u16, seed: u64, spec: ImpairmentSpec) -> Switch {
        let hosts = hosts.min(MAX_HOSTS);
        let mut switch = Switch {
            hosts,
            seed,
            spec,
            ways: Vec::new(),
            lines: (0..hosts)
                .map(|_| HeldPackets::new(MAX_HELD_BYTES, MAX_HELD_PACKETS))
                .collect(),
            strange: vec![0; usize::from(hosts)],
        };
        for (from, to) in switch.pairs() {
            let seed = switch.seed_of(from, to);
            switch.ways.push(Way {
                model: ImpairmentModel::new(switch.impairment(from, to), seed),
                carried: 0,
                carried_bytes: 0,
            });
        }
        switch
    }

    fn pairs(&self) -> Vec<(u16, u16)> {
        let all = 1..=self.hosts;
        all.clone()
            .flat_map(|from| all.clone().map(move |to| (from, to)))
            .collect()
    }

    fn index(&self, from: u16, to: u16) -> Option<usize> {
        let all = 1..=self.hosts;
        (all.contains(&from) && all.contains(&to))
            .then(|| usize::from(from - 1) * usize::from(self.hosts) + usize::from(to - 1))
    }

    fn seed_of(&self, from: u16, to: u16) -> u64 {
        let seed = mixed_seed(self.seed, self.spec.seed());
        mixed_seed(mixed_seed(seed, from.into()), to.into())
    }

    fn impairment(&self, from: u16, to: u16) -> Impairment {
        match (NodeId::new(from.into()), NodeId::new(to.into())) {
            (Some(from), Some(to)) => self.spec.of_way(from, to),
            _ => Impairment::default(),
        }
    }

    pub fn spec(&self) -> &ImpairmentSpec {
        &self.spec
    }

    /// Holds from the next packet on. What is under way arrives as it would have.
    pub fn set(&mut self, spec: ImpairmentSpec) {
        self.spec = spec;
        for (index, (from, to)) in self.pairs().into_iter().enumerate() {
            let wanted = self.impairment(from, to);
            if let Some(way) = self.ways.get_mut(index)
                && *way.model.impairment() != wanted
            {
                way.model.set(wanted);
            }
        }
    }

    /// A host sends an IP packet at `now`, which never goes back. It is copied only if it arrives.
    pub fn packet(&mut self, now: Duration, from: u16, packet: &[u8]) {
        let to = destination(packet).and_then(|address| self.host_at(address));
        let found = to.and_then(|to| Some((to, self.index(from, to)?)));
        let Some((to, index)) = found else {
            if let Some(strange) = usize::from(from)
                .checked_sub(1)
                .and_then(|index| self.strange.get_mut(index))
            {
                *strange += 1;
            }
            return;
        };
        let (Some(way), Some(line)) = (
            self.ways.get_mut(index),
            self.lines.get_mut(usize::from(to) - 1),
        ) else {
            return;
        };
        let Fate::Arrives { at, copy } = way.model.ip_packet(now, packet.len()) else {
            return;
        };
        let contents = Bytes::copy_from_slice(packet);
        for at in std::iter::once(at).chain(copy) {
            let due = Due {
                from,
                to,
                packet: contents.clone(),
            };
            if !line.push(at, contents.len(), due) {
                way.model.note_overflow();
            }
        }
    }

    fn host_at(&self, address: Ipv4Addr) -> Option<u16> {
        (1..=self.hosts).find(|number| address_of(*number) == address)
    }

    /// A packet that has arrived by `now`. It counts as carried.
    pub fn next_due(&mut self, now: Duration) -> Option<Due> {
        let line = self
            .lines
            .iter_mut()
            .filter(|line| line.next_due().is_some_and(|due| due <= now))
            .min_by_key(|line| line.next_due())?;
        let due = line.pop_due(now)?;
        if let Some(way) = self
            .index(due.from, due.to)
            .and_then(|index| self.ways.get_mut(index))
        {
            way.carried += 1;
            way.carried_bytes += due.packet.len() as u64;
        }
        Some(due)
    }

    /// When the next packet arrives.
    pub fn wakes_at(&self) -> Option<Duration> {
        self.lines.iter().filter_map(HeldPackets::next_due).min()
    }

    /// Packets that are under way.
    pub fn under_way(&self) -> usize {
        self.lines.iter().map(HeldPackets::len).sum()
    }

    /// Of each way between two hosts.
    pub fn counts(&self) -> Vec<WayCounts> {
        let ways = self.pairs().into_iter().zip(&self.ways);
        ways.filter(|((from, to), _)| from != to)
            .map(|((from, to), way)| {
                let model = way.model.counts();
                WayCounts {
                    from,
                    to,
                    packets: model.packets,
                    carried: way.carried,
                    carried_bytes: way.carried_bytes,
                    lost: model.lost,
                    queue_full: model.queue_full,
                    cut: model.cut,
                    doubled: model.doubled,
                    held_back: model.held_back,
                    no_room: model.overflowed,
                }
            })
            .collect()
    }

    /// How many packets each host has sent that are for no host here: another protocol, a group, an address that nobody has.
    pub fn strange(&self) -> &[u64] {
        &self.strange
    }
}

/// Whom an IPv4 packet is for; `None` for anything else.
fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let header = packet.get(..IPV4_HEADER)?;
    if header[0] >> 4 != 4 {
        return None;
    }
    let address: [u8; 4] = header[16..].try_into().ok()?;
    Some(Ipv4Addr::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn switch(hosts: u16, rules: &str) -> Switch {
        Switch::new(hosts, 1, rules.parse().unwrap())
    }

    /// So many bytes with an IPv4 header, the last of them a mark.
    fn packet_to(to: Ipv4Addr, bytes: usize, mark: u8) -> Vec<u8> {
        let mut packet = vec![0; bytes];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&to.octets());
        packet[bytes - 1] = mark;
        packet
    }

    fn send(switch: &mut Switch, now: Duration, from: u16, to: u16, mark: u8) {
        switch.packet(now, from, &packet_to(address_of(to), 100, mark));
    }

    /// From, to and mark of everything that is due.
    fn drain(switch: &mut Switch, now: Duration) -> Vec<(u16, u16, u8)> {
        std::iter::from_fn(|| switch.next_due(now))
            .map(|due| (due.from, due.to, due.packet[due.packet.len() - 1]))
            .collect()
    }

    fn way(switch: &Switch, from: u16, to: u16) -> WayCounts {
        let counts = switch.counts();
        *counts
            .iter()
            .find(|way| (way.from, way.to) == (from, to))
            .unwrap()
    }

    #[test]
    fn a_packet_goes_to_the_host_whose_address_it_has_unchanged_and_when_it_is_due() {
        let mut switch = switch(3, "delay=10ms;host=1,peer=3,delay=5ms");
        send(&mut switch, ms(0), 1, 2, 7);
        send(&mut switch, ms(0), 1, 3, 8);
        send(&mut switch, ms(1), 3, 1, 9);
        assert_eq!(switch.wakes_at(), Some(ms(5)));
        assert!(switch.next_due(ms(4)).is_none());
        assert_eq!(drain(&mut switch, ms(9)), [(1, 3, 8)]);
        let due = switch.next_due(ms(10)).unwrap();
        assert_eq!(due.packet, packet_to(address_of(2), 100, 7));
        assert_eq!(switch.under_way(), 1);
        assert_eq!(drain(&mut switch, ms(11)), [(3, 1, 9)]);
        assert_eq!(switch.wakes_at(), None);
        let counts = way(&switch, 1, 2);
        assert_eq!(
            (counts.packets, counts.carried, counts.carried_bytes),
            (1, 1, 100)
        );
        assert_eq!(way(&switch, 2, 1).packets, 0);
    }

    #[test]
    fn packets_to_different_hosts_come_out_in_the_order_of_their_times() {
        let mut switch = switch(4, "peer=2,delay=3ms;peer=3,delay=1ms;peer=4,delay=2ms");
        for to in [2, 3, 4] {
            send(&mut switch, ms(0), 1, to, 0);
        }
        let order: Vec<_> = drain(&mut switch, ms(9)).iter().map(|due| due.1).collect();
        assert_eq!(order, [3, 4, 2]);
    }

    #[test]
    fn what_is_for_nobody_here_is_counted_and_goes_nowhere() {
        let mut switch = switch(2, "");
        let mut ipv6 = packet_to(address_of(2), 100, 0);
        ipv6[0] = 0x60;
        for packet in [
            &ipv6[..],
            &packet_to(address_of(3), 100, 0),
            &packet_to(Ipv4Addr::new(224, 0, 0, 22), 100, 0),
            &packet_to(Ipv4Addr::new(10, 77, 1, 2), 100, 0),
            &packet_to(address_of(2), 100, 0)[..19],
            &[],
        ] {
            switch.packet(ms(0), 1, packet);
        }
        assert_eq!(switch.strange(), [6, 0]);
        assert_eq!(switch.under_way(), 0);
        // From a port that is not there.
        for from in [0, 3, u16::MAX] {
            send(&mut switch, ms(0), from, 1, 0);
        }
        assert_eq!(switch.under_way(), 0);
    }

    #[test]
    fn every_packet_is_counted_once_by_what_became_of_it() {
        let rules = "loss=10%,rate=10mbit,queue=20,delay=5ms,dup=5%,reorder=5%";
        let mut switch = switch(2, rules);
        let mut carried = 0;
        for turn in 0..5_000_u64 {
            // 1,000 bytes each 0.5 ms are 16 Mbit/s.
            let now = Duration::from_micros(500 * turn);
            switch.packet(now, 1, &packet_to(address_of(2), 1000, 0));
            carried += drain(&mut switch, now).len() as u64;
        }
        carried += drain(&mut switch, ms(60_000)).len() as u64;
        let counts = way(&switch, 1, 2);
        assert_eq!(counts.packets, 5_000);
        assert!((400..600).contains(&counts.lost), "{counts:?}");
        // A copy that finds the queue full is lost alone, so few arrive.
        assert!(
            counts.queue_full > 1_000 && counts.doubled > 0 && counts.held_back > 50,
            "{counts:?}"
        );
        assert_eq!(counts.carried, carried);
        assert_eq!(
            counts.carried,
            counts.packets - counts.lost - counts.queue_full + counts.doubled
        );
        assert_eq!(counts.carried_bytes, 1000 * carried);
        // 2.5 s at 10 Mbit/s, and what was in the queue at the end.
        let mbit = counts.carried_bytes as f64 * 8.0 / 1e6;
        assert!((24.5..25.5).contains(&mbit), "{mbit}");
    }

    #[test]
    fn the_same_seed_rules_packets_and_times_put_the_same_packets_out() {
        let run = |seed, rules: &str| {
            let mut switch = Switch::new(3, seed, rules.parse().unwrap());
            let mut seen = Vec::new();
            for turn in 0..400 {
                send(&mut switch, ms(turn), 1, 2, turn as u8);
                send(&mut switch, ms(turn), 2, 3, turn as u8);
                seen.push(drain(&mut switch, ms(turn)));
            }
            seen
        };
        let rules = "loss=30%,delay=5ms,jitter=4ms,reorder=5%";
        assert_eq!(run(1, rules), run(1, rules));
        assert_ne!(run(1, rules), run(2, rules));
        assert_ne!(run(1, rules), run(1, &format!("{rules},seed=9")));
        let mut two = switch(3, "loss=50%");
        for turn in 0..200 {
            for (from, to) in [(1, 2), (2, 1)] {
                send(&mut two, ms(turn), from, to, turn as u8);
            }
        }
        let all = drain(&mut two, ms(200));
        let marks = |from| -> Vec<u8> {
            let of = all.iter().filter(|due| due.0 == from);
            of.map(|due| due.2).collect()
        };
        assert_ne!(marks(1), marks(2), "each way has a chance of its own");
    }

    #[test]
    fn other_rules_hold_from_the_next_packet_on() {
        let mut switch = switch(3, "delay=10ms");
        send(&mut switch, ms(0), 1, 2, 1);
        switch.set("delay=10ms;host=2,cut=both".parse().unwrap());
        for (from, to) in [(1, 2), (2, 3), (1, 3)] {
            send(&mut switch, ms(1), from, to, 2);
        }
        assert_eq!(drain(&mut switch, ms(20)), [(1, 2, 1), (1, 3, 2)]);
        assert_eq!((way(&switch, 1, 2).cut, way(&switch, 2, 3).cut), (1, 1));
        switch.set("".parse().unwrap());
        send(&mut switch, ms(21), 1, 2, 3);
        assert_eq!(drain(&mut switch, ms(21)), [(1, 2, 3)]);
    }

    #[test]
    fn more_than_a_lab_holds_is_dropped_and_counted() {
        let mut switch = switch(2, "delay=60s");
        let large = packet_to(address_of(2), 1500, 0);
        let taken = (MAX_HELD_BYTES / 1500).min(MAX_HELD_PACKETS);
        for _ in 0..taken + 5 {
            switch.packet(ms(0), 1, &large);
        }
        assert_eq!(switch.under_way(), taken);
        assert_eq!(way(&switch, 1, 2).no_room, 5);
        // The way back is no worse for it.
        send(&mut switch, ms(0), 2, 1, 0);
        assert_eq!(switch.under_way(), taken + 1);
    }
}
