//! Consumer groups on the command line: members that share, resume and take over, and what an operator sees and does.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::cluster::{Cluster, quorate};
use support::until;

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

async fn run(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = command(cluster, arguments);
    command.stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

async fn succeed(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = run(cluster, arguments).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the command says where it fails.
async fn fail(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = run(cluster, arguments).await;
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn lines(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("line {n:04}")).collect()
}

/// Over the partitions in turn.
async fn produce(cluster: &Cluster, topic: &str, partitions: usize, lines: &[String]) {
    for partition in 0..partitions {
        let mut child = command(cluster, &["produce", topic, "-p", &partition.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for line in lines.iter().skip(partition).step_by(partitions) {
            writeln!(stdin, "{line}").unwrap();
        }
        drop(stdin);
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
        assert!(status.await.unwrap().success());
    }
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

async fn describe(cluster: &Cluster, group: &str) -> Value {
    let arguments = ["group", "describe", group, "--output", "json"];
    serde_json::from_str(&succeed(cluster, &arguments).await).unwrap()
}

/// Of each partition: what is committed, and the lag.
fn places(described: &Value) -> Vec<(Option<i64>, u64)> {
    let partitions = described["partitions"].as_array().unwrap();
    let place = |found: &Value| (found["committed"].as_i64(), found["lag"].as_u64().unwrap());
    partitions.iter().map(place).collect()
}

/// A member that reads until it is told to stop; killed when dropped.
struct Member {
    child: Child,
    out: PathBuf,
}

impl Member {
    fn start(cluster: &Cluster, name: &str, arguments: &[&str]) -> Member {
        let out = cluster.dir().join(format!("{name}.out"));
        let child = command(cluster, &["consume", "orders"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(cluster.dir().join(format!("{name}.err"))).unwrap())
            .spawn()
            .unwrap();
        Member { child, out }
    }

    fn read(&self) -> Vec<String> {
        sorted(&fs::read_to_string(&self.out).unwrap())
    }

    fn interrupt(&mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn until_shared(cluster: &Cluster, group: &str, expected: &[usize]) {
    until("the members share", async || {
        // Until its first member has joined there is no group.
        let output = run(cluster, &["group", "describe", group, "--output", "json"]).await;
        if !output.status.success() {
            return Err(String::from_utf8(output.stderr).unwrap());
        }
        let described: Value = serde_json::from_slice(&output.stdout).unwrap();
        let members = described["members"].as_array().unwrap();
        let mut counts: Vec<usize> = members
            .iter()
            .map(|member| member["partitions"].as_array().unwrap().len())
            .collect();
        counts.sort_unstable();
        match counts == expected && described["state"] == "Stable" {
            true => Ok(()),
            false => Err(described.to_string()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_reads_each_record_once_and_its_operator_sees_and_moves_it() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 2).await;
    produce(&cluster, "orders", 2, &lines(0..100)).await;
    let once = ["consume", "orders", "-g", "readers", "-e"];
    assert_eq!(sorted(&succeed(&cluster, &once).await), lines(0..100));
    assert_eq!(succeed(&cluster, &once).await, "", "it was committed");
    produce(&cluster, "orders", 2, &lines(100..110)).await;
    let described = describe(&cluster, "readers").await;
    assert_eq!(described["state"], "Empty", "{described}");
    assert_eq!(places(&described), [(Some(50), 5), (Some(50), 5)]);
    // What the table says of it.
    let table = succeed(&cluster, &["group", "describe", "readers"]).await;
    let row: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row, ["orders", "1", "50", "55", "5", "-"], "{table}");

    // A count ends it in the middle, and the group goes on from there.
    let some = ["consume", "orders", "-g", "readers", "-c", "3"];
    let mut read = sorted(&succeed(&cluster, &some).await);
    assert_eq!(read.len(), 3);
    read.extend(sorted(&succeed(&cluster, &once).await));
    read.sort_unstable();
    assert_eq!(read, lines(100..110));

    // Nothing is committed for partition 1: all of its log is before the group.
    let seek = [
        "group", "seek", "fresh", "-t", "orders", "-p", "0", "--to", "-10",
    ];
    succeed(&cluster, &seek).await;
    assert_eq!(
        places(&describe(&cluster, "fresh").await),
        [(Some(45), 10)],
        "as far as anybody can tell it reads partition 0 only"
    );
    let mut member = Member::start(&cluster, "fresh", &["-g", "fresh", "-o", "end"]);
    until_shared(&cluster, "fresh", &[2]).await;
    until("it has read partition 0", async || {
        let described = describe(&cluster, "fresh").await;
        match places(&described) == [(Some(55), 0), (None, 55)] {
            true => Ok(()),
            false => Err(described.to_string()),
        }
    })
    .await;
    assert_eq!(member.read().len(), 10);

    let said = fail(&cluster, &seek).await;
    assert!(said.contains("has members"), "{said}");
    let said = fail(&cluster, &["group", "delete", "fresh"]).await;
    assert!(said.contains("NON_EMPTY_GROUP"), "{said}");
    assert_eq!(member.interrupt(), Some(130));
    // It left: nobody has to wait for its session's end.
    let described = describe(&cluster, "fresh").await;
    assert_eq!(described["state"], "Empty", "{described}");

    let back = [
        "group",
        "seek",
        "readers",
        "-t",
        "orders",
        "--to",
        "beginning",
    ];
    succeed(&cluster, &back).await;
    assert_eq!(sorted(&succeed(&cluster, &once).await), lines(0..110));

    let list = succeed(&cluster, &["group", "list"]).await;
    let names: Vec<&str> = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(names, ["fresh", "readers"], "{list}");
    succeed(&cluster, &["group", "delete", "fresh", "readers"]).await;
    let said = fail(&cluster, &["group", "describe", "readers"]).await;
    assert!(said.contains("GROUP_ID_NOT_FOUND"), "{said}");
    let said = fail(&cluster, &["consume", "nope", "-g", "readers", "-e"]).await;
    assert!(said.contains("nope"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_take_over_and_lose_nothing_to_kill_9() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 4).await;
    let group = ["-g", "readers"];
    let first = Member::start(&cluster, "first", &group);
    until_shared(&cluster, "readers", &[4]).await;
    produce(&cluster, "orders", 4, &lines(0..200)).await;
    let mut second = Member::start(&cluster, "second", &["-g", "readers", "-vv"]);
    until_shared(&cluster, "readers", &[2, 2]).await;
    produce(&cluster, "orders", 4, &lines(200..400)).await;
    let all = |members: &[&Member], expected: Vec<String>| {
        let mut read: Vec<String> = members.iter().flat_map(|member| member.read()).collect();
        read.sort_unstable();
        read.dedup();
        match read == expected {
            true => Ok(()),
            false => Err(format!("{} lines", read.len())),
        }
    };
    until("they read together", async || {
        all(&[&first, &second], lines(0..400))
    })
    .await;
    assert!(!second.read().is_empty());

    // A member is killed while records come, and so is the group's coordinator.
    let coordinator = describe(&cluster, "readers").await["coordinator"].as_u64();
    let coordinator = support::node(u32::try_from(coordinator.unwrap()).unwrap());
    produce(&cluster, "orders", 4, &lines(400..600)).await;
    let before = first.read();
    drop(first);
    cluster.kill(coordinator);
    produce(&cluster, "orders", 4, &lines(600..800)).await;
    until("the other one reads on", async || {
        let mut read = second.read();
        read.extend(before.iter().cloned());
        read.sort_unstable();
        read.dedup();
        match read == lines(0..800) {
            true => Ok(()),
            false => Err(format!("{} lines", read.len())),
        }
    })
    .await;
    until_shared(&cluster, "readers", &[4]).await;
    assert_eq!(second.interrupt(), Some(130));
    let described = describe(&cluster, "readers").await;
    let lags = places(&described);
    let said = fs::read_to_string(cluster.dir().join("second.err")).unwrap();
    assert_eq!(lags, [(Some(200), 0); 4], "{described}\n{said}");
}
