//! A Kafka client over plaintext TCP that does exactly what it is told.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    FetchRequest, ProduceRequest, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use quorate::record::{BatchBuilder, Compression};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PATIENCE;

pub const PRODUCE_VERSION: i16 = 9;
pub const FETCH_VERSION: i16 = 11;

pub struct Kafka {
    pub stream: TcpStream,
    next_correlation_id: i32,
}

/// A request as it goes on the wire, without its length.
pub fn encode<R: Request>(request: &R, version: i16, correlation_id: i32) -> BytesMut {
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

impl Kafka {
    pub async fn connect(address: SocketAddr) -> Kafka {
        Kafka::try_connect(address).await.unwrap()
    }

    pub async fn try_connect(address: SocketAddr) -> io::Result<Kafka> {
        Ok(Kafka {
            stream: TcpStream::connect(address).await?,
            next_correlation_id: 1,
        })
    }

    /// Sends a request and waits for its response.
    pub async fn call<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        tokio::time::timeout(PATIENCE, self.try_call(request, version))
            .await
            .expect("a response in time")
            .unwrap()
    }

    /// Likewise, for as long as the caller waits. After an error the connection is good for nothing.
    pub async fn try_call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
    ) -> io::Result<R::Response> {
        self.next_correlation_id += 1;
        let body = encode(request, version, self.next_correlation_id);
        let mut frame = BytesMut::new();
        frame.put_u32(u32::try_from(body.len()).unwrap());
        frame.put_slice(&body);
        self.stream.write_all(&frame).await?;
        let mut answer = self.frame().await?;
        let header_version = R::Response::header_version(version);
        let header = ResponseHeader::decode(&mut answer, header_version).unwrap();
        assert_eq!(header.correlation_id, self.next_correlation_id);
        let response = R::Response::decode(&mut answer, version).unwrap();
        assert!(!answer.has_remaining());
        Ok(response)
    }

    async fn frame(&mut self) -> io::Result<Bytes> {
        let length = self.stream.read_u32().await? as usize;
        let mut frame = vec![0; length];
        self.stream.read_exact(&mut frame).await?;
        Ok(frame.into())
    }

    /// Produces to one partition; the error code and base offset of the answer.
    pub async fn produce(
        &mut self,
        topic: &str,
        index: i32,
        records: Bytes,
        acks: i16,
        timeout: Duration,
    ) -> (i16, i64) {
        let request = ProduceRequest::default()
            .with_acks(acks)
            .with_timeout_ms(i32::try_from(timeout.as_millis()).unwrap())
            .with_topic_data(vec![
                TopicProduceData::default()
                    .with_name(name(topic))
                    .with_partition_data(vec![
                        PartitionProduceData::default()
                            .with_index(index)
                            .with_records(Some(records)),
                    ]),
            ]);
        let response = self.call(&request, PRODUCE_VERSION).await;
        let answer = &response.responses[0].partition_responses[0];
        (answer.error_code, answer.base_offset)
    }

    /// Fetches from one partition; the error code, the high watermark and the records.
    pub async fn fetch(&mut self, topic: &str, index: i32, offset: i64) -> (i16, i64, Bytes) {
        let request = FetchRequest::default()
            .with_max_wait_ms(100)
            .with_min_bytes(1)
            .with_max_bytes(8 << 20)
            .with_session_epoch(-1)
            .with_topics(vec![
                FetchTopic::default()
                    .with_topic(name(topic))
                    .with_partitions(vec![
                        FetchPartition::default()
                            .with_partition(index)
                            .with_current_leader_epoch(-1)
                            .with_fetch_offset(offset)
                            .with_partition_max_bytes(1 << 20),
                    ]),
            ]);
        let response = self.call(&request, FETCH_VERSION).await;
        let answer = &response.responses[0].partitions[0];
        let records = answer.records.clone().unwrap_or_default();
        (answer.error_code, answer.high_watermark, records)
    }

    /// Waits until the node closes the connection; whatever it sends before is thrown away.
    pub async fn until_closed(mut self) {
        let mut rest = [0; 4096];
        let closed = async {
            // A reset is as good as an end.
            while let Ok(read) = self.stream.read(&mut rest).await {
                if read == 0 {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, closed)
            .await
            .expect("the node closes the connection");
    }
}

pub fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

/// One batch of records with these values.
pub fn batch(values: &[&[u8]]) -> Bytes {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder.append(None, Some(value), &[], 1_000).unwrap();
    }
    builder.seal(Compression::None).unwrap().stamp(None)
}
