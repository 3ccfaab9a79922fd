//! A TCP listener for Kafka clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::kafka::{self, ListenerKind};
use crate::transport::TcpTls;
use crate::types::ListenerName;

/// The pause after a failed accept: most likely the process has no file handle left, and asking again at once would only
/// burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `shutdown`. Without `tls` the listener is plaintext.
pub(super) async fn run(
    name: ListenerName,
    listener: TcpListener,
    tls: Option<Arc<TcpTls>>,
    login: kafka::Login,
    kafka: Arc<kafka::Server<Broker>>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(listener = %name, cause = %error, "cannot accept a Kafka connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let peer = kafka::Peer {
            address: remote,
            name: None,
            node: None,
        };
        // Admitted before the handshake, so that handshakes are bounded too.
        let Some(admitted) = kafka.admit(peer, ListenerKind::Kafka(name.clone())) else {
            continue;
        };
        let admitted = admitted.wants(login);
        tasks.spawn(serve(
            stream,
            remote,
            tls.clone(),
            admitted,
            shutdown.clone(),
        ));
    }
}

async fn serve(
    stream: TcpStream,
    remote: SocketAddr,
    tls: Option<Arc<TcpTls>>,
    admitted: kafka::Connection<Broker>,
    shutdown: CancellationToken,
) {
    let Some(tls) = tls else {
        // Responses are small and awaited; Nagle's algorithm would hold them back.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        admitted.run(reader, writer, shutdown).await;
        return;
    };
    match tls.accept(stream, remote).await {
        Ok((stream, peer)) => {
            let admitted = match peer {
                Some(peer) => admitted.is_known_as(peer.to_string().into()),
                None => admitted,
            };
            let (reader, writer) = tokio::io::split(stream);
            admitted.run(reader, writer, shutdown).await;
        }
        Err(error) => tracing::info!(cause = %error, "Kafka connection refused"),
    }
}
