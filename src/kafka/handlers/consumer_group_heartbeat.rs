//! ConsumerGroupHeartbeat: all that a member of a group of the newer protocol (KIP-848) says and is told.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use kafka_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::groups::{ask, unexpected, who};
use crate::groups::{Answer, ConsumerHeartbeat, HeartbeatAnswer, Partitions, Request};
use crate::kafka::Service;
use crate::kafka::codec::{BadRequest, RawRequest, text};
use crate::kafka::connection::{Pending, Reply};
use crate::kafka::context::{Context, from_uuid, to_uuid};
use crate::types::ErrorCode;

/// Since this version, clients choose the ids of their members.
const ID_BY_CLIENT_SINCE: i16 = 1;

pub(super) fn begin<S: Service>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
) -> Result<Pending, BadRequest> {
    let decoded: ConsumerGroupHeartbeatRequest = request.decode()?;
    let answer = request.answer();
    let client_id = request.client_id();
    let context = Arc::clone(context);
    Ok(Box::pin(async move {
        let group = decoded.group_id.as_str().to_owned();
        let beat = heartbeat(&decoded, client_id, &context.client_host, answer.version);
        drop(decoded);
        let result = match beat {
            Ok(beat) => match ask(&context, &group, Request::ConsumerHeartbeat(beat)).await {
                Ok(Answer::Beat(answer)) => Ok(answer),
                Ok(other) => unexpected(other),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        Ok(Reply::Send(answer.encode(&respond(result))?.into()))
    }))
}

fn heartbeat(
    request: &ConsumerGroupHeartbeatRequest,
    client_id: String,
    client_host: &str,
    version: i16,
) -> Result<ConsumerHeartbeat, ErrorCode> {
    if version >= ID_BY_CLIENT_SINCE && request.member_id.is_empty() {
        return Err(ErrorCode::InvalidRequest);
    }
    let owned = match &request.topic_partitions {
        None => None,
        Some(topics) => {
            let mut owned = Partitions::default();
            for topic in topics {
                let id = from_uuid(topic.topic_id).ok_or(ErrorCode::InvalidRequest)?;
                owned.extend(topic.partitions.iter().map(|&partition| (id, partition)));
            }
            Some(owned)
        }
    };
    let owned_text = |text: &Option<kafka_protocol::protocol::StrBytes>| {
        text.as_ref().map(|text| text.as_str().to_owned())
    };
    let names = request.subscribed_topic_names.as_ref();
    // −1 says that it has not changed.
    let rebalance = u64::try_from(request.rebalance_timeout_ms).ok();
    Ok(ConsumerHeartbeat {
        who: who(&request.member_id, request.instance_id.as_ref()),
        epoch: request.member_epoch,
        client_id,
        client_host: client_host.to_owned(),
        rack: owned_text(&request.rack_id),
        rebalance: rebalance.map(Duration::from_millis),
        names: names.map(|names| names.iter().map(|name| name.as_str().to_owned()).collect()),
        pattern: owned_text(&request.subscribed_topic_regex),
        assignor: owned_text(&request.server_assignor),
        owned,
        random: rand::random(),
    })
}

fn respond(result: Result<HeartbeatAnswer, ErrorCode>) -> ConsumerGroupHeartbeatResponse {
    let response = ConsumerGroupHeartbeatResponse::default();
    let answer = match result {
        Ok(answer) => answer,
        Err(error) => {
            let message = match error {
                ErrorCode::GroupIdNotFound => {
                    "the group has members that use the older group protocol (group.protocol=classic): let them leave first"
                        .to_owned()
                }
                error => error.to_string(),
            };
            return response
                .with_error_code(error.code())
                .with_error_message(Some(text(message)));
        }
    };
    let interval = i32::try_from(answer.interval.as_millis()).unwrap_or(i32::MAX);
    response
        .with_member_id(Some(text(&*answer.member)))
        .with_member_epoch(answer.epoch)
        .with_heartbeat_interval_ms(interval)
        .with_assignment(answer.assignment.as_ref().map(assignment))
}

fn assignment(partitions: &Partitions) -> Assignment {
    let topic = |(topic, partitions): (_, &std::collections::BTreeSet<i32>)| {
        TopicPartitions::default()
            .with_topic_id(to_uuid(topic))
            .with_partitions(partitions.iter().copied().collect())
    };
    Assignment::default().with_topic_partitions(partitions.topics().map(topic).collect())
}
