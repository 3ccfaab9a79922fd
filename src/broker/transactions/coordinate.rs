//! The task of one partition of the internal topic.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Future, OptionFuture};
use tokio::sync::{mpsc, oneshot, watch};

use super::Ask;
use super::deliver::Deliveries;
use super::load::load;
use crate::broker::clock::wall_clock_ms;
use crate::broker::internal_topics::{Ended, PutOff, Tenure, write};
use crate::broker::shared::{PartitionHandle, Shared};
use crate::metadata::ClusterImage;
use crate::transactions::{Answer, Coordinator, Marked, Marker, Now, Settings, Ticket};
use crate::types::{ErrorCode, LeaderEpoch, TopicPartition};

/// How often timeouts, and markers that are to be sent again, are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How many requests are handled before writes and timeouts get a turn.
const REQUESTS_PER_TURN: usize = 256;
/// How many markers are handed over, and how many ends of markers are taken, before anything else gets a turn.
const MARKERS_PER_TURN: usize = 1024;
/// A partition of the internal topic on this node, and what its task needs.
pub(super) struct Place {
    pub(super) shared: Arc<Shared>,
    pub(super) id: TopicPartition,
    pub(super) handle: PartitionHandle,
    pub(super) mailbox: mpsc::Receiver<Ask>,
    pub(super) images: watch::Receiver<Arc<ClusterImage>>,
    pub(super) deliveries: Arc<Deliveries>,
}

/// Runs until the partition leaves the node or the node stops.
pub(super) async fn run(place: Place) {
    let view = place.handle.view.clone();
    let mut task = Task {
        id: place.id,
        handle: place.handle,
        images: place.images,
        deliveries: place.deliveries,
        tenure: Tenure::new(place.shared, view, place.mailbox, Nothing),
        sent: Sent::new(LeaderEpoch::NONE),
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
    deliveries: Arc<Deliveries>,
    tenure: Tenure<Nothing>,
    sent: Sent,
}

/// Nothing is kept for later: who asks is answered.
struct Nothing;

impl PutOff for Nothing {
    type Message = Ask;

    fn put_off(&mut self, ask: Ask, error: ErrorCode) {
        let _ = ask.reply.send(Err(error));
    }
}

/// The markers that a coordinator has sent. They outlive it: one that is read anew in the same epoch sends them again, and the
/// partitions could not tell a late one of the first time from one of the producer's next transaction. So that begins only
/// when all of these have ended.
struct Sent {
    epoch: LeaderEpoch,
    /// Holds no more than are out: each marker that was handed over ends once.
    ends: mpsc::UnboundedSender<(Marker, Marked)>,
    ended: mpsc::UnboundedReceiver<(Marker, Marked)>,
    /// How many have not ended.
    out: usize,
}

impl Sent {
    fn new(epoch: LeaderEpoch) -> Sent {
        let (ends, ended) = mpsc::unbounded_channel();
        Sent {
            epoch,
            ends,
            ended,
            out: 0,
        }
    }

    /// Those of an earlier epoch are forgotten: what is still queued of them is dropped, and partitions that have heard of a
    /// later epoch refuse the others.
    fn enter(&mut self, epoch: LeaderEpoch) {
        if self.epoch != epoch {
            *self = Sent::new(epoch);
        }
    }

    /// The next that has ended. Waits for ever while none is out.
    async fn next(&mut self) -> Option<(Marker, Marked)> {
        let ended = self.ended.recv().await;
        self.out = self.out.saturating_sub(1);
        ended
    }

    /// The next that has ended already.
    fn take(&mut self) -> Option<(Marker, Marked)> {
        let ended = self.ended.try_recv().ok()?;
        self.out = self.out.saturating_sub(1);
        Some(ended)
    }
}

impl Task {
    fn now(&self) -> Now {
        Now {
            monotonic: self.tenure.shared.clock.now(),
            wall_ms: i64::try_from(wall_clock_ms()).unwrap_or(i64::MAX),
        }
    }

    /// Reads the partition and looks after its ids, until it cannot go on as it is.
    async fn lead(&mut self, epoch: LeaderEpoch) -> Result<(), Ended> {
        let Some(end) = self.tenure.until_committed(epoch).await? else {
            return Ok(());
        };
        self.sent.enter(epoch);
        if !self.until_all_ended(epoch).await? {
            return Ok(());
        }
        let id = self.id;
        let reader = self.handle.reader.clone();
        let loading =
            tokio::task::spawn_blocking(move || load(&reader, end, Settings::default(), epoch));
        let loaded = self.tenure.until(loading).await?;
        let cause = match loaded {
            Ok(Ok(coordinator)) => {
                tracing::info!(
                    partition = %id, %epoch, ids = coordinator.ids(), ending = coordinator.ending(),
                    "this node coordinates transactions"
                );
                return self.serve(epoch, coordinator).await;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(partition = %id, %epoch, cause, "the transactions cannot be read; trying again");
        self.tenure.rest().await
    }

    /// Waits until every marker that was sent in this epoch has ended, which each does within seconds. False when the reign ended
    /// before.
    async fn until_all_ended(&mut self, epoch: LeaderEpoch) -> Result<bool, Ended> {
        while self.sent.out > 0 {
            if !self.tenure.leads(epoch) {
                return Ok(false);
            }
            tokio::select! {
                _ = self.sent.next() => {}
                idled = self.tenure.idle(ErrorCode::CoordinatorLoadInProgress) => idled?,
            }
        }
        Ok(true)
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
        let id = self.id;
        let shared = self.tenure.shared.clone();
        // As many as there are requests under way, of which a connection has one at a time.
        let mut waiting: HashMap<Ticket, Reply> = HashMap::new();
        let mut tickets = 0;
        let mut writing: Option<Writing> = None;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if writing.is_none()
                && let Some(records) = coordinator.take_write()
            {
                let wall_ms = self.now().wall_ms;
                writing = Some(Box::pin(write(shared.clone(), id, epoch, records, wall_ms)));
            }
            self.send_markers(&mut coordinator);
            while let Some((ticket, answer)) = coordinator.poll_answer() {
                if let Some(reply) = waiting.remove(&ticket) {
                    let _ = reply.send(answer);
                }
            }
            let mut take = |task: &Task, ask: Ask| {
                tickets += 1;
                waiting.insert(Ticket(tickets), ask.reply);
                coordinator.handle(task.now(), Ticket(tickets), &ask.id, ask.request);
            };
            tokio::select! {
                () = shared.stopping.cancelled() => return Err(Ended),
                ask = self.tenure.mailbox.recv() => {
                    take(self, ask.ok_or(Ended)?);
                    for _ in 1..REQUESTS_PER_TURN {
                        let Ok(ask) = self.tenure.mailbox.try_recv() else { break };
                        take(self, ask);
                    }
                }
                Some(first) = self.sent.next() => {
                    let mut next = Some(first);
                    let mut taken = 0;
                    while let Some((marker, marked)) = next {
                        coordinator.handle_marked(self.now(), rand::random(), marker, marked);
                        taken += 1;
                        next = (taken < MARKERS_PER_TURN).then(|| self.sent.take()).flatten();
                    }
                    if coordinator.is_fenced() {
                        tracing::warn!(
                            partition = %id, %epoch,
                            "a later transaction coordinator is at work; reading the transactions anew"
                        );
                        refuse(waiting, ErrorCode::NotCoordinator);
                        return self.tenure.rest().await;
                    }
                }
                Some(written) = OptionFuture::from(writing.as_mut()) => {
                    writing = None;
                    let (now, random) = (self.now(), rand::random());
                    match written {
                        Ok(()) => {
                            self.tenure.has_written();
                            coordinator.handle_written(now, random, Ok(()));
                        }
                        // Refused before it was appended.
                        Err(error @ ErrorCode::NotEnoughReplicas) => {
                            coordinator.handle_written(now, random, Err(error));
                        }
                        // Nobody knows whether it will be committed. Only the log can tell, once it has come to rest.
                        Err(error) => {
                            tracing::warn!(
                                partition = %id, %epoch, cause = %error,
                                "cannot tell whether a change to transactions was written; reading them anew"
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
                        tracing::info!(partition = %id, %epoch, "this node coordinates these transactions no more");
                        refuse(waiting, ErrorCode::NotCoordinator);
                        return Ok(());
                    }
                }
                _ = tick.tick() => coordinator.handle_tick(self.now()),
            }
        }
    }

    fn send_markers(&mut self, coordinator: &mut Coordinator) {
        let markers = coordinator.take_markers(self.now(), MARKERS_PER_TURN);
        if markers.is_empty() {
            return;
        }
        let image = self.images.borrow().clone();
        self.sent.out += markers.len();
        for marker in markers {
            let ends = &self.sent.ends;
            self.deliveries.deliver(&image, marker, ends);
        }
    }
}

fn refuse(waiting: HashMap<Ticket, Reply>, error: ErrorCode) {
    for reply in waiting.into_values() {
        let _ = reply.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transactions::Ending;
    use crate::types::ProducerId;

    fn marker(partition: i32) -> Marker {
        Marker {
            id: "id".into(),
            topic: "orders".into(),
            partition,
            producer: ProducerId::new(1).unwrap(),
            producer_epoch: 0,
            ending: Ending::Commit,
            coordinator_epoch: 1,
            attempts: 0,
        }
    }

    #[tokio::test]
    async fn markers_are_out_until_they_end_and_those_of_an_earlier_epoch_are_forgotten() {
        let epoch = |epoch| LeaderEpoch::new(epoch).unwrap();
        let mut sent = Sent::new(epoch(1));
        sent.out = 2;
        sent.ends.send((marker(0), Marked::Failed)).unwrap();
        assert_eq!(sent.take(), Some((marker(0), Marked::Failed)));
        assert_eq!((sent.take(), sent.out), (None, 1));
        // Read anew in the same epoch: the other one is still out.
        sent.enter(epoch(1));
        assert_eq!(sent.out, 1);
        sent.ends.send((marker(1), Marked::Written)).unwrap();
        assert_eq!(sent.next().await, Some((marker(1), Marked::Written)));
        assert_eq!(sent.out, 0);
        sent.out = 1;
        let queued = sent.ends.clone();
        sent.enter(epoch(2));
        assert_eq!(sent.out, 0);
        assert!(queued.is_closed(), "what is queued for it is dropped");
    }
}
