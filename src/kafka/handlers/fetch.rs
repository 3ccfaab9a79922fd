//! Fetch: a long poll over many partitions.
//!
//! One deadline holds for the whole request. Partitions are read from the place where the last fetch of the connection
//! left off, so that none starves when the response is full before all are read. What a pass has read is kept while the
//! request waits for more, and the next pass goes on behind it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kafka_protocol::messages::FetchRequest;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::fetch_response::{FetchAnswer, PartitionAnswer, TOPIC_IDS_SINCE, TopicAnswer};
use super::fetch_session::Turn;
use crate::kafka::budget::Held;
use crate::kafka::codec::{BadRequest, RawRequest};
use crate::kafka::connection::{Pending, Reply, Response};
use crate::kafka::context::{Context, TopicKey, deadline};
use crate::kafka::limits::FETCH_MEMORY_WAIT;
use crate::kafka::{FetchPartition, FetchRefusal, FetchedRecords, Service};
use crate::metadata::ClusterImage;
use crate::record::AbortedTransaction;
use crate::types::{ErrorCode, IsolationLevel, LeaderEpoch, Offset, TopicPartition};

pub(super) fn begin<S: Service>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
) -> Result<Pending, BadRequest> {
    let decoded: FetchRequest = request.decode()?;
    let answer = request.answer();
    let context = Arc::clone(context);
    Ok(Box::pin(async move {
        let (response, held) = handle(&context, decoded, answer.version >= TOPIC_IDS_SINCE).await;
        let bytes = response
            .encode(answer.version, answer.correlation_id)
            .ok_or_else(|| BadRequest::Response {
                key: answer.key,
                version: answer.version,
                reason: "it is too long".to_owned(),
            })?;
        Ok(Reply::Send(Response { bytes, held }))
    }))
}

async fn handle<S: Service>(
    context: &Context<S>,
    mut request: FetchRequest,
    by_id: bool,
) -> (FetchAnswer, Held) {
    let begun = Turn::begin(&mut context.fetch_session(), &mut request, by_id);
    let turn = match begun {
        Ok(turn) => turn,
        Err(error) => return (FetchAnswer::refused(error), Held::default()),
    };
    let deadline = deadline(request.max_wait_ms);
    let min_bytes = usize::try_from(request.min_bytes).unwrap_or(0);
    let limits = &context.config.limits;
    let max_bytes = usize::try_from(request.max_bytes)
        .unwrap_or(0)
        .min(limits.max_fetch_bytes)
        .min(limits.response_memory_bytes);
    let image = context.service.image();
    let mut poll = Poll::new(context, &image, &request, by_id, max_bytes);
    poll.watch();
    loop {
        poll.read_pass(deadline).await;
        if poll.is_answerable(min_bytes) || !poll.wait(deadline).await {
            break;
        }
    }
    let held = std::mem::take(&mut poll.held);
    let mut answer = poll.answer(&image, &request);
    let session = turn.end(&mut answer, request.topics, by_id, &context.session_room);
    if session.is_some() {
        *context.fetch_session() = session;
    }
    (answer, held)
}

/// A fetch in hand.
struct Poll<'a, S> {
    context: &'a Context<S>,
    /// In the order of the request, topic after topic.
    shares: Vec<Share>,
    isolation: IsolationLevel,
    /// Which share is read first.
    first: usize,
    max_bytes: usize,
    /// Bytes of records read so far.
    total: usize,
    /// Whether something was found that there was no room for.
    overflowed: bool,
    held: Held,
    changes: FuturesUnordered<Change>,
}

/// One partition of a fetch.
struct Share {
    /// Known unless it was refused.
    partition: Option<TopicPartition>,
    next: Offset,
    max_bytes: usize,
    current_leader_epoch: Option<LeaderEpoch>,
    /// Whether a read may find something new.
    is_due: bool,
    records: Vec<Bytes>,
    /// The aborted transactions with records among them, each once.
    aborted: BTreeSet<AbortedTransaction>,
    size: usize,
    /// The last read, without its records.
    result: Option<Result<Bounds, FetchRefusal>>,
}

/// What a read says of the partition.
#[derive(Clone, Copy)]
struct Bounds {
    high_watermark: Option<Offset>,
    last_stable_offset: Offset,
    log_start_offset: Offset,
}

/// Waits for one partition to change; gives back the share's place, and the receiver while it has a sender.
type Change = futures_util::future::BoxFuture<'static, (usize, Option<watch::Receiver<Offset>>)>;

fn change(place: usize, mut receiver: watch::Receiver<Offset>) -> Change {
    Box::pin(async move {
        let open = receiver.changed().await.is_ok();
        (place, open.then_some(receiver))
    })
}

impl<'a, S: Service> Poll<'a, S> {
    fn new(
        context: &'a Context<S>,
        image: &ClusterImage,
        request: &FetchRequest,
        by_id: bool,
        max_bytes: usize,
    ) -> Poll<'a, S> {
        let mut shares = Vec::new();
        for asked in &request.topics {
            let topic = TopicKey::new(&asked.topic, asked.topic_id, by_id).find(image);
            for wanted in &asked.partitions {
                let refuse = |error: ErrorCode| Some(Err(FetchRefusal::from(error)));
                let (partition, result) = match topic.partition(wanted.partition) {
                    Ok(partition) => (Some(partition), None),
                    Err(error) => (None, refuse(error)),
                };
                let (next, result) = match Offset::from_wire(wanted.fetch_offset) {
                    Some(offset) => (offset, result),
                    None => (
                        Offset::ZERO,
                        result.or_else(|| refuse(ErrorCode::OffsetOutOfRange)),
                    ),
                };
                shares.push(Share {
                    partition,
                    next,
                    max_bytes: usize::try_from(wanted.partition_max_bytes).unwrap_or(0),
                    current_leader_epoch: LeaderEpoch::from_wire(wanted.current_leader_epoch),
                    is_due: result.is_none(),
                    records: Vec::new(),
                    aborted: BTreeSet::new(),
                    size: 0,
                    result,
                });
            }
        }
        let first = match shares.len() {
            0 => 0,
            count => context.fetch_rotation.fetch_add(1, Ordering::Relaxed) % count,
        };
        Poll {
            context,
            shares,
            isolation: IsolationLevel::from_wire(request.isolation_level),
            first,
            max_bytes,
            total: 0,
            overflowed: false,
            held: Held::default(),
            changes: FuturesUnordered::new(),
        }
    }

    /// Listens to every partition. Before the first read, so that no change falls between the two.
    fn watch(&mut self) {
        for (place, share) in self.shares.iter().enumerate() {
            if share.is_due
                && let Some(partition) = share.partition
                && let Some(mut receiver) = self.context.service.watch_partition(partition)
            {
                receiver.mark_unchanged();
                self.changes.push(change(place, receiver));
            }
        }
    }

    /// Reads every partition that may have something new, as far as there is room.
    async fn read_pass(&mut self, deadline: Instant) {
        let wanted: usize = self
            .shares
            .iter()
            .filter(|share| share.is_due)
            .fold(0, |sum, share| sum.saturating_add(share.room()));
        let room = self.max_bytes.saturating_sub(self.total).min(wanted);
        let mut memory = Held::default();
        let take = self.context.response_memory.take(&mut memory, room.max(1));
        let patience = deadline.max(Instant::now() + FETCH_MEMORY_WAIT);
        let has_memory = timeout_at(patience, take).await.is_ok();
        let before = self.total;
        let count = self.shares.len();
        for step in 0..count {
            let place = (self.first + step) % count;
            let share = &mut self.shares[place];
            let Some(partition) = share.partition.filter(|_| share.is_due) else {
                continue;
            };
            share.is_due = false;
            // The first batch comes however small the limits are: else a client could never get past it.
            let must_progress = self.total == 0 && has_memory;
            let limit = match (has_memory, must_progress) {
                (false, _) => 0,
                (true, false) => share.room().min(room.saturating_sub(self.total - before)),
                (true, true) => share.room().min(room).max(1),
            };
            let read = FetchPartition {
                partition,
                from: share.next,
                max_bytes: limit,
                current_leader_epoch: share.current_leader_epoch,
                isolation: self.isolation,
            };
            match self.context.service.fetch_partition(read).await {
                Ok(found) => match share.take(found, limit, must_progress) {
                    Some(size) => self.total += size,
                    None => self.overflowed = true,
                },
                Err(refusal) => share.result = Some(Err(refusal)),
            }
        }
        memory.keep(self.total - before);
        self.held.merge(memory);
    }

    /// Whether there is something to say: enough records, or as many as fit, or an error.
    fn is_answerable(&self, min_bytes: usize) -> bool {
        let refused = |share: &Share| matches!(share.result, Some(Err(_)));
        let full = |share: &Share| share.size > 0 && share.room() == 0;
        self.total >= min_bytes
            || self.total >= self.max_bytes
            || self.overflowed
            || self.shares.iter().any(refused)
            || self.shares.iter().all(full)
    }

    /// Waits until a partition has changed. `false` when the time is up.
    async fn wait(&mut self, deadline: Instant) -> bool {
        loop {
            if self.changes.is_empty() {
                // No partition can tell, so there is nothing but the deadline; a read then is a last look.
                tokio::time::sleep_until(deadline).await;
                return false;
            }
            let Ok(changed) = timeout_at(deadline, self.changes.next()).await else {
                return false;
            };
            self.note(changed);
            // Whatever else has changed by now is read in the same pass.
            while let Some(changed) =
                futures_util::FutureExt::now_or_never(self.changes.next()).flatten()
            {
                self.note(Some(changed));
            }
            if self.shares.iter().any(|share| share.is_due) {
                return true;
            }
        }
    }

    fn note(&mut self, changed: Option<(usize, Option<watch::Receiver<Offset>>)>) {
        let Some((place, receiver)) = changed else {
            return;
        };
        if let Some(share) = self.shares.get_mut(place) {
            share.is_due = share.size == 0 || share.room() > 0;
        }
        // A closed channel is a change that happens once: it is not listened to again.
        if let Some(receiver) = receiver {
            self.changes.push(change(place, receiver));
        }
    }

    fn answer(self, image: &ClusterImage, request: &FetchRequest) -> FetchAnswer {
        let context = self.context;
        let mut shares = self.shares.into_iter();
        let topics = request
            .topics
            .iter()
            .map(|asked| TopicAnswer {
                partitions: asked
                    .partitions
                    .iter()
                    .zip(&mut shares)
                    .map(|(wanted, share)| share.answer(wanted.partition, context, image))
                    .collect(),
                name: asked.topic.clone(),
                id: asked.topic_id,
            })
            .collect();
        FetchAnswer {
            error: None,
            session_id: 0,
            topics,
        }
    }
}

impl Share {
    /// Bytes that the client still takes from this partition.
    fn room(&self) -> usize {
        self.max_bytes.saturating_sub(self.size)
    }

    /// Keeps what was read. Returns how many bytes of records that was; `None` where they had no room.
    fn take(&mut self, found: FetchedRecords, limit: usize, must_progress: bool) -> Option<usize> {
        let size = found.records.iter().map(Bytes::len).sum();
        self.result = Some(Ok(Bounds {
            high_watermark: found.high_watermark,
            last_stable_offset: found.last_stable_offset,
            log_start_offset: found.log_start_offset,
        }));
        // Only the first batch of the response may pass a limit.
        if size > limit && !must_progress {
            return None;
        }
        self.next = found.next;
        self.size += size;
        self.records.extend(found.records);
        // What was open behind the last read may be told again.
        self.aborted.extend(found.aborted);
        Some(size)
    }

    fn answer<S: Service>(
        self,
        index: i32,
        context: &Context<S>,
        image: &ClusterImage,
    ) -> PartitionAnswer {
        let answer = PartitionAnswer::empty(index);
        match self.result {
            // Not reached by any pass: as if there were nothing there.
            None => answer,
            Some(Ok(bounds)) => PartitionAnswer {
                high_watermark: bounds.high_watermark.map_or(-1, Offset::to_wire),
                // Who does not know where the one ends does not know it of the other: a consumer of committed records would
                // take what is known of the past for the end.
                last_stable_offset: bounds
                    .high_watermark
                    .map_or(-1, |_| bounds.last_stable_offset.to_wire()),
                log_start_offset: bounds.log_start_offset.to_wire(),
                aborted: self.aborted.into_iter().collect(),
                records: self.records,
                ..answer
            },
            Some(Err(refusal)) => {
                let bounds = refusal.bounds;
                let leader = self
                    .partition
                    .and_then(|partition| context.other_leader(image, partition));
                let moved = matches!(
                    refusal.error,
                    ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch
                );
                PartitionAnswer {
                    error: Some(refusal.error),
                    high_watermark: bounds.map_or(-1, |(_, end)| end.to_wire()),
                    last_stable_offset: bounds.map_or(-1, |(_, end)| end.to_wire()),
                    log_start_offset: bounds.map_or(-1, |(start, _)| start.to_wire()),
                    leader: leader
                        .filter(|_| moved)
                        .map(|(node, epoch)| (node.as_broker_id(), epoch.to_wire())),
                    ..answer
                }
            }
        }
    }
}
