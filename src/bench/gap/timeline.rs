//! When records were acknowledged, and what that says: gaps, percentiles, the first acknowledgement after a heal. No clock: the
//! caller says when it is.
//!
//! ```text
//!  warm-up │ before │ during          │ after
//!          └ enter  └ the fault       └ the heal
//! ```

use std::time::Duration;

use hdrhistogram::CreationError;

use crate::bench::records::Tally;
use crate::bench::{Series, Times};

/// What a run is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    WarmUp,
    /// Nothing is broken yet.
    Before,
    /// From the moment of the fault.
    During,
    /// From the moment of the heal.
    After,
}

/// The acknowledgements of one run. Times are those since any fixed moment, and never go back from call to call.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// When each phase began, in their order; the first began with the run.
    began: [Option<Duration>; 4],
    before: Times,
    during: Times,
    series: Series,
    last_ack: Option<Duration>,
    longest_gap_before: Duration,
    longest_gap: Duration,
    /// When that one was over.
    longest_gap_ended: Option<Duration>,
    first_ack_after_heal: Option<Duration>,
    acknowledged: u64,
}

impl Timeline {
    pub fn new() -> Result<Timeline, CreationError> {
        Ok(Timeline {
            began: [Some(Duration::ZERO), None, None, None],
            before: Times::new()?,
            during: Times::new()?,
            series: Series::default(),
            last_ack: None,
            longest_gap_before: Duration::ZERO,
            longest_gap: Duration::ZERO,
            longest_gap_ended: None,
            first_ack_after_heal: None,
            acknowledged: 0,
        })
    }

    pub fn enter(&mut self, phase: Phase, now: Duration) {
        self.began[phase as usize] = Some(now);
    }

    fn began(&self, phase: Phase) -> Option<Duration> {
        self.began[phase as usize]
    }

    /// A record that was handed over at `from` is acknowledged.
    pub fn acknowledge(&mut self, from: Duration, now: Duration) {
        self.acknowledged += 1;
        let gap = now.saturating_sub(self.last_ack.unwrap_or(from));
        self.note_gap(gap, now);
        self.last_ack = Some(now);
        let is_after = self.began(Phase::After).is_some();
        if is_after && self.first_ack_after_heal.is_none() {
            self.first_ack_after_heal = Some(now);
        }
        // A record that was on its way at the fault or handed over in its course suffered it, whenever its end came; one that
        // was handed over in the warm-up counts nowhere.
        let took = now.saturating_sub(from);
        self.series.record(now, took);
        let handed_over_in_time = self.began(Phase::After).is_none_or(|heal| from < heal);
        if self.began(Phase::During).is_some() {
            if handed_over_in_time {
                self.during.record(took);
            }
        } else if self.began(Phase::Before).is_some_and(|began| from >= began) {
            self.before.record(took);
        }
    }

    /// A gap belongs to the phase in which it ends. One that a fault begins in the middle of counts whole.
    fn note_gap(&mut self, gap: Duration, now: Duration) {
        if self.began(Phase::During).is_some() {
            if gap > self.longest_gap {
                self.longest_gap = gap;
                self.longest_gap_ended = Some(now);
            }
        } else if self.began(Phase::Before).is_some() {
            self.longest_gap_before = self.longest_gap_before.max(gap);
        }
    }

    /// Records are no longer produced, at `now`. Where that is long after the last acknowledgement, this was a gap as well.
    /// Must not be called while acknowledgements are merely on their way.
    pub fn end(&mut self, now: Duration) {
        if let Some(last) = self.last_ack {
            self.note_gap(now.saturating_sub(last), now);
        }
    }

    /// Every acknowledgement since the run began.
    pub fn series(&self) -> &Series {
        &self.series
    }

    /// When a phase began, since the run did.
    pub fn began_at(&self, phase: Phase) -> Option<Duration> {
        self.began(phase)
    }

    /// The times of the records before the fault and during it, as [`Times::distribution`] gives them.
    pub fn distributions(&self) -> [Vec<(f64, f64)>; 2] {
        [self.before.distribution(), self.during.distribution()]
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The longest time between two acknowledgements that follow each other, from the fault to the end of the run.
    pub fn longest_gap(&self) -> Duration {
        self.longest_gap
    }

    /// From the fault to the end of that gap. `None` where nothing was acknowledged after the fault.
    pub fn longest_gap_at(&self) -> Option<Duration> {
        let ended = self.longest_gap_ended?;
        Some(ended.saturating_sub(self.began(Phase::During)?))
    }

    /// The longest gap before the fault, of as long as that was.
    pub fn longest_gap_before(&self) -> Duration {
        self.longest_gap_before
    }

    /// From the heal to the first acknowledgement after it. `None` without the one or the other.
    pub fn first_ack_after_heal(&self) -> Option<Duration> {
        let first = self.first_ack_after_heal?;
        Some(first.saturating_sub(self.began(Phase::After)?))
    }

    /// Of the records that were handed over and acknowledged before the fault; `None` if there was none.
    pub fn quantile_before(&self, quantile: f64) -> Option<Duration> {
        self.before.quantile(quantile)
    }

    /// Of the records that were on their way at some time between the fault and the heal.
    pub fn quantile_during(&self, quantile: f64) -> Option<Duration> {
        self.during.quantile(quantile)
    }
}

impl Tally for Timeline {
    fn acknowledged(&mut self, from: Duration, now: Duration) {
        self.acknowledge(from, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// One record after the other, each handed over when the one before is acknowledged.
    fn produce(timeline: &mut Timeline, acknowledged: &[u64]) {
        for pair in acknowledged.windows(2) {
            timeline.acknowledge(ms(pair[0]), ms(pair[1]));
        }
    }

    #[test]
    fn the_longest_gap_is_between_two_acknowledgements_that_follow_each_other() {
        let mut timeline = Timeline::new().unwrap();
        timeline.enter(Phase::Before, ms(0));
        produce(&mut timeline, &[0, 10, 20, 50]);
        timeline.enter(Phase::During, ms(55));
        produce(&mut timeline, &[50, 95, 100, 110]);
        assert_eq!(timeline.longest_gap_before(), ms(30));
        // It began 5 ms before the fault.
        assert_eq!(timeline.longest_gap(), ms(45));
        assert_eq!(timeline.longest_gap_at(), Some(ms(40)));
        assert_eq!(timeline.acknowledged(), 6);
    }

    #[test]
    fn a_silence_up_to_the_end_is_a_gap() {
        let mut timeline = Timeline::new().unwrap();
        timeline.enter(Phase::During, ms(0));
        produce(&mut timeline, &[0, 10, 20]);
        timeline.end(ms(25));
        assert_eq!(timeline.longest_gap(), ms(10));
        timeline.end(ms(920));
        assert_eq!(timeline.longest_gap(), ms(900));
        assert_eq!(timeline.longest_gap_at(), Some(ms(920)));
    }

    #[test]
    fn records_under_way_at_the_fault_count_as_its_own() {
        let mut timeline = Timeline::new().unwrap();
        produce(&mut timeline, &[0, 500]);
        timeline.enter(Phase::Before, ms(1000));
        // Handed over in the warm-up.
        timeline.acknowledge(ms(990), ms(1400));
        timeline.acknowledge(ms(1100), ms(1102));
        timeline.enter(Phase::During, ms(2000));
        timeline.acknowledge(ms(1999), ms(7100));
        timeline.enter(Phase::After, ms(7000));
        timeline.acknowledge(ms(6999), ms(7102));
        timeline.acknowledge(ms(7001), ms(9999));
        assert_eq!(timeline.quantile_before(0.99), Some(ms(2)));
        let during = timeline.quantile_during(1.0).unwrap();
        assert!(during >= ms(5101) && during < ms(5110), "{during:?}");
        assert_eq!(timeline.during.count(), 2);
    }

    #[test]
    fn the_first_acknowledgement_after_the_heal_is_measured_from_it() {
        let mut timeline = Timeline::new().unwrap();
        timeline.enter(Phase::During, ms(0));
        produce(&mut timeline, &[0, 1]);
        assert_eq!(timeline.first_ack_after_heal(), None);
        timeline.enter(Phase::After, ms(1000));
        assert_eq!(timeline.first_ack_after_heal(), None);
        produce(&mut timeline, &[1, 1180, 1400]);
        assert_eq!(timeline.first_ack_after_heal(), Some(ms(180)));
    }

    #[test]
    fn percentiles_are_those_of_all_records() {
        let mut timeline = Timeline::new().unwrap();
        timeline.enter(Phase::Before, ms(0));
        for i in 0..1000 {
            timeline.acknowledge(ms(10 * i), ms(11 * i + 1 - i));
        }
        assert_eq!(timeline.quantile_before(0.5), Some(ms(1)));
        assert_eq!(timeline.quantile_during(0.5), None);
        let mut timeline = Timeline::new().unwrap();
        timeline.enter(Phase::Before, ms(0));
        for i in 1..=100 {
            timeline.acknowledge(ms(100), ms(100 + i));
        }
        let close = |found: Option<Duration>, expected: u64| {
            let found = found.unwrap().as_secs_f64() * 1e3;
            (found / expected as f64 - 1.0).abs() < 0.002
        };
        assert!(close(timeline.quantile_before(0.5), 50));
        assert!(close(timeline.quantile_before(0.99), 99));
    }
}
