//! The cluster's features, by Kafka's names and levels: what clients ask before they leave more to the brokers.

use kafka_protocol::messages::ApiVersionsResponse;
use kafka_protocol::messages::api_versions_response::{FinalizedFeatureKey, SupportedFeatureKey};
use kafka_protocol::protocol::StrBytes;

use crate::metadata::{ClusterImage, TRANSACTION_VERSION_2_SINCE};
use crate::transactions::{ClientVersion, Reach};

/// How transactions work (KIP-890).
const TRANSACTION_VERSION: &str = "transaction.version";
/// The highest level of it that this build knows.
const MAX_TRANSACTION_VERSION: i16 = 2;
/// Since this version of ApiVersions a client understands a feature that need not be there at all, one of level 0.
const LEVEL_0_SINCE: i16 = 4;

/// What clients of the cluster speak that look at its features.
fn transaction_version(image: &ClusterImage) -> ClientVersion {
    match image.metadata_version() >= TRANSACTION_VERSION_2_SINCE {
        true => ClientVersion::V2,
        false => ClientVersion::V1,
    }
}

/// What a partition's leader asks a coordinator for a client that sends its request in `version`: clients that leave it to the
/// leader to add the partition do so `since` a version. While the cluster does not allow it, nothing is added for anybody.
pub(super) fn reach(image: &ClusterImage, version: i16, since: i16) -> Reach {
    match transaction_version(image) {
        ClientVersion::V2 if version >= since => Reach::Add,
        _ => Reach::Verify,
    }
}

/// Adds the features to an answer in `version`. A feature that is not among the finalized ones has level 0.
pub(super) fn put_features(
    image: &ClusterImage,
    version: i16,
    response: ApiVersionsResponse,
) -> ApiVersionsResponse {
    let name = StrBytes::from_static_str(TRANSACTION_VERSION);
    let supported = SupportedFeatureKey::default()
        .with_name(name.clone())
        .with_min_version(0)
        .with_max_version(MAX_TRANSACTION_VERSION);
    let is_finalized = transaction_version(image) == ClientVersion::V2;
    let finalized = FinalizedFeatureKey::default()
        .with_name(name)
        .with_min_version_level(MAX_TRANSACTION_VERSION)
        .with_max_version_level(MAX_TRANSACTION_VERSION);
    // Clients believe whoever has applied the most.
    let epoch = i64::try_from(image.applied_index()).unwrap_or(i64::MAX);
    response
        .with_supported_features(Vec::from_iter(
            (version >= LEVEL_0_SINCE).then_some(supported),
        ))
        .with_finalized_features_epoch(epoch)
        .with_finalized_features(Vec::from_iter(is_finalized.then_some(finalized)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Command;
    use crate::types::ClusterId;

    #[test]
    fn level_2_comes_with_its_metadata_version() {
        let mut image = ClusterImage::new();
        let cluster_id = ClusterId::from_random_bits(1);
        image.apply(&Command::InitCluster { cluster_id }).unwrap();
        image.set_applied_index(7);
        for (version, level) in [
            (TRANSACTION_VERSION_2_SINCE - 1, None),
            (TRANSACTION_VERSION_2_SINCE, Some(2)),
        ] {
            image
                .apply(&Command::RaiseMetadataVersion { version })
                .unwrap();
            let response = put_features(&image, 4, ApiVersionsResponse::default());
            let finalized = response.finalized_features.first();
            assert_eq!(finalized.map(|feature| feature.max_version_level), level);
            assert_eq!(response.finalized_features_epoch, 7);
            let supported = &response.supported_features[0];
            assert_eq!(&supported.name[..], "transaction.version");
            assert_eq!((supported.min_version, supported.max_version), (0, 2));
            // Java's clients of before 4.0 refuse an answer with such a feature.
            let older = put_features(&image, 3, ApiVersionsResponse::default());
            assert!(older.supported_features.is_empty());
            assert_eq!(older.finalized_features, response.finalized_features);
            let reach = [11, 12].map(|version| reach(&image, version, 12));
            let newer = level.map_or(Reach::Verify, |_| Reach::Add);
            assert_eq!(reach, [Reach::Verify, newer]);
        }
    }
}
