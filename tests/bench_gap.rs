//! `quorate bench gap` as a stranger runs it: the built program, one short scenario.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command
        .args(["bench", "gap"])
        .args(arguments)
        // What someone may have in the environment, and what would lead the nodes astray if they heard of it.
        .env("QUORATE_CERTS_DIR", "/nonexistent/certs")
        .env("QUORATE_BOOTSTRAP_SERVER", "127.0.0.1:1")
        .env("QUORATE_NODE_ID", "77")
        .env("QUORATE_TIMEOUT", "60s")
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

/// Processes whose command line names `dir`.
fn processes_of(dir: &Path) -> Vec<String> {
    let name = dir.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let id = entry.file_name().to_string_lossy().into_owned();
        if !id.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // One that has ended meanwhile has no command line any more.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = text(&line).replace('\0', " ");
        if line.contains(&name) && !line.contains("bench gap") {
            found.push(format!("{id}: {line}"));
        }
    }
    found
}

/// Runs one scenario once and returns its figures. Whatever it broke, every record is there once, and nothing is left behind.
fn run_once(scenario: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("runs");
    let output = bench(&["--scenario", scenario, "--runs", "1", "--seed", "7"])
        .args(["--output", "json", "--dir"])
        .arg(&dir)
        .output()
        .unwrap();
    expect_exit(&output, 0);
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 1, "{lines}");
    let figures: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(figures["scenario"], scenario);
    assert_eq!(figures["run"], 1);
    assert_eq!(figures["seed"], 7);
    for field in [
        "longest_ack_gap_ms",
        "p50_before_ms",
        "p99_before_ms",
        "p99_during_ms",
    ] {
        assert!(
            figures[field].as_f64().is_some_and(|ms| ms > 0.0),
            "{field}: {figures}"
        );
    }
    let fields = ["isr_changes", "elections", "redials", "migrations"];
    for field in fields
        .iter()
        .chain(&["in_flight", "record_size", "rf", "min_insync_replicas"])
    {
        assert!(figures[*field].is_u64(), "{field}: {figures}");
    }
    for field in ["lost", "duplicated", "unacknowledged"] {
        assert_eq!(figures[field], 0, "{field}: {figures}");
    }
    assert!(figures["records"].as_u64().unwrap() > 100, "{figures}");
    assert_eq!(figures["records"], figures["acknowledged"]);
    assert!(figures["goal"].is_string() && figures["met"].is_boolean());
    assert_eq!(processes_of(&dir), Vec::<String>::new());
    assert!(!dir.exists(), "the folder is left");
    figures
}

#[test]
fn a_leader_that_is_killed_costs_an_election_and_no_record() {
    let figures = run_once("leader-kill");
    assert!(figures["elections"].as_u64().unwrap() >= 1, "{figures}");
    assert!(figures["first_ack_after_heal_ms"].is_null());
}

#[test]
fn a_follower_that_comes_from_another_port_has_migrated() {
    let figures = run_once("follower-rebind");
    assert!(figures["migrations"].as_u64().unwrap() >= 1, "{figures}");
    assert_eq!(figures["elections"], 0, "{figures}");
}

#[test]
fn a_client_that_comes_from_another_port_has_migrated() {
    let figures = run_once("client-rebind");
    assert!(figures["migrations"].as_u64().unwrap() >= 1, "{figures}");
    assert_eq!(figures["unacknowledged"], 0, "{figures}");
    assert_eq!(figures["met"], true, "{figures}");
}

#[test]
fn ctrl_c_leaves_no_process_and_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("runs");
    let mut child = bench(&["--scenario", "leader-kill", "--dir"])
        .arg(&dir)
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while processes_of(&dir).len() < 3 {
        assert!(std::time::Instant::now() < deadline, "no nodes");
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    expect_exit(&output, 130);
    assert_eq!(processes_of(&dir), Vec::<String>::new());
    assert!(!dir.exists(), "the folder is left");
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), "x").unwrap();
    let full = dir.path().display().to_string();
    for (arguments, advice) in [
        (vec!["--scenario", "nonsense"], "leader-kill"),
        (vec!["--runs", "0"], "1..=1000"),
        (vec!["--record-size", "3"], "choose 16 to 1000000"),
        (vec!["--duration", "60s"], "leave it away"),
        (vec!["--scenario", "lossy", "--duration", "1s"], "longer"),
        (vec!["--dir", &full], "choose a new or empty --dir"),
    ] {
        let output = bench(&arguments).output().unwrap();
        expect_exit(&output, 2);
        let error = text(&output.stderr);
        assert!(error.contains(advice), "{arguments:?}: {error}");
    }
    let entries = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(entries, 1);
}

#[test]
fn scenarios_are_listed_with_their_goals() {
    let output = bench(&["--list"]).output().unwrap();
    expect_exit(&output, 0);
    let list = text(&output.stdout);
    assert!(list.contains("leader-kill"), "{list}");
    assert!(list.contains("longest gap ≤ 1 s"), "{list}");
}
