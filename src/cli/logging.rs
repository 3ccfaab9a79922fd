//! Logs go to standard error, so that data can be piped.

use std::io::{self, IsTerminal};

use tracing::Level;
use tracing_subscriber::EnvFilter;

/// The environment variable that sets the filter outright, in tracing's notation (`quorate=debug,quinn=warn`).
pub(super) const LOG_VARIABLE: &str = "QUORATE_LOG";

/// Sets up logging for the process, once. `quiet` is the level without any `-v`: a server tells more than a client.
pub(super) fn init(quiet: Level, verbose: u8) {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(filter) if !filter.is_empty() => EnvFilter::new(filter),
        _ => EnvFilter::new(filter_for(quiet, verbose)),
    };
    // Fails only where a logger is set already, as in a test.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose >= 2)
        .try_init();
}

/// Other people's crates are heard from `-vvv` on.
fn filter_for(quiet: Level, verbose: u8) -> String {
    let levels = [Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
    let start = levels.iter().position(|level| *level == quiet).unwrap_or(0);
    let wanted = (start + usize::from(verbose)).min(levels.len() - 1);
    let others = if verbose >= 3 {
        Level::DEBUG
    } else {
        Level::ERROR
    };
    // openraft repeats itself several times a second while a peer is away; this program says the same once.
    let raft = if verbose >= 3 { "debug" } else { "off" };
    format!("{others},openraft={raft},quorate={}", levels[wanted]).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_v_says_more() {
        assert_eq!(
            filter_for(Level::WARN, 0),
            "error,openraft=off,quorate=warn"
        );
        assert_eq!(
            filter_for(Level::WARN, 2),
            "error,openraft=off,quorate=debug"
        );
        assert_eq!(
            filter_for(Level::INFO, 1),
            "error,openraft=off,quorate=debug"
        );
        assert_eq!(
            filter_for(Level::INFO, 200),
            "debug,openraft=debug,quorate=trace"
        );
    }
}
