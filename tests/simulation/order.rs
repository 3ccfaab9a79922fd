//! Whether everything is in order again.

use quorate::partition::RoleView;

use super::node::{Link, index_of, partition_id};
use super::transactors::Transactor;
use super::world::World;

impl World {
    /// A partition whose log failed, or could not be opened, serves nothing until its node is started again.
    pub fn has_failed(&self, node: usize) -> bool {
        let process = self.nodes[node].process.as_ref();
        if process.is_some_and(|process| process.unopened.contains(&true)) {
            return true;
        }
        (0..self.setup.partitions).any(|partition| {
            self.nodes[node]
                .view_replica(partition)
                .is_some_and(|replica| replica.partition.role_view(self.now) == RoleView::Failed)
        })
    }

    pub fn is_in_order(&self) -> bool {
        self.not_in_order().is_none()
    }

    pub fn what_is_not_in_order(&self) -> String {
        let mut what = self.not_in_order().unwrap_or_default();
        for node in 0..self.setup.nodes {
            for partition in 0..self.setup.partitions {
                if let Some(replica) = self.nodes[node].view_replica(partition) {
                    let role = replica.partition.role_view(self.now);
                    let links = self.nodes[node].process.as_ref().map(|process| {
                        let of = |(leader, link): (&usize, &Link)| (*leader + 1, link.up);
                        process.links.iter().map(of).collect::<Vec<_>>()
                    });
                    what += &format!(
                        "\n  node {}, partition {partition}: {role:?}, linked to {links:?}",
                        node + 1
                    );
                }
            }
        }
        what
    }

    /// Whether the in-sync set has lost what it acknowledged for good: the disks of so many of its members were harmed, one
    /// after the other, that no election is possible but an unclean one. That such a partition stands still is right.
    pub fn is_beyond_repair(&self) -> bool {
        (0..self.setup.partitions).any(|partition| !self.may_lose_another(partition, usize::MAX))
    }

    /// A leader for every partition, every replica equal to it, everybody answered.
    fn not_in_order(&self) -> Option<String> {
        for partition in 0..self.setup.partitions {
            let state = self.controller.image.partition(partition_id(partition))?;
            let Some(leader) = state.leader else {
                return Some(format!(
                    "partition {partition} has no leader in epoch {}",
                    state.leader_epoch
                ));
            };
            let min_insync = self.min_insync.min(state.replicas.len() as u32);
            let is_whole = state.isr.len() == state.replicas.len()
                && state.target_replicas.is_empty()
                && state
                    .isr
                    .iter()
                    .all(|&member| self.controller.image.registered(member.node) == Some(member))
                && state.min_insync == min_insync;
            if !is_whole {
                return Some(format!(
                    "the in-sync set of partition {partition} is {:?} with m {}, to be {}",
                    state.isr, state.min_insync, min_insync
                ));
            }
            let node = index_of(leader.node);
            let led = self.nodes[node].view_replica(partition).filter(|replica| {
                let view = replica.partition.view();
                view.is_leader
                    && view.watermark_known
                    && view.leader_epoch == state.leader_epoch
                    && view.high_watermark == view.log_end
            });
            let Some(led) = led else {
                return Some(format!(
                    "node {} does not lead partition {partition}, or has not committed its log: {:?}",
                    node + 1,
                    self.nodes[node].view_replica(partition).map(|replica| (
                        replica.partition.view(),
                        replica.partition.role_view(self.now)
                    ))
                ));
            };
            let view = led.partition.view();
            let was_forced =
                self.checkers[partition].forced_epoch > quorate::types::LeaderEpoch::NONE;
            // Markers that an unclean election has lost are written by nobody again.
            if view.last_stable_offset != view.high_watermark
                && !was_forced
                && self.transactors.iter().all(Transactor::is_idle)
            {
                return Some(format!(
                    "partition {partition} is stable to {} of {}",
                    view.last_stable_offset, view.high_watermark
                ));
            }
            let end = led.reader.end();
            let high_watermark = led.partition.high_watermark();
            for other in state.replicas.iter().map(|&node| index_of(node)) {
                let equal = self.nodes[other]
                    .view_replica(partition)
                    .is_some_and(|replica| {
                        replica.partition.durable_end() == end
                            && replica.reader.end() == end
                            && replica.partition.high_watermark() == high_watermark
                    });
                if !equal {
                    return Some(format!(
                        "node {} is not equal to partition {partition}'s leader, which ends at {end}: {:?}",
                        other + 1,
                        self.nodes[other].view_replica(partition).map(|replica| (
                            replica.partition.durable_end(),
                            replica.partition.view(),
                            replica.partition.role_view(self.now)
                        ))
                    ));
                }
            }
        }
        if let Some(i) = (0..self.transactors.len()).find(|&i| !self.transactors[i].is_idle()) {
            return Some(format!("a transaction of {i} has not ended"));
        }
        let unanswered = self
            .producers
            .iter()
            .find(|producer| producer.has_unanswered());
        unanswered.map(|producer| format!("producer {} waits for an answer", producer.index))
    }
}
