//! Takes QUIC connections and gives each to whom its protocol is for.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin;
use crate::broker::Broker;
use crate::controller::Controller;
use crate::kafka::{self, ListenerKind};
use crate::transport::{Accepted, Alpn, CLIENT_STREAMS, CloseReason, PeerIdentity, serve_calls};

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
    kafka: Arc<kafka::Server<Broker>>,
    connection: quinn::Connection,
    peer: PeerIdentity,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    let name: Arc<str> = peer.to_string().into();
    // As many as the peer may have open anyway; it only keeps the tasks bounded while streams end.
    let streams = Arc::new(Semaphore::new(CLIENT_STREAMS as usize));
    loop {
        let Ok(permit) = streams.clone().acquire_owned().await else {
            return;
        };
        let (send, receive) = tokio::select! {
            () = shutdown.cancelled() => return,
            stream = connection.accept_bi() => match stream {
                Ok(stream) => stream,
                Err(_) => return,
            },
        };
        let peer = kafka::Peer {
            address: connection.remote_address(),
            name: Some(name.clone()),
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
