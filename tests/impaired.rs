//! Whole nodes on impaired sockets: a follower's link is cut and healed by a file, while everybody else goes on.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use quorate::broker::{LinkDirection, LinkState, LinkView};
use quorate::client::{Client, ProducerConfig};
use quorate::types::{NodeId, TopicName};

use support::cluster::{Cluster, quorate};
use support::until;
use support::workload::{Workload, check};

/// Puts a spec in its place whole.
fn impair(data_dir: &Path, spec: &str) {
    let beside = data_dir.join("impair.new");
    fs::write(&beside, spec).unwrap();
    fs::rename(beside, data_dir.join("impair")).unwrap();
}

async fn link(
    cluster: &Cluster,
    of: NodeId,
    direction: LinkDirection,
    peer: NodeId,
) -> Result<LinkView, String> {
    let status = cluster.status(of).await?;
    let mut links = status.links.into_iter();
    links
        .find(|link| link.direction == direction && link.peer == peer)
        .ok_or_else(|| format!("node {of} has no such link"))
}

/// Three nodes on links that are as `spec` says, with a topic of so many partitions, and who leads its first.
async fn started(spec: &str, topic: &str, partitions: u32) -> (Cluster, Client, TopicName, NodeId) {
    let mut cluster = Cluster::prepare(3).await;
    for node in &mut cluster.specs {
        node.flags = vec!["--impair".to_owned(), spec.to_owned()];
    }
    cluster.start_all().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, topic, partitions).await;
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    (cluster, client, topic, leader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_cuts_one_followers_link_and_heals_it_while_acks_go_on() {
    let (cluster, client, topic, leader) = started("", "impaired", 1).await;
    let ids = cluster.ids();
    cluster.until_isr(&topic, 0, &ids).await;
    for id in &ids {
        let log = cluster.spec(*id).log_text();
        assert!(log.contains("LINKS ARE IMPAIRED ON PURPOSE"), "{log}");
    }
    let follower = *ids.iter().find(|id| **id != leader).unwrap();
    let others: Vec<NodeId> = ids.iter().copied().filter(|id| *id != follower).collect();
    let workload = Workload::start(&client, &topic, &[0], 1000, ProducerConfig::default());
    workload.until_acknowledged(&[0], 100).await;

    let file = cluster.spec(leader).data_dir.clone();
    impair(&file, &format!("peer={follower},cut=both\n"));
    until(
        "the leader says that it does not hear its follower",
        async || {
            let link = link(&cluster, leader, LinkDirection::ToFollower, follower).await?;
            if !link.heard && link.state != LinkState::Up {
                return Ok(());
            }
            Err(format!("{link:?}"))
        },
    )
    .await;
    let shown = quorate()
        .args(["-b", &cluster.spec(leader).quic.to_string(), "--certs-dir"])
        .arg(&cluster.spec(leader).certs_dir)
        .args(["--output", "json", "link", "list"])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let row = shown
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .find(|row| row["leader"] == leader.get() && row["follower"] == follower.get());
    let row = row.unwrap();
    assert_eq!(row["state"], "silent", "{row}");
    assert_eq!(row["lag"]["is"], "unknown", "{row}");
    until(
        "the follower tries to move, and dials in vain",
        async || {
            let link = link(&cluster, follower, LinkDirection::ToLeader, leader).await?;
            let log = cluster.spec(follower).log_text();
            let tries = log.contains("replication link tries another socket");
            if link.state == LinkState::Silent && tries && link.last_error.is_some() {
                return Ok(());
            }
            Err(format!("{link:?}"))
        },
    )
    .await;
    workload.until_acknowledged(&[0], 300).await;
    cluster.until_isr(&topic, 0, &others).await;

    // What cannot be understood changes nothing.
    impair(&file, "peer=everybody,cut=none");
    until("the log says what is wrong with the file", async || {
        let log = cluster.spec(leader).log_text();
        let told = log.contains("peer=everybody") && log.contains("nodes, clients or all");
        told.then_some(()).ok_or(log)
    })
    .await;
    let still = link(&cluster, leader, LinkDirection::ToFollower, follower).await;
    assert!(!still.unwrap().heard);

    impair(&file, "");
    cluster.until_isr(&topic, 0, &ids).await;
    until("the follower is heard again", async || {
        let link = link(&cluster, leader, LinkDirection::ToFollower, follower).await?;
        (link.heard && link.state == LinkState::Up)
            .then_some(())
            .ok_or(format!("{link:?}"))
    })
    .await;
    workload.until_acknowledged(&[0], 100).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, Vec::<String>::new());
    let ends = check(&client, &topic, &story).await;
    assert_eq!(ends[&0], story.acknowledged[&0].len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_clients_work_over_links_that_lose_double_and_delay() {
    const BAD: &str = "peer=all,dir=out,loss=2%,dup=2%,reorder=2%,delay=10ms,jitter=4ms,seed=5";
    let (cluster, client, topic, leader) = started(BAD, "bad", 1).await;
    cluster.until_isr(&topic, 0, &cluster.ids()).await;
    let workload = Workload::start(&client, &topic, &[0], 1000, ProducerConfig::default());
    workload.until_acknowledged(&[0], 300).await;
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let seen = link(&cluster, leader, LinkDirection::ToFollower, follower).await;
    let rtt_us = seen.unwrap().rtt_us;
    assert!(rtt_us >= 12_000, "{rtt_us}");
    let story = workload.finish().await;
    assert_eq!(story.errors, Vec::<String>::new());
    check(&client, &topic, &story).await;

    // A client may be impaired as well, at its own end.
    let produced = quorate()
        .args(["-b", &cluster.spec(leader).quic.to_string(), "--certs-dir"])
        .arg(&cluster.spec(leader).certs_dir)
        .args(["--impair", "loss=2%,delay=5ms", "topic", "list"])
        .output()
        .unwrap();
    let listed = String::from_utf8(produced.stdout).unwrap();
    assert!(listed.contains("bad"), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_frames_go_out_again_while_a_link_loses_packets() {
    const LOSSY: &str = "peer=all,dir=out,loss=5%,delay=10ms,seed=9";
    let (cluster, client, topic, leader) = started(LOSSY, "lossy", 2).await;
    let workload = Workload::start(&client, &topic, &[0, 1], 2000, ProducerConfig::default());
    for follower in cluster.ids().into_iter().filter(|id| *id != leader) {
        until("copies", async || {
            let link = link(&cluster, leader, LinkDirection::ToFollower, follower).await?;
            (link.copied_bytes > 50_000)
                .then_some(())
                .ok_or(format!("{link:?}"))
        })
        .await;
    }
    let story = workload.finish().await;
    assert_eq!(story.errors, Vec::<String>::new());
    let ends = check(&client, &topic, &story).await;
    for partition in [0, 1] {
        assert_eq!(
            ends[&partition],
            story.acknowledged[&partition].len() as u64
        );
    }
}
