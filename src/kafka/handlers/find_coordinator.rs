//! FindCoordinator: there are no consumer groups and no transactions yet, so none is ever available.

use std::sync::Arc;

use kafka_protocol::messages::{FindCoordinatorRequest, FindCoordinatorResponse};

use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::Context;
use crate::types::ErrorCode;

pub(super) async fn handle<S: Service>(
    _context: Arc<Context<S>>,
    _request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    let response = FindCoordinatorResponse::default()
        .with_error_code(ErrorCode::CoordinatorNotAvailable.code())
        .with_node_id((-1).into())
        .with_port(-1);
    if version >= 1 {
        response.with_error_message(Some(text(
            "consumer groups and transactions are not served yet; assign partitions by hand",
        )))
    } else {
        response
    }
}
