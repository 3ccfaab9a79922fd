use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{FetchRequest, FetchResponse};
use tokio::time::Instant;

use super::client::{connect, connect_to, fetch};
use super::double::Double;
use super::values;
use crate::kafka::{Config, ListenerKind, Server};
use crate::types::ListenerName;

fn partition(response: &FetchResponse, place: usize) -> &PartitionData {
    &response.responses[0].partitions[place]
}

fn found(partition: &PartitionData) -> Vec<String> {
    let records = partition.records.clone().unwrap_or_default();
    values(&records)
        .into_iter()
        .map(|(_, value)| value)
        .collect()
}

#[tokio::test]
async fn every_version_reads_whole_batches() {
    let double = Double::new().with_topic("orders", 2);
    double.append(double.partition("orders", 0), &["a", "b", "c"]);
    let mut client = connect(&double);
    for version in 4..=12 {
        let response = client.call(&fetch("orders", &[1, 0]), version).await;
        assert_eq!(response.error_code, 0);
        assert_eq!(response.session_id, 0);
        let full = partition(&response, 0);
        assert_eq!(found(full), ["b", "c"], "version {version}");
        assert_eq!(full.high_watermark, 3);
        assert_eq!(full.last_stable_offset, 3);
        assert!(found(partition(&response, 1)).is_empty());
    }
}

#[tokio::test]
async fn a_leader_that_does_not_know_its_watermark_names_no_stable_offset_either() {
    let double = Double::new().with_topic("orders", 1);
    double.append(double.partition("orders", 0), &["a", "b"]);
    let mut client = connect(&double);
    for (begins, end) in [(true, -1), (false, 2)] {
        double.begins_an_epoch.store(begins, Ordering::SeqCst);
        let response = client.call(&fetch("orders", &[0]), 11).await;
        let answer = partition(&response, 0);
        assert_eq!(
            (answer.high_watermark, answer.last_stable_offset),
            (end, end)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_ends_with_its_one_deadline() {
    let double = Double::new().with_topic("orders", 20);
    let mut client = connect(&double);
    let started = Instant::now();
    let response = client.call(&fetch("orders", &[0; 20]), 11).await;
    assert_eq!(started.elapsed().as_millis(), 500);
    assert!((0..20).all(|i| found(partition(&response, i)).is_empty()));
    assert_eq!(double.reads.load(Ordering::SeqCst), 20, "nothing is polled");
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_wakes_when_records_are_committed() {
    let double = Double::new().with_topic("orders", 3);
    let mut client = connect(&double);
    let started = Instant::now();
    client.send(&fetch("orders", &[0; 3]), 11).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    double.append(double.partition("orders", 1), &["late"]);
    let (_, response) = client.receive::<FetchRequest>(11).await;
    assert_eq!(started.elapsed().as_millis(), 200);
    assert_eq!(found(partition(&response, 1)), ["late"]);
    assert_eq!(
        double.reads.load(Ordering::SeqCst),
        4,
        "only what changed is read again"
    );
}

#[tokio::test(start_paused = true)]
async fn min_bytes_gathers_and_reads_nothing_twice() {
    let double = Double::new().with_topic("orders", 2);
    let mut client = connect(&double);
    let size = super::batch(&["0"]).len();
    let request = fetch("orders", &[0, 0]).with_min_bytes(5 * size as i32);
    client.send(&request, 11).await;
    for i in 0..5 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        double.append(double.partition("orders", i % 2), &[&i.to_string()]);
    }
    let started = Instant::now();
    let (_, response) = client.receive::<FetchRequest>(11).await;
    assert_eq!(started.elapsed().as_millis(), 0);
    assert_eq!(found(partition(&response, 0)), ["0", "2", "4"]);
    assert_eq!(found(partition(&response, 1)), ["1", "3"]);
    assert_eq!(double.reads.load(Ordering::SeqCst), 2 + 5);
}

#[tokio::test(start_paused = true)]
async fn what_was_gathered_by_the_deadline_is_sent() {
    let double = Double::new().with_topic("orders", 1);
    double.append(double.partition("orders", 0), &["a"]);
    let mut client = connect(&double);
    let request = fetch("orders", &[0]).with_min_bytes(1 << 20);
    let started = Instant::now();
    let response = client.call(&request, 11).await;
    assert_eq!(started.elapsed().as_millis(), 500);
    assert_eq!(found(partition(&response, 0)), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_leadership_ends_a_long_poll() {
    let double = Double::new().with_topic("orders", 2);
    let mut client = connect(&double);
    client.send(&fetch("orders", &[0, 0]), 12).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    double.resign(double.partition("orders", 1));
    let started = Instant::now();
    let (_, response) = client.receive::<FetchRequest>(12).await;
    assert_eq!(started.elapsed().as_millis(), 0);
    assert_eq!(partition(&response, 0).error_code, 0);
    let refused = partition(&response, 1);
    assert_eq!(refused.error_code, 6);
    assert_eq!(
        refused.current_leader.leader_id.0, -1,
        "metadata still names this node"
    );
}

#[tokio::test]
async fn not_the_leader_says_who_is() {
    let double = Double::new().with_foreign_topic("orders");
    let mut client = connect(&double);
    let response = client.call(&fetch("orders", &[0]), 12).await;
    let refused = partition(&response, 0);
    assert_eq!(refused.error_code, 6);
    assert_eq!(refused.current_leader.leader_id.0, 2);
    assert_eq!(refused.current_leader.leader_epoch, 1);
}

#[tokio::test(start_paused = true)]
async fn errors_are_each_partitions_own_and_end_the_wait() {
    let double = Double::new().with_topic("orders", 4);
    double.append(double.partition("orders", 0), &["a"]);
    let mut client = connect(&double);
    let mut request = fetch("orders", &[0, 9, -3, 0, 0]).with_min_bytes(1 << 20);
    request.topics[0].partitions[3].current_leader_epoch = 0;
    let started = Instant::now();
    let response = client.call(&request, 11).await;
    assert_eq!(started.elapsed().as_millis(), 0);
    assert_eq!(found(partition(&response, 0)), ["a"]);
    let out_of_range = partition(&response, 1);
    assert_eq!(out_of_range.error_code, 1);
    assert_eq!(
        (out_of_range.log_start_offset, out_of_range.high_watermark),
        (0, 0),
        "the bounds are named"
    );
    assert_eq!(partition(&response, 2).error_code, 1);
    assert_eq!(partition(&response, 3).error_code, 74);
    assert_eq!(partition(&response, 4).error_code, 3);

    let response = client.call(&fetch("../orders", &[0]), 11).await;
    assert_eq!(partition(&response, 0).error_code, 3);
    let response = client
        .call(
            &fetch("orders", &[0])
                .with_session_id(77)
                .with_session_epoch(1),
            11,
        )
        .await;
    assert_eq!(response.error_code, 70);
}

#[tokio::test]
async fn limits_hold_but_the_first_batch_always_comes() {
    let double = Double::new().with_topic("orders", 2);
    for index in 0..2 {
        double.append(double.partition("orders", index), &["a", "b", "c"]);
    }
    let size = super::batch(&["a"]).len() as i32;
    let mut client = connect(&double);
    for (max_bytes, partition_max_bytes, batches) in [
        (1, 1, 1),
        (0, 0, 1),
        (size + 1, 1 << 20, 1),
        (2 * size, 1 << 20, 2),
        (6 * size, size, 2),
        (4 * size, 1 << 20, 4),
    ] {
        let mut request = fetch("orders", &[0, 0]).with_max_bytes(max_bytes);
        for partition in &mut request.topics[0].partitions {
            partition.partition_max_bytes = partition_max_bytes;
        }
        let response = client.call(&request, 11).await;
        let count = found(partition(&response, 0)).len() + found(partition(&response, 1)).len();
        assert_eq!(count, batches, "{max_bytes} {partition_max_bytes}");
        for place in 0..2 {
            assert_eq!(partition(&response, place).high_watermark, 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_takes_no_more_is_not_held_back() {
    let double = Double::new().with_topic("orders", 2);
    for index in 0..2 {
        double.append(double.partition("orders", index), &["a"]);
    }
    let size = super::batch(&["a"]).len() as i32;
    let mut client = connect(&double);
    let request = fetch("orders", &[0, 0])
        .with_max_bytes(size + 1)
        .with_min_bytes(size + 1);
    let started = Instant::now();
    let response = client.call(&request, 11).await;
    assert_eq!(started.elapsed().as_millis(), 0);
    let count = found(partition(&response, 0)).len() + found(partition(&response, 1)).len();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn no_partition_starves_when_one_fills_the_response() {
    let double = Double::new().with_topic("orders", 3);
    for index in 0..3 {
        double.append(double.partition("orders", index), &["a", "b", "c"]);
    }
    let mut client = connect(&double);
    let request = fetch("orders", &[0, 0, 0]).with_max_bytes(1);
    let mut served = [0; 3];
    for _ in 0..6 {
        let response = client.call(&request, 11).await;
        for (place, count) in served.iter_mut().enumerate() {
            *count += found(partition(&response, place)).len();
        }
    }
    assert_eq!(served, [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn responses_that_nobody_reads_hold_a_bounded_amount_of_memory() {
    let double = Double::new().with_topic("orders", 1);
    let value = "z".repeat(200_000);
    double.append(double.partition("orders", 0), &[&value]);
    let mut config = Config::default();
    config.limits.response_memory_bytes = 500_000;
    let server = Server::new(Arc::clone(&double), config);
    let mut request = fetch("orders", &[0]);
    request.topics[0].partitions[0].partition_max_bytes = 250_000;
    // These two hold 400 KB that do not fit their pipes.
    let mut deaf = Vec::new();
    for _ in 0..2 {
        let mut client = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
        client.send(&request, 11).await;
        deaf.push(client);
    }
    while double.reads.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    let mut third = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
    let started = Instant::now();
    let response = third.call(&request, 11).await;
    assert_eq!(started.elapsed(), crate::kafka::limits::FETCH_MEMORY_WAIT);
    assert!(found(partition(&response, 0)).is_empty());
    for mut client in deaf {
        let (_, response) = client.receive::<FetchRequest>(11).await;
        assert_eq!(found(partition(&response, 0)).len(), 1);
    }
    let response = third.call(&request, 11).await;
    assert_eq!(found(partition(&response, 0)).len(), 1);
}

#[tokio::test]
async fn an_empty_fetch_is_answered_at_once() {
    let double = Double::new();
    let mut client = connect(&double);
    let response = client.call(&FetchRequest::default(), 11).await;
    assert!(response.responses.is_empty());
}

/// A fetch within a session: only what changes is named.
fn within(session: i32, epoch: i32, offsets: &[(i32, i64)]) -> FetchRequest {
    let all = fetch("orders", &[0; 3]);
    let mut topic = all.topics[0].clone();
    topic.partitions = offsets
        .iter()
        .map(|(index, offset)| {
            let place = *index as usize;
            all.topics[0].partitions[place]
                .clone()
                .with_fetch_offset(*offset)
        })
        .collect();
    let topics = if offsets.is_empty() {
        vec![]
    } else {
        vec![topic]
    };
    fetch("orders", &[])
        .with_max_wait_ms(0)
        .with_session_id(session)
        .with_session_epoch(epoch)
        .with_topics(topics)
}

fn told(response: &FetchResponse) -> Vec<(i32, Vec<String>)> {
    let topics = response.responses.iter();
    let partitions = topics.flat_map(|topic| &topic.partitions);
    partitions.map(|p| (p.partition_index, found(p))).collect()
}

#[tokio::test]
async fn a_session_is_told_only_what_is_new() {
    let double = Double::new().with_topic("orders", 3);
    let mut client = connect(&double);
    let first = within(0, 0, &[(0, 0), (1, 0), (2, 0)]);
    let response = client.call(&first, 11).await;
    let session = response.session_id;
    assert!(session > 0);
    assert_eq!(told(&response).len(), 3, "the first answer names them all");
    let response = client.call(&within(session, 1, &[]), 11).await;
    assert_eq!((response.error_code, response.session_id), (0, session));
    assert_eq!(told(&response), [], "nothing is new");
    double.append(double.partition("orders", 1), &["a"]);
    let response = client.call(&within(session, 2, &[]), 11).await;
    assert_eq!(told(&response), [(1, vec!["a".to_owned()])]);
    let response = client.call(&within(session, 3, &[(1, 1)]), 11).await;
    assert_eq!(told(&response), [], "it has read on");

    // A partition that is forgotten is not read.
    double.append(double.partition("orders", 0), &["b"]);
    let forgotten = kafka_protocol::messages::fetch_request::ForgottenTopic::default()
        .with_topic(super::client::name("orders"))
        .with_partitions(vec![0]);
    let request = within(session, 4, &[]).with_forgotten_topics_data(vec![forgotten]);
    assert_eq!(told(&client.call(&request, 11).await), []);

    // What cannot go on: another epoch, another way to name topics, another session, another connection.
    let wrong_epoch = client.call(&within(session, 9, &[]), 11).await;
    assert_eq!(wrong_epoch.error_code, 71);
    let by_id = client.call(&within(session, 5, &[]), 13).await;
    assert_eq!(by_id.error_code, 106);
    let other = client.call(&within(session ^ 1, 5, &[]), 11).await;
    assert_eq!(other.error_code, 70);
    let elsewhere = connect(&double).call(&within(session, 5, &[]), 11).await;
    assert_eq!(elsewhere.error_code, 70);
    // The session has come to no harm, until its client ends it.
    let response = client.call(&within(session, 5, &[]), 11).await;
    assert_eq!(response.error_code, 0);
    let response = client.call(&within(session, -1, &[(1, 0)]), 11).await;
    assert_eq!((response.session_id, told(&response).len()), (0, 1));
    let ended = client.call(&within(session, 6, &[]), 11).await;
    assert_eq!(ended.error_code, 70);
}

#[tokio::test]
async fn a_session_with_more_partitions_than_there_may_be_is_none() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    let mut request = within(0, 0, &[(0, 0)]);
    let asked = request.topics[0].partitions[0].clone();
    request.topics[0].partitions = (0..10_001)
        .map(|index| asked.clone().with_partition(index))
        .collect();
    let response = client.call(&request, 11).await;
    assert_eq!((response.error_code, response.session_id), (0, 0));
    assert_eq!(told(&response).len(), 10_001);
}

#[tokio::test]
async fn topics_are_named_by_their_ids_in_later_versions() {
    let double = Double::new().with_topic("orders", 1);
    double.append(double.partition("orders", 0), &["a"]);
    let mut client = connect(&double);
    let id = uuid::Uuid::from_u128(double.topic_id("orders").to_bits());
    for version in 13..=18 {
        let mut request = fetch("orders", &[0]);
        request.topics[0].topic_id = id;
        // A session goes by ids as well.
        let response = client.call(&request.with_session_epoch(0), version).await;
        assert_eq!(response.responses[0].topic_id, id);
        assert_eq!(found(partition(&response, 0)), ["a"], "version {version}");
        let next = within(response.session_id, 1, &[]);
        let response = client.call(&next, version).await;
        assert_eq!(told(&response), [(0, vec!["a".to_owned()])]);
        // A name says nothing here, and no topic has this id.
        let mut request = fetch("orders", &[0]);
        request.topics[0].topic_id = uuid::Uuid::from_u128(5);
        let response = client.call(&request, version).await;
        assert_eq!(partition(&response, 0).error_code, 100);
    }
}
