//! IncrementalAlterConfigs: sets and resets single settings of topics, and edits those that are lists.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::incremental_alter_configs_request::AlterableConfig;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};
use tokio::time::Instant;

use super::code_and_message;
use super::describe_configs::{BROKER, TOPIC};
use crate::kafka::context::{Context, deadline};
use crate::kafka::{Refusal, Service};
use crate::metadata::{ConfigChange, ListEdit, Topic, TopicConfig};
use crate::types::{ErrorCode, is_internal};

/// The request names no time of its own; this is Kafka's default of a client's request timeout.
pub(super) const WAIT_MS: i32 = 30_000;

/// What decides whether old records go, whatever their keys.
const CLEANUP_POLICY: &str = "cleanup.policy";

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: IncrementalAlterConfigsRequest,
    _version: i16,
) -> IncrementalAlterConfigsResponse {
    let deadline = deadline(WAIT_MS);
    let mut seen = BTreeSet::new();
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let key = (
            resource.resource_type,
            resource.resource_name.as_str().to_owned(),
        );
        let altered = if seen.insert(key) {
            let named = (resource.resource_type, resource.resource_name.as_str());
            let changes = |topic: &Topic| {
                let changes = resource.configs.iter().map(|config| change(topic, config));
                changes.collect()
            };
            alter(&context, named, changes, request.validate_only, deadline).await
        } else {
            Err(invalid("the request names the resource more than once"))
        };
        let (code, message) = code_and_message(&altered);
        responses.push(
            AlterConfigsResourceResponse::default()
                .with_error_code(code)
                .with_error_message(message)
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name),
        );
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

/// Has a resource's settings changed as `changes` makes it from the topic, if it is one.
pub(super) async fn alter<S: Service>(
    context: &Context<S>,
    (kind, name): (i8, &str),
    changes: impl FnOnce(&Topic) -> Result<Vec<ConfigChange>, Refusal>,
    validate_only: bool,
    deadline: Instant,
) -> Result<(), Refusal> {
    match kind {
        TOPIC => {}
        BROKER => {
            return Err(invalid(
                "a node's settings are in its configuration file and flags; they do not change while it runs",
            ));
        }
        other => {
            return Err(invalid(format!(
                "resources of type {other} have no settings here; topics (2) have"
            )));
        }
    }
    let image = context.service.image();
    let topic = image
        .topic_named(name)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let changes = changes(topic)?;
    let mut names = BTreeSet::new();
    for change in &changes {
        if !names.insert(change.name()) {
            return Err(invalid(format!(
                "the request changes {:.64} more than once",
                change.name()
            )));
        }
    }
    if is_internal(topic.name.as_str())
        && changes.iter().any(|change| is_other_policy(topic, change))
    {
        return Err(Refusal {
            error: ErrorCode::PolicyViolation,
            message: Some(format!(
                "the topic is the cluster's own and stays compacted: without its oldest records groups lose their offsets and \
                 transactions never end; leave {CLEANUP_POLICY} as it is"
            )),
        });
    }
    context
        .service
        .alter_topic_config(topic.id, changes, validate_only, deadline)
        .await
}

/// Whether a topic's cleanup policy would be another.
fn is_other_policy(topic: &Topic, change: &ConfigChange) -> bool {
    let is_same = matches!(change, ConfigChange::Set { value, .. } if topic.config.get(CLEANUP_POLICY) == Some(value));
    change.name() == CLEANUP_POLICY && !is_same
}

fn change(topic: &Topic, config: &AlterableConfig) -> Result<ConfigChange, Refusal> {
    let name = config.name.as_str().to_owned();
    match (config.config_operation, &config.value) {
        (SET, Some(value)) => Ok(ConfigChange::Set {
            name,
            value: value.as_str().to_owned(),
        }),
        (SET, None) => Err(invalid(format!("{name:.64} cannot be set to nothing"))),
        (DELETE, _) => Ok(ConfigChange::Delete { name }),
        (APPEND, Some(value)) => edited(topic, name, ListEdit::Append, value),
        (SUBTRACT, Some(value)) => edited(topic, name, ListEdit::Subtract, value),
        (APPEND | SUBTRACT, None) => Err(invalid(format!(
            "nothing is named that {name:.64} is to gain or lose"
        ))),
        (other, _) => Err(invalid(format!("there is no operation {other}"))),
    }
}

/// The list as it is to be. It follows from what this node knows of the topic: of two that edit one list at one time, the
/// later wins.
fn edited(
    topic: &Topic,
    name: String,
    edit: ListEdit,
    elements: &str,
) -> Result<ConfigChange, Refusal> {
    let refuse = |message| Refusal {
        error: ErrorCode::InvalidConfig,
        message: Some(message),
    };
    match TopicConfig::edit_list(&topic.config, &name, edit, elements) {
        Ok(Some(value)) => Ok(ConfigChange::Set { name, value }),
        Ok(None) => Err(refuse(format!(
            "{name:.64} is no list, so it cannot be appended to or subtracted from; set it"
        ))),
        Err(error) => Err(refuse(error.to_string())),
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal {
        error: ErrorCode::InvalidRequest,
        message: Some(message.into()),
    }
}
