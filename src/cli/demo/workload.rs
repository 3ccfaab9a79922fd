//! Records, and what becomes of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Delivery, Producer, ProducerConfig, ProducerRecord};
use crate::types::{PartitionIndex, TopicName};

/// Records are handed to the producer in portions, this often.
const TICK: Duration = Duration::from_millis(5);
/// After a time in which nothing could be sent, at most this much of it is made up for at once.
const MOST_ARREARS: Duration = Duration::from_secs(1);
/// How much may be in flight: enough to fill a loopback link, and not so much that with `--rate 0` the time in the
/// producer's own queue is what is measured.
const IN_FLIGHT_BYTES: usize = 4 << 20;
const LINGER: Duration = Duration::from_millis(1);
/// A record that is not acknowledged by then has failed.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// After a record was refused outright, before the next is tried.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);
/// Deliveries that wait to be counted, per partition. At the cap the feeder waits.
const MAX_UNCOUNTED: usize = 1 << 17;
/// Keys go round, so that every partition has its share.
const KEYS: u64 = 1000;
/// Failures whose reasons are told.
const MAX_REASONS: usize = 3;
/// Longer acknowledgement times are counted as this long, in µs.
const MAX_ACK_US: u64 = 600_000_000;

#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) topic: TopicName,
    /// Records a second; 0 for no limit.
    pub(super) rate: u64,
    pub(super) record_size: usize,
}

/// What has become of the records.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Handed over to the producer.
    pub(super) produced: u64,
    pub(super) acknowledged: u64,
    pub(super) failed: u64,
    /// From the hand-over of a record to its acknowledgement, in µs.
    pub(super) ack_us: Histogram<u64>,
    /// The longest time for which some partition had records on their way and acknowledged none.
    pub(super) longest_gap: Duration,
    pub(super) longest_gap_partition: Option<PartitionIndex>,
    /// Why records failed, the first few different ones.
    pub(super) reasons: Vec<String>,
}

/// What has happened since the last look.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) length: Duration,
    pub(super) acknowledged: u64,
    pub(super) ack_us: Histogram<u64>,
    /// Since the last acknowledgement of any partition, if there ever was one.
    pub(super) quiet: Option<Duration>,
    pub(super) total_acknowledged: u64,
    pub(super) total_failed: u64,
    pub(super) in_flight: u64,
}

struct Counts {
    total: Tally,
    window_us: Histogram<u64>,
    window_since: Instant,
    last_ack: Option<Instant>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Counts>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A producer at work.
pub(super) struct Workload {
    shared: Shared,
    stop: CancellationToken,
    abandon: CancellationToken,
    feeder: JoinHandle<()>,
}

impl Workload {
    pub(super) fn start(client: &Client, load: Load) -> anyhow::Result<Workload> {
        let producer = client.producer(ProducerConfig {
            linger: LINGER,
            max_in_flight_bytes: IN_FLIGHT_BYTES.max(4 * load.record_size),
            delivery_timeout: DELIVERY_TIMEOUT,
            create_topics: false,
            ..ProducerConfig::default()
        })?;
        let shared = Shared(Arc::new(Mutex::new(Counts {
            total: Tally {
                produced: 0,
                acknowledged: 0,
                failed: 0,
                ack_us: ack_histogram()?,
                longest_gap: Duration::ZERO,
                longest_gap_partition: None,
                reasons: Vec::new(),
            },
            window_us: ack_histogram()?,
            window_since: Instant::now(),
            last_ack: None,
        })));
        let stop = CancellationToken::new();
        let abandon = CancellationToken::new();
        let feeder = Feeder {
            producer,
            load,
            shared: shared.clone(),
            stop: stop.clone(),
            abandon: abandon.clone(),
            partitions: Vec::new(),
            counting: JoinSet::new(),
        };
        Ok(Workload {
            shared,
            stop,
            abandon,
            feeder: tokio::spawn(feeder.run()),
        })
    }

    /// What has happened since the last call.
    pub(super) fn window(&self) -> Window {
        let mut counts = self.shared.lock();
        let now = Instant::now();
        let window = Window {
            length: now - counts.window_since,
            acknowledged: counts.window_us.len(),
            ack_us: counts.window_us.clone(),
            quiet: counts.last_ack.map(|last| now - last),
            total_acknowledged: counts.total.acknowledged,
            total_failed: counts.total.failed,
            in_flight: counts
                .total
                .produced
                .saturating_sub(counts.total.acknowledged + counts.total.failed),
        };
        counts.window_us.reset();
        counts.window_since = now;
        window
    }

    /// Produces no more, and waits until every record is acknowledged or has failed; those that are neither within `wait`
    /// have failed.
    pub(super) async fn finish(mut self, wait: Duration) -> Tally {
        self.stop.cancel();
        if tokio::time::timeout(wait, &mut self.feeder).await.is_err() {
            self.abandon.cancel();
            // It ends now, and all it could fail with is a panic, which has been shown.
            let _ = (&mut self.feeder).await;
        }
        self.shared.lock().total.clone()
    }
}

/// Stops at once where the demo is torn down.
impl Drop for Workload {
    fn drop(&mut self) {
        self.feeder.abort();
    }
}

struct Feeder {
    producer: Producer,
    load: Load,
    shared: Shared,
    stop: CancellationToken,
    abandon: CancellationToken,
    /// By partition: where its deliveries are counted.
    partitions: Vec<Option<mpsc::Sender<(Delivery, Instant)>>>,
    counting: JoinSet<()>,
}

impl Feeder {
    async fn run(mut self) {
        self.feed().await;
        let Feeder {
            producer,
            abandon,
            partitions,
            mut counting,
            ..
        } = self;
        tokio::select! {
            biased;
            () = abandon.cancelled() => {}
            () = producer.close() => {}
        }
        // This fails what it still has.
        drop(producer);
        drop(partitions);
        while counting.join_next().await.is_some() {}
    }

    async fn feed(&mut self) {
        let start = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut number: u64 = 0;
        // Counts what was sent, and what never will be because it is in arrears.
        let mut passed: u64 = 0;
        loop {
            if self.stop.is_cancelled() {
                return;
            }
            if self.load.rate > 0 {
                tick.tick().await;
            }
            let due = match self.load.rate {
                0 => passed + 1,
                rate => per(rate, start.elapsed()),
            };
            let arrears = per(self.load.rate, MOST_ARREARS).max(1);
            passed = passed.max(due.saturating_sub(arrears));
            while passed < due && !self.stop.is_cancelled() {
                passed += 1;
                self.send(number).await;
                number += 1;
            }
        }
    }

    async fn send(&mut self, number: u64) {
        let mut record = ProducerRecord::new(
            self.load.topic.clone(),
            value(number, self.load.record_size),
        );
        record.key = Some(Bytes::from(format!("key-{}", number % KEYS)));
        let handed_over = Instant::now();
        let handing_over = tokio::select! {
            biased;
            // It has not been taken, and never will be.
            () = self.stop.cancelled() => return,
            taken = self.producer.send(record) => taken,
        };
        // From here on nothing may break this off, or a record would be lost to the count.
        match handing_over {
            Ok(delivery) => {
                self.shared.lock().total.produced += 1;
                let counter = self.counter(delivery.partition());
                let counted = tokio::select! {
                    biased;
                    counted = counter.send((delivery, handed_over)) => counted.is_ok(),
                    () = self.abandon.cancelled() => false,
                };
                if !counted {
                    self.shared.lock().total.failed += 1;
                }
            }
            Err(error) => {
                {
                    let mut counts = self.shared.lock();
                    counts.total.produced += 1;
                    counts.total.fail(&error);
                }
                tokio::time::sleep(AFTER_REFUSAL).await;
            }
        }
    }

    /// Each partition's deliveries are waited for in a task of their own, so that one that stands still does not make the
    /// others look late.
    fn counter(&mut self, partition: PartitionIndex) -> mpsc::Sender<(Delivery, Instant)> {
        let index = partition.0 as usize;
        if self.partitions.len() <= index {
            self.partitions.resize(index + 1, None);
        }
        let shared = self.shared.clone();
        let counting = &mut self.counting;
        self.partitions[index]
            .get_or_insert_with(|| {
                let (sender, deliveries) = mpsc::channel(MAX_UNCOUNTED);
                counting.spawn(count(deliveries, partition, shared));
                sender
            })
            .clone()
    }
}

/// Waits for the deliveries of one partition, which come in order.
async fn count(
    mut deliveries: mpsc::Receiver<(Delivery, Instant)>,
    partition: PartitionIndex,
    shared: Shared,
) {
    let mut last_ack: Option<Instant> = None;
    while let Some((delivery, handed_over)) = deliveries.recv().await {
        let outcome = delivery.await;
        let now = Instant::now();
        let mut counts = shared.lock();
        match outcome {
            Ok(_) => {
                let took = micros(now - handed_over).min(MAX_ACK_US);
                counts.window_us.saturating_record(took);
                counts.total.ack_us.saturating_record(took);
                counts.total.acknowledged += 1;
                counts.last_ack = Some(now);
                let waiting_since = last_ack.map_or(handed_over, |last| last.max(handed_over));
                let gap = now - waiting_since;
                if gap > counts.total.longest_gap {
                    counts.total.longest_gap = gap;
                    counts.total.longest_gap_partition = Some(partition);
                }
                last_ack = Some(now);
            }
            Err(error) => counts.total.fail(&error.cause),
        }
    }
}

impl Tally {
    fn fail(&mut self, error: &dyn std::error::Error) {
        self.failed += 1;
        if self.reasons.len() == MAX_REASONS {
            return;
        }
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
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

fn ack_histogram() -> anyhow::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, MAX_ACK_US, 3).context("cannot count acknowledgement times")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// How many of `rate` a second fall into `time`.
fn per(rate: u64, time: Duration) -> u64 {
    let count = u128::from(rate) * time.as_micros() / 1_000_000;
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Text that says which record it is, filled up to `size` bytes.
fn value(number: u64, size: usize) -> Bytes {
    const FILLER: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut value = format!("demo record {number} ").into_bytes();
    value.truncate(size);
    let filler = FILLER.iter().copied().cycle();
    value.extend(filler.take(size - value.len()));
    Bytes::from(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_its_size_and_says_its_number() {
        assert_eq!(value(7, 1024).len(), 1024);
        assert!(value(7, 1024).starts_with(b"demo record 7 a"));
        assert_eq!(value(7, 4), Bytes::from_static(b"demo"));
    }

    #[test]
    fn a_rate_is_kept_over_parts_of_a_second() {
        assert_eq!(per(2000, Duration::from_millis(5)), 10);
        assert_eq!(per(3, Duration::from_millis(999)), 2);
        assert_eq!(per(u64::MAX, Duration::from_secs(10)), u64::MAX);
    }

    #[test]
    fn reasons_are_told_once_each() {
        let shared = ack_histogram().unwrap();
        let mut tally = Tally {
            produced: 0,
            acknowledged: 0,
            failed: 0,
            ack_us: shared,
            longest_gap: Duration::ZERO,
            longest_gap_partition: None,
            reasons: Vec::new(),
        };
        for n in 0..10 {
            tally.fail(&std::io::Error::other(format!("reason {}", n / 5)));
        }
        assert_eq!(tally.failed, 10);
        assert_eq!(tally.reasons, ["reason 0", "reason 1"]);
    }
}
