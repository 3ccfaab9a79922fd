//! `quorate completion`: a script that teaches a shell to complete this program's arguments.

use clap::{Args, Command};
use clap_complete::Shell;

use super::exit::Exit;
use super::output::print_line;

/// Print a completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = "Example, for this session of bash:  source <(quorate completion bash)")]
pub(super) struct CompletionArgs {
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: CompletionArgs, mut program: Command) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "quorate", &mut script);
    print_line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Ok)
}
