//! `quorate cluster`: the cluster as a whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::connect::{self, bootstrap_servers, node_status};
use super::topic::nodes;
use super::{Exit, GlobalOptions, Table, block_on, print_json, print_line};
use crate::admin::{NodeStatus, PartitionStatus};
use crate::broker::{LinkDirection, LinkView};
use crate::transport::PeerAddress;
use crate::types::NodeId;

/// How long one node may take to answer before it is shown as silent.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);

/// Look at the cluster as a whole
#[derive(Args, Debug)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Subcommand, Debug)]
enum ClusterCommand {
    /// Show nodes, partitions and replication links; exit code 10 when something is wrong
    Status,
}

pub(super) fn run(options: &GlobalOptions, args: ClusterArgs) -> anyhow::Result<Exit> {
    let ClusterCommand::Status = args.command;
    block_on(async {
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
    })
}

/// Asks the first node that answers, then every node that it knows.
async fn ask_everyone(options: &GlobalOptions) -> anyhow::Result<BTreeMap<NodeId, NodeStatus>> {
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
    nodes: Vec<NodeRow>,
    partitions: Vec<PartitionRow>,
    links: Vec<LinkRow>,
    /// What is wrong, in words; empty when nothing is.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct NodeRow {
    node: NodeId,
    quic: String,
    kafka: Option<String>,
    answers: bool,
    alive: bool,
    controller: bool,
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

impl Report {
    fn new(statuses: &BTreeMap<NodeId, NodeStatus>) -> Report {
        // The node with the newest metadata speaks for the cluster.
        let newest = statuses
            .values()
            .max_by_key(|status| (status.hears_majority, status.nodes.len()));
        let mut report = Report {
            cluster: newest.and_then(|status| status.cluster.map(|id| id.to_string())),
            controller: newest.and_then(|status| status.active_controller),
            nodes: Vec::new(),
            partitions: Vec::new(),
            links: Vec::new(),
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
        for partition in &newest.partitions {
            report.add_partition(partition, statuses);
        }
        report
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
            self.nodes.push(NodeRow {
                node: node.node,
                quic: node.quic.clone(),
                kafka: node.kafka.clone(),
                answers: status.is_some(),
                alive: node.alive,
                controller: self.controller == Some(node.node),
                version: status.map(|status| status.version.clone()),
            });
        }
    }

    fn add_partition(
        &mut self,
        partition: &PartitionStatus,
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
            None => self
                .problems
                .push(format!("partition {name} has no leader")),
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
                state.push_str(", controller");
            }
            table.row([
                node.node.to_string(),
                node.quic.clone(),
                node.kafka.clone().unwrap_or_else(none),
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
                    if link.heard {
                        "up".to_owned()
                    } else {
                        format!("silent for {:.1} s", link.silence_ms as f64 / 1e3)
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
