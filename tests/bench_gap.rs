//! `quorate bench gap` as a stranger runs it: the built program, one short scenario.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use serde_json::Value;
use support::program::{self, Running, expect_exit, left_in, objects, processes_of, text};

fn bench(arguments: &[&str]) -> Command {
    let mut command = program::bench(&["gap"]);
    command.args(arguments);
    command
}

/// Runs one scenario once and returns its figures. Whatever it broke, every record is there once, and nothing is left behind.
fn run_once(scenario: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("runs");
    let mut command = bench(&["--scenario", scenario, "--runs", "1", "--seed", "7"]);
    let command = command.args(["--output", "json", "--dir"]).arg(&dir);
    let output = Running::start(command).output();
    expect_exit(&output, 0);
    let lines = objects(&output);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let figures = lines[0].clone();
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
    assert_eq!(processes_of(&dir, None), Vec::<String>::new());
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
fn a_blackout_of_every_link_loses_nothing_and_acks_come_after_it() {
    let figures = run_once("blackout-1s");
    let first = figures["first_ack_after_heal_ms"].as_f64();
    assert!(first.is_some_and(|ms| ms > 0.0), "{figures}");
    // Nothing is acknowledged while nothing comes through.
    let gap = figures["longest_ack_gap_ms"].as_f64().unwrap();
    assert!(gap > 500.0, "{figures}");
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
    let place = tempfile::tempdir().unwrap();
    let (dir, files) = (place.path().join("runs"), place.path().join("files"));
    std::fs::create_dir(&files).unwrap();
    let mut command = bench(&["--scenario", "leader-kill", "--dir"]);
    // Whatever it puts elsewhere is seen there.
    let mut running = Running::start(command.arg(&dir).env("TMPDIR", &files));
    let itself = running.pid();
    running.until("three nodes", || {
        processes_of(&dir, Some(itself)).len() >= 3
    });
    running.interrupt();
    let output = running.output();
    expect_exit(&output, 130);
    assert_eq!(processes_of(&dir, None), Vec::<String>::new());
    assert_eq!(left_in(place.path()), ["files"]);
    assert_eq!(left_in(&files), Vec::<String>::new());
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
