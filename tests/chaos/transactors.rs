//! Who produces in transactions while it goes on, by Kafka's protocol, and who reads what is committed.
//!
//! A step of a transaction is tried again for as long as its answer says so or none comes. Where that takes too long, or
//! somebody else has ended the transaction, its producer begins anew with its transactional id. Each time it draws whether it
//! speaks `transaction.version` 2: then each of its transactions has an epoch, and the brokers add partitions and groups.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiVersionsRequest, EndTxnRequest,
    FetchRequest, FindCoordinatorRequest, GroupId, InitProducerIdRequest, OffsetFetchRequest,
    ProducerId, TransactionalId, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::{Request, StrBytes};
use quorate::record::ProducerStamp;
use tokio_util::sync::CancellationToken;

use super::clients::Shared;
use super::ledger::{Log, Outcome};
use super::schedule::Random;
use crate::support::kafka::{FETCH_VERSION, Kafka, PRODUCE_VERSION, name};
use crate::support::transactions::{
    ADD_VERSION, END_VERSION, FEATURES_VERSION, FIND_VERSION, GROUP_KEY, INIT_VERSION,
    NEWER_END_VERSION, NEWER_OFFSETS_VERSION, NEWER_PRODUCE_VERSION, TRANSACTION_KEY,
    produce_request, take, transaction_level,
};

/// What they write to. Beside it, groups count offsets of the topic of all others.
pub const LEDGER: &str = "ledger";
pub const LEDGER_PARTITIONS: u32 = 3;
/// Transactions that nobody ends are aborted after this.
const TRANSACTION_TIMEOUT_MS: i32 = 6_000;
/// One answer may take this long; a node that is frozen gives none.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A step that is not done by then is given up, with its transaction.
const STEP_WITHIN: Duration = Duration::from_secs(20);
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// Between two transactions of a producer.
const PACE: Duration = Duration::from_millis(20);

/// A coordinator or leader that moves, loads, or is busy with the last transaction; offsets that are not stable.
const RETRIABLE: [i16; 13] = [3, 5, 6, 7, 13, 14, 15, 16, 19, 20, 51, 55, 88];
/// Of them, those after which another node is asked.
const ELSEWHERE: [i16; 7] = [3, 5, 6, 13, 14, 15, 16];
/// What a producer is told whose transaction somebody else has ended: its epoch is over, or its transaction is.
const ENDED: [i16; 3] = [47, 48, 90];

const OFFSETS_VERSION: i16 = 3;
const OFFSET_FETCH_VERSION: i16 = 7;

/// Why something was not done.
#[derive(Debug)]
pub enum Undone {
    /// This answer does not change by asking again. `first`: and it came to the first attempt.
    Refused {
        code: i16,
        first: bool,
    },
    TimeUp(String),
}

impl fmt::Display for Undone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undone::Refused { code, .. } => write!(f, "refused with code {code}"),
            Undone::TimeUp(last) => write!(f, "not done in time; last: {last}"),
        }
    }
}

/// Whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Leader(u32),
    Transaction(String),
    Group(String),
}

/// Connections to the nodes, and what is thought of who leads and coordinates what.
pub struct Reach {
    nodes: Vec<(i32, SocketAddr)>,
    connections: BTreeMap<SocketAddr, Kafka>,
    thought: BTreeMap<Place, SocketAddr>,
    turn: usize,
}

impl Reach {
    /// `nodes` by their numbers, with the addresses where they speak plain Kafka.
    pub fn new(nodes: Vec<(i32, SocketAddr)>) -> Reach {
        Reach {
            nodes,
            connections: BTreeMap::new(),
            thought: BTreeMap::new(),
            turn: 0,
        }
    }

    async fn ask<R: Request>(
        &mut self,
        to: SocketAddr,
        request: &R,
        version: i16,
    ) -> Result<R::Response, String> {
        // Taken out, so that one that failed or was given up is not used again.
        let known = self.connections.remove(&to);
        let asked = async {
            let mut kafka = match known {
                Some(kafka) => kafka,
                None => Kafka::try_connect(to).await?,
            };
            let response = kafka.try_call(request, version).await?;
            Ok::<_, std::io::Error>((kafka, response))
        };
        let (kafka, response) = tokio::time::timeout(ANSWER_WITHIN, asked)
            .await
            .map_err(|_| format!("{to} does not answer"))?
            .map_err(|error| format!("{to}: {error}"))?;
        self.connections.insert(to, kafka);
        Ok(response)
    }

    fn any(&mut self) -> SocketAddr {
        self.turn += 1;
        self.nodes[self.turn % self.nodes.len()].1
    }

    async fn find(&mut self, place: &Place) -> Result<SocketAddr, String> {
        if let Some(known) = self.thought.get(place) {
            return Ok(*known);
        }
        let any = self.any();
        let (key, kind) = match place {
            // Whoever does not lead says so.
            Place::Leader(_) => {
                self.thought.insert(place.clone(), any);
                return Ok(any);
            }
            Place::Transaction(id) => (id, TRANSACTION_KEY),
            Place::Group(group) => (group, GROUP_KEY),
        };
        let request = FindCoordinatorRequest::default()
            .with_key_type(kind)
            .with_coordinator_keys(vec![StrBytes::from_string(key.clone())]);
        let found = self.ask(any, &request, FIND_VERSION).await?;
        let found = found.coordinators.first().ok_or("no coordinator named")?;
        let node = self.nodes.iter().find(|(id, _)| *id == found.node_id.0);
        match (found.error_code, node) {
            (0, Some((_, address))) => {
                self.thought.insert(place.clone(), *address);
                Ok(*address)
            }
            (code, _) => Err(format!("no coordinator: error {code}")),
        }
    }

    /// Asks until the answer is one to keep. `code` finds its error code.
    async fn until_answered<R: Request>(
        &mut self,
        place: Place,
        request: &R,
        version: i16,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response, Undone> {
        let begin = Instant::now();
        let mut attempts = 0;
        loop {
            let asked = match self.find(&place).await {
                Ok(address) => {
                    attempts += 1;
                    self.ask(address, request, version).await
                }
                Err(error) => Err(error),
            };
            let last = match asked {
                Ok(response) => match code(&response) {
                    0 => return Ok(response),
                    code if RETRIABLE.contains(&code) => {
                        if ELSEWHERE.contains(&code) {
                            self.thought.remove(&place);
                        }
                        format!("error {code}")
                    }
                    code => {
                        let first = attempts == 1;
                        return Err(Undone::Refused { code, first });
                    }
                },
                Err(error) => {
                    self.thought.remove(&place);
                    error
                }
            };
            if begin.elapsed() > STEP_WITHIN {
                return Err(Undone::TimeUp(last));
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }
}

/// What a producer of transactions is for.
#[derive(Clone, Debug)]
pub enum Task {
    /// Writes to several partitions, commits and aborts, and sometimes forgets a transaction, or dies and comes back.
    Write,
    /// Carries over what a group has not read yet: writes it, and commits the group's offset, in one transaction.
    Carry { group: String, topic: String },
}

/// A producer with its transactional id.
pub struct Transactor {
    producer: u32,
    task: Task,
    reach: Reach,
    random: Random,
    shared: Arc<Shared>,
    id: i64,
    epoch: i16,
    newer: bool,
    sequences: BTreeMap<u32, i32>,
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

impl Transactor {
    pub fn new(
        producer: u32,
        task: Task,
        reach: Reach,
        seed: u64,
        shared: Arc<Shared>,
    ) -> Transactor {
        Transactor {
            producer,
            task,
            reach,
            random: Random::new(seed ^ u64::from(producer)),
            shared,
            id: -1,
            epoch: -1,
            newer: false,
            sequences: BTreeMap::new(),
        }
    }

    fn name(&self) -> String {
        format!("transactor-{}", self.producer)
    }

    fn transactional_id(&self) -> TransactionalId {
        TransactionalId(StrBytes::from_string(self.name()))
    }

    fn coordinator(&self) -> Place {
        Place::Transaction(self.name())
    }

    /// One transaction after another until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = false;
        while !stop.is_cancelled() {
            pace.tick().await;
            if !known && let Err(error) = self.begin_anew().await {
                self.complain("cannot begin", &error);
                continue;
            }
            known = match self.transaction().await {
                Ok(goes_on) => goes_on,
                Err(error) => {
                    self.complain("lost a transaction", &error);
                    false
                }
            };
        }
    }

    fn complain(&self, what: &str, error: &Undone) {
        let who = format!("{} {what}", self.name());
        self.shared.journal.error(&who, &error.to_string());
    }

    async fn begin_anew(&mut self) -> Result<(), Undone> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(self.transactional_id()))
            .with_transaction_timeout_ms(TRANSACTION_TIMEOUT_MS);
        let place = self.coordinator();
        let given = self
            .reach
            .until_answered(place, &request, INIT_VERSION, |given| given.error_code)
            .await?;
        self.id = given.producer_id.0;
        self.epoch = given.producer_epoch;
        self.sequences.clear();
        self.newer = self.random.below(2) == 0 && self.may_be_newer().await;
        Ok(())
    }

    /// Whether a node says that clients may speak `transaction.version` 2.
    async fn may_be_newer(&mut self) -> bool {
        let any = self.reach.any();
        let request = ApiVersionsRequest::default();
        let asked = self.reach.ask(any, &request, FEATURES_VERSION).await;
        asked.is_ok_and(|answer| transaction_level(&answer) >= Some(2))
    }

    fn in_version(&self, older: i16, newer: i16) -> i16 {
        match self.newer {
            true => newer,
            false => older,
        }
    }

    /// One transaction. Returns whether the next may follow without beginning anew.
    async fn transaction(&mut self) -> Result<bool, Undone> {
        let number = self.shared.ledger().begin(self.producer);
        match self.task.clone() {
            Task::Write => {
                let count = 1 + self.random.below(u64::from(LEDGER_PARTITIONS)) as u32;
                let first = self.random.below(u64::from(LEDGER_PARTITIONS)) as u32;
                let partitions: Vec<u32> = (first..first + count)
                    .map(|partition| partition % LEDGER_PARTITIONS)
                    .collect();
                self.add(&partitions).await?;
                for _ in 0..1 + self.random.below(2) {
                    for partition in &partitions {
                        let count = 1 + self.random.below(4);
                        let sources = vec![None; count as usize];
                        self.write(number, *partition, &sources).await?;
                    }
                }
            }
            Task::Carry { group, topic } => {
                let from = self.position(&group, &topic).await?;
                let end = from + 1 + self.random.below(4);
                let partitions: Vec<u32> = (0..LEDGER_PARTITIONS).collect();
                self.add(&partitions).await?;
                self.add_group(&group).await?;
                for source in from..end {
                    let partition = source % u64::from(LEDGER_PARTITIONS);
                    self.write(number, partition as u32, &[Some(source)])
                        .await?;
                }
                self.commit_offset(&group, &topic, end).await?;
            }
        }
        match self.random.below(20) {
            0..4 => self.end(number, false).await,
            // As if it had died: another with its name fences it, and its transaction is aborted.
            4 => Ok(false),
            // Nobody ends it before its time is over.
            5 if self.random.below(4) == 0 => {
                let over = Duration::from_millis(TRANSACTION_TIMEOUT_MS as u64);
                tokio::time::sleep(over + over / 2).await;
                self.end(number, true).await
            }
            // As if it had died while it asked: nobody is told what came of it.
            6..8 => {
                let patience = Duration::from_millis(self.random.below(20));
                let asked = tokio::time::timeout(patience, self.end(number, true)).await;
                asked.unwrap_or(Ok(false))
            }
            _ => self.end(number, true).await,
        }
    }

    async fn add(&mut self, partitions: &[u32]) -> Result<(), Undone> {
        if self.newer {
            return Ok(());
        }
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(self.transactional_id())
            .with_v3_and_below_producer_id(ProducerId(self.id))
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(vec![
                AddPartitionsToTxnTopic::default()
                    .with_name(name(LEDGER))
                    .with_partitions(partitions.iter().map(|index| *index as i32).collect()),
            ]);
        let place = self.coordinator();
        self.reach
            .until_answered(place, &request, ADD_VERSION, |added| {
                let topics = added.results_by_topic_v3_and_below.iter();
                let codes = topics
                    .flat_map(|topic| &topic.results_by_partition)
                    .map(|result| result.partition_error_code);
                codes.into_iter().find(|code| *code != 0).unwrap_or(0)
            })
            .await?;
        Ok(())
    }

    async fn write(
        &mut self,
        number: u64,
        partition: u32,
        sources: &[Option<u64>],
    ) -> Result<(), Undone> {
        let sequence = self.sequences.get(&partition).copied().unwrap_or_default();
        let values: Vec<String> = sources
            .iter()
            .map(|source| {
                let mut ledger = self.shared.ledger();
                let entry = ledger.add(self.producer, number, partition, *source);
                entry.to_string()
            })
            .collect();
        let stamp = ProducerStamp {
            id: quorate::types::ProducerId::new(self.id).unwrap(),
            epoch: self.epoch,
            base_sequence: sequence,
        };
        let to = (LEDGER, partition as i32);
        let request = produce_request(self.transactional_id(), stamp, to, &values, 3_000);
        let place = Place::Leader(partition);
        let version = self.in_version(PRODUCE_VERSION, NEWER_PRODUCE_VERSION);
        self.reach
            .until_answered(place, &request, version, |written| {
                written.responses[0].partition_responses[0].error_code
            })
            .await?;
        let next = sequence + sources.len() as i32;
        self.sequences.insert(partition, next);
        Ok(())
    }

    async fn add_group(&mut self, group: &str) -> Result<(), Undone> {
        if self.newer {
            return Ok(());
        }
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(self.transactional_id())
            .with_producer_id(ProducerId(self.id))
            .with_producer_epoch(self.epoch)
            .with_group_id(GroupId(text(group)));
        let place = self.coordinator();
        self.reach
            .until_answered(place, &request, OFFSETS_VERSION, |added| added.error_code)
            .await?;
        Ok(())
    }

    async fn commit_offset(&mut self, group: &str, topic: &str, at: u64) -> Result<(), Undone> {
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(self.transactional_id())
            .with_group_id(GroupId(text(group)))
            .with_producer_id(ProducerId(self.id))
            .with_producer_epoch(self.epoch)
            .with_generation_id(-1)
            .with_topics(vec![
                TxnOffsetCommitRequestTopic::default()
                    .with_name(name(topic))
                    .with_partitions(vec![
                        TxnOffsetCommitRequestPartition::default()
                            .with_committed_offset(at as i64)
                            .with_committed_leader_epoch(-1),
                    ]),
            ]);
        let place = Place::Group(group.to_owned());
        let version = self.in_version(OFFSETS_VERSION, NEWER_OFFSETS_VERSION);
        self.reach
            .until_answered(place, &request, version, |committed| {
                committed.topics[0].partitions[0].error_code
            })
            .await?;
        Ok(())
    }

    async fn position(&mut self, group: &str, topic: &str) -> Result<u64, Undone> {
        position(&mut self.reach, group, topic).await
    }

    /// Returns whether the next transaction may follow. What is known of this one's outcome goes into the ledger.
    async fn end(&mut self, number: u64, commit: bool) -> Result<bool, Undone> {
        let settle = |outcome| self.shared.ledger().settle(self.producer, number, outcome);
        if commit {
            settle(Outcome::Asked);
        }
        let request = EndTxnRequest::default()
            .with_transactional_id(self.transactional_id())
            .with_producer_id(ProducerId(self.id))
            .with_producer_epoch(self.epoch)
            .with_committed(commit);
        let place = self.coordinator();
        let version = self.in_version(END_VERSION, NEWER_END_VERSION);
        let ended = self
            .reach
            .until_answered(place, &request, version, |ended| ended.error_code)
            .await;
        if let (Ok(ended), true) = (&ended, self.newer) {
            (self.id, self.epoch) = (ended.producer_id.0, ended.producer_epoch);
            self.sequences.clear();
        }
        let settle = |outcome| self.shared.ledger().settle(self.producer, number, outcome);
        match ended {
            Ok(_) if commit => settle(Outcome::Committed),
            Ok(_) => settle(Outcome::Aborted),
            // Nothing that was asked before can have ended it.
            Err(Undone::Refused { code, first: true }) if ENDED.contains(&code) => {
                settle(Outcome::Aborted);
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

/// Where a group stands in the first partition of a topic, once no transaction may change that.
pub async fn position(reach: &mut Reach, group: &str, topic: &str) -> Result<u64, Undone> {
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_require_stable(true)
        .with_topics(Some(vec![
            OffsetFetchRequestTopic::default()
                .with_name(name(topic))
                .with_partition_indexes(vec![0]),
        ]));
    let place = Place::Group(group.to_owned());
    let found = reach
        .until_answered(place, &request, OFFSET_FETCH_VERSION, |found| {
            let partition = found.topics.first().and_then(|own| own.partitions.first());
            match found.error_code {
                0 => partition.map_or(0, |partition| partition.error_code),
                code => code,
            }
        })
        .await?;
    let partition = found.topics.first().and_then(|own| own.partitions.first());
    let at = partition.map_or(-1, |partition| partition.committed_offset);
    // One that never committed stands before the first.
    Ok(u64::try_from(at).unwrap_or(0))
}

/// What a fetch of committed records brought.
struct Fetched {
    values: Vec<(i64, String)>,
    next: i64,
    stable: i64,
    watermark: i64,
}

async fn fetch(reach: &mut Reach, partition: u32, from: i64) -> Result<Fetched, Undone> {
    let request = FetchRequest::default()
        .with_max_wait_ms(100)
        .with_min_bytes(1)
        .with_max_bytes(8 << 20)
        .with_session_epoch(-1)
        .with_isolation_level(1)
        .with_topics(vec![
            FetchTopic::default()
                .with_topic(name(LEDGER))
                .with_partitions(vec![
                    FetchPartition::default()
                        .with_partition(partition as i32)
                        .with_current_leader_epoch(-1)
                        .with_fetch_offset(from)
                        .with_partition_max_bytes(64 << 10),
                ]),
        ]);
    let response = reach
        .until_answered(
            Place::Leader(partition),
            &request,
            FETCH_VERSION,
            |fetched| match fetched.error_code {
                0 => fetched.responses[0].partitions[0].error_code,
                code => code,
            },
        )
        .await?;
    let answer = &response.responses[0].partitions[0];
    let aborted = answer.aborted_transactions.iter().flatten();
    let aborted = aborted.map(|aborted| (aborted.first_offset, aborted.producer_id.0));
    let mut values = Vec::new();
    let records: Bytes = answer.records.clone().unwrap_or_default();
    let next = take(records, from, aborted.collect(), &mut values);
    Ok(Fetched {
        values,
        next,
        stable: answer.last_stable_offset,
        watermark: answer.high_watermark,
    })
}

/// Reads what is committed in all partitions, from the beginning, until it is stopped.
pub async fn read_committed(
    mut reach: Reach,
    reader: u32,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut from = vec![0; LEDGER_PARTITIONS as usize];
    while !stop.is_cancelled() {
        for (partition, from) in (0..).zip(&mut from) {
            let fetched = match fetch(&mut reach, partition, *from).await {
                Ok(fetched) => fetched,
                Err(error) => {
                    let who = format!("committed reader {reader}");
                    shared.journal.error(&who, &error.to_string());
                    continue;
                }
            };
            let mut ledger = shared.ledger();
            ledger.told(reader, partition, fetched.stable, fetched.watermark);
            for (offset, value) in &fetched.values {
                // A leader that does not know where its log is committed to may show what it knows of the past.
                let stable = (fetched.stable >= 0).then_some(fetched.stable);
                ledger.read(reader, partition, stable, *offset, value);
            }
            ledger.at(reader, partition, fetched.next);
            *from = fetched.next;
        }
    }
}

/// All committed records of a partition, and where it ends; an error where something in it is not ended yet.
pub async fn read_whole(reach: &mut Reach, partition: u32) -> Result<(Log, i64), String> {
    let mut log = Vec::new();
    let mut from = 0;
    loop {
        let fetched = fetch(reach, partition, from).await;
        let fetched = fetched.map_err(|error| error.to_string())?;
        if fetched.stable < 0 || fetched.stable != fetched.watermark {
            return Err(format!(
                "{partition} is stable to {} of {}",
                fetched.stable, fetched.watermark
            ));
        }
        log.extend(fetched.values);
        if fetched.next == from {
            return Ok((log, fetched.watermark));
        }
        from = fetched.next;
    }
}
