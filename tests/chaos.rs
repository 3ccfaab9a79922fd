//! Three nodes as processes, over real QUIC, under faults that a seed chooses: processes killed, frozen and restarted, links cut
//! and lossy, in any combination, while producers produce and consumers read. In the end nothing that was acknowledged is
//! missing, nothing is there twice or out of order, and nobody has read what is not there.
//!
//! By itself it runs for less than a minute with a fixed seed. Longer, and with other seeds:
//!
//! ```sh
//! QUORATE_CHAOS_SECONDS=1800 QUORATE_CHAOS_SEED=7 cargo test --release --test chaos anything -- --nocapture
//! ```
//!
//! `QUORATE_CHAOS_NODES` (3), `QUORATE_CHAOS_RATE` (records a second, 1000) and `QUORATE_CHAOS_FULL_DISK=1` (as root: one node's
//! disk is a small one, and is filled now and then) change what is run.

// A test that cannot go on panics, and what it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, unreachable_pub)]

mod support;

mod chaos {
    pub mod clients;
    pub mod history;
    pub mod journal;
    pub mod network;
    pub mod run;
    pub mod schedule;
    pub mod watch;
}

use std::time::{Duration, Instant};

use chaos::run::{Run, Settings};
use chaos::schedule::hands;

/// A storm ends after this, and everything must come to be well before the next.
const STORM: Duration = Duration::from_secs(30);
/// Without being told otherwise.
const SECONDS: u64 = 30;
const SEED: u64 = 20;
const RATE: u32 = 1000;
const PARTITIONS: u32 = 4;

/// A number that the caller's environment sets.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text:?} is not a number")),
        Err(_) => default,
    }
}

fn settings() -> Settings {
    Settings {
        seed: setting("QUORATE_CHAOS_SEED", SEED),
        nodes: u32::try_from(setting("QUORATE_CHAOS_NODES", 3)).unwrap(),
        partitions: PARTITIONS,
        rate: u32::try_from(setting("QUORATE_CHAOS_RATE", u64::from(RATE))).unwrap(),
        with_full_disk: setting("QUORATE_CHAOS_FULL_DISK", 0) != 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anything_may_fail_and_nothing_acknowledged_is_lost() {
    let settings = settings();
    let length = Duration::from_secs(setting("QUORATE_CHAOS_SECONDS", SECONDS));
    println!("chaos for {length:?}: {settings:?}");
    let mut run = Run::start(settings).await;
    let nodes = run.cluster.ids();
    let (mut processes, mut links) = hands(
        settings.seed,
        &nodes,
        settings.partitions,
        settings.with_full_disk,
    );
    let end = Instant::now() + length;
    while Instant::now() < end {
        let left = end - Instant::now();
        run.storm(&mut processes, &mut links, left.min(STORM)).await;
        run.calm().await;
    }
    let report = run.finish().await;
    println!("{report}");
    assert!(report.violations.is_empty(), "{}", report.violations);
    assert!(report.all.acknowledged > 0, "nothing was acknowledged");
}
