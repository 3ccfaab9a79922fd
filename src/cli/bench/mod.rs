//! `quorate bench`: measurements, of a given cluster or with clusters of processes on this machine.

#[cfg(target_os = "linux")]
mod arms;
mod csv;
mod flow;
mod gap;
#[cfg(target_os = "linux")]
mod lab;
mod report;

use clap::{Args, Subcommand};

use super::{Exit, GlobalOptions};

/// Measure: how fast records flow, what a bad link costs, and what failures cost
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand, Debug)]
enum BenchCommand {
    Produce(Box<flow::ProduceArgs>),
    Consume(Box<flow::ConsumeArgs>),
    E2e(Box<flow::EndToEndArgs>),
    Replicate(Box<flow::ReplicateArgs>),
    Gap(gap::GapArgs),
    #[cfg(target_os = "linux")]
    Arms(arms::ArmsArgs),
    #[cfg(target_os = "linux")]
    Blackout(arms::BlackoutArgs),
    #[cfg(target_os = "linux")]
    Lab(lab::LabArgs),
}

pub(super) fn run(options: &GlobalOptions, args: BenchArgs) -> anyhow::Result<Exit> {
    match args.command {
        BenchCommand::Produce(args) => flow::produce(options, *args),
        BenchCommand::Consume(args) => flow::consume(options, *args),
        BenchCommand::E2e(args) => flow::end_to_end(options, *args),
        BenchCommand::Replicate(args) => flow::replicate(options, *args),
        BenchCommand::Gap(args) => gap::run(options, args),
        #[cfg(target_os = "linux")]
        BenchCommand::Arms(args) => arms::run(options, args),
        #[cfg(target_os = "linux")]
        BenchCommand::Blackout(args) => arms::run_blackout(options, args),
        #[cfg(target_os = "linux")]
        BenchCommand::Lab(args) => lab::run(options, args),
    }
}
