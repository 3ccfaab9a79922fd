//! Who carries out faults: one hand for processes, one for links, and a small disk that can be filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use quorate::types::NodeId;

use super::clients::Shared;
use super::network::{Network, Party};
use super::schedule::{Hand, LinkFault, ProcessFault, Step, Target};
use super::watch::Leaders;
use crate::support::cluster::Cluster;

/// How long a node may take to be in the cluster again during a rolling restart, before the next one is stopped all the same:
/// links may be cut.
const ROLLING_PATIENCE: Duration = Duration::from_secs(15);
/// The disk that can be filled, in bytes.
const SMALL_DISK: &str = "size=1g";

pub fn spawn(cluster: &mut Cluster, network: &Network, id: NodeId) {
    cluster.spawn(id);
    let pid = cluster.pid(id);
    network.pids().lock().unwrap().insert(id, pid);
}

pub fn kill(cluster: &mut Cluster, network: &Network, id: NodeId) {
    network.pids().lock().unwrap().remove(&id);
    cluster.kill(id);
}

pub async fn stop(
    cluster: &mut Cluster,
    network: &Network,
    id: NodeId,
) -> std::process::ExitStatus {
    let ended = cluster.stop(id).await;
    network.pids().lock().unwrap().remove(&id);
    ended
}

/// Waits for the step's time. `None` where the storm is over before.
pub async fn due<F>(step: Step<F>, end: Instant) -> Option<Step<F>> {
    let at = Instant::now() + step.pause;
    tokio::time::sleep_until(at.min(end).into()).await;
    (at < end).then_some(step)
}

async fn hold(length: Duration, end: Instant) {
    let until = (Instant::now() + length).min(end);
    tokio::time::sleep_until(until.into()).await;
}

fn aim(leaders: &Leaders, target: Target, hand: &mut Hand, among: &[NodeId]) -> NodeId {
    let meant = match target {
        Target::Node(node) => Some(node),
        Target::Leader(partition) => leaders.of(partition),
        Target::Controller => leaders.controller(),
    };
    let meant = meant.filter(|node| among.contains(node));
    meant.unwrap_or_else(|| hand.any(among))
}

/// Carries out faults of processes. When it is done with one, all nodes run.
pub struct ProcessHand<'a> {
    pub cluster: &'a mut Cluster,
    pub network: &'a Network,
    pub shared: &'a Shared,
    pub leaders: &'a Leaders,
    pub disk: Option<&'a SmallDisk>,
}

impl ProcessHand<'_> {
    pub async fn carry_out(&mut self, step: Step<ProcessFault>, hand: &mut Hand, end: Instant) {
        for (id, status) in self.cluster.ended() {
            let filled = self.disk.is_some_and(|disk| disk.node == id);
            assert!(filled, "node {id} has stopped by itself: {status}");
            let line = format!("node {id} had stopped by itself, its disk full: {status}");
            self.shared.journal.note(&line);
            spawn(self.cluster, self.network, id);
        }
        let all = self.cluster.ids();
        let mut aim = |target| aim(self.leaders, target, hand, &all);
        match step.fault {
            ProcessFault::Kill(target) => {
                let node = aim(target);
                self.kill(&[node], step, end).await;
            }
            ProcessFault::KillTwo(target) => {
                let node = aim(target);
                let others: Vec<_> = all.iter().copied().filter(|id| *id != node).collect();
                let other = hand.any(&others);
                self.kill(&[node, other], step, end).await;
            }
            ProcessFault::KillAll => self.kill(&all, step, end).await,
            ProcessFault::Freeze(target) => {
                let node = aim(target);
                let begin = Instant::now();
                self.note(&step, &format!("SIGSTOP to node {node} ({target})"));
                self.cluster.freeze(node);
                hold(step.hold, end).await;
                self.cluster.thaw(node);
                self.shared.journal.note(&format!("SIGCONT to node {node}"));
                self.shared.journal.fault(step.fault.kind(), begin);
            }
            ProcessFault::Stop(target) => {
                let node = aim(target);
                let begin = Instant::now();
                self.note(&step, &format!("clean stop of node {node} ({target})"));
                self.stop(node).await;
                hold(step.hold, end).await;
                self.spawn(node);
                self.shared.journal.fault(step.fault.kind(), begin);
            }
            ProcessFault::Rolling => {
                let begin = Instant::now();
                for id in all {
                    self.shared
                        .journal
                        .note(&format!("rolling restart: clean stop of node {id}"));
                    self.stop(id).await;
                    self.spawn(id);
                    self.until_registered(id).await;
                }
                self.shared.journal.fault(step.fault.kind(), begin);
            }
            ProcessFault::FillDisk => {
                let Some(disk) = self.disk else { return };
                let begin = Instant::now();
                let free = disk.fill();
                self.note(
                    &step,
                    &format!(
                        "no room on node {}'s disk ({free} bytes were free)",
                        disk.node
                    ),
                );
                hold(step.hold, end).await;
                disk.clear();
                self.shared
                    .journal
                    .note(&format!("room on node {}'s disk", disk.node));
                self.shared.journal.fault(step.fault.kind(), begin);
            }
        }
    }

    fn note(&self, step: &Step<ProcessFault>, what: &str) {
        self.shared
            .journal
            .note(&format!("{what}, for {:.1?}", step.hold));
    }

    pub async fn kill(&mut self, nodes: &[NodeId], step: Step<ProcessFault>, end: Instant) {
        let names: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
        let begin = Instant::now();
        self.note(&step, &format!("kill -9 of {}", names.join(" ")));
        {
            let pids = self.network.pids();
            let mut pids = pids.lock().unwrap();
            for id in nodes {
                pids.remove(id);
            }
        }
        self.cluster.kill_together(nodes);
        hold(step.hold, end).await;
        for id in nodes {
            self.spawn(*id);
        }
        self.shared
            .journal
            .note(&format!("started {}", names.join(" ")));
        self.shared.journal.fault(step.fault.kind(), begin);
    }

    async fn stop(&mut self, id: NodeId) {
        let begin = Instant::now();
        let ended = stop(self.cluster, self.network, id).await;
        assert!(ended.success(), "node {id}: {ended}");
        let took = begin.elapsed();
        self.shared
            .journal
            .note(&format!("node {id} ended within {took:.1?}"));
    }

    fn spawn(&mut self, id: NodeId) {
        spawn(self.cluster, self.network, id);
    }

    async fn until_registered(&self, id: NodeId) {
        let begin = Instant::now();
        while begin.elapsed() < ROLLING_PATIENCE {
            let status = self.cluster.status(id).await;
            if status.is_ok_and(|status| status.registered && status.hears_majority) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Carries out faults of links. When it is done with one, all links are whole.
pub struct LinkHand<'a> {
    pub network: &'a Network,
    pub shared: &'a Shared,
    pub leaders: &'a Leaders,
    pub nodes: Vec<NodeId>,
}

impl LinkHand<'_> {
    pub async fn carry_out(&mut self, step: Step<LinkFault>, hand: &mut Hand, end: Instant) {
        let begin = Instant::now();
        let nodes = self.nodes.clone();
        let others = |node: NodeId| -> Vec<NodeId> {
            nodes.iter().copied().filter(|id| *id != node).collect()
        };
        let cut = |from: NodeId, to: NodeId| self.network.cut(Party::Node(from), Party::Node(to));
        let what = match step.fault {
            LinkFault::CutPair(target) => {
                let node = aim(self.leaders, target, hand, &nodes);
                let other = hand.any(&others(node));
                cut(node, other);
                cut(other, node);
                format!("cut between node {node} ({target}) and node {other}")
            }
            LinkFault::CutOneWay(target) => {
                let node = aim(self.leaders, target, hand, &nodes);
                let other = hand.any(&others(node));
                cut(node, other);
                format!("node {other} does not hear node {node} ({target})")
            }
            LinkFault::Mute(target) => {
                let node = aim(self.leaders, target, hand, &nodes);
                others(node).into_iter().for_each(|other| cut(node, other));
                format!("no node hears node {node} ({target})")
            }
            LinkFault::Deaf(target) => {
                let node = aim(self.leaders, target, hand, &nodes);
                others(node).into_iter().for_each(|other| cut(other, node));
                format!("node {node} ({target}) hears no node")
            }
            LinkFault::Isolate(target) | LinkFault::CutOff(target) => {
                let node = aim(self.leaders, target, hand, &nodes);
                for other in others(node) {
                    cut(node, other);
                    cut(other, node);
                }
                let clients = matches!(step.fault, LinkFault::CutOff(_));
                if clients {
                    self.network.cut(Party::Node(node), Party::Clients);
                    self.network.cut(Party::Clients, Party::Node(node));
                }
                let who = if clients {
                    "everybody"
                } else {
                    "the other nodes"
                };
                format!("cut between node {node} ({target}) and {who}")
            }
            LinkFault::Loss(per_mille) => {
                self.network.set_loss(per_mille);
                format!("{} % of all datagrams lost", f64::from(per_mille) / 10.0)
            }
        };
        self.shared
            .journal
            .note(&format!("{what}, for {:.1?}", step.hold));
        hold(step.hold, end).await;
        self.network.heal();
        self.shared.journal.note("the links are whole");
        self.shared.journal.fault(step.fault.kind(), begin);
    }
}

/// A small disk of its own under the last node's data directory.
pub struct SmallDisk {
    pub node: NodeId,
    pub dir: PathBuf,
}

impl SmallDisk {
    /// `None`, loudly, where this user may not mount.
    pub fn below(cluster: &Cluster) -> Option<SmallDisk> {
        let spec = cluster.specs.last()?;
        fs::create_dir(&spec.data_dir).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"])
            .arg(&spec.data_dir)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk {
                node: spec.id,
                dir: spec.data_dir.clone(),
            }),
            other => {
                println!(
                    "!!! FULL DISKS ARE NOT TESTED: cannot mount a small file system: {other:?}"
                );
                None
            }
        }
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    /// Takes all the room there is. Returns how much that was, in bytes.
    fn fill(&self) -> u64 {
        let mut file = File::create(self.ballast()).unwrap();
        let mut size = 1 << 20;
        let mut free = 0;
        while size > 0 {
            match file.write(&vec![0; size]) {
                Ok(written) if written > 0 => free += written as u64,
                _ => size /= 16,
            }
        }
        free
    }

    fn clear(&self) {
        // It is there: `fill` made it.
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a node may run yet.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}
