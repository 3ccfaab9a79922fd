use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BufMut;
use kafka_protocol::messages::{FetchRequest, MetadataRequest, ProduceRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::batch;
use super::client::{connect, connect_to, encode, fetch, peer, produce, run};
use super::double::{Double, node};
use crate::kafka::{Config, Ended, ListenerKind, Peer, Server, limits};
use crate::types::ListenerName;

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let double = Double::new();
    let mut client = connect(&double);
    client.call(&MetadataRequest::default(), 9).await;
    let started = Instant::now();
    assert_eq!(client.expect_closed().await, Ended::Idle);
    let idle = started.elapsed();
    assert!(
        idle >= limits::MAX_IDLE && idle <= limits::MAX_IDLE + Duration::from_secs(10),
        "{idle:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_for_its_answer_is_not_idle() {
    let double = Double::new().with_topic("orders", 1);
    let mut config = Config::default();
    config.limits.max_idle = Duration::from_secs(10);
    let mut client = connect_to(
        &Server::new(double, config),
        ListenerKind::Kafka(ListenerName::unnamed()),
    );
    let request = fetch("orders", &[0]).with_max_wait_ms(60_000);
    client.call(&request, 11).await;
    assert_eq!(client.expect_closed().await, Ended::Idle);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_not_admitted() {
    let mut config = Config::default();
    config.limits.max_connections = 2;
    let server = Server::new(Double::new(), config);
    let first = connect_to(&server, ListenerKind::Quic);
    let _second = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
    assert!(
        server
            .admit(peer(), ListenerKind::Kafka(ListenerName::unnamed()))
            .is_none()
    );
    assert_eq!(server.connection_count(), 2);
    // However many clients there are, nodes hear each other.
    let of_a_node = Peer {
        node: Some(node(2)),
        ..peer()
    };
    assert!(server.admit(of_a_node, ListenerKind::Quic).is_some());
    drop(first.stream);
    assert_eq!(first.server.await.unwrap(), Ended::ByClient);
    assert!(
        server
            .admit(peer(), ListenerKind::Kafka(ListenerName::unnamed()))
            .is_some()
    );
}

/// Ten thousand idle connections cost their futures and a read buffer each: not tens of kilobytes.
#[tokio::test]
async fn an_idle_connection_is_small() {
    let server = Server::new(Double::new(), Config::default());
    let (stream, _client) = tokio::io::duplex(16);
    let (reader, writer) = tokio::io::split(stream);
    let connection = server
        .admit(peer(), ListenerKind::Kafka(ListenerName::unnamed()))
        .unwrap();
    let future = connection.run(reader, writer, CancellationToken::new());
    let size = size_of_val(&future);
    assert!(size < 4_096, "{size}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_on_without_reading_is_not_read() {
    let double = Double::new().with_topic("orders", 1);
    double.holds_acks.store(true, Ordering::SeqCst);
    let mut config = Config::default();
    config.limits.max_outstanding_requests = 4;
    let mut client = connect_to(
        &Server::new(Arc::clone(&double), config),
        ListenerKind::Kafka(ListenerName::unnamed()),
    );
    for _ in 0..20 {
        client
            .send(&produce("orders", 0, batch(&["x"]), -1), 9)
            .await;
    }
    // The clock moves only when nothing else can: whatever was to be read is read.
    tokio::time::sleep(Duration::from_millis(500)).await;
    // One is being answered, four stand in the queue.
    assert_eq!(double.waiting.load(Ordering::SeqCst), 5);
    double.holds_acks.store(false, Ordering::SeqCst);
    double.commit();
    for _ in 0..20 {
        let (_, response) = client.receive::<ProduceRequest>(9).await;
        assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_closed() {
    let double = Double::new().with_topic("orders", 1);
    double.append(double.partition("orders", 0), &[&"z".repeat(200_000)]);
    let mut client = connect(&double);
    client.send(&fetch("orders", &[0]), 11).await;
    let started = Instant::now();
    assert_eq!((&mut client.server).await.unwrap(), Ended::Refused);
    assert_eq!(started.elapsed(), limits::WRITE_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_share_a_bounded_memory() {
    let double = Double::new().with_topic("orders", 1);
    double.holds_acks.store(true, Ordering::SeqCst);
    let mut config = Config::default();
    config.limits.produce_memory_bytes = 100_000;
    let server = Server::new(Arc::clone(&double), config);
    let request = produce("orders", 0, batch(&[&"m".repeat(40_000)]), -1);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
        client.send(&request, 9).await;
        clients.push(client);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Two fit. Of the others one may finish beyond the cap, once it has begun.
    let taken = double.waiting.load(Ordering::SeqCst);
    assert!((2..=3).contains(&taken), "{taken}");
    while clients.iter().any(|client| !client.server.is_finished())
        && double.waiting.load(Ordering::SeqCst) > 0
    {
        double.commit();
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for mut client in clients {
        let (_, response) = client.receive::<ProduceRequest>(9).await;
        assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn half_read_requests_do_not_wait_for_one_another_for_ever() {
    let double = Double::new().with_topic("orders", 1);
    let mut config = Config::default();
    config.limits.produce_memory_bytes = 100_000;
    let server = Server::new(Arc::clone(&double), config);
    let body = encode(
        &produce("orders", 0, batch(&[&"m".repeat(90_000)]), -1),
        9,
        1,
    );
    let mut frame = bytes::BytesMut::new();
    frame.put_u32(body.len() as u32);
    frame.put_slice(&body);
    let mut clients: Vec<_> = (0..4)
        .map(|_| connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed())))
        .collect();
    for client in &mut clients {
        client.stream.write_all(&frame[..50_000]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    for client in &mut clients {
        client.stream.write_all(&frame[50_000..]).await.unwrap();
    }
    for client in &mut clients {
        let received = client.receive::<ProduceRequest>(9);
        let (_, response) = timeout(Duration::from_secs(60), received).await.unwrap();
        assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
    }
}

/// Small on the wire, large once decoded: the elements count, too.
#[tokio::test(start_paused = true)]
async fn the_elements_of_requests_in_flight_count_for_memory() {
    let double = Double::new().with_topic("orders", 1);
    let mut config = Config::default();
    config.limits.control_memory_bytes = 100_000;
    let server = Server::new(Arc::clone(&double), config);
    let mut request = fetch("orders", &[0]);
    let partition = request.topics[0].partitions[0].clone();
    request.topics[0].partitions = vec![partition; 300];
    let mut first = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
    let mut second = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
    let mut third = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
    for client in [&mut first, &mut second, &mut third] {
        client.send(&request, 11).await;
    }
    let started = Instant::now();
    // Producers have a memory of their own.
    let mut producer = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
    producer
        .call(&produce("orders", 0, batch(&["x"]).slice(..9), 1), 9)
        .await;
    assert_eq!(started.elapsed().as_millis(), 0);
    // And so have nodes.
    let of_a_node = Peer {
        node: Some(node(2)),
        ..peer()
    };
    let mut of_a_node = run(server.admit(of_a_node, ListenerKind::Quic).unwrap());
    of_a_node.call(&MetadataRequest::default(), 9).await;
    assert_eq!(started.elapsed().as_millis(), 0);
    // The first fits, the second finishes beyond the cap, the third comes when one of them is over.
    first.receive::<FetchRequest>(11).await;
    second.receive::<FetchRequest>(11).await;
    assert_eq!(started.elapsed().as_millis(), 500);
    third.receive::<FetchRequest>(11).await;
    assert_eq!(started.elapsed().as_millis(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn descriptions_that_nobody_reads_hold_a_bounded_amount_of_memory() {
    let double = Double::new();
    for length in 1..200 {
        Arc::clone(&double).with_topic(&"n".repeat(length), 20);
    }
    let mut config = Config::default();
    config.limits.response_memory_bytes = 300_000;
    let server = Server::new(double, config);
    let all = MetadataRequest::default().with_topics(None);
    let mut deaf = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
    deaf.send(&all, 9).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut other = connect_to(&server, ListenerKind::Kafka(ListenerName::unnamed()));
    other.send(&all, 9).await;
    let waits = timeout(Duration::from_secs(1), other.stream.read_u32()).await;
    assert!(
        waits.is_err(),
        "its answer waits for the first one's memory"
    );
    let (_, response) = deaf.receive::<MetadataRequest>(9).await;
    assert_eq!(response.topics.len(), 199);
    let (_, response) = other.receive::<MetadataRequest>(9).await;
    assert_eq!(response.topics.len(), 199);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_node_finishes_the_request_that_it_has_in_hand() {
    let double = Double::new().with_topic("orders", 1);
    double.mailbox.forget_permits(1_000_000);
    let mut client = connect(&double);
    client
        .send(&produce("orders", 0, batch(&["x"]), -1), 9)
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    double.mailbox.add_permits(1);
    let (_, response) = client.receive::<ProduceRequest>(9).await;
    assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
    assert_eq!(client.expect_closed().await, Ended::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_node_answers_what_it_has_read() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    client.send(&fetch("orders", &[0]), 11).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.shutdown.cancel();
    client.receive::<FetchRequest>(11).await;
    assert_eq!(client.expect_closed().await, Ended::Shutdown);
}
