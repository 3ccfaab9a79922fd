//! Which leaders are to move to another living node: off a node that drains, off a replica that is to go, back to the
//! preferred replica. Whether a move succeeds is for the election to say.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::image::ClusterImage;
use crate::types::{NodeId, PartitionState, TopicPartition};

/// A partition's leadership, and the node that it is to go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub partition: TopicPartition,
    pub to: NodeId,
}

/// Whether `node` could take the leadership over from a living leader: it is in sync by the process that runs now, alive,
/// and stays.
pub fn can_take_over(
    image: &ClusterImage,
    alive: &BTreeSet<NodeId>,
    state: &PartitionState,
    node: NodeId,
) -> bool {
    let in_sync = state
        .isr
        .iter()
        .any(|member| member.node == node && image.registered(node) == Some(*member));
    in_sync && alive.contains(&node) && !image.is_draining(node)
}

/// The partitions led by a node that drains, or by a replica that is to go once the others are in sync. Each goes to the
/// one of its replicas that leads least; one that nobody can take over is left out.
pub fn moves_away(image: &ClusterImage, alive: &BTreeSet<NodeId>) -> Vec<Move> {
    if image.draining().is_empty() && image.reassigning().next().is_none() {
        return Vec::new();
    }
    let mut led: BTreeMap<NodeId, usize> = BTreeMap::new();
    for leader in image.partitions().filter_map(|(_, s)| s.leader_node()) {
        *led.entry(leader).or_default() += 1;
    }
    let mut moves = Vec::new();
    for (partition, state) in image.partitions() {
        let Some(leader) = state.leader_node() else {
            continue;
        };
        let target = &state.target_replicas;
        let goes = !target.is_empty()
            && !target.contains(&leader)
            && target.iter().all(|&node| state.isr_contains(node));
        if !goes && !image.is_draining(leader) {
            continue;
        }
        let ranked = state.replicas.iter().enumerate().filter(|&(_, &node)| {
            node != leader
                && (!goes || target.contains(&node))
                && can_take_over(image, alive, state, node)
        });
        let least = ranked.min_by_key(|&(rank, node)| (led.get(node).copied(), rank));
        if let Some((_, &to)) = least {
            *led.entry(to).or_default() += 1;
            moves.push(Move { partition, to });
        }
    }
    moves
}

/// The partitions that are led by another than their preferred replica, for each node that misses more than
/// `tolerated_percent` of those that it should lead: Kafka's rule.
pub fn moves_to_preferred(
    image: &ClusterImage,
    alive: &BTreeSet<NodeId>,
    tolerated_percent: u8,
) -> Vec<Move> {
    let mut preferred: BTreeMap<NodeId, (usize, Vec<Move>)> = BTreeMap::new();
    for (partition, state) in image.partitions() {
        let Some(&to) = state.replicas.first() else {
            continue;
        };
        let (all, missed) = preferred.entry(to).or_default();
        *all += 1;
        if state.leader_node().is_some_and(|leader| leader != to) {
            missed.push(Move { partition, to });
        }
    }
    let mut moves = Vec::new();
    for (all, missed) in preferred.into_values() {
        if missed.len() * 100 > all * usize::from(tolerated_percent) {
            moves.extend(missed.into_iter().filter(|wanted| {
                image
                    .partition(wanted.partition)
                    .is_some_and(|state| can_take_over(image, alive, state, wanted.to))
            }));
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::super::random_commands::{image_with_nodes, node, nodes, registration};
    use super::*;
    use crate::metadata::{
        Appointing, Command, CreateTopicRequest, ElectionStart, Reassignment, Registration,
    };
    use crate::types::{Incarnation, PartitionIndex, TopicId, TopicName};

    fn partition(index: u32) -> TopicPartition {
        TopicPartition {
            topic: TopicId::from_random_bits(1),
            partition: PartitionIndex(index),
        }
    }

    fn image(assignment: &[[u32; 3]]) -> ClusterImage {
        let mut image = image_with_nodes(4);
        let request = CreateTopicRequest {
            name: TopicName::new("t").unwrap(),
            id: partition(0).topic,
            partitions: None,
            replication_factor: None,
            assignment: Some(
                assignment
                    .iter()
                    .map(|ids| ids.map(node).to_vec())
                    .collect(),
            ),
            config: BTreeMap::new(),
        };
        let command = request.resolve(&image, &nodes(1..=4)).unwrap();
        image.apply(&command).unwrap();
        image
    }

    fn appoint(image: &mut ClusterImage, index: u32, leader: u32) {
        let state = image.partition(partition(index)).unwrap();
        let elections = vec![ElectionStart {
            partition: partition(index),
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
        }];
        image.apply(&Command::StartElections { elections }).unwrap();
        let appointments = vec![Appointing {
            partition: partition(index),
            leader_epoch: image.partition(partition(index)).unwrap().leader_epoch,
            leader: image.registered(node(leader)).unwrap(),
        }];
        image
            .apply(&Command::AppointLeaders { appointments })
            .unwrap();
    }

    fn drain(image: &mut ClusterImage, id: u32) {
        let drain = Command::SetDraining {
            node: node(id),
            incarnation: image.registered(node(id)).unwrap().incarnation,
            on: true,
        };
        image.apply(&drain).unwrap();
    }

    fn told(moves: Vec<Move>) -> Vec<(u32, u32)> {
        moves
            .into_iter()
            .map(|m| (m.partition.partition.0, m.to.get()))
            .collect()
    }

    #[test]
    fn what_a_draining_node_leads_is_spread_over_those_that_lead_least() {
        let mut image = image(&[[1, 2, 3], [1, 2, 3], [1, 3, 2], [2, 1, 3]]);
        let all = nodes(1..=4);
        assert_eq!(told(moves_away(&image, &all)), []);
        drain(&mut image, 1);
        assert_eq!(told(moves_away(&image, &all)), [(0, 3), (1, 2), (2, 3)]);
        assert_eq!(
            told(moves_away(&image, &nodes([1, 2]))),
            [(0, 2), (1, 2), (2, 2)]
        );
        let restarted = Registration {
            incarnation: Incarnation::from_random_bits(9),
            ..registration(2, 1)
        };
        image
            .apply(&Command::RegisterNode {
                registration: restarted,
            })
            .unwrap();
        assert_eq!(
            told(moves_away(&image, &all)),
            [(0, 3), (1, 3), (2, 3)],
            "node 2 is in sync by an earlier process only"
        );
        drain(&mut image, 3);
        assert_eq!(told(moves_away(&image, &all)), [], "nobody is left");
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_once_the_others_are_in_sync() {
        let mut image = image(&[[1, 2, 3]]);
        let all = nodes(1..=4);
        let reassign = |image: &mut ClusterImage, target: [u32; 2]| {
            let state = image.partition(partition(0)).unwrap();
            let reassignments = vec![Reassignment {
                partition: partition(0),
                partition_epoch: state.partition_epoch,
                target: target.map(node).to_vec(),
            }];
            image.apply(&Command::Reassign { reassignments }).unwrap();
        };
        reassign(&mut image, [4, 2]);
        assert_eq!(told(moves_away(&image, &all)), [], "4 has not caught up");
        reassign(&mut image, [3, 2]);
        assert_eq!(told(moves_away(&image, &all)), [(0, 3)]);
    }

    #[test]
    fn a_tenth_of_the_preferred_leaderships_may_be_elsewhere() {
        let mut image = image(&[[1, 2, 3]; 10]);
        let all = nodes(1..=4);
        appoint(&mut image, 0, 2);
        assert_eq!(told(moves_to_preferred(&image, &all, 10)), []);
        assert_eq!(told(moves_to_preferred(&image, &all, 9)), [(0, 1)]);
        appoint(&mut image, 1, 3);
        assert_eq!(told(moves_to_preferred(&image, &all, 10)), [(0, 1), (1, 1)]);
        assert_eq!(
            told(moves_to_preferred(&image, &nodes(2..=4), 0)),
            [],
            "the preferred one is not there"
        );
    }
}
