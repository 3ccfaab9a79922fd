//! Which nodes are alive, as one controller hears them. No clock: time comes in as the time since the controller started.
//!
//! Any authenticated message counts as life. Silence counts only while the controller could have heard: while a majority
//! of the voters reached it, and while it ran itself. The silence timeout is fixed for now; a detector that scales with the
//! round trip goes in [`Liveness::new`]'s place of `timeout`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::metadata::{MAX_NODES, Registration};
use crate::types::{Incarnation, NodeId};

/// Processes of one node that are remembered. Older ones are forgotten: their messages do not arrive any more.
const MAX_PROCESSES: usize = 3;

/// When one process of a node was heard.
#[derive(Clone, Copy, Debug)]
struct Process {
    incarnation: Incarnation,
    first: Duration,
    last: Duration,
}

/// What one controller knows of the others' being alive.
#[derive(Debug)]
pub(super) struct Liveness {
    me: NodeId,
    voters: BTreeSet<NodeId>,
    /// Silence after which a node is held for dead.
    timeout: Duration,
    /// At most [`MAX_NODES`]; further ones are not heard until they are registered in the place of others.
    heard: BTreeMap<NodeId, Vec<Process>>,
    /// Since when silence counts without a break.
    listening_since: Duration,
    last_tick: Duration,
}

impl Liveness {
    pub(super) fn new(me: NodeId, voters: BTreeSet<NodeId>, timeout: Duration) -> Liveness {
        Liveness {
            me,
            voters,
            timeout,
            heard: BTreeMap::new(),
            listening_since: Duration::ZERO,
            last_tick: Duration::ZERO,
        }
    }

    /// A message of `node`, from its process `incarnation`, has arrived.
    pub(super) fn heard(&mut self, node: NodeId, incarnation: Incarnation, now: Duration) {
        if !self.heard.contains_key(&node) && self.heard.len() >= MAX_NODES {
            return;
        }
        let processes = self.heard.entry(node).or_default();
        match processes.iter_mut().find(|p| p.incarnation == incarnation) {
            Some(process) => process.last = process.last.max(now),
            None => {
                if processes.len() >= MAX_PROCESSES {
                    processes.remove(0);
                }
                processes.push(Process {
                    incarnation,
                    first: now,
                    last: now,
                });
            }
        }
    }

    /// To be called several times within the timeout. A longer gap says that this process itself was held up, and that
    /// what it did not hear in the meantime says nothing.
    pub(super) fn tick(&mut self, now: Duration) {
        let held_up = now.saturating_sub(self.last_tick) > self.timeout / 2;
        self.last_tick = now;
        if held_up || !self.hears_majority(now) {
            self.listening_since = now;
        }
    }

    /// Whether a majority of the voters, this node included if it is one, has been heard within the timeout.
    pub(super) fn hears_majority(&self, now: Duration) -> bool {
        let heard = self
            .voters
            .iter()
            .filter(|&&voter| voter == self.me || self.heard_since(voter, now))
            .count();
        heard > self.voters.len() / 2
    }

    fn heard_since(&self, node: NodeId, now: Duration) -> bool {
        self.heard.get(&node).is_some_and(|processes| {
            processes
                .iter()
                .any(|process| now.saturating_sub(process.last) < self.timeout)
        })
    }

    /// The registered nodes whose registered process is alive.
    pub(super) fn alive<'a>(
        &self,
        registered: impl Iterator<Item = &'a Registration>,
        now: Duration,
    ) -> BTreeSet<NodeId> {
        registered
            .filter(|registration| self.is_alive(registration, now))
            .map(|registration| registration.node)
            .collect()
    }

    fn is_alive(&self, registration: &Registration, now: Duration) -> bool {
        if registration.node == self.me {
            return true;
        }
        let processes = self
            .heard
            .get(&registration.node)
            .map_or(&[][..], Vec::as_slice);
        let process = processes
            .iter()
            .find(|process| process.incarnation == registration.incarnation);
        // A later process of the same node says that this one is gone, without waiting. A late message of an earlier
        // process does not: it was first heard before.
        if process.is_some_and(|p| processes.iter().any(|other| other.first > p.last)) {
            return false;
        }
        let last = process.map_or(Duration::ZERO, |process| process.last);
        now.saturating_sub(last.max(self.listening_since)) < self.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{Endpoint, METADATA_VERSION};
    use crate::types::DirectoryId;

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn incarnation(bits: u64) -> Incarnation {
        Incarnation::from_random_bits(bits)
    }

    fn registration(id: u32, bits: u64) -> Registration {
        Registration {
            node: node(id),
            directory: DirectoryId::from_random_bits(u128::from(id)),
            incarnation: incarnation(bits),
            quic: Endpoint {
                host: "h".to_owned(),
                port: 1,
            },
            kafka: None,
            boot_id: None,
            metadata_version: METADATA_VERSION,
        }
    }

    /// Node 1 of three controllers; node 4 is a broker.
    fn liveness() -> Liveness {
        Liveness::new(node(1), (1..=3).map(node).collect(), ms(1000))
    }

    fn alive(liveness: &Liveness, now: u64) -> Vec<u32> {
        let all = [1, 2, 3, 4].map(|id| registration(id, 7));
        liveness
            .alive(all.iter(), ms(now))
            .into_iter()
            .map(NodeId::get)
            .collect()
    }

    fn run(liveness: &mut Liveness, from: u64, to: u64, speaking: &[u32]) {
        for now in (from..to).step_by(100) {
            for &id in speaking {
                liveness.heard(node(id), incarnation(7), ms(now));
            }
            liveness.tick(ms(now));
        }
    }

    #[test]
    fn silence_counts_only_while_a_majority_is_heard() {
        let mut l = liveness();
        run(&mut l, 0, 2000, &[2, 3, 4]);
        assert_eq!(alive(&l, 2000), [1, 2, 3, 4]);
        run(&mut l, 2000, 3100, &[2, 3]);
        assert_eq!(alive(&l, 3000), [1, 2, 3]);
        run(&mut l, 3100, 9000, &[]);
        assert!(!l.hears_majority(ms(9000)));
        assert_eq!(alive(&l, 8900), [1, 2, 3, 4], "nobody is buried unheard");
        run(&mut l, 9000, 9500, &[2]);
        assert!(l.hears_majority(ms(9500)));
        assert_eq!(alive(&l, 9500), [1, 2, 3, 4]);
        run(&mut l, 9500, 10_500, &[2]);
        assert_eq!(alive(&l, 10_400), [1, 2]);
    }

    #[test]
    fn a_pause_of_this_process_buries_nobody() {
        let mut l = liveness();
        run(&mut l, 0, 1000, &[2, 3, 4]);
        l.heard(node(2), incarnation(7), ms(60_000));
        l.tick(ms(60_000));
        assert_eq!(alive(&l, 60_100), [1, 2, 3, 4]);
    }

    #[test]
    fn a_restart_is_noticed_at_once_and_a_late_message_is_no_restart() {
        let mut l = liveness();
        l.heard(node(4), incarnation(6), ms(0));
        run(&mut l, 0, 1000, &[2, 3, 4]);
        l.heard(node(4), incarnation(6), ms(950));
        assert_eq!(alive(&l, 1000), [1, 2, 3, 4]);
        l.heard(node(4), incarnation(8), ms(1000));
        assert_eq!(alive(&l, 1000), [1, 2, 3]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut l = liveness();
        for bits in 0..100 {
            l.heard(node(2), incarnation(bits), ms(bits));
        }
        assert_eq!(l.heard[&node(2)].len(), MAX_PROCESSES);
        for id in 1..=1000 {
            l.heard(node(id), incarnation(1), ms(1));
        }
        assert_eq!(l.heard.len(), MAX_NODES);
    }
}
