//! What the checks know after an unclean election: what the forced leader did not hold is lost, because an operator chose so, and
//! whoever has not taken up the new history yet is judged by nothing of it.

use quorate::types::{LeaderEpoch, Offset, PartitionState};

use super::checker::{PartitionChecker, next_after};
use super::node::index_of;
use super::stability::Outcomes;

impl PartitionChecker {
    /// Whether the replica's log is still of the time before the last unclean election: what it shows may be lost already.
    pub fn is_of_lost_history(&self, node: usize) -> bool {
        self.replicas[node].mirror.durable.epoch < self.forced_epoch
    }

    /// Whether anything was committed since the last unclean election. Until then a follower's watermark may speak of what the forced
    /// leader holds too and has not committed anew, or had not made durable when it was forced.
    pub fn has_new_history_begun(&self) -> bool {
        let newest = self.epochs_committed_in.last_key_value();
        self.forced_epoch == LeaderEpoch::NONE
            || newest.is_some_and(|(&newest, _)| newest >= self.forced_epoch)
    }

    /// Whether an answer that a leader of `epoch` gave at `base` speaks of what may be lost.
    pub fn may_be_lost(&self, epoch: LeaderEpoch, base: Offset) -> bool {
        epoch < self.forced_epoch && base >= self.lost_from
    }

    /// An operator has forced a leader: what was committed goes on from where its durable log parts from that.
    pub fn forced(&mut self, state: &PartitionState) {
        let Some(leader) = state.leader else { return };
        let mirror = &self.replicas[index_of(leader.node)].mirror;
        let lost_from = self
            .committed
            .values()
            .map(|committed| committed.held)
            .find(|held| {
                let is_durable = mirror.find(held.end) == Some(held) && held.end <= mirror.durable;
                held.end.offset > mirror.start.offset && !is_durable
            });
        // One that begins elsewhere has what it has.
        let end = self.true_high_watermark;
        let lost_from = lost_from.map_or(end, |held| held.start.offset);
        self.forced_epoch = state.leader_epoch;
        self.lost_from = lost_from;
        self.lost_frames += self.committed.split_off(&lost_from).len() as u64;
        self.read.split_off(&lost_from);
        self.true_high_watermark = lost_from;
        self.producers.clear();
        for held in self.committed.values().map(|committed| &committed.held) {
            let Some((producer, ..)) = held.sequence else {
                continue;
            };
            let before = self.producers.get(&producer).copied();
            if let Some(next) = next_after(before, held) {
                self.producers.insert(producer, next);
            }
        }
        self.outcomes = Outcomes::of_all(&self.committed);
        for replica in &mut self.replicas {
            replica.was_lost = true;
        }
    }
}
