//! DescribeGroups: who is in groups, and what each reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::{DescribeGroupsRequest, DescribeGroupsResponse};

use super::groups::{ask, unexpected};
use crate::groups::{Answer, Description, GroupState, MemberDescription, Request};
use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::Context;
use crate::kafka::limits::MAX_DESCRIPTION_BYTES;
use crate::types::ErrorCode;

/// Since this version, a group that is not there is an error; before, it is dead.
const NOT_FOUND_SINCE: i16 = 6;
/// Kafka's "authorized operations were not asked for". There is no authorization by group yet.
const OPERATIONS_OMITTED: i32 = i32::MIN;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: DescribeGroupsRequest,
    version: i16,
) -> DescribeGroupsResponse {
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut groups = Vec::new();
    for group in request.groups {
        // A group that is named a thousand times is described once: else a small request makes a huge answer.
        if !seen.insert(group.clone()) {
            continue;
        }
        let described = if bytes > MAX_DESCRIPTION_BYTES {
            Err(ErrorCode::PolicyViolation)
        } else {
            match ask(&context, &group, Request::Describe).await {
                Ok(Answer::Described(found)) => Ok(found),
                Ok(other) => unexpected(other),
                Err(error) => Err(error),
            }
        };
        bytes += described.as_ref().map_or(0, size);
        groups.push(respond(described, version).with_group_id(group));
    }
    DescribeGroupsResponse::default().with_groups(groups)
}

fn size(described: &Description) -> usize {
    let members = described.members.iter();
    members
        .map(|member| member.metadata.len() + member.assignment.len() + member.member.len() + 64)
        .sum()
}

fn respond(described: Result<Description, ErrorCode>, version: i16) -> DescribedGroup {
    let group = DescribedGroup::default().with_authorized_operations(OPERATIONS_OMITTED);
    let described = match described {
        Ok(found) if found.state == GroupState::Dead && version >= NOT_FOUND_SINCE => {
            Err(ErrorCode::GroupIdNotFound)
        }
        described => described,
    };
    match described {
        Err(error) => {
            let group = group.with_error_code(error.code());
            if version < NOT_FOUND_SINCE {
                return group;
            }
            group
                .with_group_state(text(GroupState::Dead.name()))
                .with_error_message(Some(text(error.to_string())))
        }
        Ok(found) => group
            .with_group_state(text(found.state.name()))
            .with_protocol_type(text(&*found.protocol_type))
            .with_protocol_data(text(&*found.protocol))
            .with_members(found.members.into_iter().map(member).collect()),
    }
}

fn member(found: MemberDescription) -> DescribedGroupMember {
    DescribedGroupMember::default()
        .with_member_id(text(&*found.member))
        .with_group_instance_id(found.instance.map(|instance| text(&*instance)))
        .with_client_id(text(&*found.client_id))
        .with_client_host(text(&*found.client_host))
        .with_member_metadata(found.metadata)
        .with_member_assignment(found.assignment)
}
