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
use super::write::write;
use crate::broker::clock::wall_clock_ms;
use crate::broker::shared::{PartitionHandle, Shared};
use crate::controller::jittered;
use crate::metadata::ClusterImage;
use crate::partition::PartitionView;
use crate::transactions::{Answer, Coordinator, Marker, Now, Settings, Ticket};
use crate::types::{ErrorCode, LeaderEpoch, Offset, TopicPartition};

/// How often timeouts, and markers that are to be sent again, are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How many requests are handled before writes and timeouts get a turn.
const REQUESTS_PER_TURN: usize = 256;
/// How many markers are handed over, and how many ends of markers are taken, before anything else gets a turn.
const MARKERS_PER_TURN: usize = 1024;
/// The first pause before a partition is read anew; it doubles up to [`MAX_PAUSE`], and begins again once a write has succeeded.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

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
        place,
        view,
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
    place: Place,
    view: watch::Receiver<PartitionView>,
    pause: Duration,
}

impl Task {
    fn now(&self) -> Now {
        Now {
            monotonic: self.place.shared.clock.now(),
            wall_ms: i64::try_from(wall_clock_ms()).unwrap_or(i64::MAX),
        }
    }

    /// Waits until the view has changed or somebody asks, who is answered with `error`.
    async fn idle(&mut self, error: ErrorCode) -> Result<(), Ended> {
        let shared = self.place.shared.clone();
        tokio::select! {
            () = shared.stopping.cancelled() => Err(Ended),
            ask = self.place.mailbox.recv() => {
                let _ = ask.ok_or(Ended)?.reply.send(Err(error));
                Ok(())
            }
            changed = self.view.changed() => changed.map_err(|_| Ended),
        }
    }

    async fn until_leading(&mut self) -> Result<LeaderEpoch, Ended> {
        loop {
            let view = *self.view.borrow_and_update();
            if view.is_leader {
                return Ok(view.leader_epoch);
            }
            self.idle(ErrorCode::NotCoordinator).await?;
        }
    }

    fn leads(&mut self, epoch: LeaderEpoch) -> bool {
        let view = self.view.borrow_and_update();
        view.is_leader && view.leader_epoch == epoch
    }

    /// Reads the partition and looks after its ids, until it cannot go on as it is.
    async fn lead(&mut self, epoch: LeaderEpoch) -> Result<(), Ended> {
        let Some(end) = self.until_committed(epoch).await? else {
            return Ok(());
        };
        let id = self.place.id;
        let reader = self.place.handle.reader.clone();
        let mut loading =
            tokio::task::spawn_blocking(move || load(&reader, end, Settings::default(), epoch));
        let loaded = loop {
            tokio::select! {
                loaded = &mut loading => break loaded,
                idled = self.idle(ErrorCode::CoordinatorLoadInProgress) => idled?,
            }
        };
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
        let id = self.place.id;
        let shared = self.place.shared.clone();
        // As many as there are requests under way, of which a connection has one at a time.
        let mut waiting: HashMap<Ticket, Reply> = HashMap::new();
        let mut tickets = 0;
        let mut writing: Option<Writing> = None;
        // Dropped with this reign: markers that are still queued then are not sent any more.
        let (ends, mut ended) = mpsc::unbounded_channel();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if writing.is_none()
                && let Some(records) = coordinator.take_write()
            {
                let wall_ms = self.now().wall_ms;
                writing = Some(Box::pin(write(shared.clone(), id, epoch, records, wall_ms)));
            }
            self.send_markers(&mut coordinator, &ends);
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
                ask = self.place.mailbox.recv() => {
                    take(self, ask.ok_or(Ended)?);
                    for _ in 1..REQUESTS_PER_TURN {
                        let Ok(ask) = self.place.mailbox.try_recv() else { break };
                        take(self, ask);
                    }
                }
                Some(first) = ended.recv() => {
                    let mut next = Some(first);
                    let mut taken = 0;
                    while let Some((marker, marked)) = next {
                        coordinator.handle_marked(self.now(), rand::random(), marker, marked);
                        taken += 1;
                        next = (taken < MARKERS_PER_TURN).then(|| ended.try_recv().ok()).flatten();
                    }
                    if coordinator.is_fenced() {
                        tracing::warn!(
                            partition = %id, %epoch,
                            "a later transaction coordinator is at work; reading the transactions anew"
                        );
                        refuse(waiting, ErrorCode::NotCoordinator);
                        return self.rest().await;
                    }
                }
                Some(written) = OptionFuture::from(writing.as_mut()) => {
                    writing = None;
                    let (now, random) = (self.now(), rand::random());
                    match written {
                        Ok(()) => {
                            self.pause = FIRST_PAUSE;
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
                            return self.rest().await;
                        }
                    }
                }
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return Err(Ended);
                    }
                    if !self.leads(epoch) {
                        tracing::info!(partition = %id, %epoch, "this node coordinates these transactions no more");
                        refuse(waiting, ErrorCode::NotCoordinator);
                        return Ok(());
                    }
                }
                _ = tick.tick() => coordinator.handle_tick(self.now()),
            }
        }
    }

    fn send_markers(
        &self,
        coordinator: &mut Coordinator,
        ends: &mpsc::UnboundedSender<(Marker, crate::transactions::Marked)>,
    ) {
        let markers = coordinator.take_markers(self.now(), MARKERS_PER_TURN);
        if markers.is_empty() {
            return;
        }
        let image = self.place.images.borrow().clone();
        for marker in markers {
            self.place.deliveries.deliver(&image, marker, ends);
        }
    }
}

fn refuse(waiting: HashMap<Ticket, Reply>, error: ErrorCode) {
    for reply in waiting.into_values() {
        let _ = reply.send(Err(error));
    }
}
