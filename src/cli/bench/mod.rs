//! `quorate bench`: measurements with clusters of processes on this machine.

#[cfg(target_os = "linux")]
mod arms;
mod gap;
#[cfg(target_os = "linux")]
mod lab;

use clap::{Args, Subcommand};

use super::{Exit, GlobalOptions};

/// Measure what failures cost, with clusters of processes on this machine
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand, Debug)]
enum BenchCommand {
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
        BenchCommand::Gap(args) => gap::run(options, args),
        #[cfg(target_os = "linux")]
        BenchCommand::Arms(args) => arms::run(options, args),
        #[cfg(target_os = "linux")]
        BenchCommand::Blackout(args) => arms::run_blackout(options, args),
        #[cfg(target_os = "linux")]
        BenchCommand::Lab(args) => lab::run(options, args),
    }
}
