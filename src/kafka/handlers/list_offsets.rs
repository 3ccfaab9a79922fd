//! ListOffsets: the offset of the earliest record, of the end, or of a time.

use std::sync::Arc;

use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};

use crate::kafka::context::{Context, find_partition};
use crate::kafka::{ListedOffset, OffsetSpec, Service};
use crate::types::{ErrorCode, IsolationLevel, LeaderEpoch};

/// Since this version, −3 asks for the record with the largest timestamp.
const MAX_TIMESTAMP_SINCE: i16 = 7;
/// Since this version, −4 asks for the earliest record that is not in tiered storage, of which there is none.
const EARLIEST_LOCAL_SINCE: i16 = 8;
/// Since this version, −5 asks for the end of what is in tiered storage: nothing.
const LATEST_TIERED_SINCE: i16 = 9;
/// Since this version, an answer names the leader epoch.
const LEADER_EPOCH_SINCE: i16 = 4;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: ListOffsetsRequest,
    version: i16,
) -> ListOffsetsResponse {
    let isolation = IsolationLevel::from_wire(request.isolation_level);
    let image = context.service.image();
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = image.topic_named(&asked.name);
        let mut partitions = Vec::with_capacity(asked.partitions.len());
        for wanted in asked.partitions {
            let listed = match (
                find_partition(topic, wanted.partition_index),
                offset_spec(wanted.timestamp, version),
            ) {
                (Err(error), _) | (_, Err(error)) => Err(error),
                (Ok(_), Ok(None)) => Ok(None),
                (Ok(partition), Ok(Some(spec))) => {
                    let epoch = LeaderEpoch::from_wire(wanted.current_leader_epoch);
                    context
                        .service
                        .list_offset(partition, spec, isolation, epoch)
                        .await
                }
            };
            partitions.push(respond(wanted.partition_index, listed, version));
        }
        topics.push(
            ListOffsetsTopicResponse::default()
                .with_name(asked.name)
                .with_partitions(partitions),
        );
    }
    ListOffsetsResponse::default().with_topics(topics)
}

/// `None`: there can be no such offset.
fn offset_spec(timestamp: i64, version: i16) -> Result<Option<OffsetSpec>, ErrorCode> {
    match timestamp {
        -1 => Ok(Some(OffsetSpec::Latest)),
        -2 => Ok(Some(OffsetSpec::Earliest)),
        -3 if version >= MAX_TIMESTAMP_SINCE => Ok(Some(OffsetSpec::MaxTimestamp)),
        -4 if version >= EARLIEST_LOCAL_SINCE => Ok(Some(OffsetSpec::Earliest)),
        -5 if version >= LATEST_TIERED_SINCE => Ok(None),
        0.. => Ok(Some(OffsetSpec::Timestamp(timestamp))),
        _ => Err(ErrorCode::InvalidRequest),
    }
}

fn respond(
    index: i32,
    listed: Result<Option<ListedOffset>, ErrorCode>,
    version: i16,
) -> ListOffsetsPartitionResponse {
    let response = ListOffsetsPartitionResponse::default()
        .with_partition_index(index)
        .with_offset(-1)
        .with_timestamp(-1)
        .with_leader_epoch(-1);
    match listed {
        Err(error) => response.with_error_code(error.code()),
        Ok(None) => response,
        Ok(Some(listed)) => {
            let epoch = listed
                .leader_epoch
                .filter(|_| version >= LEADER_EPOCH_SINCE);
            response
                .with_offset(listed.offset.to_wire())
                .with_timestamp(listed.timestamp_ms.unwrap_or(-1))
                .with_leader_epoch(epoch.map_or(-1, LeaderEpoch::to_wire))
        }
    }
}
