//! Carries the leaders' changes of in-sync sets to the controller.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::shard::Internal;
use super::shared::Shared;
use crate::controller::Controller;
use crate::metadata::{Command, MAX_CHANGES_PER_COMMAND, Outcome};
use crate::replication::IsrOutcome;
use crate::transport::LogLimit;
use crate::types::{IsrChange, NodeId, TopicPartition};

/// How long the controllers have for one command. What is not known by then is asked for again by the partition's leader.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Partitions whose lines are counted one by one. Beyond it all are counted anew: a few lines more, and no memory.
const MAX_COUNTED: usize = 4096;

/// One line a second about each partition.
#[derive(Default)]
struct Lines {
    limits: HashMap<TopicPartition, LogLimit>,
    unknown: LogLimit,
}

impl Lines {
    fn allow(&mut self, id: TopicPartition) -> Option<u64> {
        if self.limits.len() >= MAX_COUNTED && !self.limits.contains_key(&id) {
            self.limits.clear();
        }
        self.limits.entry(id).or_default().allow()
    }
}

/// Takes the changes as they come, many partitions' in one command, and tells their owners what came of them. While one
/// command is under way the next changes gather: at most one a partition, so no more than there are partitions here.
pub(super) async fn keep(shared: Arc<Shared>, controller: Controller) {
    let mut lines = Lines::default();
    loop {
        tokio::select! {
            // Nobody counts by a change that was never made.
            () = shared.stopping.cancelled() => return,
            () = shared.isr_changes.arrived() => {}
        }
        let changes = shared.isr_changes.drain();
        for changes in changes.chunks(MAX_CHANGES_PER_COMMAND) {
            tokio::select! {
                () = shared.stopping.cancelled() => return,
                () = submit(&shared, &controller, changes, &mut lines) => {}
            }
        }
    }
}

async fn submit(
    shared: &Shared,
    controller: &Controller,
    changes: &[IsrChange],
    lines: &mut Lines,
) {
    let begin = Instant::now();
    let image = controller.image().borrow().clone();
    let moves: Vec<Moves> = changes
        .iter()
        .map(|change| {
            let before = image.partition(change.partition).map(|state| &state.isr);
            let before = before.into_iter().flatten().map(|member| member.node);
            Moves::between(before, change)
        })
        .collect();
    let command = Command::ChangeIsrs {
        changes: changes.to_vec(),
    };
    let results = match controller.submit(command, SUBMIT_TIMEOUT).await {
        Ok(Outcome::Partitions(results)) if results.len() == changes.len() => results,
        Ok(outcome) => {
            tracing::warn!(
                ?outcome,
                "changes of in-sync sets were answered with something else"
            );
            Vec::new()
        }
        Err(error) => {
            if let Some(suppressed) = lines.unknown.allow() {
                tracing::warn!(
                    cause = %error, partitions = changes.len(), suppressed,
                    "it is not known what became of changes of in-sync sets"
                );
            }
            Vec::new()
        }
    };
    let took_ms = begin.elapsed().as_millis() as u64;
    for (i, (change, moves)) in changes.iter().zip(&moves).enumerate() {
        let (partition, epoch) = (change.partition, change.leader_epoch);
        let outcome = match results.get(i) {
            Some(Ok(_)) => {
                if let Some(suppressed) = lines.allow(partition) {
                    tracing::info!(
                        %partition, %epoch, isr = ?moves.isr, joined = ?moves.joined, left = ?moves.left,
                        cause = moves.cause(), min_insync = change.min_insync, took_ms, suppressed,
                        "in-sync set changed"
                    );
                }
                IsrOutcome::Accepted
            }
            Some(Err(rejection)) => {
                if let Some(suppressed) = lines.allow(partition) {
                    tracing::info!(
                        %partition, %epoch, isr = ?moves.isr, joined = ?moves.joined, left = ?moves.left,
                        cause = %rejection, took_ms, suppressed, "in-sync set not changed"
                    );
                }
                IsrOutcome::Refused
            }
            None => IsrOutcome::Unknown,
        };
        if let Some((_, shard)) = shared.shard_of(change.partition) {
            shard.inbox.push(Internal::IsrOutcome {
                attempt: change.clone(),
                outcome,
            });
        }
    }
}

/// What a change does to the set that is committed now, for the log.
#[derive(Debug, PartialEq, Eq)]
struct Moves {
    isr: Vec<u32>,
    joined: Vec<u32>,
    left: Vec<u32>,
}

impl Moves {
    fn between(before: impl Iterator<Item = NodeId>, change: &IsrChange) -> Moves {
        let before: BTreeSet<u32> = before.map(NodeId::get).collect();
        let isr: Vec<u32> = change.new_isr.iter().map(|m| m.node.get()).collect();
        let joined = isr.iter().filter(|node| !before.contains(node));
        let left = before.iter().filter(|node| !isr.contains(node));
        Moves {
            joined: joined.copied().collect(),
            left: left.copied().collect(),
            isr,
        }
    }

    /// The rule by which a leader proposes such a change.
    fn cause(&self) -> &'static str {
        match (self.joined.is_empty(), self.left.is_empty()) {
            (true, true) => "a member has restarted, or min.insync.replicas was changed",
            (false, true) => "caught up",
            (true, false) => "not caught up, or no longer a replica",
            (false, false) => "one has caught up, another has not",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        Appointment, DirectoryId, Incarnation, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId,
    };

    #[test]
    fn a_line_says_who_joined_and_who_left() {
        let member = |id| Appointment {
            node: NodeId::new(id).unwrap(),
            directory: DirectoryId::from_random_bits(1),
            incarnation: Incarnation::from_random_bits(1),
        };
        let change = IsrChange {
            partition: TopicPartition {
                topic: TopicId::from_random_bits(1),
                partition: PartitionIndex(0),
            },
            leader_epoch: LeaderEpoch::new(1).unwrap(),
            partition_epoch: PartitionEpoch::default(),
            new_isr: vec![member(1), member(3)],
            min_insync: 2,
        };
        let before = [1, 2].map(|id| NodeId::new(id).unwrap());
        let moves = Moves::between(before.into_iter(), &change);
        assert_eq!(
            (moves.joined.as_slice(), moves.left.as_slice()),
            (&[3][..], &[2][..])
        );
        let same = [1, 3].map(|id| NodeId::new(id).unwrap());
        let moves = Moves::between(same.into_iter(), &change);
        assert!(moves.joined.is_empty() && moves.left.is_empty());
    }
}
