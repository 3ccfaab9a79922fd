//! Consumer groups on real processes: what was committed outlives coordinators, and the groups of clients that are not ours
//! share, rebalance and resume.

// A test that cannot go on panics, and what was skipped goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, GroupId,
    consumer_group_heartbeat_request,
};
use quorate::types::NodeId;
use support::cluster::Cluster;
use support::groups::{OFFSETS_VERSION, commit, committed, coordinator, text};
use support::kafka::name;
use support::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_committed_offset_is_lost_when_its_coordinator_is_killed() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 1).await;
    let groups = ["first", "second", "third"];
    let mut acknowledged = 0;
    for _ in 0..3 {
        let mut leaders = Vec::new();
        for group in groups {
            let (node, _) = coordinator(&cluster, group).await;
            leaders.push(node);
            for _ in 0..20 {
                acknowledged += 1;
                until("the offset is committed", async || {
                    let (_, mut kafka) = coordinator(&cluster, group).await;
                    let request = commit(group, "orders", acknowledged);
                    let answer = kafka.call(&request, OFFSETS_VERSION).await;
                    match answer.topics[0].partitions[0].error_code {
                        0 => Ok(()),
                        code => Err(format!("error {code}")),
                    }
                })
                .await;
            }
        }
        // The last one's coordinator, right after its last answer.
        let killed = *leaders.last().unwrap();
        cluster.kill(killed);
        for (back, group) in groups.iter().rev().enumerate() {
            let expected = acknowledged - 20 * i64::try_from(back).unwrap();
            until("the offset is there", async || {
                let (node, mut kafka) = coordinator(&cluster, group).await;
                match committed(&mut kafka, group, "orders").await {
                    (0, found) => {
                        assert_eq!(found, expected, "{group} on node {node}");
                        Ok(())
                    }
                    (code, _) => Err(format!("error {code} of node {node}")),
                }
            })
            .await;
        }
        cluster.spawn(killed);
        cluster.until_healthy().await;
    }
}

fn heartbeat(member: &str, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    let request = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(GroupId(text("newer")))
        .with_member_id(text(member))
        .with_member_epoch(epoch)
        .with_rebalance_timeout_ms(-1);
    match epoch {
        0 => request
            .with_rebalance_timeout_ms(60_000)
            .with_subscribed_topic_names(Some(vec![name("orders")]))
            .with_topic_partitions(Some(Vec::new())),
        _ => request,
    }
}

/// The answer of whoever looks after the group, once somebody does.
async fn beat(
    cluster: &Cluster,
    request: &ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    until("the heartbeat is answered", async || {
        let (node, mut kafka) = coordinator(cluster, "newer").await;
        let answer = kafka.call(request, 1).await;
        match answer.error_code {
            // The coordinator loads, moves, or the metadata version is about to rise.
            code @ 14..=16 => Err(format!("error {code} of node {node}")),
            _ => Ok(answer),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_the_newer_protocol_outlives_its_coordinators() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 4).await;
    let first = beat(&cluster, &heartbeat("a", 0)).await;
    assert_eq!((first.error_code, first.member_epoch), (0, 1));
    let all = first.assignment.unwrap().topic_partitions.remove(0);
    assert_eq!(all.partitions.len(), 4);
    let second = beat(&cluster, &heartbeat("b", 0)).await;
    assert_eq!((second.error_code, second.member_epoch), (0, 2));
    // Between the first one's word that it gives two up, and the other's that it asks for them.
    let first = beat(&cluster, &heartbeat("a", 1)).await;
    assert_eq!(first.member_epoch, 1);
    let kept = first.assignment.unwrap().topic_partitions.remove(0);
    assert_eq!(kept.partitions.len(), 2);
    let owned = consumer_group_heartbeat_request::TopicPartitions::default()
        .with_topic_id(kept.topic_id)
        .with_partitions(kept.partitions.clone());
    let given_up = heartbeat("a", 1).with_topic_partitions(Some(vec![owned]));
    assert_eq!(beat(&cluster, &given_up).await.member_epoch, 2);
    let (killed, _) = coordinator(&cluster, "newer").await;
    cluster.kill(killed);
    let second = beat(&cluster, &heartbeat("b", 2)).await;
    assert_eq!((second.error_code, second.member_epoch), (0, 2));
    let given = second.assignment.unwrap().topic_partitions.remove(0);
    let rest: Vec<i32> = (0..4).filter(|n| !kept.partitions.contains(n)).collect();
    assert_eq!(given.partitions, rest);
    // Killed again, with the first one back: nothing has changed, and who was not known is not.
    cluster.spawn(killed);
    cluster.until_healthy().await;
    let (again, _) = coordinator(&cluster, "newer").await;
    cluster.kill(again);
    let answer = beat(&cluster, &heartbeat("a", 2)).await;
    assert_eq!((answer.error_code, answer.member_epoch), (0, 2));
    let fenced = beat(&cluster, &heartbeat("b", 7)).await;
    assert_eq!(fenced.error_code, 110);
    let unknown = beat(&cluster, &heartbeat("c", 2)).await;
    assert_eq!(unknown.error_code, 25);
    let said = |arguments: &[&str]| {
        let servers: Vec<String> = cluster.specs.iter().map(|s| s.quic.to_string()).collect();
        let output = support::cluster::quorate()
            .args(arguments)
            .args(["-b", &servers.join(",")])
            .arg("--certs-dir")
            .arg(cluster.dir().join("certs-1"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let described = said(&["group", "describe", "newer"]);
    assert!(
        described.contains("Stable, assigned by uniform, epoch 2 (assigned 2)"),
        "{described}"
    );
    assert!(described.contains("TARGET"), "{described}");
}

/// A kcat that consumes in a group; killed when dropped.
struct Member {
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

impl Member {
    fn start(dir: &Path, id: &str, brokers: &str, group: &str, topic: &str) -> Member {
        let (out, log) = (dir.join(format!("{id}.out")), dir.join(format!("{id}.log")));
        let child = Command::new("kcat")
            .args(["-b", brokers, "-G", group, "-u"])
            .args(["-X", "auto.offset.reset=earliest"])
            .args(["-X", "session.timeout.ms=6000"])
            .args(["-X", "auto.commit.interval.ms=200"])
            .arg(topic)
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Member { child, out, log }
    }

    fn read(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.out).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// How many partitions it was given last, as it tells.
    fn partitions(&self) -> usize {
        let text = fs::read_to_string(&self.log).unwrap();
        let last = text.lines().rfind(|line| line.contains("assigned:"));
        last.map_or(0, |line| line.matches('[').count())
    }

    async fn until_given(&self, partitions: usize) {
        until("kcat is given its partitions", async || {
            match self.partitions() {
                found if found == partitions => Ok(()),
                _ => Err(fs::read_to_string(&self.log).unwrap()),
            }
        })
        .await;
    }

    async fn until_read(&self, lines: &[String]) {
        until("kcat reads", async || {
            let read = self.read();
            match lines.iter().all(|line| read.contains(line)) {
                true => Ok(()),
                false => Err(format!("{} lines", read.len())),
            }
        })
        .await;
    }

    /// Ends it as a user does: it commits and leaves.
    fn interrupt(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn produce(brokers: &str, topic: &str, lines: &[String]) {
    let mut child = Command::new("kcat")
        .args(["-P", "-b", brokers, "-t", topic, "-X", "acks=all"])
        .args(["-X", "sticky.partitioning.linger.ms=0"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for line in lines {
        writeln!(stdin, "{line}").unwrap();
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_kcat_share_a_topic_take_over_and_resume() {
    if Command::new("kcat").arg("-V").output().is_err() {
        eprintln!("!!! NOT TESTED: kcat is not installed (Debian: apt-get install kcat)");
        return;
    }
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 4).await;
    let brokers = cluster.specs[0].kafka.to_string();
    let lines = |from: usize| {
        (from..from + 100)
            .map(|n| format!("line {n}"))
            .collect::<Vec<_>>()
    };

    let first = Member::start(cluster.dir(), "first", &brokers, "readers", "orders");
    first.until_given(4).await;
    produce(&brokers, "orders", &lines(0));
    first.until_read(&lines(0)).await;
    let mut second = Member::start(cluster.dir(), "second", &brokers, "readers", "orders");
    second.until_given(2).await;
    first.until_given(2).await;
    // Killed: the other takes over when its session is past.
    drop(first);
    second.until_given(4).await;
    produce(&brokers, "orders", &lines(100));
    second.until_read(&lines(100)).await;
    second.interrupt();
    // What was committed is where the next one begins.
    produce(&brokers, "orders", &lines(200));
    let third = Member::start(cluster.dir(), "third", &brokers, "readers", "orders");
    third.until_read(&lines(200)).await;
    let read = third.read();
    for line in lines(0).iter().chain(&lines(100)) {
        assert!(!read.contains(line), "{line} was read again");
    }
}

/// A Python that has confluent-kafka: what `QUORATE_TEST_PYTHON` names, or `python3`.
fn python() -> Option<String> {
    let python = std::env::var("QUORATE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python)
        .args(["-c", "import confluent_kafka"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        eprintln!(
            "!!! NOT TESTED: {python} has no confluent_kafka (pip install confluent-kafka; QUORATE_TEST_PYTHON names a Python)"
        );
    }
    found.then_some(python)
}

/// Runs the script; its coordinator is killed when it asks for it.
async fn confluent(strategy: &str) {
    let Some(python) = python() else {
        return;
    };
    let mut cluster = Cluster::start().await;
    let brokers: Vec<String> = cluster
        .specs
        .iter()
        .map(|spec| spec.kafka.to_string())
        .collect();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/scripts/groups_confluent.py"
    );
    let mut child = Command::new(python)
        .args([script, &brokers.join(","), strategy])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut killed = None;
    loop {
        let mut line = String::new();
        if out.read_line(&mut line).unwrap() == 0 {
            break;
        }
        if let Some(id) = line.strip_prefix("coordinator ") {
            let id = NodeId::from_broker_id(id.trim().parse().unwrap()).unwrap();
            cluster.kill(id);
            killed = Some(id);
            writeln!(child.stdin.as_mut().unwrap(), "killed").unwrap();
        }
        said.push_str(&line);
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "{status} after:\n{said}");
    assert!(killed.is_some(), "no coordinator was named:\n{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_librdkafka_read_on_when_their_coordinator_is_killed() {
    confluent("range").await;
}

/// Groups of the newer protocol, whose partitions the coordinator gives out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_the_newer_protocol_read_on_when_their_coordinator_is_killed() {
    confluent("newer:uniform").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_librdkafka_rebalance_cooperatively() {
    confluent("cooperative-sticky").await;
}
