//! Replication over TCP, as it is measured beside QUIC: real nodes as processes, whole and with a follower that was away.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use quorate::client::ProducerConfig;

use support::cluster::Cluster;
use support::workload::{Workload, check};

const NO_ERRORS: [&str; 0] = [];

/// Reno is in every kernel, and everybody may use it.
async fn cluster_on_tcp() -> Cluster {
    let mut cluster = Cluster::prepare(3).await;
    for spec in &mut cluster.specs {
        spec.flags = ["--replicate-over-tcp", "reno"].map(str::to_owned).to_vec();
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_over_tcp_hold_the_same_and_one_that_was_away_catches_up() {
    let mut cluster = cluster_on_tcp().await;
    cluster.keep_when_failing();
    cluster.start_all().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "t", 4).await;
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    cluster.until_isr(&topic, 0, &cluster.ids()).await;
    let all = [0, 1, 2, 3];
    let workload = Workload::start(&client, &topic, &all, 2000, ProducerConfig::default());
    workload.until_acknowledged(&all, 200).await;

    let away = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.kill(away);
    workload.until_acknowledged(&all, 200).await;
    cluster.spawn(away);
    for index in all {
        cluster.until_isr(&topic, index, &cluster.ids()).await;
    }
    workload.until_acknowledged(&all, 200).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;

    let mut over_tcp = 0;
    for spec in &cluster.specs {
        let log = spec.log_text();
        assert!(log.contains("THIS NODE REPLICATES OVER TCP"));
        assert!(!log.contains("follower connected follower="), "{log}");
        assert!(!log.contains("replication link up"), "{log}");
        over_tcp += log.matches("follower connected over TCP").count();
    }
    assert!(over_tcp >= 4, "{over_tcp}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_congestion_control_that_is_not_there_keeps_the_node_from_starting() {
    let mut cluster = cluster_on_tcp().await;
    let spec = &mut cluster.specs[0];
    spec.flags[1] = "pigeon".to_owned();
    let (status, log) = spec.run_to_its_end().await;
    assert!(!status.success());
    assert!(
        log.contains("cannot replicate over TCP") && log.contains("pigeon"),
        "{log}"
    );
}
