//! Memory for requests and responses in flight, shared by all connections of a node.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::Limits;
use super::versions;

/// A number of bytes that connections take from and give back.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    /// One holder at a time may take more than there is.
    overdraft: Arc<Semaphore>,
    capacity: u32,
}

/// Bytes taken from a [`Budget`]; dropping it gives them back.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: Option<OwnedSemaphorePermit>,
    overdraft: Option<OwnedSemaphorePermit>,
}

/// Memory for requests, by what they are.
#[derive(Debug)]
pub(super) struct RequestMemory {
    produce: Budget,
    control: Budget,
}

impl RequestMemory {
    pub(super) fn new(limits: &Limits) -> RequestMemory {
        RequestMemory {
            produce: Budget::new(limits.produce_memory_bytes),
            control: Budget::new(limits.control_memory_bytes),
        }
    }

    pub(super) fn of(&self, api_key: i16) -> &Budget {
        if versions::may_be_large(api_key) {
            &self.produce
        } else {
            &self.control
        }
    }
}

impl Budget {
    pub(super) fn new(capacity: usize) -> Budget {
        let capacity = u32::try_from(capacity)
            .unwrap_or(u32::MAX)
            .min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Budget {
            bytes: Arc::new(Semaphore::new(capacity as usize)),
            overdraft: Arc::new(Semaphore::new(1)),
            capacity,
        }
    }

    /// Takes `count` bytes more, waiting until there are as many. More than the whole budget counts as the whole.
    ///
    /// Who holds nothing yet waits for its turn. Who holds bytes already may be what others wait for, so it may also
    /// finish on the overdraft: else requests that are each half read could wait for one another for ever. So memory stays
    /// below the budget and one request.
    pub(super) async fn take(&self, held: &mut Held, count: usize) {
        if held.overdraft.is_some() || count == 0 {
            return;
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(self.capacity);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(count);
        // The semaphores are never closed, so the error arms below are not reached; they would count nothing.
        match &mut held.bytes {
            None => held.bytes = bytes.await.ok(),
            Some(mine) => {
                tokio::select! {
                    biased;
                    more = bytes => if let Ok(more) = more { mine.merge(more) },
                    overdraft = Arc::clone(&self.overdraft).acquire_owned() => held.overdraft = overdraft.ok(),
                }
            }
        }
    }
}

impl Held {
    /// Gives back all but `count` bytes.
    pub(super) fn keep(&mut self, count: usize) {
        if let Some(bytes) = &mut self.bytes {
            let surplus = bytes.num_permits().saturating_sub(count);
            drop(bytes.split(surplus));
        }
    }

    /// Adds what another one holds.
    pub(super) fn merge(&mut self, other: Held) {
        match (&mut self.bytes, other.bytes) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine, theirs @ Some(_)) => *mine = theirs,
            (_, None) => {}
        }
        if other.overdraft.is_some() {
            self.overdraft = other.overdraft;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_holds_nothing_waits_and_who_holds_some_may_finish() {
        let budget = Budget::new(100);
        let (mut first, mut second, mut third) = Default::default();
        budget.take(&mut first, 60).await;
        budget.take(&mut second, 40).await;
        assert!(budget.take(&mut third, 1).now_or_never().is_none());
        budget.take(&mut first, 60).await;
        assert!(
            budget.take(&mut second, 60).now_or_never().is_none(),
            "one at a time"
        );
        drop(first);
        budget.take(&mut second, 60).await;
        drop(second);
        budget.take(&mut third, 100).await;
    }

    #[tokio::test]
    async fn what_is_not_kept_comes_back() {
        let budget = Budget::new(100);
        let mut held = Held::default();
        budget.take(&mut held, 1000).await;
        held.keep(10);
        let mut other = Held::default();
        budget.take(&mut other, 90).await;
        assert!(
            budget
                .take(&mut Held::default(), 1)
                .now_or_never()
                .is_none()
        );
        held.merge(other);
        drop(held);
        budget.take(&mut Held::default(), 100).await;
    }
}
