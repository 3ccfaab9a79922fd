//! `quorate doctor` against real nodes, and against everything else that an address may lead to: what is wrong is named, with
//! what to do, and nodes go on serving.

// A test that cannot go on panics, and what could not be tested is said loudly.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quorate::client::{NewTopic, ProducerConfig, ProducerRecord};
use quorate::transport::{Alpn, CertsDir, ClientName, IssueOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use support::cluster::{Cluster, NodeSpec, free_port, loopback, quorate};
use support::{chain, node, topic, until};
use time::OffsetDateTime;

/// What `quorate doctor WORDS` found, and its exit code.
struct Found {
    code: Option<i32>,
    findings: Vec<Value>,
    said: String,
}

async fn doctor_by(mut command: Command, certs_dir: &Path, words: &[&str]) -> Found {
    command
        .args(["doctor", "--output", "json"])
        .args(words)
        .arg("--certs-dir")
        .arg(certs_dir)
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let findings: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for finding in &findings {
        let is_ok = finding["outcome"] == "ok";
        assert_eq!(finding["fix"].is_null(), is_ok, "{finding}");
    }
    Found {
        code: output.status.code(),
        findings,
        said: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn doctor(certs_dir: &Path, words: &[&str]) -> Found {
    doctor_by(quorate(), certs_dir, words).await
}

impl Found {
    fn all(&self, check: &str) -> Vec<&Value> {
        self.findings
            .iter()
            .filter(|f| f["check"] == check)
            .collect()
    }

    /// The one finding of a check, seen from here; of one that is made both of this machine and of an endpoint, the former.
    fn one(&self, check: &str) -> &Value {
        let mut found = self.all(check);
        found.retain(|f| f["from"] == "here");
        if found.iter().any(|f| f["target"] == "here") {
            found.retain(|f| f["target"] == "here");
        }
        assert_eq!(
            found.len(),
            1,
            "{check}: {:#?} {}",
            self.findings,
            self.said
        );
        found[0]
    }

    fn says(&self, check: &str, outcome: &str, words: &[&str]) {
        tells(self.one(check), outcome, words);
    }

    /// Exactly these checks have failed.
    fn fails(&self, checks: &[&str]) {
        let failed: Vec<&str> = self
            .findings
            .iter()
            .filter(|f| f["outcome"] == "fail")
            .map(|f| f["check"].as_str().unwrap())
            .collect();
        assert_eq!(failed, checks, "{:#?}", self.findings);
        let code = if checks.is_empty() { 0 } else { 10 };
        assert_eq!(self.code, Some(code), "{}", self.said);
    }
}

fn tells(finding: &Value, outcome: &str, words: &[&str]) {
    assert_eq!(finding["outcome"], outcome, "{finding}");
    for word in words {
        assert!(finding.to_string().contains(word), "{word:?} in {finding}");
    }
}

fn fresh(cluster: &Cluster, name: &str) -> PathBuf {
    let dir = cluster.dir().join(name);
    fs::create_dir(&dir).unwrap();
    dir
}

fn certs(cluster: &Cluster) -> PathBuf {
    cluster.specs[0].certs_dir.clone()
}

async fn check_serves(cluster: &Cluster) {
    for id in cluster.running() {
        cluster.status(id).await.unwrap();
    }
}

// --- A cluster that is well, and one of which a node is gone

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_well_passes_and_a_node_that_is_gone_is_named_from_everywhere() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "t", 3).await;
    for index in 0..3 {
        cluster.until_isr(&topic, index, &cluster.ids()).await;
    }
    let first = cluster.specs[0].quic.to_string();
    let found = doctor(&certs(&cluster), &["--from-all", "-b", &first]).await;
    found.fails(&[]);
    for check in ["reachable", "san", "node_id", "cluster", "clock"] {
        // From here to each of three, and from each of three to two others.
        assert_eq!(
            found.all(check).len(),
            3 + 6,
            "{check}: {:#?}",
            found.findings
        );
    }
    assert_eq!(found.all("disk_sync").len(), 3);
    assert!(
        found.all("dials").iter().all(|f| f["outcome"] == "ok"),
        "{:#?}",
        found.findings
    );
    assert!(found.all("link").len() >= 2, "{:#?}", found.findings);
    assert!(
        found
            .all("path")
            .iter()
            .all(|f| f["detail"].as_str().unwrap().contains("MTU"))
    );

    cluster.kill(node(3));
    let gone = cluster.spec(node(3)).quic.port().to_string();
    let found = doctor(&certs(&cluster), &["--from-all", "-b", &first]).await;
    assert_eq!(found.code, Some(10));
    let of_3: Vec<_> = found
        .all("reachable")
        .into_iter()
        .filter(|f| f["target"].as_str().unwrap().starts_with("node 3 at"))
        .collect();
    assert_eq!(of_3.len(), 3, "{:#?}", found.findings);
    for finding in of_3 {
        tells(
            finding,
            "fail",
            &["nothing listens on UDP port", &gone, "start the node"],
        );
    }
    check_serves(&cluster).await;
}

#[tokio::test]
async fn people_are_told_in_lines_that_fit() {
    let mut cluster = Cluster::of(1).await;
    let address = cluster.specs[0].quic.to_string();
    let dir = certs(&cluster);
    let table = async || {
        let mut command = quorate();
        command
            .args(["doctor", "-b", &address])
            .arg("--certs-dir")
            .arg(&dir);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, text) = table().await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Node 1 at"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    cluster.kill(node(1));
    let (code, text) = table().await;
    assert_eq!(code, Some(10), "{text}");
    assert!(text.contains("FAIL  reachable"), "{text}");
    assert!(
        text.lines()
            .any(|line| line.trim_start().starts_with("fix: ")),
        "{text}"
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
}

// --- Addresses that lead elsewhere

#[tokio::test]
async fn other_services_closed_ports_and_silence_are_told_apart() {
    let cluster = Cluster::prepare(1).await;
    let dir = certs(&cluster);
    let closed = loopback(free_port()).to_string();
    let found = doctor(&dir, &["-b", &closed]).await;
    found.fails(&["reachable"]);
    found.says(
        "reachable",
        "fail",
        &["nothing listens", "the host is up", "start the node"],
    );
    found.says("clock", "skipped", &[]);

    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap().to_string();
    let found = doctor(&dir, &["-b", &address]).await;
    found.fails(&["reachable"]);
    found.says("reachable", "fail", &["a TCP service does", "--listen"]);

    let rubbish = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = rubbish.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((_, from)) = rubbish.recv_from(&mut buffer) {
            let _ = rubbish.send_to(b"what?", from);
        }
    });
    let found = doctor(&dir, &["-b", &address]).await;
    found.fails(&["reachable"]);
    found.says(
        "reachable",
        "fail",
        &["5 bytes", "no QUIC", "another service"],
    );
    let mut command = quorate();
    command
        .args(["cluster", "status", "--timeout", "4s", "-b", &address])
        .arg("--certs-dir")
        .arg(&dir);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let said = String::from_utf8(output.await.unwrap().stderr).unwrap();
    let words = "answered with 5 bytes that are no QUIC";
    assert!(said.contains(words), "{said}");

    // It has the port and says nothing, as a process that hangs, or one behind a firewall.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let found = doctor(&dir, &["-b", &address]).await;
    found.fails(&["reachable"]);
    found.says(
        "reachable",
        "fail",
        &["nothing came back", "firewall", "cannot be told which"],
    );

    let found = doctor(&dir, &["-b", "no-such-host.invalid:9292"]).await;
    found.fails(&["host_name"]);
    found.says("host_name", "fail", &["no-such-host.invalid", "DNS"]);
}

#[tokio::test]
async fn a_node_that_hangs_is_not_called_dead() {
    let cluster = Cluster::of(1).await;
    let address = cluster.specs[0].quic.to_string();
    cluster.freeze(node(1));
    let found = doctor(&certs(&cluster), &["-b", &address]).await;
    cluster.thaw(node(1));
    found.fails(&["reachable"]);
    found.says(
        "reachable",
        "fail",
        &["nothing came back", "hangs", "cannot be told which"],
    );
    check_serves(&cluster).await;
}

/// A QUIC server that speaks `protocols` alone, with a node's certificate.
fn stranger(spec: &NodeSpec, protocols: &[&str]) -> quinn::Endpoint {
    let chain = CertificateDer::pem_file_iter(spec.certs_dir.join("node.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(spec.certs_dir.join("node.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    tls.alpn_protocols = protocols.iter().map(|name| (*name).into()).collect();
    let crypto = QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, spec.quic).unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    connection.closed().await;
                }
            });
        }
    });
    endpoint
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_peer_and_another_quic_service_are_named_here_and_in_the_log() {
    let mut cluster = Cluster::prepare(3).await;
    let newer = stranger(cluster.spec(node(3)), &["quorate-admin/2"]);
    let address = cluster.spec(node(3)).quic.to_string();
    let found = doctor(&certs(&cluster), &["-b", &address]).await;
    found.fails(&["protocol"]);
    found.says(
        "protocol",
        "fail",
        &["quorate-admin/2", "quorate-admin/1", "newer", "upgrade"],
    );

    newer.close(0u32.into(), b"");
    newer.wait_idle().await;
    drop(newer);

    // A cluster that works, one node of which is upgraded to a version whose nodes call each other otherwise. The two others are
    // a majority, name it, and work on beside it.
    cluster.start_all().await;
    cluster.kill(node(3));
    let later = [
        "quorate-admin/1",
        "quorate-client/2",
        "quorate-controller/2",
        "quorate-replication/1",
    ];
    let newer = stranger(cluster.spec(node(3)), &later);
    let client = cluster.client().await;
    let pair = topic("pair");
    let new = NewTopic {
        assignment: Some(vec![vec![node(1), node(2)]]),
        configs: BTreeMap::from([("min.insync.replicas".to_owned(), "2".to_owned())]),
        ..NewTopic::new(pair.clone())
    };
    until("a topic is created beside it", async || {
        let created = client.admin().create_topic(&new, false).await;
        created.map(drop).map_err(|error| chain(&error))
    })
    .await;
    let producer = client.producer(ProducerConfig::default()).unwrap();
    for n in 0..10 {
        let record = ProducerRecord::new(pair.clone(), n.to_string());
        producer.send(record).await.unwrap().await.unwrap();
    }
    producer.close().await;
    until("a node's log names it", async || {
        let logs = [0, 1].map(|place: usize| cluster.specs[place].log_text());
        let words = "does not speak quorate-controller/1";
        match logs
            .iter()
            .any(|log| log.contains(words) && log.contains(&address))
        {
            true => Ok(()),
            false => Err(logs.join("\n")),
        }
    })
    .await;
    let first = cluster.specs[0].quic.to_string();
    let found = doctor(&certs(&cluster), &["--from-all", "-b", &first]).await;
    assert_eq!(found.code, Some(10));
    for from in ["node 1", "node 2"] {
        let target = format!("node 3 at {address}");
        let mut seen = found.all("protocol");
        seen.retain(|found| found["from"] == from && found["target"] == target);
        assert_eq!(seen.len(), 1, "{:#?}", found.findings);
        let words = ["quorate-controller/2", "quorate-controller/1", "newer"];
        tells(seen[0], "fail", &words);
    }
    newer.close(0u32.into(), b"");

    let spec = NodeSpec {
        quic: loopback(free_port()),
        ..cluster.spec(node(3)).clone()
    };
    let _web = stranger(&spec, &["h3"]);
    let address = spec.quic.to_string();
    let found = doctor(&certs(&cluster), &["-b", &address]).await;
    found.fails(&["protocol"]);
    found.says("protocol", "fail", &["h3", "another service"]);
}

// --- Certificates

#[tokio::test]
async fn everything_that_is_wrong_with_a_certificate_is_found_at_once() {
    let cluster = Cluster::of(1).await;
    let address = cluster.specs[0].quic.to_string();
    // A stranger's CA here: the node's certificate is of another one, and its host is another name.
    let other = fresh(&cluster, "other-ca");
    let now = OffsetDateTime::now_utc();
    let other_ca = CertsDir::new(&other);
    other_ca.create_ca(&IssueOptions::new(now)).unwrap();
    let name = ClientName::new("stranger").unwrap();
    other_ca
        .create_client(&name, &IssueOptions::new(now))
        .unwrap();
    let found = doctor(&other, &["-b", &address]).await;
    found.fails(&["ca"]);
    found.says("ca", "fail", &["another cluster's", "--certs-dir"]);
    found.says("validity", "ok", &[]);
    found.says("role", "ok", &["node 1"]);
    found.says("client_certificate", "skipped", &[]);
    until("the node's log names it", async || {
        let log = cluster.specs[0].log_text();
        match log.contains("its certificate is not of this cluster's CA") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;

    // The server trusts the CA that this end does not, and the other way round.
    let mixed = fresh(&cluster, "mixed");
    fs::copy(
        cluster.specs[0].certs_dir.join("ca.crt"),
        mixed.join("ca.crt"),
    )
    .unwrap();
    for file in ["client.stranger.crt", "client.stranger.key"] {
        fs::copy(other.join(file), mixed.join(file)).unwrap();
    }
    let found = doctor(&mixed, &["-b", &address]).await;
    found.fails(&["own_certificate", "client_certificate"]);
    found.says("own_certificate", "fail", &["wrong CA"]);

    let none = fresh(&cluster, "none");
    fs::copy(
        cluster.specs[0].certs_dir.join("ca.crt"),
        none.join("ca.crt"),
    )
    .unwrap();
    let found = doctor(&none, &["-b", &address]).await;
    found.fails(&["own_certificate"]);
    found.says(
        "own_certificate",
        "fail",
        &["no client certificate", "create-client"],
    );
    found.says("reachable", "ok", &["QUIC answers"]);
    found.says("protocol", "skipped", &["without a certificate"]);
    check_serves(&cluster).await;
}

#[tokio::test]
async fn a_certificate_of_another_host_that_has_expired_is_told_twice() {
    let cluster = Cluster::prepare(1).await;
    let spec = &cluster.specs[0];
    let days = time::Duration::days(10);
    let past = IssueOptions {
        lifetime: Some(Duration::from_secs(86_400)),
        overwrite: true,
        now: OffsetDateTime::now_utc() - days,
    };
    CertsDir::new(&spec.certs_dir)
        .create_node(node(1), &["node.example".parse().unwrap()], &past)
        .unwrap();
    // No node starts with such a certificate; one that runs on while it expires shows it all the same.
    let names = Alpn::ALL.map(Alpn::name);
    let _server = stranger(spec, &names);
    let found = doctor(&spec.certs_dir, &["-b", &format!("2@{}", spec.quic)]).await;
    found.fails(&["role", "san", "validity"]);
    found.says("role", "fail", &["node 1", "node 2 should be"]);
    found.says("san", "fail", &["node.example", "127.0.0.1"]);
    found.says("validity", "fail", &["has expired", "create-node"]);
    found.says("ca", "ok", &[]);
}

// --- Clocks

/// A library that shifts the wall clock of the program that it is loaded into, and no other clock. `None` where it cannot be
/// made here.
fn clock_shift(dir: &Path, seconds: i64) -> Option<PathBuf> {
    let source = dir.join("shift.c");
    let library = dir.join("shift.so");
    let text = format!(
        "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
         int clock_gettime(clockid_t id, struct timespec *t) {{\n\
         int r = syscall(SYS_clock_gettime, id, t);\n\
         if (r == 0 && id == CLOCK_REALTIME) t->tv_sec += {seconds};\nreturn r;\n}}\n"
    );
    fs::write(&source, text).unwrap();
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    made.is_ok_and(|status| status.success()).then_some(library)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_an_hour_off_is_named_by_both_and_the_node_serves_on() {
    let mut cluster = Cluster::prepare(3).await;
    // Within what certificates allow for machines whose clocks run behind.
    let Some(library) = clock_shift(cluster.dir(), 3600) else {
        eprintln!("!!! NOT TESTED: A CLOCK THAT IS AN HOUR OFF: there is no C compiler here (cc)");
        return;
    };
    let preload = ("LD_PRELOAD".to_owned(), library.display().to_string());
    cluster.specs[1].environment.push(preload);
    cluster.start_all().await;
    let spec = cluster.spec(node(2)).clone();
    let address = spec.quic.to_string();
    let found = doctor(&certs(&cluster), &["--from-all", "-b", &address]).await;
    assert_eq!(found.code, Some(10));
    let clocks = |from: &str, target: &str| {
        let is_it =
            |f: &&Value| f["from"] == from && f["target"].as_str().unwrap().starts_with(target);
        found.all("clock").into_iter().find(is_it).unwrap().clone()
    };
    tells(
        &clocks("here", "node 2"),
        "fail",
        &["1 h 0 min ahead", "NTP"],
    );
    tells(&clocks("node 1", "node 2"), "fail", &["1 h 0 min ahead"]);
    tells(&clocks("node 2", "node 3"), "fail", &["1 h 0 min behind"]);
    tells(&clocks("node 1", "node 3"), "ok", &[]);
    until("the log of a node names it", async || {
        let log = cluster.specs[0].log_text();
        match log.contains("clock of a node is off") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "t", 3).await;
}

// --- Configuration

#[tokio::test]
async fn a_configuration_is_judged_before_the_node_is_started() {
    let cluster = Cluster::prepare(1).await;
    let spec = &cluster.specs[0];
    let file = cluster.dir().join("node.toml");
    let path = file.display().to_string();
    let write = |extra: &str| {
        let text = format!(
            "data_dir = {:?}\nlisten = \"{}\"\n{extra}\n",
            spec.data_dir, spec.quic
        );
        fs::write(&file, text).unwrap();
    };
    write("lisen = \"x\"");
    let found = doctor(&spec.certs_dir, &["--config", &path, "-b", "127.0.0.1:1"]).await;
    found.says("configuration", "fail", &["lisen"]);
    assert_eq!(found.code, Some(10));

    write("");
    let holder = UdpSocket::bind(spec.quic).unwrap();
    let found = doctor(&spec.certs_dir, &["--config", &path]).await;
    found.says("configuration", "ok", &["node 1"]);
    found.says("own_certificate", "ok", &["node.crt"]);
    found.says(
        "listen_port",
        "fail",
        &["does not answer as a node", "ss -ulnp"],
    );
    assert_eq!(found.code, Some(10));
    drop(holder);
    let found = doctor(&spec.certs_dir, &["--config", &path]).await;
    found.says("listen_port", "ok", &["is free"]);
    found.says("reachable", "fail", &["nothing listens"]);
    assert!(!spec.data_dir.exists(), "nothing was started or made");

    let dir = cluster.dir().display().to_string();
    let words = ["--data-dir", &dir, "-b", "127.0.0.1:1"];
    let found = doctor(&spec.certs_dir, &words).await;
    found.says("disk_sync", "ok", &["syncs"]);
    found.says("disk_space", "ok", &["free"]);
}

// --- Networks

/// Two network namespaces with one link between them. Gone when dropped.
struct Wire {
    names: [String; 2],
}

const HERE: &str = "10.213.77.1";
const THERE: &str = "10.213.77.2";

impl Wire {
    /// `None`, and said loudly, where this user may not make any.
    fn new(what: &str) -> Option<Wire> {
        let stem = format!("qd{}", std::process::id());
        let wire = Wire {
            names: [format!("{stem}-{what}-a"), format!("{stem}-{what}-b")],
        };
        let made = wire.try_make();
        if made.is_none() {
            eprintln!(
                "!!! NOT TESTED: {what}: it needs root, ip (iproute2), and a kernel with network namespaces and veth"
            );
        }
        made?;
        Some(wire)
    }

    fn try_make(&self) -> Option<()> {
        let [a, b] = &self.names;
        run(&["ip", "netns", "add", a])?;
        run(&["ip", "netns", "add", b])?;
        run(&[
            "ip", "-n", a, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", b,
        ])?;
        for (name, address) in [(a, HERE), (b, THERE)] {
            run(&[
                "ip",
                "-n",
                name,
                "address",
                "add",
                &format!("{address}/24"),
                "dev",
                "v0",
            ])?;
            run(&["ip", "-n", name, "link", "set", "v0", "up"])?;
            run(&["ip", "-n", name, "link", "set", "lo", "up"])?;
        }
        Some(())
    }

    fn inside(&self, side: usize, program: &Command) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.names[side]])
            .arg(program.get_program())
            .args(program.get_args());
        for (name, value) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUORATE_") {
                command.env_remove(name);
            }
            let _ = value;
        }
        command
    }

    fn set_mtu(&self, side: usize, mtu: u32) {
        let mtu = mtu.to_string();
        run(&[
            "ip",
            "-n",
            &self.names[side],
            "link",
            "set",
            "v0",
            "mtu",
            &mtu,
        ])
        .unwrap();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in &self.names {
            run(&["ip", "netns", "delete", name]);
        }
    }
}

fn run(words: &[&str]) -> Option<()> {
    let ran = Command::new(words[0])
        .args(&words[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    ran.is_ok_and(|status| status.success()).then_some(())
}

/// A node at the far end of the wire.
struct Far {
    child: Child,
    address: String,
    dir: PathBuf,
}

impl Far {
    async fn start(cluster: &Cluster, wire: &Wire) -> Far {
        let mut spec = cluster.specs[0].clone();
        spec.quic = format!("{THERE}:{}", spec.quic.port()).parse().unwrap();
        spec.controllers = String::new();
        let options = IssueOptions {
            overwrite: true,
            ..IssueOptions::new(OffsetDateTime::now_utc())
        };
        CertsDir::new(&spec.certs_dir)
            .create_node(node(1), &[THERE.parse().unwrap()], &options)
            .unwrap();
        let log = fs::File::create(&spec.log).unwrap();
        let child = wire
            .inside(1, &spec.command())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        until("the node listens", async || {
            let log = spec.log_text();
            if log.contains("listening on") {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        Far {
            child,
            address: spec.quic.to_string(),
            dir: spec.certs_dir.clone(),
        }
    }

    async fn doctor(&self, wire: &Wire) -> Found {
        let mut command = wire.inside(0, &quorate());
        command.env_remove("QUORATE_CONFIG");
        doctor_by(command, &self.dir, &["-b", &self.address]).await
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_too_narrow_for_quic_is_named_by_its_mtu() {
    let Some(wire) = Wire::new("mtu") else { return };
    let cluster = Cluster::prepare(1).await;
    let far = Far::start(&cluster, &wire).await;
    far.doctor(&wire).await.fails(&[]);

    // The interface here says so itself.
    wire.set_mtu(0, 1100);
    let found = far.doctor(&wire).await;
    found.fails(&["packet_size"]);
    found.says(
        "packet_size",
        "fail",
        &["MTU is 1100", "1228", "raise the MTU"],
    );
    // So do those that only meant to connect.
    let mut command = wire.inside(0, &quorate());
    command
        .args(["cluster", "status", "--timeout", "2s", "-b", &far.address])
        .arg("--certs-dir")
        .arg(&far.dir);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let said = String::from_utf8(output.await.unwrap().stderr).unwrap();
    assert!(said.contains("the path's MTU is 1100 bytes"), "{said}");

    // A link that swallows what is too large, without a word.
    wire.set_mtu(0, 1500);
    wire.set_mtu(1, 1100);
    let found = far.doctor(&wire).await;
    found.fails(&["packet_size"]);
    found.says("packet_size", "fail", &["larger ones are lost", "1228"]);
    // Its kernel may refuse only so many datagrams a second.
    until("those that only meant to connect say so too", async || {
        let mut command = wire.inside(0, &quorate());
        command
            .args(["cluster", "status", "--timeout", "4s", "-b", &far.address])
            .arg("--certs-dir")
            .arg(&far.dir);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let said = String::from_utf8(output.await.unwrap().stderr).unwrap();
        match said.contains("larger ones are lost on the way, which must carry 1228 bytes") {
            true => Ok(()),
            false => Err(said),
        }
    })
    .await;

    // Just enough.
    wire.set_mtu(1, 1228);
    let found = far.doctor(&wire).await;
    found.fails(&[]);
    found.says(
        "path",
        "ok",
        &["MTU 1200", "the least that QUIC works with"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_firewall_is_not_told_from_a_dead_host_unless_the_host_is_heard() {
    let Some(wire) = Wire::new("firewall") else {
        return;
    };
    let cluster = Cluster::prepare(1).await;
    let far = Far::start(&cluster, &wire).await;
    // Nothing that the far end sends arrives.
    let route = [
        "ip",
        "-n",
        &wire.names[1],
        "route",
        "add",
        "blackhole",
        HERE,
    ];
    run(&route).unwrap();
    let found = far.doctor(&wire).await;
    found.fails(&["reachable"]);
    found.says(
        "reachable",
        "fail",
        &[
            "a firewall drops it, or the host is down",
            "cannot be told which",
        ],
    );
    let route = [
        "ip",
        "-n",
        &wire.names[1],
        "route",
        "delete",
        "blackhole",
        HERE,
    ];
    run(&route).unwrap();

    let netns = ["ip", "netns", "exec", &wire.names[1], "nft"];
    let nft = |words: &[&str]| run(&[&netns[..], words].concat());
    if nft(&["add", "table", "inet", "t"]).is_none() {
        eprintln!("!!! NOT TESTED: UDP dropped while TCP passes: there is no nft here (nftables)");
        return;
    }
    nft(&[
        "add",
        "chain",
        "inet",
        "t",
        "c",
        "{ type filter hook input priority 0 ; }",
    ])
    .unwrap();
    nft(&[
        "add", "rule", "inet", "t", "c", "meta", "l4proto", "udp", "drop",
    ])
    .unwrap();
    let found = far.doctor(&wire).await;
    found.fails(&["reachable"]);
    found.says(
        "reachable",
        "fail",
        &["yet the host answers TCP", "a firewall drops UDP"],
    );
    nft(&["flush", "ruleset"]).unwrap();
    far.doctor(&wire).await.fails(&[]);
}
