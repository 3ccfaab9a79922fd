//! One step of a member towards the target. The rules are KIP-848's.

use super::member::{Current, ReconciliationState};
use super::partitions::Partitions;
use crate::types::TopicId;

/// The target, and who stands in its way.
pub(super) struct Target<'a> {
    pub(super) epoch: i32,
    pub(super) partitions: &'a Partitions,
    /// Whether another member holds the partition.
    pub(super) is_held: &'a dyn Fn(TopicId, i32) -> bool,
}

/// Where a member stands after a heartbeat in which it says that it holds `owned`, or says nothing of it.
pub(super) fn step(current: &Current, owned: Option<&Partitions>, target: &Target<'_>) -> Current {
    match current.state {
        ReconciliationState::Stable if current.epoch == target.epoch => current.clone(),
        ReconciliationState::Stable | ReconciliationState::UnreleasedPartitions => {
            next(current, current.epoch, owned, target)
        }
        ReconciliationState::UnrevokedPartitions if holds(owned, &current.revoking) => {
            current.clone()
        }
        // It has come as far as its present target asked for, which may be older than the group's.
        ReconciliationState::UnrevokedPartitions => {
            let epoch = current.epoch.saturating_add(1);
            next(current, epoch, owned, target)
        }
    }
}

/// Who does not say what it holds, may hold anything.
fn holds(owned: Option<&Partitions>, given_up: &Partitions) -> bool {
    owned.is_none_or(|owned| owned.meets(given_up))
}

fn next(current: &Current, epoch: i32, owned: Option<&Partitions>, target: &Target<'_>) -> Current {
    let kept = current.assigned.and(target.partitions);
    let revoking = current.assigned.minus(&kept);
    if !revoking.is_empty() && holds(owned, &revoking) {
        return moved(current, epoch, |current| {
            current.state = ReconciliationState::UnrevokedPartitions;
            current.assigned = kept;
            current.revoking = revoking;
        });
    }
    let wanted = target.partitions.minus(&kept);
    let held = |&(topic, partition): &(TopicId, i32)| (target.is_held)(topic, partition);
    let waits = wanted.iter().any(|wanted| held(&wanted));
    let mut assigned = kept;
    assigned.extend(wanted.iter().filter(|wanted| !held(wanted)));
    moved(current, target.epoch, |current| {
        current.state = match waits {
            true => ReconciliationState::UnreleasedPartitions,
            false => ReconciliationState::Stable,
        };
        current.assigned = assigned;
        current.revoking = Partitions::default();
    })
}

fn moved(current: &Current, epoch: i32, change: impl FnOnce(&mut Current)) -> Current {
    let mut moved = current.clone();
    change(&mut moved);
    if epoch != current.epoch {
        moved.previous_epoch = current.epoch;
        moved.epoch = epoch;
    }
    moved
}
