//! `quorate bench arms` and `quorate bench blackout`: QUIC beside TCP on the same links.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::super::demo::impairment_of;
use super::super::output::{OutputFormat, Table};
use super::super::signals::Signals;
use super::super::{
    Exit, ExitWith, GlobalOptions, block_on_to_the_end, note, parse_duration, print_json,
};
use crate::bench::BenchError;
use crate::bench::arms::{
    Arm, BlackoutFigures, BlackoutSettings, CellFigures, CellSettings, Witness, run_blackouts,
    run_cells,
};
use crate::transport::ImpairmentSpec;

/// The ways between nodes that are compared, and the links that all of them have.
#[derive(Args, Debug)]
struct LinkArgs {
    /// What is compared: quic:keel, quic:cubic, quic:bbr, tcp:cubic, tcp:bbr; may be given several times, or with commas
    #[arg(
        long = "arm",
        value_name = "ARM",
        value_delimiter = ',',
        default_value = "quic:cubic,quic:keel,tcp:cubic,tcp:bbr"
    )]
    arms: Vec<Arm>,

    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Share of packets that each link loses each way, such as 1%
    #[arg(long, value_name = "PERCENT")]
    loss: Option<String>,

    /// Added to each packet's way; a round trip takes twice that
    #[arg(long, value_name = "TIME", default_value = "20ms")]
    delay: String,

    /// How far the delay goes up and down, such as 5ms
    #[arg(long, value_name = "TIME")]
    jitter: Option<String>,

    /// What each link carries each way, such as 100mbit
    #[arg(long, value_name = "RATE")]
    link_rate: Option<String>,

    /// Packets that may wait before a link of that rate [default: 250]
    #[arg(long, value_name = "PACKETS")]
    queue: Option<String>,

    /// What losses are drawn from; each further run has the next one [default: a random one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Bytes of a record's value
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    record_size: usize,

    /// Folder for the nodes, new or empty [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl LinkArgs {
    fn links(&self) -> anyhow::Result<ImpairmentSpec> {
        let spec = impairment_of(&[
            ("loss", &self.loss),
            ("delay", &Some(self.delay.clone())),
            ("jitter", &self.jitter),
            ("rate", &self.link_rate),
            ("queue", &self.queue),
        ])?;
        Ok(spec.unwrap_or_default())
    }

    fn seed(&self) -> u64 {
        self.seed
            .unwrap_or_else(|| rand::random_range(1..1_000_000))
    }
}

/// Measure the same replication over QUIC and over TCP, on the same links
///
/// For each arm three nodes run in a network of their own (see `quorate bench lab`), the leader and the client on one host, and records
/// are produced at acks=all with fsync. Over TCP, frames and acks share one TLS stream for each follower. Needs root, and Linux.
#[derive(Args, Debug)]
pub(super) struct ArmsArgs {
    #[command(flatten)]
    link: LinkArgs,

    /// Records on their way at any time
    #[arg(long, value_name = "N", default_value_t = 256)]
    in_flight: usize,

    /// Partitions of the topic, all led by the same node
    #[arg(long, value_name = "N", default_value_t = 16)]
    partitions: u32,

    /// How long the load runs before it is measured
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "5s")]
    warmup: Duration,

    /// For how long it is measured
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
}

/// Cut every link of a cluster for a while, and measure how soon it goes on: over QUIC, and over TCP
///
/// For each arm three nodes run in a network of their own, one after the other on the same links; see `quorate bench arms`. Needs
/// root, and Linux.
#[derive(Args, Debug)]
pub(super) struct BlackoutArgs {
    #[command(flatten)]
    link: LinkArgs,

    /// How long every link is out; may be given several times, or with commas
    #[arg(
        long = "outage",
        value_name = "DURATION",
        value_parser = parse_duration,
        value_delimiter = ',',
        default_value = "1s,5s,20s"
    )]
    outages: Vec<Duration>,

    /// Records on their way at any time
    #[arg(long, value_name = "N", default_value_t = 64)]
    in_flight: usize,
}

pub(super) fn run(options: &GlobalOptions, args: ArmsArgs) -> anyhow::Result<Exit> {
    let settings = CellSettings {
        links: args.link.links()?,
        seed: args.link.seed(),
        runs: args.link.runs,
        record_size: args.link.record_size,
        in_flight: args.in_flight,
        partitions: args.partitions,
        warmup: args.warmup,
        duration: args.duration,
        within: options.timeout,
        arms: args.link.arms,
        dir: args.link.dir,
    };
    settings.check()?;
    block_on_to_the_end(async move {
        let (measured, screen) = measured(options, move |stop, screen| {
            run_cells(&settings, stop, screen)
        })
        .await?;
        screen.end(measured, cells, CellFigures::is_sound)
    })
}

pub(super) fn run_blackout(options: &GlobalOptions, args: BlackoutArgs) -> anyhow::Result<Exit> {
    let settings = BlackoutSettings {
        links: args.link.links()?,
        seed: args.link.seed(),
        runs: args.link.runs,
        record_size: args.link.record_size,
        in_flight: args.in_flight,
        outages: args.outages,
        within: options.timeout,
        arms: args.link.arms,
        dir: args.link.dir,
    };
    settings.check()?;
    block_on_to_the_end(async move {
        let (measured, screen) = measured(options, move |stop, screen| {
            run_blackouts(&settings, stop, screen)
        })
        .await?;
        screen.end(measured, blackouts, BlackoutFigures::is_sound)
    })
}

/// Runs a measurement on a thread of its own until it has ended, early after a signal: then everything is removed first.
async fn measured<F: Serialize + Send + 'static>(
    options: &GlobalOptions,
    run: impl FnOnce(&CancellationToken, &mut Screen<F>) -> Result<(), BenchError> + Send + 'static,
) -> anyhow::Result<(Result<(), BenchError>, Screen<F>)> {
    let signals = Signals::listen().context("cannot listen for Ctrl-C")?;
    let stop = CancellationToken::new();
    let mut screen = Screen {
        output: options.output,
        terminal: io::stderr().is_terminal(),
        all: Vec::new(),
    };
    let told = stop.clone();
    let mut measuring = tokio::task::spawn_blocking(move || {
        let measured = run(&told, &mut screen);
        (measured, screen)
    });
    let ended = tokio::select! {
        ended = &mut measuring => ended,
        () = signals.once() => {
            stop.cancel();
            measuring.await
        }
    };
    ended.context("the measurement broke off")
}

/// What a person sees meanwhile, and what measurements gave.
struct Screen<F> {
    output: OutputFormat,
    terminal: bool,
    all: Vec<F>,
}

impl<F> Screen<F> {
    fn clear(&self) {
        if self.terminal {
            // Standard error may be closed; then nobody sees the line either.
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }

    fn end(
        self,
        measured: Result<(), BenchError>,
        table: fn(&[F]) -> Table,
        is_sound: fn(&F) -> bool,
    ) -> anyhow::Result<Exit> {
        self.clear();
        if self.output != OutputFormat::Json && !self.all.is_empty() {
            table(&self.all).print()?;
        }
        measured?;
        let unsound = self.all.iter().filter(|figures| !is_sound(figures)).count();
        if unsound == 0 {
            return Ok(Exit::Ok);
        }
        let message = format!(
            "{unsound} measurements lost, doubled or failed to acknowledge records, or ended with replicas that differ: \
             look at them with --output json"
        );
        Err(ExitWith::new(Exit::Unhealthy, message).into())
    }
}

impl<F: Serialize + Clone> Witness<F> for Screen<F> {
    fn progress(&mut self, line: &str) {
        if self.terminal {
            // A line that is too long is cut off, not wrapped.
            let _ = write!(io::stderr().lock(), "\r\x1b[K\x1b[?7l{line}\x1b[?7h");
        }
    }

    fn note(&mut self, line: &str) {
        self.clear();
        note(line);
    }

    fn finished(&mut self, figures: &F) -> io::Result<()> {
        self.clear();
        if self.output == OutputFormat::Json {
            print_json(figures).map_err(io::Error::other)?;
        }
        self.all.push(figures.clone());
        Ok(())
    }
}

fn ms(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"))
}

fn cells(all: &[CellFigures]) -> Table {
    let mut table = Table::new([
        "ARM",
        "RUN",
        "RECORDS/S",
        "MBIT/S",
        "LINK MBIT/S",
        "P50 MS",
        "P99 MS",
        "SELF LOSS",
        "LOST BY CHANCE",
        "CPU MS/MIB",
        "IDLE",
        "SOUND",
    ]);
    for cell in all {
        table.row([
            format!("{}:{}", cell.arm, cell.congestion),
            cell.run.to_string(),
            format!("{:.0}", cell.records_per_s),
            format!("{:.1}", cell.mbit_per_s),
            format!("{:.1}", cell.link_used_mbit),
            ms(cell.commit_p50_ms),
            ms(cell.commit_p99_ms),
            format!("{:.2} %", 100.0 * cell.self_loss),
            format!("{:.2} %", 100.0 * cell.chance_loss),
            ms(cell.cpu_ms_per_mib),
            cell.cpu_idle
                .map_or_else(|| "-".to_owned(), |idle| format!("{:.0} %", 100.0 * idle)),
            if cell.is_sound() { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    table
}

fn blackouts(all: &[BlackoutFigures]) -> Table {
    let mut table = Table::new([
        "ARM",
        "RUN",
        "OUT S",
        "FIRST ACK AFTER HEAL MS",
        "LONGEST GAP MS",
        "P99 BEFORE MS",
        "ISR CHANGES",
        "ELECTIONS",
        "SOUND",
    ]);
    for figures in all {
        table.row([
            format!("{}:{}", figures.arm, figures.congestion),
            figures.run.to_string(),
            figures.outage_s.to_string(),
            ms(figures.first_ack_after_heal_ms),
            ms(Some(figures.longest_ack_gap_ms)),
            ms(figures.p99_before_ms),
            figures.isr_changes.to_string(),
            figures.elections.to_string(),
            if figures.is_sound() { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    table
}
