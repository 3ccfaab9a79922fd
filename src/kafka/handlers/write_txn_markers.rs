//! WriteTxnMarkers: a transaction coordinator ends transactions in the partitions that this node leads.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kafka_protocol::messages::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
};
use kafka_protocol::messages::{WriteTxnMarkersRequest, WriteTxnMarkersResponse};
use tokio::time::{Instant, timeout_at};

use crate::kafka::Service;
use crate::kafka::context::{Context, find_partition};
use crate::metadata::ClusterImage;
use crate::record::{Marker, TransactionOutcome};
use crate::types::{ErrorCode, ProducerId, TopicPartition};

/// How long in-sync replicas have to confirm. What is not answered by then is asked again.
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
/// Markers of one request that wait for their commits at once.
const MAX_AT_ONCE: usize = 256;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: WriteTxnMarkersRequest,
    _version: i16,
) -> WriteTxnMarkersResponse {
    let deadline = Instant::now() + WRITTEN_WITHIN;
    let image = context.service.image();
    let is_node = context.peer_node.is_some();
    let mut wanted = Vec::new();
    let mut shape = Vec::with_capacity(request.markers.len());
    for asked in request.markers {
        let marker = ProducerId::new(asked.producer_id.0)
            .filter(|_| asked.producer_epoch >= 0 && asked.coordinator_epoch >= 0)
            .map(|producer| Marker {
                producer,
                producer_epoch: asked.producer_epoch,
                coordinator_epoch: asked.coordinator_epoch,
                outcome: if asked.transaction_result {
                    TransactionOutcome::Commit
                } else {
                    TransactionOutcome::Abort
                },
                aborted: None,
            })
            .ok_or(ErrorCode::InvalidRequest);
        let mut topics = Vec::with_capacity(asked.topics.len());
        for topic in asked.topics {
            for &index in &topic.partition_indexes {
                let allowed = is_node
                    .then_some(())
                    .ok_or(ErrorCode::ClusterAuthorizationFailed);
                let planned = allowed.and_then(|()| plan(&image, &topic.name, index, marker));
                wanted.push(planned);
            }
            topics.push(topic);
        }
        shape.push((asked.producer_id, topics));
    }
    drop(image);
    let service = &context.service;
    let written = wanted.into_iter().map(|planned| async move {
        let (partition, marker) = planned?;
        let written = service.write_marker(partition, marker, deadline);
        timeout_at(deadline, written)
            .await
            .unwrap_or(Err(ErrorCode::RequestTimedOut))
    });
    let written: Vec<Result<(), ErrorCode>> = futures_util::stream::iter(written)
        .buffered(MAX_AT_ONCE)
        .collect()
        .await;
    let mut written = written.into_iter();
    let markers = shape.into_iter().map(|(producer, topics)| {
        let topics = topics.into_iter().map(|topic| {
            let partitions = topic.partition_indexes.iter().map(|&index| {
                let result = written.next().unwrap_or(Err(ErrorCode::UnknownServerError));
                WritableTxnMarkerPartitionResult::default()
                    .with_partition_index(index)
                    .with_error_code(result.err().map_or(0, ErrorCode::code))
            });
            let partitions = partitions.collect();
            WritableTxnMarkerTopicResult::default()
                .with_name(topic.name)
                .with_partitions(partitions)
        });
        WritableTxnMarkerResult::default()
            .with_producer_id(producer)
            .with_topics(topics.collect())
    });
    WriteTxnMarkersResponse::default().with_markers(markers.collect())
}

fn plan(
    image: &ClusterImage,
    topic: &str,
    index: i32,
    marker: Result<Marker, ErrorCode>,
) -> Result<(TopicPartition, Marker), ErrorCode> {
    Ok((find_partition(image.topic_named(topic), index)?, marker?))
}
