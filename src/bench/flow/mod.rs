//! How fast records flow, and what a link costs: `quorate bench produce`, `consume`, `e2e` and `replicate`.
//!
//! - [`settings`]: what is measured; [`figures`]: what came of it
//! - [`own`]: a run with a cluster of its own, whose links are as bad as one likes
//! - [`given`]: a run with a given cluster
//! - [`course`]: the course of a run, of either kind; [`latencies`]: its records' times
//! - [`single`]: one record in flight, at `acks=1` and `acks=all`

mod course;
mod figures;
mod given;
mod latencies;
mod own;
mod settings;
mod single;

use std::io;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

pub use figures::{Figures, Summary};
pub(crate) use figures::{median, median_rate};
pub use given::Target;
pub use settings::{Cell, Conditions, MAX_IN_FLIGHT, RECORD_BYTES, Settings, Workload, flush_name};

use super::local::Place;
use super::report::{Curve, Kind, Machine, Sample};
use super::{BenchError, Series};

/// One run with what can be drawn of it.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub figures: Figures,
    /// Times to the acknowledgement, in ms, with the share of all that took no longer.
    pub commit_times: Vec<(f64, f64)>,
    /// The same to the consumer.
    pub end_to_end_times: Vec<(f64, f64)>,
    /// Times to the acknowledgement, by when it came.
    pub series: Series,
}

impl Run {
    /// As a report keeps it.
    pub fn sample(&self, settings: &Settings, cell: &Cell) -> io::Result<Sample> {
        let curves = [
            ("", &self.commit_times),
            ("end to end", &self.end_to_end_times),
        ];
        let curves = curves.into_iter().filter(|(_, points)| !points.is_empty());
        Ok(Sample {
            kind: Kind::Flow,
            settings: settings.fingerprint(cell),
            name: settings.report_name(cell),
            run: self.figures.run,
            figures: serde_json::to_value(&self.figures)?,
            curves: curves
                .map(|(name, points)| Curve {
                    name: name.to_owned(),
                    points: points.clone(),
                })
                .collect(),
            series: self.series.clone(),
            marks: Vec::new(),
            machine: Machine::this(),
            ended: OffsetDateTime::now_utc().unix_timestamp(),
        })
    }
}

/// Who hears how it goes.
pub trait Witness {
    /// What is being done now, and how much of the run is done, from 0 to 1.
    fn progress(&mut self, doing: &str, done: f64);
    /// Something to be kept in mind.
    fn note(&mut self, line: &str);
    /// What is known already of a run, which then is not run again.
    fn known(&mut self, cell: &Cell, run: u32) -> io::Result<Option<Run>>;
    /// A run has ended, or was known. An error ends the whole.
    fn finished(&mut self, cell: &Cell, run: &Run, is_new: bool) -> io::Result<()>;
}

/// Runs everything, one run after the other. `stop` ends it early, and leaves nothing behind. `target` is the given cluster, for
/// all but [`Workload::Replicate`]. Must be called within a tokio runtime.
///
/// # Errors
/// [`BenchError::Interrupted`] after `stop`; else what kept a run from coming to its end. What a run finds out about the cluster
/// is no error, however bad: it is in the [`Figures`].
pub async fn run(
    settings: &Settings,
    target: Option<&Target>,
    stop: &CancellationToken,
    witness: &mut dyn Witness,
) -> Result<(), BenchError> {
    settings.check()?;
    let place = match target {
        None => Some(Place::open(
            "bench",
            settings.dir.as_deref(),
            settings.keep,
        )?),
        Some(_) => None,
    };
    for (index, cell) in settings.cells.iter().enumerate() {
        for run in 1..=settings.runs {
            if let Some(known) = witness.known(cell, run).map_err(cannot_say)? {
                witness.finished(cell, &known, false).map_err(cannot_say)?;
                continue;
            }
            let ran = one(settings, target, place.as_ref(), index, run, stop, witness).await?;
            witness.finished(cell, &ran, true).map_err(cannot_say)?;
        }
    }
    Ok(())
}

fn cannot_say(source: io::Error) -> BenchError {
    BenchError::Io {
        what: "cannot read or write what runs gave".to_owned(),
        source,
    }
}

async fn one(
    settings: &Settings,
    target: Option<&Target>,
    place: Option<&Place>,
    index: usize,
    run: u32,
    stop: &CancellationToken,
    witness: &mut dyn Witness,
) -> Result<Run, BenchError> {
    let cell = &settings.cells[index];
    let what = match settings.cells.len() {
        1 => format!("{} {run}/{}", settings.workload.name(), settings.runs),
        cells => format!(
            "{} cell {}/{cells} ({}) run {run}/{}",
            settings.workload.name(),
            index + 1,
            cell.name(),
            settings.runs
        ),
    };
    let mut teller = course::Teller { what, witness };
    match (target, place) {
        (Some(target), _) => given::run(settings, cell, run, target, stop, &mut teller).await,
        (None, Some(place)) => {
            let dir = place.path().join(format!("{}-{run}", index + 1));
            own::run(settings, cell, run, &dir, stop, &mut teller).await
        }
        (None, None) => Err(BenchError::Failed("there is no cluster".to_owned())),
    }
}
