//! Answers the controller's fences.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::event::Event;
use super::shard::Internal;
use super::shared::Shared;
use crate::controller::{
    FenceAnswer, FenceHandler, FenceItem, FencePosition, FenceRefusal, HandOverAnswer,
    HandOverItem, HandOverRefusal,
};
use crate::partition::{self, HandOverError};
use crate::storage::{DataDir, PromiseError};
use crate::types::{LeaderEpoch, TopicPartition};

/// Added to what a leader has for handing over, because it looks at its deadline once in a while only.
const HAND_OVER_MARGIN: Duration = Duration::from_millis(200);

/// Fences this node's replicas.
pub(super) struct Fencer {
    pub(super) shared: Arc<Shared>,
    pub(super) data_dir: Arc<DataDir>,
}

impl FenceHandler for Fencer {
    fn fence(&self, items: Vec<FenceItem>) -> BoxFuture<'_, Vec<FenceAnswer>> {
        Box::pin(self.fence_all(items))
    }

    fn hand_over(
        &self,
        items: Vec<HandOverItem>,
        within: Duration,
    ) -> BoxFuture<'_, Vec<HandOverAnswer>> {
        Box::pin(self.hand_over_all(items, within))
    }
}

impl Fencer {
    /// Asks the owners of all partitions, then waits for each of them.
    async fn hand_over_all(
        &self,
        items: Vec<HandOverItem>,
        within: Duration,
    ) -> Vec<HandOverAnswer> {
        let mut waiting = Vec::with_capacity(items.len());
        for HandOverItem {
            partition,
            epoch,
            to,
        } in items
        {
            let (reply, answer) = oneshot::channel();
            let event = Event::HandOver {
                id: partition,
                epoch,
                to,
                within,
                reply,
            };
            let delivered = self.shared.deliver(partition, event).await;
            waiting.push((partition, delivered, answer));
        }
        let until = tokio::time::Instant::now() + within + HAND_OVER_MARGIN;
        let mut answers = Vec::with_capacity(waiting.len());
        for (partition, delivered, answer) in waiting {
            let result = match delivered {
                Err(cause) => Err(HandOverRefusal::Failed(cause)),
                Ok(()) => match tokio::time::timeout_at(until, answer).await {
                    Ok(Ok(result)) => result.map_err(|error| match error {
                        HandOverError::NotLeader => HandOverRefusal::NotLeader,
                        HandOverError::NotFollowing => HandOverRefusal::NotFollowing,
                        HandOverError::TimedOut => HandOverRefusal::TimedOut,
                    }),
                    Ok(Err(_)) => Err(HandOverRefusal::Failed(
                        "another hand-over has taken its place, or the node stops".to_owned(),
                    )),
                    Err(_elapsed) => Err(HandOverRefusal::TimedOut),
                },
            };
            answers.push(HandOverAnswer { partition, result });
        }
        answers
    }

    /// Every replica steps down first; then all promises are made durable with one fsync; only then is anything answered.
    async fn fence_all(&self, items: Vec<FenceItem>) -> Vec<FenceAnswer> {
        let stepped_down = self.step_down(items).await;
        let promised: Vec<(TopicPartition, LeaderEpoch)> = stepped_down
            .iter()
            .filter_map(|(item, answer)| {
                matches!(answer, Some(partition::FenceAnswer::Promised { .. }))
                    .then_some((item.partition, item.epoch))
            })
            .collect();
        let failure = self.persist(&promised).await.err();
        stepped_down
            .into_iter()
            .map(|(item, answer)| {
                let result = match (answer, &failure) {
                    (None, _) => Err(FenceRefusal::UnknownPartition),
                    (Some(partition::FenceAnswer::Refused { promised }), _) => {
                        Err(FenceRefusal::HigherPromise(promised))
                    }
                    (Some(partition::FenceAnswer::Promised { .. }), Some(cause)) => {
                        Err(FenceRefusal::Failed(cause.clone()))
                    }
                    (Some(partition::FenceAnswer::Promised { last, eligible }), None) => {
                        let handle = self.shared.partition(item.partition);
                        let view = handle.map(|handle| *handle.view.borrow());
                        Ok(FencePosition {
                            epoch: item.epoch,
                            last,
                            eligible,
                            high_watermark: view.map(|view| view.high_watermark),
                            is_reluctant: view.is_some_and(|view| view.is_short_of_space),
                        })
                    }
                };
                FenceAnswer {
                    partition: item.partition,
                    result,
                }
            })
            .collect()
    }

    async fn step_down(
        &self,
        items: Vec<FenceItem>,
    ) -> Vec<(FenceItem, Option<partition::FenceAnswer>)> {
        let mut by_shard: Vec<Vec<FenceItem>> = Vec::new();
        by_shard.resize_with(self.shared.shards().len(), Vec::new);
        for item in items {
            if let Some((index, _)) = self.shared.shard_of(item.partition) {
                by_shard[index].push(item);
            }
        }
        let mut waiting = Vec::new();
        for (shard, items) in self.shared.shards().iter().zip(by_shard) {
            if items.is_empty() {
                continue;
            }
            let (reply, answers) = oneshot::channel();
            let event = Event::Fence {
                items: items
                    .iter()
                    .map(|item| (item.partition, item.epoch))
                    .collect(),
                reply,
            };
            if shard.mailbox.send(event).await.is_ok() {
                waiting.push((items, answers));
            }
        }
        let mut answered = Vec::new();
        for (items, answers) in waiting {
            // A thread that ended without an answer is a node that is stopping: no answer is the right one.
            if let Ok(answers) = answers.await {
                let answers = answers.into_iter().map(|(_, answer)| answer);
                answered.extend(items.into_iter().zip(answers));
            }
        }
        answered
    }

    async fn persist(&self, promised: &[(TopicPartition, LeaderEpoch)]) -> Result<(), String> {
        if promised.is_empty() {
            return Ok(());
        }
        let dir = self.data_dir.clone();
        let batch = promised.to_vec();
        let written = tokio::task::spawn_blocking(move || dir.promises().raise(&batch)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let cause = format!("cannot make promises durable: {error}");
                // A full disk leaves the promises as they were: this fence fails, and a later one may not.
                if !matches!(error, PromiseError::NoSpace { .. }) {
                    self.shared.stop_process(&cause);
                }
                return Err(cause);
            }
            Err(error) => return Err(error.to_string()),
        }
        for &(id, epoch) in promised {
            if let Some((_, shard)) = self.shared.shard_of(id) {
                shard.inbox.push(Internal::PromiseDurable { id, epoch });
            }
        }
        Ok(())
    }
}
