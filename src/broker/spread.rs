//! An internal topic is made when it is first needed, perhaps before the cluster has all its nodes: it gets more replicas as
//! they come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::controller::{Controller, Operation, OperationOutcome, jittered};
use crate::metadata::{ClusterImage, Reassignment};
use crate::types::{NodeId, TopicPartition, is_internal};

/// The replicas that each partition is to have, where there are so many nodes.
const REPLICAS: usize = 3;
/// How often it is looked for partitions with too few. Half of it is drawn at random, so that leaders do not ask in step.
const EVERY: Duration = Duration::from_secs(5);
const OPERATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Until the node stops.
pub(super) async fn keep(shared: Arc<Shared>, controller: Controller) {
    loop {
        let pause = jittered(EVERY);
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let image = controller.image().borrow().clone();
        let reassignments = wider(&image, shared.me.node, &controller.alive());
        if reassignments.is_empty() {
            continue;
        }
        let operation = Operation::Reassign { reassignments };
        let operated = tokio::select! {
            () = shared.stopping.cancelled() => return,
            operated = controller.operate(operation, OPERATE_TIMEOUT) => operated,
        };
        match operated {
            Ok(OperationOutcome::Partitions(outcomes)) => {
                for outcome in outcomes {
                    match outcome.result {
                        Ok(()) => tracing::info!(
                            partition = %outcome.partition,
                            "an internal topic gets another replica"
                        ),
                        Err(cause) => tracing::debug!(
                            partition = %outcome.partition, cause,
                            "an internal topic got no other replica"
                        ),
                    }
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(cause = %error, "an internal topic got no other replica");
            }
        }
    }
}

/// One more replica for each partition of the internal topics that `me` leads, that has fewer than it should and for which
/// there is another node: the one with the fewest replicas.
fn wider(image: &ClusterImage, me: NodeId, alive: &BTreeSet<NodeId>) -> Vec<Reassignment> {
    let internal = || {
        image
            .topics()
            .filter(|topic| is_internal(topic.name.as_str()))
    };
    if internal().next().is_none() {
        return Vec::new();
    }
    // Only controllers know who is alive; the others take each registered node for it.
    let usable =
        |node: &NodeId| (alive.is_empty() || alive.contains(node)) && !image.is_draining(*node);
    let mut loads: BTreeMap<NodeId, usize> = image
        .nodes()
        .map(|node| node.node)
        .filter(usable)
        .map(|node| (node, 0))
        .collect();
    for (_, state) in image.partitions() {
        for replica in state.wanted_replicas() {
            if let Some(load) = loads.get_mut(replica) {
                *load += 1;
            }
        }
    }
    let mut reassignments = Vec::new();
    let led = internal().flat_map(|topic| {
        topic
            .indexed_partitions()
            .map(move |(partition, state)| (topic.id, partition, state))
    });
    for (topic, partition, state) in led {
        let replicas = state.wanted_replicas();
        let is_moving = !state.target_replicas.is_empty();
        if state.leader_node() != Some(me) || is_moving || replicas.len() >= REPLICAS {
            continue;
        }
        let chosen = loads
            .iter()
            .filter(|(node, _)| !replicas.contains(node))
            .min_by_key(|&(node, load)| (*load, *node))
            .map(|(node, _)| *node);
        let Some(chosen) = chosen else {
            continue;
        };
        if let Some(load) = loads.get_mut(&chosen) {
            *load += 1;
        }
        let mut target = replicas.to_vec();
        target.push(chosen);
        reassignments.push(Reassignment {
            partition: TopicPartition { topic, partition },
            partition_epoch: state.partition_epoch,
            target,
        });
    }
    reassignments
}
