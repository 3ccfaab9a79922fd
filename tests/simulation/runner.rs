//! Runs seeds, many or one, and says what failed: its seed, the command that repeats it, and the shortest schedule that still
//! fails.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::checker::Violation;
use super::planted::Planted;
use super::schedule::{Fault, Setup, draw};
use super::world::{Figures, World};

/// How many runs the shortening of one failure may take.
const SHRINK_RUNS: usize = 400;

/// A run that failed.
pub struct Failure {
    pub seed: u64,
    pub violation: Violation,
    /// The faults that are enough for it.
    pub schedule: Vec<Fault>,
    /// How many there were.
    pub drawn: usize,
}

/// Runs a schedule. A panic of the product is a violation too.
pub fn run_schedule(
    setup: &Setup,
    schedule: &[Fault],
    planted: Option<Planted>,
) -> Result<Figures, Violation> {
    let mut world = World::new(setup.clone(), schedule.to_vec(), planted);
    catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        Err(Violation {
            rule: "panic",
            what,
        })
    })
}

pub fn run_seed(seed: u64, planted: Option<Planted>) -> Result<Figures, Violation> {
    let setup = Setup::of(seed);
    run_schedule(&setup, &draw(&setup), planted)
}

/// Runs one seed; on failure finds the faults that are enough.
pub fn run_and_shrink(seed: u64, planted: Option<Planted>) -> Result<Figures, Box<Failure>> {
    let setup = Setup::of(seed);
    let schedule = draw(&setup);
    match run_schedule(&setup, &schedule, planted) {
        Ok(figures) => Ok(figures),
        Err(violation) => {
            let drawn = schedule.len();
            let (schedule, violation) = shrink(&setup, schedule, violation, planted);
            Err(Box::new(Failure {
                seed,
                violation,
                schedule,
                drawn,
            }))
        }
    }
}

/// Delta debugging: takes away halves, quarters, … of the faults for as long as something still fails.
fn shrink(
    setup: &Setup,
    mut schedule: Vec<Fault>,
    mut violation: Violation,
    planted: Option<Planted>,
) -> (Vec<Fault>, Violation) {
    let mut runs = 0;
    let mut size = schedule.len().div_ceil(2);
    while size > 0 && runs < SHRINK_RUNS {
        let mut from = 0;
        let mut shorter = false;
        while from < schedule.len() && runs < SHRINK_RUNS {
            let mut candidate = schedule.clone();
            candidate.drain(from..(from + size).min(schedule.len()));
            runs += 1;
            match run_schedule(setup, &candidate, planted) {
                Err(found) => {
                    schedule = candidate;
                    violation = found;
                    shorter = true;
                }
                Ok(_) => from += size,
            }
        }
        if !shorter || size > schedule.len() {
            size /= 2;
        }
    }
    (schedule, violation)
}

/// The story of a run, line by line, for whoever looks for the cause.
pub fn story(setup: &Setup, schedule: &[Fault], planted: Option<Planted>) -> Vec<String> {
    let mut world = World::new(setup.clone(), schedule.to_vec(), planted);
    world.story = Some(Vec::new());
    let _ = catch_unwind(AssertUnwindSafe(|| world.run()));
    world.story.unwrap_or_default()
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let setup = Setup::of(self.seed);
        writeln!(f, "seed {} fails: {}", self.seed, self.violation)?;
        writeln!(
            f,
            "repeat it with: QUORATE_SIM_SEED={} cargo test --test simulation -- --nocapture one_seed",
            self.seed
        )?;
        writeln!(f, "{setup:?}")?;
        writeln!(
            f,
            "{} of {} faults are enough:",
            self.schedule.len(),
            self.drawn
        )?;
        for fault in &self.schedule {
            writeln!(f, "  {fault}")?;
        }
        Ok(())
    }
}
