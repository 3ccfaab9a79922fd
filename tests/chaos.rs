//! Three nodes as processes, over real QUIC, under faults that a seed chooses: processes killed, frozen and restarted, links cut
//! and lossy, in any combination, while producers produce, in transactions and without, and consumers read. In the end nothing
//! that was acknowledged is missing, nothing is there twice or out of order, nobody has read what is not there, and every
//! transaction is there whole or not at all.
//!
//! By itself it runs for a minute with a fixed seed. Longer, and with other seeds:
//!
//! ```sh
//! QUORATE_CHAOS_SECONDS=1800 QUORATE_CHAOS_SEED=7 cargo test --release --test chaos anything -- --nocapture
//! ```
//!
//! `QUORATE_CHAOS_NODES` (3), `QUORATE_CHAOS_RATE` (records a second, 1000) and `QUORATE_CHAOS_FULL_DISK=1` (as root: one node's
//! disk is a small one, and is filled now and then) change what is run. Beside it there are scenarios that say what happens, and
//! `QUORATE_CHAOS_LOOPS` says how often:
//!
//! ```sh
//! QUORATE_CHAOS_LOOPS=20 cargo test --release --test chaos leader_killed -- --nocapture     # how long acks stay away, and why
//! QUORATE_CHAOS_LOOPS=20 cargo test --release --test chaos whole_cluster -- --nocapture
//! QUORATE_CHAOS_LOOPS=5 cargo test --release --test chaos rolling -- --nocapture
//! ```

// A test that cannot go on panics, and what it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, unreachable_pub)]

mod support;

mod chaos {
    pub mod clients;
    pub mod failover;
    pub mod hands;
    pub mod history;
    pub mod journal;
    pub mod ledger;
    pub mod network;
    pub mod run;
    pub mod schedule;
    pub mod transactors;
    pub mod watch;
}

use std::time::{Duration, Instant, SystemTime};

use chaos::failover::{Failover, summary};
use chaos::history::Promise;
use chaos::run::{Run, Settings};
use chaos::schedule::{Random, hands};
use support::kafka::{Kafka, batch};
use support::until;

/// A storm ends after this, and everything must come to be well before the next.
const STORM: Duration = Duration::from_secs(30);
/// Without being told otherwise.
const SECONDS: u64 = 60;
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
    assert!(report.ends.committed > 0, "nothing was committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_cluster_is_killed_again_and_again_and_nothing_acknowledged_is_lost() {
    let mut run = Run::start(settings()).await;
    for _ in 0..setting("QUORATE_CHAOS_LOOPS", 2) {
        run.kill_all(Duration::from_millis(200)).await;
        run.calm().await;
    }
    let report = run.finish().await;
    println!("{report}");
    assert!(report.violations.is_empty(), "{}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_shows_producers_no_error() {
    let mut run = Run::start(settings()).await;
    for _ in 0..setting("QUORATE_CHAOS_LOOPS", 1) {
        run.roll().await;
    }
    run.calm().await;
    let report = run.finish().await;
    println!("{report}");
    assert!(report.violations.is_empty(), "{}", report.violations);
    assert_eq!((report.all.failed, report.leader.failed), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_paused_and_woken_is_fenced() {
    const LATE: [(u32, Promise, i16); 2] = [(11, Promise::All, -1), (12, Promise::Leader, 1)];
    let mut run = Run::start(settings()).await;
    run.calm().await;
    let topic = run.shared.topic.clone();
    let paused = run.cluster.until_led(&topic, 0, |_| true).await;
    let mut connections = Vec::new();
    for (producer, promise, acks) in LATE {
        run.shared.history().add_producer(producer, promise);
        let id = run.shared.history().sent(producer, 0);
        let kafka = Kafka::connect(run.cluster.spec(paused).kafka).await;
        connections.push((id, acks, kafka));
    }
    run.cluster.freeze(paused);
    run.shared
        .journal
        .note(&format!("SIGSTOP to node {paused}"));
    // They lie in its sockets until it wakes, and then it takes itself for the leader.
    let mut late = Vec::new();
    for (id, acks, mut kafka) in connections {
        late.push(tokio::spawn(async move {
            let records = batch(&[&id.value()]);
            let answer = kafka.produce("chaos", 0, records, acks, Duration::from_secs(5));
            (id, acks, answer.await)
        }));
    }
    let next = run.cluster.until_led(&topic, 0, |id| id != paused).await;
    run.shared
        .journal
        .note(&format!("node {next} leads; SIGCONT to node {paused}"));
    run.cluster.thaw(paused);
    for answer in late {
        let (id, acks, (code, offset)) = answer.await.unwrap();
        run.shared.journal.note(&format!(
            "node {paused} answers acks={acks} with code {code}, offset {offset}"
        ));
        match code {
            // That this is true is checked at the end.
            0 => {
                let offset = u64::try_from(offset).ok();
                run.shared.history().acknowledged(id, offset);
            }
            _ => run.shared.history().failed(id, true),
        }
    }
    until("the woken node follows", async || {
        let partition = run.cluster.partition(paused, &topic, 0).await?;
        let role = partition.local.map(|local| local.role);
        match (partition.leader == Some(paused), role.as_deref()) {
            (false, Some("follower")) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    run.calm().await;
    let report = run.finish().await;
    println!("{report}");
    assert!(report.violations.is_empty(), "{}", report.violations);
    assert_eq!((report.all.lost, report.all.duplicated), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_resume_when_a_leader_is_killed() {
    let settings = settings();
    let mut random = Random::new(settings.seed);
    let mut run = Run::start(settings).await;
    let mut failovers = Vec::new();
    for _ in 0..setting("QUORATE_CHAOS_LOOPS", 1) {
        run.calm().await;
        let index = random.below(u64::from(settings.partitions)) as u32;
        let topic = run.shared.topic.clone();
        let killed = run.cluster.until_led(&topic, index, |_| true).await;
        let was_controller = run.leaders.controller() == Some(killed);
        let (begin, wall) = (Instant::now(), SystemTime::now());
        run.kill(killed);
        let next = run
            .cluster
            .until_led(&topic, index, |id| id != killed)
            .await;
        let led = Instant::now();
        let acknowledged = until("acks resume", async || {
            let last = run.shared.journal.last_ack(index);
            last.filter(|last| *last > led)
                .ok_or_else(|| "none yet".to_owned())
        })
        .await;
        let resumed = run.shared.journal.gap_around(index, begin);
        let resumed = resumed.map_or(acknowledged, |gap| gap.end);
        let failover = Failover::from_logs(&run.cluster, index, wall, resumed - begin);
        run.shared.journal.note(&format!(
            "node {killed} killed{}, node {next} leads {index}: {failover}",
            if was_controller {
                ", also the active controller"
            } else {
                ""
            }
        ));
        run.shared.journal.fault("leader killed", begin);
        failovers.push((was_controller, failover));
        run.spawn(killed);
    }
    run.calm().await;
    let report = run.finish().await;
    println!("{report}\n{}", summary(&failovers));
    assert!(report.violations.is_empty(), "{}", report.violations);
    assert_eq!(report.all.failed, 0);
}
