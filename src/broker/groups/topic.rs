//! The internal topic, and who leads which part of it.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{offsets_topic, partitions};
use crate::broker::Broker;
use crate::groups::{OFFSETS_TOPIC, partition_of};
use crate::kafka::{Refusal, Service};
use crate::metadata::CreateTopicRequest;
use crate::types::{ErrorCode, NodeId, TopicId, TopicName};

/// Partitions of the internal topic. Kafka has 50; a partition here has a directory, open files and a replication session of
/// its own on three nodes, and 16 spread the groups over as many coordinators as most clusters have nodes. The number never
/// changes, because a group's partition follows from it.
const PARTITIONS: u32 = 16;
/// Its settings: of each key the last record, and small segments, so that compaction comes soon and what it leaves is soon read.
const CONFIG: &[(&str, &str)] = &[("cleanup.policy", "compact"), ("segment.bytes", "16777216")];

impl Broker {
    /// The leader of a group's partition.
    pub(in crate::broker) async fn find_coordinator(
        &self,
        group: &str,
        deadline: Instant,
    ) -> Result<NodeId, Refusal> {
        let mut image = self.image();
        if offsets_topic(&image).is_none() {
            self.make_offsets_topic(deadline).await?;
            image = self.image();
        }
        let leader = offsets_topic(&image).and_then(|topic| {
            let state = topic.partition(partition_of(group, partitions(topic)))?;
            state.leader_node()
        });
        leader.ok_or_else(|| Refusal {
            error: ErrorCode::CoordinatorNotAvailable,
            message: Some(format!(
                "the partition of {OFFSETS_TOPIC} that holds the group has no leader at the moment"
            )),
        })
    }

    async fn make_offsets_topic(&self, deadline: Instant) -> Result<(), Refusal> {
        let name = TopicName::new(OFFSETS_TOPIC).map_err(|error| Refusal {
            error: ErrorCode::UnknownServerError,
            message: Some(error.to_string()),
        })?;
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let config: BTreeMap<String, String> = CONFIG.iter().map(owned).collect();
        let request = CreateTopicRequest {
            name,
            id: TopicId::from_random_bits(rand::random()),
            partitions: Some(PARTITIONS),
            // Three, or as many as there are nodes; more come with the nodes.
            replication_factor: None,
            assignment: None,
            config,
        };
        match self.create_topic(request, false, deadline).await {
            // Another node was asked at the same time.
            Ok(_) => Ok(()),
            Err(refusal) if refusal.error == ErrorCode::TopicAlreadyExists => Ok(()),
            // Nobody can say now: clients ask again.
            Err(refusal) => Err(Refusal {
                error: ErrorCode::CoordinatorNotAvailable,
                message: Some(format!(
                    "the topic {OFFSETS_TOPIC} could not be made: {}",
                    refusal.message.unwrap_or_else(|| refusal.error.to_string())
                )),
            }),
        }
    }
}
