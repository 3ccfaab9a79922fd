//! Consumer groups on this node.
//!
//! One task for each partition of the internal topic that this node holds: while the node leads the partition, the task reads
//! it, runs its [`Coordinator`](crate::groups::Coordinator) and writes what that says; otherwise it says that it is not the
//! coordinator. [`keep`] starts and ends the tasks as partitions come and go.

mod coordinate;
mod load;
mod topic;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::shared::Shared;
use crate::controller::Controller;
use crate::groups::{Answer, EndTransaction, GroupListing, GroupState, Request};
use crate::metadata::ClusterImage;
use crate::types::{ErrorCode, OFFSETS_TOPIC, TopicId, TopicName, TopicPartition, partition_of};

/// Requests that wait for one coordinator. At the cap they wait outside, until their deadlines.
const MAILBOX_REQUESTS: usize = 1024;
/// How soon it is looked again for a partition that is about to be opened.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How requests reach the coordinators of this node.
#[derive(Default)]
pub(super) struct Groups {
    /// One for each partition of the internal topic that is open here, led or not.
    coordinators: RwLock<HashMap<TopicPartition, mpsc::Sender<Message>>>,
}

/// What a coordinator's task is told.
enum Message {
    Ask(Box<Ask>),
    /// Topics of these names are gone.
    TopicsDeleted(Arc<BTreeSet<String>>),
}

struct Ask {
    group: String,
    request: Request,
    reply: oneshot::Sender<Result<Answer, ErrorCode>>,
}

impl Groups {
    /// Asks the coordinator of a group, if it is here.
    pub(super) async fn ask(
        &self,
        image: &ClusterImage,
        group: &str,
        request: Request,
        taken_by: Instant,
    ) -> Result<Answer, ErrorCode> {
        let id = offsets_topic(image)
            .map(|topic| TopicPartition {
                topic: topic.id,
                partition: partition_of(group, partitions(topic)),
            })
            .ok_or(ErrorCode::NotCoordinator)?;
        let coordinator = self.coordinator(id).ok_or(ErrorCode::NotCoordinator)?;
        ask(&coordinator, group, request, taken_by).await
    }

    /// Tells the coordinator of a partition of the internal topic that a transaction has ended; `None` where the partition is of
    /// another topic. Ends once it is committed.
    pub(super) async fn end_transaction(
        &self,
        image: &ClusterImage,
        partition: TopicPartition,
        end: EndTransaction,
        deadline: Instant,
    ) -> Option<Result<(), ErrorCode>> {
        offsets_topic(image).filter(|topic| topic.id == partition.topic)?;
        let Some(coordinator) = self.coordinator(partition) else {
            return Some(Err(ErrorCode::NotLeaderOrFollower));
        };
        let asked = ask(&coordinator, "", Request::EndTransaction(end), deadline);
        let answer = tokio::time::timeout_at(deadline, asked).await;
        Some(match answer {
            Ok(Ok(_)) => Ok(()),
            // What a partition's leader would say.
            Ok(Err(ErrorCode::NotCoordinator)) => Err(ErrorCode::NotLeaderOrFollower),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ErrorCode::RequestTimedOut),
        })
    }

    /// The groups of all coordinators here, and an error if one of them is still loading.
    pub(super) async fn list(
        &self,
        states: Option<BTreeSet<GroupState>>,
        deadline: Instant,
    ) -> (Vec<GroupListing>, Option<ErrorCode>) {
        let mut groups = Vec::new();
        let mut failed = None;
        for coordinator in self.all() {
            let states = states.clone();
            match ask(&coordinator, "", Request::List { states }, deadline).await {
                Ok(Answer::Listed(some)) => groups.extend(some),
                // Its groups are another node's.
                Err(ErrorCode::NotCoordinator) => {}
                Ok(_) => failed = Some(ErrorCode::UnknownServerError),
                Err(error) => failed = Some(error),
            }
        }
        (groups, failed)
    }

    fn coordinator(&self, id: TopicPartition) -> Option<mpsc::Sender<Message>> {
        let coordinators = self
            .coordinators
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        coordinators.get(&id).cloned()
    }

    fn all(&self) -> Vec<mpsc::Sender<Message>> {
        let coordinators = self
            .coordinators
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        coordinators.values().cloned().collect()
    }

    /// Starts and ends tasks so that there is one for each partition of the internal topic that is open here. False while one
    /// that should be open is not.
    fn adopt(&self, shared: &Arc<Shared>, image: &ClusterImage, tasks: &TaskTracker) -> bool {
        let mut wanted = BTreeSet::new();
        if let Some(topic) = offsets_topic(image) {
            for (partition, state) in topic.indexed_partitions() {
                if state.replicas.contains(&shared.me.node) {
                    wanted.insert(TopicPartition {
                        topic: topic.id,
                        partition,
                    });
                }
            }
        }
        let mut coordinators = self
            .coordinators
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // A task whose mailbox is gone ends.
        coordinators.retain(|id, mailbox| wanted.contains(id) && !mailbox.is_closed());
        let mut complete = true;
        for id in wanted {
            if coordinators.contains_key(&id) {
                continue;
            }
            let Some(handle) = shared.partition(id) else {
                complete = false;
                continue;
            };
            let (sender, mailbox) = mpsc::channel(MAILBOX_REQUESTS);
            tasks.spawn(coordinate::run(shared.clone(), id, handle, mailbox));
            coordinators.insert(id, sender);
        }
        complete
    }
}

async fn ask(
    coordinator: &mpsc::Sender<Message>,
    group: &str,
    request: Request,
    taken_by: Instant,
) -> Result<Answer, ErrorCode> {
    let (reply, answer) = oneshot::channel();
    let message = Message::Ask(Box::new(Ask {
        group: group.to_owned(),
        request,
        reply,
    }));
    match tokio::time::timeout_at(taken_by, coordinator.send(message)).await {
        Ok(Ok(())) => answer.await.unwrap_or(Err(ErrorCode::NotCoordinator)),
        Ok(Err(_)) => Err(ErrorCode::NotCoordinator),
        Err(_) => Err(ErrorCode::CoordinatorNotAvailable),
    }
}

/// Keeps the coordinators' tasks in step with the metadata until the node stops, and ends them then.
pub(super) async fn keep(shared: Arc<Shared>, controller: Controller, groups: Arc<Groups>) {
    let tasks = TaskTracker::new();
    let mut images = controller.image();
    let mut known: BTreeMap<TopicId, TopicName> = BTreeMap::new();
    loop {
        let image = images.borrow_and_update().clone();
        let complete = groups.adopt(&shared, &image, &tasks);
        let gone = known.extract_if(.., |id, _| image.topic(*id).is_none());
        let deleted: BTreeSet<String> = gone.map(|(_, name)| name.as_str().to_owned()).collect();
        for topic in image.topics() {
            known.entry(topic.id).or_insert_with(|| topic.name.clone());
        }
        if !deleted.is_empty() {
            let deleted = Arc::new(deleted);
            for coordinator in groups.all() {
                let _ = coordinator
                    .send(Message::TopicsDeleted(deleted.clone()))
                    .await;
            }
        }
        tokio::select! {
            () = shared.stopping.cancelled() => break,
            changed = images.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            () = tokio::time::sleep(LOOK_AGAIN), if !complete => {}
        }
    }
    tasks.close();
    tasks.wait().await;
}

fn offsets_topic(image: &ClusterImage) -> Option<&Arc<crate::metadata::Topic>> {
    image.topic_by_name(&TopicName::new(OFFSETS_TOPIC).ok()?)
}

fn partitions(topic: &crate::metadata::Topic) -> u32 {
    u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX)
}
