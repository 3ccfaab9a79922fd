//! Whether a node is fit to be given work.

use serde::{Deserialize, Serialize};

use super::message::NodeStatus;

/// Partitions that are named as the reason; of more, only the number is told.
const MAX_NAMED: usize = 10;

/// The answer to `/health/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub ready: bool,
    /// Why not; empty where `ready`.
    pub reasons: Vec<String>,
}

/// A node is ready when the cluster has it registered, it hears a majority of the controllers, and every replica that it is
/// to hold is open and has not failed.
pub fn readiness(status: &NodeStatus) -> Readiness {
    let mut reasons = Vec::new();
    if !status.registered {
        reasons.push("the cluster does not have this process registered".to_owned());
    }
    if !status.hears_majority {
        reasons.push("no majority of the controllers is heard".to_owned());
    }
    let mut missing: Vec<String> = status
        .partitions
        .iter()
        .filter(|partition| partition.replicas.contains(&status.node))
        .filter_map(|partition| {
            let state = match &partition.local {
                None => "is not open",
                Some(local) if local.role == "failed" => "has failed",
                Some(_) => return None,
            };
            Some(format!(
                "the replica of {}-{} {state}",
                partition.topic, partition.partition
            ))
        })
        .collect();
    let more = missing.len().saturating_sub(MAX_NAMED);
    missing.truncate(MAX_NAMED);
    reasons.append(&mut missing);
    if more > 0 {
        reasons.push(format!("{more} more replicas are not open or have failed"));
    }
    Readiness {
        ready: reasons.is_empty(),
        reasons,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::admin::{PartitionStatus, ReplicaRole};
    use crate::types::{
        DirectoryId, Incarnation, LeaderEpoch, NodeId, Offset, PartitionEpoch, PartitionIndex,
        TopicId, TopicName,
    };

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    pub(in crate::admin) fn partition(index: u32, role: Option<&str>) -> PartitionStatus {
        PartitionStatus {
            topic: TopicName::new("t").unwrap(),
            topic_id: TopicId::from_random_bits(7),
            partition: PartitionIndex(index),
            leader: Some(node(1)),
            leader_epoch: LeaderEpoch::NONE,
            partition_epoch: PartitionEpoch(1),
            replicas: vec![node(1), node(2)],
            target_replicas: Vec::new(),
            reassigned_from: Vec::new(),
            isr: vec![node(1)],
            min_insync: 1,
            local: role.map(|role| ReplicaRole {
                role: role.to_owned(),
                log_start: Offset::ZERO,
                log_end: Offset::ZERO,
                high_watermark: Offset::ZERO,
                watermark_known: true,
                waiting_produces: 0,
                followers: Vec::new(),
            }),
        }
    }

    pub(in crate::admin) fn status(partitions: Vec<PartitionStatus>) -> NodeStatus {
        NodeStatus {
            node: node(1),
            incarnation: Incarnation::from_random_bits(1),
            directory: DirectoryId::from_random_bits(1),
            version: "0".to_owned(),
            cluster: None,
            active_controller: Some(node(1)),
            hears_majority: true,
            registered: true,
            metadata_version: 1,
            voters: BTreeSet::new(),
            wanted_voters: BTreeSet::new(),
            nodes: Vec::new(),
            partitions,
            links: Vec::new(),
            client_migrations: 0,
            impaired_packets: BTreeMap::new(),
        }
    }

    #[test]
    fn a_node_is_ready_with_its_replicas_open_and_says_what_is_missing() {
        let mut elsewhere = partition(2, None);
        elsewhere.replicas = vec![node(2)];
        let mut good = status(vec![partition(0, Some("follower")), elsewhere]);
        assert!(readiness(&good).ready);
        good.registered = false;
        assert_eq!(readiness(&good).reasons.len(), 1);
        good.hears_majority = false;
        good.partitions.push(partition(1, None));
        good.partitions.push(partition(3, Some("failed")));
        let told = readiness(&good);
        assert!(!told.ready);
        assert_eq!(
            told.reasons[2..],
            [
                "the replica of t-1 is not open",
                "the replica of t-3 has failed"
            ]
        );
        let many = (0..100).map(|index| partition(index, None)).collect();
        let told = readiness(&status(many));
        assert_eq!(told.reasons.len(), MAX_NAMED + 1);
        assert!(told.reasons[MAX_NAMED].starts_with("90 more"));
    }
}
