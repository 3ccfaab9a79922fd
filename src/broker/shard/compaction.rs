//! Compaction of an owner thread's partitions: planned and finished by their owner, done by a thread of its own.

use super::{Internal, Shard};
use crate::broker::clock::wall_clock_ms;
use crate::storage::{Compacted, CompactionError};
use crate::types::TopicPartition;

impl Shard {
    /// Begins the compaction of one partition, if one is to be compacted. On a thread of its own: it may take minutes.
    pub(super) fn compact(&mut self) {
        let mut planned = self.partitions.iter().filter_map(|(&id, owned)| {
            let job = owned.partition.plan_compaction(wall_clock_ms())?;
            Some((id, job))
        });
        let Some((id, job)) = planned.next() else {
            return;
        };
        let inbox = self.inbox.clone();
        let stopping = self.shared.stopping.clone();
        let spawned = std::thread::Builder::new()
            .name("compaction".to_owned())
            .spawn(move || {
                let outcome = job.run(|| stopping.is_cancelled());
                inbox.push(Internal::Compacted { id, outcome });
            });
        match spawned {
            Ok(_) => self.compacting = true,
            Err(error) => {
                tracing::warn!(cause = %error, "no thread for a compaction; trying again later");
            }
        }
    }

    pub(super) fn handle_compacted(
        &mut self,
        id: TopicPartition,
        outcome: Result<Compacted, CompactionError>,
    ) {
        self.compacting = false;
        let Some(owned) = self.partitions.get_mut(&id) else {
            return;
        };
        match outcome {
            Ok(compacted) => match owned.partition.handle_compacted(compacted) {
                Ok(done) if done.segments_before == 0 => {}
                Ok(done) => tracing::info!(
                    partition = %id, segments_before = done.segments_before, segments_after = done.segments_after,
                    bytes_before = done.bytes_before, bytes_after = done.bytes_after, "compacted"
                ),
                Err(error) => {
                    tracing::warn!(partition = %id, cause = %error, "compacted segments did not take their places; trying again later");
                }
            },
            Err(CompactionError::Stopped | CompactionError::Changed) => {}
            Err(error) => {
                tracing::warn!(partition = %id, cause = %error, "cannot compact; trying again later");
                owned.partition.handle_compaction_failed(&error);
                self.drain(id);
            }
        }
    }
}
