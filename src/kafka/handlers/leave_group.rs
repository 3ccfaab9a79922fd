//! LeaveGroup: members go, by themselves or by an administrator's hand.

use std::sync::Arc;

use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{LeaveGroupRequest, LeaveGroupResponse};

use super::groups::{ask, code, unexpected, who};
use crate::groups::{Answer, LeavingMember, Request};
use crate::kafka::Service;
use crate::kafka::context::Context;

/// Since this version, several members leave at once.
const SEVERAL_SINCE: i16 = 3;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: LeaveGroupRequest,
    version: i16,
) -> LeaveGroupResponse {
    let members = if version >= SEVERAL_SINCE {
        request.members
    } else {
        vec![MemberIdentity::default().with_member_id(request.member_id)]
    };
    let leaving = members
        .iter()
        .map(|member| LeavingMember {
            who: who(&member.member_id, member.group_instance_id.as_ref()),
        })
        .collect();
    let result = match ask(&context, &request.group_id, Request::Leave(leaving)).await {
        Ok(Answer::Results(results)) => Ok(results),
        Ok(other) => unexpected(other),
        Err(error) => Err(error),
    };
    let response = LeaveGroupResponse::default();
    match result {
        Err(error) => response.with_error_code(error.code()),
        Ok(results) if version < SEVERAL_SINCE => {
            response.with_error_code(results.first().map_or(0, code))
        }
        Ok(results) => {
            let member = |(member, result): (MemberIdentity, _)| {
                MemberResponse::default()
                    .with_member_id(member.member_id)
                    .with_group_instance_id(member.group_instance_id)
                    .with_error_code(code(&result))
            };
            response.with_members(members.into_iter().zip(results).map(member).collect())
        }
    }
}
