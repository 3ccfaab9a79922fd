//! Groups of the newer protocol (KIP-848), as an operator sees them.

use kafka_protocol::messages::consumer_group_describe_response::{
    Assignment, DescribedGroup, Member,
};
use kafka_protocol::messages::{ConsumerGroupDescribeRequest, GroupId};

use super::operate::{GroupDescription, GroupMember, silent};
use crate::client::api::Spoken;
use crate::client::error::ClientError;
use crate::client::metadata::PartitionName;
use crate::client::{Client, wire_str};
use crate::types::{NodeId, PartitionIndex, TopicName};

/// How far such a group has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupEpochs {
    /// Rises with everything that may change who reads what.
    pub group: i32,
    /// The one for which the partitions were given out last.
    pub assignment: i32,
}

impl Client {
    /// The group as its coordinator, which is told besides, describes it.
    ///
    /// # Errors
    /// `GroupIdNotFound` for a group of the older protocol too; `Unsupported` by a build that does not know the newer one.
    pub(super) async fn describe_newer(
        &self,
        group: &str,
    ) -> Result<(DescribedGroup, NodeId), ClientError> {
        let request =
            ConsumerGroupDescribeRequest::default().with_group_ids(vec![GroupId(wire_str(group))]);
        self.at_coordinator(group, &request, |response, node| {
            let found = response.groups.into_iter().next();
            let found = found.ok_or_else(|| silent(ConsumerGroupDescribeRequest::NAME, group))?;
            ClientError::check(found.error_code, found.error_message.as_deref(), || {
                format!("describing group {group}")
            })?;
            Ok((found, node))
        })
        .await
    }
}

/// The group as its coordinator describes it, still without its offsets.
pub(super) fn description(found: &DescribedGroup, coordinator: NodeId) -> GroupDescription {
    GroupDescription {
        group: found.group_id.0.to_string(),
        state: found.group_state.to_string(),
        protocol_type: "consumer".to_owned(),
        epochs: Some(GroupEpochs {
            group: found.group_epoch,
            assignment: found.assignment_epoch,
        }),
        protocol: found.assignor_name.to_string(),
        coordinator,
        members: found.members.iter().map(member).collect(),
        offsets: Vec::new(),
    }
}

fn member(found: &Member) -> GroupMember {
    GroupMember {
        id: found.member_id.to_string(),
        instance: found.instance_id.as_ref().map(ToString::to_string),
        client_id: found.client_id.to_string(),
        client_host: found.client_host.to_string(),
        partitions: partitions(&found.assignment),
        target: Some(partitions(&found.target_assignment)),
        epoch: Some(found.member_epoch),
    }
}

fn partitions(assignment: &Assignment) -> Vec<PartitionName> {
    let mut names = Vec::new();
    for topic in &assignment.topic_partitions {
        let Ok(name) = TopicName::new(&topic.topic_name.0) else {
            continue;
        };
        let indexes = topic.partitions.iter();
        let indexes = indexes.filter_map(|&index| PartitionIndex::from_wire(index));
        names.extend(indexes.map(|index| PartitionName::new(name.clone(), index)));
    }
    names.sort_unstable();
    names
}
