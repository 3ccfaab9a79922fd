//! The flags that every command takes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::duration::parse_duration;
use super::output::OutputFormat;
use crate::transport::{ImpairedLinks, ImpairmentSpec, PeerAddress, Sockets};

/// Where certificates are looked for when neither flag nor environment says.
pub const DEFAULT_CERTS_DIR: &str = "certs";

/// Flags that stand before or after the command. A flag wins over the environment.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct GlobalOptions {
    /// Nodes to connect to first, separated by commas; the cluster names the others
    #[arg(
        short = 'b',
        long = "bootstrap-server",
        env = "QUORATE_BOOTSTRAP_SERVER",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        global = true
    )]
    pub bootstrap_servers: Vec<PeerAddress>,

    /// Directory with ca.crt and this end's certificate and key [default: certs]
    #[arg(
        long,
        env = "QUORATE_CERTS_DIR",
        value_name = "DIR",
        hide_env_values = true,
        global = true
    )]
    pub certs_dir: Option<PathBuf>,

    /// How data is written to standard output
    #[arg(
        long,
        env = "QUORATE_OUTPUT",
        value_enum,
        value_name = "FORMAT",
        default_value = "table",
        global = true
    )]
    pub output: OutputFormat,

    /// How long a command may wait for the cluster, such as 500ms or 2m
    #[arg(
        long,
        env = "QUORATE_TIMEOUT",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "30s",
        global = true
    )]
    pub timeout: Duration,

    /// Make this process's QUIC links worse on purpose, such as loss=3%,delay=40ms; docs/operations.md has the language
    #[arg(long, value_name = "SPEC", hide_short_help = true, global = true)]
    pub impair: Option<ImpairmentSpec>,

    /// Log more to standard error: -v what happens, -vv why, -vvv everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

impl GlobalOptions {
    /// The certificates directory, [`DEFAULT_CERTS_DIR`] if none is given.
    pub fn certs_dir(&self) -> &Path {
        self.certs_dir
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_CERTS_DIR))
    }

    /// What a client's connections are on. Must be called within a tokio runtime.
    pub fn sockets(&self) -> Sockets {
        let impaired = self.impair.clone();
        impaired.map_or_else(Sockets::plain, |spec| {
            Sockets::impaired(ImpairedLinks::new(None, spec))
        })
    }

    pub fn json(&self) -> bool {
        self.output == OutputFormat::Json
    }
}
