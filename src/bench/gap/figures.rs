//! What one run gave, and what several runs of a scenario gave together.

use serde::Serialize;

use super::scenario::Scenario;

/// One run. The field names are part of the command line's interface. Times are in milliseconds; `None` where there was
/// nothing to measure.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    pub scenario: &'static str,
    /// From 1.
    pub run: u32,
    pub seed: u64,
    pub version: &'static str,
    /// Of the source, where the build was told.
    pub commit: Option<&'static str>,
    /// `release` or `debug`.
    pub build: &'static str,
    pub nodes: u16,
    pub rf: u16,
    pub min_insync_replicas: u16,
    pub in_flight: usize,
    /// Bytes of a record's value.
    pub record_size: usize,
    /// From the fault to the heal.
    pub fault_ms: f64,

    pub longest_ack_gap_ms: f64,
    /// From the fault to the end of that gap.
    pub longest_ack_gap_at_ms: Option<f64>,
    /// The same before the fault: what the machine does by itself.
    pub longest_ack_gap_before_ms: f64,
    pub p50_before_ms: Option<f64>,
    pub p99_before_ms: Option<f64>,
    pub p50_during_ms: Option<f64>,
    pub p99_during_ms: Option<f64>,
    pub first_ack_after_heal_ms: Option<f64>,

    /// From the fault to the time when everything is as it was.
    pub isr_changes: u64,
    pub elections: u64,
    /// Dials of replication links beyond the first, and of the producing client.
    pub redials: u64,
    pub migrations: u64,
    /// New connections of replication links and of the client.
    pub handshakes: u64,
    /// How often an end of a replication link heard nothing for longer than the suspicion time.
    pub suspicions: u64,
    /// Replication links that were seen without a connection.
    pub disconnects: u64,

    /// From the heal, or from when the process was up, to when the follower is in the in-sync set again.
    pub isr_back_ms: Option<f64>,
    /// From the start of the process that was started again to when it listens.
    pub process_up_ms: Option<f64>,
    /// What the follower was to catch up with, of the records' values, and how many of it a second.
    pub catch_up_bytes: Option<u64>,
    pub catch_up_bytes_per_second: Option<f64>,

    pub records: u64,
    pub acknowledged: u64,
    pub unacknowledged: u64,
    /// Acknowledged and not there when everything is read.
    pub lost: u64,
    /// Copies beyond the first.
    pub duplicated: u64,
    /// Why records were not acknowledged, the first few different reasons.
    pub reasons: Vec<String>,

    pub goal: &'static str,
    pub met: bool,
}

impl Figures {
    /// Whether nothing was lost, doubled or refused. Times are another matter.
    pub fn is_sound(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.unacknowledged == 0
    }
}

/// The middle one and the worst one of some figures. Of an even number, the upper one of the two in the middle, so that it is
/// one that was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub worst: f64,
}

impl Spread {
    /// `None` for no figures.
    pub fn of(figures: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        Some(Spread {
            median: *sorted.get(sorted.len() / 2)?,
            worst: *sorted.last()?,
        })
    }
}

/// All runs of one scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub scenario: &'static str,
    pub goal: &'static str,
    pub runs: usize,
    pub met: usize,
    pub longest_ack_gap_ms: Option<Spread>,
    pub p50_before_ms: Option<Spread>,
    pub p99_before_ms: Option<Spread>,
    pub p99_during_ms: Option<Spread>,
    pub first_ack_after_heal_ms: Option<Spread>,
    pub isr_back_ms: Option<Spread>,
    pub catch_up_bytes_per_second: Option<Spread>,
    /// The most of any run, as all that follow.
    pub isr_changes: u64,
    pub elections: u64,
    pub redials: u64,
    pub migrations: u64,
    pub handshakes: u64,
    /// Of all runs together.
    pub unacknowledged: u64,
    pub lost: u64,
    pub duplicated: u64,
}

impl Summary {
    /// One for each scenario that was run, in the order of the runs.
    pub fn of_all(runs: &[Figures]) -> Vec<Summary> {
        let mut names: Vec<&str> = Vec::new();
        for run in runs {
            if !names.contains(&run.scenario) {
                names.push(run.scenario);
            }
        }
        names
            .into_iter()
            .map(|name| {
                let of_it: Vec<&Figures> = runs.iter().filter(|run| run.scenario == name).collect();
                Summary::of(&of_it)
            })
            .collect()
    }

    fn of(runs: &[&Figures]) -> Summary {
        let spread = |figure: fn(&Figures) -> Option<f64>| {
            Spread::of(runs.iter().filter_map(|run| figure(run)))
        };
        let most =
            |figure: fn(&Figures) -> u64| runs.iter().map(|run| figure(run)).max().unwrap_or(0);
        let sum = |figure: fn(&Figures) -> u64| runs.iter().map(|run| figure(run)).sum();
        // The slowest rate is the worst.
        let slowest = Spread::of(
            runs.iter()
                .filter_map(|run| Some(-run.catch_up_bytes_per_second?)),
        );
        Summary {
            scenario: runs.first().map_or("", |run| run.scenario),
            goal: runs.first().map_or("", |run| run.goal),
            runs: runs.len(),
            met: runs.iter().filter(|run| run.met).count(),
            longest_ack_gap_ms: spread(|run| Some(run.longest_ack_gap_ms)),
            p50_before_ms: spread(|run| run.p50_before_ms),
            p99_before_ms: spread(|run| run.p99_before_ms),
            p99_during_ms: spread(|run| run.p99_during_ms),
            first_ack_after_heal_ms: spread(|run| run.first_ack_after_heal_ms),
            isr_back_ms: spread(|run| run.isr_back_ms),
            catch_up_bytes_per_second: slowest.map(|spread| Spread {
                median: -spread.median,
                worst: -spread.worst,
            }),
            isr_changes: most(|run| run.isr_changes),
            elections: most(|run| run.elections),
            redials: most(|run| run.redials),
            migrations: most(|run| run.migrations),
            handshakes: most(|run| run.handshakes),
            unacknowledged: sum(|run| run.unacknowledged),
            lost: sum(|run| run.lost),
            duplicated: sum(|run| run.duplicated),
        }
    }
}

impl Figures {
    /// With what is known before the run.
    pub(super) fn new(scenario: &Scenario, run: u32, seed: u64) -> Figures {
        Figures {
            scenario: scenario.name,
            run,
            seed,
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("QUORATE_COMMIT"),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            nodes: scenario.nodes,
            rf: scenario.replicas,
            min_insync_replicas: scenario.min_insync,
            goal: scenario.goal,
            ..Figures::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_one_that_was_measured_and_the_worst_is_the_largest() {
        let spread = |figures: &[f64]| Spread::of(figures.iter().copied());
        assert_eq!(spread(&[]), None);
        let of = |median, worst| Some(Spread { median, worst });
        assert_eq!(spread(&[7.0]), of(7.0, 7.0));
        assert_eq!(spread(&[9.0, 1.0, 5.0]), of(5.0, 9.0));
        assert_eq!(spread(&[4.0, 1.0, 3.0, 2.0]), of(3.0, 4.0));
    }

    fn run(scenario: &'static str, gap: f64) -> Figures {
        Figures {
            scenario,
            longest_ack_gap_ms: gap,
            ..Figures::default()
        }
    }

    #[test]
    fn runs_are_summed_up_by_scenario_in_their_order() {
        let mut runs = vec![run("b", 3.0), run("a", 1.0), run("b", 5.0), run("b", 4.0)];
        runs[0].elections = 2;
        runs[2].lost = 1;
        runs[3].lost = 2;
        runs[2].first_ack_after_heal_ms = Some(9.0);
        runs[0].catch_up_bytes_per_second = Some(10.0);
        runs[2].catch_up_bytes_per_second = Some(30.0);
        runs[3].catch_up_bytes_per_second = Some(20.0);
        runs[1].met = true;
        let sums = Summary::of_all(&runs);
        let names: Vec<_> = sums
            .iter()
            .map(|sum| (sum.scenario, sum.runs, sum.met))
            .collect();
        assert_eq!(names, [("b", 3, 0), ("a", 1, 1)]);
        let of = |median, worst| Some(Spread { median, worst });
        assert_eq!(sums[0].longest_ack_gap_ms, of(4.0, 5.0));
        assert_eq!(sums[0].first_ack_after_heal_ms, of(9.0, 9.0));
        assert_eq!(sums[0].catch_up_bytes_per_second, of(20.0, 10.0));
        assert_eq!((sums[0].elections, sums[0].lost), (2, 3));
        assert_eq!(sums[1].first_ack_after_heal_ms, None);
    }

    #[test]
    fn a_run_is_sound_only_if_every_record_is_there_once() {
        let sound = run("a", 1e9);
        assert!(sound.is_sound(), "whatever it took");
        for break_it in [
            |run: &mut Figures| run.lost = 1,
            |run: &mut Figures| run.duplicated = 1,
            |run: &mut Figures| run.unacknowledged = 1,
        ] {
            let mut run = sound.clone();
            break_it(&mut run);
            assert!(!run.is_sound());
        }
    }
}
