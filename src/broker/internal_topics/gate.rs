//! From which metadata version on something may be written that older builds cannot read.

use crate::metadata::ClusterImage;
use crate::types::ErrorCode;

/// Whether every node of the cluster knows what came with the metadata version `since`.
pub(in crate::broker) fn gate(image: &ClusterImage, since: u32) -> Result<(), ErrorCode> {
    if image.metadata_version() >= since {
        return Ok(());
    }
    let understood = image.nodes().map(|node| node.metadata_version).min();
    match understood {
        // About to rise: the cluster was just founded, or its last node just upgraded. Clients ask again.
        Some(version) if version >= since => Err(ErrorCode::CoordinatorNotAvailable),
        _ => Err(ErrorCode::UnsupportedVersion),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::metadata::{
        CONSUMER_GROUPS_SINCE, Command, Endpoint, Registration, TRANSACTION_VERSION_2_SINCE,
        TRANSACTIONS_SINCE,
    };
    use crate::types::{ClusterId, DirectoryId, Incarnation, NodeId};

    fn register(image: &mut ClusterImage, id: u32, metadata_version: u32) {
        let registration = Registration {
            node: NodeId::new(id).unwrap(),
            directory: DirectoryId::from_random_bits(id.into()),
            incarnation: Incarnation::from_random_bits(id.into()),
            quic: Endpoint {
                host: "localhost".to_owned(),
                port: 1,
            },
            kafka: None,
            kafka_listeners: BTreeMap::new(),
            boot_id: None,
            metadata_version,
        };
        image
            .apply(&Command::RegisterNode { registration })
            .unwrap();
    }

    #[test]
    fn what_is_new_is_served_once_every_node_knows_it() {
        for since in [
            TRANSACTIONS_SINCE,
            CONSUMER_GROUPS_SINCE,
            TRANSACTION_VERSION_2_SINCE,
        ] {
            let mut image = ClusterImage::new();
            let cluster_id = ClusterId::from_random_bits(1);
            image.apply(&Command::InitCluster { cluster_id }).unwrap();
            assert_eq!(gate(&image, since), Err(ErrorCode::UnsupportedVersion));
            register(&mut image, 1, since);
            register(&mut image, 2, since - 1);
            assert_eq!(gate(&image, since), Err(ErrorCode::UnsupportedVersion));
            // Upgraded: the version is about to rise.
            register(&mut image, 2, since);
            assert_eq!(gate(&image, since), Err(ErrorCode::CoordinatorNotAvailable));
            let version = since;
            image
                .apply(&Command::RaiseMetadataVersion { version })
                .unwrap();
            assert_eq!(gate(&image, since), Ok(()));
        }
    }
}
