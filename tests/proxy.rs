//! Kafka clients behind `quorate proxy`: every node has a local port, and the death of a leader loses nothing.

// A test that cannot go on panics, and what was skipped goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

use support::cluster::{Cluster, free_port, quorate};
use support::kafka::Kafka;
use support::{PATIENCE, until};

struct Proxy {
    child: Child,
    address: String,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A proxy that is ready.
async fn start(cluster: &Cluster, base: Option<u16>) -> Proxy {
    let servers: Vec<String> = cluster.specs.iter().map(|s| s.quic.to_string()).collect();
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = quorate();
    command
        .args(["proxy", "--listen", &address, "-b", &servers.join(",")])
        .arg("--certs-dir")
        .arg(cluster.dir().join("certs-1"));
    if let Some(base) = base {
        command.args(["--node-ports", &base.to_string()]);
    }
    let child = command.stderr(Stdio::null()).spawn().unwrap();
    let proxy = Proxy { child, address };
    until("the proxy listens", async || {
        let connected = tokio::net::TcpStream::connect(&proxy.address).await;
        connected.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    proxy
}

fn spawn_kcat(proxy: &Proxy, arguments: &[&str]) -> Child {
    Command::new("kcat")
        .args(["-b", &proxy.address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn output(child: Child) -> Output {
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = tokio::time::timeout(3 * PATIENCE, waiting);
    let output = output.await.expect("kcat comes to an end").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    output
}

async fn kcat(proxy: &Proxy, arguments: &[&str]) -> String {
    let output = output(spawn_kcat(proxy, arguments)).await;
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_client_goes_through_and_outlives_a_leader() {
    if Command::new("kcat").arg("-V").output().is_err() {
        eprintln!("!!! NOT TESTED: kcat is not installed (Debian: apt-get install kcat)");
        return;
    }
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let proxy = start(&cluster, None).await;

    // Every node is named, each by a port of this machine, and none by its own address.
    let listed = kcat(&proxy, &["-L"]).await;
    assert!(listed.contains("3 brokers"), "{listed}");
    let ports: BTreeSet<&str> = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("broker "))
        .filter_map(|line| line.split_whitespace().nth(2))
        .collect();
    assert_eq!(ports.len(), 3, "{listed}");
    for spec in &cluster.specs {
        assert!(!listed.contains(&spec.quic.to_string()), "{listed}");
        assert!(!listed.contains(&spec.kafka.to_string()), "{listed}");
    }

    // The leader dies in the middle of a producer's work.
    let produce = [
        "-P",
        "-t",
        "orders",
        "-p",
        "0",
        "-X",
        "acks=all",
        "-X",
        "enable.idempotence=true",
        "-X",
        "linger.ms=1",
        "-X",
        "message.timeout.ms=120000",
    ];
    let mut producer = spawn_kcat(&proxy, &produce);
    let mut stdin = producer.stdin.take().unwrap();
    let mut write = |from: usize, to: usize| {
        for n in from..to {
            writeln!(stdin, "value {n}").unwrap();
        }
        stdin.flush().unwrap();
    };
    write(0, 2_000);
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    let mut kafka = Kafka::connect(cluster.spec(leader).kafka).await;
    until("the first records are there", async || {
        let (_, high_watermark, _) = kafka.fetch("orders", 0, 0).await;
        match high_watermark {
            1.. => Ok(()),
            other => Err(format!("{other}")),
        }
    })
    .await;
    cluster.kill(leader);
    write(2_000, 4_000);
    drop(stdin);
    output(producer).await;
    let consume = [
        "-C",
        "-t",
        "orders",
        "-p",
        "0",
        "-o",
        "beginning",
        "-e",
        "-q",
    ];
    let read = kcat(&proxy, &consume).await;
    let wanted: Vec<String> = (0..4_000).map(|n| format!("value {n}")).collect();
    let read: Vec<&str> = read.lines().collect();
    assert!(read == wanted, "{} lines came back", read.len());

    // A group finds its coordinator behind the proxy, too.
    let mut member = spawn_kcat(
        &proxy,
        &[
            "-G",
            "group",
            "-q",
            "-e",
            "-X",
            "auto.offset.reset=earliest",
            "orders",
        ],
    );
    drop(member.stdin.take());
    let read = output(member).await;
    let count = String::from_utf8_lossy(&read.stdout).lines().count();
    assert_eq!(count, 4_000);

    // The node that died is dialled anew: now the others die, one after the other, and what is produced goes on.
    cluster.spawn(leader);
    cluster.until_healthy().await;
    for id in cluster.ids() {
        if id == leader {
            continue;
        }
        cluster.kill(id);
        let mut producer = spawn_kcat(&proxy, &produce);
        let mut stdin = producer.stdin.take().unwrap();
        writeln!(stdin, "while {id} is away").unwrap();
        drop(stdin);
        output(producer).await;
        cluster.spawn(id);
        cluster.until_healthy().await;
    }
    let read = kcat(&proxy, &consume).await;
    let last: Vec<&str> = read.lines().skip(4_000).collect();
    let away = cluster.ids().into_iter().filter(|id| *id != leader);
    let wanted: Vec<String> = away.map(|id| format!("while {id} is away")).collect();
    assert_eq!(last, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_proxy_may_not_do_is_refused_and_what_is_no_request_ends_its_connection_alone() {
    let cluster = Cluster::of(1).await;
    let refused = |arguments: &[&str]| {
        let output = quorate()
            .arg("proxy")
            .args(arguments)
            .args(["-b", &cluster.specs[0].quic.to_string()])
            .arg("--certs-dir")
            .arg(cluster.dir().join("certs-1"))
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(&["--listen", "0.0.0.0:0"]);
    assert!(said.contains("listen on 127.0.0.1"), "{said}");

    let proxy = start(&cluster, None).await;
    let address = proxy.address.parse().unwrap();
    for bytes in [
        &[0xff; 64][..],
        &[0, 0, 0, 4, 1, 2, 3, 4],
        &[0x16, 3, 1, 0, 200],
    ] {
        let mut stream = tokio::net::TcpStream::connect(&proxy.address)
            .await
            .unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, bytes)
            .await
            .unwrap();
        let mut rest = Vec::new();
        // Closed, or reset with what was not read.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
        assert!(rest.is_empty());
    }
    let mut kafka = Kafka::connect(address).await;
    let request = kafka_protocol::messages::MetadataRequest::default();
    let response = kafka.call(&request, 12).await;
    assert_eq!(response.brokers.len(), 1);
    assert_ne!(
        response.brokers[0].port,
        i32::from(cluster.specs[0].quic.port())
    );
}
