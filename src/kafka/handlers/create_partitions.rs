//! CreatePartitions: more partitions for a topic.

use std::collections::HashMap;
use std::sync::Arc;

use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse};

use super::code_and_message;
use super::create_topics::nodes;
use crate::kafka::context::{Context, deadline};
use crate::kafka::{Refusal, Service};
use crate::metadata::{self, ClusterImage};
use crate::types::{ErrorCode, is_internal};

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: CreatePartitionsRequest,
    _version: i16,
) -> CreatePartitionsResponse {
    let deadline = deadline(request.timeout_ms);
    let image = context.service.image();
    let mut times_named: HashMap<String, usize> = HashMap::new();
    for topic in &request.topics {
        *times_named
            .entry(topic.name.as_str().to_owned())
            .or_default() += 1;
    }
    let mut wanted = Vec::new();
    let plan: Vec<_> = request
        .topics
        .into_iter()
        .map(|topic| {
            let name = topic.name.clone();
            let planned = match times_named.get(name.as_str()) {
                Some(2..) => Err(Refusal {
                    error: ErrorCode::InvalidRequest,
                    message: Some("the request names the topic more than once".to_owned()),
                }),
                _ => understand(&image, &topic),
            };
            let planned = planned.map(|topic| {
                wanted.push(topic);
                wanted.len() - 1
            });
            (name, planned)
        })
        .collect();
    let results = if wanted.is_empty() {
        Vec::new()
    } else {
        context
            .service
            .create_partitions(wanted, request.validate_only, deadline)
            .await
    };
    let results = plan
        .into_iter()
        .map(|(name, planned)| {
            let outcome = planned.and_then(|place| match results.get(place) {
                Some(result) => result.clone(),
                None => Err(Refusal::from(ErrorCode::UnknownServerError)),
            });
            let (code, message) = code_and_message(&outcome);
            CreatePartitionsTopicResult::default()
                .with_name(name)
                .with_error_code(code)
                .with_error_message(message)
        })
        .collect();
    CreatePartitionsResponse::default().with_results(results)
}

fn understand(
    image: &ClusterImage,
    topic: &CreatePartitionsTopic,
) -> Result<metadata::CreatePartitionsRequest, Refusal> {
    let found = image
        .topic_named(&topic.name)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    if is_internal(&topic.name) {
        return Err(Refusal {
            error: ErrorCode::InvalidTopicException,
            message: Some(
                "which partition holds a consumer group follows from their number, so it stays"
                    .to_owned(),
            ),
        });
    }
    let total = match u32::try_from(topic.count) {
        Ok(count @ 1..) => count,
        _ => {
            return Err(Refusal {
                error: ErrorCode::InvalidPartitions,
                message: Some(format!(
                    "{} partitions: a topic has at least 1",
                    topic.count
                )),
            });
        }
    };
    let assignment = topic
        .assignments
        .as_ref()
        .map(|assignments| assignments.iter().map(|a| nodes(&a.broker_ids)).collect())
        .transpose()?;
    Ok(metadata::CreatePartitionsRequest {
        topic: found.id,
        total,
        assignment,
    })
}
