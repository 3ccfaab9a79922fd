use std::num::NonZero;
use std::sync::Arc;

use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    AlterConfigsRequest, ApiVersionsRequest, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest,
    IncrementalAlterConfigsRequest, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest,
    alter_configs_request,
};
use kafka_protocol::protocol::StrBytes;

use super::client::{connect, connect_to, name};
use super::double::{Double, node};
use crate::kafka::limits::MAX_DESCRIBED_RESOURCES;
use crate::kafka::{Config, ListenerKind, SERVED_APIS, Server, Service};
use crate::metadata::Command;
use crate::types::{IsrChange, ListenerName};

fn str_bytes(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn metadata_of(topics: &[&str]) -> MetadataRequest {
    let topics = topics
        .iter()
        .map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic))));
    MetadataRequest::default()
        .with_topics(Some(topics.collect()))
        .with_allow_auto_topic_creation(true)
}

#[tokio::test]
async fn the_table_of_versions_comes_in_every_version() {
    let mut client = connect(&Double::new());
    for version in 0..=4 {
        let response = client.call(&ApiVersionsRequest::default(), version).await;
        assert_eq!(response.error_code, 0);
        assert_eq!(response.api_keys.len(), SERVED_APIS.len());
        let produce = response.api_keys.iter().find(|api| api.api_key == 0);
        let produce = produce.unwrap();
        assert_eq!((produce.min_version, produce.max_version), (0, 13));
        let supported = response.supported_features.iter();
        let supported: Vec<_> = supported.map(|it| (&it.name[..], it.max_version)).collect();
        let finalized = response.finalized_features.iter();
        let finalized: Vec<_> = finalized
            .map(|it| (&it.name[..], it.max_version_level))
            .collect();
        let feature = ("transaction.version", 2);
        let all = [feature];
        let of_version = |since: i16| &all[..usize::from(version >= since)];
        assert_eq!(supported, of_version(4));
        assert_eq!(finalized, of_version(3));
    }
}

#[tokio::test]
async fn metadata_names_the_endpoints_of_the_listener_it_came_by() {
    let double = Double::new().with_topic("orders", 2);
    let server = Server::new(Arc::clone(&double), Config::default());
    for version in 0..=13 {
        let mut kafka = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
        let response = kafka.call(&metadata_of(&["orders"]), version).await;
        let brokers: Vec<_> = response
            .brokers
            .iter()
            .map(|b| (b.node_id.0, b.host.as_str(), b.port))
            .collect();
        assert_eq!(
            brokers,
            [(1, "kafka.example", 9101), (2, "kafka.example", 9102)],
            "node 3 has no Kafka listener"
        );
        assert_eq!(response.topics[0].partitions.len(), 2);
        if version >= 1 {
            assert_eq!(response.controller_id.0, 2);
        }
        if version >= 10 {
            let id = double.topic_id("orders").to_bits();
            assert_eq!(response.topics[0].topic_id.as_u128(), id);
        }
        let partition = &response.topics[0].partitions[0];
        assert_eq!(partition.error_code, 0);
        assert_eq!(partition.leader_id.0, 1);
        assert_eq!(partition.replica_nodes.len(), 3);
        assert_eq!(partition.isr_nodes.len(), 3);

        let mut quic = connect_to(&server, ListenerKind::Quic);
        let response = quic.call(&metadata_of(&["orders"]), version).await;
        let ports: Vec<_> = response.brokers.iter().map(|b| b.port).collect();
        assert_eq!(ports, [9001, 9002, 9003]);
    }
}

#[tokio::test]
async fn a_dead_leader_is_not_available() {
    let double = Double::new().with_topic("orders", 1);
    double.dead.lock().unwrap().insert(node(1));
    let mut client = connect(&double);
    let response = client.call(&metadata_of(&["orders"]), 9).await;
    let partition = &response.topics[0].partitions[0];
    assert_eq!(partition.error_code, 5);
    assert_eq!(partition.leader_id.0, -1);
    // Node 3 is up, and has nothing that this client could reach.
    assert_eq!(partition.offline_replicas, [1, 3]);
    assert_eq!(response.brokers.len(), 1);
}

#[tokio::test]
async fn an_in_sync_set_is_shown_as_it_is_and_not_as_the_replicas_are() {
    let double = Double::new().with_topic("orders", 1);
    let partition = double.partition("orders", 0);
    let state = double.image().partition(partition).unwrap().clone();
    let alone = IsrChange {
        partition,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
        new_isr: vec![state.isr[0]],
        min_insync: 1,
    };
    double.apply(&Command::ChangeIsrs {
        changes: vec![alone],
    });
    let mut client = connect(&double);
    for version in 0..=12 {
        let response = client.call(&metadata_of(&["orders"]), version).await;
        let shown = &response.topics[0].partitions[0];
        assert_eq!(shown.isr_nodes, [1]);
        assert_eq!(shown.replica_nodes, [1, 2, 3]);
    }
}

#[tokio::test]
async fn no_list_asks_for_all_topics_and_an_empty_one_for_none() {
    let double = Double::new().with_topic("a", 1).with_topic("bb", 1);
    let mut client = connect(&double);
    for version in 1..=12 {
        let all = MetadataRequest::default().with_topics(None);
        assert_eq!(client.call(&all, version).await.topics.len(), 2);
        assert!(
            client
                .call(&metadata_of(&[]), version)
                .await
                .topics
                .is_empty()
        );
    }
    assert_eq!(client.call(&metadata_of(&[]), 0).await.topics.len(), 2);
}

#[tokio::test]
async fn metadata_creates_legal_topics_unless_told_otherwise() {
    fn codes(topics: &[MetadataResponseTopic]) -> Vec<i16> {
        topics.iter().map(|topic| topic.error_code).collect()
    }
    let double = Double::new();
    let mut client = connect(&double);
    let long = "n".repeat(250);
    let asked = metadata_of(&["new", "../etc/passwd", "..", &long, "a b", ""]);
    let response = client.call(&asked, 9).await;
    assert_eq!(codes(&response.topics), [0, 17, 17, 17, 17, 17]);
    assert_eq!(response.topics[0].partitions.len(), 1);
    assert_eq!(response.topics[0].partitions[0].replica_nodes.len(), 3);

    let asked = metadata_of(&["other"]).with_allow_auto_topic_creation(false);
    assert_eq!(codes(&client.call(&asked, 9).await.topics), [3]);

    let config = Config {
        auto_create_topics: false,
        ..Config::default()
    };
    let mut client = connect_to(
        &Server::new(double, config),
        ListenerKind::Kafka(ListenerName::unnamed()),
    );
    let response = client.call(&metadata_of(&["other"]), 9).await;
    assert_eq!(codes(&response.topics), [3]);
}

#[tokio::test]
async fn a_topic_asked_for_without_counts_has_the_nodes_defaults() {
    let config = Config {
        num_partitions: NonZero::new(4),
        default_replication_factor: NonZero::new(2),
        ..Config::default()
    };
    let mut client = connect_to(
        &Server::new(Double::new(), config),
        ListenerKind::Kafka(ListenerName::unnamed()),
    );
    let auto = client.call(&metadata_of(&["auto"]), 9).await;
    assert_eq!(auto.topics[0].partitions.len(), 4);
    assert_eq!(auto.topics[0].partitions[0].replica_nodes.len(), 2);
    for (partitions, factor, expected) in [(-1, -1, (4, 2)), (1, -1, (1, 2)), (-1, 3, (4, 3))] {
        let topic = CreatableTopic::default()
            .with_name(name(&format!("made-{partitions}-{factor}")))
            .with_num_partitions(partitions)
            .with_replication_factor(factor);
        let request = CreateTopicsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(1000);
        let made = &client.call(&request, 7).await.topics[0];
        assert_eq!(made.error_code, 0, "{:?}", made.error_message);
        assert_eq!((made.num_partitions, made.replication_factor), expected);
    }
}

#[tokio::test]
async fn a_topic_named_often_is_described_once() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    let response = client.call(&metadata_of(&["orders"; 100]), 9).await;
    assert_eq!(response.topics.len(), 1);
}

#[tokio::test]
async fn a_request_describes_a_bounded_number_of_resources() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    let resource = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(str_bytes("orders"))
        .with_configuration_keys(Some(vec![str_bytes("retention.ms")]));
    let request = DescribeConfigsRequest::default()
        .with_resources(vec![resource; MAX_DESCRIBED_RESOURCES + 1]);
    let response = client.call(&request, 4).await;
    let codes: Vec<_> = response.results.iter().map(|r| r.error_code).collect();
    assert!(codes[..MAX_DESCRIBED_RESOURCES].iter().all(|c| *c == 0));
    assert_eq!(codes[MAX_DESCRIBED_RESOURCES..], [44]);
}

#[tokio::test]
async fn a_topic_id_never_finds_a_topic_made_again() {
    let double = Double::new().with_topic("orders", 1);
    let id = uuid::Uuid::from_u128(double.topic_id("orders").to_bits());
    let by_id = MetadataRequest::default()
        .with_topics(Some(vec![
            MetadataRequestTopic::default()
                .with_topic_id(id)
                .with_name(None),
        ]))
        .with_allow_auto_topic_creation(true);
    let mut client = connect(&double);
    let response = client.call(&by_id, 12).await;
    assert_eq!(response.topics[0].name, Some(name("orders")));
    let delete = DeleteTopicsRequest::default().with_topics(vec![
        DeleteTopicState::default().with_name(Some(name("orders"))),
    ]);
    let deleted = client.call(&delete, 6).await;
    assert_eq!(deleted.responses[0].error_code, 0);
    assert_eq!(deleted.responses[0].topic_id, id);
    client.call(&metadata_of(&["orders"]), 12).await;
    for version in 10..=12 {
        let response = client.call(&by_id, version).await;
        assert_eq!(response.topics[0].error_code, 100);
        let unnamed = response.topics[0]
            .name
            .as_ref()
            .is_none_or(|n| n.is_empty());
        assert!(unnamed);
    }

    let delete = DeleteTopicsRequest::default().with_topics(vec![
        DeleteTopicState::default()
            .with_name(None)
            .with_topic_id(id),
    ]);
    let response = client.call(&delete, 6).await;
    assert_eq!(response.responses[0].error_code, 100);
}

#[tokio::test]
async fn topics_are_deleted_by_name_in_every_version() {
    for version in 1..=5 {
        let double = Double::new().with_topic("orders", 1);
        let mut client = connect(&double);
        let delete = DeleteTopicsRequest::default().with_topic_names(vec![
            name("orders"),
            name("orders"),
            name("payments"),
        ]);
        let response = client.call(&delete, version).await;
        let codes: Vec<_> = response.responses.iter().map(|r| r.error_code).collect();
        assert_eq!(codes, [0, 42, 3], "version {version}");
    }
}

fn new_topic(topic: &str, partitions: i32, factor: i16) -> CreatableTopic {
    CreatableTopic::default()
        .with_name(name(topic))
        .with_num_partitions(partitions)
        .with_replication_factor(factor)
}

fn setting(name: &str, value: Option<&str>) -> CreatableTopicConfig {
    CreatableTopicConfig::default()
        .with_name(str_bytes(name))
        .with_value(value.map(str_bytes))
}

fn replicas(index: i32, nodes: &[i32]) -> CreatableReplicaAssignment {
    CreatableReplicaAssignment::default()
        .with_partition_index(index)
        .with_broker_ids(nodes.iter().map(|id| (*id).into()).collect())
}

#[tokio::test]
async fn topics_are_created_as_described_and_each_refusal_is_its_own() {
    for version in 2..=7 {
        let double = Double::new().with_topic("taken", 1);
        let mut client = connect(&double);
        let default = |topic| new_topic(topic, -1, -1);
        let cases = [
            (new_topic("plain", 4, 2), 0),
            (default("default"), 0),
            (
                default("configured").with_configs(vec![setting("retention.ms", Some("9"))]),
                0,
            ),
            (
                default("by-hand")
                    .with_assignments(vec![replicas(1, &[3, 1]), replicas(0, &[2, 3])]),
                0,
            ),
            (default("taken"), 36),
            (default("twice"), 42),
            (default("twice"), 42),
            (default("../path"), 17),
            (new_topic("none", 0, -1), 37),
            (new_topic("negative", -2, -1), 37),
            (new_topic("no-replicas", 1, 0), 38),
            (new_topic("too-many", 1, 4), 38),
            (
                default("unknown-setting").with_configs(vec![setting("colour", Some("red"))]),
                40,
            ),
            (
                default("no-value").with_configs(vec![setting("retention.ms", None)]),
                40,
            ),
            (
                new_topic("both", 1, -1).with_assignments(vec![replicas(0, &[1])]),
                42,
            ),
            (
                default("hole").with_assignments(vec![replicas(0, &[1]), replicas(2, &[1])]),
                39,
            ),
            (
                default("no-such-node").with_assignments(vec![replicas(0, &[0])]),
                39,
            ),
        ];
        let request = CreateTopicsRequest::default()
            .with_topics(cases.iter().map(|(topic, _)| topic.clone()).collect())
            .with_timeout_ms(1_000);
        let response = client.call(&request, version).await;
        for (result, (topic, code)) in response.topics.iter().zip(&cases) {
            assert_eq!(result.name, topic.name);
            assert_eq!(
                result.error_code,
                *code,
                "{} in version {version}: {:?}",
                topic.name.as_str(),
                result.error_message
            );
            assert_eq!(result.error_message.is_some(), *code != 0);
        }
        if version >= 5 {
            let plain = &response.topics[0];
            assert_eq!((plain.num_partitions, plain.replication_factor), (4, 2));
            let configured = response.topics[2].configs.as_ref().unwrap();
            let retention = configured.iter().find(|c| c.name == *"retention.ms");
            assert_eq!(retention.unwrap().config_source, 1);
        }
        if version >= 7 {
            let id = double.topic_id("plain").to_bits();
            assert_eq!(response.topics[0].topic_id.as_u128(), id);
        }
    }
}

#[tokio::test]
async fn validating_creates_nothing() {
    let double = Double::new();
    let mut client = connect(&double);
    let request = CreateTopicsRequest::default()
        .with_topics(vec![new_topic("maybe", 2, 1)])
        .with_validate_only(true);
    let response = client.call(&request, 7).await;
    assert_eq!(response.topics[0].error_code, 0);
    assert_eq!(response.topics[0].num_partitions, 2);
    assert!(response.topics[0].topic_id.is_nil());
    let all = MetadataRequest::default().with_topics(None);
    assert!(client.call(&all, 9).await.topics.is_empty());
}

#[tokio::test]
async fn partitions_are_added() {
    for version in 0..=3 {
        let double = Double::new()
            .with_topic("a", 1)
            .with_topic("bb", 1)
            .with_topic("ccc", 3);
        let mut client = connect(&double);
        let more = |topic, count| {
            CreatePartitionsTopic::default()
                .with_name(name(topic))
                .with_count(count)
                .with_assignments(None)
        };
        let assignment =
            CreatePartitionsAssignment::default().with_broker_ids(vec![3.into(), 1.into()]);
        let request = CreatePartitionsRequest::default().with_topics(vec![
            more("a", 4),
            more("bb", 2).with_assignments(Some(vec![assignment])),
            more("ccc", 0),
            more("none", 4),
        ]);
        let response = client.call(&request, version).await;
        let codes: Vec<_> = response.results.iter().map(|r| r.error_code).collect();
        assert_eq!(codes, [0, 0, 37, 3], "{:?}", response.results);
        let response = client.call(&metadata_of(&["a", "bb"]), 9).await;
        assert_eq!(response.topics[0].partitions.len(), 4);
        let added = &response.topics[1].partitions[1];
        assert_eq!(added.replica_nodes, [3, 1]);
    }
}

#[tokio::test]
async fn settings_are_changed_and_described() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    let change = |setting: &str, operation, value: Option<&str>| {
        AlterableConfig::default()
            .with_name(str_bytes(setting))
            .with_config_operation(operation)
            .with_value(value.map(str_bytes))
    };
    let resource = |kind, resource: &str, configs| {
        AlterConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(str_bytes(resource))
            .with_configs(configs)
    };
    for version in 0..=1 {
        let cases = [
            (
                resource(2, "orders", vec![change("retention.ms", 0, Some("7"))]),
                0,
            ),
            (resource(2, "none", vec![]), 3),
            (resource(4, "1", vec![]), 42),
            (resource(8, "1", vec![]), 42),
            (resource(8, "1", vec![]), 42),
        ];
        let request = IncrementalAlterConfigsRequest::default()
            .with_resources(cases.iter().map(|(resource, _)| resource.clone()).collect());
        let response = client.call(&request, version).await;
        for (result, (_, code)) in response.responses.iter().zip(&cases) {
            assert_eq!(result.error_code, *code, "{result:?}");
        }
    }
    for (bad, code) in [
        (change("retention.ms", 0, Some("soon")), 40),
        (change("colour", 0, Some("red")), 40),
        (change("retention.ms", 0, None), 42),
        (change("retention.ms", 2, Some("1")), 40),
        (change("cleanup.policy", 2, Some("compress")), 40),
        (change("cleanup.policy", 2, None), 42),
        (change("cleanup.policy", 3, Some("delete")), 40),
        (change("retention.ms", 9, Some("1")), 42),
    ] {
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource(
            2,
            "orders",
            vec![bad],
        )]);
        let response = client.call(&request, 1).await;
        let result = &response.responses[0];
        assert_eq!(result.error_code, code, "{result:?}");
        assert!(result.error_message.is_some());
    }

    for (operation, expected) in [(2, "delete,compact"), (3, "delete")] {
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource(
            2,
            "orders",
            vec![change("cleanup.policy", operation, Some("compact"))],
        )]);
        let result = client.call(&request, 1).await.responses.remove(0);
        assert_eq!(result.error_code, 0, "{result:?}");
        let image = double.image();
        let topic = image.topic_named("orders").unwrap();
        assert_eq!(topic.config["cleanup.policy"], expected);
    }

    for version in 0..=2 {
        let set = |settings: &[(&str, Option<&str>)]| {
            let configs = settings.iter().map(|(setting, value)| {
                alter_configs_request::AlterableConfig::default()
                    .with_name(str_bytes(setting))
                    .with_value(value.map(str_bytes))
            });
            let topic = alter_configs_request::AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(str_bytes("orders"))
                .with_configs(configs.collect());
            AlterConfigsRequest::default().with_resources(vec![topic])
        };
        let both = [("retention.ms", Some("8")), ("segment.ms", Some("9"))];
        let one = [("retention.ms", Some("7"))];
        for (settings, code) in [
            (&both[..], 0),
            (&[("retention.ms", Some("soon"))], 40),
            (&[("retention.ms", None)], 42),
            (&[both[0], both[0]], 42),
            (&one, 0),
        ] {
            let result = client
                .call(&set(settings), version)
                .await
                .responses
                .remove(0);
            assert_eq!(result.error_code, code, "{result:?}");
        }
        let image = double.image();
        let kept = &image.topic_named("orders").unwrap().config;
        assert_eq!(kept.len(), 1, "what was not named is gone: {kept:?}");
        assert_eq!(kept["retention.ms"], "7");
    }

    let described = |kind, resource: &str, keys: Option<&[&str]>| {
        DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(str_bytes(resource))
            .with_configuration_keys(
                keys.map(|keys| keys.iter().map(|key| str_bytes(key)).collect()),
            )
    };
    for version in 1..=4 {
        let request = DescribeConfigsRequest::default()
            .with_include_synonyms(true)
            .with_include_documentation(version >= 3)
            .with_resources(vec![
                described(2, "orders", Some(&["retention.ms"])),
                described(2, "orders", None),
                described(4, "1", None),
                described(4, "2", None),
                described(2, "none", None),
            ]);
        let response = client.call(&request, version).await;
        let codes: Vec<_> = response.results.iter().map(|r| r.error_code).collect();
        assert_eq!(codes, [0, 0, 0, 42, 3]);
        let [retention] = &response.results[0].configs[..] else {
            panic!("{:?}", response.results[0]);
        };
        assert_eq!(retention.value, Some(str_bytes("7")));
        assert_eq!(retention.config_source, 1);
        assert_eq!(retention.synonyms.len(), 2);
        // In older versions the codec fills in an empty text.
        let documentation = retention.documentation.as_ref().unwrap();
        assert_eq!(!documentation.is_empty(), version >= 3);
        assert!(response.results[1].configs.len() > 5);
        assert!(response.results[2].configs[0].read_only);
    }
}

#[tokio::test]
async fn offsets_are_listed() {
    let double = Double::new().with_topic("orders", 1);
    double.append(double.partition("orders", 0), &["a", "b"]);
    let mut client = connect(&double);
    for version in 1..=7 {
        for (index, timestamp, code, offset, found) in [
            (0, -1, 0, 2, -1),
            (0, -2, 0, 0, -1),
            (0, 500, 0, 0, 1_000),
            (0, 5_000, 0, -1, -1),
            (0, -3, if version >= 7 { 78 } else { 42 }, -1, -1),
            (0, -9, 42, -1, -1),
            (1, -1, 3, -1, -1),
        ] {
            let partition = ListOffsetsPartition::default()
                .with_partition_index(index)
                .with_current_leader_epoch(-1)
                .with_timestamp(timestamp);
            let request = ListOffsetsRequest::default().with_topics(vec![
                ListOffsetsTopic::default()
                    .with_name(name("orders"))
                    .with_partitions(vec![partition]),
            ]);
            let response = client.call(&request, version).await;
            let listed = &response.topics[0].partitions[0];
            assert_eq!(
                (listed.error_code, listed.offset, listed.timestamp),
                (code, offset, found),
                "{timestamp} in version {version}"
            );
        }
    }
}

#[tokio::test]
async fn producers_get_ids() {
    let mut client = connect(&Double::new());
    for version in 0..=4 {
        let request = InitProducerIdRequest::default().with_transactional_id(None);
        let response = client.call(&request, version).await;
        assert_eq!(response.error_code, 0);
        assert_eq!(
            (response.producer_id.0, response.producer_epoch),
            (4_000, 0)
        );
    }
}

#[tokio::test]
async fn the_cluster_is_described() {
    let double = Double::new();
    double.dead.lock().unwrap().insert(node(2));
    let mut client = connect(&double);
    for version in 0..=2 {
        let mut request = DescribeClusterRequest::default();
        request.include_fenced_brokers = version >= 2;
        let response = client.call(&request, version).await;
        assert_eq!(response.error_code, 0);
        assert_eq!(response.controller_id.0, 1, "node 2 cannot be reached");
        let nodes: Vec<_> = response
            .brokers
            .iter()
            .map(|b| (b.broker_id.0, b.is_fenced))
            .collect();
        match version {
            2 => assert_eq!(nodes, [(1, false), (2, true)]),
            _ => assert_eq!(nodes, [(1, false)]),
        }
    }
    let controllers = DescribeClusterRequest::default().with_endpoint_type(2);
    assert_eq!(client.call(&controllers, 1).await.error_code, 42);
}

#[tokio::test]
async fn records_are_deleted_up_to_what_is_committed() {
    use kafka_protocol::messages::DeleteRecordsRequest;
    use kafka_protocol::messages::delete_records_request::{
        DeleteRecordsPartition, DeleteRecordsTopic,
    };
    let double = Double::new()
        .with_topic("orders", 2)
        .with_foreign_topic("elsewhere");
    double.append(double.partition("orders", 0), &["a", "b", "c"]);
    let mut client = connect(&double);
    let ask = |topic: &str, partitions: &[(i32, i64)]| {
        let partitions = partitions.iter().map(|(index, offset)| {
            DeleteRecordsPartition::default()
                .with_partition_index(*index)
                .with_offset(*offset)
        });
        DeleteRecordsTopic::default()
            .with_name(name(topic))
            .with_partitions(partitions.collect())
    };
    for version in 0..=2 {
        let request = DeleteRecordsRequest::default()
            .with_timeout_ms(1_000)
            .with_topics(vec![
                ask("orders", &[(0, 2), (0, -1), (0, 4), (0, -2), (9, 0)]),
                ask("elsewhere", &[(0, 0)]),
                ask("nowhere", &[(0, 0)]),
            ]);
        let response = client.call(&request, version).await;
        let told: Vec<(i16, i64)> = response
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .map(|p| (p.error_code, p.low_watermark))
            .collect();
        let wanted = [(0, 2), (0, 3), (1, -1), (1, -1), (3, -1), (6, -1), (3, -1)];
        assert_eq!(told, wanted, "version {version}");
    }
}

#[tokio::test]
async fn an_epoch_ends_where_the_leader_says() {
    use kafka_protocol::messages::OffsetForLeaderEpochRequest;
    use kafka_protocol::messages::offset_for_leader_epoch_request::{
        OffsetForLeaderPartition, OffsetForLeaderTopic,
    };
    let double = Double::new().with_topic("orders", 1);
    double.append(double.partition("orders", 0), &["a", "b"]);
    let mut client = connect(&double);
    for version in 2..=4 {
        let partitions = [(0, 1), (0, 2), (0, -1), (7, 1)].map(|(index, epoch)| {
            OffsetForLeaderPartition::default()
                .with_partition(index)
                .with_leader_epoch(epoch)
        });
        let topic = OffsetForLeaderTopic::default()
            .with_topic(name("orders"))
            .with_partitions(partitions.to_vec());
        let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
        let response = client.call(&request, version).await;
        let told: Vec<(i16, i32, i64)> = response.topics[0]
            .partitions
            .iter()
            .map(|p| (p.error_code, p.leader_epoch, p.end_offset))
            .collect();
        assert_eq!(told, [(0, 1, 2), (0, -1, -1), (0, -1, -1), (3, -1, -1)]);
    }
}
