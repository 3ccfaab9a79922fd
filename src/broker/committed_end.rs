//! Up to where the cluster's metadata is committed, asked of the controllers until they answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::shared::Shared;
use crate::controller::{Controller, jittered};

/// How long the controllers are asked before it is said that they do not answer, how often that is said, and the pause between.
const TIMEOUT: Duration = Duration::from_secs(10);
const LOG_INTERVAL: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);

/// Past which index everything is that was committed before; asked for until there is an answer. `None` when the node stops.
pub(super) async fn committed_end(shared: Arc<Shared>, controller: Controller) -> Option<u64> {
    let mut logged: Option<Instant> = None;
    loop {
        let asked = tokio::select! {
            () = shared.stopping.cancelled() => return None,
            asked = controller.committed_end(TIMEOUT) => asked,
        };
        let cause = match asked {
            Ok(end) => return Some(end),
            Err(error) => error,
        };
        if logged.is_none_or(|at| at.elapsed() > LOG_INTERVAL) {
            tracing::info!(%cause, "logs of replicas that left this node stay until the controllers answer");
            logged = Some(Instant::now());
        }
        tokio::select! {
            () = shared.stopping.cancelled() => return None,
            () = tokio::time::sleep(jittered(RETRY)) => {}
        }
    }
}
