//! The cluster as the controller has committed it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::credentials::Credentials;
use crate::types::{
    Appointment, ClusterId, DirectoryId, Incarnation, ListenerName, NodeId, Offset, PartitionIndex,
    PartitionState, TopicId, TopicName, TopicPartition,
};

/// The metadata version that this build understands. A cluster begins at [`FIRST_METADATA_VERSION`] and rises when all of
/// its nodes understand more; a node that understands less than the cluster's is refused.
pub const METADATA_VERSION: u32 = 7;
/// From this version on every node knows transactions: a build before it reads the markers that end them as records.
pub const TRANSACTIONS_SINCE: u32 = 4;
/// From this version on every node knows the groups of the newer protocol, KIP-848: a build before it passes over what is
/// written of them.
pub const CONSUMER_GROUPS_SINCE: u32 = 6;
/// From this version on every node knows the second part of KIP-890, `transaction.version` 2: a build before it passes over the
/// producer id that comes next, and does not add to a transaction what another node asks it to.
pub const TRANSACTION_VERSION_2_SINCE: u32 = 7;
/// The version that a log begins with, whichever build reads it: a node that reads it from its start comes to the same image
/// as those that wrote it.
pub const FIRST_METADATA_VERSION: u32 = 1;
/// Nodes that may vote on metadata: five, and one more while one of them is being replaced. More are refused with
/// INVALID_REQUEST.
pub const MAX_CONTROLLERS: usize = 6;
/// Nodes in a cluster. The next registration is refused with POLICY_VIOLATION.
pub const MAX_NODES: usize = 256;
/// Topics in a cluster. The next one is refused with POLICY_VIOLATION.
pub const MAX_TOPICS: usize = 10_000;
/// Partitions of one topic. More are refused with INVALID_PARTITIONS.
pub const MAX_PARTITIONS_PER_TOPIC: usize = 10_000;
/// Partitions in a cluster. More are refused with INVALID_PARTITIONS.
pub const MAX_PARTITIONS: usize = 100_000;
/// Replicas of one partition. More are refused with INVALID_REPLICATION_FACTOR.
pub const MAX_REPLICAS: usize = 15;
/// Length of one configuration value. A longer one is refused with INVALID_CONFIG. Names are those of a fixed list, so their
/// number and length need no cap of their own.
pub const MAX_CONFIG_VALUE_BYTES: usize = 256;
/// Kafka listeners of one node. More are refused with INVALID_REQUEST.
pub const MAX_LISTENERS: usize = 8;
/// Since this metadata version a registration may name listeners besides the unnamed one: a node that understands less would
/// read it without them, and its image would be another than everybody else's.
pub const LISTENERS_SINCE: u32 = 5;
/// Length of a host name or boot id in a registration; DNS allows 253. A longer one is refused with INVALID_REQUEST.
pub const MAX_HOST_BYTES: usize = 255;
/// Partitions that one command changes. More are refused with INVALID_REQUEST: the proposer splits them.
pub const MAX_CHANGES_PER_COMMAND: usize = 2_000;
/// Producer ids in one block. More are refused with INVALID_REQUEST.
pub const MAX_PRODUCER_ID_BLOCK: u32 = 10_000;

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// A DNS name or an IP address, IPv6 without brackets. At most [`MAX_HOST_BYTES`].
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Endpoint {
    /// `host:port`, with brackets around an IPv6 address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What a node says of itself each time its process starts or its address changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub node: NodeId,
    pub directory: DirectoryId,
    pub incarnation: Incarnation,
    /// Where other nodes and native clients reach it.
    pub quic: Endpoint,
    /// Where Kafka clients reach its listener of the name [`ListenerName::unnamed`]; `None` when it has no such listener.
    pub kafka: Option<Endpoint>,
    /// Where Kafka clients reach its other listeners. Never one of that name. Absent from what versions below
    /// [`LISTENERS_SINCE`] wrote, and empty in their logs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kafka_listeners: BTreeMap<ListenerName, Endpoint>,
    /// The kernel's boot id, where it has one: with `flush=os` a changed one means that acknowledged records may be gone.
    pub boot_id: Option<String>,
    /// The highest metadata version that the node understands.
    pub metadata_version: u32,
}

impl Registration {
    /// The name by which this process is appointed or admitted to an ISR.
    pub fn appointment(&self) -> Appointment {
        Appointment {
            node: self.node,
            directory: self.directory,
            incarnation: self.incarnation,
        }
    }

    /// Where Kafka clients reach the listener of this name; `None` when the node has none.
    pub fn kafka_endpoint(&self, listener: &ListenerName) -> Option<&Endpoint> {
        match listener.is_unnamed() {
            true => self.kafka.as_ref(),
            false => self.kafka_listeners.get(listener),
        }
    }

    /// Its Kafka listeners with where clients reach them, the unnamed one first.
    pub fn kafka_endpoints(&self) -> impl Iterator<Item = (ListenerName, &Endpoint)> {
        let unnamed = self.kafka.iter();
        let named = self.kafka_listeners.iter();
        unnamed
            .map(|endpoint| (ListenerName::unnamed(), endpoint))
            .chain(named.map(|(name, endpoint)| (name.clone(), endpoint)))
    }

    /// Kafka clients reach the listener of this name at `endpoint`.
    pub fn set_kafka_endpoint(&mut self, listener: ListenerName, endpoint: Endpoint) {
        match listener.is_unnamed() {
            true => self.kafka = Some(endpoint),
            false => {
                self.kafka_listeners.insert(listener, endpoint);
            }
        }
    }

    /// As much of it as a cluster at this metadata version can be told.
    pub fn in_version(&self, version: u32) -> Registration {
        let mut told = self.clone();
        if version < LISTENERS_SINCE {
            told.kafka_listeners.clear();
        }
        told
    }
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    pub id: TopicId,
    pub name: TopicName,
    /// What was set for this topic; what is absent has its default. Only names and values that
    /// [`TopicConfig`](super::TopicConfig) accepts.
    pub config: BTreeMap<String, String>,
    /// By partition index, without holes, never empty.
    pub partitions: Vec<PartitionState>,
}

impl Topic {
    pub fn partition(&self, index: PartitionIndex) -> Option<&PartitionState> {
        self.partitions.get(usize::try_from(index.0).ok()?)
    }

    /// Each partition with its index.
    pub fn indexed_partitions(&self) -> impl Iterator<Item = (PartitionIndex, &PartitionState)> {
        (0..).map(PartitionIndex).zip(&self.partitions)
    }

    /// Kafka's replication factor: that of the first partition.
    pub fn replication_factor(&self) -> usize {
        self.partitions
            .first()
            .map_or(0, |first| first.replicas.len())
    }
}

/// The whole metadata state. Cheap to clone: topics are shared until one of them changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct ClusterImage {
    pub(super) cluster_id: Option<ClusterId>,
    pub(super) metadata_version: u32,
    pub(super) nodes: BTreeMap<NodeId, Arc<Registration>>,
    pub(super) topics: BTreeMap<TopicId, Arc<Topic>>,
    /// Derived from `topics`: one name for each id and one id for each name.
    pub(super) names: BTreeMap<TopicName, TopicId>,
    /// Derived from `topics`.
    pub(super) partition_count: usize,
    /// The first producer id that no block has had. At most 2⁶³ − 1.
    pub(super) next_producer_id: u64,
    /// The nodes that are to lead nothing, because they are about to stop. All registered; a new incarnation is not draining.
    pub(super) draining: BTreeSet<NodeId>,
    /// For each partition that is being reassigned, and no other: the replicas that it had before.
    pub(super) reassigned_from: BTreeMap<TopicPartition, Vec<NodeId>>,
    /// The nodes that are to vote on metadata. Empty until an operator changes the founders' list.
    pub(super) controllers: BTreeSet<NodeId>,
    /// For each partition whose records were deleted, and no other: the first offset that is left. Above 0.
    pub(super) deleted_before: Arc<BTreeMap<TopicPartition, Offset>>,
    /// No user without a verifier.
    pub(super) credentials: Arc<Credentials>,
    pub(super) applied_index: u64,
}

impl Default for ClusterImage {
    fn default() -> Self {
        ClusterImage {
            cluster_id: None,
            metadata_version: FIRST_METADATA_VERSION,
            nodes: BTreeMap::new(),
            topics: BTreeMap::new(),
            names: BTreeMap::new(),
            partition_count: 0,
            next_producer_id: 0,
            draining: BTreeSet::new(),
            reassigned_from: BTreeMap::new(),
            controllers: BTreeSet::new(),
            deleted_before: Arc::default(),
            credentials: Arc::default(),
            applied_index: 0,
        }
    }
}

impl ClusterImage {
    /// The image before the first command.
    pub fn new() -> ClusterImage {
        ClusterImage::default()
    }

    /// `None` until the first command has been applied.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id
    }

    pub fn metadata_version(&self) -> u32 {
        self.metadata_version
    }

    /// Index of the last log entry that this image contains; 0 before the first. Whatever keeps the log sets it.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    pub fn set_applied_index(&mut self, index: u64) {
        self.applied_index = index;
    }

    pub fn node(&self, node: NodeId) -> Option<&Registration> {
        self.nodes.get(&node).map(|registration| &**registration)
    }

    /// In order of node id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Registration> {
        self.nodes.values().map(|registration| &**registration)
    }

    /// Under which directory and incarnation `node` is registered now.
    pub fn registered(&self, node: NodeId) -> Option<Appointment> {
        self.node(node).map(Registration::appointment)
    }

    /// The same image, but for where the node of `own` is reached: there where `own` says, if it is registered at all.
    pub fn with_endpoints_of(&self, own: &Registration) -> Self {
        let mut image = self.clone();
        if let Some(registration) = image.nodes.get_mut(&own.node) {
            let registration = Arc::make_mut(registration);
            registration.quic.clone_from(&own.quic);
            registration.kafka.clone_from(&own.kafka);
            registration
                .kafka_listeners
                .clone_from(&own.kafka_listeners);
        }
        image
    }

    /// Where `node` is reached over QUIC.
    pub fn quic_endpoint(&self, node: NodeId) -> Option<&Endpoint> {
        self.node(node).map(|registration| &registration.quic)
    }

    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    pub fn topic_by_name(&self, name: &TopicName) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }

    /// Whether `node` holds a replica of a partition that there is.
    pub fn is_replica(&self, partition: TopicPartition, node: NodeId) -> bool {
        self.partition(partition)
            .is_some_and(|state| state.replicas.contains(&node))
    }

    /// The topic of this name. A name that no topic can have is unknown, too.
    pub fn topic_named(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topic_by_name(&TopicName::new(name).ok()?)
    }

    /// In order of name.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Arc<Topic>> {
        self.names.values().map(|id| &self.topics[id])
    }

    pub fn partition(&self, partition: TopicPartition) -> Option<&PartitionState> {
        self.topic(partition.topic)?.partition(partition.partition)
    }

    /// Every partition of every topic.
    pub fn partitions(&self) -> impl Iterator<Item = (TopicPartition, &PartitionState)> {
        self.topics.values().flat_map(|topic| {
            topic.indexed_partitions().map(|(partition, state)| {
                let name = TopicPartition {
                    topic: topic.id,
                    partition,
                };
                (name, state)
            })
        })
    }

    pub fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// Whether `node` is to lead nothing, because it is about to stop.
    pub fn is_draining(&self, node: NodeId) -> bool {
        self.draining.contains(&node)
    }

    pub fn draining(&self) -> &BTreeSet<NodeId> {
        &self.draining
    }

    /// The replicas that a partition had before the reassignment that is under way; `None` when none is.
    pub fn reassigned_from(&self, partition: TopicPartition) -> Option<&[NodeId]> {
        self.reassigned_from.get(&partition).map(Vec::as_slice)
    }

    /// The partitions that are being reassigned.
    pub fn reassigning(&self) -> impl Iterator<Item = (TopicPartition, &PartitionState)> {
        self.reassigned_from
            .keys()
            .filter_map(|&partition| Some((partition, self.partition(partition)?)))
    }

    /// The nodes that are to vote on metadata. Empty while it is still for the founders' list to say.
    pub fn controllers(&self) -> &BTreeSet<NodeId> {
        &self.controllers
    }

    /// The partitions that have a replica on `node`, whether or not it is in sync.
    pub fn partitions_of(
        &self,
        node: NodeId,
    ) -> impl Iterator<Item = (TopicPartition, &PartitionState)> {
        self.partitions()
            .filter(move |(_, state)| state.replicas.contains(&node))
    }
}

/// A stored image that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidImage {
    #[error("two topics are named {0}")]
    NameTwice(TopicName),
    #[error("two topics have the id {0}")]
    TopicIdTwice(TopicId),
    #[error("node {0} is registered twice")]
    NodeTwice(NodeId),
}

/// How an image is serialised: without what is derived.
#[derive(Serialize, Deserialize)]
struct Stored {
    cluster_id: Option<ClusterId>,
    metadata_version: u32,
    nodes: Vec<Arc<Registration>>,
    topics: Vec<Arc<Topic>>,
    next_producer_id: u64,
    // Absent from what version 1 wrote.
    #[serde(default)]
    draining: BTreeSet<NodeId>,
    #[serde(default)]
    reassigned_from: Vec<(TopicPartition, Vec<NodeId>)>,
    #[serde(default)]
    controllers: BTreeSet<NodeId>,
    // Absent from what version 2 wrote.
    #[serde(default)]
    deleted_before: Vec<(TopicPartition, Offset)>,
    #[serde(default)]
    credentials: Arc<Credentials>,
    applied_index: u64,
}

impl From<ClusterImage> for Stored {
    fn from(image: ClusterImage) -> Self {
        Stored {
            cluster_id: image.cluster_id,
            metadata_version: image.metadata_version,
            nodes: image.nodes.into_values().collect(),
            topics: image.topics.into_values().collect(),
            next_producer_id: image.next_producer_id,
            draining: image.draining,
            reassigned_from: image.reassigned_from.into_iter().collect(),
            controllers: image.controllers,
            deleted_before: image.deleted_before.iter().map(|(k, v)| (*k, *v)).collect(),
            credentials: image.credentials,
            applied_index: image.applied_index,
        }
    }
}

impl TryFrom<Stored> for ClusterImage {
    type Error = InvalidImage;

    fn try_from(stored: Stored) -> Result<Self, InvalidImage> {
        let mut image = ClusterImage {
            cluster_id: stored.cluster_id,
            metadata_version: stored.metadata_version,
            next_producer_id: stored.next_producer_id,
            draining: stored.draining,
            reassigned_from: stored.reassigned_from.into_iter().collect(),
            controllers: stored.controllers,
            deleted_before: Arc::new(stored.deleted_before.into_iter().collect()),
            credentials: stored.credentials,
            applied_index: stored.applied_index,
            ..ClusterImage::default()
        };
        for registration in stored.nodes {
            let node = registration.node;
            if image.nodes.insert(node, registration).is_some() {
                return Err(InvalidImage::NodeTwice(node));
            }
        }
        for topic in stored.topics {
            if image.names.insert(topic.name.clone(), topic.id).is_some() {
                return Err(InvalidImage::NameTwice(topic.name.clone()));
            }
            image.partition_count += topic.partitions.len();
            let id = topic.id;
            if image.topics.insert(id, topic).is_some() {
                return Err(InvalidImage::TopicIdTwice(id));
            }
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_endpoints_have_brackets() {
        let endpoint = |host: &str| Endpoint {
            host: host.to_owned(),
            port: 9,
        };
        assert_eq!(endpoint("::1").to_string(), "[::1]:9");
        assert_eq!(endpoint("node-1").to_string(), "node-1:9");
    }

    #[test]
    fn a_stored_image_with_a_name_twice_is_refused() {
        let topic = |id| {
            Arc::new(Topic {
                id: TopicId::from_random_bits(id),
                name: TopicName::new("t").unwrap(),
                config: BTreeMap::new(),
                partitions: Vec::new(),
            })
        };
        let stored = Stored {
            cluster_id: None,
            metadata_version: 1,
            nodes: Vec::new(),
            topics: vec![topic(1), topic(2)],
            next_producer_id: 0,
            draining: BTreeSet::new(),
            reassigned_from: Vec::new(),
            controllers: BTreeSet::new(),
            deleted_before: Vec::new(),
            credentials: Arc::default(),
            applied_index: 0,
        };
        let json = serde_json::to_string(&stored).unwrap();
        let error = serde_json::from_str::<ClusterImage>(&json).unwrap_err();
        assert!(error.to_string().contains("two topics are named t"));
    }

    #[test]
    fn an_image_that_version_1_stored_is_read() {
        let json = r#"{"cluster_id":null,"metadata_version":1,"nodes":[],"topics":[],"next_producer_id":7,"applied_index":3}"#;
        let image: ClusterImage = serde_json::from_str(json).unwrap();
        assert_eq!((image.metadata_version, image.next_producer_id), (1, 7));
        assert!(image.draining.is_empty() && image.controllers.is_empty());
        assert!(image.deleted_before.is_empty() && image.credentials.is_empty());
    }

    #[test]
    fn a_registration_without_named_listeners_is_written_and_read_as_ever() {
        let json = r#"{"node":1,"directory":"e41332166d15ac4b91b31b2838f77d2f","incarnation":"9b45220aa1517dbe","quic":{"host":"a","port":1},"kafka":{"host":"a","port":2},"boot_id":null,"metadata_version":3}"#;
        let mut registration: Registration = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&registration).unwrap(), json);
        let internal = ListenerName::new("internal").unwrap();
        assert_eq!(registration.kafka_endpoint(&internal), None);
        let unnamed = registration.kafka_endpoint(&ListenerName::unnamed());
        assert_eq!(unnamed.map(|endpoint| endpoint.port), Some(2));

        let elsewhere = |port| Endpoint {
            host: "b".to_owned(),
            port,
        };
        registration.set_kafka_endpoint(internal.clone(), elsewhere(3));
        registration.set_kafka_endpoint(ListenerName::unnamed(), elsewhere(4));
        let told: Vec<_> = registration
            .kafka_endpoints()
            .map(|(name, endpoint)| (name.to_string(), endpoint.port))
            .collect();
        assert_eq!(
            told,
            [("default".to_owned(), 4), ("internal".to_owned(), 3)]
        );
        let written = serde_json::to_string(&registration).unwrap();
        let read: Registration = serde_json::from_str(&written).unwrap();
        assert_eq!(read, registration);
        // What an older build cannot keep, it is not told.
        let before = registration.in_version(LISTENERS_SINCE - 1);
        assert!(before.kafka_listeners.is_empty() && before.kafka == registration.kafka);
        assert_eq!(registration.in_version(LISTENERS_SINCE), registration);
    }
}
