//! Wall clocks that jump, under real nodes at work: nothing is ever decided by one.

// A test that cannot go on panics, and what it could not test goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;

use quorate::admin::PartitionStatus;
use quorate::client::ProducerConfig;

use support::cluster::Cluster;
use support::preload;
use support::until;
use support::workload::{Workload, check};

const NO_ERRORS: [&str; 0] = [];
const HOUR_S: i64 = 3600;

/// Shifts the wall clock of the program that it is loaded into, and no other clock, by the seconds that stand in the file
/// `CLOCK_SHIFT`: eight bytes, little-endian, which may change at any time.
const SHIFTED_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long long *shift;

__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("CLOCK_SHIFT"), O_RDONLY);
    if (fd < 0) abort();
    void *at = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) abort();
    shift = at;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *t) {
    int r = syscall(SYS_clock_gettime, id, t);
    if (r == 0 && id == CLOCK_REALTIME && shift) t->tv_sec += *shift;
    return r;
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_jumps_moves_no_timeout() {
    let mut cluster = Cluster::prepare(3).await;
    let Some(library) = preload::library(cluster.dir(), "clock", SHIFTED_CLOCK) else {
        println!("NOT TESTED: A WALL CLOCK THAT JUMPS: there is no C compiler here (cc)");
        return;
    };
    let dir = cluster.dir().to_owned();
    let file = |id| dir.join(format!("shift-{id}"));
    // In place: who has mapped the file sees it, and must not find it empty.
    let shift = |id, seconds: i64| {
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(file(id))
            .unwrap();
        file.write_all_at(&seconds.to_le_bytes(), 0).unwrap();
    };
    for spec in &mut cluster.specs {
        shift(spec.id, 0);
        spec.environment = vec![
            preload::variable(&library),
            (
                "CLOCK_SHIFT".to_owned(),
                file(spec.id).display().to_string(),
            ),
        ];
    }
    cluster.start_all().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let all = cluster.ids();
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    cluster.until_isr(&topic, 0, &all).await;
    let partition = async |cluster: &Cluster| -> PartitionStatus {
        let status = cluster.status(leader).await.unwrap();
        status
            .partitions
            .into_iter()
            .find(|it| it.topic == topic)
            .unwrap()
    };
    let before = partition(&cluster).await;
    let workload = Workload::start(&client, &topic, &[0], 512, ProducerConfig::default());
    workload.until_acknowledged(&[0], 100).await;

    // The leader's alone, to and fro; then a follower's; then all of them by as much.
    let follower = all.iter().find(|id| **id != leader).unwrap();
    for (whose, seconds) in [
        (vec![leader], HOUR_S),
        (vec![leader], -HOUR_S),
        (vec![leader, *follower], 2 * HOUR_S),
        (all.clone(), -HOUR_S),
        (all.clone(), 0),
    ] {
        for id in whose {
            shift(id, seconds);
        }
        // More than any timeout that decides something between nodes.
        workload.until_acknowledged(&[0], 500).await;
    }
    let log = cluster.spec(*follower).log_text();
    until("the shift is real: a node is told of it", async || {
        let mut logs = all.iter().map(|id| cluster.spec(*id).log_text());
        match logs.any(|log| log.contains("clock of a node is off")) {
            true => Ok(()),
            false => Err(log.clone()),
        }
    })
    .await;
    let after = partition(&cluster).await;
    assert_eq!(after.leader, Some(leader));
    assert_eq!(
        after.leader_epoch, before.leader_epoch,
        "an election was held"
    );
    assert_eq!(
        after.partition_epoch, before.partition_epoch,
        "the in-sync set changed"
    );
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}
