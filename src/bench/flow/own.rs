//! A run with a cluster of its own: three nodes on this machine, whose links to each other are as bad as was asked for. The client
//! sits beside the leader.

use std::path::Path;
use std::time::Duration;

use quinn::Connection;
use tokio_util::sync::CancellationToken;

use super::course::{self, Teller};
use super::figures::{Figures, digits};
use super::latencies::Latencies;
use super::settings::{Cell, Settings, flush_name};
use super::{Run, single};
use crate::admin::{AdminRequest, NodeStatus, ask};
use crate::bench::BenchError;
use crate::bench::local::{
    self, ASK_EVERY, Agreement, Cast, Folder, NodePlan, Processes, Watchers, Wishes, compare,
    load_identity, start_up,
};
use crate::bench::records::{Load, LoadOptions, Produced, read_all};
use crate::bench::usage::Usage;
use crate::broker::LinkDirection;
use crate::client::{Acks, Client, NewTopic};
use crate::transport::{Alpn, Dialled, ImpairmentCounts, PeerAddress, dial};
use crate::types::TopicName;

/// How long replicas may take to have everything, once their links are well again.
const SETTLE: Duration = Duration::from_secs(120);
const MIB: f64 = (1 << 20) as f64;

/// One run in a folder of its own, which goes again unless it is to be kept, or something is wrong with the records.
pub(super) async fn run(
    settings: &Settings,
    cell: &Cell,
    run: u32,
    dir: &Path,
    stop: &CancellationToken,
    teller: &mut Teller<'_>,
) -> Result<Run, BenchError> {
    let mut figures = Figures::new(settings, cell, run)?;
    // A node that is told nothing has the default.
    let congestion = cell.congestion.unwrap_or_default();
    figures.congestion = Some(congestion.name().to_owned());
    figures.nodes = Some(settings.nodes);
    figures.rf = Some(settings.replicas());
    figures.min_insync_replicas = Some(settings.min_insync());
    figures.partitions = Some(settings.partitions.unwrap_or(1));
    teller.says("starting nodes", 0.0);
    let mut folder = open_folder(dir, settings, cell, figures.seed)?;
    let mut ran = Run {
        figures,
        ..Run::default()
    };
    let outcome = async {
        let mut processes = Processes::start(&mut folder)?;
        let played = tokio::select! {
            biased;
            () = stop.cancelled() => Err(BenchError::Interrupted),
            played = perform(settings, cell, &mut folder, &mut processes, &mut ran, teller) => played,
        };
        processes.kill_all().await;
        played
    }
    .await;
    let is_well = match &outcome {
        Ok(()) => ran.figures.is_sound(),
        Err(error) => matches!(error, BenchError::Interrupted),
    };
    if let Some(told) = folder.close(is_well) {
        teller.notes(&told);
    }
    outcome?;
    Ok(ran)
}

fn open_folder(
    dir: &Path,
    settings: &Settings,
    cell: &Cell,
    seed: u64,
) -> Result<Folder, BenchError> {
    let mut flags = vec![
        // A leadership that goes back to the preferred replica by itself would be an election that nobody asked for.
        "--auto-leader-rebalance-enable".to_owned(),
        "false".to_owned(),
    ];
    if let Some(congestion) = cell.congestion {
        flags.extend(["--congestion".to_owned(), congestion.name().to_owned()]);
    }
    let wishes = Wishes {
        name: "bench",
        nodes: Some(settings.nodes),
        keep: settings.keep,
        flags,
        impairment: cell.conditions.spec(settings.workload, seed)?,
        ..Wishes::default()
    };
    Ok(Folder::open(Some(dir), wishes)?)
}

async fn perform(
    settings: &Settings,
    cell: &Cell,
    folder: &mut Folder,
    processes: &mut Processes,
    ran: &mut Run,
    teller: &mut Teller<'_>,
) -> Result<(), BenchError> {
    let stage = Stage::set(settings, cell, folder, processes).await?;
    let figures = &mut ran.figures;
    let link_ms = figures.jitter_ms.unwrap_or(0.0);
    if cell.acks == Acks::All && settings.replicas() > 1 && settings.min_insync() > 1 {
        teller.says("one record after the other", 0.0);
        let measured = single::measure(&stage.client, &stage.singles, settings).await?;
        figures.single_acks_1_ms = measured.map(|single| single.acks_1_ms);
        figures.single_acks_all_ms = measured.map(|single| single.acks_all_ms);
        figures.red_flag =
            measured.and_then(|single| single::red_flag(single, figures.rtt_ms, link_ms));
    }
    let mark = rand::random();
    let options = LoadOptions {
        producer: settings.producer(cell.acks),
        topic: stage.topic.clone(),
        mark,
    };
    let clients = std::iter::once(&stage.client).chain(&stage.others);
    let mut load = Load::new(clients, options, course::latencies()?)?;
    load.add(settings.pattern())?;
    course::warm_up(settings, teller).await;
    let before = stage.look(processes).await?;
    course::measure(&load, settings, teller, |_| {}, |_| {}).await?;
    let after = stage.look(processes).await?;

    teller.says("waiting for the last acknowledgements", 1.0);
    // What is still to be sent goes over good links: it is not measured.
    for node in folder.nodes() {
        if folder.impairment().is_some() {
            node.impair("", 0)?;
        }
    }
    let produced = load.finish().await;
    ran.commit_times = produced.tally.times().distribution();
    ran.series = produced.tally.series().clone();
    verify(&stage, mark, folder, processes, &produced, figures, teller).await?;
    figures.take(produced);
    figures.take_looks(&before, &after);
    Ok(())
}

/// Everything is read back, and the bytes of the stopped nodes are compared.
async fn verify(
    stage: &Stage,
    mark: u64,
    folder: &Folder,
    processes: &mut Processes,
    produced: &Produced<Latencies>,
    figures: &mut Figures,
    teller: &mut Teller<'_>,
) -> Result<(), BenchError> {
    let is_settled = stage.watchers.until_settled(&stage.topic, SETTLE).await;
    teller.says("reading everything back", 1.0);
    let found = read_all(&stage.client, &stage.topic, mark).await?;
    figures.lost = found.lacks(&produced.acknowledged);
    figures.duplicated = found.duplicated;
    if found.strange > 0 {
        return Err(BenchError::Failed(format!(
            "{} records in the topic are not of this run",
            found.strange
        )));
    }
    stage.client.close();
    stage.others.iter().for_each(Client::close);
    teller.says("comparing the replicas", 1.0);
    processes.stop().await;
    let (plans, topic) = (folder.nodes().to_vec(), stage.topic.clone());
    let compared = tokio::task::spawn_blocking(move || compare(&plans, &topic)).await;
    let agreements = compared
        .map_err(|_| BenchError::Failed("the comparison of the replicas broke off".to_owned()))?;
    let partitions = figures.partitions.unwrap_or(1);
    let replicas = usize::from(figures.rf.unwrap_or(1));
    let mut faults = disagreements(&agreements, partitions, replicas);
    if !is_settled {
        let told = format!(
            "not every replica had everything {} s after the end",
            SETTLE.as_secs()
        );
        faults.insert(0, told);
    }
    figures.replicas_agree = Some(faults.is_empty());
    figures.reasons.extend(faults.into_iter().take(3));
    Ok(())
}

/// What is wrong with the replicas: one that is missing, has less than others, or other bytes.
fn disagreements(agreements: &[Agreement], partitions: u32, replicas: usize) -> Vec<String> {
    let mut faults = Vec::new();
    if agreements.len() != partitions as usize {
        faults.push(format!(
            "of {partitions} partitions, {} are on the disks",
            agreements.len()
        ));
    }
    for agreement in agreements {
        let partition = agreement.partition;
        if agreement.replicas.len() != replicas {
            faults.push(format!(
                "partition {partition} has {} replicas on the disks, and should have {replicas}",
                agreement.replicas.len()
            ));
        }
        for replica in &agreement.replicas {
            let node = replica.node;
            if let Some(fault) = &replica.fault {
                faults.push(format!("partition {partition} on node {node}: {fault}"));
            } else if !replica.agrees {
                faults.push(format!(
                    "partition {partition} on node {node} has other bytes"
                ));
            } else if replica.committed != agreement.committed {
                faults.push(format!(
                    "partition {partition} on node {node} ends at {}, and should at {}",
                    replica.committed, agreement.committed
                ));
            }
        }
    }
    faults
}

/// A cluster that serves, with its topics.
struct Stage {
    client: Client,
    /// Of the other producers.
    others: Vec<Client>,
    topic: TopicName,
    /// Of the single records before the run.
    singles: TopicName,
    watchers: Watchers,
    cast: Cast,
    leader: Dialled,
}

/// What leader and machine say at one time.
struct Look {
    usage: Option<Usage>,
    packets: Option<ImpairmentCounts>,
    followers: usize,
    rtt_seen_ms: Option<f64>,
}

impl Stage {
    async fn set(
        settings: &Settings,
        cell: &Cell,
        folder: &mut Folder,
        processes: &mut Processes,
    ) -> Result<Stage, BenchError> {
        let within = settings.within;
        let prepare = |_: &Folder| Ok(());
        let watchers = start_up(within, folder, processes, ASK_EVERY, prepare, |_| {}).await?;
        let client = local::connect(folder).await?;
        let mut others = Vec::new();
        for _ in 1..settings.producers {
            others.push(local::connect(folder).await?);
        }
        let ids: Vec<_> = folder.nodes().iter().map(|node| node.id).collect();
        let controller = watchers
            .statuses()
            .into_iter()
            .find_map(|(_, status)| status?.active_controller);
        let cast = Cast::choose(&ids, controller, settings.replicas().into())
            .ok_or_else(|| BenchError::Failed("a cluster without nodes".to_owned()))?;
        let topic = make_topic(&client, "bench", settings, cell, &cast).await?;
        let singles = make_topic(&client, "single", settings, cell, &cast).await?;
        let leader = folder.nodes().iter().find(|node| node.id == cast.leader);
        let leader = dial_admin(folder, leader, within).await?;
        let stage = Stage {
            client,
            others,
            topic,
            singles,
            watchers,
            cast,
            leader,
        };
        stage.until_whole(settings).await?;
        Ok(stage)
    }

    /// Waits until the leader leads everything, and all replicas are in sync.
    async fn until_whole(&self, settings: &Settings) -> Result<(), BenchError> {
        let wanted = settings.partitions.unwrap_or(1) as usize;
        let replicas = usize::from(settings.replicas());
        let is_whole = || {
            let partitions = self.watchers.partitions(&self.topic);
            partitions.len() == wanted
                && partitions
                    .iter()
                    .all(|p| p.leader == Some(self.cast.leader) && p.isr.len() == replicas)
        };
        let whole = async {
            while !is_whole() {
                self.watchers.changed().await;
            }
        };
        tokio::time::timeout(settings.within, whole)
            .await
            .map_err(|_| {
                BenchError::Failed(format!(
                    "not all replicas of {wanted} partitions were in sync under node {} within {} s: give them longer with --timeout, or choose better links",
                    self.cast.leader,
                    settings.within.as_secs()
                ))
            })
    }

    async fn look(&self, processes: &Processes) -> Result<Look, BenchError> {
        let status = ask_status(&self.leader.connection).await?;
        let followers = &self.cast.followers;
        let links = status
            .links
            .iter()
            .filter(|link| link.direction == LinkDirection::ToFollower && link.rtt_us > 0)
            .filter(|link| followers.contains(&link.peer));
        let rtts: Vec<f64> = links.map(|link| link.rtt_us as f64 / 1e3).collect();
        let mut packets = ImpairmentCounts::default();
        for follower in followers {
            if let Some(counts) = status.impaired_packets.get(follower) {
                packets.add(counts);
            }
        }
        Ok(Look {
            usage: Usage::of(&processes.pids()),
            packets: (packets.packets > 0).then_some(packets),
            followers: followers.len(),
            rtt_seen_ms: (!rtts.is_empty())
                .then(|| digits(rtts.iter().sum::<f64>() / rtts.len() as f64)),
        })
    }
}

impl Figures {
    /// What happened between two looks.
    fn take_looks(&mut self, before: &Look, after: &Look) {
        self.rtt_seen_ms = after.rtt_seen_ms;
        let mib = self.measured_mib();
        if let (Some(before), Some(after)) = (before.usage, after.usage) {
            self.cpu_ms_per_mib = after.cpu_ms_per_mib(&before, mib).map(digits);
            self.rss_mib = Some(digits(after.resident as f64 / MIB));
        }
        let Some(after_packets) = after.packets else {
            return;
        };
        let sent = after_packets.since(&before.packets.unwrap_or_default());
        if sent.packets == 0 {
            return;
        }
        let share = |packets: u64| Some(digits(packets as f64 / sent.packets as f64));
        self.self_loss = share(sent.queue_full);
        self.random_loss = share(sent.lost);
        self.emulator_drops = Some(sent.overflowed);
        let seconds = self.measured_ms / 1e3;
        if seconds > 0.0 && after.followers > 0 {
            let bits = sent.passed_bytes as f64 * 8.0 / after.followers as f64;
            self.link_mbit_per_s = Some(digits(bits / 1e6 / seconds));
        }
    }
}

async fn ask_status(connection: &Connection) -> Result<NodeStatus, BenchError> {
    ask(connection, &AdminRequest::Status)
        .await
        .map_err(|error| BenchError::Failed(format!("the leader cannot be asked: {error}")))
}

async fn dial_admin(
    folder: &Folder,
    node: Option<&NodePlan>,
    within: Duration,
) -> Result<Dialled, BenchError> {
    let node = node.ok_or_else(|| BenchError::Failed("there is no such node".to_owned()))?;
    let address = PeerAddress::node(node.id, node.quic.to_string());
    let identity = std::sync::Arc::new(load_identity(folder)?);
    dial(&identity, &address, Alpn::Admin, within)
        .await
        .map_err(|error| BenchError::Failed(format!("the leader cannot be asked: {error}")))
}

async fn make_topic(
    client: &Client,
    name: &'static str,
    settings: &Settings,
    cell: &Cell,
    cast: &Cast,
) -> Result<TopicName, BenchError> {
    let name: TopicName = name
        .parse()
        .map_err(|_| BenchError::Failed(format!("a topic cannot be called {name}")))?;
    let partitions = match name.as_str() {
        "bench" => settings.partitions.unwrap_or(1),
        _ => 1,
    };
    let mut topic = NewTopic::new(name.clone());
    topic.assignment = Some(vec![cast.replicas(); partitions as usize]);
    let least = settings.min_insync().to_string();
    topic
        .configs
        .insert("min.insync.replicas".to_owned(), least);
    if let Some(flush) = cell.flush {
        let flush = flush_name(flush).to_owned();
        topic.configs.insert("flush".to_owned(), flush);
    }
    local::create_topic(client, &topic, settings.within)
        .await
        .map_err(BenchError::client("create the topic"))?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::local::Replica;
    use crate::types::{NodeId, PartitionIndex};

    fn look(cpu_ms: u64, packets: u64, queue_full: u64, lost: u64) -> Look {
        let counts = ImpairmentCounts {
            packets,
            queue_full,
            lost,
            passed_bytes: packets * 1000,
            ..ImpairmentCounts::default()
        };
        Look {
            usage: Some(Usage {
                cpu: Duration::from_millis(cpu_ms),
                resident: 3 << 20,
            }),
            packets: (packets > 0).then_some(counts),
            followers: 2,
            rtt_seen_ms: None,
        }
    }

    #[test]
    fn losses_are_told_by_their_cause_and_since_the_beginning() {
        let mut figures = Figures {
            record_size: 1 << 20,
            ..Figures::default()
        };
        figures.count(10, Duration::from_secs(2), (1 << 20) as f64);
        figures.take_looks(&look(1000, 1000, 900, 50), &look(1500, 2000, 910, 100));
        assert_eq!(
            (figures.self_loss, figures.random_loss),
            (Some(0.01), Some(0.05))
        );
        assert_eq!(
            (figures.cpu_ms_per_mib, figures.rss_mib),
            (Some(50.0), Some(3.0))
        );
        // A megabyte over two links in two seconds.
        assert_eq!(figures.link_mbit_per_s, Some(2.0));
        let mut figures = Figures::default();
        figures.take_looks(&look(0, 0, 0, 0), &look(0, 0, 0, 0));
        assert_eq!((figures.self_loss, figures.cpu_ms_per_mib), (None, None));
    }

    #[test]
    fn a_replica_that_is_missing_short_or_other_is_told() {
        let replica = |node, committed, agrees| Replica {
            node: NodeId::new(node).unwrap(),
            committed,
            agrees,
            fault: None,
        };
        let agreement = |replicas| Agreement {
            partition: PartitionIndex(0),
            committed: 9,
            digest: String::new(),
            replicas,
        };
        let well = agreement(vec![replica(1, 9, true), replica(2, 9, true)]);
        assert!(disagreements(std::slice::from_ref(&well), 1, 2).is_empty());
        let told = |agreement: Agreement, partitions| {
            disagreements(&[agreement], partitions, 2).join("; ")
        };
        assert!(told(well, 2).contains("of 2 partitions, 1"));
        assert!(told(agreement(vec![replica(1, 9, true)]), 1).contains("1 replicas"));
        let short = agreement(vec![replica(1, 9, true), replica(2, 8, true)]);
        assert!(told(short, 1).contains("node 2 ends at 8"));
        let other = agreement(vec![replica(1, 9, true), replica(2, 9, false)]);
        assert!(told(other, 1).contains("other bytes"));
    }
}
