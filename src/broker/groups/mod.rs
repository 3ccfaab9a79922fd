//! Consumer groups on this node.
//!
//! One task for each partition of the internal topic that this node holds: while the node leads the partition, the task reads
//! it, runs its [`Coordinator`](crate::groups::Coordinator) and writes what that says; otherwise it says that it is not the
//! coordinator. [`keep`] starts and ends the tasks as partitions come and go.

mod coordinate;
mod load;
mod topic;
mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::internal_topics::{self, Coordinators, place_of};
use super::shared::Shared;
use crate::controller::Controller;
use crate::groups::{Answer, EndTransaction, GroupListing, ListFilter, Request};
use crate::metadata::{ClusterImage, Topic};
use crate::types::{ErrorCode, OFFSETS_TOPIC, TopicId, TopicName, TopicPartition};

/// How soon it is looked again for a partition that is about to be opened.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How requests reach the coordinators of this node.
#[derive(Default)]
pub(super) struct Groups {
    coordinators: Coordinators<Message>,
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
        topics::gate(image, &request)?;
        let coordinator = offsets_topic(image)
            .and_then(|topic| self.coordinators.get(place_of(topic, group)))
            .ok_or(ErrorCode::NotCoordinator)?;
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
        let Some(coordinator) = self.coordinators.get(partition) else {
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
        filter: ListFilter,
        deadline: Instant,
    ) -> (Vec<GroupListing>, Option<ErrorCode>) {
        let mut groups = Vec::new();
        let mut failed = None;
        for coordinator in self.coordinators.all() {
            let request = Request::List(filter.clone());
            match ask(&coordinator, "", request, deadline).await {
                Ok(Answer::Listed(some)) => groups.extend(some),
                // Its groups are another node's.
                Err(ErrorCode::NotCoordinator) => {}
                Ok(_) => failed = Some(ErrorCode::UnknownServerError),
                Err(error) => failed = Some(error),
            }
        }
        (groups, failed)
    }
}

async fn ask(
    coordinator: &mpsc::Sender<Message>,
    group: &str,
    request: Request,
    taken_by: Instant,
) -> Result<Answer, ErrorCode> {
    let message = |reply| {
        Message::Ask(Box::new(Ask {
            group: group.to_owned(),
            request,
            reply,
        }))
    };
    internal_topics::ask(coordinator, message, taken_by).await
}

/// Keeps the coordinators' tasks in step with the metadata until the node stops, and ends them then.
pub(super) async fn keep(shared: Arc<Shared>, controller: Controller, groups: Arc<Groups>) {
    let tasks = TaskTracker::new();
    let mut images = controller.image();
    let mut known: BTreeMap<TopicId, TopicName> = BTreeMap::new();
    loop {
        let image = images.borrow_and_update().clone();
        let start = |id, handle, mailbox| {
            let images = controller.image();
            tasks.spawn(coordinate::run(shared.clone(), id, handle, mailbox, images));
        };
        let complete = groups
            .coordinators
            .adopt(&shared, offsets_topic(&image), start);
        let gone = known.extract_if(.., |id, _| image.topic(*id).is_none());
        let deleted: BTreeSet<String> = gone.map(|(_, name)| name.as_str().to_owned()).collect();
        for topic in image.topics() {
            known.entry(topic.id).or_insert_with(|| topic.name.clone());
        }
        if !deleted.is_empty() {
            let deleted = Arc::new(deleted);
            for coordinator in groups.coordinators.all() {
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

fn offsets_topic(image: &ClusterImage) -> Option<&Arc<Topic>> {
    image.topic_named(OFFSETS_TOPIC)
}
