//! What an operator asks of the cluster: other replicas for a partition, a node that is to lead nothing, leaders where they are
//! preferred.

use quorate::metadata::{Command, Reassignment, moves_to_preferred};
use quorate::types::NodeId;

use super::event::Origin;
use super::moves::Wish;
use super::node::{node_id, partition_id};
use super::random::Random;
use super::world::World;

impl World {
    /// Gives a partition other replicas, or its replicas another order: as many as m at least.
    pub fn reassign(&mut self, partition: usize, pick: u64) {
        let id = partition_id(partition);
        let Some(state) = self.controller.image.partition(id) else {
            return;
        };
        let mut random = Random::new(pick, 5);
        let mut target: Vec<NodeId> = (0..self.setup.nodes).map(node_id).collect();
        for last in (1..target.len()).rev() {
            target.swap(last, random.index(last + 1));
        }
        let fewest = u64::from(state.min_insync.max(1));
        target.truncate(random.between(fewest, target.len() as u64) as usize);
        self.reassign_to(partition, target);
    }

    /// Takes a partition's replica away from `node`, if enough are left.
    pub fn take_away(&mut self, partition: usize, node: usize) {
        let id = partition_id(partition);
        let Some(state) = self.controller.image.partition(id) else {
            return;
        };
        let mut target = state.replicas.clone();
        target.retain(|&replica| replica != node_id(node));
        if target.len() >= state.min_insync.max(1) as usize {
            self.reassign_to(partition, target);
        }
    }

    /// Gives a partition a replica on every node.
    pub fn put_back(&mut self, partition: usize) {
        let all = (0..self.setup.nodes).map(node_id).collect();
        self.reassign_to(partition, all);
    }

    fn reassign_to(&mut self, partition: usize, target: Vec<NodeId>) {
        let id = partition_id(partition);
        let Some(state) = self.controller.image.partition(id) else {
            return;
        };
        let command = Command::Reassign {
            reassignments: vec![Reassignment {
                partition: id,
                partition_epoch: state.partition_epoch,
                target,
            }],
        };
        self.propose(command, Origin::Operator);
    }

    /// Says that a node is to lead nothing, or that it may again.
    pub fn set_draining(&mut self, node: usize, on: bool) {
        let node = node_id(node);
        if let Some(registered) = self.controller.image.registered(node) {
            let command = Command::SetDraining {
                node,
                incarnation: registered.incarnation,
                on,
            };
            self.propose(command, Origin::Operator);
        }
    }

    /// Whoever heals the cluster lets every node lead again: replicas that are to be on a draining node alone would wait for it.
    /// True when a command is on its way.
    pub fn end_draining(&mut self) -> bool {
        if self.healing_since.is_none() {
            return false;
        }
        let image = &self.controller.image;
        let draining = image.draining().first().copied();
        let Some(registered) = draining.and_then(|node| image.registered(node)) else {
            return false;
        };
        self.drive(Command::SetDraining {
            node: registered.node,
            incarnation: registered.incarnation,
            on: false,
        });
        true
    }

    /// Has every leadership moved to the preferred replica, if that can take it over.
    pub fn prefer(&mut self) {
        let alive = self.controller.alive(self.now);
        let moves = moves_to_preferred(&self.controller.image, &alive, 0);
        self.wish(moves, Wish::Preferred);
    }
}
