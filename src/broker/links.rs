//! What this node's replication links are doing, for views and metrics.
//!
//! A link outlives its connections: it is one pair of leader and follower, for as long as the one follows the other. What
//! happened to it is counted over all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::Connection;
use serde::{Deserialize, Serialize};

use super::heartbeat::{LastHeard, suspicion_of};
use crate::metadata::MAX_NODES;
use crate::partition::{PartitionView, RoleView};
use crate::transport::PathSigns;
use crate::types::{MonotonicTime, NodeId, TopicPartition};

/// Links that are remembered: one each way to every node that a cluster may have. At the cap the one that has been without a
/// connection for longest is forgotten.
const MAX_LINKS: usize = 2 * MAX_NODES;
/// Connections of one link that are remembered; beyond it the oldest is forgotten.
const MAX_CONNECTIONS: usize = 8;

/// Which end of the connection this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkDirection {
    /// The peer leads partitions that this node follows; this node has dialled.
    ToLeader,
    /// The peer follows partitions that this node leads.
    ToFollower,
}

/// How a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// A connection stands, and the peer is heard.
    Up,
    /// A connection stands, and nothing was heard for longer than the suspicion time. The dialling end moves to another socket
    /// and dials anew beside it.
    Silent,
    /// No connection stands, and the dialling end dials. Also: none has come about yet.
    #[default]
    Down,
    /// Nobody needs the link at present: this node follows nothing there, or the peer said that it follows nothing here.
    Idle,
}

/// What last went wrong with a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkError {
    /// In words, for an operator.
    pub cause: String,
    /// How long ago it was, in ms.
    pub age_ms: u64,
}

/// How far a follower is behind in the partitions that this node leads, all of them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FollowerLag {
    /// Partitions that this node leads and the peer has a replica of.
    pub partitions: usize,
    /// Of these, partitions of which nothing is known, because the follower has no session there: all of them while it is not
    /// heard. While there is one, no sum below is given: what cannot be heard is not a lag of 0.
    pub unknown: usize,
    /// Records that it does not hold durably.
    pub records: Option<u64>,
    /// Bytes of frames that it does not hold durably; about so many while it catches up from the log.
    pub bytes: Option<u64>,
    /// For how long it has not had everything, in ms: of the partition that is furthest behind. Also grows while nothing is
    /// heard of a follower that had everything.
    pub behind_ms: Option<u64>,
    /// Of a follower that is not heard: records that it had not confirmed when its last word came, and those that have come
    /// since. It may hold them, or less than it said; `None` while it is heard, and where it has no session.
    #[serde(default)]
    pub unconfirmed_records: Option<u64>,
}

impl FollowerLag {
    /// What is left of it while the follower is not heard: a session outlives silence by minutes, and so does what it said.
    fn unheard(self) -> FollowerLag {
        FollowerLag {
            unknown: self.partitions,
            records: None,
            bytes: None,
            unconfirmed_records: self.records,
            ..self
        }
    }
}

/// One replication link as this node sees it now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkView {
    pub direction: LinkDirection,
    pub peer: NodeId,
    #[serde(default)]
    pub state: LinkState,
    /// How long it has been in this state, in ms.
    #[serde(default)]
    pub state_ms: u64,
    /// `false` when nothing was heard within the suspicion time, or no connection stands.
    pub heard: bool,
    /// How long ago the peer was heard, by any packet of its, in ms. Of a peer that was never heard: since when it should be.
    pub silence_ms: u64,
    /// How long the present connection has stood, in ms; 0 without one.
    pub up_ms: u64,
    /// Smoothed round trip, in µs; 0 without a connection, as all figures down to `received_bytes` are.
    pub rtt_us: u64,
    /// Mean deviation of the round trip, in µs.
    #[serde(default)]
    pub rtt_variance_us: u64,
    /// Where the peer is, or was; for a leader that was not reached yet, where it is dialled.
    pub remote_address: String,
    /// Congestion window of this end.
    pub window_bytes: u64,
    /// Bytes of this end that are neither acknowledged nor given up.
    #[serde(default)]
    pub in_flight_bytes: u64,
    pub mtu: u16,
    /// Packets, and bytes of UDP, of the present connection.
    pub sent_packets: u64,
    pub lost_packets: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// How often the link went on over another socket or address without a handshake. Counted by both ends: the dialling end
    /// counts its moves, the other one the addresses that it saw them come from.
    #[serde(default)]
    pub migrations: u64,
    /// Dials beyond the first. Always 0 at the leader's end, which never dials.
    #[serde(default)]
    pub redials: u64,
    /// Connections that came about.
    #[serde(default)]
    pub handshakes: u64,
    /// Bytes of small frames that went out a second time because the link loses packets. Only the leader's end sends such copies.
    #[serde(default)]
    pub copied_bytes: u64,
    /// How often the peer fell silent for longer than the suspicion time.
    #[serde(default)]
    pub suspicions: u64,
    /// Dials beside a connection that has fallen silent, since it has; 0 while the peer is heard.
    #[serde(default)]
    pub dials_beside: u64,
    #[serde(default)]
    pub last_error: Option<LinkError>,
    /// Of links to followers, where the progress of partitions was asked for too; see `Broker::link_views`.
    #[serde(default)]
    pub lag: Option<FollowerLag>,
}

#[cfg(test)]
impl LinkView {
    /// A link that is up and over which little has gone, for the tests of those who show it.
    pub(crate) fn sample(direction: LinkDirection, peer: NodeId) -> LinkView {
        let mut view = Record::new().view(direction, peer);
        view.state = LinkState::Up;
        view.state_ms = 60_000;
        view.heard = true;
        view.silence_ms = 40;
        view.up_ms = 60_000;
        view.rtt_us = 250;
        view.rtt_variance_us = 30;
        view.remote_address = "127.0.0.1:7001".to_owned();
        view.mtu = 1452;
        view.handshakes = 1;
        view
    }
}

/// What has happened to one link.
#[derive(Debug)]
struct Record {
    state: LinkState,
    since: Instant,
    /// Where the peer is, or is dialled.
    address: String,
    /// The connections that stand, the newest last: for a moment there are two, when one takes the other's place. At most
    /// [`MAX_CONNECTIONS`].
    live: Vec<Live>,
    /// When the peer was last heard on a connection that is gone; at first when the link came to be.
    heard_before: Instant,
    dials: u64,
    handshakes: u64,
    migrations: u64,
    copied_bytes: u64,
    suspicions: u64,
    /// The dials that there were when the peer last fell silent.
    dials_when_silent: u64,
    last_error: Option<(String, Instant)>,
}

#[derive(Debug)]
struct Live {
    id: u64,
    connection: Connection,
    heard: Arc<LastHeard>,
    since: Instant,
}

impl Record {
    fn new() -> Record {
        let now = Instant::now();
        Record {
            state: LinkState::Down,
            since: now,
            address: String::new(),
            live: Vec::new(),
            heard_before: now,
            dials: 0,
            handshakes: 0,
            migrations: 0,
            copied_bytes: 0,
            suspicions: 0,
            dials_when_silent: 0,
            last_error: None,
        }
    }

    fn enter(&mut self, state: LinkState) {
        if self.state != state {
            self.state = state;
            self.since = Instant::now();
        }
    }

    fn view(&self, direction: LinkDirection, peer: NodeId) -> LinkView {
        let mut view = LinkView {
            direction,
            peer,
            state: self.state,
            state_ms: millis(self.since.elapsed()),
            heard: false,
            silence_ms: millis(self.heard_before.elapsed()),
            up_ms: 0,
            rtt_us: 0,
            rtt_variance_us: 0,
            remote_address: self.address.clone(),
            window_bytes: 0,
            in_flight_bytes: 0,
            mtu: 0,
            sent_packets: 0,
            lost_packets: 0,
            sent_bytes: 0,
            received_bytes: 0,
            migrations: self.migrations,
            redials: self.dials.saturating_sub(1),
            handshakes: self.handshakes,
            copied_bytes: self.copied_bytes,
            suspicions: self.suspicions,
            dials_beside: match self.state {
                LinkState::Silent => self.dials - self.dials_when_silent,
                _ => 0,
            },
            last_error: self.last_error.as_ref().map(|(cause, at)| LinkError {
                cause: cause.clone(),
                age_ms: millis(at.elapsed()),
            }),
            lag: None,
        };
        if let Some(live) = self.live.last() {
            live.fill(&mut view);
        }
        view
    }
}

impl Live {
    fn fill(&self, view: &mut LinkView) {
        let stats = self.connection.stats();
        let silence = self.heard.silence();
        view.heard = silence <= suspicion_of(&self.connection);
        view.silence_ms = millis(silence);
        view.up_ms = millis(self.since.elapsed());
        view.rtt_us = micros(stats.path.rtt);
        view.remote_address = self.connection.remote_address().to_string();
        view.window_bytes = stats.path.cwnd;
        view.mtu = stats.path.current_mtu;
        view.sent_packets = stats.path.sent_packets;
        view.lost_packets = stats.path.lost_packets;
        view.sent_bytes = stats.udp_tx.bytes;
        view.received_bytes = stats.udp_rx.bytes;
        if let Some(signs) = PathSigns::of(&self.connection) {
            view.rtt_variance_us = micros(signs.rtt_variance());
            view.in_flight_bytes = signs.in_flight();
        }
    }
}

/// The links that this node has or had. At most [`MAX_LINKS`].
#[derive(Debug, Default)]
pub(super) struct Links {
    records: Mutex<BTreeMap<(LinkDirection, NodeId), Record>>,
    /// How often a native client's connection went on from another address.
    client_migrations: AtomicU64,
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
        self.change(direction, peer, |record| {
            record.address = connection.remote_address().to_string();
            if record.live.len() >= MAX_CONNECTIONS {
                record.live.remove(0);
            }
            record.live.push(Live {
                id,
                connection,
                heard,
                since: Instant::now(),
            });
            record.handshakes += 1;
            record.enter(LinkState::Up);
        });
    }

    /// A connection is gone. Says nothing of the link if another has taken its place. `idle`: nobody needs one at present.
    pub(super) fn remove(
        &self,
        direction: LinkDirection,
        peer: NodeId,
        id: u64,
        cause: &str,
        idle: bool,
    ) {
        self.change(direction, peer, |record| {
            let Some(place) = record.live.iter().position(|live| live.id == id) else {
                return;
            };
            let silence = record.live.remove(place).heard.silence();
            if !record.live.is_empty() {
                return;
            }
            let now = Instant::now();
            record.heard_before = now.checked_sub(silence).unwrap_or(now);
            if idle {
                record.enter(LinkState::Idle);
            } else {
                record.last_error = Some((cause.to_owned(), Instant::now()));
                record.enter(LinkState::Down);
            }
        });
    }

    /// A leader is dialled.
    pub(super) fn count_dial(&self, leader: NodeId, address: &str) {
        self.change(LinkDirection::ToLeader, leader, |record| {
            record.dials += 1;
            if record.live.is_empty() {
                record.address = address.to_owned();
                record.enter(LinkState::Down);
            }
        });
    }

    /// Why the peer comes with another connection, as far as this end knows; before that is inserted.
    pub(super) fn why_again(&self, direction: LinkDirection, peer: NodeId) -> String {
        let records = self.lock();
        let record = records.get(&(direction, peer));
        let Some(record) = record.filter(|record| record.handshakes > 0) else {
            return "first".to_owned();
        };
        match (&record.last_error, record.state) {
            (_, LinkState::Silent) => "beside a silent one".to_owned(),
            _ if !record.live.is_empty() => "beside one that stands".to_owned(),
            (_, LinkState::Idle) => "it follows again".to_owned(),
            (Some((cause, _)), _) => format!("after the loss of one: {cause}"),
            (None, _) => "after the loss of one".to_owned(),
        }
    }

    /// Something went wrong with a link; its connection, if it has one, stands.
    pub(super) fn note_error(&self, direction: LinkDirection, peer: NodeId, cause: &str) {
        self.change(direction, peer, |record| {
            record.last_error = Some((cause.to_owned(), Instant::now()));
        });
    }

    /// The peer fell silent on the connection `id`.
    pub(super) fn suspect(&self, direction: LinkDirection, peer: NodeId, id: u64) {
        self.change_live(direction, peer, id, |record| {
            record.suspicions += 1;
            record.dials_when_silent = record.dials;
            record.enter(LinkState::Silent);
        });
    }

    /// The peer is heard again on the connection `id`.
    pub(super) fn heard_again(&self, direction: LinkDirection, peer: NodeId, id: u64) {
        self.change_live(direction, peer, id, |record| record.enter(LinkState::Up));
    }

    /// The connection `id` goes on over another socket, or from another address.
    pub(super) fn count_migration(&self, direction: LinkDirection, peer: NodeId, id: u64) {
        self.change_live(direction, peer, id, |record| record.migrations += 1);
    }

    /// So many bytes went out on the connection `id` a second time.
    pub(super) fn count_copied(&self, direction: LinkDirection, peer: NodeId, id: u64, bytes: u64) {
        self.change_live(direction, peer, id, |record| record.copied_bytes += bytes);
    }

    /// A native client's connection goes on from another address.
    pub(super) fn count_client_migration(&self) {
        self.client_migrations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn client_migrations(&self) -> u64 {
        self.client_migrations.load(Ordering::Relaxed)
    }

    /// This node follows nothing at a leader any more.
    pub(super) fn rest(&self, leader: NodeId) {
        self.change(LinkDirection::ToLeader, leader, |record| {
            record.live.clear();
            record.enter(LinkState::Idle);
        });
    }

    /// How often each leader was dialled since the start.
    pub(super) fn dials(&self) -> BTreeMap<NodeId, u64> {
        self.lock()
            .iter()
            .filter(|((direction, _), _)| *direction == LinkDirection::ToLeader)
            .map(|(&(_, leader), record)| (leader, record.dials))
            .collect()
    }

    /// Every link that somebody needs.
    pub(super) fn views(&self) -> Vec<LinkView> {
        self.lock()
            .iter()
            .filter(|(_, record)| record.state != LinkState::Idle)
            .map(|(&(direction, peer), record)| record.view(direction, peer))
            .collect()
    }

    /// The same, with the lag of each follower; and a link for each follower, of whom nothing was heard yet, and none for a
    /// node that follows nothing here.
    pub(super) fn views_with_lags(&self, lags: &BTreeMap<NodeId, FollowerLag>) -> Vec<LinkView> {
        let mut views = self.views();
        views.retain(|view| {
            view.direction == LinkDirection::ToLeader
                || view.up_ms > 0
                || view.heard
                || lags.contains_key(&view.peer)
        });
        for (&follower, lag) in lags {
            let is_it = |view: &&mut LinkView| {
                view.direction == LinkDirection::ToFollower && view.peer == follower
            };
            match views.iter_mut().find(is_it) {
                Some(view) if view.heard => view.lag = Some(*lag),
                Some(view) => view.lag = Some(lag.unheard()),
                None => {
                    let mut view = Record::new().view(LinkDirection::ToFollower, follower);
                    view.lag = Some(lag.unheard());
                    views.push(view);
                }
            }
        }
        views
    }

    fn change(&self, direction: LinkDirection, peer: NodeId, change: impl FnOnce(&mut Record)) {
        let mut records = self.lock();
        if records.len() >= MAX_LINKS && !records.contains_key(&(direction, peer)) {
            let longest_gone = records
                .iter()
                .filter(|(_, record)| record.live.is_empty())
                .min_by_key(|(_, record)| record.since)
                .map(|(&key, _)| key);
            if let Some(key) = longest_gone {
                records.remove(&key);
            }
        }
        change(records.entry((direction, peer)).or_insert_with(Record::new));
    }

    /// Whether a newer connection to the same peer stands than `id`.
    pub(super) fn has_newer(&self, direction: LinkDirection, peer: NodeId, id: u64) -> bool {
        let records = self.lock();
        let live = records.get(&(direction, peer)).map(|record| &record.live);
        live.is_some_and(|live| live.last().is_some_and(|newest| newest.id > id))
    }

    fn change_live(
        &self,
        direction: LinkDirection,
        peer: NodeId,
        id: u64,
        change: impl FnOnce(&mut Record),
    ) {
        let mut records = self.lock();
        if let Some(record) = records.get_mut(&(direction, peer))
            && record.live.last().is_some_and(|live| live.id == id)
        {
            change(record);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(LinkDirection, NodeId), Record>> {
        // Every change is of a few plain fields, so a panic elsewhere leaves nothing half done.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sums up what the leaders on this node know of each follower.
pub(super) fn follower_lags(
    views: &[(TopicPartition, PartitionView, RoleView)],
    now: MonotonicTime,
) -> BTreeMap<NodeId, FollowerLag> {
    let mut lags: BTreeMap<NodeId, FollowerLag> = BTreeMap::new();
    let leaders = views.iter().filter_map(|(_, _, role)| match role {
        RoleView::Leader(leader) => Some(leader),
        _ => None,
    });
    for follower in leaders.flat_map(|leader| &leader.followers) {
        let lag = lags.entry(follower.node).or_insert(FollowerLag {
            records: Some(0),
            bytes: Some(0),
            behind_ms: Some(0),
            ..FollowerLag::default()
        });
        lag.partitions += 1;
        lag.unknown += usize::from(follower.lag_records.is_none());
        lag.records = sum(lag.records, follower.lag_records);
        lag.bytes = sum(lag.bytes, follower.lag_bytes);
        // When a follower without a session was last caught up is still known.
        let behind = follower.caught_up_at.map(|at| millis(now.since(at)));
        lag.behind_ms = lag.behind_ms.zip(behind).map(|(a, b)| a.max(b));
    }
    lags
}

fn sum(so_far: Option<u64>, more: Option<u64>) -> Option<u64> {
    so_far.zip(more).map(|(a, b)| a.saturating_add(b))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::{FollowerView, LeaderView};
    use crate::types::{LeaderEpoch, Offset, PartitionIndex, TopicId};

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn follower(id: u32, lag: Option<u64>, bytes: Option<u64>, caught_up_ms: u64) -> FollowerView {
        FollowerView {
            node: node(id),
            incarnation: None,
            lag_records: lag,
            lag_bytes: bytes,
            durable: None,
            unacknowledged_bytes: 0,
            catching_up: false,
            caught_up_at: Some(MonotonicTime::ZERO + Duration::from_millis(caught_up_ms)),
        }
    }

    fn led(index: u32, followers: Vec<FollowerView>) -> (TopicPartition, PartitionView, RoleView) {
        let id = TopicPartition {
            topic: TopicId::from_random_bits(1),
            partition: PartitionIndex(index),
        };
        let view = PartitionView {
            leader_epoch: LeaderEpoch::new(1).unwrap(),
            is_leader: true,
            watermark_known: true,
            high_watermark: Offset::ZERO,
            last_stable_offset: Offset::ZERO,
            log_start: Offset::ZERO,
            log_end: Offset::ZERO,
            is_short_of_space: false,
        };
        let role = RoleView::Leader(LeaderView {
            epoch: view.leader_epoch,
            epoch_started: true,
            waiting_produces: 0,
            followers,
            isr: Vec::new(),
            proposed_isr: None,
            stalled: Duration::ZERO,
        });
        (id, view, role)
    }

    #[test]
    fn lags_are_summed_over_partitions_and_what_cannot_be_heard_is_no_lag_of_0() {
        let views = [
            led(
                0,
                vec![
                    follower(2, Some(3), Some(300), 900),
                    follower(3, Some(0), Some(0), 990),
                ],
            ),
            led(
                1,
                vec![
                    follower(2, Some(4), None, 400),
                    follower(3, None, None, 100),
                ],
            ),
        ];
        let now = MonotonicTime::ZERO + Duration::from_millis(1000);
        let lags = follower_lags(&views, now);
        let two = FollowerLag {
            partitions: 2,
            unknown: 0,
            records: Some(7),
            bytes: None,
            behind_ms: Some(600),
            unconfirmed_records: None,
        };
        let three = FollowerLag {
            partitions: 2,
            unknown: 1,
            records: None,
            bytes: None,
            behind_ms: Some(900),
            unconfirmed_records: None,
        };
        assert_eq!(lags, BTreeMap::from([(node(2), two), (node(3), three)]));
        // Neither has ever dialled: both have a link, and it is down.
        let links = Links::default().views_with_lags(&lags);
        let seen: Vec<_> = links
            .iter()
            .map(|link| (link.peer, link.state, link.heard))
            .collect();
        assert_eq!(
            seen,
            [
                (node(2), LinkState::Down, false),
                (node(3), LinkState::Down, false)
            ]
        );
        // Sessions that nothing is heard of say nothing of now.
        let unheard = FollowerLag {
            unknown: 2,
            records: None,
            unconfirmed_records: Some(7),
            ..two
        };
        assert_eq!(links[0].lag, Some(unheard));
        assert_eq!(
            links[1].lag,
            Some(FollowerLag {
                unknown: 2,
                ..three
            })
        );
    }

    #[test]
    fn a_leader_that_was_never_reached_shows_how_often_it_was_dialled_and_what_was_wrong() {
        let links = Links::default();
        let leader = node(1);
        for _ in 0..3 {
            links.count_dial(leader, "db1:9292");
            links.note_error(LinkDirection::ToLeader, leader, "nothing listens there");
        }
        let [view] = &links.views()[..] else {
            panic!("one link");
        };
        assert_eq!(
            (view.state, view.redials, view.handshakes),
            (LinkState::Down, 2, 0)
        );
        assert_eq!(view.remote_address, "db1:9292");
        assert_eq!(
            view.last_error.as_ref().unwrap().cause,
            "nothing listens there"
        );
        links.rest(leader);
        assert_eq!(links.views(), []);
        assert_eq!(links.dials()[&leader], 3);
    }

    #[test]
    fn links_are_bounded() {
        let links = Links::default();
        for id in 1..=2 * MAX_LINKS as u32 {
            links.count_dial(node(id), "x:1");
        }
        assert_eq!(links.views().len(), MAX_LINKS);
    }
}
