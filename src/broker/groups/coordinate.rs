//! The task of one partition of the internal topic.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Future, OptionFuture};
use tokio::sync::{mpsc, oneshot, watch};

use super::load::load;
use super::{Ask, Message};
use crate::broker::clock::wall_clock_ms;
use crate::broker::internal_topics::write;
use crate::broker::shared::{PartitionHandle, Shared};
use crate::controller::jittered;
use crate::groups::{Answer, Coordinator, Now, Request, Settings, Ticket};
use crate::partition::PartitionView;
use crate::types::{ErrorCode, LeaderEpoch, Offset, TopicPartition};

/// How often the groups' timeouts are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How many requests are handled before writes and timeouts get a turn.
const REQUESTS_PER_TURN: usize = 256;
/// The first pause before a partition is read anew; it doubles up to [`MAX_PAUSE`], and begins again once a write has succeeded.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Runs until the partition leaves the node or the node stops.
pub(super) async fn run(
    shared: Arc<Shared>,
    id: TopicPartition,
    handle: PartitionHandle,
    mailbox: mpsc::Receiver<Message>,
) {
    let view = handle.view.clone();
    let mut task = Task {
        shared,
        id,
        handle,
        view,
        mailbox,
        deleted: BTreeSet::new(),
        pause: FIRST_PAUSE,
    };
    loop {
        let ended = match task.until_leading().await {
            Ok(epoch) => task.lead(epoch).await,
            Err(ended) => Err(ended),
        };
        if ended.is_err() {
            return;
        }
    }
}

/// The partition is gone from here, or the node stops.
struct Ended;

type Reply = oneshot::Sender<Result<Answer, ErrorCode>>;
type Writing = Pin<Box<dyn Future<Output = Result<(), ErrorCode>> + Send>>;

struct Task {
    shared: Arc<Shared>,
    id: TopicPartition,
    handle: PartitionHandle,
    view: watch::Receiver<PartitionView>,
    mailbox: mpsc::Receiver<Message>,
    /// Topics that were deleted while the partition was being read.
    deleted: BTreeSet<String>,
    pause: Duration,
}

impl Task {
    fn now(&self) -> Now {
        Now {
            monotonic: self.shared.clock.now(),
            wall_ms: i64::try_from(wall_clock_ms()).unwrap_or(i64::MAX),
        }
    }

    /// Waits until the view has changed or somebody asks, who is answered with `error`.
    async fn idle(&mut self, error: ErrorCode) -> Result<(), Ended> {
        let shared = self.shared.clone();
        tokio::select! {
            () = shared.stopping.cancelled() => Err(Ended),
            message = self.mailbox.recv() => {
                self.put_off(message.ok_or(Ended)?, error);
                Ok(())
            }
            changed = self.view.changed() => changed.map_err(|_| Ended),
        }
    }

    fn put_off(&mut self, message: Message, error: ErrorCode) {
        match message {
            Message::Ask(ask) => {
                let _ = ask.reply.send(Err(error));
            }
            // What is read later may name them. Bounded by the topics of the cluster while a partition is read.
            Message::TopicsDeleted(topics) => self.deleted.extend(topics.iter().cloned()),
        }
    }

    async fn until_leading(&mut self) -> Result<LeaderEpoch, Ended> {
        loop {
            let view = *self.view.borrow_and_update();
            if view.is_leader {
                return Ok(view.leader_epoch);
            }
            // Whoever leads meanwhile sees to them.
            self.deleted.clear();
            self.idle(ErrorCode::NotCoordinator).await?;
        }
    }

    fn leads(&mut self, epoch: LeaderEpoch) -> bool {
        let view = self.view.borrow_and_update();
        view.is_leader && view.leader_epoch == epoch
    }

    /// Reads the partition and looks after its groups, until it cannot go on as it is.
    async fn lead(&mut self, epoch: LeaderEpoch) -> Result<(), Ended> {
        let Some(end) = self.until_committed(epoch).await? else {
            return Ok(());
        };
        let reader = self.handle.reader.clone();
        let mut loading =
            tokio::task::spawn_blocking(move || load(&reader, end, Settings::default()));
        let loaded = loop {
            tokio::select! {
                loaded = &mut loading => break loaded,
                idled = self.idle(ErrorCode::CoordinatorLoadInProgress) => idled?,
            }
        };
        let cause = match loaded {
            Ok(Ok(coordinator)) => {
                tracing::info!(partition = %self.id, %epoch, groups = coordinator.groups(), "this node looks after consumer groups");
                return self.serve(epoch, coordinator).await;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(partition = %self.id, %epoch, cause, "the consumer groups cannot be read; trying again");
        self.rest().await
    }

    /// Waits until everything that the log held when this reign began is committed: then nothing below can change any more.
    /// `None` when the reign ended before.
    async fn until_committed(&mut self, epoch: LeaderEpoch) -> Result<Option<Offset>, Ended> {
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

    /// A pause before the next attempt.
    async fn rest(&mut self) -> Result<(), Ended> {
        let pause = jittered(self.pause);
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                idled = self.idle(ErrorCode::CoordinatorLoadInProgress) => idled?,
            }
        }
    }

    async fn serve(
        &mut self,
        epoch: LeaderEpoch,
        mut coordinator: Coordinator,
    ) -> Result<(), Ended> {
        if !self.leads(epoch) {
            // Its reign ended while the partition was read.
            return Ok(());
        }
        coordinator.loaded(self.now());
        coordinator.handle_topics_deleted(&std::mem::take(&mut self.deleted));
        // As many as there are requests under way, of which a connection has one at a time.
        let mut waiting: HashMap<Ticket, Reply> = HashMap::new();
        let mut tickets = 0;
        let mut writing: Option<Writing> = None;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shared = self.shared.clone();
        loop {
            if writing.is_none()
                && let Some(records) = coordinator.take_write(self.now())
            {
                let wall_ms = self.now().wall_ms;
                writing = Some(Box::pin(write(
                    shared.clone(),
                    self.id,
                    epoch,
                    records,
                    wall_ms,
                )));
            }
            while let Some((ticket, answer)) = coordinator.poll_answer() {
                if let Some(reply) = waiting.remove(&ticket) {
                    let _ = reply.send(answer);
                }
            }
            let mut take = |task: &Task, message: Message| match message {
                Message::Ask(ask) => {
                    let Ask {
                        group,
                        request,
                        reply,
                    } = *ask;
                    // As with a marker in a log: it may be the end of another transaction by now.
                    let is_end = matches!(request, Request::EndTransaction(_));
                    if is_end && reply.is_closed() {
                        return;
                    }
                    tickets += 1;
                    waiting.insert(Ticket(tickets), reply);
                    coordinator.handle(task.now(), Ticket(tickets), &group, request);
                }
                Message::TopicsDeleted(topics) => coordinator.handle_topics_deleted(&topics),
            };
            tokio::select! {
                () = shared.stopping.cancelled() => return Err(Ended),
                message = self.mailbox.recv() => {
                    take(self, message.ok_or(Ended)?);
                    for _ in 1..REQUESTS_PER_TURN {
                        let Ok(message) = self.mailbox.try_recv() else { break };
                        take(self, message);
                    }
                }
                Some(written) = OptionFuture::from(writing.as_mut()) => {
                    writing = None;
                    match written {
                        Ok(()) => {
                            self.pause = FIRST_PAUSE;
                            coordinator.handle_written(self.now(), Ok(()));
                        }
                        // Refused before it was appended.
                        Err(error @ ErrorCode::NotEnoughReplicas) => {
                            coordinator.handle_written(self.now(), Err(error));
                        }
                        // Nobody knows whether it will be committed. Only the log can tell, once it has come to rest.
                        Err(error) => {
                            tracing::warn!(
                                partition = %self.id, %epoch, cause = %error,
                                "cannot tell whether a change to consumer groups was written; reading them anew"
                            );
                            refuse(waiting, ErrorCode::CoordinatorNotAvailable);
                            return self.rest().await;
                        }
                    }
                }
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return Err(Ended);
                    }
                    if !self.leads(epoch) {
                        tracing::info!(partition = %self.id, %epoch, "this node looks after these consumer groups no more");
                        refuse(waiting, ErrorCode::NotCoordinator);
                        return Ok(());
                    }
                }
                _ = tick.tick() => coordinator.handle_tick(self.now()),
            }
        }
    }
}

fn refuse(waiting: HashMap<Ticket, Reply>, error: ErrorCode) {
    for reply in waiting.into_values() {
        let _ = reply.send(Err(error));
    }
}
