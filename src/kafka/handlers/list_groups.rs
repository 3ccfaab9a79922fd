//! ListGroups: the groups that this node looks after.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{ListGroupsRequest, ListGroupsResponse};
use tokio::time::Instant;

use super::groups::{TAKEN_WITHIN, group_id};
use crate::groups::{GroupListing, GroupState};
use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::Context;

/// The type of every group here.
const CLASSIC: &str = "classic";

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: ListGroupsRequest,
    _version: i16,
) -> ListGroupsResponse {
    let types = &request.types_filter;
    let no_such_type = !types.is_empty()
        && !types
            .iter()
            .any(|wanted| wanted.eq_ignore_ascii_case(CLASSIC));
    if no_such_type {
        return ListGroupsResponse::default();
    }
    let states = request.states_filter.iter();
    // A state that there is not is in no group.
    let states: BTreeSet<GroupState> = states
        .filter_map(|state| GroupState::from_name(state))
        .collect();
    let states = Some(states).filter(|_| !request.states_filter.is_empty());
    let deadline = Instant::now() + TAKEN_WITHIN;
    let (groups, error) = context.service.list_groups(states, deadline).await;
    let listed = |group: GroupListing| {
        ListedGroup::default()
            .with_group_id(group_id(&group.group))
            .with_protocol_type(text(&*group.protocol_type))
            .with_group_state(text(group.state.name()))
            .with_group_type(text(CLASSIC))
    };
    ListGroupsResponse::default()
        .with_error_code(error.map_or(0, |error| error.code()))
        .with_groups(groups.into_iter().map(listed).collect())
}
