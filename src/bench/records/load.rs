//! The load: so many records on their way at any time, of which each makes room for the next when it is acknowledged; or records at
//! a rate of their own, whose times run from when they were meant to be sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::ledger::{Filler, Numbers, value};
use super::pacer::Pacer;
use crate::bench::BenchError;
use crate::client::{Client, Producer, ProducerConfig, ProducerRecord};
use crate::types::TopicName;

/// After a record was refused, before its place is taken by another.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);
/// Failures whose reasons are told.
const MAX_REASONS: usize = 3;

/// Who hears of acknowledgements.
pub trait Tally: Send + 'static {
    /// A record that was handed over, or meant to be, at `from` is acknowledged. Times are those since the load began, and `now`
    /// never goes back.
    fn acknowledged(&mut self, from: Duration, now: Duration);

    /// A record that was meant to be sent at `from` was not yet sent when its load ended, at `until`. Told at the end, and only of
    /// loads with a rate of their own.
    fn missed(&mut self, _from: Duration, _until: Duration) {}
}

/// What is produced to where.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub producer: ProducerConfig,
    pub topic: TopicName,
    /// In each record.
    pub mark: u64,
}

/// What every worker of a run works with.
pub struct Load<T: Tally> {
    shared: Arc<Shared<T>>,
    stop: CancellationToken,
    workers: JoinSet<()>,
    /// Of the measured groups with a rate of their own, each with what ends it.
    pacers: Vec<(Arc<Pacer>, CancellationToken)>,
}

struct Shared<T> {
    /// One a client; the workers take turns.
    producers: Vec<Producer>,
    topic: TopicName,
    mark: u64,
    begun: Instant,
    next: AtomicU64,
    state: Mutex<State<T>>,
}

struct State<T> {
    tally: T,
    acknowledged: Numbers,
    /// Of the values of acknowledged records.
    acknowledged_bytes: u64,
    handed_over: u64,
    failed: u64,
    reasons: Vec<String>,
}

/// What became of the records.
#[derive(Debug)]
pub struct Produced<T> {
    pub tally: T,
    pub acknowledged: Numbers,
    pub records: u64,
    pub unacknowledged: u64,
    pub reasons: Vec<String>,
}

/// When the next record is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// As soon as there is room for it.
    AsRoomAllows,
    /// The same, but no more than so many records a second.
    AtMost(u32),
    /// So many records a second, whatever becomes of those before. A record that finds no room is late, and its time runs from
    /// when it was due.
    Every(u64),
}

/// How a group of workers produces.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// The most records on their way at any time.
    pub in_flight: usize,
    pub record_size: usize,
    pub filler: Filler,
    pub arrivals: Arrivals,
    /// Whether the tally hears of its acknowledgements.
    pub is_measured: bool,
}

impl<T: Tally> Load<T> {
    /// With a producer of each of these clients, one at least. Nothing is produced before [`Load::add`].
    pub fn new<'a>(
        clients: impl IntoIterator<Item = &'a Client>,
        options: LoadOptions,
        tally: T,
    ) -> Result<Load<T>, BenchError> {
        let producers = clients
            .into_iter()
            .map(|client| client.producer(options.producer.clone()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(BenchError::client("make a producer"))?;
        let state = State {
            tally,
            acknowledged: Numbers::default(),
            acknowledged_bytes: 0,
            handed_over: 0,
            failed: 0,
            reasons: Vec::new(),
        };
        let shared = Shared {
            producers,
            topic: options.topic,
            mark: options.mark,
            begun: Instant::now(),
            next: AtomicU64::new(0),
            state: Mutex::new(state),
        };
        Ok(Load {
            shared: Arc::new(shared),
            stop: CancellationToken::new(),
            workers: JoinSet::new(),
            pacers: Vec::new(),
        })
    }

    /// Begins to produce. The token ends this group, and so does the end of the whole load.
    pub fn add(&mut self, pattern: Pattern) -> Result<CancellationToken, BenchError> {
        let stop = self.stop.child_token();
        let pacer = match pattern.arrivals {
            Arrivals::Every(rate) => {
                let pacer = Pacer::start(rate, stop.clone());
                let pacer = pacer.map_err(|source| BenchError::Io {
                    what: "cannot start a thread".to_owned(),
                    source,
                })?;
                if pattern.is_measured {
                    self.pacers.push((Arc::clone(&pacer), stop.clone()));
                }
                Some(pacer)
            }
            Arrivals::AsRoomAllows | Arrivals::AtMost(_) => None,
        };
        for worker in 0..pattern.in_flight {
            let shared = self.shared.clone();
            self.workers
                .spawn(work(shared, pattern, worker, pacer.clone(), stop.clone()));
        }
        Ok(stop)
    }

    /// Looks at the tally, or changes it, at the time since the load began.
    pub fn tally<R>(&self, look: impl FnOnce(&mut T, Duration) -> R) -> R {
        let mut state = self.shared.lock();
        let now = self.shared.begun.elapsed();
        look(&mut state.tally, now)
    }

    /// When the times began that the tally hears.
    pub fn begun(&self) -> Instant {
        self.shared.begun
    }

    /// Of the values of all acknowledged records.
    pub fn acknowledged_bytes(&self) -> u64 {
        self.shared.lock().acknowledged_bytes
    }

    /// How many records failed so far, and were acknowledged.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (state.failed, state.acknowledged.count())
    }

    /// Produces no more, and waits for what is on its way, which is given up after the producer's time for deliveries. The tally
    /// hears of what was due and not sent.
    pub async fn finish(self) -> Produced<T>
    where
        T: Clone,
    {
        let Load {
            shared,
            stop,
            mut workers,
            mut pacers,
        } = self;
        // A group that was ended before has nothing due any more.
        pacers.retain(|(_, stop)| !stop.is_cancelled());
        let until = Instant::now();
        stop.cancel();
        while workers.join_next().await.is_some() {}
        let mut state = shared.lock();
        for due in pacers.iter().flat_map(|(pacer, _)| pacer.left(until)) {
            let (from, until) = (due - shared.begun, until - shared.begun);
            state.tally.missed(from, until);
        }
        Produced {
            tally: state.tally.clone(),
            acknowledged: std::mem::take(&mut state.acknowledged),
            records: state.handed_over,
            unacknowledged: state.failed,
            reasons: std::mem::take(&mut state.reasons),
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
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
async fn work<T: Tally>(
    shared: Arc<Shared<T>>,
    pattern: Pattern,
    worker: usize,
    pacer: Option<Arc<Pacer>>,
    stop: CancellationToken,
) {
    let mut pace = match pattern.arrivals {
        Arrivals::AtMost(rate) => Some(interval(rate, pattern.in_flight, worker)),
        Arrivals::AsRoomAllows | Arrivals::Every(_) => None,
    };
    loop {
        let due = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            due = async {
                match (&mut pace, &pacer) {
                    (Some(pace), _) => {
                        pace.tick().await;
                        None
                    }
                    (None, Some(pacer)) => Some(pacer.next().await),
                    (None, None) => None,
                }
            } => due,
        };
        let from = due.unwrap_or_else(Instant::now) - shared.begun;
        if !produce(&shared, pattern, worker, from).await {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AFTER_REFUSAL) => {}
            }
        }
    }
}

/// The pace of one of so many workers, who take turns.
fn interval(rate: u32, workers: usize, worker: usize) -> tokio::time::Interval {
    let every = Duration::from_secs(1) * workers as u32 / rate.max(1);
    let first = Instant::now() + every * worker as u32 / workers as u32;
    let mut pace = tokio::time::interval_at(first, every.max(Duration::from_micros(1)));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

/// One record, to its end. Returns whether it was acknowledged.
async fn produce<T: Tally>(
    shared: &Shared<T>,
    pattern: Pattern,
    worker: usize,
    from: Duration,
) -> bool {
    let number = shared.next.fetch_add(1, Ordering::Relaxed);
    let stamp = u64::try_from(from.as_micros()).unwrap_or(u64::MAX);
    let size = pattern.record_size;
    let value = value(shared.mark, number, stamp, size, pattern.filler);
    let record = ProducerRecord::new(shared.topic.clone(), value);
    let producer = &shared.producers[worker % shared.producers.len()];
    let outcome = match producer.send(record).await {
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
            state.acknowledged_bytes += size as u64;
            if pattern.is_measured {
                state.tally.acknowledged(from, now);
            }
            true
        }
        Err(error) => {
            state.fail(error.as_ref());
            false
        }
    }
}
