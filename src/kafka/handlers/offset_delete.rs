//! OffsetDelete: a group forgets how far it has read topics that it reads no more.

use std::sync::Arc;

use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::{OffsetDeleteRequest, OffsetDeleteResponse};

use super::groups::{ask, code, unexpected};
use crate::groups::{Answer, Request};
use crate::kafka::Service;
use crate::kafka::context::Context;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: OffsetDeleteRequest,
    _version: i16,
) -> OffsetDeleteResponse {
    let mut offsets = Vec::new();
    for topic in &request.topics {
        for partition in &topic.partitions {
            offsets.push((topic.name.as_str().to_owned(), partition.partition_index));
        }
    }
    let asked = ask(&context, &request.group_id, Request::DeleteOffsets(offsets)).await;
    let result = match asked {
        Ok(Answer::Results(results)) => Ok(results),
        Ok(other) => unexpected(other),
        Err(error) => Err(error),
    };
    let response = OffsetDeleteResponse::default().with_error_code(code(&result));
    let Ok(results) = result else {
        return response;
    };
    let mut results = results.iter();
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            OffsetDeleteResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(results.next().map_or(0, code))
        });
        let partitions = partitions.collect();
        OffsetDeleteResponseTopic::default()
            .with_name(topic.name)
            .with_partitions(partitions)
    });
    response.with_topics(topics.collect())
}
