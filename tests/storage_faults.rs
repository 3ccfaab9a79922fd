//! Disks that rot, that are full, and that lose what they said they would keep, under real nodes.

// A test that cannot go on panics, and what it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use quorate::client::ProducerConfig;
use quorate::storage::TAIL_CACHE_BYTES;
use quorate::storage::inspect::inspect;
use quorate::storage::{FileSystem, RESERVED_BYTES, RealFileSystem};
use quorate::types::{NodeId, TopicName};

use support::cluster::{Cluster, quorate};
use support::preload;
use support::workload::{Workload, check};
use support::{PATIENCE, until};

const NO_ERRORS: [&str; 0] = [];
const SMALL_SEGMENTS: [(&str, &str); 2] =
    [("min.insync.replicas", "2"), ("segment.bytes", "65536")];

/// Of the one partition of the one topic.
fn log_dir(cluster: &Cluster, id: NodeId) -> PathBuf {
    let inspection = inspect(&RealFileSystem, &cluster.spec(id).data_dir).unwrap();
    inspection.partitions[0].dir.clone()
}

/// Flips a bit in the middle of the log's first segment, which is sealed.
fn rot(cluster: &Cluster, id: NodeId) -> PathBuf {
    let path = log_dir(cluster, id).join(format!("{:020}.wal", 0));
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    path
}

fn verify(cluster: &Cluster, id: NodeId) -> Output {
    let mut command = quorate();
    command.args(["log", "verify", "--data-dir"]);
    command.arg(&cluster.spec(id).data_dir).output().unwrap()
}

/// What was set aside, which the operator has looked at and removes.
fn remove_quarantines(cluster: &Cluster, id: NodeId) -> usize {
    let inspection = inspect(&RealFileSystem, &cluster.spec(id).data_dir).unwrap();
    for dir in &inspection.quarantined {
        fs::remove_dir_all(dir).unwrap();
    }
    inspection.quarantined.len()
}

async fn until_quarantined(cluster: &Cluster, id: NodeId) {
    until("the corrupt log is set aside", async || {
        let inspection = inspect(&RealFileSystem, &cluster.spec(id).data_dir)
            .map_err(|error| error.to_string())?;
        match inspection.quarantined.len() {
            0 => Err(cluster.spec(id).log_text()),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_on_a_follower_is_found_by_verify_and_mended_by_a_restart() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster
        .create_topic_with(&client, "orders", 1, &SMALL_SEGMENTS)
        .await;
    let workload = Workload::start(&client, &topic, &[0], 4096, ProducerConfig::default());
    workload.until_acknowledged(&[0], 100).await;
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let path = rot(&cluster, follower);

    let found = verify(&cluster, follower);
    let told = String::from_utf8_lossy(&found.stderr).into_owned();
    assert_eq!(found.status.code(), Some(10), "{told}");
    assert!(told.contains(path.to_str().unwrap()), "{told}");
    assert!(told.contains("--verify-logs"), "{told}");

    // As it says.
    cluster.stop(follower).await;
    let spec = cluster.specs.iter_mut().find(|spec| spec.id == follower);
    spec.unwrap().flags.push("--verify-logs".to_owned());
    cluster.spawn(follower);
    cluster.until_healthy().await;
    workload.until_acknowledged(&[0], 50).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    until_quarantined(&cluster, follower).await;
    assert_eq!(remove_quarantines(&cluster, follower), 1);
    cluster.until_digests_agree(&topic, &ends).await;
    let all = cluster.ids();
    cluster.until_isr(&topic, 0, &all).await;
    let found = verify(&cluster, follower);
    assert_eq!(found.status.code(), Some(0), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_reads_rot_is_replaced_and_fetches_its_log_anew_while_it_runs() {
    const RECORD: usize = 16 << 10;
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster
        .create_topic_with(&client, "orders", 1, &SMALL_SEGMENTS)
        .await;
    let workload = Workload::start(&client, &topic, &[0], RECORD, ProducerConfig::default());
    // So that old records are read from the disk.
    workload
        .until_acknowledged(&[0], 2 * TAIL_CACHE_BYTES / RECORD)
        .await;
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    rot(&cluster, leader);
    // The reader gets through: another leads as soon as this one has found what it cannot read.
    // Up to where the log ends now: its writer goes on, and to follow it to its end is a race.
    let there = workload.story().count().to_string();
    read_from_the_beginning(&cluster, &topic, &["-c", &there]).await;
    until("the leader says what it found", async || {
        let log = cluster.spec(leader).log_text();
        if log.contains("is damaged") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;

    // It asks for another leader, and begins anew once there is one.
    cluster.until_led(&topic, 0, |id| id != leader).await;
    until_quarantined(&cluster, leader).await;
    workload.until_acknowledged(&[0], 50).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    assert_eq!(remove_quarantines(&cluster, leader), 1);
    cluster.until_digests_agree(&topic, &ends).await;
    let all = cluster.ids();
    cluster.until_isr(&topic, 0, &all).await;
}

/// As a consumer does that begins at the beginning, through whatever is in its way, until where `to` says.
async fn read_from_the_beginning(cluster: &Cluster, topic: &TopicName, to: &[&str]) {
    let servers: Vec<String> = cluster
        .specs
        .iter()
        .map(|spec| spec.quic.to_string())
        .collect();
    let mut command = tokio::process::Command::from(quorate());
    command
        .args(["consume", topic.as_str(), "-o", "beginning"])
        .args(to)
        .args(["-b", &servers.join(","), "--certs-dir"])
        .arg(&cluster.specs[0].certs_dir)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("{topic} is not read to its end within {PATIENCE:?}"))
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// What is left on the small disk: less than what the node keeps free for everything but records.
const LEFT_BYTES: u64 = RESERVED_BYTES / 2;

/// A file system of its own in memory, unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None` where this process may not mount.
    fn mount(path: &Path, bytes: u64) -> Option<SmallDisk> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(path)
            .output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        mounted.then(|| SmallDisk {
            path: path.to_owned(),
        })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node may still have it open.
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

/// Writes zeros to `file` until no more than `left` bytes are free in `dir`.
fn fill(dir: &Path, file: &Path, left: u64) {
    let file = fs::File::create(file).unwrap();
    let zeros = vec![0; 1 << 20];
    for i in 0.. {
        let free = RealFileSystem.available_space(dir).unwrap();
        if free <= left {
            return;
        }
        file.write_all_at(&zeros, i << 20).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_full_leads_nothing_serves_reads_and_goes_on_when_there_is_room() {
    let mut cluster = Cluster::prepare(3).await;
    let path = cluster.dir().join("small-disk");
    let Some(disk) = SmallDisk::mount(&path, 4 * RESERVED_BYTES) else {
        println!("NOT TESTED: this process may not mount a small disk; run it as root");
        return;
    };
    cluster.specs[0].data_dir = path.join("data");
    cluster.start_all().await;
    let client = cluster.client().await;
    let topic = cluster
        .create_topic_with(&client, "orders", 3, &SMALL_SEGMENTS)
        .await;
    let all = [0, 1, 2];
    let workload = Workload::start(&client, &topic, &all, 512, ProducerConfig::default());
    workload.until_acknowledged(&all, 50).await;

    let small = cluster.specs[0].id;
    let ballast = disk.path.join("ballast");
    fill(&disk.path, &ballast, LEFT_BYTES);
    until("the node says that its disk is full", async || {
        let log = cluster.spec(small).log_text();
        if log.contains("the disk is full") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    // It asks for other leaders of what it leads, so nobody waits for it; and it runs, answers, and serves what it has.
    for index in all {
        cluster.until_led(&topic, index, |id| id != small).await;
    }
    workload.until_acknowledged(&all, 50).await;
    read_from_the_beginning(&cluster, &topic, &["-e"]).await;
    assert!(cluster.status(small).await.is_ok(), "it runs on");

    fs::remove_file(&ballast).unwrap();
    workload.until_acknowledged(&all, 50).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_no_loss_of_power_for_a_log_that_is_not_synced() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let unsynced = [("min.insync.replicas", "2"), ("flush", "os")];
    let topic = cluster
        .create_topic_with(&client, "orders", 1, &unsynced)
        .await;
    let workload = Workload::start(&client, &topic, &[0], 1024, ProducerConfig::default());
    for _ in 0..2 {
        workload.until_acknowledged(&[0], 100).await;
        // What they wrote is in the page cache, so they have lost nothing and are all that an election needs. Had the machine
        // restarted, none of them could say that, and nobody would lead.
        let all = cluster.ids();
        cluster.kill_together(&all);
        for id in all {
            cluster.spawn(id);
        }
        cluster.until_healthy().await;
        cluster.until_led(&topic, 0, |_| true).await;
    }
    workload.until_acknowledged(&[0], 100).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}

/// Stands before a node's syncs. While there is a file `armed` in the directory of its name, the next sync of a segment fails
/// with EIO, that file goes, and the segment's name is written to `told`; whatever is synced of that segment afterwards succeeds, as
/// Linux has it, which has given up the pages that it could not write, and is told as well.
const FAILING_SYNCS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static char failed[4096];

static void tell(const char *what, const char *path) {
    char at[4096], line[8300];
    snprintf(at, sizeof at, "%s/told", getenv("SYNCS_OF"));
    snprintf(line, sizeof line, "%s %s\n", what, path);
    int fd = open(at, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd >= 0) { if (write(fd, line, strlen(line)) < 0) abort(); close(fd); }
}

static int fails(int fd) {
    char link[64], path[4096], armed[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 4) return 0;
    path[length] = 0;
    if (failed[0]) {
        if (strcmp(failed, path) == 0) tell("again", path);
        return 0;
    }
    snprintf(armed, sizeof armed, "%s/armed", getenv("SYNCS_OF"));
    if (strcmp(path + length - 4, ".wal") != 0 || unlink(armed) != 0) return 0;
    strcpy(failed, path);
    tell("failed", path);
    return 1;
}

int fdatasync(int fd) {
    if (fails(fd)) { errno = EIO; return -1; }
    return syscall(SYS_fdatasync, fd);
}

int fsync(int fd) {
    if (fails(fd)) { errno = EIO; return -1; }
    return syscall(SYS_fsync, fd);
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_sync_fails_says_so_and_ends_and_what_was_acknowledged_is_there() {
    let mut cluster = Cluster::prepare(3).await;
    let Some(library) = preload::library(cluster.dir(), "syncs", FAILING_SYNCS) else {
        println!("NOT TESTED: A SYNC THAT FAILS: there is no C compiler here (cc)");
        return;
    };
    let syncs_of = |dir: &Path, id: NodeId| dir.join(format!("syncs-{id}"));
    let dir = cluster.dir().to_owned();
    for spec in &mut cluster.specs {
        let own = syncs_of(&dir, spec.id);
        fs::create_dir(&own).unwrap();
        spec.environment = vec![
            preload::variable(&library),
            ("SYNCS_OF".to_owned(), own.display().to_string()),
        ];
    }
    cluster.start_all().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let workload = Workload::start(&client, &topic, &[0], 512, ProducerConfig::default());
    let all = cluster.ids();

    // A follower's disk, and then a leader's.
    for leads in [false, true] {
        workload.until_acknowledged(&[0], 100).await;
        cluster.until_isr(&topic, 0, &all).await;
        let leader = cluster.until_led(&topic, 0, |_| true).await;
        let hit = all.iter().find(|id| (**id == leader) == leads).unwrap();
        let own = syncs_of(&dir, *hit);
        fs::write(own.join("armed"), "").unwrap();
        let mut ended = Vec::new();
        until("the node whose sync failed ends", async || {
            ended.extend(cluster.ended());
            match ended.is_empty() {
                true => Err(cluster.spec(*hit).log_text()),
                false => Ok(()),
            }
        })
        .await;
        let log = cluster.spec(*hit).log_text();
        let [(id, status)] = ended[..] else {
            panic!("{ended:?} have ended: {log}");
        };
        assert_eq!((id, status.code()), (*hit, Some(1)), "{log}");
        // The kernel would have said that all is well, had it been asked once more.
        let told = fs::read_to_string(own.join("told")).unwrap();
        let path = told.strip_prefix("failed ").unwrap().trim_end();
        assert!(path.ends_with(".wal") && !path.contains('\n'), "{told}");
        let said = log.lines().rev().take(20).collect::<Vec<_>>().join("\n");
        for words in [path, "Input/output error", "the node stopped by itself"] {
            assert!(said.contains(words), "no {words:?} in {said}");
        }

        // The others go on without it.
        workload.until_acknowledged(&[0], 100).await;
        let inode = || fs::metadata(path).map(|it| it.ino()).unwrap_or_default();
        let not_believed = inode();
        assert_ne!(not_believed, 0, "{path}");
        cluster.spawn(*hit);
        cluster.until_healthy().await;
        cluster.until_isr(&topic, 0, &all).await;
        assert_ne!(inode(), not_believed, "its tail is written to a new file");
    }
    workload.until_acknowledged(&[0], 100).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}
