//! Carries the leaders' changes of in-sync sets to the controller.

use std::sync::Arc;
use std::time::Duration;

use super::shard::Internal;
use super::shared::Shared;
use crate::controller::Controller;
use crate::metadata::{Command, MAX_CHANGES_PER_COMMAND, Outcome};
use crate::replication::IsrOutcome;
use crate::types::IsrChange;

/// How long the controllers have for one command. What is not known by then is asked for again by the partition's leader.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes the changes as they come, many partitions' in one command, and tells their owners what came of them. While one
/// command is under way the next changes gather: at most one a partition, so no more than there are partitions here.
pub(super) async fn keep(shared: Arc<Shared>, controller: Controller) {
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
                () = submit(&shared, &controller, changes) => {}
            }
        }
    }
}

async fn submit(shared: &Shared, controller: &Controller, changes: &[IsrChange]) {
    for change in changes {
        let isr: Vec<u32> = change.new_isr.iter().map(|m| m.node.get()).collect();
        tracing::info!(
            partition = %change.partition, epoch = %change.leader_epoch, ?isr, min_insync = change.min_insync,
            "proposing an in-sync set"
        );
    }
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
            tracing::warn!(cause = %error, partitions = changes.len(), "it is not known what became of changes of in-sync sets");
            Vec::new()
        }
    };
    for (i, change) in changes.iter().enumerate() {
        let outcome = match results.get(i) {
            Some(Ok(_)) => IsrOutcome::Accepted,
            Some(Err(rejection)) => {
                tracing::info!(partition = %change.partition, cause = %rejection, "the in-sync set was not changed");
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
