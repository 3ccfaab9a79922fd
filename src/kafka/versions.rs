//! Which requests are served, in which versions.

use kafka_protocol::messages::ApiKey;

/// One request that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServedApi {
    pub key: ApiKey,
    /// The lowest version in the table that clients get. It can be lower than what is served: see Produce.
    pub advertised_min: i16,
    /// The lowest version that is served.
    pub min: i16,
    /// The highest version that is served.
    pub max: i16,
}

const fn api(key: ApiKey, min: i16, max: i16) -> ServedApi {
    ServedApi {
        key,
        advertised_min: min,
        min,
        max,
    }
}

/// Everything that is served.
///
/// Ceilings below Kafka's, and why: OffsetCommit 9 and OffsetFetch 9 are the last that name topics and not their ids;
/// ListTransactions 2 filters by a regular expression.
pub const SERVED_APIS: &[ServedApi] = &[
    // Versions 0 to 2 carry older record formats and are not served. They are advertised all the same, as Kafka does:
    // some versions of librdkafka compress nothing for a broker that does not know them.
    ServedApi {
        key: ApiKey::Produce,
        advertised_min: 0,
        min: 3,
        max: 13,
    },
    api(ApiKey::Fetch, 4, 18),
    api(ApiKey::ListOffsets, 1, 10),
    api(ApiKey::Metadata, 0, 13),
    api(ApiKey::OffsetCommit, 2, 9),
    api(ApiKey::OffsetFetch, 1, 9),
    api(ApiKey::FindCoordinator, 0, 6),
    api(ApiKey::JoinGroup, 0, 9),
    api(ApiKey::Heartbeat, 0, 4),
    api(ApiKey::LeaveGroup, 0, 5),
    api(ApiKey::SyncGroup, 0, 5),
    api(ApiKey::DescribeGroups, 0, 6),
    api(ApiKey::ListGroups, 0, 5),
    // In version 0 what follows is no longer in Kafka's framing, and not served. It is advertised all the same: librdkafka logs
    // in nowhere without it.
    ServedApi {
        key: ApiKey::SaslHandshake,
        advertised_min: 0,
        min: 1,
        max: 1,
    },
    api(ApiKey::ApiVersions, 0, 4),
    api(ApiKey::CreateTopics, 2, 7),
    api(ApiKey::DeleteTopics, 1, 6),
    api(ApiKey::DeleteRecords, 0, 2),
    api(ApiKey::InitProducerId, 0, 5),
    // Since version 4 for nodes alone; Kafka names those to clients too.
    api(ApiKey::AddPartitionsToTxn, 0, 5),
    api(ApiKey::AddOffsetsToTxn, 0, 4),
    // Clients send version 5 of this and of TxnOffsetCommit once the cluster has level 2 of the feature `transaction.version`.
    api(ApiKey::EndTxn, 0, 5),
    api(ApiKey::OffsetForLeaderEpoch, 2, 4),
    api(ApiKey::TxnOffsetCommit, 0, 5),
    // For nodes alone; Kafka names it to clients too.
    api(ApiKey::WriteTxnMarkers, 1, 1),
    api(ApiKey::DescribeConfigs, 1, 4),
    api(ApiKey::AlterConfigs, 0, 2),
    api(ApiKey::SaslAuthenticate, 0, 2),
    api(ApiKey::CreatePartitions, 0, 3),
    api(ApiKey::DeleteGroups, 0, 2),
    api(ApiKey::IncrementalAlterConfigs, 0, 1),
    api(ApiKey::OffsetDelete, 0, 0),
    api(ApiKey::DescribeClientQuotas, 0, 1),
    api(ApiKey::DescribeUserScramCredentials, 0, 0),
    api(ApiKey::AlterUserScramCredentials, 0, 0),
    api(ApiKey::DescribeCluster, 0, 2),
    api(ApiKey::DescribeTransactions, 0, 0),
    api(ApiKey::ListTransactions, 0, 1),
    api(ApiKey::DescribeProducers, 0, 0),
    api(ApiKey::ConsumerGroupHeartbeat, 0, 1),
    api(ApiKey::ConsumerGroupDescribe, 0, 1),
];

/// The request with this number, if it is served in any version.
pub(super) fn served(api_key: i16) -> Option<ServedApi> {
    SERVED_APIS
        .iter()
        .find(|api| api.key as i16 == api_key)
        .copied()
}

/// Whether requests of this kind carry records, so that they may be as large as the limit on requests allows.
pub(super) fn may_be_large(api_key: i16) -> bool {
    api_key == ApiKey::Produce as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What librdkafka asks of the table before it uses a feature.
    #[test]
    fn librdkafka_finds_what_its_features_depend_on() {
        let overlaps = |key: ApiKey, version: i16| {
            let api = served(key as i16).unwrap();
            assert!(
                (api.advertised_min..=api.max).contains(&version),
                "{key:?} {version}"
            );
        };
        // Record format 2.
        overlaps(ApiKey::Produce, 3);
        overlaps(ApiKey::Fetch, 4);
        // lz4, zstd.
        overlaps(ApiKey::FindCoordinator, 0);
        overlaps(ApiKey::Produce, 7);
        overlaps(ApiKey::Fetch, 10);
        // Offsets by time, the idempotent producer.
        overlaps(ApiKey::ListOffsets, 1);
        overlaps(ApiKey::InitProducerId, 0);
    }

    #[test]
    fn the_codec_knows_every_version_that_is_served() {
        for api in SERVED_APIS {
            let known = api.key.valid_versions();
            assert!(
                known.min <= api.min && api.max <= known.max,
                "{:?} {known}",
                api.key
            );
        }
    }
}
