//! One run: a cluster behind a faulty network, clients at work, faults, and what is to be seen of it in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate::client::{Client, ClientConfig};
use quorate::record::Compression;
use quorate::types::NodeId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::clients::{ProducerSpec, Reading, Shared, ask_for_ends, consume, produce};
use super::history::{Promise, Tally, Violations};
use super::network::{Network, Party};
use super::schedule::{Hand, LinkFault, ProcessFault, Step, Target};
use super::watch::{Leaders, Weight, Weights, tell};
use crate::support::cluster::{Cluster, free_socket};
use crate::support::workload::consume_all;
use crate::support::{PATIENCE, until};

/// How long a node may take to be in the cluster again during a rolling restart, before the next one is stopped all the same:
/// links may be cut.
const ROLLING_PATIENCE: Duration = Duration::from_secs(15);
/// Records that every producer must have acknowledged in every partition for it to be at work again.
const AT_WORK: u64 = 5;
/// The disk that can be filled, in bytes.
const SMALL_DISK: &str = "size=1g";
/// A request of the clients here is given up after this, so that a client whose node was cut off asks another one soon.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub seed: u64,
    pub nodes: u32,
    pub partitions: u32,
    /// Records a second, over all producers.
    pub rate: u32,
    /// Whether one node's disk is a small one that can be filled. Needs the right to mount.
    pub with_full_disk: bool,
}

/// A run under way.
pub struct Run {
    pub cluster: Cluster,
    pub network: Network,
    pub shared: Arc<Shared>,
    pub leaders: Arc<Leaders>,
    settings: Settings,
    client: Client,
    weights: Arc<Weights>,
    at_begin: BTreeMap<NodeId, Weight>,
    disk: Option<SmallDisk>,
    producing: JoinSet<()>,
    consuming: JoinSet<()>,
    watching: JoinSet<()>,
    stop_producing: CancellationToken,
    stop: CancellationToken,
    /// Tells how to do it again, should the run fail.
    _last_words: LastWords,
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    pub all: Tally,
    pub leader: Tally,
    pub violations: Violations,
    pub errors: Vec<(u64, String)>,
    text: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Shown when a test fails.
struct LastWords {
    seed: u64,
    dir: PathBuf,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "chaos failed with seed {}; what happened when is printed above; the nodes' logs and data are kept in {}",
                self.seed,
                self.dir.display()
            );
        }
    }
}

/// Idempotent producers, and one with acks=1, which are told apart by their promise.
fn producers(rate: u32) -> Vec<ProducerSpec> {
    let codecs = [
        (Promise::All, Compression::None),
        (Promise::All, Compression::Lz4),
        (Promise::All, Compression::Zstd),
        (Promise::Leader, Compression::None),
    ];
    let pace = Duration::from_secs(codecs.len() as u64) / rate.max(1);
    (1..)
        .zip(codecs)
        .map(|(id, (promise, compression))| ProducerSpec {
            id,
            promise,
            compression,
            pace,
        })
        .collect()
}

/// Readers that go on for ever, by their number.
const STEADY: [u32; 2] = [101, 102];
const JUMPING: u32 = 103;
const OBSERVER: u32 = 104;

impl Run {
    /// Starts a cluster, each node behind its relay, and all clients.
    pub async fn start(settings: Settings) -> Run {
        let mut cluster = Cluster::prepare(settings.nodes).await;
        cluster.keep_when_failing();
        let mut between = Vec::new();
        let mut controllers = Vec::new();
        for spec in &mut cluster.specs {
            let socket = free_socket();
            let outside = socket.local_addr().unwrap();
            between.push((spec.id, socket, spec.quic));
            controllers.push(format!("{}@{outside}", spec.id));
            spec.advertise = Some(outside);
        }
        for spec in &mut cluster.specs {
            // At most five, and an odd number of them.
            controllers.truncate(if settings.nodes >= 5 { 5 } else { 3 });
            spec.controllers = controllers.join(",");
        }
        let last_words = LastWords {
            seed: settings.seed,
            dir: cluster.dir().to_owned(),
        };
        let disk = settings
            .with_full_disk
            .then(|| SmallDisk::below(&cluster))
            .flatten();
        let network = Network::before(between, settings.seed);
        for id in cluster.ids() {
            spawn(&mut cluster, &network, id);
        }
        cluster.until_healthy().await;
        let client = cluster.client().await;
        let configs = [("min.insync.replicas", "2"), ("segment.bytes", "1048576")];
        let topic = cluster
            .create_topic_with(&client, "chaos", settings.partitions, &configs)
            .await;
        let shared = Arc::new(Shared::new(topic, settings.partitions));
        let mut run = Run {
            at_begin: Weights::now(&network.pids()),
            leaders: Arc::default(),
            weights: Arc::default(),
            producing: JoinSet::new(),
            consuming: JoinSet::new(),
            watching: JoinSet::new(),
            stop_producing: CancellationToken::new(),
            stop: CancellationToken::new(),
            _last_words: last_words,
            settings,
            cluster,
            network,
            shared,
            client,
            disk,
        };
        run.start_clients().await;
        run
    }

    /// Every client has connections of its own.
    async fn client(&self) -> Client {
        let config = ClientConfig {
            request_timeout: REQUEST_TIMEOUT,
            ..self.cluster.client_config()
        };
        self.cluster.client_with(config).await
    }

    async fn start_clients(&mut self) {
        for spec in producers(self.settings.rate) {
            // With the defaults, as an application would have them.
            let client = self.cluster.client().await;
            let stop = self.stop_producing.clone();
            self.producing
                .spawn(produce(client, spec, self.shared.clone(), stop));
        }
        let seed = self.settings.seed;
        let steady = STEADY.map(|reader| (reader, Reading::Steady));
        for (reader, reading) in steady
            .into_iter()
            .chain([(JUMPING, Reading::Again { seed })])
        {
            let client = self.cluster.client().await;
            let (shared, stop) = (self.shared.clone(), self.stop.clone());
            self.consuming
                .spawn(consume(client, reader, reading, shared, stop));
        }
        let stop = || self.stop.clone();
        let shared = || self.shared.clone();
        let asking = ask_for_ends(self.client().await, OBSERVER, shared(), stop());
        let following = self
            .leaders
            .clone()
            .follow(self.client().await, shared(), stop());
        let weighing = self.weights.clone().follow(self.network.pids(), stop());
        let telling = tell(shared(), self.leaders.clone(), stop());
        self.watching.spawn(asking);
        self.watching.spawn(following);
        self.watching.spawn(weighing);
        self.watching.spawn(telling);
    }

    /// Both hands at work for this long. Everything is undone when it returns, and not yet healed.
    pub async fn storm(&mut self, processes: &mut Hand, links: &mut Hand, length: Duration) {
        let end = Instant::now() + length;
        let (shared, leaders) = (self.shared.clone(), self.leaders.clone());
        let mut link_hand = LinkHand {
            network: &self.network,
            shared: &shared,
            leaders: &leaders,
            nodes: self.cluster.ids(),
        };
        let mut process_hand = ProcessHand {
            cluster: &mut self.cluster,
            network: &self.network,
            shared: &shared,
            leaders: &leaders,
            disk: self.disk.as_ref(),
        };
        tokio::join!(
            async {
                while let Some(step) = due(processes.next_process_fault(), end).await {
                    process_hand.carry_out(step, processes, end).await;
                }
            },
            async {
                while let Some(step) = due(links.next_link_fault(), end).await {
                    link_hand.carry_out(step, links, end).await;
                }
            },
        );
    }

    /// Heals everything and waits until all is well: every node in the cluster, every producer at work in every partition,
    /// every replica in sync. Ends the run where something was seen that must never be.
    pub async fn calm(&mut self) {
        let begin = Instant::now();
        self.network.heal();
        self.restart_what_ended();
        self.cluster.until_healthy().await;
        let healthy = begin.elapsed();
        let all: Vec<u32> = producers(self.settings.rate)
            .into_iter()
            .filter(|spec| spec.promise == Promise::All)
            .map(|spec| spec.id)
            .collect();
        let counts = |shared: &Shared| -> BTreeMap<(u32, u32), u64> {
            let history = shared.history();
            let pairs = all
                .iter()
                .flat_map(|producer| (0..shared.partitions).map(|index| (*producer, index)));
            pairs
                .map(|(producer, index)| {
                    let count = history.acknowledged_count(producer, index);
                    ((producer, index), count)
                })
                .collect()
        };
        let before = counts(&self.shared);
        until("every producer is at work in every partition", async || {
            let now = counts(&self.shared);
            for (pair, count) in &before {
                let moved = now[pair] - count;
                if moved < AT_WORK {
                    let (producer, partition) = pair;
                    return Err(format!(
                        "producer {producer} has {moved} more acknowledged in partition {partition}"
                    ));
                }
            }
            Ok(())
        })
        .await;
        let at_work = begin.elapsed();
        let ids = self.cluster.ids();
        for index in 0..self.shared.partitions {
            self.cluster
                .until_isr(&self.shared.topic, index, &ids)
                .await;
        }
        self.shared.journal.note(&format!(
            "calm: healthy after {healthy:.1?}, at work after {at_work:.1?}, all in sync after {:.1?}",
            begin.elapsed()
        ));
        let history = self.shared.history();
        assert!(history.violations().is_empty(), "{}", history.violations());
    }

    /// A node that ends by itself is a failure, unless its disk is full.
    fn restart_what_ended(&mut self) {
        for (id, status) in self.cluster.ended() {
            let filled = self.disk.as_ref().is_some_and(|disk| disk.node == id);
            assert!(filled, "node {id} has stopped by itself: {status}");
            let line = format!("node {id} had stopped by itself, its disk full: {status}");
            self.shared.journal.note(&line);
            spawn(&mut self.cluster, &self.network, id);
        }
    }

    /// Kills all nodes at once and starts them again, with `down` in between.
    pub async fn kill_all(&mut self, down: Duration) {
        let (shared, leaders) = (self.shared.clone(), self.leaders.clone());
        let mut hand = ProcessHand {
            cluster: &mut self.cluster,
            network: &self.network,
            shared: &shared,
            leaders: &leaders,
            disk: None,
        };
        let everything = hand.cluster.ids();
        let step = Step {
            pause: Duration::ZERO,
            fault: ProcessFault::KillAll,
            hold: down,
        };
        hand.kill(&everything, step, Instant::now() + down).await;
    }

    /// kill -9 of a node, noted as a fault that lasts until it is started again.
    pub fn kill(&mut self, id: NodeId) {
        kill(&mut self.cluster, &self.network, id);
    }

    pub fn spawn(&mut self, id: NodeId) {
        spawn(&mut self.cluster, &self.network, id);
    }

    /// SIGTERM to one node after the other, each started again and waited for.
    pub async fn roll(&mut self) {
        for id in self.cluster.ids() {
            self.shared
                .journal
                .note(&format!("clean stop of node {id}"));
            let begin = Instant::now();
            let ended = stop(&mut self.cluster, &self.network, id).await;
            assert!(ended.success(), "node {id}: {ended}");
            self.shared.journal.fault("rolling restart", begin);
            spawn(&mut self.cluster, &self.network, id);
            self.cluster.until_healthy().await;
            let ids = self.cluster.ids();
            for index in 0..self.shared.partitions {
                let topic = self.shared.topic.clone();
                self.cluster.until_isr(&topic, index, &ids).await;
            }
        }
    }

    /// Stops the clients and holds what they saw against what is there.
    pub async fn finish(mut self) -> Report {
        let shared = self.shared.clone();
        let before = Instant::now();
        self.stop_producing.cancel();
        let ended = async {
            while self
                .producing
                .join_next()
                .await
                .transpose()
                .unwrap()
                .is_some()
            {}
        };
        tokio::time::timeout(3 * PATIENCE, ended)
            .await
            .expect("every record is acknowledged or has failed");
        let settled = before.elapsed();
        let client = self.cluster.client().await;
        let mut logs = consume_all(&client, &shared.topic).await;
        for index in 0..shared.partitions {
            logs.entry(index).or_default();
        }
        let ends: BTreeMap<u32, u64> = logs
            .iter()
            .map(|(index, log)| (*index, log.last().map_or(0, |(offset, _)| offset + 1)))
            .collect();
        until("the consumers have read everything", async || {
            let history = shared.history();
            for reader in STEADY {
                for (index, end) in &ends {
                    let at = history.position(reader, *index);
                    if at < *end {
                        return Err(format!("reader {reader} is at {at} of {end} in {index}"));
                    }
                }
            }
            Ok(())
        })
        .await;
        self.stop.cancel();
        while self
            .consuming
            .join_next()
            .await
            .transpose()
            .unwrap()
            .is_some()
        {}
        while self
            .watching
            .join_next()
            .await
            .transpose()
            .unwrap()
            .is_some()
        {}
        let (all, leader) = shared.history().close(&logs);
        self.cluster.until_digests_agree(&shared.topic, &ends).await;
        let violations = shared.history().violations().clone();
        let errors = shared.journal.errors();
        let text = self.text(all, leader, settled);
        Report {
            all,
            leader,
            violations,
            errors,
            text,
        }
    }

    fn text(&self, all: Tally, leader: Tally, settled: Duration) -> String {
        let journal = &self.shared.journal;
        let mut lines = vec![
            format!("seed {}", self.settings.seed),
            format!("acks=all, idempotent: {all:?}"),
            format!("acks=1: {leader:?}"),
            format!(
                "reads {}, elections {}, ISR changes {}, datagrams cut off or lost {}",
                self.shared.history().reads(),
                self.leaders.elections(),
                self.leaders.isr_changes(),
                self.network.dropped(),
            ),
            format!("after the producers' end everything was settled within {settled:.1?}"),
            "the digests of all replicas agree".to_owned(),
        ];
        if let Some(gap) = journal.longest_gap() {
            lines.push(format!(
                "longest gap between acknowledgements: {:.1?}, in partition {} from {}",
                gap.length(),
                gap.partition,
                journal.at(gap.begin)
            ));
        }
        for (kind, (count, longest)) in journal.by_kind() {
            lines.push(format!(
                "  {count:4} × {kind}: longest gap meanwhile {longest:.1?}"
            ));
        }
        let now = Weights::now(&self.network.pids());
        for (node, highest) in self.weights.highest() {
            let show = |weight: Option<&Weight>| weight.copied().unwrap_or_default().to_string();
            lines.push(format!(
                "node {node}: at the begin {}; at most {highest}; at the end {}",
                show(self.at_begin.get(&node)),
                show(now.get(&node))
            ));
        }
        for (count, error) in journal.errors() {
            lines.push(format!("  {count:6} × {error}"));
        }
        lines.join("\n")
    }
}

fn spawn(cluster: &mut Cluster, network: &Network, id: NodeId) {
    cluster.spawn(id);
    let pid = cluster.pid(id);
    network.pids().lock().unwrap().insert(id, pid);
}

fn kill(cluster: &mut Cluster, network: &Network, id: NodeId) {
    network.pids().lock().unwrap().remove(&id);
    cluster.kill(id);
}

async fn stop(cluster: &mut Cluster, network: &Network, id: NodeId) -> std::process::ExitStatus {
    let ended = cluster.stop(id).await;
    network.pids().lock().unwrap().remove(&id);
    ended
}

/// Waits for the step's time. `None` where the storm is over before.
async fn due<F>(step: Step<F>, end: Instant) -> Option<Step<F>> {
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
struct ProcessHand<'a> {
    cluster: &'a mut Cluster,
    network: &'a Network,
    shared: &'a Shared,
    leaders: &'a Leaders,
    disk: Option<&'a SmallDisk>,
}

impl ProcessHand<'_> {
    async fn carry_out(&mut self, step: Step<ProcessFault>, hand: &mut Hand, end: Instant) {
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

    async fn kill(&mut self, nodes: &[NodeId], step: Step<ProcessFault>, end: Instant) {
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
struct LinkHand<'a> {
    network: &'a Network,
    shared: &'a Shared,
    leaders: &'a Leaders,
    nodes: Vec<NodeId>,
}

impl LinkHand<'_> {
    async fn carry_out(&mut self, step: Step<LinkFault>, hand: &mut Hand, end: Instant) {
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
struct SmallDisk {
    node: NodeId,
    dir: PathBuf,
}

impl SmallDisk {
    /// `None`, loudly, where this user may not mount.
    fn below(cluster: &Cluster) -> Option<SmallDisk> {
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
