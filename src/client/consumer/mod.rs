//! The consumer: partitions that the caller names, read from a place that the caller names.
//!
//! - [`start`]: the place
//! - [`cursor`]: one partition's position and what answers mean for it
//! - [`fetch`], [`lookup`]: what is asked of the nodes
//!
//! There is no task behind a consumer: [`Consumer::next`] drives it. Requests that are on their way are answered meanwhile,
//! so data is fetched ahead while the caller works, up to [`ConsumerConfig::prefetch_bytes`].

mod cursor;
mod fetch;
mod lookup;
mod start;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::FuturesUnordered;
use kafka_protocol::messages::{FetchRequest, FetchResponse};
use tokio::time::Instant;

use self::cursor::{Cursor, Outcome, State};
use self::fetch::{answers, fetch_request, start_fetch};
use self::lookup::bounds;
pub(super) use self::lookup::resolve;
pub use self::start::{ParseStartError, Start};
use super::api::Spoken;
use super::connection::{Lane, decode_response};
use super::departed::SUSPECT_AFTER;
use super::error::ClientError;
use super::metadata::{ClusterView, PartitionName};
use super::{Client, UNKNOWN_TOPIC_PATIENCE};
use crate::record::{Batch, Record, Records, records_within};
use crate::types::{ErrorCode, IsolationLevel, NodeId, Offset, PartitionIndex, TopicName};

/// What to do where the offset that is to be fetched is not in the log: deleted, or not written yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// Report it, with the log's bounds, and stop reading that partition.
    #[default]
    Error,
    /// Go on at the log's start.
    Earliest,
    /// Go on at the log's end.
    Latest,
}

/// How a consumer behaves.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// `fetch.max.wait.ms`: how long a node holds a request while there is nothing to send. Default 500 ms.
    pub max_wait: Duration,
    /// `fetch.min.bytes`: with less than this, a node waits. Default 1.
    pub min_bytes: usize,
    /// `fetch.max.bytes`: the most in one response. A single batch that is larger is sent all the same. Default 8 MiB.
    pub max_bytes: usize,
    /// `max.partition.fetch.bytes`: the most of one partition in one response; the same exception. Default 1 MiB.
    pub max_partition_bytes: usize,
    /// The most that is fetched ahead of the caller, in bytes as they come over the wire, over all nodes together. At the cap
    /// nothing more is asked for. Default 32 MiB.
    pub prefetch_bytes: usize,
    /// The most that one batch may expand to. Default [`MAX_EXPANDED_BYTES`](crate::record::MAX_EXPANDED_BYTES).
    pub max_expanded_bytes: usize,
    pub out_of_range: OutOfRange,
    /// `isolation.level`: whether records of transactions that have not ended, or were aborted, are given out. Kafka's default:
    /// they are.
    pub isolation: IsolationLevel,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        ConsumerConfig {
            max_wait: Duration::from_millis(500),
            min_bytes: 1,
            max_bytes: 8 << 20,
            max_partition_bytes: 1 << 20,
            prefetch_bytes: 32 << 20,
            max_expanded_bytes: crate::record::MAX_EXPANDED_BYTES,
            out_of_range: OutOfRange::Error,
            isolation: IsolationLevel::ReadUncommitted,
        }
    }
}

/// Below this a request is not worth making: more of the prefetched data is read first.
const MIN_FETCH_BYTES: usize = 64 << 10;

/// A record and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerRecord {
    pub topic: TopicName,
    pub partition: PartitionIndex,
    pub record: Record,
}

/// What a consumer met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Record(ConsumerRecord),
    /// Every record below the high watermark, which is `offset`, has been given out; below the last stable offset, where only
    /// committed transactions are read. Told once, and again after each time that more has come.
    EndOfPartition {
        topic: TopicName,
        partition: PartitionIndex,
        offset: Offset,
    },
}

/// Reads partitions. Records of one partition come in offset order; partitions are mixed as they arrive.
pub struct Consumer {
    client: Client,
    config: ConsumerConfig,
    cursors: BTreeMap<PartitionName, Cursor>,
    lanes: HashMap<NodeId, OpenLane>,
    /// One to a node at most; the nodes are the keys of `reserved`.
    fetches: FuturesUnordered<BoxFuture<'static, Fetched>>,
    /// How much each request that is on its way may bring.
    reserved: HashMap<NodeId, usize>,
    lookups: FuturesUnordered<BoxFuture<'static, Lookup>>,
    refreshing: FuturesUnordered<BoxFuture<'static, RefreshResult>>,
    refresh_wanted: bool,
    refreshes: u32,
    refresh_not_before: Option<Instant>,
    buffer: VecDeque<Buffered>,
    buffered_bytes: usize,
    /// Which node and partition come first; counts up.
    turn: usize,
}

type RefreshResult =
    Result<(std::sync::Arc<ClusterView>, Vec<(TopicName, ErrorCode)>), ClientError>;

#[derive(Clone)]
struct OpenLane {
    lane: Lane,
    address: String,
    version: i16,
}

struct Fetched {
    node: NodeId,
    asked: Vec<PartitionName>,
    result: Result<(OpenLane, FetchResponse), ClientError>,
}

enum Lookup {
    Starts {
        asked: Vec<PartitionName>,
        result: Result<Vec<(PartitionName, i64)>, ClientError>,
    },
    Bounds {
        name: PartitionName,
        offset: i64,
        result: Result<(Offset, Offset), ClientError>,
    },
}

/// What was fetched and not given out yet.
enum Buffered {
    Records {
        name: PartitionName,
        batches: std::vec::IntoIter<Batch>,
        current: Option<Records>,
        /// Records below are skipped: a batch comes whole.
        from: i64,
        bytes: usize,
    },
    End {
        name: PartitionName,
        offset: i64,
    },
    Failed(ClientError),
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("partitions", &self.cursors.keys())
            .field("buffered_bytes", &self.buffered_bytes)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    pub(super) fn new(client: Client, config: ConsumerConfig) -> Result<Consumer, ClientError> {
        if config.max_bytes == 0 || config.max_partition_bytes == 0 || config.prefetch_bytes == 0 {
            return Err(ClientError::Configuration {
                what: "a consumer's sizes must be at least 1 byte".to_owned(),
            });
        }
        Ok(Consumer {
            client,
            config,
            cursors: BTreeMap::new(),
            lanes: HashMap::new(),
            fetches: FuturesUnordered::new(),
            reserved: HashMap::new(),
            lookups: FuturesUnordered::new(),
            refreshing: FuturesUnordered::new(),
            refresh_wanted: false,
            refreshes: 0,
            refresh_not_before: None,
            buffer: VecDeque::new(),
            buffered_bytes: 0,
            turn: 0,
        })
    }

    /// Reads these partitions from now on, and no others; what was fetched of earlier ones is dropped.
    ///
    /// # Errors
    /// A topic or partition that does not exist. The assignment is as it was then.
    pub async fn assign(
        &mut self,
        partitions: impl IntoIterator<Item = (PartitionName, Start)>,
    ) -> Result<(), ClientError> {
        let partitions: BTreeMap<PartitionName, Start> = partitions.into_iter().collect();
        let timeout = self.client.config().request_timeout;
        for name in partitions.keys() {
            let view = self.client.topic(&name.topic, false, timeout).await?;
            let known = view
                .topics
                .get(&name.topic)
                .map_or(0, |t| t.partitions.len());
            if name.partition.0 as usize >= known {
                return Err(ClientError::UnknownPartition {
                    topic: name.topic.clone(),
                    partition: name.partition,
                    partitions: known,
                });
            }
        }
        self.fetches = FuturesUnordered::new();
        self.lookups = FuturesUnordered::new();
        self.reserved.clear();
        // The requests that were just dropped may still be in their lanes, and a node answers one after another.
        self.lanes.clear();
        self.buffer.clear();
        self.buffered_bytes = 0;
        self.cursors = partitions
            .into_iter()
            .map(|(name, start)| (name.clone(), Cursor::new(name, start)))
            .collect();
        Ok(())
    }

    /// As [`Consumer::assign`], for every partition of a topic.
    pub async fn assign_topic(
        &mut self,
        topic: &TopicName,
        start: Start,
    ) -> Result<(), ClientError> {
        let timeout = self.client.config().request_timeout;
        let view = self.client.topic(topic, false, timeout).await?;
        let known = view.topics.get(topic).map(|topic| topic.partitions.iter());
        let partitions: Vec<_> = known
            .into_iter()
            .flatten()
            .map(|p| (PartitionName::new(topic.clone(), p.partition), start))
            .collect();
        self.assign(partitions).await
    }

    /// The partitions that are assigned.
    pub fn assignment(&self) -> impl Iterator<Item = &PartitionName> {
        self.cursors.keys()
    }

    /// The highest high watermark that a node told of for a partition.
    pub fn high_watermark(&self, name: &PartitionName) -> Option<Offset> {
        self.cursors
            .get(name)?
            .high_watermark
            .and_then(Offset::from_wire)
    }

    /// The next record or end of a partition. Waits for as long as there is none; nodes that cannot be reached are tried
    /// again for ever, with a log line. Can be dropped at any time without losing a record.
    ///
    /// # Errors
    /// Those that concern one partition ([`ClientError::OffsetOutOfRange`], [`ClientError::Unreadable`], a topic that was
    /// deleted) end the reading of that partition; further calls go on with the others. [`ClientError::Closed`] when
    /// nothing is left to read.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.next_buffered()? {
                return Ok(event);
            }
            let now = Instant::now();
            self.start_lookups();
            self.start_fetches(now);
            self.start_refresh(now);
            if self
                .cursors
                .values()
                .all(|cursor| cursor.state == State::Failed)
                && self.lookups.is_empty()
            {
                return Err(ClientError::Closed);
            }
            let due = self.next_due(now);
            tokio::select! {
                Some(fetched) = self.fetches.next() => self.fetched(fetched),
                Some(lookup) = self.lookups.next() => self.looked_up(lookup)?,
                Some(result) = self.refreshing.next() => self.refreshed(result),
                () = sleep_until(due) => {}
            }
        }
    }

    fn next_buffered(&mut self) -> Result<Option<Event>, ClientError> {
        while let Some(front) = self.buffer.front_mut() {
            match front {
                Buffered::Records {
                    name,
                    batches,
                    current,
                    from,
                    bytes,
                } => {
                    while let Some(records) = current {
                        match records.next() {
                            Some(Ok(record)) if record.offset < *from => {}
                            Some(Ok(record)) => {
                                return Ok(Some(Event::Record(ConsumerRecord {
                                    topic: name.topic.clone(),
                                    partition: name.partition,
                                    record,
                                })));
                            }
                            Some(Err(error)) => {
                                let error = unreadable(name, *from, &error);
                                return Err(self.drop_front(error));
                            }
                            None => *current = None,
                        }
                    }
                    if let Some(batch) = batches.next() {
                        match records_within(&batch, self.config.max_expanded_bytes) {
                            Ok(records) => *current = Some(records),
                            Err(error) => {
                                let error = unreadable(name, batch.header.base_offset, &error);
                                return Err(self.drop_front(error));
                            }
                        }
                    } else {
                        self.buffered_bytes = self.buffered_bytes.saturating_sub(*bytes);
                        self.buffer.pop_front();
                        // There is room again: ask for more before the caller works on what is left.
                        self.start_fetches(Instant::now());
                    }
                }
                Buffered::End { name, offset } => {
                    let event = Event::EndOfPartition {
                        topic: name.topic.clone(),
                        partition: name.partition,
                        offset: Offset::from_wire(*offset).unwrap_or_default(),
                    };
                    self.buffer.pop_front();
                    return Ok(Some(event));
                }
                Buffered::Failed(error) => {
                    let error = error.clone();
                    self.buffer.pop_front();
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Drops what cannot be read, and everything that was fetched of its partition after it.
    fn drop_front(&mut self, error: ClientError) -> ClientError {
        let Some(Buffered::Records { name, .. }) = self.buffer.front() else {
            return error;
        };
        let broken = name.clone();
        if let Some(cursor) = self.cursors.get_mut(&broken) {
            cursor.state = State::Failed;
        }
        self.buffer.retain(|buffered| match buffered {
            Buffered::Records { name, .. } | Buffered::End { name, .. } => *name != broken,
            Buffered::Failed(_) => true,
        });
        let bytes = self.buffer.iter().map(|buffered| match buffered {
            Buffered::Records { bytes, .. } => *bytes,
            Buffered::End { .. } | Buffered::Failed(_) => 0,
        });
        self.buffered_bytes = bytes.sum();
        error
    }

    fn start_lookups(&mut self) {
        let mut starts = Vec::new();
        for cursor in self.cursors.values_mut() {
            match cursor.state {
                State::Unresolved(Start::Offset(offset)) => cursor.resolved(offset.to_wire()),
                State::Unresolved(start) => {
                    cursor.state = State::Resolving(start);
                    starts.push((cursor.name.clone(), start));
                }
                _ => {}
            }
        }
        if !starts.is_empty() {
            let (client, isolation) = (self.client.clone(), self.config.isolation);
            let lookup = async move {
                let asked = starts.iter().map(|(name, _)| name.clone()).collect();
                let result = resolve(&client, starts, isolation).await;
                Lookup::Starts { asked, result }
            };
            self.lookups.push(lookup.boxed());
        }
    }

    fn looked_up(&mut self, lookup: Lookup) -> Result<(), ClientError> {
        match lookup {
            Lookup::Starts { asked, result } => {
                let found = match result {
                    Ok(found) => found,
                    Err(error) => {
                        // The caller may call again, and then they are looked up again.
                        for name in asked {
                            if let Some(cursor) = self.cursors.get_mut(&name)
                                && let State::Resolving(start) = cursor.state
                            {
                                cursor.state = State::Unresolved(start);
                            }
                        }
                        return Err(error);
                    }
                };
                for (name, offset) in found {
                    if let Some(cursor) = self.cursors.get_mut(&name) {
                        cursor.resolved(offset);
                    }
                }
                Ok(())
            }
            Lookup::Bounds {
                name,
                offset,
                result,
            } => {
                let (start, end) = result?;
                match self.cursors.get(&name) {
                    Some(cursor) => Err(cursor.out_of_range(offset, start, end)),
                    None => Ok(()),
                }
            }
        }
    }

    /// Asks every leader that owes nothing for all its partitions that are due.
    fn start_fetches(&mut self, now: Instant) {
        let view = self.client.view();
        let mut due: BTreeMap<NodeId, Vec<(PartitionName, i64, i32, bool)>> = BTreeMap::new();
        for cursor in self.cursors.values() {
            if !cursor.is_due(now) {
                continue;
            }
            let name = &cursor.name;
            match view.leader(&name.topic, name.partition) {
                Some((leader, _, _)) if self.reserved.contains_key(&leader) => {}
                Some((leader, _, epoch)) => due.entry(leader).or_default().push((
                    name.clone(),
                    cursor.offset,
                    epoch,
                    cursor.high_watermark.is_none(),
                )),
                None => self.refresh_wanted = true,
            }
        }
        self.turn = self.turn.wrapping_add(1);
        // So that neither a node nor a partition is always last where there is little room.
        let mut due: Vec<_> = due.into_iter().collect();
        let first = self.turn.checked_rem(due.len()).unwrap_or(0);
        due.rotate_left(first);
        for (node, mut partitions) in due {
            let used = self.buffered_bytes + self.reserved.values().sum::<usize>();
            let room = self.config.prefetch_bytes.saturating_sub(used);
            // An idle consumer always asks, however small its cap is.
            if room < MIN_FETCH_BYTES && used > 0 {
                break;
            }
            let Some(link) = self.client.node_link(node) else {
                continue;
            };
            let max_bytes = self.config.max_bytes.min(room).max(1);
            let first = self.turn.checked_rem(partitions.len()).unwrap_or(0);
            partitions.rotate_left(first);
            // A node that has not told its high watermarks yet is to tell them at once: this may be the end already.
            let wait = if partitions.iter().any(|(.., unseen)| *unseen) {
                Duration::ZERO
            } else {
                self.config.max_wait
            };
            let request = fetch_request(&self.config, &partitions, max_bytes, wait);
            let timeout = wait + self.client.config().request_timeout;
            let asked: Vec<PartitionName> = partitions.into_iter().map(|(name, ..)| name).collect();
            for name in &asked {
                if let Some(cursor) = self.cursors.get_mut(name) {
                    cursor.state = State::Fetching;
                }
            }
            let open = self.lanes.get(&node).filter(|open| !open.lane.is_broken());
            // With a lane at hand the request leaves now, not when the future is first polled.
            let started = open
                .cloned()
                .map(|open| (start_fetch(&open, &request), open));
            self.reserved.insert(node, max_bytes);
            let (client, names) = (self.client.clone(), asked.clone());
            let fetch = async move {
                let (in_flight, open) = match started {
                    Some(started) => started,
                    None => {
                        let (lane, session) = link.open_lane().await?;
                        let open = OpenLane {
                            lane,
                            version: session.versions.pick::<FetchRequest>(&link.address)?,
                            address: link.address.clone(),
                        };
                        (start_fetch(&open, &request), open)
                    }
                };
                let patience = wait + SUSPECT_AFTER;
                let body = tokio::select! {
                    body = in_flight?.response(timeout) => body?,
                    departed = client.departed(node, &open.address, &names, patience) => return Err(departed),
                };
                let response = decode_response::<FetchRequest>(
                    body,
                    open.version,
                    &open.address,
                    FetchRequest::NAME,
                )?;
                Ok((open, response))
            };
            let fetched = fetch.map(move |result| Fetched {
                node,
                asked,
                result,
            });
            self.fetches.push(fetched.boxed());
        }
    }

    fn fetched(&mut self, fetched: Fetched) {
        let Fetched {
            node,
            asked,
            result,
        } = fetched;
        self.reserved.remove(&node);
        let now = Instant::now();
        let (open, response) = match result {
            Ok(fetched) => fetched,
            Err(error) => {
                self.lanes.remove(&node);
                for name in &asked {
                    if error.is_retriable() {
                        self.put_off(name, &error, now);
                    } else {
                        self.stop(name, error.clone());
                    }
                }
                return;
            }
        };
        self.lanes.insert(node, open);
        let mut answers = answers(response, self.config.isolation);
        for name in asked {
            let key = (name.topic.as_str().to_owned(), name.partition.to_wire());
            let Some(answer) = answers.remove(&key) else {
                // No node should, but asking again is safe.
                self.put_off(&name, &missing(node, &name), now);
                continue;
            };
            let Some(cursor) = self.cursors.get_mut(&name) else {
                continue;
            };
            match cursor.answered(answer, self.config.out_of_range) {
                Outcome::Records {
                    batches,
                    from,
                    bytes,
                    end,
                } => {
                    if !batches.is_empty() {
                        self.buffered_bytes += bytes;
                        self.buffer.push_back(Buffered::Records {
                            name: name.clone(),
                            batches: batches.into_iter(),
                            current: None,
                            from,
                            bytes,
                        });
                    }
                    if let Some(offset) = end {
                        self.buffer.push_back(Buffered::End { name, offset });
                    }
                }
                Outcome::Retry { code } => {
                    let error = ClientError::Refused {
                        what: format!("fetching {name} from node {node}"),
                        code,
                        message: None,
                    };
                    self.put_off(&name, &error, now);
                }
                Outcome::OutOfRange { offset } => {
                    let client = self.client.clone();
                    let lookup = async move {
                        let result = bounds(&client, &name).await;
                        Lookup::Bounds {
                            name,
                            offset,
                            result,
                        }
                    };
                    self.lookups.push(lookup.boxed());
                }
                Outcome::Failed(error) => self.buffer.push_back(Buffered::Failed(error)),
            }
        }
    }

    /// Tries a partition again later, after asking who leads it.
    fn put_off(&mut self, name: &PartitionName, error: &ClientError, now: Instant) {
        self.refresh_wanted = true;
        let random = self.client.random();
        let backoff = self.client.config().backoff;
        if let Some(cursor) = self.cursors.get_mut(name)
            && cursor.wait(&backoff, random, now) == 1
        {
            let source = std::error::Error::source(error).map(tracing::field::display);
            tracing::warn!(partition = %name, %error, source, "cannot fetch; trying again");
        }
    }

    fn stop(&mut self, name: &PartitionName, error: ClientError) {
        if let Some(cursor) = self.cursors.get_mut(name) {
            cursor.state = State::Failed;
        }
        self.buffer.push_back(Buffered::Failed(error));
    }

    fn start_refresh(&mut self, now: Instant) {
        if !self.refresh_wanted {
            if self.refreshing.is_empty() {
                self.refreshes = 0;
            }
            return;
        }
        if !self.refreshing.is_empty() || self.refresh_not_before.is_some_and(|t| now < t) {
            return;
        }
        let mut topics: Vec<TopicName> = self.cursors.keys().map(|n| n.topic.clone()).collect();
        topics.dedup();
        self.refreshes = self.refreshes.saturating_add(1);
        self.refresh_not_before = Some(now + self.client.wait_after(self.refreshes));
        let client = self.client.clone();
        let refresh = async move { client.refresh(&topics, false).await };
        self.refreshing.push(refresh.boxed());
    }

    fn refreshed(&mut self, result: RefreshResult) {
        let failed = match result {
            Ok((_, failed)) => failed,
            Err(error) => {
                tracing::warn!(%error, "cannot learn who leads; trying again");
                return;
            }
        };
        self.refresh_wanted = false;
        let now = Instant::now();
        let mut gone = Vec::new();
        for cursor in self.cursors.values_mut() {
            let topic = &cursor.name.topic;
            let unknown = failed.iter().any(|(failed, code)| {
                failed == topic && *code == ErrorCode::UnknownTopicOrPartition
            });
            if !unknown {
                cursor.unknown_since = None;
            } else if cursor.state != State::Failed {
                let since = *cursor.unknown_since.get_or_insert(now);
                if now.saturating_duration_since(since) >= UNKNOWN_TOPIC_PATIENCE {
                    gone.push(cursor.name.clone());
                }
            }
        }
        for name in gone {
            let topic = name.topic.clone();
            self.stop(&name, ClientError::UnknownTopic { topic });
        }
    }

    fn next_due(&self, now: Instant) -> Option<Instant> {
        let waiting = self
            .cursors
            .values()
            .filter_map(|cursor| match cursor.state {
                State::Waiting { until } => Some(until),
                _ => None,
            });
        let refresh = (self.refresh_wanted && self.refreshing.is_empty())
            .then_some(self.refresh_not_before)
            .flatten();
        // What was due by now and was not started waits for something that will come through one of the futures.
        waiting.chain(refresh).filter(|due| *due > now).min()
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn unreadable(name: &PartitionName, offset: i64, error: &dyn std::error::Error) -> ClientError {
    ClientError::Unreadable {
        topic: name.topic.clone(),
        partition: name.partition,
        offset,
        what: match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

fn missing(node: NodeId, name: &PartitionName) -> ClientError {
    ClientError::Malformed {
        address: format!("node {node}"),
        request: FetchRequest::NAME,
        what: format!("it says nothing of {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::lock;
    use crate::client::testing::FakeNode;
    use crate::record::{BatchBuilder, Compression};

    fn name(partition: u32) -> PartitionName {
        PartitionName::new(TopicName::new("t").unwrap(), PartitionIndex(partition))
    }

    /// `batches` batches of ten records; a record's value is its offset, its timestamp 1000 × its batch.
    fn fill(node: &FakeNode, partition: i32, batches: i64) {
        let mut state = lock(&node.state);
        for _ in 0..batches {
            let base = state.end(partition as usize);
            let mut builder = BatchBuilder::new();
            for i in 0..10 {
                let value = (base + i).to_string();
                builder
                    .append(None, Some(value.as_bytes()), &[], base * 100)
                    .unwrap();
            }
            let bytes = builder.seal(Compression::Lz4).unwrap().stamp(None);
            state
                .append(partition, &Batch::decode(&bytes).unwrap())
                .unwrap();
        }
    }

    /// Reads up to the end of `partitions` partitions. Returns the offsets of each, and the ends.
    async fn read(consumer: &mut Consumer, partitions: usize) -> BTreeMap<u32, (Vec<i64>, u64)> {
        let mut found: BTreeMap<u32, (Vec<i64>, u64)> = BTreeMap::new();
        let mut ends = 0;
        while ends < partitions {
            match consumer.next().await.unwrap() {
                Event::Record(record) => {
                    let value = String::from_utf8(record.record.value.unwrap().to_vec()).unwrap();
                    assert_eq!(value, record.record.offset.to_string());
                    let entry = found.entry(record.partition.0).or_default();
                    entry.0.push(record.record.offset);
                }
                Event::EndOfPartition {
                    partition, offset, ..
                } => {
                    found.entry(partition.0).or_default().1 = offset.get();
                    ends += 1;
                }
            }
        }
        found
    }

    #[tokio::test]
    async fn every_partition_is_read_in_order_to_its_end() {
        let node = FakeNode::start(3);
        fill(&node, 0, 20);
        fill(&node, 1, 3);
        let client = node.client().await;
        // Small sizes, so that it takes many requests and the prefetch cap is met.
        let mut consumer = client
            .consumer(ConsumerConfig {
                max_partition_bytes: 300,
                prefetch_bytes: 1000,
                ..ConsumerConfig::default()
            })
            .unwrap();
        let topic = TopicName::new("t").unwrap();
        consumer
            .assign_topic(&topic, Start::Beginning)
            .await
            .unwrap();
        let found = read(&mut consumer, 3).await;
        assert_eq!(found[&0], ((0..200).collect(), 200));
        assert_eq!(found[&1], ((0..30).collect(), 30));
        assert_eq!(found[&2], (vec![], 0));

        // More comes, and the end is told again.
        fill(&node, 2, 1);
        let found = read(&mut consumer, 1).await;
        assert_eq!(found[&2], ((0..10).collect(), 10));
    }

    #[tokio::test]
    async fn each_start_is_found() {
        let node = FakeNode::start(1);
        fill(&node, 0, 5);
        let client = node.client().await;
        for (start, first) in [
            ("beginning", 0),
            ("17", 17),
            ("-13", 37),
            ("-1000", 0),
            ("@2000", 20),
            ("@2001", 30),
            ("@99999999", 50),
            ("end", 50),
        ] {
            let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
            consumer
                .assign([(name(0), start.parse().unwrap())])
                .await
                .unwrap();
            let found = read(&mut consumer, 1).await;
            assert_eq!(found[&0], ((first..50).collect(), 50), "{start}");
        }
    }

    #[tokio::test]
    async fn out_of_range_names_the_bounds_or_follows_the_policy() {
        let node = FakeNode::start(1);
        fill(&node, 0, 5);
        lock(&node.state).log_start = 20;
        let client = node.client().await;
        for (policy, first) in [(OutOfRange::Earliest, 20), (OutOfRange::Latest, 50)] {
            let mut consumer = client
                .consumer(ConsumerConfig {
                    out_of_range: policy,
                    ..ConsumerConfig::default()
                })
                .unwrap();
            let start = "3".parse().unwrap();
            consumer.assign([(name(0), start)]).await.unwrap();
            let found = read(&mut consumer, 1).await;
            assert_eq!(found[&0].0, (first..50).collect::<Vec<_>>());
        }
        let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
        let start = "99".parse().unwrap();
        consumer.assign([(name(0), start)]).await.unwrap();
        let error = consumer.next().await.unwrap_err();
        match &error {
            ClientError::OffsetOutOfRange { start, end, .. } => {
                assert_eq!((start.get(), end.get()), (20, 50));
            }
            other => panic!("{other:?}"),
        }
        assert!(error.to_string().contains("99"), "{error}");
        assert!(matches!(consumer.next().await, Err(ClientError::Closed)));
    }

    #[tokio::test]
    async fn moved_leaders_and_unready_ones_are_asked_again() {
        let node = FakeNode::start(1);
        fill(&node, 0, 2);
        lock(&node.state).fetch_faults.extend([
            ErrorCode::NotLeaderOrFollower,
            ErrorCode::FencedLeaderEpoch,
            ErrorCode::UnknownLeaderEpoch,
            ErrorCode::OffsetNotAvailable,
        ]);
        let mut consumer = node
            .client()
            .await
            .consumer(ConsumerConfig::default())
            .unwrap();
        consumer
            .assign([(name(0), Start::Beginning)])
            .await
            .unwrap();
        let found = read(&mut consumer, 1).await;
        assert_eq!(found[&0], ((0..20).collect(), 20));
        assert!(lock(&node.state).fetch_faults.is_empty());
    }

    #[tokio::test]
    async fn a_topic_that_does_not_exist_cannot_be_assigned() {
        let node = FakeNode::start(1);
        let mut consumer = node
            .client()
            .await
            .consumer(ConsumerConfig::default())
            .unwrap();
        let missing = PartitionName::new(TopicName::new("nope").unwrap(), PartitionIndex(0));
        let error = consumer.assign([(missing, Start::End)]).await.unwrap_err();
        assert!(matches!(error, ClientError::UnknownTopic { .. }), "{error}");
        let error = consumer.assign([(name(7), Start::End)]).await.unwrap_err();
        assert!(matches!(error, ClientError::UnknownPartition { .. }));
    }
}
