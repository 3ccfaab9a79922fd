//! Heartbeat: a member lives, and learns whether it is to join again.

use std::sync::Arc;

use kafka_protocol::messages::{HeartbeatRequest, HeartbeatResponse};

use super::groups::{ask, code, who};
use crate::groups::Request;
use crate::kafka::Service;
use crate::kafka::context::Context;
use crate::types::ErrorCode;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: HeartbeatRequest,
    _version: i16,
) -> HeartbeatResponse {
    let beat = Request::Heartbeat {
        who: who(&request.member_id, request.group_instance_id.as_ref()),
        generation: request.generation_id,
    };
    let code = match ask(&context, &request.group_id, beat).await {
        // Sessions begin when the coordinator has loaded them: until then nobody is late.
        Err(ErrorCode::CoordinatorLoadInProgress) => 0,
        result => code(&result),
    };
    HeartbeatResponse::default().with_error_code(code)
}
