//! The accepting end: one UDP port, every protocol, only peers of our CA.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::certificate_info::{PeerIdentity, peer_identity};
use super::congestion::{CongestionPolicy, Selection};
use super::endpoint_keys::EndpointKeys;
use super::explain::explain_refused_peer;
use super::identity::{Chain, Identity};
use super::log_limit::LogLimits;
use super::protocol::{Alpn, CloseReason};
use super::scout::UdpBuffers;
use super::socket::{BindError, UDP_BUFFER_BYTES, bind_udp, granted_buffers};
use super::sockets::Sockets;
use super::{tls, tuning};

/// Connections that a server holds at once, handshakes included. The next one is refused.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Of these, how many are kept free of clients, so that a crowd of them cannot keep the cluster's own nodes out.
pub const RESERVED_FOR_NODES: usize = 1024;
/// Handshakes under way at once. The next one is ignored; its client tries again by itself.
pub const MAX_HANDSHAKES: usize = 1024;
/// With this many connections open, a peer must first prove its address (QUIC Retry), at the price of a round trip.
pub const RETRY_ABOVE_CONNECTIONS: usize = 8192;
/// The same with this many handshakes under way: a flood from forged addresses shows here first.
pub const RETRY_ABOVE_HANDSHAKES: usize = 128;
/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that are authenticated and not yet taken by the caller. At the cap, handshakes wait, and then peers do.
pub const ACCEPT_QUEUE: usize = 256;
/// First packets of connections that are not accepted yet, in bytes, all together. Beyond it they are dropped and resent.
const INCOMING_BUFFER_BYTES: u64 = 16 * 1024 * 1024;

/// A connection whose peer has proved who it is, and whose role may speak the protocol.
#[derive(Debug)]
pub struct Accepted {
    pub connection: Connection,
    pub peer: PeerIdentity,
    pub alpn: Alpn,
}

/// What a server is started with.
#[derive(Debug)]
pub struct ServerOptions {
    /// Port 0 takes any free one; see [`Server::local_addr`].
    pub listen: SocketAddr,
    pub identity: Arc<Identity>,
    pub keys: EndpointKeys,
    /// The protocols to serve.
    pub alpns: Vec<Alpn>,
}

/// The caps on what a server takes in; see the constants for what happens at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// [`MAX_CONNECTIONS`]
    pub connections: usize,
    /// [`RESERVED_FOR_NODES`]
    pub reserved_for_nodes: usize,
    /// [`MAX_HANDSHAKES`]
    pub handshakes: usize,
    /// [`RETRY_ABOVE_CONNECTIONS`]
    pub retry_above_connections: usize,
    /// [`RETRY_ABOVE_HANDSHAKES`]
    pub retry_above_handshakes: usize,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            connections: MAX_CONNECTIONS,
            reserved_for_nodes: RESERVED_FOR_NODES,
            handshakes: MAX_HANDSHAKES,
            retry_above_connections: RETRY_ABOVE_CONNECTIONS,
            retry_above_handshakes: RETRY_ABOVE_HANDSHAKES,
        }
    }
}

/// A listening QUIC endpoint. Dropping it does not stop it: [`Server::close`] does.
#[derive(Clone, Debug)]
pub struct Server {
    endpoint: Endpoint,
    alpns: Arc<[Alpn]>,
    buffers: UdpBuffers,
    accepting: Arc<Mutex<Accepting>>,
}

/// What new connections get. Live ones go on as they are.
#[derive(Debug)]
struct Accepting {
    config: quinn::ServerConfig,
    congestion: CongestionPolicy,
}

impl Server {
    /// Binds the port and starts accepting; connections come out of the receiver. When the receiver is dropped, peers are
    /// told that the node is stopping.
    pub fn start(options: ServerOptions) -> Result<(Server, mpsc::Receiver<Accepted>), BindError> {
        Server::start_with_limits(options, ServerLimits::default())
    }

    /// As [`Server::start`], with other caps than the default.
    pub fn start_with_limits(
        options: ServerOptions,
        limits: ServerLimits,
    ) -> Result<(Server, mpsc::Receiver<Accepted>), BindError> {
        Server::start_on(&Sockets::plain(), options, limits)
    }

    /// As [`Server::start_with_limits`], on one of `sockets`.
    pub fn start_on(
        sockets: &Sockets,
        options: ServerOptions,
        limits: ServerLimits,
    ) -> Result<(Server, mpsc::Receiver<Accepted>), BindError> {
        let config = server_config(&options.identity, &options.alpns)?;
        let socket = bind_udp(options.listen)?;
        let granted = granted_buffers(&socket);
        let endpoint = sockets
            .listening(options.keys.endpoint_config(), config.clone(), socket)
            .map_err(|source| BindError::Other {
                protocol: "UDP",
                address: options.listen,
                source,
            })?;
        let (accepted, receiver) = mpsc::channel(ACCEPT_QUEUE);
        tracing::info!(
            listen = %endpoint.local_addr().unwrap_or(options.listen),
            asked = UDP_BUFFER_BYTES,
            granted_receive = granted.receive,
            granted_send = granted.send,
            "QUIC is served; socket buffers in bytes (raise net.core.rmem_max and wmem_max to be granted what is asked)"
        );
        let accepting = Arc::new(Mutex::new(Accepting {
            config,
            congestion: CongestionPolicy::default(),
        }));
        tokio::spawn(accept_loop(
            endpoint.clone(),
            Arc::clone(&accepting),
            accepted,
            limits,
        ));
        let server = Server {
            endpoint,
            alpns: options.alpns.into(),
            buffers: UdpBuffers {
                asked: UDP_BUFFER_BYTES,
                receive: granted.receive,
                send: granted.send,
            },
            accepting,
        };
        Ok((server, receiver))
    }

    /// The bound address, with the port that was chosen for port 0.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// What the kernel granted the socket.
    pub fn udp_buffers(&self) -> UdpBuffers {
        self.buffers
    }

    /// Connections that are open, handshakes included.
    pub fn open_connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Shows new connections another certificate, and checks theirs by another CA. Live ones go on as they are.
    pub fn use_identity(&self, identity: &Identity) -> Result<(), BindError> {
        let config = server_config(identity, &self.alpns)?;
        locked(&self.accepting).config = config.clone();
        self.endpoint.set_server_config(Some(config));
        Ok(())
    }

    /// Chooses the congestion controllers of new connections. Live ones go on as they are.
    pub fn use_congestion(&self, policy: CongestionPolicy) {
        locked(&self.accepting).congestion = policy;
    }

    /// Stops accepting, closes every connection with `reason`, and waits, at most `wait`, until the peers know.
    pub async fn close(&self, reason: CloseReason, wait: Duration) {
        self.endpoint.close(reason.var_int(), b"");
        if timeout(wait, self.endpoint.wait_idle()).await.is_err() {
            tracing::debug!("some peers did not confirm the close of their connection");
        }
    }
}

fn server_config(identity: &Identity, alpns: &[Alpn]) -> Result<quinn::ServerConfig, BindError> {
    let crypto = tls::quic_server(identity, alpns)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(tuning::server(Selection::default())))
        .migration(true)
        .max_incoming(MAX_HANDSHAKES)
        .incoming_buffer_size(64 * 1024)
        .incoming_buffer_size_total(INCOMING_BUFFER_BYTES);
    // Address tokens for later connections would let a peer skip Retry; nothing here needs them.
    config.validation_token.sent(0);
    Ok(config)
}

fn locked(accepting: &Mutex<Accepting>) -> std::sync::MutexGuard<'_, Accepting> {
    accepting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a peer was turned away, for the sake of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Refusal {
    Full,
    Packet,
    Handshake,
    NotAdmitted,
}

/// A line a second of each kind about each host.
type Refusals = LogLimits<(Refusal, IpAddr)>;

async fn accept_loop(
    endpoint: Endpoint,
    accepting: Arc<Mutex<Accepting>>,
    accepted: mpsc::Sender<Accepted>,
    limits: ServerLimits,
) {
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    // Whoever is refused comes again and again.
    let refusals = Arc::new(Refusals::default());
    while let Some(incoming) = endpoint.accept().await {
        let remote = incoming.remote_address();
        let open = endpoint.open_connections();
        if open >= limits.connections {
            if let Some(suppressed) = refusals.allow((Refusal::Full, remote.ip())) {
                tracing::warn!(
                    %remote, open, suppressed,
                    "connection refused: the node holds as many as it may"
                );
            }
            incoming.refuse();
            continue;
        }
        let under_way = limits.handshakes - handshakes.available_permits();
        let loaded =
            open >= limits.retry_above_connections || under_way >= limits.retry_above_handshakes;
        if loaded && !incoming.remote_address_validated() && incoming.may_retry() {
            if let Err(error) = incoming.retry() {
                tracing::debug!(%remote, %error, "could not ask a peer to prove its address");
            }
            continue;
        }
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        let crowded = open >= limits.connections.saturating_sub(limits.reserved_for_nodes);
        let (accepting, accepted) = (Arc::clone(&accepting), accepted.clone());
        let refusals = refusals.clone();
        tokio::spawn(handshake(
            incoming, crowded, accepting, accepted, refusals, permit,
        ));
    }
}

async fn handshake(
    incoming: Incoming,
    crowded: bool,
    accepting: Arc<Mutex<Accepting>>,
    accepted: mpsc::Sender<Accepted>,
    refusals: Arc<Refusals>,
    _permit: OwnedSemaphorePermit,
) {
    let remote = incoming.remote_address();
    // Each connection has a selection of its own, which is made when its peer is known.
    let (config, selection) = {
        let accepting = locked(&accepting);
        let selection = Selection::new(accepting.congestion.default);
        let mut config = accepting.config.clone();
        config.transport_config(Arc::new(tuning::server(selection.clone())));
        (Arc::new(config), selection)
    };
    let connecting = match incoming.accept_with(config) {
        Ok(connecting) => connecting,
        Err(error) => {
            if let Some(suppressed) = refusals.allow((Refusal::Packet, remote.ip())) {
                tracing::warn!(suppressed, "{}", explain_refused_peer(remote, &error));
            }
            return;
        }
    };
    let connection = match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            if let Some(suppressed) = refusals.allow((Refusal::Handshake, remote.ip())) {
                tracing::warn!(suppressed, "{}", explain_refused_peer(remote, &error));
            }
            return;
        }
        Err(_) => {
            tracing::debug!(%remote, "handshake given up: it took too long");
            return;
        }
    };
    match admit(&connection, crowded) {
        Ok((peer, alpn)) => {
            tuning::raise_for(&connection, alpn);
            let congestion = locked(&accepting).congestion.towards(peer.node());
            selection.set(congestion);
            tracing::debug!(%remote, %peer, %alpn, %congestion, "connection accepted");
            let accepted_connection = Accepted {
                connection,
                peer,
                alpn,
            };
            if let Err(refused) = accepted.send(accepted_connection).await {
                CloseReason::ShuttingDown.close(&refused.0.connection, "");
            }
        }
        Err((reason, detail)) => {
            if let Some(suppressed) = refusals.allow((Refusal::NotAdmitted, remote.ip())) {
                tracing::warn!(%remote, suppressed, "connection refused: {detail}");
            }
            reason.close(&connection, &detail);
        }
    }
}

/// Who the peer is and what it came for; or why it must go.
fn admit(
    connection: &Connection,
    crowded: bool,
) -> Result<(PeerIdentity, Alpn), (CloseReason, String)> {
    let peer = identity_of(connection).map_err(|text| (CloseReason::WrongRole, text))?;
    let alpn = alpn_of(connection).ok_or_else(|| {
        let text = "the connection names no protocol";
        (CloseReason::ProtocolError, text.to_owned())
    })?;
    if !alpn.admits(&peer) {
        return Err((
            CloseReason::WrongRole,
            format!("{peer} may not use {alpn}: it is for nodes"),
        ));
    }
    if crowded && peer.node().is_none() {
        return Err((
            CloseReason::Overloaded,
            "the node holds as many client connections as it may".to_owned(),
        ));
    }
    Ok((peer, alpn))
}

/// The identity in the certificate that the other end of a connection has shown.
pub(super) fn identity_of(connection: &Connection) -> Result<PeerIdentity, String> {
    let chain = connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Chain>().ok())
        .ok_or_else(|| "the peer showed no certificate".to_owned())?;
    peer_identity(&chain).map_err(|error| error.to_string())
}

fn alpn_of(connection: &Connection) -> Option<Alpn> {
    let data = connection
        .handshake_data()?
        .downcast::<HandshakeData>()
        .ok()?;
    Alpn::from_name(data.protocol.as_deref()?)
}
