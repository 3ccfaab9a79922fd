//! Who looks after a consumer group, and what it has committed, asked with Kafka's own requests.

use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{
    FindCoordinatorRequest, GroupId, OffsetCommitRequest, OffsetFetchRequest,
};
use kafka_protocol::protocol::StrBytes;
use quorate::types::NodeId;

use super::cluster::Cluster;
use super::kafka::{Kafka, name};
use super::until;

const FIND_VERSION: i16 = 4;
/// Of OffsetCommit and OffsetFetch.
pub const OFFSETS_VERSION: i16 = 9;

pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// Asks a node that runs who looks after a group.
async fn find_coordinator(cluster: &Cluster, group: &str) -> Result<NodeId, String> {
    let asked = cluster.running()[0];
    let mut kafka = Kafka::connect(cluster.spec(asked).kafka).await;
    let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(group)]);
    let found = kafka
        .call(&request, FIND_VERSION)
        .await
        .coordinators
        .remove(0);
    match found.error_code {
        0 => Ok(NodeId::from_broker_id(found.node_id.0).unwrap()),
        code => Err(format!("error {code}: {:?}", found.error_message)),
    }
}

/// A connection to the coordinator of a group, as soon as there is one that runs.
pub async fn coordinator(cluster: &Cluster, group: &str) -> (NodeId, Kafka) {
    until("a coordinator", async || {
        let node = find_coordinator(cluster, group).await?;
        if !cluster.running().contains(&node) {
            return Err(format!("node {node}, which is down"));
        }
        Ok((node, Kafka::connect(cluster.spec(node).kafka).await))
    })
    .await
}

/// Of a client that manages its partitions itself: for partition 0.
pub fn commit(group: &str, topic: &str, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![
            OffsetCommitRequestTopic::default()
                .with_name(name(topic))
                .with_partitions(vec![partition]),
        ])
}

/// The error code, and the offset that is committed for partition 0.
pub async fn committed(kafka: &mut Kafka, group: &str, topic: &str) -> (i16, i64) {
    let topic = OffsetFetchRequestTopics::default()
        .with_name(name(topic))
        .with_partition_indexes(vec![0]);
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(Some(vec![topic]));
    let request = OffsetFetchRequest::default().with_groups(vec![group]);
    let found = kafka.call(&request, OFFSETS_VERSION).await.groups.remove(0);
    match found.error_code {
        0 => (0, found.topics[0].partitions[0].committed_offset),
        code => (code, -1),
    }
}
