//! DescribeProducers: what partitions remember of their producers, and which transactions are open in them.

use std::sync::Arc;

use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::{DescribeProducersRequest, DescribeProducersResponse, ProducerId};

use crate::kafka::context::{Context, deadline, find_partition, find_topic};
use crate::kafka::{ProducerDescription, Service};
use crate::types::Offset;

/// How long the owners of the partitions have to answer, in milliseconds.
const ANSWERED_WITHIN_MS: i32 = 5_000;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: DescribeProducersRequest,
    _version: i16,
) -> DescribeProducersResponse {
    let deadline = deadline(ANSWERED_WITHIN_MS);
    let image = context.service.image();
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = find_topic(&image, &asked.name);
        let mut partitions = Vec::with_capacity(asked.partition_indexes.len());
        for index in asked.partition_indexes {
            let found = match find_partition(topic, index) {
                Ok(partition) => {
                    context
                        .service
                        .describe_producers(partition, deadline)
                        .await
                }
                Err(error) => Err(error),
            };
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
