//! The lab network with the kernel's own TCP in it, and `quorate bench lab` as a stranger runs it. Needs root, /dev/net/tun and
//! iproute2, and says so where one of them is not there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use quorate::bench::lab::{Lab, LabCounts, WayCounts, enter_host};
use rustix::process::Pid;
use serde_json::Value;
use support::lab::{lab, namespaces_of, settings};
use support::program::{self, Running, expect_exit, text};

const LONG: Duration = Duration::from_secs(60);
const PORT: u16 = 7000;

fn address(lab: &Lab, host: u16) -> SocketAddr {
    let host = &lab.hosts()[usize::from(host) - 1];
    SocketAddr::from((host.address, PORT))
}

fn way(counts: &LabCounts, from: u16, to: u16) -> WayCounts {
    let ways = &counts.ways;
    *ways
        .iter()
        .find(|way| (way.from, way.to) == (from, to))
        .unwrap()
}

/// Takes one connection on `host` and reads it to its end, on a thread of its own.
fn sink(lab: &Lab, host: u16) -> thread::JoinHandle<u64> {
    let at = address(lab, host);
    let listener = lab.run_on(host, || TcpListener::bind(at)).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = 0;
        let mut buffer = vec![0; 65_536];
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                read => bytes += read as u64,
            }
        }
        stream.write_all(b"done").unwrap();
        bytes
    })
}

/// Sends so many bytes from host 1, and waits until the other end has them all.
fn send(lab: &Lab, to: u16, bytes: usize) {
    let at = address(lab, to);
    let mut stream = lab.run_on(1, || TcpStream::connect(at)).unwrap();
    stream.write_all(&vec![7; bytes]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "done");
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn tcp_meets_the_delay_and_the_loss_below_the_kernel_and_every_packet_is_counted() {
    let Some(lab) = lab(2, "delay=20ms") else {
        return;
    };
    let receiver = sink(&lab, 2);
    let at = address(&lab, 2);
    let begun = Instant::now();
    let mut stream = lab.run_on(1, || TcpStream::connect(at)).unwrap();
    // A handshake takes one round trip, and a packet cannot be faster than its link.
    assert!(
        begun.elapsed() >= Duration::from_millis(40),
        "{:?}",
        begun.elapsed()
    );
    stream.write_all(b"x").unwrap();
    drop(stream);
    assert_eq!(receiver.join().unwrap(), 1);
    // The kernels still have to say goodbye to each other.
    let ways = [(1, 2), (2, 1)];
    wait_until("three packets each way, and everything carried", || {
        let counts = lab.counts();
        let is_all = |(from, to)| way(&counts, from, to).packets >= 3;
        ways.into_iter().all(is_all) && lab.under_way() == 0
    });
    let counts = lab.counts();
    for (from, to) in ways {
        let way = way(&counts, from, to);
        assert_eq!((way.carried, way.lost, way.no_room), (way.packets, 0, 0));
    }

    lab.set("delay=1ms,loss=5%".parse().unwrap());
    let before = way(&lab.counts(), 1, 2);
    let receiver = sink(&lab, 2);
    const BYTES: usize = 8 << 20;
    send(&lab, 2, BYTES);
    assert_eq!(receiver.join().unwrap(), BYTES as u64);
    // What the kernels still say to each other may come between a count and the next.
    let mut counts = lab.counts();
    wait_until("everything is carried", || {
        counts = lab.counts();
        let is_settled =
            |way: &WayCounts| way.carried == way.packets - way.lost - way.queue_full - way.cut;
        counts.ways.iter().all(is_settled)
    });
    let out = way(&counts, 1, 2);
    let (packets, lost) = (out.packets - before.packets, out.lost - before.lost);
    // None is longer than 1,500 bytes: what TCP hands over at once is cut before it comes to the device.
    assert!(packets as usize >= BYTES / 1448, "{packets}");
    let share = lost as f64 / packets as f64;
    assert!((0.035..0.065).contains(&share), "{share}");
    assert!(out.carried_bytes > BYTES as u64);
    for host in &counts.hosts {
        assert_eq!((host.refused, host.device_dropped), (0, 0), "{host:?}");
    }
}

#[test]
fn tcp_uses_the_congestion_control_that_was_asked_for_at_both_ends() {
    for name in ["cubic", "reno"] {
        let mut wanted = settings(2, "");
        wanted.tcp_congestion = Some(name.to_owned());
        if lab(2, "").is_none() {
            return;
        }
        let lab = Lab::open(&wanted).unwrap();
        assert_eq!(lab.tcp_congestion().unwrap(), name);
        let at = address(&lab, 2);
        let listener = lab.run_on(2, || TcpListener::bind(at)).unwrap();
        let out = lab.run_on(1, || TcpStream::connect(at)).unwrap();
        let (back, _) = listener.accept().unwrap();
        for end in [&out, &back] {
            let used = socket2::SockRef::from(end).tcp_congestion().unwrap();
            assert_eq!(text(&used).trim_end_matches('\0'), name);
        }
    }
}

#[test]
fn a_slow_link_drops_at_its_queue_and_a_cut_one_everything_until_it_heals() {
    let Some(lab) = lab(3, "delay=1ms,rate=20mbit,queue=10") else {
        return;
    };
    let receiver = sink(&lab, 2);
    send(&lab, 2, 4 << 20);
    assert_eq!(receiver.join().unwrap(), 4 << 20);
    let counts = lab.counts();
    assert!(way(&counts, 1, 2).queue_full > 0, "{counts:?}");
    assert_eq!(way(&counts, 1, 3).packets, 0);

    lab.set("host=2,cut=both".parse().unwrap());
    let receiver = sink(&lab, 2);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&lab, 2, 1000));
        wait_until("the first packets are cut", || {
            way(&lab.counts(), 1, 2).cut >= 1
        });
        assert!(!sender.is_finished());
        // Host 3 is reached all the while.
        let third = sink(&lab, 3);
        send(&lab, 3, 1000);
        assert_eq!(third.join().unwrap(), 1000);
        lab.set("".parse().unwrap());
        sender.join().unwrap();
    });
    assert_eq!(receiver.join().unwrap(), 1000);
}

#[test]
fn a_lab_leaves_nothing_behind_not_even_what_runs_in_it() {
    let Some(lab) = lab(2, "") else {
        return;
    };
    let names: Vec<_> = lab
        .hosts()
        .iter()
        .map(|host| host.namespace.clone())
        .collect();
    let mut sleeper = lab
        .command(2, "sleep")
        .unwrap()
        .arg("1000")
        .spawn()
        .unwrap();
    // One that has lost its parent, and one that does not listen to reason.
    let mut shell = lab
        .command(1, "sh")
        .unwrap()
        .args([
            "-c",
            "(trap '' TERM; sleep 1000 >/dev/null 2>&1) & echo $!; wait",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(shell.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let orphan = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
    shell.kill().unwrap();
    shell.wait().unwrap();
    // A thread of ours on a host is left alone.
    let host = lab.hosts()[0].clone();
    let on_host = thread::spawn(move || {
        enter_host(&host).unwrap();
        thread::sleep(Duration::from_millis(500));
    });
    drop(lab);
    assert!(!sleeper.wait().unwrap().success());
    // One that nobody has waited for yet has no command line any more.
    let command_line = format!("/proc/{}/cmdline", orphan.as_raw_nonzero());
    wait_until("the orphan is gone", || {
        fs::read(&command_line).unwrap_or_default().is_empty()
    });
    for name in names {
        assert!(!Path::new("/run/netns").join(&name).exists(), "{name}");
    }
    on_host.join().unwrap();
}

fn bench_lab(arguments: &[&str]) -> Command {
    let mut command = program::bench(&["lab"]);
    command.args(arguments);
    command
}

/// A lab without a command, once it stands.
fn standing() -> Running {
    let mut running = Running::start(&mut bench_lab(&["--hosts", "2"]));
    let mut lines = BufReader::new(running.child().stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("stands until") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it has ended");
    }
    // What it says later must find a reader.
    thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    running
}

#[test]
fn a_command_runs_on_host_1_and_others_through_exec_and_the_counts_come_last() {
    if lab(2, "").is_none() {
        return;
    }
    let script = "echo $LAB_HOSTS; ip -o -4 addr show lab0; \"$0\" bench lab exec 3 -- ip -o -4 addr show lab0; \
                  echo 'delay=7ms' > $LAB_RULES.new; mv $LAB_RULES.new $LAB_RULES; sleep 0.2; exit 0";
    let quorate = env!("CARGO_BIN_EXE_quorate");
    let arguments = [
        "--hosts",
        "3",
        "--delay",
        "5ms",
        "--seed",
        "11",
        "--tcp-congestion",
        "cubic",
        "--output",
        "json",
        "--",
        "sh",
        "-c",
        script,
        quorate,
    ];
    let output = bench_lab(&arguments).output().unwrap();
    expect_exit(&output, 0);
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "10.77.0.1 10.77.0.2 10.77.0.3");
    assert!(
        lines[1].contains("10.77.0.1/") && lines[2].contains("10.77.0.3/"),
        "{lines:?}"
    );
    let counts: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(counts["rules"], "delay=7ms");
    assert_eq!(counts["seed"], 11);
    assert_eq!(counts["hosts"].as_array().unwrap().len(), 3);
    assert_eq!(counts["ways"].as_array().unwrap().len(), 6);
    assert!(
        text(&output.stderr).contains("TCP: cubic"),
        "{}",
        text(&output.stderr)
    );

    let output = bench_lab(&["--", "sh", "-c", "exit 3"]).output().unwrap();
    expect_exit(&output, 1);
    assert!(text(&output.stderr).contains("exit status: 3"));
    let output = bench_lab(&["exec", "2", "--", "true"]).output().unwrap();
    expect_exit(&output, 2);
    assert!(text(&output.stderr).contains("LAB_NAMESPACES is not set"));
}

#[test]
fn a_signal_ends_it_with_everything_removed_and_what_a_killed_one_left_the_next_removes() {
    if lab(2, "").is_none() {
        return;
    }
    let mut running = standing();
    let process = running.child().id();
    assert_eq!(namespaces_of(process).len(), 2);
    running.interrupt();
    assert_eq!(running.wait().code(), Some(130));
    assert_eq!(namespaces_of(process), Vec::<String>::new());

    let mut running = standing();
    let process = running.child().id();
    running.child().kill().unwrap();
    running.wait();
    assert_eq!(namespaces_of(process).len(), 2, "nobody could remove them");
    drop(lab(2, ""));
    assert_eq!(namespaces_of(process), Vec::<String>::new());
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts() {
    for (arguments, advice) in [
        (&["--hosts", "1", "--", "true"][..], "choose 2 to 16"),
        (&["--loss", "103%", "--", "true"], "0% to 100%"),
        (&["--hosts", "17"], "choose 2 to 16"),
    ] {
        let output = bench_lab(arguments).output().unwrap();
        expect_exit(&output, 2);
        assert!(
            text(&output.stderr).contains(advice),
            "{}",
            text(&output.stderr)
        );
    }
    if !rustix::process::geteuid().is_root() {
        let output = bench_lab(&["--", "true"]).output().unwrap();
        expect_exit(&output, 2);
        assert!(text(&output.stderr).contains("run this as root"));
        return;
    }
    // As nobody, with a copy of the program that nobody can read.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open).unwrap();
    let program = dir.path().join("quorate");
    // By another process: what this one has open for writing, every child that is being forked has too, and nobody can execute
    // such a file.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_quorate"))
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let output = Command::new(&program)
        .args(["bench", "lab", "--", "true"])
        .current_dir("/")
        .env("TMPDIR", "/tmp")
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    expect_exit(&output, 2);
    assert!(
        text(&output.stderr).contains("run this as root"),
        "{}",
        text(&output.stderr)
    );
}
