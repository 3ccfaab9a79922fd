//! DeleteRecords: a partition's records before an offset go, on every replica.

use std::sync::Arc;

use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use crate::kafka::Service;
use crate::kafka::context::{Context, deadline, find_partition};
use crate::metadata::{Topic, TopicConfig};
use crate::types::{ErrorCode, Offset, TopicPartition, is_internal};

/// Asks for everything that is committed to go.
const HIGH_WATERMARK: i64 = -1;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: DeleteRecordsRequest,
    _version: i16,
) -> DeleteRecordsResponse {
    let deadline = deadline(request.timeout_ms);
    let image = context.service.image();
    let mut wanted = Vec::new();
    let mut plan = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = image.topic_named(&asked.name);
        let places = asked.partitions.iter().map(|partition| {
            let planned = plan_one(topic, partition.partition_index, partition.offset);
            let place = planned.map(|planned| {
                wanted.push(planned);
                wanted.len() - 1
            });
            (partition.partition_index, place)
        });
        let places: Vec<_> = places.collect();
        plan.push((asked.name, places));
    }
    let results = if wanted.is_empty() {
        Vec::new()
    } else {
        context.service.delete_records(wanted, deadline).await
    };
    let topics = plan.into_iter().map(|(name, places)| {
        let partitions = places.into_iter().map(|(index, place)| {
            let result = place.and_then(|place| {
                let known = results.get(place).copied();
                known.unwrap_or(Err(ErrorCode::UnknownServerError))
            });
            let response = DeleteRecordsPartitionResult::default().with_partition_index(index);
            match result {
                Ok(start) => response.with_low_watermark(start.to_wire()),
                Err(error) => response
                    .with_low_watermark(-1)
                    .with_error_code(error.code()),
            }
        });
        DeleteRecordsTopicResult::default()
            .with_name(name)
            .with_partitions(partitions.collect())
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}

/// The partition, and up to where; `None`: as far as it is committed.
fn plan_one(
    topic: Option<&Arc<Topic>>,
    index: i32,
    offset: i64,
) -> Result<(TopicPartition, Option<Offset>), ErrorCode> {
    let partition = find_partition(topic, index)?;
    if let Some(topic) = topic {
        if is_internal(topic.name.as_str()) {
            return Err(ErrorCode::InvalidTopicException);
        }
        // A topic that keeps the last record of each key promises that they stay.
        if !TopicConfig::from_map(&topic.config)
            .unwrap_or_default()
            .delete
        {
            return Err(ErrorCode::PolicyViolation);
        }
    }
    if offset == HIGH_WATERMARK {
        return Ok((partition, None));
    }
    let before = Offset::from_wire(offset).ok_or(ErrorCode::OffsetOutOfRange)?;
    Ok((partition, Some(before)))
}
