//! `quorate cluster`: looking at the cluster as a whole, and changing how it stands.

mod controllers;
mod elect;
mod leaders;
mod node;
mod place;
mod reassign;
mod status;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use tokio::time::Instant;

use self::place::Place;
use super::connect;
use super::{Exit, GlobalOptions, block_on, print_json, print_line};
use crate::admin::NodeStatus;
use crate::controller::{Operation, OperationOutcome, PartitionOutcome};
use crate::types::{NodeId, TopicName, TopicPartition};

/// Between two looks at what becomes of an operation.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Look at the cluster as a whole, and change how it stands
#[derive(Args, Debug)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Subcommand, Debug)]
enum ClusterCommand {
    /// Show nodes, partitions and replication links; exit code 10 when something is wrong
    Status,
    /// Move every leader away from a node that is about to stop, and let it lead nothing more
    ///
    /// Ends when the node leads nothing that another could. A server that is stopped by SIGTERM or Ctrl-C does this by
    /// itself; after a restart a node leads again.
    Drain {
        #[arg(value_name = "NODE")]
        node: NodeId,
    },
    /// Let a draining node lead again
    Undrain {
        #[arg(value_name = "NODE")]
        node: NodeId,
    },
    /// Move a partition's leadership to another in-sync replica, or all of them back to the preferred ones
    ///
    /// The leader hands over only once the other holds all that it has: nothing is lost, and producers wait for a moment.
    TransferLeader {
        /// Every partition of the topic, or one
        #[arg(
            value_name = "TOPIC[:PARTITION]",
            required_unless_present = "preferred",
            conflicts_with = "topic"
        )]
        place: Option<Place>,
        /// The node that is to lead
        #[arg(
            long,
            value_name = "NODE",
            conflicts_with = "preferred",
            required_unless_present = "preferred"
        )]
        to: Option<NodeId>,
        /// The first replica of each partition is to lead
        #[arg(long)]
        preferred: bool,
        /// With --preferred: only the partitions of this topic
        #[arg(long, value_name = "TOPIC", requires = "preferred")]
        topic: Option<TopicName>,
    },
    /// Elect a leader for a partition that has lost too many of its in-sync replicas
    ///
    /// The replica that is elected may lack records that were acknowledged: these are lost. So it asks first, and refuses
    /// wherever an election without a loss can still end.
    Elect {
        #[arg(value_name = "TOPIC:PARTITION")]
        place: Place,
        /// Say that committed records may be lost
        #[arg(long, required = true)]
        unclean: bool,
        /// The node that is to lead; without it, the one with the longest log
        #[arg(long, value_name = "NODE")]
        node: Option<NodeId>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Give partitions other replicas, the preferred leader first
    ///
    /// The new replicas catch up before the old ones go. For a whole topic the list is turned by one place from partition
    /// to partition, so that the leaders spread.
    Reassign {
        #[arg(value_name = "TOPIC[:PARTITION]")]
        place: Place,
        /// The nodes that are to hold it
        #[arg(
            long,
            value_name = "NODE,…",
            value_delimiter = ',',
            required_unless_present = "cancel",
            conflicts_with = "cancel"
        )]
        replicas: Vec<NodeId>,
        /// Go back to the replicas that there were before
        #[arg(long)]
        cancel: bool,
        /// Wait until it is done
        #[arg(long)]
        wait: bool,
    },
    /// Let a registered node vote on the cluster's metadata
    AddController {
        #[arg(value_name = "NODE")]
        node: NodeId,
    },
    /// Take a node's vote on the cluster's metadata away; it stays in the cluster
    RemoveController {
        #[arg(value_name = "NODE")]
        node: NodeId,
    },
    /// Take a node out of the cluster
    RemoveNode {
        #[arg(value_name = "NODE")]
        node: NodeId,
        /// First move its replicas to other nodes, and wait until they are there and the node has stopped
        #[arg(long, conflicts_with = "keep_replicas")]
        evacuate: bool,
        /// Its replicas and its vote wait for a node of the same id with an empty data directory: for a lost disk
        #[arg(long)]
        keep_replicas: bool,
    },
}

pub(super) fn run(options: &GlobalOptions, args: ClusterArgs) -> anyhow::Result<Exit> {
    block_on(async {
        match args.command {
            ClusterCommand::Status => status::run(options).await,
            ClusterCommand::Drain { node } => node::drain(options, node).await,
            ClusterCommand::Undrain { node } => node::undrain(options, node).await,
            ClusterCommand::TransferLeader {
                place,
                to,
                preferred: _,
                topic,
            } => {
                let place = place.or(topic.map(|topic| Place {
                    topic,
                    partition: None,
                }));
                leaders::transfer(options, place, to).await
            }
            ClusterCommand::Elect {
                place,
                unclean: _,
                node,
                yes,
            } => elect::run(options, place, node, yes).await,
            ClusterCommand::Reassign {
                place,
                replicas,
                cancel: _,
                wait,
            } => reassign::run(options, place, replicas, wait).await,
            ClusterCommand::AddController { node } => {
                controllers::change(options, Operation::AddController { node }).await
            }
            ClusterCommand::RemoveController { node } => {
                controllers::change(options, Operation::RemoveController { node }).await
            }
            ClusterCommand::RemoveNode {
                node,
                evacuate,
                keep_replicas,
            } => node::remove(options, node, evacuate, keep_replicas).await,
        }
    })
}

/// The cluster as the node with the newest metadata knows it.
async fn look(options: &GlobalOptions) -> anyhow::Result<NodeStatus> {
    let statuses = status::ask_everyone(options).await?;
    match status::newest(&statuses) {
        Some(newest) => Ok(newest.clone()),
        None => bail!("no node answers: check --bootstrap-server, and that the servers run"),
    }
}

/// Looks again and again until `done` says so, `--timeout` at most; what it says otherwise is how far it is.
async fn until(
    options: &GlobalOptions,
    mut done: impl AsyncFnMut() -> anyhow::Result<Result<(), String>>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + options.timeout;
    loop {
        match done().await? {
            Ok(()) => return Ok(()),
            Err(instead) if Instant::now() + LOOK_AGAIN > deadline => {
                bail!(
                    "not within {} s: {instead}; it goes on: \"quorate cluster status\" shows how far it is, and --timeout waits longer",
                    options.timeout.as_secs_f64()
                );
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Shows what came of each partition: data to standard output, and a failure if any of it failed.
fn tell_partitions(
    options: &GlobalOptions,
    status: &NodeStatus,
    outcomes: &[PartitionOutcome],
    done: &str,
) -> anyhow::Result<Exit> {
    let names: BTreeMap<TopicPartition, String> = status
        .partitions
        .iter()
        .map(|known| {
            let name = format!("{}:{}", known.topic, known.partition);
            (place::id(known), name)
        })
        .collect();
    let mut exit = Exit::Ok;
    for outcome in outcomes {
        if outcome.result.is_err() {
            exit = Exit::Failure;
        }
        let id = outcome.partition.to_string();
        let name = names.get(&outcome.partition).unwrap_or(&id);
        if options.json() {
            print_json(&serde_json::json!({
                "partition": name,
                "error": outcome.result.as_ref().err(),
            }))?;
        } else {
            match &outcome.result {
                Ok(()) => print_line(&format!("{name}: {done}"))?,
                Err(reason) => print_line(&format!("{name}: not done: {reason}"))?,
            }
        }
    }
    Ok(exit)
}

async fn partitions_of(
    operated: impl Future<Output = anyhow::Result<OperationOutcome>>,
) -> anyhow::Result<Vec<PartitionOutcome>> {
    match operated.await? {
        OperationOutcome::Partitions(outcomes) => Ok(outcomes),
        _ => bail!(
            "the cluster answered something else than was asked: are all nodes of the same version?"
        ),
    }
}

async fn operate(
    options: &GlobalOptions,
    operation: Operation,
) -> anyhow::Result<OperationOutcome> {
    connect::operate(options, operation).await
}
