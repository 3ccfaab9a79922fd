//! Carries the wishes of leaders that cannot lead to the controller.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::controller::Controller;
use crate::metadata::{Command, ElectionStart, MAX_CHANGES_PER_COMMAND, Outcome};

/// How long the controllers have for one command. A leader that still cannot lead asks again, after a pause.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes the wishes as they come, many partitions' in one command: a full disk concerns all of a node's leaderships. Bounded
/// by the partitions on this node, because each pauses between its wishes for longer than a command takes.
pub(super) async fn keep(shared: Arc<Shared>, controller: Controller) {
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = shared.resignations.arrived() => {}
        }
        let elections = shared.resignations.drain();
        for elections in elections.chunks(MAX_CHANGES_PER_COMMAND) {
            tokio::select! {
                () = shared.stopping.cancelled() => return,
                () = submit(&controller, elections) => {}
            }
        }
    }
}

async fn submit(controller: &Controller, elections: &[ElectionStart]) {
    for start in elections {
        tracing::warn!(
            partition = %start.partition, epoch = %start.leader_epoch,
            "this node cannot lead the partition, and asks for another leader"
        );
    }
    let command = Command::StartElections {
        elections: elections.to_vec(),
    };
    match controller.submit(command, SUBMIT_TIMEOUT).await {
        Ok(Outcome::Partitions(results)) => {
            for (start, result) in elections.iter().zip(results) {
                if let Err(rejection) = result {
                    tracing::info!(partition = %start.partition, cause = %rejection, "no election was begun");
                }
            }
        }
        Ok(outcome) => tracing::warn!(?outcome, "a resignation was answered with something else"),
        Err(error) => {
            tracing::warn!(cause = %error, partitions = elections.len(), "could not resign");
        }
    }
}
