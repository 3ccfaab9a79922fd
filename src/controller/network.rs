//! openraft's traffic, over [`Peers`].

use std::sync::Arc;
use std::time::Duration;

use openraft::BasicNode;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use tokio_util::task::AbortOnDropHandle;

use super::message::{Request, Response};
use super::peers::{PeerError, Peers};
use super::raft::{LogId, TypeConfig, Vote, node_id};
use super::runtime::VOTE_PATIENCE;
use crate::types::NodeId;

/// Pauses between attempts to reach a node that is not there: the last one for ever. During a pause openraft sends that
/// node nothing, heartbeats included, so it stays well below the election timeout.
const FIRST_BACKOFF: Duration = Duration::from_millis(25);
const LAST_BACKOFF: Duration = Duration::from_millis(200);

/// How long an append request lives on after openraft has given it up.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);

type RpcError<E = openraft::error::Infallible> = RPCError<u64, BasicNode, RaftError<u64, E>>;

pub(super) struct Network {
    pub(super) peers: Arc<Peers>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Connection {
        // Addresses come from the registry and the configuration: the membership's may be older.
        Connection {
            target: node_id(target),
            peers: Arc::clone(&self.peers),
            heartbeat: None,
            entries: None,
        }
    }
}

pub(super) struct Connection {
    target: Option<NodeId>,
    peers: Arc<Peers>,
    heartbeat: Option<PendingAppend>,
    entries: Option<PendingAppend>,
}

/// An append request that is under way.
///
/// openraft gives up a request after one heartbeat interval and sends the same again. On a link whose round trip is longer,
/// or with an entry that takes longer to carry, none would ever succeed. So the call lives on here, and its answer is
/// given to the next request that it fits.
struct PendingAppend {
    vote: Vote,
    prev: Option<LogId>,
    /// The last entry that it carries, or `prev`.
    last: Option<LogId>,
    call: AbortOnDropHandle<Result<Response, PeerError>>,
}

impl PendingAppend {
    /// Whether what this call tells the follower is the beginning of what `rpc` does.
    fn begins(&self, rpc: &AppendEntriesRequest<TypeConfig>) -> bool {
        let carried = self.last == last_of(rpc)
            || rpc
                .entries
                .iter()
                .any(|entry| Some(entry.log_id) == self.last);
        self.vote == rpc.vote && self.prev == rpc.prev_log_id && carried
    }
}

fn last_of(rpc: &AppendEntriesRequest<TypeConfig>) -> Option<LogId> {
    rpc.entries
        .last()
        .map(|entry| entry.log_id)
        .or(rpc.prev_log_id)
}

impl Connection {
    async fn call<E: std::error::Error>(
        &self,
        request: Request,
        timeout: Duration,
    ) -> Result<Response, RPCError<u64, BasicNode, E>> {
        let Some(target) = self.target else {
            let error = std::io::Error::other("a raft id that no node can have");
            return Err(Unreachable::new(&error).into());
        };
        match self.peers.call(target, request, timeout).await {
            Ok(reply) => Ok(reply.body),
            Err(error) => {
                tracing::debug!(node = %target, %error, "controller call failed");
                Err(rpc_error(&error))
            }
        }
    }
}

fn rpc_error<E: std::error::Error>(error: &PeerError) -> RPCError<u64, BasicNode, E> {
    if error.is_unreachable() {
        Unreachable::new(error).into()
    } else {
        NetworkError::new(error).into()
    }
}

fn unexpected<E: std::error::Error>() -> RPCError<u64, BasicNode, E> {
    NetworkError::new(&std::io::Error::other(
        "the answer does not fit the request",
    ))
    .into()
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let Some(target) = self.target else {
            return Err(unexpected());
        };
        let wanted = last_of(&rpc);
        // A heartbeat in between must not displace the entries that are under way.
        let slot = if rpc.entries.is_empty() {
            &mut self.heartbeat
        } else {
            &mut self.entries
        };
        let pending = match slot.take() {
            Some(pending) if pending.begins(&rpc) => pending,
            _ => {
                let peers = Arc::clone(&self.peers);
                let timeout = APPEND_TIMEOUT.max(option.hard_ttl());
                PendingAppend {
                    vote: rpc.vote,
                    prev: rpc.prev_log_id,
                    last: wanted,
                    call: AbortOnDropHandle::new(tokio::spawn(async move {
                        let reply = peers.call(target, Request::Append(rpc), timeout).await?;
                        Ok(reply.body)
                    })),
                }
            }
        };
        let last = pending.last;
        // In its slot before the wait, which openraft may give up.
        let ended = (&mut slot.insert(pending).call).await;
        *slot = None;
        match ended {
            Ok(Ok(Response::Append(AppendEntriesResponse::Success))) if last != wanted => {
                Ok(AppendEntriesResponse::PartialSuccess(last))
            }
            Ok(Ok(Response::Append(response))) => Ok(response),
            Ok(Ok(_)) => Err(unexpected()),
            Ok(Err(error)) => {
                tracing::debug!(node = %target, %error, "append failed");
                Err(rpc_error(&error))
            }
            Err(error) => Err(NetworkError::new(&error).into()),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcError<InstallSnapshotError>> {
        let timeout = option.hard_ttl();
        match self.call(Request::Snapshot(rpc), timeout).await? {
            Response::Snapshot(response) => Ok(response),
            Response::SnapshotRefused(error) => {
                let target = self.target.map_or(0, super::raft::raft_id);
                Err(RemoteError::new(target, error).into())
            }
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        // openraft waits longer than it says, see `runtime`.
        let patience = VOTE_PATIENCE.max(option.hard_ttl());
        match self.call(Request::Vote(rpc), patience).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    fn backoff(&self) -> Backoff {
        let growing = std::iter::successors(Some(FIRST_BACKOFF), |pause| {
            Some((*pause * 2).min(LAST_BACKOFF))
        });
        Backoff::new(growing)
    }
}
