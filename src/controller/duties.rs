//! What every node's controller does by itself, and what the active one does for the cluster. Each function is a loop that
//! ends with the controller.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use openraft::{BasicNode, ChangeMembers, ServerState};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};

use super::candidacy::Outlook;
use super::handle::{RegistrationState, Shared, SubmitError};
use super::message::{Proposal, Refusal, Request, Response};
use super::peers::PeerError;
use super::raft::{node_id, raft_id};
use super::submit::jittered;
use crate::metadata::{ClusterImage, Command, Rejection};
use crate::types::{ClusterId, NodeId};

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const PROBE_PAUSE: Duration = Duration::from_millis(200);
/// How often a node that waits for the others says so.
const WAITING_LOG_INTERVAL: Duration = Duration::from_secs(5);
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after an attempt to register that failed.
const REGISTER_RETRY: Duration = Duration::from_millis(200);
/// How long a registered node waits for an image that shows it before it asks again.
const REGISTERED_PAUSE: Duration = Duration::from_secs(2);
/// How long a refused node waits before it tries again: somebody may remove the other one.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
const MEMBER_TIMEOUT: Duration = Duration::from_secs(2);
const MEMBER_INTERVAL: Duration = Duration::from_millis(500);
/// Log entries that a controller which has come back may be behind when it gets its vote back.
const MAX_VOTER_LAG: u64 = 100;
/// Heartbeats to one controller that are under way: enough for a long round trip, and a silent one costs no more.
const MAX_HEARTBEATS: usize = 20;
/// A heartbeat that was not answered by then makes room for others.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at who is alive.
const LISTEN_INTERVAL: Duration = Duration::from_millis(25);

/// First start: the lowest listed controller founds the cluster, once all listed ones answer and have empty stores. After
/// that it never does anything again.
pub(super) async fn found_cluster(shared: Arc<Shared>) {
    if shared.voters.keys().next() != Some(&shared.me) {
        return;
    }
    let mut logged: Option<Instant> = None;
    loop {
        match shared.raft.is_initialized().await {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
        let Err(waiting) = probe_all(&shared).await else {
            let members: BTreeMap<u64, BasicNode> = shared
                .voters
                .iter()
                .map(|(&voter, address)| (raft_id(voter), BasicNode::new(address)))
                .collect();
            match shared.raft.initialize(members).await {
                Ok(()) => {
                    tracing::info!(controllers = shared.voters.len(), "founded the cluster");
                }
                Err(error) => tracing::warn!(%error, "did not found the cluster"),
            }
            return;
        };
        if logged.is_none_or(|at| at.elapsed() > WAITING_LOG_INTERVAL) {
            tracing::info!(%waiting, "the cluster is not founded yet");
            logged = Some(Instant::now());
        }
        tokio::time::sleep(jittered(PROBE_PAUSE)).await;
    }
}

/// `Ok` when every other listed controller has answered that its store is empty; otherwise for whom to wait.
async fn probe_all(shared: &Arc<Shared>) -> Result<(), String> {
    let others = shared.voters.keys().filter(|&&voter| voter != shared.me);
    let probes = others.map(|&voter| async move {
        match shared
            .peers
            .call(voter, Request::Probe, PROBE_TIMEOUT)
            .await
        {
            Ok(reply) => match reply.body {
                Response::Probe { initialised: false } => Ok(()),
                Response::Probe { initialised: true } => Err(format!(
                    "node {voter} belongs to a cluster already, which should find this node; if this node's data directory was replaced, say so to the cluster, \"quorate cluster remove-node N --keep-replicas\", and start the node again"
                )),
                _ => Err(format!("node {voter} does not answer the question")),
            },
            Err(error) => Err(error.to_string()),
        }
    });
    join_all(probes).await.into_iter().collect()
}

/// Registers this node, and again whenever the image does not show it as it is: after an address change, or when somebody
/// removed it while it runs.
pub(super) async fn keep_registered(shared: Arc<Shared>) {
    let mut image = shared.image.clone();
    let mut wanted = shared.registration.subscribe();
    loop {
        let own = wanted.borrow_and_update().clone();
        let present = image.borrow_and_update().clone();
        // More is told when the cluster's version has risen.
        let registration = own.in_version(present.metadata_version());
        let registered = present.node(shared.me) == Some(&registration);
        if registered {
            set_state(&shared, RegistrationState::Registered);
            tokio::select! {
                changed = image.changed() => if changed.is_err() { return },
                changed = wanted.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let command = Command::RegisterNode {
            registration: registration.clone(),
        };
        match shared
            .submit(Proposal::Command(command), REGISTER_TIMEOUT)
            .await
        {
            Ok(_) => {
                let shown = image.wait_for(|image| image.node(shared.me) == Some(&registration));
                let _ = tokio::time::timeout(REGISTERED_PAUSE, shown).await;
            }
            Err(SubmitError::Rejected(rejection)) if !rejection.passes_by_itself() => {
                let refused = RegistrationState::Refused(rejection.clone());
                if set_state(&shared, refused) {
                    tracing::error!(node = %shared.me, %rejection, "the cluster does not take this node");
                }
                tokio::time::sleep(jittered(REFUSED_PAUSE)).await;
            }
            Err(SubmitError::Stopped) => return,
            Err(error) => {
                tracing::warn!(node = %shared.me, %error, "not registered yet");
                tokio::time::sleep(jittered(REGISTER_RETRY)).await;
            }
        }
    }
}

/// Whether it is another state than before.
fn set_state(shared: &Shared, state: RegistrationState) -> bool {
    shared.registration_state.send_if_modified(|present| {
        let changed = *present != state;
        *present = state;
        changed
    })
}

/// Tells every controller that this node is alive, at fixed times: an answer that is late holds up no later heartbeat, and
/// one controller none to another.
pub(super) async fn send_heartbeats(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(shared.config.timing.heartbeat);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turns: BTreeMap<NodeId, Arc<Semaphore>> = BTreeMap::new();
    loop {
        interval.tick().await;
        let controllers = shared.other_controllers();
        turns.retain(|node, _| controllers.contains(node));
        for controller in controllers {
            let turns = turns
                .entry(controller)
                .or_insert_with(|| Arc::new(Semaphore::new(MAX_HEARTBEATS)));
            let Ok(turn) = Arc::clone(turns).try_acquire_owned() else {
                continue;
            };
            let sender = Arc::clone(&shared);
            shared.spawn(async move {
                let _turn = turn;
                send_heartbeat(&sender, controller).await;
            });
        }
    }
}

async fn send_heartbeat(shared: &Shared, controller: NodeId) {
    let begin = Instant::now();
    let request = Request::Heartbeat(shared.vitals(controller));
    match shared
        .peers
        .call(controller, request, HEARTBEAT_TIMEOUT)
        .await
    {
        Ok(reply) => {
            shared.note_round_trip(controller, begin.elapsed());
            let now = shared.now();
            if let Response::Heard(vitals) = reply.body {
                shared
                    .liveness()
                    .heard_vitals(controller, reply.incarnation, vitals, now);
                shared.note_clock(controller, vitals);
            }
            note_cluster(shared, controller, None);
        }
        Err(error) => {
            if let PeerError::Answer {
                refusal: Refusal::OtherCluster { own, offered },
                ..
            } = error
            {
                note_cluster(shared, controller, Some((own, offered)));
            }
            tracing::debug!(%controller, %error, "heartbeat failed");
        }
    }
}

/// Notes whether a controller has answered from another cluster (`own` and `theirs`). Once a majority of them have, all from
/// the same one, this node is the one that is in the wrong place.
fn note_cluster(shared: &Shared, controller: NodeId, other: Option<(ClusterId, ClusterId)>) {
    let mut strangers = shared
        .strangers
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let Some((own, theirs)) = other else {
        strangers.remove(&controller);
        return;
    };
    strangers.insert(controller, theirs);
    let agreeing = strangers.values().filter(|&&id| id == theirs).count();
    drop(strangers);
    if agreeing > shared.voters.len() / 2
        && set_state(shared, RegistrationState::Foreign { own, theirs })
    {
        tracing::error!(node = %shared.me, %own, %theirs, "the controllers belong to another cluster");
    }
}

/// Judges who is alive, often enough that a pause of this process is told from the silence of others.
pub(super) async fn listen(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(LISTEN_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let voters: BTreeSet<NodeId> = {
            let metrics = shared.raft.metrics();
            let metrics = metrics.borrow();
            let committed = metrics.membership_config.voter_ids();
            committed.filter_map(node_id).collect()
        };
        let now = shared.now();
        {
            let mut liveness = shared.liveness();
            if !voters.is_empty() {
                liveness.set_voters(voters);
            }
            liveness.tick(now);
        }
        let image = Arc::clone(&shared.image.borrow());
        shared.alive(&image);
    }
}

/// Sees to it that some controller is active: stands when the active one is gone. See [`super::candidacy`].
pub(super) async fn keep_active(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(LISTEN_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut active = None;
    loop {
        interval.tick().await;
        let present = shared.active_controller();
        if present != active {
            if let Some(node) = present {
                let term = shared.metrics().current_term;
                tracing::info!(controller = %node, term, "the active controller");
            }
            active = present;
        }
        let metrics = shared.metrics();
        let voters: BTreeSet<NodeId> = metrics
            .membership_config
            .voter_ids()
            .filter_map(node_id)
            .collect();
        if voters.len() == 1 && voters.contains(&shared.me) {
            // Alone, there is nobody to ask and nothing to wait for.
            let resting = matches!(metrics.state, ServerState::Follower | ServerState::Learner);
            if resting && !stand(&shared).await {
                return;
            }
            continue;
        }
        let outlook = shared.outlook();
        let now = shared.now();
        if !shared.candidacy().begin_round(now, &outlook) {
            continue;
        }
        let willing = canvass(&shared, &voters, &outlook).await;
        let outlook = shared.outlook();
        let now = shared.now();
        let stands = shared
            .candidacy()
            .end_round(now, &outlook, willing, rand::random());
        if stands {
            tracing::info!(
                missing = present.map(|node| node.to_string()),
                term = metrics.current_term,
                "the active controller is gone; standing for its place"
            );
            if !stand(&shared).await {
                return;
            }
        }
    }
}

/// `false` once openraft has stopped.
async fn stand(shared: &Shared) -> bool {
    shared.raft.trigger().elect().await.is_ok()
}

/// Whether a majority of the voters, this node included, would vote for this node. Ends as soon as it is known.
async fn canvass(shared: &Shared, voters: &BTreeSet<NodeId>, outlook: &Outlook) -> bool {
    let majority = voters.len() / 2 + 1;
    let mut willing = usize::from(voters.contains(&shared.me));
    let mut answers: FuturesUnordered<_> = voters
        .iter()
        .filter(|&&voter| voter != shared.me)
        .map(|&voter| async move {
            let request = Request::Canvass {
                last_log: outlook.last_log,
            };
            let asked = shared.peers.call(voter, request, outlook.patience).await;
            let reply = asked.inspect_err(
                |error| tracing::debug!(node = %voter, %error, "did not answer a canvass"),
            );
            let Ok(reply) = reply else { return false };
            let now = shared.now();
            shared.liveness().heard(voter, reply.incarnation, now);
            matches!(reply.body, Response::Canvassed { willing: true })
        })
        .collect();
    while willing < majority && willing + answers.len() >= majority {
        match answers.next().await {
            Some(true) => willing += 1,
            Some(false) => {}
            None => break,
        }
    }
    willing >= majority
}

/// The active controller's: gives the cluster its id, and keeps the Raft membership in line with the registry. Every
/// registered node is a member and no other; the controllers that are wanted vote.
pub(super) async fn keep_members(shared: Arc<Shared>) {
    let mut image = shared.image.clone();
    let mut interval = tokio::time::interval(MEMBER_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            changed = image.changed() => if changed.is_err() { return },
        }
        image.mark_unchanged();
        if !shared.is_active() || !shared.reaches_quorum() {
            continue;
        }
        if image.borrow().cluster_id().is_none() {
            let command = Command::InitCluster {
                cluster_id: shared.config.cluster_id,
            };
            let response = shared.write(command, MEMBER_TIMEOUT).await;
            tracing::debug!(?response, "gave the cluster its id");
            continue;
        }
        let _alone = shared.membership.lock().await;
        let present = Arc::clone(&image.borrow());
        align_members(&shared, &present).await;
    }
}

async fn align_members(shared: &Shared, present: &ClusterImage) {
    let metrics = shared.metrics();
    let membership = &metrics.membership_config;
    // A membership that is newer than the image names nodes that the image does not show yet.
    if membership
        .log_id()
        .is_some_and(|at| at.index > present.applied_index())
    {
        return;
    }
    let members: BTreeSet<u64> = membership.nodes().map(|(&id, _)| id).collect();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let wanted = shared.wanted_controllers(present);
    for registration in present.nodes() {
        let node = registration.node;
        let id = raft_id(node);
        if !members.contains(&id) {
            let address = BasicNode::new(registration.quic.to_string());
            let added = shared.raft.add_learner(id, address, false);
            tell("add a member", node, added).await;
        } else if wanted.contains(&node) && !voters.contains(&id) {
            // One that was added, or was removed and has come back. It votes once it has what the others have.
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|replication| *replication.get(&id)?);
            if matched.is_some_and(|at| Some(at.index + MAX_VOTER_LAG) >= metrics.last_log_index) {
                let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
                let changed = shared.raft.change_membership(change, true);
                tell("let a controller vote", node, changed).await;
            }
        }
    }
    remove_votes(shared, present, &wanted, &voters).await;
    for id in members.difference(&voters) {
        let gone = node_id(*id).filter(|&node| present.node(node).is_none());
        if let Some(node) = gone {
            let change = ChangeMembers::RemoveNodes(BTreeSet::from([*id]));
            let changed = shared.raft.change_membership(change, true);
            tell("remove a member", node, changed).await;
        }
    }
}

/// Takes the vote from whoever is not to have it. Those that are to vote come first, as far as they are there.
async fn remove_votes(
    shared: &Shared,
    present: &ClusterImage,
    wanted: &BTreeSet<NodeId>,
    voters: &BTreeSet<u64>,
) {
    let alive = shared.alive(present);
    let votes = |node: &NodeId| voters.contains(&raft_id(*node));
    let awaited = wanted.iter().any(|n| alive.contains(n) && !votes(n));
    if awaited || !wanted.iter().any(votes) {
        return;
    }
    let surplus = voters.iter().filter_map(|&id| node_id(id));
    for node in surplus.filter(|node| !wanted.contains(node)) {
        // It stays a member, so that it follows the metadata.
        let change = ChangeMembers::RemoveVoters(BTreeSet::from([raft_id(node)]));
        let changed = shared.raft.change_membership(change, true);
        tell("take the vote from a controller", node, changed).await;
    }
}

/// As the active controller, takes a node out of the Raft membership and then, by `command`, out of the registry. In this
/// order, so that a node that comes back under the same id with an empty store is not taken for one that has forgotten.
pub(super) async fn remove_node(
    shared: &Shared,
    node: NodeId,
    command: Command,
    timeout: Duration,
) -> Response {
    let refuse = |reason: &str| Response::Proposed {
        result: Err(Rejection::NotRemovable {
            node,
            reason: reason.to_owned(),
        }),
        applied_index: 0,
    };
    let removed = async {
        let _alone = shared.membership.lock().await;
        if node == shared.me {
            return refuse("it is the active controller; stop it, and ask again");
        }
        let image = Arc::clone(&shared.image.borrow());
        if shared.alive(&image).contains(&node) {
            return refuse("it is alive; stop it, and ask again after a second");
        }
        let id = raft_id(node);
        let membership = shared.metrics().membership_config;
        if membership.voter_ids().any(|voter| voter == id) {
            let change = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
            let changed = shared.raft.change_membership(change, false);
            if !tell("take the vote from a controller", node, changed).await {
                return Response::NoQuorum;
            }
        } else if membership.nodes().any(|(&member, _)| member == id) {
            let change = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
            let changed = shared.raft.change_membership(change, true);
            if !tell("remove a member", node, changed).await {
                return Response::NoQuorum;
            }
        }
        shared.write(command, timeout).await
    };
    match tokio::time::timeout(timeout, removed).await {
        Ok(response) => response,
        Err(_elapsed) => Response::NoQuorum,
    }
}

/// Waits for a membership change, and whether it succeeded. One that fails is tried again on the next occasion.
async fn tell<T, E: std::fmt::Display>(
    what: &str,
    node: NodeId,
    change: impl Future<Output = Result<T, E>>,
) -> bool {
    match tokio::time::timeout(MEMBER_TIMEOUT, change).await {
        Ok(Ok(_)) => tracing::info!(%node, "{what}: done"),
        Ok(Err(error)) => {
            tracing::warn!(%node, %error, "{what}: failed");
            return false;
        }
        Err(_elapsed) => {
            tracing::warn!(%node, "{what}: no majority answered");
            return false;
        }
    }
    true
}
