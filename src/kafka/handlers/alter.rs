//! How requests change settings of resources, whichever way they say it.

use std::collections::BTreeSet;

use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::code_and_message;
use super::describe_configs::{BROKER, TOPIC};
use crate::kafka::context::{Context, deadline};
use crate::kafka::{Refusal, Service};
use crate::metadata::{ConfigChange, Topic};
use crate::types::{ErrorCode, is_internal};

/// The requests name no time of their own; this is Kafka's default of a client's request timeout.
const WAIT_MS: i32 = 30_000;

/// What decides whether old records go, whatever their keys.
const CLEANUP_POLICY: &str = "cleanup.policy";

/// A resource, as a request names it: its type and its name.
pub(super) type Named = (i8, StrBytes);

/// What became of one resource.
pub(super) struct Altered {
    pub(super) resource: Named,
    pub(super) code: i16,
    pub(super) message: Option<StrBytes>,
}

/// Has each resource's settings changed as `changes` makes it from the topic, if it is one. The answers are in the order of the
/// request.
pub(super) async fn alter_each<S: Service, R>(
    context: &Context<S>,
    resources: Vec<R>,
    named: impl Fn(&R) -> Named,
    changes: impl Fn(&Topic, &R) -> Result<Vec<ConfigChange>, Refusal>,
    validate_only: bool,
) -> Vec<Altered> {
    let deadline = deadline(WAIT_MS);
    let mut seen = BTreeSet::new();
    let mut all = Vec::with_capacity(resources.len());
    for asked in &resources {
        let resource = named(asked);
        let altered = if seen.insert(resource.clone()) {
            let changes = |topic: &Topic| changes(topic, asked);
            alter(context, &resource, changes, validate_only, deadline).await
        } else {
            Err(invalid("the request names the resource more than once"))
        };
        let (code, message) = code_and_message(&altered);
        all.push(Altered {
            resource,
            code,
            message,
        });
    }
    all
}

/// A setting that a request says anew.
pub(super) fn set(name: &str, value: Option<&StrBytes>) -> Result<ConfigChange, Refusal> {
    match value {
        Some(value) => Ok(ConfigChange::Set {
            name: name.to_owned(),
            value: value.as_str().to_owned(),
        }),
        None => Err(invalid(format!("{name:.64} cannot be set to nothing"))),
    }
}

async fn alter<S: Service>(
    context: &Context<S>,
    (kind, name): &Named,
    changes: impl FnOnce(&Topic) -> Result<Vec<ConfigChange>, Refusal>,
    validate_only: bool,
    deadline: Instant,
) -> Result<(), Refusal> {
    match *kind {
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

pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal {
        error: ErrorCode::InvalidRequest,
        message: Some(message.into()),
    }
}
