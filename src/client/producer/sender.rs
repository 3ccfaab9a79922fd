//! The task that sends a producer's batches: the only place where the producer meets the network.
//!
//! A partition's batches all go over one lane, in the order in which [`PartitionQueue`] gives them out, and the lane keeps
//! that order. A lane's requests are started without waiting; what comes back is handed to the queue, which decides.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::FuturesUnordered;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{self, InitProducerIdRequest, ProduceRequest, ProduceResponse};
use kafka_protocol::protocol::Request;
use tokio::time::Instant;

use super::accumulator::{Attempt, BatchId, Identity, Outgoing, OutgoingContent, PartitionQueue};
use super::delivery::DeliveryCause;
use super::passes::Passes;
use super::{Acks, Shared};
use crate::client::api::Spoken;
use crate::client::connection::{Encoded, Lane, decode_response};
use crate::client::departed::{SUSPECT_AFTER, SUSPECT_FOR, SUSPECT_ROUNDS, has_departed};
use crate::client::error::ClientError;
use crate::client::metadata::{ClusterView, NamedLeader, PartitionName, host_port};
use crate::client::{Client, lock, wire_str};
use crate::types::{ErrorCode, NodeId, PartitionIndex, ProducerId, TopicName};

/// How much longer than the leader may take for a request this end waits for the answer, so that the leader's own
/// `REQUEST_TIMED_OUT` comes in time.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// A lane: a node, and a number below [`super::ProducerConfig::lanes`].
type LaneKey = (NodeId, usize);

pub(super) struct Sender {
    client: Client,
    shared: Arc<Shared>,
    lanes: HashMap<LaneKey, LaneSlot>,
    opening: FuturesUnordered<BoxFuture<'static, (LaneKey, Result<OpenLane, ClientError>)>>,
    requests: FuturesUnordered<BoxFuture<'static, Finished>>,
    /// How many batches of each partition wait for an answer on each lane.
    in_flight: HashMap<LaneKey, BTreeMap<PartitionName, usize>>,
    identity: Option<Identity>,
    /// One at most.
    asking_identity: FuturesUnordered<BoxFuture<'static, Result<(ProducerId, i16), ClientError>>>,
    /// One at most.
    refreshing: FuturesUnordered<BoxFuture<'static, RefreshResult>>,
    refresh: Pace,
    ask: Pace,
    passes: Passes,
}

type RefreshResult = Result<(Arc<ClusterView>, Vec<(TopicName, ErrorCode)>), ClientError>;

enum LaneSlot {
    Opening,
    Open(OpenLane),
}

#[derive(Clone)]
struct OpenLane {
    lane: Lane,
    address: Arc<str>,
    produce_version: i16,
}

/// Something that is wanted now and then, and not more often than the backoff says.
#[derive(Default)]
struct Pace {
    wanted: bool,
    /// How often it was done in a row without making it unwanted.
    in_a_row: u32,
    not_before: Option<Instant>,
}

/// A batch that is on its way.
struct Sent {
    name: PartitionName,
    id: BatchId,
    bytes: Bytes,
}

/// A request that came to an end.
struct Finished {
    lane: LaneKey,
    batches: Vec<Sent>,
    sent_at: Instant,
    result: Result<ProduceResponse, ClientError>,
}

impl Sender {
    pub(super) fn new(client: Client, shared: Arc<Shared>) -> Sender {
        Sender {
            client,
            shared,
            lanes: HashMap::new(),
            opening: FuturesUnordered::new(),
            requests: FuturesUnordered::new(),
            in_flight: HashMap::new(),
            identity: None,
            asking_identity: FuturesUnordered::new(),
            refreshing: FuturesUnordered::new(),
            refresh: Pace::default(),
            ask: Pace::default(),
            passes: Passes::default(),
        }
    }

    /// Until the producer is closed and nothing is left, or it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let now = Instant::now();
            let not_before = self.passes.not_before(now, self.requests.len());
            let due = match not_before {
                Some(_) => not_before,
                None => {
                    if self.send_due(now) {
                        self.passes.sent(now);
                        while self.send_due(now) {}
                    }
                    if self.is_done() {
                        break;
                    }
                    self.suspect(now);
                    self.start_asking(now);
                    self.next_due(now)
                }
            };
            let shared = self.shared.clone();
            tokio::select! {
                // Whoever has something to be sent meanwhile is heard then.
                () = shared.wake.notified(), if not_before.is_none() => {}
                () = sleep_until(due) => {}
                Some(finished) = self.requests.next() => {
                    self.finish(finished);
                    // Whatever else is there already is handled before anything is sent.
                    while let Some(Some(finished)) = self.requests.next().now_or_never() {
                        self.finish(finished);
                    }
                }
                Some((key, opened)) = self.opening.next() => self.lane_opened(key, opened),
                Some(result) = self.asking_identity.next() => self.identity_came(result),
                Some(result) = self.refreshing.next() => self.refreshed(result),
            }
        }
        self.for_queues(|_, queue, now| queue.fail_all(&DeliveryCause::Closed, now));
        if self.shared.config.acks == Acks::None {
            // No response says that they have arrived.
            for (_, slot) in self.lanes.drain() {
                if let LaneSlot::Open(open) = slot {
                    open.lane.finish().await;
                }
            }
        }
    }

    /// Closed for good: `close` closes the memory only after it has waited for everything.
    fn is_done(&self) -> bool {
        self.shared.memory.is_closed()
    }

    /// One pass over the partitions: takes at most one batch of each and sends what it took. Whether it took any.
    fn send_due(&mut self, now: Instant) -> bool {
        let view = self.client.view();
        let hurry = self.shared.waiting_for_memory.load(Ordering::Relaxed) > 0;
        // Ordered, so that a run can be repeated.
        let mut taken: BTreeMap<LaneKey, Vec<(PartitionName, Outgoing)>> = BTreeMap::new();
        let mut to_open = Vec::new();
        self.refresh.wanted |= {
            let mut leaderless = false;
            let shared = self.shared.clone();
            let mut accumulator = lock(&shared.accumulator);
            for (name, queue) in &mut accumulator.queues {
                if queue.is_empty() {
                    continue;
                }
                queue.expire(now);
                if let Some(identity) = self.identity {
                    queue.offer_identity(identity, now);
                }
                let Some((leader, _, epoch)) = view.leader(&name.topic, name.partition) else {
                    leaderless |= !queue.is_empty();
                    continue;
                };
                queue.handle_leader(epoch, now);
                let key = (leader, lane_of(name, shared.config.lanes));
                match self.lanes.get(&key) {
                    Some(LaneSlot::Open(open)) if open.lane.is_broken() => {
                        self.lanes.remove(&key);
                        to_open.push(key);
                    }
                    Some(LaneSlot::Open(open)) if open.lane.has_room() => {
                        if let Some(outgoing) = queue.take(now, hurry) {
                            taken.entry(key).or_default().push((name.clone(), outgoing));
                        }
                    }
                    Some(_) => {}
                    None if queue.is_empty() => {}
                    None => to_open.push(key),
                }
            }
            leaderless
        };
        for key in to_open {
            self.open_lane(key);
        }
        let any = !taken.is_empty();
        for (key, batches) in taken {
            self.send(key, batches, now);
        }
        any
    }

    /// Seals the batches and sends them in as few requests as their size allows.
    fn send(&mut self, key: LaneKey, batches: Vec<(PartitionName, Outgoing)>, now: Instant) {
        let Some(LaneSlot::Open(open)) = self.lanes.get(&key) else {
            return;
        };
        let open = open.clone();
        let compression = self.shared.config.compression;
        let mut request = Vec::new();
        let mut request_bytes = 0;
        let mut deadline = now + self.client.config().request_timeout;
        for (name, outgoing) in batches {
            let bytes = match outgoing.content {
                OutgoingContent::Sealed(bytes) => bytes,
                OutgoingContent::New { builder, stamp } => match builder.seal(compression) {
                    Ok(sealed) => sealed.stamp(stamp),
                    Err(error) => {
                        let error = ClientError::Unwritable {
                            request: ProduceRequest::NAME,
                            what: error.to_string(),
                        };
                        self.complete(&name, outgoing.id, Bytes::new(), Attempt::NotSent(error));
                        continue;
                    }
                },
            };
            if !request.is_empty()
                && request_bytes + bytes.len() > self.shared.config.max_request_bytes
            {
                self.start_request(key, &open, std::mem::take(&mut request), deadline, now);
                request_bytes = 0;
            }
            request_bytes += bytes.len();
            deadline = deadline.min(outgoing.deadline);
            request.push(Sent {
                name,
                id: outgoing.id,
                bytes,
            });
        }
        if !request.is_empty() {
            self.start_request(key, &open, request, deadline, now);
        }
    }

    fn start_request(
        &mut self,
        key: LaneKey,
        open: &OpenLane,
        batches: Vec<Sent>,
        deadline: Instant,
        now: Instant,
    ) {
        let acks = self.shared.config.acks;
        let timeout = deadline.saturating_duration_since(now);
        let request = produce_request(acks, timeout, &batches);
        let version = open.produce_version;
        let encoded = Encoded::new(&request, version, ProduceRequest::NAME);
        if acks == Acks::None {
            let sent = encoded.and_then(|encoded| open.lane.send_without_response(encoded));
            for batch in batches {
                let attempt = match &sent {
                    Ok(()) => Attempt::Appended { offset: None },
                    Err(error) => Attempt::NotSent(error.clone()),
                };
                self.complete(&batch.name, batch.id, batch.bytes, attempt);
            }
            return;
        }
        match encoded.and_then(|encoded| open.lane.send(encoded)) {
            Ok(in_flight) => {
                let address = open.address.clone();
                let partitions = self.in_flight.entry(key).or_default();
                for batch in &batches {
                    *partitions.entry(batch.name.clone()).or_default() += 1;
                }
                let request = async move {
                    let result = in_flight.response(timeout + ANSWER_GRACE).await;
                    let name = ProduceRequest::NAME;
                    let result = result.and_then(|body| {
                        decode_response::<ProduceRequest>(body, version, &address, name)
                    });
                    Finished {
                        lane: key,
                        batches,
                        sent_at: now,
                        result,
                    }
                };
                self.requests.push(request.boxed());
            }
            Err(error) => {
                for batch in batches {
                    let attempt = Attempt::NotSent(error.clone());
                    self.complete(&batch.name, batch.id, batch.bytes, attempt);
                }
            }
        }
    }

    fn finish(&mut self, finished: Finished) {
        let Finished {
            lane,
            batches,
            sent_at,
            result,
        } = finished;
        self.forget_in_flight(lane, &batches);
        let mut answers = match result {
            Ok(response) => {
                let now = Instant::now();
                self.passes
                    .answered(now, now.saturating_duration_since(sent_at));
                // Before the batches that were refused wait for their backoff: a later leader ends it.
                self.client.note_leaders(&named_leaders(&response));
                answers(response)
            }
            Err(error) => {
                if let Some(LaneSlot::Open(open)) = self.lanes.get(&lane)
                    && open.lane.is_broken()
                {
                    self.lanes.remove(&lane);
                }
                for batch in batches {
                    let attempt = Attempt::Unknown(error.clone());
                    self.complete(&batch.name, batch.id, batch.bytes, attempt);
                }
                return;
            }
        };
        for batch in batches {
            let key = (
                batch.name.topic.as_str().to_owned(),
                batch.name.partition.to_wire(),
            );
            let attempt = answers.remove(&key).unwrap_or_else(|| {
                Attempt::Unknown(ClientError::Malformed {
                    address: self
                        .client
                        .view()
                        .nodes
                        .get(&lane.0)
                        .cloned()
                        .unwrap_or_default(),
                    request: ProduceRequest::NAME,
                    what: format!("it says nothing of {}", batch.name),
                })
            });
            self.complete(&batch.name, batch.id, batch.bytes, attempt);
        }
    }

    fn forget_in_flight(&mut self, lane: LaneKey, batches: &[Sent]) {
        let Some(partitions) = self.in_flight.get_mut(&lane) else {
            return;
        };
        for batch in batches {
            if let Some(count) = partitions.get_mut(&batch.name) {
                *count -= 1;
                if *count == 0 {
                    partitions.remove(&batch.name);
                }
            }
        }
        if partitions.is_empty() {
            self.in_flight.remove(&lane);
        }
    }

    /// Asks who leads now where somebody is silent, and somebody else rather than the silent one.
    fn suspect(&mut self, now: Instant) {
        let silent: Vec<(LaneKey, Instant)> = self.silent_lanes(now).collect();
        for ((node, _), _) in &silent {
            self.client.note_silence(*node, now + SUSPECT_FOR);
        }
        self.refresh.wanted |= !silent.is_empty();
        let fresh =
            |(_, since): &(LaneKey, Instant)| now.saturating_duration_since(*since) < SUSPECT_FOR;
        if silent.iter().any(fresh) {
            self.refresh.in_a_row = self.refresh.in_a_row.min(SUSPECT_ROUNDS);
        }
    }

    /// Lanes on which requests wait and nothing was answered for [`SUSPECT_AFTER`], with since when.
    fn silent_lanes(&self, now: Instant) -> impl Iterator<Item = (LaneKey, Instant)> {
        self.waiting_lanes()
            .filter(move |(_, since)| now.saturating_duration_since(*since) >= SUSPECT_AFTER)
    }

    fn waiting_lanes(&self) -> impl Iterator<Item = (LaneKey, Instant)> {
        self.lanes.iter().filter_map(|(key, slot)| match slot {
            LaneSlot::Open(open) => Some((*key, open.lane.silent_since()?)),
            LaneSlot::Opening => None,
        })
    }

    /// Gives up silent lanes whose node leads no longer, or is to be had elsewhere: a paused, cut-off or moved leader never
    /// answers there, and its successor, or it itself at its new address, does. What waited there is sent again, with the same
    /// sequence numbers, so that nothing is stored twice.
    fn give_up_deposed(&mut self, view: &ClusterView, now: Instant) {
        let deposed: Vec<(LaneKey, Instant)> = self
            .silent_lanes(now)
            .filter(|(key, _)| {
                let waiting = self.in_flight.get(key).into_iter().flat_map(BTreeMap::keys);
                match self.lanes.get(key) {
                    Some(LaneSlot::Open(open)) => has_departed(view, key.0, &open.address, waiting),
                    _ => false,
                }
            })
            .collect();
        for (key, since) in deposed {
            if let Some(LaneSlot::Open(open)) = self.lanes.get(&key) {
                open.lane.give_up(now.saturating_duration_since(since));
            }
        }
    }

    fn complete(&mut self, name: &PartitionName, id: BatchId, bytes: Bytes, attempt: Attempt) {
        let mut accumulator = lock(&self.shared.accumulator);
        if let Some(queue) = accumulator.queues.get_mut(name) {
            let effects = queue.complete(id, bytes, attempt, Instant::now());
            self.refresh.wanted |= effects.refresh_metadata;
        }
    }

    fn open_lane(&mut self, key: LaneKey) {
        if self.lanes.contains_key(&key) {
            return;
        }
        let Some(link) = self.client.node_link(key.0) else {
            self.refresh.wanted = true;
            return;
        };
        self.lanes.insert(key, LaneSlot::Opening);
        let opening = async move {
            let opened = async {
                let (lane, session) = link.open_lane().await?;
                let produce_version = session.versions.pick::<ProduceRequest>(&link.address)?;
                Ok(OpenLane {
                    lane,
                    address: link.address.as_str().into(),
                    produce_version,
                })
            };
            (key, opened.await)
        };
        self.opening.push(opening.boxed());
    }

    fn lane_opened(&mut self, key: LaneKey, opened: Result<OpenLane, ClientError>) {
        match opened {
            Ok(open) => {
                self.lanes.insert(key, LaneSlot::Open(open));
            }
            Err(error) => {
                // The next attempt waits in the link, as long as its backoff says. Meanwhile another may have come to lead.
                self.lanes.remove(&key);
                self.refresh.wanted = true;
                let view = self.client.view();
                let fatal = !error.is_retriable();
                self.for_queues(|name, queue, now| {
                    let leader = view.leader(&name.topic, name.partition);
                    if leader.is_some_and(|(leader, _, _)| leader == key.0) {
                        if fatal {
                            queue.fail_all(&DeliveryCause::Failed(error.clone()), now);
                        } else {
                            queue.note(&error);
                        }
                    }
                });
            }
        }
    }

    fn for_queues(&self, mut act: impl FnMut(&PartitionName, &mut PartitionQueue, Instant)) {
        let now = Instant::now();
        let mut accumulator = lock(&self.shared.accumulator);
        for (name, queue) in &mut accumulator.queues {
            if !queue.is_empty() {
                act(name, queue, now);
            }
        }
    }

    /// Starts what is wanted of the cluster beside the batches: a producer id, newer metadata.
    fn start_asking(&mut self, now: Instant) {
        let generation = self.identity.map_or(0, |identity| identity.generation);
        let mut topics = HashSet::new();
        let mut identity_wanted = false;
        let refresh_wanted = self.refresh.wanted;
        self.for_queues(|name, queue, _| {
            identity_wanted |= queue
                .wants_identity()
                .is_some_and(|after| after >= generation);
            if refresh_wanted && !topics.contains(&name.topic) {
                topics.insert(name.topic.clone());
            }
        });
        self.ask.wanted = identity_wanted;
        if self.ask.is_due(now) && self.asking_identity.is_empty() {
            let client = self.client.clone();
            self.asking_identity
                .push(async move { ask_identity(&client).await }.boxed());
            self.ask.done(&self.client, now);
        }
        if topics.is_empty() {
            self.refresh.wanted = false;
        }
        if self.refresh.is_due(now) && self.refreshing.is_empty() {
            let client = self.client.clone();
            let topics: Vec<TopicName> = topics.into_iter().collect();
            self.refreshing
                .push(async move { client.refresh(&topics, false).await }.boxed());
            self.refresh.done(&self.client, now);
        } else if !self.refresh.wanted && self.refreshing.is_empty() {
            self.refresh.in_a_row = 0;
        }
    }

    fn identity_came(&mut self, result: Result<(ProducerId, i16), ClientError>) {
        match result {
            Ok((id, epoch)) => {
                let generation = self.identity.map_or(0, |identity| identity.generation) + 1;
                self.identity = Some(Identity {
                    generation,
                    id,
                    epoch,
                });
                self.ask.in_a_row = 0;
            }
            Err(error) => {
                let gave_up = matches!(error, ClientError::GaveUp { .. });
                let fatal = !gave_up && !error.is_retriable();
                self.for_queues(|_, queue, now| {
                    if queue.wants_identity().is_none() {
                    } else if fatal {
                        queue.fail_all(&DeliveryCause::Failed(error.clone()), now);
                    } else {
                        queue.note(&error);
                    }
                });
            }
        }
    }

    fn refreshed(&mut self, result: RefreshResult) {
        match result {
            Ok((view, failed)) => {
                let mut is_stale = false;
                self.for_queues(|name, queue, now| {
                    if let Some((_, _, epoch)) = view.leader(&name.topic, name.partition) {
                        queue.handle_leader(epoch, now);
                    }
                    is_stale |= queue.wants_later_leader();
                });
                // Whoever answered had not heard of the election yet.
                self.refresh.wanted = is_stale;
                self.give_up_deposed(&view, Instant::now());
                let failed: HashMap<TopicName, ErrorCode> = failed.into_iter().collect();
                self.for_queues(|name, queue, _| {
                    if let Some(&code) = failed.get(&name.topic) {
                        queue.note(&ClientError::Refused {
                            what: format!("describing topic {}", name.topic),
                            code,
                            message: None,
                        });
                    }
                });
            }
            Err(error) => self.for_queues(|_, queue, _| queue.note(&error)),
        }
    }

    /// When the next timer runs out.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let accumulator = lock(&self.shared.accumulator);
        let queues = accumulator.queues.values();
        let due = queues.filter_map(|queue| queue.next_due(now)).min();
        // One that is suspected already is looked at when the metadata comes.
        let suspicions = self
            .waiting_lanes()
            .map(|(_, since)| since + SUSPECT_AFTER)
            .filter(|&suspect_at| suspect_at > now);
        let paces = [
            (&self.refresh, self.refreshing.is_empty()),
            (&self.ask, self.asking_identity.is_empty()),
        ];
        paces
            .into_iter()
            .filter(|(pace, idle)| *idle && pace.wanted)
            .filter_map(|(pace, _)| pace.not_before)
            .chain(due)
            .chain(suspicions)
            .min()
    }
}

impl Pace {
    fn is_due(&self, now: Instant) -> bool {
        self.wanted && self.not_before.is_none_or(|not_before| now >= not_before)
    }

    fn done(&mut self, client: &Client, now: Instant) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.not_before = Some(now + client.soon_after(self.in_a_row));
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The same lane for a partition each time: FNV-1a over its topic's name, and on from there, so that neighbouring partitions take
/// neighbouring lanes. On one lane answers come in the order of the requests, so a
/// partition that waits for its followers holds up those that share its lane.
fn lane_of(name: &PartitionName, lanes: usize) -> usize {
    let topic = name.topic.as_str().bytes();
    let hash = topic.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash.wrapping_add(u64::from(name.partition.0)) % lanes.max(1) as u64) as usize
}

async fn ask_identity(client: &Client) -> Result<(ProducerId, i16), ClientError> {
    // No transactions, so the timeout means nothing; −1 asks for a new id.
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(i32::MAX)
        .with_producer_id(messages::ProducerId(-1))
        .with_producer_epoch(-1);
    let timeout = client.config().request_timeout;
    let response = client.call_any(&request, timeout, false).await?;
    let what = || "asking for a producer id".to_owned();
    ClientError::check(response.error_code, None, what)?;
    let id = ProducerId::new(response.producer_id.0).ok_or_else(|| ClientError::Malformed {
        address: "the cluster".to_owned(),
        request: InitProducerIdRequest::NAME,
        what: format!("{} is no producer id", response.producer_id.0),
    })?;
    Ok((id, response.producer_epoch))
}

fn produce_request(acks: Acks, timeout: Duration, batches: &[Sent]) -> ProduceRequest {
    let mut topics: BTreeMap<&TopicName, Vec<PartitionProduceData>> = BTreeMap::new();
    for batch in batches {
        let data = PartitionProduceData::default()
            .with_index(batch.name.partition.to_wire())
            .with_records(Some(batch.bytes.clone()));
        topics.entry(&batch.name.topic).or_default().push(data);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        TopicProduceData::default()
            .with_name(messages::TopicName(wire_str(topic.as_str())))
            .with_partition_data(partitions)
    });
    ProduceRequest::default()
        .with_acks(acks.to_wire())
        .with_timeout_ms(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX))
        .with_topic_data(topics.collect())
}

/// Who leads what was refused, where the refusal says it: nobody needs to ask then, and whoever is asked may know less.
fn named_leaders(response: &ProduceResponse) -> Vec<NamedLeader> {
    let mut named = Vec::new();
    for topic in &response.responses {
        for partition in &topic.partition_responses {
            let current = &partition.current_leader;
            let Some(leader) = NodeId::from_broker_id(current.leader_id.0) else {
                continue;
            };
            let Ok(name) = TopicName::new(&topic.name.0) else {
                continue;
            };
            let Some(index) = PartitionIndex::from_wire(partition.index) else {
                continue;
            };
            let endpoint = response
                .node_endpoints
                .iter()
                .find(|endpoint| endpoint.node_id == current.leader_id);
            named.push(NamedLeader {
                partition: PartitionName::new(name, index),
                leader,
                leader_epoch: current.leader_epoch,
                address: endpoint.map(|endpoint| host_port(&endpoint.host, endpoint.port)),
            });
        }
    }
    named
}

fn answers(response: <ProduceRequest as Request>::Response) -> HashMap<(String, i32), Attempt> {
    let mut answers = HashMap::new();
    for topic in response.responses {
        for partition in topic.partition_responses {
            let attempt = match ErrorCode::from_code(partition.error_code) {
                Ok(()) => Attempt::Appended {
                    offset: PartitionIndex::from_wire(partition.index)
                        .map(|_| partition.base_offset)
                        .filter(|offset| *offset >= 0),
                },
                Err(code) => Attempt::Refused {
                    message: match partition.error_message {
                        Some(message) => Some(message.to_string()),
                        None if code.code() == partition.error_code => None,
                        None => Some(format!("error code {}", partition.error_code)),
                    },
                    code,
                },
            };
            answers.insert((topic.name.0.to_string(), partition.index), attempt);
        }
    }
    answers
}
