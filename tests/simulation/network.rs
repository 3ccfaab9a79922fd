//! The network between endpoints, and the replication connections on it.
//!
//! A connection carries reliable, ordered streams, as QUIC does: a lost packet delays its own stream and no other, so messages
//! of different streams overtake each other freely. What is on a stream are the bytes that the wire's codecs made, cut in
//! pieces at random. Datagrams, calls and requests are simply lost, late or doubled.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate::types::{DirectoryId, Incarnation, MonotonicTime, SessionId};
use quorate::wire::Ack;

use super::random::Random;
use super::schedule::Setup;

/// What a lost packet of a stream costs at first; it doubles with each further loss.
const RETRANSMISSION_US: u64 = 40_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamId {
    /// Follower to leader.
    ControlUp,
    /// Leader to follower.
    ControlDown,
    Acks,
    Live,
    CatchUp,
}

impl StreamId {
    pub const ALL: [StreamId; 5] = [
        StreamId::ControlUp,
        StreamId::ControlDown,
        StreamId::Acks,
        StreamId::Live,
        StreamId::CatchUp,
    ];

    pub fn goes_to_leader(self) -> bool {
        matches!(self, StreamId::ControlUp | StreamId::Acks)
    }
}

/// One way between two endpoints.
#[derive(Clone, Debug)]
struct Way {
    delay_us: u64,
    jitter_us: u64,
    loss_permille: u64,
    /// How many faults cut it now.
    cuts: u32,
}

pub struct Network {
    endpoints: usize,
    ways: Vec<Way>,
    doubled_permille: u64,
    rough_permille: u64,
    /// Whether messages may arrive in two pieces. Not where any was ever rough: one that is late, even after the heal, could come
    /// between two pieces of another.
    splits: bool,
    random: Random,
    pub connections: BTreeMap<u64, Connection>,
    next_connection: u64,
}

/// One replication connection.
pub struct Connection {
    pub follower: usize,
    pub leader: usize,
    /// The processes at the ends.
    pub follower_boot: u64,
    pub leader_boot: u64,
    pub dialled_at: MonotonicTime,
    /// Whether each end still holds it.
    pub follower_holds: bool,
    pub leader_holds: bool,
    /// Whether the hello has come, and its answer.
    pub greeted: bool,
    pub welcomed: bool,
    pub streams: BTreeMap<StreamId, Stream>,
    /// When each end last heard the other.
    pub heard_by_follower: MonotonicTime,
    pub heard_by_leader: MonotonicTime,
    pub follower_side: FollowerSide,
    pub leader_side: LeaderSide,
}

#[derive(Default)]
pub struct Stream {
    /// What the receiver has and has not understood yet.
    pub buffer: BytesMut,
    last_arrival_us: u64,
    /// What arrived at a cut: it is sent again and again, and comes through after the heal.
    stalled: VecDeque<Bytes>,
}

/// As the broker's `LeaderChannel`.
#[derive(Default)]
pub struct FollowerSide {
    pub partitions: BTreeMap<SessionId, usize>,
    pub sessions: BTreeMap<usize, SessionId>,
    /// Acks are cumulative: a newer one replaces the one that still waits.
    pub acks: BTreeMap<SessionId, Ack>,
    pub flush_planned: bool,
}

/// As the broker's `FollowerChannel` and its sessions.
#[derive(Default)]
pub struct LeaderSide {
    pub partitions: BTreeMap<SessionId, usize>,
    pub sessions: BTreeMap<usize, SessionId>,
    pub peer: Option<(Incarnation, DirectoryId)>,
    pub outstanding: usize,
    pub turned_away: bool,
}

impl Network {
    pub fn new(setup: &Setup) -> Network {
        let endpoints = setup.endpoints();
        let way = Way {
            delay_us: setup.delay_us,
            jitter_us: setup.jitter_us,
            loss_permille: setup.loss_permille,
            cuts: 0,
        };
        Network {
            endpoints,
            ways: vec![way; endpoints * endpoints],
            doubled_permille: if setup.loss_permille > 0 { 20 } else { 0 },
            rough_permille: setup.rough_permille,
            splits: setup.rough_permille == 0,
            random: Random::new(setup.seed, 3),
            connections: BTreeMap::new(),
            next_connection: 0,
        }
    }

    fn way(&mut self, from: usize, to: usize) -> &mut Way {
        &mut self.ways[from * self.endpoints + to]
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.way(from, to).cuts += 1;
    }

    pub fn heal(&mut self, from: usize, to: usize) {
        let way = self.way(from, to);
        way.cuts = way.cuts.saturating_sub(1);
    }

    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.ways[from * self.endpoints + to].cuts > 0
    }

    pub fn add_loss(&mut self, from: usize, to: usize, permille: u64) {
        self.way(from, to).loss_permille += permille;
    }

    pub fn remove_loss(&mut self, from: usize, to: usize, permille: u64) {
        let way = self.way(from, to);
        way.loss_permille = way.loss_permille.saturating_sub(permille);
    }

    pub fn add_delay(&mut self, from: usize, to: usize, us: u64) {
        self.way(from, to).delay_us += us;
    }

    pub fn remove_delay(&mut self, from: usize, to: usize, us: u64) {
        let way = self.way(from, to);
        way.delay_us = way.delay_us.saturating_sub(us);
    }

    /// The end of all faults; what the network is made of stays.
    pub fn calm_down(&mut self) {
        self.rough_permille = 0;
        self.doubled_permille = 0;
        for way in &mut self.ways {
            way.cuts = 0;
            way.loss_permille = way.loss_permille.min(20);
        }
    }

    pub fn is_rough(&self) -> bool {
        self.rough_permille > 0
    }

    /// A round trip as an estimator would tell it.
    pub fn round_trip(&self, a: usize, b: usize) -> Duration {
        let there = &self.ways[a * self.endpoints + b];
        let back = &self.ways[b * self.endpoints + a];
        Duration::from_micros(
            there.delay_us + back.delay_us + (there.jitter_us + back.jitter_us) / 2,
        )
    }

    fn travel_us(&mut self, from: usize, to: usize) -> u64 {
        let way = self.ways[from * self.endpoints + to].clone();
        way.delay_us + self.random.below(way.jitter_us + 1)
    }

    fn is_lost(&mut self, from: usize, to: usize) -> bool {
        let chance = self.ways[from * self.endpoints + to].loss_permille;
        self.random.permille(chance)
    }

    /// When each copy of something that is sent once arrives; none when it is lost.
    pub fn send_once(&mut self, from: usize, to: usize) -> Vec<Duration> {
        if self.is_cut(from, to) || self.is_lost(from, to) {
            return Vec::new();
        }
        let mut arrivals = vec![Duration::from_micros(self.travel_us(from, to))];
        if self.random.permille(self.doubled_permille) {
            arrivals.push(Duration::from_micros(self.travel_us(from, to) * 3));
        }
        arrivals
    }

    /// When a call or its answer arrives. It runs on a stream of its own, so it is never doubled, and a loss is a delay; a
    /// cut loses it, because its caller gives up.
    pub fn send_call(&mut self, from: usize, to: usize) -> Option<Duration> {
        if self.is_cut(from, to) {
            return None;
        }
        let mut us = self.travel_us(from, to);
        let mut again = RETRANSMISSION_US;
        while self.is_lost(from, to) {
            us += again;
            again *= 2;
            if again > 64 * RETRANSMISSION_US {
                return None;
            }
        }
        Some(Duration::from_micros(us))
    }

    pub fn open(
        &mut self,
        now: MonotonicTime,
        follower: usize,
        follower_boot: u64,
        leader: usize,
    ) -> u64 {
        self.next_connection += 1;
        let connection = Connection {
            follower,
            leader,
            follower_boot,
            leader_boot: 0,
            dialled_at: now,
            follower_holds: true,
            leader_holds: false,
            greeted: false,
            welcomed: false,
            streams: StreamId::ALL
                .into_iter()
                .map(|id| (id, Stream::default()))
                .collect(),
            heard_by_follower: now,
            heard_by_leader: now,
            follower_side: FollowerSide::default(),
            leader_side: LeaderSide::default(),
        };
        self.connections.insert(self.next_connection, connection);
        self.next_connection
    }

    /// Puts a message on a stream: the pieces of it, with the times of their arrival.
    pub fn send_on_stream(
        &mut self,
        now: MonotonicTime,
        connection: u64,
        stream: StreamId,
        message: Bytes,
    ) -> Vec<(MonotonicTime, Bytes)> {
        let Some(found) = self.connections.get(&connection) else {
            return Vec::new();
        };
        let (from, to) = if stream.goes_to_leader() {
            (found.follower, found.leader)
        } else {
            (found.leader, found.follower)
        };
        let rough = found.welcomed && self.random.permille(self.rough_permille);
        let mut us = self.travel_us(from, to);
        let mut again = RETRANSMISSION_US;
        while self.is_lost(from, to) && again <= 64 * RETRANSMISSION_US {
            us += again;
            again *= 2;
        }
        if rough {
            // Lost, doubled, or late enough to be overtaken.
            let late = us + self.random.between(1000, 200_000);
            return match self.random.below(3) {
                0 => Vec::new(),
                1 => vec![
                    (now + Duration::from_micros(us), message.clone()),
                    (now + Duration::from_micros(late), message),
                ],
                _ => vec![(now + Duration::from_micros(late), message)],
            };
        }
        if stream == StreamId::Acks {
            // Read as it comes: a later ack overtakes one that was lost and is sent again.
            return vec![(now + Duration::from_micros(us), message)];
        }
        let Some(found) = self.connections.get_mut(&connection) else {
            return Vec::new();
        };
        let Some(stream) = found.streams.get_mut(&stream) else {
            return Vec::new();
        };
        let arrival = (now.as_micros() + us).max(stream.last_arrival_us);
        let split = self.splits && message.len() > 1 && self.random.permille(100);
        if split {
            let at = 1 + self.random.index(message.len() - 1);
            let later = arrival + self.random.below(2000);
            stream.last_arrival_us = later;
            return vec![
                (MonotonicTime::from_micros(arrival), message.slice(..at)),
                (MonotonicTime::from_micros(later), message.slice(at..)),
            ];
        }
        stream.last_arrival_us = arrival;
        vec![(MonotonicTime::from_micros(arrival), message)]
    }

    /// A piece has arrived. False when it is held up at a cut.
    pub fn arrive(&mut self, connection: u64, id: StreamId, bytes: &Bytes) -> bool {
        let endpoints = self.endpoints;
        let Some(found) = self.connections.get_mut(&connection) else {
            return false;
        };
        let (from, to) = if id.goes_to_leader() {
            (found.follower, found.leader)
        } else {
            (found.leader, found.follower)
        };
        let is_cut = self.ways[from * endpoints + to].cuts > 0;
        let Some(stream) = found.streams.get_mut(&id) else {
            return false;
        };
        if is_cut || !stream.stalled.is_empty() {
            stream.stalled.push_back(bytes.clone());
            return false;
        }
        stream.buffer.extend_from_slice(bytes);
        true
    }

    /// The streams on which something is held up between two endpoints, and when it comes through: at the next probe after
    /// the heal. What arrives meanwhile waits behind it.
    pub fn resume(
        &mut self,
        now: MonotonicTime,
        from: usize,
        to: usize,
    ) -> Vec<(MonotonicTime, u64, StreamId)> {
        if self.is_cut(from, to) {
            return Vec::new();
        }
        let mut resumed = Vec::new();
        for (&connection, found) in &self.connections {
            for (&id, stream) in &found.streams {
                let ends = if id.goes_to_leader() {
                    (found.follower, found.leader)
                } else {
                    (found.leader, found.follower)
                };
                if ends == (from, to) && !stream.stalled.is_empty() {
                    let at = now + Duration::from_micros(self.random.between(1000, 60_000));
                    resumed.push((at, connection, id));
                }
            }
        }
        resumed
    }

    /// Takes in what was held up. False when it still is.
    pub fn come_through(&mut self, connection: u64, id: StreamId) -> bool {
        let endpoints = self.endpoints;
        let Some(found) = self.connections.get_mut(&connection) else {
            return false;
        };
        let (from, to) = if id.goes_to_leader() {
            (found.follower, found.leader)
        } else {
            (found.leader, found.follower)
        };
        if self.ways[from * endpoints + to].cuts > 0 {
            return false;
        }
        let Some(stream) = found.streams.get_mut(&id) else {
            return false;
        };
        for bytes in stream.stalled.drain(..) {
            stream.buffer.extend_from_slice(&bytes);
        }
        true
    }
}
