//! What a node refuses, and how: at its start, from clients with the wrong certificates, and over Kafka's protocol.

// A test that cannot go on panics, and what it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, CreateTopicsRequest, MetadataRequest, ProduceRequest,
};
use quorate::transport::{
    Alpn, CLIENT_STREAMS, CertsDir, ClientName, Identity, IssueOptions, PeerAddress, dial,
};
use quorate::types::ErrorCode;
use support::cluster::{Cluster, NodeSpec, free_port, loopback, quorate};
use support::kafka::{Kafka, batch, encode, name};
use support::{chain, node, until};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;

/// Long enough for anything that is answered at all.
const LONG: Duration = Duration::from_secs(30);

// --- A node's start

/// Every file below `dir`, with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(dir) else {
        return found;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.insert(path.clone(), Vec::new());
            found.append(&mut contents(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

/// The node does not start, says `words`, and leaves its data directory and certificates as they were.
async fn check_refused(spec: &NodeSpec, words: &[&str]) {
    let mut spec = spec.clone();
    spec.log = spec.log.with_extension("refused");
    let before = (contents(&spec.data_dir), contents(&spec.certs_dir));
    let existed = spec.data_dir.exists();
    let (ended, said) = spec.run_to_its_end().await;
    assert!(
        matches!(ended.code(), Some(code) if code != 0),
        "{ended}: {said}"
    );
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(spec.data_dir.exists(), existed, "{said}");
    let after = (contents(&spec.data_dir), contents(&spec.certs_dir));
    assert!(before == after, "something was changed: {said}");
    fs::remove_file(&spec.log).unwrap();
}

#[tokio::test]
async fn a_port_in_use_stops_the_start_before_anything_is_touched() {
    let cluster = Cluster::prepare(1).await;
    let spec = &cluster.specs[0];
    let udp = UdpSocket::bind(spec.quic).unwrap();
    let port = spec.quic.to_string();
    check_refused(spec, &["UDP", &port, "in use", "choose another port"]).await;
    drop(udp);
    let tcp = TcpListener::bind(spec.kafka).unwrap();
    let port = spec.kafka.to_string();
    check_refused(spec, &["TCP", &port, "in use", "choose another port"]).await;
    drop(tcp);
    let tcp = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let port = tcp.local_addr().unwrap().to_string();
    let mut with_admin = spec.clone();
    with_admin.flags = vec!["--admin-listen".to_owned(), port.clone()];
    check_refused(
        &with_admin,
        &["TCP", &port, "in use", "choose another port"],
    )
    .await;
    // Where everybody could read it, only under TLS.
    with_admin.flags = ["--admin-listen", "0.0.0.0:0", "--admin-plaintext"]
        .map(str::to_owned)
        .to_vec();
    check_refused(&with_admin, &["plaintext admin endpoint", "127.0.0.1"]).await;
}

#[tokio::test]
async fn a_data_directory_in_use_is_left_alone() {
    let cluster = Cluster::of(1).await;
    let running = &cluster.specs[0];
    let second = NodeSpec {
        quic: loopback(free_port()),
        kafka: loopback(free_port()),
        ..running.clone()
    };
    // So that the node itself changes nothing meanwhile.
    cluster.freeze(node(1));
    let pid = cluster.pid(node(1)).to_string();
    check_refused(&second, &["in use by another process", &pid, "--data-dir"]).await;
    cluster.thaw(node(1));
    cluster.status(node(1)).await.unwrap();
}

#[tokio::test]
async fn a_data_directory_of_another_node_is_left_alone() {
    let mut cluster = Cluster::prepare(3).await;
    cluster.specs[0].controllers = String::new();
    cluster.spawn(node(1));
    cluster.until_healthy().await;
    assert_eq!(cluster.stop(node(1)).await.code(), Some(0));
    let wrong = NodeSpec {
        data_dir: cluster.spec(node(1)).data_dir.clone(),
        ..cluster.spec(node(2)).clone()
    };
    check_refused(
        &wrong,
        &["belongs to node 1", "this is node 2", "--data-dir"],
    )
    .await;
}

#[tokio::test]
async fn a_node_of_another_cluster_stops_and_changes_nothing_there() {
    let mut cluster = Cluster::of(3).await;
    let first = cluster.status(node(3)).await.unwrap().cluster;
    for id in cluster.ids() {
        assert_eq!(cluster.stop(id).await.code(), Some(0));
    }
    // The nodes found a cluster anew; then node 3 comes with what it had in the old one.
    let kept = cluster.dir().join("kept");
    fs::rename(&cluster.spec(node(3)).data_dir, &kept).unwrap();
    for id in [node(1), node(2)] {
        fs::remove_dir_all(&cluster.spec(id).data_dir).unwrap();
    }
    cluster.start_all().await;
    cluster.kill(node(3));
    fs::remove_dir_all(&cluster.spec(node(3)).data_dir).unwrap();
    fs::rename(&kept, &cluster.spec(node(3)).data_dir).unwrap();
    let founded = cluster.status(node(1)).await.unwrap().cluster;
    assert_ne!(founded, first);
    let stranger = cluster.spec(node(3)).clone();
    let (ended, said) = stranger.run_to_its_end().await;
    assert!(
        matches!(ended.code(), Some(code) if code != 0),
        "{ended}: {said}"
    );
    assert!(said.contains("belongs to cluster"), "{said}");
    assert!(
        said.contains("controllers of its own cluster"),
        "what to do: {said}"
    );
    cluster.until_healthy().await;
    for id in [node(1), node(2)] {
        assert_eq!(cluster.status(id).await.unwrap().cluster, founded);
    }
}

/// The node ends by itself, and says what an operator can do.
async fn check_cluster_refuses(spec: &NodeSpec, registered: &str) {
    let (ended, said) = spec.run_to_its_end().await;
    assert!(
        matches!(ended.code(), Some(code) if code != 0),
        "{ended}: {said}"
    );
    for word in ["the cluster refuses this node", registered, "remove"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn a_second_node_with_an_id_in_use_is_refused_and_the_first_goes_on() {
    let mut cluster = Cluster::of(3).await;
    let first = cluster.status(node(2)).await.unwrap();
    let second = NodeSpec {
        data_dir: cluster.dir().join("data-second"),
        log: cluster.dir().join("log-second"),
        quic: loopback(free_port()),
        kafka: loopback(free_port()),
        ..cluster.spec(node(2)).clone()
    };
    check_cluster_refuses(&second, &first.directory.to_string()).await;
    cluster.until_healthy().await;
    let still = cluster.status(node(2)).await.unwrap();
    assert_eq!(still.incarnation, first.incarnation);
}

#[tokio::test]
async fn an_emptied_data_directory_and_a_controllers_lost_disk_are_refused() {
    let mut cluster = Cluster::prepare(4).await;
    let listed: Vec<String> = cluster.specs[..3]
        .iter()
        .map(|spec| format!("{}@{}", spec.id, spec.quic))
        .collect();
    for spec in &mut cluster.specs {
        spec.controllers = listed.join(",");
    }
    cluster.start_all().await;
    // The lowest controller, which founds clusters; another one; and a node that is none.
    for id in [1, 3, 4].map(node) {
        let had = cluster.status(id).await.unwrap().directory.to_string();
        let spec = cluster.spec(id).clone();
        cluster.kill(id);
        let kept = cluster.dir().join("kept");
        fs::rename(&spec.data_dir, &kept).unwrap();
        check_cluster_refuses(&spec, &had).await;
        // Nothing was repaired by forgetting: with what it had, the node is taken back.
        fs::remove_dir_all(&spec.data_dir).unwrap();
        fs::rename(&kept, &spec.data_dir).unwrap();
        cluster.spawn(id);
        cluster.until_healthy().await;
        let has = cluster.status(id).await.unwrap().directory.to_string();
        assert_eq!(has, had);
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named() {
    let cluster = Cluster::prepare(1).await;
    let file = cluster.dir().join("a-file");
    fs::write(&file, "in the way").unwrap();
    // Root may write nearly everywhere, so these are places where nobody can.
    for path in [file.clone(), file.join("data"), "/proc/quorate".into()] {
        let spec = NodeSpec {
            data_dir: path.clone(),
            ..cluster.specs[0].clone()
        };
        let path = path.display().to_string();
        check_refused(&spec, &["cannot", &path, "choose another --data-dir"]).await;
    }
    assert_eq!(fs::read(&file).unwrap(), b"in the way");
}

#[tokio::test]
async fn a_key_that_others_may_read_is_not_read() {
    let cluster = Cluster::prepare(1).await;
    let spec = &cluster.specs[0];
    let (_, key) = CertsDir::new(&spec.certs_dir).node_pair();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let path = key.display().to_string();
    check_refused(spec, &[&path, "0640", "chmod 0600"]).await;
}

#[tokio::test]
async fn a_node_certificate_outside_its_time_stops_the_start() {
    let cluster = Cluster::prepare(1).await;
    let spec = &cluster.specs[0];
    let days = time::Duration::days(10);
    for (now, words) in [
        (OffsetDateTime::now_utc() - days, "has expired"),
        (OffsetDateTime::now_utc() + days, "not yet valid"),
    ] {
        let options = IssueOptions {
            lifetime: Some(Duration::from_secs(86_400)),
            overwrite: true,
            now,
        };
        CertsDir::new(&spec.certs_dir)
            .create_node(node(1), &["127.0.0.1".parse().unwrap()], &options)
            .unwrap();
        check_refused(spec, &[words, "node.crt"]).await;
    }
}

// --- Clients' certificates

/// Whether the command line has commands that connect.
fn has_cluster_status() -> bool {
    let help = quorate().args(["cluster", "status", "--help"]).output();
    help.unwrap().status.success()
}

/// What a client says that cannot connect to `address` with the certificates in `dir`: from the command line, where the
/// exit code must be 3 and nothing must be on standard output.
async fn refusal(dir: &Path, address: &str) -> String {
    if has_cluster_status() {
        let mut command = quorate();
        command
            .args(["cluster", "status", "--timeout", "20s", "-b", address])
            .arg("--certs-dir")
            .arg(dir);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert_eq!(output.stdout, b"", "{said}");
        return said;
    }
    eprintln!("!!! NOT TESTED FROM THE COMMAND LINE: there is no `cluster status`");
    match Identity::load_client(dir, None) {
        Err(error) => chain(&error),
        Ok(identity) => {
            let peer = PeerAddress::any(address);
            let dialled = dial(&Arc::new(identity), &peer, Alpn::Client, LONG).await;
            chain(&dialled.expect_err("refused"))
        }
    }
}

fn client_certificate(dir: &Path, ca_key: &Path, options: &IssueOptions) {
    CertsDir::with_ca_key(dir, ca_key)
        .create_client(&ClientName::new("stranger").unwrap(), options)
        .unwrap();
}

#[tokio::test]
async fn a_client_is_told_which_certificate_is_wrong_and_how() {
    let mut cluster = Cluster::prepare(1).await;
    let spec = cluster.specs[0].clone();
    let certs = CertsDir::new(&spec.certs_dir);
    let now = OffsetDateTime::now_utc();
    let days = time::Duration::days(10);
    let lasting = |now| IssueOptions {
        lifetime: Some(Duration::from_secs(86_400)),
        overwrite: true,
        now,
    };
    cluster.start_all().await;
    let address = spec.quic.to_string();
    let fresh = |name: &str| {
        let dir = cluster.dir().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    let with_ca = |name: &str| {
        let dir = fresh(name);
        fs::copy(certs.ca_certificate(), dir.join("ca.crt")).unwrap();
        dir
    };

    let other = fresh("other-ca");
    let other_ca = CertsDir::new(&other);
    other_ca.create_ca(&IssueOptions::new(now)).unwrap();
    client_certificate(&other, other_ca.ca_key(), &IssueOptions::new(now));
    let none = with_ca("none");
    let expired = with_ca("expired");
    client_certificate(&expired, certs.ca_key(), &lasting(now - days));
    let early = with_ca("early");
    client_certificate(&early, certs.ca_key(), &lasting(now + days));
    // Signed by the one CA, laid beside the other.
    let mixed = with_ca("mixed");
    for file in ["client.stranger.crt", "client.stranger.key"] {
        fs::copy(other.join(file), mixed.join(file)).unwrap();
    }
    for (dir, words) in [
        (&other, "wrong CA"),
        (&mixed, "wrong CA"),
        (&none, "no client certificate"),
        (&expired, "has expired"),
        (&early, "not yet valid"),
    ] {
        let said = refusal(dir, &address).await;
        assert!(said.contains(words), "{}: {said}", dir.display());
        assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
    }

    // The node under a certificate that names another host.
    cluster.kill(node(1));
    certs
        .create_node(node(1), &["node.example".parse().unwrap()], &lasting(now))
        .unwrap();
    cluster.spawn(node(1));
    until("the node serves", async || {
        let text = spec.log_text();
        let starts = text.matches("listening on").count();
        if starts == 2 { Ok(()) } else { Err(text) }
    })
    .await;
    let said = refusal(&spec.certs_dir, &address).await;
    assert!(said.contains("host not in SAN"), "{said}");
    assert!(said.contains("node.example"), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
}

// --- Kafka's protocol

/// A node alone, with a topic `t` of one partition.
async fn one_node() -> Cluster {
    let cluster = Cluster::of(1).await;
    let client = cluster.client().await;
    let limit = [("max.message.bytes", "2000")];
    cluster.create_topic_with(&client, "t", 1, &limit).await;
    cluster
}

async fn connect(cluster: &Cluster) -> Kafka {
    Kafka::connect(cluster.specs[0].kafka).await
}

/// A record is taken and given back.
async fn check_serves(cluster: &Cluster) {
    let mut kafka = connect(cluster).await;
    let (code, offset) = kafka.produce("t", 0, batch(&[b"good"]), -1, LONG).await;
    assert_eq!(code, 0);
    let (code, _, records) = kafka.fetch("t", 0, offset).await;
    assert_eq!(code, 0);
    assert!(records.windows(4).any(|window| window == b"good"));
}

/// With its CRC made right again.
fn with_attributes(codec: u8) -> bytes::Bytes {
    const CRC: usize = 17;
    const ATTRIBUTES: usize = 21;
    let mut bytes = batch(&[b"value"]).to_vec();
    bytes[ATTRIBUTES + 1] = codec;
    let crc = crc32c::crc32c(&bytes[ATTRIBUTES..]);
    bytes[CRC..CRC + 4].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

#[tokio::test]
async fn bad_records_and_offsets_have_kafkas_own_error_codes() {
    let cluster = one_node().await;
    let mut kafka = connect(&cluster).await;
    let mut corrupt = batch(&[b"value"]).to_vec();
    *corrupt.last_mut().unwrap() ^= 1;
    let unknown = ErrorCode::UnknownTopicOrPartition;
    for (what, topic, index, records, expected) in [
        ("unknown topic", "absent", 0, batch(&[b"v"]), unknown),
        ("unknown partition", "t", 7, batch(&[b"v"]), unknown),
        (
            "too large",
            "t",
            0,
            batch(&[&[b'x'; 3000]]),
            ErrorCode::MessageTooLarge,
        ),
        ("bad CRC", "t", 0, corrupt.into(), ErrorCode::CorruptMessage),
        (
            "unknown codec",
            "t",
            0,
            with_attributes(7),
            ErrorCode::UnsupportedCompressionType,
        ),
    ] {
        let (code, _) = kafka.produce(topic, index, records, -1, LONG).await;
        assert_eq!(code, expected.code(), "{what}");
    }
    // The same change of attributes without harm is taken, so it was the codec.
    let (code, _) = kafka.produce("t", 0, with_attributes(0), -1, LONG).await;
    assert_eq!(code, 0);
    for (what, topic, offset, expected) in [
        ("unknown topic", "absent", 0, unknown),
        ("beyond the end", "t", 1000, ErrorCode::OffsetOutOfRange),
        ("negative", "t", -7, ErrorCode::OffsetOutOfRange),
    ] {
        let (code, _, _) = kafka.fetch(topic, 0, offset).await;
        assert_eq!(code, expected.code(), "{what}");
    }
    // Only the good record is there.
    let (_, high_watermark, _) = kafka.fetch("t", 0, 0).await;
    assert_eq!(high_watermark, 1);
    check_serves(&cluster).await;
}

#[tokio::test]
async fn bad_topic_names_are_refused_and_make_no_directory() {
    let cluster = one_node().await;
    let mut kafka = connect(&cluster).await;
    let before: Vec<PathBuf> = contents(cluster.dir()).into_keys().collect();
    let long = "x".repeat(250);
    let names = [
        "",
        ".",
        "..",
        "../evil",
        "a/b",
        "/etc/evil",
        "a\0b",
        "ä",
        &long,
    ];
    for bad in names {
        let request = CreateTopicsRequest::default()
            .with_timeout_ms(10_000)
            .with_topics(vec![
                CreatableTopic::default()
                    .with_name(name(bad))
                    .with_num_partitions(1)
                    .with_replication_factor(1),
            ]);
        let response = kafka.call(&request, 5).await;
        let code = response.topics[0].error_code;
        assert_eq!(
            code,
            ErrorCode::InvalidTopicException.code(),
            "create {bad:?}"
        );
        let request = MetadataRequest::default()
            .with_allow_auto_topic_creation(true)
            .with_topics(Some(vec![
                MetadataRequestTopic::default().with_name(Some(name(bad))),
            ]));
        let response = kafka.call(&request, 9).await;
        let code = response.topics[0].error_code;
        assert_eq!(
            code,
            ErrorCode::InvalidTopicException.code(),
            "ask for {bad:?}"
        );
    }
    let made = |path: &PathBuf| !before.contains(path) && path.is_dir();
    let after: Vec<PathBuf> = contents(cluster.dir()).into_keys().filter(made).collect();
    assert_eq!(after, [] as [PathBuf; 0]);
    check_serves(&cluster).await;
}

#[tokio::test]
async fn what_is_no_request_closes_its_connection_and_nothing_else() {
    let cluster = one_node().await;
    check_serves(&cluster).await;
    let before = cluster.resident_bytes(node(1));
    let framed = |body: &[u8]| {
        let mut frame = BytesMut::new();
        frame.put_u32(u32::try_from(body.len()).unwrap());
        frame.put_slice(body);
        frame.to_vec()
    };
    let produce_key = (ApiKey::Produce as i16).to_be_bytes();
    let metadata_key = (ApiKey::Metadata as i16).to_be_bytes();
    // Version 1, correlation id 1, no client id, then an array of two thousand million topics.
    let greedy = [
        &metadata_key[..],
        &[0, 1, 0, 0, 0, 1, 0xff, 0xff],
        &0x7fff_ffff_u32.to_be_bytes(),
    ]
    .concat();
    let garbage = [&produce_key[..], &[0, 9], &[0xee; 200]].concat();
    let whole = framed(&encode(&ProduceRequest::default(), 9, 1));
    for (what, bytes) in [
        ("a length of 2 GiB", 0x7fff_ffff_u32.to_be_bytes().to_vec()),
        ("a negative length", (-5_i32).to_be_bytes().to_vec()),
        ("a length of nothing", vec![0; 4]),
        (
            "a large request of a kind that is small",
            [&0x0200_0000_u32.to_be_bytes()[..], &metadata_key].concat(),
        ),
        ("an array without end", framed(&greedy)),
        ("garbage", framed(&garbage)),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
    ] {
        let mut kafka = connect(&cluster).await;
        let peer = kafka.stream.local_addr().unwrap().to_string();
        kafka.stream.write_all(&bytes).await.unwrap();
        println!("{what}");
        kafka.until_closed().await;
        until(&format!("{what}: the log names {peer}"), async || {
            let text = cluster.specs[0].log_text();
            if text.contains(&peer) {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
    }
    // Cut in the middle.
    for cut in [1, 4, 7, whole.len() - 1] {
        let mut kafka = connect(&cluster).await;
        kafka.stream.write_all(&whole[..cut]).await.unwrap();
        kafka.stream.shutdown().await.unwrap();
        kafka.until_closed().await;
    }
    // Many that claim all they may and send nothing more.
    let claim = [&(60_u32 << 20).to_be_bytes()[..], &produce_key].concat();
    let mut claiming = Vec::new();
    for _ in 0..200 {
        let mut kafka = connect(&cluster).await;
        kafka.stream.write_all(&claim).await.unwrap();
        claiming.push(kafka);
    }
    check_serves(&cluster).await;
    let grown = cluster.resident_bytes(node(1)).saturating_sub(before);
    println!("resident memory grew by {} KiB", grown >> 10);
    assert!(grown < 64 << 20, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_cost_little() {
    const WANTED: u64 = 10_000;
    // For everything else that this process and the node have open.
    const OTHERS: u64 = 600;
    let cluster = one_node().await;
    check_serves(&cluster).await;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let count = match limit {
        Some(limit) if limit < WANTED + OTHERS => {
            eprintln!(
                "!!! NOT TESTED WITH {WANTED} CONNECTIONS: this shell allows {limit} open files (ulimit -n); 300 are made"
            );
            300
        }
        _ => WANTED,
    };
    let before = cluster.resident_bytes(node(1));
    let mut idle = Vec::new();
    for _ in 0..count {
        idle.push(connect(&cluster).await);
    }
    check_serves(&cluster).await;
    let grown = cluster.resident_bytes(node(1)).saturating_sub(before);
    println!(
        "{count} idle connections: resident memory grew by {} KiB",
        grown >> 10
    );
    assert!(grown < count * (20 << 10) + (16 << 20), "{grown} bytes");
    // They are real ones: the last and the first are served.
    for kafka in [idle.len() - 1, 0] {
        let (code, _, _) = idle[kafka].fetch("t", 0, 0).await;
        assert_eq!(code, 0);
    }
}

/// A client's stream that has had one answer and is silent since.
async fn idle_stream(connection: &quinn::Connection) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let body = encode(&ApiVersionsRequest::default(), 0, 1);
    let mut frame = BytesMut::new();
    frame.put_u32(u32::try_from(body.len()).unwrap());
    frame.put_slice(&body);
    send.write_all(&frame).await.unwrap();
    let mut length = [0; 4];
    receive.read_exact(&mut length).await.unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    receive.read_exact(&mut answer).await.unwrap();
    (send, receive)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_streams_cost_little_and_one_connection_has_only_so_many() {
    const CONNECTIONS: usize = 10;
    let cluster = one_node().await;
    check_serves(&cluster).await;
    let before = cluster.resident_bytes(node(1));
    let address = cluster.specs[0].quic.to_string();
    let mut dialled = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let peer = PeerAddress::any(address.clone());
        let one = dial(&cluster.identity, &peer, Alpn::Client, LONG).await;
        let one = one.unwrap();
        for _ in 0..CLIENT_STREAMS {
            streams.push(idle_stream(&one.connection).await);
        }
        dialled.push(one);
    }
    assert!(streams.len() >= 10_000);
    check_serves(&cluster).await;
    let grown = cluster.resident_bytes(node(1)).saturating_sub(before);
    println!(
        "{} idle streams: resident memory grew by {} KiB",
        streams.len(),
        grown >> 10
    );
    let allowed = streams.len() as u64 * (20 << 10) + (16 << 20);
    assert!(grown < allowed, "{grown} bytes");
    // A connection's next stream waits for others of its own to end, and delays no other connection.
    let last = &dialled[CONNECTIONS - 1].connection;
    let one_more = idle_stream(last);
    tokio::pin!(one_more);
    let refused = tokio::time::timeout(Duration::from_millis(300), &mut one_more).await;
    assert!(refused.is_err(), "above the limit");
    check_serves(&cluster).await;
    // Room is announced once an eighth of the streams has ended.
    for _ in 0..CLIENT_STREAMS / 4 {
        let (mut send, mut receive) = streams.pop().unwrap();
        send.finish().unwrap();
        assert_eq!(receive.read_to_end(64).await.unwrap(), Vec::<u8>::new());
    }
    tokio::time::timeout(LONG, one_more).await.unwrap();
}
