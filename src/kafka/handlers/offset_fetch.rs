//! OffsetFetch: how far groups have read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{OffsetFetchRequest, OffsetFetchResponse, TopicName};

use super::groups::{ask, code, unexpected};
use crate::groups::{Answer, FetchedOffset, Request};
use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::Context;
use crate::kafka::limits::MAX_DESCRIPTION_BYTES;
use crate::types::ErrorCode;

/// Since this version, several groups are asked for at once.
const SEVERAL_SINCE: i16 = 8;
/// Before this version, an error has its place only beside each partition.
const ERROR_SINCE: i16 = 2;
/// What a partition takes in an answer besides its text, roughly.
const PARTITION_BYTES: usize = 32;

/// One group's offsets by topic, or why there are none.
type Found = Result<BTreeMap<Arc<str>, Vec<FetchedOffset>>, ErrorCode>;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: OffsetFetchRequest,
    version: i16,
) -> OffsetFetchResponse {
    if version >= SEVERAL_SINCE {
        let groups = several(&context, request.groups, request.require_stable).await;
        return OffsetFetchResponse::default().with_groups(groups);
    }
    let wanted: Option<Vec<(String, i32)>> = request.topics.as_ref().map(|topics| {
        let flat = topics.iter().flat_map(|topic| {
            let name = topic.name.as_str();
            topic
                .partition_indexes
                .iter()
                .map(move |&partition| (name.to_owned(), partition))
        });
        flat.collect()
    });
    let stable = request.require_stable;
    let found = fetch(&context, &request.group_id, wanted.clone(), None, stable).await;
    let response = OffsetFetchResponse::default();
    match found {
        Ok(found) => response.with_topics(found.into_iter().map(old_topic).collect()),
        Err(error) if version >= ERROR_SINCE => response.with_error_code(error.code()),
        Err(error) => {
            let refused = |(topic, partition): (String, i32)| {
                let partition = OffsetFetchResponsePartition::default()
                    .with_partition_index(partition)
                    .with_committed_offset(-1)
                    .with_metadata(Some(text("")))
                    .with_error_code(error.code());
                OffsetFetchResponseTopic::default()
                    .with_name(TopicName(text(topic)))
                    .with_partitions(vec![partition])
            };
            let wanted = wanted.unwrap_or_default();
            response.with_topics(wanted.into_iter().map(refused).collect())
        }
    }
}

/// Each group once, however often it is named: else a small request makes a huge answer.
async fn several<S: Service>(
    context: &Context<S>,
    groups: Vec<OffsetFetchRequestGroup>,
    stable: bool,
) -> Vec<OffsetFetchResponseGroup> {
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut answers = Vec::new();
    for group in groups {
        if !seen.insert(group.group_id.clone()) {
            continue;
        }
        let found = if bytes > MAX_DESCRIPTION_BYTES {
            Err(ErrorCode::PolicyViolation)
        } else {
            let wanted = group.topics.map(|topics| {
                let mut flat = Vec::new();
                for topic in topics {
                    for partition in topic.partition_indexes {
                        flat.push((topic.name.as_str().to_owned(), partition));
                    }
                }
                flat
            });
            // Who is no member says nothing of itself.
            let member = group.member_id.as_ref();
            let asker = member.map(|member| (member.as_str().to_owned(), group.member_epoch));
            let asker = asker.filter(|(member, epoch)| !member.is_empty() || *epoch >= 0);
            fetch(context, &group.group_id, wanted, asker, stable).await
        };
        let response = OffsetFetchResponseGroup::default()
            .with_group_id(group.group_id)
            .with_error_code(code(&found));
        let found = found.unwrap_or_default();
        bytes += found.values().flatten().map(size).sum::<usize>();
        answers.push(response.with_topics(found.into_iter().map(new_topic).collect()));
    }
    answers
}

fn size(offset: &FetchedOffset) -> usize {
    let metadata = offset.committed.as_ref().map_or(0, |c| c.metadata.len());
    PARTITION_BYTES + metadata
}

async fn fetch<S: Service>(
    context: &Context<S>,
    group: &str,
    wanted: Option<Vec<(String, i32)>>,
    asker: Option<(String, i32)>,
    stable: bool,
) -> Found {
    let request = Request::FetchOffsets { wanted, asker };
    let offsets = match ask(context, group, request).await {
        Ok(Answer::Offsets(offsets)) => Ok(offsets),
        Ok(other) => unexpected(other),
        Err(error) => Err(error),
    }?;
    let mut topics: BTreeMap<Arc<str>, Vec<FetchedOffset>> = BTreeMap::new();
    for mut offset in offsets {
        // To whoever does not ask for what is certain, what was committed last is good enough.
        offset.is_pending &= stable;
        topics.entry(offset.topic.clone()).or_default().push(offset);
    }
    Ok(topics)
}

/// Error, offset, leader epoch and metadata as they go on the wire; −1 and no text where there are none, or where a transaction
/// that has not ended may change them.
fn parts(offset: &FetchedOffset) -> (i16, i64, i32, String) {
    if offset.is_pending {
        return (
            ErrorCode::UnstableOffsetCommit.code(),
            -1,
            -1,
            String::new(),
        );
    }
    match &offset.committed {
        Some(found) => (
            0,
            found.offset,
            found.leader_epoch,
            found.metadata.to_string(),
        ),
        None => (0, -1, -1, String::new()),
    }
}

fn old_topic((topic, offsets): (Arc<str>, Vec<FetchedOffset>)) -> OffsetFetchResponseTopic {
    let partition = |found: FetchedOffset| {
        let (error, offset, epoch, metadata) = parts(&found);
        OffsetFetchResponsePartition::default()
            .with_partition_index(found.partition)
            .with_error_code(error)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(epoch)
            .with_metadata(Some(text(metadata)))
    };
    OffsetFetchResponseTopic::default()
        .with_name(TopicName(text(&*topic)))
        .with_partitions(offsets.into_iter().map(partition).collect())
}

fn new_topic((topic, offsets): (Arc<str>, Vec<FetchedOffset>)) -> OffsetFetchResponseTopics {
    let partition = |found: FetchedOffset| {
        let (error, offset, epoch, metadata) = parts(&found);
        OffsetFetchResponsePartitions::default()
            .with_partition_index(found.partition)
            .with_error_code(error)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(epoch)
            .with_metadata(Some(text(metadata)))
    };
    OffsetFetchResponseTopics::default()
        .with_name(TopicName(text(&*topic)))
        .with_partitions(offsets.into_iter().map(partition).collect())
}
