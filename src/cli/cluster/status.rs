//! `quorate cluster status`: the cluster as a whole, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::super::connect::{self, bootstrap_servers, node_status};
use super::super::topic::nodes;
use super::super::{Exit, GlobalOptions, Table, print_json, print_line};
use crate::admin::{NodeStatus, PartitionStatus};
use crate::broker::{LinkDirection, LinkState, LinkView};
use crate::transport::PeerAddress;
use crate::types::quorum::election_quorum;
use crate::types::{ListenerName, NodeId};

/// How long one node may take to answer before it is shown as silent.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn run(options: &GlobalOptions) -> anyhow::Result<Exit> {
    let statuses = ask_everyone(options).await?;
    let report = Report::new(&statuses);
    if options.json() {
        print_json(&report)?;
    } else {
        report.print()?;
    }
    Ok(if report.problems.is_empty() {
        Exit::Ok
    } else {
        Exit::Unhealthy
    })
}

/// Asks the first node that answers, then every node that it knows.
pub(super) async fn ask_everyone(
    options: &GlobalOptions,
) -> anyhow::Result<BTreeMap<NodeId, NodeStatus>> {
    let identity = Arc::new(connect::identity(options)?);
    let within = options.timeout.min(NODE_TIMEOUT);
    let mut to_ask: VecDeque<PeerAddress> = bootstrap_servers(options).into();
    let mut asked: BTreeSet<String> = BTreeSet::new();
    let mut statuses = BTreeMap::new();
    let mut first_error = None;
    while let Some(address) = to_ask.pop_front() {
        if !asked.insert(address.host_port.clone()) {
            continue;
        }
        match node_status(&identity, &address, within).await {
            Ok(status) => {
                for node in &status.nodes {
                    to_ask.push_back(PeerAddress::any(node.quic.clone()));
                }
                statuses.insert(status.node, status);
            }
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) if statuses.is_empty() => Err(error),
        _ => Ok(statuses),
    }
}

#[derive(Serialize)]
struct Report {
    cluster: Option<String>,
    controller: Option<NodeId>,
    metadata_version: u32,
    /// The nodes that vote on metadata.
    voters: BTreeSet<NodeId>,
    nodes: Vec<NodeRow>,
    partitions: Vec<PartitionRow>,
    links: Vec<LinkRow>,
    /// What is under way, in words.
    notes: Vec<String>,
    /// What is wrong, in words; empty when nothing is.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct NodeRow {
    node: NodeId,
    quic: String,
    kafka: Option<String>,
    /// Of listeners with names.
    kafka_listeners: BTreeMap<ListenerName, String>,
    answers: bool,
    alive: bool,
    /// The active one.
    controller: bool,
    /// It votes on metadata.
    voter: bool,
    draining: bool,
    version: Option<String>,
}

#[derive(Serialize)]
struct PartitionRow {
    topic: String,
    partition: u32,
    leader: Option<NodeId>,
    leader_epoch: u32,
    replicas: Vec<NodeId>,
    isr: Vec<NodeId>,
    min_insync: u32,
    /// While the partition is being reassigned: the replicas that it is to have. Empty otherwise.
    target_replicas: Vec<NodeId>,
    log_start: Option<u64>,
    high_watermark: Option<u64>,
    log_end: Option<u64>,
    /// By follower; `null` where it has no session with the leader, so that nothing is known.
    lag_records: BTreeMap<NodeId, Option<u64>>,
}

#[derive(Serialize)]
struct LinkRow {
    leader: NodeId,
    follower: NodeId,
    /// `null` where the leader does not know of it.
    link: Option<LinkView>,
}

/// The node with the newest metadata speaks for the cluster: the active controller, if it answers.
pub(super) fn newest(statuses: &BTreeMap<NodeId, NodeStatus>) -> Option<&NodeStatus> {
    statuses.values().max_by_key(|status| {
        (
            status.hears_majority,
            status.active_controller == Some(status.node),
            status.nodes.len(),
        )
    })
}

impl NodeRow {
    /// The one without a name first; each other behind its name.
    fn kafka_column(&self) -> String {
        let unnamed = self.kafka.iter().cloned();
        let named = self
            .kafka_listeners
            .iter()
            .map(|(name, address)| format!("{name}={address}"));
        let listeners: Vec<String> = unnamed.chain(named).collect();
        match listeners.is_empty() {
            true => "-".to_owned(),
            false => listeners.join(" "),
        }
    }
}

impl Report {
    fn new(statuses: &BTreeMap<NodeId, NodeStatus>) -> Report {
        let newest = newest(statuses);
        let mut report = Report {
            cluster: newest.and_then(|status| status.cluster.map(|id| id.to_string())),
            controller: newest.and_then(|status| status.active_controller),
            metadata_version: newest.map_or(0, |status| status.metadata_version),
            voters: newest.map_or_else(BTreeSet::new, |status| status.voters.clone()),
            nodes: Vec::new(),
            partitions: Vec::new(),
            links: Vec::new(),
            notes: Vec::new(),
            problems: Vec::new(),
        };
        let Some(newest) = newest else {
            return report;
        };
        if newest.cluster.is_none() {
            report
                .problems
                .push("the cluster is not founded yet: not all controllers were up at once".into());
        } else if report.controller.is_none() || !newest.hears_majority {
            report.problems.push(
                "no active controller: a majority of the controllers cannot be reached".into(),
            );
        }
        report.add_nodes(newest, statuses);
        report.add_controllers(newest);
        for partition in &newest.partitions {
            report.add_partition(partition, newest, statuses);
        }
        report
    }

    fn add_controllers(&mut self, newest: &NodeStatus) {
        let missing: Vec<NodeId> = newest
            .wanted_voters
            .difference(&newest.voters)
            .copied()
            .collect();
        if !newest.voters.is_empty() && !missing.is_empty() {
            self.problems.push(format!(
                "nodes {} are to vote on metadata and do not: they have not come back or not caught up",
                nodes(&missing)
            ));
        }
        if newest.voters.len().is_multiple_of(2) && !newest.voters.is_empty() {
            self.notes.push(format!(
                "{} controllers vote: an even number survives no more failures than one fewer",
                newest.voters.len()
            ));
        }
    }

    /// Why nobody leads a partition, and what an operator can do.
    fn explain_leaderless(&mut self, name: &str, partition: &PartitionStatus, newest: &NodeStatus) {
        let is_alive = |id: &&NodeId| {
            newest
                .nodes
                .iter()
                .any(|node| node.node == **id && node.alive)
        };
        let in_sync: Vec<NodeId> = partition.isr.iter().filter(is_alive).copied().collect();
        let others: Vec<NodeId> = partition
            .replicas
            .iter()
            .filter(is_alive)
            .filter(|id| !partition.isr.contains(id))
            .copied()
            .collect();
        let quorum = election_quorum(partition.isr.len(), partition.min_insync as usize);
        if in_sync.len() >= quorum {
            self.problems.push(format!(
                "partition {name} has no leader: an election is under way"
            ));
            return;
        }
        let mut text = format!(
            "partition {name} is offline: {} of its in-sync replicas {} are alive, an election needs {quorum}; bring these nodes back",
            in_sync.len(),
            nodes(&partition.isr)
        );
        if in_sync.is_empty() && others.is_empty() {
            text.push_str(
                "; if their disks are lost, nothing of it can be saved: \"quorate cluster remove-node N --keep-replicas\", start node N with an empty data directory, then elect it, or delete the topic",
            );
        } else {
            text.push_str(&format!(
                "; if they are lost for good, \"quorate cluster elect {}:{} --unclean\" lets the longest of the logs that are left lead, and loses what was committed beyond it",
                partition.topic, partition.partition
            ));
        }
        self.problems.push(text);
    }

    fn add_nodes(&mut self, newest: &NodeStatus, statuses: &BTreeMap<NodeId, NodeStatus>) {
        for node in &newest.nodes {
            let status = statuses.get(&node.node);
            if status.is_none() {
                self.problems.push(format!(
                    "node {} at {} does not answer",
                    node.node, node.quic
                ));
            } else if !node.alive {
                self.problems.push(format!(
                    "node {} answers, but node {} does not hear it",
                    node.node, newest.node
                ));
            }
            if node.draining {
                let leads = newest
                    .partitions
                    .iter()
                    .filter(|partition| partition.leader == Some(node.node))
                    .count();
                self.notes.push(format!(
                    "node {} is draining: it leads {leads} partitions",
                    node.node
                ));
            }
            self.nodes.push(NodeRow {
                node: node.node,
                quic: node.quic.clone(),
                kafka: node.kafka.clone(),
                kafka_listeners: node.kafka_listeners.clone(),
                answers: status.is_some(),
                alive: node.alive,
                controller: self.controller == Some(node.node),
                voter: newest.voters.contains(&node.node),
                draining: node.draining,
                version: status.map(|status| status.version.clone()),
            });
        }
    }

    fn add_partition(
        &mut self,
        partition: &PartitionStatus,
        newest: &NodeStatus,
        statuses: &BTreeMap<NodeId, NodeStatus>,
    ) {
        let name = format!("{}-{}", partition.topic, partition.partition);
        let leader_status = partition.leader.and_then(|leader| statuses.get(&leader));
        let local = leader_status.and_then(|status| {
            status
                .partitions
                .iter()
                .find(|known| {
                    known.topic_id == partition.topic_id && known.partition == partition.partition
                })
                .and_then(|known| known.local.as_ref())
                .filter(|local| local.role == "leader")
        });
        match partition.leader {
            None => self.explain_leaderless(&name, partition, newest),
            // A dead leader stays the leader where no election could end.
            Some(leader) if !newest.nodes.iter().any(|n| n.node == leader && n.alive) => {
                self.explain_leaderless(&name, partition, newest);
            }
            Some(leader) if local.is_none() => self.problems.push(format!(
                "node {leader} does not lead partition {name} yet, or no longer"
            )),
            Some(_) => {}
        }
        if partition.isr.len() < partition.min_insync as usize {
            self.problems.push(format!(
                "partition {name} has {} in-sync replicas and needs {}",
                partition.isr.len(),
                partition.min_insync
            ));
        }
        if !partition.target_replicas.is_empty() {
            let missing: Vec<NodeId> = partition
                .target_replicas
                .iter()
                .filter(|id| !partition.isr.contains(id))
                .copied()
                .collect();
            self.notes.push(format!(
                "partition {name} is being reassigned to nodes {}: {}",
                nodes(&partition.target_replicas),
                if missing.is_empty() {
                    "all are in sync, the others are about to go".to_owned()
                } else {
                    format!("not in sync yet: {}", nodes(&missing))
                }
            ));
        }
        let followers = partition
            .replicas
            .iter()
            .filter(|&&node| Some(node) != partition.leader);
        let lag_records: BTreeMap<NodeId, Option<u64>> = followers
            .map(|&node| {
                let progress =
                    local.and_then(|local| local.followers.iter().find(|f| f.node == node));
                (node, progress.and_then(|progress| progress.lag_records))
            })
            .collect();
        if let Some(leader) = partition.leader {
            for &follower in lag_records.keys() {
                self.add_link(leader, follower, statuses);
            }
        }
        self.partitions.push(PartitionRow {
            topic: partition.topic.to_string(),
            partition: partition.partition.0,
            leader: partition.leader,
            leader_epoch: partition.leader_epoch.get(),
            replicas: partition.replicas.clone(),
            isr: partition.isr.clone(),
            min_insync: partition.min_insync,
            target_replicas: partition.target_replicas.clone(),
            log_start: local.map(|local| local.log_start.get()),
            high_watermark: local.map(|local| local.high_watermark.get()),
            log_end: local.map(|local| local.log_end.get()),
            lag_records,
        });
    }

    fn add_link(
        &mut self,
        leader: NodeId,
        follower: NodeId,
        statuses: &BTreeMap<NodeId, NodeStatus>,
    ) {
        let known = |row: &LinkRow| row.leader == leader && row.follower == follower;
        if self.links.iter().any(known) {
            return;
        }
        let link = statuses.get(&leader).and_then(|status| {
            let is_it = |link: &&LinkView| {
                link.direction == LinkDirection::ToFollower && link.peer == follower
            };
            status.links.iter().find(is_it).cloned()
        });
        if statuses.contains_key(&leader) && !link.as_ref().is_some_and(|link| link.heard) {
            self.problems
                .push(format!("leader {leader} does not hear follower {follower}"));
        }
        self.links.push(LinkRow {
            leader,
            follower,
            link,
        });
    }

    fn print(&self) -> anyhow::Result<()> {
        let none = || "-".to_owned();
        print_line(&format!(
            "Cluster {}",
            self.cluster.as_deref().unwrap_or("not founded yet")
        ))?;
        print_line("")?;
        let mut table = Table::new(["NODE", "QUIC", "KAFKA", "STATE", "VERSION"]);
        for node in &self.nodes {
            let mut state = match (node.answers, node.alive) {
                (true, true) => "up".to_owned(),
                (true, false) => "not heard".to_owned(),
                (false, _) => "silent".to_owned(),
            };
            if node.controller {
                state.push_str(", active controller");
            } else if node.voter {
                state.push_str(", controller");
            }
            if node.draining {
                state.push_str(", draining");
            }
            table.row([
                node.node.to_string(),
                node.quic.clone(),
                node.kafka_column(),
                state,
                node.version.clone().unwrap_or_else(none),
            ]);
        }
        table.print()?;
        if !self.partitions.is_empty() {
            print_line("")?;
            self.print_partitions()?;
        }
        if !self.links.is_empty() {
            print_line("")?;
            self.print_links()?;
        }
        print_line("")?;
        for note in &self.notes {
            print_line(&format!("Note: {note}"))?;
        }
        if self.problems.is_empty() {
            return print_line("All is well.");
        }
        for problem in &self.problems {
            print_line(&format!("Problem: {problem}"))?;
        }
        Ok(())
    }

    fn print_partitions(&self) -> anyhow::Result<()> {
        let mut table = Table::new([
            "PARTITION",
            "LEADER",
            "EPOCH",
            "REPLICAS",
            "IN SYNC",
            "MIN",
            "COMMITTED",
            "LAG",
        ]);
        for partition in &self.partitions {
            let lags: Vec<String> = partition
                .lag_records
                .iter()
                .map(|(node, lag)| match lag {
                    Some(lag) => format!("{node}:{lag}"),
                    None => format!("{node}:-"),
                })
                .collect();
            table.row([
                format!("{}-{}", partition.topic, partition.partition),
                partition
                    .leader
                    .map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
                partition.leader_epoch.to_string(),
                nodes(&partition.replicas),
                nodes(&partition.isr),
                partition.min_insync.to_string(),
                partition
                    .high_watermark
                    .map_or_else(|| "-".to_owned(), |offset| offset.to_string()),
                lags.join(" "),
            ]);
        }
        table.print()
    }

    fn print_links(&self) -> anyhow::Result<()> {
        let mut table = Table::new(["LINK", "STATE", "RTT", "LOST", "SENT"]);
        for row in &self.links {
            let cells = match &row.link {
                None => [
                    "down".to_owned(),
                    "-".to_owned(),
                    "-".to_owned(),
                    "-".to_owned(),
                ],
                Some(link) => [
                    match link.state {
                        _ if link.heard => "up".to_owned(),
                        LinkState::Down => {
                            format!("down for {:.1} s", link.state_ms as f64 / 1e3)
                        }
                        _ => format!("silent for {:.1} s", link.silence_ms as f64 / 1e3),
                    },
                    format!("{:.1} ms", link.rtt_us as f64 / 1e3),
                    format!("{} of {} packets", link.lost_packets, link.sent_packets),
                    format!("{:.1} MB", link.sent_bytes as f64 / 1e6),
                ],
            };
            let [state, rtt, lost, sent] = cells;
            table.row([
                format!("{} -> {}", row.leader, row.follower),
                state,
                rtt,
                lost,
                sent,
            ]);
        }
        table.print()
    }
}
