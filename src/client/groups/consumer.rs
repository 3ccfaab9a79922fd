//! A consumer that reads what its group gives it, and commits how far it has come.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};

use super::membership::{Membership, Trouble, join, leave};
use crate::client::Client;
use crate::client::consumer::{Consumer, ConsumerConfig, ConsumerRecord, Event, Start};
use crate::client::error::ClientError;
use crate::client::metadata::PartitionName;
use crate::types::{Offset, TopicName};

/// How a member of a group behaves. [`GroupConfig::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    pub group: String,
    pub topics: Vec<TopicName>,
    /// `session.timeout.ms`: after so long without a heartbeat, of which three are sent in that time, the group goes on
    /// without this member. Default 10 s.
    pub session_timeout: Duration,
    /// `max.poll.interval.ms`: how long the others wait for this member to come to [`GroupConsumer::next`] when the group
    /// rebalances. Default 60 s.
    pub rebalance_timeout: Duration,
    /// Where to begin with a partition for which nothing is committed. Default: its start.
    pub start: Start,
    pub consumer: ConsumerConfig,
}

impl GroupConfig {
    pub fn new(group: impl Into<String>, topics: Vec<TopicName>) -> GroupConfig {
        GroupConfig {
            group: group.into(),
            topics,
            session_timeout: Duration::from_secs(10),
            rebalance_timeout: Duration::from_secs(60),
            start: Start::Beginning,
            consumer: ConsumerConfig::default(),
        }
    }
}

/// What a member of a group met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// These partitions, and no others, are read from now on.
    Assigned(Vec<PartitionName>),
    Record(ConsumerRecord),
    /// See [`Event::EndOfPartition`].
    EndOfPartition {
        partition: PartitionName,
        offset: Offset,
    },
    /// The group gives out its partitions anew. Commit now what is done with; the next call gives up what was assigned.
    Rebalancing,
}

/// A member of a group. Drive it with [`GroupConsumer::next`]; heartbeats are sent by themselves.
///
/// Each record is given out at least once: again where it was not committed before another member, or this one after a
/// restart, took its partition over.
pub struct GroupConsumer {
    client: Client,
    config: Arc<GroupConfig>,
    consumer: Consumer,
    /// The last id that a coordinator gave; empty before.
    member: String,
    membership: Option<Membership>,
    joining: Option<BoxFuture<'static, Result<Membership, ClientError>>>,
    /// The assignment is not with the consumer yet.
    assigning: bool,
    /// [`GroupEvent::Rebalancing`] was said.
    rebalancing: bool,
    /// The next offset of each partition of which records were given out.
    given: BTreeMap<PartitionName, i64>,
    /// The same of those that the caller is done with.
    done: BTreeMap<PartitionName, i64>,
    committed: BTreeMap<PartitionName, i64>,
}

impl fmt::Debug for GroupConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConsumer")
            .field("group", &self.config.group)
            .field("member", &self.member)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A member of a group, which joins with the first call of [`GroupConsumer::next`].
    pub fn group_consumer(&self, config: GroupConfig) -> Result<GroupConsumer, ClientError> {
        if config.session_timeout < Duration::from_millis(300) {
            return Err(ClientError::Configuration {
                what: "a session timeout must be at least 300 ms".to_owned(),
            });
        }
        Ok(GroupConsumer {
            client: self.clone(),
            consumer: self.consumer(config.consumer.clone())?,
            config: Arc::new(config),
            member: String::new(),
            membership: None,
            joining: None,
            assigning: false,
            rebalancing: false,
            given: BTreeMap::new(),
            done: BTreeMap::new(),
            committed: BTreeMap::new(),
        })
    }
}

impl GroupConsumer {
    /// The next thing that happens. Waits for as long as nothing does; a coordinator that cannot be reached is tried again for
    /// ever, with a log line. Can be dropped at any time without losing a record.
    ///
    /// # Errors
    /// Those of [`Consumer::next`], and what keeps this member from joining for good, such as
    /// [`ErrorCode::InconsistentGroupProtocol`](crate::types::ErrorCode::InconsistentGroupProtocol) in a group whose members
    /// use another assignor.
    pub async fn next(&mut self) -> Result<GroupEvent, ClientError> {
        loop {
            if self.rebalancing {
                self.give_up();
            }
            let Some(membership) = &mut self.membership else {
                self.join().await?;
                continue;
            };
            if self.assigning {
                self.consumer.assign(membership.starts.clone()).await?;
                self.assigning = false;
                let partitions = membership.starts.iter().map(|(name, _)| name.clone());
                return Ok(GroupEvent::Assigned(partitions.collect()));
            }
            let reads = !membership.starts.is_empty();
            tokio::select! {
                biased;
                changed = membership.trouble.changed() => {
                    if changed.is_err() || membership.trouble.borrow().is_some() {
                        self.rebalancing = true;
                        return Ok(GroupEvent::Rebalancing);
                    }
                }
                event = self.consumer.next(), if reads => return Ok(self.met(event?)),
            }
        }
    }

    fn met(&mut self, event: Event) -> GroupEvent {
        match event {
            Event::Record(record) => {
                let name = PartitionName::new(record.topic.clone(), record.partition);
                self.given
                    .insert(name, record.record.offset.saturating_add(1));
                GroupEvent::Record(record)
            }
            Event::EndOfPartition {
                topic,
                partition,
                offset,
            } => GroupEvent::EndOfPartition {
                partition: PartitionName::new(topic, partition),
                offset,
            },
        }
    }

    async fn join(&mut self) -> Result<(), ClientError> {
        let (client, config) = (&self.client, &self.config);
        let member = &self.member;
        let joining = self
            .joining
            .get_or_insert_with(|| join(client.clone(), config.clone(), member.clone()).boxed());
        let joined = joining.await;
        self.joining = None;
        let membership = joined?;
        self.member.clone_from(&membership.member);
        self.membership = Some(membership);
        self.assigning = true;
        Ok(())
    }

    /// Leaves the generation, not the group.
    fn give_up(&mut self) {
        self.rebalancing = false;
        if let Some(membership) = self.membership.take()
            && *membership.trouble.borrow() == Some(Trouble::Lost { known: false })
        {
            self.member.clear();
        }
        self.given.clear();
        self.done.clear();
        self.committed.clear();
    }

    /// The caller is done with every record that was given out: [`GroupConsumer::commit`] may commit them.
    pub fn done(&mut self) {
        self.done.clone_from(&self.given);
    }

    /// Whether there is anything to commit.
    pub fn has_uncommitted(&self) -> bool {
        self.done != self.committed
    }

    /// Commits what the caller is done with. When this returns, every later coordinator knows it.
    ///
    /// # Errors
    /// Where the group went on without this member, what was not committed is given out again, to whoever has its partitions
    /// now.
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        let Some(membership) = &self.membership else {
            return Ok(());
        };
        let changed: Vec<(PartitionName, i64)> = self
            .done
            .iter()
            .filter(|(name, offset)| self.committed.get(*name) != Some(offset))
            .map(|(name, offset)| (name.clone(), *offset))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let member = Some((&*membership.member, membership.generation));
        self.client
            .commit(&self.config.group, member, &changed)
            .await?;
        self.committed.extend(changed);
        Ok(())
    }

    /// Leaves the group. What is to be committed is committed before, by the caller.
    pub async fn leave(mut self) -> Result<(), ClientError> {
        self.membership = None;
        self.joining = None;
        if self.member.is_empty() {
            return Ok(());
        }
        leave(&self.client, &self.config, &self.member).await
    }
}
