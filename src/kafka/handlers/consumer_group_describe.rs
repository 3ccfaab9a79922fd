//! ConsumerGroupDescribe: who is in groups of the newer protocol, what each reads and is to read.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::consumer_group_describe_response::{
    Assignment, DescribedGroup, Member, TopicPartitions,
};
use kafka_protocol::messages::{
    ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, TopicName,
};

use super::groups::{ask, unexpected};
use crate::groups::{Answer, ConsumerDescription, ConsumerMemberDescription, Partitions, Request};
use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::{Context, to_uuid};
use crate::kafka::limits::MAX_DESCRIPTION_BYTES;
use crate::metadata::ClusterImage;
use crate::types::ErrorCode;

/// Kafka's "authorized operations were not asked for". There is no authorization by group yet.
const OPERATIONS_OMITTED: i32 = i32::MIN;
/// A member that uses the newer protocol; the older one's members would be 0.
const MEMBER_OF_NEWER_PROTOCOL: i8 = 1;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: ConsumerGroupDescribeRequest,
    _version: i16,
) -> ConsumerGroupDescribeResponse {
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut groups = Vec::new();
    for group in request.group_ids {
        // Once, however often it is named: else a small request makes a huge answer.
        if !seen.insert(group.clone()) {
            continue;
        }
        let described = if bytes > MAX_DESCRIPTION_BYTES {
            Err(ErrorCode::PolicyViolation)
        } else {
            match ask(&context, &group, Request::DescribeConsumers).await {
                Ok(Answer::ConsumerDescribed(found)) => Ok(found),
                Ok(other) => unexpected(other),
                Err(error) => Err(error),
            }
        };
        bytes += described.as_ref().map_or(0, size);
        let image = context.service.image();
        groups.push(respond(described, &image).with_group_id(group));
    }
    ConsumerGroupDescribeResponse::default().with_groups(groups)
}

fn size(described: &ConsumerDescription) -> usize {
    let member = |member: &ConsumerMemberDescription| {
        let names = member.names.iter().map(|name| name.len() + 2);
        let partitions = member.assigned.len() + member.target.len();
        names.sum::<usize>() + 8 * partitions + member.member.len() + 64
    };
    described.members.iter().map(member).sum()
}

fn respond(
    described: Result<ConsumerDescription, ErrorCode>,
    image: &ClusterImage,
) -> DescribedGroup {
    let group = DescribedGroup::default().with_authorized_operations(OPERATIONS_OMITTED);
    match described {
        Err(error) => group
            .with_error_code(error.code())
            .with_error_message(Some(text(error.to_string()))),
        Ok(found) => {
            let members = found.members.into_iter();
            group
                .with_group_state(text(found.state.name()))
                .with_group_epoch(found.epoch)
                .with_assignment_epoch(found.assignment_epoch)
                .with_assignor_name(text(found.assignor))
                .with_members(members.map(|found| member(found, image)).collect())
        }
    }
}

fn member(found: ConsumerMemberDescription, image: &ClusterImage) -> Member {
    let optional = |known: Option<Arc<str>>| known.map(|known| text(&*known));
    let names = found.names.iter().map(|name| TopicName(text(&**name)));
    Member::default()
        .with_member_id(text(&*found.member))
        .with_instance_id(optional(found.instance))
        .with_rack_id(optional(found.rack))
        .with_member_epoch(found.epoch)
        .with_client_id(text(&*found.client_id))
        .with_client_host(text(&*found.client_host))
        .with_subscribed_topic_names(names.collect())
        .with_subscribed_topic_regex(optional(found.pattern))
        .with_assignment(assignment(&found.assigned, image))
        .with_target_assignment(assignment(&found.target, image))
        .with_member_type(MEMBER_OF_NEWER_PROTOCOL)
}

/// A topic that has gone meanwhile has no name: it is left out.
fn assignment(partitions: &Partitions, image: &ClusterImage) -> Assignment {
    let topics = partitions.topics().filter_map(|(id, partitions)| {
        let topic = image.topic(id)?;
        let topic = TopicPartitions::default()
            .with_topic_id(to_uuid(id))
            .with_topic_name(TopicName(text(topic.name.as_str())))
            .with_partitions(partitions.iter().copied().collect());
        Some(topic)
    });
    Assignment::default().with_topic_partitions(topics.collect())
}
