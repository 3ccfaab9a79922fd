//! Three nodes as processes: who takes over when a leader, an active controller or a majority of the controllers is gone,
//! and how long that takes. Times go to the output and are never asserted.
//!
//! `QUORATE_KILLS=20 cargo test --release --test failover -- --nocapture a_leader_is_killed` measures twenty kills of each
//! kind. `QUORATE_IMPAIRED_SECONDS=600 cargo test --release --test failover -- --nocapture a_bad_link` watches for ten
//! minutes whom a cluster buries, and whom it replaces, whose links all lose 5 % at a round trip of 200 ms.

// A test that cannot go on panics, and what it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::time::{Duration, Instant, SystemTime};

use quorate::client::{Client, ProducerConfig};
use quorate::types::{ErrorCode, NodeId, TopicName};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use support::cluster::Cluster;
use support::kafka::{Kafka, batch};
use support::relay::{Impairment, Link};
use support::workload::{Workload, check};
use support::{node, until};

const NO_ERRORS: [&str; 0] = [];
/// Kills of each kind, unless QUORATE_KILLS says otherwise.
const KILLS: usize = 2;
/// Whatever the machine is busy with: acknowledgements must be back by then.
const GENEROUS: Duration = Duration::from_secs(30);

fn produce(client: &Client, topic: &TopicName, index: u32) -> Workload {
    Workload::start(client, topic, &[index], 512, ProducerConfig::default())
}

async fn active_controller(cluster: &Cluster) -> NodeId {
    until("a controller is active", async || {
        for id in cluster.running() {
            if let Ok(status) = cluster.status(id).await
                && let Some(active) = status.active_controller
                && cluster.running().contains(&active)
            {
                return Ok(active);
            }
        }
        Err("none is".to_owned())
    })
    .await
}

/// When a node first logged a line with all of `words` after `from`.
fn logged(cluster: &Cluster, from: SystemTime, words: &[&str]) -> Option<Duration> {
    let from = OffsetDateTime::from(from);
    let texts = cluster.specs.iter().map(|spec| spec.log_text());
    texts
        .filter_map(|text| {
            text.lines()
                .filter(|line| words.iter().all(|word| line.contains(word)))
                .filter_map(|line| OffsetDateTime::parse(line.split_once(' ')?.0, &Rfc3339).ok())
                .find(|at| *at >= from)
        })
        .min()
        .map(|at| Duration::try_from(at - from).unwrap())
}

/// What happened when after a kill. `None` where no log tells it.
#[derive(Debug)]
struct Failover {
    /// The node was held for dead.
    dead: Option<Duration>,
    /// Another controller was active. Only where the active one was killed.
    controller: Option<Duration>,
    /// The election began.
    begun: Option<Duration>,
    /// It ended.
    appointed: Option<Duration>,
    /// From the last acknowledgement before to the first one after.
    gap: Duration,
}

fn millis(mut times: Vec<Duration>) -> String {
    times.sort();
    match times.last() {
        Some(worst) => {
            let median = times[times.len() / 2].as_millis();
            format!("{median} / {} ms", worst.as_millis())
        }
        None => "-".to_owned(),
    }
}

fn print_table(kind: &str, failovers: &[Failover]) {
    let column = |part: fn(&Failover) -> Option<Duration>| {
        millis(failovers.iter().filter_map(part).collect())
    };
    println!(
        "{} kills of {kind}, median / worst: acks back after {}; held for dead after {}, a controller active after {}, \
         election begun after {}, leader appointed after {}, first ack {} later",
        failovers.len(),
        column(|f| Some(f.gap)),
        column(|f| f.dead),
        column(|f| f.controller),
        column(|f| f.begun),
        column(|f| f.appointed),
        column(|f| f.gap.checked_sub(f.appointed?)),
    );
}

/// Kills the leader of a fresh topic's partition under load. `active_too`: one that is the active controller.
async fn kill_a_leader(cluster: &mut Cluster, round: usize, active_too: bool) -> Failover {
    let client = cluster.client().await;
    let name = format!("orders-{active_too}-{round}");
    let topic = cluster.create_topic(&client, &name, 3).await;
    let active = active_controller(cluster).await;
    let mut chosen = None;
    for index in 0..3 {
        let leader = cluster.until_led(&topic, index, |_| true).await;
        if (leader == active) == active_too {
            chosen = Some((index, leader));
        }
    }
    // Three partitions on three nodes have three leaders.
    let (index, leader) = chosen.unwrap();
    let workload = produce(&client, &topic, index);
    workload.until_acknowledged(&[index], 200).await;
    workload.forget_gaps();
    let killed = SystemTime::now();
    let begin = Instant::now();
    cluster.kill(leader);
    workload.until_acknowledged(&[index], 200).await;
    assert!(begin.elapsed() < GENEROUS, "{:?}", begin.elapsed());
    let gap = workload.story().longest_gap();
    let partition = format!("-{index} ");
    let failover = Failover {
        dead: logged(
            cluster,
            killed,
            &["held for dead", &format!("node={leader}")],
        ),
        controller: active_too
            .then(|| logged(cluster, killed, &["the active controller", "term="]))
            .flatten(),
        begun: logged(cluster, killed, &["electing a leader", &partition]),
        appointed: logged(cluster, killed, &["appointing a leader", &partition]),
        gap,
    };
    cluster.spawn(leader);
    cluster.until_healthy().await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
    client.admin().delete_topic(&topic).await.unwrap();
    failover
}

fn kills() -> usize {
    let given = std::env::var("QUORATE_KILLS").ok();
    given.and_then(|kills| kills.parse().ok()).unwrap_or(KILLS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_killed_and_acknowledgements_come_back() {
    let mut cluster = Cluster::start().await;
    let mut failovers = Vec::new();
    for round in 0..kills() {
        failovers.push(kill_a_leader(&mut cluster, round, false).await);
    }
    print_table("a leader", &failovers);
}

/// Each time before anybody can have settled: what it led may be led by another by then, or by its next process in another epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_comes_and_goes_loses_nothing() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let workload = produce(&client, &topic, 0);
    workload.until_acknowledged(&[0], 100).await;
    let flapping = cluster.until_led(&topic, 0, |_| true).await;
    for _ in 0..6 {
        cluster.kill(flapping);
        cluster.spawn(flapping);
        workload.until_acknowledged(&[0], 20).await;
    }
    cluster.until_healthy().await;
    cluster.until_isr(&topic, 0, &cluster.ids()).await;
    workload.until_acknowledged(&[0], 100).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_killed_that_is_the_active_controller_too() {
    let mut cluster = Cluster::start().await;
    let mut failovers = Vec::new();
    for round in 0..kills() {
        failovers.push(kill_a_leader(&mut cluster, round, true).await);
    }
    print_table("a leader that is the active controller too", &failovers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_until_another_led_is_fenced_when_it_wakes() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let workload = produce(&client, &topic, 0);
    workload.until_acknowledged(&[0], 200).await;
    let old = cluster.until_led(&topic, 0, |_| true).await;
    // Connected while it leads, asked when it wakes.
    let mut late = Kafka::connect(cluster.spec(old).kafka).await;
    cluster.freeze(old);
    let begin = Instant::now();
    let next = cluster.until_led(&topic, 0, |id| id != old).await;
    println!(
        "node {next} leads {:?} after the pause began",
        begin.elapsed()
    );
    workload.until_acknowledged(&[0], 200).await;

    // It finds this request before it hears that it leads no more, and must not acknowledge it by itself or with acks that
    // were on their way.
    let timeout = Duration::from_secs(20);
    let records = batch(&[b"9999999999 late"]);
    let asked = tokio::spawn(async move { late.produce("orders", 0, records, -1, timeout).await });
    cluster.thaw(old);
    let (code, _) = asked.await.unwrap();
    println!("the woken leader answered error code {code}");
    assert_ne!(code, 0, "acknowledged by a leader that was replaced");
    until("the woken leader refuses", async || {
        let mut kafka = Kafka::connect(cluster.spec(old).kafka).await;
        let records = batch(&[b"9999999999 late"]);
        let (code, _) = kafka
            .produce("orders", 0, records, -1, Duration::from_secs(2))
            .await;
        if code == ErrorCode::NotLeaderOrFollower.code() {
            Ok(())
        } else {
            assert_ne!(code, 0, "acknowledged by a leader that was replaced");
            Err(format!("error code {code}"))
        }
    })
    .await;

    workload.until_acknowledged(&[0], 200).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    // Also: nothing of the late record is in the log, since its number would come before others.
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
    let again = cluster.partition(next, &topic, 0).await.unwrap();
    assert_eq!(again.leader, Some(next), "one leader, and it stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producing_goes_on_while_a_majority_of_the_controllers_is_gone() {
    let mut cluster = Cluster::prepare(5).await;
    let listed: Vec<String> = cluster.specs[..3]
        .iter()
        .map(|spec| format!("{}@{}", spec.id, spec.quic))
        .collect();
    for spec in &mut cluster.specs {
        spec.controllers = listed.join(",");
    }
    cluster.start_all().await;
    let client = cluster.client().await;
    // Five replicas, of which three commit: those of a topic that has two among the controllers that stop.
    let topic = cluster
        .create_topic_with(&client, "orders", 5, &[("min.insync.replicas", "3")])
        .await;
    // Five partitions on five nodes: one is led by a node that is no controller.
    let mut found = None;
    for index in 0..5 {
        let leader = cluster.until_led(&topic, index, |_| true).await;
        if leader > node(3) {
            found = Some((index, leader));
        }
    }
    let (index, leader) = found.unwrap();
    let workload = produce(&client, &topic, index);
    workload.until_acknowledged(&[index], 100).await;
    cluster.kill_together(&[node(1), node(2)]);
    until("the nodes know that no majority is left", async || {
        let status = cluster.status(node(3)).await?;
        if status.hears_majority {
            return Err(format!("{status:?}"));
        }
        Ok(())
    })
    .await;
    workload.forget_gaps();
    workload.until_acknowledged(&[index], 1000).await;
    let status = cluster.status(node(3)).await.unwrap();
    assert!(!status.hears_majority);
    let gap = workload.story().longest_gap();
    println!("longest gap without a controller quorum: {gap:?}");
    assert_eq!(
        cluster
            .partition(leader, &topic, index)
            .await
            .unwrap()
            .leader,
        Some(leader)
    );
    for id in [1, 2] {
        cluster.spawn(node(id));
    }
    cluster.until_healthy().await;
    workload.until_acknowledged(&[index], 100).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_link_is_no_dead_node() {
    let seconds = std::env::var("QUORATE_IMPAIRED_SECONDS").ok();
    let watched = seconds
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(5);
    let impairment = Impairment {
        delay: Duration::from_millis(100),
        loss: 0.05,
    };
    let mut cluster = Cluster::prepare(3).await;
    let mut links = Vec::new();
    let mut listed = Vec::new();
    for spec in &mut cluster.specs {
        let link = Link::before(spec.quic, impairment).await;
        listed.push(format!("{}@{}", spec.id, link.address));
        spec.advertise = Some(link.address);
        links.push(link);
    }
    for spec in &mut cluster.specs {
        spec.controllers = listed.join(",");
    }
    cluster.start_all().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let workload = produce(&client, &topic, 0);
    workload.until_acknowledged(&[0], 100).await;
    let begin = Instant::now();
    let since = SystemTime::now();
    while begin.elapsed() < Duration::from_secs(watched) {
        workload.until_acknowledged(&[0], 1).await;
    }
    let told = |words: &str| {
        let texts = cluster.specs.iter().map(|spec| spec.log_text());
        let since = OffsetDateTime::from(since);
        texts
            .map(|text| {
                let lines = text.lines().filter(|line| line.contains(words));
                lines
                    .filter_map(|line| line.split_once(' '))
                    .filter_map(|(at, _)| OffsetDateTime::parse(at, &Rfc3339).ok())
                    .filter(|at| *at >= since)
                    .count()
            })
            .sum::<usize>()
    };
    println!(
        "{watched} s at 200 ms and 5 % loss: {} nodes held for dead, {} times stood for active controller, {} elections",
        told("node held for dead"),
        told("standing for its place"),
        told("electing a leader"),
    );
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}
