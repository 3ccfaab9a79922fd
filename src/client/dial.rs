//! How a client gets a QUIC connection. Certificates and sockets are the dialler's affair.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::error::{ConnectCause, ConnectError, ExplainedFailure};
use crate::transport::{Alpn, CurrentIdentity, PeerAddress, Sockets};
use crate::types::NodeId;

/// The protocol that a client asks for (ALPN): Kafka connections as bidirectional streams, version 1.
pub const CLIENT_ALPN: &[u8] = Alpn::Client.name().as_bytes();

/// Moves a connection to another local socket and says where that is, or why it could not.
type Mover = dyn Fn() -> Result<SocketAddr, String> + Send + Sync;

/// A connection as a dialler gives it.
#[derive(Clone)]
pub struct Reached {
    pub connection: quinn::Connection,
    mover: Option<Arc<Mover>>,
}

impl Reached {
    /// A connection that can move to another local socket (QUIC migration) by `mover`. The client asks for that when a node
    /// falls silent: a NAT may have forgotten the way, or this machine may have got another address.
    pub fn movable(
        connection: quinn::Connection,
        mover: impl Fn() -> Result<SocketAddr, String> + Send + Sync + 'static,
    ) -> Reached {
        Reached {
            connection,
            mover: Some(Arc::new(mover)),
        }
    }

    /// `None` where the connection cannot move.
    pub(super) fn rebind(&self) -> Option<Result<SocketAddr, String>> {
        self.mover.as_ref().map(|mover| mover())
    }
}

impl From<quinn::Connection> for Reached {
    /// A connection that stays on its socket, because others share that.
    fn from(connection: quinn::Connection) -> Reached {
        Reached {
            connection,
            mover: None,
        }
    }
}

impl fmt::Debug for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reached")
            .field("connection", &self.connection)
            .field("movable", &self.mover.is_some())
            .finish()
    }
}

/// Makes connections. Called again for each new connection, so it may pick up rotated certificates.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `address` (`host:port`), handshake included, in no more time than `within`. The caller spaces its
    /// attempts.
    fn dial<'a>(
        &'a self,
        address: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<Reached, ConnectError>>;
}

/// Dials with a client's certificate, as every node of a cluster asks for one. What goes wrong with certificates is said
/// in full: which one, on which end, and what to do.
#[derive(Clone, Debug)]
pub struct IdentityDialer {
    identity: Arc<CurrentIdentity>,
    sockets: Sockets,
    /// Whose certificate is taken; `None`: any node's.
    node: Option<NodeId>,
}

impl IdentityDialer {
    /// The identity may be replaced later; new connections take the new one.
    pub fn new(identity: Arc<CurrentIdentity>) -> IdentityDialer {
        IdentityDialer::on(Sockets::plain(), identity)
    }

    /// The same, with each connection on one of `sockets`: a client may be tried over links that are made worse on purpose.
    pub fn on(sockets: Sockets, identity: Arc<CurrentIdentity>) -> IdentityDialer {
        IdentityDialer {
            identity,
            sockets,
            node: None,
        }
    }

    /// The same, for a node that dials another: who shows another node's certificate is refused.
    pub fn to_node(node: NodeId, sockets: Sockets, identity: Arc<CurrentIdentity>) -> Self {
        IdentityDialer {
            identity,
            sockets,
            node: Some(node),
        }
    }
}

impl Dialer for IdentityDialer {
    fn dial<'a>(
        &'a self,
        address: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<Reached, ConnectError>> {
        Box::pin(async move {
            let identity = self.identity.get();
            let peer = match self.node {
                Some(node) => PeerAddress::node(node, address),
                None => PeerAddress::any(address),
            };
            // Waits for the server's confirmation, so a refused certificate is heard of here.
            let dialling = self.sockets.dial(&identity, &peer, Alpn::Client, within);
            let dialled = dialling.await;
            dialled
                .map(|dialled| {
                    let connection = dialled.connection.clone();
                    Reached::movable(connection, move || {
                        dialled.rebind().map_err(|error| error.to_string())
                    })
                })
                .map_err(|failure| {
                    let transient = failure.is_transient();
                    ConnectError {
                        address: address.to_owned(),
                        cause: ConnectCause::Explained(ExplainedFailure {
                            error: Arc::new(failure),
                            transient,
                        }),
                    }
                })
        })
    }
}

/// Dials from one endpoint with one configuration, which must offer [`CLIENT_ALPN`]. A host name with several addresses
/// is tried at each of them in turn.
#[derive(Clone, Debug)]
pub struct EndpointDialer {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
}

impl EndpointDialer {
    pub fn new(endpoint: quinn::Endpoint, config: quinn::ClientConfig) -> EndpointDialer {
        EndpointDialer { endpoint, config }
    }

    async fn connect(&self, address: &str) -> Result<quinn::Connection, ConnectCause> {
        let host = host_of(address).ok_or_else(|| ConnectCause::InvalidAddress {
            address: address.to_owned(),
        })?;
        let found = tokio::net::lookup_host(address)
            .await
            .map_err(|error| ConnectCause::Resolve(Arc::new(error)))?;
        let mut last = ConnectCause::NoAddress;
        for remote in found {
            let connecting = self
                .endpoint
                .connect_with(self.config.clone(), remote, host);
            last = match connecting {
                Ok(connecting) => match connecting.await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => ConnectCause::Lost(error),
                },
                Err(error) => ConnectCause::Start(error),
            };
        }
        Err(last)
    }
}

impl Dialer for EndpointDialer {
    fn dial<'a>(
        &'a self,
        address: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<Reached, ConnectError>> {
        Box::pin(async move {
            tokio::time::timeout(within, self.connect(address))
                .await
                .unwrap_or(Err(ConnectCause::TimedOut { after: within }))
                .map(Reached::from)
                .map_err(|cause| ConnectError {
                    address: address.to_owned(),
                    cause,
                })
        })
    }
}

/// The host of `host:port`, or of `[v6 address]:port`, as a certificate names it. `None` where it has another form.
fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_taken_from_addresses() {
        assert_eq!(host_of("node-1.example:9000"), Some("node-1.example"));
        assert_eq!(host_of("[::1]:9000"), Some("::1"));
        for bad in [
            "node-1",
            "node-1:",
            "node:70000",
            "::1:9000",
            ":9000",
            "[::1:9",
        ] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }

    use time::OffsetDateTime;

    use crate::client::{Client, ClientConfig};
    use crate::transport::{
        CertsDir, ClientName, EndpointKeys, Identity, IssueOptions, Server, ServerOptions,
    };

    /// A directory with a CA, a certificate for node 1 and one for a client.
    fn certificates() -> (tempfile::TempDir, Identity, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certs");
        std::fs::create_dir(&path).unwrap();
        let certs = CertsDir::with_ca_key(path.clone(), dir.path().join("ca.key"));
        let options = IssueOptions::new(OffsetDateTime::now_utc());
        certs.create_ca(&options).unwrap();
        let hosts = ["127.0.0.1".parse().unwrap()];
        certs
            .create_node(NodeId::new(1).unwrap(), &hosts, &options)
            .unwrap();
        let name = ClientName::new("app").unwrap();
        certs.create_client(&name, &options).unwrap();
        let node = Identity::load_node(&path).unwrap();
        let client = Identity::load_client(&path, Some(&name)).unwrap();
        (dir, node, client)
    }

    #[tokio::test]
    async fn a_client_of_another_ca_is_told_why_and_gives_up() {
        let (_dir, node, ours) = certificates();
        let (_other_dir, _, stranger) = certificates();
        let (server, mut accepted) = Server::start(ServerOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            identity: Arc::new(node),
            keys: EndpointKeys::random().unwrap(),
            alpns: vec![Alpn::Client],
        })
        .unwrap();
        let address = server.local_addr().unwrap().to_string();

        let dialer = IdentityDialer::new(CurrentIdentity::new(ours));
        let connection = dialer.dial(&address, Duration::from_secs(20)).await;
        assert!(connection.unwrap().connection.close_reason().is_none());
        assert!(accepted.recv().await.is_some());

        let dialer = IdentityDialer::new(CurrentIdentity::new(stranger));
        let error = Client::connect(ClientConfig::new([address.clone()]), Arc::new(dialer))
            .await
            .unwrap_err();
        let error = error.connect_error().unwrap();
        assert!(error.is_final(), "{error:?}");
        assert_eq!(error.address, address);
    }
}
