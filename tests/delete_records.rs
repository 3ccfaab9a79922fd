//! Records that are deleted stay deleted: on every replica, over a change of the leader and over restarts.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Output;

use kafka_protocol::messages::DeleteRecordsRequest;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use support::cluster::{Cluster, quorate};
use support::kafka::{Kafka, batch, name};
use support::{PATIENCE, node, until};

fn run(cluster: &Cluster, arguments: &[&str]) -> Output {
    let servers: Vec<String> = cluster.specs.iter().map(|s| s.quic.to_string()).collect();
    quorate()
        .args(arguments)
        .args(["-b", &servers.join(",")])
        .arg("--certs-dir")
        .arg(cluster.dir().join("certs-1"))
        .output()
        .unwrap()
}

fn succeed(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = run(cluster, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a reader from the beginning finds.
fn read(cluster: &Cluster) -> Vec<String> {
    let found = succeed(cluster, &["consume", "orders", "-e", "-o", "beginning"]);
    found.lines().map(str::to_owned).collect()
}

async fn write(kafka: &mut Kafka, value: &str) {
    let records = batch(&[value.as_bytes()]);
    let (code, _) = kafka.produce("orders", 0, records, -1, PATIENCE).await;
    assert_eq!(code, 0);
}

fn values(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("value {n}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_records_stay_deleted() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    // The test's records are old, and only what is deleted is to go.
    let keep = [("retention.ms", "-1")];
    let topic = cluster.create_topic_with(&client, "orders", 1, &keep).await;
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    let mut kafka = Kafka::connect(cluster.spec(leader).kafka).await;
    for value in values(0, 100) {
        write(&mut kafka, &value).await;
    }
    assert_eq!(read(&cluster), values(0, 100));

    // Another client's request, and what cannot be deleted.
    let mut delete = async |offset: i64| {
        let partition = DeleteRecordsPartition::default().with_offset(offset);
        let topic = DeleteRecordsTopic::default()
            .with_name(name("orders"))
            .with_partitions(vec![partition]);
        let request = DeleteRecordsRequest::default()
            .with_timeout_ms(30_000)
            .with_topics(vec![topic]);
        let response = kafka.call(&request, 2).await;
        let told = &response.topics[0].partitions[0];
        (told.error_code, told.low_watermark)
    };
    assert_eq!(delete(101).await, (1, -1));
    assert_eq!(delete(40).await, (0, 40));
    assert_eq!(delete(10).await, (0, 40), "the start never goes back");
    assert_eq!(read(&cluster), values(40, 100));
    let (code, ..) = kafka.fetch("orders", 0, 39).await;
    assert_eq!(code, 1, "out of range");

    // The command, and every replica.
    let orders = ["topic", "delete-records", "orders", "-p", "0", "--before"];
    let said = succeed(
        &cluster,
        &[&orders[..], &["60", "--output", "json"]].concat(),
    );
    assert!(said.contains("\"log_start_offset\":60"), "{said}");
    assert!(
        !run(&cluster, &[&orders[..], &["101"]].concat())
            .status
            .success()
    );
    for id in cluster.ids() {
        until("a replica begins where the records are left", async || {
            let found = cluster.partition(id, &topic, 0).await?;
            match found.local.map(|replica| replica.log_start.get()) {
                Some(60) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    // The next leader knows it, and so does everyone after a restart.
    cluster.kill(leader);
    let next = cluster.until_led(&topic, 0, |next| next != leader).await;
    assert_eq!(read(&cluster), values(60, 100));
    let mut kafka = Kafka::connect(cluster.spec(next).kafka).await;
    let (code, ..) = kafka.fetch("orders", 0, 59).await;
    assert_eq!(code, 1, "out of range");
    write(&mut kafka, "value 100").await;
    cluster.spawn(leader);
    cluster.until_healthy().await;
    let ids = cluster.ids();
    cluster.kill_together(&ids);
    for id in [1, 2, 3] {
        cluster.spawn(node(id));
    }
    cluster.until_healthy().await;
    assert_eq!(read(&cluster), values(60, 101));

    // All of it; what comes then is read.
    succeed(&cluster, &[&orders[..], &["end"]].concat());
    assert_eq!(read(&cluster), Vec::<String>::new());
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    let mut kafka = Kafka::connect(cluster.spec(leader).kafka).await;
    write(&mut kafka, "value 101").await;
    assert_eq!(read(&cluster), values(101, 102));
}
