//! What one process does to its links: the table, with a clock and for all of its sockets.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::link_table::{Link, LinkTable};
use super::model::ImpairmentCounts;
use super::spec::ImpairmentSpec;
use crate::types::NodeId;

/// Links that a socket remembers, and for how long, so that it need not ask for each packet.
const MAX_CACHED: usize = 1024;
const CACHED_FOR: Duration = Duration::from_secs(10);

/// What every link of this process suffers. All its sockets share it, and it may be changed while they are in use.
#[derive(Debug)]
pub struct ImpairedLinks {
    own: Option<NodeId>,
    started: Instant,
    table: Mutex<LinkTable>,
    /// Counts what makes links that sockets remember stale.
    generation: AtomicU64,
    changed: watch::Sender<()>,
}

impl ImpairedLinks {
    /// `own` is this node; `None` for a client, which announces itself to nobody.
    pub fn new(own: Option<NodeId>, spec: ImpairmentSpec) -> Arc<ImpairedLinks> {
        Arc::new(ImpairedLinks {
            own,
            started: Instant::now(),
            table: Mutex::new(LinkTable::new(own, spec)),
            generation: AtomicU64::new(0),
            changed: watch::Sender::new(()),
        })
    }

    pub fn spec(&self) -> ImpairmentSpec {
        self.table().spec().clone()
    }

    /// Holds from the next packet on.
    pub fn set(&self, spec: ImpairmentSpec) {
        self.table().set(spec);
        self.changed.send_replace(());
    }

    /// What became of the packets to each node that is known by its number, since this process has had a link to it.
    pub fn counts(&self) -> BTreeMap<NodeId, ImpairmentCounts> {
        self.table().counts()
    }

    /// A node listens at `remote`; `None` where it is not known yet which.
    pub(in crate::transport) fn listens(&self, remote: SocketAddr, node: Option<NodeId>) {
        if self.table().listens(self.now(), remote, node) {
            self.make_stale();
        }
    }

    pub(super) fn announced(&self, now: Duration, remote: SocketAddr, node: NodeId) {
        if self.table().announced(now, remote, node) {
            self.make_stale();
        }
    }

    /// How much later than by the kernel alone an answer of `remote` comes; `None` if none does, because the way is cut.
    pub(in crate::transport) fn answer_delay(&self, remote: SocketAddr) -> Option<Duration> {
        let link = self.link_to(self.now(), remote);
        let (out, back) = (link.outward.impairment(), link.inward.impairment());
        (!out.cut && !back.cut).then_some(out.delay + back.delay)
    }

    pub(super) fn link_to(&self, now: Duration, remote: SocketAddr) -> Arc<Link> {
        self.table().link_to(now, remote)
    }

    pub(super) fn own(&self) -> Option<NodeId> {
        self.own
    }

    /// Time since this was made: what the models know of time.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn instant(&self, at: Duration) -> Instant {
        self.started + at
    }

    /// Tells of every change of the spec.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn make_stale(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn table(&self) -> MutexGuard<'_, LinkTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The links that one socket has looked for.
#[derive(Debug, Default)]
pub(super) struct LinkCache {
    links: HashMap<SocketAddr, Arc<Link>>,
    generation: u64,
    since: Duration,
}

impl LinkCache {
    pub(super) fn find(
        &mut self,
        links: &ImpairedLinks,
        now: Duration,
        remote: SocketAddr,
    ) -> Arc<Link> {
        let generation = links.generation.load(Ordering::Acquire);
        if self.generation != generation
            || now.saturating_sub(self.since) > CACHED_FOR
            || self.links.len() >= MAX_CACHED
        {
            self.links.clear();
            self.generation = generation;
            self.since = now;
        }
        let found = self.links.entry(remote);
        Arc::clone(found.or_insert_with(|| links.link_to(now, remote)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_socket_remembers_does_not_outlive_what_it_was_told_of() {
        let links = ImpairedLinks::new(NodeId::new(1), "cut=both".parse().unwrap());
        let remote = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut cache = LinkCache::default();
        let now = links.now();
        assert!(cache.find(&links, now, remote).outward.is_clear());
        links.announced(now, remote, NodeId::new(2).unwrap());
        assert!(!cache.find(&links, now, remote).outward.is_clear());
        links.set(ImpairmentSpec::default());
        assert!(cache.find(&links, now, remote).outward.is_clear());
    }
}
