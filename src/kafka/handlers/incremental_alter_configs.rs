//! IncrementalAlterConfigs: sets and resets single settings of topics, and edits those that are lists.

use std::sync::Arc;

use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::alter::{Altered, alter_each, invalid, set};
use crate::kafka::context::Context;
use crate::kafka::{Refusal, Service};
use crate::metadata::{ConfigChange, ListEdit, Topic, TopicConfig};
use crate::types::ErrorCode;

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: IncrementalAlterConfigsRequest,
    _version: i16,
) -> IncrementalAlterConfigsResponse {
    let named =
        |resource: &AlterConfigsResource| (resource.resource_type, resource.resource_name.clone());
    let changes = |topic: &Topic, resource: &AlterConfigsResource| {
        let changes = resource.configs.iter().map(|config| change(topic, config));
        changes.collect()
    };
    let only = request.validate_only;
    let altered = alter_each(&context, request.resources, named, changes, only).await;
    let response = |altered: Altered| {
        AlterConfigsResourceResponse::default()
            .with_error_code(altered.code)
            .with_error_message(altered.message)
            .with_resource_type(altered.resource.0)
            .with_resource_name(altered.resource.1)
    };
    IncrementalAlterConfigsResponse::default()
        .with_responses(altered.into_iter().map(response).collect())
}

fn change(topic: &Topic, config: &AlterableConfig) -> Result<ConfigChange, Refusal> {
    let name = config.name.as_str().to_owned();
    match (config.config_operation, &config.value) {
        (SET, value) => set(&name, value.as_ref()),
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
