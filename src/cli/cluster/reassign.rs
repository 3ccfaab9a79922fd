//! `quorate cluster reassign`.

use anyhow::bail;

use super::super::{Exit, GlobalOptions, note};
use super::place::{self, Place};
use super::{look, operate, partitions_of, tell_partitions, until};
use crate::admin::{NodeStatus, PartitionStatus};
use crate::controller::Operation;
use crate::metadata::Reassignment;
use crate::types::NodeId;

/// Reassigns what is at `place` to `replicas`; to what there was before where they are empty.
pub(super) async fn run(
    options: &GlobalOptions,
    place: Place,
    replicas: Vec<NodeId>,
    wait: bool,
) -> anyhow::Result<Exit> {
    let status = look(options).await?;
    warn_of_the_dead(&status, &replicas);
    let meant = place.find(&status)?;
    let reassignments: Vec<Reassignment> = meant
        .iter()
        .filter_map(|partition| {
            let target = if replicas.is_empty() {
                partition.reassigned_from.clone()
            } else if place.partition.is_some() {
                replicas.clone()
            } else {
                turned(&replicas, partition)
            };
            (!target.is_empty()).then(|| Reassignment {
                partition: place::id(partition),
                partition_epoch: partition.partition_epoch,
                target,
            })
        })
        .collect();
    if reassignments.is_empty() {
        bail!("no reassignment of {place} is under way");
    }
    let done = if replicas.is_empty() {
        "goes back to what it was"
    } else {
        "is being reassigned"
    };
    let operation = Operation::Reassign { reassignments };
    let outcomes = partitions_of(operate(options, operation)).await?;
    let exit = tell_partitions(options, &status, &outcomes, done)?;
    if wait && exit == Exit::Ok {
        until(options, async || {
            let status = look(options).await?;
            let under_way = place
                .find(&status)?
                .into_iter()
                .find(|partition| !partition.target_replicas.is_empty());
            Ok(match under_way {
                None => Ok(()),
                Some(partition) => Err(format!(
                    "{}:{} is not done yet",
                    partition.topic, partition.partition
                )),
            })
        })
        .await?;
    }
    Ok(exit)
}

/// The list for one of a topic's partitions: turned, so that not one node is preferred for all of them.
fn turned(replicas: &[NodeId], partition: &PartitionStatus) -> Vec<NodeId> {
    let mut turned = replicas.to_vec();
    if !turned.is_empty() {
        let by = partition.partition.0 as usize % turned.len();
        turned.rotate_left(by);
    }
    turned
}

fn warn_of_the_dead(status: &NodeStatus, replicas: &[NodeId]) {
    for replica in replicas {
        let known = status.nodes.iter().find(|node| node.node == *replica);
        if known.is_some_and(|node| !node.alive) {
            note(&format!(
                "warning: node {replica} is not alive: the reassignment waits until it is"
            ));
        }
    }
}
