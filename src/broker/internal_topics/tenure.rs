//! A coordinator's way to and from the lead of its partition: everything but what it does while it leads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::broker::shared::Shared;
use crate::controller::jittered;
use crate::partition::PartitionView;
use crate::types::{ErrorCode, LeaderEpoch, Offset};

/// The first pause before a partition is read anew; it doubles up to [`MAX_PAUSE`], and begins again once a write has succeeded.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The partition is gone from here, or the node stops.
pub(in crate::broker) struct Ended;

/// What becomes of messages while there is no coordinator that could take them.
pub(in crate::broker) trait PutOff {
    type Message: Send;

    /// Who asks is answered with `error`.
    fn put_off(&mut self, message: Self::Message, error: ErrorCode);

    /// Another node leads: what was kept for later is that node's matter.
    fn forget(&mut self) {}
}

/// A partition of an internal topic on this node, from the view of the task that looks after it.
pub(in crate::broker) struct Tenure<P: PutOff> {
    pub(in crate::broker) shared: Arc<Shared>,
    pub(in crate::broker) view: watch::Receiver<PartitionView>,
    pub(in crate::broker) mailbox: mpsc::Receiver<P::Message>,
    pub(in crate::broker) kept: P,
    pause: Duration,
}

impl<P: PutOff> Tenure<P> {
    pub(in crate::broker) fn new(
        shared: Arc<Shared>,
        view: watch::Receiver<PartitionView>,
        mailbox: mpsc::Receiver<P::Message>,
        kept: P,
    ) -> Tenure<P> {
        Tenure {
            shared,
            view,
            mailbox,
            kept,
            pause: FIRST_PAUSE,
        }
    }

    /// Waits until the view has changed or somebody asks, who is answered with `error`.
    pub(in crate::broker) async fn idle(&mut self, error: ErrorCode) -> Result<(), Ended> {
        tokio::select! {
            () = self.shared.stopping.cancelled() => Err(Ended),
            message = self.mailbox.recv() => {
                self.kept.put_off(message.ok_or(Ended)?, error);
                Ok(())
            }
            changed = self.view.changed() => changed.map_err(|_| Ended),
        }
    }

    pub(in crate::broker) async fn until_leading(&mut self) -> Result<LeaderEpoch, Ended> {
        loop {
            let view = *self.view.borrow_and_update();
            if view.is_leader {
                return Ok(view.leader_epoch);
            }
            self.kept.forget();
            self.idle(ErrorCode::NotCoordinator).await?;
        }
    }

    pub(in crate::broker) fn leads(&mut self, epoch: LeaderEpoch) -> bool {
        let view = self.view.borrow_and_update();
        view.is_leader && view.leader_epoch == epoch
    }

    /// Waits until everything that the log held when this reign began is committed: then nothing below can change any more.
    /// `None` when the reign ended before.
    pub(in crate::broker) async fn until_committed(
        &mut self,
        epoch: LeaderEpoch,
    ) -> Result<Option<Offset>, Ended> {
        let mut end = None;
        loop {
            if !self.leads(epoch) {
                return Ok(None);
            }
            let view = *self.view.borrow();
            if view.watermark_known {
                let end = *end.get_or_insert(view.log_end);
                if view.high_watermark >= end {
                    return Ok(Some(end));
                }
            }
            self.idle(ErrorCode::CoordinatorLoadInProgress).await?;
        }
    }

    /// Waits for `work`, and answers meanwhile that the coordinator is loading.
    pub(in crate::broker) async fn until<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                idled = self.idle(ErrorCode::CoordinatorLoadInProgress) => idled?,
            }
        }
    }

    /// A pause before the next attempt.
    pub(in crate::broker) async fn rest(&mut self) -> Result<(), Ended> {
        let pause = jittered(self.pause);
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        self.until(tokio::time::sleep(pause)).await
    }

    /// A write has succeeded.
    pub(in crate::broker) fn has_written(&mut self) {
        self.pause = FIRST_PAUSE;
    }
}
