//! Leaderships that move between living nodes, and reassignments that end: what the controller does by itself about where leaders
//! and replicas should be. Follows the broker's transfers, step by step.

use std::time::Duration;

use quorate::metadata::{Command, ElectionStart, Move, ReassignmentEnd, moves_away};
use quorate::types::{LeaderEpoch, MonotonicTime, NodeId, TopicPartition};

use super::checker::Check;
use super::event::{Event, ToController, ToNode};
use super::node::{index_of, partition_id, partition_index};
use super::world::World;

/// How long a leader has for handing over.
const HAND_OVER_WITHIN: Duration = Duration::from_millis(2000);
/// A transfer whose leader has said nothing by then is over.
const SILENT_AFTER: Duration = Duration::from_millis(2500);
const TRANSFER_WITHIN: Duration = Duration::from_secs(6);
const MOVES_INTERVAL: Duration = Duration::from_millis(250);
/// How long an election quorum waits for the replica that a leadership is on its way to.
pub const CHOICE_GRACE: Duration = Duration::from_millis(500);

/// Why a leadership is to be elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Its node drains, or its replica is to go.
    Away,
    /// An operator wants the preferred replicas to lead.
    Preferred,
}

/// A leadership on its way.
pub struct Transfer {
    to: NodeId,
    /// The old leader's.
    epoch: LeaderEpoch,
    stage: Stage,
    began: MonotonicTime,
    wish: Wish,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    HandingOver,
    ToBeVacated,
    Electing,
}

impl Transfer {
    /// Whom an election should appoint, if it may.
    pub fn choice(&self) -> Option<NodeId> {
        (self.stage == Stage::Electing).then_some(self.to)
    }
}

impl World {
    /// Ends the reassignments whose target is the in-sync set. True when a command is on its way.
    pub fn end_reassignments(&mut self) -> bool {
        let ends: Vec<ReassignmentEnd> = self
            .controller
            .image
            .reassigning()
            .filter(|(_, state)| {
                let target = &state.target_replicas;
                target.iter().all(|&node| state.isr_contains(node))
                    && state.isr.iter().all(|m| target.contains(&m.node))
            })
            .map(|(partition, state)| ReassignmentEnd {
                partition,
                partition_epoch: state.partition_epoch,
            })
            .collect();
        let is_any = !ends.is_empty();
        if is_any {
            self.figures.reassigned += ends.len() as u64;
            self.drive(Command::FinishReassignments { ends });
        }
        is_any
    }

    /// Asks leaders to hand over, and vacates the partitions of those that have. True when a command is on its way.
    pub fn move_leaders(&mut self) -> bool {
        let now = self.now;
        if now >= self.controller.next_moves {
            self.controller.next_moves = now + MOVES_INTERVAL;
            let alive = self.controller.alive(now);
            let moves = moves_away(&self.controller.image, &alive);
            self.wish(moves, Wish::Away);
        }
        self.settle_transfers();
        let mut elections = Vec::new();
        for (&partition, transfer) in &mut self.controller.transfers {
            if transfer.stage != Stage::ToBeVacated {
                continue;
            }
            transfer.stage = Stage::Electing;
            let state = self.controller.image.partition(partition);
            if let Some(state) = state.filter(|state| state.leader_epoch == transfer.epoch) {
                elections.push(ElectionStart {
                    partition,
                    leader_epoch: state.leader_epoch,
                    partition_epoch: state.partition_epoch,
                });
            }
        }
        let is_any = !elections.is_empty();
        if is_any {
            self.figures.elections += elections.len() as u64;
            self.drive(Command::StartElections { elections });
        }
        is_any
    }

    /// Begins to move leaderships. One that is on its way already stays on it.
    pub fn wish(&mut self, moves: Vec<Move>, wish: Wish) {
        let now = self.now;
        let controller = self.setup.controller();
        for Move { partition, to } in moves {
            let state = self.controller.image.partition(partition);
            let Some((leader, epoch)) =
                state.and_then(|state| Some((state.leader_node()?, state.leader_epoch)))
            else {
                continue;
            };
            if leader == to || self.controller.transfers.contains_key(&partition) {
                continue;
            }
            let transfer = Transfer {
                to,
                epoch,
                stage: Stage::HandingOver,
                began: now,
                wish,
            };
            self.controller.transfers.insert(partition, transfer);
            self.tell(|| format!("controller: partition {partition} is to be led by {to}"));
            let node = index_of(leader);
            if let Some(after) = self.network.send_call(controller, node) {
                let message = ToNode::HandOver {
                    partition: partition_index(partition),
                    epoch,
                    to,
                };
                self.plan(after, Event::ToNode { node, message });
            }
        }
    }

    /// Forgets those that are over.
    fn settle_transfers(&mut self) {
        let now = self.now;
        let image = &self.controller.image;
        let figures = &mut self.figures;
        self.controller.transfers.retain(|&partition, transfer| {
            let Some(state) = image.partition(partition) else {
                return false;
            };
            let leader = state
                .leader_node()
                .filter(|_| state.leader_epoch > transfer.epoch);
            if leader == Some(transfer.to) {
                match transfer.wish {
                    Wish::Away => figures.moved_away += 1,
                    Wish::Preferred => figures.moved_to_preferred += 1,
                }
            }
            let patience = match transfer.stage {
                Stage::HandingOver => SILENT_AFTER,
                Stage::ToBeVacated | Stage::Electing => TRANSFER_WITHIN,
            };
            leader.is_none() && now.since(transfer.began) <= patience
        });
    }

    /// A leader is asked to hand over.
    pub fn hand_over(
        &mut self,
        node: usize,
        partition: usize,
        epoch: LeaderEpoch,
        to: NodeId,
    ) -> Check {
        let deadline = self.now + HAND_OVER_WITHIN;
        let begun = self.nodes[node].replica(partition).is_some_and(|replica| {
            replica.handing_over = Some(epoch);
            let begun = replica.partition.handle_hand_over(epoch, to, deadline);
            begun.is_ok()
        });
        if !begun {
            self.say_handed_over(node, partition, epoch, false);
        }
        self.drain(node, partition)
    }

    pub fn say_handed_over(
        &mut self,
        node: usize,
        partition: usize,
        epoch: LeaderEpoch,
        done: bool,
    ) {
        let controller = self.setup.controller();
        if let Some(after) = self.network.send_call(node, controller) {
            let message = ToController::HandedOver {
                node,
                partition: partition_id(partition),
                epoch,
                done,
            };
            self.plan(after, Event::ToController(message));
        }
    }

    /// A leader has handed over, or has not.
    pub fn take_handed_over(&mut self, partition: TopicPartition, epoch: LeaderEpoch, done: bool) {
        let transfers = &mut self.controller.transfers;
        let Some(transfer) = transfers.get_mut(&partition) else {
            return;
        };
        if transfer.epoch != epoch || transfer.stage != Stage::HandingOver {
            return;
        }
        if done {
            self.figures.handed_over += 1;
            transfer.stage = Stage::ToBeVacated;
        } else {
            transfers.remove(&partition);
        }
    }
}
