//! `quorate link list` against real nodes: both ends of each link, and never a lag of 0 for a follower that cannot be heard.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use quorate::client::{ProducerConfig, ProducerRecord};
use quorate::types::NodeId;
use serde_json::Value;
use support::cluster::{Cluster, quorate};
use support::{node, until};

fn command(cluster: &Cluster, id: NodeId, words: &[&str]) -> Command {
    let mut command = quorate();
    command
        .args(["link", "list"])
        .args(words)
        .args(["-b", &cluster.spec(id).quic.to_string()])
        .arg("--certs-dir")
        .arg(&cluster.specs[0].certs_dir)
        .stdin(Stdio::null());
    command
}

async fn list(cluster: &Cluster, id: NodeId) -> Result<Vec<Value>, String> {
    let mut command = command(cluster, id, &["--output", "json"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    Ok(text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect())
}

/// The row of one link, once it is as it should be.
async fn until_row(
    cluster: &Cluster,
    asked: NodeId,
    (leader, follower): (NodeId, NodeId),
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Value {
    until(what, async || {
        let rows = list(cluster, asked).await?;
        let row = rows
            .iter()
            .find(|row| row["leader"] == leader.get() && row["follower"] == follower.get());
        match row {
            Some(row) if is_so(row) => Ok(row.clone()),
            _ => Err(format!("{rows:#?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_cannot_be_heard_has_an_unknown_lag_and_the_leaders_word_for_it() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "t", 1).await;
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    cluster.until_isr(&topic, 0, &cluster.ids()).await;
    let others: Vec<NodeId> = cluster
        .ids()
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    let (frozen, killed) = (others[0], others[1]);

    let well = until_row(
        &cluster,
        leader,
        (leader, frozen),
        "a link that is well",
        |row| row["state"] == "up" && row["lag"]["is"] == "known" && row["lag"]["records"] == 0,
    )
    .await;
    assert!(well["rtt_us"].as_u64().unwrap() > 0, "{well}");
    assert!(well["mtu"].as_u64().unwrap() >= 1200, "{well}");
    assert!(well["window_bytes"].as_u64().unwrap() > 0, "{well}");
    assert!(
        well["sent_bytes_per_s"].as_u64().unwrap() > 0,
        "heartbeats are sent: {well}"
    );
    assert_eq!(well["redials"], 0, "{well}");
    assert_eq!(
        (&well["leader_answers"], &well["follower_answers"]),
        (&true.into(), &true.into())
    );
    assert_eq!(well["differs"], Value::Array(Vec::new()), "{well}");

    cluster.freeze(frozen);
    let producer = client.producer(ProducerConfig::default()).unwrap();
    for n in 0..5 {
        let record = ProducerRecord::new(topic.clone(), n.to_string());
        producer.send(record).await.unwrap().await.unwrap();
    }
    let silent = until_row(
        &cluster,
        leader,
        (leader, frozen),
        "a silent follower",
        |row| row["state"] == "silent" && row["lag"]["is"] == "unknown",
    )
    .await;
    let why = silent["lag"]["why"].as_str().unwrap();
    assert!(why.starts_with("last heard "), "{silent}");
    assert_eq!(silent["follower_answers"], false, "{silent}");
    assert_eq!(silent["lag"]["records"], Value::Null, "{silent}");
    cluster.thaw(frozen);
    until_row(
        &cluster,
        leader,
        (leader, frozen),
        "it is heard again",
        |row| row["state"] == "up" && row["lag"]["records"] == 0,
    )
    .await;

    // Gone altogether: the table names the node, and says why it does not answer.
    cluster.kill(killed);
    until_row(
        &cluster,
        leader,
        (leader, killed),
        "a dead follower",
        |row| row["state"] != "up" && row["lag"]["is"] == "unknown",
    )
    .await;
    let mut table = command(&cluster, leader, &[]);
    let output = tokio::task::spawn_blocking(move || table.output().unwrap())
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("Node {killed} at")), "{text}");
    assert!(text.contains("does not answer: nothing listens"), "{text}");
    assert!(text.contains("lag unknown (last heard "), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );

    cluster.spawn(killed);
    until_row(&cluster, leader, (leader, killed), "it is back", |row| {
        row["state"] == "up" && row["lag"]["records"] == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_goes_on_without_a_terminals_codes_where_there_is_none() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "t", 1).await;
    cluster.until_isr(&topic, 0, &cluster.ids()).await;
    let words = ["--watch", "--interval", "100ms"];
    let mut child = command(&cluster, node(1), &words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let lines = tokio::task::spawn_blocking(move || {
        let mut heads = 0;
        let mut lines = Vec::new();
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            heads += usize::from(line.starts_with("LINK"));
            lines.push(line);
            if heads == 3 {
                break;
            }
        }
        lines
    })
    .await
    .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("LINK")).count(),
        3,
        "{lines:#?}"
    );
    assert!(
        lines.iter().all(|line| !line.contains('\x1b')),
        "{lines:#?}"
    );
    assert!(lines.iter().any(|line| line.contains("→")), "{lines:#?}");
}
