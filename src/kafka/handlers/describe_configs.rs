//! DescribeConfigs: what is set for a topic or a node, and what holds without a setting.

use std::sync::Arc;

use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};
use kafka_protocol::protocol::StrBytes;

use super::{answer_in_turn, code_and_message};
use crate::kafka::codec::{BadRequest, RawRequest, text};
use crate::kafka::connection::Pending;
use crate::kafka::context::Context;
use crate::kafka::limits::MAX_DESCRIBED_RESOURCES;
use crate::kafka::{NodeSetting, Refusal, Service};
use crate::metadata::{ConfigEntry, ConfigKind, ConfigSource, TopicConfig};
use crate::types::ErrorCode;

/// Kafka's number for a resource that is a topic.
pub(super) const TOPIC: i8 = 2;
/// Kafka's number for a resource that is a broker.
pub(super) const BROKER: i8 = 4;
/// Kafka's source of a value from the node's own configuration.
const STATIC_BROKER_CONFIG: i8 = 4;

pub(super) fn begin<S: Service>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
) -> Result<Pending, BadRequest> {
    let decoded: DescribeConfigsRequest = request.decode()?;
    let answer = request.answer();
    let context = Arc::clone(context);
    Ok(Box::pin(async move {
        answer_in_turn(&context, answer, async { respond(&context, decoded) }).await
    }))
}

fn respond<S: Service>(
    context: &Context<S>,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let wish = Wish {
        synonyms: request.include_synonyms,
        documentation: request.include_documentation,
    };
    let results = request
        .resources
        .into_iter()
        .enumerate()
        .map(|(place, resource)| {
            let described = if place < MAX_DESCRIBED_RESOURCES {
                describe(context, &resource, wish)
            } else {
                Err(Refusal {
                    error: ErrorCode::PolicyViolation,
                    message: Some(format!(
                        "a request describes at most {MAX_DESCRIBED_RESOURCES} resources: ask in several requests"
                    )),
                })
            };
            let (code, message) = code_and_message(&described);
            DescribeConfigsResult::default()
                .with_error_code(code)
                .with_error_message(message)
                .with_resource_type(resource.resource_type)
                .with_configs(keep_asked(
                    described.unwrap_or_default(),
                    resource.configuration_keys.as_deref(),
                ))
                .with_resource_name(resource.resource_name)
        })
        .collect();
    DescribeConfigsResponse::default().with_results(results)
}

/// What a request wants beside the values.
#[derive(Clone, Copy)]
struct Wish {
    synonyms: bool,
    documentation: bool,
}

fn describe<S: Service>(
    context: &Context<S>,
    resource: &DescribeConfigsResource,
    wish: Wish,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    match resource.resource_type {
        TOPIC => {
            let image = context.service.image();
            let topic = image
                .topic_named(&resource.resource_name)
                .ok_or(ErrorCode::UnknownTopicOrPartition)?;
            let entries = TopicConfig::describe(
                &topic.config,
                topic.replication_factor(),
                context.service.flush_policy(),
            );
            Ok(entries
                .into_iter()
                .map(|entry| topic_setting(entry, wish))
                .collect())
        }
        BROKER => {
            let own = context.service.node_id().to_string();
            match resource.resource_name.as_str() {
                // The settings of all brokers together: there are none.
                "" => Ok(Vec::new()),
                name if name == own => Ok(context
                    .service
                    .node_config()
                    .into_iter()
                    .map(|setting| node_setting(setting, wish))
                    .collect()),
                name => Err(Refusal {
                    error: ErrorCode::InvalidRequest,
                    message: Some(format!(
                        "this is node {own}: ask node {name:.64} itself for its settings"
                    )),
                }),
            }
        }
        other => Err(Refusal {
            error: ErrorCode::InvalidRequest,
            message: Some(format!(
                "resources of type {other} have no settings here; topics (2) and brokers (4) have"
            )),
        }),
    }
}

/// No list of names, or an empty one, asks for all.
fn keep_asked(
    mut results: Vec<DescribeConfigsResourceResult>,
    asked: Option<&[StrBytes]>,
) -> Vec<DescribeConfigsResourceResult> {
    if let Some(asked) = asked.filter(|asked| !asked.is_empty()) {
        results.retain(|result| asked.contains(&result.name));
    }
    results
}

fn topic_setting(entry: ConfigEntry, wish: Wish) -> DescribeConfigsResourceResult {
    let synonym = |source: ConfigSource, value: &str| {
        DescribeConfigsSynonym::default()
            .with_name(text(entry.name))
            .with_value(Some(text(value)))
            .with_source(source.code())
    };
    let mut synonyms = Vec::new();
    if wish.synonyms {
        if entry.source == ConfigSource::Topic {
            synonyms.push(synonym(ConfigSource::Topic, &entry.value));
        }
        synonyms.push(synonym(ConfigSource::Default, &entry.default));
    }
    DescribeConfigsResourceResult::default()
        .with_name(text(entry.name))
        .with_value(Some(text(entry.value)))
        .with_read_only(false)
        .with_config_source(entry.source.code())
        .with_is_sensitive(false)
        .with_synonyms(synonyms)
        .with_config_type(entry.kind.code())
        .with_documentation(wish.documentation.then(|| text(entry.documentation)))
}

fn node_setting(setting: NodeSetting, wish: Wish) -> DescribeConfigsResourceResult {
    let source = if setting.is_default {
        ConfigSource::Default.code()
    } else {
        STATIC_BROKER_CONFIG
    };
    let mut synonyms = Vec::new();
    if wish.synonyms {
        synonyms.push(
            DescribeConfigsSynonym::default()
                .with_name(text(setting.name.clone()))
                .with_value(Some(text(setting.value.clone())))
                .with_source(source),
        );
    }
    DescribeConfigsResourceResult::default()
        .with_name(text(setting.name))
        .with_value(Some(text(setting.value)))
        .with_read_only(true)
        .with_config_source(source)
        .with_is_sensitive(false)
        .with_synonyms(synonyms)
        .with_config_type(ConfigKind::String.code())
        .with_documentation(wish.documentation.then(|| text(setting.documentation)))
}
