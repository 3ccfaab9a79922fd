//! Records that were deleted by an operator or a client: up to where, for each partition.
//!
//! The mark is metadata and not part of a log, so that every replica comes to it by the way that it learns of its leader by,
//! whichever of them lead, restart or are made anew later.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::command::{PartitionChange, Rejection};
use super::image::ClusterImage;
use crate::types::{LeaderEpoch, Offset, TopicPartition};

/// Hides the records of a partition below an offset, for good. A leader asks for it, and for no offset above its high watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordDeletion {
    pub partition: TopicPartition,
    pub before: Offset,
    /// Of the leader that asked: its high watermark says nothing of a log that was forced to lead after it.
    pub leader_epoch: LeaderEpoch,
}

impl ClusterImage {
    /// Below this offset a partition's records are deleted; 0 where none are.
    pub fn deleted_before(&self, partition: TopicPartition) -> Offset {
        let known = self.deleted_before.get(&partition);
        known.copied().unwrap_or(Offset::ZERO)
    }

    /// Moves the mark, never back. The partition's epochs stay: nothing about who leads it or holds it has changed.
    pub(super) fn delete_records(
        &mut self,
        deletion: &RecordDeletion,
    ) -> Result<PartitionChange, Rejection> {
        let state = self.state(deletion.partition)?;
        if deletion.leader_epoch < state.forced_epoch {
            return Err(Rejection::StaleEpoch {
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
            });
        }
        let change = PartitionChange {
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
        };
        if deletion.before > self.deleted_before(deletion.partition) {
            let marks = Arc::make_mut(&mut self.deleted_before);
            marks.insert(deletion.partition, deletion.before);
        }
        Ok(change)
    }

    /// Forgets a partition's mark. A forced leader's log may end below it: what it appends there would never be seen.
    pub(super) fn forget_deletion(&mut self, partition: TopicPartition) {
        if self.deleted_before.contains_key(&partition) {
            Arc::make_mut(&mut self.deleted_before).remove(&partition);
        }
    }
}
