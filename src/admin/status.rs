//! A node's account of itself.

use std::collections::{BTreeSet, HashMap};

use super::message::{
    FollowerProgress, NodeLinks, NodeStatus, NodeSummary, PartitionStatus, ReplicaRole,
};
use crate::broker::{Broker, LinkDirection, LinkView};
use crate::doctor::KnownNode;
use crate::kafka::Service;
use crate::partition::{PartitionView, RoleView};
use crate::types::{Appointment, NodeId, TopicPartition};

/// Everything at once, from snapshots: no two parts of it need be of the same instant.
pub async fn node_status(broker: &Broker) -> NodeStatus {
    let image = broker.image();
    let me = broker.me();
    let views = broker.views().await;
    let links = broker.link_views(&views);
    let heard = heard_followers(&links);
    let local: HashMap<TopicPartition, ReplicaRole> = views
        .into_iter()
        .map(|(id, view, role)| (id, replica_role(view, role, &heard)))
        .collect();
    let nodes = image
        .nodes()
        .map(|node| NodeSummary {
            node: node.node,
            quic: node.quic.to_string(),
            kafka: node.kafka.as_ref().map(ToString::to_string),
            kafka_listeners: node
                .kafka_listeners
                .iter()
                .map(|(name, endpoint)| (name.clone(), endpoint.to_string()))
                .collect(),
            alive: broker.is_live(node.node),
            draining: image.is_draining(node.node),
        })
        .collect();
    let mut partitions = Vec::new();
    for topic in image.topics() {
        for (index, state) in topic.indexed_partitions() {
            let id = TopicPartition {
                topic: topic.id,
                partition: index,
            };
            partitions.push(PartitionStatus {
                topic: topic.name.clone(),
                topic_id: topic.id,
                partition: index,
                leader: state.leader_node(),
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
                replicas: state.replicas.clone(),
                isr: node_ids(&state.isr),
                min_insync: state.min_insync,
                target_replicas: state.target_replicas.clone(),
                reassigned_from: image.reassigned_from(id).unwrap_or_default().to_vec(),
                local: local.get(&id).cloned(),
            });
        }
    }
    NodeStatus {
        node: me.node,
        incarnation: me.incarnation,
        directory: me.directory,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: image.cluster_id(),
        active_controller: broker.active_controller(),
        hears_majority: broker.controller().hears_majority(),
        registered: image.registered(me.node) == Some(me),
        metadata_version: image.metadata_version(),
        voters: broker.controller().voters(),
        wanted_voters: broker.controller().wanted_voters(),
        nodes,
        partitions,
        links,
        client_migrations: broker.client_migrations(),
        impaired_packets: broker.impaired_packets(),
    }
}

/// Its links alone.
pub(super) async fn node_links(broker: &Broker) -> NodeLinks {
    NodeLinks {
        node: broker.me().node,
        nodes: known_nodes(broker),
        links: broker.link_views(&broker.views().await),
    }
}

/// Every node with the address that it has registered.
pub(super) fn known_nodes(broker: &Broker) -> Vec<KnownNode> {
    let image = broker.image();
    let nodes = image.nodes().map(|node| KnownNode {
        node: node.node,
        quic: node.quic.to_string(),
    });
    nodes.collect()
}

fn node_ids(members: &[Appointment]) -> Vec<NodeId> {
    members.iter().map(|member| member.node).collect()
}

/// The followers whose word is of now. A session outlives silence by minutes, so that there is one says nothing.
fn heard_followers(links: &[LinkView]) -> BTreeSet<NodeId> {
    links
        .iter()
        .filter(|link| link.direction == LinkDirection::ToFollower && link.heard)
        .map(|link| link.peer)
        .collect()
}

fn replica_role(view: PartitionView, role: RoleView, heard: &BTreeSet<NodeId>) -> ReplicaRole {
    let (name, waiting_produces, followers) = match role {
        RoleView::Leader(leader) => {
            let followers = leader
                .followers
                .iter()
                .map(|follower| FollowerProgress {
                    node: follower.node,
                    lag_records: follower
                        .lag_records
                        .filter(|_| heard.contains(&follower.node)),
                    unacknowledged_bytes: follower.unacknowledged_bytes,
                    catching_up: follower.catching_up,
                })
                .collect();
            ("leader", leader.waiting_produces, followers)
        }
        RoleView::Follower { .. } => ("follower", 0, Vec::new()),
        RoleView::Idle => ("idle", 0, Vec::new()),
        RoleView::Failed => ("failed", 0, Vec::new()),
    };
    ReplicaRole {
        role: name.to_owned(),
        log_start: view.log_start,
        log_end: view.log_end,
        high_watermark: view.high_watermark,
        watermark_known: view.watermark_known,
        waiting_produces,
        followers,
    }
}
