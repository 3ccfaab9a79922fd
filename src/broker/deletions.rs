//! What clients ask a partition's leader besides records: to delete the first of them, and how an epoch ended.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Broker;
use super::event::Event;
use crate::metadata::{ClusterImage, Command, MAX_CHANGES_PER_COMMAND, RecordDeletion};
use crate::types::{ErrorCode, LeaderEpoch, Offset, TopicPartition};

impl Broker {
    /// Has the cluster commit where each partition now begins, and waits until it begins there on this node.
    pub(super) async fn delete(
        &self,
        wanted: &[(TopicPartition, Option<Offset>)],
        deadline: Instant,
    ) -> Vec<Result<Offset, ErrorCode>> {
        let mut due: BTreeMap<TopicPartition, RecordDeletion> = BTreeMap::new();
        let mut results: Vec<Result<Offset, ErrorCode>> = Vec::with_capacity(wanted.len());
        for (partition, before) in wanted {
            let deletion = self.deletable(*partition, *before);
            results.push(deletion.map(|deletion| deletion.before));
            if let Ok(deletion) = deletion {
                let known = due.entry(*partition).or_insert(deletion);
                known.before = known.before.max(deletion.before);
                known.leader_epoch = known.leader_epoch.min(deletion.leader_epoch);
            }
        }
        let deletions: Vec<RecordDeletion> = due.into_values().collect();
        for some in deletions.chunks(MAX_CHANGES_PER_COMMAND) {
            let shown = |image: &ClusterImage| {
                some.iter().all(|deletion| {
                    image.partition(deletion.partition).is_none()
                        || image.deleted_before(deletion.partition) >= deletion.before
                })
            };
            let command = Command::DeleteRecords {
                deletions: some.to_vec(),
            };
            if let Err(refusal) = self.command(command, shown, deadline).await {
                let refused = |id: &TopicPartition| some.iter().any(|one| one.partition == *id);
                for ((partition, _), result) in wanted.iter().zip(&mut results) {
                    if refused(partition) {
                        *result = Err(refusal.error);
                    }
                }
            }
        }
        for ((partition, _), result) in wanted.iter().zip(&mut results) {
            if let Ok(before) = *result {
                *result = self.begun_at(*partition, before, deadline).await;
            }
        }
        results
    }

    /// Up to where a partition that is led here is to be deleted.
    fn deletable(
        &self,
        partition: TopicPartition,
        before: Option<Offset>,
    ) -> Result<RecordDeletion, ErrorCode> {
        let (_, view) = self.led(partition, None)?;
        if !view.watermark_known {
            return Err(ErrorCode::OffsetNotAvailable);
        }
        let before = before.unwrap_or(view.high_watermark);
        if before > view.high_watermark {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        Ok(RecordDeletion {
            partition,
            before,
            leader_epoch: view.leader_epoch,
        })
    }

    /// The log start, once it is at `before` at least.
    async fn begun_at(
        &self,
        partition: TopicPartition,
        before: Offset,
        deadline: Instant,
    ) -> Result<Offset, ErrorCode> {
        let mut view = self.partition(partition)?.view;
        let begun = view.wait_for(|view| view.log_start >= before);
        match tokio::time::timeout_at(deadline, begun).await {
            Ok(Ok(view)) => Ok(view.log_start),
            Ok(Err(_)) => Err(ErrorCode::NotLeaderOrFollower),
            // It is committed all the same, and asking again finds it done.
            Err(_) => Err(ErrorCode::RequestTimedOut),
        }
    }

    /// How an epoch ended in the log of a partition that is led here: see
    /// [`EpochHistory::last_up_to`](crate::types::EpochHistory::last_up_to).
    pub(super) async fn ask_end_of_epoch(
        &self,
        id: TopicPartition,
        epoch: LeaderEpoch,
        believed: Option<LeaderEpoch>,
    ) -> Result<Option<(LeaderEpoch, Offset)>, ErrorCode> {
        self.led(id, believed)?;
        let (reply, answer) = oneshot::channel();
        let event = Event::EndOfEpoch { id, epoch, reply };
        let gone = |_| ErrorCode::NotLeaderOrFollower;
        self.shared.deliver(id, event).await.map_err(gone)?;
        answer.await.map_err(|_| ErrorCode::NotLeaderOrFollower)
    }
}
