//! Which coordinators run on this node, and how they are asked.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::broker::shared::{PartitionHandle, Shared};
use crate::metadata::Topic;
use crate::types::{ErrorCode, TopicPartition, partition_of};

/// Requests that wait for one coordinator. At the cap they wait outside, until their deadlines.
const MAILBOX_REQUESTS: usize = 1024;

/// The mailboxes of one internal topic's coordinators: one for each of its partitions that is open here, led or not.
pub(in crate::broker) struct Coordinators<M> {
    mailboxes: RwLock<HashMap<TopicPartition, mpsc::Sender<M>>>,
}

impl<M> Default for Coordinators<M> {
    fn default() -> Coordinators<M> {
        Coordinators {
            mailboxes: RwLock::default(),
        }
    }
}

impl<M> Coordinators<M> {
    pub(in crate::broker) fn get(&self, id: TopicPartition) -> Option<mpsc::Sender<M>> {
        let mailboxes = self
            .mailboxes
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        mailboxes.get(&id).cloned()
    }

    pub(in crate::broker) fn all(&self) -> Vec<mpsc::Sender<M>> {
        let mailboxes = self
            .mailboxes
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        mailboxes.values().cloned().collect()
    }

    /// Has `start` begin a task for each partition of the topic that is open here and has none; a task whose mailbox is gone
    /// ends. False while one that should be open is not.
    pub(in crate::broker) fn adopt(
        &self,
        shared: &Shared,
        topic: Option<&Arc<Topic>>,
        mut start: impl FnMut(TopicPartition, PartitionHandle, mpsc::Receiver<M>),
    ) -> bool {
        let mut wanted = BTreeSet::new();
        if let Some(topic) = topic {
            for (partition, state) in topic.indexed_partitions() {
                if state.replicas.contains(&shared.me.node) {
                    wanted.insert(TopicPartition {
                        topic: topic.id,
                        partition,
                    });
                }
            }
        }
        let mut mailboxes = self
            .mailboxes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        mailboxes.retain(|id, mailbox| wanted.contains(id) && !mailbox.is_closed());
        let mut complete = true;
        for id in wanted {
            if mailboxes.contains_key(&id) {
                continue;
            }
            let Some(handle) = shared.partition(id) else {
                complete = false;
                continue;
            };
            let (sender, mailbox) = mpsc::channel(MAILBOX_REQUESTS);
            start(id, handle, mailbox);
            mailboxes.insert(id, sender);
        }
        complete
    }
}

/// Puts `message` into a coordinator's mailbox, for which there is time until `taken_by`, and waits for its answer.
pub(in crate::broker) async fn ask<M, A>(
    coordinator: &mpsc::Sender<M>,
    message: impl FnOnce(oneshot::Sender<Result<A, ErrorCode>>) -> M,
    taken_by: Instant,
) -> Result<A, ErrorCode> {
    let (reply, answer) = oneshot::channel();
    match tokio::time::timeout_at(taken_by, coordinator.send(message(reply))).await {
        Ok(Ok(())) => answer.await.unwrap_or(Err(ErrorCode::NotCoordinator)),
        Ok(Err(_)) => Err(ErrorCode::NotCoordinator),
        Err(_) => Err(ErrorCode::CoordinatorNotAvailable),
    }
}

/// The partition of an internal topic that holds a group or a transactional id.
pub(in crate::broker) fn place_of(topic: &Topic, name: &str) -> TopicPartition {
    let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    TopicPartition {
        topic: topic.id,
        partition: partition_of(name, partitions),
    }
}
