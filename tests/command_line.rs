//! The commands as a user runs them: files go in and come back byte for byte, and what was not acknowledged is named.

// A test that cannot go on panics, and figures go to its output.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kafka_protocol::messages::{InitProducerIdRequest, ProducerId};
use quorate::types::NodeId;
use rustix::process::{Pid, Signal, kill_process};
use support::cluster::{Cluster, quorate};
use support::kafka::Kafka;
use support::{node, topic, until};

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

/// Runs the program against the cluster, with the file as its standard input.
async fn run(cluster: &Cluster, arguments: &[&str], input: Option<PathBuf>) -> Output {
    let mut command = command(cluster, arguments);
    command.stdin(match input {
        Some(path) => File::open(path).unwrap().into(),
        None => Stdio::null(),
    });
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

async fn succeed(cluster: &Cluster, arguments: &[&str], input: Option<PathBuf>) -> Output {
    let output = run(cluster, arguments, input).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output
}

/// Lines of 0 to 200 bytes, some of them empty, some ended by CR LF; what a log looks like, and not a bit more regular.
fn text(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = Vec::with_capacity(bytes + 256);
    while text.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        for i in 0..(state >> 33) % 200 {
            text.push(b'a' + ((state >> (i % 50)) % 26) as u8);
        }
        text.extend_from_slice(if state & 4096 == 0 { b"\r\n" } else { b"\n" });
    }
    text
}

/// Every byte value, in no order.
fn binary(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as u8
        })
        .collect()
}

async fn comes_back(cluster: &Cluster, name: &str, delimiter: &str, content: &[u8]) {
    let path: &Path = &cluster.dir().join(name);
    fs::write(path, content).unwrap();
    let output = ["produce", name, "-p", "0", "-D", delimiter];
    succeed(cluster, &output, Some(path.to_owned())).await;
    let input = [
        "consume",
        name,
        "-p",
        "0",
        "-o",
        "beginning",
        "-e",
        "-D",
        delimiter,
    ];
    let back = succeed(cluster, &input, None).await.stdout;
    assert_eq!(back.len(), content.len(), "{name}");
    assert!(back == content, "{name} came back otherwise");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_back_byte_for_byte() {
    let cluster = Cluster::start().await;
    comes_back(&cluster, "text", r"\n", &text(8 << 20)).await;
    comes_back(&cluster, "binary", r"\x00\x01", &binary(8 << 20)).await;
    comes_back(&cluster, "unended", r"\n", b"one\n\ntwo").await;
    comes_back(&cluster, "ended", r"\n", b"one\n\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_too_large_is_named_and_takes_no_other_with_it() {
    const LIMIT: usize = 3000;
    let cluster = Cluster::start().await;
    let limit = ["-c", "max.message.bytes=3000"];
    let create = [&["topic", "create", "t", "-p", "1"][..], &limit].concat();
    succeed(&cluster, &create, None).await;
    // What goes into one batch is many times the limit; one record is beyond it, one beyond what a request may have, and
    // one beyond what is ever held.
    let mut lines: Vec<Vec<u8>> = (0..500)
        .map(|n| format!("record {n}").into_bytes())
        .collect();
    for (at, bytes) in [(99, LIMIT + 1), (199, 9 << 20), (299, 20 << 20)] {
        lines[at] = vec![b'x'; bytes];
    }
    let input = cluster.dir().join("lines");
    fs::write(&input, [lines.join(&b'\n'), b"\n".to_vec()].concat()).unwrap();
    let output = run(&cluster, &["produce", "t", "-p", "0"], Some(input)).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    for record in ["record 100:", "record 200:", "record 300:"] {
        let line = said.lines().find(|line| line.contains(record));
        let line = line.unwrap_or_else(|| panic!("{record} is not named: {said}"));
        assert!(line.contains("MESSAGE_TOO_LARGE"), "{line}");
    }
    assert!(said.contains("3 of 500 records were not"), "{said}");
    let back = succeed(&cluster, &["consume", "t", "-e"], None).await;
    for at in [299, 199, 99] {
        lines.remove(at);
    }
    let expected = [lines.join(&b'\n'), b"\n".to_vec()].concat();
    assert!(back.stdout == expected, "the others came back otherwise");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_takes_nothing_holds_up_no_interrupt() {
    let cluster = Cluster::start().await;
    let input = cluster.dir().join("much");
    fs::write(&input, text(4 << 20)).unwrap();
    succeed(&cluster, &["produce", "t", "-p", "0"], Some(input)).await;
    let mut child = command(&cluster, &["consume", "t"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let unread = child.stdout.take().unwrap();
    // From then on the command waits for its reader.
    until(
        "the pipe is full",
        async || match rustix::io::ioctl_fionread(&unread).unwrap() {
            bytes if bytes >= 60 << 10 => Ok(()),
            bytes => Err(format!("{bytes} bytes")),
        },
    )
    .await;
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = until("the command ends", async || {
        let ended = child.try_wait().unwrap();
        ended.ok_or_else(|| "it runs".to_owned())
    })
    .await;
    assert_eq!(ended.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_nobody_acknowledged_are_named() {
    let mut cluster = Cluster::start().await;
    succeed(&cluster, &["topic", "create", "t", "-p", "1"], None).await;
    let leader = cluster.until_led(&topic("t"), 0, |_| true).await;
    let others: Vec<NodeId> = [1, 2, 3]
        .map(node)
        .into_iter()
        .filter(|&id| id != leader)
        .collect();
    // Without a majority of controllers nobody gets a producer id but from a node's stock, which is filled some time after its start.
    until("the leader has producer ids in stock", async || {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(1_000)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let mut kafka = Kafka::connect(cluster.spec(leader).kafka).await;
        match kafka.call(&request, 4).await.error_code {
            0 => Ok(()),
            code => Err(format!("error {code}")),
        }
    })
    .await;
    cluster.kill_together(&others);
    // Until the leader has noticed, it takes records that then wait in vain: those may be stored all the same.
    until("the leader hears nobody", async || {
        let status = cluster.status(leader).await?;
        match status.links.iter().any(|link| link.heard) {
            true => Err(format!("{:?}", status.links)),
            false => Ok(()),
        }
    })
    .await;

    let input = cluster.dir().join("five");
    fs::write(&input, "1\n2\n3\n4\n5\n").unwrap();
    let refused = ["produce", "t", "-p", "0", "--delivery-timeout", "3s"];
    let output = run(&cluster, &refused, Some(input.clone())).await;
    let said = String::from_utf8_lossy(&output.stderr);
    eprintln!("{said}");
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("records 1-5"), "{said}");
    assert!(
        said.contains("5 of 5 records were not acknowledged"),
        "{said}"
    );
    assert!(
        said.contains("NOT_ENOUGH_REPLICAS"),
        "the cause is told: {said}"
    );

    // The leader's own word is still to be had.
    let taken = ["produce", "t", "-p", "0", "--acks", "1"];
    succeed(&cluster, &taken, Some(input)).await;
}
