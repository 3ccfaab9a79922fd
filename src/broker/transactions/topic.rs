//! The internal topic, and who leads which part of it.

use tokio::time::Instant;

use super::transactions_topic;
use crate::broker::Broker;
use crate::broker::internal_topics::place_of;
use crate::kafka::Refusal;
use crate::types::{ErrorCode, NodeId, TRANSACTIONS_TOPIC};

/// Partitions of the internal topic. Kafka has 50; see the groups' topic for why these are fewer. The number never changes,
/// because the partition of a transactional id follows from it.
const PARTITIONS: u32 = 16;

impl Broker {
    /// The leader of the partition of a transactional id.
    pub(in crate::broker) async fn find_transaction_coordinator(
        &self,
        id: &str,
        deadline: Instant,
    ) -> Result<NodeId, Refusal> {
        let mut image = self.image_now();
        self.transactions.check_served(&image)?;
        if transactions_topic(&image).is_none() {
            self.make_internal_topic(TRANSACTIONS_TOPIC, PARTITIONS, deadline)
                .await?;
            image = self.image_now();
        }
        let leader = transactions_topic(&image).and_then(|topic| {
            topic
                .partition(place_of(topic, id).partition)?
                .leader_node()
        });
        leader.ok_or_else(|| Refusal {
            error: ErrorCode::CoordinatorNotAvailable,
            message: Some(format!(
                "the partition of {TRANSACTIONS_TOPIC} that holds the transactional id has no leader at the moment"
            )),
        })
    }
}
