//! Transactions as clients and other nodes see them.

use bytes::Bytes;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::write_txn_markers_request::{
    WritableTxnMarker, WritableTxnMarkerTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Duration, Instant};

use super::client::{connect, connect_node, name, produce};
use super::double::{Double, node};
use crate::groups::{self};
use crate::kafka::Service;
use crate::record::{BatchBuilder, Compression, ProducerStamp};
use crate::types::{ErrorCode, OFFSETS_TOPIC, ProducerId};

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn transactional() -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.append(None, Some(b"x"), &[], 1_000).unwrap();
    let stamp = ProducerStamp {
        id: ProducerId::new(7).unwrap(),
        epoch: 0,
        base_sequence: 0,
    };
    let sealed = builder.seal(Compression::None).unwrap();
    sealed.transactional().stamp(Some(stamp))
}

#[tokio::test]
async fn a_batch_of_a_transaction_comes_with_its_transactional_id() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    let request = produce("orders", 0, transactional(), -1);
    let code = |response: ProduceResponse| response.responses[0].partition_responses[0].error_code;
    let without = client.call(&request, 9).await;
    assert_eq!(
        code(without),
        ErrorCode::TransactionalIdAuthorizationFailed.code()
    );
    let request = request.with_transactional_id(Some(TransactionalId(text("t"))));
    for version in [3, 9, 12] {
        assert_eq!(code(client.call(&request, version).await), 0);
    }
}

fn marker(partitions: Vec<i32>) -> WriteTxnMarkersRequest {
    let topic = WritableTxnMarkerTopic::default()
        .with_name(name("orders"))
        .with_partition_indexes(partitions);
    WriteTxnMarkersRequest::default().with_markers(vec![
        WritableTxnMarker::default()
            .with_producer_id(7.into())
            .with_transaction_result(true)
            .with_topics(vec![topic]),
    ])
}

#[tokio::test]
async fn only_nodes_end_transactions() {
    let double = Double::new().with_topic("orders", 1);
    let codes = |response: &WriteTxnMarkersResponse| {
        let partitions = &response.markers[0].topics[0].partitions;
        let codes = partitions.iter().map(|p| (p.partition_index, p.error_code));
        codes.collect::<Vec<_>>()
    };
    let refused = connect(&double).call(&marker(vec![0]), 1).await;
    let code = ErrorCode::ClusterAuthorizationFailed.code();
    assert_eq!(codes(&refused), [(0, code)]);
    let mut other = connect_node(&double, node(2));
    let taken = other.call(&marker(vec![0, 1]), 1).await;
    assert_eq!(taken.markers[0].producer_id.0, 7);
    assert_eq!(codes(&taken), [(0, 0), (1, 3)]);
    let topic = TopicRequest::default()
        .with_name(name("orders"))
        .with_partition_indexes(vec![0, 1]);
    let request = DescribeProducersRequest::default().with_topics(vec![topic]);
    let described = connect(&double).call(&request, 0).await;
    let codes: Vec<i16> = described.topics[0]
        .partitions
        .iter()
        .map(|p| p.error_code)
        .collect();
    assert_eq!(codes, [0, 3]);
}

#[tokio::test]
async fn offsets_of_a_transaction_are_unstable_until_it_ends() {
    let double = Double::new()
        .with_topic("orders", 1)
        .with_topic(OFFSETS_TOPIC, 2);
    let mut client = connect(&double);
    for version in 0..=5 {
        let group = GroupId(text(&format!("readers of {version}")));
        let partition = TxnOffsetCommitRequestPartition::default().with_committed_offset(9);
        let missing = partition.clone().with_partition_index(5);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(name("orders"))
            .with_partitions(vec![partition, missing]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(text("t")))
            .with_group_id(group.clone())
            .with_producer_id(7.into())
            .with_producer_epoch(version)
            .with_topics(vec![topic]);
        let response = client.call(&request, version).await;
        let partitions = &response.topics[0].partitions;
        let codes: Vec<i16> = partitions.iter().map(|p| p.error_code).collect();
        assert_eq!(codes, [0, 3], "{version}");

        let topic = OffsetFetchRequestTopic::default()
            .with_name(name("orders"))
            .with_partition_indexes(vec![0]);
        let fetch = OffsetFetchRequest::default()
            .with_group_id(group)
            .with_topics(Some(vec![topic]));
        let stable = fetch.clone().with_require_stable(true);
        let found = client.call(&stable, 7).await;
        let partition = &found.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.committed_offset), (88, -1));
        let found = client.call(&fetch, 7).await;
        let partition = &found.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.committed_offset), (0, -1));

        let end = groups::Request::EndTransaction(groups::EndTransaction {
            producer: ProducerId::new(7).unwrap(),
            producer_epoch: version,
            coordinator_epoch: 0,
            is_commit: true,
        });
        let soon = Instant::now() + Duration::from_secs(5);
        assert_eq!(
            double.ask_group("", end, soon).await,
            Ok(groups::Answer::Done)
        );
        let found = client.call(&stable, 7).await;
        let partition = &found.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.committed_offset), (0, 9));
    }
}
