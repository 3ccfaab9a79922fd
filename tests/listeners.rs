//! Nodes with several Kafka listeners: whoever comes by one learns the addresses of that one and no other, logs in as that one
//! asks, and is told of a new address as ever.

// A test that cannot go on panics, and what was skipped goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kafka_protocol::messages::MetadataRequest;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{
    PartitionProduceData, ProduceRequest, TopicProduceData,
};
use quorate::client::NewTopic;
use serde_json::Value;

use support::cluster::{Cluster, NodeSpec, free_port, loopback, quorate};
use support::kafka::{Kafka, batch, name};
use support::{node, topic, until};

/// What the nodes have besides their listener for certificates.
#[derive(Clone, Copy)]
struct Ports {
    /// Under TLS, for users.
    external: SocketAddr,
    /// Plaintext; node 3 has none.
    local: SocketAddr,
}

fn config_of(spec: &NodeSpec) -> PathBuf {
    spec.data_dir.with_extension("toml")
}

fn configure(spec: &NodeSpec, ports: Ports, advertised: &str) {
    let external = format!(
        "[kafka.listeners.external]\nlisten = \"{}\"\nsecurity = \"sasl_tls\"\nadvertise = \"{advertised}\"\n",
        ports.external
    );
    fs::write(config_of(spec), external).unwrap();
}

/// Three nodes with their listeners, known to all of them.
async fn cluster() -> (Cluster, Vec<Ports>) {
    let mut cluster = Cluster::prepare(3).await;
    let mut all = Vec::new();
    for spec in &mut cluster.specs {
        let ports = Ports {
            external: loopback(free_port()),
            local: loopback(free_port()),
        };
        configure(spec, ports, &localhost(ports.external));
        spec.kafka_plaintext = false;
        let config = config_of(spec).display().to_string();
        spec.flags.extend(["--config".to_owned(), config]);
        if spec.id != node(3) {
            let local = format!("local=plaintext://{}", ports.local);
            spec.flags.extend(["--kafka-listener".to_owned(), local]);
        }
        all.push(ports);
    }
    cluster.start_all().await;
    until("everybody knows everybody's listeners", async || {
        for id in cluster.ids() {
            let status = cluster.status(id).await?;
            let counts: Vec<usize> = status
                .nodes
                .iter()
                .map(|node| node.kafka_listeners.len())
                .collect();
            if counts != [2, 2, 1] {
                return Err(format!("node {id}: {:?}", status.nodes));
            }
        }
        Ok(())
    })
    .await;
    (cluster, all)
}

/// Another name for the same place, so that it can be told which of the two was advertised.
fn localhost(address: SocketAddr) -> String {
    format!("localhost:{}", address.port())
}

/// One partition that `leader` leads.
async fn create(cluster: &Cluster, text: &str, leader: u32) {
    let replicas = [leader, leader % 3 + 1, (leader + 1) % 3 + 1].map(node);
    let new = NewTopic {
        assignment: Some(vec![replicas.to_vec()]),
        ..NewTopic::new(topic(text))
    };
    let client = cluster.client().await;
    client.admin().create_topic(&new, false).await.unwrap();
    let name = topic(text);
    let led = cluster.until_led(&name, 0, |led| led == node(leader)).await;
    assert_eq!(led, node(leader));
}

fn has_kcat() -> bool {
    let found = Command::new("kcat").arg("-V").output().is_ok();
    if !found {
        eprintln!("!!! NOT TESTED: kcat is not installed (Debian: apt-get install kcat)");
    }
    found
}

async fn feed(mut command: Command, input: &str) -> Output {
    let input = input.to_owned();
    let work = move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // It may end before it has read all.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// How a client shows who it is.
#[derive(Clone, Copy)]
enum Shows {
    Certificate,
    Password,
    Nothing,
}

async fn kcat(cluster: &Cluster, to: &str, shows: Shows, words: &[&str], input: &str) -> Output {
    let certs = cluster.dir().join("certs-1");
    let file = |name: &str| certs.join(name).display().to_string();
    let mut settings = vec![format!("ssl.ca.location={}", file("ca.crt"))];
    match shows {
        Shows::Certificate => settings.extend([
            "security.protocol=ssl".to_owned(),
            format!("ssl.certificate.location={}", file("client.tester.crt")),
            format!("ssl.key.location={}", file("client.tester.key")),
        ]),
        Shows::Password => settings.extend(
            [
                "security.protocol=sasl_ssl",
                "sasl.mechanisms=SCRAM-SHA-256",
                "sasl.username=alice",
                "sasl.password=secret",
            ]
            .map(str::to_owned),
        ),
        Shows::Nothing => settings.push("security.protocol=ssl".to_owned()),
    }
    let mut command = Command::new("kcat");
    command.args(["-b", to]);
    for setting in &settings {
        command.args(["-X", setting]);
    }
    command.args(words);
    feed(command, input).await
}

/// Node ids and addresses, as a client learns them that asks at `to`.
async fn brokers(cluster: &Cluster, to: &str, shows: Shows) -> Vec<(i64, String)> {
    let listed = kcat(cluster, to, shows, &["-L", "-J", "-m", "30"], "").await;
    let said = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(listed.status.success(), "{to}: {said}");
    let json: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let mut brokers: Vec<(i64, String)> = json["brokers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|broker| {
            let name = broker["name"].as_str().unwrap().to_owned();
            (broker["id"].as_i64().unwrap(), name)
        })
        .collect();
    brokers.sort();
    brokers
}

fn numbered(addresses: impl IntoIterator<Item = String>) -> Vec<(i64, String)> {
    (1..).zip(addresses).collect()
}

/// By this listener records go in and come out, wherever their partition is led.
async fn carries(cluster: &Cluster, to: &str, shows: Shows, topic: &str, line: &str) {
    let words = ["-P", "-t", topic, "-X", "message.timeout.ms=30000"];
    let written = kcat(cluster, to, shows, &words, &format!("{line}\n")).await;
    let said = String::from_utf8_lossy(&written.stderr).into_owned();
    assert!(written.status.success(), "{topic} by {to}: {said}");
    let words = ["-C", "-t", topic, "-o", "beginning", "-e", "-q"];
    let read = kcat(cluster, to, shows, &words, "").await;
    let text = String::from_utf8(read.stdout).unwrap();
    assert!(text.lines().any(|found| found == line), "{topic}: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_listener_has_its_own_addresses_and_its_own_door() {
    if !has_kcat() {
        return;
    }
    let (cluster, ports) = cluster().await;
    for (text, leader) in [("one", 1), ("two", 2), ("three", 3)] {
        create(&cluster, text, leader).await;
    }
    let servers: Vec<String> = cluster.specs.iter().map(|s| s.quic.to_string()).collect();
    let certs = cluster.dir().join("certs-1");
    let ours = |words: &[&str]| {
        let mut command = quorate();
        command
            .args(words)
            .args(["-b", &servers.join(","), "--certs-dir"])
            .arg(&certs);
        command
    };
    let set = feed(ours(&["user", "set", "alice"]), "secret\n").await;
    assert!(set.status.success());

    // Each client goes on by the listener by which it came, whichever node it asked first.
    let kafka: Vec<String> = cluster.specs.iter().map(|s| s.kafka.to_string()).collect();
    let external: Vec<String> = ports.iter().map(|p| localhost(p.external)).collect();
    for at in 0..3 {
        let found = brokers(&cluster, &kafka[at], Shows::Certificate).await;
        assert_eq!(found, numbered(kafka.clone()));
        let found = brokers(&cluster, &external[at], Shows::Password).await;
        assert_eq!(found, numbered(external.clone()));
    }
    for (at, topic) in ["one", "two", "three"].into_iter().enumerate() {
        let line = format!("by certificate, {topic}");
        let first = &kafka[(at + 1) % 3];
        carries(&cluster, first, Shows::Certificate, topic, &line).await;
        let line = format!("by password, {topic}");
        let first = &external[(at + 1) % 3];
        carries(&cluster, first, Shows::Password, topic, &line).await;
    }
    // A password is no certificate, and nothing is neither.
    for (to, shows) in [
        (&kafka[0], Shows::Password),
        (&kafka[0], Shows::Nothing),
        (&external[0], Shows::Nothing),
    ] {
        let listed = kcat(&cluster, to, shows, &["-L", "-m", "5"], "").await;
        assert!(!listed.status.success(), "{to}");
    }

    // Operators see all of them.
    let shown = feed(ours(&["cluster", "status"]), "").await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    for word in [
        kafka[1].clone(),
        format!("external={}", external[1]),
        format!("local={}", ports[1].local),
    ] {
        assert!(shown.contains(&word), "{word} in {shown}");
    }

    // Node 2 is to be found elsewhere, and its listeners stay what they are.
    let moved = ports[1].external.to_string();
    configure(&cluster.specs[1], ports[1], &moved);
    let pid = cluster.pid(node(2)).to_string();
    let told = Command::new("kill").args(["-HUP", &pid]).status().unwrap();
    assert!(told.success());
    let name = "external".parse().unwrap();
    until("node 1 knows of the move", async || {
        let status = cluster.status(node(1)).await?;
        match status.nodes[1].kafka_listeners.get(&name) {
            Some(address) if *address == moved => Ok(()),
            address => Err(format!("{address:?}")),
        }
    })
    .await;
    let found = brokers(&cluster, &external[0], Shows::Password).await;
    let elsewhere = [external[0].clone(), moved, external[2].clone()];
    assert_eq!(found, numbered(elsewhere));
    let found = brokers(&cluster, &kafka[0], Shows::Certificate).await;
    assert_eq!(found, numbered(kafka));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_clients_listener_is_left_out_and_hints_name_the_others() {
    let (cluster, ports) = cluster().await;
    create(&cluster, "reached", 2).await;
    create(&cluster, "unreached", 3).await;
    let mut kafka = Kafka::connect(ports[0].local).await;
    let topics = ["reached", "unreached"]
        .map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic))));
    let request = MetadataRequest::default().with_topics(Some(topics.to_vec()));
    for (version, wanted) in [(5, 5), (12, 72)] {
        let answer = kafka.call(&request, version).await;
        let told: Vec<_> = answer
            .brokers
            .iter()
            .map(|b| (b.node_id.0, b.port))
            .collect();
        let port = |at: usize| i32::from(ports[at].local.port());
        assert_eq!(told, [(1, port(0)), (2, port(1))]);
        let led: Vec<_> = answer
            .topics
            .iter()
            .map(|topic| &topic.partitions[0])
            .map(|partition| (partition.error_code, partition.leader_id.0))
            .collect();
        assert_eq!(led, [(0, 2), (wanted, -1)]);
    }
    for (topic, endpoints) in [
        ("reached", vec![(2, i32::from(ports[1].local.port()))]),
        ("unreached", Vec::new()),
    ] {
        let produce = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(5_000)
            .with_topic_data(vec![
                TopicProduceData::default()
                    .with_name(name(topic))
                    .with_partition_data(vec![
                        PartitionProduceData::default().with_records(Some(batch(&[b"x"]))),
                    ]),
            ]);
        let answer = kafka.call(&produce, 12).await;
        let partition = &answer.responses[0].partition_responses[0];
        assert_eq!(partition.error_code, 6, "{topic}: not the leader");
        let told: Vec<_> = answer
            .node_endpoints
            .iter()
            .map(|node| (node.node_id.0, node.port))
            .collect();
        assert_eq!(told, endpoints, "{topic}");
    }
}

/// What `doctor` says of the configuration's Kafka listeners, and whether all is well with them.
async fn examined(certs: &Path, config: &Path) -> Vec<(String, String)> {
    let mut command = quorate();
    command
        .args(["doctor", "--output", "json", "--config"])
        .arg(config)
        .arg("--certs-dir")
        .arg(certs);
    let found = feed(command, "").await;
    String::from_utf8(found.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|finding| finding["check"] == "kafka_listener")
        .map(|finding| {
            let word = |key: &str| finding[key].as_str().unwrap().to_owned();
            (word("outcome"), word("detail"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_looks_at_every_listener_of_a_configuration() {
    let mut cluster = Cluster::prepare(1).await;
    let spec = cluster.specs[0].clone();
    let [open, secret, wrong] = [free_port(), free_port(), free_port()].map(loopback);
    let config = config_of(&spec);
    let mut text = format!(
        "data_dir = {:?}\ncerts_dir = {:?}\nlisten = \"{}\"\n",
        spec.data_dir, spec.certs_dir, spec.quic
    );
    for (name, listen, security, advertise) in [
        ("open", open, "plaintext", open.to_string()),
        ("secret", secret, "tls", localhost(secret)),
        (
            "wrong",
            wrong,
            "sasl_tls",
            format!("db1.example:{}", wrong.port()),
        ),
    ] {
        text.push_str(&format!(
            "[kafka.listeners.{name}]\nlisten = \"{listen}\"\nsecurity = \"{security}\"\nadvertise = \"{advertise}\"\n"
        ));
    }
    fs::write(&config, &text).unwrap();
    let before = examined(&spec.certs_dir, &config).await;
    let outcomes = |found: &[(String, String)]| -> Vec<String> {
        found.iter().map(|(outcome, _)| outcome.clone()).collect()
    };
    assert_eq!(outcomes(&before), ["ok", "ok", "fail"], "{before:?}");
    assert!(before[0].1.contains("is free"), "{before:?}");
    assert!(before[2].1.contains("db1.example"), "{before:?}");

    let config_flag = ["--config".to_owned(), config.display().to_string()];
    cluster.specs[0].flags.extend(config_flag);
    cluster.start_all().await;
    let during = examined(&spec.certs_dir, &config).await;
    assert_eq!(outcomes(&during), ["ok", "ok", "fail"], "{during:?}");
    assert!(during[0].1.contains("takes connections"), "{during:?}");
    assert!(during[1].1.contains("answers at localhost"), "{during:?}");

    // What the file says now is not what the node does: plaintext where TLS should be, and nobody where clients are sent.
    let changed = text
        .replace("\"plaintext\"", "\"tls\"")
        .replace(&localhost(secret), &localhost(loopback(free_port())));
    fs::write(&config, changed).unwrap();
    let after = examined(&spec.certs_dir, &config).await;
    assert_eq!(outcomes(&after), ["fail", "fail", "fail"], "{after:?}");
    assert!(after[0].1.contains("no TLS"), "{after:?}");
    assert!(after[1].1.contains("find nobody there"), "{after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_said_before_anything_is_touched() {
    let cluster = Cluster::prepare(1).await;
    let spec = &cluster.specs[0];
    let port = free_port();
    for (flags, words) in [
        (
            vec![
                format!("a=tls://127.0.0.1:{port}"),
                format!("b=tls://127.0.0.1:{port}"),
            ],
            "two listeners, a and b",
        ),
        (
            vec!["a=plaintext://192.0.2.1:9092".to_owned()],
            "open to everyone",
        ),
        (
            vec!["a=sasl_plaintext://192.0.2.1:9092".to_owned()],
            "open to everyone",
        ),
        (vec!["a=ssl://127.0.0.1:1".to_owned()], "is no security"),
        (vec!["a b=tls://127.0.0.1:1".to_owned()], "NAME=SECURITY"),
        (
            vec!["a=tls://127.0.0.1:0,advertise=db1:9092".to_owned()],
            "listens on port 0",
        ),
        (vec!["a=tls://0.0.0.0:9092".to_owned()], "advertise"),
        (
            (1..=8)
                .map(|n| format!("l{n}=tls://127.0.0.1:{}", 1000 + n))
                .collect(),
            "at most 8",
        ),
        (
            vec![format!("default=tls://127.0.0.1:{port}")],
            "described twice",
        ),
    ] {
        let mut spec = spec.clone();
        let _ = fs::remove_file(&spec.log);
        for flag in &flags {
            spec.flags
                .extend(["--kafka-listener".to_owned(), flag.clone()]);
        }
        let (ended, said) = tokio::time::timeout(Duration::from_secs(60), spec.run_to_its_end())
            .await
            .unwrap();
        assert!(!ended.success(), "{flags:?}: {said}");
        // Lines are broken where they are long.
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(words), "{flags:?}: {said}");
        assert!(!spec.data_dir.exists(), "{flags:?}: something was made");
    }
}
