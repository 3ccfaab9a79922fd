//! `quorate bench replicate`, `produce`, `consume` and `e2e` as a stranger runs them: the built program, short runs.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use support::PATIENCE;
use support::program::{
    Running, bench, expect_exit, left_in, objects, processes_of, program, text,
};

/// Any command of the program, which may take a busy machine's time to be answered.
fn quorate(arguments: &[&str]) -> Command {
    let mut command = program(arguments);
    command.env("QUORATE_TIMEOUT", "60s");
    command
}

fn number(figures: &Value, field: &str) -> f64 {
    figures[field]
        .as_f64()
        .unwrap_or_else(|| panic!("{field}: {figures}"))
}

#[test]
fn a_run_over_bad_links_tells_what_they_cost_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    let words = "replicate --runs 1 --duration 2s --warmup 500ms --loss 2% --delay 5ms --link-rate 20mbit --queue 50 \
                 --acks all,1 --congestion keel --partitions 2 --seed 7 --output json --dir";
    let words: Vec<&str> = words.split_whitespace().collect();
    let output = Running::start(bench(&words).arg(&runs)).output();
    expect_exit(&output, 0);
    let lines = objects(&output);
    assert_eq!(lines.len(), 2, "a line for each run of each cell");
    for (figures, acks) in lines.iter().zip(["all", "1"]) {
        for (field, expected) in [
            ("bench", "replicate"),
            ("arm", "quic"),
            ("congestion", "keel"),
            ("flush", "fsync"),
        ] {
            assert_eq!(figures[field], expected, "{figures}");
        }
        assert_eq!(figures["acks"], acks);
        for (field, expected) in [
            ("loss", 0.02),
            ("rtt_ms", 10.0),
            ("link_mbit", 20.0),
            ("seed", 7.0),
        ] {
            assert_eq!(number(figures, field), expected, "{field}");
        }
        for field in [
            "records_per_s",
            "mbit_per_s",
            "commit_p50_ms",
            "commit_p99_ms",
            "random_loss",
            "link_mbit_per_s",
            "rss_mib",
        ] {
            assert!(number(figures, field) > 0.0, "{field}: {figures}");
        }
        assert!(number(figures, "self_loss") < 1.0);
        assert!(number(figures, "cpu_ms_per_mib") > 0.0);
        for field in ["lost", "duplicated", "unacknowledged"] {
            assert_eq!(figures[field], 0, "{field}: {figures}");
        }
        assert_eq!(figures["replicas_agree"], true, "{figures}");
        assert_eq!(figures["records"], figures["acknowledged"]);
        assert!(figures["e2e_p50_ms"].is_null(), "not measured here");
    }
    // Nothing can be known of a follower before its link has gone to and fro.
    assert!(number(&lines[0], "commit_p50_ms") >= 10.0);
    assert!(number(&lines[0], "single_acks_all_ms") >= 10.0);
    assert!(lines[0]["red_flag"].is_null() && lines[1]["single_acks_1_ms"].is_null());
    assert_eq!(processes_of(&runs, None), Vec::<String>::new());
    assert!(!runs.exists(), "the folder is left");
}

#[test]
fn a_report_has_a_page_and_what_it_has_already_is_not_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report");
    let run = |losses: &str| {
        let words = "replicate --runs 1 --records 200 --warmup 0s --in-flight 8 --delay 2ms --output json --loss";
        let mut words: Vec<&str> = words.split_whitespace().collect();
        words.push(losses);
        let output = Running::start(bench(&words).arg("--report").arg(&report)).output();
        expect_exit(&output, 0);
        assert!(
            text(&output.stderr).contains("report.html"),
            "{}",
            text(&output.stderr)
        );
        objects(&output)
    };
    let first = run("0%");
    assert_eq!(first.len(), 1);
    let both = run("0%,3%");
    assert_eq!(both.len(), 2);
    // Its random seed and its figures would be others.
    assert_eq!(both[0], first[0], "it was run again");
    assert_eq!(std::fs::read_dir(report.join("runs")).unwrap().count(), 2);
    let page = std::fs::read_to_string(report.join("report.html")).unwrap();
    for words in [
        "loss 3%, delay 2ms",
        "Throughput by loss and round trip",
        "</html>",
    ] {
        assert!(page.contains(words), "{words}");
    }
    for drawing in ["throughput-1.svg", "distribution-1.svg", "course-2.svg"] {
        assert!(report.join(drawing).exists(), "{drawing}");
    }
}

#[test]
fn ctrl_c_leaves_no_process_and_no_folder() {
    let place = tempfile::tempdir().unwrap();
    let (dir, files) = (place.path().join("runs"), place.path().join("files"));
    std::fs::create_dir(&files).unwrap();
    let mut command = bench(&["replicate", "--duration", "600s", "--rate", "1", "--dir"]);
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
        ("--loss 101%", "0% to 100%"),
        ("--loss 1", "percent sign"),
        ("--loss 1%,100%", "below that"),
        ("--delay 20", "40ms"),
        ("--link-rate fast", "100mbit"),
        ("--queue 9", "--link-rate"),
        ("--record-size 3", "choose 24 to 1000000"),
        ("--in-flight 0", "choose 1 to 100000"),
        (
            "--in-flight 100000 --record-size 100000",
            "lower --in-flight",
        ),
        ("--partitions 0", "choose 1 to 10000"),
        ("--rate 0", "leave it away"),
        ("--records 0", "ask for more"),
        ("--duration 1000000s", "another place with --dir"),
        ("--replication-factor 4", "raise --nodes"),
        ("--min-insync-replicas 4", "choose 1 to 3"),
        ("--acks 2", "all, 1 or 0"),
        ("--congestion fast", "keel, cubic or bbr"),
        ("--runs 0", "1..=1000"),
    ] {
        let mut words = vec!["replicate"];
        words.extend(arguments.split_whitespace());
        let output = bench(&words).output().unwrap();
        expect_exit(&output, 2);
        let error = text(&output.stderr);
        assert!(error.contains(advice), "{arguments}: {error}");
    }
    // Few records: how much may be written must not be what is refused where the disk is nearly full.
    let output = bench(&["replicate", "--records", "10", "--dir", &full])
        .output()
        .unwrap();
    expect_exit(&output, 2);
    let error = text(&output.stderr);
    assert!(error.contains("choose a new or empty --dir"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let output = quorate(&["topic", "list", "--output", "csv"])
        .output()
        .unwrap();
    expect_exit(&output, 2);
}

#[test]
fn a_given_cluster_is_measured_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let port = support::cluster::free_port();
    let listen = format!("127.0.0.1:{port}");
    let certs = data.join("certs").display().to_string();
    let _node = Running::start(
        quorate(&["server", "start", "--data-dir"])
            .arg(&data)
            .args(["--listen", &listen])
            .env_remove("QUORATE_CERTS_DIR")
            .env_remove("QUORATE_NODE_ID")
            .stderr(Stdio::null()),
    );
    let asked = |words: &str| {
        let words: Vec<&str> = words.split_whitespace().collect();
        let mut command = quorate(&words);
        Running::start(command.args(["-b", &listen, "--certs-dir", &certs])).output()
    };
    let deadline = Instant::now() + PATIENCE;
    // A node that listens need not be registered yet.
    while asked("cluster status").status.code() != Some(0) {
        let error = text(&asked("cluster status").stderr);
        assert!(Instant::now() < deadline, "{error}");
    }
    let shared = "--runs 1 --duration 1s --warmup 200ms --output json";
    let produced = asked(&format!("bench produce --rate 200 {shared}"));
    expect_exit(&produced, 0);
    let figures = &objects(&produced)[0];
    assert_eq!(figures["rate"], 200);
    assert!(
        (150.0..250.0).contains(&number(figures, "measured_records")),
        "{figures}"
    );
    assert_eq!(figures["partitions"], 1);
    for unknown in [
        "cpu_ms_per_mib",
        "rss_mib",
        "self_loss",
        "congestion",
        "loss",
        "replicas_agree",
    ] {
        assert!(figures[unknown].is_null(), "{unknown}: {figures}");
    }
    // One at a time over 40 ms there and back are 25 a second. Of 200 that are due, the last ones that are sent have waited
    // for most of a second, and who counted from their sending would not see it.
    let late = "bench produce --rate 200 --in-flight 1 --delay 20ms --runs 1 --duration 1s --warmup 0s --output json";
    let late = asked(late);
    expect_exit(&late, 0);
    let late = &objects(&late)[0];
    assert!(number(late, "commit_max_ms") > 400.0);
    // Most of them are never sent, and most of the times are theirs.
    assert!(number(late, "missed") > 50.0, "{late}");
    assert!(number(late, "commit_p50_ms") > 100.0, "{late}");
    assert!(
        late["rate_flag"].as_str().unwrap().contains("lower --rate"),
        "{late}"
    );
    let end_to_end = asked(&format!("bench e2e {shared}"));
    expect_exit(&end_to_end, 0);
    let figures = &objects(&end_to_end)[0];
    assert!(number(figures, "e2e_p50_ms") > 0.0 && number(figures, "commit_p50_ms") > 0.0);
    assert_eq!(figures["lost"], 0, "{figures}");
    assert!(figures["missed"].is_null(), "there is no rate: {figures}");
    let consumed = asked("bench consume --records 3000 --runs 1 --output csv");
    expect_exit(&consumed, 0);
    let lines = text(&consumed.stdout);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("bench,arm,cell,run"), "{}", lines[0]);
    assert!(lines[1].starts_with("consume,quic,"), "{}", lines[1]);
    let topics = asked("topic list --output json");
    assert_eq!(text(&topics.stdout), "", "topics are left");
    // Ctrl-C takes the topic of a run away as well.
    let mut endless = bench(&["produce", "--duration", "600s"]);
    let mut running = Running::start(endless.args(["-b", &listen, "--certs-dir", &certs]));
    running.until("a topic", || {
        !text(&asked("topic list --output json").stdout).is_empty()
    });
    running.interrupt();
    expect_exit(&running.output(), 130);
    assert_eq!(text(&asked("topic list --output json").stdout), "");
    // A topic that was named stays, and must be as was asked for the next time.
    expect_exit(
        &asked("bench produce --topic kept --partitions 2 --records 10 --warmup 0s --runs 1"),
        0,
    );
    let other = asked("bench produce --topic kept --partitions 3");
    expect_exit(&other, 2);
    assert!(
        text(&other.stderr).contains("--partitions 2 and not 3"),
        "{}",
        text(&other.stderr)
    );
    assert!(text(&asked("topic list").stdout).contains("kept"));
    // What is there already is read as well as what is put beside it, and once.
    for records in [2000, 1500] {
        let consumed = asked(&format!(
            "bench consume --topic kept --records {records} --runs 1 --output json"
        ));
        expect_exit(&consumed, 0);
        let figures = &objects(&consumed)[0];
        for field in ["lost", "duplicated", "unacknowledged"] {
            assert_eq!(figures[field], 0, "{field}: {figures}");
        }
        assert_eq!(figures["measured_records"], records, "{figures}");
    }
}

#[test]
fn a_cluster_that_is_not_there_is_3() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs").display().to_string();
    for words in ["cert create-ca", "cert create-client x"] {
        let words: Vec<&str> = words.split_whitespace().collect();
        let made = quorate(&words)
            .args(["--certs-dir", &certs])
            .output()
            .unwrap();
        expect_exit(&made, 0);
    }
    let output = bench(&["produce", "--timeout", "500ms", "--certs-dir", &certs]).output();
    expect_exit(&output.unwrap(), 3);
}
