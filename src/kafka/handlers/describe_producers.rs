//! DescribeProducers: what partitions remember of their producers, and which transactions are open in them.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::{DescribeProducersRequest, DescribeProducersResponse, ProducerId};

use crate::kafka::context::{Context, deadline, find_partition};
use crate::kafka::limits::MAX_DESCRIPTION_BYTES;
use crate::kafka::{ProducerDescription, Service};
use crate::types::{ErrorCode, Offset};

/// What a producer takes in an answer while it is made, roughly.
const PRODUCER_BYTES: usize = 80;
/// How long the owners of the partitions have to answer, in milliseconds.
const ANSWERED_WITHIN_MS: i32 = 5_000;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: DescribeProducersRequest,
    _version: i16,
) -> DescribeProducersResponse {
    let deadline = deadline(ANSWERED_WITHIN_MS);
    let image = context.service.image();
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = image.topic_named(&asked.name);
        let mut partitions = Vec::new();
        for index in asked.partition_indexes {
            let found = match find_partition(topic, index) {
                // One that is named a thousand times is described once: else a small request makes a huge answer.
                Ok(partition) if !seen.insert(partition) => continue,
                Ok(_) if bytes > MAX_DESCRIPTION_BYTES => Err(ErrorCode::PolicyViolation),
                Ok(partition) => {
                    let service = &context.service;
                    service.describe_producers(partition, deadline).await
                }
                Err(error) => Err(error),
            };
            bytes += found
                .as_ref()
                .map_or(0, |found| found.len() * PRODUCER_BYTES);
            let response = PartitionResponse::default().with_partition_index(index);
            partitions.push(match found {
                Ok(producers) => {
                    response.with_active_producers(producers.into_iter().map(describe).collect())
                }
                Err(error) => response.with_error_code(error.code()),
            });
        }
        topics.push(
            TopicResponse::default()
                .with_name(asked.name)
                .with_partitions(partitions),
        );
    }
    DescribeProducersResponse::default().with_topics(topics)
}

/// Times of batches are not remembered.
fn describe(producer: ProducerDescription) -> ProducerState {
    ProducerState::default()
        .with_producer_id(ProducerId(producer.producer.get()))
        .with_producer_epoch(producer.epoch.into())
        .with_last_sequence(producer.last_sequence.unwrap_or(-1))
        .with_last_timestamp(-1)
        .with_coordinator_epoch(producer.coordinator_epoch.unwrap_or(-1))
        .with_current_txn_start_offset(producer.open.map_or(-1, Offset::to_wire))
}
