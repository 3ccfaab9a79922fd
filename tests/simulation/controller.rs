//! The controller: one linearizable process that applies commands to the product's `ClusterImage`, and elects by the product's
//! rules. The loop around them follows the broker's election driver, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate::metadata::{
    Appointing, ClusterImage, Command, Election, ElectionStart, FenceReply, METADATA_VERSION,
    NewPartition, NewTopic, Outcome, Rejection, can_elect, needs_election,
};
use quorate::replication::IsrOutcome;
use quorate::types::{
    Appointment, Incarnation, IsrChange, LeaderEpoch, MonotonicTime, NodeId, TopicPartition, quorum,
};

use super::checker::{Check, violated};
use super::event::{Event, FenceReplied, Origin, ToController, ToNode};
use super::moves::{CHOICE_GRACE, Transfer};
use super::node::{
    CLUSTER, TOPICS, index_of, node_id, partition_id, partition_index, topic_id, topic_name,
};
use super::planted::Planted;
use super::unclean::Unclean;
use super::world::{World, unexpected};

/// Silence after which a node is held for dead.
const NODE_TIMEOUT: Duration = Duration::from_millis(600);
const TICK: Duration = Duration::from_millis(25);
const SUBMIT_TIMEOUT: Duration = Duration::from_millis(600);
const FENCE_TIMEOUT: Duration = Duration::from_millis(500);
const FIRST_RETRY_MS: u64 = 25;
const LAST_RETRY_MS: u64 = 500;
const ELECTION_GRACE: Duration = Duration::from_millis(50);

#[derive(Default)]
pub struct Controller {
    pub image: ClusterImage,
    /// The image after each command, from the first that has the topics: what nodes follow.
    pub images: Vec<Arc<ClusterImage>>,
    heard: BTreeMap<NodeId, Heard>,
    listening_since: MonotonicTime,
    last_tick: MonotonicTime,
    /// While it is stopped, what waits for it.
    pub stopped: Option<Vec<Event>>,
    /// Rises when another controller becomes active.
    reign: u64,
    elections: BTreeMap<TopicPartition, Running>,
    calls: BTreeMap<NodeId, Call>,
    next_call: u64,
    /// A command of the driver is under way: it waits for the outcome before it looks again.
    writing: bool,
    /// Changes of in-sync sets that are under way to it.
    pub proposals: Vec<IsrChange>,
    /// Leaderships on their way to another node.
    pub transfers: BTreeMap<TopicPartition, Transfer>,
    /// When it is looked again which are to move.
    pub next_moves: MonotonicTime,
    /// Unclean elections that an operator waits for.
    pub unclean: BTreeMap<TopicPartition, Unclean>,
}

#[derive(Clone, Copy)]
struct Heard {
    incarnation: Incarnation,
    at: MonotonicTime,
}

struct Running {
    election: Election,
    quorum_since: Option<MonotonicTime>,
}

struct Call {
    id: u64,
    under_way: bool,
    asked: usize,
    next: MonotonicTime,
    pause_ms: u64,
}

impl Controller {
    pub fn latest(&self) -> usize {
        self.images.len() - 1
    }

    /// The nodes whose registered process is alive.
    pub fn alive(&self, now: MonotonicTime) -> BTreeSet<NodeId> {
        self.image
            .nodes()
            .filter(|registration| {
                let heard = self.heard.get(&registration.node);
                // A later process of the node says that the registered one is gone.
                if heard.is_some_and(|heard| heard.incarnation > registration.incarnation) {
                    return false;
                }
                let last = heard.map_or(MonotonicTime::ZERO, |heard| heard.at);
                now.since(last.max(self.listening_since)) < NODE_TIMEOUT
            })
            .map(|registration| registration.node)
            .collect()
    }

    fn hear(&mut self, node: NodeId, incarnation: Incarnation, now: MonotonicTime) {
        let heard = self.heard.entry(node).or_insert(Heard {
            incarnation,
            at: now,
        });
        if incarnation >= heard.incarnation {
            *heard = Heard {
                incarnation,
                at: now,
            };
        }
    }

    /// What it keeps is bounded by what there is in the cluster.
    pub fn check_bounds(&self, nodes: usize, partitions: usize) -> Check {
        let kept = [
            ("elections", self.elections.len(), partitions),
            ("calls", self.calls.len(), nodes),
            ("nodes heard", self.heard.len(), nodes),
            ("transfers", self.transfers.len(), partitions),
            ("unclean elections", self.unclean.len(), partitions),
        ];
        match kept.into_iter().find(|&(_, count, bound)| count > bound) {
            None => Ok(()),
            Some((what, count, bound)) => violated(
                "12 (bounds)",
                format!("the controller has {count} {what}, at most {bound}"),
            ),
        }
    }

    fn settled(&mut self, change: &IsrChange) {
        if let Some(at) = self.proposals.iter().position(|other| other == change) {
            self.proposals.swap_remove(at);
        }
    }

    /// Another controller is active: it knows the image, and listens from now.
    pub fn fail_over(&mut self, now: MonotonicTime) {
        self.reign += 1;
        self.heard.clear();
        self.listening_since = now;
        self.elections.clear();
        self.calls.clear();
        self.transfers.clear();
        self.unclean.clear();
        self.writing = false;
    }
}

impl World {
    /// The cluster as it is before anything happens: nodes registered, topics made, all replicas in sync.
    pub fn found_cluster(&mut self) -> Check {
        let keeps_name = self.planted == Some(Planted::EmptyDiskKeepsItsName);
        let partitions = self.setup.partitions;
        let mut commands = vec![Command::InitCluster {
            cluster_id: CLUSTER,
        }];
        for node in &mut self.nodes {
            node.start(self.now, partitions, keeps_name)
                .map_err(|cause| super::world::violated_now("simulator", cause))?;
            if let Some(process) = &node.process {
                commands.push(Command::RegisterNode {
                    registration: node.registration(process.me),
                });
            }
        }
        let nodes = self.setup.nodes;
        let replicas = |partition: usize| -> Vec<NodeId> {
            (0..nodes)
                .map(|i| node_id((i + partition) % nodes))
                .collect()
        };
        for topic in 0..partitions.min(TOPICS) {
            commands.push(Command::CreateTopic {
                topic: NewTopic {
                    id: topic_id(topic),
                    name: topic_name(topic),
                    config: BTreeMap::new(),
                    partitions: (topic..partitions)
                        .step_by(TOPICS)
                        .map(|partition| NewPartition {
                            replicas: replicas(partition),
                            in_sync: replicas(partition),
                        })
                        .collect(),
                    min_insync: self.setup.min_insync,
                },
            });
        }
        commands.push(Command::RaiseMetadataVersion {
            version: METADATA_VERSION,
        });
        for command in &commands {
            if let Err(rejection) = self.controller.image.apply(command) {
                return unexpected(format!("{command:?}: {rejection}"));
            }
        }
        self.controller
            .images
            .push(Arc::new(self.controller.image.clone()));
        for partition in 0..partitions {
            if let Some(state) = self.controller.image.partition(partition_id(partition)) {
                self.checkers[partition].state_committed(state)?;
            }
        }
        for node in 0..nodes {
            self.process_started(node)?;
        }
        Ok(())
    }

    pub fn tell_controller(&mut self, message: ToController) -> Check {
        if let Some(waiting) = &mut self.controller.stopped {
            waiting.push(Event::ToController(message));
            return Ok(());
        }
        let now = self.now;
        match message {
            ToController::Heartbeat { node, incarnation } => {
                self.controller.hear(node_id(node), incarnation, now);
            }
            ToController::Register { node, boot } => {
                let incarnation = self.nodes[node].incarnation(boot);
                self.controller.hear(node_id(node), incarnation, now);
                let Some(process) = &self.nodes[node].process else {
                    return Ok(());
                };
                if self.nodes[node].boot == boot {
                    let registration = self.nodes[node].registration(process.me);
                    self.propose(Command::RegisterNode { registration }, Origin::Registration);
                }
            }
            ToController::Fenced {
                call,
                node,
                incarnation,
                answers,
            } => {
                self.controller.hear(node_id(node), incarnation, now);
                self.note_for_unclean(node_id(node), incarnation, &answers);
                self.take_fenced(call, node, Some((incarnation, answers)));
                return self.step_controller();
            }
            ToController::HandedOver {
                partition,
                epoch,
                done,
                ..
            } => {
                self.take_handed_over(partition, epoch, done);
                return self.step_controller();
            }
            ToController::FenceTimedOut { call, node } => self.take_fenced(call, node, None),
            ToController::CommittedEnd { node, boot, number } => {
                let end = self.controller.image.applied_index();
                let controller = self.setup.controller();
                if let Some(after) = self.network.send_call(controller, node) {
                    let message = ToNode::CommittedEnd { boot, number, end };
                    self.plan(after, Event::ToNode { node, message });
                }
            }
            ToController::ChangeIsr {
                node,
                boot,
                change,
                awaited,
            } => {
                let command = Command::ChangeIsrs {
                    changes: vec![change.clone()],
                };
                let origin = Origin::Leader {
                    node,
                    boot,
                    change,
                    awaited,
                };
                // Now and then a log entry takes long to be committed, and is overtaken by others.
                if self.random.permille(100) {
                    let after = self.random.between(10_000, 900_000);
                    self.plan_us(after, Event::Commit { command, origin });
                } else {
                    self.propose(command, origin);
                }
            }
        }
        Ok(())
    }

    pub fn propose(&mut self, command: Command, origin: Origin) {
        let after = self.random.between(500, 6000);
        self.plan_us(after, Event::Commit { command, origin });
    }

    pub fn commit(&mut self, command: &Command, origin: Origin) -> Check {
        if let Some(waiting) = &mut self.controller.stopped {
            waiting.push(Event::Commit {
                command: command.clone(),
                origin,
            });
            return Ok(());
        }
        let before: Vec<_> = (0..self.setup.partitions)
            .map(|partition| {
                self.controller
                    .image
                    .partition(partition_id(partition))
                    .cloned()
            })
            .collect();
        let mut image = self.controller.image.clone();
        let outcome = image.apply(command);
        self.tell(|| format!("controller: {command:?} → {outcome:?}"));
        if outcome.is_ok() {
            image.set_applied_index(self.controller.images.len() as u64);
            self.controller.image = image;
            self.controller
                .images
                .push(Arc::new(self.controller.image.clone()));
        }
        for (partition, before) in before.into_iter().enumerate() {
            let state = self
                .controller
                .image
                .partition(partition_id(partition))
                .cloned();
            if state != before
                && let Some(state) = state
            {
                let mut is_forced = false;
                if let Some(before) = before {
                    let (was, is) = (before.isr.len(), state.isr.len());
                    let renamed = was == is && before.isr != state.isr;
                    self.figures.shrunk += u64::from(is < was);
                    self.figures.grown += u64::from(is > was);
                    self.figures.renamed += u64::from(renamed);
                    self.figures.min_insync_changes +=
                        u64::from(before.min_insync != state.min_insync);
                    is_forced = state.forced_epoch > before.forced_epoch;
                    self.figures.forced += u64::from(is_forced);
                }
                self.checkers[partition].state_committed(&state)?;
                if is_forced {
                    let lost_from = self.checkers[partition].lost_from;
                    for producer in &mut self.producers {
                        if producer.partition == partition {
                            producer.forget_lost(lost_from);
                        }
                    }
                }
            }
        }
        match origin {
            Origin::Driver(reign) => {
                if reign == self.controller.reign {
                    self.controller.writing = false;
                }
            }
            Origin::Operator => {}
            Origin::Registration => {
                if let Err(Rejection::DirectoryInUse {
                    node, registered, ..
                }) = outcome
                {
                    // An operator removes the node whose disk is gone, so that it may come back.
                    let command = Command::UnregisterNode {
                        node,
                        directory: Some(registered),
                    };
                    let after = self.random.between(20_000, 200_000);
                    self.plan_us(
                        after,
                        Event::Commit {
                            command,
                            origin: Origin::Operator,
                        },
                    );
                }
            }
            Origin::Leader {
                node,
                boot,
                change,
                awaited,
            } => {
                self.controller.settled(&change);
                let outcome = match outcome {
                    Ok(Outcome::Partitions(mut results)) => match results.pop() {
                        Some(Ok(_)) => IsrOutcome::Accepted,
                        Some(Err(_)) => IsrOutcome::Refused,
                        None => IsrOutcome::Unknown,
                    },
                    _ => IsrOutcome::Unknown,
                };
                if awaited {
                    self.answer_proposal(node, boot, change, outcome);
                }
            }
        }
        self.push_metadata();
        Ok(())
    }

    fn answer_proposal(&mut self, node: usize, boot: u64, change: IsrChange, outcome: IsrOutcome) {
        let controller = self.setup.controller();
        let (after, outcome) = match self.network.send_call(controller, node) {
            Some(after) => (after, outcome),
            None => (SUBMIT_TIMEOUT, IsrOutcome::Unknown),
        };
        let message = ToNode::IsrOutcome {
            boot,
            change,
            outcome,
        };
        self.plan(after, Event::ToNode { node, message });
    }

    /// A leader submits a change of its in-sync set: it may be lost on the way, or be given up and yet arrive.
    pub fn submit_isr_change(&mut self, node: usize, change: IsrChange) {
        let boot = self.nodes[node].boot;
        let controller = self.setup.controller();
        let sent = self.network.send_call(node, controller);
        let awaited = sent.is_some() && !self.random.permille(150);
        if let Some(after) = sent {
            self.controller.proposals.push(change.clone());
            let message = ToController::ChangeIsr {
                node,
                boot,
                change: change.clone(),
                awaited,
            };
            self.plan(after, Event::ToController(message));
        }
        if !awaited {
            let given_up_after = self.random.between(100, 600);
            let message = ToNode::IsrOutcome {
                boot,
                change,
                outcome: IsrOutcome::Unknown,
            };
            self.plan(
                Duration::from_millis(given_up_after),
                Event::ToNode { node, message },
            );
        }
    }

    /// Every node follows the committed commands, each at its own pace.
    pub fn push_metadata(&mut self) {
        for node in 0..self.setup.nodes {
            self.send_metadata(node);
        }
    }

    pub fn send_metadata(&mut self, node: usize) {
        let (applied, latest) = (self.nodes[node].applied, self.controller.latest());
        if applied >= latest {
            return;
        }
        // Entry by entry, or several at once.
        let index = if self.random.permille(500) {
            applied + 1
        } else {
            latest
        };
        let controller = self.setup.controller();
        if let Some(after) = self.network.send_call(controller, node) {
            let message = ToNode::Metadata { index };
            self.plan(after, Event::ToNode { node, message });
        }
    }

    pub fn tick_controller(&mut self) -> Check {
        if let Some(waiting) = &mut self.controller.stopped {
            waiting.push(Event::ControllerTick);
            return Ok(());
        }
        self.plan(TICK, Event::ControllerTick);
        if self.now.since(self.controller.last_tick) > NODE_TIMEOUT / 2 {
            // It was held up itself: what it did not hear meanwhile says nothing.
            self.controller.listening_since = self.now;
        }
        self.controller.last_tick = self.now;
        self.step_controller()
    }

    fn step_controller(&mut self) -> Check {
        if self.controller.writing {
            return Ok(());
        }
        let alive = self.controller.alive(self.now);
        let needed = needs_election(&self.controller.image, &alive);
        self.track_elections(&needed);
        let starts: Vec<ElectionStart> = needed
            .iter()
            .filter_map(|&partition| {
                let image = &self.controller.image;
                let state = image.partition(partition)?;
                state.leader?;
                can_elect(image, state, &alive).then_some(ElectionStart {
                    partition,
                    leader_epoch: state.leader_epoch,
                    partition_epoch: state.partition_epoch,
                })
            })
            .collect();
        if !starts.is_empty() {
            self.figures.elections += starts.len() as u64;
            self.drive(Command::StartElections { elections: starts });
            return Ok(());
        }
        self.step_unclean();
        if self.end_draining() || self.end_reassignments() || self.move_leaders() {
            return Ok(());
        }
        if !self.controller.elections.is_empty() {
            self.fence_members();
            self.appoint(&alive);
        }
        Ok(())
    }

    pub fn drive(&mut self, command: Command) {
        self.controller.writing = true;
        let reign = self.controller.reign;
        self.propose(command, Origin::Driver(reign));
    }

    fn track_elections(&mut self, needed: &[TopicPartition]) {
        let Controller {
            image, elections, ..
        } = &mut self.controller;
        elections.retain(|&partition, running| {
            image.partition(partition).is_some_and(|state| {
                state.leader.is_none() && state.leader_epoch == running.election.epoch()
            })
        });
        for &partition in needed {
            let state = image.partition(partition);
            if let Some(election) = state.and_then(|state| Election::new(partition, state)) {
                elections.entry(partition).or_insert(Running {
                    election,
                    quorum_since: None,
                });
            }
        }
    }

    fn fence_members(&mut self) {
        let now = self.now;
        let mut missing: BTreeMap<NodeId, Vec<_>> = BTreeMap::new();
        for (&partition, running) in &self.controller.elections {
            for node in running.election.missing(&self.controller.image) {
                missing
                    .entry(node)
                    .or_default()
                    .push((partition, running.election.epoch()));
            }
        }
        self.controller
            .calls
            .retain(|node, call| call.under_way || missing.contains_key(node));
        for (node, items) in missing {
            let id = self.controller.next_call + 1;
            let call = self.controller.calls.entry(node).or_insert(Call {
                id: 0,
                under_way: false,
                asked: 0,
                next: now,
                pause_ms: FIRST_RETRY_MS,
            });
            if call.under_way || call.next > now {
                continue;
            }
            self.controller.next_call = id;
            call.id = id;
            call.under_way = true;
            call.asked = items.len();
            let to = index_of(node);
            let controller = self.setup.controller();
            // A fence may be delivered twice: the call is made again on another connection.
            for after in self.network.send_once(controller, to) {
                let message = ToNode::Fence {
                    call: id,
                    items: items.clone(),
                };
                self.plan(after, Event::ToNode { node: to, message });
            }
            let message = ToController::FenceTimedOut { call: id, node: to };
            self.plan(FENCE_TIMEOUT, Event::ToController(message));
        }
    }

    /// Takes a node's answers, or that there are none.
    fn take_fenced(
        &mut self,
        id: u64,
        node: usize,
        answers: Option<(Incarnation, Vec<FenceReplied>)>,
    ) {
        let always_eligible = self.planted == Some(Planted::AlwaysEligible);
        let mut promised = 0;
        if let Some((incarnation, answers)) = answers {
            for answer in answers {
                let Some((last, eligible)) = answer.position else {
                    continue;
                };
                let Some(running) = self.controller.elections.get_mut(&answer.partition) else {
                    promised += 1;
                    continue;
                };
                let reply = FenceReply {
                    epoch: answer.epoch,
                    node: node_id(node),
                    incarnation,
                    last,
                    eligible: eligible || always_eligible,
                    is_reluctant: false,
                };
                promised += usize::from(running.election.record(reply).is_ok());
            }
        }
        let now = self.now;
        let jitter = self.random.between(500, 1000);
        if let Some(call) = self.controller.calls.get_mut(&node_id(node))
            && call.id == id
            && call.under_way
        {
            call.under_way = false;
            if promised == call.asked {
                call.pause_ms = FIRST_RETRY_MS;
                call.next = now;
            } else {
                call.next = now + Duration::from_micros(call.pause_ms * jitter);
                call.pause_ms = (call.pause_ms * 2).min(LAST_RETRY_MS);
            }
        }
    }

    fn appoint(&mut self, alive: &BTreeSet<NodeId>) {
        let now = self.now;
        let planted = self.planted;
        let mut appointments = Vec::new();
        let Controller {
            image,
            elections,
            transfers,
            ..
        } = &mut self.controller;
        for (&partition, running) in elections {
            let picked = match planted {
                Some(Planted::NoElectionQuorum) => first_answer(image, &running.election),
                Some(Planted::LowestLogWins)
                    if running.election.has_quorum(image)
                        && !transfers.contains_key(&partition) =>
                {
                    lowest_answer(image, &running.election)
                }
                _ => None,
            };
            if let Some(leader) = picked {
                appointments.push(Appointing {
                    partition,
                    leader_epoch: running.election.epoch(),
                    leader,
                });
                continue;
            }
            if !running.election.has_quorum(image) {
                running.quorum_since = None;
                continue;
            }
            let choice = transfers.get(&partition).and_then(Transfer::choice);
            let chosen = choice
                .and_then(|node| running.election.winner_by_choice(image, node))
                .filter(|leader| alive.contains(&leader.node));
            if let Some(leader) = chosen {
                // It holds what the old leader did: there is nobody to wait for.
                appointments.push(Appointing {
                    partition,
                    leader_epoch: running.election.epoch(),
                    leader,
                });
                continue;
            }
            let since = *running.quorum_since.get_or_insert(now);
            let missing: BTreeSet<NodeId> = running
                .election
                .missing(image)
                .filter(|node| alive.contains(node))
                .collect();
            let patience = match choice {
                Some(node) if missing.contains(&node) => CHOICE_GRACE.max(ELECTION_GRACE),
                _ => ELECTION_GRACE,
            };
            if now < since + patience && !missing.is_empty() {
                continue;
            }
            if let Some(leader) = running.election.winner_among(image, alive) {
                appointments.push(Appointing {
                    partition,
                    leader_epoch: running.election.epoch(),
                    leader,
                });
            }
        }
        if !appointments.is_empty() {
            self.drive(Command::AppointLeaders { appointments });
        }
    }

    /// An operator, or a rule about where leaders should be, takes a healthy leader away.
    pub fn depose(&mut self, partition: usize) {
        let id = partition_id(partition);
        let Some(state) = self.controller.image.partition(id) else {
            return;
        };
        if state.leader.is_none() {
            return;
        }
        let elections = vec![ElectionStart {
            partition: id,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
        }];
        self.figures.elections += 1;
        self.propose(Command::StartElections { elections }, Origin::Operator);
    }

    /// A leader with a damaged log gives way.
    pub fn resign(&mut self, election: ElectionStart) {
        self.figures.elections += 1;
        let elections = vec![election];
        self.propose(Command::StartElections { elections }, Origin::Operator);
    }

    /// How many more replicas of a partition may lose what they hold without its becoming unavailable for good.
    pub fn may_lose_another(&self, partition: usize, node: usize) -> bool {
        let Some(state) = self.controller.image.partition(partition_id(partition)) else {
            return false;
        };
        let lost = |member: &&Appointment| {
            let i = index_of(member.node);
            // What nobody has found yet is lost all the same.
            let is_harmed = self.nodes[i].was_harmed[partition];
            i == node || is_harmed || self.checkers[partition].is_void(i)
        };
        let survives = |isr: &[Appointment], min_insync: u32| {
            isr.iter().filter(lost).count() < quorum::commit_quorum(isr.len(), min_insync as usize)
        };
        survives(&state.isr, state.min_insync)
            && self
                .controller
                .proposals
                .iter()
                .filter(|change| change.partition == partition_id(partition))
                .all(|change| survives(&change.new_isr, change.min_insync))
    }

    pub fn may_lose_disk(&self, node: usize) -> bool {
        (0..self.setup.partitions).all(|partition| self.may_lose_another(partition, node))
    }
}

/// A planted mistake: any valid answer will do. The product's `Election` picks, from this one answer.
fn first_answer(image: &ClusterImage, election: &Election) -> Option<Appointment> {
    answered(image, election).into_iter().next()
}

/// A planted mistake: the picked one is not the best. Which answer is worst cannot be asked, so the last in the order of
/// replicas that is not the winner stands in.
fn lowest_answer(image: &ClusterImage, election: &Election) -> Option<Appointment> {
    let winner = election.winner(image, false)?;
    answered(image, election)
        .into_iter()
        .rfind(|answered| *answered != winner)
        .or(Some(winner))
}

/// The members from which a valid answer has come.
fn answered(image: &ClusterImage, election: &Election) -> Vec<Appointment> {
    let missing: Vec<NodeId> = election.missing(image).collect();
    let Some(state) = image.partition(election.partition()) else {
        return Vec::new();
    };
    state
        .isr
        .iter()
        .filter(|member| !missing.contains(&member.node))
        .filter_map(|member| image.registered(member.node))
        .collect()
}

/// The partitions of a fence, for those who keep them by index.
pub fn fenced_partitions(
    items: &[(TopicPartition, LeaderEpoch)],
) -> impl Iterator<Item = (usize, LeaderEpoch)> {
    items
        .iter()
        .map(|&(partition, epoch)| (partition_index(partition), epoch))
}
