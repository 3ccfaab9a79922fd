//! The times of the records of a run. No clock: the caller says when it is.
//!
//! ```text
//!  warm-up │ measured │ what is still on its way
//!          └ begin    └ end
//! ```

use std::time::Duration;

use hdrhistogram::CreationError;

use crate::bench::records::Tally;
use crate::bench::{Series, Times};

#[derive(Clone, Debug)]
pub(super) struct Latencies {
    began: Option<Duration>,
    ended: Option<Duration>,
    times: Times,
    series: Series,
    /// Acknowledged between begin and end, whenever they were sent: what the throughput is made of.
    in_time: u64,
    /// For how long those had waited at the end that were due between begin and end and were never sent.
    missed: Times,
}

impl Latencies {
    pub(super) fn new() -> Result<Latencies, CreationError> {
        Ok(Latencies {
            began: None,
            ended: None,
            times: Times::new()?,
            series: Series::default(),
            in_time: 0,
            missed: Times::new()?,
        })
    }

    pub(super) fn begin(&mut self, now: Duration) {
        self.began = Some(now);
    }

    pub(super) fn end(&mut self, now: Duration) {
        self.ended = Some(now);
    }

    /// Records that came between begin and end.
    pub(super) fn in_time(&self) -> u64 {
        self.in_time
    }

    /// From begin to end; `None` before that.
    pub(super) fn window(&self) -> Option<Duration> {
        Some(self.ended?.saturating_sub(self.began?))
    }

    /// Of the records that were sent, or meant to be, between begin and end, whenever their acknowledgements came. Of those that
    /// were never sent, the time that they had waited: theirs would have been longer, and without them those times would be left
    /// out that are the longest.
    pub(super) fn times(&self) -> &Times {
        &self.times
    }

    /// How many were due between begin and end and never sent.
    pub(super) fn missed_count(&self) -> u64 {
        self.missed.count()
    }

    /// What another tally heard of records that were never sent counts here too, where they never came either.
    pub(super) fn miss(&mut self, other: &Latencies) {
        self.times.add(&other.missed);
        self.missed.add(&other.missed);
    }

    /// Those that were acknowledged, by when they were, since the beginning.
    pub(super) fn series(&self) -> &Series {
        &self.series
    }
}

impl Tally for Latencies {
    fn acknowledged(&mut self, from: Duration, now: Duration) {
        let Some(began) = self.began else {
            return;
        };
        let ended = self.ended.unwrap_or(Duration::MAX);
        if (began..ended).contains(&now) {
            self.in_time += 1;
        }
        if (began..ended).contains(&from) {
            let took = now.saturating_sub(from);
            self.times.record(took);
            self.series.record(now.saturating_sub(began), took);
        }
    }

    fn missed(&mut self, from: Duration, until: Duration) {
        let ended = self.ended.unwrap_or(Duration::MAX);
        if self
            .began
            .is_some_and(|began| (began..ended).contains(&from))
        {
            let waited = until.saturating_sub(from);
            self.times.record(waited);
            self.missed.record(waited);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_what_was_sent_while_it_was_measured_counts_and_all_of_that() {
        let mut latencies = Latencies::new().unwrap();
        latencies.acknowledged(ms(0), ms(10));
        latencies.begin(ms(100));
        // Sent in the warm-up: it came in time, and took longer than what is measured.
        latencies.acknowledged(ms(20), ms(110));
        latencies.acknowledged(ms(110), ms(120));
        latencies.end(ms(200));
        // The slowest of all came after the end.
        latencies.acknowledged(ms(199), ms(900));
        latencies.acknowledged(ms(201), ms(902));
        assert_eq!(latencies.in_time(), 2);
        assert_eq!(latencies.window(), Some(ms(100)));
        assert_eq!(latencies.times().count(), 2);
        let slowest = latencies.times().quantile(1.0).unwrap();
        assert!((700..702).contains(&slowest.as_millis()), "{slowest:?}");
        assert_eq!(latencies.series().points().flatten().count(), 2);
    }

    #[test]
    fn what_was_due_and_never_sent_counts_with_the_time_that_it_had_waited() {
        let mut latencies = Latencies::new().unwrap();
        latencies.missed(ms(10), ms(20));
        latencies.begin(ms(100));
        latencies.end(ms(200));
        latencies.acknowledged(ms(110), ms(120));
        // Due in the warm-up, while it was measured, and afterwards.
        for due in [99, 100, 150, 199, 200] {
            latencies.missed(ms(due), ms(1000));
        }
        assert_eq!(latencies.missed_count(), 3);
        assert_eq!(latencies.times().count(), 4);
        let median = latencies.times().quantile(0.5).unwrap();
        // Of three digits.
        assert!((799..=801).contains(&median.as_millis()), "{median:?}");
        assert_eq!(latencies.in_time(), 1, "they never came");
        let mut at_the_consumer = Latencies::new().unwrap();
        at_the_consumer.miss(&latencies);
        assert_eq!(at_the_consumer.missed_count(), 3);
        assert_eq!(at_the_consumer.times().count(), 3);
    }
}
