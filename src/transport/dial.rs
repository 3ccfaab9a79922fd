//! The dialling end: one endpoint (one UDP socket) per connection, because migration moves an endpoint and everything on
//! it at once.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use quinn::{Connection, ConnectionError, Endpoint};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout_at};

use super::certificate_info::PeerIdentity;
use super::endpoint_keys::EndpointKeys;
use super::explain::{ConnectFailure, DialContext};
use super::identity::Identity;
use super::movable_socket::MovableSocket;
use super::protocol::{Alpn, CloseReason};
use super::server::identity_of;
use super::silence::{look_into_silence, too_narrow};
use super::socket::{BindError, bind_udp_for};
use super::sockets::Sockets;
use super::{tls, tuning};
use crate::types::NodeId;

/// Addresses of one host name that are tried.
pub const MAX_ADDRESSES: usize = 8;
/// The next address of a host is tried this long after the one before, when that has not answered.
const STAGGER: Duration = Duration::from_millis(100);
/// Where a peer is, and which node it must prove to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// `None` for a bootstrap server, which may be any node.
    pub node: Option<NodeId>,
    /// `HOST:PORT` or `[IPV6]:PORT`. The host must be in the peer's certificate.
    pub host_port: String,
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is not an address: write HOST:PORT, or [IPV6]:PORT, with ID@ before it for a particular node"
)]
pub struct InvalidAddress {
    text: String,
}

impl PeerAddress {
    /// Any node at this address.
    pub fn any(host_port: impl Into<String>) -> PeerAddress {
        PeerAddress {
            node: None,
            host_port: host_port.into(),
        }
    }

    pub fn node(node: NodeId, host_port: impl Into<String>) -> PeerAddress {
        PeerAddress {
            node: Some(node),
            host_port: host_port.into(),
        }
    }

    /// Host, without brackets, and port.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        let (host, port) = self.host_port.rsplit_once(':')?;
        let bare = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let port = port.parse().ok().filter(|port| *port != 0)?;
        (!bare.is_empty()).then_some((bare, port))
    }
}

impl FromStr for PeerAddress {
    type Err = InvalidAddress;

    /// `[ID@]HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAddress { text: text.into() };
        let (node, host_port) = match text.split_once('@') {
            Some((id, rest)) => (Some(id.parse().map_err(|_| invalid())?), rest),
            None => (None, text),
        };
        let address = PeerAddress {
            node,
            host_port: host_port.into(),
        };
        address.host_and_port().ok_or_else(invalid)?;
        Ok(address)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "{node}@{}", self.host_port),
            None => f.write_str(&self.host_port),
        }
    }
}

/// A connection that this end has dialled, with the endpoint that it alone uses.
#[derive(Debug, Clone)]
pub struct Dialled {
    pub connection: Connection,
    /// Who the server proved to be; always a node.
    pub peer: PeerIdentity,
    endpoint: Endpoint,
    /// What the endpoint is on.
    socket: Arc<MovableSocket>,
    context: Arc<DialContext>,
}

impl Dialled {
    /// The whole story behind an error of this connection. A refusal of this end's certificate comes as the error of a
    /// later operation, so every [`ConnectionError`] of an unconfirmed connection belongs here.
    pub fn explain(&self, error: &ConnectionError) -> ConnectFailure {
        self.context.explain(error)
    }

    /// Waits until the server has taken this end's certificate: one round trip after the handshake.
    ///
    /// QUIC's word for it is HANDSHAKE_DONE. quinn counts such frames but does not announce them, so this looks a few
    /// times per round trip.
    pub async fn confirmed(&self) -> Result<(), ConnectFailure> {
        loop {
            if let Some(error) = self.connection.close_reason() {
                return Err(self.explain(&error));
            }
            if self.connection.stats().frame_rx.handshake_done > 0 {
                return Ok(());
            }
            let tick = self.connection.rtt() / 8;
            tokio::select! {
                error = self.connection.closed() => return Err(self.explain(&error)),
                () = sleep(tick.clamp(Duration::from_micros(500), Duration::from_millis(20))) => {}
            }
        }
    }

    /// Moves the connection to a new local socket: QUIC migration. Nothing is lost and no handshake is made. Returns the
    /// new local address.
    pub fn rebind(&self) -> Result<SocketAddr, BindError> {
        let remote = self.connection.remote_address();
        let socket = bind_udp_for(remote)?;
        let other = |source| BindError::Other {
            protocol: "UDP",
            address: remote,
            source,
        };
        let local = socket.local_addr().map_err(other)?;
        self.socket.move_to(socket).map_err(other)?;
        Ok(local)
    }

    /// This end's address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Closes with `reason` and waits, at most `wait`, until the peer knows.
    pub async fn close(&self, reason: CloseReason, detail: &str, wait: Duration) {
        reason.close(&self.connection, detail);
        let _ = tokio::time::timeout(wait, self.endpoint.wait_idle()).await;
    }
}

/// Connects within `within`, handshake and the server's confirmation included.
///
/// This end's own certificate is checked first, so that what is wrong with it is said exactly. The host's addresses are
/// tried one after the other, 100 ms apart; the first to answer is it.
pub async fn dial(
    identity: &Arc<Identity>,
    peer: &PeerAddress,
    alpn: Alpn,
    within: Duration,
) -> Result<Dialled, ConnectFailure> {
    Sockets::plain().dial(identity, peer, alpn, within).await
}

/// As [`dial`], but does not wait for the server's confirmation, which saves a round trip. Whoever calls this must pass
/// later errors to [`Dialled::explain`], and must not take the connection for a success before the first bytes from the
/// server have come: a loop that redials a refusing server would otherwise never back off.
pub async fn dial_unconfirmed(
    identity: &Arc<Identity>,
    peer: &PeerAddress,
    alpn: Alpn,
    within: Duration,
) -> Result<Dialled, ConnectFailure> {
    let sockets = Sockets::plain();
    sockets.dial_unconfirmed(identity, peer, alpn, within).await
}

impl Sockets {
    /// As [`dial`], on one of these sockets.
    pub async fn dial(
        &self,
        identity: &Arc<Identity>,
        peer: &PeerAddress,
        alpn: Alpn,
        within: Duration,
    ) -> Result<Dialled, ConnectFailure> {
        let deadline = Instant::now() + within;
        let dialled = dial_until(self, identity, peer, alpn, deadline, within).await?;
        match timeout_at(deadline, dialled.confirmed()).await {
            Ok(confirmed) => confirmed.map(|()| dialled),
            Err(_) => Err(ConnectFailure::Unreachable {
                address: peer.to_string(),
                waited: within,
            }),
        }
    }

    /// As [`dial_unconfirmed`], on one of these sockets.
    pub async fn dial_unconfirmed(
        &self,
        identity: &Arc<Identity>,
        peer: &PeerAddress,
        alpn: Alpn,
        within: Duration,
    ) -> Result<Dialled, ConnectFailure> {
        let deadline = Instant::now() + within;
        dial_until(self, identity, peer, alpn, deadline, within).await
    }
}

async fn dial_until(
    sockets: &Sockets,
    identity: &Arc<Identity>,
    peer: &PeerAddress,
    alpn: Alpn,
    deadline: Instant,
    within: Duration,
) -> Result<Dialled, ConnectFailure> {
    let address = peer.to_string();
    let unreachable = || ConnectFailure::Unreachable {
        address: peer.to_string(),
        waited: within,
    };
    let (host, port) = peer
        .host_and_port()
        .ok_or_else(|| ConnectFailure::BadAddress {
            address: address.clone(),
        })?;
    identity
        .check(OffsetDateTime::now_utc())
        .map_err(|problem| ConnectFailure::OwnIdentity {
            address: address.clone(),
            problem,
        })?;
    if !alpn.admits(identity.peer()) {
        return Err(ConnectFailure::OwnWrongRole {
            address,
            own: identity.peer().clone(),
            alpn,
        });
    }
    let addresses: Vec<SocketAddr> = timeout_at(deadline, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| unreachable())?
        .map_err(|source| ConnectFailure::Unresolvable {
            address: address.clone(),
            source,
        })?
        .take(MAX_ADDRESSES)
        .collect();
    let started = Instant::now();
    let mut attempts: FuturesUnordered<_> = addresses
        .iter()
        .zip(0u32..)
        .map(|(remote, turn)| async move {
            tokio::time::sleep_until(started + STAGGER * turn).await;
            attempt(sockets, identity, peer, host, *remote, alpn, within).await
        })
        .collect();
    let looking = look_into_silence(sockets, &address, addresses.first().copied(), within);
    let mut looking = std::pin::pin!(looking);
    let mut found = None;
    let mut failure = None;
    loop {
        let outcome = tokio::select! {
            outcome = timeout_at(deadline, attempts.next()) => outcome,
            what = &mut looking, if found.is_none() => {
                found = Some(what);
                continue;
            }
        };
        let Ok(Some(outcome)) = outcome else {
            break;
        };
        match outcome {
            Ok(dialled) => return Ok(dialled),
            // Another address of the name may still answer.
            Err(
                error @ (ConnectFailure::NothingListens { .. }
                | ConnectFailure::Socket { .. }
                | ConnectFailure::Unreachable { .. }
                | ConnectFailure::Other { .. }),
            ) => failure = Some(error),
            // It has answered, and this end or that one will have none of it.
            Err(error) => return Err(error),
        }
    }
    // With attempts left over the time is up; else the last failure says why.
    match failure {
        Some(error)
            if attempts.is_empty() && !matches!(error, ConnectFailure::Unreachable { .. }) =>
        {
            Err(error)
        }
        _ => Err(too_narrow(&address, &addresses)
            .await
            .or(found.flatten())
            .unwrap_or_else(unreachable)),
    }
}

async fn attempt(
    sockets: &Sockets,
    identity: &Arc<Identity>,
    peer: &PeerAddress,
    host: &str,
    remote: SocketAddr,
    alpn: Alpn,
    within: Duration,
) -> Result<Dialled, ConnectFailure> {
    let address = peer.to_string();
    let context = Arc::new(DialContext {
        address: address.clone(),
        host: host.to_owned(),
        expected: peer.node,
        alpn,
        identity: Arc::clone(identity),
        refusal: tls::Refusal::default(),
    });
    let crypto =
        tls::quic_client(identity, alpn, peer.node, &context.refusal).map_err(|source| {
            ConnectFailure::Config {
                address: address.clone(),
                source,
            }
        })?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(tuning::dialler(alpn)));
    let socket_error = |source| ConnectFailure::Socket {
        address: address.clone(),
        source,
    };
    let socket = bind_udp_for(remote).map_err(|error| socket_error(io::Error::other(error)))?;
    let keys = EndpointKeys::random().map_err(|error| socket_error(io::Error::other(error)))?;
    sockets.note_node(remote, peer.node);
    let (endpoint, socket) = sockets
        .dialling(keys.endpoint_config(), socket, remote)
        .map_err(socket_error)?;
    let connecting = endpoint
        .connect_with(config, remote, host)
        .map_err(|error| match error {
            quinn::ConnectError::InvalidServerName(_) => ConnectFailure::BadAddress {
                address: address.clone(),
            },
            other => socket_error(io::Error::other(other)),
        })?;
    let connected = tokio::select! {
        connected = connecting => connected,
        () = port_unreachable(sockets, remote) => {
            return Err(ConnectFailure::NothingListens { address });
        }
    };
    let connection = connected.map_err(|error| match error {
        // No identity is refused by silence: nobody was there.
        ConnectionError::TimedOut => ConnectFailure::Unreachable {
            address: address.clone(),
            waited: within,
        },
        error => context.explain(&error),
    })?;
    let peer = identity_of(&connection).map_err(|text| ConnectFailure::Tls { address, text })?;
    sockets.note_node(remote, peer.node());
    sockets.silences().note_answered(remote);
    Ok(Dialled {
        connection,
        peer,
        endpoint,
        socket,
        context,
    })
}

/// Returns once the kernel or the network says that nothing listens there; else never.
///
/// An unconnected UDP socket, as QUIC uses, is not told of ICMP errors, and a dead process on a live host is then only
/// silence. A connected one is told. The one byte it sends is no QUIC packet and any endpoint drops it. Over an impaired link the word takes
/// its time, and over one that is cut it does not come.
async fn port_unreachable(sockets: &Sockets, remote: SocketAddr) {
    let told = async {
        sleep(sockets.answer_delay(remote)?).await;
        let socket = tokio::net::UdpSocket::from_std({
            let socket = bind_udp_for(remote).ok()?;
            socket.set_nonblocking(true).ok()?;
            socket
        })
        .ok()?;
        socket.connect(remote).await.ok()?;
        socket.send(&[0]).await.ok()?;
        let mut buffer = [0; 1];
        loop {
            match socket.recv(&mut buffer).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Some(()),
                Err(_) => return None,
                Ok(_) => {}
            }
        }
    };
    if told.await.is_none() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        let parse = |text: &str| text.parse::<PeerAddress>();
        let one = parse("1@db1:7001").unwrap();
        assert_eq!(one.node, NodeId::new(1));
        assert_eq!(one.host_and_port(), Some(("db1", 7001)));
        assert_eq!(one.to_string(), "1@db1:7001");
        let six = parse("[::1]:7001").unwrap();
        assert_eq!(six.host_and_port(), Some(("::1", 7001)));
        for bad in [
            "",
            "db1",
            "db1:",
            ":1",
            "db1:0",
            "db1:65536",
            "::1:7001",
            "0@db1:1",
            "x@db1:1",
            "[]:1",
            "[::1:7",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
