//! Who produces and who consumes while it goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quorate::client::{
    Acks, Client, ClientError, Consumer, ConsumerConfig, Delivery, Event, OffsetQuery,
    PartitionName, ProducerConfig, ProducerRecord, Start,
};
use quorate::record::Compression;
use quorate::types::{Offset, PartitionIndex, TopicName};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::history::{History, Id, Kind, Promise};
use super::journal::Journal;
use super::ledger::Ledger;
use super::schedule::Random;
use crate::support::chain;

/// Records of one producer that are neither acknowledged nor failed, at most.
const OUTSTANDING: usize = 4096;
/// How far back a reader who begins anew goes at most, in records.
const REREAD: u64 = 5_000;
/// Between two questions where the logs end.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What all tasks of a run share.
pub struct Shared {
    pub topic: TopicName,
    pub partitions: u32,
    pub journal: Journal,
    pub produced: AtomicU64,
    pub acknowledged: AtomicU64,
    pub failed: AtomicU64,
    history: Mutex<History>,
    ledger: Mutex<Ledger>,
}

impl Shared {
    pub fn new(topic: TopicName, partitions: u32) -> Shared {
        Shared {
            topic,
            partitions,
            journal: Journal::new(),
            produced: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            history: Mutex::new(History::new()),
            ledger: Mutex::new(Ledger::new()),
        }
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn names(&self) -> Vec<PartitionName> {
        (0..self.partitions)
            .map(|index| PartitionName::new(self.topic.clone(), PartitionIndex(index)))
            .collect()
    }
}

/// One producer.
#[derive(Clone, Copy, Debug)]
pub struct ProducerSpec {
    pub id: u32,
    pub promise: Promise,
    pub compression: Compression,
    /// Between two records.
    pub pace: Duration,
}

/// Produces to all partitions in turn until it is stopped, and waits for what is outstanding then.
pub async fn produce(
    client: Client,
    spec: ProducerSpec,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let acks = match spec.promise {
        Promise::All => Acks::All,
        Promise::Leader => Acks::Leader,
    };
    let producer = client
        .producer(ProducerConfig {
            acks,
            compression: spec.compression,
            ..ProducerConfig::default()
        })
        .unwrap();
    shared.history().add_producer(spec.id, spec.promise);
    let (hand_over, deliveries) = mpsc::channel(OUTSTANDING);
    let collecting = tokio::spawn(collect(spec, deliveries, shared.clone()));
    let mut pace = tokio::time::interval(spec.pace);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut turn = spec.id;
    while !stop.is_cancelled() {
        pace.tick().await;
        turn = (turn + 1) % shared.partitions;
        let id = shared.history().sent(spec.id, turn);
        shared.produced.fetch_add(1, Ordering::Relaxed);
        let record = ProducerRecord {
            partition: Some(PartitionIndex(turn)),
            ..ProducerRecord::new(shared.topic.clone(), id.value())
        };
        match producer.send(record).await {
            Ok(delivery) => hand_over.send((id, delivery)).await.unwrap(),
            Err(error) => {
                shared.history().failed(id, false);
                shared.failed.fetch_add(1, Ordering::Relaxed);
                let who = format!("producer {} cannot send", spec.id);
                shared.journal.error(&who, &chain(&error));
            }
        }
    }
    producer.flush().await;
    drop(hand_over);
    collecting.await.unwrap();
    producer.close().await;
}

async fn collect(
    spec: ProducerSpec,
    mut deliveries: mpsc::Receiver<(Id, Delivery)>,
    shared: Arc<Shared>,
) {
    let mut outstanding = FuturesUnordered::new();
    let mut open = true;
    while open || !outstanding.is_empty() {
        tokio::select! {
            delivery = deliveries.recv(), if open && outstanding.len() < OUTSTANDING => match delivery {
                Some((id, delivery)) => outstanding.push(async move { (id, delivery.await) }),
                None => open = false,
            },
            Some((id, delivered)) = outstanding.next() => match delivered {
                Ok(delivered) => {
                    shared.history().acknowledged(id, delivered.offset.map(Offset::get));
                    shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                    if spec.promise == Promise::All {
                        shared.journal.acknowledged(id.partition);
                    }
                }
                Err(error) => {
                    shared.history().failed(id, error.may_be_stored);
                    shared.failed.fetch_add(1, Ordering::Relaxed);
                    let who = format!("producer {} ({:?}) failed", spec.id, spec.promise);
                    shared.journal.error(&who, &chain(&error));
                }
            },
        }
    }
}

/// How a consumer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// From the beginning, for ever on.
    Steady,
    /// Begins anew at random places, again and again.
    Again { seed: u64 },
}

/// Reads all partitions until it is stopped.
pub async fn consume(
    client: Client,
    reader: u32,
    reading: Reading,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut random = Random::new(match reading {
        Reading::Steady => 0,
        Reading::Again { seed } => seed,
    });
    let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
    let mut begin_anew = true;
    loop {
        if begin_anew
            && let Err(error) = assign(&mut consumer, reader, reading, &mut random, &shared).await
        {
            let who = format!("reader {reader} cannot begin");
            shared.journal.error(&who, &chain(&error));
            tokio::time::sleep(ASK_AGAIN).await;
            continue;
        }
        begin_anew = false;
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = consumer.next() => event,
        };
        match event {
            Ok(Event::Record(record)) => {
                let offset = u64::try_from(record.record.offset).unwrap();
                let value = record.record.value.as_deref().unwrap_or_default();
                let mut history = shared.history();
                history.read(reader, record.partition.0, offset, value);
            }
            Ok(Event::EndOfPartition {
                partition, offset, ..
            }) => {
                let mut history = shared.history();
                // The end is told of a position at or above the watermark. One who has jumped to where others have read may be
                // above that of a leader that was deposed and does not know it yet: that says nothing of the watermark.
                let has_read = history.position(reader, partition.0) == offset.get();
                if reading == Reading::Steady || has_read {
                    history.told(reader, partition.0, offset.get());
                }
                drop(history);
                begin_anew = reading != Reading::Steady && random.below(20) == 0;
            }
            Err(error) => {
                // It has read up to there, and nothing is deleted. (What others have read may be news to a leader that was
                // deposed and does not know it yet, so those who jump may be told so.)
                let out_of_range = matches!(error, ClientError::OffsetOutOfRange { .. });
                if out_of_range && reading == Reading::Steady {
                    let what = format!("reader {reader}: {}", chain(&error));
                    shared.history().report(Kind::WentBack, what);
                }
                shared
                    .journal
                    .error(&format!("reader {reader}"), &chain(&error));
                begin_anew = true;
            }
        }
    }
}

async fn assign(
    consumer: &mut Consumer,
    reader: u32,
    reading: Reading,
    random: &mut Random,
    shared: &Shared,
) -> Result<(), ClientError> {
    let names = shared.names();
    let mut starts = Vec::new();
    for name in names {
        let mut history = shared.history();
        let index = name.partition.0;
        let from = match reading {
            // Where it was, after an error.
            Reading::Steady => history.position(reader, index),
            Reading::Again { .. } => {
                let end = history.end_seen(index);
                end - random.below(end.min(REREAD) + 1)
            }
        };
        history.begins(reader, index);
        starts.push((name, Start::Offset(Offset::new(from).unwrap())));
    }
    consumer.assign(starts).await
}

/// Asks where the partitions end, again and again.
pub async fn ask_for_ends(
    client: Client,
    observer: u32,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let queries: Vec<_> = shared
        .names()
        .into_iter()
        .map(|name| (name, OffsetQuery::Latest))
        .collect();
    while !stop.is_cancelled() {
        match client.offsets(&queries).await {
            Ok(ends) => {
                let mut history = shared.history();
                for (name, end) in ends {
                    if let Some(end) = end {
                        history.told(observer, name.partition.0, end.get());
                    }
                }
            }
            Err(error) => {
                let who = format!("observer {observer}");
                shared.journal.error(&who, &chain(&error));
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
