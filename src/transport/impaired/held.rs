//! Packets that are on their way and not due yet, whatever a packet is. No clock and no I/O.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

#[derive(Debug)]
struct Held<P> {
    at: Duration,
    turn: u64,
    bytes: usize,
    packet: P,
}

impl<P> PartialEq for Held<P> {
    fn eq(&self, other: &Held<P>) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<P> Eq for Held<P> {}

impl<P> PartialOrd for Held<P> {
    fn partial_cmp(&self, other: &Held<P>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for Held<P> {
    /// The one that is due first is the greatest; of those that are due together, the one that came first.
    fn cmp(&self, other: &Held<P>) -> Ordering {
        (other.at, other.turn).cmp(&(self.at, self.turn))
    }
}

/// Packets by the time at which they arrive. What comes beyond its bounds is dropped and counted, as by a router whose memory is
/// full.
#[derive(Debug)]
pub struct HeldPackets<P> {
    held: BinaryHeap<Held<P>>,
    bytes: usize,
    max_bytes: usize,
    max_packets: usize,
    turns: u64,
    overflowed: u64,
}

impl<P> HeldPackets<P> {
    pub fn new(max_bytes: usize, max_packets: usize) -> HeldPackets<P> {
        HeldPackets {
            held: BinaryHeap::new(),
            bytes: 0,
            max_bytes,
            max_packets,
            turns: 0,
            overflowed: 0,
        }
    }

    /// Holds a packet of `bytes` until `at`. False when there is no room for it.
    pub fn push(&mut self, at: Duration, bytes: usize, packet: P) -> bool {
        if self.held.len() >= self.max_packets || self.bytes + bytes > self.max_bytes {
            self.overflowed += 1;
            return false;
        }
        self.bytes += bytes;
        self.turns += 1;
        self.held.push(Held {
            at,
            turn: self.turns,
            bytes,
            packet,
        });
        true
    }

    /// The first packet, if it is due by `now`.
    pub fn pop_due(&mut self, now: Duration) -> Option<P> {
        self.pop_due_if(now, |_| true)
    }

    /// The first packet, if it is due by `now` and wanted.
    pub fn pop_due_if(&mut self, now: Duration, wanted: impl Fn(&P) -> bool) -> Option<P> {
        let first = self.held.peek()?;
        if first.at > now || !wanted(&first.packet) {
            return None;
        }
        let held = self.held.pop()?;
        self.bytes -= held.bytes;
        Some(held.packet)
    }

    /// When the first packet is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.held.peek().map(|held| held.at)
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Packets that found no room since it was last asked.
    pub fn take_overflowed(&mut self) -> u64 {
        std::mem::take(&mut self.overflowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_first_comes_first_and_what_is_due_together_in_its_order() {
        let ms = Duration::from_millis;
        let mut held = HeldPackets::new(100, 10);
        for (at, packet) in [(3, 'd'), (1, 'a'), (1, 'b'), (2, 'c')] {
            assert!(held.push(ms(at), 10, packet));
        }
        assert_eq!(held.pop_due(ms(0)), None);
        let due: String = std::iter::from_fn(|| held.pop_due(ms(2))).collect();
        assert_eq!(due, "abc");
        assert_eq!(held.next_due(), Some(ms(3)));
        assert_eq!(held.pop_due_if(ms(9), |packet| *packet == 'x'), None);
        assert_eq!(held.pop_due_if(ms(9), |packet| *packet == 'd'), Some('d'));
        assert!(held.is_empty());
    }

    #[test]
    fn it_takes_no_more_than_its_bounds_until_something_has_left() {
        let mut held = HeldPackets::new(100, 3);
        assert!(held.push(Duration::ZERO, 60, 1));
        assert!(!held.push(Duration::ZERO, 41, 2));
        assert!(held.push(Duration::ZERO, 1, 3));
        assert!(held.push(Duration::ZERO, 1, 4));
        assert!(!held.push(Duration::ZERO, 1, 5));
        assert_eq!(
            (held.len(), held.take_overflowed(), held.take_overflowed()),
            (3, 2, 0)
        );
        held.pop_due(Duration::ZERO);
        assert!(held.push(Duration::ZERO, 90, 6));
    }
}
