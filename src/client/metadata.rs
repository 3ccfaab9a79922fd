//! What a client knows of the cluster: nodes, topics, leaders.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use kafka_protocol::messages::MetadataResponse;
use tokio::time::Instant;

use crate::types::{ErrorCode, NodeId, PartitionIndex, TopicId, TopicName};

/// A snapshot of the cluster. It may be out of date: a node that is asked for what it does not lead says so.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// As the cluster spells it.
    pub cluster_id: Option<String>,
    /// The node that takes administrative requests.
    pub controller: Option<NodeId>,
    /// Each live node's `host:port` for clients.
    pub nodes: BTreeMap<NodeId, String>,
    /// Only topics that were asked for.
    pub topics: HashMap<TopicName, TopicView>,
}

/// One topic.
#[derive(Clone, Debug)]
pub struct TopicView {
    pub name: TopicName,
    /// `None` where the node speaks a version that has no topic ids.
    pub id: Option<TopicId>,
    pub is_internal: bool,
    /// By partition number; the vector's index is the number.
    pub partitions: Vec<PartitionView>,
    /// When it was fetched.
    pub(super) fetched: Instant,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionView {
    pub partition: PartitionIndex,
    pub leader: Option<NodeId>,
    /// −1 where the node speaks a version that has none.
    pub leader_epoch: i32,
    pub replicas: Vec<NodeId>,
    /// The in-sync set.
    pub isr: Vec<NodeId>,
    /// Replicas on nodes that are down.
    pub offline: Vec<NodeId>,
    pub error: Option<ErrorCode>,
}

impl ClusterView {
    pub fn partition(
        &self,
        topic: &TopicName,
        partition: PartitionIndex,
    ) -> Option<&PartitionView> {
        self.topics.get(topic)?.partitions.get(partition.0 as usize)
    }

    /// The leader of a partition and where it listens; `None` where either is not known.
    pub fn leader(
        &self,
        topic: &TopicName,
        partition: PartitionIndex,
    ) -> Option<(NodeId, &str, i32)> {
        let partition = self.partition(topic, partition)?;
        let leader = partition.leader?;
        let address = self.nodes.get(&leader)?;
        Some((leader, address, partition.leader_epoch))
    }

    /// Takes in a response. Returns the topics that it could not describe, with the reason.
    ///
    /// Nodes learn of elections one after another, so a response may be older than what is known: a partition is not put
    /// back to an earlier leader epoch, unless its topic was made anew.
    pub(super) fn merge(
        &mut self,
        response: &MetadataResponse,
        now: Instant,
    ) -> Vec<(TopicName, ErrorCode)> {
        if let Some(cluster_id) = &response.cluster_id {
            self.cluster_id = Some(cluster_id.to_string());
        }
        self.controller = NodeId::from_broker_id(response.controller_id.0);
        if !response.brokers.is_empty() {
            self.nodes = response
                .brokers
                .iter()
                .filter_map(|node| {
                    let address = host_port(&node.host, node.port);
                    Some((NodeId::from_broker_id(node.node_id.0)?, address))
                })
                .collect();
        }
        let mut failed = Vec::new();
        for topic in &response.topics {
            let Some(name) = topic.name.as_ref().and_then(|n| TopicName::new(&n.0).ok()) else {
                continue;
            };
            if let Err(error) = ErrorCode::from_code(topic.error_code) {
                if error == ErrorCode::UnknownTopicOrPartition {
                    self.topics.remove(&name);
                }
                failed.push((name, error));
                continue;
            }
            let id = topic.topic_id.as_u128();
            let id = (id != 0).then(|| TopicId::from_random_bits(id));
            let known = self.topics.get(&name).filter(|known| known.id == id);
            let mut partitions: Vec<PartitionView> = topic
                .partitions
                .iter()
                .filter_map(|partition| {
                    let nodes = |ids: &[kafka_protocol::messages::BrokerId]| {
                        ids.iter()
                            .filter_map(|id| NodeId::from_broker_id(id.0))
                            .collect()
                    };
                    let new = PartitionView {
                        partition: PartitionIndex::from_wire(partition.partition_index)?,
                        leader: NodeId::from_broker_id(partition.leader_id.0),
                        leader_epoch: partition.leader_epoch,
                        replicas: nodes(&partition.replica_nodes),
                        isr: nodes(&partition.isr_nodes),
                        offline: nodes(&partition.offline_replicas),
                        error: ErrorCode::from_code(partition.error_code).err(),
                    };
                    let known = known
                        .and_then(|known| known.partitions.get(new.partition.0 as usize))
                        .filter(|known| known.leader_epoch > new.leader_epoch);
                    Some(known.cloned().unwrap_or(new))
                })
                .collect();
            partitions.sort_by_key(|partition| partition.partition);
            // The index must be the number, so a response with holes is as good as none.
            let dense = (0u32..)
                .zip(&partitions)
                .all(|(i, partition)| partition.partition.0 == i);
            if !dense {
                failed.push((name, ErrorCode::UnknownServerError));
                continue;
            }
            self.topics.insert(
                name.clone(),
                TopicView {
                    name,
                    id,
                    is_internal: topic.is_internal,
                    partitions,
                    fetched: now,
                },
            );
        }
        failed
    }
}

/// Who leads a partition, as a node that does not lead it says in its refusal (KIP-951).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedLeader {
    pub(super) partition: PartitionName,
    pub(super) leader: NodeId,
    pub(super) leader_epoch: i32,
    /// `host:port`, where the refusal says it.
    pub(super) address: Option<String>,
}

impl ClusterView {
    /// Takes in who leads, if that is news: a later leader epoch of a partition that is known, on a node whose address is known or
    /// named. Whether it was.
    pub(super) fn note_leader(&mut self, named: &NamedLeader) -> bool {
        let PartitionName { topic, partition } = &named.partition;
        let known = self.topics.get_mut(topic);
        let Some(known) = known.and_then(|t| t.partitions.get_mut(partition.0 as usize)) else {
            return false;
        };
        let is_reachable = named.address.is_some() || self.nodes.contains_key(&named.leader);
        if named.leader_epoch <= known.leader_epoch || !is_reachable {
            return false;
        }
        known.leader = Some(named.leader);
        known.leader_epoch = named.leader_epoch;
        if let Some(address) = &named.address {
            self.nodes.insert(named.leader, address.clone());
        }
        true
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn host_port(host: &str, port: i32) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// A partition of a topic by name, as clients speak of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionName {
    pub topic: TopicName,
    pub partition: PartitionIndex,
}

impl PartitionName {
    pub fn new(topic: TopicName, partition: PartitionIndex) -> PartitionName {
        PartitionName { topic, partition }
    }
}

impl fmt::Display for PartitionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kafka_protocol::messages::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };
    use kafka_protocol::messages::{self, BrokerId};
    use kafka_protocol::protocol::StrBytes;

    use super::*;

    /// A response with one node per address, numbered from 1, and one topic whose partitions have the given (leader,
    /// epoch).
    pub(in crate::client) fn response(
        addresses: &[&str],
        topic: &str,
        leaders: &[(i32, i32)],
    ) -> MetadataResponse {
        let brokers = addresses.iter().zip(1..).map(|(address, id)| {
            let (host, port) = address.rsplit_once(':').unwrap();
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_string(host.to_owned()))
                .with_port(port.parse().unwrap())
        });
        let partitions = leaders.iter().zip(0..).map(|(&(leader, epoch), index)| {
            MetadataResponsePartition::default()
                .with_partition_index(index)
                .with_leader_id(BrokerId(leader))
                .with_leader_epoch(epoch)
                .with_replica_nodes(vec![BrokerId(1)])
                .with_isr_nodes(vec![BrokerId(1)])
        });
        let name = messages::TopicName(StrBytes::from_string(topic.to_owned()));
        MetadataResponse::default()
            .with_brokers(brokers.collect())
            .with_controller_id(BrokerId(1))
            .with_topics(vec![
                MetadataResponseTopic::default()
                    .with_name(Some(name))
                    .with_topic_id(uuid::Uuid::from_u128(7))
                    .with_partitions(partitions.collect()),
            ])
    }

    #[test]
    fn an_older_answer_does_not_bring_a_deposed_leader_back() {
        let topic = TopicName::new("t").unwrap();
        let mut view = ClusterView::default();
        let nodes = ["a:1", "b:2"];
        let now = Instant::now();
        view.merge(&response(&nodes, "t", &[(2, 5)]), now);
        assert_eq!(
            view.leader(&topic, PartitionIndex(0)),
            NodeId::new(2).map(|id| (id, "b:2", 5))
        );
        view.merge(&response(&nodes, "t", &[(1, 4)]), now);
        assert_eq!(view.leader(&topic, PartitionIndex(0)).unwrap().2, 5);

        // Made anew under the same name: epochs start again.
        let mut anew = response(&nodes, "t", &[(1, 1)]);
        anew.topics[0].topic_id = uuid::Uuid::from_u128(8);
        view.merge(&anew, now);
        assert_eq!(view.leader(&topic, PartitionIndex(0)).unwrap().2, 1);
    }

    #[test]
    fn a_refusal_that_names_a_later_leader_is_taken_at_its_word_and_an_earlier_one_is_not() {
        let topic = TopicName::new("t").unwrap();
        let mut view = ClusterView::default();
        view.merge(&response(&["a:1", "b:2"], "t", &[(2, 5)]), Instant::now());
        let mut named = NamedLeader {
            partition: PartitionName::new(topic.clone(), PartitionIndex(0)),
            leader: NodeId::new(1).unwrap(),
            leader_epoch: 5,
            address: None,
        };
        assert!(!view.note_leader(&named), "no later epoch");
        named.leader_epoch = 6;
        assert!(view.note_leader(&named));
        let leader = |view: &ClusterView| {
            let (id, address, epoch) = view.leader(&topic, PartitionIndex(0)).unwrap();
            (id.get(), address.to_owned(), epoch)
        };
        assert_eq!(leader(&view), (1, "a:1".to_owned(), 6));
        named.leader = NodeId::new(3).unwrap();
        named.leader_epoch = 7;
        assert!(!view.note_leader(&named), "nobody knows where it is");
        named.address = Some("c:3".to_owned());
        assert!(view.note_leader(&named));
        assert_eq!(leader(&view), (3, "c:3".to_owned(), 7));
        named.partition.partition = PartitionIndex(1);
        named.leader_epoch = 8;
        assert!(!view.note_leader(&named), "no such partition");
    }

    #[test]
    fn a_deleted_topic_is_forgotten_and_named() {
        let topic = TopicName::new("t").unwrap();
        let mut view = ClusterView::default();
        view.merge(&response(&["a:1"], "t", &[(1, 1)]), Instant::now());
        let mut gone = response(&["a:1"], "t", &[]);
        gone.topics[0].error_code = ErrorCode::UnknownTopicOrPartition.code();
        let failed = view.merge(&gone, Instant::now());
        assert_eq!(
            failed,
            [(topic.clone(), ErrorCode::UnknownTopicOrPartition)]
        );
        assert!(view.topics.is_empty());
    }

    #[test]
    fn an_ipv6_node_can_be_dialled() {
        assert_eq!(host_port("::1", 9), "[::1]:9");
        assert_eq!(host_port("node", 9), "node:9");
    }
}
