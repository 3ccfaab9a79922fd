//! The load: so many records on their way at any time, each acknowledged by all before the next takes its place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::GapError;
use super::ledger::{Numbers, value};
use super::timeline::{Phase, Timeline};
use crate::client::{Client, Producer, ProducerConfig, ProducerRecord};
use crate::types::TopicName;

/// A record that is not acknowledged by then has failed: longer than any scenario's fault.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(180);
/// After a record was refused, before its place is taken by another.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);
/// Failures whose reasons are told.
const MAX_REASONS: usize = 3;

/// What every worker of a run works with.
pub(super) struct Load {
    shared: Arc<Shared>,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

struct Shared {
    producer: Producer,
    topic: TopicName,
    mark: u64,
    begun: Instant,
    next: AtomicU64,
    state: Mutex<State>,
}

struct State {
    timeline: Timeline,
    acknowledged: Numbers,
    /// Of the values of acknowledged records.
    acknowledged_bytes: u64,
    handed_over: u64,
    failed: u64,
    reasons: Vec<String>,
}

/// What became of the records.
pub(super) struct Produced {
    pub(super) timeline: Timeline,
    pub(super) acknowledged: Numbers,
    pub(super) records: u64,
    pub(super) unacknowledged: u64,
    pub(super) reasons: Vec<String>,
}

/// How a group of workers produces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    pub(super) in_flight: usize,
    pub(super) record_size: usize,
    /// Records a second that all of them together do not exceed.
    pub(super) pace: Option<u32>,
    /// Whether its acknowledgements are the run's timeline.
    pub(super) is_measured: bool,
}

impl Load {
    /// Nothing is produced before [`Load::add`]. `mark` is in each record.
    pub(super) fn new(client: &Client, topic: TopicName, mark: u64) -> Result<Load, GapError> {
        let producer = client
            .producer(ProducerConfig {
                // Batches form behind the five that may be on their way. Waiting for more would measure the wait.
                linger: Duration::ZERO,
                delivery_timeout: DELIVERY_TIMEOUT,
                create_topics: false,
                ..ProducerConfig::default()
            })
            .map_err(|source| GapError::Client {
                doing: "make a producer",
                source: Box::new(source),
            })?;
        let state = State {
            timeline: Timeline::new().map_err(|error| GapError::Failed(error.to_string()))?,
            acknowledged: Numbers::default(),
            acknowledged_bytes: 0,
            handed_over: 0,
            failed: 0,
            reasons: Vec::new(),
        };
        let shared = Shared {
            producer,
            topic,
            mark,
            begun: Instant::now(),
            next: AtomicU64::new(0),
            state: Mutex::new(state),
        };
        Ok(Load {
            shared: Arc::new(shared),
            stop: CancellationToken::new(),
            workers: JoinSet::new(),
        })
    }

    /// Begins to produce. The token ends this group, and so does the end of the whole load.
    pub(super) fn add(&mut self, pattern: Pattern) -> CancellationToken {
        let stop = self.stop.child_token();
        for worker in 0..pattern.in_flight {
            let shared = self.shared.clone();
            self.workers
                .spawn(work(shared, pattern, worker, stop.clone()));
        }
        stop
    }

    /// From now on, acknowledgements belong to this phase.
    pub(super) fn enter(&self, phase: Phase) {
        let mut state = self.shared.lock();
        let now = self.shared.begun.elapsed();
        state.timeline.enter(phase, now);
    }

    /// Of the values of all acknowledged records.
    pub(super) fn acknowledged_bytes(&self) -> u64 {
        self.shared.lock().acknowledged_bytes
    }

    pub(super) fn first_ack_after_heal(&self) -> Option<Duration> {
        self.shared.lock().timeline.first_ack_after_heal()
    }

    /// Produces no more, and waits for what is on its way, which is given up after [`DELIVERY_TIMEOUT`].
    pub(super) async fn finish(mut self) -> Produced {
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        let mut state = self.shared.lock();
        let timeline = state.timeline.clone();
        Produced {
            timeline,
            acknowledged: std::mem::take(&mut state.acknowledged),
            records: state.handed_over,
            unacknowledged: state.failed,
            reasons: std::mem::take(&mut state.reasons),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail(&mut self, error: &dyn std::error::Error) {
        self.failed += 1;
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !reason.contains(&text) {
                reason.push_str(": ");
                reason.push_str(&text);
            }
            cause = error.source();
        }
        if self.reasons.len() < MAX_REASONS && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

/// One place among those in flight.
async fn work(shared: Arc<Shared>, pattern: Pattern, worker: usize, stop: CancellationToken) {
    let mut pace = pattern.pace.map(|rate| {
        let every = Duration::from_secs(1) * pattern.in_flight as u32 / rate.max(1);
        // The workers take turns.
        let first = Instant::now() + every * worker as u32 / pattern.in_flight as u32;
        let mut pace = tokio::time::interval_at(first, every.max(Duration::from_micros(1)));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    loop {
        if let Some(pace) = &mut pace {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = pace.tick() => {}
            }
        }
        if stop.is_cancelled() {
            return;
        }
        if !produce(&shared, pattern).await {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AFTER_REFUSAL) => {}
            }
        }
    }
}

/// One record, to its end. Returns whether it was acknowledged.
async fn produce(shared: &Shared, pattern: Pattern) -> bool {
    let number = shared.next.fetch_add(1, Ordering::Relaxed);
    let value = value(shared.mark, number, pattern.record_size);
    let record = ProducerRecord::new(shared.topic.clone(), value);
    let from = shared.begun.elapsed();
    let outcome = match shared.producer.send(record).await {
        Ok(delivery) => delivery.await.map_err(|error| Box::new(error) as Box<_>),
        Err(error) => Err(Box::new(error) as Box<dyn std::error::Error + Send + Sync>),
    };
    let mut state = shared.lock();
    state.handed_over += 1;
    // Within the lock, so that times do not go back.
    let now = shared.begun.elapsed();
    match outcome {
        Ok(_) => {
            state.acknowledged.insert(number);
            state.acknowledged_bytes += pattern.record_size as u64;
            if pattern.is_measured {
                state.timeline.acknowledge(from, now);
            }
            true
        }
        Err(error) => {
            state.fail(error.as_ref());
            false
        }
    }
}
