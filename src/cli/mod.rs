//! Floor 11: the command line. One file a command; data to standard output, everything else to standard error.

mod bench;
mod cert;
mod cluster;
mod completion;
mod connect;
mod consume;
mod consume_group;
mod delimiter;
mod demo;
mod doctor;
mod duration;
mod exit;
mod group;
mod kafka_listeners;
mod link;
mod log;
mod logging;
mod options;
mod outlet;
mod output;
mod produce;
mod proxy;
mod server;
mod signals;
mod topic;
mod unterminated;
mod user;

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};

pub use consume::Format;
pub use delimiter::{Delimiter, InvalidDelimiter};
pub use duration::{InvalidDuration, parse_duration};
pub use exit::{Exit, ExitWith, OutputClosed};
pub use kafka_listeners::{InvalidListener, NamedListener, UnknownSecurity};
pub use options::{DEFAULT_CERTS_DIR, GlobalOptions};
pub use output::{OutputFormat, Table, note, print_json, print_line};

/// A replicated log broker for links that fail.
///
/// Every connection is under mutual TLS: make certificates with `quorate cert`, and name their directory with --certs-dir.
#[derive(Parser, Debug)]
#[command(
    name = "quorate",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 ok, 1 failure, 2 usage, 3 cannot connect or TLS refused, \
                  4 some records not acknowledged, 10 unhealthy, 130 interrupted."
)]
struct Cli {
    #[command(flatten)]
    options: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::DemoArgs),
    Server(server::ServerArgs),
    Topic(topic::TopicArgs),
    Produce(Box<produce::ProduceArgs>),
    Consume(Box<consume::ConsumeArgs>),
    Group(group::GroupArgs),
    Proxy(proxy::ProxyArgs),
    User(user::UserArgs),
    Cluster(cluster::ClusterArgs),
    Link(link::LinkArgs),
    Doctor(doctor::DoctorArgs),
    Bench(bench::BenchArgs),
    Cert(cert::CertArgs),
    Completion(completion::CompletionArgs),
    Log(log::LogArgs),
}

/// Runs the program with the process's own arguments.
pub fn main() -> ExitCode {
    run(std::env::args_os()).into()
}

fn run(arguments: impl Iterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Help and version are what was asked for, not an error.
            return if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
        }
    };
    let level = match cli.command {
        // A server's log is what its operator has.
        Command::Server(_) | Command::Proxy(_) => tracing::Level::INFO,
        _ => tracing::Level::WARN,
    };
    logging::init(level, cli.options.verbose);
    let is_of_bench = matches!(
        cli.options.output,
        OutputFormat::Markdown | OutputFormat::Csv
    );
    if is_of_bench && !matches!(cli.command, Command::Bench(_)) {
        output::print_error(&anyhow::anyhow!(
            "--output markdown and csv are for `quorate bench` only: choose table or json"
        ));
        return Exit::Usage;
    }
    let outcome = match cli.command {
        Command::Demo(args) => demo::run(&cli.options, args),
        Command::Server(args) => server::run(&cli.options, args),
        Command::Topic(args) => topic::run(&cli.options, args),
        Command::Produce(args) => produce::run(&cli.options, *args),
        Command::Consume(args) => consume::run(&cli.options, *args),
        Command::Group(args) => group::run(&cli.options, args),
        Command::Proxy(args) => proxy::run(&cli.options, args),
        Command::User(args) => user::run(&cli.options, args),
        Command::Cluster(args) => cluster::run(&cli.options, args),
        Command::Link(args) => link::run(&cli.options, args),
        Command::Doctor(args) => doctor::run(&cli.options, args),
        Command::Bench(args) => bench::run(&cli.options, args),
        Command::Cert(args) => cert::run(&cli.options, args),
        Command::Log(args) => log::run(&cli.options, args),
        Command::Completion(args) => completion::run(args, Cli::command()),
    };
    outcome.unwrap_or_else(|error| {
        output::print_error(&error);
        Exit::of(&error)
    })
}

/// Runs a command that waits for others, on a runtime of its own. Ctrl-C drops it where it stands and ends with
/// [`Exit::Interrupted`].
pub fn block_on(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    block_on_to_the_end(async {
        tokio::select! {
            biased;
            outcome = command => outcome,
            interrupted = tokio::signal::ctrl_c() => match interrupted {
                Ok(()) => Ok(Exit::Interrupted),
                Err(error) => Err(error).context("cannot listen for Ctrl-C"),
            },
        }
    })
}

/// The same for a command that has something to tidy up, and so listens for Ctrl-C itself.
pub fn block_on_to_the_end(
    command: impl Future<Output = anyhow::Result<Exit>>,
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context(
            "cannot start the program's threads: check the limits on processes and open files",
        )?;
    let outcome = runtime.block_on(command);
    // A name lookup that hangs on a thread of its own must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_words(line: &str) -> Exit {
        run(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_flags_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_is_2_and_help_is_0() {
        assert_eq!(run_words("quorate --help"), Exit::Ok);
        assert_eq!(run_words("quorate cert create-node 0 x"), Exit::Usage);
        assert_eq!(run_words("quorate cert create-node 1 a:b"), Exit::Usage);
        assert_eq!(run_words("quorate nonsense"), Exit::Usage);
        assert_eq!(run_words("quorate --timeout 5 cert list"), Exit::Usage);
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        for line in [
            "quorate -b a:1,2@b:2 --certs-dir x --output json -vv cert list",
            "quorate cert list -b a:1 -b 2@b:2 --certs-dir x --output json -vv",
        ] {
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            let servers: Vec<_> = cli
                .options
                .bootstrap_servers
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(servers, ["a:1", "2@b:2"]);
            assert_eq!(cli.options.certs_dir(), "x");
            assert!(cli.options.json());
            assert_eq!(cli.options.verbose, 2);
        }
    }
}
