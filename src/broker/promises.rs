//! Makes promises durable, many with one fsync.

use std::sync::Arc;
use std::time::Duration;

use super::shard::Internal;
use super::shared::Shared;
use crate::storage::{DataDir, PromiseError};

/// The pause before promises that found no room are written once more.
const RETRY_WHEN_FULL: Duration = Duration::from_secs(1);

/// Takes promises as they come, writes all that wait with one fsync, and tells the partitions' owners. A failed write stops
/// the process: a promise that may or may not be on the disk is none.
pub(super) async fn keep(shared: Arc<Shared>, data_dir: Arc<DataDir>) {
    loop {
        tokio::select! {
            // A promise that is not durable is not acted on, so one may be left unwritten.
            () = shared.stopping.cancelled() => return,
            () = shared.promises.arrived() => {}
        }
        let raised = shared.promises.drain();
        if raised.is_empty() {
            continue;
        }
        let dir = data_dir.clone();
        let batch = raised.clone();
        let written = tokio::task::spawn_blocking(move || dir.promises().raise(&batch)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error @ PromiseError::NoSpace { .. })) => {
                // The promises are as before, and what waits for them waits on. One pause for all of this node's; no other
                // node takes part in it, so there is nothing to spread.
                tracing::error!(cause = %error, "cannot make promises durable; trying again");
                for promise in raised {
                    shared.promises.push(promise);
                }
                tokio::select! {
                    () = shared.stopping.cancelled() => return,
                    () = tokio::time::sleep(RETRY_WHEN_FULL) => {}
                }
                continue;
            }
            Ok(Err(error)) => {
                shared.stop_process(&format!("cannot make promises durable: {error}"));
                return;
            }
            Err(error) => {
                shared.stop_process(&format!(
                    "the task that makes promises durable failed: {error}"
                ));
                return;
            }
        }
        for (id, epoch) in raised {
            if let Some((_, shard)) = shared.shard_of(id) {
                shard.inbox.push(Internal::PromiseDurable { id, epoch });
            }
        }
    }
}
