//! How long things took in the course of time: so much of it that it can be drawn, however long it lasts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A series begins with steps of this length.
const FIRST_STEP: Duration = Duration::from_millis(50);
/// The most steps. When more are needed, two become one.
const MAX_STEPS: usize = 1200;

/// Times in steps of the same length, since any fixed moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    step_ms: f64,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Step {
    count: u64,
    sum_ms: f64,
    max_ms: f64,
}

/// What ended within one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The middle of the step, in s.
    pub at_s: f64,
    pub mean_ms: f64,
    pub max_ms: f64,
    /// How many a second.
    pub rate: f64,
}

impl Default for Series {
    fn default() -> Series {
        Series {
            step_ms: FIRST_STEP.as_secs_f64() * 1e3,
            steps: Vec::new(),
        }
    }
}

impl Series {
    /// Something that took so long has ended `at` this time.
    pub fn record(&mut self, at: Duration, took: Duration) {
        let at_ms = at.as_secs_f64() * 1e3;
        while at_ms >= self.step_ms * MAX_STEPS as f64 {
            self.join_steps();
        }
        // Below the cap, so it fits.
        let index = (at_ms / self.step_ms) as usize;
        if index >= self.steps.len() {
            self.steps.resize(index + 1, Step::default());
        }
        let step = &mut self.steps[index];
        let took_ms = took.as_secs_f64() * 1e3;
        step.count += 1;
        step.sum_ms += took_ms;
        step.max_ms = step.max_ms.max(took_ms);
    }

    fn join_steps(&mut self) {
        self.step_ms *= 2.0;
        let pairs = self.steps.chunks(2).map(|pair| Step {
            count: pair.iter().map(|step| step.count).sum(),
            sum_ms: pair.iter().map(|step| step.sum_ms).sum(),
            max_ms: pair.iter().fold(0.0, |max, step| step.max_ms.max(max)),
        });
        self.steps = pairs.collect();
    }

    /// Every step; `None` for one in which nothing ended.
    pub fn points(&self) -> impl Iterator<Item = Option<Point>> {
        (0u32..).zip(&self.steps).map(|(index, step)| {
            (step.count > 0).then(|| Point {
                at_s: (f64::from(index) + 0.5) * self.step_ms / 1e3,
                mean_ms: step.sum_ms / step.count as f64,
                max_ms: step.max_ms,
                rate: step.count as f64 / (self.step_ms / 1e3),
            })
        })
    }

    /// How long it is, in s.
    pub fn length_s(&self) -> f64 {
        self.steps.len() as f64 * self.step_ms / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn each_step_has_the_mean_and_the_longest_of_what_ended_in_it() {
        let mut series = Series::default();
        series.record(ms(10), ms(4));
        series.record(ms(49), ms(8));
        series.record(ms(151), ms(1));
        let points: Vec<_> = series.points().collect();
        assert_eq!(points.len(), 4);
        let first = Point {
            at_s: 0.025,
            mean_ms: 6.0,
            max_ms: 8.0,
            rate: 40.0,
        };
        assert_eq!(points[0], Some(first));
        assert_eq!((points[1], points[2]), (None, None), "nothing ended");
        assert_eq!(points[3].unwrap().mean_ms, 1.0);
    }

    #[test]
    fn a_long_series_has_longer_steps_and_loses_nothing() {
        let mut series = Series::default();
        for second in 0..3600 {
            series.record(Duration::from_secs(second), ms(second));
        }
        assert!(series.steps.len() <= MAX_STEPS);
        let counted: u64 = series.steps.iter().map(|step| step.count).sum();
        assert_eq!(counted, 3600);
        let longest = series.points().flatten().map(|point| point.max_ms);
        assert_eq!(longest.fold(0.0, f64::max), 3599.0);
        assert!(
            series
                .points()
                .flatten()
                .all(|p| (p.mean_ms / 1e3 - p.at_s).abs() < 4.0)
        );
    }
}
