//! `quorate bench arms` and `quorate bench blackout` as a stranger runs them, for a moment each. Needs root, /dev/net/tun and iproute2,
//! and says so where one of them is not there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::lab::{lab, namespaces_of};
use support::program::{self, Running, expect_exit, left_in, objects, processes_of, text};

/// A loud line where this machine cannot have a lab.
fn can_have_a_lab() -> bool {
    lab(2, "").is_some()
}

fn bench(arguments: &[&str], dir: &Path) -> Command {
    let mut command = program::bench(arguments);
    command.arg("--dir").arg(dir).args(["--output", "json"]);
    command
}

fn figures(arguments: &[&str]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("runs");
    let running = Running::start(&mut bench(arguments, &dir));
    let process = running.pid().as_raw_nonzero().get();
    let output = running.output();
    expect_exit(&output, 0);
    assert!(!dir.exists(), "the folder is left");
    assert_eq!(processes_of(&dir, None), Vec::<String>::new());
    assert_eq!(namespaces_of(process.unsigned_abs()), Vec::<String>::new());
    objects(&output)
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
    let place = tempfile::tempdir().unwrap();
    let (dir, files) = (place.path().join("runs"), place.path().join("files"));
    std::fs::create_dir(&files).unwrap();
    let mut command = bench(&["blackout", "--arm", "tcp:reno"], &dir);
    // Whatever it puts elsewhere is seen there.
    let mut running = Running::start(command.env("TMPDIR", &files));
    let process = running.child().id();
    let itself = running.pid();
    running.until("three nodes", || {
        processes_of(&dir, Some(itself)).len() >= 3
    });
    assert_eq!(namespaces_of(process).len(), 3);
    running.interrupt();
    let output = running.output();
    expect_exit(&output, 130);
    assert_eq!(processes_of(&dir, None), Vec::<String>::new());
    assert_eq!(namespaces_of(process), Vec::<String>::new());
    assert_eq!(left_in(place.path()), ["files"]);
    assert_eq!(left_in(&files), Vec::<String>::new());
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
