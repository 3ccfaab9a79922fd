//! `quorate bench`: measurements with clusters of processes on this machine.

mod gap;

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
}

pub(super) fn run(options: &GlobalOptions, args: BenchArgs) -> anyhow::Result<Exit> {
    match args.command {
        BenchCommand::Gap(args) => gap::run(options, args),
    }
}
