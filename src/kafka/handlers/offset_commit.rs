//! OffsetCommit: how far a group has read.

use std::sync::Arc;

use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse};

use super::groups::{ask, codes, commit_offset, unexpected, who};
use crate::groups::{Answer, OffsetCommit, Request};
use crate::kafka::Service;
use crate::kafka::context::Context;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: OffsetCommitRequest,
    _version: i16,
) -> OffsetCommitResponse {
    let image = context.service.image();
    let mut offsets = Vec::new();
    for topic in &request.topics {
        let found = image.topic_named(&topic.name);
        offsets.extend(topic.partitions.iter().map(|partition| {
            let (index, offset) = (partition.partition_index, partition.committed_offset);
            let at = (index, offset, partition.committed_leader_epoch);
            commit_offset(
                &topic.name,
                found,
                at,
                partition.committed_metadata.as_ref(),
            )
        }));
    }
    drop(image);
    let commit = Request::Commit(OffsetCommit {
        who: who(&request.member_id, request.group_instance_id.as_ref()),
        generation: request.generation_id_or_member_epoch,
        offsets,
    });
    let result = match ask(&context, &request.group_id, commit).await {
        Ok(Answer::Results(results)) => Ok(results),
        Ok(other) => unexpected(other),
        Err(error) => Err(error),
    };
    let mut code_of_next = codes(&result);
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .map(|partition| {
                    OffsetCommitResponsePartition::default()
                        .with_partition_index(partition.partition_index)
                        .with_error_code(code_of_next())
                })
                .collect();
            OffsetCommitResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(partitions)
        })
        .collect();
    OffsetCommitResponse::default().with_topics(topics)
}
