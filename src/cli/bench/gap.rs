//! `quorate bench gap`: for how long nobody gets an acknowledgement when something breaks.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::PossibleValuesParser;
use tokio_util::sync::CancellationToken;

use super::super::output::OutputFormat;
use super::super::signals::Signals;
use super::super::{
    Exit, ExitWith, GlobalOptions, block_on_to_the_end, note, parse_duration, print_json,
    print_line,
};
use crate::bench::BenchError;
use crate::bench::gap::{
    self, Figures, SCENARIOS, Scenario, Settings, Summary, Witness, markdown, text,
};

const MIB: u64 = 1 << 20;

/// Break one thing after the other in clusters of their own, and measure how long acknowledgements stay away
///
/// Each run starts nodes on this machine, keeps records on their way at acks=all, breaks something, mends it, and reads
/// everything back. Goals that are missed are shown and change no exit code: it is 10 only where a record was lost, doubled or
/// not acknowledged.
#[derive(Args, Debug)]
pub(super) struct GapArgs {
    /// What to break; may be given several times [default: all but the long ones]
    #[arg(
        long = "scenario",
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(SCENARIOS.iter().map(|scenario| scenario.name))
    )]
    scenarios: Vec<String>,

    /// Show the scenarios and their goals, and run nothing
    #[arg(long)]
    list: bool,

    /// How often each scenario is run
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// How long the faults of the long scenarios last, in place of their own time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Records on their way at any time
    #[arg(long, value_name = "N", default_value_t = 64)]
    in_flight: usize,

    /// Bytes of a record's value
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    record_size: usize,

    /// What the follower of follower-catch-up has to catch up with
    #[arg(long, value_name = "BYTES", default_value_t = 1024 * MIB)]
    catch_up_bytes: u64,

    /// What losses and delays are drawn from; each further run of a scenario has the next one [default: a random one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Folder for the runs, new or empty [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Keep the runs' folders, with data and logs
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(options: &GlobalOptions, args: GapArgs) -> anyhow::Result<Exit> {
    if args.list {
        return list(options);
    }
    let scenarios: Vec<&'static Scenario> = match args.scenarios.is_empty() {
        true => SCENARIOS
            .iter()
            .filter(|scenario| !scenario.is_long)
            .collect(),
        false => args
            .scenarios
            .iter()
            .filter_map(|name| Scenario::named(name))
            .collect(),
    };
    let settings = Settings {
        scenarios,
        runs: args.runs,
        duration: args.duration,
        in_flight: args.in_flight,
        record_size: args.record_size,
        catch_up_bytes: args.catch_up_bytes,
        seed: args
            .seed
            .unwrap_or_else(|| rand::random_range(1..1_000_000)),
        dir: args.dir,
        keep: args.keep,
        within: options.timeout,
    };
    settings.check()?;
    block_on_to_the_end(measure(options.output, settings))
}

async fn measure(output: OutputFormat, settings: Settings) -> anyhow::Result<Exit> {
    let signals = Signals::listen().context("cannot listen for Ctrl-C")?;
    let stop = CancellationToken::new();
    let mut screen = Screen {
        json: output == OutputFormat::Json,
        terminal: io::stderr().is_terminal(),
        runs: Vec::new(),
    };
    let measured = tokio::select! {
        biased;
        measured = gap::run(&settings, &stop, &mut screen) => measured,
        // The nodes' processes end in a moment, and the measurement with them.
        () = async {
            signals.once().await;
            stop.cancel();
            signals.twice().await;
        } => Err(BenchError::Interrupted),
    };
    screen.clear();
    let summaries = Summary::of_all(&screen.runs);
    let lines = match output {
        _ if summaries.is_empty() => Vec::new(),
        OutputFormat::Json => Vec::new(),
        OutputFormat::Table => text(&summaries),
        OutputFormat::Markdown => markdown(&summaries),
    };
    lines.iter().try_for_each(|line| print_line(line))?;
    match measured {
        Ok(()) => {}
        Err(BenchError::Interrupted) => return Ok(Exit::Interrupted),
        Err(error) => return Err(error.into()),
    }
    let unsound: Vec<&Figures> = screen.runs.iter().filter(|run| !run.is_sound()).collect();
    if unsound.is_empty() {
        return Ok(Exit::Ok);
    }
    let sum = |count: fn(&Figures) -> u64| -> u64 { unsound.iter().map(|run| count(run)).sum() };
    let message = format!(
        "of the records of {} runs, {} were lost, {} doubled and {} not acknowledged: see the logs that were kept",
        unsound.len(),
        sum(|run| run.lost),
        sum(|run| run.duplicated),
        sum(|run| run.unacknowledged)
    );
    Err(ExitWith::new(Exit::Unhealthy, message).into())
}

fn list(options: &GlobalOptions) -> anyhow::Result<Exit> {
    for scenario in SCENARIOS {
        if options.json() {
            print_json(&serde_json::json!({
                "scenario": scenario.name,
                "what": scenario.what,
                "goal": scenario.goal,
                "long": scenario.is_long,
            }))?;
            continue;
        }
        let long = if scenario.is_long {
            " (only by name)"
        } else {
            ""
        };
        print_line(&format!(
            "{:<18}  {}{long}: {}",
            scenario.name, scenario.what, scenario.goal
        ))?;
    }
    Ok(Exit::Ok)
}

/// What a person sees meanwhile, and what runs gave.
struct Screen {
    json: bool,
    terminal: bool,
    runs: Vec<Figures>,
}

impl Screen {
    /// The line that shows where things stand goes.
    fn clear(&self) {
        if self.terminal {
            // Standard error may be closed; then nobody sees the line either.
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Witness for Screen {
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

    fn finished(&mut self, figures: &Figures) -> io::Result<()> {
        self.clear();
        if self.json {
            print_json(figures).map_err(io::Error::other)?;
        } else {
            let met = if figures.met { "met" } else { "missed" };
            note(&format!(
                "{} {}: longest gap {} ms, goal {met}",
                figures.scenario, figures.run, figures.longest_ack_gap_ms
            ));
        }
        self.runs.push(figures.clone());
        Ok(())
    }
}
