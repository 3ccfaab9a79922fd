//! Carries operations out, as the active controller.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::handle::Shared;
use super::message::Response;
use super::operation::{
    MAX_MOVES, Operation, OperationOutcome, OperationRefusal, PartitionOutcome, TransferRefusal,
};
use super::raft::node_id;
use super::transfers::Order;
use super::{duties, unclean, upkeep};
use crate::metadata::{
    ClusterImage, Command, MAX_CHANGES_PER_COMMAND, MAX_CONTROLLERS, Move, Outcome, Reassignment,
    Rejection, evacuate,
};
use crate::types::{NodeId, TopicPartition};

/// How long an operation waits for a metadata version that is about to rise.
const VERSION_WAIT: Duration = Duration::from_secs(5);

/// How an operation ends: with an outcome or refusal, or with a response that says that this controller cannot tell.
type Ended = Result<OperationOutcome, Stopped>;

pub(super) enum Stopped {
    Refused(OperationRefusal),
    /// Not active any more, or no majority answers.
    Response(Box<Response>),
}

impl From<OperationRefusal> for Stopped {
    fn from(refusal: OperationRefusal) -> Self {
        Stopped::Refused(refusal)
    }
}

pub(super) fn refused(reason: String) -> Stopped {
    OperationRefusal::Refused(reason).into()
}

impl Shared {
    /// Does what is asked, if this is the active controller. Ends within `timeout` and a little.
    pub(super) async fn operate_here(&self, operation: Operation, timeout: Duration) -> Response {
        if !self.is_active() {
            return self.not_active();
        }
        if !self.reaches_quorum() {
            return Response::NoQuorum;
        }
        let deadline = Instant::now() + timeout;
        match self.carry_out(operation, deadline).await {
            Ok(outcome) => Response::Operated(Ok(outcome)),
            Err(Stopped::Refused(refusal)) => Response::Operated(Err(refusal)),
            Err(Stopped::Response(response)) => *response,
        }
    }

    async fn carry_out(&self, operation: Operation, deadline: Instant) -> Ended {
        let image = self.image.borrow().clone();
        match operation {
            Operation::Drain { node, on } => self.set_draining(&image, node, on, deadline).await,
            Operation::Transfer { moves } => self.transfer(moves, deadline).await,
            Operation::Reassign { reassignments } => self.reassign(reassignments, deadline).await,
            Operation::Evacuate { node } => {
                if image.node(node).is_none() && image.partitions_of(node).next().is_none() {
                    return Err(refused(format!("node {node} is not registered")));
                }
                let mut others = self.alive(&image);
                others.retain(|&other| !image.is_draining(other));
                let reassignments =
                    evacuate(&image, node, &others).map_err(OperationRefusal::from)?;
                // New partitions are not to be put there while the old ones leave.
                if self.alive(&image).contains(&node) {
                    self.set_draining(&image, node, true, deadline).await?;
                }
                self.reassign(reassignments, deadline).await
            }
            Operation::AddController { node } => {
                if image.node(node).is_none() {
                    return Err(refused(format!(
                        "node {node} is not registered: start it with --controllers naming the present controllers, and ask again"
                    )));
                }
                if !self.alive(&image).contains(&node) {
                    return Err(refused(format!(
                        "node {node} is not alive: start it, and ask again"
                    )));
                }
                let mut controllers = self.wanted_controllers(&image);
                controllers.insert(node);
                self.set_controllers(&image, controllers, deadline).await
            }
            Operation::RemoveController { node } => {
                let mut controllers = self.wanted_controllers(&image);
                controllers.remove(&node);
                if controllers.is_empty() {
                    return Err(refused(format!(
                        "node {node} is the only controller: add another first"
                    )));
                }
                self.set_controllers(&image, controllers, deadline).await
            }
            Operation::RemoveNode {
                node,
                keep_replicas,
            } => {
                self.remove_node(&image, node, keep_replicas, deadline)
                    .await
            }
            Operation::ElectUnclean { partition, node } => {
                let election = unclean::elect(self, partition, node, deadline).await?;
                Ok(OperationOutcome::Unclean(election))
            }
        }
    }

    /// The nodes that are to vote: as an operator has said, or else those that do, and those that are listed.
    pub(super) fn wanted_controllers(&self, image: &ClusterImage) -> BTreeSet<NodeId> {
        if !image.controllers().is_empty() {
            return image.controllers().clone();
        }
        let mut wanted = self.committed_voters();
        wanted.extend(self.voters.keys().copied());
        wanted
    }

    /// The nodes that vote, by the membership in force.
    pub(super) fn committed_voters(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let voters = metrics.membership_config.voter_ids();
        voters.filter_map(node_id).collect()
    }

    async fn set_draining(
        &self,
        image: &ClusterImage,
        node: NodeId,
        on: bool,
        deadline: Instant,
    ) -> Ended {
        let registered = image
            .registered(node)
            .ok_or(OperationRefusal::Rejected(Rejection::UnknownNode(node)))?;
        let command = Command::SetDraining {
            node,
            incarnation: registered.incarnation,
            on,
        };
        match self.commit(command, deadline).await? {
            Outcome::Unchanged => Ok(OperationOutcome::Unchanged),
            _ => Ok(OperationOutcome::Done),
        }
    }

    async fn transfer(&self, moves: Vec<Move>, deadline: Instant) -> Ended {
        if moves.len() > MAX_MOVES {
            return Err(refused(format!(
                "{} leaderships to move, at most {MAX_MOVES} are taken; ask in several",
                moves.len()
            )));
        }
        let mut answers = Vec::with_capacity(moves.len());
        for wanted in moves {
            let (answer, answered) = oneshot::channel();
            if self.orders.send(Order { wanted, answer }).await.is_err() {
                return Err(Stopped::Response(Box::new(self.not_active())));
            }
            answers.push((wanted.partition, answered));
        }
        let ended = answers.into_iter().map(async |(partition, answered)| {
            let result = match tokio::time::timeout_at(deadline, answered).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(TransferRefusal::NotActive),
                Err(_elapsed) => Err(TransferRefusal::TimedOut),
            };
            PartitionOutcome {
                partition,
                result: result.map_err(|refusal| refusal.to_string()),
            }
        });
        Ok(OperationOutcome::Partitions(join_all(ended).await))
    }

    async fn reassign(&self, reassignments: Vec<Reassignment>, deadline: Instant) -> Ended {
        let mut outcomes = Vec::with_capacity(reassignments.len());
        for chunk in reassignments.chunks(MAX_CHANGES_PER_COMMAND) {
            let partitions: Vec<TopicPartition> = chunk.iter().map(|r| r.partition).collect();
            let command = Command::Reassign {
                reassignments: chunk.to_vec(),
            };
            let Outcome::Partitions(results) = self.commit(command, deadline).await? else {
                return Err(Stopped::Response(Box::new(Response::NoQuorum)));
            };
            let told = partitions.into_iter().zip(results);
            outcomes.extend(told.map(|(partition, result)| {
                PartitionOutcome {
                    partition,
                    result: result
                        .map(|_| ())
                        .map_err(|rejection| rejection.to_string()),
                }
            }));
        }
        Ok(OperationOutcome::Partitions(outcomes))
    }

    async fn set_controllers(
        &self,
        image: &ClusterImage,
        controllers: BTreeSet<NodeId>,
        deadline: Instant,
    ) -> Ended {
        if controllers.len() > MAX_CONTROLLERS {
            return Err(refused(format!(
                "{} controllers are too many, at most {MAX_CONTROLLERS} can vote: remove one first",
                controllers.len()
            )));
        }
        let command = Command::SetControllers {
            before: image.controllers().clone(),
            controllers: controllers.clone(),
        };
        self.commit(command, deadline).await?;
        let mut metrics = self.raft.metrics();
        let voted = metrics.wait_for(|metrics| {
            let voters = metrics.membership_config.voter_ids();
            voters.filter_map(node_id).eq(controllers.iter().copied())
        });
        // The change is committed either way, and is carried on by whoever is active.
        let _ = tokio::time::timeout_at(deadline, voted).await;
        Ok(OperationOutcome::Controllers {
            voters: self.committed_voters(),
            wanted: controllers,
        })
    }

    async fn remove_node(
        &self,
        image: &ClusterImage,
        node: NodeId,
        keep_replicas: bool,
        deadline: Instant,
    ) -> Ended {
        let registered = image
            .registered(node)
            .ok_or(OperationRefusal::Rejected(Rejection::UnknownNode(node)))?;
        if !keep_replicas {
            let held = image.partitions_of(node).count();
            if held > 0 {
                return Err(refused(format!(
                    "node {node} holds {held} replicas: add --evacuate to move them to other nodes, or --keep-replicas if a node with this id and an empty data directory is to take its place"
                )));
            }
            if self.wanted_controllers(image).contains(&node) {
                return Err(refused(format!(
                    "node {node} is a controller: run \"quorate cluster remove-controller {node}\" first"
                )));
            }
        }
        let command = Command::UnregisterNode {
            node,
            directory: Some(registered.directory),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let response = duties::remove_node(self, node, command, left).await;
        outcome_of(response)?;
        Ok(OperationOutcome::Done)
    }

    /// Commits a command; what is not an outcome ends the operation.
    pub(super) async fn commit(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Outcome, Stopped> {
        let left = || deadline.saturating_duration_since(Instant::now());
        let outcome = outcome_of(self.write(command.clone(), left()).await);
        if let Err(Stopped::Refused(OperationRefusal::Rejected(refused))) = &outcome
            && let Rejection::VersionTooLow { needed, .. } = *refused
            && upkeep::reaches_version(self, needed, left().min(VERSION_WAIT)).await
        {
            return outcome_of(self.write(command, left()).await);
        }
        outcome
    }
}

fn outcome_of(response: Response) -> Result<Outcome, Stopped> {
    match response {
        Response::Proposed {
            result: Ok(outcome),
            ..
        } => Ok(outcome),
        Response::Proposed {
            result: Err(rejection),
            ..
        } => Err(OperationRefusal::Rejected(rejection).into()),
        response => Err(Stopped::Response(Box::new(response))),
    }
}
