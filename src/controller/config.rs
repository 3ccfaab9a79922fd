//! What a controller is started with, and what it asks of the rooms around it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use thiserror::Error;

use super::message::{FenceAnswer, FenceItem, HandOverAnswer, HandOverItem};
use super::store::StoreError;
use crate::metadata::Registration;
use crate::types::{ClusterId, NodeId};

/// The numbers of controllers that can be listed: an even number tolerates no more failures than the odd one below it, and
/// every further one makes commits wait for more disks.
pub const ALLOWED_CONTROLLERS: [usize; 3] = [1, 3, 5];

/// Carries a request to another node and its reply back, over a connection that proves who answers.
pub trait PeerNetwork: Send + Sync + 'static {
    /// Calls `node` at `address` (`host:port`). The implementation refuses a peer whose certificate does not name `node`,
    /// and gives up after `timeout`.
    fn call<'a>(
        &'a self,
        node: NodeId,
        address: &'a str,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, CallError>>;
}

/// A call without a reply. Whether the request was carried out is not known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CallError {
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The text says why: no such host, refused, certificate, connection lost.
    #[error("{0}")]
    Unreachable(String),
}

/// The replicas of this node, as the active controller fences them.
pub trait FenceHandler: Send + Sync + 'static {
    /// For each item: persists the promise not to serve an epoch below `item.epoch` (fsync, one for all), steps down if
    /// this node leads in an older one, closes older sessions, and only then answers with the end of its durable log. One
    /// answer for each item, in any order; a missing one counts as no answer. Called again for the same epoch while the
    /// election lasts. It must return in bounded time: until it does, this node is not fenced for anything else.
    fn fence(&self, items: Vec<FenceItem>) -> BoxFuture<'_, Vec<FenceAnswer>>;

    /// For each item: if this node leads in that epoch, takes no more produces and waits until the other replica holds
    /// durably everything that this one has. It goes on leading, and taking none, until a higher epoch is committed; but no
    /// longer than `within` from now on, after which it leads as before. One answer for each item, within that time.
    fn hand_over(
        &self,
        items: Vec<HandOverItem>,
        within: Duration,
    ) -> BoxFuture<'_, Vec<HandOverAnswer>>;
}

/// How the active controller gives leaderships back to the preferred replicas by itself. Names and defaults are Kafka's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderBalance {
    /// `auto.leader.rebalance.enable`.
    pub enabled: bool,
    /// `leader.imbalance.check.interval.seconds`.
    pub check_every: Duration,
    /// `leader.imbalance.per.broker.percentage`: how many of the partitions of which a node is the preferred leader may be
    /// led by others before they are given back.
    pub tolerated_percent: u8,
}

impl Default for LeaderBalance {
    fn default() -> Self {
        LeaderBalance {
            enabled: true,
            check_every: Duration::from_secs(300),
            tolerated_percent: 10,
        }
    }
}

/// How long things take. What depends on the link is no setting: it scales with the round trip that is measured.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Between two heartbeats of a node to a controller. The silence after which a node is held for dead, and the active
    /// controller for gone, is four of these and what the link's round trip adds.
    pub heartbeat: Duration,
    /// openraft's heartbeat, below 150 ms. It sends one every one and a half of these, and after one it takes an append
    /// request for lost; what is on its way lives on, so a longer round trip does no harm.
    pub raft_heartbeat: Duration,
    /// How long an election quorum waits for the replicas that are alive and have not replied yet.
    pub election_grace: Duration,
    /// How long a fenced node has for its answer before it is asked again.
    pub fence_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat: Duration::from_millis(100),
            raft_heartbeat: Duration::from_millis(100),
            election_grace: Duration::from_millis(30),
            fence_timeout: Duration::from_secs(1),
        }
    }
}

/// What a controller is started with.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// This node as it registers: id, directory, incarnation, endpoints.
    pub registration: Registration,
    /// The listed controllers with their addresses (`host:port`): 1, 3 or 5. Empty: this node alone. They found the
    /// cluster. Afterwards the committed membership says who votes, and this list says where to look for them. Until an
    /// operator has changed the controllers, an active one adds those that it lists and that have registered, and takes a
    /// vote away only when a node is removed.
    pub voters: BTreeMap<NodeId, String>,
    /// The id that the cluster gets if this node founds it: drawn at random by the caller.
    pub cluster_id: ClusterId,
    /// The store's file; its directory exists.
    pub store_path: PathBuf,
    pub timing: Timing,
    pub leader_balance: LeaderBalance,
}

/// Why a controller did not start. Nothing runs and nothing was changed.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("{0} controllers are listed; list 1, 3 or 5")]
    ControllerCount(usize),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the store {store} belongs to a cluster whose controllers are {stored}, none of which is among the listed {listed}; correct the list, or start with an empty data directory to join the other cluster",
        store = .store.display()
    )]
    OtherControllers {
        store: PathBuf,
        stored: String,
        listed: String,
    },
    #[error("the controller's timing is not valid: {0}")]
    Timing(String),
    #[error("the controller did not start: {0}; its store may be damaged")]
    Raft(String),
}
