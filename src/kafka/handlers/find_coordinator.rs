//! FindCoordinator: which node looks after a consumer group or a transactional id.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{BrokerId, FindCoordinatorRequest, FindCoordinatorResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::groups::TAKEN_WITHIN;
use crate::groups::MAX_GROUP_ID_BYTES;
use crate::kafka::codec::text;
use crate::kafka::context::Context;
use crate::kafka::{Refusal, Service};
use crate::metadata::Endpoint;
use crate::transactions::MAX_TRANSACTIONAL_ID_BYTES;
use crate::types::{ErrorCode, NodeId};

/// Since this version, several are asked for at once.
const SEVERAL_SINCE: i16 = 4;
/// Since this version, an error comes with words.
const MESSAGE_SINCE: i16 = 1;
/// The key is a group's name.
const GROUP: i8 = 0;
/// The key is a transactional id. There is one kind more, that of share groups.
const TRANSACTION: i8 = 1;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    if version < SEVERAL_SINCE {
        let found = find(&context, &request.key, request.key_type).await;
        let described = describe(request.key, found);
        let response = FindCoordinatorResponse::default()
            .with_error_code(described.error_code)
            .with_node_id(described.node_id)
            .with_host(described.host)
            .with_port(described.port);
        return match version >= MESSAGE_SINCE {
            true => response.with_error_message(described.error_message),
            false => response,
        };
    }
    let mut seen = BTreeSet::new();
    let mut coordinators = Vec::new();
    for key in request.coordinator_keys {
        if seen.insert(key.clone()) {
            let found = find(&context, &key, request.key_type).await;
            coordinators.push(describe(key, found));
        }
    }
    FindCoordinatorResponse::default().with_coordinators(coordinators)
}

async fn find<S: Service>(
    context: &Context<S>,
    key: &str,
    key_type: i8,
) -> Result<(NodeId, Endpoint), Refusal> {
    let deadline = Instant::now() + TAKEN_WITHIN;
    let node = match key_type {
        GROUP => {
            check(
                key,
                "a group's name",
                MAX_GROUP_ID_BYTES,
                ErrorCode::InvalidGroupId,
            )?;
            context.service.group_coordinator(key, deadline).await?
        }
        TRANSACTION => {
            let most = MAX_TRANSACTIONAL_ID_BYTES;
            check(key, "a transactional id", most, ErrorCode::InvalidRequest)?;
            context
                .service
                .transaction_coordinator(key, deadline)
                .await?
        }
        _ => {
            return Err(Refusal {
                error: ErrorCode::InvalidRequest,
                message: Some(
                    "only consumer groups and transactional ids have coordinators here: share groups are not served"
                        .to_owned(),
                ),
            });
        }
    };
    let image = context.service.image();
    match context.reachable(&image, node) {
        Some(endpoint) => Ok((node, endpoint.clone())),
        None => Err(ErrorCode::CoordinatorNotAvailable.into()),
    }
}

fn check(key: &str, what: &str, most: usize, error: ErrorCode) -> Result<(), Refusal> {
    if (1..=most).contains(&key.len()) {
        return Ok(());
    }
    Err(Refusal {
        error,
        message: Some(format!(
            "{what} has 1 to {most} bytes and this one has {}",
            key.len()
        )),
    })
}

fn describe(key: StrBytes, found: Result<(NodeId, Endpoint), Refusal>) -> Coordinator {
    let coordinator = Coordinator::default().with_key(key);
    match found {
        Ok((node, endpoint)) => coordinator
            .with_node_id(BrokerId(node.as_broker_id()))
            .with_host(text(endpoint.host))
            .with_port(endpoint.port.into()),
        Err(refusal) => {
            let message = refusal.message.unwrap_or_else(|| refusal.error.to_string());
            coordinator
                .with_error_code(refusal.error.code())
                .with_error_message(Some(text(message)))
                .with_node_id(BrokerId(-1))
                .with_port(-1)
        }
    }
}
