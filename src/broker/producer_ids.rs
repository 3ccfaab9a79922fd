//! Producer ids, reserved at the controller in blocks.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::controller::{Controller, jittered};
use crate::types::{ErrorCode, ProducerId};

/// Ids of one block. What is left of it when the process ends is never used.
const BLOCK: u32 = 1000;
/// Blocks that are kept in stock, so that new producers are served while the controllers have no quorum.
const STOCK: usize = 2;
const RESERVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The first pause after a reservation that failed; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct ProducerIds {
    /// The next id of each block, and how many it has left: at least 1. At most [`STOCK`].
    blocks: Mutex<VecDeque<(ProducerId, u32)>>,
    used: Notify,
    stocked: Notify,
}

impl ProducerIds {
    /// An id that no producer ever had; waits for the stock until the deadline.
    pub(super) async fn next(&self, deadline: Instant) -> Result<ProducerId, ErrorCode> {
        loop {
            // Made before the look, so that a block that comes in between is noticed.
            let stocked = self.stocked.notified();
            if let Some(id) = self.take() {
                return Ok(id);
            }
            if tokio::time::timeout_at(deadline, stocked).await.is_err() {
                // Kafka's word for "nobody can say now": producers try again.
                return Err(ErrorCode::CoordinatorNotAvailable);
            }
        }
    }

    /// Reserves blocks whenever the stock is not full, until `stop`.
    pub(super) async fn keep_stocked(&self, controller: &Controller, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            while self.lock().len() >= STOCK {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.used.notified() => {}
                }
            }
            let reserved = tokio::select! {
                () = stop.cancelled() => return,
                reserved = controller.allocate_producer_ids(BLOCK, RESERVE_TIMEOUT) => reserved,
            };
            match reserved {
                Ok(block) => {
                    self.lock().push_back(block);
                    self.stocked.notify_waiters();
                    pause = FIRST_PAUSE;
                }
                Err(error) => {
                    tracing::debug!(cause = %error, "cannot reserve producer ids");
                    // Half of the pause is drawn at random, so that nodes do not ask in step.
                    let wait = jittered(pause);
                    pause = (pause * 2).min(MAX_PAUSE);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    fn take(&self) -> Option<ProducerId> {
        let mut blocks = self.lock();
        let (id, left) = blocks.pop_front()?;
        let following = id.get().checked_add(1).and_then(ProducerId::new);
        match following {
            Some(following) if left > 1 => blocks.push_front((following, left - 1)),
            _ => self.used.notify_one(),
        }
        Some(id)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(ProducerId, u32)>> {
        // Every change is one push or pop, so a panic elsewhere leaves nothing half done.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ids_are_given_out_once_and_a_block_ends() {
        let ids = ProducerIds::default();
        let id = |id| ProducerId::new(id).unwrap();
        ids.lock().push_back((id(10), 2));
        ids.lock().push_back((id(40), 1));
        let soon = Instant::now() + Duration::from_millis(10);
        for expected in [10, 11, 40] {
            assert_eq!(ids.next(soon).await, Ok(id(expected)));
        }
        assert_eq!(
            ids.next(soon).await,
            Err(ErrorCode::CoordinatorNotAvailable)
        );
    }
}
