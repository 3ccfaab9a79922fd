//! The cluster's topics, as groups look at them; and since when groups of the newer protocol are served.

use std::sync::Arc;

use crate::groups::{Request, TopicShape, Topics};
use crate::metadata::{CONSUMER_GROUPS_SINCE, ClusterImage, Topic};
use crate::types::{ErrorCode, is_internal};

/// The metadata at one moment.
#[derive(Debug)]
pub(super) struct TopicsOf(pub(super) Arc<ClusterImage>);

fn shape(topic: &Topic) -> TopicShape {
    TopicShape {
        id: topic.id,
        partitions: i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX),
    }
}

impl Topics for TopicsOf {
    fn topic(&self, name: &str) -> Option<TopicShape> {
        self.0.topic_named(name).map(|topic| shape(topic))
    }

    fn each(&self, see: &mut dyn FnMut(&str, TopicShape)) {
        for topic in self.0.topics() {
            let name = topic.name.as_str();
            if !is_internal(name) {
                see(name, shape(topic));
            }
        }
    }
}

/// Whether the whole cluster knows what a group of the newer protocol leaves in the log. A build before it would take such a
/// group for one that nobody is in, once it came to look after it.
pub(super) fn gate(image: &ClusterImage, request: &Request) -> Result<(), ErrorCode> {
    let is_newer = matches!(request, Request::ConsumerHeartbeat(_));
    if !is_newer || image.metadata_version() >= CONSUMER_GROUPS_SINCE {
        return Ok(());
    }
    let understood = image.nodes().map(|node| node.metadata_version).min();
    match understood {
        // About to rise: the cluster was just founded, or its last node just upgraded. Clients ask again.
        Some(version) if version >= CONSUMER_GROUPS_SINCE => {
            Err(ErrorCode::CoordinatorNotAvailable)
        }
        _ => Err(ErrorCode::UnsupportedVersion),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::{ConsumerHeartbeat, Who};
    use crate::metadata::{Command, Endpoint, Registration};
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
            kafka_listeners: std::collections::BTreeMap::new(),
            boot_id: None,
            metadata_version,
        };
        image
            .apply(&Command::RegisterNode { registration })
            .unwrap();
    }

    #[test]
    fn the_newer_protocol_is_served_once_every_node_knows_it() {
        let beat = Request::ConsumerHeartbeat(ConsumerHeartbeat {
            who: Who::default(),
            epoch: 0,
            client_id: String::new(),
            client_host: String::new(),
            rack: None,
            rebalance: None,
            names: None,
            pattern: None,
            assignor: None,
            owned: None,
            random: 0,
        });
        let mut image = ClusterImage::new();
        let cluster_id = ClusterId::from_random_bits(1);
        image.apply(&Command::InitCluster { cluster_id }).unwrap();
        register(&mut image, 1, CONSUMER_GROUPS_SINCE);
        register(&mut image, 2, CONSUMER_GROUPS_SINCE - 1);
        assert_eq!(gate(&image, &beat), Err(ErrorCode::UnsupportedVersion));
        assert_eq!(gate(&image, &Request::Describe), Ok(()));
        register(&mut image, 2, CONSUMER_GROUPS_SINCE);
        let rising = Err(ErrorCode::CoordinatorNotAvailable);
        assert_eq!(gate(&image, &beat), rising);
        let version = CONSUMER_GROUPS_SINCE;
        image
            .apply(&Command::RaiseMetadataVersion { version })
            .unwrap();
        assert_eq!(gate(&image, &beat), Ok(()));
    }
}
