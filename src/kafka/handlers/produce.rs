//! Produce: checks each partition's batches and hands them to their partition, in order; answers when they are where
//! `acks` wants them.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::produce_response::{
    LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{BrokerId, ProduceRequest, ProduceResponse, TopicName};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::produce_refusal::{ProduceRefusal, check_keys};
use super::produce_transactions::{Prepared, verify};
use crate::kafka::codec::{BadRequest, RawRequest, text};
use crate::kafka::connection::{Pending, Reply};
use crate::kafka::context::{Context, TopicKey, deadline};
use crate::kafka::{Acks, Produce, ProduceOutcome, ProduceReply, Refusal, Service};
use crate::metadata::{ClusterImage, Topic, TopicConfig};
use crate::record::{Limits, check_produced};
use crate::types::{ErrorCode, LeaderEpoch, NodeId, TopicPartition, is_internal};

/// From this version on an error comes with words, and with the records that are at fault.
const MESSAGE_SINCE: i16 = 8;
/// From this version on "not the leader" comes with who is.
const LEADER_SINCE: i16 = 10;
/// From this version on a topic is named by its id.
const TOPIC_IDS_SINCE: i16 = 13;

pub(super) async fn begin<S: Service>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
) -> Result<Pending, BadRequest> {
    let decoded: ProduceRequest = request.decode()?;
    let answer = request.answer();
    let acks = decoded.acks;
    let deadline = deadline(decoded.timeout_ms);
    let submitted = submit(context, decoded, answer.version, deadline).await;
    let context = Arc::clone(context);
    Ok(Box::pin(async move {
        if acks == 0 {
            return Ok(without_response(submitted, deadline).await);
        }
        let results = collect(submitted, deadline).await;
        let response = respond(&context, results, answer.version);
        Ok(Reply::Send(answer.encode(&response)?.into()))
    }))
}

/// One topic of a request.
struct TopicShare<P> {
    name: TopicName,
    id: Uuid,
    partitions: Vec<(i32, P)>,
}

/// One partition's share that is under way, or was refused.
type Submitted = Result<(TopicPartition, ProduceReply), ProduceRefusal>;

/// One partition's share that is over. The partition is known where it was there.
type Finished = (
    Option<TopicPartition>,
    Result<ProduceOutcome, ProduceRefusal>,
);

async fn submit<S: Service>(
    context: &Context<S>,
    request: ProduceRequest,
    version: i16,
    deadline: Instant,
) -> Vec<TopicShare<Submitted>> {
    let by_id = version >= TOPIC_IDS_SINCE;
    let acks = match request.acks {
        0 => Ok(Acks::None),
        1 => Ok(Acks::Leader),
        -1 => Ok(Acks::All),
        _ => Err(Refusal::from(ErrorCode::InvalidRequiredAcks)),
    };
    let transactional_id = request.transactional_id.clone();
    let mut prepared = prepare(context, request, &acks, by_id);
    let shares = prepared
        .iter_mut()
        .flat_map(|topic| topic.partitions.iter_mut().map(|(_, share)| share))
        .collect();
    let transactional_id = transactional_id.as_ref().map(|id| id.as_str());
    verify(context, transactional_id, shares, version, deadline).await;
    let mut topics = Vec::with_capacity(prepared.len());
    for topic in prepared {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (index, share) in topic.partitions {
            let submitted = match (&acks, share) {
                (Err(refusal), _) => Err(refusal.clone().into()),
                (_, Err(refusal)) => Err(refusal),
                (Ok(acks), Ok(share)) => submit_share(context, share, *acks, deadline).await,
            };
            partitions.push((index, submitted));
        }
        topics.push(TopicShare {
            name: topic.name,
            id: topic.id,
            partitions,
        });
    }
    topics
}

/// Finds and checks what is to be appended, and where.
fn prepare<S: Service>(
    context: &Context<S>,
    request: ProduceRequest,
    acks: &Result<Acks, Refusal>,
    by_id: bool,
) -> Vec<TopicShare<Result<Prepared, ProduceRefusal>>> {
    let image = context.service.image();
    let mut topics = Vec::with_capacity(request.topic_data.len());
    for data in request.topic_data {
        let found = TopicKey::new(&data.name, data.topic_id, by_id).find(&image);
        let config = found.topic.map(|topic| settings(topic));
        let internal = found
            .topic
            .is_some_and(|topic| is_internal(topic.name.as_str()));
        let mut partitions = Vec::with_capacity(data.partition_data.len());
        for share in data.partition_data {
            let prepared = match (acks, found.partition(share.index)) {
                (Err(refusal), _) => Err(refusal.clone().into()),
                (_, Err(error)) => Err(error.into()),
                (Ok(_), Ok(_)) if internal => Err(Refusal {
                    error: ErrorCode::InvalidTopicException,
                    message: Some(
                        "the topic is the cluster's own: clients read it only".to_owned(),
                    ),
                }
                .into()),
                (Ok(_), Ok(partition)) => {
                    let records = share.records.unwrap_or_default();
                    prepare_share(partition, &records, config.as_ref())
                }
            };
            partitions.push((share.index, prepared));
        }
        topics.push(TopicShare {
            name: data.name,
            id: data.topic_id,
            partitions,
        });
    }
    topics
}

fn prepare_share(
    partition: TopicPartition,
    records: &Bytes,
    config: Option<&TopicConfig>,
) -> Result<Prepared, ProduceRefusal> {
    let limits = Limits {
        max_batch_bytes: config.map_or(0, |config| config.max_message_bytes as usize),
    };
    let batches = check_produced(records, &limits).map_err(|error| Refusal {
        error: error.error_code(),
        message: Some(error.to_string()),
    })?;
    if config.is_some_and(|config| config.compact) {
        batches.iter().try_for_each(check_keys)?;
    }
    Ok(Prepared {
        partition,
        batches,
        guard: None,
    })
}

async fn submit_share<S: Service>(
    context: &Context<S>,
    share: Prepared,
    acks: Acks,
    deadline: Instant,
) -> Submitted {
    let partition = share.partition;
    let produce = Produce {
        partition,
        batches: share.batches,
        acks,
        deadline,
        guard: share.guard,
    };
    // The service keeps the deadline itself; this holds even for one that does not, because the connection waits here.
    match timeout_at(deadline, context.service.submit_produce(produce)).await {
        Ok(reply) => Ok((partition, reply)),
        Err(_) => Err(ErrorCode::RequestTimedOut.into()),
    }
}

/// The topic's settings. The image holds only configurations that can be read; were one not, the
/// default would hold.
fn settings(topic: &Topic) -> TopicConfig {
    TopicConfig::from_map(&topic.config).unwrap_or_default()
}

/// Waits for every partition, until the one deadline of the request.
async fn collect(
    submitted: Vec<TopicShare<Submitted>>,
    deadline: Instant,
) -> Vec<TopicShare<Finished>> {
    let mut topics = Vec::with_capacity(submitted.len());
    for topic in submitted {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (index, share) in topic.partitions {
            let finished = match share {
                Err(refusal) => (None, Err(refusal)),
                Ok((partition, reply)) => {
                    let result = match timeout_at(deadline, reply).await {
                        Ok(Ok(result)) => result,
                        Ok(Err(_)) => Err(ErrorCode::NotLeaderOrFollower),
                        Err(_) => Err(ErrorCode::RequestTimedOut),
                    };
                    (Some(partition), result.map_err(ProduceRefusal::from))
                }
            };
            partitions.push((index, finished));
        }
        topics.push(TopicShare {
            name: topic.name,
            id: topic.id,
            partitions,
        });
    }
    topics
}

/// With acks=0 a failure shows in nothing but a closed connection, as with Kafka: the producer then asks who leads. The
/// reply is waited for all the same, so that what the node has in hand stays bounded.
async fn without_response(topics: Vec<TopicShare<Submitted>>, deadline: Instant) -> Reply {
    for topic in topics {
        for (index, share) in topic.partitions {
            let refusal = match share {
                Err(refused) => refused.refusal,
                Ok((_, reply)) => match timeout_at(deadline, reply).await {
                    Ok(Ok(Err(error))) => error.into(),
                    // Done, or nobody answers because nobody is to hear it.
                    Ok(Ok(Ok(_)) | Err(_)) | Err(_) => continue,
                },
            };
            let reason = match refusal.message {
                Some(message) => message,
                None => refusal.error.to_string(),
            };
            return Reply::Close(format!(
                "a produce with acks=0 to {:.249}-{index} failed: {reason}",
                topic.name.as_str()
            ));
        }
    }
    Reply::Nothing
}

fn respond<S: Service>(
    context: &Context<S>,
    topics: Vec<TopicShare<Finished>>,
    version: i16,
) -> ProduceResponse {
    let image = context.service.image();
    let mut named_leaders = Vec::new();
    let responses = topics
        .into_iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .into_iter()
                .map(|(index, finished)| {
                    let leader =
                        redirect(context, &image, &finished).filter(|_| version >= LEADER_SINCE);
                    if let Some((node, _)) = leader
                        && !named_leaders.contains(&node)
                    {
                        named_leaders.push(node);
                    }
                    respond_partition(index, finished.1, leader, version)
                })
                .collect();
            TopicProduceResponse::default()
                .with_name(topic.name)
                .with_topic_id(topic.id)
                .with_partition_responses(partitions)
        })
        .collect();
    let endpoints = named_leaders
        .into_iter()
        .filter_map(|node| {
            let endpoint = context.reachable(&image, node)?;
            Some(
                NodeEndpoint::default()
                    .with_node_id(BrokerId(node.as_broker_id()))
                    .with_host(text(endpoint.host.clone()))
                    .with_port(endpoint.port.into()),
            )
        })
        .collect();
    ProduceResponse::default()
        .with_responses(responses)
        .with_node_endpoints(endpoints)
}

/// Who leads instead.
fn redirect<S: Service>(
    context: &Context<S>,
    image: &ClusterImage,
    finished: &Finished,
) -> Option<(NodeId, LeaderEpoch)> {
    let (Some(partition), Err(refused)) = finished else {
        return None;
    };
    if refused.refusal.error != ErrorCode::NotLeaderOrFollower {
        return None;
    }
    context.other_leader(image, *partition)
}

fn respond_partition(
    index: i32,
    result: Result<ProduceOutcome, ProduceRefusal>,
    leader: Option<(NodeId, LeaderEpoch)>,
    version: i16,
) -> PartitionProduceResponse {
    let response = PartitionProduceResponse::default().with_index(index);
    match result {
        Ok(outcome) => response
            .with_base_offset(outcome.base_offset.to_wire())
            .with_log_append_time_ms(outcome.log_append_time_ms.unwrap_or(-1))
            .with_log_start_offset(outcome.log_start_offset.to_wire()),
        Err(refused) => {
            let records = if version >= MESSAGE_SINCE {
                refused.named_records()
            } else {
                Vec::new()
            };
            let refusal = refused.refusal;
            let message = refusal.message.filter(|_| version >= MESSAGE_SINCE);
            let response = response
                .with_error_code(refusal.error.code())
                .with_record_errors(records)
                .with_base_offset(-1)
                .with_log_append_time_ms(-1)
                .with_log_start_offset(-1)
                .with_error_message(message.map(text));
            match leader {
                None => response,
                Some((node, epoch)) => response.with_current_leader(
                    LeaderIdAndEpoch::default()
                        .with_leader_id(BrokerId(node.as_broker_id()))
                        .with_leader_epoch(epoch.to_wire()),
                ),
            }
        }
    }
}
