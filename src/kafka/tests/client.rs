//! A Kafka client that does exactly what it is told.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, FetchRequest, ProduceRequest, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::double::Double;
use crate::kafka::{Config, Connection, Ended, ListenerKind, Login, Peer, Server};
use crate::types::{ListenerName, NodeId};

/// Bytes that each direction of the connection holds before a writer must wait.
const PIPE_BYTES: usize = 64 << 10;

pub(super) struct Client {
    pub(super) stream: DuplexStream,
    pub(super) server: JoinHandle<Ended>,
    pub(super) shutdown: CancellationToken,
    next_correlation_id: i32,
}

pub(super) fn peer() -> Peer {
    Peer {
        address: "192.0.2.1:5000".parse().unwrap(),
        name: None,
        node: None,
    }
}

/// A connection to a node with the default configuration.
pub(super) fn connect(double: &Arc<Double>) -> Client {
    connect_to(
        &Server::new(Arc::clone(double), Config::default()),
        ListenerKind::Kafka(ListenerName::unnamed()),
    )
}

/// A connection of another node of the cluster.
pub(super) fn connect_node(double: &Arc<Double>, node: NodeId) -> Client {
    let server = Server::new(Arc::clone(double), Config::default());
    let peer = Peer {
        node: Some(node),
        ..peer()
    };
    run(server.admit(peer, ListenerKind::Quic).unwrap())
}

pub(super) fn connect_to(server: &Arc<Server<Double>>, listener: ListenerKind) -> Client {
    run(server.admit(peer(), listener).unwrap())
}

/// A connection that wants a login, of a client with or without a certificate.
pub(super) fn connect_as(
    server: &Arc<Server<Double>>,
    certificate: Option<&str>,
    login: Login,
) -> Client {
    let connection = server
        .admit(peer(), ListenerKind::Kafka(ListenerName::unnamed()))
        .unwrap();
    let connection = connection.wants(login);
    run(match certificate {
        Some(name) => connection.is_known_as(name.into()),
        None => connection,
    })
}

pub(super) fn run(connection: Connection<Double>) -> Client {
    let (stream, other) = tokio::io::duplex(PIPE_BYTES);
    let (reader, writer) = tokio::io::split(other);
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(connection.run(reader, writer, shutdown.clone()));
    Client {
        stream,
        server,
        shutdown,
        next_correlation_id: 100,
    }
}

/// A request as it goes on the wire, without its length.
pub(super) fn encode<R: Request>(request: &R, version: i16, correlation_id: i32) -> BytesMut {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(StrBytes::from_static_str("a test")));
    let mut out = BytesMut::new();
    header.encode(&mut out, R::header_version(version)).unwrap();
    request.encode(&mut out, version).unwrap();
    out
}

impl Client {
    /// Sends a request; returns its correlation id.
    pub(super) async fn send<R: Request>(&mut self, request: &R, version: i16) -> i32 {
        self.next_correlation_id += 1;
        let body = encode(request, version, self.next_correlation_id);
        self.send_frame(&body).await;
        self.next_correlation_id
    }

    pub(super) async fn send_frame(&mut self, body: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_u32(body.len() as u32);
        frame.put_slice(body);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The next response without its length.
    pub(super) async fn receive_frame(&mut self) -> Bytes {
        let length = self.stream.read_u32().await.unwrap() as usize;
        let mut frame = vec![0; length];
        self.stream.read_exact(&mut frame).await.unwrap();
        frame.into()
    }

    pub(super) async fn receive<R: Request>(&mut self, version: i16) -> (i32, R::Response) {
        let mut frame = self.receive_frame().await;
        let header_version = R::Response::header_version(version);
        let header = ResponseHeader::decode(&mut frame, header_version).unwrap();
        let response = R::Response::decode(&mut frame, version).unwrap();
        assert!(!frame.has_remaining(), "{frame:?} is left over");
        (header.correlation_id, response)
    }

    pub(super) async fn call<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        let sent = self.send(request, version).await;
        let (correlation_id, response) = self.receive::<R>(version).await;
        assert_eq!(correlation_id, sent, "{:?}", ApiKey::try_from(R::KEY));
        response
    }

    /// Nothing more comes: the server has closed the connection.
    pub(super) async fn expect_closed(mut self) -> Ended {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{rest:?}");
        self.server.await.unwrap()
    }
}

pub(super) fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

/// A produce to one partition.
pub(super) fn produce(topic: &str, index: i32, records: Bytes, acks: i16) -> ProduceRequest {
    ProduceRequest::default()
        .with_acks(acks)
        .with_timeout_ms(1_000)
        .with_topic_data(vec![
            TopicProduceData::default()
                .with_name(name(topic))
                .with_partition_data(vec![
                    PartitionProduceData::default()
                        .with_index(index)
                        .with_records(Some(records)),
                ]),
        ])
}

/// A fetch from partitions 0, 1, … of one topic, from the offsets given.
pub(super) fn fetch(topic: &str, offsets: &[i64]) -> FetchRequest {
    let partitions = (0..).zip(offsets).map(|(index, offset)| {
        FetchPartition::default()
            .with_partition(index)
            .with_current_leader_epoch(-1)
            .with_fetch_offset(*offset)
            .with_partition_max_bytes(1 << 20)
    });
    FetchRequest::default()
        .with_max_wait_ms(500)
        .with_min_bytes(1)
        .with_max_bytes(50 << 20)
        .with_session_epoch(-1)
        .with_topics(vec![
            FetchTopic::default()
                .with_topic(name(topic))
                .with_partitions(partitions.collect()),
        ])
}
