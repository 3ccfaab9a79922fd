//! SyncGroup: the leader hands in the assignment, every member gets its own.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{SyncGroupRequest, SyncGroupResponse};

use super::groups::{ask, who};
use crate::groups::{Answer, Request, Sync};
use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::Context;
use crate::types::ErrorCode;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: SyncGroupRequest,
    _version: i16,
) -> SyncGroupResponse {
    let owned = |text: &kafka_protocol::protocol::StrBytes| text.as_str().to_owned();
    let sync = Sync {
        who: who(&request.member_id, request.group_instance_id.as_ref()),
        generation: request.generation_id,
        protocol_type: request.protocol_type.as_ref().map(owned),
        protocol: request.protocol_name.as_ref().map(owned),
        assignments: request
            .assignments
            .iter()
            .map(|given| {
                let bytes = Bytes::copy_from_slice(&given.assignment);
                (owned(&given.member_id), bytes)
            })
            .collect(),
    };
    let group = owned(&request.group_id);
    drop(request);
    match ask(&context, &group, Request::Sync(sync)).await {
        Ok(Answer::Synced(synced)) => SyncGroupResponse::default()
            .with_protocol_type(Some(text(&*synced.protocol_type)))
            .with_protocol_name(Some(text(&*synced.protocol)))
            .with_assignment(synced.assignment),
        Ok(_) => refuse(ErrorCode::UnknownServerError),
        Err(error) => refuse(error),
    }
}

fn refuse(error: ErrorCode) -> SyncGroupResponse {
    SyncGroupResponse::default().with_error_code(error.code())
}
