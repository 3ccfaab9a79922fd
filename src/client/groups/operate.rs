//! What an operator asks about groups.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::join_all;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{
    self, DeleteGroupsRequest, DescribeGroupsRequest, GroupId, ListGroupsRequest,
    OffsetCommitRequest, OffsetFetchRequest,
};

use super::assign::partition_names;
use super::newer::{self, GroupEpochs};
use crate::client::api::Spoken;
use crate::client::consumer::resolve;
use crate::client::error::ClientError;
use crate::client::metadata::PartitionName;
use crate::client::patience::Patience;
use crate::client::{Admin, Client, OffsetQuery, Start, wire_str};
use crate::groups::decode_assignment;
use crate::types::{ErrorCode, IsolationLevel, NodeId, Offset, PartitionIndex, TopicName};

/// A group as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    pub group: String,
    /// Kafka's word, such as "Stable".
    pub state: String,
    /// "consumer", or empty where nobody ever joined.
    pub protocol_type: String,
    /// Which group protocol its members use: "classic" or "consumer".
    pub group_type: String,
    pub coordinator: NodeId,
}

/// A group, its members, and how far it has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    pub group: String,
    pub state: String,
    pub protocol_type: String,
    /// Of a group of the newer protocol; `None` for the older one.
    pub epochs: Option<GroupEpochs>,
    /// The assignor; in the older protocol, while the group is stable.
    pub protocol: String,
    pub coordinator: NodeId,
    /// By id.
    pub members: Vec<GroupMember>,
    /// Each partition that a member reads or that has a committed offset, by name.
    pub offsets: Vec<GroupOffset>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    pub id: String,
    /// The name of a static member.
    pub instance: Option<String>,
    pub client_id: String,
    pub client_host: String,
    /// Empty where the group is not stable, or its members are no consumers.
    pub partitions: Vec<PartitionName>,
    /// What it is to have, in the newer protocol.
    pub target: Option<Vec<PartitionName>>,
    /// The member epoch, in the newer protocol.
    pub epoch: Option<i32>,
}

/// How far a group has read one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    pub partition: PartitionName,
    /// The next record to read. `None` where nothing is committed.
    pub committed: Option<i64>,
    /// Where the log begins and ends for readers. `None` where the topic or the partition is gone.
    pub log: Option<(Offset, Offset)>,
}

impl GroupOffset {
    /// How many offsets the group has before it: from what it has committed, or from the log's start where it has committed
    /// nothing or what has been removed since. `None` where there is no log.
    pub fn lag(&self) -> Option<u64> {
        let (start, end) = self.log?;
        let next = self.committed.and_then(Offset::from_wire);
        let next = next.unwrap_or(start).max(start);
        Some(end.get().saturating_sub(next.get()))
    }
}

impl Admin {
    /// Every group of the cluster, by name.
    ///
    /// # Errors
    /// Where one node cannot say, because then some groups would be missing.
    pub async fn list_groups(&self) -> Result<Vec<GroupSummary>, ClientError> {
        let client = self.client();
        client.refresh_all().await?;
        let nodes: Vec<NodeId> = client.view().nodes.keys().copied().collect();
        let asked = nodes.into_iter().map(|node| list_at(client, node));
        let mut groups = Vec::new();
        for found in join_all(asked).await {
            groups.extend(found?);
        }
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        // One that moves from node to node meanwhile may be told of twice.
        groups.dedup_by(|a, b| a.group == b.group);
        Ok(groups)
    }

    /// # Errors
    /// [`ErrorCode::GroupIdNotFound`] for a group that does not exist.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, ClientError> {
        let client = self.client();
        let what = || format!("describing group {group}");
        let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(wire_str(group))]);
        let found = client
            .at_coordinator(group, &request, |response, node| {
                let found = response.groups.into_iter().next();
                let found = found.ok_or_else(|| silent(DescribeGroupsRequest::NAME, group))?;
                ClientError::check(found.error_code, found.error_message.as_deref(), what)?;
                match found.group_state.as_str() {
                    "Dead" => Err(ClientError::Refused {
                        what: what(),
                        code: ErrorCode::GroupIdNotFound,
                        message: None,
                    }),
                    _ => Ok((found, node)),
                }
            })
            .await;
        let described = match found {
            Ok((found, coordinator)) => older(&found, coordinator),
            // One of the newer protocol is not there for who asks in the older one's words.
            Err(error) if error.error_code() == Some(ErrorCode::GroupIdNotFound) => {
                match client.describe_newer(group).await {
                    Ok((found, coordinator)) => newer::description(&found, coordinator),
                    Err(ClientError::Unsupported { .. }) => return Err(error),
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        let committed = client.committed(group, None).await?;
        let assigned = described.members.iter();
        let assigned = assigned.flat_map(|member| member.partitions.clone());
        let all: BTreeSet<PartitionName> = committed.keys().cloned().chain(assigned).collect();
        let logs = client.logs(&all).await?;
        let offsets = all.into_iter().map(|partition| GroupOffset {
            committed: committed.get(&partition).copied(),
            log: logs.get(&partition).copied(),
            partition,
        });
        Ok(GroupDescription {
            offsets: offsets.collect(),
            ..described
        })
    }

    /// Where each of these places lies now, and commits it for the group. Returns what was committed.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownMemberId`] while the group has members: they would not learn of it.
    pub async fn seek_group(
        &self,
        group: &str,
        places: Vec<(PartitionName, Start)>,
    ) -> Result<Vec<(PartitionName, i64)>, ClientError> {
        let client = self.client();
        let mut found = resolve(client, places, IsolationLevel::ReadUncommitted).await?;
        found.sort_unstable();
        client.commit(group, None, &found).await?;
        Ok(found)
    }

    /// # Errors
    /// [`ErrorCode::NonEmptyGroup`] while it has members, [`ErrorCode::GroupIdNotFound`] where there is none.
    pub async fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        let request =
            DeleteGroupsRequest::default().with_groups_names(vec![GroupId(wire_str(group))]);
        self.client()
            .at_coordinator(group, &request, |response, _| {
                let found = response.results.into_iter().next();
                let found = found.ok_or_else(|| silent(DeleteGroupsRequest::NAME, group))?;
                ClientError::check(found.error_code, None, || format!("deleting group {group}"))
            })
            .await
    }
}

async fn list_at(client: &Client, node: NodeId) -> Result<Vec<GroupSummary>, ClientError> {
    let Some(link) = client.node_link(node) else {
        return Ok(Vec::new());
    };
    let mut patience = Patience::new(client, client.config().request_timeout);
    loop {
        let request = ListGroupsRequest::default();
        let response = link.call(&request, patience.left()).await?;
        let what = || format!("listing the groups of node {node}");
        match ClientError::check(response.error_code, None, what) {
            Ok(()) => {
                let summary = |found: messages::list_groups_response::ListedGroup| GroupSummary {
                    group: found.group_id.0.to_string(),
                    state: found.group_state.to_string(),
                    protocol_type: found.protocol_type.to_string(),
                    // A build that says nothing of it knows the older protocol alone.
                    group_type: match found.group_type.is_empty() {
                        true => "classic".to_owned(),
                        false => found.group_type.to_string(),
                    },
                    coordinator: node,
                };
                return Ok(response.groups.into_iter().map(summary).collect());
            }
            Err(error) if super::coordinator::is_passing(&error) => {
                if !patience.pause().await {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// A group of the older protocol, as its coordinator describes it, still without its offsets.
fn older(described: &DescribedGroup, coordinator: NodeId) -> GroupDescription {
    let is_consumer = described.protocol_type.as_str() == "consumer";
    let member = |member: &DescribedGroupMember| GroupMember {
        id: member.member_id.to_string(),
        instance: member.group_instance_id.as_ref().map(ToString::to_string),
        client_id: member.client_id.to_string(),
        client_host: member.client_host.to_string(),
        partitions: match is_consumer {
            true => partitions(&member.member_assignment),
            false => Vec::new(),
        },
        target: None,
        epoch: None,
    };
    GroupDescription {
        group: described.group_id.0.to_string(),
        state: described.group_state.to_string(),
        protocol_type: described.protocol_type.to_string(),
        epochs: None,
        protocol: described.protocol_data.to_string(),
        coordinator,
        members: described.members.iter().map(member).collect(),
        offsets: Vec::new(),
    }
}

/// A member's assignment as far as it can be read.
fn partitions(assignment: &[u8]) -> Vec<PartitionName> {
    let mut found = partition_names(decode_assignment(assignment).unwrap_or_default());
    found.sort_unstable();
    found
}

pub(super) fn silent(request: &'static str, group: &str) -> ClientError {
    ClientError::Malformed {
        address: "the coordinator".to_owned(),
        request,
        what: format!("it says nothing of group {group}"),
    }
}

impl Client {
    /// What a group has committed: of these partitions, or of all.
    pub(super) async fn committed(
        &self,
        group: &str,
        of: Option<&[PartitionName]>,
    ) -> Result<HashMap<PartitionName, i64>, ClientError> {
        let topics = of.map(|partitions| {
            by_topic(partitions.iter().map(|name| (name, ())))
                .into_iter()
                .map(|(topic, partitions)| {
                    let indexes = partitions.into_iter().map(|(index, ())| index).collect();
                    OffsetFetchRequestTopics::default()
                        .with_name(messages::TopicName(wire_str(topic.as_str())))
                        .with_partition_indexes(indexes)
                })
                .collect()
        });
        let request = OffsetFetchRequest::default().with_groups(vec![
            OffsetFetchRequestGroup::default()
                .with_group_id(GroupId(wire_str(group)))
                .with_topics(topics),
        ]);
        let what = || format!("asking for the offsets of group {group}");
        self.at_coordinator(group, &request, |response, _| {
            let found = response.groups.into_iter().next();
            let found = found.ok_or_else(|| silent(OffsetFetchRequest::NAME, group))?;
            ClientError::check(found.error_code, None, what)?;
            let mut committed = HashMap::new();
            for topic in found.topics {
                let Ok(name) = TopicName::new(&topic.name.0) else {
                    continue;
                };
                for partition in topic.partitions {
                    ClientError::check(partition.error_code, None, what)?;
                    if partition.committed_offset >= 0
                        && let Some(index) = PartitionIndex::from_wire(partition.partition_index)
                    {
                        committed.insert(
                            PartitionName::new(name.clone(), index),
                            partition.committed_offset,
                        );
                    }
                }
            }
            Ok(committed)
        })
        .await
    }

    /// Commits offsets, as a member of a generation or, without one, from outside.
    pub(super) async fn commit(
        &self,
        group: &str,
        member: Option<(&str, i32)>,
        offsets: &[(PartitionName, i64)],
    ) -> Result<(), ClientError> {
        let (member, generation) = member.unwrap_or(("", -1));
        let topics = by_topic(offsets.iter().map(|(name, offset)| (name, *offset)))
            .into_iter()
            .map(|(topic, partitions)| {
                let partition = |(index, offset)| {
                    OffsetCommitRequestPartition::default()
                        .with_partition_index(index)
                        .with_committed_offset(offset)
                };
                OffsetCommitRequestTopic::default()
                    .with_name(messages::TopicName(wire_str(topic.as_str())))
                    .with_partitions(partitions.into_iter().map(partition).collect())
            });
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(wire_str(group)))
            .with_member_id(wire_str(member))
            .with_generation_id_or_member_epoch(generation)
            .with_topics(topics.collect());
        let what = || format!("committing offsets of group {group}");
        self.at_coordinator(group, &request, |response, _| {
            let mut partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
            partitions
                .try_for_each(|partition| ClientError::check(partition.error_code, None, what))
        })
        .await
    }

    /// Where each log begins and ends, of those that there are.
    async fn logs(
        &self,
        partitions: &BTreeSet<PartitionName>,
    ) -> Result<HashMap<PartitionName, (Offset, Offset)>, ClientError> {
        let mut topics: Vec<TopicName> = partitions.iter().map(|p| p.topic.clone()).collect();
        topics.dedup();
        if topics.is_empty() {
            return Ok(HashMap::new());
        }
        let (view, _) = self.refresh(&topics, false).await?;
        let known: Vec<&PartitionName> = partitions
            .iter()
            .filter(|name| view.partition(&name.topic, name.partition).is_some())
            .collect();
        let ask = |query| {
            let queries: Vec<_> = known.iter().map(|name| ((*name).clone(), query)).collect();
            async move { self.offsets(&queries).await }
        };
        let starts = ask(OffsetQuery::Earliest).await?;
        let ends = ask(OffsetQuery::Latest).await?;
        let of = |offsets: &HashMap<PartitionName, Option<Offset>>, name: &PartitionName| {
            offsets.get(name).copied().flatten()
        };
        Ok(known
            .into_iter()
            .filter_map(|name| Some((name.clone(), (of(&starts, name)?, of(&ends, name)?))))
            .collect())
    }
}

/// Partitions by topic, in order.
fn by_topic<'a, T>(
    partitions: impl Iterator<Item = (&'a PartitionName, T)>,
) -> BTreeMap<&'a TopicName, Vec<(i32, T)>> {
    let mut topics: BTreeMap<&TopicName, Vec<(i32, T)>> = BTreeMap::new();
    for (name, value) in partitions {
        let entry = topics.entry(&name.topic).or_default();
        entry.push((name.partition.to_wire(), value));
    }
    topics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_what_a_group_has_before_it() {
        let offset = |at| Offset::new(at).unwrap();
        let name = PartitionName::new(TopicName::new("t").unwrap(), PartitionIndex(0));
        let lag = |committed, log| {
            let partition = name.clone();
            GroupOffset {
                partition,
                committed,
                log,
            }
            .lag()
        };
        let log = Some((offset(20), offset(50)));
        assert_eq!(lag(Some(45), log), Some(5));
        assert_eq!(lag(Some(50), log), Some(0));
        assert_eq!(lag(None, log), Some(30), "it would begin at the start");
        assert_eq!(lag(Some(3), log), Some(30), "what it had next is gone");
        assert_eq!(lag(Some(99), log), Some(0));
        assert_eq!(lag(Some(45), None), None);
    }
}
