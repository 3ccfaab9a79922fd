//! The answers that a connection's client waits for.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::peek::Peeked;
use crate::client::Expectation;

/// Requests of one connection that are not yet answered. At the cap no more is read from its client.
const MAX_EXPECTED: usize = 1024;

/// In the order of the requests.
#[derive(Default)]
pub(super) struct Expected {
    queue: Mutex<VecDeque<(Peeked, Option<Expectation>)>>,
    room: Notify,
}

impl Expected {
    /// Waits for room, then for an answer.
    pub(super) async fn push(&self, request: Peeked, expectation: Option<Expectation>) {
        loop {
            let room = self.room.notified();
            {
                let mut queue = self.lock();
                if queue.len() < MAX_EXPECTED {
                    queue.push_back((request, expectation));
                    return;
                }
            }
            room.await;
        }
    }

    /// The request that an answer belongs to. Nodes answer in order, so what stands before it has no answer any more.
    pub(super) fn take(&self, correlation_id: i32) -> Option<Peeked> {
        let mut queue = self.lock();
        let place = queue
            .iter()
            .position(|(request, _)| request.correlation_id == correlation_id)?;
        let found = queue.drain(..=place).next_back();
        drop(queue);
        self.room.notify_one();
        found.map(|(request, _)| request)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Peeked, Option<Expectation>)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
