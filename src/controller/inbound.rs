//! Messages of other nodes.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::handle::{Controller, Shared};
use super::message::{
    Envelope, MAX_FENCE_ITEMS, MAX_HAND_OVER_ITEMS, Proposal, Refusal, Request, Response, Vitals,
};
use super::peers;
use super::raft::node_id;
use super::transfers::HAND_OVER_WITHIN;
use crate::metadata::Command;
use crate::types::{Incarnation, NodeId};

/// How long a fence waits for the metadata that it is about.
const FENCE_CATCH_UP: Duration = Duration::from_millis(500);
/// Between two log lines about refused messages.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(5);
/// The longest that a proposal of another node occupies this one, whatever its sender asks for.
const MAX_PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for an operation, which may wait for many leaderships to move.
const MAX_OPERATE_TIMEOUT: Duration = Duration::from_secs(600);

impl Controller {
    /// Answers a message of another controller or broker. The caller has authenticated `from` by its certificate; a message
    /// that claims another sender is refused. The reply is never larger than a message may be.
    pub async fn handle(&self, from: NodeId, request: Bytes) -> Bytes {
        let shared = &self.shared;
        let body = match peers::decode::<Request>(&request) {
            Ok(envelope) => shared
                .answer(from, envelope)
                .await
                .unwrap_or_else(Response::Refused),
            Err(refusal) => Response::Refused(refusal),
        };
        if let Response::Refused(refusal) = &body {
            shared.log_refusal(from, refusal);
        }
        match shared.peers.encode(body) {
            Ok(bytes) => bytes,
            Err(error) => {
                let refusal = Refusal::Malformed(error.to_string());
                let refused = shared.peers.encode(Response::Refused(refusal));
                refused.unwrap_or_default()
            }
        }
    }
}

impl Shared {
    async fn answer(&self, from: NodeId, envelope: Envelope<Request>) -> Result<Response, Refusal> {
        self.peers.check(from, &envelope)?;
        // A second node under the same id must not be taken for a restart of the first.
        let own_directory = self.peers.check_directory(from, envelope.directory);
        if own_directory.is_ok() {
            self.liveness()
                .heard(from, envelope.incarnation, self.now());
        }
        let stopped = |error: &dyn std::fmt::Display| Refusal::Stopped(error.to_string());
        match envelope.body {
            Request::Probe => {
                let initialised = self.raft.is_initialized().await;
                Ok(Response::Probe {
                    initialised: initialised.map_err(|error| stopped(&error))?,
                })
            }
            Request::Heartbeat(vitals) => {
                own_directory?;
                let now = self.now();
                self.liveness()
                    .heard_vitals(from, envelope.incarnation, vitals, now);
                self.note_clock(from, vitals);
                Ok(Response::Heard(self.vitals(from)))
            }
            Request::Leaving => {
                own_directory?;
                let now = self.now();
                self.liveness().left(from, envelope.incarnation, now);
                self.news.notify_one();
                Ok(Response::Heard(self.vitals(from)))
            }
            Request::Canvass { last_log } => {
                own_directory?;
                if !self.is_controller(from) {
                    return Err(Refusal::NotController(from));
                }
                let outlook = self.outlook();
                let now = self.now();
                let willing = self.candidacy().asked(now, &outlook, from, last_log);
                Ok(Response::Canvassed { willing })
            }
            Request::Vote(vote) => {
                // A voter with an empty directory has forgotten for whom it voted.
                own_directory?;
                self.check_raft_sender(from, &vote.vote)?;
                let response = self.raft.vote(vote).await;
                Ok(Response::Vote(response.map_err(|error| stopped(&error))?))
            }
            Request::Append(append) => {
                self.check_raft_sender(from, &append.vote)?;
                self.hear_active(from, envelope.incarnation, &append.vote);
                let response = self.raft.append_entries(append).await;
                Ok(Response::Append(response.map_err(|error| stopped(&error))?))
            }
            Request::Snapshot(snapshot) => {
                self.check_raft_sender(from, &snapshot.vote)?;
                self.hear_active(from, envelope.incarnation, &snapshot.vote);
                Ok(match self.raft.install_snapshot(snapshot).await {
                    Ok(response) => Response::Snapshot(response),
                    Err(error) => Response::SnapshotRefused(error),
                })
            }
            Request::Propose {
                proposal,
                timeout_ms,
            } => {
                // A node that is not who it was may only ask to be registered, and is told why not.
                if !matches!(proposal, Proposal::Command(Command::RegisterNode { .. })) {
                    own_directory?;
                }
                let timeout = Duration::from_millis(timeout_ms).min(MAX_PROPOSE_TIMEOUT);
                Ok(self.propose_here(from, &proposal, timeout).await)
            }
            Request::Fence {
                applied_index,
                items,
            } => {
                if !self.is_controller(from) {
                    return Err(Refusal::NotController(from));
                }
                if items.len() > MAX_FENCE_ITEMS {
                    return Err(Refusal::Malformed(format!(
                        "{} partitions to fence, at most {MAX_FENCE_ITEMS} are taken",
                        items.len()
                    )));
                }
                self.catch_up(applied_index, FENCE_CATCH_UP).await;
                Ok(Response::Fenced(self.fence_handler.fence(items).await))
            }
            Request::HandOver { items, within_ms } => {
                if !self.is_controller(from) {
                    return Err(Refusal::NotController(from));
                }
                if items.len() > MAX_HAND_OVER_ITEMS {
                    return Err(Refusal::Malformed(format!(
                        "{} partitions to hand over, at most {MAX_HAND_OVER_ITEMS} are taken",
                        items.len()
                    )));
                }
                let within = Duration::from_millis(within_ms).min(HAND_OVER_WITHIN);
                let answers = self.fence_handler.hand_over(items, within).await;
                Ok(Response::HandedOver(answers))
            }
            Request::Operate {
                operation,
                timeout_ms,
            } => {
                own_directory?;
                let timeout = Duration::from_millis(timeout_ms).min(MAX_OPERATE_TIMEOUT);
                Ok(self.operate_here(operation, timeout).await)
            }
        }
    }

    /// A node that is refused sends on, several times a second: it is told of once in a while.
    fn log_refusal(&self, from: NodeId, refusal: &Refusal) {
        let mut logged = self
            .refusal_logged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= REFUSAL_LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::warn!(node = %from, %refusal, "refused a message");
        } else {
            tracing::debug!(node = %from, %refusal, "refused a message");
        }
    }

    /// What only an active controller sends says that it is one.
    fn hear_active(&self, from: NodeId, incarnation: Incarnation, vote: &super::raft::Vote) {
        let vitals = Vitals {
            round_trip: None,
            leads: Some(vote.leader_id().get_term()),
            unix_ms: None,
        };
        let now = self.now();
        self.liveness().heard_vitals(from, incarnation, vitals, now);
    }

    /// A Raft message comes from a controller, and speaks for its sender.
    fn check_raft_sender(&self, from: NodeId, vote: &super::raft::Vote) -> Result<(), Refusal> {
        match vote.leader_id().voted_for().and_then(node_id) {
            Some(claimed) if claimed != from => Err(Refusal::OtherSender {
                claimed,
                authenticated: from,
            }),
            _ if !self.is_controller(from) => Err(Refusal::NotController(from)),
            _ => Ok(()),
        }
    }
}
