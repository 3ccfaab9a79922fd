//! Looking on: who leads, what the processes use, how it goes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate::client::Client;
use quorate::types::{NodeId, PartitionIndex};
use tokio_util::sync::CancellationToken;

use super::clients::Shared;
use super::network::Pids;
use crate::support::chain;

/// Between two looks at who leads.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Between two looks at the processes.
const WEIGH_AGAIN: Duration = Duration::from_secs(1);
/// Between two lines about how it goes.
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// The cluster as a client sees it.
#[derive(Debug, Default)]
struct Seen {
    controller: Option<NodeId>,
    leaders: BTreeMap<u32, Option<NodeId>>,
    epochs: BTreeMap<u32, i32>,
    isr: BTreeMap<u32, Vec<NodeId>>,
    elections: u64,
    isr_changes: u64,
}

/// Follows who leads what.
#[derive(Debug, Default)]
pub struct Leaders(Mutex<Seen>);

impl Leaders {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn of(&self, partition: u32) -> Option<NodeId> {
        self.seen().leaders.get(&partition).copied().flatten()
    }

    pub fn controller(&self) -> Option<NodeId> {
        self.seen().controller
    }

    /// Leader epochs that began, over all partitions.
    pub fn elections(&self) -> u64 {
        self.seen().elections
    }

    /// Changes of in-sync sets that were seen; those between two looks are missed.
    pub fn isr_changes(&self) -> u64 {
        self.seen().isr_changes
    }

    pub async fn follow(
        self: Arc<Self>,
        client: Client,
        shared: Arc<Shared>,
        stop: CancellationToken,
    ) {
        while !stop.is_cancelled() {
            match client.refresh_all().await {
                Ok(view) => {
                    let news = self.look(&view, &shared);
                    for line in news {
                        shared.journal.note(&line);
                    }
                }
                Err(error) => shared.journal.error("the watcher", &chain(&error)),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn look(&self, view: &quorate::client::ClusterView, shared: &Shared) -> Vec<String> {
        let mut seen = self.seen();
        let mut news = Vec::new();
        if seen.controller != view.controller {
            if let Some(node) = view.controller {
                news.push(format!("node {node} is the active controller"));
            }
            seen.controller = view.controller;
        }
        for index in 0..shared.partitions {
            let Some(partition) = view.partition(&shared.topic, PartitionIndex(index)) else {
                continue;
            };
            let epoch = partition.leader_epoch;
            let before = seen.epochs.insert(index, epoch);
            let led = seen.leaders.insert(index, partition.leader).flatten();
            let mut isr = partition.isr.clone();
            isr.sort();
            let was = seen.isr.insert(index, isr.clone());
            if let Some(before) = before {
                seen.elections += u64::try_from(epoch - before).unwrap_or(0);
                seen.isr_changes += u64::from(was.as_ref() != Some(&isr));
            }
            if before != Some(epoch) || led != partition.leader || was.as_ref() != Some(&isr) {
                let leader = partition
                    .leader
                    .map_or("nobody".to_owned(), |node| format!("node {node}"));
                let isr: Vec<String> = isr.iter().map(NodeId::to_string).collect();
                news.push(format!(
                    "partition {index}: {leader} leads in epoch {epoch}, ISR {}",
                    isr.join(" ")
                ));
            }
        }
        news
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weight {
    pub resident_bytes: u64,
    pub files: usize,
    pub threads: u64,
}

impl Weight {
    fn of(pid: u32) -> Option<Weight> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        Some(Weight {
            resident_bytes: field("VmRSS:")? << 10,
            files: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
            threads: field("Threads:")?,
        })
    }

    fn max(self, other: Weight) -> Weight {
        Weight {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            files: self.files.max(other.files),
            threads: self.threads.max(other.threads),
        }
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.resident_bytes >> 20;
        write!(
            f,
            "{mib} MiB, {} files, {} threads",
            self.files, self.threads
        )
    }
}

/// What the nodes' processes hold at most.
#[derive(Debug, Default)]
pub struct Weights(Mutex<BTreeMap<NodeId, Weight>>);

impl Weights {
    /// Every running node now.
    pub fn now(pids: &Pids) -> BTreeMap<NodeId, Weight> {
        let pids = pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        pids.into_iter()
            .filter_map(|(node, pid)| Some((node, Weight::of(pid)?)))
            .collect()
    }

    pub fn highest(&self) -> BTreeMap<NodeId, Weight> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub async fn follow(self: Arc<Self>, pids: Pids, stop: CancellationToken) {
        while !stop.is_cancelled() {
            for (node, weight) in Weights::now(&pids) {
                let mut highest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let own = highest.entry(node).or_default();
                *own = own.max(weight);
            }
            tokio::time::sleep(WEIGH_AGAIN).await;
        }
    }
}

/// A line now and then.
pub async fn tell(shared: Arc<Shared>, leaders: Arc<Leaders>, stop: CancellationToken) {
    let begin = Instant::now();
    let mut before = 0;
    while !stop.is_cancelled() {
        tokio::time::sleep(TELL_AGAIN).await;
        let acknowledged = shared.acknowledged.load(Ordering::Relaxed);
        let rate = (acknowledged - before) as f64 / TELL_AGAIN.as_secs_f64();
        before = acknowledged;
        let reads = shared.history().reads();
        shared.journal.note(&format!(
            "--- {:.0} s: produced {}, acknowledged {acknowledged} ({rate:.0}/s), failed {}, read {reads}, faults {}, elections {}, ISR changes {}, longest gap {:.1?}",
            begin.elapsed().as_secs_f64(),
            shared.produced.load(Ordering::Relaxed),
            shared.failed.load(Ordering::Relaxed),
            shared.journal.faults(),
            leaders.elections(),
            leaders.isr_changes(),
            shared.journal.longest_gap().map_or(Duration::ZERO, |gap| gap.length()),
        ));
    }
}
