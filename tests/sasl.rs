//! Users who log in to the Kafka listener with a name and a password: kcat does, by each mechanism, and strangers do not.

// A test that cannot go on panics, and what was skipped goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use support::cluster::{Cluster, quorate};

/// Runs a command of ours against the cluster.
fn run(cluster: &Cluster, arguments: &[&str], input: &str) -> Output {
    let servers: Vec<String> = cluster.specs.iter().map(|s| s.quic.to_string()).collect();
    let mut command = quorate();
    command
        .args(arguments)
        .args(["-b", &servers.join(",")])
        .arg("--certs-dir")
        .arg(cluster.dir().join("certs-1"));
    feed(command, input)
}

fn feed(mut command: Command, input: &str) -> Output {
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
}

fn succeed(cluster: &Cluster, arguments: &[&str], input: &str) -> String {
    let output = run(cluster, arguments, input);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// kcat as a user, under TLS without a certificate.
async fn kcat(
    cluster: &Cluster,
    (user, password, mechanism): (&str, &str, &str),
    arguments: &[&str],
    input: &str,
) -> Output {
    let mut command = Command::new("kcat");
    let ca = cluster.dir().join("certs-1").join("ca.crt");
    command.args(["-b", &cluster.specs[0].kafka.to_string()]);
    for setting in [
        "security.protocol=sasl_ssl".to_owned(),
        format!("ssl.ca.location={}", ca.display()),
        format!("sasl.mechanisms={mechanism}"),
        format!("sasl.username={user}"),
        format!("sasl.password={password}"),
    ] {
        command.args(["-X", &setting]);
    }
    command.args(arguments);
    let input = input.to_owned();
    tokio::task::spawn_blocking(move || feed(command, &input))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_log_in_with_their_passwords_and_nobody_else_does() {
    if Command::new("kcat").arg("-V").output().is_err() {
        eprintln!("!!! NOT TESTED: kcat is not installed (Debian: apt-get install kcat)");
        return;
    }
    let mut cluster = Cluster::prepare(3).await;
    for spec in &mut cluster.specs {
        spec.kafka_plaintext = false;
        spec.flags.push("--kafka-sasl".to_owned());
    }
    cluster.start_all().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "secure", 3).await;

    assert_eq!(
        succeed(&cluster, &["user", "list", "--output", "json"], ""),
        ""
    );
    succeed(&cluster, &["user", "set", "alice"], "pass=word;\n");
    succeed(
        &cluster,
        &["user", "set", "bob=c", "--mechanism", "sha-256"],
        "other\n",
    );
    assert!(
        !run(&cluster, &["user", "set", "carol"], "\n")
            .status
            .success()
    );
    let listed = succeed(&cluster, &["user", "list", "--output", "json"], "");
    assert_eq!(
        listed,
        "{\"user\":\"alice\",\"mechanisms\":[\"SCRAM-SHA-256\",\"SCRAM-SHA-512\"]}\n\
         {\"user\":\"bob=c\",\"mechanisms\":[\"SCRAM-SHA-256\"]}\n"
    );

    let produce = ["-P", "-t", "secure", "-X", "message.timeout.ms=30000"];
    let consume = ["-C", "-t", "secure", "-o", "beginning", "-e", "-q"];
    let mut lines: Vec<String> = Vec::new();
    for who in [
        ("alice", "pass=word;", "SCRAM-SHA-256"),
        ("alice", "pass=word;", "SCRAM-SHA-512"),
        ("alice", "pass=word;", "PLAIN"),
        ("bob=c", "other", "SCRAM-SHA-256"),
        ("bob=c", "other", "PLAIN"),
    ] {
        let line = format!("from {who:?}");
        let written = kcat(&cluster, who, &produce, &format!("{line}\n")).await;
        let said = String::from_utf8_lossy(&written.stderr);
        assert!(written.status.success(), "{who:?}: {said}");
        lines.push(line);
        let read = kcat(&cluster, who, &consume, "").await;
        let mut read: Vec<String> = String::from_utf8(read.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        read.sort();
        lines.sort();
        assert_eq!(read, lines, "{who:?}");
    }

    for who in [
        ("alice", "password", "SCRAM-SHA-256"),
        ("alice", "password", "PLAIN"),
        ("nobody", "pass=word;", "SCRAM-SHA-512"),
        ("nobody", "pass=word;", "PLAIN"),
        // Bob has no verifier of it.
        ("bob=c", "other", "SCRAM-SHA-512"),
    ] {
        let listed = kcat(&cluster, who, &["-L", "-m", "5"], "").await;
        assert!(!listed.status.success(), "{who:?}");
        let shown = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(!shown.contains("secure"), "{shown}");
        let said = String::from_utf8_lossy(&listed.stderr).into_owned();
        assert!(said.contains("the login failed"), "{who:?}: {said}");
    }

    // It is metadata: a restart forgets nothing, and a user who is deleted comes in no more.
    let ids = cluster.ids();
    cluster.kill_together(&ids);
    for id in ids {
        cluster.spawn(id);
    }
    cluster.until_healthy().await;
    let alice = ("alice", "pass=word;", "SCRAM-SHA-512");
    let listed = kcat(&cluster, alice, &["-L", "-m", "30"], "").await;
    assert!(String::from_utf8_lossy(&listed.stdout).contains("secure"));
    succeed(&cluster, &["user", "delete", "alice"], "");
    let listed = kcat(&cluster, alice, &["-L", "-m", "5"], "").await;
    assert!(!listed.status.success());

    // A password is nowhere in what the nodes keep or say.
    for spec in &cluster.specs {
        let store = std::fs::read(spec.data_dir.join("controller.redb")).unwrap();
        assert!(!store.windows(10).any(|bytes| bytes == b"pass=word;"));
        assert!(!spec.log_text().contains("pass=word;"));
    }
}
