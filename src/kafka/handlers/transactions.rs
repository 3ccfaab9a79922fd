//! What the requests about transactions have in common.

use tokio::time::Instant;

use super::groups::TAKEN_WITHIN;
use crate::kafka::Service;
use crate::kafka::context::Context;
use crate::transactions::{Answer, Request};
use crate::types::{ErrorCode, ProducerId};

/// Asks the coordinator of a transactional id. It bounds its answer itself: that comes with a write.
pub(super) async fn ask<S: Service>(
    context: &Context<S>,
    transactional_id: &str,
    request: Request,
) -> Result<Answer, ErrorCode> {
    let taken_by = Instant::now() + TAKEN_WITHIN;
    context
        .service
        .ask_transaction(transactional_id, request, taken_by)
        .await
}

/// The same, for a request whose good answer says nothing else.
pub(super) async fn tell<S: Service>(
    context: &Context<S>,
    transactional_id: &str,
    request: Request,
) -> Result<(), ErrorCode> {
    match ask(context, transactional_id, request).await? {
        Answer::Done => Ok(()),
        _ => Err(ErrorCode::UnknownServerError),
    }
}

/// A producer by the number on the wire. No coordinator knows one of a number that there is not.
pub(super) fn producer(id: kafka_protocol::messages::ProducerId) -> Result<ProducerId, ErrorCode> {
    ProducerId::new(id.0).ok_or(ErrorCode::InvalidProducerIdMapping)
}

/// Clients that ask in a version before `since` know one word only for a producer that was fenced.
pub(super) fn in_words_of(version: i16, since: i16, error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::ProducerFenced if version < since => ErrorCode::InvalidProducerEpoch,
        error => error,
    }
}
