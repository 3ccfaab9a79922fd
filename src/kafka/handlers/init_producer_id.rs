//! InitProducerId: an id for an idempotent producer, or what a transactional id makes its producer.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};
use tokio::time::Instant;

use super::transactions::{ask, in_words_of};
use crate::kafka::Service;
use crate::kafka::context::Context;
use crate::transactions::{Answer, Request};
use crate::types::{self, ErrorCode};

/// How long to wait for a block of ids from the controller. The request names no time of its own; this is shorter than
/// clients wait for any answer.
const ALLOCATION_DEADLINE: Duration = Duration::from_secs(10);
/// Since this version, a producer that was fenced is told so in a word of its own.
const FENCED_SINCE: i16 = 4;
/// Stands for no producer id, and for no epoch.
const NONE: i64 = -1;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: InitProducerIdRequest,
    version: i16,
) -> InitProducerIdResponse {
    let given = match &request.transactional_id {
        Some(id) => begin(&context, id, &request).await,
        // A producer that names an id it had gets a new one all the same, as with Kafka: only transactions keep theirs.
        None => {
            let deadline = Instant::now() + ALLOCATION_DEADLINE;
            let allocated = context.service.allocate_producer_id(deadline).await;
            allocated.map(|producer| (producer, 0))
        }
    };
    match given {
        Ok((producer, epoch)) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(producer.get()))
            .with_producer_epoch(epoch),
        Err(error) => InitProducerIdResponse::default()
            .with_error_code(in_words_of(version, FENCED_SINCE, error).code())
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1),
    }
}

async fn begin<S: Service>(
    context: &Context<S>,
    id: &str,
    request: &InitProducerIdRequest,
) -> Result<(types::ProducerId, i16), ErrorCode> {
    let expected = match (request.producer_id.0, request.producer_epoch) {
        (NONE, -1) => None,
        (producer, epoch) if epoch >= 0 => {
            let producer = types::ProducerId::new(producer).ok_or(ErrorCode::InvalidRequest)?;
            Some((producer, epoch))
        }
        // One without the other means nothing.
        _ => return Err(ErrorCode::InvalidRequest),
    };
    let asked = Request::Init {
        timeout_ms: request.transaction_timeout_ms,
        expected,
        fresh: None,
    };
    match ask(context, id, asked).await? {
        Answer::Producer { producer, epoch } => Ok((producer, epoch)),
        _ => Err(ErrorCode::UnknownServerError),
    }
}
