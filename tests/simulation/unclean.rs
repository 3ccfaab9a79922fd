//! An operator's unclean election: somebody leads what nobody could lead without a loss. Follows the broker's, step by step.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use quorate::metadata::{Command, Election, ElectionStart, FenceReply, ForcedLeader, can_elect};
use quorate::types::{
    Incarnation, LeaderEpoch, LogPosition, MonotonicTime, NodeId, TopicPartition,
};

use super::event::{Event, FenceReplied, Origin, ToNode};
use super::node::{index_of, partition_id};
use super::world::World;

/// How long the living replicas have for an answer, and how often they are asked.
const FENCE_WITHIN: Duration = Duration::from_millis(600);
const FENCE_PAUSE: Duration = Duration::from_millis(100);
/// The number of its calls: an election of the controller's own never waits for it.
const CALL: u64 = u64::MAX;

/// One that is under way.
#[derive(Default)]
pub struct Unclean {
    /// The epoch that its replicas are fenced for, once it has begun without a leader.
    epoch: Option<LeaderEpoch>,
    replies: BTreeMap<NodeId, (Incarnation, LogPosition, bool)>,
    ask_at: MonotonicTime,
    until: MonotonicTime,
}

impl World {
    /// An operator asks for it. Refused while the partition could be led without a loss.
    pub fn ask_for_unclean(&mut self, partition: usize) {
        let id = partition_id(partition);
        let alive = self.controller.alive(self.now);
        let image = &self.controller.image;
        let Some(state) = image.partition(id) else {
            return;
        };
        if let Some(leader) = state.leader {
            let leads =
                alive.contains(&leader.node) && image.registered(leader.node) == Some(leader);
            if leads || can_elect(image, state, &alive) {
                return;
            }
            let elections = vec![ElectionStart {
                partition: id,
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
            }];
            self.propose(Command::StartElections { elections }, Origin::Operator);
        }
        self.controller.unclean.insert(id, Unclean::default());
    }

    /// Fences the living replicas, in sync or not, and forces the one with the highest log.
    pub fn step_unclean(&mut self) {
        let now = self.now;
        let wanted: Vec<TopicPartition> = self.controller.unclean.keys().copied().collect();
        for id in wanted {
            let Some(mut unclean) = self.controller.unclean.remove(&id) else {
                continue;
            };
            let Some(state) = self.controller.image.partition(id).cloned() else {
                continue;
            };
            if state.leader.is_some() {
                // It is being vacated; or somebody leads after all.
                if unclean.epoch.is_none() {
                    self.controller.unclean.insert(id, unclean);
                }
                continue;
            }
            if unclean.epoch != Some(state.leader_epoch) {
                unclean = Unclean {
                    epoch: Some(state.leader_epoch),
                    replies: BTreeMap::new(),
                    ask_at: now,
                    until: now + FENCE_WITHIN,
                };
            }
            let alive = self.controller.alive(now);
            let mut silent = state.replicas.clone();
            silent.retain(|node| alive.contains(node) && !unclean.replies.contains_key(node));
            if !silent.is_empty() && now < unclean.until {
                if now >= unclean.ask_at {
                    unclean.ask_at = now + FENCE_PAUSE;
                    self.fence_for_unclean(id, state.leader_epoch, &silent);
                }
                self.controller.unclean.insert(id, unclean);
                continue;
            }
            self.force(id, &unclean.replies);
        }
    }

    fn fence_for_unclean(&mut self, id: TopicPartition, epoch: LeaderEpoch, nodes: &[NodeId]) {
        let controller = self.setup.controller();
        for &node in nodes {
            let node = index_of(node);
            if let Some(after) = self.network.send_call(controller, node) {
                let message = ToNode::Fence {
                    call: CALL,
                    items: vec![(id, epoch)],
                };
                self.plan(after, Event::ToNode { node, message });
            }
        }
    }

    /// A node's answers to any fence count here as well.
    pub fn note_for_unclean(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        answers: &[FenceReplied],
    ) {
        for answer in answers {
            if let Some(unclean) = self.controller.unclean.get_mut(&answer.partition)
                && unclean.epoch == Some(answer.epoch)
                && let Some((last, eligible)) = answer.position
            {
                unclean.replies.insert(node, (incarnation, last, eligible));
            }
        }
    }

    fn force(
        &mut self,
        id: TopicPartition,
        replies: &BTreeMap<NodeId, (Incarnation, LogPosition, bool)>,
    ) {
        let image = &self.controller.image;
        let Some(state) = image.partition(id) else {
            return;
        };
        let Some(mut election) = Election::new(id, state) else {
            return;
        };
        for (&node, &(incarnation, last, eligible)) in replies {
            // Whatever does not count for an ordinary election is counted below.
            let _ = election.record(FenceReply {
                epoch: state.leader_epoch,
                node,
                incarnation,
                last,
                eligible,
                is_reluctant: false,
            });
        }
        if election.has_quorum(image) {
            return;
        }
        let rank = |node: &NodeId| state.replicas.iter().position(|replica| replica == node);
        let highest = replies
            .iter()
            .max_by_key(|(node, (_, last, _))| (*last, Reverse(rank(node))));
        let leader = highest.and_then(|(&node, (incarnation, ..))| {
            let registered = image.registered(node)?;
            (registered.incarnation == *incarnation).then_some(registered)
        });
        if let Some(leader) = leader {
            let leaders = vec![ForcedLeader {
                partition: id,
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
                leader,
            }];
            self.propose(Command::ForceLeaders { leaders }, Origin::Operator);
        }
    }
}
