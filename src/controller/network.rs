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

use super::message::{Request, Response};
use super::peers::{PeerError, Peers};
use super::raft::{TypeConfig, node_id};
use crate::types::NodeId;

/// Pauses between attempts to reach a node that is not there: the last one for ever. During a pause openraft sends that
/// node nothing, heartbeats included, so it stays well below the election timeout.
const FIRST_BACKOFF: Duration = Duration::from_millis(25);
const LAST_BACKOFF: Duration = Duration::from_millis(200);

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
        }
    }
}

pub(super) struct Connection {
    target: Option<NodeId>,
    peers: Arc<Peers>,
}

impl Connection {
    async fn call<E: std::error::Error>(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<Response, RPCError<u64, BasicNode, E>> {
        let Some(target) = self.target else {
            let error = std::io::Error::other("a raft id that no node can have");
            return Err(Unreachable::new(&error).into());
        };
        match self.peers.call(target, request, option.hard_ttl()).await {
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
        match self.call(Request::Append(rpc), &option).await? {
            Response::Append(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcError<InstallSnapshotError>> {
        match self.call(Request::Snapshot(rpc), &option).await? {
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
        match self.call(Request::Vote(rpc), &option).await? {
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
