//! Producer ids, fetched from the controller in blocks.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::controller::Controller;
use crate::types::{ErrorCode, ProducerId};

/// Ids of one block. What is left of it when the process ends is never used.
const BLOCK: u32 = 1000;

#[derive(Debug, Default)]
pub(super) struct ProducerIds {
    /// The next id and how many are left.
    block: Mutex<Option<(ProducerId, u32)>>,
    /// Held while a block is fetched, so that many producers at once ask for one.
    fetching: tokio::sync::Mutex<()>,
}

impl ProducerIds {
    /// An id that no producer ever had.
    pub(super) async fn next(
        &self,
        controller: &Controller,
        deadline: Instant,
    ) -> Result<ProducerId, ErrorCode> {
        if let Some(id) = self.take() {
            return Ok(id);
        }
        let fetch = async {
            let _one_at_a_time = self.fetching.lock().await;
            if let Some(id) = self.take() {
                return Ok(id);
            }
            let timeout = deadline.saturating_duration_since(Instant::now());
            let (first, count) = controller
                .allocate_producer_ids(BLOCK, timeout.max(Duration::from_millis(1)))
                .await
                .map_err(|error| {
                    tracing::warn!(cause = %error, "cannot reserve producer ids");
                    // Kafka's word for "the coordinator cannot say now": producers try again.
                    ErrorCode::CoordinatorNotAvailable
                })?;
            *self.lock() = Some((first, count));
            self.take().ok_or(ErrorCode::UnknownServerError)
        };
        match tokio::time::timeout_at(deadline, fetch).await {
            Ok(result) => result,
            Err(_) => Err(ErrorCode::RequestTimedOut),
        }
    }

    fn take(&self) -> Option<ProducerId> {
        let mut block = self.lock();
        let (next, left) = (*block)?;
        let rest = left.checked_sub(1)?;
        *block = ProducerId::new(next.get().checked_add(1)?).map(|following| (following, rest));
        Some(next)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(ProducerId, u32)>> {
        self.block.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
