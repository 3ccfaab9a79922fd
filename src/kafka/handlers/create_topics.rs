//! CreateTopics.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZero;
use std::sync::Arc;

use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use kafka_protocol::messages::{BrokerId, CreateTopicsRequest, CreateTopicsResponse};

use super::code_and_message;
use crate::kafka::codec::text;
use crate::kafka::context::{Config, Context, deadline, to_uuid};
use crate::kafka::{CreatedTopic, Refusal, Service};
use crate::metadata::{CreateTopicRequest, TopicConfig};
use crate::types::{ErrorCode, NodeId, TopicId, TopicName, is_internal};

/// Kafka's "the cluster's default".
const DEFAULT: i32 = -1;
/// From this version on, the response describes what was made.
const DESCRIBED_SINCE: i16 = 5;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: CreateTopicsRequest,
    version: i16,
) -> CreateTopicsResponse {
    let deadline = deadline(request.timeout_ms);
    let mut times_named: HashMap<String, usize> = HashMap::new();
    for topic in &request.topics {
        *times_named
            .entry(topic.name.as_str().to_owned())
            .or_default() += 1;
    }
    let mut wanted = Vec::new();
    let mut plan = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let name = topic.name.clone();
        let understood = match times_named.get(name.as_str()) {
            Some(2..) => Err(refuse(
                ErrorCode::InvalidRequest,
                "the request names the topic more than once",
            )),
            _ => understand(topic, &context.config),
        };
        plan.push((
            name,
            understood.map(|topic| {
                wanted.push(topic);
                wanted.len() - 1
            }),
        ));
    }
    let results = if wanted.is_empty() {
        Vec::new()
    } else {
        context
            .service
            .create_topics(wanted.clone(), request.validate_only, deadline)
            .await
    };
    let topics = plan
        .into_iter()
        .map(|(name, planned)| {
            let outcome = planned.and_then(|place| {
                let made = match results.get(place) {
                    Some(result) => result.clone()?,
                    None => return Err(Refusal::from(ErrorCode::UnknownServerError)),
                };
                Ok((&wanted[place], made))
            });
            let (code, message) = code_and_message(&outcome);
            let result = CreatableTopicResult::default()
                .with_name(name)
                .with_error_code(code)
                .with_error_message(message);
            match outcome {
                Ok((topic, made)) if version >= DESCRIBED_SINCE => {
                    describe(&context, result, topic, &made, request.validate_only)
                }
                _ => result,
            }
        })
        .collect();
    CreateTopicsResponse::default().with_topics(topics)
}

fn understand(topic: CreatableTopic, defaults: &Config) -> Result<CreateTopicRequest, Refusal> {
    let name = TopicName::new(&topic.name)
        .map_err(|error| refuse(ErrorCode::InvalidTopicException, error))?;
    if is_internal(name.as_str()) {
        return Err(refuse(
            ErrorCode::InvalidTopicException,
            "the cluster makes this topic itself, when the first consumer group is asked for",
        ));
    }
    let request = CreateTopicRequest {
        name,
        id: TopicId::from_random_bits(rand::random()),
        partitions: None,
        replication_factor: None,
        assignment: None,
        config: configs(topic.configs)?,
    };
    if !topic.assignments.is_empty() {
        if topic.num_partitions != DEFAULT || i32::from(topic.replication_factor) != DEFAULT {
            return Err(refuse(
                ErrorCode::InvalidRequest,
                "with an assignment, the number of partitions and the replication factor must both be -1",
            ));
        }
        return Ok(CreateTopicRequest {
            assignment: Some(assignment(topic.assignments)?),
            ..request
        });
    }
    let partitions = match topic.num_partitions {
        DEFAULT => defaults.num_partitions.map(NonZero::get),
        count => match u32::try_from(count) {
            Ok(count @ 1..) => Some(count),
            _ => {
                return Err(refuse(
                    ErrorCode::InvalidPartitions,
                    format!("{count} partitions: there must be at least 1, or -1 for the default"),
                ));
            }
        },
    };
    let replication_factor = match i32::from(topic.replication_factor) {
        DEFAULT => defaults.default_replication_factor.map(NonZero::get),
        factor => match u16::try_from(factor) {
            Ok(factor @ 1..) => Some(factor),
            _ => {
                return Err(refuse(
                    ErrorCode::InvalidReplicationFactor,
                    format!(
                        "replication factor {factor}: it must be at least 1, or -1 for the default"
                    ),
                ));
            }
        },
    };
    Ok(CreateTopicRequest {
        partitions,
        replication_factor,
        ..request
    })
}

fn configs(configs: Vec<CreatableTopicConfig>) -> Result<BTreeMap<String, String>, Refusal> {
    let mut map = BTreeMap::new();
    for config in configs {
        let name = config.name.as_str().to_owned();
        let Some(value) = config.value else {
            return Err(refuse(
                ErrorCode::InvalidConfig,
                format!("{name:.64} has no value"),
            ));
        };
        map.insert(name, value.as_str().to_owned());
    }
    Ok(map)
}

/// Partitions may come in any order, but must be 0, 1, … without a hole.
fn assignment(
    mut assignments: Vec<CreatableReplicaAssignment>,
) -> Result<Vec<Vec<NodeId>>, Refusal> {
    assignments.sort_by_key(|assignment| assignment.partition_index);
    let mut replicas = Vec::with_capacity(assignments.len());
    for (expected, assignment) in (0..).zip(assignments) {
        if assignment.partition_index != expected {
            return Err(refuse(
                ErrorCode::InvalidReplicaAssignment,
                format!(
                    "partitions must be 0, 1, 2 and so on, each once: {expected} is missing, or one before it comes twice"
                ),
            ));
        }
        replicas.push(nodes(&assignment.broker_ids)?);
    }
    Ok(replicas)
}

/// Broker ids as node ids.
pub(super) fn nodes(ids: &[BrokerId]) -> Result<Vec<NodeId>, Refusal> {
    ids.iter()
        .map(|id| {
            NodeId::from_broker_id(id.0).ok_or_else(|| {
                refuse(
                    ErrorCode::InvalidReplicaAssignment,
                    format!("there is no node {}: node ids start at 1", id.0),
                )
            })
        })
        .collect()
}

fn refuse(error: ErrorCode, message: impl ToString) -> Refusal {
    Refusal {
        error,
        message: Some(message.to_string()),
    }
}

fn describe<S: Service>(
    context: &Context<S>,
    result: CreatableTopicResult,
    topic: &CreateTopicRequest,
    made: &CreatedTopic,
    validate_only: bool,
) -> CreatableTopicResult {
    let factor = made.replication_factor;
    let entries = TopicConfig::describe(
        &topic.config,
        factor as usize,
        context.service.flush_policy(),
    );
    let configs = entries
        .into_iter()
        .map(|entry| {
            CreatableTopicConfigs::default()
                .with_name(text(entry.name))
                .with_value(Some(text(entry.value)))
                .with_read_only(false)
                .with_config_source(entry.source.code())
                .with_is_sensitive(false)
        })
        .collect();
    let result = result
        .with_num_partitions(i32::try_from(made.partitions).unwrap_or(i32::MAX))
        .with_replication_factor(i16::try_from(factor).unwrap_or(i16::MAX))
        .with_configs(Some(configs));
    if validate_only {
        result
    } else {
        result.with_topic_id(to_uuid(topic.id))
    }
}
