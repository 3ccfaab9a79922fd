//! AlterConfigs: says all of a topic's settings anew. What is not said goes back to its default.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::alter_configs_request::AlterConfigsResource;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{AlterConfigsRequest, AlterConfigsResponse};

use super::alter::{Altered, alter_each, set};
use crate::kafka::context::Context;
use crate::kafka::{Refusal, Service};
use crate::metadata::{ConfigChange, Topic};

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: AlterConfigsRequest,
    _version: i16,
) -> AlterConfigsResponse {
    let named =
        |resource: &AlterConfigsResource| (resource.resource_type, resource.resource_name.clone());
    let only = request.validate_only;
    let altered = alter_each(&context, request.resources, named, replacement, only).await;
    let response = |altered: Altered| {
        AlterConfigsResourceResponse::default()
            .with_error_code(altered.code)
            .with_error_message(altered.message)
            .with_resource_type(altered.resource.0)
            .with_resource_name(altered.resource.1)
    };
    AlterConfigsResponse::default().with_responses(altered.into_iter().map(response).collect())
}

/// What makes the topic's settings those of the request, from what this node knows of them.
fn replacement(
    topic: &Topic,
    resource: &AlterConfigsResource,
) -> Result<Vec<ConfigChange>, Refusal> {
    let mut changes = Vec::with_capacity(resource.configs.len() + topic.config.len());
    for config in &resource.configs {
        changes.push(set(&config.name, config.value.as_ref())?);
    }
    let said: BTreeSet<&str> = resource
        .configs
        .iter()
        .map(|config| config.name.as_str())
        .collect();
    let unsaid = topic
        .config
        .keys()
        .filter(|name| !said.contains(name.as_str()));
    changes.extend(unsaid.map(|name| ConfigChange::Delete { name: name.clone() }));
    Ok(changes)
}
