//! One run: a cluster behind a faulty network, clients at work, faults, and what is to be seen of it in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate::client::{Client, ClientConfig};
use quorate::record::Compression;
use quorate::types::{NodeId, TopicName};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::clients::{ProducerSpec, Reading, Shared, ask_for_ends, consume, produce};
use super::hands::{LinkHand, ProcessHand, SmallDisk, due, kill, spawn, stop};
use super::history::{Promise, Tally, Violations};
use super::ledger::{Ends, Log};
use super::network::Network;
use super::schedule::{Hand, ProcessFault, Step};
use super::transactors::{
    LEDGER, LEDGER_PARTITIONS, Reach, Task, Transactor, position, read_committed, read_whole,
};
use super::watch::{Leaders, Weight, Weights, tell};
use crate::support::cluster::{Cluster, free_socket};
use crate::support::workload::consume_all;
use crate::support::{PATIENCE, until};

/// Records that every producer must have acknowledged in every partition for it to be at work again.
const AT_WORK: u64 = 5;
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
    /// The topic of the transactions.
    ledger: TopicName,
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
    pub ends: Ends,
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
/// Those who read what is committed.
const COMMITTED: [u32; 2] = [105, 106];
/// Producers of transactions, by their number.
const WRITERS: [u32; 3] = [201, 202, 203];
const CARRIERS: [u32; 1] = [211];
/// Transactions that each must have committed to be at work again.
const TRANSACTIONS_AT_WORK: u64 = 2;

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
        let ledger = cluster.create_topic_with(&client, LEDGER, LEDGER_PARTITIONS, &configs);
        let ledger = ledger.await;
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
            ledger,
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
        self.start_transactions();
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

    fn start_transactions(&mut self) {
        let writers = WRITERS.map(|writer| (writer, Task::Write));
        let carriers = CARRIERS.map(|carrier| (carrier, self.carrying(carrier)));
        for (producer, task) in writers.into_iter().chain(carriers) {
            let seed = self.settings.seed;
            let transactor =
                Transactor::new(producer, task, self.reach(), seed, self.shared.clone());
            self.producing
                .spawn(transactor.run(self.stop_producing.clone()));
        }
        for reader in COMMITTED {
            let (shared, stop) = (self.shared.clone(), self.stop.clone());
            self.consuming
                .spawn(read_committed(self.reach(), reader, shared, stop));
        }
    }

    fn carrying(&self, carrier: u32) -> Task {
        Task::Carry {
            group: format!("carrier-{carrier}"),
            topic: self.shared.topic.to_string(),
        }
    }

    fn reach(&self) -> Reach {
        let nodes = self.cluster.specs.iter();
        let nodes: Vec<(i32, SocketAddr)> = nodes
            .map(|spec| (spec.id.as_broker_id(), spec.kafka))
            .collect();
        Reach::new(nodes)
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
        self.until_transactions_at_work().await;
        let at_work = begin.elapsed();
        let ids = self.cluster.ids();
        for index in 0..self.shared.partitions {
            self.cluster
                .until_isr(&self.shared.topic, index, &ids)
                .await;
        }
        for index in 0..LEDGER_PARTITIONS {
            self.cluster.until_isr(&self.ledger, index, &ids).await;
        }
        self.shared.journal.note(&format!(
            "calm: healthy after {healthy:.1?}, at work after {at_work:.1?}, all in sync after {:.1?}",
            begin.elapsed()
        ));
        let history = self.shared.history();
        assert!(history.violations().is_empty(), "{}", history.violations());
        drop(history);
        let ledger = self.shared.ledger();
        assert!(ledger.violations().is_empty(), "{}", ledger.violations());
    }

    async fn until_transactions_at_work(&self) {
        let all = || WRITERS.into_iter().chain(CARRIERS);
        let counts = || -> Vec<u64> {
            let ledger = self.shared.ledger();
            all().map(|producer| ledger.committed(producer)).collect()
        };
        let before = counts();
        until("every producer of transactions is at work", async || {
            for ((producer, before), now) in all().zip(&before).zip(counts()) {
                if now < before + TRANSACTIONS_AT_WORK {
                    return Err(format!("producer {producer}: {now}, was {before}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Every transaction is ended; its readers have read all. Holds against each other what they saw and what is there.
    async fn close_ledger(&self) -> (Ends, BTreeMap<u32, u64>) {
        let mut reach = self.reach();
        let mut logs: BTreeMap<u32, Log> = BTreeMap::new();
        let mut ends = BTreeMap::new();
        for index in 0..LEDGER_PARTITIONS {
            let read = until("no transaction is open", async || {
                read_whole(&mut reach, index).await
            });
            let (log, end) = read.await;
            logs.insert(index, log);
            ends.insert(index, u64::try_from(end).unwrap());
        }
        until("the readers of what is committed are done", async || {
            let ledger = self.shared.ledger();
            for reader in COMMITTED {
                for (index, end) in &ends {
                    let at = ledger.position(reader, *index);
                    if at < *end as i64 {
                        return Err(format!("reader {reader} is at {at} of {end} in {index}"));
                    }
                }
            }
            Ok(())
        })
        .await;
        let mut carried = BTreeMap::new();
        for carrier in CARRIERS {
            let Task::Carry { group, topic } = self.carrying(carrier) else {
                continue;
            };
            let at = position(&mut reach, &group, &topic).await;
            carried.insert(
                carrier,
                at.unwrap_or_else(|error| panic!("{group}: {error}")),
            );
        }
        let found = self.shared.ledger().close(&logs, &carried);
        (found, ends)
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
        let (found, ledger_ends) = self.close_ledger().await;
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
        self.cluster
            .until_digests_agree(&self.ledger, &ledger_ends)
            .await;
        let mut violations = shared.history().violations().clone();
        violations.append(shared.ledger().violations());
        let errors = shared.journal.errors();
        let text = self.text(all, leader, found, settled);
        Report {
            all,
            leader,
            ends: found,
            violations,
            errors,
            text,
        }
    }

    fn text(&self, all: Tally, leader: Tally, ends: Ends, settled: Duration) -> String {
        let journal = &self.shared.journal;
        let mut lines = vec![
            format!("seed {}", self.settings.seed),
            format!("acks=all, idempotent: {all:?}"),
            format!("acks=1: {leader:?}"),
            format!(
                "transactions: {ends:?}, reads of what is committed {}",
                self.shared.ledger().reads()
            ),
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
