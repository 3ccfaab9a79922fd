//! DeleteGroups: groups without members go, with their offsets.

use std::sync::Arc;

use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::{DeleteGroupsRequest, DeleteGroupsResponse};

use super::groups::{ask, code};
use crate::groups::Request;
use crate::kafka::Service;
use crate::kafka::context::Context;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: DeleteGroupsRequest,
    _version: i16,
) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for group in request.groups_names {
        let deleted = ask(&context, &group, Request::Delete).await;
        results.push(
            DeletableGroupResult::default()
                .with_error_code(code(&deleted))
                .with_group_id(group),
        );
    }
    DeleteGroupsResponse::default().with_results(results)
}
