//! Where a node's replicas go when it is to leave the cluster.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::command::Reassignment;
use super::image::ClusterImage;
use crate::types::{NodeId, TopicPartition};

/// There is no other node for one of a node's replicas.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "partition {partition} has {replicas} replicas, and besides node {node} only {others} nodes are there to hold them: add a node, or give the partition fewer replicas"
)]
pub struct NoRoom {
    pub node: NodeId,
    pub partition: TopicPartition,
    pub replicas: usize,
    pub others: usize,
}

/// Reassignments that leave `node` without a replica: each of its replicas goes to the node that has the fewest, and is
/// among `others`; where it was the preferred leader, to the one that is so for the fewest. Every other replica stays.
pub fn evacuate(
    image: &ClusterImage,
    node: NodeId,
    others: &BTreeSet<NodeId>,
) -> Result<Vec<Reassignment>, NoRoom> {
    let mut loads: BTreeMap<NodeId, Load> = others
        .iter()
        .filter(|&&other| other != node)
        .map(|&other| (other, Load::default()))
        .collect();
    for (_, state) in image.partitions() {
        for (i, replica) in state.wanted_replicas().iter().enumerate() {
            if let Some(load) = loads.get_mut(replica) {
                load.count(i);
            }
        }
    }
    let mut reassignments = Vec::new();
    for (partition, state) in image.partitions() {
        let replicas = state.wanted_replicas();
        let Some(place) = replicas.iter().position(|&replica| replica == node) else {
            continue;
        };
        let free = loads
            .iter()
            .filter(|(other, _)| !replicas.contains(other))
            .min_by_key(|(other, load)| match place {
                0 => (load.preferred, load.replicas, **other),
                _ => (load.replicas, load.preferred, **other),
            });
        let Some((&chosen, _)) = free else {
            return Err(NoRoom {
                node,
                partition,
                replicas: replicas.len(),
                others: loads.len(),
            });
        };
        let mut target = replicas.to_vec();
        target[place] = chosen;
        if let Some(load) = loads.get_mut(&chosen) {
            load.count(place);
        }
        reassignments.push(Reassignment {
            partition,
            partition_epoch: state.partition_epoch,
            target,
        });
    }
    Ok(reassignments)
}

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    /// Partitions of which it is the preferred leader.
    preferred: usize,
    replicas: usize,
}

impl Load {
    fn count(&mut self, place: usize) {
        self.replicas += 1;
        self.preferred += usize::from(place == 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::random_commands::{image_with_nodes, node, nodes};
    use super::*;
    use crate::metadata::{CreateTopicRequest, Outcome};
    use crate::types::{TopicId, TopicName};

    fn image(nodes_count: u32, assignment: Vec<Vec<NodeId>>) -> ClusterImage {
        let mut image = image_with_nodes(nodes_count);
        let request = CreateTopicRequest {
            name: TopicName::new("t").unwrap(),
            id: TopicId::from_random_bits(1),
            partitions: None,
            replication_factor: None,
            assignment: Some(assignment),
            config: BTreeMap::new(),
        };
        let command = request.resolve(&image, &nodes(1..=nodes_count)).unwrap();
        image.apply(&command).unwrap();
        image
    }

    #[test]
    fn replicas_go_to_the_nodes_that_have_the_fewest_and_keep_their_places() {
        let of = |ids: [u32; 3]| ids.map(node).to_vec();
        let mut assignment = vec![of([1, 2, 3]); 4];
        assignment.extend([of([2, 1, 3]), of([2, 3, 1])]);
        let mut image = image(5, assignment);
        let moves = evacuate(&image, node(1), &nodes(1..=5)).unwrap();
        assert_eq!(moves.len(), 6);
        let mut received = BTreeMap::new();
        for (reassignment, place) in moves.iter().zip([0, 0, 0, 0, 1, 2]) {
            assert!(!reassignment.target.contains(&node(1)));
            *received
                .entry(reassignment.target[place].get())
                .or_insert(0) += 1;
        }
        assert_eq!(received, BTreeMap::from([(4, 3), (5, 3)]));
        let done = image.apply(&crate::metadata::Command::Reassign {
            reassignments: moves,
        });
        let Ok(Outcome::Partitions(results)) = done else {
            panic!("{done:?}");
        };
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        // Asked again while they are under way, there is nothing more to do.
        assert_eq!(evacuate(&image, node(1), &nodes(1..=5)), Ok(Vec::new()));
    }

    #[test]
    fn too_few_nodes_are_told_before_anything_moves() {
        let image = image(3, vec![[1, 2, 3].map(node).to_vec()]);
        let refused = evacuate(&image, node(3), &nodes(1..=3)).unwrap_err();
        assert_eq!((refused.replicas, refused.others), (3, 2));
    }
}
