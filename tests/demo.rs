//! The demo as a stranger runs it: the built program, in a folder, for some seconds.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, in its helpers as well"
)]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command
        .arg("demo")
        .args(arguments)
        // What someone may have in the environment, and what would lead the nodes astray if they heard of it.
        .env("QUORATE_CERTS_DIR", "/nonexistent/certs")
        .env("QUORATE_BOOTSTRAP_SERVER", "127.0.0.1:1")
        .env("QUORATE_NODE_ID", "77")
        .env("QUORATE_CONFIG", "/nonexistent/config.toml")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn expect_exit(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// The nodes as `nodes.json` has them.
fn nodes(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("nodes.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn pid_of(node: &Value) -> Pid {
    Pid::from_raw(node["pid"].as_i64().unwrap() as i32).unwrap()
}

/// Whether a process runs; one that has ended and was not waited for yet does not.
fn runs(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let ended = stat.is_ok_and(|stat| {
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.trim_start().starts_with('Z')
    });
    test_kill_process(pid).is_ok() && !ended
}

/// Lines of a running demo up to and including the first one that `wanted` takes.
fn read_until(
    lines: &mut impl Iterator<Item = std::io::Result<String>>,
    wanted: impl Fn(&str) -> bool,
) -> String {
    let mut seen = Vec::new();
    for line in lines {
        seen.push(line.unwrap());
        if wanted(seen.last().unwrap()) {
            return seen.pop().unwrap();
        }
    }
    panic!("the demo ended before that:\n{}", seen.join("\n"));
}

/// The demo is killed where a test fails, and its nodes end with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_demo_of_some_seconds_acknowledges_everything_and_leaves_no_process() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a demo");
    let path = dir.to_str().unwrap();
    let output = demo(&["--duration", "5s", "--dir", path, "--keep"])
        .output()
        .unwrap();
    expect_exit(&output, 0);
    let shown = text(&output.stdout);
    let summary = shown.split("\nSummary\n").nth(1).expect(&shown);
    assert!(summary.contains(" 0 failed"), "{shown}");
    assert_eq!(
        summary.matches("the same on nodes 1, 2, 3").count(),
        3,
        "{shown}"
    );
    for expected in ["kill -9 ", "client.env'", "kcat -b ", "1→2 ", "ISR 3/3"] {
        assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
    }

    let nodes = nodes(&dir);
    let ids: Vec<_> = nodes.iter().map(|node| node["id"].as_u64()).collect();
    assert_eq!(ids, [Some(1), Some(2), Some(3)]);
    let mut ports = HashSet::new();
    for node in &nodes {
        assert!(!runs(pid_of(node)), "{node}");
        assert!(
            Path::new(node["data_dir"].as_str().unwrap())
                .join("meta")
                .exists()
        );
        assert!(Path::new(node["log"].as_str().unwrap()).exists());
        assert!(ports.insert(node["quic"].as_str().unwrap()));
        assert!(node["kafka"].as_str().unwrap().starts_with("127.0.0.1:"));
        let command = node["command"].as_array().unwrap();
        assert_eq!(command[0].as_str(), Some(env!("CARGO_BIN_EXE_quorate")));
        assert!(command.iter().all(Value::is_string));
    }
    let env = std::fs::read_to_string(dir.join("client.env")).unwrap();
    assert!(
        env.contains("export QUORATE_BOOTSTRAP_SERVER=127.0.0.1:"),
        "{env}"
    );
    assert!(env.contains("export QUORATE_CERTS_DIR="), "{env}");

    // What was kept goes on, under the same addresses, with what was there.
    let output = demo(&["--duration", "1s", "--dir", path, "--output", "json"])
        .output()
        .unwrap();
    expect_exit(&output, 0);
    let again: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(again["acknowledged"], again["produced"]);
    assert_eq!(again["replicas_agree"], true);
    let committed = again["partitions"].as_array().unwrap().iter();
    let committed: u64 = committed.map(|p| p["committed"].as_u64().unwrap()).sum();
    assert!(
        committed > again["acknowledged"].as_u64().unwrap(),
        "{again}"
    );
}

#[test]
fn a_node_can_be_killed_and_started_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("demo");
    let child = demo(&["--dir", dir.to_str().unwrap(), "--keep", "--rate", "200"]).spawn();
    let mut demo = Running(child.unwrap());
    let demo_pid = Pid::from_raw(demo.0.id() as i32).unwrap();
    let stdout = demo.0.stdout.take().unwrap();
    let mut lines = BufReader::new(stdout).lines();
    read_until(&mut lines, |line| line.contains(" acked"));
    let first = nodes(&dir);

    kill_process(pid_of(&first[1]), Signal::KILL).unwrap();
    read_until(&mut lines, |line| line.contains("2 down"));
    // Its partitions are led by others by now, or will be.
    let command: Vec<&str> = first[1]["command"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let again = Command::new(command[0])
        .args(&command[1..])
        .env("QUORATE_CERTS_DIR", dir.join("certs"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut again = Running(again.unwrap());
    read_until(&mut lines, |line| {
        line.contains(&format!("2 up again (pid {})", again.0.id()))
            && !line.contains("silent")
            && !line.contains('✗')
    });
    assert_eq!(nodes(&dir)[1]["pid"], again.0.id());

    kill_process(demo_pid, Signal::TERM).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let mut errors = String::new();
    let _ = demo.0.stderr.take().unwrap().read_to_string(&mut errors);
    let rest = rest.join("\n");
    assert_eq!(demo.0.wait().unwrap().code(), Some(0), "{rest}\n{errors}");
    assert!(rest.contains(" 0 failed"), "{rest}");
    assert_eq!(
        rest.matches("the same on nodes 1, 2, 3").count(),
        3,
        "{rest}"
    );
    assert!(again.0.wait().unwrap().success());
    for node in nodes(&dir).iter().chain(&first) {
        assert!(!runs(pid_of(node)), "{node}");
    }
}

#[test]
fn nodes_end_with_a_demo_that_is_killed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("demo");
    let child = demo(&["--dir", dir.to_str().unwrap(), "--rate", "100"]).spawn();
    let mut demo = Running(child.unwrap());
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    read_until(&mut lines, |line| line.contains(" acked"));
    let nodes = nodes(&dir);
    demo.0.kill().unwrap();
    demo.0.wait().unwrap();
    let (ended, all_ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for node in &nodes {
            // Free when the node's process is gone.
            let lock = PathBuf::from(node["data_dir"].as_str().unwrap()).join("lock");
            std::fs::File::open(lock).unwrap().lock().unwrap();
        }
        ended.send(nodes).unwrap();
    });
    let nodes = all_ended.recv_timeout(PATIENCE).expect("the nodes end");
    for node in &nodes {
        let log = std::fs::read_to_string(node["log"].as_str().unwrap()).unwrap();
        assert!(log.contains("node stopped"), "{log}");
    }
}

#[test]
fn a_folder_with_something_else_in_it_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    let path = dir.path().to_str().unwrap();
    let output = demo(&["--duration", "1s", "--dir", path]).output().unwrap();
    expect_exit(&output, 2);
    assert!(text(&output.stderr).contains("is not empty"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
