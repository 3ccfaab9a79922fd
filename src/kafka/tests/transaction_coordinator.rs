//! The requests of producers that use transactions, and of their administrators.

use std::sync::Arc;

use kafka_protocol::messages::add_partitions_to_txn_request::{
    AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction,
};
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, DescribeTransactionsRequest, EndTxnRequest,
    FindCoordinatorRequest, GroupId, IncrementalAlterConfigsRequest, InitProducerIdRequest,
    ListTransactionsRequest, ProducerId, TransactionalId,
};
use kafka_protocol::protocol::StrBytes;

use super::client::{Client, connect, connect_to, name, peer, run};
use super::double::{Double, node};
use crate::kafka::{Config, ListenerKind, Peer, Server};
use crate::types::ListenerName;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn id(name: &str) -> TransactionalId {
    TransactionalId(text(name))
}

/// A connection of another node of the cluster.
fn connect_as_node(double: &Arc<Double>) -> Client {
    let server = Server::new(Arc::clone(double), Config::default());
    let peer = Peer {
        node: Some(node(2)),
        ..peer()
    };
    run(server.admit(peer, ListenerKind::Quic).unwrap())
}

fn init(name: &str) -> InitProducerIdRequest {
    InitProducerIdRequest::default()
        .with_transactional_id(Some(id(name)))
        .with_transaction_timeout_ms(60_000)
}

fn topics(name_of_topic: &str, partitions: &[i32]) -> Vec<AddPartitionsToTxnTopic> {
    vec![
        AddPartitionsToTxnTopic::default()
            .with_name(name(name_of_topic))
            .with_partitions(partitions.to_vec()),
    ]
}

fn add(name: &str, epoch: i16, topic: &str, partitions: &[i32]) -> AddPartitionsToTxnRequest {
    AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(id(name))
        .with_v3_and_below_producer_id(ProducerId(5_000))
        .with_v3_and_below_producer_epoch(epoch)
        .with_v3_and_below_topics(topics(topic, partitions))
}

/// The codes of all partitions.
async fn added(client: &mut Client, request: &AddPartitionsToTxnRequest, version: i16) -> Vec<i16> {
    let response = client.call(request, version).await;
    response
        .results_by_topic_v3_and_below
        .iter()
        .flat_map(|topic| &topic.results_by_partition)
        .map(|partition| partition.partition_error_code)
        .collect()
}

fn end(name: &str, epoch: i16, commit: bool) -> EndTxnRequest {
    EndTxnRequest::default()
        .with_transactional_id(id(name))
        .with_producer_id(ProducerId(5_000))
        .with_producer_epoch(epoch)
        .with_committed(commit)
}

#[tokio::test]
async fn a_transaction_begins_and_ends_in_every_version() {
    let double = Double::new().with_topic("orders", 2);
    let double = double.with_topic("__consumer_offsets", 16);
    let mut client = connect(&double);
    for version in 0..=5 {
        let name = format!("id-{version}");
        let given = client.call(&init(&name), version).await;
        let given = (given.error_code, given.producer_id.0, given.producer_epoch);
        assert_eq!(given, (0, 5_000, 0));
        let request = add(&name, 0, "orders", &[0, 1]);
        assert_eq!(added(&mut client, &request, version.min(3)).await, [0, 0]);
        let offsets = AddOffsetsToTxnRequest::default()
            .with_transactional_id(id(&name))
            .with_producer_id(ProducerId(5_000))
            .with_group_id(GroupId(text("group")));
        assert_eq!(client.call(&offsets, version.min(4)).await.error_code, 0);
        let describe =
            DescribeTransactionsRequest::default().with_transactional_ids(vec![id(&name), id("x")]);
        let described = client.call(&describe, 0).await.transaction_states;
        assert_eq!(&described[0].transaction_state[..], "Ongoing");
        assert_eq!(described[0].topics.len(), 2);
        assert_eq!(described[0].topics[1].partitions, [0, 1]);
        assert_eq!(described[1].error_code, 105);
        let ended = client.call(&end(&name, 0, true), version.min(4)).await;
        assert_eq!(ended.error_code, 0);
        let ended = client.call(&end(&name, 0, false), version.min(4)).await;
        assert_eq!(ended.error_code, 48);
    }
    let list = ListTransactionsRequest::default()
        .with_state_filters(vec![text("CompleteCommit"), text("Sleeping")])
        .with_duration_filter(-1);
    let listed = client.call(&list, 1).await;
    assert_eq!(listed.transaction_states.len(), 6);
    assert_eq!(listed.unknown_state_filters, [text("Sleeping")]);
}

#[tokio::test]
async fn since_version_5_the_end_brings_the_next_epoch() {
    let double = Double::new().with_topic("orders", 2);
    let mut client = connect(&double);
    client.call(&init("t"), 5).await;
    for (epoch, commit) in [(0, true), (1, false), (2, true)] {
        let request = add("t", epoch, "orders", &[0]);
        assert_eq!(added(&mut client, &request, 3).await, [0]);
        // The last one is a retry.
        for _ in 0..2 {
            let ended = client.call(&end("t", epoch, commit), 5).await;
            let next = (ended.producer_id.0, ended.producer_epoch);
            assert_eq!((ended.error_code, next), (0, (5_000, epoch + 1)));
        }
        let other = client.call(&end("t", epoch, !commit), 5).await;
        let nobody = (other.producer_id.0, other.producer_epoch);
        assert_eq!((other.error_code, nobody), (48, (-1, -1)));
        let request = add("t", epoch, "orders", &[0]);
        assert_eq!(added(&mut client, &request, 3).await, [90]);
    }
}

#[tokio::test]
async fn nodes_add_partitions_for_clients_and_those_of_the_groups_too() {
    let double = Double::new().with_topic("orders", 2);
    let double = double.with_topic("__consumer_offsets", 16);
    let double = double.with_topic("__transaction_state", 16);
    let mut of_a_node = connect_as_node(&double);
    of_a_node.call(&init("t"), 4).await;
    for (topic, partitions, codes) in [
        ("orders", vec![0, 1], vec![0, 0]),
        ("orders", vec![1, 7], vec![55, 3]),
        ("__consumer_offsets", vec![3], vec![0]),
        ("__transaction_state", vec![3], vec![29]),
    ] {
        let transaction = AddPartitionsToTxnTransaction::default()
            .with_transactional_id(id("t"))
            .with_producer_id(ProducerId(5_000))
            .with_topics(topics(topic, &partitions));
        let request = AddPartitionsToTxnRequest::default().with_transactions(vec![transaction]);
        let response = of_a_node.call(&request, 5).await;
        let results = &response.results_by_transaction[0].topic_results[0].results_by_partition;
        let found: Vec<i16> = results.iter().map(|r| r.partition_error_code).collect();
        assert_eq!(found, codes, "{topic}");
    }
    let describe = DescribeTransactionsRequest::default().with_transactional_ids(vec![id("t")]);
    let described = of_a_node.call(&describe, 0).await.transaction_states;
    let reached: usize = described[0].topics.iter().map(|t| t.partitions.len()).sum();
    assert_eq!(reached, 3);
}

#[tokio::test]
async fn all_partitions_of_a_request_are_added_or_none() {
    let double = Double::new().with_topic("orders", 2);
    let double = double.with_topic("__consumer_offsets", 16);
    let mut client = connect(&double);
    client.call(&init("t"), 4).await;
    let request = add("t", 0, "orders", &[0, 7]);
    assert_eq!(added(&mut client, &request, 3).await, [55, 3]);
    let request = add("t", 0, "nothing", &[0]);
    assert_eq!(added(&mut client, &request, 3).await, [3]);
    // What groups commit comes by another way.
    let request = add("t", 0, "__consumer_offsets", &[0]);
    assert_eq!(added(&mut client, &request, 3).await, [29]);
    let ended = client.call(&end("t", 0, true), 4).await;
    assert_eq!(ended.error_code, 48, "nothing was added");
}

#[tokio::test]
async fn a_fenced_producer_is_told_so_in_the_words_of_its_version() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    client.call(&init("t"), 4).await;
    client.call(&init("t"), 4).await;
    for (version, code) in [(0, 47), (1, 47), (2, 90), (3, 90)] {
        let request = add("t", 0, "orders", &[0]);
        assert_eq!(added(&mut client, &request, version).await, [code]);
        let ended = client.call(&end("t", 0, true), version).await;
        assert_eq!(ended.error_code, code);
    }
    let old = init("t").with_producer_id(ProducerId(5_000));
    for (version, code) in [(3, 47), (4, 90)] {
        let request = old.clone().with_producer_epoch(0);
        assert_eq!(client.call(&request, version).await.error_code, code);
    }
    // An id without an epoch names nobody.
    assert_eq!(client.call(&old, 4).await.error_code, 42);
    let other = end("t", 0, true).with_producer_id(ProducerId(-7));
    assert_eq!(client.call(&other, 4).await.error_code, 49);
    let long = init("t").with_transaction_timeout_ms(i32::MAX);
    assert_eq!(client.call(&long, 4).await.error_code, 50);
    assert_eq!(client.call(&init(""), 4).await.error_code, 42);
}

#[tokio::test]
async fn only_nodes_ask_whether_a_transaction_reaches_a_partition() {
    let double = Double::new().with_topic("orders", 2);
    let mut client = connect(&double);
    client.call(&init("t"), 4).await;
    let request = add("t", 0, "orders", &[0]);
    assert_eq!(added(&mut client, &request, 3).await, [0]);
    let asked = |epoch| {
        AddPartitionsToTxnTransaction::default()
            .with_transactional_id(id("t"))
            .with_producer_id(ProducerId(5_000))
            .with_producer_epoch(epoch)
            .with_verify_only(true)
            .with_topics(topics("orders", &[0, 1]))
    };
    let request = AddPartitionsToTxnRequest::default().with_transactions(vec![asked(0), asked(3)]);
    let mut of_a_node = connect_as_node(&double);
    for version in 4..=5 {
        assert_eq!(client.call(&request, version).await.error_code, 31);
        let response = of_a_node.call(&request, version).await;
        assert_eq!(response.error_code, 0);
        let codes: Vec<Vec<i16>> = response
            .results_by_transaction
            .iter()
            .map(|transaction| {
                let results = &transaction.topic_results[0].results_by_partition;
                results.iter().map(|r| r.partition_error_code).collect()
            })
            .collect();
        assert_eq!(codes, [[0, 48], [90, 90]]);
    }
}

#[tokio::test]
async fn the_topic_of_transactions_stays_compacted() {
    let double = Double::new().with_topic("__transaction_state", 1);
    let mut client = connect(&double);
    for (setting, operation, code) in [
        ("cleanup.policy", 0, 44),
        ("cleanup.policy", 1, 44),
        ("segment.bytes", 1, 0),
    ] {
        let config = AlterableConfig::default()
            .with_name(text(setting))
            .with_config_operation(operation)
            .with_value((operation == 0).then(|| text("delete")));
        let resource = AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text("__transaction_state"))
            .with_configs(vec![config]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let response = client.call(&request, 1).await;
        assert_eq!(response.responses[0].error_code, code, "{setting}");
    }
}

#[tokio::test]
async fn a_transaction_coordinator_is_found() {
    let double = Double::new();
    let server = Server::new(Arc::clone(&double), Config::default());
    let mut client = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
    let find = |key: &str| {
        FindCoordinatorRequest::default()
            .with_key(text(key))
            .with_key_type(1)
    };
    for version in 1..=3 {
        let found = client.call(&find("t"), version).await;
        assert_eq!((found.error_code, found.node_id.0), (0, 2));
    }
    assert_eq!(client.call(&find(""), 3).await.error_code, 42);
    assert_eq!(client.call(&find(&"x".repeat(256)), 3).await.error_code, 42);
}
