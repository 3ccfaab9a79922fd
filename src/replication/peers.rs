//! Which other nodes can be heard.

use std::collections::BTreeMap;
use std::time::Duration;

use super::deliveries::Deliveries;
use crate::types::{MonotonicTime, NodeId};

/// The least silence after which a node counts as not heard, whatever its round trip.
pub const MINIMUM_SUSPICION: Duration = Duration::from_millis(300);

/// When each other node was last heard on a replication connection, and how long its silence may last.
#[derive(Debug, Default, Clone)]
pub struct Peers {
    /// At most one entry a registered node, so the registry's cap bounds it.
    heard: BTreeMap<NodeId, Heard>,
    /// Of those to which anything was delivered; as many at most.
    deliveries: BTreeMap<NodeId, Deliveries>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    at: MonotonicTime,
    suspicion: Duration,
    rtt: Duration,
}

impl Peers {
    pub fn new() -> Peers {
        Peers::default()
    }

    /// `node` was heard at `at`. `suspicion` is how long a silence of this node is normal:
    /// max([`MINIMUM_SUSPICION`], 2 × smoothed RTT + 4 × its variance). `rtt` is the smoothed round trip. An older report than
    /// the last one changes nothing.
    pub fn handle_heard(
        &mut self,
        node: NodeId,
        at: MonotonicTime,
        suspicion: Duration,
        rtt: Duration,
    ) {
        let heard = Heard {
            at,
            suspicion: suspicion.max(MINIMUM_SUSPICION),
            rtt,
        };
        let known = self.heard.entry(node).or_insert(heard);
        if known.at <= at {
            *known = heard;
        }
    }

    /// Whether `node` spoke within its suspicion time. `since` stands in for a node that was never heard: a leader gives
    /// its followers as long to dial as it would give them to speak.
    pub fn is_heard(&self, node: NodeId, since: MonotonicTime, now: MonotonicTime) -> bool {
        let (at, suspicion) = match self.heard.get(&node) {
            Some(heard) => (heard.at.max(since), heard.suspicion),
            None => (since, MINIMUM_SUSPICION),
        };
        now.since(at) <= suspicion
    }

    /// When `node` was last heard.
    pub fn last_heard(&self, node: NodeId) -> Option<MonotonicTime> {
        self.heard.get(&node).map(|heard| heard.at)
    }

    /// The smoothed round trip to `node`; zero while it is not known.
    pub fn rtt(&self, node: NodeId) -> Duration {
        self.heard
            .get(&node)
            .map_or(Duration::ZERO, |heard| heard.rtt)
    }

    /// `node` acknowledged something at `at` that had been under way to it for so long, whatever partition it was of.
    pub fn handle_delivered(&mut self, node: NodeId, at: MonotonicTime, waited: Duration) {
        self.deliveries
            .entry(node)
            .and_modify(|known| known.add(at, waited))
            .or_insert_with(|| Deliveries::first(at, waited));
    }

    /// How long deliveries to `node` take; `None` before the first.
    pub fn deliveries(&self, node: NodeId) -> Option<Deliveries> {
        self.deliveries.get(&node).copied()
    }

    /// Forgets a node that was removed from the cluster.
    pub fn forget(&mut self, node: NodeId) {
        self.heard.remove(&node);
        self.deliveries.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::new(2).unwrap();

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn silence_beyond_the_suspicion_time_is_not_being_heard() {
        let mut peers = Peers::new();
        assert!(peers.is_heard(NODE, at(0), at(300)), "time to dial");
        assert!(!peers.is_heard(NODE, at(0), at(301)));

        peers.handle_heard(NODE, at(1000), Duration::from_millis(800), Duration::ZERO);
        assert!(peers.is_heard(NODE, at(0), at(1800)));
        assert!(!peers.is_heard(NODE, at(0), at(1801)));
    }

    #[test]
    fn a_late_report_of_an_early_sign_of_life_changes_nothing() {
        let mut peers = Peers::new();
        peers.handle_heard(NODE, at(1000), MINIMUM_SUSPICION, Duration::ZERO);
        peers.handle_heard(NODE, at(400), Duration::from_secs(60), Duration::ZERO);
        assert!(!peers.is_heard(NODE, at(0), at(1301)));
    }
}
