//! A Kafka client that is not ours, over the TCP listener: kcat lists, produces and consumes, plain and under TLS.

// A test that cannot go on panics, and what was skipped goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use quorate::record::{Batches, Compression};
use support::PATIENCE;
use support::cluster::Cluster;
use support::kafka::Kafka;
use support::workload::consume_all;

/// Whether there is a kcat. Where there is none the test has not tested anything, and says so.
fn has_kcat() -> bool {
    let found = Command::new("kcat").arg("-V").output().is_ok();
    if !found {
        eprintln!("!!! NOT TESTED: kcat is not installed (Debian: apt-get install kcat)");
    }
    found
}

/// Runs kcat with `input` on its standard input. It is killed when it does not come to an end.
async fn kcat(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new("kcat")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&input));
    let pid = rustix::process::Pid::from_child(&child);
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let begin = Instant::now();
    let output = match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(output) => output.unwrap(),
        Err(_) => {
            // Not waited for yet, so the number is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("kcat {arguments:?} runs for {:?}", begin.elapsed());
        }
    };
    writing.join().unwrap().unwrap();
    assert!(
        output.status.success(),
        "kcat {arguments:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Lines that compress well, and not all of the same length.
fn lines(codec: &str) -> String {
    (0..500)
        .map(|n| format!("{codec} line {n} {}\n", "abc".repeat(n % 70)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_lists_produces_and_consumes_with_every_codec() {
    if !has_kcat() {
        return;
    }
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let brokers = cluster.specs[0].kafka.to_string();
    for (codec, expected) in [
        ("none", Compression::None),
        ("gzip", Compression::Gzip),
        ("snappy", Compression::Snappy),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
    ] {
        let name = format!("kcat-{codec}");
        let topic = cluster.create_topic(&client, &name, 1).await;
        let text = lines(codec);
        let setting = format!("compression.codec={codec}");
        let produce = ["-P", "-b", &brokers, "-t", &name, "-p", "0", "-X", &setting];
        let acks = ["-X", "acks=all", "-X", "linger.ms=50"];
        kcat(&[&produce[..], &acks[..]].concat(), text.as_bytes()).await;

        let consume = ["-C", "-b", &brokers, "-t", &name, "-p", "0"];
        let from = ["-o", "beginning", "-e", "-q"];
        let output = kcat(&[&consume[..], &from[..]].concat(), b"").await;
        assert!(
            output.stdout == text.as_bytes(),
            "{codec}: not what was produced"
        );

        // Our own client reads the same.
        let found = consume_all(&client, &topic).await;
        let values: Vec<&[u8]> = found[&0].iter().map(|(_, value)| &value[..]).collect();
        let wanted: Vec<&[u8]> = text.lines().map(str::as_bytes).collect();
        assert!(
            values == wanted,
            "{codec}: read otherwise by the native client"
        );

        // And it lies there as kcat has compressed it.
        let leader = cluster.until_led(&topic, 0, |_| true).await;
        let mut kafka = Kafka::connect(cluster.spec(leader).kafka).await;
        let (code, _, records) = kafka.fetch(&name, 0, 0).await;
        assert_eq!(code, 0);
        let first = Batches::new(records).next().unwrap().unwrap();
        assert_eq!(first.header.compression(), Ok(expected), "{codec}");
    }
    let listed = kcat(&["-L", "-b", &brokers], b"").await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("3 brokers"), "{listed}");
    for spec in &cluster.specs {
        assert!(listed.contains(&spec.kafka.to_string()), "{listed}");
    }
    assert!(
        listed.contains("topic \"kcat-zstd\" with 1 partitions"),
        "{listed}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_speaks_tls_with_a_certificate_and_not_without() {
    if !has_kcat() {
        return;
    }
    let mut cluster = Cluster::prepare(1).await;
    cluster.specs[0].kafka_plaintext = false;
    cluster.start_all().await;
    let client = cluster.client().await;
    let limit = [("min.insync.replicas", "1")];
    cluster
        .create_topic_with(&client, "secure", 1, &limit)
        .await;
    let brokers = cluster.specs[0].kafka.to_string();
    let certs = &cluster.specs[0].certs_dir;
    let file = |property: &str, name: &str| format!("{property}={}", certs.join(name).display());
    let ca = file("ssl.ca.location", "ca.crt");
    let certificate = file("ssl.certificate.location", "client.tester.crt");
    let key = file("ssl.key.location", "client.tester.key");
    let tls = ["-b", &brokers, "-X", "security.protocol=ssl", "-X", &ca];
    let own = ["-X", &certificate, "-X", &key];
    let with = [&tls[..], &own[..], &["-t", "secure", "-p", "0"]].concat();
    let text = lines("secure");
    kcat(&[&with[..], &["-P"]].concat(), text.as_bytes()).await;
    let read = ["-C", "-o", "beginning", "-e", "-q"];
    let output = kcat(&[&with[..], &read[..]].concat(), b"").await;
    assert!(output.stdout == text.as_bytes());

    // Without a certificate of its own it learns nothing.
    let mut stranger = Command::new("kcat");
    stranger.args(tls).args(["-L", "-m", "3"]);
    let refused = tokio::task::spawn_blocking(move || stranger.output().unwrap());
    let refused = tokio::time::timeout(PATIENCE + Duration::from_secs(3), refused)
        .await
        .unwrap()
        .unwrap();
    assert!(!refused.status.success());
    let listed = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(!listed.contains("secure"), "{listed}");
}
