//! DeleteTopics: by name or by id.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse, TopicName};

use super::code_and_message;
use crate::kafka::context::{Context, deadline, from_uuid, to_uuid};
use crate::kafka::{Refusal, Service};
use crate::metadata::ClusterImage;
use crate::types::{ErrorCode, TopicId, is_internal};

/// From this version on, an error comes with words.
const MESSAGE_SINCE: i16 = 5;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: DeleteTopicsRequest,
    version: i16,
) -> DeleteTopicsResponse {
    let deadline = deadline(request.timeout_ms);
    let image = context.service.image();
    let by_name = request
        .topic_names
        .into_iter()
        .map(|name| (Some(name), None));
    let by_state = request
        .topics
        .into_iter()
        .map(|topic| (topic.name, from_uuid(topic.topic_id)));
    let mut wanted = Vec::new();
    let mut seen = BTreeSet::new();
    let plan: Vec<_> = by_name
        .chain(by_state)
        .map(|(name, id)| {
            let planned = find(&image, name.as_ref(), id).and_then(|found| {
                if !seen.insert(found) {
                    return Err(Refusal {
                        error: ErrorCode::InvalidRequest,
                        message: Some("the request names the topic more than once".to_owned()),
                    });
                }
                if let Some(topic) = image.topic(found)
                    && is_internal(topic.name.as_str())
                {
                    return Err(Refusal {
                        error: ErrorCode::InvalidTopicException,
                        message: Some(
                            "the topic holds the offsets of every consumer group: delete groups instead"
                                .to_owned(),
                        ),
                    });
                }
                wanted.push(found);
                Ok(wanted.len() - 1)
            });
            (name, id, planned)
        })
        .collect();
    let results = if wanted.is_empty() {
        Vec::new()
    } else {
        context
            .service
            .delete_topics(wanted.clone(), deadline)
            .await
    };
    let responses = plan
        .into_iter()
        .map(|(name, id, planned)| {
            // Who asked by one is told the other, where the topic was there.
            let found = planned.as_ref().ok().map(|place| wanted[*place]);
            let known = found.and_then(|found| image.topic(found));
            let name = name.or_else(|| {
                known.map(|topic| TopicName(crate::kafka::codec::text(topic.name.as_str())))
            });
            let outcome = planned.and_then(|place| match results.get(place) {
                Some(result) => result.clone(),
                None => Err(Refusal::from(ErrorCode::UnknownServerError)),
            });
            let (code, message) = code_and_message(&outcome);
            let mut response = DeletableTopicResult::default()
                .with_name(name)
                .with_error_code(code);
            if version >= MESSAGE_SINCE {
                response.error_message = message;
            }
            if let Some(id) = id.or(found) {
                response.topic_id = to_uuid(id);
            }
            response
        })
        .collect();
    DeleteTopicsResponse::default().with_responses(responses)
}

fn find(
    image: &ClusterImage,
    name: Option<&TopicName>,
    id: Option<TopicId>,
) -> Result<TopicId, Refusal> {
    match (name, id) {
        (Some(_), Some(_)) | (None, None) => Err(Refusal {
            error: ErrorCode::InvalidRequest,
            message: Some("a topic is named either by its name or by its id".to_owned()),
        }),
        (Some(name), None) => image
            .topic_named(name)
            .map(|topic| topic.id)
            .ok_or_else(|| ErrorCode::UnknownTopicOrPartition.into()),
        (None, Some(id)) => match image.topic(id) {
            Some(_) => Ok(id),
            None => Err(ErrorCode::UnknownTopicId.into()),
        },
    }
}
