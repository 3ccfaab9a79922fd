//! `quorate bench produce`, `consume`, `e2e` and `replicate`: how fast records flow, and what a link costs.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::super::output::{OutputFormat, Table};
use super::super::signals::Signals;
use super::super::{
    Exit, ExitWith, GlobalOptions, block_on_to_the_end, connect, note, parse_duration, print_line,
};
use super::csv::Csv;
use super::report::Report;
use crate::bench::BenchError;
use crate::bench::flow::{
    self, Cell, Conditions, Figures, Run, Settings, Summary, Target, Witness, Workload,
};
use crate::bench::local::MAX_NODES;
use crate::client::Acks;
use crate::metadata::FlushPolicy;
use crate::record::Compression;
use crate::transport::{Congestion, CurrentIdentity};
use crate::types::TopicName;

/// In flight unless it is said; with a rate of its own, a load has as many as it needs up to the second.
const IN_FLIGHT: usize = 256;
const IN_FLIGHT_OF_A_RATE: usize = 10_000;
const DURATION: Duration = Duration::from_secs(10);

/// Produce to a cluster, and measure how fast it acknowledges
///
/// Every record is read back in the end: the exit code is 10 if one was lost, doubled or not acknowledged.
#[derive(Args, Debug)]
pub(super) struct ProduceArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    acks: AcksArgs,
    #[command(flatten)]
    topic: TopicArgs,
    #[command(flatten)]
    links: LinkArgs,
}

/// Consume a topic of a cluster from its beginning, and measure how fast that is
///
/// A topic with fewer records than --records [default: 100000] is filled up first, which is not measured.
#[derive(Args, Debug)]
pub(super) struct ConsumeArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    topic: TopicArgs,
    #[command(flatten)]
    links: LinkArgs,
}

/// Produce to a cluster and consume it, and measure how long records take from end to end
///
/// Producer and consumer are of this one process.
#[derive(Args, Debug)]
pub(super) struct EndToEndArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    acks: AcksArgs,
    #[command(flatten)]
    topic: TopicArgs,
    #[command(flatten)]
    links: LinkArgs,
}

/// Start a cluster over links that are as bad as you like, produce to it, and measure
///
/// Each run starts nodes on this machine, with the client beside the leader. In the end everything is read back, the nodes are
/// stopped, and the bytes of their replicas are compared: the exit code is 10 if a record was lost, doubled or not acknowledged, or
/// if replicas differ. Flags that take several values make a cell of each combination.
#[derive(Args, Debug)]
pub(super) struct ReplicateArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    acks: AcksArgs,

    /// When an appended record counts as durable
    #[arg(
        long,
        value_name = "POLICY",
        value_delimiter = ',',
        default_value = "fsync"
    )]
    flush: Vec<Flush>,

    /// Congestion controller of the nodes: keel, cubic or bbr [default: the nodes' own]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    congestion: Vec<Congestion>,

    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_NODES)))]
    nodes: u16,

    #[command(flatten)]
    shape: ShapeArgs,
    /// Folder for the runs, new or empty [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Keep the runs' folders, with data and logs
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    links: LinkArgs,
}

#[derive(Args, Debug)]
struct LoadArgs {
    /// Bytes of a record's value
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    record_size: usize,

    /// Stop measuring after so many records
    #[arg(long, value_name = "N")]
    records: Option<u64>,

    /// Stop measuring after this long [default: 10s, or for as long as --records take]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// What is not measured before
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "2s")]
    warmup: Duration,

    /// Send so many records a second, whatever becomes of those before, and count from when each was due [default: as many as are
    /// acknowledged]
    #[arg(long, value_name = "N")]
    rate: Option<u64>,

    /// Records on their way at any time [default: 256; with --rate, as many as are due in a second, to 10000]
    #[arg(long, value_name = "N")]
    in_flight: Option<usize>,

    /// Codec of the batches: none, gzip, snappy, lz4 or zstd
    #[arg(long, value_name = "CODEC", default_value = "none")]
    compression: Compression,

    /// How many producers, each with connections of its own, share what is on its way
    #[arg(long, value_name = "N", default_value_t = 1)]
    producers: usize,

    /// How long the producer waits for more records before it sends a batch. Without, it waits only behind another batch of the
    /// partition, for 1 ms, and not where answers take longer than 16 ms
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "0ms")]
    linger: Duration,

    /// How often each cell is run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// What losses and delays are drawn from; each further run of a cell has the next one [default: a random one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Folder for a report, with a page for people. Cells that it has already, with the same settings, are not run again
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct AcksArgs {
    /// When a record counts as delivered: all, 1 or 0
    #[arg(
        long,
        value_name = "ACKS",
        value_delimiter = ',',
        allow_hyphen_values = true,
        default_value = "all"
    )]
    acks: Vec<Acks>,
}

/// Of a topic that is made.
#[derive(Args, Debug)]
struct ShapeArgs {
    /// Partitions of the topic [default: 1]
    #[arg(long, value_name = "N")]
    partitions: Option<u32>,

    /// Replicas of each partition [default: 3, or as many as there are nodes]
    #[arg(long, value_name = "N")]
    replication_factor: Option<u16>,

    /// Replicas that must hold a record before acks=all is answered [default: a majority]
    #[arg(long, value_name = "N")]
    min_insync_replicas: Option<u16>,
}

#[derive(Args, Debug)]
struct TopicArgs {
    /// Topic, made if it is missing; it stays [default: a new one for each run, which goes again]
    #[arg(long, value_name = "NAME")]
    topic: Option<TopicName>,

    /// When an appended record counts as durable, in a topic that is made [default: as the nodes have it]
    #[arg(long, value_name = "POLICY")]
    flush: Option<Flush>,

    #[command(flatten)]
    shape: ShapeArgs,
}

/// Each end impairs what it sends: a delay of 20 ms makes a round trip of 40 ms.
#[derive(Args, Debug)]
#[command(
    next_help_heading = "Links made worse on purpose: between the nodes, or of this client to a given cluster"
)]
struct LinkArgs {
    /// Share of packets that are lost, such as 1%
    #[arg(long, value_name = "PERCENT", value_delimiter = ',')]
    loss: Vec<String>,

    /// Added to each packet's way, such as 20ms; a round trip takes twice that
    #[arg(long, value_name = "TIME", value_delimiter = ',')]
    delay: Vec<String>,

    /// How far the delay goes up and down, such as 5ms
    #[arg(long, value_name = "TIME")]
    jitter: Option<String>,

    /// What each link carries each way, such as 100mbit
    #[arg(long, value_name = "RATE", value_delimiter = ',')]
    link_rate: Vec<String>,

    /// Packets that may wait before a link of that rate [default: 250]
    #[arg(long, value_name = "PACKETS")]
    queue: Option<String>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// After fdatasync
    Fsync,
    /// Once written: lost if the machine goes down before the operating system writes it out
    Os,
}

impl From<Flush> for FlushPolicy {
    fn from(flush: Flush) -> FlushPolicy {
        match flush {
            Flush::Fsync => FlushPolicy::Fsync,
            Flush::Os => FlushPolicy::Os,
        }
    }
}

/// Each of the values, or once none.
fn each<T: Clone>(values: &[T]) -> Vec<Option<T>> {
    match values {
        [] => vec![None],
        values => values.iter().cloned().map(Some).collect(),
    }
}

/// A cell of each combination, in the order in which people read a matrix: the first flag changes last.
fn cells(
    links: &LinkArgs,
    acks: &[Acks],
    flush: &[Option<FlushPolicy>],
    congestion: &[Congestion],
) -> Vec<Cell> {
    let mut cells = Vec::new();
    for link_rate in each(&links.link_rate) {
        for delay in each(&links.delay) {
            for loss in each(&links.loss) {
                for congestion in each(congestion) {
                    for acks in acks {
                        for flush in flush {
                            cells.push(Cell {
                                conditions: Conditions {
                                    loss: loss.clone(),
                                    delay: delay.clone(),
                                    jitter: links.jitter.clone(),
                                    link_rate: link_rate.clone(),
                                    queue: links.queue.clone(),
                                },
                                acks: *acks,
                                flush: *flush,
                                congestion,
                            });
                        }
                    }
                }
            }
        }
    }
    cells
}

fn settings(
    options: &GlobalOptions,
    workload: Workload,
    load: &LoadArgs,
    shape: &ShapeArgs,
    cells: Vec<Cell>,
) -> Settings {
    let in_flight = match load.rate {
        Some(rate) => usize::try_from(rate)
            .unwrap_or(usize::MAX)
            .clamp(IN_FLIGHT, IN_FLIGHT_OF_A_RATE),
        None => IN_FLIGHT,
    };
    let duration = match load.records {
        Some(_) => load.duration,
        None => Some(load.duration.unwrap_or(DURATION)),
    };
    Settings {
        workload,
        cells,
        runs: load.runs,
        seed: load
            .seed
            .unwrap_or_else(|| rand::random_range(1..1_000_000)),
        record_size: load.record_size,
        records: load.records,
        duration,
        warmup: load.warmup,
        rate: load.rate,
        in_flight: load.in_flight.unwrap_or(in_flight),
        partitions: shape.partitions,
        compression: load.compression,
        linger: load.linger,
        producers: load.producers,
        replicas: shape.replication_factor,
        min_insync: shape.min_insync_replicas,
        nodes: 3,
        dir: None,
        keep: false,
        within: options.timeout,
    }
}

pub(super) fn replicate(options: &GlobalOptions, args: ReplicateArgs) -> anyhow::Result<Exit> {
    let flush: Vec<_> = args
        .flush
        .iter()
        .map(|flush| Some((*flush).into()))
        .collect();
    let cells = cells(&args.links, &args.acks.acks, &flush, &args.congestion);
    let settings = Settings {
        nodes: args.nodes,
        dir: args.dir,
        keep: args.keep,
        ..settings(options, Workload::Replicate, &args.load, &args.shape, cells)
    };
    start(options, settings, None, args.load.report)
}

pub(super) fn produce(options: &GlobalOptions, args: ProduceArgs) -> anyhow::Result<Exit> {
    let acks = args.acks.acks;
    given(
        options,
        Workload::Produce,
        args.load,
        &acks,
        args.topic,
        &args.links,
    )
}

pub(super) fn end_to_end(options: &GlobalOptions, args: EndToEndArgs) -> anyhow::Result<Exit> {
    let acks = args.acks.acks;
    given(
        options,
        Workload::EndToEnd,
        args.load,
        &acks,
        args.topic,
        &args.links,
    )
}

pub(super) fn consume(options: &GlobalOptions, mut args: ConsumeArgs) -> anyhow::Result<Exit> {
    // A topic is read to its end unless a time is given.
    let until = args.load.duration;
    args.load.records.get_or_insert(100_000);
    args.load.duration = until;
    // Reading begins with the first record, and that is measured.
    args.load.warmup = Duration::ZERO;
    given(
        options,
        Workload::Consume,
        args.load,
        &[Acks::All],
        args.topic,
        &args.links,
    )
}

fn given(
    options: &GlobalOptions,
    workload: Workload,
    load: LoadArgs,
    acks: &[Acks],
    topic: TopicArgs,
    links: &LinkArgs,
) -> anyhow::Result<Exit> {
    let flush = [topic.flush.map(FlushPolicy::from)];
    let cells = cells(links, acks, &flush, &[]);
    let settings = settings(options, workload, &load, &topic.shape, cells);
    start(options, settings, Some(topic.topic), load.report)
}

/// `topic` is that of a given cluster, if it is one, and was named.
fn start(
    options: &GlobalOptions,
    settings: Settings,
    topic: Option<Option<TopicName>>,
    report: Option<PathBuf>,
) -> anyhow::Result<Exit> {
    settings.check()?;
    let report = report.map(|dir| Report::open(&dir)).transpose()?;
    let identity = match topic {
        Some(_) => Some(connect::identity(options)?),
        None => None,
    };
    block_on_to_the_end(async {
        let target = identity.map(|identity| Target {
            config: connect::config(options),
            identity: CurrentIdentity::new(identity),
            sockets: options.sockets(),
            topic: topic.flatten(),
        });
        measure(options.output, settings, target, report).await
    })
}

async fn measure(
    output: OutputFormat,
    settings: Settings,
    target: Option<Target>,
    report: Option<Report>,
) -> anyhow::Result<Exit> {
    let signals = Signals::listen().context("cannot listen for Ctrl-C")?;
    let stop = CancellationToken::new();
    let mut screen = Screen {
        output,
        bar: progress_bar(),
        csv: Csv::default(),
        settings: &settings,
        report,
        runs: Vec::new(),
    };
    let measured = tokio::select! {
        biased;
        measured = flow::run(&settings, target.as_ref(), &stop, &mut screen) => measured,
        // The nodes' processes end in a moment, and the measurement with them.
        () = async {
            signals.once().await;
            stop.cancel();
            signals.twice().await;
        } => Err(BenchError::Interrupted),
    };
    screen.bar.finish_and_clear();
    if let Some(report) = &screen.report {
        // What there is so far, however the rest ended.
        report.write_page()?;
    }
    let summaries = Summary::of_all(&screen.runs);
    match output {
        _ if summaries.is_empty() => {}
        OutputFormat::Json | OutputFormat::Csv => {}
        OutputFormat::Table => table(&summaries).print()?,
        OutputFormat::Markdown => table(&summaries)
            .markdown()
            .iter()
            .try_for_each(|line| print_line(line))?,
    }
    match measured {
        Ok(()) => {}
        Err(BenchError::Interrupted) => return Ok(Exit::Interrupted),
        Err(BenchError::Client { doing, source }) => {
            return Err(connect::failed(*source).context(format!("cannot {doing}")));
        }
        Err(error) => return Err(error.into()),
    }
    unsound(&screen.runs)
}

fn unsound(runs: &[Figures]) -> anyhow::Result<Exit> {
    let unsound: Vec<&Figures> = runs.iter().filter(|run| !run.is_sound()).collect();
    let Some(first) = unsound.first() else {
        return Ok(Exit::Ok);
    };
    let sum = |count: fn(&Figures) -> u64| -> u64 { unsound.iter().map(|run| count(run)).sum() };
    let differ = unsound
        .iter()
        .filter(|run| run.replicas_agree == Some(false))
        .count();
    let mut message = format!(
        "of the records of {} runs, {} were lost, {} doubled and {} not acknowledged, and the replicas of {differ} differ",
        unsound.len(),
        sum(|run| run.lost),
        sum(|run| run.duplicated),
        sum(|run| run.unacknowledged)
    );
    if let Some(reason) = first.reasons.first() {
        message.push_str(&format!(" ({reason})"));
    }
    Err(ExitWith::new(Exit::Unhealthy, message).into())
}

fn table(summaries: &[Summary]) -> Table {
    let is_end_to_end = summaries.iter().any(|sum| sum.e2e_p50_ms.is_some());
    let (p50, p99) = match is_end_to_end {
        true => ("E2E P50 MS", "E2E P99 MS"),
        false => ("COMMIT P50 MS", "COMMIT P99 MS"),
    };
    let mut table = Table::new([
        "CELL",
        "RUNS",
        "RECORDS/S",
        "MBIT/S",
        p50,
        p99,
        "MISSED",
        "SELF-LOSS",
        "CPU MS/MIB",
        "RSS MIB",
        "SOUND",
    ]);
    for sum in summaries {
        let show = |figure: Option<f64>, digits: usize| {
            figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}"))
        };
        let (p50, p99) = match is_end_to_end {
            true => (sum.e2e_p50_ms, sum.e2e_p99_ms),
            false => (sum.commit_p50_ms, sum.commit_p99_ms),
        };
        let sound = match sum.unsound {
            0 => "yes".to_owned(),
            some => format!("not {some} of {}", sum.runs),
        };
        table.row([
            sum.cell.clone(),
            sum.runs.to_string(),
            show(sum.records_per_s, 0),
            show(sum.mbit_per_s, 1),
            show(p50, 2),
            show(p99, 2),
            sum.missed
                .map_or_else(|| "-".to_owned(), |missed| missed.to_string()),
            sum.self_loss
                .map_or_else(|| "-".to_owned(), |share| format!("{:.2}%", 100.0 * share)),
            show(sum.cpu_ms_per_mib, 1),
            show(sum.rss_mib, 0),
            sound,
        ]);
    }
    table
}

/// Hidden unless somebody watches.
fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(1000);
    match ProgressStyle::with_template("[{bar:20}] {percent:>3}% {wide_msg}") {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// What a person sees meanwhile, and what runs gave.
struct Screen<'a> {
    output: OutputFormat,
    bar: ProgressBar,
    csv: Csv,
    settings: &'a Settings,
    report: Option<Report>,
    runs: Vec<Figures>,
}

impl Witness for Screen<'_> {
    fn progress(&mut self, doing: &str, done: f64) {
        self.bar.set_position((1000.0 * done) as u64);
        self.bar.set_message(doing.to_owned());
    }

    fn note(&mut self, line: &str) {
        self.bar.suspend(|| note(line));
    }

    fn known(&mut self, cell: &Cell, run: u32) -> io::Result<Option<Run>> {
        // What a given cluster did yesterday, or another one, is no measurement of this one.
        let is_own = self.settings.workload == Workload::Replicate;
        let Some(report) = self.report.as_ref().filter(|_| is_own) else {
            return Ok(None);
        };
        let (name, settings) = (
            self.settings.report_name(cell),
            self.settings.fingerprint(cell),
        );
        let Some(sample) = report.folder.known(&name, &settings, run) else {
            return Ok(None);
        };
        let figures = serde_json::from_value(sample.figures)?;
        Ok(Some(Run {
            figures,
            ..Run::default()
        }))
    }

    fn finished(&mut self, cell: &Cell, run: &Run, is_new: bool) -> io::Result<()> {
        let figures = &run.figures;
        if let (Some(report), true) = (&self.report, is_new) {
            report.folder.keep(&run.sample(self.settings, cell)?)?;
        }
        let json = serde_json::to_string(figures)?;
        let lines = match self.output {
            OutputFormat::Json => vec![json],
            OutputFormat::Csv => self.csv.lines(&json)?,
            OutputFormat::Table | OutputFormat::Markdown => Vec::new(),
        };
        let said = self
            .bar
            .suspend(|| lines.iter().try_for_each(|line| print_line(line)));
        said.map_err(io::Error::other)?;
        if lines.is_empty() {
            self.note(&one_line(figures));
        }
        if let Some(flag) = &figures.red_flag {
            self.note(&format!("RED FLAG: {flag}"));
        }
        if let Some(flag) = &figures.rate_flag {
            self.note(&format!("FLAG: {flag}"));
        }
        if figures.emulator_drops.is_some_and(|packets| packets > 0) {
            self.note(
                "the emulated links held more packets than they can, and dropped some: choose a shorter delay or a lower rate",
            );
        }
        self.runs.push(figures.clone());
        Ok(())
    }
}

fn one_line(figures: &Figures) -> String {
    let times = figures.e2e_p50_ms.zip(figures.e2e_p99_ms);
    let times = times.or(figures.commit_p50_ms.zip(figures.commit_p99_ms));
    let times = times.map_or_else(String::new, |(p50, p99)| {
        format!(", p50 {p50} ms, p99 {p99} ms")
    });
    let missed = figures.missed.filter(|missed| *missed > 0);
    let missed = missed.map_or_else(String::new, |missed| format!(", {missed} missed"));
    format!(
        "{} {} ({}): {:.0} records/s, {:.1} Mbit/s{times}{missed}",
        figures.bench, figures.run, figures.cell, figures.records_per_s, figures.mbit_per_s
    )
}
