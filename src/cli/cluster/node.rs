//! `quorate cluster drain`, `undrain` and `remove-node`.

use std::collections::BTreeSet;

use anyhow::bail;

use super::super::{Exit, GlobalOptions, note, print_json, print_line};
use super::{look, operate, partitions_of, tell_partitions, until};
use crate::admin::{NodeStatus, PartitionStatus};
use crate::controller::{Operation, OperationOutcome};
use crate::types::NodeId;

pub(super) async fn drain(options: &GlobalOptions, node: NodeId) -> anyhow::Result<Exit> {
    operate(options, Operation::Drain { node, on: true }).await?;
    let mut stays = Vec::new();
    until(options, async || {
        let status = look(options).await?;
        let led: Vec<&PartitionStatus> = led_by(&status, node).collect();
        // What nobody else can lead stays: the node is the only living replica in sync.
        let (movable, left): (Vec<_>, Vec<_>) = led
            .into_iter()
            .partition(|partition| somebody_else_can(&status, node, partition));
        if movable.is_empty() {
            stays = left.into_iter().map(name).collect();
            return Ok(Ok(()));
        }
        Ok(Err(format!(
            "node {node} still leads {} partitions, such as {}",
            movable.len(),
            name(movable[0])
        )))
    })
    .await?;
    if options.json() {
        print_json(&serde_json::json!({"node": node, "draining": true, "still_led": stays}))?;
    } else if stays.is_empty() {
        print_line(&format!(
            "Node {node} leads nothing, and will not until it is started anew or undrained."
        ))?;
    } else {
        print_line(&format!(
            "Node {node} leads only what no other node can: {}. These partitions go offline with it.",
            stays.join(", ")
        ))?;
    }
    Ok(Exit::Ok)
}

pub(super) async fn undrain(options: &GlobalOptions, node: NodeId) -> anyhow::Result<Exit> {
    let outcome = operate(options, Operation::Drain { node, on: false }).await?;
    if options.json() {
        print_json(&serde_json::json!({"node": node, "draining": false}))?;
    } else if outcome == OperationOutcome::Unchanged {
        print_line(&format!("Node {node} was not draining."))?;
    } else {
        print_line(&format!("Node {node} may lead again."))?;
    }
    Ok(Exit::Ok)
}

pub(super) async fn remove(
    options: &GlobalOptions,
    node: NodeId,
    evacuate: bool,
    keep_replicas: bool,
) -> anyhow::Result<Exit> {
    if evacuate {
        move_out(options, node).await?;
    }
    let remove = || Operation::RemoveNode {
        node,
        keep_replicas,
    };
    if evacuate && is_alive(&look(options).await?, node) {
        note(&format!("node {node} holds nothing any more: stop it now"));
        until(options, async || {
            let alive = is_alive(&look(options).await?, node);
            Ok(if alive {
                Err(format!("node {node} still runs"))
            } else {
                Ok(())
            })
        })
        .await?;
    }
    operate(options, remove()).await?;
    if options.json() {
        print_json(&serde_json::json!({"node": node, "removed": true}))?;
    } else if keep_replicas {
        print_line(&format!(
            "Node {node} is removed. Start it with an empty data directory: its replicas are filled from the others."
        ))?;
    } else {
        print_line(&format!("Node {node} is removed."))?;
    }
    Ok(Exit::Ok)
}

/// Reassigns the node's replicas, and waits until they are elsewhere.
async fn move_out(options: &GlobalOptions, node: NodeId) -> anyhow::Result<()> {
    let status = look(options).await?;
    let wanted: BTreeSet<NodeId> = status.wanted_voters.clone();
    if wanted.contains(&node) {
        bail!(
            "node {node} is a controller: run \"quorate cluster remove-controller {node}\" first, after adding another where the number would be even"
        );
    }
    let outcomes = partitions_of(operate(options, Operation::Evacuate { node })).await?;
    if outcomes.iter().any(|outcome| outcome.result.is_err()) {
        tell_partitions(options, &status, &outcomes, "on its way")?;
        bail!("not every replica of node {node} can move: see above, and ask again");
    }
    until(options, async || {
        let status = look(options).await?;
        let held: Vec<&PartitionStatus> = status
            .partitions
            .iter()
            .filter(|partition| partition.replicas.contains(&node))
            .collect();
        Ok(match held.first() {
            None => Ok(()),
            Some(first) => Err(format!(
                "node {node} still holds {} replicas, such as {}",
                held.len(),
                name(first)
            )),
        })
    })
    .await
}

fn led_by(status: &NodeStatus, node: NodeId) -> impl Iterator<Item = &PartitionStatus> {
    let partitions = status.partitions.iter();
    partitions.filter(move |partition| partition.leader == Some(node))
}

fn somebody_else_can(status: &NodeStatus, node: NodeId, partition: &PartitionStatus) -> bool {
    partition.isr.iter().any(|&other| {
        let known = status.nodes.iter().find(|known| known.node == other);
        other != node && known.is_some_and(|known| known.alive && !known.draining)
    })
}

fn is_alive(status: &NodeStatus, node: NodeId) -> bool {
    let known = status.nodes.iter().find(|known| known.node == node);
    known.is_some_and(|known| known.alive)
}

fn name(partition: &PartitionStatus) -> String {
    format!("{}:{}", partition.topic, partition.partition)
}
