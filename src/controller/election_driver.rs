//! The active controller's elections of partition leaders.
//!
//! One loop, for all partitions at once. Whenever the image or the set of living nodes changes it starts the elections that
//! are needed (one command for all of them), fences the ISR members (one call a node, for all partitions), and appoints
//! (one command for all) as replies come in. It keeps nothing that the image does not say better: a new active controller
//! takes over an election that it finds begun.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::handle::Shared;
use super::message::{
    FenceAnswer, FenceItem, FencePosition, HandOverAnswer, HandOverItem, MAX_FENCE_ITEMS, Request,
    Response,
};
use super::peers::PeerError;
use super::submit::jittered;
use super::transfers::{HAND_OVER_WITHIN, HandOver, Order, Transfers};
use crate::metadata::{
    Appointing, ClusterImage, Command, Election, ElectionStart, FenceReply,
    MAX_CHANGES_PER_COMMAND, Outcome, can_elect, moves_away, moves_to_preferred, needs_election,
};
use crate::types::{Incarnation, LeaderEpoch, NodeId, TopicPartition};

/// How often the living are counted and graces end.
const TICK: Duration = Duration::from_millis(25);
/// Pauses before a node is fenced again that did not answer, or not for every partition.
const FIRST_RETRY: Duration = Duration::from_millis(25);
const LAST_RETRY: Duration = Duration::from_millis(500);
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Replies that wait for the loop: one call a node is under way, so this many never come.
const MAX_REPLIES: usize = 1024;
/// How often it is looked which leaderships are to move, if nothing changes: some of them rest after a failure.
const MOVES_INTERVAL: Duration = Duration::from_millis(250);
/// How long an election quorum waits for the replica that a leadership is on its way to.
const CHOICE_GRACE: Duration = Duration::from_millis(500);
/// Added to the time that a leader has for handing over, for its answer to arrive.
const HAND_OVER_MARGIN: Duration = Duration::from_millis(500);

struct Driver {
    shared: Arc<Shared>,
    image: watch::Receiver<Arc<ClusterImage>>,
    /// The partitions without a leader. At most as many as there are partitions.
    elections: BTreeMap<TopicPartition, Running>,
    /// By node to fence. At most as many as there are nodes.
    calls: BTreeMap<NodeId, Call>,
    replies: mpsc::Sender<CallEnd>,
    transfers: Transfers,
    hand_overs: mpsc::Sender<HandOverEnd>,
    /// When it is looked again which leaderships are to move.
    next_moves: Instant,
    /// When it is looked again whether the preferred replicas lead.
    next_balance: Instant,
    /// What was looked at last, and what came of it: nothing is looked at twice.
    seen: Option<(u64, BTreeSet<NodeId>)>,
}

struct Running {
    election: Election,
    /// Since when it has an election quorum of replies.
    quorum_since: Option<Instant>,
}

/// How it stands with fencing one node.
struct Call {
    under_way: bool,
    /// Not before then.
    next: Instant,
    pause: Duration,
}

/// What came of one fence call.
struct CallEnd {
    node: NodeId,
    asked: usize,
    /// The process that answered, and its answers.
    result: Result<(Incarnation, Vec<FenceAnswer>), PeerError>,
}

/// What came of asking a leader to hand over.
struct HandOverEnd {
    partition: TopicPartition,
    epoch: LeaderEpoch,
    result: Result<(), String>,
}

pub(super) async fn run(shared: Arc<Shared>, mut orders: mpsc::Receiver<Order>) {
    let (replies, mut ends) = mpsc::channel(MAX_REPLIES);
    let (hand_overs, mut handed_over) = mpsc::channel(MAX_REPLIES);
    let now = Instant::now();
    let mut driver = Driver {
        image: shared.image.clone(),
        transfers: Transfers::default(),
        hand_overs,
        next_moves: now,
        next_balance: now + shared.config.leader_balance.check_every,
        shared,
        elections: BTreeMap::new(),
        calls: BTreeMap::new(),
        replies,
        seen: None,
    };
    let mut standing = driver.shared.raft.server_metrics();
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            changed = driver.image.changed() => if changed.is_err() { return },
            Some(end) = ends.recv() => driver.take(end),
            Some(end) = handed_over.recv() => driver.take_hand_over(end),
            Some(order) = orders.recv() => driver.transfers.order(order),
            // It has become the active controller, perhaps.
            changed = standing.changed() => if changed.is_err() { return },
            () = driver.shared.news.notified() => {}
        }
        while let Ok(end) = ends.try_recv() {
            driver.take(end);
        }
        while let Ok(end) = handed_over.try_recv() {
            driver.take_hand_over(end);
        }
        while let Ok(order) = orders.try_recv() {
            driver.transfers.order(order);
        }
        driver.step().await;
    }
}

impl Driver {
    async fn step(&mut self) {
        if !self.shared.is_active() {
            self.elections.clear();
            self.transfers.abandon();
            self.next_balance = Instant::now() + self.shared.config.leader_balance.check_every;
            self.seen = None;
            return;
        }
        // Cut off, it would pile up what cannot be committed.
        if !self.shared.reaches_quorum() {
            return;
        }
        let image = Arc::clone(&self.image.borrow_and_update());
        let alive = self.shared.alive(&image);
        let looked_at = (image.applied_index(), alive.clone());
        if self.seen.as_ref() != Some(&looked_at) {
            self.seen = Some(looked_at);
            let needed = needs_election(&image, &alive);
            self.track(&image, &needed);
            self.start(&image, &alive, &needed).await;
            self.next_moves = Instant::now();
        }
        self.transfer(&image, &alive).await;
        if !self.elections.is_empty() {
            self.fence(&image);
            self.appoint(&image, &alive).await;
        }
    }

    /// Moves leaderships between the living: asks leaders to hand over, and vacates the partitions of those that have.
    async fn transfer(&mut self, image: &ClusterImage, alive: &BTreeSet<NodeId>) {
        let now = Instant::now();
        if now >= self.next_moves {
            self.next_moves = now + MOVES_INTERVAL;
            self.transfers.wish(moves_away(image, alive), now);
        }
        let balance = self.shared.config.leader_balance;
        if balance.enabled && now >= self.next_balance {
            self.next_balance = now + balance.check_every;
            let moves = moves_to_preferred(image, alive, balance.tolerated_percent);
            self.transfers.wish(moves, now);
        }
        if self.transfers.is_empty() {
            return;
        }
        self.transfers.settle(image, now);
        for ask in self.transfers.begin(image, alive, now) {
            let shared = Arc::clone(&self.shared);
            let ends = self.hand_overs.clone();
            self.shared.spawn(async move {
                let (partition, epoch) = (ask.partition, ask.epoch);
                let result = hand_over(&shared, ask).await;
                let end = HandOverEnd {
                    partition,
                    epoch,
                    result,
                };
                // Only a stopped loop does not listen.
                let _ = ends.send(end).await;
            });
        }
        let elections = self.transfers.take_vacancies(image);
        if !elections.is_empty() {
            self.write(Command::StartElections { elections }).await;
        }
    }

    fn take_hand_over(&mut self, end: HandOverEnd) {
        self.transfers
            .handed_over(end.partition, end.epoch, end.result, Instant::now());
    }

    /// Follows the elections that are committed, and forgets those that are over.
    fn track(&mut self, image: &ClusterImage, needed: &[TopicPartition]) {
        self.elections.retain(|&partition, running| {
            image.partition(partition).is_some_and(|state| {
                state.leader.is_none() && state.leader_epoch == running.election.epoch()
            })
        });
        for &partition in needed {
            if self.elections.contains_key(&partition) {
                continue;
            }
            let state = image.partition(partition);
            if let Some(election) = state.and_then(|state| Election::new(partition, state)) {
                tracing::info!(%partition, epoch = %election.epoch(), "electing a leader");
                let running = Running {
                    election,
                    quorum_since: None,
                };
                self.elections.insert(partition, running);
            }
        }
    }

    /// Step (a), for every partition whose leader is gone and whose election can end.
    async fn start(
        &mut self,
        image: &ClusterImage,
        alive: &BTreeSet<NodeId>,
        needed: &[TopicPartition],
    ) {
        let starts: Vec<ElectionStart> = needed
            .iter()
            .filter_map(|&partition| {
                let state = image.partition(partition)?;
                let leader = state.leader?;
                if !can_elect(image, state, alive) {
                    tracing::debug!(%partition, leader = %leader.node, "the leader is gone, and too few of the in-sync replicas are left to elect another");
                    return None;
                }
                tracing::info!(%partition, leader = %leader.node, epoch = %state.leader_epoch, "the leader is gone");
                Some(ElectionStart {
                    partition,
                    leader_epoch: state.leader_epoch,
                    partition_epoch: state.partition_epoch,
                })
            })
            .collect();
        for elections in starts.chunks(MAX_CHANGES_PER_COMMAND) {
            let elections = elections.to_vec();
            self.write(Command::StartElections { elections }).await;
        }
    }

    /// Step (b): asks every node from which a reply is missing, unless it is being asked.
    fn fence(&mut self, image: &ClusterImage) {
        let now = Instant::now();
        let mut missing: BTreeMap<NodeId, Vec<FenceItem>> = BTreeMap::new();
        for (&partition, running) in &self.elections {
            for node in running.election.missing(image) {
                let items = missing.entry(node).or_default();
                if items.len() < MAX_FENCE_ITEMS {
                    items.push(FenceItem {
                        partition,
                        epoch: running.election.epoch(),
                    });
                }
            }
        }
        self.calls
            .retain(|node, call| call.under_way || missing.contains_key(node));
        for (node, items) in missing {
            let call = self.calls.entry(node).or_insert(Call {
                under_way: false,
                next: now,
                pause: FIRST_RETRY,
            });
            if call.under_way || call.next > now {
                continue;
            }
            call.under_way = true;
            let shared = Arc::clone(&self.shared);
            let replies = self.replies.clone();
            let applied_index = image.applied_index();
            self.shared.spawn(async move {
                let asked = items.len();
                let result = fence_node(&shared, node, applied_index, items).await;
                let end = CallEnd {
                    node,
                    asked,
                    result,
                };
                // Only a stopped loop does not listen.
                let _ = replies.send(end).await;
            });
        }
    }

    /// Takes a node's answers: what was promised counts, the rest is asked for again.
    fn take(&mut self, end: CallEnd) {
        let mut promised = 0;
        match end.result {
            Ok((incarnation, answers)) => {
                for answer in answers.into_iter().take(end.asked) {
                    match answer.result {
                        Ok(position) => {
                            if self.count(end.node, incarnation, answer.partition, position) {
                                promised += 1;
                            }
                        }
                        Err(refusal) => {
                            tracing::debug!(node = %end.node, partition = %answer.partition, %refusal, "not fenced");
                        }
                    }
                }
            }
            Err(error) => tracing::debug!(node = %end.node, %error, "could not fence"),
        }
        if let Some(call) = self.calls.get_mut(&end.node) {
            call.under_way = false;
            if promised == end.asked {
                call.pause = FIRST_RETRY;
                call.next = Instant::now();
            } else {
                call.next = Instant::now() + jittered(call.pause);
                call.pause = (call.pause * 2).min(LAST_RETRY);
            }
        }
    }

    fn count(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        partition: TopicPartition,
        position: FencePosition,
    ) -> bool {
        let Some(running) = self.elections.get_mut(&partition) else {
            // Over in the meantime.
            return true;
        };
        let reply = FenceReply {
            epoch: position.epoch,
            node,
            incarnation,
            last: position.last,
            eligible: position.eligible,
            is_reluctant: position.is_reluctant,
        };
        match running.election.record(reply) {
            Ok(()) => true,
            Err(unused) => {
                tracing::debug!(%node, %partition, ?unused, "a fence reply does not count");
                false
            }
        }
    }

    /// Steps (c) and (d), for every partition that has its quorum.
    async fn appoint(&mut self, image: &ClusterImage, alive: &BTreeSet<NodeId>) {
        let now = Instant::now();
        let grace = self.shared.config.timing.election_grace;
        let mut appointments = Vec::new();
        for (&partition, running) in &mut self.elections {
            if !running.election.has_quorum(image) {
                running.quorum_since = None;
                continue;
            }
            let choice = self.transfers.choice(partition);
            if let Some(leader) = choice
                .and_then(|node| running.election.winner_by_choice(image, node))
                .filter(|leader| alive.contains(&leader.node))
            {
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
            // The one that a leadership is on its way to has just proved that it is there.
            let patience = match choice {
                Some(node) if missing.contains(&node) => CHOICE_GRACE.max(grace),
                _ => grace,
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
        for appointments in appointments.chunks(MAX_CHANGES_PER_COMMAND) {
            for appointing in appointments {
                tracing::info!(partition = %appointing.partition, epoch = %appointing.leader_epoch, leader = %appointing.leader.node, "appointing a leader");
            }
            let appointments = appointments.to_vec();
            self.write(Command::AppointLeaders { appointments }).await;
        }
    }

    /// Commits a batch. What is refused was decided on an older image, and is decided again on the next.
    async fn write(&mut self, command: Command) {
        // Whatever came of it, look again.
        self.seen = None;
        match self.shared.write(command, WRITE_TIMEOUT).await {
            Response::Proposed {
                result: Ok(Outcome::Partitions(results)),
                ..
            } => {
                for rejection in results.into_iter().filter_map(Result::err) {
                    tracing::debug!(%rejection, "a step of an election was refused");
                }
            }
            response => tracing::warn!(?response, "a step of an election was not committed"),
        }
    }
}

/// Asks a leader to hand one partition over; the text says why it did not.
async fn hand_over(shared: &Shared, ask: HandOver) -> Result<(), String> {
    let items = vec![HandOverItem {
        partition: ask.partition,
        epoch: ask.epoch,
        to: ask.to,
    }];
    let answers: Vec<HandOverAnswer> = if ask.leader == shared.me {
        shared
            .fence_handler
            .hand_over(items, HAND_OVER_WITHIN)
            .await
    } else {
        let request = Request::HandOver {
            items,
            within_ms: u64::try_from(HAND_OVER_WITHIN.as_millis()).unwrap_or(u64::MAX),
        };
        let timeout = HAND_OVER_WITHIN + HAND_OVER_MARGIN;
        let reply = shared.peers.call(ask.leader, request, timeout).await;
        match reply.map_err(|error| error.to_string())?.body {
            Response::HandedOver(answers) => answers,
            _ => return Err("it answered something else".to_owned()),
        }
    };
    let answer = answers
        .into_iter()
        .find(|answer| answer.partition == ask.partition)
        .ok_or_else(|| "it did not answer for this partition".to_owned())?;
    answer.result.map_err(|refusal| refusal.to_string())
}

pub(super) async fn fence_node(
    shared: &Shared,
    node: NodeId,
    applied_index: u64,
    items: Vec<FenceItem>,
) -> Result<(Incarnation, Vec<FenceAnswer>), PeerError> {
    if node == shared.me {
        let answers = shared.fence_handler.fence(items).await;
        return Ok((shared.config.registration.incarnation, answers));
    }
    let request = Request::Fence {
        applied_index,
        items,
    };
    let timeout = shared.config.timing.fence_timeout;
    let reply = shared.peers.call(node, request, timeout).await?;
    shared
        .liveness()
        .heard(node, reply.incarnation, shared.now());
    match reply.body {
        Response::Fenced(answers) => Ok((reply.incarnation, answers)),
        _ => Ok((reply.incarnation, Vec::new())),
    }
}
