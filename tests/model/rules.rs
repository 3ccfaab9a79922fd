//! The rules of the protocol, each of which can be switched off.

/// A sentence of the protocol. Leave one out, and the checker must find what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rule {
    /// The high watermark moves in an epoch only once a commit quorum holds the epoch's start durably.
    EpochStartFirst,
    /// Positions are compared as (offset, epoch) in truncation, in fitting and in acks. Without: by the offset alone.
    WholePositions,
    /// A replica refuses appointments and sessions below its promise.
    PromiseIsKept,
    /// A restart does not forget the promise. Without: only the epoch of the last durable entry is left of it.
    PromiseSurvives,
    /// A follower acknowledges only what is durable.
    AckIsDurable,
    /// The leader counts of its own log only what is durable.
    OwnVoteIsDurable,
    /// The leader counts an ack only for the current epoch, session and incarnation.
    AckIsKeyed,
    /// Answers and frames are dropped unless they are of the current session; from hello to answer no frame is taken.
    SessionIsKeyed,
    /// A fenced leader steps down: it counts nothing for its old epoch, its own log included.
    FenceStopsLeader,
    /// A fenced follower closes its session: it takes and acknowledges nothing for an older epoch.
    FenceStopsFollower,
    /// A leader is picked from an election quorum of replies. Without: from any one.
    ElectionQuorum,
    /// Only replies to the fence of this epoch count. Without: those of earlier elections count as well.
    RepliesOfThisEpoch,
    /// Only replies of ISR members count.
    RepliesOfMembers,
    /// The highest reply wins. Without: any.
    HighestWins,
    /// Replies are compared as (epoch, offset). Without: by the offset alone.
    HighestByPair,
    /// An appointment names an incarnation. Without: a restarted node leads on in the epoch it was appointed to.
    AppointmentNamesProcess,
    /// An ISR change is refused if the leader epoch is another than the proposer's.
    CasLeaderEpoch,
    /// An ISR change is refused if the partition epoch is another than the proposer's.
    CasPartitionEpoch,
    /// An ISR change is refused if a member is registered under another incarnation. Without: the controller names whoever
    /// is registered.
    CasIncarnations,
    /// No ISR change is accepted while there is no leader.
    ChangeNeedsLeader,
    /// A proposal needs the epoch's start on a commit quorum of the new set.
    NewSetHoldsStart,
    /// A proposal needs the high watermark on a commit quorum of the new set.
    NewSetHoldsWatermark,
    /// The acks that support a proposal are those of the incarnations it names.
    NewSetHoldsByIncarnation,
    /// One proposal at a time, and a timeout is not an outcome.
    TimeoutIsNoOutcome,
    /// Until its outcome is known, the high watermark satisfies the proposed set as well as the current one.
    BothSets,
    /// A refusal is not an outcome either, since another copy of the proposal may still be accepted: the leader has its present
    /// set accepted anew, and only the partition epoch of that settles the proposal.
    RefusalIsNoOutcome,
    /// `m` is changed like the ISR: by a proposal. Without: the controller sets it, and the leader hears of it.
    MinInsyncIsProposed,
    /// A replica that has lost its log or directory neither votes nor leads until an ISR change names its incarnation.
    LossyDoesNotVote,
    /// Recovery syncs the tail that it keeps before that tail is voted or acknowledged.
    RecoverySyncs,
}

/// Which rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    off: u32,
}

impl Rules {
    pub(crate) const ALL: Rules = Rules { off: 0 };

    pub(crate) const fn without(self, rule: Rule) -> Rules {
        Rules {
            off: self.off | 1 << rule as u8,
        }
    }

    pub(crate) const fn hold(self, rule: Rule) -> bool {
        self.off & 1 << rule as u8 == 0
    }

    pub(crate) const fn all_hold(self) -> bool {
        self.off == 0
    }
}
