//! AlterConfigs: says all of a topic's settings anew. What is not said goes back to its default.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::alter_configs_request::AlterConfigsResource;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{AlterConfigsRequest, AlterConfigsResponse};

use super::code_and_message;
use super::incremental_alter_configs::{WAIT_MS, alter, invalid};
use crate::kafka::context::{Context, deadline};
use crate::kafka::{Refusal, Service};
use crate::metadata::{ConfigChange, Topic};

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: AlterConfigsRequest,
    _version: i16,
) -> AlterConfigsResponse {
    let deadline = deadline(WAIT_MS);
    let mut seen = BTreeSet::new();
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let named = (resource.resource_type, resource.resource_name.as_str());
        let altered = if seen.insert((named.0, named.1.to_owned())) {
            let changes = |topic: &Topic| replacement(topic, &resource);
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
    AlterConfigsResponse::default().with_responses(responses)
}

/// What makes the topic's settings those of the request, from what this node knows of them.
fn replacement(
    topic: &Topic,
    resource: &AlterConfigsResource,
) -> Result<Vec<ConfigChange>, Refusal> {
    let mut changes = Vec::with_capacity(resource.configs.len() + topic.config.len());
    for config in &resource.configs {
        let name = config.name.as_str().to_owned();
        let Some(value) = &config.value else {
            return Err(invalid(format!("{name:.64} cannot be set to nothing")));
        };
        changes.push(ConfigChange::Set {
            name,
            value: value.as_str().to_owned(),
        });
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
