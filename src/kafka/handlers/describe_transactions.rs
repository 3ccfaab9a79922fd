//! DescribeTransactions: where transactional ids stand.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::{
    DescribeTransactionsRequest, DescribeTransactionsResponse, ProducerId, TopicName,
};

use super::transactions::ask;
use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::Context;
use crate::kafka::limits::MAX_DESCRIPTION_BYTES;
use crate::transactions::{Answer, Description, Request};
use crate::types::ErrorCode;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: DescribeTransactionsRequest,
    _version: i16,
) -> DescribeTransactionsResponse {
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut states = Vec::new();
    for id in request.transactional_ids {
        // An id that is named a thousand times is described once: else a small request makes a huge answer.
        if !seen.insert(id.clone()) {
            continue;
        }
        let described = if bytes > MAX_DESCRIPTION_BYTES {
            Err(ErrorCode::PolicyViolation)
        } else {
            match ask(&context, &id, Request::Describe).await {
                Ok(Answer::Described(found)) => Ok(found),
                Ok(_) => Err(ErrorCode::UnknownServerError),
                Err(error) => Err(error),
            }
        };
        bytes += described.as_ref().map_or(0, size);
        states.push(respond(described).with_transactional_id(id));
    }
    DescribeTransactionsResponse::default().with_transaction_states(states)
}

fn size(described: &Description) -> usize {
    let topics = described.partitions.iter();
    topics
        .map(|(topic, partitions)| topic.len() + 4 * partitions.len() + 64)
        .sum()
}

fn respond(described: Result<Description, ErrorCode>) -> TransactionState {
    match described {
        Err(error) => TransactionState::default().with_error_code(error.code()),
        Ok(found) => {
            let topics = found.partitions.into_iter().map(|(topic, partitions)| {
                TopicData::default()
                    .with_topic(TopicName(text(&*topic)))
                    .with_partitions(partitions)
            });
            TransactionState::default()
                .with_transaction_state(text(found.state.name()))
                .with_transaction_timeout_ms(found.timeout_ms)
                .with_transaction_start_time_ms(found.started_ms)
                .with_producer_id(ProducerId(found.producer.get()))
                .with_producer_epoch(found.epoch)
                .with_topics(topics.collect())
        }
    }
}
