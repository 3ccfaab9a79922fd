//! The internal topic, and who leads which part of it.

use tokio::time::Instant;

use super::offsets_topic;
use crate::broker::Broker;
use crate::broker::internal_topics::place_of;
use crate::kafka::{Refusal, Service};
use crate::types::{ErrorCode, NodeId, OFFSETS_TOPIC};

/// Partitions of the internal topic. Kafka has 50; a partition here has a directory, open files and a replication session of
/// its own on three nodes, and 16 spread the groups over as many coordinators as most clusters have nodes. The number never
/// changes, because a group's partition follows from it.
const PARTITIONS: u32 = 16;

impl Broker {
    /// The leader of a group's partition.
    pub(in crate::broker) async fn find_coordinator(
        &self,
        group: &str,
        deadline: Instant,
    ) -> Result<NodeId, Refusal> {
        let mut image = self.image();
        if offsets_topic(&image).is_none() {
            self.make_internal_topic(OFFSETS_TOPIC, PARTITIONS, deadline)
                .await?;
            image = self.image();
        }
        let leader = offsets_topic(&image).and_then(|topic| {
            topic
                .partition(place_of(topic, group).partition)?
                .leader_node()
        });
        leader.ok_or_else(|| Refusal {
            error: ErrorCode::CoordinatorNotAvailable,
            message: Some(format!(
                "the partition of {OFFSETS_TOPIC} that holds the group has no leader at the moment"
            )),
        })
    }
}
