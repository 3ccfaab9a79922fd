//! ListGroups: the groups that this node looks after.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{ListGroupsRequest, ListGroupsResponse};
use tokio::time::Instant;

use super::groups::{TAKEN_WITHIN, group_id};
use crate::groups::{GroupListing, GroupType, ListFilter};
use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::Context;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: ListGroupsRequest,
    _version: i16,
) -> ListGroupsResponse {
    // A state, or a type, that there is not is in no group.
    let states = request.states_filter.iter();
    let states: BTreeSet<String> = states.map(|state| state.to_ascii_lowercase()).collect();
    let types = request.types_filter.iter();
    let types: BTreeSet<GroupType> = types
        .filter_map(|kind| GroupType::from_name(kind))
        .collect();
    let filter = ListFilter {
        states: Some(states).filter(|_| !request.states_filter.is_empty()),
        types: Some(types).filter(|_| !request.types_filter.is_empty()),
    };
    let deadline = Instant::now() + TAKEN_WITHIN;
    let (groups, error) = context.service.list_groups(filter, deadline).await;
    let listed = |group: GroupListing| {
        ListedGroup::default()
            .with_group_id(group_id(&group.group))
            .with_protocol_type(text(&*group.protocol_type))
            .with_group_state(text(group.state))
            .with_group_type(text(group.kind.name()))
    };
    ListGroupsResponse::default()
        .with_error_code(error.map_or(0, |error| error.code()))
        .with_groups(groups.into_iter().map(listed).collect())
}
