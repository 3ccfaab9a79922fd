//! `quorate link list` against real nodes: both ends of each link, and never a lag of 0 for a follower that cannot be heard,
//! there or in any other view.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use quorate::client::{ProducerConfig, ProducerRecord};
use quorate::types::NodeId;
use serde_json::Value;
use support::cluster::{Cluster, free_port, loopback, quorate};
use support::{node, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn command(cluster: &Cluster, id: NodeId, words: &[&str]) -> Command {
    let mut list = vec!["link", "list"];
    list.extend(words);
    command_of(cluster, id, &list)
}

fn command_of(cluster: &Cluster, id: NodeId, words: &[&str]) -> Command {
    let mut command = quorate();
    command
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

/// The body of what the HTTP endpoint answers.
async fn get(admin: SocketAddr, path: &str) -> Result<String, String> {
    let answer = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        std::io::Result::Ok(text)
    };
    let text = answer.await.map_err(|error| error.to_string())?;
    let (_, body) = text.split_once("\r\n\r\n").ok_or("no body")?;
    Ok(body.to_owned())
}

/// What each view says of the lag of `follower` in the only partition, by the view's name; each of them a number or null.
async fn lags(
    cluster: &Cluster,
    leader: NodeId,
    admin: SocketAddr,
    follower: NodeId,
) -> Result<Vec<(&'static str, Value)>, String> {
    let mut status = command_of(cluster, leader, &["cluster", "status", "--output", "json"]);
    let output = tokio::task::spawn_blocking(move || status.output().unwrap())
        .await
        .unwrap();
    let error = |_| String::from_utf8_lossy(&output.stderr).into_owned();
    let status: Value = serde_json::from_slice(&output.stdout).map_err(error)?;
    let of_status = &status["partitions"][0]["lag_records"][follower.to_string()];

    let page = get(admin, "/metrics").await?;
    let labels = format!("{{topic=\"t\",partition=\"0\",follower=\"{follower}\"}} ");
    let name = format!("quorate_partition_follower_lag_records{labels}");
    let sample = page.lines().find_map(|line| line.strip_prefix(&name));
    let of_metric = match sample {
        Some(value) => serde_json::from_str(value).unwrap(),
        None => Value::Null,
    };

    let is_link =
        |link: &&Value| link["direction"] == "to_follower" && link["peer"] == follower.get();
    let links: Vec<Value> = serde_json::from_str(&get(admin, "/links").await?).unwrap();
    let link = links.iter().find(is_link).ok_or("no link in /links")?;
    let whole: Value = serde_json::from_str(&get(admin, "/cluster").await?).unwrap();
    let own = whole["links"].as_array().unwrap();
    let own = own.iter().find(is_link).ok_or("no link in /cluster")?;
    let followers = whole["partitions"][0]["local"]["followers"].as_array();
    let progress = followers
        .and_then(|all| all.iter().find(|one| one["node"] == follower.get()))
        .ok_or("no follower in /cluster")?;
    Ok(vec![
        ("cluster status", of_status.clone()),
        ("metric", of_metric),
        ("/links", link["lag"]["records"].clone()),
        ("/cluster, link", own["lag"]["records"].clone()),
        ("/cluster, partition", progress["lag_records"].clone()),
    ])
}

/// Nothing is produced, so that the follower's last word is that it has everything: which is not to be taken for its present one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_follower_of_an_idle_partition_has_no_lag_of_0_in_any_view() {
    let mut cluster = Cluster::prepare(3).await;
    let mut admins = Vec::new();
    for spec in &mut cluster.specs {
        let admin = loopback(free_port());
        let file = spec.data_dir.with_extension("toml");
        let text = format!("admin_listen = \"{admin}\"\nadmin_plaintext = true\n");
        fs::write(&file, text).unwrap();
        spec.flags = vec!["--config".to_owned(), file.display().to_string()];
        admins.push((spec.id, admin));
    }
    cluster.start_all().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "t", 1).await;
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    cluster.until_isr(&topic, 0, &cluster.ids()).await;
    let frozen = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let (_, admin) = admins.into_iter().find(|(id, _)| *id == leader).unwrap();
    let until_lags = async |what: &str, wanted: Value| {
        until(what, async || {
            let seen = lags(&cluster, leader, admin, frozen).await?;
            match seen.iter().all(|(_, lag)| *lag == wanted) {
                true => Ok(()),
                false => Err(format!("{seen:?}")),
            }
        })
        .await;
    };
    until_lags("all views know that it has everything", 0.into()).await;
    cluster.freeze(frozen);
    until_lags("no view knows its lag", Value::Null).await;
    let mut table = command_of(&cluster, leader, &["cluster", "status"]);
    let output = tokio::task::spawn_blocking(move || table.output().unwrap())
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("{frozen}:-")), "{text}");
    cluster.thaw(frozen);
    until_lags("it is heard again", 0.into()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_outlasts_the_time_in_which_no_node_answers() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "t", 1).await;
    cluster.until_isr(&topic, 0, &cluster.ids()).await;
    let words = ["--watch", "--interval", "100ms"];
    let mut child = command(&cluster, node(1), &words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (lines, mut line) = tokio::sync::mpsc::unbounded_channel();
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let _ = lines.send(line.unwrap());
        }
    });
    let mut until_line = async |what: &str, start: &str| {
        let found = async {
            loop {
                let line = line.recv().await.expect("it goes on");
                if line.starts_with(start) {
                    break;
                }
            }
        };
        let found = tokio::time::timeout(support::PATIENCE, found).await;
        assert!(found.is_ok(), "{what}");
    };
    until_line("a table", "LINK").await;
    for id in cluster.ids() {
        cluster.freeze(id);
    }
    until_line("nobody answers", "No node answers").await;
    until_line("and it says who", "Node 1 at").await;
    until_line("again and again", "No node answers").await;
    for id in cluster.ids() {
        cluster.thaw(id);
    }
    until_line("a table again", "LINK").await;
    child.kill().unwrap();
    child.wait().unwrap();

    // But whoever names an address where nobody is learns it at once.
    for id in cluster.ids() {
        cluster.kill(id);
    }
    let mut command = command(&cluster, node(1), &words);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("nothing listens"), "{said}");
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

/// The keys of its endpoint outlive a process, so that the next one answers a packet of an old connection with a reset that is
/// believed: otherwise the follower would wait for a timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_that_is_back_at_its_address_is_known_by_its_reset_at_the_first_packet() {
    const RESET: &str = "has restarted, and with it went the connection";
    const OVERTAKEN: &str = "a newer connection took its place";
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "t", 1).await;
    // A dial may overtake the packet: then the old connection ends because there is a newer one, which is as good.
    for round in 1.. {
        assert!(round <= 10, "the old connection is always given up first");
        let leader = cluster.until_led(&topic, 0, |_| true).await;
        cluster.until_isr(&topic, 0, &cluster.ids()).await;
        let others: Vec<NodeId> = cluster
            .ids()
            .into_iter()
            .filter(|id| *id != leader)
            .collect();
        let lines = |cluster: &Cluster, id: NodeId| cluster.spec(id).log_text().lines().count();
        let before: Vec<usize> = others.iter().map(|id| lines(&cluster, *id)).collect();
        let starts = |cluster: &Cluster| {
            cluster
                .spec(leader)
                .log_text()
                .matches("node started")
                .count()
        };
        let started = starts(&cluster);
        let active = cluster.status(leader).await.unwrap().active_controller;
        // Asleep, the followers miss how their leader dies and comes back.
        for id in &others {
            cluster.freeze(*id);
        }
        cluster.kill(leader);
        cluster.spawn(leader);
        until("the leader listens again", async || {
            match starts(&cluster) > started {
                true => Ok(()),
                false => Err(cluster.spec(leader).log_text()),
            }
        })
        .await;
        // As long as the active controller sleeps, if it is one of them, the other cannot learn of the restart by the metadata, and
        // have its link replaced by another for that, before it has sent anything over the old one.
        let (asleep, awake): (Vec<NodeId>, Vec<NodeId>) =
            others.iter().partition(|id| active == Some(**id));
        for id in &awake {
            cluster.thaw(*id);
        }
        until("the link to the leader is another one", async || {
            for (id, before) in others.iter().zip(&before) {
                let log = cluster.spec(*id).log_text();
                let is_up = |line: &str| line.contains("replication link up");
                if log.lines().skip(*before).any(is_up) {
                    return Ok(());
                }
            }
            Err("nobody has come back".to_owned())
        })
        .await;
        for id in &asleep {
            cluster.thaw(*id);
        }
        cluster.until_healthy().await;
        cluster.until_isr(&topic, 0, &cluster.ids()).await;
        let mut resets = 0;
        for (id, before) in others.iter().zip(&before) {
            let log = cluster.spec(*id).log_text();
            let of_leader = format!(" leader={leader} ");
            let ended = log
                .lines()
                .skip(*before)
                .filter(|line| line.contains("replication link down") && line.contains(&of_leader));
            for line in ended {
                assert!(line.contains(RESET) || line.contains(OVERTAKEN), "{line}");
                for field in [" cause=", " lived_ms="] {
                    assert!(line.contains(field), "{line}");
                }
                resets += usize::from(line.contains(RESET));
            }
        }
        if resets > 0 {
            break;
        }
    }
}
