//! Metadata: who leads what, and where it listens.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::Arc;

use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, MetadataRequest, MetadataResponse, TopicName as TopicNameOnWire,
};
use tokio::time::Instant;

use super::answer_in_turn;
use crate::kafka::Service;
use crate::kafka::codec::{BadRequest, RawRequest, text};
use crate::kafka::connection::Pending;
use crate::kafka::context::{Context, from_uuid, to_uuid};
use crate::kafka::limits::{AUTO_CREATE_DEADLINE, MAX_AUTO_CREATED_TOPICS};
use crate::metadata::{ClusterImage, CreateTopicRequest, Topic};
use crate::types::{
    ErrorCode, NodeId, PartitionIndex, PartitionState, TopicId, TopicName, is_internal,
};

/// Kafka's "authorized operations were not asked for". There is no authorization by topic yet.
const OPERATIONS_OMITTED: i32 = i32::MIN;
/// Since this version, a topic in an answer may be without a name; before, the name is empty.
const NO_NAME_SINCE: i16 = 12;
/// Since this version, a leader that has no listener of the client's name is told from one that is not there. Kafka's rule.
const LISTENER_NOT_FOUND_SINCE: i16 = 6;

pub(super) fn begin<S: Service>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
) -> Result<Pending, BadRequest> {
    let decoded: MetadataRequest = request.decode()?;
    let answer = request.answer();
    let context = Arc::clone(context);
    Ok(Box::pin(async move {
        let wanted = wanted(&decoded, answer.version);
        let mut refused = BTreeMap::new();
        if context.config.auto_create_topics && decoded.allow_auto_topic_creation {
            let image = context.service.image();
            refused = create_missing(&context, &image, wanted.as_deref().unwrap_or(&[])).await;
        }
        answer_in_turn(&context, answer, async {
            respond(&context, wanted.as_deref(), &refused, answer.version)
        })
        .await
    }))
}

/// The topics that are asked for, each once; `None`: all.
fn wanted(request: &MetadataRequest, version: i16) -> Option<Vec<Wanted>> {
    // In version 0 an empty list asks for all topics; later ones have "null" for that.
    let asked = request
        .topics
        .as_ref()
        .filter(|topics| version > 0 || !topics.is_empty())?;
    let mut seen = BTreeSet::new();
    let wanted = asked
        .iter()
        .map(|topic| match (&topic.name, from_uuid(topic.topic_id)) {
            (_, Some(id)) => Wanted::Id(id),
            (Some(name), None) => Wanted::Name(name.as_str().to_owned()),
            (None, None) => Wanted::Name(String::new()),
        })
        // A topic that is named a thousand times is described once: else a small request makes a huge answer.
        .filter(|wanted| seen.insert(wanted.clone()))
        .collect();
    Some(wanted)
}

fn respond<S: Service>(
    context: &Context<S>,
    wanted: Option<&[Wanted]>,
    refused: &BTreeMap<String, ErrorCode>,
    version: i16,
) -> MetadataResponse {
    let image = context.service.image();
    let topics = match wanted {
        None => image
            .topics()
            .map(|topic| describe(context, &image, topic, version))
            .collect(),
        Some(wanted) => wanted
            .iter()
            .map(|wanted| answer(context, &image, wanted, refused, version))
            .collect(),
    };
    let brokers = context
        .reachable_nodes(&image)
        .map(|(node, endpoint)| {
            MetadataResponseBroker::default()
                .with_node_id(broker(node))
                .with_host(text(endpoint.host.clone()))
                .with_port(endpoint.port.into())
        })
        .collect();
    MetadataResponse::default()
        .with_brokers(brokers)
        .with_cluster_id(image.cluster_id().map(|id| text(id.to_string())))
        .with_controller_id(context.controller_id(&image).into())
        .with_topics(topics)
        .with_cluster_authorized_operations(OPERATIONS_OMITTED)
}

/// How a client names a topic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Name(String),
    Id(TopicId),
}

/// Creates the topics that are named and missing. Returns each of those names with what to answer should the image still
/// not show it.
async fn create_missing<S: Service>(
    context: &Context<S>,
    image: &ClusterImage,
    wanted: &[Wanted],
) -> BTreeMap<String, ErrorCode> {
    let missing: BTreeSet<TopicName> = wanted
        .iter()
        .filter_map(|wanted| match wanted {
            Wanted::Name(name) => TopicName::new(name).ok(),
            Wanted::Id(_) => None,
        })
        // The cluster makes its own topics when it needs them, and in its own way.
        .filter(|name| image.topic_by_name(name).is_none() && !is_internal(name.as_str()))
        .collect();
    if missing.is_empty() {
        return BTreeMap::new();
    }
    let requests: Vec<CreateTopicRequest> = missing
        .iter()
        .take(MAX_AUTO_CREATED_TOPICS)
        .map(|name| CreateTopicRequest {
            name: name.clone(),
            id: TopicId::from_random_bits(rand::random()),
            partitions: context.config.num_partitions.map(NonZero::get),
            replication_factor: context.config.default_replication_factor.map(NonZero::get),
            assignment: None,
            config: BTreeMap::new(),
        })
        .collect();
    let deadline = Instant::now() + AUTO_CREATE_DEADLINE;
    let results = context
        .service
        .create_topics(requests, false, deadline)
        .await;
    let mut answers: BTreeMap<String, ErrorCode> = missing
        .iter()
        // Beyond the cap: as if it were on its way; the client asks again.
        .map(|name| (name.as_str().to_owned(), ErrorCode::LeaderNotAvailable))
        .collect();
    for (name, result) in missing.iter().zip(results) {
        match result.map_err(|refusal| refusal.error) {
            // Made, by us or by somebody else, and not yet in this node's image.
            Ok(_) | Err(ErrorCode::TopicAlreadyExists) => {}
            // The client's own retries serve here, and this is the error that it retries without a word.
            Err(error) if error.is_retriable() => {}
            Err(error) => {
                answers.insert(name.as_str().to_owned(), error);
            }
        }
    }
    answers
}

fn answer<S: Service>(
    context: &Context<S>,
    image: &ClusterImage,
    wanted: &Wanted,
    refused: &BTreeMap<String, ErrorCode>,
    version: i16,
) -> MetadataResponseTopic {
    match wanted {
        Wanted::Id(id) => match image.topic(*id) {
            Some(topic) => describe(context, image, topic, version),
            None => MetadataResponseTopic::default()
                .with_name((version < NO_NAME_SINCE).then(TopicNameOnWire::default))
                .with_topic_id(to_uuid(*id))
                .with_error_code(ErrorCode::UnknownTopicId.code())
                .with_topic_authorized_operations(OPERATIONS_OMITTED),
        },
        Wanted::Name(name) => {
            let error = match TopicName::new(name) {
                Err(_) => ErrorCode::InvalidTopicException,
                Ok(legal) => match image.topic_by_name(&legal) {
                    Some(topic) => return describe(context, image, topic, version),
                    None => refused
                        .get(name)
                        .copied()
                        .unwrap_or(ErrorCode::UnknownTopicOrPartition),
                },
            };
            MetadataResponseTopic::default()
                .with_name(Some(text(name.clone()).into()))
                .with_error_code(error.code())
                .with_topic_authorized_operations(OPERATIONS_OMITTED)
        }
    }
}

fn describe<S: Service>(
    context: &Context<S>,
    image: &ClusterImage,
    topic: &Topic,
    version: i16,
) -> MetadataResponseTopic {
    let partitions = topic
        .indexed_partitions()
        .map(|(index, state)| describe_partition(context, image, index, state, version))
        .collect();
    MetadataResponseTopic::default()
        .with_name(Some(text(topic.name.as_str()).into()))
        .with_topic_id(to_uuid(topic.id))
        .with_is_internal(is_internal(topic.name.as_str()))
        .with_partitions(partitions)
        .with_topic_authorized_operations(OPERATIONS_OMITTED)
}

fn describe_partition<S: Service>(
    context: &Context<S>,
    image: &ClusterImage,
    index: PartitionIndex,
    state: &PartitionState,
    version: i16,
) -> MetadataResponsePartition {
    let leader = state
        .leader_node()
        .filter(|leader| context.service.is_live(*leader));
    let (leader, error) = match leader {
        None => (None, Some(ErrorCode::LeaderNotAvailable)),
        Some(leader) if context.reachable(image, leader).is_some() => (Some(leader), None),
        Some(_) if version < LISTENER_NOT_FOUND_SINCE => {
            (None, Some(ErrorCode::LeaderNotAvailable))
        }
        Some(_) => (None, Some(ErrorCode::ListenerNotFound)),
    };
    // A replica that this client cannot reach is none to read from, whatever the reason.
    let offline = state
        .replicas
        .iter()
        .filter(|replica| context.reachable(image, **replica).is_none())
        .map(|replica| broker(*replica))
        .collect();
    MetadataResponsePartition::default()
        .with_error_code(error.map_or(0, ErrorCode::code))
        .with_partition_index(index.to_wire())
        .with_leader_id(leader.map_or(BrokerId(-1), broker))
        .with_leader_epoch(state.leader_epoch.to_wire())
        .with_replica_nodes(state.replicas.iter().map(|node| broker(*node)).collect())
        .with_isr_nodes(state.isr.iter().map(|member| broker(member.node)).collect())
        .with_offline_replicas(offline)
}

fn broker(node: NodeId) -> BrokerId {
    BrokerId(node.as_broker_id())
}
