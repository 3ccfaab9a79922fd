//! Who is at which address, and what becomes of the packets of each link. No clock and no I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::model::{Impairment, ImpairmentCounts, ImpairmentModel, mixed};
use super::spec::{ImpairmentSpec, LinkEnd, LinkImpairment};
use crate::types::NodeId;

/// Addresses whose node is remembered. At the cap, the one that was last heard of longest ago is forgotten, and counts as a
/// client's until it is heard of again.
const MAX_KNOWN: usize = 4096;
/// Links. At the cap, the one that was looked for longest ago is forgotten: its queue begins anew when it is used again.
const MAX_LINKS: usize = 2048;
/// A node's port that has not been announced for so long may be another's by now.
const FORGET_AFTER: Duration = Duration::from_secs(120);

/// Both ways of one link. All sockets of a process share it: a link's rate is not the rate of each connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) outward: Way,
    pub(super) inward: Way,
    rebind: AtomicU64,
}

impl Link {
    fn new(impairment: &LinkImpairment, seed: u64) -> Link {
        Link {
            outward: Way::new(impairment.outward, mixed(seed, 0)),
            inward: Way::new(impairment.inward, mixed(seed, 1)),
            rebind: AtomicU64::new(impairment.rebind),
        }
    }

    /// See [`LinkImpairment::rebind`].
    pub(super) fn rebind(&self) -> u64 {
        self.rebind.load(Ordering::Relaxed)
    }
}

/// One way of a link.
#[derive(Debug)]
pub(super) struct Way {
    model: Mutex<ImpairmentModel>,
    /// Nothing is done to packets: they need not be taken apart.
    clear: AtomicBool,
}

impl Way {
    fn new(impairment: Impairment, seed: u64) -> Way {
        Way {
            clear: AtomicBool::new(impairment.is_none()),
            model: Mutex::new(ImpairmentModel::new(impairment, seed)),
        }
    }

    pub(super) fn is_clear(&self) -> bool {
        self.clear.load(Ordering::Relaxed)
    }

    pub(super) fn model(&self) -> MutexGuard<'_, ImpairmentModel> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn impairment(&self) -> Impairment {
        *self.model().impairment()
    }

    fn set(&self, impairment: Impairment, new_seed: Option<u64>) {
        let mut model = self.model();
        if let Some(seed) = new_seed {
            *model = ImpairmentModel::new(impairment, seed);
        } else if *model.impairment() != impairment {
            model.set(impairment);
        }
        self.clear.store(impairment.is_none(), Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum LinkName {
    Node(NodeId),
    SomeNode(SocketAddr),
    Client(SocketAddr),
}

impl LinkName {
    fn end(self) -> LinkEnd {
        match self {
            LinkName::Node(node) => LinkEnd::Node(node),
            LinkName::SomeNode(_) => LinkEnd::SomeNode,
            LinkName::Client(_) => LinkEnd::Client,
        }
    }
}

#[derive(Debug)]
struct Known {
    /// `None`: a node, but not known which.
    node: Option<NodeId>,
    heard: Duration,
    /// A node listens there: that does not pass with silence.
    listens: bool,
}

#[derive(Debug)]
struct Entry {
    link: Arc<Link>,
    used: Duration,
    /// What its randomness begins with, besides the spec's seed.
    number: u64,
}

/// What one process does to its links.
#[derive(Debug)]
pub(super) struct LinkTable {
    own: Option<NodeId>,
    spec: ImpairmentSpec,
    known: HashMap<SocketAddr, Known>,
    links: HashMap<LinkName, Entry>,
    strangers: u64,
}

impl LinkTable {
    pub(super) fn new(own: Option<NodeId>, spec: ImpairmentSpec) -> LinkTable {
        LinkTable {
            own,
            spec,
            known: HashMap::new(),
            links: HashMap::new(),
            strangers: 0,
        }
    }

    pub(super) fn spec(&self) -> &ImpairmentSpec {
        &self.spec
    }

    /// Holds for the next packet of every link. Another seed begins all randomness anew.
    pub(super) fn set(&mut self, spec: ImpairmentSpec) {
        let is_new_seed = spec.seed() != self.spec.seed();
        self.spec = spec;
        for (name, entry) in &self.links {
            let wanted = self.spec.of_host(self.own, name.end());
            let seed = self.seed(entry.number);
            let new_seed = |way| is_new_seed.then(|| mixed(seed, way));
            entry.link.outward.set(wanted.outward, new_seed(0));
            entry.link.inward.set(wanted.inward, new_seed(1));
            entry.link.rebind.store(wanted.rebind, Ordering::Relaxed);
        }
    }

    /// A node listens at `remote`; `None` where it is not known yet which. True if that is news: links looked for before may
    /// be others now.
    pub(super) fn listens(
        &mut self,
        now: Duration,
        remote: SocketAddr,
        node: Option<NodeId>,
    ) -> bool {
        // Who does not know it knows less than this table may.
        let node = node.or_else(|| self.known.get(&canonical(remote))?.node);
        self.know(now, remote, node, true)
    }

    /// A node has announced that it sends from `remote`. True if that is news.
    pub(super) fn announced(&mut self, now: Duration, remote: SocketAddr, node: NodeId) -> bool {
        self.know(now, remote, Some(node), false)
    }

    fn know(
        &mut self,
        now: Duration,
        remote: SocketAddr,
        node: Option<NodeId>,
        listens: bool,
    ) -> bool {
        let remote = canonical(remote);
        if let Some(known) = self.known.get_mut(&remote) {
            known.heard = now;
            known.listens |= listens;
            return std::mem::replace(&mut known.node, node) != node;
        }
        if self.known.len() >= MAX_KNOWN {
            forget(&mut self.known, |known| known.heard);
        }
        let known = Known {
            node,
            heard: now,
            listens,
        };
        self.known.insert(remote, known);
        true
    }

    /// What became of the packets to each node.
    pub(super) fn counts(&self) -> BTreeMap<NodeId, ImpairmentCounts> {
        let links = self.links.iter();
        links
            .filter_map(|(name, entry)| match name {
                LinkName::Node(node) => Some((*node, entry.link.outward.model().counts())),
                LinkName::SomeNode(_) | LinkName::Client(_) => None,
            })
            .collect()
    }

    /// The link that packets to and from `remote` go over.
    pub(super) fn link_to(&mut self, now: Duration, remote: SocketAddr) -> Arc<Link> {
        let name = self.name(now, canonical(remote));
        if let Some(entry) = self.links.get_mut(&name) {
            entry.used = now;
            return Arc::clone(&entry.link);
        }
        if self.links.len() >= MAX_LINKS {
            forget(&mut self.links, |entry| entry.used);
        }
        let number = match name {
            LinkName::Node(node) => u64::from(node.get()),
            LinkName::SomeNode(_) | LinkName::Client(_) => {
                self.strangers += 1;
                u64::from(u32::MAX) + self.strangers
            }
        };
        let link = Arc::new(Link::new(
            &self.spec.of_host(self.own, name.end()),
            self.seed(number),
        ));
        let entry = Entry {
            link: Arc::clone(&link),
            used: now,
            number,
        };
        self.links.insert(name, entry);
        link
    }

    fn name(&mut self, now: Duration, remote: SocketAddr) -> LinkName {
        let Some(known) = self.known.get(&remote) else {
            return LinkName::Client(remote);
        };
        if !known.listens && now.saturating_sub(known.heard) > FORGET_AFTER {
            self.known.remove(&remote);
            return LinkName::Client(remote);
        }
        match known.node {
            Some(node) => LinkName::Node(node),
            None => LinkName::SomeNode(remote),
        }
    }

    fn seed(&self, number: u64) -> u64 {
        let own = self.own.map_or(0, |node| u64::from(node.get()));
        mixed(mixed(self.spec.seed(), own), number)
    }
}

/// As IPv4 where it is that in IPv6's clothes: a socket for both shows it so.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn forget<K: Copy + Eq + std::hash::Hash, V>(
    map: &mut HashMap<K, V>,
    used: impl Fn(&V) -> Duration,
) {
    let oldest = map.iter().min_by_key(|(_, value)| used(value));
    if let Some(key) = oldest.map(|(key, _)| *key) {
        map.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::Fate;
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn table(spec: &str) -> LinkTable {
        LinkTable::new(NodeId::new(1), spec.parse().unwrap())
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn is_cut(link: &Link) -> bool {
        link.outward.impairment().cut
    }

    #[test]
    fn who_is_not_known_is_a_client_until_it_announces_itself() {
        let mut table = table("cut=both;peer=3,cut=none;peer=clients,loss=1%");
        assert_eq!(
            table.link_to(NOW, address(9)).outward.impairment().loss,
            0.01
        );
        assert!(table.announced(NOW, address(9), node(2)));
        assert!(!table.announced(NOW, address(9), node(2)));
        assert!(is_cut(&table.link_to(NOW, address(9))));
        assert!(table.announced(NOW, address(9), node(3)));
        assert!(!is_cut(&table.link_to(NOW, address(9))));
    }

    #[test]
    fn all_addresses_of_a_node_are_one_link_and_those_of_clients_are_not() {
        let mut table = table("");
        table.listens(NOW, address(1), Some(node(2)));
        table.announced(NOW, "[::ffff:127.0.0.1]:2".parse().unwrap(), node(2));
        let one = table.link_to(NOW, address(1));
        assert!(Arc::ptr_eq(&one, &table.link_to(NOW, address(2))));
        let client = table.link_to(NOW, address(3));
        assert!(!Arc::ptr_eq(&client, &table.link_to(NOW, address(4))));
        assert!(Arc::ptr_eq(&client, &table.link_to(NOW, address(3))));
    }

    #[test]
    fn a_node_whose_number_is_not_known_suffers_what_nodes_do_and_then_what_it_does() {
        let mut table = table("loss=1%;peer=2,loss=2%");
        assert!(table.listens(NOW, address(1), None));
        assert_eq!(
            table.link_to(NOW, address(1)).outward.impairment().loss,
            0.01
        );
        assert!(table.listens(NOW, address(1), Some(node(2))));
        assert_eq!(
            table.link_to(NOW, address(1)).outward.impairment().loss,
            0.02
        );
        // Who dials it anew without knowing does not make it unknown.
        assert!(!table.listens(NOW, address(1), None));
    }

    #[test]
    fn a_change_reaches_links_that_are_in_use() {
        let mut table = table("");
        table.listens(NOW, address(1), Some(node(2)));
        let link = table.link_to(NOW, address(1));
        assert!(link.outward.is_clear() && link.inward.is_clear());
        table.set("peer=2,cut=in,rebind=4".parse().unwrap());
        assert!(link.outward.is_clear() && !link.inward.is_clear());
        assert_eq!(link.rebind(), 4);
        table.set("peer=3,cut=in".parse().unwrap());
        assert!(link.inward.is_clear());
        assert_eq!(link.rebind(), 0);
    }

    #[test]
    fn a_change_leaves_the_queue_of_a_link_that_it_does_not_touch() {
        let mut table = table("rate=1mbit");
        table.listens(NOW, address(1), Some(node(2)));
        let link = table.link_to(NOW, address(1));
        let arrival = |link: &Link| match link.outward.model().packet(NOW, 1222) {
            Fate::Arrives { at, .. } => at - NOW,
            Fate::Dropped(cause) => panic!("{cause:?}"),
        };
        assert_eq!(arrival(&link), Duration::from_millis(10));
        table.set("rate=1mbit;peer=3,cut=both".parse().unwrap());
        assert_eq!(arrival(&link), Duration::from_millis(20));
    }

    #[test]
    fn ways_links_and_ends_draw_differently_and_repeatably() {
        let fates = |own: u32, peer: u32, spec: &str, is_outward: bool| -> Vec<Fate> {
            let mut table = LinkTable::new(NodeId::new(own), spec.parse().unwrap());
            table.listens(NOW, address(1), Some(node(peer)));
            let link = table.link_to(NOW, address(1));
            let way = if is_outward {
                &link.outward
            } else {
                &link.inward
            };
            (0..200).map(|_| way.model().packet(NOW, 100)).collect()
        };
        let spec = "dir=both,loss=50%,seed=1";
        let one = fates(1, 2, spec, true);
        assert_eq!(one, fates(1, 2, spec, true));
        for other in [
            fates(1, 2, spec, false),
            fates(1, 3, spec, true),
            fates(2, 1, spec, true),
            fates(1, 2, "dir=both,loss=50%,seed=2", true),
        ] {
            assert_ne!(one, other);
        }
        // Another seed holds for a link in use as well.
        let mut table = table("dir=both,loss=50%,seed=2");
        table.listens(NOW, address(1), Some(node(2)));
        let link = table.link_to(NOW, address(1));
        table.set(spec.parse().unwrap());
        let again: Vec<_> = (0..200)
            .map(|_| link.outward.model().packet(NOW, 100))
            .collect();
        assert_eq!(again, one);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut table = table("");
        table.listens(Duration::ZERO, address(1), Some(node(2)));
        for turn in 0..MAX_KNOWN as u64 + 10 {
            let now = NOW + Duration::from_millis(turn);
            let remote = SocketAddr::from(([10, 0, (turn >> 8) as u8, turn as u8], 1));
            table.announced(now, remote, node(5));
            table.listens(now, address(1), Some(node(2)));
            table.link_to(
                now,
                SocketAddr::from(([11, 0, (turn >> 8) as u8, turn as u8], 1)),
            );
        }
        assert_eq!(table.known.len(), MAX_KNOWN);
        assert_eq!(table.links.len(), MAX_LINKS);
        assert!(table.known.contains_key(&address(1)));
    }

    #[test]
    fn a_port_that_is_not_announced_any_more_is_a_clients_again() {
        let mut table = table("cut=both");
        table.announced(NOW, address(1), node(2));
        table.listens(NOW, address(2), Some(node(2)));
        let later = NOW + FORGET_AFTER;
        assert!(is_cut(&table.link_to(later, address(1))));
        let later = later + Duration::from_millis(1);
        assert!(!is_cut(&table.link_to(later, address(1))));
        assert!(is_cut(&table.link_to(later, address(2))));
    }
}
