//! Mistakes that a run can be made with, to see that the checks notice them. Each is made by the simulator around the product's
//! code, in its place; the product has no switch for any of them.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The disk says that it has synced, and has not: acks come before durability.
    LyingDisk,
    /// An ack of an earlier session is counted as one of the present session and epoch. Whole positions and the epoch start
    /// cover for it as long as the log is sound, so it is the check of what is counted that notices it, not a loss.
    OldSessionsAck,
    /// A fence is answered before its promise is on the disk, and it never gets there.
    FenceNotPersisted,
    /// A process forgets at its start what was promised before it.
    PromiseForgotten,
    /// The controller appoints on the first answer to its fence.
    NoElectionQuorum,
    /// The controller appoints the replica that knows least.
    LowestLogWins,
    /// An answer to an earlier hello is taken for one to the present hello. (Frames of an earlier session would be no mistake
    /// that can be seen: each names its predecessor's whole position, so what fits is what the present session would bring.)
    OldSessionsAnswer,
    /// A reader reads to the log's end.
    ReadUncommitted,
    /// A machine with an empty disk says that it is the one that was there before.
    EmptyDiskKeepsItsName,
    /// A fence's answers claim that a replica is eligible, whatever became of its log.
    AlwaysEligible,
}

pub const ALL: [Planted; 10] = [
    Planted::LyingDisk,
    Planted::OldSessionsAck,
    Planted::FenceNotPersisted,
    Planted::PromiseForgotten,
    Planted::NoElectionQuorum,
    Planted::LowestLogWins,
    Planted::OldSessionsAnswer,
    Planted::ReadUncommitted,
    Planted::EmptyDiskKeepsItsName,
    Planted::AlwaysEligible,
];
