use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::{ApiVersionsRequest, MetadataRequest, ProduceRequest};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::batch;
use super::client::{Client, connect, encode, produce};
use super::double::Double;
use crate::kafka::{Ended, limits};

fn client() -> Client {
    connect(&Double::new().with_topic("orders", 1))
}

/// A request of a kind and version with a body of the test's own.
fn raw(api_key: i16, version: i16, body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_i16(api_key);
    out.put_i16(version);
    out.put_i32(5);
    out.put_i16(-1);
    out.put_slice(body);
    out
}

#[tokio::test]
async fn api_versions_of_an_unknown_version_is_answered_in_version_0() {
    let mut client = client();
    client.send_frame(&raw(18, 99, &[])).await;
    let (correlation_id, response) = client.receive::<ApiVersionsRequest>(0).await;
    assert_eq!(correlation_id, 5);
    assert_eq!(response.error_code, 35);
    assert!(!response.api_keys.is_empty());
    // The connection is as good as before.
    let response = client.call(&ApiVersionsRequest::default(), 3).await;
    assert_eq!(response.error_code, 0);
}

#[tokio::test]
async fn what_is_not_served_closes_the_connection() {
    for (api_key, version) in [
        (68, 0),
        (-1, 0),
        (999, 3),
        // Produce 2 is advertised for the sake of old clients' feature checks, and not served.
        (0, 2),
        (0, 14),
        (1, 3),
        (1, 19),
        (3, 14),
        (3, -1),
    ] {
        let mut client = client();
        client.send_frame(&raw(api_key, version, &[0; 64])).await;
        assert_eq!(
            client.expect_closed().await,
            Ended::Refused,
            "{api_key} {version}"
        );
    }
}

#[tokio::test]
async fn malformed_requests_close_the_connection() {
    let i32_max = i32::MAX.to_be_bytes();
    for (what, frame) in [
        ("two billion topics", raw(3, 1, &i32_max)),
        (
            "four billion topics",
            raw(3, 9, &[0, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ),
        (
            "a produce of two billion topics",
            raw(
                0,
                3,
                &[&[0xff, 0xff, 0, 1, 0, 0, 0, 1][..], &i32_max].concat(),
            ),
        ),
        ("half a count", raw(3, 1, &[0, 0])),
        (
            "a name longer than the rest",
            raw(3, 1, &[0, 0, 0, 1, 0x7f, 0xff]),
        ),
        ("a negative name", raw(3, 1, &[0, 0, 0, 1, 0xff, 0xfe])),
        ("a negative count", raw(3, 1, &[0xff, 0xff, 0xff, 0xfe])),
        (
            "a name that is no UTF-8",
            raw(3, 1, &[0, 0, 0, 1, 0, 1, 0xff]),
        ),
        (
            "a client id longer than the rest",
            raw(3, 1, &[])[..8].into(),
        ),
        (
            "a billion tagged fields",
            raw(3, 9, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ),
    ] {
        let mut client = client();
        client.send_frame(&frame).await;
        assert_eq!(client.expect_closed().await, Ended::Refused, "{what}");
    }
}

/// What the log has said, as lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_has_one_line_with_the_peer_for_each_connection_that_is_refused() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let frames: [(&[u8], &str); 4] = [
        (&[0xff; 12], "TLS or HTTP"),
        (&[0, 0, 0, 40, 0, 3, 0, 9], "4 of its 40 bytes"),
        (
            &[0, 0, 0, 10, 0, 30, 0, 0, 0, 0, 0, 1, 0xff, 0xff],
            "API key 30",
        ),
        (
            &[
                0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff,
            ],
            "2147483647 elements",
        ),
    ];
    for (frame, expected) in frames {
        let mut client = client();
        client.stream.write_all(frame).await.unwrap();
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.expect_closed().await, Ended::Refused);
        let said = std::mem::take(&mut *lines.0.lock().unwrap());
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("192.0.2.1:5000"), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn impossible_sizes_close_the_connection_at_once() {
    let produce_header = [0, 0, 0, 9, 0, 0, 0, 1];
    let metadata_header = [0, 3, 0, 9, 0, 0, 0, 1];
    for (size, header) in [
        (0, produce_header),
        (7, produce_header),
        (u32::MAX, produce_header),
        (i32::MAX as u32, produce_header),
        (limits::MAX_REQUEST_BYTES as u32 + 1, produce_header),
        (
            limits::MAX_CONTROL_REQUEST_BYTES as u32 + 1,
            metadata_header,
        ),
        // A TLS greeting, an HTTP request.
        (0x1603_0100, produce_header),
        (u32::from_be_bytes(*b"GET "), produce_header),
    ] {
        let mut client = client();
        let mut frame = BytesMut::new();
        frame.put_u32(size);
        frame.put_slice(&header);
        client.stream.write_all(&frame).await.unwrap();
        assert_eq!(client.expect_closed().await, Ended::Refused, "{size}");
    }
}

#[tokio::test]
async fn a_request_in_single_bytes_is_a_request() {
    let mut client = client();
    let request = produce("orders", 0, batch(&["x"]), -1);
    let mut frame = BytesMut::new();
    let body = encode(&request, 9, 6);
    frame.put_u32(body.len() as u32);
    frame.put_slice(&body);
    frame.put_slice(&frame.clone());
    for byte in frame {
        client.stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    for offset in 0..2 {
        let (_, response) = client.receive::<ProduceRequest>(9).await;
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (0, offset));
    }
}

#[tokio::test]
async fn a_request_cut_in_the_middle_appends_nothing() {
    let double = Double::new().with_topic("orders", 1);
    let request = produce("orders", 0, batch(&["x"]), -1);
    let body = encode(&request, 9, 6);
    let mut frame = BytesMut::new();
    frame.put_u32(body.len() as u32);
    frame.put_slice(&body);
    for cut in 1..frame.len() {
        let mut client = connect(&double);
        client.stream.write_all(&frame[..cut]).await.unwrap();
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.expect_closed().await, Ended::Refused, "cut at {cut}");
    }
    let mut client = connect(&double);
    let response = client.call(&request, 9).await;
    assert_eq!(response.responses[0].partition_responses[0].base_offset, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_ends_has_a_deadline() {
    let mut client = client();
    client.stream.write_all(&[0, 0, 1]).await.unwrap();
    let started = Instant::now();
    assert_eq!(client.expect_closed().await, Ended::Refused);
    assert_eq!(started.elapsed(), limits::REQUEST_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_drips_has_a_deadline_too() {
    let mut client = client();
    let mut header = BytesMut::new();
    header.put_u32(1 << 20);
    header.put_slice(&raw(0, 9, &[]));
    client.stream.write_all(&header).await.unwrap();
    let started = Instant::now();
    while client.stream.write_all(&[0]).await.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(started.elapsed() < 2 * limits::REQUEST_DEADLINE);
    }
    assert_eq!(client.server.await.unwrap(), Ended::Refused);
}

#[tokio::test(start_paused = true)]
async fn a_slow_but_steady_request_arrives() {
    let mut client = client();
    let large = "l".repeat(1_000_000);
    let request = produce("orders", 0, batch(&[&large]), -1).with_timeout_ms(1);
    let body = encode(&request, 9, 6);
    client.stream.write_u32(body.len() as u32).await.unwrap();
    let started = Instant::now();
    // Slower than the first deadline, faster than the slowest pace allowed.
    for piece in body.chunks(20_000) {
        client.stream.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(started.elapsed() > limits::REQUEST_DEADLINE);
    let (_, response) = client.receive::<ProduceRequest>(9).await;
    assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
}

#[tokio::test]
async fn what_was_asked_before_the_client_left_is_answered() {
    let mut client = client();
    client.send(&MetadataRequest::default(), 9).await;
    client.stream.shutdown().await.unwrap();
    client.receive::<MetadataRequest>(9).await;
    assert_eq!(client.expect_closed().await, Ended::ByClient);
}
