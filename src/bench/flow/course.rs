//! The course of a run: warm up, measure, wait for what is on its way.

use std::time::Duration;

use tokio::time::Instant;

use super::Witness;
use super::latencies::Latencies;
use super::settings::Settings;
use crate::bench::BenchError;
use crate::bench::records::Load;

/// How often it is looked whether enough records have come.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often people are told.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// A run in which nothing comes for so long does not come to an end.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Teller<'a> {
    pub(super) what: String,
    pub(super) witness: &'a mut dyn Witness,
}

impl Teller<'_> {
    pub(super) fn says(&mut self, doing: &str, done: f64) {
        self.witness
            .progress(&format!("{}: {doing}", self.what), done);
    }

    pub(super) fn notes(&mut self, line: &str) {
        self.witness.note(&format!("{}: {line}", self.what));
    }
}

pub(super) fn latencies() -> Result<Latencies, BenchError> {
    Latencies::new().map_err(|error| BenchError::Failed(error.to_string()))
}

/// Lets the load run unmeasured.
pub(super) async fn warm_up(settings: &Settings, teller: &mut Teller<'_>) {
    let end = Instant::now() + settings.warmup;
    while Instant::now() < end {
        teller.says("warming up", 0.0);
        tokio::time::sleep_until(end.min(Instant::now() + TELL_EVERY)).await;
    }
}

/// Measures a load until its time is over or enough records have come. `begins` and `ends` hear of that in the same moment.
pub(super) async fn measure(
    load: &Load<Latencies>,
    settings: &Settings,
    teller: &mut Teller<'_>,
    begins: impl FnOnce(Duration),
    ends: impl FnOnce(Duration),
) -> Result<(), BenchError> {
    load.tally(|latencies, now| {
        latencies.begin(now);
        begins(now);
    });
    let mut until = Until::start(settings);
    loop {
        let come = load.tally(|latencies, _| latencies.in_time());
        if until.is_reached(come, teller, "producing")? {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    load.tally(|latencies, now| {
        latencies.end(now);
        ends(now);
    });
    Ok(())
}

/// When a measurement is over.
pub(super) struct Until {
    records: Option<u64>,
    duration: Option<Duration>,
    begun: Instant,
    told: Option<Instant>,
    last: (u64, Instant),
}

impl Until {
    pub(super) fn start(settings: &Settings) -> Until {
        let now = Instant::now();
        Until {
            records: settings.records,
            duration: settings.duration,
            begun: now,
            told: None,
            last: (0, now),
        }
    }

    /// Whether it is over, now that so many records have `come`.
    pub(super) fn is_reached(
        &mut self,
        come: u64,
        teller: &mut Teller<'_>,
        doing: &str,
    ) -> Result<bool, BenchError> {
        let now = Instant::now();
        if come != self.last.0 {
            self.last = (come, now);
        }
        let passed = now - self.begun;
        let by_time = self
            .duration
            .map_or(0.0, |d| passed.as_secs_f64() / d.as_secs_f64());
        let by_records = self.records.map_or(0.0, |n| come as f64 / n as f64);
        let done = by_time.max(by_records);
        if self.told.is_none_or(|told| now - told >= TELL_EVERY) {
            self.told = Some(now);
            let rate = come as f64 / passed.as_secs_f64().max(1e-3);
            teller.says(&format!("{doing}, {rate:.0} records/s"), done.min(1.0));
        }
        if done < 1.0 && self.duration.is_none() && now - self.last.1 > PATIENCE {
            return Err(BenchError::Failed(format!(
                "no record came within {} s: see `quorate doctor` and the nodes' logs, or give a --duration",
                PATIENCE.as_secs()
            )));
        }
        Ok(done >= 1.0)
    }
}
