//! Topics, configuration and the cluster: Kafka's administrative requests.

use std::collections::BTreeMap;

use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::{
    self, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    DescribeClusterRequest, DescribeConfigsRequest, IncrementalAlterConfigsRequest,
};

use super::api::Spoken;
use super::error::ClientError;
use super::metadata::TopicView;
use super::patience::Patience;
use super::{Client, wire_str};
use crate::types::{ErrorCode, NodeId, TopicId, TopicName};

/// Administrative requests. They go to the active controller; when it is another one than was known, and only then or when
/// no connection could be made, they are sent again: after any other failure they may have been carried out.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
}

/// A topic to be created. `None` leaves a choice to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    pub name: TopicName,
    pub partitions: Option<u32>,
    pub replication_factor: Option<u16>,
    /// The replicas of each partition, chosen by hand, the preferred leader first. Without the two numbers above.
    pub assignment: Option<Vec<Vec<NodeId>>>,
    /// By Kafka's names for them.
    pub configs: BTreeMap<String, String>,
}

impl NewTopic {
    pub fn new(name: TopicName) -> NewTopic {
        NewTopic {
            name,
            partitions: None,
            replication_factor: None,
            assignment: None,
            configs: BTreeMap::new(),
        }
    }
}

/// What a configuration belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigResource {
    Topic(TopicName),
    Node(NodeId),
}

impl ConfigResource {
    /// Kafka's numbers for resource types.
    fn to_wire(&self) -> (i8, String) {
        match self {
            ConfigResource::Topic(name) => (2, name.to_string()),
            ConfigResource::Node(node) => (4, node.to_string()),
        }
    }

    fn describe(&self) -> String {
        match self {
            ConfigResource::Topic(name) => format!("topic {name}"),
            ConfigResource::Node(node) => format!("node {node}"),
        }
    }
}

/// Where a configuration's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// Set for this topic.
    Topic,
    /// Set for this node, or for all of them, while they run.
    DynamicNode,
    /// From the node's configuration file or flags.
    StaticNode,
    Default,
    /// One that this client does not know.
    Other(i8),
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    pub name: String,
    /// `None` where it has none, or is secret.
    pub value: Option<String>,
    pub source: ConfigSource,
    pub read_only: bool,
    pub sensitive: bool,
    pub documentation: Option<String>,
}

/// A change to one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlterConfig {
    Set {
        name: String,
        value: String,
    },
    /// Back to the default.
    Delete {
        name: String,
    },
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDescription {
    pub cluster_id: String,
    /// The active controller.
    pub controller: Option<NodeId>,
    /// Live nodes, by id.
    pub nodes: Vec<NodeDescription>,
}

/// A live node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDescription {
    pub id: NodeId,
    /// Where it listens for clients of the kind that asked.
    pub host: String,
    pub port: u16,
    pub rack: Option<String>,
}

impl Admin {
    pub(super) fn new(client: Client) -> Admin {
        Admin { client }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Creates a topic, or with `validate_only` says whether it could be. Returns its id where the cluster gives one.
    pub async fn create_topic(
        &self,
        topic: &NewTopic,
        validate_only: bool,
    ) -> Result<Option<TopicId>, ClientError> {
        let configs = topic.configs.iter().map(|(name, value)| {
            CreatableTopicConfig::default()
                .with_name(wire_str(name))
                .with_value(Some(wire_str(value)))
        });
        let partitions = topic.partitions.map_or(-1, |count| saturate(count.into()));
        let replication_factor = topic
            .replication_factor
            .map_or(-1, |factor| i16::try_from(factor).unwrap_or(i16::MAX));
        let assignments = topic.assignment.iter().flatten().zip(0..);
        let assignments = assignments.map(|(replicas, partition)| {
            let ids = replicas
                .iter()
                .map(|node| saturate(node.get().into()).into());
            CreatableReplicaAssignment::default()
                .with_partition_index(partition)
                .with_broker_ids(ids.collect())
        });
        let request = CreateTopicsRequest::default()
            .with_topics(vec![
                CreatableTopic::default()
                    .with_name(wire_name(&topic.name))
                    .with_assignments(assignments.collect())
                    .with_num_partitions(partitions)
                    .with_replication_factor(replication_factor)
                    .with_configs(configs.collect()),
            ])
            .with_timeout_ms(self.timeout_ms())
            .with_validate_only(validate_only);
        let what = format!("creating topic {}", topic.name);
        self.at_controller(&request, |response| {
            let result = one(&response.topics, &what, CreateTopicsRequest::NAME)?;
            let message = result.error_message.as_deref();
            ClientError::check(result.error_code, message, || what.clone())?;
            let id = result.topic_id.as_u128();
            Ok((id != 0).then(|| TopicId::from_random_bits(id)))
        })
        .await
    }

    pub async fn delete_topic(&self, name: &TopicName) -> Result<(), ClientError> {
        let request = DeleteTopicsRequest::default()
            .with_topic_names(vec![wire_name(name)])
            .with_timeout_ms(self.timeout_ms());
        let what = format!("deleting topic {name}");
        self.at_controller(&request, |response| {
            let result = one(&response.responses, &what, DeleteTopicsRequest::NAME)?;
            let message = result.error_message.as_deref();
            ClientError::check(result.error_code, message, || what.clone())
        })
        .await
    }

    /// Every topic, by name.
    pub async fn list_topics(&self) -> Result<Vec<TopicView>, ClientError> {
        let view = self.client.refresh_all().await?;
        let mut topics: Vec<TopicView> = view.topics.values().cloned().collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// The named topics, in the order of the names.
    ///
    /// # Errors
    /// [`ClientError::UnknownTopic`] for the first one that does not exist.
    pub async fn describe_topics(
        &self,
        names: &[TopicName],
    ) -> Result<Vec<TopicView>, ClientError> {
        let (view, failed) = self.client.refresh(names, false).await?;
        names
            .iter()
            .map(|name| match view.topics.get(name) {
                Some(topic) => Ok(topic.clone()),
                None => {
                    let code = failed.iter().find(|(failed, _)| failed == name);
                    match code.map(|(_, code)| *code) {
                        None | Some(ErrorCode::UnknownTopicOrPartition) => {
                            Err(ClientError::UnknownTopic {
                                topic: name.clone(),
                            })
                        }
                        Some(code) => Err(ClientError::Refused {
                            what: format!("describing topic {name}"),
                            code,
                            message: None,
                        }),
                    }
                }
            })
            .collect()
    }

    /// Raises a topic's number of partitions to `count`.
    pub async fn create_partitions(&self, name: &TopicName, count: u32) -> Result<(), ClientError> {
        let request = CreatePartitionsRequest::default()
            .with_topics(vec![
                CreatePartitionsTopic::default()
                    .with_name(wire_name(name))
                    .with_count(saturate(count.into()))
                    .with_assignments(None),
            ])
            .with_timeout_ms(self.timeout_ms());
        let what = format!("adding partitions to topic {name}");
        self.at_controller(&request, |response| {
            let result = one(&response.results, &what, CreatePartitionsRequest::NAME)?;
            let message = result.error_message.as_deref();
            ClientError::check(result.error_code, message, || what.clone())
        })
        .await
    }

    /// Every setting of a topic or node, by name, with defaults.
    pub async fn describe_configs(
        &self,
        resource: &ConfigResource,
    ) -> Result<Vec<ConfigEntry>, ClientError> {
        let (kind, name) = resource.to_wire();
        let request = DescribeConfigsRequest::default()
            .with_resources(vec![
                DescribeConfigsResource::default()
                    .with_resource_type(kind)
                    .with_resource_name(wire_str(&name))
                    .with_configuration_keys(None),
            ])
            .with_include_documentation(true);
        let timeout = self.client.config().request_timeout;
        // A node's own settings are known to that node alone.
        let response = match resource {
            ConfigResource::Node(node) => {
                let link =
                    self.client
                        .node_link(*node)
                        .ok_or_else(|| ClientError::Configuration {
                            what: format!("node {node} is not among the cluster's live nodes"),
                        })?;
                link.call(&request, timeout).await?
            }
            ConfigResource::Topic(_) => self.client.call_any(&request, timeout, false).await?,
        };
        let what = format!("describing the configuration of {}", resource.describe());
        let result = one(&response.results, &what, DescribeConfigsRequest::NAME)?;
        let message = result.error_message.as_deref();
        ClientError::check(result.error_code, message, || what)?;
        let mut entries: Vec<ConfigEntry> = result
            .configs
            .iter()
            .map(|config| ConfigEntry {
                name: config.name.to_string(),
                value: config.value.as_ref().map(ToString::to_string),
                source: match config.config_source {
                    1 => ConfigSource::Topic,
                    2 | 3 => ConfigSource::DynamicNode,
                    4 => ConfigSource::StaticNode,
                    5 => ConfigSource::Default,
                    other => ConfigSource::Other(other),
                },
                read_only: config.read_only,
                sensitive: config.is_sensitive,
                documentation: config.documentation.as_ref().map(ToString::to_string),
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Changes some settings and leaves the others as they are.
    pub async fn alter_configs(
        &self,
        resource: &ConfigResource,
        changes: &[AlterConfig],
        validate_only: bool,
    ) -> Result<(), ClientError> {
        let configs = changes.iter().map(|change| {
            let config = AlterableConfig::default();
            match change {
                AlterConfig::Set { name, value } => config
                    .with_name(wire_str(name))
                    .with_config_operation(0)
                    .with_value(Some(wire_str(value))),
                AlterConfig::Delete { name } => config
                    .with_name(wire_str(name))
                    .with_config_operation(1)
                    .with_value(None),
            }
        });
        let (kind, name) = resource.to_wire();
        let request = IncrementalAlterConfigsRequest::default()
            .with_resources(vec![
                AlterConfigsResource::default()
                    .with_resource_type(kind)
                    .with_resource_name(wire_str(&name))
                    .with_configs(configs.collect()),
            ])
            .with_validate_only(validate_only);
        let what = format!("changing the configuration of {}", resource.describe());
        self.at_controller(&request, |response| {
            let name = IncrementalAlterConfigsRequest::NAME;
            let result = one(&response.responses, &what, name)?;
            let message = result.error_message.as_deref();
            ClientError::check(result.error_code, message, || what.clone())
        })
        .await
    }

    pub async fn describe_cluster(&self) -> Result<ClusterDescription, ClientError> {
        let request = DescribeClusterRequest::default();
        let timeout = self.client.config().request_timeout;
        let response = self.client.call_any(&request, timeout, false).await?;
        let message = response.error_message.as_deref();
        let what = || "describing the cluster".to_owned();
        ClientError::check(response.error_code, message, what)?;
        let mut nodes: Vec<NodeDescription> = response
            .brokers
            .iter()
            .filter_map(|node| {
                Some(NodeDescription {
                    id: NodeId::from_broker_id(node.broker_id.0)?,
                    host: node.host.to_string(),
                    port: u16::try_from(node.port).ok()?,
                    rack: node.rack.as_ref().map(ToString::to_string),
                })
            })
            .collect();
        nodes.sort_by_key(|node| node.id);
        Ok(ClusterDescription {
            cluster_id: response.cluster_id.to_string(),
            controller: NodeId::from_broker_id(response.controller_id.0),
            nodes,
        })
    }

    fn timeout_ms(&self) -> i32 {
        saturate(self.client.config().request_timeout.as_millis() as u64)
    }

    /// Sends a request to the controller, and again where that turns out to be another node or could not be reached.
    async fn at_controller<R: Spoken, T>(
        &self,
        request: &R,
        read: impl Fn(R::Response) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut patience = Patience::new(&self.client, self.client.config().request_timeout);
        loop {
            let error = match self.client.call_controller(request).await.and_then(&read) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let elsewhere = matches!(
                error.error_code(),
                Some(ErrorCode::NotController | ErrorCode::BrokerNotAvailable)
            );
            let never_left = error.is_retriable() && error.connect_error().is_some();
            if !elsewhere && !never_left {
                return Err(error);
            }
            if !patience.pause().await {
                return Err(patience.gave_up(format!("{} request", R::NAME), error));
            }
            self.client.refresh(&[], false).await?;
        }
    }
}

/// The only result of a request about one thing.
fn one<'a, T>(results: &'a [T], what: &str, request: &'static str) -> Result<&'a T, ClientError> {
    results.first().ok_or_else(|| ClientError::Malformed {
        address: "the cluster".to_owned(),
        request,
        what: format!("it says nothing on {what}"),
    })
}

fn wire_name(name: &TopicName) -> messages::TopicName {
    messages::TopicName(wire_str(name.as_str()))
}

fn saturate(number: u64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
