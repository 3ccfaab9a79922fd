//! Floor 4: what goes between machines, and who is at the other end.
//!
//! Certificates and identities, QUIC endpoints, calls between nodes, lanes, and TLS for the Kafka listener. Everything is
//! under mutual TLS with certificates of one CA, the cluster's own.
//!
//! A node [`Server::start`]s one endpoint for every [`Alpn`] and takes [`Accepted`] connections from it; whoever wants to
//! reach a node [`dial`]s it. Both ends then know each other's [`PeerIdentity`].

mod ahead_budget;
mod certificate_info;
mod certificates;
mod congestion;
#[cfg(test)]
mod connection_tests;
mod copy_policy;
mod copy_queue;
mod copy_sink;
mod dial;
mod endpoint_keys;
mod explain;
mod identity;
mod impaired;
mod kernel_socket;
mod lanes;
mod link_keeper;
mod log_limit;
mod look;
mod movable_socket;
mod path_sample;
mod path_watch;
mod private_file;
mod protocol;
mod records;
mod rpc;
mod scout;
mod server;
mod silence;
mod socket;
mod sockets;
mod splice;
mod tcp_link;
mod tcp_tls;
#[cfg(test)]
mod testing;
mod tls;
mod tuning;

pub use ahead_budget::AheadBudget;
pub use certificate_info::{
    CertificateInfo, ClientName, InvalidCertificate, InvalidClientName, PeerIdentity, Validity,
    peer_identity, show_time,
};
pub use certificates::{
    BACKDATE, CA_LIFETIME, CertificateError, CertificateHost, CertsDir, Created, EXPIRING_DAYS,
    InvalidHost, IssueOptions, LEAF_LIFETIME, Listed, MAX_HOSTS, describe_validity,
};
pub use congestion::{
    Congestion, CongestionPolicy, InvalidLinkCongestion, Keel, KeelConfig, LinkCongestion,
    UnknownCongestion,
};
pub use copy_policy::CopyPolicy;
pub use copy_queue::CopyQueue;
pub use copy_sink::CopySink;
pub use dial::{Dialled, InvalidAddress, MAX_ADDRESSES, PeerAddress, dial, dial_unconfirmed};
pub use endpoint_keys::{EndpointKeys, EndpointKeysError};
pub use explain::{ConnectFailure, explain_refused_peer};
pub use identity::{CurrentIdentity, Identity, IdentityError};
pub use impaired::{
    Cut, DropCause, Fate, HeldPackets, ImpairedLinks, Impairment, ImpairmentCounts,
    ImpairmentModel, ImpairmentSpec, InvalidSpec, LinkEnd, LinkImpairment, MAX_DELAY,
    MAX_HELD_BYTES, MAX_HELD_PACKETS, PACKET_OVERHEAD, Peers, WatchedRules, mixed_seed,
    watch_impairment,
};
pub use lanes::{
    CHUNK_BYTES, COALESCE_BELOW, LaneClosed, LaneOptions, LaneReadError, LaneReader, LaneWriter,
    Measure, PIECE_OVERHEAD, PushError,
};
pub use link_keeper::{
    DIAL_PATIENCE, DialCause, DialId, EndCause, FIRST_REDIAL_PAUSE, JOIN_AFTER, KeeperAction,
    KeeperReport, LASTING, LOOK_EVERY, LinkKeeper, MAX_DIALS, MAX_REDIAL_PAUSE,
};
pub use log_limit::{LogLimit, LogLimits};
pub use look::{LookFailure, Seen, look, look_for_protocol, look_over_tcp, own_certificate_names};
pub use path_sample::{PathSample, sample_path};
pub use path_watch::{Ear, PathSigns, round_trip};
pub use private_file::{FileError, shell_word};
pub use protocol::{Alpn, CloseReason};
pub use records::{RECORD_BYTES, RecordReadError, RecordReader};
pub use rpc::{
    CallError, CallHandler, CallPool, MAX_BACKOFF, MAX_CALL_BYTES, MAX_CALL_BYTES_HELD,
    MAX_POOLED_PEERS, MIN_BACKOFF, PeerCalls, serve_calls,
};
pub use scout::{
    Passage, QUIC_DATAGRAM_BYTES, QUIC_VERSION, TcpAnswer, UdpAnswer, UdpBuffers, ask_passage,
    ask_tcp, ask_udp, known_path_mtu, probe_udp_socket,
};
pub use server::{
    ACCEPT_QUEUE, Accepted, HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, MAX_HANDSHAKES, RESERVED_FOR_NODES,
    RETRY_ABOVE_CONNECTIONS, RETRY_ABOVE_HANDSHAKES, Server, ServerLimits, ServerOptions,
};
pub use socket::{BindError, UDP_BUFFER_BYTES, bind_tcp};
pub use sockets::Sockets;
pub use tcp_link::{TcpChannel, TcpLink, TcpLinkReader, TcpLinkWriter, probe_tcp_congestion};
pub use tcp_tls::{TcpTls, TcpTlsError};
pub use tls::{ClientAuth, TlsConfigError};
pub use tuning::{
    CALL_STREAMS, CLIENT_STREAM_WINDOW, CLIENT_STREAMS, CLIENT_WINDOW, DATAGRAM_BUFFER,
    FOLLOWER_WINDOW_FLOOR, LANE_STREAMS, REPLICATION_STREAM_WINDOW, REPLICATION_WINDOW,
};
