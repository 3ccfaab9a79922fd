//! What each kind of connection may use: windows, streams, timers. Every number that bounds memory is here.
//!
//! quinn takes most of these before the handshake, when a server does not yet know what a connection is for. So a server
//! starts every connection with what a client may have, and raises it for nodes once TLS has said who they are.

use std::sync::Arc;
use std::time::Duration;

use quinn::{AckFrequencyConfig, Connection, IdleTimeout, TransportConfig, VarInt};

use super::congestion::{SelectableConfig, Selection};
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
/// The same for a replication connection, in each direction. 1 Gbit/s over 200 ms has 25 MB under way, and a lost packet keeps
/// what came after it, on its lane, for one more round trip from being read, so twice that must fit. It is more than the byte
/// budget of a follower (`broker::follower_channel`), which is what bounds the memory; this must not be what bounds the rate.
pub const REPLICATION_WINDOW: u32 = 64 * 1024 * 1024;
/// One lane's share of it: half, so that a lane that waits for a lost packet leaves the others room.
pub const REPLICATION_STREAM_WINDOW: u32 = 32 * 1024 * 1024;
/// Datagrams (heartbeats) that wait to be read or sent, in bytes. At the cap the oldest is dropped.
pub const DATAGRAM_BUFFER: usize = 64 * 1024;
/// The same for what a follower has received: copies of lane bytes come in bursts of as much as a producer has in flight.
const FOLLOWER_DATAGRAM_BUFFER: usize = 512 * 1024;

/// A first guess of the round trip, which the first answer corrects. quinn's 333 ms would make a lost first packet cost a
/// second; over 200 ms this one costs two handshake packets that are sent again for nothing.
pub(super) const INITIAL_RTT: Duration = Duration::from_millis(30);
/// Asked of the peer; it is part of every probe timeout. While data flows every second packet is acknowledged at once, so it
/// costs no packets, and the round trips that congestion control sees are the path's.
const MAX_ACK_DELAY: Duration = Duration::from_millis(2);
/// A packet counts as lost when one that was sent this many later has arrived; quinn's 3 take 2 ms of jitter that reorders for
/// loss of two packets in five at 100 Mbit/s. It matters for bulk only: where fewer packets are under way, the time threshold,
/// an eighth of a round trip, comes first, and it is the most that this can cost.
const PACKET_THRESHOLD: u32 = 16;
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
/// The first congestion window, in bytes: about what 100 Mbit/s carry in 10 ms, paced over the first round trip.
const INITIAL_WINDOW: u64 = 128 * 1024;
/// The window below which a follower's end never falls, in bytes. It sends only acks and heartbeats; with CUBIC's 12,000
/// bytes its own unanswered heartbeats would fill the window during a long blackout and silence it.
pub const FOLLOWER_WINDOW_FLOOR: u64 = 256 * 1024;

/// The same for the caller's end of a connection for calls. Heartbeats are most of what it sends; at 5 % loss CUBIC would
/// leave a window of two packets a round trip, in which they would wait for each other.
const CALLER_WINDOW_FLOOR: u64 = 64 * 1024;

/// The accepting end's, for every protocol; [`raise_for`] follows once the protocol is known, and `selection` may change
/// once the peer is.
pub(super) fn server(selection: Selection) -> TransportConfig {
    let mut config = common(SERVER_IDLE_TIMEOUT, SERVER_KEEP_ALIVE);
    client_windows(&mut config)
        .max_concurrent_bidi_streams(VarInt::from_u32(CLIENT_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(UNKNOWN_UNI_STREAMS))
        .congestion_controller_factory(controller(selection, INITIAL_WINDOW, 0));
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
            .datagram_receive_buffer_size(Some(FOLLOWER_DATAGRAM_BUFFER))
            .max_concurrent_bidi_streams(VarInt::from_u32(CALL_STREAMS))
            .max_concurrent_uni_streams(VarInt::from_u32(LANE_STREAMS))
            .congestion_controller_factory(dialling(FOLLOWER_WINDOW_FLOOR, FOLLOWER_WINDOW_FLOOR)),
        // A server opens no streams to those who call it.
        Alpn::Controller => client_windows(&mut config)
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(UNKNOWN_UNI_STREAMS))
            .congestion_controller_factory(dialling(INITIAL_WINDOW, CALLER_WINDOW_FLOOR)),
        Alpn::Client | Alpn::Admin => client_windows(&mut config)
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(UNKNOWN_UNI_STREAMS))
            .congestion_controller_factory(dialling(INITIAL_WINDOW, 0)),
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
        .packet_threshold(PACKET_THRESHOLD)
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

/// A dialling end sends acks, heartbeats, calls and produce requests, with the default controller, whatever the node's choice
/// for its bulk is.
fn dialling(initial_window: u64, floor: u64) -> Arc<Watched<SelectableConfig>> {
    controller(Selection::default(), initial_window, floor)
}

fn controller(
    selection: Selection,
    initial_window: u64,
    floor: u64,
) -> Arc<Watched<SelectableConfig>> {
    Arc::new(Watched::new(SelectableConfig {
        selection,
        initial_window,
        floor,
    }))
}
