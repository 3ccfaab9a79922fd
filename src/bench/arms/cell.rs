//! One measured cell: how much goes through one arm on one link, and how long a commit takes.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::stage::{Stage, open_folder};
use super::{Arm, NODES, Witness, check, each_turn, lab_settings, only_the_delay, way_of};
use crate::bench::lab::{Lab, LabCounts, block_on_host};
use crate::bench::local::{Place, Processes, compare};
use crate::bench::records::{
    Arrivals, Filler, Load, LoadOptions, Pattern, Tally, VALUE_HEADER_BYTES, read_all,
};
use crate::bench::usage::{Machine, Usage};
use crate::bench::{BenchError, Times, millis};
use crate::client::ProducerConfig;
use crate::transport::ImpairmentSpec;

/// A record that is not acknowledged by then has failed.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(180);
/// How long replicas may take to have everything in the end, over links that are well again.
const SETTLE: Duration = Duration::from_secs(120);
/// What a producer can hold, and with it what is in flight.
const MOST_IN_FLIGHT_BYTES: usize = 64 << 20;
const MAX_RECORD_BYTES: usize = 1_000_000;
const MIB: f64 = (1 << 20) as f64;
/// The most partitions of a cell.
const MAX_PARTITIONS: u32 = 1000;

/// What is measured.
#[derive(Clone, Debug)]
pub struct CellSettings {
    pub arms: Vec<Arm>,
    /// Of each arm.
    pub runs: u32,
    /// What every link suffers, each way.
    pub links: ImpairmentSpec,
    pub record_size: usize,
    pub in_flight: usize,
    pub partitions: u32,
    pub warmup: Duration,
    pub duration: Duration,
    /// Of the first run; each further one has the next. The same for every arm.
    pub seed: u64,
    /// Where nodes have their folders; a temporary place unless it is said.
    pub dir: Option<PathBuf>,
    /// How long a cluster may take to serve.
    pub within: Duration,
}

/// What one run of one arm gave. The field names are part of the command line's interface.
#[derive(Clone, Debug, Serialize)]
pub struct CellFigures {
    /// `quic` or `tcp`.
    pub arm: &'static str,
    pub congestion: String,
    pub run: u32,
    pub seed: u64,
    /// Share of packets that each way loses by chance.
    pub loss: f64,
    /// Of the link, without its queue.
    pub rtt_ms: f64,
    /// `null`: no limit.
    pub link_mbit: Option<f64>,
    /// Packets before the slow link.
    pub queue: usize,
    pub acks: &'static str,
    pub flush: &'static str,
    pub record_size: usize,
    pub in_flight: usize,
    pub partitions: u32,
    /// How long it was measured.
    pub seconds: f64,
    /// Acknowledged in that time.
    pub records: u64,
    pub records_per_s: f64,
    /// Of the records' values.
    pub mbit_per_s: f64,
    pub commit_p50_ms: Option<f64>,
    pub commit_p99_ms: Option<f64>,
    /// What the links from the leader to its followers carried of IP, the better of the two, headers and all.
    pub link_used_mbit: f64,
    /// Of the packets from the leader to its followers, the share that the queue had no room for.
    pub self_loss: f64,
    /// The share that chance took, in fact.
    pub chance_loss: f64,
    /// Processor time of the nodes together for each MiB of acknowledged values. Not that of the client and of the emulated links.
    pub cpu_ms_per_mib: Option<f64>,
    /// Resident memory of the nodes together at the end of the measured time.
    pub rss_mib: Option<f64>,
    /// Share of the measured time in which the machine's processors had nothing to do. Near 0 they are the limit, not the links.
    pub cpu_idle: Option<f64>,
    pub isr_changes: u64,
    pub elections: u64,
    /// Of records, over the whole run. All must be 0.
    pub unacknowledged: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Whether the replicas' logs are the same at the end.
    pub replicas_agree: bool,
}

impl CellFigures {
    /// Whether every record is there once, on every replica.
    pub fn is_sound(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.unacknowledged == 0 && self.replicas_agree
    }
}

impl CellSettings {
    /// Refuses what cannot be, before anything is started.
    pub fn check(&self) -> Result<(), BenchError> {
        self.check_values()?;
        check(&self.arms, self.runs, &self.links)
    }

    fn check_values(&self) -> Result<(), BenchError> {
        let impossible = |what: String| Err(BenchError::Impossible(what));
        if !(VALUE_HEADER_BYTES..=MAX_RECORD_BYTES).contains(&self.record_size) {
            return impossible(format!(
                "--record-size {} is out of range: choose {VALUE_HEADER_BYTES} to {MAX_RECORD_BYTES} bytes",
                self.record_size
            ));
        }
        if self.in_flight == 0
            || self.in_flight.saturating_mul(self.record_size) > MOST_IN_FLIGHT_BYTES
        {
            return impossible(format!(
                "{} records of {} bytes in flight are none, or more than {} MiB: change --in-flight or --record-size",
                self.in_flight,
                self.record_size,
                MOST_IN_FLIGHT_BYTES >> 20
            ));
        }
        if !(1..=MAX_PARTITIONS).contains(&self.partitions) {
            return impossible(format!(
                "--partitions {} is out of range: choose 1 to {MAX_PARTITIONS}",
                self.partitions
            ));
        }
        if self.duration < Duration::from_secs(1) {
            return impossible(
                "--duration below 1 s shows nothing: choose a longer one".to_owned(),
            );
        }
        Ok(())
    }
}

/// Measures every arm, run by run: the arms of one run have the same seed. Blocks the calling thread, which must not be one of a
/// runtime. `stop` ends it early with everything removed.
pub fn run_cells(
    settings: &CellSettings,
    stop: &CancellationToken,
    witness: &mut (dyn Witness<CellFigures> + Send),
) -> Result<(), BenchError> {
    settings.check()?;
    let place = Place::open("arms", settings.dir.as_deref(), false)?;
    each_turn(&settings.arms, settings.runs, |arm, run| {
        let figures = run_cell(settings, arm, run, &place, stop, witness)?;
        witness.finished(&figures).map_err(BenchError::telling)
    })
}

/// One run of one arm, in a lab of its own.
fn run_cell(
    settings: &CellSettings,
    arm: &Arm,
    run: u32,
    place: &Place,
    stop: &CancellationToken,
    witness: &mut (dyn Witness<CellFigures> + Send),
) -> Result<CellFigures, BenchError> {
    let seed = settings.seed.wrapping_add(u64::from(run) - 1);
    let lab = Lab::open(&lab_settings(&only_the_delay(&settings.links), seed))?;
    let first = lab.hosts().first().cloned().ok_or_else(no_host)?;
    let dir = place
        .path()
        .join(format!("{}-{}-{run}", arm.transport(), arm.congestion()));
    let mut folder = open_folder(&lab, arm, &dir)?;
    let measuring = async {
        let mut processes = Processes::start(&mut folder)?;
        let measured = tokio::select! {
            biased;
            () = stop.cancelled() => Err(BenchError::Interrupted),
            measured = measure(settings, arm, (run, seed), &lab, &mut folder, &mut processes, witness) => measured,
        };
        match measured {
            Ok(mut figures) => {
                processes.stop().await;
                let replicas = compare(folder.nodes(), &"arms".parse().map_err(|_| no_host())?);
                figures.replicas_agree = replicas.len() == settings.partitions as usize
                    && replicas.iter().all(|partition| {
                        partition.agrees()
                            && partition.replicas.len() == usize::from(NODES)
                            && partition
                                .replicas
                                .iter()
                                .all(|replica| replica.committed == partition.committed)
                    });
                Ok(figures)
            }
            Err(error) => {
                processes.kill_all().await;
                Err(error)
            }
        }
    };
    let measured = block_on_host(&first, measuring).map_err(|source| BenchError::Io {
        what: "cannot work on a host of the lab".to_owned(),
        source,
    })?;
    let is_well = match &measured {
        Ok(figures) => figures.is_sound(),
        Err(error) => matches!(error, BenchError::Interrupted),
    };
    if let Some(told) = folder.close(is_well) {
        witness.note(&told);
    }
    measured
}

fn no_host() -> BenchError {
    BenchError::Failed("a lab without hosts".to_owned())
}

/// The commits of the measured time.
#[derive(Clone)]
struct Commits {
    times: Times,
    count: u64,
    measured_from: Option<Duration>,
    measured_to: Option<Duration>,
}

impl Tally for Commits {
    fn acknowledged(&mut self, from: Duration, now: Duration) {
        if self.measured_from.is_some_and(|begin| now >= begin) && self.measured_to.is_none() {
            self.count += 1;
            self.times.record(now.saturating_sub(from));
        }
    }
}

async fn measure(
    settings: &CellSettings,
    arm: &Arm,
    (run, seed): (u32, u64),
    lab: &Lab,
    folder: &mut crate::bench::local::Folder,
    processes: &mut Processes,
    witness: &mut (dyn Witness<CellFigures> + Send),
) -> Result<CellFigures, BenchError> {
    let mut says =
        |doing: &str| witness.progress(&format!("{arm} {run}/{}: {doing}", settings.runs));
    says("starting nodes");
    let stage = Stage::set(folder, processes, settings.partitions, settings.within).await?;
    lab.set(settings.links.clone());
    let commits = Commits {
        times: Times::new().map_err(|error| BenchError::Failed(error.to_string()))?,
        count: 0,
        measured_from: None,
        measured_to: None,
    };
    let mark = rand::random();
    let options = LoadOptions {
        producer: ProducerConfig {
            linger: Duration::ZERO,
            delivery_timeout: DELIVERY_TIMEOUT,
            create_topics: false,
            max_in_flight_bytes: 2 * MOST_IN_FLIGHT_BYTES,
            ..ProducerConfig::default()
        },
        topic: stage.topic.clone(),
        mark,
    };
    let mut load = Load::new([&stage.client], options, commits)?;
    load.add(Pattern {
        in_flight: settings.in_flight,
        record_size: settings.record_size,
        filler: Filler::default(),
        arrivals: Arrivals::AsRoomAllows,
        is_measured: true,
    })?;
    says("warming up");
    tokio::time::sleep(settings.warmup).await;
    let epochs = stage.epochs();
    let before = lab.counts();
    let (usage_before, machine_before) = (Usage::of(&processes.pids()), Machine::look());
    load.tally(|commits, now| commits.measured_from = Some(now));
    let begun = Instant::now();
    says("measuring");
    tokio::time::sleep(settings.duration).await;
    load.tally(|commits, now| commits.measured_to = Some(now));
    let took = begun.elapsed();
    let after = lab.counts();
    let (usage, machine) = (Usage::of(&processes.pids()), Machine::look());
    lab.check()?;

    lab.set(only_the_delay(&settings.links));
    says("waiting for the last acknowledgements");
    let produced = load.finish().await;
    stage.settle(SETTLE).await;
    let epochs_after = stage.epochs();
    says("reading everything back");
    let found = read_all(&stage.client, &stage.topic, mark).await?;
    stage.client.close();

    let commits = &produced.tally;
    let seconds = took.as_secs_f64();
    let bytes = (commits.count as usize * settings.record_size) as f64;
    let links = Links::between(&before, &after, seconds);
    let way = way_of(&settings.links);
    let elections = epochs_after.0.saturating_sub(epochs.0);
    Ok(CellFigures {
        arm: arm.transport(),
        congestion: arm.congestion().to_owned(),
        run,
        seed,
        loss: way.loss,
        rtt_ms: millis(2 * way.delay),
        link_mbit: way.rate.map(|rate| rate as f64 / 1e6),
        queue: way.queue,
        acks: "all",
        flush: "fsync",
        record_size: settings.record_size,
        in_flight: settings.in_flight,
        partitions: settings.partitions,
        seconds,
        records: commits.count,
        records_per_s: commits.count as f64 / seconds,
        mbit_per_s: bytes * 8.0 / seconds / 1e6,
        commit_p50_ms: commits.times.quantile(0.5).map(millis),
        commit_p99_ms: commits.times.quantile(0.99).map(millis),
        link_used_mbit: links.used_mbit,
        self_loss: links.self_loss,
        chance_loss: links.chance_loss,
        cpu_ms_per_mib: usage
            .zip(usage_before)
            .and_then(|(after, before)| after.cpu_ms_per_mib(&before, bytes / MIB)),
        rss_mib: usage.map(|usage| usage.resident as f64 / MIB),
        cpu_idle: machine
            .zip(machine_before)
            .and_then(|(after, before)| after.idle_since(&before)),
        isr_changes: epochs_after
            .1
            .saturating_sub(epochs.1)
            .saturating_sub(2 * elections),
        elections,
        unacknowledged: produced.unacknowledged,
        lost: found.lacks(&produced.acknowledged),
        duplicated: found.duplicated,
        replicas_agree: false,
    })
}

/// What the links from the leader to its followers did in the measured time.
struct Links {
    used_mbit: f64,
    self_loss: f64,
    chance_loss: f64,
}

impl Links {
    fn between(before: &LabCounts, after: &LabCounts, seconds: f64) -> Links {
        let ways = before.ways.iter().zip(&after.ways);
        let (mut packets, mut full, mut lost, mut most) = (0, 0, 0, 0);
        for (before, after) in ways.filter(|(before, _)| before.from == 1) {
            packets += after.packets - before.packets;
            full += after.queue_full - before.queue_full;
            lost += after.lost - before.lost;
            most = most.max(after.carried_bytes - before.carried_bytes);
        }
        let share = |count: u64| count as f64 / packets.max(1) as f64;
        Links {
            used_mbit: most as f64 * 8.0 / seconds / 1e6,
            self_loss: share(full),
            chance_loss: share(lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::lab::WayCounts;

    fn settings() -> CellSettings {
        CellSettings {
            arms: vec!["quic:keel".parse().unwrap()],
            runs: 1,
            links: "loss=1%,delay=20ms,rate=100mbit".parse().unwrap(),
            record_size: 1024,
            in_flight: 256,
            partitions: 1,
            warmup: Duration::from_secs(1),
            duration: Duration::from_secs(5),
            seed: 1,
            dir: None,
            within: Duration::from_secs(30),
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_change() {
        settings().check_values().unwrap();
        for (break_it, advice) in [
            (
                (|s: &mut CellSettings| s.record_size = 1) as fn(&mut CellSettings),
                "--record-size",
            ),
            (|s| s.in_flight = 0, "--in-flight"),
            (|s| s.in_flight = 1 << 20, "--in-flight"),
            (|s| s.partitions = 0, "--partitions"),
            (|s| s.duration = Duration::ZERO, "--duration"),
        ] {
            let mut broken = settings();
            break_it(&mut broken);
            let error = broken.check_values().unwrap_err().to_string();
            assert!(error.contains(advice), "{error}");
        }
    }

    #[test]
    fn only_commits_of_the_measured_time_count() {
        let mut commits = Commits {
            times: Times::new().unwrap(),
            count: 0,
            measured_from: None,
            measured_to: None,
        };
        let ms = Duration::from_millis;
        commits.acknowledged(ms(0), ms(1));
        commits.measured_from = Some(ms(10));
        commits.acknowledged(ms(5), ms(15));
        commits.measured_to = Some(ms(20));
        commits.acknowledged(ms(15), ms(21));
        assert_eq!(commits.count, 1);
        let p50 = millis(commits.times.quantile(0.5).unwrap());
        assert!((9.9..10.1).contains(&p50), "{p50}");
    }

    #[test]
    fn losses_are_shares_of_what_the_leader_sent_in_the_measured_time() {
        let way = |from, to, packets, lost, queue_full, carried_bytes| WayCounts {
            from,
            to,
            packets,
            carried: packets - lost - queue_full,
            carried_bytes,
            lost,
            queue_full,
            cut: 0,
            doubled: 0,
            held_back: 0,
            no_room: 0,
        };
        let counts = |ways| LabCounts {
            seconds: 1.0,
            rules: String::new(),
            seed: 1,
            hosts: Vec::new(),
            ways,
        };
        let before = counts(vec![way(1, 2, 100, 50, 0, 1000), way(2, 1, 9, 0, 0, 9)]);
        let after = counts(vec![
            way(1, 2, 1100, 60, 5, 251_000),
            way(2, 1, 99, 50, 9, 9999),
        ]);
        let links = Links::between(&before, &after, 2.0);
        assert_eq!((links.chance_loss, links.self_loss), (0.01, 0.005));
        assert_eq!(links.used_mbit, 1.0);
    }
}
