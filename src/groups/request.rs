//! What a coordinator is asked, and what it answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::committed::Committed;
use super::consumer::{ConsumerDescription, ConsumerHeartbeat, HeartbeatAnswer};
use super::group::GroupState;
use super::pending::OffsetsGuard;
use crate::types::{ErrorCode, MonotonicTime, ProducerId};

/// The time, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For every timeout.
    pub monotonic: MonotonicTime,
    /// Milliseconds since the Unix epoch: for what is written down and outlives the process.
    pub wall_ms: i64,
}

/// Who says that it is a member. Texts are the client's own, of any length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Empty where it has no id yet.
    pub member: String,
    /// The name of a static member.
    pub instance: Option<String>,
}

/// One request. Everything but [`Request::List`] and [`Request::EndTransaction`] concerns one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Answers [`Answer::Joined`] once the members are known, or [`Answer::MemberIdRequired`] at once.
    Join(Join),
    /// Answers [`Answer::Synced`] once the leader's assignment is written.
    Sync(Sync),
    /// Answers [`Answer::Done`].
    Heartbeat { who: Who, generation: i32 },
    /// Answers [`Answer::Results`], one for each.
    Leave(Vec<LeavingMember>),
    /// Answers [`Answer::Results`], one for each offset, when they are written.
    Commit(OffsetCommit),
    /// Answers [`Answer::Verification`]: whether the coordinator of the producer's transaction is to be asked first.
    VerifyOffsets {
        producer: ProducerId,
        producer_epoch: i16,
    },
    /// Answers [`Answer::Results`], one for each offset, when they are written. They hold once the transaction is committed.
    CommitInTransaction(TransactionCommit),
    /// Answers [`Answer::Done`] when it is written. Of all groups of the coordinator.
    EndTransaction(EndTransaction),
    /// Answers [`Answer::Offsets`]: those of these partitions, in this order, or all that there are.
    FetchOffsets {
        wanted: Option<Vec<(String, i32)>>,
        /// The member that asks and its epoch, where it says so.
        asker: Option<(String, i32)>,
    },
    /// Answers [`Answer::Results`], one for each.
    DeleteOffsets(Vec<(String, i32)>),
    /// Answers [`Answer::Described`].
    Describe,
    /// Answers [`Answer::Done`] when it is written.
    Delete,
    /// Answers [`Answer::Listed`].
    List(ListFilter),
    /// Of the newer protocol. Answers [`Answer::Beat`], when what it changes is written.
    ConsumerHeartbeat(ConsumerHeartbeat),
    /// Answers [`Answer::ConsumerDescribed`]; GROUP_ID_NOT_FOUND where the group is not of the newer protocol.
    DescribeConsumers,
}

/// Which groups are listed: those of which all that is given here is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// States by Kafka's names, in lower case. One that there is not is in no group.
    pub states: Option<BTreeSet<String>>,
    pub types: Option<BTreeSet<GroupType>>,
}

/// Which protocol the members of a group use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupType {
    /// The older one, in which a member gives partitions out.
    Classic,
    /// The newer one of KIP-848, in which the coordinator does.
    Consumer,
}

impl GroupType {
    /// Kafka's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            GroupType::Classic => "classic",
            GroupType::Consumer => "consumer",
        }
    }

    /// The type of this name, in any case.
    pub fn from_name(name: &str) -> Option<GroupType> {
        [GroupType::Classic, GroupType::Consumer]
            .into_iter()
            .find(|kind| kind.name().eq_ignore_ascii_case(name))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    pub who: Who,
    pub client_id: String,
    pub client_host: String,
    pub session: Duration,
    pub rebalance: Duration,
    pub protocol_type: String,
    /// By preference: the name, and metadata that only the members understand.
    pub protocols: Vec<(String, Bytes)>,
    /// Whether a client without a member id is first given one, and joins with it (KIP-394).
    pub takes_id_first: bool,
    /// Whether a leader can be told that the assignment stands (KIP-814).
    pub can_skip_assignment: bool,
    /// Makes a new member's id unique.
    pub random: u128,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    pub who: Who,
    pub generation: i32,
    /// What the client believes; checked where it says so.
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    /// By member. Empty, but from the leader.
    pub assignments: Vec<(String, Bytes)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeavingMember {
    pub who: Who,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommit {
    pub who: Who,
    /// −1 from a client that is no member.
    pub generation: i32,
    pub offsets: Vec<CommitOffset>,
}

/// Offsets that are committed in a producer's transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionCommit {
    pub producer: ProducerId,
    /// 0 or above.
    pub producer_epoch: i16,
    pub who: Who,
    /// −1 from a client that names none.
    pub generation: i32,
    /// What [`Request::VerifyOffsets`] asked for, once the transaction's coordinator has given its word.
    pub guard: Option<OffsetsGuard>,
    pub offsets: Vec<CommitOffset>,
}

/// The end of a producer's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndTransaction {
    pub producer: ProducerId,
    /// 0 or above.
    pub producer_epoch: i16,
    /// Of the transaction's coordinator.
    pub coordinator_epoch: i32,
    pub is_commit: bool,
}

/// Whether offsets may be committed in a transaction without asking its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetsVerification {
    /// The transaction has offsets of the group already.
    NotNeeded,
    Needed(OffsetsGuard),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitOffset {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// −1 for none.
    pub leader_epoch: i32,
    pub metadata: String,
    /// A partition that the caller has refused: it is answered so, and nothing is kept for it.
    pub refused: Option<ErrorCode>,
}

/// What a request is answered with when all is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Joined(Joined),
    MemberIdRequired(Arc<str>),
    Synced(Synced),
    Done,
    Results(Vec<Result<(), ErrorCode>>),
    Verification(OffsetsVerification),
    Offsets(Vec<FetchedOffset>),
    Described(Description),
    Listed(Vec<GroupListing>),
    Beat(HeartbeatAnswer),
    ConsumerDescribed(ConsumerDescription),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub member: Arc<str>,
    pub generation: i32,
    pub protocol_type: Arc<str>,
    pub protocol: Arc<str>,
    pub leader: Arc<str>,
    pub skip_assignment: bool,
    /// Everybody, for the leader; nobody, for the others.
    pub members: Vec<JoinMember>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinMember {
    pub member: Arc<str>,
    pub instance: Option<Arc<str>>,
    pub metadata: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    pub protocol_type: Arc<str>,
    pub protocol: Arc<str>,
    pub assignment: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedOffset {
    pub topic: Arc<str>,
    pub partition: i32,
    pub committed: Option<Committed>,
    /// Whether a transaction that has not ended may change it.
    pub is_pending: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub state: GroupState,
    /// Empty where nobody ever joined.
    pub protocol_type: Arc<str>,
    /// Empty unless the group is stable.
    pub protocol: Arc<str>,
    pub members: Vec<MemberDescription>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    pub member: Arc<str>,
    pub instance: Option<Arc<str>>,
    pub client_id: Arc<str>,
    pub client_host: Arc<str>,
    /// Empty unless the group is stable.
    pub metadata: Bytes,
    pub assignment: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    pub group: Arc<str>,
    pub protocol_type: Arc<str>,
    pub kind: GroupType,
    /// Kafka's word for it.
    pub state: &'static str,
}
