//! What an operator, or a node that is about to stop, asks of the active controller beyond a single command.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::metadata::{Move, NoRoom, Reassignment, Rejection};
use crate::types::{LeaderEpoch, LogPosition, NodeId, Offset, TopicPartition};

/// Leaderships that one operation moves. More are refused: ask in several.
pub const MAX_MOVES: usize = 2_000;

/// Something to be done for the cluster. Each may be asked for again when the answer was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Moves every leader away from a node and lets it lead nothing more, or lets it lead again. Done once that is
    /// committed; the leaders follow one by one.
    Drain { node: NodeId, on: bool },
    /// Moves leaderships to living in-sync replicas. Done when each has ended, one way or the other.
    Transfer { moves: Vec<Move> },
    /// Gives partitions other replicas. Done once that is committed; the replicas follow.
    Reassign { reassignments: Vec<Reassignment> },
    /// Reassigns every replica of a node to the others.
    Evacuate { node: NodeId },
    /// A registered node is to vote on metadata. Done when it does.
    AddController { node: NodeId },
    /// A node is to vote on metadata no longer. Done when it does not.
    RemoveController { node: NodeId },
    /// Takes a stopped node out of the registry. With `keep_replicas` its replicas and its vote wait for a node of the same
    /// id that comes with an empty data directory; otherwise it must have none.
    RemoveNode { node: NodeId, keep_replicas: bool },
    /// Makes a replica lead that may lack committed records, where no other can: the highest log among those that answer,
    /// or `node`.
    ElectUnclean {
        partition: TopicPartition,
        node: Option<NodeId>,
    },
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationOutcome {
    Done,
    /// It was so already.
    Unchanged,
    /// By partition, in the order in which they were named.
    Partitions(Vec<PartitionOutcome>),
    /// Who votes now, and who is to.
    Controllers {
        voters: BTreeSet<NodeId>,
        wanted: BTreeSet<NodeId>,
    },
    Unclean(UncleanElection),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionOutcome {
    pub partition: TopicPartition,
    /// The text says why not, and what to do.
    pub result: Result<(), String>,
}

/// An unclean election: who leads, and what may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UncleanElection {
    pub partition: TopicPartition,
    pub leader: NodeId,
    pub epoch: LeaderEpoch,
    /// Where the new leader's log ends.
    pub log_end: LogPosition,
    /// The highest watermark that any replica that answered knew of: what lies between the end of the log and this is lost
    /// for certain. What was committed beyond it by the replicas that are gone is not known to anybody.
    pub known_high_watermark: Offset,
    /// The replicas that answered, with the ends of their logs.
    pub answered: Vec<(NodeId, LogPosition)>,
    /// The replicas that did not.
    pub silent: Vec<NodeId>,
}

/// Why an operation was not carried out. Unless it says otherwise, nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum OperationRefusal {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("{0}")]
    Refused(String),
}

impl From<NoRoom> for OperationRefusal {
    fn from(no_room: NoRoom) -> Self {
        OperationRefusal::Refused(no_room.to_string())
    }
}

/// Why a leadership was not moved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum TransferRefusal {
    #[error("there is no such partition")]
    UnknownPartition,
    #[error("it has no leader at the moment: an election is under way")]
    NoLeader,
    #[error("node {0} holds no replica of it; reassign it first")]
    NoReplica(NodeId),
    #[error(
        "node {0} is not in sync, by the process that runs now; wait until \"cluster status\" shows it in sync"
    )]
    NotInSync(NodeId),
    #[error("node {0} is not alive")]
    NotAlive(NodeId),
    #[error("node {0} is draining; call that off first, or choose another")]
    Draining(NodeId),
    #[error("the leadership is on its way to node {0} already")]
    UnderWay(NodeId),
    #[error("too many leaderships wait to be moved; ask again later")]
    TooMany,
    #[error("node {leader}, which goes on leading, did not hand over: {reason}")]
    NotHandedOver { leader: NodeId, reason: String },
    #[error("it took too long; look who leads, and ask again")]
    TimedOut,
    #[error(
        "node {0} leads it now: it answered the election with a longer log, or the other not at all"
    )]
    OtherLeader(NodeId),
    #[error("this controller is not active any more; look who leads, and ask again")]
    NotActive,
}
