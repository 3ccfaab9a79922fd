//! Floor 7: a Kafka endpoint on this machine for a cluster that is reached over QUIC.
//!
//! Any Kafka client connects to a local TCP port. Each of its connections is carried on a stream of its own to a node, over one
//! QUIC connection a node, which is under mutual TLS, survives a change of address and is dialled anew when it breaks. Where a
//! response names nodes, each is given a local port, on demand, and named by that: so the client finds every node here.
//!
//! ```text
//! client ── TCP ──▶ bootstrap port ─┐                      ┌── stream ──▶ any node
//! client ── TCP ──▶ port of node 2 ─┼─ pipe ── rewrite ────┤
//! client ── TCP ──▶ port of node 3 ─┘                      └── stream ──▶ node 2, node 3
//! ```

mod expected;
mod peek;
mod pipe;
mod ports;
mod rewrite;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::Client;
use pipe::PipeError;
use ports::Ports;

/// Connections of all clients together. Further ones are closed at once.
pub const MAX_CONNECTIONS: usize = 4_096;
/// Responses that are held whole, to be rewritten, at one time. Further ones wait.
const MAX_REWRITES: usize = 4;

/// How the proxy listens.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// The bootstrap address for clients: a loopback address, because what passes there is not encrypted. Port 0 takes any free
    /// one.
    pub listen: SocketAddr,
    /// Node N listens at this port + N. `None`: at any free one.
    pub node_ports: Option<u16>,
}

/// Why no proxy was started.
#[derive(Debug, Error)]
pub enum ProxyError {
    #[error(
        "a proxy at {address} would open the cluster to everyone who can reach it, under this machine's certificate: listen \
         on 127.0.0.1, and run one on each machine that needs it"
    )]
    NotLoopback { address: SocketAddr },
    #[error("cannot listen at {address}: {source}; choose another port with --listen")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
}

/// A proxy that runs.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What all connections of a proxy share.
struct Shared {
    client: Client,
    ports: Ports,
    connections: Arc<Semaphore>,
    rewrites: Semaphore,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Where a connection is carried to.
#[derive(Debug, Clone)]
enum Target {
    /// To any node.
    Any,
    /// To the node at this address, as it was told last.
    Node(ports::NodePort),
}

impl Proxy {
    /// Begins to listen. The cluster is dialled by `client` when somebody connects.
    pub async fn start(client: Client, options: &ProxyOptions) -> Result<Proxy, ProxyError> {
        let address = options.listen;
        if !address.ip().is_loopback() {
            return Err(ProxyError::NotLoopback { address });
        }
        let failed = |source| ProxyError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            client,
            ports: Ports::new(address.ip(), options.node_ports),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            rewrites: Semaphore::new(MAX_REWRITES),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        shared.listen(listener, Target::Any);
        Ok(Proxy { address, shared })
    }

    /// The bootstrap address, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection and every port.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Shared {
    fn ip(&self) -> IpAddr {
        self.ports.ip()
    }

    /// Accepts connections until the proxy stops.
    fn listen(self: &Arc<Self>, listener: TcpListener, target: Target) {
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = shared.stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let (stream, remote) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(cause = %error, "cannot accept a connection");
                        tokio::time::sleep(ports::ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
                    tracing::warn!(%remote, limit = MAX_CONNECTIONS, "connection closed: there are as many as there may be");
                    continue;
                };
                let (shared, target) = (Arc::clone(&shared), target.clone());
                let stop = shared.stop.clone();
                shared.tasks.clone().spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        ended = pipe::run(&shared, stream, &target) => {
                            match ended {
                                Ok(()) => {}
                                // Clients come and go.
                                Err(PipeError::Io(error)) => {
                                    tracing::debug!(%remote, cause = %error, "connection closed");
                                }
                                Err(error) => {
                                    tracing::info!(%remote, cause = %error, "connection closed");
                                }
                            }
                        }
                    }
                    drop(permit);
                });
            }
        });
    }
}
