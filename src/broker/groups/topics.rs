//! The cluster's topics, as groups look at them; and since when groups of the newer protocol are served.

use std::sync::Arc;

use crate::broker::internal_topics;
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
    match request {
        Request::ConsumerHeartbeat(_) => internal_topics::gate(image, CONSUMER_GROUPS_SINCE),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::{ConsumerHeartbeat, Who};
    use crate::metadata::Command;
    use crate::types::ClusterId;

    #[test]
    fn the_newer_protocol_alone_waits_for_its_version() {
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
        let raise = |image: &mut ClusterImage, version| {
            image
                .apply(&Command::RaiseMetadataVersion { version })
                .unwrap();
        };
        raise(&mut image, CONSUMER_GROUPS_SINCE - 1);
        assert_eq!(gate(&image, &beat), Err(ErrorCode::UnsupportedVersion));
        assert_eq!(gate(&image, &Request::Describe), Ok(()));
        raise(&mut image, CONSUMER_GROUPS_SINCE);
        assert_eq!(gate(&image, &beat), Ok(()));
    }
}
