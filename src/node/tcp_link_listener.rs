//! The TCP listener for followers of a node that replicates over TCP, for measurements only.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::metadata::MAX_NODES;
use crate::transport::{TcpLink, TcpTls};

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `shutdown`: two streams of each node that a cluster may have, at most.
pub(super) async fn run(
    listener: TcpListener,
    tls: Arc<TcpTls>,
    congestion: String,
    broker: Arc<Broker>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    let room = Arc::new(Semaphore::new(2 * MAX_NODES));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(cause = %error, "cannot accept a replication stream on TCP");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, congestion) = (tls.clone(), congestion.clone());
        let (broker, shutdown) = (broker.clone(), shutdown.clone());
        tasks.spawn(async move {
            let serve = async {
                match TcpLink::accept(&tls, stream, remote, &congestion).await {
                    Ok((link, node)) => broker.serve_follower_on_tcp(node, link).await,
                    Err(cause) => tracing::info!(cause, "replication stream on TCP refused"),
                }
            };
            tokio::select! {
                () = serve => {}
                () = shutdown.cancelled() => {}
            }
            drop(permit);
        });
    }
}
