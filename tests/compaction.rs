//! Compacted topics on real processes: they stop growing, their last values stay, over kill -9 and to a replica that was away.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use quorate::client::{ProducerConfig, ProducerRecord};
use quorate::types::{NodeId, TopicName};
use support::cluster::{Cluster, quorate};
use support::{node, until};

const KEYS: usize = 10;

fn command(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = quorate();
    let servers: Vec<String> = cluster.specs.iter().map(|s| s.quic.to_string()).collect();
    command
        .args(arguments)
        .args(["-b", &servers.join(",")])
        .arg("--certs-dir")
        .arg(cluster.dir().join("certs-1"));
    command
}

fn run(cluster: &Cluster, arguments: &[&str], input: &str) -> Output {
    let mut child = command(cluster, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may fail before it has read all.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn succeed(cluster: &Cluster, arguments: &[&str], input: &str) -> String {
    let output = run(cluster, arguments, input);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// `count` records over [`KEYS`] keys, each in a batch of its own, by an idempotent producer. Returns the last of each key.
async fn write(cluster: &Cluster, from: usize, count: usize) -> BTreeMap<String, String> {
    let client = cluster.client().await;
    let producer = client.producer(ProducerConfig::default()).unwrap();
    let mut last = BTreeMap::new();
    for n in from..from + count {
        let (key, value) = (format!("key {}", n % KEYS), format!("value {n}"));
        let mut record = ProducerRecord::new(support::topic("state"), value.clone());
        record.key = Some(key.clone().into());
        producer.send(record).await.unwrap().await.unwrap();
        last.insert(key, value);
    }
    producer.close().await;
    last
}

/// What a reader that reads all of it knows in the end.
fn last_values(cluster: &Cluster) -> BTreeMap<String, String> {
    let read = succeed(cluster, &["consume", "state", "-e", "-K", "="], "");
    let pair = |line: &str| {
        let (key, value) = line.split_once('=').unwrap();
        (key.to_owned(), value.to_owned())
    };
    read.lines().map(pair).collect()
}

/// Bytes in the segment files of partition 0 on a node, and how many files there are.
fn segments(cluster: &Cluster, id: NodeId, topic: &TopicName) -> (u64, usize) {
    let Ok(found) = quorate::storage::inspect::inspect(
        &quorate::storage::RealFileSystem,
        &cluster.spec(id).data_dir,
    ) else {
        return (u64::MAX, usize::MAX);
    };
    let dir: Option<PathBuf> = found
        .partitions
        .iter()
        .find(|partition| partition.topic == *topic && partition.id.partition.0 == 0)
        .map(|partition| partition.dir.clone());
    let Some(dir) = dir else {
        return (u64::MAX, usize::MAX);
    };
    let files = fs::read_dir(dir).unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        name.ends_with(".wal")
            .then_some(entry.metadata().ok()?.len())
    });
    files.fold((0, 0), |(bytes, count), len| (bytes + len, count + 1))
}

async fn until_small(cluster: &Cluster, topic: &TopicName) {
    until("every replica is compacted", async || {
        let sizes: Vec<_> = cluster
            .running()
            .into_iter()
            .map(|id| segments(cluster, id, topic))
            .collect();
        match sizes.iter().all(|(bytes, _)| *bytes < 20_000) {
            true => Ok(()),
            false => Err(format!("{sizes:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_stays_small_and_keeps_each_keys_last_value() {
    let mut cluster = Cluster::start().await;
    let create = [
        "topic",
        "create",
        "state",
        "-c",
        "cleanup.policy=compact",
        "-c",
        "segment.bytes=4096",
    ];
    succeed(&cluster, &create, "");
    let topic = support::topic("state");
    // More than 200 bytes a record with its batch and its frame: 100 kB and more, if they stayed.
    let values = write(&cluster, 0, 600).await;
    until_small(&cluster, &topic).await;
    assert_eq!(last_values(&cluster), values);

    // A replica that is away while much comes and goes gets what is left of it, from the middle of what was compacted.
    cluster.kill(node(3));
    let values = write(&cluster, 600, 600).await;
    until_small(&cluster, &topic).await;
    cluster.spawn(node(3));
    cluster.until_healthy().await;
    until_small(&cluster, &topic).await;
    assert_eq!(last_values(&cluster), values);
    // And knows it: the others are killed in the middle of their work, and it may have to lead.
    for id in [1, 2] {
        cluster.kill(node(id));
        let values = write(&cluster, 1200 + 100 * id as usize, 100).await;
        assert_eq!(last_values(&cluster), values);
        cluster.spawn(node(id));
        cluster.until_healthy().await;
        assert_eq!(last_values(&cluster), values);
    }
    until_small(&cluster, &topic).await;

    // A record without a key has no place here.
    let output = run(&cluster, &["produce", "state"], "no key\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("key"), "{said}");
    for id in cluster.ids() {
        cluster.stop(id).await;
        let dir = cluster.spec(id).data_dir.display().to_string();
        let verify = ["log", "verify", "--data-dir", &dir];
        let output = quorate().args(verify).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
    }
}
