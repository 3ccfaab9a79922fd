//! How a command changes the image. Every check is here, so that every node decides alike; each function checks first and
//! changes afterwards, so that a rejected command leaves no trace.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::command::{
    Appointing, Command, ConfigChange, ElectionStart, NewPartition, NewTopic, Outcome,
    PartitionChange, Rejection,
};
use super::image::{
    ClusterImage, Endpoint, MAX_CHANGES_PER_COMMAND, MAX_HOST_BYTES, MAX_LISTENERS, MAX_NODES,
    MAX_PARTITIONS, MAX_PARTITIONS_PER_TOPIC, MAX_PRODUCER_ID_BLOCK, MAX_REPLICAS, MAX_TOPICS,
    Registration, Topic,
};
use super::topic_config::TopicConfig;
use crate::types::{
    Appointment, ClusterId, DirectoryId, IsrChange, LeaderEpoch, NodeId, PartitionEpoch,
    PartitionIndex, PartitionState, ProducerId, TopicId, TopicPartition,
};

/// The first leader's epoch. [`LeaderEpoch::NONE`] means "before the first leader".
const FIRST_LEADER_EPOCH: Option<LeaderEpoch> = LeaderEpoch::new(1);

impl ClusterImage {
    /// Applies one committed command. The result depends on the image and the command alone. A rejected command changes
    /// nothing; of a batch, each partition is accepted or rejected by itself.
    ///
    /// A proposer that did not learn what became of its command may propose it again: a topic, a registration or an ISR
    /// change that is there already is accepted as it is, and what else would do harm twice is rejected the second time.
    /// `AllocateProducerIds` happens twice, and skips ids.
    pub fn apply(&mut self, command: &Command) -> Result<Outcome, Rejection> {
        if let Command::InitCluster { cluster_id } = command {
            return self.init_cluster(*cluster_id);
        }
        if self.cluster_id.is_none() {
            return Err(Rejection::NoCluster);
        }
        self.check_version(command)?;
        match command {
            Command::InitCluster { cluster_id } => self.init_cluster(*cluster_id),
            Command::RegisterNode { registration } => self.register_node(registration),
            Command::UnregisterNode { node, directory } => self.unregister_node(*node, *directory),
            Command::CreateTopic { topic } => self.create_topic(topic),
            Command::DeleteTopic { topic } => self.delete_topic(*topic),
            Command::CreatePartitions {
                topic,
                expected_count,
                partitions,
                min_insync,
            } => self.create_partitions(*topic, *expected_count, partitions, *min_insync),
            Command::SetTopicConfigs { topic, changes } => self.set_topic_configs(*topic, changes),
            Command::StartElections { elections } => {
                self.each_partition(elections, ClusterImage::start_election)
            }
            Command::AppointLeaders { appointments } => {
                self.each_partition(appointments, ClusterImage::appoint_leader)
            }
            Command::ChangeIsrs { changes } => {
                self.each_partition(changes, ClusterImage::change_isr)
            }
            Command::AllocateProducerIds { node, count } => {
                self.allocate_producer_ids(*node, *count)
            }
            Command::RaiseMetadataVersion { version } => self.raise_version(*version),
            Command::SetDraining {
                node,
                incarnation,
                on,
            } => self.set_draining(*node, *incarnation, *on),
            Command::Reassign { reassignments } => {
                self.each_partition(reassignments, ClusterImage::reassign)
            }
            Command::FinishReassignments { ends } => {
                self.each_partition(ends, ClusterImage::finish_reassignment)
            }
            Command::ForceLeaders { leaders } => {
                self.each_partition(leaders, ClusterImage::force_leader)
            }
            Command::SetControllers {
                before,
                controllers,
            } => self.set_controllers(before, controllers),
            Command::DeleteRecords { deletions } => {
                self.each_partition(deletions, ClusterImage::delete_records)
            }
            Command::SetCredential {
                user,
                mechanism,
                verifier,
            } => self.set_credential(user, *mechanism, verifier),
            Command::DeleteCredential { user, mechanism } => {
                self.delete_credential(user, *mechanism)
            }
        }
    }

    /// Whether every node of the cluster can read `command` in the log.
    pub fn check_version(&self, command: &Command) -> Result<(), Rejection> {
        let needed = command.since_version();
        if needed > self.metadata_version {
            return Err(Rejection::VersionTooLow {
                needed,
                present: self.metadata_version,
            });
        }
        Ok(())
    }

    fn init_cluster(&mut self, offered: ClusterId) -> Result<Outcome, Rejection> {
        match self.cluster_id {
            None => {
                self.cluster_id = Some(offered);
                Ok(Outcome::Done)
            }
            Some(present) if present == offered => Ok(Outcome::Unchanged),
            Some(present) => Err(Rejection::OtherCluster { present, offered }),
        }
    }

    fn register_node(&mut self, offered: &Registration) -> Result<Outcome, Rejection> {
        check_registration(offered)?;
        if offered.metadata_version < self.metadata_version {
            return Err(Rejection::MetadataVersion {
                node: offered.node,
                cluster: self.metadata_version,
                offered: offered.metadata_version,
            });
        }
        match self.nodes.get(&offered.node) {
            Some(present) if present.directory != offered.directory => {
                return Err(Rejection::DirectoryInUse {
                    node: offered.node,
                    registered: present.directory,
                    offered: offered.directory,
                });
            }
            Some(present) if **present == *offered => return Ok(Outcome::Unchanged),
            Some(_) => {}
            None if self.nodes.len() >= MAX_NODES => return Err(limit("nodes", MAX_NODES)),
            None => {}
        }
        if self
            .registered(offered.node)
            .is_some_and(|present| present.incarnation != offered.incarnation)
        {
            self.draining.remove(&offered.node);
        }
        self.nodes.insert(offered.node, Arc::new(offered.clone()));
        Ok(Outcome::Done)
    }

    fn unregister_node(
        &mut self,
        node: NodeId,
        directory: Option<DirectoryId>,
    ) -> Result<Outcome, Rejection> {
        let present = self.nodes.get(&node).ok_or(Rejection::UnknownNode(node))?;
        if let Some(offered) = directory.filter(|&directory| directory != present.directory) {
            return Err(Rejection::DirectoryInUse {
                node,
                registered: present.directory,
                offered,
            });
        }
        self.nodes.remove(&node);
        self.draining.remove(&node);
        Ok(Outcome::Done)
    }

    fn create_topic(&mut self, new: &NewTopic) -> Result<Outcome, Rejection> {
        if let Some(present) = self.topics.get(&new.id) {
            // The same proposal again: its proposer did not learn that it had been committed.
            return if present.name == new.name {
                Ok(Outcome::TopicCreated { topic: new.id })
            } else {
                Err(Rejection::TopicIdExists(new.id))
            };
        }
        if self.names.contains_key(&new.name) {
            return Err(Rejection::TopicExists(new.name.clone()));
        }
        if self.topics.len() >= MAX_TOPICS {
            return Err(limit("topics", MAX_TOPICS));
        }
        TopicConfig::from_map(&new.config)?;
        let partitions = self.new_partitions(0, &new.partitions, new.min_insync)?;
        self.partition_count += partitions.len();
        self.names.insert(new.name.clone(), new.id);
        let topic = Topic {
            id: new.id,
            name: new.name.clone(),
            config: new.config.clone(),
            partitions,
        };
        self.topics.insert(new.id, Arc::new(topic));
        Ok(Outcome::TopicCreated { topic: new.id })
    }

    fn delete_topic(&mut self, id: TopicId) -> Result<Outcome, Rejection> {
        let topic = self.topics.remove(&id).ok_or(Rejection::UnknownTopic(id))?;
        self.names.remove(&topic.name);
        self.partition_count -= topic.partitions.len();
        self.reassigned_from
            .retain(|partition, _| partition.topic != id);
        if self.deleted_before.keys().any(|marked| marked.topic == id) {
            Arc::make_mut(&mut self.deleted_before).retain(|marked, _| marked.topic != id);
        }
        Ok(Outcome::Done)
    }

    fn create_partitions(
        &mut self,
        id: TopicId,
        expected: u32,
        new: &[NewPartition],
        min_insync: u32,
    ) -> Result<Outcome, Rejection> {
        let topic = self.topics.get(&id).ok_or(Rejection::UnknownTopic(id))?;
        let present = topic.partitions.len();
        if u32::try_from(present) != Ok(expected) {
            return Err(Rejection::PartitionCountChanged {
                present: u32::try_from(present).unwrap_or(u32::MAX),
                expected,
            });
        }
        let added = self.new_partitions(present, new, min_insync)?;
        self.partition_count += added.len();
        let mut count = expected;
        if let Some(topic) = self.topics.get_mut(&id) {
            let topic = Arc::make_mut(topic);
            topic.partitions.extend(added);
            count = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        }
        Ok(Outcome::PartitionsCreated { count })
    }

    /// The states of new partitions whose indexes begin at `first`.
    fn new_partitions(
        &self,
        first: usize,
        new: &[NewPartition],
        min_insync: u32,
    ) -> Result<Vec<PartitionState>, Rejection> {
        check_partition_count(first, new.len(), self.partition_count)?;
        if min_insync == 0 {
            return Err(Rejection::ZeroMinInsync);
        }
        (first..)
            .zip(new)
            .map(|(index, partition)| {
                self.new_partition(partition, min_insync).map_err(|reason| {
                    Rejection::InvalidAssignment {
                        partition: PartitionIndex(u32::try_from(index).unwrap_or(u32::MAX)),
                        reason,
                    }
                })
            })
            .collect()
    }

    fn new_partition(&self, new: &NewPartition, min_insync: u32) -> Result<PartitionState, String> {
        if new.replicas.is_empty() || new.replicas.len() > MAX_REPLICAS {
            return Err(format!("it needs 1 to {MAX_REPLICAS} replicas"));
        }
        if let Some(node) = repeated(&new.replicas) {
            return Err(format!("it names node {node} twice"));
        }
        if let Some(node) = repeated(&new.in_sync) {
            return Err(format!("it names node {node} as in sync twice"));
        }
        if let Some(node) = new.replicas.iter().find(|&&n| self.node(n).is_none()) {
            return Err(format!("node {node} is not registered"));
        }
        let isr = new
            .in_sync
            .iter()
            .map(|&node| {
                self.registered(node)
                    .filter(|_| new.replicas.contains(&node))
                    .ok_or_else(|| format!("node {node} is in sync but has no replica"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let leader = *isr
            .first()
            .ok_or("none of its nodes is alive; start one of them or choose others")?;
        Ok(PartitionState {
            replicas: new.replicas.clone(),
            leader: Some(leader),
            isr,
            leader_epoch: FIRST_LEADER_EPOCH.unwrap_or_default(),
            partition_epoch: PartitionEpoch(0),
            min_insync,
            target_replicas: Vec::new(),
            forced_epoch: LeaderEpoch::NONE,
        })
    }

    fn set_topic_configs(
        &mut self,
        id: TopicId,
        changes: &[ConfigChange],
    ) -> Result<Outcome, Rejection> {
        let topic = self
            .topics
            .get_mut(&id)
            .ok_or(Rejection::UnknownTopic(id))?;
        let mut config = topic.config.clone();
        for change in changes {
            TopicConfig::check_name(change.name())?;
            match change {
                ConfigChange::Set { name, value } => config.insert(name.clone(), value.clone()),
                ConfigChange::Delete { name } => config.remove(name),
            };
        }
        TopicConfig::from_map(&config)?;
        if config == topic.config {
            return Ok(Outcome::Unchanged);
        }
        Arc::make_mut(topic).config = config;
        Ok(Outcome::Done)
    }

    fn each_partition<T>(
        &mut self,
        changes: &[T],
        change: impl Fn(&mut ClusterImage, &T) -> Result<PartitionChange, Rejection>,
    ) -> Result<Outcome, Rejection> {
        if changes.len() > MAX_CHANGES_PER_COMMAND {
            return Err(Rejection::Malformed(format!(
                "{} partitions in one command, at most {MAX_CHANGES_PER_COMMAND} are taken; send them in several",
                changes.len()
            )));
        }
        let results = changes.iter().map(|item| change(self, item)).collect();
        Ok(Outcome::Partitions(results))
    }

    fn start_election(&mut self, start: &ElectionStart) -> Result<PartitionChange, Rejection> {
        let state = self.state(start.partition)?;
        check_epochs(state, start.leader_epoch, Some(start.partition_epoch))?;
        let next = PartitionState {
            leader: None,
            leader_epoch: state.leader_epoch.next().ok_or(Rejection::EpochsUsedUp)?,
            ..state.clone()
        };
        self.replace(start.partition, next)
    }

    fn appoint_leader(&mut self, appointing: &Appointing) -> Result<PartitionChange, Rejection> {
        let leader = appointing.leader;
        let state = self.state(appointing.partition)?;
        check_epochs(state, appointing.leader_epoch, None)?;
        if state.leader.is_some() {
            return Err(Rejection::HasLeader(state.leader_epoch));
        }
        self.check_registered(leader)?;
        // A member with another directory than the one it was admitted with has lost what it acknowledged.
        if !state
            .isr
            .iter()
            .any(|member| member.node == leader.node && member.directory == leader.directory)
        {
            return Err(Rejection::NotInSync(leader.node));
        }
        let next = PartitionState {
            leader: Some(leader),
            ..state.clone()
        };
        self.replace(appointing.partition, next)
    }

    fn change_isr(&mut self, change: &IsrChange) -> Result<PartitionChange, Rejection> {
        let state = self.state(change.partition)?;
        // The same proposal again. Within one leader epoch nothing else raises the partition epoch while there is a leader,
        // so this is it; to refuse it would tell its leader that the set it proposed does not hold.
        if state.leader.is_some()
            && state.leader_epoch == change.leader_epoch
            && state.partition_epoch == change.partition_epoch.next()
            && state.isr == change.new_isr
            && state.min_insync == change.min_insync
        {
            return Ok(PartitionChange {
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
            });
        }
        check_epochs(state, change.leader_epoch, Some(change.partition_epoch))?;
        let leader = state.leader.ok_or(Rejection::NoLeader)?;
        if change.min_insync == 0 {
            return Err(Rejection::ZeroMinInsync);
        }
        let members: Vec<NodeId> = change.new_isr.iter().map(|member| member.node).collect();
        if let Some(node) = repeated(&members) {
            return Err(Rejection::InvalidIsr(format!("it names node {node} twice")));
        }
        if let Some(node) = members.iter().find(|node| !state.replicas.contains(node)) {
            return Err(Rejection::InvalidIsr(format!(
                "node {node} has no replica of the partition"
            )));
        }
        // The present set again, by which a leader settles what became of another proposal, admits nobody: a member of it may
        // have restarted since, the leader itself before it was appointed.
        let is_present = change.new_isr == state.isr && change.min_insync == state.min_insync;
        if !is_present && !change.new_isr.contains(&leader) {
            return Err(Rejection::InvalidIsr(format!(
                "the leader, node {}, is not in it as it was appointed",
                leader.node
            )));
        }
        if !is_present {
            for &member in &change.new_isr {
                self.check_registered(member)?;
            }
        }
        let next = PartitionState {
            isr: change.new_isr.clone(),
            min_insync: change.min_insync,
            ..state.clone()
        };
        self.replace(change.partition, next)
    }

    fn allocate_producer_ids(&mut self, node: NodeId, count: u32) -> Result<Outcome, Rejection> {
        if self.node(node).is_none() {
            return Err(Rejection::UnknownNode(node));
        }
        if count == 0 || count > MAX_PRODUCER_ID_BLOCK {
            return Err(Rejection::Malformed(format!(
                "a block has 1 to {MAX_PRODUCER_ID_BLOCK} producer ids, not {count}"
            )));
        }
        let used_up = || limit("producer ids", usize::MAX);
        let first = self.next_producer_id;
        let end = first
            .checked_add(u64::from(count))
            .filter(|&end| end <= i64::MAX as u64)
            .ok_or_else(used_up)?;
        let first = i64::try_from(first)
            .ok()
            .and_then(ProducerId::new)
            .ok_or_else(used_up)?;
        self.next_producer_id = end;
        Ok(Outcome::ProducerIds { first, count })
    }

    pub(super) fn state(&self, partition: TopicPartition) -> Result<&PartitionState, Rejection> {
        self.partition(partition)
            .ok_or(Rejection::UnknownPartition(partition))
    }

    /// Stores a partition's next state under the next partition epoch.
    pub(super) fn replace(
        &mut self,
        partition: TopicPartition,
        mut next: PartitionState,
    ) -> Result<PartitionChange, Rejection> {
        let unknown = || Rejection::UnknownPartition(partition);
        // At the end of the range the epoch would stand still, and a change decided on an old state would pass.
        if next.partition_epoch.next() == next.partition_epoch {
            return Err(Rejection::EpochsUsedUp);
        }
        next.partition_epoch = next.partition_epoch.next();
        let change = PartitionChange {
            leader_epoch: next.leader_epoch,
            partition_epoch: next.partition_epoch,
        };
        let topic = self.topics.get_mut(&partition.topic).ok_or_else(unknown)?;
        let index = usize::try_from(partition.partition.0).map_err(|_| unknown())?;
        *Arc::make_mut(topic)
            .partitions
            .get_mut(index)
            .ok_or_else(unknown)? = next;
        Ok(change)
    }

    pub(super) fn check_registered(&self, offered: Appointment) -> Result<(), Rejection> {
        let registered = self
            .registered(offered.node)
            .ok_or(Rejection::UnknownNode(offered.node))?;
        if registered != offered {
            return Err(Rejection::StaleIncarnation {
                node: offered.node,
                offered: offered.incarnation,
            });
        }
        Ok(())
    }
}

fn check_registration(offered: &Registration) -> Result<(), Rejection> {
    let endpoint = |what: &str, endpoint: &Endpoint| {
        if endpoint.host.is_empty() || endpoint.host.len() > MAX_HOST_BYTES || endpoint.port == 0 {
            return Err(Rejection::Malformed(format!(
                "the {what} address of node {} needs a host of 1 to {MAX_HOST_BYTES} bytes and a port other than 0",
                offered.node
            )));
        }
        Ok(())
    };
    endpoint("QUIC", &offered.quic)?;
    if let Some(kafka) = &offered.kafka {
        endpoint("Kafka", kafka)?;
    }
    for (listener, address) in &offered.kafka_listeners {
        endpoint(&format!("Kafka {listener}"), address)?;
        // It has a place of its own, and would be there twice.
        if listener.is_unnamed() {
            return Err(Rejection::Malformed(format!(
                "the listener {listener} of node {} is among the named ones",
                offered.node
            )));
        }
    }
    if offered.kafka_endpoints().count() > MAX_LISTENERS {
        return Err(Rejection::Malformed(format!(
            "node {} has more than {MAX_LISTENERS} Kafka listeners",
            offered.node
        )));
    }
    match &offered.boot_id {
        Some(boot_id) if boot_id.len() > MAX_HOST_BYTES => Err(Rejection::Malformed(format!(
            "the boot id of node {} is longer than {MAX_HOST_BYTES} bytes",
            offered.node
        ))),
        _ => Ok(()),
    }
}

/// Whether `added` partitions fit a topic that has `present` and a cluster that has `in_cluster`.
pub(super) fn check_partition_count(
    present: usize,
    added: usize,
    in_cluster: usize,
) -> Result<(), Rejection> {
    let reason = if added == 0 {
        "there must be at least one, and none can be taken away".to_owned()
    } else if added > MAX_PARTITIONS_PER_TOPIC.saturating_sub(present) {
        format!("a topic has at most {MAX_PARTITIONS_PER_TOPIC}")
    } else if added > MAX_PARTITIONS.saturating_sub(in_cluster) {
        format!("the cluster has {in_cluster} and takes at most {MAX_PARTITIONS}")
    } else {
        return Ok(());
    };
    Err(Rejection::InvalidPartitions {
        count: (present as u64).saturating_add(added as u64),
        reason,
    })
}

pub(super) fn check_epochs(
    state: &PartitionState,
    leader_epoch: LeaderEpoch,
    partition_epoch: Option<PartitionEpoch>,
) -> Result<(), Rejection> {
    if state.leader_epoch != leader_epoch
        || partition_epoch.is_some_and(|epoch| epoch != state.partition_epoch)
    {
        return Err(Rejection::StaleEpoch {
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
        });
    }
    Ok(())
}

/// A node that is listed more than once.
pub(super) fn repeated(nodes: &[NodeId]) -> Option<NodeId> {
    let mut seen = BTreeSet::new();
    nodes.iter().copied().find(|&node| !seen.insert(node))
}

fn limit(what: &str, limit: usize) -> Rejection {
    Rejection::Limit {
        what: what.to_owned(),
        limit,
    }
}
