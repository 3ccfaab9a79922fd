//! TxnOffsetCommit: how far a group has read, as part of a producer's transaction.

use std::sync::Arc;

use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{TxnOffsetCommitRequest, TxnOffsetCommitResponse};
use tokio::time::{Instant, timeout_at};

use super::busy::Busy;
use super::groups::{TAKEN_WITHIN, ask, codes, commit_offset, unexpected, who};
use crate::groups::{Answer, CommitOffset, OffsetsVerification, Request, TransactionCommit};
use crate::kafka::Service;
use crate::kafka::context::{Context, find_partition};
use crate::kafka::features::reach;
use crate::transactions::Reach;
use crate::types::{ErrorCode, OFFSETS_TOPIC, ProducerId, partition_of};

/// From this version on a client knows that it can abort and go on.
const ABORTABLE_SINCE: i16 = 4;
/// From this version on a client leaves it to the group's coordinator to add the group to its transaction.
const ADDED_SINCE: i16 = 5;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: TxnOffsetCommitRequest,
    version: i16,
) -> TxnOffsetCommitResponse {
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
    let result = commit(&context, &request, offsets, version).await;
    let mut code_of_next = codes(&result);
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code_of_next())
        });
        let partitions = partitions.collect();
        TxnOffsetCommitResponseTopic::default()
            .with_name(topic.name)
            .with_partitions(partitions)
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}

async fn commit<S: Service>(
    context: &Context<S>,
    request: &TxnOffsetCommitRequest,
    offsets: Vec<CommitOffset>,
    version: i16,
) -> Result<Vec<Result<(), ErrorCode>>, ErrorCode> {
    let producer = ProducerId::new(request.producer_id.0)
        .filter(|_| request.producer_epoch >= 0)
        .ok_or(ErrorCode::InvalidRequest)?;
    let mut busy = Busy::new(Instant::now() + TAKEN_WITHIN);
    loop {
        let result = attempt(context, request, producer, &offsets, version).await;
        match result {
            Err(ErrorCode::ConcurrentTransactions) if busy.wait(rand::random()).await => {}
            // The client would look for another coordinator of the group; it is the transaction's that is not ready.
            Err(ErrorCode::ConcurrentTransactions) => {
                return Err(ErrorCode::CoordinatorLoadInProgress);
            }
            Err(error) => return Err(told(error, version)),
            Ok(results) => return Ok(results),
        }
    }
}

/// One attempt. `ConcurrentTransactions` where the transaction waits for the end of the one before, and the client need not.
async fn attempt<S: Service>(
    context: &Context<S>,
    request: &TxnOffsetCommitRequest,
    producer: ProducerId,
    offsets: &[CommitOffset],
    version: i16,
) -> Result<Vec<Result<(), ErrorCode>>, ErrorCode> {
    let group = request.group_id.as_str();
    let question = Request::VerifyOffsets {
        producer,
        producer_epoch: request.producer_epoch,
    };
    let (guard, reach) = match ask(context, group, question).await? {
        Answer::Verification(OffsetsVerification::NotNeeded) => (None, Reach::Verify),
        Answer::Verification(OffsetsVerification::Needed(guard)) => {
            let reach = verify(context, request, producer, version).await?;
            (Some(guard), reach)
        }
        other => return unexpected(other),
    };
    let commit = Request::CommitInTransaction(TransactionCommit {
        producer,
        producer_epoch: request.producer_epoch,
        who: who(&request.member_id, request.group_instance_id.as_ref()),
        generation: request.generation_id,
        guard,
        offsets: offsets.to_vec(),
    });
    match ask(context, group, commit).await {
        Ok(Answer::Results(results)) => Ok(results),
        Ok(other) => unexpected(other),
        // A marker came between; it may be the one of the transaction before.
        Err(ErrorCode::InvalidTxnState) if reach == Reach::Add => {
            Err(ErrorCode::ConcurrentTransactions)
        }
        Err(error) => Err(error),
    }
}

/// That the transaction is over is told to a client that knows that it can abort and go on.
fn told(error: ErrorCode, version: i16) -> ErrorCode {
    match error {
        ErrorCode::InvalidTxnState if version >= ABORTABLE_SINCE => ErrorCode::TransactionAbortable,
        error => error,
    }
}

/// Asks the coordinator of the transaction whether it reaches the group, or tells it that it does.
async fn verify<S: Service>(
    context: &Context<S>,
    request: &TxnOffsetCommitRequest,
    producer: ProducerId,
    version: i16,
) -> Result<Reach, ErrorCode> {
    let deadline = Instant::now() + TAKEN_WITHIN;
    let image = context.service.image();
    let topic = image
        .topic_named(OFFSETS_TOPIC)
        .ok_or(ErrorCode::NotCoordinator)?;
    let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    let index = partition_of(&request.group_id, partitions);
    let partition = find_partition(Some(topic), index.to_wire())?;
    let reach = reach(&image, version, ADDED_SINCE);
    drop(image);
    let asked = context.service.verify_transaction(
        &request.transactional_id,
        (producer, request.producer_epoch),
        vec![partition],
        reach,
        deadline,
    );
    let verdicts = timeout_at(deadline, asked).await.unwrap_or_default();
    match verdicts.first() {
        Some(Ok(())) => Ok(reach),
        Some(Err(ErrorCode::ConcurrentTransactions)) if reach == Reach::Add => {
            Err(ErrorCode::ConcurrentTransactions)
        }
        // The client would look for another coordinator of the group; it is the transaction's that is not at hand.
        Some(Err(ErrorCode::NotCoordinator | ErrorCode::ConcurrentTransactions)) | None => {
            Err(ErrorCode::CoordinatorLoadInProgress)
        }
        Some(Err(error)) => Err(*error),
    }
}
