//! Asking partitions' leaders for offsets.

use std::collections::{BTreeMap, HashMap};

use futures_util::future::join_all;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{self, BrokerId, ListOffsetsRequest};

use super::departed::SUSPECT_AFTER;
use super::error::ClientError;
use super::metadata::PartitionName;
use super::patience::Patience;
use super::{Client, wire_str};
use crate::types::{ErrorCode, IsolationLevel, NodeId, Offset};

/// Which offset of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetQuery {
    /// The log's start.
    Earliest,
    /// The high watermark: where the next committed record goes.
    Latest,
    /// The first record whose timestamp, in milliseconds since 1970, is at least this.
    Timestamp(i64),
}

impl OffsetQuery {
    const fn to_wire(self) -> i64 {
        match self {
            OffsetQuery::Earliest => -2,
            OffsetQuery::Latest => -1,
            OffsetQuery::Timestamp(ms) => ms,
        }
    }
}

impl Client {
    /// The offset of each partition; `None` where a timestamp was asked for that no record reaches. Asks each leader once
    /// for all its partitions, and again, within the request timeout, those that were not ready: leaders move, and a new
    /// one does not know its high watermark at once.
    pub async fn offsets(
        &self,
        queries: &[(PartitionName, OffsetQuery)],
    ) -> Result<HashMap<PartitionName, Option<Offset>>, ClientError> {
        self.offsets_seen(queries, IsolationLevel::ReadUncommitted)
            .await
    }

    /// As [`Client::offsets`]; a reader of committed transactions finds the end at the last stable offset, and no record behind
    /// it.
    pub async fn offsets_seen(
        &self,
        queries: &[(PartitionName, OffsetQuery)],
        isolation: IsolationLevel,
    ) -> Result<HashMap<PartitionName, Option<Offset>>, ClientError> {
        let mut patience = Patience::new(self, self.config().request_timeout);
        let mut found = HashMap::new();
        let mut open: Vec<(PartitionName, OffsetQuery)> = queries.to_vec();
        let mut last = None;
        loop {
            let view = self.view();
            let mut by_leader: BTreeMap<NodeId, Vec<(PartitionName, OffsetQuery, i32)>> =
                BTreeMap::new();
            for (name, query) in &open {
                if let Some((leader, _, epoch)) = view.leader(&name.topic, name.partition) {
                    by_leader
                        .entry(leader)
                        .or_default()
                        .push((name.clone(), *query, epoch));
                }
            }
            let asked = by_leader
                .into_iter()
                .map(|(leader, queries)| self.offsets_at(leader, queries, isolation));
            for answer in join_all(asked).await {
                match answer {
                    Ok(answers) => {
                        for (name, answer) in answers {
                            match answer {
                                Ok(offset) => {
                                    open.retain(|(open, _)| *open != name);
                                    found.insert(name, offset);
                                }
                                Err(error) if error.is_retriable() => last = Some(error),
                                Err(error) => return Err(error),
                            }
                        }
                    }
                    Err(error) if error.is_retriable() => last = Some(error),
                    Err(error) => return Err(error),
                }
            }
            let Some((first, _)) = open.first() else {
                return Ok(found);
            };
            if !patience.pause().await {
                let cause = last.unwrap_or_else(|| ClientError::NoLeader {
                    topic: first.topic.clone(),
                    partition: first.partition,
                    after: patience.elapsed(),
                });
                return Err(patience.gave_up(format!("asking for the offsets of {first}"), cause));
            }
            let mut topics: Vec<_> = open.iter().map(|(name, _)| name.topic.clone()).collect();
            topics.sort_unstable();
            topics.dedup();
            for topic in &topics {
                // Fails where the topic does not exist; its absence is remembered otherwise only as "no leader".
                let (view, failed) = self.refresh(std::slice::from_ref(topic), false).await?;
                let unknown = failed
                    .iter()
                    .any(|(_, code)| *code == ErrorCode::UnknownTopicOrPartition);
                if unknown && patience.elapsed() > super::UNKNOWN_TOPIC_PATIENCE {
                    return Err(ClientError::UnknownTopic {
                        topic: topic.clone(),
                    });
                }
                if let Some(known) = view.topics.get(topic)
                    && let Some((name, _)) = open.iter().find(|(name, _)| {
                        name.topic == *topic && name.partition.0 as usize >= known.partitions.len()
                    })
                {
                    return Err(ClientError::UnknownPartition {
                        topic: topic.clone(),
                        partition: name.partition,
                        partitions: known.partitions.len(),
                    });
                }
            }
        }
    }

    async fn offsets_at(
        &self,
        leader: NodeId,
        queries: Vec<(PartitionName, OffsetQuery, i32)>,
        isolation: IsolationLevel,
    ) -> Result<Vec<(PartitionName, Result<Option<Offset>, ClientError>)>, ClientError> {
        let Some(link) = self.node_link(leader) else {
            return Ok(Vec::new());
        };
        let mut topics: BTreeMap<&str, Vec<ListOffsetsPartition>> = BTreeMap::new();
        for (name, query, epoch) in &queries {
            let partition = ListOffsetsPartition::default()
                .with_partition_index(name.partition.to_wire())
                .with_current_leader_epoch(*epoch)
                .with_timestamp(query.to_wire());
            topics
                .entry(name.topic.as_str())
                .or_default()
                .push(partition);
        }
        let topics = topics.into_iter().map(|(topic, partitions)| {
            ListOffsetsTopic::default()
                .with_name(messages::TopicName(wire_str(topic)))
                .with_partitions(partitions)
        });
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_isolation_level(isolation.to_wire())
            .with_topics(topics.collect());
        let timeout = self.config().request_timeout;
        let names: Vec<PartitionName> = queries.iter().map(|(name, ..)| name.clone()).collect();
        let response = tokio::select! {
            response = link.call(&request, timeout) => response?,
            departed = self.departed(leader, &link.address, &names, SUSPECT_AFTER) => return Err(departed),
        };
        let mut answers = Vec::new();
        for topic in response.topics {
            for partition in topic.partitions {
                let asked = queries.iter().find(|(name, ..)| {
                    name.topic.as_str() == topic.name.0.as_str()
                        && name.partition.to_wire() == partition.partition_index
                });
                let Some((name, ..)) = asked else {
                    continue;
                };
                let what = || format!("asking for an offset of {name}");
                let answer = ClientError::check(partition.error_code, None, what)
                    .map(|()| Offset::from_wire(partition.offset));
                answers.push((name.clone(), answer));
            }
        }
        Ok(answers)
    }
}
