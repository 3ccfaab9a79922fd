//! What each kind of connection may use: windows, streams, timers. Every number that bounds memory is here.
//!
//! quinn takes most of these before the handshake, when a server does not yet know what a connection is for. So a server
//! starts every connection with what a client may have, and raises it for nodes once TLS has said who they are.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn::{AckFrequencyConfig, Connection, IdleTimeout, TransportConfig, VarInt};
use quinn_proto::RttEstimator;

use super::path_watch::Watched;
use super::protocol::Alpn;

/// Streams that a client may have open at once on one connection: each is a Kafka connection. At the cap its next
/// `open_bi` waits.
pub const CLIENT_STREAMS: u32 = 1024;
/// Calls that a node may have outstanding on one connection. At the cap the next call waits for a stream.
pub const CALL_STREAMS: u32 = 256;
/// Lanes (unidirectional streams) that either end of a replication connection may have open.
pub const LANE_STREAMS: u32 = 1024;
/// Unidirectional streams of a connection whose purpose is not known yet, and of clients, which need none.
const UNKNOWN_UNI_STREAMS: u32 = 8;

/// What one client connection may make a server hold: bytes received and not yet read, and sent and not yet acknowledged.
/// At the cap the sender waits.
pub const CLIENT_WINDOW: u32 = 8 * 1024 * 1024;
/// Of these, how much one stream may have received and not read. More than the largest default request.
pub const CLIENT_STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// The same for a replication connection, in each direction: at 1 Gbit/s it covers a round trip of 250 ms.
pub const REPLICATION_WINDOW: u32 = 32 * 1024 * 1024;
/// One lane's share of the replication window.
pub const REPLICATION_STREAM_WINDOW: u32 = 16 * 1024 * 1024;
/// Datagrams (heartbeats) that wait to be read or sent, in bytes. At the cap the oldest is dropped.
pub const DATAGRAM_BUFFER: usize = 64 * 1024;

/// A first guess of the round trip. quinn's 333 ms would make a lost first packet cost a second.
pub(super) const INITIAL_RTT: Duration = Duration::from_millis(30);
/// Asked of the peer; it is part of every probe timeout.
const MAX_ACK_DELAY: Duration = Duration::from_millis(2);
/// How many probe timeouts of loss count as a collapse of the path. A blackout is no congestion: quinn's 3 would leave a
/// window of two packets after each.
const PERSISTENT_CONGESTION_THRESHOLD: u32 = 10_000;
/// A server's upper bound on silence. The dialling end usually asks for less.
const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// A replica link outlives long blackouts: decisions come from progress, not from connections.
const REPLICATION_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const CLIENT_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection for calls is cheap to make again, and a dead one delays every call on it.
const CALL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes have heartbeats of their own besides; this covers calls.
const NODE_KEEP_ALIVE: Duration = Duration::from_millis(500);
const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// After a blackout it is the *other* end's packet that wakes a sender, so a server sends some too. Ten thousand idle
/// clients then cost it two thousand packets a second.
const SERVER_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The first congestion window of a server, in bytes.
const SERVER_INITIAL_WINDOW: u64 = 128 * 1024;
/// The window below which a follower's end never falls, in bytes. It sends only acks and heartbeats; with CUBIC's 12,000
/// bytes its own unanswered heartbeats would fill the window during a long blackout and silence it.
pub const FOLLOWER_WINDOW_FLOOR: u64 = 256 * 1024;

/// The same for the caller's end of a connection for calls. Heartbeats are most of what it sends; at 5 % loss CUBIC would
/// leave a window of two packets a round trip, in which they would wait for each other.
const CALLER_WINDOW_FLOOR: u64 = 64 * 1024;

/// The accepting end's, for every protocol; [`raise_for`] follows once the protocol is known.
pub(super) fn server() -> TransportConfig {
    let mut config = common(SERVER_IDLE_TIMEOUT, SERVER_KEEP_ALIVE);
    client_windows(&mut config)
        .max_concurrent_bidi_streams(VarInt::from_u32(CLIENT_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(UNKNOWN_UNI_STREAMS))
        .congestion_controller_factory(Arc::new(Watched::new(cubic(SERVER_INITIAL_WINDOW))));
    config
}

/// The dialling end's.
pub(super) fn dialler(alpn: Alpn) -> TransportConfig {
    let mut config = match alpn {
        Alpn::Replication => common(REPLICATION_IDLE_TIMEOUT, NODE_KEEP_ALIVE),
        Alpn::Controller => common(CALL_IDLE_TIMEOUT, NODE_KEEP_ALIVE),
        Alpn::Client | Alpn::Admin => common(CLIENT_IDLE_TIMEOUT, CLIENT_KEEP_ALIVE),
    };
    match alpn {
        Alpn::Replication => config
            .stream_receive_window(VarInt::from_u32(REPLICATION_STREAM_WINDOW))
            .receive_window(VarInt::from_u32(REPLICATION_WINDOW))
            .send_window(u64::from(CLIENT_WINDOW))
            .max_concurrent_bidi_streams(VarInt::from_u32(CALL_STREAMS))
            .max_concurrent_uni_streams(VarInt::from_u32(LANE_STREAMS))
            .congestion_controller_factory(Arc::new(Watched::new(WithFloor {
                inner: Arc::new(cubic(FOLLOWER_WINDOW_FLOOR)),
                floor: FOLLOWER_WINDOW_FLOOR,
            }))),
        // A server opens no streams to those who call it.
        Alpn::Controller => client_windows(&mut config)
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(UNKNOWN_UNI_STREAMS))
            .congestion_controller_factory(Arc::new(Watched::new(WithFloor {
                inner: Arc::new(cubic(SERVER_INITIAL_WINDOW)),
                floor: CALLER_WINDOW_FLOOR,
            }))),
        Alpn::Client | Alpn::Admin => client_windows(&mut config)
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(UNKNOWN_UNI_STREAMS))
            .congestion_controller_factory(Arc::new(Watched::new(cubic(SERVER_INITIAL_WINDOW)))),
    };
    config
}

/// Gives an accepted connection what its protocol needs.
pub(super) fn raise_for(connection: &Connection, alpn: Alpn) {
    match alpn {
        Alpn::Replication => {
            connection.set_max_concurrent_uni_streams(VarInt::from_u32(LANE_STREAMS));
            connection.set_send_window(u64::from(REPLICATION_WINDOW));
        }
        Alpn::Controller => {
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(CALL_STREAMS));
            connection.set_send_window(u64::from(REPLICATION_WINDOW));
            connection.set_receive_window(VarInt::from_u32(REPLICATION_WINDOW));
        }
        Alpn::Client | Alpn::Admin => {}
    }
}

fn common(idle: Duration, keep_alive: Duration) -> TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(MAX_ACK_DELAY));
    let mut config = TransportConfig::default();
    config
        .initial_rtt(INITIAL_RTT)
        .ack_frequency_config(Some(acks))
        .persistent_congestion_threshold(PERSISTENT_CONGESTION_THRESHOLD)
        // Only above 2^62 ms, which none of ours is, would this be no timeout at all.
        .max_idle_timeout(IdleTimeout::try_from(idle).ok())
        .keep_alive_interval(Some(keep_alive))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
    config
}

fn client_windows(config: &mut TransportConfig) -> &mut TransportConfig {
    config
        .stream_receive_window(VarInt::from_u32(CLIENT_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CLIENT_WINDOW))
        .send_window(u64::from(CLIENT_WINDOW))
}

fn cubic(initial_window: u64) -> CubicConfig {
    let mut config = CubicConfig::default();
    config.initial_window(initial_window);
    config
}

/// Another controller's window, but never below a floor.
struct WithFloor {
    inner: Arc<CubicConfig>,
    floor: u64,
}

impl ControllerFactory for WithFloor {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Floored {
            inner: Arc::clone(&self.inner).build(now, current_mtu),
            floor: self.floor,
        })
    }
}

struct Floored {
    inner: Box<dyn Controller>,
    floor: u64,
}

impl Controller for Floored {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().max(self.floor)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Floored {
            inner: self.inner.clone_box(),
            floor: self.floor,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window().max(self.floor)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_followers_window_stays_above_the_floor_whatever_is_lost() {
        let factory = Arc::new(WithFloor {
            inner: Arc::new(cubic(FOLLOWER_WINDOW_FLOOR)),
            floor: FOLLOWER_WINDOW_FLOOR,
        });
        let now = Instant::now();
        let mut controller = factory.build(now, 1200);
        for i in 1..50 {
            let later = now + Duration::from_secs(i);
            controller.on_congestion_event(later, later, true, 100_000);
        }
        assert_eq!(controller.window(), FOLLOWER_WINDOW_FLOOR);
        assert_eq!(controller.clone_box().window(), FOLLOWER_WINDOW_FLOOR);
    }
}
