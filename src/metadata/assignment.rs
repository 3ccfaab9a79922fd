//! Which nodes get a new partition's replicas, and what a request for a topic comes to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::apply::{check_partition_count, repeated};
use super::command::{Command, NewPartition, NewTopic, Rejection};
use super::image::{ClusterImage, MAX_REPLICAS};
use super::topic_config::TopicConfig;
use crate::types::{NodeId, PartitionIndex, TopicId, TopicName};

/// The replication factor of a topic that asks for none, where there are as many nodes.
pub const DEFAULT_REPLICATION_FACTOR: usize = 3;

/// A topic as somebody asks for it. The id is drawn by whoever asks, so that the same request sent twice makes one topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopicRequest {
    pub name: TopicName,
    pub id: TopicId,
    /// `None`: 1. Not with `assignment`.
    pub partitions: Option<u32>,
    /// `None`: min(3, registered nodes). Not with `assignment`.
    pub replication_factor: Option<u16>,
    /// The replicas of each partition, chosen by hand, the preferred leader first.
    pub assignment: Option<Vec<Vec<NodeId>>>,
    pub config: BTreeMap<String, String>,
}

/// More partitions for a topic, as somebody asks for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatePartitionsRequest {
    pub topic: TopicId,
    /// How many the topic is to have in all.
    pub total: u32,
    /// The replicas of each *new* partition, chosen by hand.
    pub assignment: Option<Vec<Vec<NodeId>>>,
}

impl CreateTopicRequest {
    /// The command that does it, with every choice made against `image` and the nodes that are alive.
    pub fn resolve(
        &self,
        image: &ClusterImage,
        alive: &BTreeSet<NodeId>,
    ) -> Result<Command, Rejection> {
        if image
            .topic_by_name(&self.name)
            .is_some_and(|topic| topic.id != self.id)
        {
            return Err(Rejection::TopicExists(self.name.clone()));
        }
        let config = TopicConfig::from_map(&self.config)?;
        let replicas = match &self.assignment {
            Some(assignment) => {
                if self.partitions.is_some() || self.replication_factor.is_some() {
                    return Err(Rejection::Malformed(
                        "a request names either an assignment or counts, not both".to_owned(),
                    ));
                }
                assignment.clone()
            }
            None => {
                let factor = match self.replication_factor {
                    Some(factor) => usize::from(factor),
                    None => image.nodes().len().clamp(1, DEFAULT_REPLICATION_FACTOR),
                };
                let count = self.partitions.unwrap_or(1);
                check_partition_count(0, count as usize, image.partition_count())?;
                assign(image, alive, &[], count, factor)?
            }
        };
        let factor = replicas.iter().map(Vec::len).max().unwrap_or_default();
        Ok(Command::CreateTopic {
            topic: NewTopic {
                id: self.id,
                name: self.name.clone(),
                config: self.config.clone(),
                partitions: new_partitions(image, replicas, 0, alive)?,
                min_insync: config.min_insync(factor),
            },
        })
    }
}

impl CreatePartitionsRequest {
    /// The command that does it, with every choice made against `image` and the nodes that are alive.
    pub fn resolve(
        &self,
        image: &ClusterImage,
        alive: &BTreeSet<NodeId>,
    ) -> Result<Command, Rejection> {
        let topic = image
            .topic(self.topic)
            .ok_or(Rejection::UnknownTopic(self.topic))?;
        let present = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        let added = self.total.saturating_sub(present);
        check_partition_count(present as usize, added as usize, image.partition_count())?;
        let replicas = match &self.assignment {
            Some(assignment) if assignment.len() != added as usize => {
                return Err(Rejection::InvalidAssignment {
                    partition: PartitionIndex(present),
                    reason: format!(
                        "{} new partitions are assigned and {added} are asked for",
                        assignment.len()
                    ),
                });
            }
            Some(assignment) => assignment.clone(),
            None => {
                let existing: Vec<&[NodeId]> = topic
                    .partitions
                    .iter()
                    .map(|state| state.replicas.as_slice())
                    .collect();
                assign(image, alive, &existing, added, topic.replication_factor())?
            }
        };
        let factor = replicas.iter().map(Vec::len).max().unwrap_or_default();
        let config = TopicConfig::from_map(&topic.config)?;
        Ok(Command::CreatePartitions {
            topic: self.topic,
            expected_count: present,
            partitions: new_partitions(image, replicas, present, alive)?,
            min_insync: config.min_insync(factor),
        })
    }
}

/// New partitions with those replicas, led and kept in sync by the ones that are alive. One that is draining leads only if
/// no other can.
fn new_partitions(
    image: &ClusterImage,
    assignment: Vec<Vec<NodeId>>,
    first: u32,
    alive: &BTreeSet<NodeId>,
) -> Result<Vec<NewPartition>, Rejection> {
    (first..)
        .zip(assignment)
        .map(|(index, replicas)| {
            let mut in_sync: Vec<NodeId> = replicas
                .iter()
                .copied()
                .filter(|node| alive.contains(node))
                .collect();
            in_sync.sort_by_key(|&node| image.is_draining(node));
            let reason = if let Some(node) = repeated(&replicas) {
                format!("it names node {node} twice")
            } else if in_sync.is_empty() {
                "none of its nodes is alive; start one of them or choose others".to_owned()
            } else {
                return Ok(NewPartition { replicas, in_sync });
            };
            Err(Rejection::InvalidAssignment {
                partition: PartitionIndex(index),
                reason,
            })
        })
        .collect()
}

/// How many replicas a node has, in the order in which it matters when the next one is placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    topic_leaders: usize,
    leaders: usize,
    topic_replicas: usize,
    replicas: usize,
}

/// Chooses replicas for `count` more partitions of a topic whose partitions so far are `existing`.
///
/// Leaders first go to the nodes that lead least of the topic, then of the cluster; followers to those that hold least of
/// the topic, then of the cluster; among equals, in a ring from the leader on. So one topic spreads evenly, as if dealt
/// round-robin, and many small ones do too. Nodes that are draining or not alive are used only where the others do not
/// suffice.
pub fn assign(
    image: &ClusterImage,
    alive: &BTreeSet<NodeId>,
    existing: &[&[NodeId]],
    count: u32,
    replication_factor: usize,
) -> Result<Vec<Vec<NodeId>>, Rejection> {
    let registered: Vec<NodeId> = image
        .nodes()
        .map(|registration| registration.node)
        .collect();
    let invalid = |reason: String| Rejection::InvalidReplicationFactor {
        factor: replication_factor,
        reason,
    };
    if replication_factor == 0 || replication_factor > MAX_REPLICAS {
        return Err(invalid(format!("it must be from 1 to {MAX_REPLICAS}")));
    }
    if replication_factor > registered.len() {
        return Err(invalid(format!(
            "the cluster has {} nodes; add nodes or ask for fewer replicas",
            registered.len()
        )));
    }
    let mut loads: BTreeMap<NodeId, Load> = registered
        .iter()
        .map(|&node| (node, Load::default()))
        .collect();
    for (_, state) in image.partitions() {
        count_replicas(&mut loads, &state.replicas, false);
    }
    for replicas in existing {
        count_replicas(&mut loads, replicas, true);
    }
    let staying: BTreeSet<NodeId> = alive.difference(image.draining()).copied().collect();
    let mut assignment = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let replicas = assign_one(&registered, &staying, &loads, replication_factor);
        count_replicas(&mut loads, &replicas, false);
        count_replicas(&mut loads, &replicas, true);
        assignment.push(replicas);
    }
    Ok(assignment)
}

fn count_replicas(loads: &mut BTreeMap<NodeId, Load>, replicas: &[NodeId], of_topic: bool) {
    for (i, node) in replicas.iter().enumerate() {
        if let Some(load) = loads.get_mut(node) {
            let leads = usize::from(i == 0);
            if of_topic {
                load.topic_replicas += 1;
                load.topic_leaders += leads;
            } else {
                load.replicas += 1;
                load.leaders += leads;
            }
        }
    }
}

fn assign_one(
    nodes: &[NodeId],
    alive: &BTreeSet<NodeId>,
    loads: &BTreeMap<NodeId, Load>,
    replication_factor: usize,
) -> Vec<NodeId> {
    let load = |node: &NodeId| loads.get(node).copied().unwrap_or_default();
    let is_alive = |node: &NodeId| Reverse(alive.contains(node));
    let Some(leader) = nodes.iter().copied().min_by_key(|node| {
        let load = load(node);
        (
            is_alive(node),
            load.topic_leaders,
            load.leaders,
            load.topic_replicas,
            load.replicas,
            *node,
        )
    }) else {
        return Vec::new();
    };
    // The ring begins behind the leader, so that equal followers are not always the same ones.
    let split = nodes.partition_point(|&node| node <= leader);
    let mut followers: Vec<NodeId> = nodes[split..]
        .iter()
        .chain(&nodes[..split])
        .copied()
        .filter(|&node| node != leader)
        .collect();
    followers.sort_by_key(|node| {
        let load = load(node);
        (is_alive(node), load.topic_replicas, load.replicas)
    });
    std::iter::once(leader)
        .chain(followers)
        .take(replication_factor)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::random_commands::{image_with_nodes, node, nodes};
    use super::*;
    use crate::metadata::Outcome;

    fn request(name: &str) -> CreateTopicRequest {
        CreateTopicRequest {
            name: TopicName::new(name).unwrap(),
            id: TopicId::from_random_bits(name.bytes().fold(7, |a, b| a * 31 + u128::from(b))),
            partitions: None,
            replication_factor: None,
            assignment: None,
            config: BTreeMap::new(),
        }
    }

    fn create(image: &mut ClusterImage, alive: &BTreeSet<NodeId>, request: &CreateTopicRequest) {
        let command = request.resolve(image, alive).unwrap();
        assert_eq!(
            image.apply(&command),
            Ok(Outcome::TopicCreated { topic: request.id })
        );
    }

    fn spread(image: &ClusterImage, of: impl Fn(&[NodeId]) -> Vec<NodeId>) -> Vec<usize> {
        image
            .nodes()
            .map(|registration| {
                image
                    .partitions()
                    .flat_map(|(_, state)| of(&state.replicas))
                    .filter(|&node| node == registration.node)
                    .count()
            })
            .collect()
    }

    #[test]
    fn leaders_and_replicas_of_one_topic_are_spread_evenly() {
        let mut image = image_with_nodes(5);
        let mut asked = request("t");
        asked.partitions = Some(10);
        create(&mut image, &nodes(1..=5), &asked);
        assert_eq!(spread(&image, |r| vec![r[0]]), [2; 5]);
        assert_eq!(spread(&image, <[NodeId]>::to_vec), [6; 5]);
    }

    #[test]
    fn leaders_of_many_small_topics_are_spread_too() {
        let mut image = image_with_nodes(3);
        for i in 0..6 {
            create(&mut image, &nodes(1..=3), &request(&format!("t{i}")));
        }
        assert_eq!(spread(&image, |r| vec![r[0]]), [2; 3]);
    }

    #[test]
    fn the_defaults_follow_the_number_of_nodes() {
        for (count, factor, min_insync) in [(1, 1, 1), (2, 2, 2), (3, 3, 2), (5, 3, 2)] {
            let mut image = image_with_nodes(count);
            let asked = request("t");
            create(&mut image, &nodes(1..=count), &asked);
            let topic = image.topic(asked.id).unwrap();
            assert_eq!(topic.replication_factor(), factor);
            assert_eq!(topic.partitions[0].min_insync, min_insync);
            assert_eq!(topic.partitions[0].isr.len(), factor);
            assert_eq!(topic.partitions[0].leader_epoch.get(), 1);
        }
    }

    #[test]
    fn the_dead_are_replicas_only_where_they_must_and_never_in_sync() {
        let mut image = image_with_nodes(4);
        let alive = nodes([2, 3, 4]);
        let asked = request("t");
        create(&mut image, &alive, &asked);
        assert!(
            !image.topic(asked.id).unwrap().partitions[0]
                .replicas
                .contains(&node(1))
        );
        let mut asked = request("u");
        asked.replication_factor = Some(4);
        create(&mut image, &alive, &asked);
        let state = &image.topic(asked.id).unwrap().partitions[0];
        assert_eq!(*state.replicas.last().unwrap(), node(1));
        assert_eq!(state.isr.len(), 3);
        assert!(!state.isr_contains(node(1)));
    }

    #[test]
    fn impossible_requests_say_what_is_wrong() {
        let mut image = image_with_nodes(3);
        let alive = nodes([1, 2]);
        let wrong = |change: &dyn Fn(&mut CreateTopicRequest)| {
            let mut asked = request("t");
            change(&mut asked);
            asked.resolve(&image, &alive).unwrap_err().to_string()
        };
        assert!(wrong(&|r| r.replication_factor = Some(4)).contains("3 nodes"));
        assert!(wrong(&|r| r.replication_factor = Some(0)).contains("from 1 to"));
        assert!(wrong(&|r| r.partitions = Some(0)).contains("at least one"));
        assert!(wrong(&|r| r.partitions = Some(u32::MAX)).contains("at most"));
        assert!(wrong(&|r| r.assignment = Some(vec![vec![node(3)]])).contains("alive"));
        assert!(wrong(&|r| r.assignment = Some(vec![vec![node(1); 2]])).contains("twice"));
        create(&mut image, &alive, &request("t"));
        let mut again = request("t");
        again.resolve(&image, &alive).unwrap();
        again.id = TopicId::from_random_bits(1);
        assert!(matches!(
            again.resolve(&image, &alive),
            Err(Rejection::TopicExists(_))
        ));
    }

    #[test]
    fn added_partitions_continue_the_spread() {
        let mut image = image_with_nodes(3);
        let alive = nodes(1..=3);
        let mut asked = request("t");
        asked.partitions = Some(2);
        create(&mut image, &alive, &asked);
        let more = CreatePartitionsRequest {
            topic: asked.id,
            total: 6,
            assignment: None,
        };
        let command = more.resolve(&image, &alive).unwrap();
        assert_eq!(
            image.apply(&command),
            Ok(Outcome::PartitionsCreated { count: 6 })
        );
        assert_eq!(spread(&image, |r| vec![r[0]]), [2; 3]);
        assert!(more.resolve(&image, &alive).is_err(), "nothing to add");
        assert!(image.apply(&command).is_err(), "the count has changed");
    }
}
