//! The HTTP endpoint of real nodes: probes, metrics and views, under TLS and without, and what it refuses.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use quorate::admin::{MAX_CONNECTIONS, NodeStatus, Readiness};
use quorate::broker::LinkView;
use quorate::client::{ProducerConfig, ProducerRecord};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use support::cluster::{Cluster, free_port, loopback};
use support::{node, topic, until};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

struct Response {
    code: u16,
    head: String,
    body: String,
}

/// One request on a connection of its own.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
) -> std::io::Result<Response> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let text = String::from_utf8(bytes).unwrap();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Response {
        code,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

async fn get(address: SocketAddr, path: &str) -> Response {
    let stream = TcpStream::connect(address).await.unwrap();
    exchange(stream, "GET", path).await.unwrap()
}

/// Three nodes, the first of which serves HTTP without TLS, told so by its configuration file.
async fn cluster() -> (Cluster, SocketAddr) {
    let mut cluster = Cluster::prepare(3).await;
    let admin = loopback(free_port());
    let file = cluster.dir().join("node.toml");
    let text = format!("admin_listen = \"{admin}\"\nadmin_plaintext = true\n");
    fs::write(&file, text).unwrap();
    cluster.specs[0].flags = vec!["--config".to_owned(), file.display().to_string()];
    cluster.start_all().await;
    (cluster, admin)
}

/// Samples by name and labels, after a look at the form of the whole page.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let mut families: HashMap<&str, (bool, &str)> = HashMap::new();
    let mut samples = BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.'), "{line}");
            assert!(families.insert(name, (true, "")).is_none(), "twice: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            families.get_mut(name).expect(line).1 = kind;
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let plain = name.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|end| plain.strip_suffix(end))
                .find(|family| families.get(family).is_some_and(|f| f.1 == "histogram"))
                .unwrap_or(plain);
            let (_, kind) = families.get(family).expect(line);
            assert_eq!(*kind == "counter", plain.ends_with("_total"), "{line}");
            assert!(
                plain.starts_with("quorate_") || plain.starts_with("process_"),
                "{line}"
            );
            let value = value.parse().expect(line);
            assert!(samples.insert(name.to_owned(), value).is_none(), "{line}");
        }
    }
    samples
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_probes_and_prometheus_how_it_is() {
    let (mut cluster, admin) = cluster().await;
    assert_eq!(get(admin, "/health/live").await.code, 200);
    let client = cluster.client().await;
    let name = cluster.create_topic(&client, "t", 1).await;
    let producer = client.producer(ProducerConfig::default()).unwrap();
    for n in 0..10 {
        let record = ProducerRecord::new(name.clone(), n.to_string());
        producer.send(record).await.unwrap().await.unwrap();
    }
    producer.close().await;
    let leader = cluster.until_led(&topic("t"), 0, |_| true).await;

    let labels = "{topic=\"t\",partition=\"0\"}";
    let metric = |name: &str| format!("{name}{labels}");
    let seen = until("the metrics show the records", async || {
        let response = get(admin, "/metrics").await;
        assert_eq!(response.code, 200);
        assert!(response.head.contains("text/plain; version=0.0.4"));
        let seen = samples(&response.body);
        let mark = metric("quorate_partition_high_watermark_offset");
        if seen.get(&mark) == Some(&10.0) {
            Ok(seen)
        } else {
            Err(response.body)
        }
    })
    .await;
    let value = |name: &str| {
        *seen
            .get(name)
            .unwrap_or_else(|| panic!("{name} in {seen:?}"))
    };
    assert_eq!(value(&metric("quorate_partition_log_start_offset")), 0.0);
    assert_eq!(value(&metric("quorate_partition_log_end_offset")), 10.0);
    assert_eq!(value(&metric("quorate_partition_in_sync_replicas")), 3.0);
    assert_eq!(value("quorate_node_ready"), 1.0);
    let leads = f64::from(u8::from(leader == node(1)));
    assert_eq!(value(&metric("quorate_partition_is_leader")), leads);
    assert!(value("quorate_log_sync_duration_seconds_count") >= 1.0);
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_open_fds") > 5.0);
    assert!(value("quorate_quic_connections") >= 2.0);
    let produces = value("quorate_kafka_request_duration_seconds_count{api=\"produce\"}");
    assert_eq!(produces >= 10.0, leader == node(1), "{produces}");
    let links = seen
        .keys()
        .filter(|name| name.starts_with("quorate_link_rtt_seconds{"));
    assert!(links.count() >= 1, "{seen:?}");

    let ready = get(admin, "/health/ready").await;
    assert_eq!(ready.code, 200, "{}", ready.body);
    let status: NodeStatus = serde_json::from_str(&get(admin, "/cluster").await.body).unwrap();
    assert_eq!(status.node, node(1));
    assert_eq!(status.partitions.len(), 1);
    let links: Vec<LinkView> = serde_json::from_str(&get(admin, "/links").await.body).unwrap();
    assert!(links.iter().all(|link| link.peer != node(1)));
    assert!(!links.is_empty());

    // Alone it lives, and is not ready.
    cluster.kill_together(&[node(2), node(3)]);
    let told = until("the node is not ready", async || {
        let response = get(admin, "/health/ready").await;
        let told: Readiness = serde_json::from_str(&response.body).unwrap();
        assert_eq!(response.code == 200, told.ready, "{}", response.body);
        if told.ready {
            Err(response.body)
        } else {
            Ok(told)
        }
    })
    .await;
    assert_eq!(told.reasons, ["no majority of the controllers is heard"]);
    assert_eq!(get(admin, "/health/live").await.code, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_page_is_refused_and_connections_are_bounded() {
    let (_cluster, admin) = cluster().await;
    let absent = get(admin, "/../../etc/passwd").await;
    assert_eq!(absent.code, 404);
    assert!(absent.body.contains("/metrics"));
    let connect = async || TcpStream::connect(admin).await.unwrap();
    let posted = exchange(connect().await, "POST", "/metrics").await.unwrap();
    assert_eq!(posted.code, 405);
    let head = exchange(connect().await, "HEAD", "/metrics").await.unwrap();
    assert_eq!((head.code, head.body.as_str()), (200, ""));
    let long = format!("/{}", "x".repeat(64 << 10));
    let refused = exchange(connect().await, "GET", &long).await;
    assert!(refused.is_ok_and(|response| [414, 431].contains(&response.code)));
    let mut garbage = connect().await;
    garbage.write_all(&[0xff; 4096]).await.unwrap();
    let mut answer = Vec::new();
    let _ = garbage.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"));

    // Those that say nothing keep others out only up to the cap, and only while they are there.
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        idle.push(connect().await);
    }
    until("one too many is closed", async || {
        match exchange(connect().await, "GET", "/health/live").await {
            Ok(_) => Err("it was served".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    drop(idle);
    until("it is served again", async || {
        match exchange(connect().await, "GET", "/health/live").await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_clients_with_a_certificate_are_served_unless_told_otherwise() {
    let mut cluster = Cluster::prepare(1).await;
    let admin = loopback(free_port());
    cluster.specs[0].flags = vec!["--admin-listen".to_owned(), admin.to_string()];
    cluster.start_all().await;
    let certs = cluster.specs[0].certs_dir.clone();
    let ca = CertificateDer::from_pem_file(certs.join("ca.crt")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let connector = |with_certificate: bool| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone());
        let config = if with_certificate {
            let chain = CertificateDer::pem_file_iter(certs.join("client.tester.crt")).unwrap();
            let key = PrivateKeyDer::from_pem_file(certs.join("client.tester.key")).unwrap();
            builder
                .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
                .unwrap()
        } else {
            builder.with_no_client_auth()
        };
        TlsConnector::from(Arc::new(config))
    };
    let ask = async |with_certificate: bool| {
        let stream = TcpStream::connect(admin).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = connector(with_certificate).connect(name, stream).await?;
        exchange(stream, "GET", "/health/ready").await
    };
    let served = ask(true).await.unwrap();
    assert_eq!(served.code, 200, "{}", served.body);
    assert!(ask(false).await.is_err());
    let plain = TcpStream::connect(admin).await.unwrap();
    assert!(exchange(plain, "GET", "/health/ready").await.is_err());
    until("the log says why", async || {
        let log = cluster.specs[0].log_text();
        let told = ["showed no certificate", "speaks no TLS"].map(|words| log.contains(words));
        if told == [true; 2] { Ok(()) } else { Err(log) }
    })
    .await;
}
