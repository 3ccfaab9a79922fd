//! Fetch requests and their answers, as Kafka's protocol has them.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{self, BrokerId, FetchRequest, FetchResponse};

use super::cursor::Answer;
use super::{ConsumerConfig, OpenLane};
use crate::client::api::Spoken;
use crate::client::connection::{Encoded, InFlight};
use crate::client::error::ClientError;
use crate::client::metadata::PartitionName;
use crate::client::wire_str;
use crate::types::{ErrorCode, IsolationLevel, TopicName};

pub(super) fn start_fetch(
    open: &OpenLane,
    request: &FetchRequest,
) -> Result<InFlight, ClientError> {
    open.lane
        .send(Encoded::new(request, open.version, FetchRequest::NAME)?)
}

pub(super) fn fetch_request(
    config: &ConsumerConfig,
    partitions: &[(PartitionName, i64, i32, bool)],
    max_bytes: usize,
    wait: Duration,
) -> FetchRequest {
    let saturate = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    // The order of partitions is kept within a topic, which is what the turn is about.
    let mut topics: Vec<(&TopicName, Vec<FetchPartition>)> = Vec::new();
    for (name, offset, epoch, _) in partitions {
        let partition = FetchPartition::default()
            .with_partition(name.partition.to_wire())
            .with_current_leader_epoch(*epoch)
            .with_fetch_offset(*offset)
            .with_partition_max_bytes(saturate(config.max_partition_bytes.min(max_bytes)));
        match topics.iter_mut().find(|(topic, _)| **topic == name.topic) {
            Some((_, partitions)) => partitions.push(partition),
            None => topics.push((&name.topic, vec![partition])),
        }
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        FetchTopic::default()
            .with_topic(messages::TopicName(wire_str(topic.as_str())))
            .with_partitions(partitions)
    });
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(saturate(config.min_bytes))
        .with_max_bytes(saturate(max_bytes))
        .with_isolation_level(config.isolation.to_wire())
        .with_session_epoch(-1)
        .with_topics(topics.collect())
}

pub(super) fn answers(
    response: FetchResponse,
    isolation: IsolationLevel,
) -> HashMap<(String, i32), Answer> {
    // An error of the whole request is each partition's.
    let all = ErrorCode::from_code(response.error_code);
    let mut answers = HashMap::new();
    for topic in response.responses {
        for partition in topic.partitions {
            let error = all.and(ErrorCode::from_code(partition.error_code));
            answers.insert(
                (topic.topic.0.to_string(), partition.partition_index),
                Answer {
                    error,
                    // Where it cannot say the one it cannot say the other.
                    high_watermark: match isolation {
                        IsolationLevel::ReadUncommitted => partition.high_watermark,
                        IsolationLevel::ReadCommitted => {
                            partition.last_stable_offset.min(partition.high_watermark)
                        }
                    },
                    aborted: partition
                        .aborted_transactions
                        .unwrap_or_default()
                        .into_iter()
                        .filter(|_| isolation == IsolationLevel::ReadCommitted)
                        .map(|aborted| (aborted.first_offset, aborted.producer_id.0))
                        .collect(),
                    records: partition.records.unwrap_or_else(Bytes::new),
                },
            );
        }
    }
    answers
}
