//! The demo as a stranger runs it: the built program, in a folder, for some seconds.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, in its helpers as well"
)]

mod support;

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Read, Seek};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use support::PATIENCE;
use support::program::{self, expect_exit, program, text};

fn demo(arguments: &[&str]) -> Command {
    let mut command = program(&["demo"]);
    command
        .args(arguments)
        .env("QUORATE_CONFIG", "/nonexistent/config.toml");
    command
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

/// A demo at work, of which each line is read as it comes. Its nodes end with it.
struct Running {
    demo: program::Running,
    lines: Lines<BufReader<ChildStdout>>,
    /// A file, because nobody empties a pipe while the test reads the lines.
    errors: File,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let errors = tempfile::tempfile().unwrap();
        let mut demo = program::Running::start(demo(arguments).stderr(errors.try_clone().unwrap()));
        let lines = BufReader::new(demo.child().stdout.take().unwrap()).lines();
        Running {
            demo,
            lines,
            errors,
        }
    }

    fn pid(&self) -> Pid {
        self.demo.pid()
    }

    /// Reads lines up to and including the first one that `wanted` takes.
    fn read_until(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let mut seen = Vec::new();
        for line in self.lines.by_ref() {
            seen.push(line.unwrap());
            if wanted(seen.last().unwrap()) {
                return seen.pop().unwrap();
            }
        }
        let ended = self.demo.wait();
        panic!(
            "the demo ended before that ({ended}):\n{}\n{}",
            seen.join("\n"),
            self.errors()
        );
    }

    /// Reads the rest, to the end of the demo, which must be a good one.
    fn read_to_the_end(&mut self) -> String {
        let rest: Vec<String> = self.lines.by_ref().map(Result::unwrap).collect();
        let rest = rest.join("\n");
        let ended = self.demo.wait();
        assert_eq!(ended.code(), Some(0), "{rest}\n{}", self.errors());
        rest
    }

    /// What it has said on standard error.
    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.errors.rewind().unwrap();
        self.errors.read_to_string(&mut text).unwrap();
        text
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
fn records_get_through_links_that_lose_and_delay() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("demo");
    let path = dir.to_str().unwrap();
    let words = ["--loss", "3%", "--delay", "40ms"];
    let rest = ["--rate", "200", "--dir", path, "--output", "json"];
    let mut command = demo(&words);
    let output = command.args(rest).args(["--duration", "6s"]).output();
    let output = output.unwrap();
    expect_exit(&output, 0);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |name: &str| summary[name].as_u64().unwrap();
    assert!(number("acknowledged") > 0, "{summary}");
    assert_eq!(number("acknowledged"), number("produced"), "{summary}");
    assert_eq!(number("failed"), 0, "{summary}");
    assert_eq!(summary["replicas_agree"], true, "{summary}");
    assert_eq!(summary["impairment"], "loss=3%,delay=40ms", "{summary}");
    // An ack cannot come before the other node has been asked and has answered: twice 40 ms.
    assert!(number("ack_p50_us") >= 80_000, "no delay: {summary}");
}

#[test]
fn a_node_can_be_killed_and_started_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("demo");
    let mut demo = Running::start(&["--dir", dir.to_str().unwrap(), "--keep", "--rate", "200"]);
    demo.read_until(|line| line.contains(" acked"));
    let first = nodes(&dir);

    kill_process(pid_of(&first[1]), Signal::KILL).unwrap();
    demo.read_until(|line| line.contains("2 down"));
    // Its partitions are led by others by now, or will be.
    let command: Vec<&str> = first[1]["command"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let mut again = Command::new(command[0]);
    again
        .args(&command[1..])
        .env("QUORATE_CERTS_DIR", dir.join("certs"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut again = program::Running::start(&mut again);
    let process = again.child().id();
    demo.read_until(|line| {
        line.contains(&format!("2 up again (pid {process})"))
            && !line.contains("silent")
            && !line.contains('✗')
    });
    assert_eq!(nodes(&dir)[1]["pid"], process);

    kill_process(demo.pid(), Signal::TERM).unwrap();
    let rest = demo.read_to_the_end();
    assert!(rest.contains(" 0 failed"), "{rest}");
    assert_eq!(
        rest.matches("the same on nodes 1, 2, 3").count(),
        3,
        "{rest}"
    );
    assert!(again.wait().success());
    for node in nodes(&dir).iter().chain(&first) {
        assert!(!runs(pid_of(node)), "{node}");
    }
}

#[test]
fn nodes_end_with_a_demo_that_is_killed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("demo");
    let mut demo = Running::start(&["--dir", dir.to_str().unwrap(), "--rate", "100"]);
    demo.read_until(|line| line.contains(" acked"));
    let nodes = nodes(&dir);
    demo.demo.child().kill().unwrap();
    demo.demo.wait();
    let (ended, all_ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for node in &nodes {
            // Free when the node's process is gone.
            let lock = PathBuf::from(node["data_dir"].as_str().unwrap()).join("lock");
            File::open(lock).unwrap().lock().unwrap();
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
fn a_demo_whose_port_is_taken_at_the_last_moment_begins_anew_on_others() {
    for _ in 0..20 {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("demo");
        let mut demo = Running::start(&["--dir", dir.to_str().unwrap(), "--rate", "100"]);
        let port = loop {
            assert!(
                demo.demo.child().try_wait().unwrap().is_none(),
                "{}",
                demo.errors()
            );
            // Written while the demo still holds the ports.
            let env = std::fs::read_to_string(dir.join("client.env")).unwrap_or_default();
            let first = env.split("SERVER=127.0.0.1:").nth(1);
            let port = first.and_then(|text| text.split([',', '\n']).next()?.parse::<u16>().ok());
            if let Some(port) = port.filter(|_| env.contains("CERTS_DIR")) {
                break port;
            }
        };
        // From the moment that the demo lets go of it this races with the node, which has a whole program to start first.
        let stolen = loop {
            match UdpSocket::bind(("127.0.0.1", port)) {
                Ok(socket) => break Some(socket),
                Err(_) if dir.join("node-1/data/lock").exists() => break None,
                Err(_) => {}
            }
        };
        let Some(_stolen) = stolen else { continue };
        demo.read_until(|line| line.contains(&format!("took port 127.0.0.1:{port} meanwhile")));
        demo.read_until(|line| line.contains(" acked"));
        let quic = nodes(&dir)[0]["quic"].as_str().unwrap().to_owned();
        assert_ne!(quic, format!("127.0.0.1:{port}"));
        kill_process(demo.pid(), Signal::TERM).unwrap();
        let rest = demo.read_to_the_end();
        assert!(rest.contains(" 0 failed"), "{rest}");
        return;
    }
    panic!("the nodes were always faster");
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
