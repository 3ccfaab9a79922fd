//! Has leaders replaced that ask for it: their logs are damaged.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::controller::Controller;
use crate::metadata::{Command, MAX_CHANGES_PER_COMMAND, Outcome};

/// How long the controllers have for one command. A partition that still leads asks again.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes the requests as they come, many partitions' in one command.
pub(super) async fn keep(shared: Arc<Shared>, controller: Controller) {
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = shared.resignations.arrived() => {}
        }
        let elections = shared.resignations.drain();
        for elections in elections.chunks(MAX_CHANGES_PER_COMMAND) {
            for election in elections {
                tracing::warn!(
                    partition = %election.partition, epoch = %election.leader_epoch,
                    "the leader's log is damaged; asking for another leader"
                );
            }
            let command = Command::StartElections {
                elections: elections.to_vec(),
            };
            tokio::select! {
                () = shared.stopping.cancelled() => return,
                outcome = controller.submit(command, SUBMIT_TIMEOUT) => match outcome {
                    Ok(Outcome::Partitions(results)) => {
                        for rejection in results.into_iter().filter_map(Result::err) {
                            tracing::info!(cause = %rejection, "no election was started");
                        }
                    }
                    Ok(outcome) => tracing::warn!(?outcome, "an election was answered with something else"),
                    Err(error) => tracing::warn!(
                        cause = %error, partitions = elections.len(), "cannot ask for other leaders; trying again"
                    ),
                }
            }
        }
    }
}
