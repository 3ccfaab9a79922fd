//! For how long nobody gets an acknowledgement when something breaks: `quorate bench gap`.
//!
//! Each run starts a cluster of its own, produces to one partition at `acks=all`, breaks something, mends it, and reads
//! everything back.
//!
//! - [`scenario`]: what is broken, and what should come of it
//! - [`play`]: one run
//! - [`stage`]: its cluster, and what can be done to it
//! - [`gate`]: addresses that change
//! - [`timeline`]: when records were acknowledged
//! - [`meter`]: what the nodes counted
//! - [`figures`], [`report`]: what came of it

mod figures;
mod gate;
mod meter;
mod play;
mod report;
mod scenario;
mod stage;
mod timeline;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

pub use figures::{Figures, Spread, Summary};
pub use report::{markdown, text};
pub use scenario::{Fault, SCENARIOS, Scenario};
pub use timeline::{Phase, Timeline};

use super::local::Place;
use super::records::VALUE_HEADER_BYTES;
use super::report::{Curve, Kind, Machine, Mark, Sample, fingerprint};
use super::{BenchError, Series};

/// The most records that can be in flight.
pub const MAX_IN_FLIGHT: usize = 10_000;
/// Values are between these sizes: a record says which one it is, and a batch of it must stay under the default of
/// `max.message.bytes`.
pub const RECORD_BYTES: std::ops::RangeInclusive<usize> = VALUE_HEADER_BYTES..=1_000_000;
/// What a producer holds by default, which would limit what is in flight in another way.
const MOST_IN_FLIGHT_BYTES: usize = 16 << 20;
/// Shorter long scenarios show nothing.
const SHORTEST_DURATION: Duration = Duration::from_secs(5);
const MAX_CATCH_UP_BYTES: u64 = 1 << 40;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Settings {
    pub scenarios: Vec<&'static Scenario>,
    /// Of each scenario.
    pub runs: u32,
    /// How long the faults of long scenarios last; each its own time unless it is said.
    pub duration: Option<Duration>,
    pub in_flight: usize,
    /// Bytes of a record's value.
    pub record_size: usize,
    /// Of the records' values, in `follower-catch-up`.
    pub catch_up_bytes: u64,
    /// Of the first run of a scenario; each further run has the next one.
    pub seed: u64,
    /// Where each run has its folder; a temporary place unless it is said.
    pub dir: Option<PathBuf>,
    /// Whether the runs' folders stay.
    pub keep: bool,
    /// How long a cluster may take to serve.
    pub within: Duration,
}

/// Who hears how it goes.
pub trait Witness {
    /// What is being done now.
    fn progress(&mut self, line: &str);
    /// Something to be kept in mind.
    fn note(&mut self, line: &str);
    /// A run has ended. An error ends the whole.
    fn finished(&mut self, run: &Run) -> io::Result<()>;
}

/// One run with what can be drawn of it.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub figures: Figures,
    /// Times to the acknowledgement, in ms, with the share of all that took no longer.
    pub times_before: Vec<(f64, f64)>,
    pub times_during: Vec<(f64, f64)>,
    /// Times to the acknowledgement, by when it came, since the load began.
    pub series: Series,
    /// When it happened, on the same clock.
    pub fault: Option<Duration>,
    /// `None` where nothing was mended.
    pub heal: Option<Duration>,
}

impl Run {
    /// As a report keeps it.
    pub fn sample(&self, settings: &Settings) -> io::Result<Sample> {
        let name = self.figures.scenario;
        let curves = [
            ("before", &self.times_before),
            ("during", &self.times_during),
        ];
        let marks = [("fault", self.fault), ("heal", self.heal)];
        Ok(Sample {
            kind: Kind::Gap,
            settings: settings.fingerprint(name),
            name: name.to_owned(),
            run: self.figures.run,
            figures: serde_json::to_value(&self.figures)?,
            curves: curves
                .map(|(name, points)| Curve {
                    name: name.to_owned(),
                    points: points.clone(),
                })
                .into(),
            series: self.series.clone(),
            marks: marks
                .into_iter()
                .filter_map(|(name, at)| {
                    Some(Mark {
                        name: name.to_owned(),
                        at_s: at?.as_secs_f64(),
                    })
                })
                .collect(),
            machine: Machine::this(),
            ended: OffsetDateTime::now_utc().unix_timestamp(),
        })
    }
}

/// Refuses a load that no producer can have under way.
pub(super) fn check_load(in_flight: usize, record_size: usize) -> Result<(), BenchError> {
    let impossible = |what: String| Err(BenchError::Impossible(what));
    if !(1..=MAX_IN_FLIGHT).contains(&in_flight) {
        return impossible(format!(
            "--in-flight {} is out of range: choose 1 to {MAX_IN_FLIGHT}",
            in_flight
        ));
    }
    if !RECORD_BYTES.contains(&record_size) {
        return impossible(format!(
            "--record-size {} is out of range: choose {} to {} bytes",
            record_size,
            RECORD_BYTES.start(),
            RECORD_BYTES.end()
        ));
    }
    if in_flight.saturating_mul(record_size) > MOST_IN_FLIGHT_BYTES {
        return impossible(format!(
            "{} records of {} bytes in flight are more than the {} MiB that a producer can hold: lower --in-flight or --record-size",
            in_flight,
            record_size,
            MOST_IN_FLIGHT_BYTES >> 20
        ));
    }
    Ok(())
}

impl Settings {
    /// Refuses what cannot be, before anything is started.
    pub fn check(&self) -> Result<(), BenchError> {
        let impossible = |what: String| Err(BenchError::Impossible(what));
        if self.scenarios.is_empty() {
            return impossible("no scenario is asked for: name one with --scenario".to_owned());
        }
        if self.runs == 0 {
            return impossible("--runs 0 measures nothing: ask for at least 1".to_owned());
        }
        check_load(self.in_flight, self.record_size)?;
        if self
            .duration
            .is_some_and(|duration| duration < SHORTEST_DURATION)
        {
            return impossible(format!(
                "--duration below {} s shows nothing: choose a longer one",
                SHORTEST_DURATION.as_secs()
            ));
        }
        if self.duration.is_some() && !self.scenarios.iter().any(|scenario| scenario.is_long) {
            return impossible(
                "--duration is for long scenarios, and none of these is one: leave it away"
                    .to_owned(),
            );
        }
        self.check_catch_up()
    }

    fn check_catch_up(&self) -> Result<(), BenchError> {
        let Some(scenario) = self
            .scenarios
            .iter()
            .find(|scenario| scenario.fault == Fault::FollowerBehind)
        else {
            return Ok(());
        };
        if !(1..=MAX_CATCH_UP_BYTES).contains(&self.catch_up_bytes) {
            return Err(BenchError::Impossible(format!(
                "--catch-up-bytes {} is out of range: choose 1 to {MAX_CATCH_UP_BYTES}",
                self.catch_up_bytes
            )));
        }
        let place = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let place = place.ancestors().find(|place| place.exists());
        let Some(stat) = place.and_then(|place| rustix::fs::statvfs(place).ok()) else {
            // Where that cannot be asked, the nodes will say when their disk is full.
            return Ok(());
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        // Every replica has a copy; half as much again is what the load adds meanwhile.
        let needed = self.catch_up_bytes * u64::from(scenario.replicas) * 3 / 2;
        if free < needed {
            return Err(BenchError::Impossible(format!(
                "{} needs {} MiB of disk and {} are free: lower --catch-up-bytes, or name another place with --dir",
                scenario.name,
                needed >> 20,
                free >> 20
            )));
        }
        Ok(())
    }

    fn fingerprint(&self, scenario: &str) -> String {
        let millis = |duration: Duration| duration.as_millis() as u64;
        fingerprint(&serde_json::json!({
            "scenario": scenario,
            "duration": self.duration.map(millis),
            "in_flight": self.in_flight,
            "record_size": self.record_size,
            "catch_up_bytes": self.catch_up_bytes,
            "version": env!("CARGO_PKG_VERSION"),
            "commit": option_env!("QUORATE_COMMIT"),
            "debug": cfg!(debug_assertions),
        }))
    }

    fn fault_lasts(&self, scenario: &Scenario) -> Duration {
        match self.duration {
            Some(duration) if scenario.is_long => duration,
            _ => scenario.lasts,
        }
    }
}

/// Runs everything, one run after the other. `stop` ends it early, with every process ended and the run's folder removed,
/// unless it is to be kept. Must be called within a tokio runtime.
///
/// # Errors
/// [`BenchError::Interrupted`] after `stop`; else what kept a run from coming to its end. What a run finds out about the cluster
/// is no error, however bad: it is in the [`Figures`].
pub async fn run(
    settings: &Settings,
    stop: &CancellationToken,
    witness: &mut dyn Witness,
) -> Result<(), BenchError> {
    settings.check()?;
    let place = Place::open("gap", settings.dir.as_deref(), settings.keep)?;
    for scenario in &settings.scenarios {
        for run in 1..=settings.runs {
            let dir = place.path().join(format!("{}-{run}", scenario.name));
            let ran = play::run(settings, scenario, run, &dir, stop, witness).await?;
            witness.finished(&ran).map_err(BenchError::telling)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(scenario: &str) -> Settings {
        Settings {
            scenarios: vec![Scenario::named(scenario).unwrap()],
            runs: 5,
            duration: None,
            in_flight: 64,
            record_size: 1024,
            catch_up_bytes: 1 << 20,
            seed: 1,
            dir: None,
            keep: false,
            within: Duration::from_secs(30),
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_change() {
        let refused = |settings: Settings, advice: &str| {
            let error = settings.check().unwrap_err().to_string();
            assert!(error.contains(advice), "{error}");
        };
        settings("leader-kill").check().unwrap();
        let ordinary = settings("leader-kill");
        let mut s = ordinary.clone();
        s.scenarios.clear();
        refused(s, "--scenario");
        let mut s = ordinary.clone();
        s.runs = 0;
        refused(s, "--runs");
        let mut s = ordinary.clone();
        s.record_size = 15;
        refused(s, "choose 16 to 1000000 bytes");
        let mut s = ordinary.clone();
        s.in_flight = 0;
        refused(s, "--in-flight");
        let mut s = ordinary.clone();
        (s.in_flight, s.record_size) = (1000, 100_000);
        refused(s, "lower --in-flight or --record-size");
        let mut s = ordinary.clone();
        s.duration = Some(Duration::from_secs(60));
        refused(s, "leave it away");
        let mut s = settings("lossy");
        s.duration = Some(Duration::from_secs(1));
        refused(s, "longer");
        let mut s = settings("follower-catch-up");
        s.check().unwrap();
        s.catch_up_bytes = MAX_CATCH_UP_BYTES;
        refused(s, "lower --catch-up-bytes");
    }
}
