//! AddOffsetsToTxn: a producer's transaction is about to commit offsets of a group.

use std::sync::Arc;

use kafka_protocol::messages::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse};
use tokio::time::Instant;

use super::groups::TAKEN_WITHIN;
use super::transactions::{in_words_of, producer, tell};
use crate::groups::MAX_GROUP_ID_BYTES;
use crate::kafka::Service;
use crate::kafka::context::Context;
use crate::transactions::{ClientVersion, Request};
use crate::types::{ErrorCode, OFFSETS_TOPIC, partition_of};

/// Since this version, a producer that was fenced is told so in a word of its own.
const FENCED_SINCE: i16 = 2;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: AddOffsetsToTxnRequest,
    version: i16,
) -> AddOffsetsToTxnResponse {
    let code = match add(&context, &request).await {
        Ok(()) => 0,
        Err(error) => in_words_of(version, FENCED_SINCE, error).code(),
    };
    AddOffsetsToTxnResponse::default().with_error_code(code)
}

async fn add<S: Service>(
    context: &Context<S>,
    request: &AddOffsetsToTxnRequest,
) -> Result<(), ErrorCode> {
    let group = request.group_id.as_str();
    if group.is_empty() || group.len() > MAX_GROUP_ID_BYTES {
        return Err(ErrorCode::InvalidGroupId);
    }
    let producer = producer(request.producer_id)?;
    // Makes the groups' topic where there is none yet; who leads the group's partition does not matter here.
    let deadline = Instant::now() + TAKEN_WITHIN;
    if let Err(refusal) = context.service.group_coordinator(group, deadline).await
        && context.service.image().topic_named(OFFSETS_TOPIC).is_none()
    {
        return Err(refusal.error);
    }
    let image = context.service.image();
    let partitions = image
        .topic_named(OFFSETS_TOPIC)
        .and_then(|topic| u32::try_from(topic.partitions.len()).ok())
        .ok_or(ErrorCode::CoordinatorNotAvailable)?;
    drop(image);
    // A topic has far fewer partitions than this holds.
    let index = i32::try_from(partition_of(group, partitions).0).unwrap_or_default();
    let asked = Request::AddPartitions {
        producer,
        epoch: request.producer_epoch,
        partitions: vec![(OFFSETS_TOPIC.to_owned(), index)],
        // The newer ones do not say it.
        version: ClientVersion::V1,
    };
    tell(context, &request.transactional_id, asked).await
}
