//! AddPartitionsToTxn: a producer's transaction is about to write to partitions; and, from nodes, whether it does, or that it is
//! about to.

use std::sync::Arc;

use kafka_protocol::messages::add_partitions_to_txn_request::{
    AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction,
};
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::{AddPartitionsToTxnRequest, AddPartitionsToTxnResponse};

use super::transactions::{ask, in_words_of, producer, tell};
use crate::kafka::Service;
use crate::kafka::context::{Context, find_partition};
use crate::transactions::{Answer, ClientVersion, Request};
use crate::types::{ErrorCode, OFFSETS_TOPIC, is_internal};

/// Since this version the request is one of nodes, and names several transactions.
const NODES_SINCE: i16 = 4;
/// Since this version, a producer that was fenced is told so in a word of its own.
const FENCED_SINCE: i16 = 2;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: AddPartitionsToTxnRequest,
    version: i16,
) -> AddPartitionsToTxnResponse {
    if version < NODES_SINCE {
        let transaction = AddPartitionsToTxnTransaction::default()
            .with_transactional_id(request.v3_and_below_transactional_id)
            .with_producer_id(request.v3_and_below_producer_id)
            .with_producer_epoch(request.v3_and_below_producer_epoch)
            .with_topics(request.v3_and_below_topics);
        let results = one(&context, &transaction, version).await;
        return AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(results);
    }
    if context.peer_node.is_none() {
        return AddPartitionsToTxnResponse::default()
            .with_error_code(ErrorCode::ClusterAuthorizationFailed.code());
    }
    let mut results = Vec::with_capacity(request.transactions.len());
    for transaction in request.transactions {
        let topics = one(&context, &transaction, version).await;
        results.push(
            AddPartitionsToTxnResult::default()
                .with_transactional_id(transaction.transactional_id)
                .with_topic_results(topics),
        );
    }
    AddPartitionsToTxnResponse::default().with_results_by_transaction(results)
}

async fn one<S: Service>(
    context: &Context<S>,
    transaction: &AddPartitionsToTxnTransaction,
    version: i16,
) -> Vec<AddPartitionsToTxnTopicResult> {
    let topics = &transaction.topics;
    let results = match transaction.verify_only {
        true => verify(context, transaction).await,
        false if version < NODES_SINCE => add(context, transaction, ClientVersion::V1).await,
        // For a client that leaves it to the leaders of the partitions.
        false => add(context, transaction, ClientVersion::V2).await,
    };
    let mut results = results.into_iter();
    let answered = |topic: &AddPartitionsToTxnTopic| {
        let partitions = topic.partitions.iter().map(|&index| {
            let result = results.next().unwrap_or(Err(ErrorCode::UnknownServerError));
            let code = result
                .err()
                .map_or(0, |error| in_words_of(version, FENCED_SINCE, error).code());
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(index)
                .with_partition_error_code(code)
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(partitions.collect())
    };
    topics.iter().map(answered).collect()
}

fn partitions(transaction: &AddPartitionsToTxnTransaction) -> Vec<(String, i32)> {
    let topics = transaction.topics.iter();
    topics
        .flat_map(|topic| {
            let name = topic.name.as_str();
            topic
                .partitions
                .iter()
                .map(move |&index| (name.to_owned(), index))
        })
        .collect()
}

/// All of them or none.
async fn add<S: Service>(
    context: &Context<S>,
    transaction: &AddPartitionsToTxnTransaction,
    version: ClientVersion,
) -> Vec<Result<(), ErrorCode>> {
    let partitions = partitions(transaction);
    let image = context.service.image();
    let judged: Vec<Result<(), ErrorCode>> = partitions
        .iter()
        .map(|(topic, index)| {
            let is_for_offsets = version == ClientVersion::V2 && topic == OFFSETS_TOPIC;
            if is_internal(topic) && !is_for_offsets {
                // The offsets of groups come into a transaction with AddOffsetsToTxn, or by the node that commits them; nothing
                // else is a client's to write.
                return Err(ErrorCode::TopicAuthorizationFailed);
            }
            find_partition(image.topic_named(topic), *index).map(|_| ())
        })
        .collect();
    drop(image);
    if judged.iter().any(Result::is_err) {
        return judged
            .into_iter()
            .map(|judged| judged.and(Err(ErrorCode::OperationNotAttempted)))
            .collect();
    }
    let result = match producer(transaction.producer_id) {
        Ok(producer) => {
            let request = Request::AddPartitions {
                producer,
                epoch: transaction.producer_epoch,
                partitions,
                version,
            };
            tell(context, &transaction.transactional_id, request).await
        }
        Err(error) => Err(error),
    };
    vec![result; judged.len()]
}

async fn verify<S: Service>(
    context: &Context<S>,
    transaction: &AddPartitionsToTxnTransaction,
) -> Vec<Result<(), ErrorCode>> {
    let partitions = partitions(transaction);
    let count = partitions.len();
    let asked = async {
        let request = Request::Verify {
            producer: producer(transaction.producer_id)?,
            epoch: transaction.producer_epoch,
            partitions,
        };
        match ask(context, &transaction.transactional_id, request).await? {
            Answer::Verified(verified) => Ok(verified),
            _ => Err(ErrorCode::UnknownServerError),
        }
    };
    match asked.await {
        Ok(verified) => verified
            .into_iter()
            .map(|reaches| reaches.then_some(()).ok_or(ErrorCode::InvalidTxnState))
            .collect(),
        Err(error) => vec![Err(error); count],
    }
}
