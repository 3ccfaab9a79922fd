//! The cluster's own topics: made when they are first needed, read and written by their coordinators.

mod coordinators;
mod gate;
mod replay;
mod tenure;
mod write;

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::Broker;
use crate::kafka::Refusal;
use crate::metadata::CreateTopicRequest;
use crate::types::{ErrorCode, TopicId, TopicName};

pub(super) use coordinators::{Coordinators, ask, place_of};
pub(super) use gate::gate;
pub(super) use replay::{ReplayError, replay};
pub(super) use tenure::{Ended, PutOff, Tenure};
pub(super) use write::write;

/// Their settings: of each key the last record, and small segments, so that compaction comes soon and what it leaves is soon read.
const CONFIG: &[(&str, &str)] = &[("cleanup.policy", "compact"), ("segment.bytes", "16777216")];

impl Broker {
    /// Makes an internal topic, unless it is there.
    pub(super) async fn make_internal_topic(
        &self,
        name: &str,
        partitions: u32,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let topic = TopicName::new(name).map_err(|error| Refusal {
            error: ErrorCode::UnknownServerError,
            message: Some(error.to_string()),
        })?;
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let config: BTreeMap<String, String> = CONFIG.iter().map(owned).collect();
        let request = CreateTopicRequest {
            name: topic,
            id: TopicId::from_random_bits(rand::random()),
            partitions: Some(partitions),
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
                    "the topic {name} could not be made: {}",
                    refusal.message.unwrap_or_else(|| refusal.error.to_string())
                )),
            }),
        }
    }
}
