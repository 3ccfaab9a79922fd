//! OffsetCommit: how far a group has read.

use std::sync::Arc;

use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse};

use super::groups::{ask, code, unexpected, who};
use crate::groups::{Answer, CommitOffset, OffsetCommit, Request};
use crate::kafka::Service;
use crate::kafka::context::{Context, find_partition, find_topic};

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: OffsetCommitRequest,
    _version: i16,
) -> OffsetCommitResponse {
    let image = context.service.image();
    let mut offsets = Vec::new();
    for topic in &request.topics {
        let found = find_topic(&image, &topic.name);
        offsets.extend(topic.partitions.iter().map(|partition| {
            CommitOffset {
                topic: topic.name.as_str().to_owned(),
                partition: partition.partition_index,
                offset: partition.committed_offset,
                leader_epoch: partition.committed_leader_epoch,
                metadata: partition
                    .committed_metadata
                    .as_ref()
                    .map(|metadata| metadata.as_str().to_owned())
                    .unwrap_or_default(),
                refused: find_partition(found, partition.partition_index).err(),
            }
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
    // One for each partition, in order; what concerns the whole group is said of each.
    let mut codes = match &result {
        Ok(results) => results.iter().map(code).collect(),
        Err(_) => Vec::new(),
    }
    .into_iter();
    let whole = code(&result);
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
                        .with_error_code(codes.next().unwrap_or(whole))
                })
                .collect();
            OffsetCommitResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(partitions)
        })
        .collect();
    OffsetCommitResponse::default().with_topics(topics)
}
