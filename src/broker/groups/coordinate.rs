//! The task of one partition of the internal topic.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Future, OptionFuture};
use tokio::sync::{mpsc, oneshot, watch};

use super::load::load;
use super::topics::TopicsOf;
use super::{Ask, Message};
use crate::broker::clock::wall_clock_ms;
use crate::broker::internal_topics::{Ended, PutOff, Tenure, write};
use crate::broker::shared::{PartitionHandle, Shared};
use crate::groups::{Answer, Coordinator, Now, Request, Settings, Ticket};
use crate::metadata::ClusterImage;
use crate::types::{ErrorCode, LeaderEpoch, TopicPartition};

/// How often the groups' timeouts are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How many requests are handled before writes and timeouts get a turn.
const REQUESTS_PER_TURN: usize = 256;
/// Runs until the partition leaves the node or the node stops.
pub(super) async fn run(
    shared: Arc<Shared>,
    id: TopicPartition,
    handle: PartitionHandle,
    mailbox: mpsc::Receiver<Message>,
    images: watch::Receiver<Arc<ClusterImage>>,
) {
    let view = handle.view.clone();
    let mut task = Task {
        id,
        handle,
        images,
        tenure: Tenure::new(shared, view, mailbox, DeletedTopics::default()),
    };
    loop {
        let ended = match task.tenure.until_leading().await {
            Ok(epoch) => task.lead(epoch).await,
            Err(ended) => Err(ended),
        };
        if ended.is_err() {
            return;
        }
    }
}

type Reply = oneshot::Sender<Result<Answer, ErrorCode>>;
type Writing = Pin<Box<dyn Future<Output = Result<(), ErrorCode>> + Send>>;

struct Task {
    id: TopicPartition,
    handle: PartitionHandle,
    images: watch::Receiver<Arc<ClusterImage>>,
    tenure: Tenure<DeletedTopics>,
}

/// Topics that were deleted while the partition was being read: what is read later may name them. Bounded by the topics of the
/// cluster while a partition is read.
#[derive(Default)]
struct DeletedTopics(BTreeSet<String>);

impl PutOff for DeletedTopics {
    type Message = Message;

    fn put_off(&mut self, message: Message, error: ErrorCode) {
        match message {
            Message::Ask(ask) => {
                let _ = ask.reply.send(Err(error));
            }
            Message::TopicsDeleted(topics) => self.0.extend(topics.iter().cloned()),
        }
    }

    fn forget(&mut self) {
        self.0.clear();
    }
}

impl Task {
    fn now(&self) -> Now {
        Now {
            monotonic: self.tenure.shared.clock.now(),
            wall_ms: i64::try_from(wall_clock_ms()).unwrap_or(i64::MAX),
        }
    }

    fn topics(&mut self) -> Arc<TopicsOf> {
        let image = self.images.borrow_and_update().clone();
        Arc::new(TopicsOf(image))
    }

    /// Reads the partition and looks after its groups, until it cannot go on as it is.
    async fn lead(&mut self, epoch: LeaderEpoch) -> Result<(), Ended> {
        let Some(end) = self.tenure.until_committed(epoch).await? else {
            return Ok(());
        };
        let reader = self.handle.reader.clone();
        let loading = tokio::task::spawn_blocking(move || load(&reader, end, Settings::default()));
        let loaded = self.tenure.until(loading).await?;
        let cause = match loaded {
            Ok(Ok(coordinator)) => {
                tracing::info!(partition = %self.id, %epoch, groups = coordinator.groups(), "this node looks after consumer groups");
                return self.serve(epoch, coordinator).await;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(partition = %self.id, %epoch, cause, "the consumer groups cannot be read; trying again");
        self.tenure.rest().await
    }

    async fn serve(
        &mut self,
        epoch: LeaderEpoch,
        mut coordinator: Coordinator,
    ) -> Result<(), Ended> {
        if !self.tenure.leads(epoch) {
            // Its reign ended while the partition was read.
            return Ok(());
        }
        coordinator.loaded(self.now());
        coordinator.handle_topics(self.topics());
        coordinator.handle_topics_deleted(&std::mem::take(&mut self.tenure.kept.0));
        // As many as there are requests under way, of which a connection has one at a time.
        let mut waiting: HashMap<Ticket, Reply> = HashMap::new();
        let mut tickets = 0;
        let mut writing: Option<Writing> = None;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shared = self.tenure.shared.clone();
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
                message = self.tenure.mailbox.recv() => {
                    take(self, message.ok_or(Ended)?);
                    for _ in 1..REQUESTS_PER_TURN {
                        let Ok(message) = self.tenure.mailbox.try_recv() else { break };
                        take(self, message);
                    }
                }
                Some(written) = OptionFuture::from(writing.as_mut()) => {
                    writing = None;
                    match written {
                        Ok(()) => {
                            self.tenure.has_written();
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
                            return self.tenure.rest().await;
                        }
                    }
                }
                changed = self.tenure.view.changed() => {
                    if changed.is_err() {
                        return Err(Ended);
                    }
                    if !self.tenure.leads(epoch) {
                        tracing::info!(partition = %self.id, %epoch, "this node looks after these consumer groups no more");
                        refuse(waiting, ErrorCode::NotCoordinator);
                        return Ok(());
                    }
                }
                changed = self.images.changed() => {
                    if changed.is_err() {
                        return Err(Ended);
                    }
                    coordinator.handle_topics(self.topics());
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
