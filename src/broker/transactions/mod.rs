//! Transactions on this node.
//!
//! One task for each partition of the internal topic that this node holds: while the node leads the partition, the task reads
//! it, runs its [`Coordinator`](crate::transactions::Coordinator), writes what that says and has markers delivered; otherwise
//! it says that it is not the coordinator. [`keep`] starts and ends the tasks as partitions come and go. The leaders of
//! partitions ask coordinators, here or elsewhere, whether a transaction reaches them: [`verify`].

mod calls;
mod coordinate;
mod deliver;
mod load;
mod topic;
mod verify;

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Broker;
use super::internal_topics::{self, Coordinators, place_of};
use super::shared::Shared;
use crate::controller::Controller;
use crate::metadata::{ClusterImage, TRANSACTION_VERSION_2_SINCE, TRANSACTIONS_SINCE, Topic};
use crate::transactions::{Answer, ClientVersion, Filter, Listing, Request};
use crate::transport::LogLimit;
use crate::types::{ErrorCode, ProducerId, TRANSACTIONS_TOPIC};
pub(super) use calls::Calls;
use deliver::Deliveries;

/// How soon it is looked again for a partition that is about to be opened.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often it is looked whether every task still runs, when nothing else happens.
const LOOK_AFTER: Duration = Duration::from_secs(2);

/// How requests reach the coordinators of this node, and this node's reach those of others.
pub(super) struct Transactions {
    coordinators: Coordinators<Ask>,
    calls: Arc<Calls>,
    refusals: LogLimit,
}

/// What a coordinator is asked.
struct Ask {
    id: String,
    request: Request,
    reply: oneshot::Sender<Result<Answer, ErrorCode>>,
}

impl Transactions {
    pub(super) fn new(calls: Calls) -> Transactions {
        Transactions {
            coordinators: Coordinators::default(),
            calls: Arc::new(calls),
            refusals: LogLimit::default(),
        }
    }

    /// The one gate, see [`gate`], with a line in the log where it is shut.
    fn check_served(&self, image: &ClusterImage) -> Result<(), ErrorCode> {
        let served = gate(image);
        if served == Err(ErrorCode::UnsupportedVersion)
            && let Some(suppressed) = self.refusals.allow()
        {
            tracing::warn!(
                metadata_version = image.metadata_version(),
                needed = TRANSACTIONS_SINCE,
                suppressed,
                "a transaction is refused: some nodes run a build that does not know transactions; upgrade all of them"
            );
        }
        served
    }

    /// Asks the coordinator of a transactional id, if it is here.
    async fn ask(
        &self,
        image: &ClusterImage,
        id: &str,
        request: Request,
        taken_by: Instant,
    ) -> Result<Answer, ErrorCode> {
        self.check_served(image)?;
        gate_version(image, &request)?;
        let coordinator = transactions_topic(image)
            .and_then(|topic| self.coordinators.get(place_of(topic, id)))
            .ok_or(ErrorCode::NotCoordinator)?;
        ask(&coordinator, id, request, taken_by).await
    }

    /// The ids of all coordinators here, and an error if one of them is still loading.
    async fn list(&self, filter: Filter, deadline: Instant) -> (Vec<Listing>, Option<ErrorCode>) {
        let mut listings = Vec::new();
        let mut failed = None;
        for coordinator in self.coordinators.all() {
            let request = Request::List(filter.clone());
            match ask(&coordinator, "", request, deadline).await {
                Ok(Answer::Listed(some)) => listings.extend(some),
                // Its ids are another node's.
                Err(ErrorCode::NotCoordinator) => {}
                Ok(_) => failed = Some(ErrorCode::UnknownServerError),
                Err(error) => failed = Some(error),
            }
        }
        (listings, failed)
    }
}

/// Whether the whole cluster knows what a transaction leaves in its logs. While it does not, no id gets a producer and no
/// partition is vouched for, and so nothing of a transaction is written anywhere.
fn gate(image: &ClusterImage) -> Result<(), ErrorCode> {
    internal_topics::gate(image, TRANSACTIONS_SINCE)
}

/// Whether the whole cluster knows what the request leaves in the coordinator's log, and does what follows from it. Clients do not
/// send what comes with `transaction.version` 2 before the cluster says that it does.
fn gate_version(image: &ClusterImage, request: &Request) -> Result<(), ErrorCode> {
    match request {
        Request::End {
            version: ClientVersion::V2,
            ..
        }
        | Request::AddPartitions {
            version: ClientVersion::V2,
            ..
        } => internal_topics::gate(image, TRANSACTION_VERSION_2_SINCE),
        _ => Ok(()),
    }
}

async fn ask(
    coordinator: &mpsc::Sender<Ask>,
    id: &str,
    request: Request,
    taken_by: Instant,
) -> Result<Answer, ErrorCode> {
    let message = |reply| Ask {
        id: id.to_owned(),
        request,
        reply,
    };
    internal_topics::ask(coordinator, message, taken_by).await
}

impl Broker {
    /// Asks this node's coordinator of a transactional id; a producer id is fetched where the answer needs one.
    pub(super) async fn ask_transaction_of(
        &self,
        id: &str,
        request: Request,
        taken_by: Instant,
    ) -> Result<Answer, ErrorCode> {
        let image = self.image_now();
        let answer = self
            .transactions
            .ask(&image, id, request.clone(), taken_by)
            .await?;
        if answer != Answer::NeedsProducerId {
            return Ok(answer);
        }
        let fresh: ProducerId = self.producer_ids.next(taken_by).await?;
        let again = request.with_fresh(fresh);
        self.transactions.ask(&image, id, again, taken_by).await
    }

    pub(super) async fn list_transactions_here(
        &self,
        filter: Filter,
        deadline: Instant,
    ) -> (Vec<Listing>, Option<ErrorCode>) {
        self.transactions.list(filter, deadline).await
    }

    fn image_now(&self) -> Arc<ClusterImage> {
        self.controller.image().borrow().clone()
    }
}

/// Keeps the coordinators' tasks in step with the metadata until the node stops, and ends them then.
pub(super) async fn keep(
    shared: Arc<Shared>,
    controller: Controller,
    transactions: Arc<Transactions>,
    broker: Weak<Broker>,
) {
    let tasks = TaskTracker::new();
    let deliveries = Arc::new(Deliveries::new(
        shared.clone(),
        broker,
        controller.image(),
        transactions.calls.clone(),
        tasks.clone(),
    ));
    let mut images = controller.image();
    loop {
        let image = images.borrow_and_update().clone();
        let start = |id, handle, mailbox| {
            tasks.spawn(coordinate::run(coordinate::Place {
                shared: shared.clone(),
                id,
                handle,
                mailbox,
                images: controller.image(),
                deliveries: deliveries.clone(),
            }));
        };
        let topic = transactions_topic(&image);
        let complete = transactions.coordinators.adopt(&shared, topic, start);
        tokio::select! {
            () = shared.stopping.cancelled() => break,
            changed = images.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            () = tokio::time::sleep(if complete { LOOK_AFTER } else { LOOK_AGAIN }) => {}
        }
    }
    tasks.close();
    tasks.wait().await;
}

fn transactions_topic(image: &ClusterImage) -> Option<&Arc<Topic>> {
    image.topic_named(TRANSACTIONS_TOPIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Command;
    use crate::transactions::Ending;
    use crate::types::ClusterId;

    #[test]
    fn transactions_wait_for_their_version() {
        let mut image = ClusterImage::new();
        let cluster_id = ClusterId::from_random_bits(1);
        image.apply(&Command::InitCluster { cluster_id }).unwrap();
        let mut raise = |version| {
            image
                .apply(&Command::RaiseMetadataVersion { version })
                .unwrap();
            gate(&image)
        };
        assert_eq!(
            raise(TRANSACTIONS_SINCE - 1),
            Err(ErrorCode::UnsupportedVersion)
        );
        assert_eq!(raise(TRANSACTIONS_SINCE), Ok(()));
    }

    #[test]
    fn what_comes_with_level_2_waits_for_its_version() {
        let producer = ProducerId::new(7).unwrap();
        let end = |version| Request::End {
            producer,
            epoch: 0,
            ending: Ending::Commit,
            version,
            fresh: None,
        };
        let add = |version| Request::AddPartitions {
            producer,
            epoch: 0,
            partitions: Vec::new(),
            version,
        };
        let mut image = ClusterImage::new();
        let cluster_id = ClusterId::from_random_bits(1);
        image.apply(&Command::InitCluster { cluster_id }).unwrap();
        let unsupported = Err(ErrorCode::UnsupportedVersion);
        for (version, newer) in [
            (TRANSACTION_VERSION_2_SINCE - 1, unsupported),
            (TRANSACTION_VERSION_2_SINCE, Ok(())),
        ] {
            image
                .apply(&Command::RaiseMetadataVersion { version })
                .unwrap();
            for request in [end(ClientVersion::V2), add(ClientVersion::V2)] {
                assert_eq!(gate_version(&image, &request), newer);
            }
            for request in [end(ClientVersion::V1), add(ClientVersion::V1)] {
                assert_eq!(gate_version(&image, &request), Ok(()));
            }
        }
    }
}
