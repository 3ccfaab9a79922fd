//! How an operator's commands change the image: draining, reassignment, forced leaders, the controllers.
//!
//! A reassignment has a target, which stands in the partition's state, and an origin, the replicas before it, which stands
//! beside it in the image. While it is under way the partition has the replicas of both. It ends when the ISR lies within
//! the target: then nothing that was ever acknowledged is only on a replica that goes.

use std::collections::BTreeSet;

use super::apply::{check_epochs, repeated};
use super::command::{
    ForcedLeader, Outcome, PartitionChange, Reassignment, ReassignmentEnd, Rejection,
};
use super::image::{ClusterImage, MAX_CONTROLLERS, MAX_REPLICAS};
use crate::types::{Incarnation, NodeId, PartitionEpoch, PartitionState};

impl ClusterImage {
    pub(super) fn raise_version(&mut self, version: u32) -> Result<Outcome, Rejection> {
        if version <= self.metadata_version {
            return Ok(Outcome::Unchanged);
        }
        if let Some(behind) = self.nodes().find(|node| node.metadata_version < version) {
            return Err(Rejection::MetadataVersion {
                node: behind.node,
                cluster: version,
                offered: behind.metadata_version,
            });
        }
        self.metadata_version = version;
        Ok(Outcome::Done)
    }

    pub(super) fn set_draining(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        on: bool,
    ) -> Result<Outcome, Rejection> {
        let registered = self.registered(node).ok_or(Rejection::UnknownNode(node))?;
        if registered.incarnation != incarnation {
            return Err(Rejection::StaleIncarnation {
                node,
                offered: incarnation,
            });
        }
        let changed = if on {
            self.draining.insert(node)
        } else {
            self.draining.remove(&node)
        };
        Ok(if changed {
            Outcome::Done
        } else {
            Outcome::Unchanged
        })
    }

    pub(super) fn reassign(
        &mut self,
        reassignment: &Reassignment,
    ) -> Result<PartitionChange, Rejection> {
        let partition = reassignment.partition;
        let state = self.state(partition)?;
        if state.wanted_replicas() == reassignment.target {
            // It is so already, or on its way: perhaps by the same proposal, whose answer was lost.
            return Ok(PartitionChange {
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
            });
        }
        check_partition_epoch(state, reassignment.partition_epoch)?;
        let origin = self
            .reassigned_from(partition)
            .unwrap_or(&state.replicas)
            .to_vec();
        let next = self
            .reassigned(state, &origin, &reassignment.target)
            .map_err(Rejection::InvalidReassignment)?;
        let under_way = !next.target_replicas.is_empty();
        let change = self.replace(partition, next)?;
        if under_way {
            self.reassigned_from.insert(partition, origin);
        } else {
            self.reassigned_from.remove(&partition);
        }
        Ok(change)
    }

    /// The state with the new target.
    fn reassigned(
        &self,
        state: &PartitionState,
        origin: &[NodeId],
        target: &[NodeId],
    ) -> Result<PartitionState, String> {
        if target.is_empty() || target.len() > MAX_REPLICAS {
            return Err(format!("a partition has 1 to {MAX_REPLICAS} replicas"));
        }
        if let Some(node) = repeated(target) {
            return Err(format!("it names node {node} twice"));
        }
        let unknown = |node: &&NodeId| !origin.contains(node) && self.node(**node).is_none();
        if let Some(node) = target.iter().find(unknown) {
            return Err(format!("node {node} is not registered"));
        }
        if target.len() < state.min_insync as usize {
            return Err(format!(
                "min.insync.replicas is {} and would never be reached with {} replicas; lower it first",
                state.min_insync,
                target.len()
            ));
        }
        let isr_stays = state.isr.iter().all(|m| target.contains(&m.node));
        if isr_stays && target.iter().all(|node| origin.contains(node)) {
            // Nobody has anything to catch up with: another order, fewer replicas, or back to what there was.
            return Ok(PartitionState {
                replicas: target.to_vec(),
                target_replicas: Vec::new(),
                ..state.clone()
            });
        }
        let mut replicas = target.to_vec();
        let still_needed = state.replicas.iter().filter(|node| {
            !target.contains(node) && (origin.contains(node) || state.isr_contains(**node))
        });
        replicas.extend(still_needed);
        if replicas.len() > MAX_REPLICAS {
            return Err(format!(
                "the old and the new replicas together are {}, at most {MAX_REPLICAS} are taken; change fewer at a time",
                replicas.len()
            ));
        }
        Ok(PartitionState {
            replicas,
            target_replicas: target.to_vec(),
            ..state.clone()
        })
    }

    pub(super) fn finish_reassignment(
        &mut self,
        end: &ReassignmentEnd,
    ) -> Result<PartitionChange, Rejection> {
        let state = self.state(end.partition)?;
        check_partition_epoch(state, end.partition_epoch)?;
        if state.target_replicas.is_empty() {
            return Err(Rejection::InvalidReassignment(
                "none is under way".to_owned(),
            ));
        }
        let target = &state.target_replicas;
        if let Some(stays) = state.isr.iter().find(|m| !target.contains(&m.node)) {
            return Err(Rejection::InvalidReassignment(format!(
                "node {} is still in sync and is to go",
                stays.node
            )));
        }
        let next = PartitionState {
            replicas: target.clone(),
            target_replicas: Vec::new(),
            ..state.clone()
        };
        let change = self.replace(end.partition, next)?;
        self.reassigned_from.remove(&end.partition);
        Ok(change)
    }

    pub(super) fn force_leader(
        &mut self,
        forced: &ForcedLeader,
    ) -> Result<PartitionChange, Rejection> {
        let state = self.state(forced.partition)?;
        check_epochs(state, forced.leader_epoch, Some(forced.partition_epoch))?;
        if state.leader.is_some() {
            return Err(Rejection::HasLeader(state.leader_epoch));
        }
        self.check_registered(forced.leader)?;
        if !state.replicas.contains(&forced.leader.node) {
            return Err(Rejection::InvalidIsr(format!(
                "node {} has no replica of the partition",
                forced.leader.node
            )));
        }
        let next = PartitionState {
            leader: Some(forced.leader),
            isr: vec![forced.leader],
            forced_epoch: state.leader_epoch,
            ..state.clone()
        };
        let change = self.replace(forced.partition, next)?;
        self.forget_deletion(forced.partition);
        Ok(change)
    }

    pub(super) fn set_controllers(
        &mut self,
        before: &BTreeSet<NodeId>,
        controllers: &BTreeSet<NodeId>,
    ) -> Result<Outcome, Rejection> {
        if self.controllers == *controllers {
            return Ok(Outcome::Unchanged);
        }
        if self.controllers != *before {
            return Err(Rejection::ControllersChanged);
        }
        if controllers.is_empty() || controllers.len() > MAX_CONTROLLERS {
            return Err(Rejection::InvalidControllers(format!(
                "1 to {MAX_CONTROLLERS} nodes can vote, not {}",
                controllers.len()
            )));
        }
        self.controllers = controllers.clone();
        Ok(Outcome::Done)
    }
}

fn check_partition_epoch(
    state: &PartitionState,
    partition_epoch: PartitionEpoch,
) -> Result<(), Rejection> {
    check_epochs(state, state.leader_epoch, Some(partition_epoch))
}
