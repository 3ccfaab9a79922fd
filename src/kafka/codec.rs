//! From bytes to requests, and from responses to bytes.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, AlterConfigsRequest,
    AlterUserScramCredentialsRequest, ApiKey, ApiVersionsRequest, ConsumerGroupDescribeRequest,
    ConsumerGroupHeartbeatRequest, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteGroupsRequest, DeleteRecordsRequest, DeleteTopicsRequest, DescribeClientQuotasRequest,
    DescribeClusterRequest, DescribeConfigsRequest, DescribeGroupsRequest,
    DescribeProducersRequest, DescribeTransactionsRequest, DescribeUserScramCredentialsRequest,
    EndTxnRequest, FetchRequest, FindCoordinatorRequest, HeartbeatRequest,
    IncrementalAlterConfigsRequest, InitProducerIdRequest, JoinGroupRequest, LeaveGroupRequest,
    ListGroupsRequest, ListOffsetsRequest, ListTransactionsRequest, MetadataRequest,
    OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest,
    ProduceRequest, SaslAuthenticateRequest, SaslHandshakeRequest, SyncGroupRequest,
    TxnOffsetCommitRequest, WriteTxnMarkersRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use thiserror::Error;

use super::preflight::{self, Malformed};
use super::schema;
use super::versions::{self, ServedApi};

/// A request whose header has been read.
#[derive(Debug)]
pub(super) struct RawRequest {
    pub(super) api: ServedApi,
    pub(super) version: i16,
    pub(super) correlation_id: i32,
    /// How many structures decoding it makes.
    pub(super) elements: usize,
    /// What the client calls itself: anything, or nothing.
    client_id: Bytes,
    /// What follows the header.
    body: Bytes,
}

/// Why a request is not answered; its connection is closed, because what follows cannot be trusted, or not answered in
/// a form that the client expects.
#[derive(Debug, Error)]
pub(super) enum BadRequest {
    #[error("a request with API key {key}, version {version}, which is not served")]
    UnknownApi { key: i16, version: i16 },
    #[error(
        "a {key:?} request of version {version}; versions {min} to {max} are served: use another version of the client"
    )]
    UnsupportedVersion {
        key: ApiKey,
        version: i16,
        min: i16,
        max: i16,
    },
    #[error("a malformed request header: {0}")]
    Header(Malformed),
    #[error("a malformed {key:?} request of version {version}: {reason}")]
    Body {
        key: ApiKey,
        version: i16,
        reason: String,
    },
    #[error("the answer to a {key:?} request of version {version} cannot be encoded: {reason}")]
    Response {
        key: ApiKey,
        version: i16,
        reason: String,
    },
}

/// What a request's header says.
pub(super) enum Header {
    Request(RawRequest),
    /// An ApiVersions request of a version that is not served. It is answered in version 0, which every client reads.
    UnknownApiVersions {
        correlation_id: i32,
    },
}

/// Reads a request's header. Of the rest only that it fits its schema is checked, which bounds what
/// [`RawRequest::decode`] allocates.
pub(super) fn read_header(frame: Bytes) -> Result<Header, BadRequest> {
    let Some((fixed, mut rest)) = frame.split_first_chunk::<8>() else {
        return Err(BadRequest::Header(Malformed::CutShort {
            wanted: 8,
            remaining: frame.len(),
        }));
    };
    let [k0, k1, v0, v1, c @ ..] = *fixed;
    let key = i16::from_be_bytes([k0, k1]);
    let version = i16::from_be_bytes([v0, v1]);
    let correlation_id = i32::from_be_bytes(c);
    let Some(api) = versions::served(key) else {
        return Err(BadRequest::UnknownApi { key, version });
    };
    if !(api.min..=api.max).contains(&version) {
        if api.key == ApiKey::ApiVersions {
            return Ok(Header::UnknownApiVersions { correlation_id });
        }
        return Err(BadRequest::UnsupportedVersion {
            key: api.key,
            version,
            min: api.min,
            max: api.max,
        });
    }
    // The client id has a two-byte length in every version of the header, as the old versions of every request do.
    let (client_id, behind) = split_client_id(rest).map_err(BadRequest::Header)?;
    let client_id = frame.slice_ref(client_id);
    rest = behind;
    if api.key.request_header_version(version) >= 2 {
        rest = preflight::skip_tags(rest).map_err(BadRequest::Header)?;
    }
    let body = frame.slice(frame.len() - rest.len()..);
    // Every request that is served has a schema: a test says so.
    let Some(schema) = schema::of(api.key) else {
        return Err(BadRequest::UnknownApi { key, version });
    };
    let extent = preflight::check(schema, version, &body).map_err(|error| BadRequest::Body {
        key: api.key,
        version,
        reason: error.to_string(),
    })?;
    Ok(Header::Request(RawRequest {
        api,
        version,
        correlation_id,
        elements: extent.elements,
        client_id,
        body,
    }))
}

/// The client id and what follows it.
fn split_client_id(input: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let Some((length, rest)) = input.split_first_chunk() else {
        return Err(Malformed::CutShort {
            wanted: 2,
            remaining: input.len(),
        });
    };
    let length = match i16::from_be_bytes(*length) {
        -1 => 0,
        length => usize::try_from(length).map_err(|_| Malformed::NegativeLength(length.into()))?,
    };
    rest.split_at_checked(length).ok_or(Malformed::CutShort {
        wanted: length,
        remaining: rest.len(),
    })
}

impl RawRequest {
    /// Decodes the body.
    pub(super) fn decode<R: Decodable>(&self) -> Result<R, BadRequest> {
        R::decode(&mut self.body.clone(), self.version).map_err(|error| BadRequest::Body {
            key: self.api.key,
            version: self.version,
            reason: error.to_string(),
        })
    }

    /// What the client calls itself, with U+FFFD for what is not UTF-8.
    pub(super) fn client_id(&self) -> String {
        String::from_utf8_lossy(&self.client_id).into_owned()
    }

    #[cfg(test)]
    pub(super) fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// How to answer it.
    pub(super) fn answer(&self) -> Answer {
        Answer {
            key: self.api.key,
            version: self.version,
            correlation_id: self.correlation_id,
        }
    }
}

/// Whether a frame is a request that is served, whole and well formed: everything that a connection does with a frame before
/// it acts on it. For tests and fuzzers; no input makes it panic, or allocate more than a small multiple of what it brings.
pub fn is_request(frame: Bytes) -> bool {
    let Ok(Header::Request(request)) = read_header(frame) else {
        return false;
    };
    match request.api.key {
        ApiKey::Produce => request.decode::<ProduceRequest>().is_ok(),
        ApiKey::Fetch => request.decode::<FetchRequest>().is_ok(),
        ApiKey::ListOffsets => request.decode::<ListOffsetsRequest>().is_ok(),
        ApiKey::Metadata => request.decode::<MetadataRequest>().is_ok(),
        ApiKey::FindCoordinator => request.decode::<FindCoordinatorRequest>().is_ok(),
        ApiKey::ApiVersions => request.decode::<ApiVersionsRequest>().is_ok(),
        ApiKey::CreateTopics => request.decode::<CreateTopicsRequest>().is_ok(),
        ApiKey::DeleteTopics => request.decode::<DeleteTopicsRequest>().is_ok(),
        ApiKey::InitProducerId => request.decode::<InitProducerIdRequest>().is_ok(),
        ApiKey::DescribeConfigs => request.decode::<DescribeConfigsRequest>().is_ok(),
        ApiKey::CreatePartitions => request.decode::<CreatePartitionsRequest>().is_ok(),
        ApiKey::AlterConfigs => request.decode::<AlterConfigsRequest>().is_ok(),
        ApiKey::IncrementalAlterConfigs => {
            request.decode::<IncrementalAlterConfigsRequest>().is_ok()
        }
        ApiKey::DescribeCluster => request.decode::<DescribeClusterRequest>().is_ok(),
        ApiKey::ConsumerGroupHeartbeat => request.decode::<ConsumerGroupHeartbeatRequest>().is_ok(),
        ApiKey::ConsumerGroupDescribe => request.decode::<ConsumerGroupDescribeRequest>().is_ok(),
        ApiKey::JoinGroup => request.decode::<JoinGroupRequest>().is_ok(),
        ApiKey::SyncGroup => request.decode::<SyncGroupRequest>().is_ok(),
        ApiKey::Heartbeat => request.decode::<HeartbeatRequest>().is_ok(),
        ApiKey::LeaveGroup => request.decode::<LeaveGroupRequest>().is_ok(),
        ApiKey::OffsetCommit => request.decode::<OffsetCommitRequest>().is_ok(),
        ApiKey::OffsetFetch => request.decode::<OffsetFetchRequest>().is_ok(),
        ApiKey::OffsetDelete => request.decode::<OffsetDeleteRequest>().is_ok(),
        ApiKey::ListGroups => request.decode::<ListGroupsRequest>().is_ok(),
        ApiKey::DescribeGroups => request.decode::<DescribeGroupsRequest>().is_ok(),
        ApiKey::AddPartitionsToTxn => request.decode::<AddPartitionsToTxnRequest>().is_ok(),
        ApiKey::AddOffsetsToTxn => request.decode::<AddOffsetsToTxnRequest>().is_ok(),
        ApiKey::EndTxn => request.decode::<EndTxnRequest>().is_ok(),
        ApiKey::TxnOffsetCommit => request.decode::<TxnOffsetCommitRequest>().is_ok(),
        ApiKey::WriteTxnMarkers => request.decode::<WriteTxnMarkersRequest>().is_ok(),
        ApiKey::DescribeProducers => request.decode::<DescribeProducersRequest>().is_ok(),
        ApiKey::DescribeTransactions => request.decode::<DescribeTransactionsRequest>().is_ok(),
        ApiKey::ListTransactions => request.decode::<ListTransactionsRequest>().is_ok(),
        ApiKey::DeleteGroups => request.decode::<DeleteGroupsRequest>().is_ok(),
        ApiKey::DescribeClientQuotas => request.decode::<DescribeClientQuotasRequest>().is_ok(),
        ApiKey::SaslHandshake => request.decode::<SaslHandshakeRequest>().is_ok(),
        ApiKey::SaslAuthenticate => request.decode::<SaslAuthenticateRequest>().is_ok(),
        ApiKey::DescribeUserScramCredentials => request
            .decode::<DescribeUserScramCredentialsRequest>()
            .is_ok(),
        ApiKey::AlterUserScramCredentials => {
            request.decode::<AlterUserScramCredentialsRequest>().is_ok()
        }
        ApiKey::DeleteRecords => request.decode::<DeleteRecordsRequest>().is_ok(),
        ApiKey::OffsetForLeaderEpoch => request.decode::<OffsetForLeaderEpochRequest>().is_ok(),
        // No other is served.
        _ => false,
    }
}

/// What of a request its response depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) key: ApiKey,
    pub(super) version: i16,
    pub(super) correlation_id: i32,
}

impl Answer {
    /// The response as it goes on the wire, length included.
    pub(super) fn encode<R: Encodable + HeaderVersion>(
        self,
        response: &R,
    ) -> Result<Bytes, BadRequest> {
        let refuse = |reason: String| BadRequest::Response {
            key: self.key,
            version: self.version,
            reason,
        };
        let body = response
            .compute_size(self.version)
            .map_err(|error| refuse(error.to_string()))?;
        // Length, correlation id, no tagged fields.
        let mut out = BytesMut::with_capacity(4 + 4 + 1 + body);
        out.put_i32(0);
        out.put_i32(self.correlation_id);
        if R::header_version(self.version) >= 1 {
            out.put_u8(0);
        }
        response
            .encode(&mut out, self.version)
            .map_err(|error| refuse(error.to_string()))?;
        let length = i32::try_from(out.len() - 4).map_err(|_| {
            refuse(format!(
                "it takes {} bytes and a response has at most 2 GiB",
                out.len()
            ))
        })?;
        out[..4].copy_from_slice(&length.to_be_bytes());
        Ok(out.freeze())
    }
}

/// Text of ours in a response.
pub(super) fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}
