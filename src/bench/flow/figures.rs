//! What one run gave, and what several runs of a cell gave together.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::latencies::Latencies;
use super::settings::{Cell, Settings, flush_name};
use crate::bench::records::Produced;
use crate::bench::{BenchError, Times, millis};
use crate::client::Acks;

const MIB: f64 = (1 << 20) as f64;
/// A run that missed a larger share than this of what was due is flagged: among its slowest hundredth are records whose times were
/// cut off.
const MANY_MISSED: f64 = 0.01;

/// One run. The field names are part of the command line's interface. `None` is what is not known, or not of this kind of run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub bench: String,
    /// What carries replication.
    pub arm: String,
    /// What tells the cell from others, for people.
    pub cell: String,
    /// From 1.
    pub run: u32,
    pub seed: u64,
    pub version: String,
    /// Of the source, where the build was told.
    pub commit: Option<String>,
    /// `release` or `debug`.
    pub build: String,

    /// Of the nodes.
    pub congestion: Option<String>,
    /// Share of packets that each end of a link loses on purpose.
    pub loss: Option<f64>,
    /// What the delays of both ends add to a round trip.
    pub rtt_ms: Option<f64>,
    pub jitter_ms: Option<f64>,
    /// What a link carries each way, headers of IP and UDP included.
    pub link_mbit: Option<f64>,
    /// Packets that may wait before it.
    pub queue: Option<u64>,
    pub nodes: Option<u16>,
    pub rf: Option<u16>,
    pub min_insync_replicas: Option<u16>,
    pub partitions: Option<u32>,
    pub acks: String,
    pub flush: Option<String>,
    pub compression: String,
    pub linger_ms: f64,
    pub producers: usize,
    /// Bytes of a record's value.
    pub record_size: usize,
    /// Records a second that were asked for; `None`: as many as were acknowledged.
    pub rate: Option<u64>,
    pub in_flight: usize,
    pub warmup_ms: f64,

    /// For how long was measured.
    pub measured_ms: f64,
    /// Records that came in that time.
    pub measured_records: u64,
    pub records_per_s: f64,
    /// Of the records' values.
    pub mbit_per_s: f64,
    /// At a rate: records that were due in that time and not sent before the end. The times below have them with what they had
    /// waited.
    pub missed: Option<u64>,
    /// Why times at this rate say more of the rate than of the cluster.
    pub rate_flag: Option<String>,
    /// From when a record was sent, or meant to be, to its acknowledgement.
    pub commit_p50_ms: Option<f64>,
    pub commit_p99_ms: Option<f64>,
    pub commit_p999_ms: Option<f64>,
    pub commit_max_ms: Option<f64>,
    /// To when a consumer had it.
    pub e2e_p50_ms: Option<f64>,
    pub e2e_p99_ms: Option<f64>,
    pub e2e_p999_ms: Option<f64>,
    pub e2e_max_ms: Option<f64>,
    /// What went over each link from the leader to a follower, headers of IP and UDP included.
    pub link_mbit_per_s: Option<f64>,
    /// The round trip that the leader saw in the end, in the mean of its followers.
    pub rtt_seen_ms: Option<f64>,
    /// Share of the packets to followers that found the link's queue full.
    pub self_loss: Option<f64>,
    /// Share of them that was lost on purpose.
    pub random_loss: Option<f64>,
    /// Packets that the emulation had no room for. With any, the emulation is what was measured.
    pub emulator_drops: Option<u64>,
    /// Processor time of all nodes together, for each MiB of acknowledged values.
    pub cpu_ms_per_mib: Option<f64>,
    /// Resident memory of all nodes together at the end.
    pub rss_mib: Option<f64>,
    /// One record in flight, before the run, in the median.
    pub single_acks_1_ms: Option<f64>,
    pub single_acks_all_ms: Option<f64>,
    /// Why acks=all cannot be what it should be.
    pub red_flag: Option<String>,

    pub records: u64,
    pub acknowledged: u64,
    pub unacknowledged: u64,
    /// Acknowledged and not there when everything is read.
    pub lost: u64,
    /// Copies beyond the first.
    pub duplicated: u64,
    /// Whether each replica holds the same bytes, and all of them.
    pub replicas_agree: Option<bool>,
    /// Why records were not acknowledged, or replicas do not agree: the first few.
    pub reasons: Vec<String>,
}

impl Figures {
    /// With what is known before the run.
    pub(super) fn new(settings: &Settings, cell: &Cell, run: u32) -> Result<Figures, BenchError> {
        let link = cell.conditions.impairment()?;
        let delay = link.map(|link| 2 * link.delay);
        let build = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        Ok(Figures {
            bench: settings.workload.name().to_owned(),
            arm: "quic".to_owned(),
            cell: cell.name(),
            run,
            seed: settings.seed.wrapping_add(u64::from(run) - 1),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("QUORATE_COMMIT").map(str::to_owned),
            build: build.to_owned(),
            congestion: cell.congestion.map(|choice| choice.name().to_owned()),
            loss: link.map(|link| link.loss),
            rtt_ms: delay.map(millis),
            jitter_ms: link.map(|link| millis(link.jitter)),
            link_mbit: link.and_then(|link| Some(link.rate? as f64 / 1e6)),
            queue: link.and_then(|link| link.rate.map(|_| link.queue as u64)),
            acks: cell.acks.name().to_owned(),
            flush: cell.flush.map(|flush| flush_name(flush).to_owned()),
            compression: settings.compression.name().to_owned(),
            linger_ms: millis(settings.linger),
            producers: settings.producers,
            record_size: settings.record_size,
            rate: settings.rate,
            in_flight: settings.in_flight,
            warmup_ms: millis(settings.warmup),
            ..Figures::default()
        })
    }

    /// Whether nothing was lost, doubled or refused, and the replicas agree where that is known. Times are another matter.
    pub fn is_sound(&self) -> bool {
        // Without sequence numbers, and those go with acks=all, a batch that is sent again may be there twice; without
        // acknowledgements, nobody hears of what did not arrive.
        let all = self.acks == Acks::All.name();
        let sound = !all || (self.lost == 0 && self.duplicated == 0);
        sound && self.unacknowledged == 0 && self.replicas_agree != Some(false)
    }

    /// So many records of `value_bytes` each on average came in the time.
    pub(super) fn count(&mut self, records: u64, window: Duration, value_bytes: f64) {
        let seconds = window.as_secs_f64();
        self.measured_ms = millis(window);
        self.measured_records = records;
        if seconds > 0.0 {
            self.records_per_s = digits(records as f64 / seconds);
            self.mbit_per_s = digits(records as f64 * value_bytes * 8.0 / 1e6 / seconds);
        }
    }

    pub(super) fn take(&mut self, produced: Produced<Latencies>) {
        let latencies = &produced.tally;
        let window = latencies.window().unwrap_or_default();
        self.count(latencies.in_time(), window, self.record_size as f64);
        let [p50, p99, p999, max] = quantiles(latencies.times());
        (self.commit_p50_ms, self.commit_p99_ms) = (p50, p99);
        (self.commit_p999_ms, self.commit_max_ms) = (p999, max);
        if self.rate.is_some() {
            self.missed = Some(latencies.missed_count());
            self.rate_flag = rate_flag(latencies.missed_count(), latencies.times().count());
        }
        self.records = produced.records;
        self.acknowledged = produced.acknowledged.count();
        self.unacknowledged = produced.unacknowledged;
        self.reasons.extend(produced.reasons);
    }

    pub(super) fn take_end_to_end(&mut self, times: &Times) {
        let [p50, p99, p999, max] = quantiles(times);
        (self.e2e_p50_ms, self.e2e_p99_ms) = (p50, p99);
        (self.e2e_p999_ms, self.e2e_max_ms) = (p999, max);
    }

    /// MiB of the values that came in the measured time.
    pub(super) fn measured_mib(&self) -> f64 {
        self.measured_records as f64 * self.record_size as f64 / MIB
    }
}

/// Of so many records that were due, so many were missed.
fn rate_flag(missed: u64, due: u64) -> Option<String> {
    let share = missed as f64 / due.max(1) as f64;
    (share > MANY_MISSED).then(|| {
        format!(
            "{missed} of {due} records that were due ({:.0} %) were not sent before the end, and their times are cut off there: this is more than \
             goes through; lower --rate, or raise --in-flight",
            100.0 * share
        )
    })
}

fn quantiles(times: &Times) -> [Option<f64>; 4] {
    [0.5, 0.99, 0.999, 1.0].map(|share| times.quantile(share).map(millis))
}

/// Six digits are more than any of this is worth.
pub(super) fn digits(figure: f64) -> f64 {
    if figure == 0.0 || !figure.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi(5 - figure.abs().log10().floor() as i32);
    (figure * scale).round() / scale
}

/// All runs of one cell, in the median. Of an even number, the worse one of the two in the middle, so that it is one that was
/// measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub cell: String,
    pub runs: usize,
    pub records_per_s: Option<f64>,
    pub mbit_per_s: Option<f64>,
    pub commit_p50_ms: Option<f64>,
    pub commit_p99_ms: Option<f64>,
    pub e2e_p50_ms: Option<f64>,
    pub e2e_p99_ms: Option<f64>,
    pub self_loss: Option<f64>,
    pub cpu_ms_per_mib: Option<f64>,
    pub rss_mib: Option<f64>,
    /// Of all runs together; `None` where none had a rate.
    pub missed: Option<u64>,
    /// How many runs had one.
    pub red_flags: usize,
    pub unsound: usize,
}

impl Summary {
    /// One for each cell, in the order of the runs.
    pub fn of_all(runs: &[Figures]) -> Vec<Summary> {
        let mut cells: Vec<&str> = Vec::new();
        for run in runs {
            if !cells.contains(&run.cell.as_str()) {
                cells.push(&run.cell);
            }
        }
        let of = |cell: &str| {
            let runs: Vec<&Figures> = runs.iter().filter(|run| run.cell == cell).collect();
            let median = |figure: fn(&Figures) -> Option<f64>| {
                median(runs.iter().filter_map(|run| figure(run)))
            };
            Summary {
                cell: cell.to_owned(),
                runs: runs.len(),
                records_per_s: median_rate(runs.iter().map(|run| run.records_per_s)),
                mbit_per_s: median_rate(runs.iter().map(|run| run.mbit_per_s)),
                commit_p50_ms: median(|run| run.commit_p50_ms),
                commit_p99_ms: median(|run| run.commit_p99_ms),
                e2e_p50_ms: median(|run| run.e2e_p50_ms),
                e2e_p99_ms: median(|run| run.e2e_p99_ms),
                self_loss: median(|run| run.self_loss),
                cpu_ms_per_mib: median(|run| run.cpu_ms_per_mib),
                rss_mib: median(|run| run.rss_mib),
                missed: runs
                    .iter()
                    .filter_map(|run| run.missed)
                    .reduce(u64::saturating_add),
                red_flags: runs.iter().filter(|run| run.red_flag.is_some()).count(),
                unsound: runs.iter().filter(|run| !run.is_sound()).count(),
            }
        };
        cells.into_iter().map(of).collect()
    }
}

/// `None` for no figures.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    crate::bench::gap::Spread::of(figures).map(|spread| spread.median)
}

/// The same of what is the better the more it is: of an even number, the lower one of the two in the middle.
pub(crate) fn median_rate(figures: impl Iterator<Item = f64>) -> Option<f64> {
    median(figures.map(|figure| -figure)).map(|middle| -middle)
}

#[cfg(test)]
mod tests {
    use super::super::settings::Workload;
    use super::super::settings::tests::settings;
    use super::*;
    use crate::bench::records::{Numbers, Tally};

    fn run(cell: &str, mbit: f64) -> Figures {
        Figures {
            cell: cell.to_owned(),
            acks: "all".to_owned(),
            mbit_per_s: mbit,
            ..Figures::default()
        }
    }

    #[test]
    fn a_run_has_the_fields_that_programs_read_and_what_is_not_known_is_null() {
        let settings = settings(Workload::Replicate);
        let figures = Figures::new(&settings, &settings.cells[0], 2).unwrap();
        assert_eq!(figures.seed, 2);
        let json = serde_json::to_value(&figures).unwrap();
        for field in [
            "arm",
            "congestion",
            "loss",
            "rtt_ms",
            "link_mbit",
            "acks",
            "flush",
            "records_per_s",
            "mbit_per_s",
            "commit_p50_ms",
            "commit_p99_ms",
            "self_loss",
            "cpu_ms_per_mib",
            "rss_mib",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
        for unknown in [
            "loss",
            "rtt_ms",
            "self_loss",
            "cpu_ms_per_mib",
            "rss_mib",
            "commit_p50_ms",
        ] {
            assert!(json[unknown].is_null(), "{unknown}");
        }
        let back: Figures = serde_json::from_value(json).unwrap();
        assert_eq!(back, figures);
    }

    #[test]
    fn a_delay_of_each_end_counts_twice() {
        let mut settings = settings(Workload::Replicate);
        let conditions = &mut settings.cells[0].conditions;
        (conditions.delay, conditions.loss) = (Some("20ms".into()), Some("5%".into()));
        conditions.link_rate = Some("100mbit".into());
        let figures = Figures::new(&settings, &settings.cells[0], 1).unwrap();
        assert_eq!((figures.rtt_ms, figures.loss), (Some(40.0), Some(0.05)));
        assert_eq!((figures.link_mbit, figures.queue), (Some(100.0), Some(250)));
    }

    #[test]
    fn rates_are_those_of_the_measured_time() {
        let mut figures = run("a", 0.0);
        figures.count(1000, Duration::from_millis(500), 1000.0);
        assert_eq!((figures.records_per_s, figures.mbit_per_s), (2000.0, 16.0));
        figures.count(0, Duration::ZERO, 1000.0);
        assert_eq!(figures.measured_records, 0);
        assert_eq!(digits(1_234_567.8), 1_234_570.0);
        assert_eq!(digits(0.001_234_567_8), 0.001_234_57);
        assert_eq!(digits(0.0), 0.0);
    }

    #[test]
    fn what_acks_1_may_lose_is_no_fault_and_what_acks_all_loses_is() {
        for (acks, lost, sound) in [("all", 0, true), ("all", 1, false), ("1", 1, true)] {
            let mut figures = run("a", 1.0);
            (figures.acks, figures.lost) = (acks.to_owned(), lost);
            assert_eq!(figures.is_sound(), sound, "{acks} {lost}");
        }
        let mut figures = run("a", 1.0);
        figures.replicas_agree = Some(false);
        assert!(!figures.is_sound());
    }

    #[test]
    fn a_run_that_missed_much_of_what_was_due_is_flagged() {
        assert_eq!(rate_flag(0, 0), None);
        assert_eq!(rate_flag(10, 1000), None, "an end that came in between");
        let flag = rate_flag(11, 1000).unwrap();
        assert!(flag.contains("lower --rate"), "{flag}");
        assert!(rate_flag(3, 3).unwrap().contains("(100 %)"));
    }

    #[test]
    fn a_run_at_a_rate_tells_what_it_missed_and_another_does_not() {
        let mut latencies = Latencies::new().unwrap();
        let ms = Duration::from_millis;
        latencies.begin(ms(0));
        latencies.end(ms(100));
        latencies.acknowledged(ms(1), ms(2));
        latencies.missed(ms(50), ms(400));
        for (rate, missed) in [(Some(20), Some(1)), (None, None)] {
            let mut figures = run("a", 1.0);
            figures.rate = rate;
            figures.take(Produced {
                tally: latencies.clone(),
                acknowledged: Numbers::default(),
                records: 1,
                unacknowledged: 0,
                reasons: Vec::new(),
            });
            assert_eq!(figures.missed, missed);
            assert_eq!(figures.rate_flag.is_some(), rate.is_some());
        }
    }

    #[test]
    fn runs_are_summed_up_by_cell_in_the_median() {
        let mut runs = vec![run("b", 3.0), run("a", 1.0), run("b", 5.0), run("b", 4.0)];
        (runs[0].missed, runs[3].missed) = (Some(2), Some(3));
        runs[0].self_loss = Some(0.25);
        runs[3].red_flag = Some("x".to_owned());
        let sums = Summary::of_all(&runs);
        assert_eq!(sums.len(), 2);
        assert_eq!((sums[0].runs, sums[0].mbit_per_s), (3, Some(4.0)));
        assert_eq!((sums[0].self_loss, sums[0].red_flags), (Some(0.25), 1));
        assert_eq!(sums[1].self_loss, None);
        assert_eq!((sums[0].missed, sums[1].missed), (Some(5), None));
        runs.remove(0);
        let worse = &Summary::of_all(&runs)[1];
        assert_eq!((worse.cell.as_str(), worse.mbit_per_s), ("b", Some(4.0)));
    }
}
