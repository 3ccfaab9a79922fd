//! A cluster of one node for tests: real QUIC over loopback, a scripted Kafka behind it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, CreateTopicsRequest, CreateTopicsResponse, FetchRequest,
    FetchResponse, InitProducerIdResponse, ListOffsetsRequest, ListOffsetsResponse,
    MetadataRequest, ProduceRequest, ProduceResponse, ProducerId, RequestHeader, ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};
use tokio::sync::{mpsc, watch};

use super::metadata::tests::response as metadata_response;
use super::{CLIENT_ALPN, Client, ClientConfig, EndpointDialer, lock};
use crate::record::{Batch, Batches, STAMP_LEN, stamped_prefix};
use crate::types::{ErrorCode, LeaderEpoch, Offset};

/// What the node does with the next produce request, instead of taking it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Refuse(ErrorCode),
    /// Never answers it, nor anything behind it.
    Silence,
    BreakStream,
    BreakConnection,
    /// Appends it, and then breaks the connection instead of answering.
    AppendAndBreak,
    /// Answers when [`FakeNode::release`] is called.
    Hold,
}

enum Reply {
    Now(Bytes),
    Held(Bytes),
    Nothing,
    BreakStream,
    BreakConnection,
}

#[derive(Default)]
pub(super) struct FakeState {
    /// By partition of the one topic, `t`: the stamped batches.
    pub(super) logs: Vec<Vec<Batch>>,
    pub(super) faults: VecDeque<Fault>,
    /// (producer, partition) to its next sequence number.
    sequences: HashMap<(i64, i32), i32>,
    pub(super) producer_ids: i64,
    pub(super) produce_requests: usize,
    pub(super) connections: usize,
    pub(super) topics_created: Vec<String>,
    /// Log starts, by partition.
    pub(super) log_start: i64,
    pub(super) fetch_faults: VecDeque<ErrorCode>,
    /// Offer only the oldest versions that the client speaks, and ApiVersions in version 0.
    pub(super) old: bool,
}

impl FakeState {
    pub(super) fn end(&self, partition: usize) -> i64 {
        self.logs[partition]
            .last()
            .map_or(0, |batch| batch.header.next_offset())
    }

    /// Every record's value, in order.
    pub(super) fn values(&self, partition: usize) -> Vec<String> {
        let mut values = Vec::new();
        for batch in &self.logs[partition] {
            for record in crate::record::records(batch).unwrap() {
                let value = record.unwrap().value.unwrap();
                values.push(String::from_utf8(value.to_vec()).unwrap());
            }
        }
        values
    }

    /// Checks sequence numbers as Kafka does, and appends.
    pub(super) fn append(&mut self, partition: i32, batch: &Batch) -> Result<i64, ErrorCode> {
        let base = self.end(partition as usize);
        if let Some(id) = batch.header.producer_id {
            let next = self.sequences.entry((id.get(), partition)).or_insert(0);
            if batch.header.base_sequence < *next {
                let found = self.logs[partition as usize].iter().find(|old| {
                    old.header.producer_id == Some(id)
                        && old.header.base_sequence == batch.header.base_sequence
                });
                return found
                    .map(|old| old.header.base_offset)
                    .ok_or(ErrorCode::DuplicateSequenceNumber);
            }
            if batch.header.base_sequence > *next {
                return Err(ErrorCode::OutOfOrderSequenceNumber);
            }
            *next += batch.header.record_count;
        }
        let offset = Offset::from_wire(base).unwrap();
        let prefix = stamped_prefix(batch, offset, LeaderEpoch::new(1).unwrap());
        let bytes: Bytes = [&prefix[..], &batch.bytes[STAMP_LEN..]].concat().into();
        self.logs[partition as usize].push(Batch::decode(&bytes).unwrap());
        Ok(base)
    }
}

pub(super) struct FakeNode {
    pub(super) address: String,
    pub(super) state: Arc<Mutex<FakeState>>,
    pub(super) endpoint: quinn::Endpoint,
    certificate: rustls_pki_types::CertificateDer<'static>,
    released: watch::Sender<bool>,
    /// The number of produce requests so far, to wait for.
    pub(super) produced: watch::Receiver<usize>,
}

impl FakeNode {
    pub(super) fn start(partitions: usize) -> FakeNode {
        let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = key.cert.der().clone();
        let private = rustls_pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], private.into())
            .unwrap();
        tls.alpn_protocols = vec![CLIENT_ALPN.to_vec()];
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(FakeState {
            logs: vec![Vec::new(); partitions],
            ..FakeState::default()
        }));
        let (released, release) = watch::channel(false);
        let (count, produced) = watch::channel(0);
        tokio::spawn(accept(
            endpoint.clone(),
            Node {
                address: address.clone(),
                state: state.clone(),
                release,
                count: Arc::new(count),
            },
        ));
        FakeNode {
            address,
            state,
            endpoint,
            certificate,
            released,
            produced,
        }
    }

    /// Answers what was held, and holds nothing from now on.
    pub(super) fn release(&self) {
        self.released.send_replace(true);
    }

    pub(super) fn faults(&self, faults: &[Fault]) {
        lock(&self.state).faults.extend(faults);
    }

    /// A dialler that trusts this node.
    pub(super) fn dialer(&self) -> Arc<EndpointDialer> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        dialer(roots)
    }

    pub(super) fn config(&self) -> ClientConfig {
        ClientConfig::new([self.address.clone()])
    }

    pub(super) async fn client(&self) -> Client {
        Client::connect(self.config(), self.dialer()).await.unwrap()
    }
}

/// A dialler that trusts what these roots have signed.
pub(super) fn dialer(roots: rustls::RootCertStore) -> Arc<EndpointDialer> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![CLIENT_ALPN.to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    Arc::new(EndpointDialer::new(
        endpoint,
        quinn::ClientConfig::new(Arc::new(tls)),
    ))
}

#[derive(Clone)]
struct Node {
    address: String,
    state: Arc<Mutex<FakeState>>,
    release: watch::Receiver<bool>,
    count: Arc<watch::Sender<usize>>,
}

async fn accept(endpoint: quinn::Endpoint, node: Node) {
    while let Some(incoming) = endpoint.accept().await {
        let node = node.clone();
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            lock(&node.state).connections += 1;
            while let Ok((send, receive)) = connection.accept_bi().await {
                let (replies, queue) = mpsc::unbounded_channel();
                tokio::spawn(answer(
                    connection.clone(),
                    send,
                    queue,
                    node.release.clone(),
                ));
                tokio::spawn(serve(node.clone(), receive, replies));
            }
        });
    }
}

async fn serve(node: Node, mut receive: quinn::RecvStream, replies: mpsc::UnboundedSender<Reply>) {
    loop {
        let mut length = [0; 4];
        if receive.read_exact(&mut length).await.is_err() {
            return;
        }
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        if receive.read_exact(&mut frame).await.is_err() {
            return;
        }
        let reply = node.handle(frame.into());
        if replies.send(reply).is_err() {
            return;
        }
    }
}

async fn answer(
    connection: quinn::Connection,
    mut send: quinn::SendStream,
    mut queue: mpsc::UnboundedReceiver<Reply>,
    mut release: watch::Receiver<bool>,
) {
    while let Some(reply) = queue.recv().await {
        let bytes = match reply {
            Reply::Now(bytes) => bytes,
            Reply::Held(bytes) => {
                let _ = release.wait_for(|released| *released).await;
                bytes
            }
            Reply::Nothing => std::future::pending().await,
            Reply::BreakStream => {
                let _ = send.reset(7u32.into());
                return;
            }
            Reply::BreakConnection => {
                connection.close(1u32.into(), b"test");
                return;
            }
        };
        if send.write_chunk(bytes).await.is_err() {
            return;
        }
    }
}

fn encode<T: Encodable + HeaderVersion>(correlation: i32, response: &T, version: i16) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i32(0);
    ResponseHeader::default()
        .with_correlation_id(correlation)
        .encode(&mut out, T::header_version(version))
        .unwrap();
    response.encode(&mut out, version).unwrap();
    let length = (out.len() - 4) as i32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

impl Node {
    fn handle(&self, mut frame: Bytes) -> Reply {
        let mut peek = frame.clone();
        let key = ApiKey::try_from(peek.get_i16()).unwrap();
        let version = peek.get_i16();
        let header =
            RequestHeader::decode(&mut frame, key.request_header_version(version)).unwrap();
        let id = header.correlation_id;
        let mut state = lock(&self.state);
        match key {
            ApiKey::ApiVersions => {
                let old = state.old;
                let api = |key: ApiKey, min, max| {
                    ApiVersion::default()
                        .with_api_key(key as i16)
                        .with_min_version(min)
                        .with_max_version(if old { min } else { max })
                };
                let mut response = ApiVersionsResponse::default().with_api_keys(vec![
                    api(ApiKey::Produce, 3, 9),
                    api(ApiKey::Fetch, 4, 12),
                    api(ApiKey::ListOffsets, 1, 7),
                    api(ApiKey::Metadata, 4, 12),
                    api(ApiKey::InitProducerId, 0, 4),
                    api(ApiKey::CreateTopics, 4, 7),
                ]);
                if old && version > 0 {
                    response.error_code = ErrorCode::UnsupportedVersion.code();
                    return Reply::Now(encode(id, &response, 0));
                }
                Reply::Now(encode(id, &response, version))
            }
            ApiKey::Metadata => {
                let request = MetadataRequest::decode(&mut frame, version).unwrap();
                let leaders = vec![(1, 1); state.logs.len()];
                let mut response = metadata_response(&[&self.address], "t", &leaders);
                if let Some(topics) = request.topics {
                    let known = response.topics[0].clone();
                    response.topics = topics
                        .into_iter()
                        .map(|asked| {
                            let name = asked.name.unwrap();
                            let mut topic = known.clone().with_name(Some(name.clone()));
                            if name.0.as_str() != "t" {
                                topic.error_code = ErrorCode::UnknownTopicOrPartition.code();
                                topic.partitions.clear();
                            }
                            topic
                        })
                        .collect();
                }
                Reply::Now(encode(id, &response, version))
            }
            ApiKey::InitProducerId => {
                state.producer_ids += 1;
                let response = InitProducerIdResponse::default()
                    .with_producer_id(ProducerId(1000 + state.producer_ids))
                    .with_producer_epoch(0);
                Reply::Now(encode(id, &response, version))
            }
            ApiKey::Produce => {
                let request = ProduceRequest::decode(&mut frame, version).unwrap();
                state.produce_requests += 1;
                self.count.send_replace(state.produce_requests);
                let fault = state.faults.pop_front();
                match fault {
                    Some(Fault::Silence) => return Reply::Nothing,
                    Some(Fault::BreakStream) => return Reply::BreakStream,
                    Some(Fault::BreakConnection) => return Reply::BreakConnection,
                    _ => {}
                }
                let mut response = ProduceResponse::default();
                for topic in &request.topic_data {
                    let mut result = TopicProduceResponse::default().with_name(topic.name.clone());
                    for partition in &topic.partition_data {
                        let appended = match fault {
                            Some(Fault::Refuse(code)) => Err(code),
                            _ => Batches::new(partition.records.clone().unwrap())
                                .map(|batch| {
                                    let batch = batch.unwrap();
                                    batch.verify_crc().unwrap();
                                    state.append(partition.index, &batch)
                                })
                                .next()
                                .unwrap(),
                        };
                        result.partition_responses.push(
                            PartitionProduceResponse::default()
                                .with_index(partition.index)
                                .with_error_code(appended.err().map_or(0, ErrorCode::code))
                                .with_base_offset(appended.unwrap_or(-1)),
                        );
                    }
                    response.responses.push(result);
                }
                let bytes = encode(id, &response, version);
                match fault {
                    Some(Fault::AppendAndBreak) => Reply::BreakConnection,
                    Some(Fault::Hold) => Reply::Held(bytes),
                    _ if request.acks == 0 => Reply::Now(Bytes::new()),
                    _ => Reply::Now(bytes),
                }
            }
            ApiKey::Fetch => {
                let request = FetchRequest::decode(&mut frame, version).unwrap();
                let fault = state.fetch_faults.pop_front();
                let mut response = FetchResponse::default();
                for topic in &request.topics {
                    let mut result =
                        FetchableTopicResponse::default().with_topic(topic.topic.clone());
                    for asked in &topic.partitions {
                        let end = state.end(asked.partition as usize);
                        let in_range = (state.log_start..=end).contains(&asked.fetch_offset);
                        let error = match fault {
                            Some(code) => Some(code),
                            None if !in_range => Some(ErrorCode::OffsetOutOfRange),
                            None => None,
                        };
                        let mut records = BytesMut::new();
                        for batch in &state.logs[asked.partition as usize] {
                            if error.is_none()
                                && batch.header.next_offset() > asked.fetch_offset
                                && (records.is_empty()
                                    || records.len() + batch.bytes.len()
                                        <= asked.partition_max_bytes as usize)
                            {
                                records.extend_from_slice(&batch.bytes);
                            }
                        }
                        result.partitions.push(
                            PartitionData::default()
                                .with_partition_index(asked.partition)
                                .with_error_code(error.map_or(0, ErrorCode::code))
                                .with_high_watermark(if error.is_some() { -1 } else { end })
                                .with_records(Some(records.freeze())),
                        );
                    }
                    response.responses.push(result);
                }
                Reply::Now(encode(id, &response, version))
            }
            ApiKey::ListOffsets => {
                let request = ListOffsetsRequest::decode(&mut frame, version).unwrap();
                let mut response = ListOffsetsResponse::default();
                for topic in &request.topics {
                    let partitions = topic.partitions.iter().map(|asked| {
                        let end = state.end(asked.partition_index as usize);
                        let offset = match asked.timestamp {
                            -2 => state.log_start,
                            -1 => end,
                            timestamp => state.logs[asked.partition_index as usize]
                                .iter()
                                .find(|batch| batch.header.max_timestamp >= timestamp)
                                .map_or(-1, |batch| batch.header.base_offset),
                        };
                        ListOffsetsPartitionResponse::default()
                            .with_partition_index(asked.partition_index)
                            .with_offset(offset)
                    });
                    response.topics.push(
                        ListOffsetsTopicResponse::default()
                            .with_name(topic.name.clone())
                            .with_partitions(partitions.collect()),
                    );
                }
                Reply::Now(encode(id, &response, version))
            }
            ApiKey::CreateTopics => {
                let request = CreateTopicsRequest::decode(&mut frame, version).unwrap();
                let mut response = CreateTopicsResponse::default();
                for topic in &request.topics {
                    let name = topic.name.0.to_string();
                    let exists = state.topics_created.contains(&name);
                    let error = exists.then_some(ErrorCode::TopicAlreadyExists);
                    response.topics.push(
                        CreatableTopicResult::default()
                            .with_name(topic.name.clone())
                            .with_error_code(error.map_or(0, ErrorCode::code)),
                    );
                    state.topics_created.push(name);
                }
                Reply::Now(encode(id, &response, version))
            }
            other => panic!("{other:?} is not scripted"),
        }
    }
}
