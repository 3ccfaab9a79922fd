//! Which requests this client makes, in which versions.

use std::collections::HashMap;

use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AlterUserScramCredentialsRequest, ApiVersionsRequest,
    ApiVersionsResponse, ConsumerGroupDescribeRequest, CreatePartitionsRequest,
    CreateTopicsRequest, DeleteGroupsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
    DescribeClusterRequest, DescribeConfigsRequest, DescribeGroupsRequest,
    DescribeUserScramCredentialsRequest, FetchRequest, FindCoordinatorRequest, HeartbeatRequest,
    IncrementalAlterConfigsRequest, InitProducerIdRequest, JoinGroupRequest, LeaveGroupRequest,
    ListGroupsRequest, ListOffsetsRequest, MetadataRequest, OffsetCommitRequest,
    OffsetFetchRequest, ProduceRequest, SyncGroupRequest, WriteTxnMarkersRequest,
};
use kafka_protocol::protocol::{Request, VersionRange};

use super::error::ClientError;

/// A request that this client makes.
pub(super) trait Spoken: Request {
    /// Kafka's name of it, for errors.
    const NAME: &'static str;
    /// The versions that this client knows how to fill in and read. Topics go by name in all of them, and every field that is
    /// set exists in all of them.
    const SPOKEN: VersionRange;
}

macro_rules! spoken {
    ($($request:ident $name:literal $min:literal..=$max:literal;)*) => {
        $(impl Spoken for $request {
            const NAME: &'static str = $name;
            const SPOKEN: VersionRange = VersionRange { min: $min, max: $max };
        })*
    };
}

spoken! {
    ProduceRequest "Produce" 3..=10;
    FetchRequest "Fetch" 4..=12;
    ListOffsetsRequest "ListOffsets" 1..=7;
    MetadataRequest "Metadata" 4..=12;
    ApiVersionsRequest "ApiVersions" 0..=3;
    InitProducerIdRequest "InitProducerId" 0..=4;
    CreateTopicsRequest "CreateTopics" 4..=7;
    DeleteTopicsRequest "DeleteTopics" 1..=5;
    CreatePartitionsRequest "CreatePartitions" 0..=3;
    DescribeConfigsRequest "DescribeConfigs" 3..=4;
    IncrementalAlterConfigsRequest "IncrementalAlterConfigs" 0..=1;
    DescribeClusterRequest "DescribeCluster" 0..=1;
    FindCoordinatorRequest "FindCoordinator" 4..=6;
    JoinGroupRequest "JoinGroup" 4..=9;
    SyncGroupRequest "SyncGroup" 1..=4;
    HeartbeatRequest "Heartbeat" 1..=4;
    LeaveGroupRequest "LeaveGroup" 3..=5;
    OffsetCommitRequest "OffsetCommit" 5..=9;
    OffsetFetchRequest "OffsetFetch" 8..=9;
    ListGroupsRequest "ListGroups" 4..=5;
    DescribeGroupsRequest "DescribeGroups" 4..=6;
    ConsumerGroupDescribeRequest "ConsumerGroupDescribe" 0..=1;
    DeleteGroupsRequest "DeleteGroups" 0..=2;
    DescribeUserScramCredentialsRequest "DescribeUserScramCredentials" 0..=0;
    AlterUserScramCredentialsRequest "AlterUserScramCredentials" 0..=0;
    DeleteRecordsRequest "DeleteRecords" 0..=2;
    AddPartitionsToTxnRequest "AddPartitionsToTxn" 4..=5;
    WriteTxnMarkersRequest "WriteTxnMarkers" 1..=1;
}

/// What one node offers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Versions(HashMap<i16, VersionRange>);

impl Versions {
    pub(super) fn new(response: &ApiVersionsResponse) -> Versions {
        let range = |api: &kafka_protocol::messages::api_versions_response::ApiVersion| {
            let range = VersionRange {
                min: api.min_version,
                max: api.max_version,
            };
            (api.api_key, range)
        };
        Versions(response.api_keys.iter().map(range).collect())
    }

    /// The highest version of `R` that both ends know.
    pub(super) fn pick<R: Spoken>(&self, address: &str) -> Result<i16, ClientError> {
        let theirs = self.0.get(&R::KEY);
        let common = theirs.map(|theirs| theirs.intersect(&R::SPOKEN));
        match common {
            Some(common) if !common.is_empty() => Ok(common.max),
            _ => Err(ClientError::Unsupported {
                address: address.to_owned(),
                request: R::NAME,
                ours: R::SPOKEN.to_string(),
                theirs: theirs.map_or_else(|| "none".to_owned(), VersionRange::to_string),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_picked() {
        let offer = |min, max| Versions(HashMap::from([(0, VersionRange { min, max })]));
        assert_eq!(offer(0, 12).pick::<ProduceRequest>("a").unwrap(), 10);
        assert_eq!(offer(3, 7).pick::<ProduceRequest>("a").unwrap(), 7);
        assert!(offer(11, 12).pick::<ProduceRequest>("a").is_err());
        let error = offer(3, 7).pick::<FetchRequest>("a:1").unwrap_err();
        assert!(error.to_string().contains("Fetch"), "{error}");
    }
}
