//! `quorate bench arms` and `quorate bench blackout` as a stranger runs them, for a moment each. Needs root, /dev/net/tun and iproute2,
//! and says so where one of them is not there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use quorate::bench::lab::{Lab, LabError, LabSettings};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A loud line where this machine cannot have a lab.
fn can_have_a_lab() -> bool {
    let settings = LabSettings {
        hosts: 2,
        spec: "".parse().unwrap(),
        seed: 1,
        rules: None,
        tcp_congestion: None,
    };
    match Lab::open(&settings) {
        Ok(_) => true,
        Err(error @ LabError::Impossible(_)) => {
            eprintln!("SKIPPED, NOT TESTED: {error}");
            false
        }
        Err(LabError::Ip { command, why }) if why.contains("not permitted") => {
            eprintln!("SKIPPED, NOT TESTED: {command}: {why}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn bench(arguments: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command
        .arg("bench")
        .args(arguments)
        .arg("--dir")
        .arg(dir)
        .args(["--timeout", "60s", "--output", "json"])
        // What would lead the nodes astray if they heard of it.
        .env("QUORATE_NODE_ID", "77")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn expect_exit(output: &Output, code: i32) {
    let shown = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{shown}");
}

fn figures(arguments: &[&str]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("runs");
    let output = bench(arguments, &dir).output().unwrap();
    expect_exit(&output, 0);
    assert!(!dir.exists(), "the folder is left");
    let lines = text(&output.stdout);
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn namespaces_of(process: u32) -> usize {
    let prefix = format!("quorate-lab-{process}-");
    let entries = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&prefix)).count()
}

#[test]
fn both_arms_carry_the_same_records_over_the_same_links() {
    if !can_have_a_lab() {
        return;
    }
    let all = figures(&[
        "arms",
        "--arm",
        "quic:cubic,tcp:reno",
        "--loss",
        "1%",
        "--delay",
        "3ms",
        "--link-rate",
        "50mbit",
        "--duration",
        "2s",
        "--warmup",
        "1s",
        "--in-flight",
        "32",
        "--partitions",
        "2",
        "--seed",
        "5",
    ]);
    let arms: Vec<_> = all
        .iter()
        .map(|cell| (&cell["arm"], &cell["congestion"]))
        .collect();
    assert_eq!(
        arms,
        [
            (&"quic".into(), &"cubic".into()),
            (&"tcp".into(), &"reno".into())
        ]
    );
    for cell in &all {
        assert_eq!(cell["loss"], 0.01);
        assert_eq!(cell["rtt_ms"], 6.0);
        assert_eq!(cell["link_mbit"], 50.0);
        assert_eq!((&cell["seed"], &cell["run"]), (&5.into(), &1.into()));
        for field in ["lost", "duplicated", "unacknowledged"] {
            assert_eq!(cell[field], 0, "{field}: {cell}");
        }
        assert_eq!(cell["replicas_agree"], true, "{cell}");
        assert!(cell["records"].as_u64().unwrap() > 0, "{cell}");
        // A commit needs a packet there and one back.
        assert!(cell["commit_p50_ms"].as_f64().unwrap() >= 6.0, "{cell}");
        let chance = cell["chance_loss"].as_f64().unwrap();
        assert!(chance > 0.0 && chance < 0.1, "{cell}");
        let (values, link) = (&cell["mbit_per_s"], &cell["link_used_mbit"]);
        assert!(values.as_f64().unwrap() < link.as_f64().unwrap(), "{cell}");
    }
}

#[test]
fn nothing_is_acknowledged_while_every_link_is_out_and_everything_is_after_it() {
    if !can_have_a_lab() {
        return;
    }
    let arguments = [
        "blackout",
        "--arm",
        "quic:keel,tcp:reno",
        "--delay",
        "2ms",
        "--outage",
        "700ms",
    ];
    let all = figures(&arguments);
    assert_eq!(all.len(), 2);
    for figures in &all {
        assert_eq!(figures["outage_s"], 0.7);
        assert!(
            figures["first_ack_after_heal_ms"].as_f64().unwrap() > 0.0,
            "{figures}"
        );
        // But for what was under way.
        assert!(
            figures["longest_ack_gap_ms"].as_f64().unwrap() > 600.0,
            "{figures}"
        );
        for field in ["lost", "duplicated", "unacknowledged"] {
            assert_eq!(figures[field], 0, "{field}: {figures}");
        }
    }
}

#[test]
fn ctrl_c_leaves_no_process_no_namespace_and_no_folder() {
    if !can_have_a_lab() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("runs");
    let child = bench(&["blackout", "--arm", "tcp:reno"], &dir)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let last = dir.join("tcp-reno-1/node-3/node.log");
    while !last.exists() {
        assert!(Instant::now() < deadline, "no nodes");
        thread::sleep(Duration::from_millis(20));
    }
    let process = child.id();
    assert_eq!(namespaces_of(process), 3);
    kill_process(
        Pid::from_raw(process.try_into().unwrap()).unwrap(),
        Signal::INT,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    expect_exit(&output, 130);
    assert_eq!(namespaces_of(process), 0);
    assert!(!dir.exists(), "the folder is left");
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts() {
    let dir = Path::new("/nonexistent/runs");
    for (arguments, advice) in [
        (&["arms", "--arm", "quic:reno"][..], "quic:keel"),
        (&["arms", "--loss", "101%"], "0% to 100%"),
        (&["arms", "--duration", "1ms"], "--duration"),
        (&["arms", "--in-flight", "0"], "--in-flight"),
        (&["blackout", "--outage", "10m"], "--outage"),
    ] {
        let output = bench(arguments, dir).output().unwrap();
        expect_exit(&output, 2);
        assert!(
            text(&output.stderr).contains(advice),
            "{}",
            text(&output.stderr)
        );
    }
    if !can_have_a_lab() {
        return;
    }
    let output = bench(&["arms", "--arm", "tcp:pigeon"], dir)
        .output()
        .unwrap();
    expect_exit(&output, 2);
    assert!(
        text(&output.stderr).contains("modprobe tcp_pigeon"),
        "{}",
        text(&output.stderr)
    );
}
