use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{FetchRequest, MetadataRequest, ProduceRequest, ProduceResponse};
use tokio::time::Instant;

use super::client::{connect, fetch, name, produce};
use super::double::Double;
use super::{batch, batch_with, values};
use crate::kafka::Ended;
use crate::record::Compression;

fn only(response: &ProduceResponse) -> &PartitionProduceResponse {
    &response.responses[0].partition_responses[0]
}

#[tokio::test]
async fn every_version_and_codec_goes_through_verbatim() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    let mut expected = Vec::new();
    for version in 3..=12 {
        for codec in Compression::ALL {
            let value = format!("{version} {codec:?}");
            let request = produce("orders", 0, batch_with(&[&value], codec), -1);
            let response = client.call(&request, version).await;
            let partition = only(&response);
            assert_eq!(partition.error_code, 0, "{value}");
            assert_eq!(partition.base_offset, expected.len() as i64);
            expected.push((partition.base_offset, value));
        }
    }
    let response = client.call(&fetch("orders", &[0]), 12).await;
    let records = response.responses[0].partitions[0].records.clone();
    assert_eq!(values(&records.unwrap()), expected);
}

#[tokio::test(start_paused = true)]
async fn pipelined_produces_keep_their_order_and_wait_for_their_acks() {
    let double = Double::new().with_topic("orders", 1);
    double.holds_acks.store(true, Ordering::SeqCst);
    let mut client = connect(&double);
    let mut sent = Vec::new();
    for i in 0..20 {
        let request = produce("orders", 0, batch(&[&i.to_string()]), -1);
        sent.push(client.send(&request, 9).await);
    }
    sent.push(client.send(&MetadataRequest::default(), 9).await);
    // All twenty are in the partition before the first one is answered.
    while double.waiting.load(Ordering::SeqCst) < 20 {
        tokio::task::yield_now().await;
    }
    double.holds_acks.store(false, Ordering::SeqCst);
    double.commit();
    for (i, expected) in sent[..20].iter().enumerate() {
        let (correlation_id, response) = client.receive::<ProduceRequest>(9).await;
        assert_eq!(correlation_id, *expected);
        assert_eq!(only(&response).base_offset, i as i64);
    }
    let (correlation_id, _) = client.receive::<MetadataRequest>(9).await;
    assert_eq!(correlation_id, sent[20]);
    let response = client.call(&fetch("orders", &[0]), 12).await;
    let records = response.responses[0].partitions[0].records.clone().unwrap();
    let expected: Vec<_> = (0..20).map(|i| (i, i.to_string())).collect();
    assert_eq!(values(&records), expected);
}

#[tokio::test(start_paused = true)]
async fn one_deadline_holds_for_all_partitions_of_a_request() {
    let double = Double::new().with_topic("orders", 5);
    double.holds_acks.store(true, Ordering::SeqCst);
    let mut client = connect(&double);
    let mut request = produce("orders", 0, batch(&["x"]), -1);
    request.topic_data[0].partition_data = (0..5)
        .map(|index| {
            PartitionProduceData::default()
                .with_index(index)
                .with_records(Some(batch(&["x"])))
        })
        .collect();
    let started = Instant::now();
    let response = client.call(&request, 9).await;
    assert_eq!(started.elapsed().as_millis(), 1_000);
    for partition in &response.responses[0].partition_responses {
        assert_eq!(partition.error_code, 7);
        assert_eq!(partition.base_offset, -1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_mailbox_is_waited_for_until_the_deadline() {
    let double = Double::new().with_topic("orders", 1);
    double.mailbox.forget_permits(1_000_000);
    let mut client = connect(&double);
    let request = produce("orders", 0, batch(&["x"]), -1);
    assert_eq!(only(&client.call(&request, 9).await).error_code, 7);
    client.send(&request, 9).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    double.mailbox.add_permits(1);
    let (_, response) = client.receive::<ProduceRequest>(9).await;
    assert_eq!(only(&response).error_code, 0);
}

#[tokio::test]
async fn an_owner_that_goes_away_answers_not_leader() {
    let double = Double::new().with_topic("orders", 1);
    double.holds_acks.store(true, Ordering::SeqCst);
    let mut client = connect(&double);
    client
        .send(&produce("orders", 0, batch(&["x"]), -1), 9)
        .await;
    while double.waiting.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    double.forget();
    let (_, response) = client.receive::<ProduceRequest>(9).await;
    assert_eq!(only(&response).error_code, 6);
}

#[tokio::test]
async fn not_the_leader_says_who_is() {
    let double = Double::new().with_foreign_topic("orders");
    let mut client = connect(&double);
    let request = produce("orders", 0, batch(&["x"]), 1);
    for version in [9, 10, 12] {
        let response = client.call(&request, version).await;
        assert_eq!(only(&response).error_code, 6);
        let leader = &only(&response).current_leader;
        let told = (leader.leader_id.0, leader.leader_epoch);
        if version < 10 {
            assert_eq!(told, (-1, -1));
            assert!(response.node_endpoints.is_empty());
        } else {
            assert_eq!(told, (2, 1));
            assert_eq!(response.node_endpoints[0].node_id.0, 2);
            assert_eq!(response.node_endpoints[0].port, 9102);
        }
    }
    // Metadata that still names this node would send the client in circles.
    let double = double.with_topic("stale", 1);
    double.resign(double.partition("stale", 0));
    let request = produce("stale", 0, batch(&["x"]), 1);
    let response = client.call(&request, 10).await;
    assert_eq!(only(&response).error_code, 6);
    assert_eq!(only(&response).current_leader.leader_id.0, -1);
}

#[tokio::test]
async fn bad_batches_get_kafkas_error_and_the_rest_of_the_request_goes_through() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    let good = batch(&["x"]);
    let with = |at: usize, byte: u8| {
        let mut bad = good.to_vec();
        bad[at] = byte;
        Bytes::from(bad)
    };
    // A codec that nobody knows, with the CRC that belongs to it.
    let mut codec = good.to_vec();
    codec[22] |= 7;
    let crc = crc32c::crc32c(&codec[21..]);
    codec[17..21].copy_from_slice(&crc.to_be_bytes());
    let large = "y".repeat(1_048_588);
    for (what, records, code) in [
        ("CRC", with(good.len() - 1, 0xff), 2),
        ("cut short", good.slice(..good.len() - 1), 2),
        ("magic 1", with(16, 1), 43),
        ("codec", codec.into(), 76),
        ("nothing", Bytes::new(), 87),
        ("too large", batch(&[&large]), 10),
    ] {
        let mut request = produce("orders", 0, records, -1);
        let fine = PartitionProduceData::default()
            .with_index(0)
            .with_records(Some(good.clone()));
        request.topic_data.push(
            TopicProduceData::default()
                .with_name(name("orders"))
                .with_partition_data(vec![fine]),
        );
        let response = client.call(&request, 8).await;
        assert_eq!(only(&response).error_code, code, "{what}");
        assert!(only(&response).error_message.is_some(), "{what}");
        let fine = &response.responses[1].partition_responses[0];
        assert_eq!(fine.error_code, 0, "{what}");
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_refused_before_any_append() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    let long = "n".repeat(250);
    for (topic, index, acks, code) in [
        ("payments", 0, -1, 3),
        ("orders", 1, -1, 3),
        ("orders", -1, -1, 3),
        ("../orders", 0, -1, 3),
        (long.as_str(), 0, -1, 3),
        ("orders", 0, 2, 21),
    ] {
        let request = produce(topic, index, batch(&["x"]), acks);
        for version in [3, 9, 12] {
            let response = client.call(&request, version).await;
            assert_eq!(only(&response).error_code, code, "{topic} {index} {acks}");
        }
    }
    let (_, response) = {
        client
            .send(&fetch("orders", &[0]).with_max_wait_ms(0), 12)
            .await;
        client.receive::<FetchRequest>(12).await
    };
    assert_eq!(response.responses[0].partitions[0].high_watermark, 0);
}

#[tokio::test]
async fn acks_0_has_no_response_and_a_failure_closes_the_connection() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    client
        .send(&produce("orders", 0, batch(&["x"]), 0), 9)
        .await;
    // The next response is the next request's.
    let response = client
        .call(&produce("orders", 0, batch(&["y"]), 1), 9)
        .await;
    assert_eq!(only(&response).base_offset, 1);
    double.resign(double.partition("orders", 0));
    client
        .send(&produce("orders", 0, batch(&["z"]), 0), 9)
        .await;
    assert_eq!(client.expect_closed().await, Ended::Refused);
}
