//! OffsetForLeaderEpoch: where an epoch ended in the leader's log. A consumer learns by it whether what it has read is still
//! there.

use std::sync::Arc;

use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use crate::kafka::Service;
use crate::kafka::context::{Context, find_partition};
use crate::types::{ErrorCode, LeaderEpoch, Offset};

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: OffsetForLeaderEpochRequest,
    _version: i16,
) -> OffsetForLeaderEpochResponse {
    let image = context.service.image();
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = image.topic_named(&asked.topic);
        let mut partitions = Vec::with_capacity(asked.partitions.len());
        for wanted in asked.partitions {
            let found = match (
                find_partition(topic, wanted.partition),
                LeaderEpoch::from_wire(wanted.leader_epoch),
            ) {
                (Err(error), _) => Err(error),
                (Ok(_), None) => Ok(None),
                (Ok(partition), Some(epoch)) => {
                    let believed = LeaderEpoch::from_wire(wanted.current_leader_epoch);
                    context
                        .service
                        .end_of_epoch(partition, epoch, believed)
                        .await
                }
            };
            partitions.push(respond(wanted.partition, found));
        }
        topics.push(
            OffsetForLeaderTopicResult::default()
                .with_topic(asked.topic)
                .with_partitions(partitions),
        );
    }
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

fn respond(index: i32, found: Result<Option<(LeaderEpoch, Offset)>, ErrorCode>) -> EpochEndOffset {
    let response = EpochEndOffset::default()
        .with_partition(index)
        .with_leader_epoch(-1)
        .with_end_offset(-1);
    match found {
        Err(error) => response.with_error_code(error.code()),
        Ok(None) => response,
        Ok(Some((epoch, end))) => response
            .with_leader_epoch(epoch.to_wire())
            .with_end_offset(end.to_wire()),
    }
}
