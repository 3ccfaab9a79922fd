//! What is to be measured, and what cannot be.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::bench::BenchError;
use crate::bench::local::MAX_NODES;
use crate::bench::records::{Arrivals, Filler, Pattern, STAMPED_HEADER_BYTES};
use crate::bench::report::fingerprint;
use crate::client::{Acks, ProducerConfig};
use crate::metadata::FlushPolicy;
use crate::record::Compression;
use crate::transport::{Congestion, Impairment, ImpairmentSpec, LinkEnd};

/// The most records on their way.
pub const MAX_IN_FLIGHT: usize = 100_000;
/// Each has connections of its own to every node.
const MAX_PRODUCERS: usize = 200;
/// A batch of one record must stay under the default of `max.message.bytes`, and a record says which one it is, and when it was
/// meant to be sent.
pub const RECORD_BYTES: RangeInclusive<usize> = STAMPED_HEADER_BYTES..=1_000_000;
/// What may be on its way, in bytes of values.
const MAX_IN_FLIGHT_BYTES: usize = 1 << 30;
const MAX_PARTITIONS: u32 = 10_000;
const MAX_RATE: u64 = 10_000_000;
/// What a record costs in the producer beside its value, generously.
const RECORD_OVERHEAD: usize = 128;
/// A record that is not acknowledged by then has failed.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);
/// What one disk is taken to write in a second, where nothing else says how much will be produced.
const DISK_BYTES_PER_SECOND: u64 = 256 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Records into a given cluster, up to their acknowledgements.
    Produce,
    /// Records out of a given cluster.
    Consume,
    /// Through a given cluster: from when a record is sent to when a consumer has it.
    EndToEnd,
    /// Into a cluster of this machine that is made for it, and whose links are as bad as one likes.
    Replicate,
}

impl Workload {
    pub const fn name(self) -> &'static str {
        match self {
            Workload::Produce => "produce",
            Workload::Consume => "consume",
            Workload::EndToEnd => "e2e",
            Workload::Replicate => "replicate",
        }
    }
}

/// What links suffer, in the impairments' words. `None` leaves them alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    pub loss: Option<String>,
    pub delay: Option<String>,
    pub jitter: Option<String>,
    pub link_rate: Option<String>,
    pub queue: Option<String>,
}

impl Conditions {
    fn items(&self) -> [(&'static str, &Option<String>); 5] {
        [
            ("loss", &self.loss),
            ("delay", &self.delay),
            ("jitter", &self.jitter),
            ("rate", &self.link_rate),
            ("queue", &self.queue),
        ]
    }

    /// What the ends of the links are to do; `None` where links are left alone. Nodes impair what they send to nodes, and a client,
    /// whose nodes know nothing of it, both ways.
    pub fn spec(
        &self,
        workload: Workload,
        seed: u64,
    ) -> Result<Option<ImpairmentSpec>, BenchError> {
        let mut items = Vec::new();
        if workload != Workload::Replicate {
            items.push("peer=all,dir=both".to_owned());
        }
        let before = items.len();
        for (name, value) in self.items() {
            let Some(value) = value else {
                continue;
            };
            if value.contains([',', ';']) {
                return Err(BenchError::Impossible(format!(
                    "{name}: {value:?} is more than one value"
                )));
            }
            items.push(format!("{name}={value}"));
        }
        if items.len() == before {
            return Ok(None);
        }
        items.push(format!("seed={seed}"));
        let spec = items.join(",").parse();
        spec.map(Some)
            .map_err(|error: crate::transport::InvalidSpec| {
                BenchError::Impossible(error.to_string())
            })
    }

    /// In numbers; `None` where links are left alone.
    pub fn impairment(&self) -> Result<Option<Impairment>, BenchError> {
        let spec = self.spec(Workload::Replicate, 0)?;
        Ok(spec.map(|spec| spec.of(LinkEnd::SomeNode).outward))
    }
}

/// One combination of everything that can be varied in one go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    pub conditions: Conditions,
    pub acks: Acks,
    /// `None`: as the topic or the cluster has it.
    pub flush: Option<FlushPolicy>,
    /// `None`: as the cluster has it.
    pub congestion: Option<Congestion>,
}

impl Cell {
    /// What tells it from other cells, for people: `loss 1%, delay 20ms, acks 1`. Empty where there is nothing to tell.
    pub fn name(&self) -> String {
        let conditions = &self.conditions;
        let mut parts = Vec::new();
        for (name, value) in [
            ("loss", &conditions.loss),
            ("delay", &conditions.delay),
            ("jitter", &conditions.jitter),
            ("link", &conditions.link_rate),
            ("queue", &conditions.queue),
        ] {
            parts.extend(value.as_ref().map(|value| format!("{name} {value}")));
        }
        parts.extend(self.congestion.map(|choice| choice.name().to_owned()));
        parts.push(format!("acks {}", self.acks.name()));
        parts.extend(self.flush.map(|flush| flush_name(flush).to_owned()));
        parts.join(", ")
    }
}

/// As the topic's setting has it.
pub const fn flush_name(flush: FlushPolicy) -> &'static str {
    match flush {
        FlushPolicy::Fsync => "fsync",
        FlushPolicy::Os => "os",
    }
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Settings {
    pub workload: Workload,
    pub cells: Vec<Cell>,
    /// Of each cell.
    pub runs: u32,
    /// Of the first run of a cell; each further run has the next one.
    pub seed: u64,
    /// Bytes of a record's value.
    pub record_size: usize,
    /// The measurement ends when so many records are acknowledged, or read.
    pub records: Option<u64>,
    /// The measurement ends after this long.
    pub duration: Option<Duration>,
    /// What is not measured before it.
    pub warmup: Duration,
    /// Records a second, whatever becomes of those before; `None`: as many as are acknowledged.
    pub rate: Option<u64>,
    pub in_flight: usize,
    /// Each with connections of its own; what is in flight is divided among them. 1 to [`MAX_PRODUCERS`].
    pub producers: usize,
    /// `None`: as the topic has it, or 1.
    pub partitions: Option<u32>,
    pub compression: Compression,
    /// How long an open batch waits for more records.
    pub linger: Duration,
    /// Of a topic that is made: `None` leaves it to the cluster.
    pub replicas: Option<u16>,
    pub min_insync: Option<u16>,
    /// Of the cluster that is made, as those that follow.
    pub nodes: u16,
    /// Where each run has its folder; a temporary place unless it is said.
    pub dir: Option<PathBuf>,
    /// Whether the runs' folders stay.
    pub keep: bool,
    /// How long a cluster may take to serve.
    pub within: Duration,
}

impl Settings {
    /// Refuses what cannot be, before anything is started.
    pub fn check(&self) -> Result<(), BenchError> {
        let impossible = |what: String| Err(BenchError::Impossible(what));
        if self.runs == 0 {
            return impossible("--runs 0 measures nothing: ask for at least 1".to_owned());
        }
        if !RECORD_BYTES.contains(&self.record_size) {
            return impossible(format!(
                "--record-size {} is out of range: choose {} to {} bytes",
                self.record_size,
                RECORD_BYTES.start(),
                RECORD_BYTES.end()
            ));
        }
        if !(1..=MAX_IN_FLIGHT).contains(&self.in_flight) {
            return impossible(format!(
                "--in-flight {} is out of range: choose 1 to {MAX_IN_FLIGHT}",
                self.in_flight
            ));
        }
        if !(1..=MAX_PRODUCERS).contains(&self.producers) || self.producers > self.in_flight {
            return impossible(format!(
                "--producers {} is out of range: choose 1 to {MAX_PRODUCERS}, and no more than --in-flight {}",
                self.producers, self.in_flight
            ));
        }
        if self.in_flight * self.record_size > MAX_IN_FLIGHT_BYTES {
            return impossible(format!(
                "{} records of {} bytes in flight are more than the {} MiB that may be: lower --in-flight or --record-size",
                self.in_flight,
                self.record_size,
                MAX_IN_FLIGHT_BYTES >> 20
            ));
        }
        if self
            .partitions
            .is_some_and(|count| !(1..=MAX_PARTITIONS).contains(&count))
        {
            return impossible(format!(
                "--partitions is out of range: choose 1 to {MAX_PARTITIONS}"
            ));
        }
        if self
            .rate
            .is_some_and(|rate| !(1..=MAX_RATE).contains(&rate))
        {
            return impossible(format!(
                "--rate is out of range: choose 1 to {MAX_RATE} records a second, or leave it away for as many as are acknowledged"
            ));
        }
        if self.records == Some(0) || self.duration.is_some_and(|duration| duration.is_zero()) {
            return impossible(
                "--records 0 and --duration 0s measure nothing: ask for more".to_owned(),
            );
        }
        for cell in &self.cells {
            self.check_cell(cell)?;
        }
        if self.workload == Workload::Replicate {
            self.check_cluster()?;
            self.check_disk()?;
        }
        Ok(())
    }

    fn check_cell(&self, cell: &Cell) -> Result<(), BenchError> {
        let conditions = &cell.conditions;
        conditions.spec(self.workload, self.seed)?;
        if conditions.queue.is_some() && conditions.link_rate.is_none() {
            return Err(BenchError::Impossible(
                "--queue is the queue before a slow link: give --link-rate as well, or leave it away"
                    .to_owned(),
            ));
        }
        let lost = conditions.impairment()?.map_or(0.0, |link| link.loss);
        if lost >= 1.0 {
            return Err(BenchError::Impossible(
                "over links that lose 100% nothing is replicated: choose a --loss below that; `quorate bench gap` measures cuts"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn check_cluster(&self) -> Result<(), BenchError> {
        let impossible = |what: String| Err(BenchError::Impossible(what));
        if !(1..=MAX_NODES).contains(&self.nodes) {
            return impossible(format!(
                "--nodes {} is out of range: choose 1 to {MAX_NODES}",
                self.nodes
            ));
        }
        let replicas = self.replicas();
        if !(1..=self.nodes).contains(&replicas) {
            return impossible(format!(
                "{replicas} replicas need as many nodes, and --nodes is {}: lower --replication-factor, or raise --nodes",
                self.nodes
            ));
        }
        let least = self.min_insync();
        if !(1..=replicas).contains(&least) {
            return impossible(format!(
                "--min-insync-replicas {least} of {replicas} replicas can never be: choose 1 to {replicas}"
            ));
        }
        Ok(())
    }

    fn check_disk(&self) -> Result<(), BenchError> {
        let place = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let place = place.ancestors().find(|place| place.exists());
        let Some(stat) = place.and_then(|place| rustix::fs::statvfs(place).ok()) else {
            // Where that cannot be asked, the nodes will say when their disk is full.
            return Ok(());
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let cells = self.cells.iter();
        let needed = cells.map(|cell| self.disk_bytes(cell)).max().unwrap_or(0);
        if free < needed {
            return Err(BenchError::Impossible(format!(
                "a run may write {} MiB and {} are free: lower --duration, --records or --rate, or name another place with --dir",
                needed >> 20,
                free >> 20
            )));
        }
        Ok(())
    }

    /// What one run may write on all nodes together. Runs follow each other, and each one's folder goes.
    fn disk_bytes(&self, cell: &Cell) -> u64 {
        let replicas = u64::from(self.replicas());
        let time = self.warmup + self.duration.unwrap_or_default();
        let seconds = time.as_secs_f64();
        let record = (self.record_size + RECORD_OVERHEAD) as u64;
        let mut most = vec![DISK_BYTES_PER_SECOND as f64];
        most.extend(self.rate.map(|rate| (rate * record * replicas) as f64));
        // A link of that rate to each follower, and the leader's own copy.
        let link = cell.conditions.impairment().ok().flatten();
        let link_rate = link.and_then(|link| link.rate);
        most.extend(link_rate.map(|bits| bits as f64 / 8.0 * replicas as f64));
        let by_time = (most.into_iter().fold(f64::MAX, f64::min) * seconds) as u64;
        let by_records = self
            .records
            .map(|records| records.saturating_mul(record * replicas));
        match (self.duration, by_records) {
            (Some(_), Some(by_records)) => by_time.min(by_records),
            (Some(_), None) => by_time,
            (None, by_records) => by_time.saturating_add(by_records.unwrap_or(0)),
        }
    }

    /// What a report calls a cell: runs of several commands may be in it.
    pub fn report_name(&self, cell: &Cell) -> String {
        match self.workload {
            Workload::Replicate => cell.name(),
            other => format!("{}, {}", other.name(), cell.name()),
        }
    }

    /// Another one for other settings, or for another build, of a cell; but not for other seeds.
    pub fn fingerprint(&self, cell: &Cell) -> String {
        let millis = |duration: Duration| duration.as_millis() as u64;
        fingerprint(&serde_json::json!({
            "bench": self.workload.name(),
            "conditions": cell.conditions.items().map(|(_, value)| value.clone()),
            "acks": cell.acks.name(),
            "flush": cell.flush.map(flush_name),
            "congestion": cell.congestion.map(Congestion::name),
            "record_size": self.record_size,
            "records": self.records,
            "duration": self.duration.map(millis),
            "warmup": millis(self.warmup),
            "rate": self.rate,
            "in_flight": self.in_flight,
            "producers": self.producers,
            "partitions": self.partitions,
            "compression": self.compression.name(),
            "linger_us": self.linger.as_micros() as u64,
            "replicas": self.replicas,
            "min_insync": self.min_insync,
            "nodes": self.nodes,
            "version": env!("CARGO_PKG_VERSION"),
            "commit": option_env!("QUORATE_COMMIT"),
            "debug": cfg!(debug_assertions),
            "program": program(),
        }))
    }

    /// Of the topic that is made.
    pub fn replicas(&self) -> u16 {
        self.replicas.unwrap_or_else(|| self.nodes.min(3))
    }

    /// A majority unless it is said.
    pub fn min_insync(&self) -> u16 {
        self.min_insync.unwrap_or(self.replicas() / 2 + 1)
    }

    pub(super) fn pattern(&self) -> Pattern {
        Pattern {
            in_flight: self.in_flight,
            record_size: self.record_size,
            filler: match self.compression {
                Compression::None => Filler::Letters,
                _ => Filler::HalfNoise,
            },
            arrivals: self.rate.map_or(Arrivals::AsRoomAllows, Arrivals::Every),
            is_measured: true,
        }
    }

    pub(super) fn producer(&self, acks: Acks) -> ProducerConfig {
        let defaults = ProducerConfig::default();
        // What is in flight is what was asked for, and not what the producer would hold by default.
        let bytes = self.in_flight * (self.record_size + RECORD_OVERHEAD) * 2;
        ProducerConfig {
            acks,
            linger: self.linger,
            compression: self.compression,
            delivery_timeout: DELIVERY_TIMEOUT,
            create_topics: false,
            max_in_flight_bytes: bytes.max(defaults.max_in_flight_bytes),
            ..defaults
        }
    }
}

/// What tells one build of this program from another: how long its file is, and when it was written. `None` where that cannot be
/// told.
fn program() -> Option<(u64, u64)> {
    let file = std::fs::metadata(std::env::current_exe().ok()?).ok()?;
    let written = file.modified().ok()?.duration_since(std::time::UNIX_EPOCH);
    Some((file.len(), written.ok()?.as_secs()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench::flow) fn settings(workload: Workload) -> Settings {
        Settings {
            workload,
            cells: vec![Cell::default()],
            runs: 3,
            seed: 1,
            record_size: 1024,
            records: None,
            duration: Some(Duration::from_secs(1)),
            warmup: Duration::ZERO,
            rate: None,
            in_flight: 256,
            producers: 1,
            partitions: None,
            compression: Compression::None,
            linger: Duration::ZERO,
            replicas: None,
            min_insync: None,
            nodes: 3,
            dir: None,
            keep: false,
            within: Duration::from_secs(30),
        }
    }

    fn conditions(loss: &str, rate: &str) -> Conditions {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Conditions {
            loss: some(loss),
            link_rate: some(rate),
            ..Conditions::default()
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_change() {
        let refused = |change: &dyn Fn(&mut Settings), advice: &str| {
            let mut settings = settings(Workload::Replicate);
            change(&mut settings);
            let error = settings.check().unwrap_err();
            assert!(matches!(error, BenchError::Impossible(_)), "{error}");
            assert!(error.to_string().contains(advice), "{error}");
        };
        settings(Workload::Replicate).check().unwrap();
        refused(&|s| s.runs = 0, "--runs");
        refused(&|s| s.record_size = 23, "choose 24 to 1000000 bytes");
        refused(&|s| s.in_flight = 0, "--in-flight");
        refused(&|s| s.producers = 0, "--producers");
        refused(&|s| s.producers = 257, "--in-flight 256");
        refused(
            &|s| (s.in_flight, s.record_size) = (100_000, 100_000),
            "lower --in-flight",
        );
        refused(&|s| s.partitions = Some(0), "--partitions");
        refused(&|s| s.rate = Some(0), "--rate");
        refused(&|s| s.records = Some(0), "--records");
        refused(&|s| s.duration = Some(Duration::ZERO), "--duration");
        refused(&|s| s.nodes = 9, "--nodes");
        refused(&|s| s.replicas = Some(4), "--replication-factor");
        refused(&|s| s.min_insync = Some(4), "--min-insync-replicas");
        refused(
            &|s| s.cells[0].conditions = conditions("101%", ""),
            "0% to 100%",
        );
        refused(
            &|s| s.cells[0].conditions = conditions("100%", ""),
            "below that",
        );
        refused(&|s| s.cells[0].conditions = conditions("", "fast"), "mbit");
        refused(
            &|s| s.cells[0].conditions.queue = Some("10".into()),
            "--link-rate",
        );
        refused(
            &|s| (s.records, s.duration) = (Some(u64::MAX >> 30), None),
            "another place with --dir",
        );
        refused(
            &|s| s.duration = Some(Duration::from_secs(10_000_000)),
            "lower --duration",
        );
    }

    #[test]
    fn what_a_run_may_write_is_the_least_of_its_limits() {
        let mut settings = settings(Workload::Replicate);
        settings.duration = Some(Duration::from_secs(10));
        let mut cell = Cell::default();
        assert_eq!(settings.disk_bytes(&cell), 10 * DISK_BYTES_PER_SECOND);
        cell.conditions = conditions("", "8mbit");
        assert_eq!(settings.disk_bytes(&cell), 30_000_000);
        settings.rate = Some(10);
        assert_eq!(settings.disk_bytes(&cell), 10 * 10 * 1152 * 3);
        settings.records = Some(20);
        assert_eq!(settings.disk_bytes(&cell), 20 * 1152 * 3);
    }

    #[test]
    fn conditions_are_for_what_nodes_send_and_for_both_ways_of_a_client() {
        let conditions = conditions("1%", "100mbit");
        let spec = |workload| conditions.spec(workload, 7).unwrap().unwrap();
        assert_eq!(
            spec(Workload::Replicate).to_string(),
            "loss=1%,rate=100mbit,seed=7"
        );
        let link = spec(Workload::Produce).of(LinkEnd::Client);
        assert_eq!((link.outward.loss, link.inward.loss), (0.01, 0.01));
        assert_eq!(
            Conditions::default().spec(Workload::Produce, 7).unwrap(),
            None
        );
    }

    #[test]
    fn a_run_is_known_again_by_its_settings_and_not_by_its_seed() {
        let mut settings = settings(Workload::Replicate);
        let cell = Cell::default();
        let first = settings.fingerprint(&cell);
        settings.seed += 1;
        settings.runs += 1;
        assert_eq!(settings.fingerprint(&cell), first);
        let other = Cell {
            conditions: conditions("1%", ""),
            ..Cell::default()
        };
        assert_ne!(settings.fingerprint(&other), first);
        settings.in_flight += 1;
        assert_ne!(settings.fingerprint(&cell), first);
    }

    #[test]
    fn a_cell_is_named_by_what_it_varies() {
        let cell = Cell {
            conditions: conditions("1%", ""),
            congestion: Some(Congestion::Bbr),
            flush: Some(FlushPolicy::Os),
            ..Cell::default()
        };
        assert_eq!(cell.name(), "loss 1%, bbr, acks all, os");
    }
}
