//! What a handler knows besides the request.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Service;
use super::budget::Budget;
use super::handlers::fetch_session::Session;
use super::limits::{Limits, MAX_REQUEST_WAIT};
use super::login::{Doorman, LoginState};
use crate::metadata::{ClusterImage, Endpoint, Registration, Topic};
use crate::types::{
    ErrorCode, LeaderEpoch, ListenerName, NodeId, PartitionIndex, TopicId, TopicPartition,
};

/// How a client reached the node. Metadata answers with the endpoints of the same kind, so that the client goes on as it
/// came: a network that leads to one of a node's listeners need not lead to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// A stream of a native client's QUIC connection.
    Quic,
    /// The TCP listener of this name, with TLS or without.
    Kafka(ListenerName),
}

impl ListenerKind {
    /// Where clients of this kind reach a node; `None` if they cannot.
    pub(super) fn endpoint<'a>(&self, node: &'a Registration) -> Option<&'a Endpoint> {
        match self {
            ListenerKind::Quic => Some(&node.quic),
            ListenerKind::Kafka(name) => node.kafka_endpoint(name),
        }
    }
}

/// How the API behaves, where that is the operator's choice.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Kafka's `auto.create.topics.enable`: whether a Metadata request creates the topics it names.
    pub auto_create_topics: bool,
    /// Kafka's `num.partitions`: how many partitions a topic gets that is asked for without saying. `None`: 1.
    pub num_partitions: Option<NonZeroU32>,
    /// Kafka's `default.replication.factor`, for such a topic likewise. `None`: 3, or as many as there are nodes.
    pub default_replication_factor: Option<NonZeroU16>,
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            auto_create_topics: true,
            num_partitions: None,
            default_replication_factor: None,
            limits: Limits::default(),
        }
    }
}

/// One connection's view of the node.
pub(super) struct Context<S> {
    pub(super) service: Arc<S>,
    pub(super) config: Config,
    pub(super) listener: ListenerKind,
    /// Which node of the cluster is at the other end; `None` for a client.
    pub(super) peer_node: Option<NodeId>,
    /// Where the client is, as Kafka writes it: "/192.0.2.1".
    pub(super) client_host: String,
    /// Memory for large responses.
    pub(super) response_memory: Budget,
    /// Turns to make a large response that is not made of records.
    pub(super) descriptions: Arc<Semaphore>,
    /// Where the next fetch begins among its partitions.
    pub(super) fetch_rotation: AtomicUsize,
    /// What the connection's fetches need not say again. Fetches run one after another, and have it taken out meanwhile.
    pub(super) fetch_session: Mutex<Option<Session>>,
    /// Taken out while a step of the login is under way; nothing else of the connection is read meanwhile.
    pub(super) login: Mutex<LoginState>,
    pub(super) doorman: Arc<Doorman>,
    /// Room for what fetch sessions remember, all connections together.
    pub(super) session_room: Arc<Semaphore>,
}

impl<S: Service> Context<S> {
    pub(super) fn fetch_session(&self) -> MutexGuard<'_, Option<Session>> {
        // Every change is one move, so a panic elsewhere leaves nothing half done.
        self.fetch_session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn login(&self) -> MutexGuard<'_, LoginState> {
        // Likewise.
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nodes that are up and that the client can reach, with where.
    pub(super) fn reachable_nodes<'a>(
        &'a self,
        image: &'a ClusterImage,
    ) -> impl Iterator<Item = (NodeId, &'a Endpoint)> {
        image
            .nodes()
            .filter(|node| self.service.is_live(node.node))
            .filter_map(|node| Some((node.node, self.listener.endpoint(node)?)))
    }

    /// The endpoint of a node that is up and that the client can reach.
    pub(super) fn reachable<'a>(
        &self,
        image: &'a ClusterImage,
        node: NodeId,
    ) -> Option<&'a Endpoint> {
        let registration = image.node(node)?;
        let endpoint = self.listener.endpoint(registration)?;
        self.service.is_live(node).then_some(endpoint)
    }

    /// Who leads a partition that this node does not lead, with the leader epoch. `None` while the image still names this
    /// node: the client would come back at once.
    pub(super) fn other_leader(
        &self,
        image: &ClusterImage,
        partition: TopicPartition,
    ) -> Option<(NodeId, LeaderEpoch)> {
        let state = image.partition(partition)?;
        let leader = state.leader_node()?;
        (leader != self.service.node_id()).then_some((leader, state.leader_epoch))
    }

    /// The broker id to name as the controller: the real one where the client can reach it, else this node, which passes
    /// requests on.
    pub(super) fn controller_id(&self, image: &ClusterImage) -> i32 {
        let active = self.service.active_controller();
        active
            .filter(|node| self.reachable(image, *node).is_some())
            .unwrap_or(self.service.node_id())
            .as_broker_id()
    }
}

/// How a request names a topic: by its name, or in later versions by its id.
#[derive(Clone, Copy)]
pub(super) enum TopicKey<'a> {
    Name(&'a str),
    Id(uuid::Uuid),
}

/// A topic that a request names, if it is there.
pub(super) struct FoundTopic<'a> {
    pub(super) topic: Option<&'a Arc<Topic>>,
    /// What to answer where it is not.
    missing: ErrorCode,
}

impl<'a> TopicKey<'a> {
    pub(super) fn new(name: &'a str, id: uuid::Uuid, by_id: bool) -> TopicKey<'a> {
        if by_id {
            TopicKey::Id(id)
        } else {
            TopicKey::Name(name)
        }
    }

    pub(super) fn find(self, image: &ClusterImage) -> FoundTopic<'_> {
        match self {
            TopicKey::Name(name) => FoundTopic {
                topic: image.topic_named(name),
                missing: ErrorCode::UnknownTopicOrPartition,
            },
            TopicKey::Id(id) => FoundTopic {
                topic: from_uuid(id).and_then(|id| image.topic(id)),
                missing: ErrorCode::UnknownTopicId,
            },
        }
    }
}

impl FoundTopic<'_> {
    pub(super) fn partition(&self, index: i32) -> Result<TopicPartition, ErrorCode> {
        match self.topic {
            None => Err(self.missing),
            Some(_) => find_partition(self.topic, index),
        }
    }
}

/// A topic's partition, by the number on the wire.
pub(super) fn find_partition(
    topic: Option<&Arc<Topic>>,
    index: i32,
) -> Result<TopicPartition, ErrorCode> {
    let topic = topic.ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partition = PartitionIndex::from_wire(index).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    match topic.partition(partition) {
        Some(_) => Ok(TopicPartition {
            topic: topic.id,
            partition,
        }),
        None => Err(ErrorCode::UnknownTopicOrPartition),
    }
}

/// When a wait of so many milliseconds, as a client gave them, is over. Negative is none; longer than
/// [`MAX_REQUEST_WAIT`] is cut.
pub(super) fn deadline(wait_ms: i32) -> Instant {
    let wait = Duration::from_millis(u64::try_from(wait_ms).unwrap_or(0));
    Instant::now() + wait.min(MAX_REQUEST_WAIT)
}

/// A topic id on the wire.
pub(super) fn to_uuid(id: TopicId) -> uuid::Uuid {
    uuid::Uuid::from_u128(id.to_bits())
}

/// `None` for the id that stands for "no topic id".
pub(super) fn from_uuid(id: uuid::Uuid) -> Option<TopicId> {
    (!id.is_nil()).then(|| TopicId::from_random_bits(id.as_u128()))
}
