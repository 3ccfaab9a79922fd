//! A queue whose bound is its structure.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Items handed from any thread to one task, without ever making the sender wait.
///
/// For results that each sender can have only so many of at a time (one sync ticket or one promise a partition), so that
/// the queue is never longer than the partitions on the node. Nothing else belongs here.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    items: Mutex<Vec<T>>,
    arrived: Notify,
}

impl<T> Inbox<T> {
    pub(super) fn new() -> Inbox<T> {
        Inbox {
            items: Mutex::new(Vec::new()),
            arrived: Notify::new(),
        }
    }

    pub(super) fn push(&self, item: T) {
        self.lock().push(item);
        self.arrived.notify_one();
    }

    /// Takes everything that is there.
    pub(super) fn drain(&self) -> Vec<T> {
        std::mem::take(&mut *self.lock())
    }

    /// Ends when something may have arrived since the last drain. Safe to drop and call again.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<T>> {
        // A panic elsewhere cannot leave a Vec half pushed.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
