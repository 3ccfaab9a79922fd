//! Nodes with several listeners: who comes by one is sent on to the same one of the other nodes.

use std::sync::Arc;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    DescribeClusterRequest, FindCoordinatorRequest, MetadataRequest, MetadataResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::batch;
use super::client::{Client, connect_to, name, produce};
use super::double::{Double, node};
use crate::kafka::{Config, ListenerKind, Server, Service};
use crate::metadata::{Command, Endpoint};
use crate::types::ListenerName;

/// Nodes 1 and 3 have a listener `external` besides what they have.
fn double() -> Arc<Double> {
    let double = Double::new()
        .with_topic("ours", 1)
        .with_foreign_topic("theirs");
    for id in [1, 3] {
        let mut registration = double.image().node(node(id)).unwrap().clone();
        let endpoint = Endpoint {
            host: "external.example".to_owned(),
            port: 9200 + id as u16,
        };
        registration.set_kafka_endpoint(external(), endpoint);
        double.apply(&Command::RegisterNode { registration });
    }
    double
}

fn external() -> ListenerName {
    ListenerName::new("external").unwrap()
}

fn connect_by(double: &Arc<Double>, listener: ListenerName) -> Client {
    let server = Server::new(Arc::clone(double), Config::default());
    connect_to(&server, ListenerKind::Kafka(listener))
}

fn metadata_of(topic: &str) -> MetadataRequest {
    let topic = MetadataRequestTopic::default().with_name(Some(name(topic)));
    MetadataRequest::default().with_topics(Some(vec![topic]))
}

fn brokers(response: &MetadataResponse) -> Vec<(i32, String, i32)> {
    let brokers = response.brokers.iter();
    brokers
        .map(|b| (b.node_id.0, b.host.to_string(), b.port))
        .collect()
}

#[tokio::test]
async fn metadata_leaves_out_nodes_without_the_clients_listener() {
    let double = double();
    let mut client = connect_by(&double, external());
    let mut other = connect_by(&double, ListenerName::unnamed());
    for version in 0..=13 {
        let response = client.call(&metadata_of("ours"), version).await;
        let host = || "external.example".to_owned();
        assert_eq!(brokers(&response), [(1, host(), 9201), (3, host(), 9203)]);
        let partition = &response.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.leader_id.0), (0, 1));
        assert_eq!(partition.replica_nodes.len(), 3);
        if version >= 5 {
            assert_eq!(partition.offline_replicas, [2]);
        }
        if version >= 1 {
            assert_eq!(response.controller_id.0, 1, "node 2 cannot be reached");
        }

        let response = client.call(&metadata_of("theirs"), version).await;
        let partition = &response.topics[0].partitions[0];
        let wanted = if version < 6 { 5 } else { 72 };
        assert_eq!((partition.error_code, partition.leader_id.0), (wanted, -1));

        let response = other.call(&metadata_of("theirs"), version).await;
        let host = || "kafka.example".to_owned();
        assert_eq!(brokers(&response), [(1, host(), 9101), (2, host(), 9102)]);
        assert_eq!(response.topics[0].partitions[0].error_code, 0);
    }
    // A leader that is down is that, whatever listeners it has.
    double.dead.lock().unwrap().insert(node(2));
    let response = client.call(&metadata_of("theirs"), 9).await;
    assert_eq!(response.topics[0].partitions[0].error_code, 5);
}

#[tokio::test]
async fn hints_name_only_what_the_client_can_reach() {
    let double = double();
    let mut client = connect_by(&double, external());
    let request = produce("theirs", 0, batch(&["x"]), 1);
    let response = client.call(&request, 12).await;
    let partition = &response.responses[0].partition_responses[0];
    assert_eq!(partition.error_code, 6);
    assert!(response.node_endpoints.is_empty());
    let mut registration = double.image().node(node(2)).unwrap().clone();
    let endpoint = Endpoint {
        host: "external.example".to_owned(),
        port: 9202,
    };
    registration.set_kafka_endpoint(external(), endpoint);
    double.apply(&Command::RegisterNode { registration });
    let response = client.call(&request, 12).await;
    let told = &response.node_endpoints[0];
    assert_eq!((told.node_id.0, told.port), (2, 9202));
}

#[tokio::test]
async fn coordinators_and_nodes_are_given_by_the_clients_listener() {
    let double = double();
    let group = StrBytes::from_static_str("group");
    let find = FindCoordinatorRequest::default().with_key(group);
    for (listener, found, ports) in [
        (external(), (15, -1), [9201, 9203]),
        (ListenerName::unnamed(), (0, 9102), [9101, 9102]),
    ] {
        let mut client = connect_by(&double, listener);
        let answer = client.call(&find, 3).await;
        assert_eq!((answer.error_code, answer.port), found);
        let request = DescribeClusterRequest::default();
        let described = client.call(&request, 1).await;
        let told: Vec<i32> = described.brokers.iter().map(|b| b.port).collect();
        assert_eq!(told, ports);
    }
    let mut nobody = connect_by(&double, ListenerName::new("other").unwrap());
    let response = nobody.call(&metadata_of("ours"), 12).await;
    assert!(response.brokers.is_empty());
    assert_eq!(response.topics[0].partitions[0].error_code, 72);
}
