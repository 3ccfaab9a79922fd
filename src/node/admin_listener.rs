//! The TCP listener of the admin endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{MAX_CONNECTIONS, Sources, serve_http};
use crate::transport::TcpTls;

/// The pause after a failed accept: most likely the process has no file handle left, and asking again at once would only
/// burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `shutdown`. Without `tls` the listener is plaintext.
pub(super) async fn run(
    listener: TcpListener,
    tls: Option<Arc<TcpTls>>,
    sources: Arc<Sources>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(cause = %error, "cannot accept an admin connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            tracing::debug!(
                %remote,
                "admin connection closed: there are {MAX_CONNECTIONS} already, the limit"
            );
            continue;
        };
        let (tls, sources, shutdown) = (tls.clone(), sources.clone(), shutdown.clone());
        tasks.spawn(async move {
            serve(stream, remote, tls, sources, shutdown).await;
            drop(permit);
        });
    }
}

async fn serve(
    stream: TcpStream,
    remote: SocketAddr,
    tls: Option<Arc<TcpTls>>,
    sources: Arc<Sources>,
    shutdown: CancellationToken,
) {
    let Some(tls) = tls else {
        serve_http(sources, stream, shutdown).await;
        return;
    };
    match tls.accept(stream, remote).await {
        Ok((stream, _)) => serve_http(sources, stream, shutdown).await,
        Err(error) => tracing::info!(cause = %error, "admin connection refused"),
    }
}
