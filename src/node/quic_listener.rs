//! Takes QUIC connections and gives each to whom its protocol is for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin;
use crate::broker::Broker;
use crate::controller::Controller;
use crate::kafka::{self, ListenerKind};
use crate::transport::{
    Accepted, Alpn, CLIENT_STREAMS, CloseReason, LogLimit, PeerIdentity, serve_calls,
};

/// How often it is looked where a client's packets come from. Nothing waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) struct Listener {
    pub(super) accepted: mpsc::Receiver<Accepted>,
    pub(super) broker: Arc<Broker>,
    pub(super) controller: Controller,
    pub(super) kafka: Arc<kafka::Server<Broker>>,
    pub(super) sources: Arc<admin::Sources>,
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Runs until the endpoint is closed. Connections are bounded by the endpoint.
pub(super) async fn run(mut listener: Listener) {
    while let Some(accepted) = listener.accepted.recv().await {
        let Accepted {
            connection,
            peer,
            alpn,
        } = accepted;
        match (alpn, peer) {
            (Alpn::Replication, PeerIdentity::Node(node)) => {
                let broker = listener.broker.clone();
                listener
                    .tasks
                    .spawn(async move { broker.serve_follower(node, connection).await });
            }
            (Alpn::Controller, peer @ PeerIdentity::Node(_)) => {
                let controller = listener.controller.clone();
                let handler = move |peer: PeerIdentity, request| {
                    let controller = controller.clone();
                    async move {
                        match peer.node() {
                            Some(node) => Ok(controller.handle(node, request).await),
                            None => Err("only nodes may call a controller".to_owned()),
                        }
                    }
                };
                listener.tasks.spawn(async move {
                    let ended = serve_calls(connection, peer, Arc::new(handler)).await;
                    tracing::debug!(cause = %ended, "a connection for calls has ended");
                });
            }
            (Alpn::Client, peer) => {
                listener.tasks.spawn(serve_client(
                    listener.broker.clone(),
                    listener.kafka.clone(),
                    connection,
                    peer,
                    listener.shutdown.clone(),
                    listener.tasks.clone(),
                ));
            }
            (Alpn::Admin, _) => {
                let sources = listener.sources.clone();
                listener.tasks.spawn(admin::serve(sources, connection));
            }
            // The endpoint has refused other roles already.
            (Alpn::Replication | Alpn::Controller, _) => {
                CloseReason::WrongRole.close(&connection, "");
            }
        }
    }
}

/// Serves a native client: each bidirectional stream is a Kafka connection.
async fn serve_client(
    broker: Arc<Broker>,
    kafka: Arc<kafka::Server<Broker>>,
    connection: quinn::Connection,
    peer: PeerIdentity,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    let name: Arc<str> = peer.to_string().into();
    let node = match &peer {
        PeerIdentity::Node(node) => Some(*node),
        _ => None,
    };
    // As many as the peer may have open anyway; it only keeps the tasks bounded while streams end.
    let streams = Arc::new(Semaphore::new(CLIENT_STREAMS as usize));
    let mut path = Path::new(&connection);
    loop {
        let Ok(permit) = streams.clone().acquire_owned().await else {
            return;
        };
        let (send, receive) = tokio::select! {
            () = shutdown.cancelled() => return,
            // Without an end: it is dropped when a stream comes, and begun again.
            () = path.watch(&broker, &name) => return,
            stream = connection.accept_bi() => match stream {
                Ok(stream) => stream,
                Err(_) => return,
            },
        };
        let peer = kafka::Peer {
            address: connection.remote_address(),
            name: Some(name.clone()),
            node,
        };
        let Some(admitted) = kafka.admit(peer, ListenerKind::Quic) else {
            CloseReason::Overloaded.close(&connection, "too many connections");
            return;
        };
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            admitted.run(receive, send, shutdown).await;
            drop(permit);
        });
    }
}

/// Where a client's packets come from, so that it shows when that changes: a client that roams, or whose NAT gave it another port.
struct Path<'a> {
    connection: &'a quinn::Connection,
    address: SocketAddr,
    since: Instant,
    limit: LogLimit,
}

impl Path<'_> {
    fn new(connection: &quinn::Connection) -> Path<'_> {
        Path {
            connection,
            address: connection.remote_address(),
            since: Instant::now(),
            limit: LogLimit::default(),
        }
    }

    /// Notes changes for ever.
    async fn watch(&mut self, broker: &Broker, client: &str) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.connection.remote_address();
            if now == self.address {
                continue;
            }
            broker.note_client_migration();
            if let Some(suppressed) = self.limit.allow() {
                tracing::info!(
                    client, from = %self.address, to = %now, cause = "its packets come from there",
                    after_ms = self.since.elapsed().as_millis() as u64, suppressed,
                    "client moved to another address; its connection goes on"
                );
            }
            (self.address, self.since) = (now, Instant::now());
        }
    }
}
