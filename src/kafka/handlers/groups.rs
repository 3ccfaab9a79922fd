//! What the requests of consumer groups have in common.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::GroupId;
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use crate::groups::{Answer, CommitOffset, Request, Who};
use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::{Context, find_partition};
use crate::metadata::Topic;
use crate::types::ErrorCode;

/// How long a request may wait until its coordinator takes it in hand. Clients ask again when it answers that it cannot.
pub(super) const TAKEN_WITHIN: Duration = Duration::from_secs(5);

/// Asks the coordinator of a group. It bounds its answer itself: a join ends with the rebalance, all else with a write.
pub(super) async fn ask<S: Service>(
    context: &Context<S>,
    group: &str,
    request: Request,
) -> Result<Answer, ErrorCode> {
    let taken_by = Instant::now() + TAKEN_WITHIN;
    context.service.ask_group(group, request, taken_by).await
}

/// An answer to another request than the one that was asked: not a client's fault.
pub(super) fn unexpected<T>(_: Answer) -> Result<T, ErrorCode> {
    Err(ErrorCode::UnknownServerError)
}

/// Kafka's number for a result.
pub(super) fn code<T>(result: &Result<T, ErrorCode>) -> i16 {
    match result {
        Ok(_) => 0,
        Err(error) => error.code(),
    }
}

/// The numbers for a commit's partitions, in order. What concerns the whole group is said of each.
pub(super) fn codes(result: &Result<Vec<Result<(), ErrorCode>>, ErrorCode>) -> impl FnMut() -> i16 {
    let whole = code(result);
    let each: Vec<i16> = match result {
        Ok(results) => results.iter().map(code).collect(),
        Err(_) => Vec::new(),
    };
    let mut each = each.into_iter();
    move || each.next().unwrap_or(whole)
}

/// How far a group has read in a partition of `topic`, which is `known` if there is one: what a client says of it.
pub(super) fn commit_offset(
    topic: &str,
    known: Option<&Arc<Topic>>,
    (partition, offset, leader_epoch): (i32, i64, i32),
    metadata: Option<&StrBytes>,
) -> CommitOffset {
    CommitOffset {
        topic: topic.to_owned(),
        partition,
        offset,
        leader_epoch,
        metadata: metadata
            .map(|metadata| metadata.as_str().to_owned())
            .unwrap_or_default(),
        refused: find_partition(known, partition).err(),
    }
}

pub(super) fn who(member: &StrBytes, instance: Option<&StrBytes>) -> Who {
    Who {
        member: member.as_str().to_owned(),
        instance: instance.map(|instance| instance.as_str().to_owned()),
    }
}

pub(super) fn group_id(group: &str) -> GroupId {
    GroupId(text(group))
}
