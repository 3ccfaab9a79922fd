//! What a coordinator knows of transactions: the offsets that wait for their ends, and how each producer's last one ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::committed::Committed;
use super::limits::{ENTRY_BYTES, MAX_ENDED_PRODUCERS};
use crate::types::{MonotonicTime, ProducerId};

/// Offsets of one group that a producer has committed in its transaction, by topic and partition.
pub(super) type PendingOffsets = BTreeMap<(Arc<str>, i32), Committed>;

/// One producer's transaction in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) epoch: i16,
    /// What is written. Empty while the first commit is being written, and where all its topics were deleted.
    pub(super) offsets: PendingOffsets,
    /// What is being written: `offsets` and those of one more request. They count as pending from here on, because whoever reads
    /// the group's offsets now must not miss them.
    pub(super) writing: Option<PendingOffsets>,
    /// Whether the log has anything of it, which its marker then removes.
    pub(super) is_written: bool,
}

/// How a producer's last transaction ended in this partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) epoch: i16,
    pub(super) coordinator_epoch: i32,
    /// Milliseconds since the Unix epoch.
    pub(super) at_ms: i64,
}

/// What the word of a transaction's coordinator is good for: one commit of offsets, as long as no marker of the producer has
/// come since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetsGuard {
    /// Of the coordinator that was asked: another one of this process began later.
    pub(super) loaded_at: MonotonicTime,
    /// How many markers had come.
    pub(super) markers: u64,
}

#[derive(Debug, Default)]
pub(super) struct Transactions {
    pending: BTreeMap<(Arc<str>, ProducerId), Pending>,
    /// The groups of each producer in `pending`. Always what that says.
    groups: BTreeMap<ProducerId, BTreeSet<Arc<str>>>,
    /// At most [`MAX_ENDED_PRODUCERS`], those not counted whose removal is being written.
    ended: BTreeMap<ProducerId, Ended>,
    /// The same by age.
    by_age: BTreeSet<(i64, ProducerId)>,
    /// Producers whose marker is being written.
    pub(super) ending: BTreeSet<ProducerId>,
    /// Topics that were deleted while offsets in them were being written or committed: the topics of the cluster bound it. Empty
    /// where nothing is.
    pub(super) deleted_late: BTreeSet<Arc<str>>,
    /// Producers in `ended` whose removal is being written.
    pub(super) forgetting: BTreeSet<ProducerId>,
    /// Which marker was the last of each producer in `ended`, counted since the coordinator began; none before.
    last_marker: BTreeMap<ProducerId, u64>,
    /// The last marker of any producer that was forgotten.
    forgotten_marker: u64,
    pub(super) markers: u64,
    bytes: usize,
}

fn weight(offsets: &PendingOffsets) -> usize {
    let entry = |((topic, _), committed): (&(Arc<str>, i32), &Committed)| {
        ENTRY_BYTES + topic.len() + committed.metadata.len()
    };
    offsets.iter().map(entry).sum()
}

impl Pending {
    pub(super) fn bytes(&self) -> usize {
        let offsets = self.writing.as_ref().unwrap_or(&self.offsets);
        ENTRY_BYTES + weight(offsets)
    }

    /// What waits for the transaction.
    pub(super) fn keys(&self) -> impl Iterator<Item = &(Arc<str>, i32)> {
        let writing = self.writing.iter().flat_map(BTreeMap::keys);
        self.offsets.keys().chain(writing)
    }

    /// Whether it has offsets in such topics.
    pub(super) fn names(&self, is_meant: impl Fn(&str) -> bool) -> bool {
        self.keys().any(|(topic, _)| is_meant(topic))
    }
}

impl Transactions {
    /// What is pending counts for, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, group: &Arc<str>, producer: ProducerId) -> Option<&Pending> {
        self.pending.get(&(group.clone(), producer))
    }

    /// Takes the producer's transaction in the group out, to be put back changed or not at all.
    pub(super) fn take(&mut self, group: &Arc<str>, producer: ProducerId) -> Option<Pending> {
        let pending = self.pending.remove(&(group.clone(), producer))?;
        self.bytes -= pending.bytes() + group.len();
        if let Some(groups) = self.groups.get_mut(&producer) {
            groups.remove(group);
            if groups.is_empty() {
                self.groups.remove(&producer);
            }
        }
        Some(pending)
    }

    pub(super) fn put(&mut self, group: &Arc<str>, producer: ProducerId, pending: Pending) {
        self.take(group, producer);
        self.bytes += pending.bytes() + group.len();
        let groups = self.groups.entry(producer).or_default();
        groups.insert(group.clone());
        self.pending.insert((group.clone(), producer), pending);
    }

    /// The groups in which the producer's transaction has offsets.
    pub(super) fn groups_of(&self, producer: ProducerId) -> Vec<Arc<str>> {
        let groups = self.groups.get(&producer);
        groups.into_iter().flatten().cloned().collect()
    }

    /// What the producer's pending offsets count for, in all groups together.
    pub(super) fn bytes_of(&self, producer: ProducerId) -> usize {
        let groups = self.groups.get(&producer).into_iter().flatten();
        groups
            .filter_map(|group| self.get(group, producer))
            .map(Pending::bytes)
            .sum()
    }

    /// The transactions with offsets in a group.
    pub(super) fn of_group<'a>(
        &'a self,
        group: &Arc<str>,
    ) -> impl Iterator<Item = (ProducerId, &'a Pending)> {
        let range = (group.clone(), ProducerId::MIN)..=(group.clone(), ProducerId::MAX);
        self.pending
            .range(range)
            .map(|((_, producer), pending)| (*producer, pending))
    }

    /// The partitions of a group whose offsets wait for a transaction, by topic.
    pub(super) fn pending_in(&self, group: &Arc<str>) -> BTreeMap<&str, BTreeSet<i32>> {
        let mut found: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
        for (topic, partition) in self.of_group(group).flat_map(|(_, pending)| pending.keys()) {
            found.entry(topic).or_default().insert(*partition);
        }
        found
    }

    /// Once nothing is being written, nothing is left that has to be forgotten then.
    pub(super) fn settle_deleted(&mut self) {
        if self.deleted_late.is_empty() || !self.ending.is_empty() {
            return;
        }
        if self
            .pending
            .values()
            .all(|pending| pending.writing.is_none())
        {
            self.deleted_late.clear();
        }
    }

    /// The groups that have any, once for each producer.
    pub(super) fn all_groups(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pending.keys().map(|(group, _)| group)
    }

    pub(super) fn ended(&self, producer: ProducerId) -> Option<&Ended> {
        self.ended.get(&producer)
    }

    pub(super) fn set_ended(&mut self, producer: ProducerId, ended: Ended) {
        self.by_age.insert((ended.at_ms, producer));
        // It stays known, and so does its last marker: nothing is forgotten.
        if let Some(before) = self.ended.insert(producer, ended)
            && before.at_ms != ended.at_ms
        {
            self.by_age.remove(&(before.at_ms, producer));
        }
    }

    pub(super) fn forget_ended(&mut self, producer: ProducerId) {
        if let Some(ended) = self.ended.remove(&producer) {
            self.by_age.remove(&(ended.at_ms, producer));
            let marker = self.last_marker.remove(&producer).unwrap_or(0);
            self.forgotten_marker = self.forgotten_marker.max(marker);
        }
    }

    /// The producer to forget before this one's end can be kept.
    pub(super) fn too_many_with(&self, producer: ProducerId) -> Option<ProducerId> {
        // Each that is ending may come to be one more.
        let count = (self.ended.len() + self.ending.len()).saturating_sub(self.forgetting.len());
        if count < MAX_ENDED_PRODUCERS || self.ended.contains_key(&producer) {
            return None;
        }
        let mut by_age = self.by_age.iter().map(|(_, producer)| *producer);
        by_age.find(|oldest| !self.forgetting.contains(oldest) && !self.ending.contains(oldest))
    }

    /// A marker of the producer has come, whether it changes anything or not.
    pub(super) fn note_marker(&mut self, producer: ProducerId) {
        self.markers += 1;
        self.last_marker.insert(producer, self.markers);
        if self.last_marker.len() > 2 * MAX_ENDED_PRODUCERS {
            // Of producers whose markers were refused or are being written. Whoever asked before now asks again.
            self.last_marker.clear();
            self.forgotten_marker = self.markers;
        }
    }

    /// Whether a marker of the producer has come since `markers` had.
    pub(super) fn has_ended_since(&self, producer: ProducerId, markers: u64) -> bool {
        let last = self.last_marker.get(&producer).copied().unwrap_or(0);
        last > markers
    }

    /// Whether one may have come and was forgotten since.
    pub(super) fn has_forgotten_since(&self, markers: u64) -> bool {
        self.forgotten_marker > markers
    }
}
