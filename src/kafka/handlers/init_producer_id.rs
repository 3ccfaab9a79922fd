//! InitProducerId: an id for an idempotent producer.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};
use tokio::time::Instant;

use crate::kafka::Service;
use crate::kafka::context::Context;
use crate::types::ErrorCode;

/// How long to wait for a block of ids from the controller. The request names no time of its own; this is shorter than
/// clients wait for any answer.
const ALLOCATION_DEADLINE: Duration = Duration::from_secs(10);

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: InitProducerIdRequest,
    _version: i16,
) -> InitProducerIdResponse {
    // A producer that names an id it had gets a new one all the same, as with Kafka: only transactions keep theirs.
    let allocated = match request.transactional_id {
        Some(_) => Err(ErrorCode::InvalidRequest),
        None => {
            let deadline = Instant::now() + ALLOCATION_DEADLINE;
            context.service.allocate_producer_id(deadline).await
        }
    };
    match allocated {
        Ok(id) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(id.get()))
            .with_producer_epoch(0),
        Err(error) => InitProducerIdResponse::default()
            .with_error_code(error.code())
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1),
    }
}
