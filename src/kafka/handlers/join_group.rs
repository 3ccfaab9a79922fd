//! JoinGroup: a member comes, or comes back; answered when the members of the next generation are known.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse};

use super::groups::{ask, who};
use crate::groups::{Answer, Join, JoinMember, Joined, Request};
use crate::kafka::Service;
use crate::kafka::codec::{BadRequest, RawRequest, text};
use crate::kafka::connection::{Pending, Reply};
use crate::kafka::context::Context;
use crate::types::ErrorCode;

/// Since this version, a client that has no member id is given one first (KIP-394).
const ID_FIRST_SINCE: i16 = 4;
/// Since this version, a leader can be told that the assignment stands (KIP-814).
const SKIP_ASSIGNMENT_SINCE: i16 = 9;

pub(super) fn begin<S: Service>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
) -> Result<Pending, BadRequest> {
    let decoded: JoinGroupRequest = request.decode()?;
    let answer = request.answer();
    let join = join(
        &decoded,
        request.client_id(),
        &context.client_host,
        answer.version,
    );
    let context = Arc::clone(context);
    Ok(Box::pin(async move {
        let group = decoded.group_id.as_str().to_owned();
        let member = decoded.member_id.clone();
        // The request is kept no longer than it takes to read it: the answer may be minutes away.
        drop(decoded);
        let member = member.as_str().to_owned();
        let response = match ask(&context, &group, Request::Join(join)).await {
            Ok(Answer::Joined(joined)) => respond(joined),
            Ok(Answer::MemberIdRequired(id)) => refuse(ErrorCode::MemberIdRequired, &id),
            Ok(_) => refuse(ErrorCode::UnknownServerError, &member),
            Err(error) => refuse(error, &member),
        };
        Ok(Reply::Send(answer.encode(&response)?.into()))
    }))
}

fn join(request: &JoinGroupRequest, client_id: String, client_host: &str, version: i16) -> Join {
    let milliseconds = |ms: i32| u64::try_from(ms).ok().map(Duration::from_millis);
    let session = milliseconds(request.session_timeout_ms).unwrap_or_default();
    let protocols = request.protocols.iter();
    Join {
        who: who(&request.member_id, request.group_instance_id.as_ref()),
        client_id,
        client_host: client_host.to_owned(),
        session,
        // Version 0 has one timeout for both.
        rebalance: milliseconds(request.rebalance_timeout_ms).unwrap_or(session),
        protocol_type: request.protocol_type.as_str().to_owned(),
        protocols: protocols
            .map(|protocol| {
                let metadata = bytes::Bytes::copy_from_slice(&protocol.metadata);
                (protocol.name.as_str().to_owned(), metadata)
            })
            .collect(),
        takes_id_first: version >= ID_FIRST_SINCE,
        can_skip_assignment: version >= SKIP_ASSIGNMENT_SINCE,
        random: rand::random(),
    }
}

fn respond(joined: Joined) -> JoinGroupResponse {
    let member = |member: JoinMember| {
        JoinGroupResponseMember::default()
            .with_member_id(text(&*member.member))
            .with_group_instance_id(member.instance.map(|instance| text(&*instance)))
            .with_metadata(member.metadata)
    };
    JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_type(Some(text(&*joined.protocol_type)))
        .with_protocol_name(Some(text(&*joined.protocol)))
        .with_leader(text(&*joined.leader))
        .with_skip_assignment(joined.skip_assignment)
        .with_member_id(text(&*joined.member))
        .with_members(joined.members.into_iter().map(member).collect())
}

fn refuse(error: ErrorCode, member: &str) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_member_id(text(member))
}
