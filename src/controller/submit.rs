//! How a node has the active controller do something, and how that one does it: proposals and operations.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::watch;
use tokio::time::Instant;

use super::duties;
use super::handle::{OperateError, Shared, SubmitError};
use super::message::{MAX_COMMAND_BYTES, Proposal, Refusal, Request, Response};
use super::operation::{Operation, OperationOutcome};
use super::peers::PeerError;
use super::raft::node_id;
use crate::metadata::{ClusterImage, Command, ElectionStart, Outcome, Rejection};
use crate::types::NodeId;

/// Pauses between attempts to submit, with jitter.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_millis(400);
/// How long one attempt waits before another controller is asked.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a submitter waits for its own image to show what was committed.
const CATCH_UP_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an active controller goes on without an acknowledgement of a majority, at least: on a slow link longer.
const QUORUM_PATIENCE: Duration = Duration::from_secs(2);

impl Shared {
    /// See [`Controller::submit`].
    pub(super) async fn submit(
        &self,
        proposal: Proposal,
        timeout: Duration,
    ) -> Result<Outcome, SubmitError> {
        let (outcome, _) = self.submit_at(proposal, timeout).await?;
        Ok(outcome)
    }

    /// See [`Controller::committed_end`].
    pub(super) async fn committed_end(&self, timeout: Duration) -> Result<u64, SubmitError> {
        // Any entry of the log will do; what changes nothing is taken from every node.
        let version = self.image.borrow().metadata_version();
        let registration = self.registration.borrow().in_version(version);
        let command = Command::RegisterNode { registration };
        let (_, index) = self.submit_at(Proposal::Command(command), timeout).await?;
        Ok(index)
    }

    /// Gives the index in the log besides, at which the command was committed by the last attempt.
    async fn submit_at(
        &self,
        proposal: Proposal,
        timeout: Duration,
    ) -> Result<(Outcome, u64), SubmitError> {
        let deadline = Instant::now() + timeout;
        let mut cause = "none is known to be active".to_owned();
        let mut hint = None;
        // An earlier attempt may have been carried out.
        let mut uncertain = false;
        let mut pause = FIRST_RETRY;
        for attempt in 0.. {
            if self.stop.is_cancelled() {
                return Err(SubmitError::Stopped);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let target = hint
                .take()
                .unwrap_or_else(|| self.controller_to_ask(attempt));
            match self.propose_to(target, &proposal, left).await {
                // The one who founds the cluster is about to.
                Ok(Response::Proposed {
                    result: Err(Rejection::NoCluster),
                    ..
                }) => cause = Rejection::NoCluster.to_string(),
                Ok(Response::Proposed {
                    result,
                    applied_index,
                }) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    self.catch_up(applied_index, left.min(CATCH_UP_TIMEOUT))
                        .await;
                    return match result {
                        Err(rejection) if uncertain && is_own_doing(&proposal, &rejection) => {
                            Ok((Outcome::Done, applied_index))
                        }
                        Ok(outcome) if uncertain && may_still_happen(&proposal, &outcome) => {
                            Err(SubmitError::NoQuorum {
                                waited: timeout,
                                cause: "an earlier attempt may still be carried out".to_owned(),
                            })
                        }
                        result => Ok((result?, applied_index)),
                    };
                }
                Ok(Response::NotActive { active, address }) => {
                    self.note_active(active, address);
                    if let Some(active) = active.filter(|&active| active != target) {
                        hint = Some(active);
                        cause = format!("node {target} says that node {active} is active");
                    } else {
                        cause = format!("node {target} knows of no active controller");
                    }
                }
                Ok(Response::NoQuorum) => {
                    uncertain = true;
                    cause = format!("node {target} is active, but does not reach a majority");
                }
                Ok(Response::Refused(refusal)) => cause = refusal.to_string(),
                Ok(_) => return Err(SubmitError::UnexpectedOutcome),
                Err(PeerError::TooLarge(bytes)) => return Err(SubmitError::TooLarge(bytes)),
                Err(error) => {
                    uncertain = true;
                    cause = error.to_string();
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = jittered(pause).min(left);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
            pause = (pause * 2).min(LAST_RETRY);
        }
        Err(SubmitError::NoQuorum {
            waited: timeout,
            cause,
        })
    }

    /// See [`Controller::operate`].
    pub(super) async fn operate(
        &self,
        operation: Operation,
        timeout: Duration,
    ) -> Result<OperationOutcome, OperateError> {
        let deadline = Instant::now() + timeout;
        let mut cause = "none is known to be active".to_owned();
        let mut hint = None;
        let mut pause = FIRST_RETRY;
        for attempt in 0.. {
            if self.stop.is_cancelled() {
                return Err(OperateError::Stopped);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let target = hint
                .take()
                .unwrap_or_else(|| self.controller_to_ask(attempt));
            match self.operate_at(target, operation.clone(), left).await {
                Ok(Response::Operated(result)) => return Ok(result?),
                Ok(Response::NotActive { active, address }) => {
                    self.note_active(active, address);
                    hint = active.filter(|&active| active != target);
                    cause = format!("node {target} is not active");
                }
                Ok(Response::NoQuorum) => {
                    cause = format!("node {target} is active, but does not reach a majority");
                }
                Ok(Response::Refused(refusal)) => cause = refusal.to_string(),
                Ok(_) => cause = format!("node {target} answered something else"),
                Err(error) => {
                    cause = error.to_string();
                    // An election that loses records is not asked for twice.
                    if matches!(operation, Operation::ElectUnclean { .. }) {
                        break;
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::select! {
                () = tokio::time::sleep(jittered(pause).min(left)) => {}
                () = self.stop.cancelled() => {}
            }
            pause = (pause * 2).min(LAST_RETRY);
        }
        Err(OperateError::NoAnswer {
            waited: timeout,
            cause,
        })
    }

    async fn operate_at(
        &self,
        target: NodeId,
        operation: Operation,
        left: Duration,
    ) -> Result<Response, PeerError> {
        if target == self.me {
            return Ok(self.operate_here(operation, left).await);
        }
        let request = Request::Operate {
            operation,
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let reply = self.peers.call(target, request, left).await?;
        Ok(reply.body)
    }

    /// What a controller answers that is not the active one.
    pub(super) fn not_active(&self) -> Response {
        let active = self.active_controller();
        Response::NotActive {
            active,
            address: active.and_then(|active| self.peers.known_address(active)),
        }
    }

    /// A node that joins by an older list does not know where the active controller is.
    fn note_active(&self, active: Option<NodeId>, address: Option<String>) {
        if let (Some(active), Some(address)) = (active, address) {
            self.peers.note_address(active, address);
        }
    }

    /// The active controller as far as it is known, in turn with the listed ones: it may be gone.
    fn controller_to_ask(&self, attempt: usize) -> NodeId {
        let listed = self.voters.keys().nth(attempt / 2 % self.voters.len());
        let active = self.active_controller();
        let choice = if attempt.is_multiple_of(2) {
            active.or(listed.copied())
        } else {
            listed.copied()
        };
        choice.unwrap_or(self.me)
    }

    async fn propose_to(
        &self,
        target: NodeId,
        proposal: &Proposal,
        left: Duration,
    ) -> Result<Response, PeerError> {
        if target == self.me {
            return Ok(self.propose_here(self.me, proposal, left).await);
        }
        let timeout = left.min(ATTEMPT_TIMEOUT);
        let request = Request::Propose {
            proposal: proposal.clone(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let reply = self.peers.call(target, request, timeout).await?;
        self.liveness().heard(target, reply.incarnation, self.now());
        Ok(reply.body)
    }

    /// Proposes as the active controller, on behalf of `from`.
    pub(super) async fn propose_here(
        &self,
        from: NodeId,
        proposal: &Proposal,
        timeout: Duration,
    ) -> Response {
        if !self.is_active() {
            return self.not_active();
        }
        // An active controller that is cut off would otherwise pile up what cannot be committed.
        if !self.reaches_quorum() {
            return Response::NoQuorum;
        }
        let image = Arc::clone(&self.image.borrow());
        let resolved = match proposal {
            Proposal::Command(command) => {
                check_proposer(from, self.me, command, &image).map(|()| command.clone())
            }
            Proposal::CreateTopic(request) => request.resolve(&image, &self.alive(&image)),
            Proposal::CreatePartitions(request) => request.resolve(&image, &self.alive(&image)),
        };
        match resolved {
            Ok(Command::UnregisterNode { node, directory }) => {
                let command = Command::UnregisterNode { node, directory };
                duties::remove_node(self, node, command, timeout).await
            }
            Ok(command) => self.write(command, timeout).await,
            Err(rejection) => Response::Proposed {
                result: Err(rejection),
                applied_index: image.applied_index(),
            },
        }
    }

    /// Whether a majority has acknowledged this active controller lately.
    pub(super) fn reaches_quorum(&self) -> bool {
        let metrics = self.metrics();
        let patience = QUORUM_PATIENCE.max(self.liveness().longest_limit() * 3);
        metrics.membership_config.voter_ids().count() <= 1
            || metrics
                .millis_since_quorum_ack
                .is_some_and(|millis| Duration::from_millis(millis) < patience)
    }

    /// Commits a command as the active controller.
    pub(super) async fn write(&self, command: Command, timeout: Duration) -> Response {
        // What a node of the cluster could not read must not be in the log.
        let begin = Instant::now();
        let logged = self.raft.metrics().borrow().last_log_index.unwrap_or(0);
        if let Err(rejection) = await_version(self.image.clone(), logged, &command, timeout).await {
            return Response::Proposed {
                result: Err(rejection),
                applied_index: 0,
            };
        }
        let bytes = serde_json::to_vec(&command).map_or(usize::MAX, |bytes| bytes.len());
        if bytes > MAX_COMMAND_BYTES {
            let rejection = Rejection::Malformed(format!(
                "the command has {bytes} bytes, at most {MAX_COMMAND_BYTES} are taken; split it"
            ));
            return Response::Proposed {
                result: Err(rejection),
                applied_index: 0,
            };
        }
        let written = async {
            let _turn = self.proposals.acquire().await;
            self.raft.client_write(command).await
        };
        let left = timeout.saturating_sub(begin.elapsed());
        match tokio::time::timeout(left, written).await {
            Ok(Ok(response)) => Response::Proposed {
                result: response.data,
                applied_index: response.log_id.index,
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                let active = forward.leader_id.and_then(node_id);
                Response::NotActive {
                    active,
                    address: active.and_then(|active| self.peers.known_address(active)),
                }
            }
            Ok(Err(error)) => Response::Refused(Refusal::Stopped(error.to_string())),
            Err(_elapsed) => Response::NoQuorum,
        }
    }

    /// Waits until this node's image contains the log entry `index`; gives up quietly.
    pub(super) async fn catch_up(&self, index: u64, timeout: Duration) {
        let mut image = self.image.clone();
        let caught_up = image.wait_for(|image| image.applied_index() >= index);
        let _ = tokio::time::timeout(timeout, caught_up).await;
    }
}

/// Whether every node of the cluster can read `command`. An active controller may have logged, and others applied, what its own
/// image does not show yet: a node that has seen the version rise asks for more at once. So a version that is too low is
/// held for one only when the image has come to `logged`, the end of the log, or `wait` is over.
async fn await_version(
    mut images: watch::Receiver<Arc<ClusterImage>>,
    logged: u64,
    command: &Command,
    wait: Duration,
) -> Result<(), Rejection> {
    let settled = images
        .wait_for(|image| image.check_version(command).is_ok() || image.applied_index() >= logged);
    drop(tokio::time::timeout(wait, settled).await);
    images.borrow().check_version(command)
}

/// Who may propose what: a node speaks for itself, and elections are the active controller's own.
fn check_proposer(
    from: NodeId,
    me: NodeId,
    command: &Command,
    image: &ClusterImage,
) -> Result<(), Rejection> {
    let allowed = match command {
        Command::RegisterNode { registration } => registration.node == from,
        Command::AllocateProducerIds { node, .. } => *node == from,
        Command::ChangeIsrs { changes } => changes.iter().all(|change| {
            image
                .partition(change.partition)
                .is_none_or(|state| state.leader_node().is_none_or(|leader| leader == from))
        }),
        // A leader that cannot lead asks for another.
        Command::StartElections { elections } => {
            let leads = |start: &ElectionStart| {
                // Of other epochs than there are, it is refused when it is applied.
                image.partition(start.partition).is_none_or(|state| {
                    state.leader_node() == Some(from) || state.leader_epoch != start.leader_epoch
                })
            };
            from == me || elections.iter().all(leads)
        }
        Command::InitCluster { .. }
        | Command::AppointLeaders { .. }
        | Command::RaiseMetadataVersion { .. }
        | Command::FinishReassignments { .. }
        | Command::ForceLeaders { .. }
        | Command::SetControllers { .. } => from == me,
        Command::UnregisterNode { .. }
        | Command::CreateTopic { .. }
        | Command::DeleteTopic { .. }
        | Command::CreatePartitions { .. }
        | Command::SetTopicConfigs { .. }
        | Command::SetDraining { .. }
        | Command::Reassign { .. }
        | Command::SetCredential { .. }
        | Command::DeleteCredential { .. }
        // The leader that asked may have been replaced meanwhile: what was committed under it is committed still.
        | Command::DeleteRecords { .. } => true,
    };
    if allowed {
        Ok(())
    } else {
        Err(Rejection::Malformed(format!(
            "node {from} may not propose this: it concerns another node"
        )))
    }
}

/// Whether a rejection says that the same proposal, made before, was carried out.
fn is_own_doing(proposal: &Proposal, rejection: &Rejection) -> bool {
    matches!(
        (proposal, rejection),
        (
            Proposal::Command(Command::DeleteTopic { .. }),
            Rejection::UnknownTopic(_)
        ) | (
            Proposal::Command(Command::UnregisterNode { .. }),
            Rejection::UnknownNode(_)
        )
    )
}

/// Whether an attempt that had no answer may still succeed after a later one was refused: an ISR change that is refused for
/// another reason than its epochs, while its copy is on its way. Its leader must not take that for a definite answer.
fn may_still_happen(proposal: &Proposal, outcome: &Outcome) -> bool {
    let Outcome::Partitions(results) = outcome else {
        return false;
    };
    matches!(proposal, Proposal::Command(Command::ChangeIsrs { .. }))
        && results.iter().any(|result| {
            !matches!(
                result,
                Ok(_) | Err(Rejection::StaleEpoch { .. } | Rejection::UnknownPartition(_))
            )
        })
}

/// Between half of `pause` and all of it, so that nodes that failed together do not try again together.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::metadata::{
        CreateTopicRequest, Endpoint, METADATA_VERSION, PartitionChange, Registration,
    };
    use crate::types::{
        ClusterId, DirectoryId, Incarnation, LeaderEpoch, ListenerName, PartitionEpoch, TopicId,
        TopicName,
    };

    /// A command of the second version, an image that does not take it, and one that does.
    fn raised() -> (Command, ClusterImage, ClusterImage) {
        let mut before = ClusterImage::new();
        let cluster_id = ClusterId::from_random_bits(1);
        before.apply(&Command::InitCluster { cluster_id }).unwrap();
        before.set_applied_index(3);
        let mut after = before.clone();
        let version = METADATA_VERSION;
        after
            .apply(&Command::RaiseMetadataVersion { version })
            .unwrap();
        after.set_applied_index(5);
        let mut registration = registration(NodeId::new(1).unwrap());
        registration
            .kafka_listeners
            .insert(ListenerName::new("x").unwrap(), registration.quic.clone());
        (Command::RegisterNode { registration }, before, after)
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_is_too_low_only_once_the_log_is_applied() {
        let (command, before, after) = raised();
        let wait = Duration::from_secs(3600);
        let (images, image) = watch::channel(Arc::new(before.clone()));
        let asked = tokio::spawn(async move { await_version(image, 5, &command, wait).await });
        tokio::task::yield_now().await;
        assert!(
            !asked.is_finished(),
            "it was told by an image that is behind"
        );
        images.send_replace(Arc::new(after));
        assert_eq!(asked.await.unwrap(), Ok(()));

        let (command, mut applied, _) = raised();
        applied.set_applied_index(5);
        let (_images, image) = watch::channel(Arc::new(applied));
        let refused = await_version(image, 5, &command, Duration::ZERO).await;
        let Err(rejection) = refused else {
            panic!("{refused:?}")
        };
        assert!(rejection.passes_by_itself(), "{rejection:?}");
        let begin = Instant::now();
        let (_images, image) = watch::channel(Arc::new(before));
        assert!(await_version(image, 5, &command, wait).await.is_err());
        assert_eq!(begin.elapsed(), wait);
    }

    #[test]
    fn a_refused_isr_change_is_definite_only_when_its_epochs_are_past() {
        let proposal = Proposal::Command(Command::ChangeIsrs {
            changes: Vec::new(),
        });
        let stale = Rejection::StaleEpoch {
            leader_epoch: LeaderEpoch::NONE,
            partition_epoch: PartitionEpoch(1),
        };
        let changed = PartitionChange {
            leader_epoch: LeaderEpoch::NONE,
            partition_epoch: PartitionEpoch(1),
        };
        let definite = Outcome::Partitions(vec![Err(stale), Ok(changed)]);
        assert!(!may_still_happen(&proposal, &definite));
        let open = Outcome::Partitions(vec![Ok(changed), Err(Rejection::NoLeader)]);
        assert!(may_still_happen(&proposal, &open));
    }

    fn registration(node: NodeId) -> Registration {
        Registration {
            node,
            directory: DirectoryId::from_random_bits(1),
            incarnation: Incarnation::from_random_bits(1),
            quic: Endpoint {
                host: "a".to_owned(),
                port: 1,
            },
            kafka: None,
            kafka_listeners: BTreeMap::new(),
            boot_id: None,
            metadata_version: METADATA_VERSION,
        }
    }

    /// Of one partition.
    fn led_by(node: NodeId) -> ClusterImage {
        let registration = registration(node);
        let mut image = ClusterImage::new();
        let cluster_id = ClusterId::from_random_bits(1);
        image.apply(&Command::InitCluster { cluster_id }).unwrap();
        image
            .apply(&Command::RegisterNode { registration })
            .unwrap();
        let request = CreateTopicRequest {
            name: TopicName::new("t").unwrap(),
            id: TopicId::from_random_bits(1),
            partitions: None,
            replication_factor: None,
            assignment: Some(vec![vec![node]]),
            config: BTreeMap::new(),
        };
        let create = request.resolve(&image, &BTreeSet::from([node])).unwrap();
        image.apply(&create).unwrap();
        image
    }

    #[test]
    fn nodes_speak_for_themselves() {
        let [one, two, three] = [1, 2, 3].map(|id| NodeId::new(id).unwrap());
        let image = led_by(two);
        let check = |from, command: &Command| check_proposer(from, one, command, &image).is_ok();
        let ids = Command::AllocateProducerIds {
            node: two,
            count: 1,
        };
        assert!(check(two, &ids) && !check(one, &ids));
        let (partition, state) = image.partitions().next().unwrap();
        let start = ElectionStart {
            partition,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
        };
        let elections = Command::StartElections {
            elections: vec![start],
        };
        assert!(check(one, &elections), "the active controller");
        assert!(check(two, &elections), "the leader");
        assert!(!check(three, &elections));
    }
}
