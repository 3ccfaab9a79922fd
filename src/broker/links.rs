//! What this node's replication connections are doing, for views and metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::Connection;
use serde::{Deserialize, Serialize};

use super::heartbeat::LastHeard;
use crate::types::NodeId;

/// Which end of the connection this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkDirection {
    /// The peer leads partitions that this node follows; this node has dialled.
    ToLeader,
    /// The peer follows partitions that this node leads.
    ToFollower,
}

/// One replication connection as this node sees it now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkView {
    pub direction: LinkDirection,
    pub peer: NodeId,
    /// `false` when nothing was heard within the suspicion time, though the connection stands.
    pub heard: bool,
    /// How long ago the peer was heard, in ms.
    pub silence_ms: u64,
    pub up_ms: u64,
    /// Smoothed round trip, in µs.
    pub rtt_us: u64,
    pub remote_address: String,
    pub window_bytes: u64,
    pub mtu: u16,
    pub sent_packets: u64,
    pub lost_packets: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

/// The live connections. Bounded by the peers: one each way.
#[derive(Debug, Default)]
pub(super) struct Links {
    live: Mutex<BTreeMap<(LinkDirection, NodeId), Live>>,
    /// How often each leader was dialled since the start. Bounded by the nodes.
    dials: Mutex<BTreeMap<NodeId, u64>>,
}

#[derive(Debug)]
struct Live {
    id: u64,
    connection: Connection,
    heard: Arc<LastHeard>,
    since: Instant,
}

impl Links {
    /// A connection that stands; a newer one to the same peer replaces it here.
    pub(super) fn insert(
        &self,
        direction: LinkDirection,
        peer: NodeId,
        id: u64,
        connection: Connection,
        heard: Arc<LastHeard>,
    ) {
        let live = Live {
            id,
            connection,
            heard,
            since: Instant::now(),
        };
        self.lock().insert((direction, peer), live);
    }

    pub(super) fn remove(&self, direction: LinkDirection, peer: NodeId, id: u64) {
        let mut live = self.lock();
        if live
            .get(&(direction, peer))
            .is_some_and(|known| known.id == id)
        {
            live.remove(&(direction, peer));
        }
    }

    pub(super) fn count_dial(&self, leader: NodeId) {
        let mut dials = self.dials.lock().unwrap_or_else(PoisonError::into_inner);
        *dials.entry(leader).or_default() += 1;
    }

    pub(super) fn dials(&self) -> BTreeMap<NodeId, u64> {
        self.dials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn views(&self) -> Vec<LinkView> {
        self.lock()
            .iter()
            .map(|(&(direction, peer), live)| live.view(direction, peer))
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(LinkDirection, NodeId), Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn view(&self, direction: LinkDirection, peer: NodeId) -> LinkView {
        let stats = self.connection.stats();
        let silence = self.heard.silence();
        LinkView {
            direction,
            peer,
            heard: silence <= super::heartbeat::suspicion_of(&self.connection),
            silence_ms: millis(silence),
            up_ms: millis(self.since.elapsed()),
            rtt_us: u64::try_from(stats.path.rtt.as_micros()).unwrap_or(u64::MAX),
            remote_address: self.connection.remote_address().to_string(),
            window_bytes: stats.path.cwnd,
            mtu: stats.path.current_mtu,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
