//! Leaderships on their way from one living node to another.
//!
//! The leader is asked to hand over: it takes no more produces and waits until the other replica holds all that it has. Then
//! an ordinary election begins, in which that replica is preferred: it ties with the old leader, so it may be picked. If
//! the leader does not hand over, nothing was begun and it goes on.
//!
//! ```text
//!   handing over ──handed over──▶ to be vacated ──vacated──▶ electing ──appointed──▶ done
//!        │ refused, silent                                       │ another won
//!        └─────────────▶ refused ◀───────────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::operation::TransferRefusal;
use crate::metadata::{ClusterImage, ElectionStart, Move, can_take_over};
use crate::types::{LeaderEpoch, NodeId, TopicPartition};

/// Leaderships that are on their way at a time. Each costs its producers a pause, and the controller two commits.
const MAX_RUNNING: usize = 32;
/// Orders that wait for their turn. The next one is refused.
const MAX_WAITING: usize = 4_000;
/// How long a leader has for handing over. Its producers wait that long at most when it does not succeed.
pub(super) const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);
/// How long a transfer may take in all.
const TRANSFER_WITHIN: Duration = Duration::from_secs(6);
/// How long a partition rests after a transfer of the controller's own that did not succeed: doubling from one to the other.
const FIRST_REST: Duration = Duration::from_millis(100);
const LAST_REST: Duration = Duration::from_secs(5);

type Answer = oneshot::Sender<Result<(), TransferRefusal>>;

/// Somebody's wish.
pub(super) struct Order {
    pub(super) wanted: Move,
    pub(super) answer: Answer,
}

/// A leader that is to be asked to hand over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HandOver {
    pub(super) leader: NodeId,
    pub(super) partition: TopicPartition,
    pub(super) epoch: LeaderEpoch,
    pub(super) to: NodeId,
}

#[derive(Default)]
pub(super) struct Transfers {
    /// At most [`MAX_RUNNING`].
    running: BTreeMap<TopicPartition, Transfer>,
    /// At most [`MAX_WAITING`].
    waiting: VecDeque<(Move, Option<Answer>)>,
    /// Partitions whose last transfer by the controller itself failed. At most as many as there are partitions.
    resting: BTreeMap<TopicPartition, Rest>,
}

struct Transfer {
    to: NodeId,
    from: NodeId,
    /// The old leader's.
    epoch: LeaderEpoch,
    stage: Stage,
    began: Instant,
    answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    HandingOver,
    ToBeVacated,
    Electing,
}

struct Rest {
    until: Instant,
    pause: Duration,
}

impl Transfers {
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn order(&mut self, order: Order) {
        if self.waiting.len() >= MAX_WAITING {
            let _ = order.answer.send(Err(TransferRefusal::TooMany));
            return;
        }
        self.waiting.push_back((order.wanted, Some(order.answer)));
    }

    /// The controller's own wishes, made anew from each image: what is under way or resting is passed over.
    pub(super) fn wish(&mut self, moves: Vec<Move>, now: Instant) {
        let mut known: BTreeSet<TopicPartition> =
            self.waiting.iter().map(|(m, _)| m.partition).collect();
        for wanted in moves {
            let partition = wanted.partition;
            let rests = self.resting.get(&partition).is_some_and(|r| r.until > now);
            if rests || self.running.contains_key(&partition) || self.waiting.len() >= MAX_WAITING {
                continue;
            }
            if known.insert(partition) {
                self.waiting.push_back((wanted, None));
            }
        }
    }

    /// Nothing of it goes on: another controller is active.
    pub(super) fn abandon(&mut self) {
        for (_, mut transfer) in std::mem::take(&mut self.running) {
            tell(transfer.answer.take(), Err(TransferRefusal::NotActive));
        }
        for (_, answer) in std::mem::take(&mut self.waiting) {
            tell(answer, Err(TransferRefusal::NotActive));
        }
        self.resting.clear();
    }

    /// Begins as many as may run; the leaders to ask.
    pub(super) fn begin(
        &mut self,
        image: &ClusterImage,
        alive: &BTreeSet<NodeId>,
        now: Instant,
    ) -> Vec<HandOver> {
        let mut asks = Vec::new();
        while self.running.len() < MAX_RUNNING {
            let Some((wanted, answer)) = self.waiting.pop_front() else {
                break;
            };
            let (partition, to) = (wanted.partition, wanted.to);
            if let Some(other) = self.running.get(&partition) {
                tell(answer, Err(TransferRefusal::UnderWay(other.to)));
                continue;
            }
            match check(image, alive, wanted) {
                Ok(None) => tell(answer, Ok(())),
                Ok(Some((from, epoch))) => {
                    tracing::info!(%partition, %from, %to, %epoch, "moving the leadership");
                    let transfer = Transfer {
                        to,
                        from,
                        epoch,
                        stage: Stage::HandingOver,
                        began: now,
                        answer,
                    };
                    self.running.insert(partition, transfer);
                    asks.push(HandOver {
                        leader: from,
                        partition,
                        epoch,
                        to,
                    });
                }
                Err(refusal) => {
                    tracing::debug!(%partition, %to, %refusal, "the leadership is not moved");
                    tell(answer, Err(refusal));
                }
            }
        }
        asks
    }

    /// The leader of `epoch` has handed over, or says why not.
    pub(super) fn handed_over(
        &mut self,
        partition: TopicPartition,
        epoch: LeaderEpoch,
        result: Result<(), String>,
        now: Instant,
    ) {
        let Some(transfer) = self.running.get_mut(&partition) else {
            return;
        };
        if transfer.epoch != epoch || transfer.stage != Stage::HandingOver {
            return;
        }
        match result {
            Ok(()) => transfer.stage = Stage::ToBeVacated,
            Err(reason) => {
                let leader = transfer.from;
                let refusal = TransferRefusal::NotHandedOver { leader, reason };
                self.end(partition, Err(refusal), now);
            }
        }
    }

    /// The elections to start: their leaders have handed over. Each is given once.
    pub(super) fn take_vacancies(&mut self, image: &ClusterImage) -> Vec<ElectionStart> {
        let mut starts = Vec::new();
        for (&partition, transfer) in &mut self.running {
            if transfer.stage != Stage::ToBeVacated {
                continue;
            }
            transfer.stage = Stage::Electing;
            let state = image.partition(partition);
            if let Some(state) = state.filter(|state| state.leader_epoch == transfer.epoch) {
                starts.push(ElectionStart {
                    partition,
                    leader_epoch: state.leader_epoch,
                    partition_epoch: state.partition_epoch,
                });
            }
        }
        starts
    }

    /// The replica that is preferred in the partition's election.
    pub(super) fn choice(&self, partition: TopicPartition) -> Option<NodeId> {
        self.running
            .get(&partition)
            .filter(|transfer| transfer.stage == Stage::Electing)
            .map(|transfer| transfer.to)
    }

    /// Ends those that are over.
    pub(super) fn settle(&mut self, image: &ClusterImage, now: Instant) {
        self.resting
            .retain(|&partition, _| image.partition(partition).is_some());
        let over: Vec<_> = self
            .running
            .iter()
            .filter_map(|(&partition, transfer)| {
                Some((partition, transfer.outcome(partition, image, now)?))
            })
            .collect();
        for (partition, result) in over {
            self.end(partition, result, now);
        }
    }

    fn end(
        &mut self,
        partition: TopicPartition,
        result: Result<(), TransferRefusal>,
        now: Instant,
    ) {
        let Some(transfer) = self.running.remove(&partition) else {
            return;
        };
        let took_ms = u64::try_from((now - transfer.began).as_millis()).unwrap_or(u64::MAX);
        let (from, to) = (transfer.from, transfer.to);
        match &result {
            Ok(()) => {
                self.resting.remove(&partition);
                tracing::info!(%partition, %from, %to, took_ms, "the leadership was moved");
            }
            Err(refusal) => {
                tracing::warn!(%partition, %from, %to, took_ms, %refusal, "the leadership was not moved");
                let pause = self
                    .resting
                    .get(&partition)
                    .map_or(FIRST_REST, |rest| (rest.pause * 2).min(LAST_REST));
                let until = now + pause;
                self.resting.insert(partition, Rest { until, pause });
            }
        }
        tell(transfer.answer, result);
    }
}

impl Transfer {
    /// `None` while it goes on.
    fn outcome(
        &self,
        partition: TopicPartition,
        image: &ClusterImage,
        now: Instant,
    ) -> Option<Result<(), TransferRefusal>> {
        let Some(state) = image.partition(partition) else {
            return Some(Err(TransferRefusal::UnknownPartition));
        };
        match state.leader_node() {
            Some(leader) if state.leader_epoch > self.epoch => Some(if leader == self.to {
                Ok(())
            } else {
                Err(TransferRefusal::OtherLeader(leader))
            }),
            _ if now > self.began + TRANSFER_WITHIN => Some(Err(TransferRefusal::TimedOut)),
            _ => None,
        }
    }
}

/// The leader that is to hand over, with its epoch. `None` when the leadership is there already.
fn check(
    image: &ClusterImage,
    alive: &BTreeSet<NodeId>,
    wanted: Move,
) -> Result<Option<(NodeId, LeaderEpoch)>, TransferRefusal> {
    let to = wanted.to;
    let state = image
        .partition(wanted.partition)
        .ok_or(TransferRefusal::UnknownPartition)?;
    let leader = state.leader_node().ok_or(TransferRefusal::NoLeader)?;
    if leader == to {
        return Ok(None);
    }
    if can_take_over(image, alive, state, to) {
        return Ok(Some((leader, state.leader_epoch)));
    }
    Err(if !state.replicas.contains(&to) {
        TransferRefusal::NoReplica(to)
    } else if !alive.contains(&to) {
        TransferRefusal::NotAlive(to)
    } else if image.is_draining(to) {
        TransferRefusal::Draining(to)
    } else {
        TransferRefusal::NotInSync(to)
    })
}

fn tell(answer: Option<Answer>, result: Result<(), TransferRefusal>) {
    if let Some(answer) = answer {
        // Whoever asked may have given up.
        let _ = answer.send(result);
    }
}
