//! The handle that the rest of the node has on its controller.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::{RaftMetrics, ServerState, SnapshotPolicy};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::candidacy::{Candidacy, Outlook};
use super::clock_skew::{ClockSkews, SkewNews};
use super::config::{
    ALLOWED_CONTROLLERS, ControllerConfig, FenceHandler, PeerNetwork, StartError, Timing,
};
use super::liveness::Liveness;
use super::message::{MAX_COMMAND_BYTES, Proposal, Request, Vitals};
use super::network::Network;
use super::operation::{Operation, OperationOutcome, OperationRefusal};
use super::peers::Peers;
use super::raft::{Raft, node_id, raft_id};
use super::round_trip::RoundTrip;
use super::runtime::{LEADER_LEASE, VOTE_TIMEOUT};
use super::store::{self, Owner};
use super::transfers::Order;
use super::{duties, election_driver, upkeep};
use crate::metadata::{
    ClusterImage, Command, CreatePartitionsRequest, CreateTopicRequest, Endpoint, Outcome,
    Registration, Rejection,
};
use crate::types::{ClusterId, ErrorCode, ListenerName, NodeId, ProducerId, TopicId};

/// Proposals that one active controller has under way. Further ones wait for their turn within their own timeouts.
const MAX_PROPOSALS: usize = 256;
/// Entries after which a snapshot is taken.
const SNAPSHOT_EVERY: u64 = 2_000;
/// Entries that are kept behind a snapshot, so that a node that was away shortly needs none.
const KEPT_ENTRIES: u64 = 1_000;
/// A node that is further behind than this gets a snapshot.
const SNAPSHOT_LAG: u64 = 4_000;
/// Entries in one append request, within the byte limit of the store's reader.
const MAX_APPEND_ENTRIES: u64 = 256;
/// Bytes of a snapshot in one message. JSON makes up to four times as many of them.
const SNAPSHOT_CHUNK: u64 = 512 * 1024;
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);
/// Orders to move a leadership that wait for the election driver. At the cap an operation waits within its own timeout.
const MAX_ORDERS: usize = 256;
/// How long a stop waits for the controllers to hear of it.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a stop waits for the store's file.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a proposal was not carried out, or it is not known whether it was.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// Committed as a refusal: it was not done.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It may or may not have been done.
    #[error(
        "no majority of the controllers answered within {} ms ({cause}); check that they run and can be reached",
        waited.as_millis()
    )]
    NoQuorum { waited: Duration, cause: String },
    /// It was not done.
    #[error("the command has {0} bytes, at most {MAX_COMMAND_BYTES} are taken; split it")]
    TooLarge(usize),
    /// It may or may not have been done.
    #[error("this node's controller has stopped")]
    Stopped,
    #[error(
        "the controller answered something else than was asked; are all nodes of the same version?"
    )]
    UnexpectedOutcome,
}

impl SubmitError {
    /// The answer to a Kafka client.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            SubmitError::Rejected(rejection) => rejection.error_code(),
            SubmitError::NoQuorum { .. } => ErrorCode::RequestTimedOut,
            SubmitError::TooLarge(_) => ErrorCode::InvalidRequest,
            SubmitError::Stopped => ErrorCode::NotController,
            SubmitError::UnexpectedOutcome => ErrorCode::UnknownServerError,
        }
    }
}

/// Why an operation was not carried out, or it is not known whether it was.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OperateError {
    /// It was not done.
    #[error(transparent)]
    Refused(#[from] OperationRefusal),
    /// It may or may not have been done.
    #[error(
        "no active controller answered within {} ms ({cause}); check that the controllers run and can be reached, then look what has become of it",
        waited.as_millis()
    )]
    NoAnswer { waited: Duration, cause: String },
    #[error("this node's controller has stopped")]
    Stopped,
}

/// How far this node is with its own registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Not yet, or the controllers cannot be reached.
    Pending,
    /// The image of this node shows it.
    Registered,
    /// Another data directory holds this node id, or the cluster is too new. It is tried again from time to time.
    Refused(Rejection),
    /// A majority of the listed controllers belong to another cluster than what this node has stored: its data directory is
    /// of one cluster and its list of controllers of another. Nothing of it is taken, however often it is tried.
    Foreign { own: ClusterId, theirs: ClusterId },
}

/// One node's controller. Clones are handles on the same one; when the last is dropped, it stops.
#[derive(Clone)]
pub struct Controller {
    pub(super) shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

/// What the handle and the tasks share.
pub(super) struct Shared {
    pub(super) me: NodeId,
    /// What this node registers; its endpoints may change.
    pub(super) registration: watch::Sender<Registration>,
    pub(super) registration_state: watch::Sender<RegistrationState>,
    /// The controllers whose last answer came from another cluster, and which. Bounded by the listed ones.
    pub(super) strangers: Mutex<BTreeMap<NodeId, ClusterId>>,
    /// The listed controllers and their addresses. Never empty.
    pub(super) voters: BTreeMap<NodeId, String>,
    pub(super) config: ControllerConfig,
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) image: watch::Receiver<Arc<ClusterImage>>,
    pub(super) fence_handler: Arc<dyn FenceHandler>,
    pub(super) stop: CancellationToken,
    liveness: Mutex<Liveness>,
    candidacy: Mutex<Candidacy>,
    /// Of this node's heartbeats, by controller. Bounded by the controllers.
    round_trips: Mutex<BTreeMap<NodeId, RoundTrip>>,
    started: Instant,
    pub(super) proposals: Semaphore,
    /// To the election driver.
    pub(super) orders: mpsc::Sender<Order>,
    /// Something was heard that changes who is alive at once.
    pub(super) news: Notify,
    /// Held while the Raft membership is brought in line with the registry, so that a node being removed is not added.
    pub(super) membership: AsyncMutex<()>,
    /// When a refused message was last told of at a level that is seen.
    pub(super) refusal_logged: Mutex<Option<Instant>>,
    pub(super) clock_skews: Mutex<ClockSkews>,
    tasks: TaskTracker,
    /// Closed when nobody has the store's file open any more.
    pub(super) store_open: watch::Receiver<()>,
}

impl Controller {
    /// Opens the store and starts: openraft, the heartbeats, this node's registration, and what the active controller does.
    /// Returns at once; a cluster may take a while to form.
    pub async fn start(
        config: ControllerConfig,
        network: Arc<dyn PeerNetwork>,
        fence_handler: Arc<dyn FenceHandler>,
    ) -> Result<Controller, StartError> {
        let me = config.registration.node;
        let mut voters = config.voters.clone();
        if voters.is_empty() {
            voters.insert(me, config.registration.quic.to_string());
        }
        if !ALLOWED_CONTROLLERS.contains(&voters.len()) {
            return Err(StartError::ControllerCount(voters.len()));
        }
        let raft_config = raft_config(&config.timing)?;
        let owner = Owner {
            node: me,
            directory: config.registration.directory,
        };
        let path = config.store_path.clone();
        let opened = tokio::task::spawn_blocking(move || store::open(&path, owner))
            .await
            .map_err(|error| StartError::Raft(error.to_string()))??;
        let peers = Arc::new(Peers::new(
            config.registration.clone(),
            voters.clone(),
            network,
            opened.image.clone(),
        ));
        let raft = Raft::new(
            raft_id(me),
            Arc::new(raft_config),
            Network {
                peers: Arc::clone(&peers),
            },
            opened.log,
            opened.state,
        )
        .await
        .map_err(|error| StartError::Raft(error.to_string()))?;
        let image = opened.image.borrow().clone();
        if let Err(error) = check_controllers(&raft, &config, &image).await {
            if let Err(error) = raft.shutdown().await {
                tracing::warn!(%error, "openraft did not stop cleanly");
            }
            return Err(error);
        }
        let liveness = Liveness::new(
            me,
            voters.keys().copied().collect(),
            config.timing.heartbeat,
        );
        let stop = CancellationToken::new();
        let (orders, to_carry_out) = mpsc::channel(MAX_ORDERS);
        let shared = Arc::new(Shared {
            me,
            registration: watch::Sender::new(config.registration.clone()),
            registration_state: watch::Sender::new(RegistrationState::Pending),
            strangers: Mutex::default(),
            voters,
            config,
            raft,
            peers,
            image: opened.image,
            fence_handler,
            stop: stop.clone(),
            liveness: Mutex::new(liveness),
            candidacy: Mutex::new(Candidacy::new(me)),
            round_trips: Mutex::default(),
            started: Instant::now(),
            proposals: Semaphore::new(MAX_PROPOSALS),
            orders,
            news: Notify::new(),
            membership: AsyncMutex::new(()),
            refusal_logged: Mutex::new(None),
            clock_skews: Mutex::default(),
            tasks: TaskTracker::new(),
            store_open: opened.open,
        });
        shared.spawn_tasks(to_carry_out);
        Ok(Controller {
            shared,
            _stop: Arc::new(stop.drop_guard()),
        })
    }

    /// This node's view of the committed metadata, and each change of it.
    pub fn image(&self) -> watch::Receiver<Arc<ClusterImage>> {
        self.shared.image.clone()
    }

    /// Proposes `command` to the active controller, from any node. When it returns, the command has been committed and
    /// applied there, and here too unless this node is more than half a second behind.
    ///
    /// Retries, with growing pauses, until `timeout`: a command may then be applied twice, which
    /// [`ClusterImage::apply`] allows for. A deletion that finds nothing after an attempt without an answer has succeeded.
    /// [`SubmitError::NoQuorum`] is not an outcome: the command may be carried out later. An ISR change is settled only
    /// when the partition's epochs have moved past the ones that it names; proposing the present set again moves them.
    pub async fn submit(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Outcome, SubmitError> {
        self.shared
            .submit(Proposal::Command(command), timeout)
            .await
    }

    /// An index in the log of the metadata that is past everything that was committed before this call: what an image shows
    /// that has applied that much is as new as the call. Takes a round of the controllers' log. Errors as [`Controller::submit`].
    pub async fn committed_end(&self, timeout: Duration) -> Result<u64, SubmitError> {
        self.shared.committed_end(timeout).await
    }

    /// Creates a topic: the active controller chooses replicas among the nodes that it holds for alive.
    pub async fn create_topic(
        &self,
        request: CreateTopicRequest,
        timeout: Duration,
    ) -> Result<TopicId, SubmitError> {
        let proposal = Proposal::CreateTopic(request);
        match self.shared.submit(proposal, timeout).await? {
            Outcome::TopicCreated { topic } => Ok(topic),
            _ => Err(SubmitError::UnexpectedOutcome),
        }
    }

    /// Adds partitions to a topic; gives their number in all.
    pub async fn create_partitions(
        &self,
        request: CreatePartitionsRequest,
        timeout: Duration,
    ) -> Result<u32, SubmitError> {
        let proposal = Proposal::CreatePartitions(request);
        match self.shared.submit(proposal, timeout).await? {
            Outcome::PartitionsCreated { count } => Ok(count),
            _ => Err(SubmitError::UnexpectedOutcome),
        }
    }

    /// Reserves `count` producer ids for this node: the first of them, and how many.
    pub async fn allocate_producer_ids(
        &self,
        count: u32,
        timeout: Duration,
    ) -> Result<(ProducerId, u32), SubmitError> {
        let node = self.shared.me;
        let command = Command::AllocateProducerIds { node, count };
        match self.submit(command, timeout).await? {
            Outcome::ProducerIds { first, count } => Ok((first, count)),
            _ => Err(SubmitError::UnexpectedOutcome),
        }
    }

    /// Has the active controller carry an operation out, from any node; retries until `timeout` while none answers.
    /// [`OperateError::NoAnswer`] is not an outcome: it may be carried out all the same.
    pub async fn operate(
        &self,
        operation: Operation,
        timeout: Duration,
    ) -> Result<OperationOutcome, OperateError> {
        self.shared.operate(operation, timeout).await
    }

    /// The nodes that vote on metadata, as far as this node knows. Empty before the cluster is founded.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.shared.committed_voters()
    }

    /// The nodes that are to vote on metadata: other than [`Controller::voters`] only while they change, or where one of
    /// them is gone.
    pub fn wanted_voters(&self) -> BTreeSet<NodeId> {
        let image = self.shared.image.borrow().clone();
        self.shared.wanted_controllers(&image)
    }

    /// The active controller, as far as this node knows. It may have been replaced already.
    pub fn active_controller(&self) -> Option<NodeId> {
        self.shared.active_controller()
    }

    /// Whether this node is the active controller, as far as it knows.
    pub fn is_active(&self) -> bool {
        self.shared.is_active()
    }

    /// Whether this node has heard a majority of the controllers (itself included, if it is one) within the silence timeout.
    pub fn hears_majority(&self) -> bool {
        let now = self.shared.now();
        self.shared.liveness().hears_majority(now)
    }

    /// The registered nodes that this one holds for alive: all of them where it is no controller, since only those hear everybody.
    pub fn alive(&self) -> BTreeSet<NodeId> {
        let image = self.shared.image.borrow().clone();
        self.shared.alive(&image)
    }

    /// How far this node's registration is.
    pub fn registration(&self) -> watch::Receiver<RegistrationState> {
        self.shared.registration_state.subscribe()
    }

    /// The image, in which this node is where it says itself that it is. It may be the last to learn that its move is written
    /// down, since what it is told is sent to its old address first; clients that it answers must not be sent back there.
    pub fn image_with_own_place(&self) -> Arc<ClusterImage> {
        let image = self.shared.image.borrow().clone();
        let own = self.shared.registration.borrow();
        let is_known = image.node(own.node).is_none_or(|known| {
            known.quic == own.quic
                && known.kafka == own.kafka
                && known.kafka_listeners == own.kafka_listeners
        });
        if is_known {
            return image;
        }
        let own = own.clone();
        Arc::new(image.with_endpoints_of(&own))
    }

    /// This node is reached elsewhere now: registers that at once. Kafka listeners that are not named stay where they are.
    pub fn set_endpoints(&self, quic: Endpoint, kafka: BTreeMap<ListenerName, Endpoint>) {
        self.shared.registration.send_modify(|registration| {
            registration.quic = quic;
            for (listener, endpoint) in kafka {
                registration.set_kafka_endpoint(listener, endpoint);
            }
        });
    }

    /// Returns when the controller has failed, with the reason: its store cannot be written or read any more. The process
    /// should stop. Does not return after [`Controller::shutdown`].
    pub async fn failed(&self) -> String {
        let mut metrics = self.shared.raft.metrics();
        loop {
            let state = metrics.borrow_and_update().running_state.clone();
            if let Err(fatal) = state
                && !self.shared.stop.is_cancelled()
            {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                if self.shared.stop.is_cancelled() {
                    return std::future::pending().await;
                }
                return "openraft has ended".to_owned();
            }
        }
    }

    /// Tells the controllers that this node stops, so that they do not wait for its silence; at most a moment. An active
    /// controller ceases to hold on to that. To be called once nothing more will be served, and before
    /// [`Controller::shutdown`].
    pub async fn leave(&self) {
        let shared = &self.shared;
        shared.raft.runtime_config().heartbeat(false);
        let told = shared.other_controllers().into_iter().map(async |node| {
            let told = shared
                .peers
                .call(node, Request::Leaving, LEAVE_TIMEOUT)
                .await;
            if let Err(error) = told {
                tracing::debug!(controller = %node, %error, "did not hear that this node stops");
            }
        });
        futures_util::future::join_all(told).await;
    }

    /// Stops everything and waits until the store's file is closed.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        let mut store_open = self.shared.store_open.clone();
        let closed = async { while store_open.changed().await.is_ok() {} };
        if tokio::time::timeout(STOP_TIMEOUT, closed).await.is_err() {
            tracing::warn!(path = %self.shared.config.store_path.display(), "the controller's store is still open");
        }
    }
}

/// A store that comes from another cluster would go on being that cluster.
async fn check_controllers(
    raft: &Raft,
    config: &ControllerConfig,
    image: &ClusterImage,
) -> Result<(), StartError> {
    let stored: BTreeSet<u64> = raft
        .with_raft_state(|state| state.membership_state.effective().voter_ids().collect())
        .await
        .map_err(|error| StartError::Raft(error.to_string()))?;
    let listed: BTreeSet<u64> = config.voters.keys().copied().map(raft_id).collect();
    // A list that is older than the last change of the controllers still names nodes of the cluster.
    let is_member = |listed: &NodeId| image.node(*listed).is_some();
    if stored.is_empty()
        || listed.is_empty()
        || !stored.is_disjoint(&listed)
        || config.voters.keys().any(is_member)
    {
        return Ok(());
    }
    let text = |ids: &BTreeSet<u64>| {
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        ids.join(", ")
    };
    Err(StartError::OtherControllers {
        store: config.store_path.clone(),
        stored: text(&stored),
        listed: text(&listed),
    })
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock, in ms since 1970.
fn unix_ms() -> i64 {
    let nanos = OffsetDateTime::now_utc().unix_timestamp_nanos();
    i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX)
}

fn raft_config(timing: &Timing) -> Result<openraft::Config, StartError> {
    openraft::Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(timing.raft_heartbeat),
        // Our own detector stands for election: see `candidacy`.
        enable_elect: false,
        election_timeout_min: millis(VOTE_TIMEOUT),
        election_timeout_max: millis(LEADER_LEASE),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        max_payload_entries: MAX_APPEND_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEPT_ENTRIES,
        replication_lag_threshold: SNAPSHOT_LAG,
        snapshot_max_chunk_size: SNAPSHOT_CHUNK,
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| StartError::Timing(error.to_string()))
}

impl Shared {
    fn spawn_tasks(self: &Arc<Self>, orders: mpsc::Receiver<Order>) {
        let raft = self.raft.clone();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.cancelled().await;
            if let Err(error) = raft.shutdown().await {
                tracing::warn!(%error, "openraft did not stop cleanly");
            }
        });
        self.spawn(duties::found_cluster(Arc::clone(self)));
        self.spawn(duties::keep_registered(Arc::clone(self)));
        self.spawn(duties::listen(Arc::clone(self)));
        self.spawn(duties::send_heartbeats(Arc::clone(self)));
        self.spawn(duties::keep_active(Arc::clone(self)));
        self.spawn(duties::keep_members(Arc::clone(self)));
        self.spawn(upkeep::run(Arc::clone(self)));
        self.spawn(election_driver::run(Arc::clone(self), orders));
    }

    /// Runs a task until the controller stops.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Time since the start: the clock of [`Liveness`].
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn liveness(&self) -> MutexGuard<'_, Liveness> {
        self.liveness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn candidacy(&self) -> MutexGuard<'_, Candidacy> {
        self.candidacy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The nodes that are alive; tells of those that were not before, or are not any more.
    ///
    /// Only controllers hear everybody. Another node takes each registered one for alive: it would hold those for dead that have
    /// nothing to say to it, and tell its clients that they do not lead.
    pub(super) fn alive(&self, image: &ClusterImage) -> BTreeSet<NodeId> {
        if !self.is_controller(self.me) {
            return image
                .nodes()
                .map(|registration| registration.node)
                .collect();
        }
        let now = self.now();
        let (alive, verdicts) = {
            let mut liveness = self.liveness();
            let alive = liveness.alive(image.nodes(), now);
            (alive, liveness.take_verdicts())
        };
        if !verdicts.is_empty() {
            for verdict in verdicts {
                let node = verdict.node;
                let incarnation = verdict.incarnation;
                let cause = verdict.cause;
                let silence_ms = millis(verdict.silence);
                if verdict.alive {
                    tracing::info!(%node, %incarnation, %cause, silence_ms, "node alive again");
                } else {
                    tracing::warn!(%node, %incarnation, %cause, silence_ms, "node held for dead");
                }
            }
        }
        alive
    }

    /// What this node tells `controller` of itself.
    pub(super) fn vitals(&self, controller: NodeId) -> Vitals {
        let round_trips = self
            .round_trips
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        Vitals {
            round_trip: round_trips.get(&controller).copied(),
            leads: (metrics.state == ServerState::Leader).then_some(metrics.current_term),
            unix_ms: Some(unix_ms()),
        }
    }

    /// Tells in the log of a node whose clock is far from this one's.
    pub(super) fn note_clock(&self, node: NodeId, vitals: Vitals) {
        let Some(theirs) = vitals.unix_ms else {
            return;
        };
        let now = self.now();
        let mut skews = self
            .clock_skews
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match skews.handle(node, theirs, unix_ms(), now) {
            Some(SkewNews::Off(off_ms)) => tracing::warn!(
                %node, ahead_s = off_ms / 1000,
                "the clock of a node is off, or this machine's: set both by NTP"
            ),
            Some(SkewNews::Right) => tracing::info!(%node, "the clocks agree again"),
            None => {}
        }
    }

    /// A heartbeat to `controller` has been answered after `sample`.
    pub(super) fn note_round_trip(&self, controller: NodeId, sample: Duration) {
        let mut round_trips = self
            .round_trips
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        round_trips
            .entry(controller)
            .and_modify(|known| known.add(sample))
            .or_insert_with(|| RoundTrip::first(sample));
    }

    /// The nodes that may vote and lead here, listed or committed, but for this one.
    pub(super) fn other_controllers(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let committed = metrics.membership_config.voter_ids().filter_map(node_id);
        committed
            .chain(self.voters.keys().copied())
            .filter(|&node| node != self.me)
            .collect()
    }

    /// What the choice of an active controller depends on.
    pub(super) fn outlook(&self) -> Outlook {
        let metrics = self.metrics();
        let now = self.now();
        let active = metrics.current_leader.and_then(node_id);
        let liveness = self.liveness();
        Outlook {
            votes: metrics
                .membership_config
                .voter_ids()
                .any(|voter| voter == raft_id(self.me)),
            leads: metrics.state == ServerState::Leader,
            presence: liveness.presence(active, metrics.current_term, now),
            hears_majority: liveness.hears_majority(now),
            last_log: self.raft.data_metrics().borrow().last_log,
            patience: liveness.longest_limit(),
        }
    }

    pub(super) fn metrics(&self) -> RaftMetrics<u64, openraft::BasicNode> {
        self.raft.metrics().borrow().clone()
    }

    pub(super) fn is_active(&self) -> bool {
        self.raft.metrics().borrow().state == ServerState::Leader
    }

    pub(super) fn active_controller(&self) -> Option<NodeId> {
        self.raft
            .metrics()
            .borrow()
            .current_leader
            .and_then(node_id)
    }

    /// Whether `node` may vote and lead here: it is listed, or the committed membership says so. A node that knows no
    /// membership yet, with a list that is older than the last change of the controllers, would wait for ever for one that
    /// it does not know: it also takes whom a controller that it asked has named as the active one.
    pub(super) fn is_controller(&self, node: NodeId) -> bool {
        if self.voters.contains_key(&node) {
            return true;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let mut committed = metrics.membership_config.voter_ids().peekable();
        if committed.peek().is_none() {
            return self.peers.was_told_of(node);
        }
        committed.any(|voter| voter == raft_id(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_timing_is_one_that_openraft_takes() {
        assert!(raft_config(&Timing::default()).is_ok());
        let timing = Timing {
            raft_heartbeat: Duration::from_secs(2),
            ..Timing::default()
        };
        assert!(matches!(raft_config(&timing), Err(StartError::Timing(_))));
    }
}
