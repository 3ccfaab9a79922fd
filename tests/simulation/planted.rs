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
    /// `acks=all` is answered once the leader's own disk has the records.
    AnsweredAtAppend,
    /// A batch that is sent again has lost its sequence number on the way, and is appended again.
    SequenceLost,
    /// The first frame that goes live behind a session's catch-up is left out, and the next one put in its place.
    SeamSkipsFrame,
    /// A batch goes out twice, the second time stamped so that it fits.
    BatchTwice,
    /// A follower shows the watermark that it was told last, and not the highest.
    WatermarkFalls,
    /// A follower acknowledges frames as they come, before it has written them.
    AckBeforeWritten,
    /// A leader counts by a smaller set from the moment at which it proposes it.
    ShrinkNotSettled,
    /// A leader's proposal is a set smaller than m.
    ShrinkBelowM,
    /// Of two members, the one that keeps up is taken out of the set, and the one that does not stays.
    WrongOneLeaves,
    /// A follower cuts its log to the watermark that it knows, and not to where it parts from the leader's (KIP-101).
    CutToWatermark,
    /// A follower that is reset does not take what it is told of producers.
    ProducersForgottenAtReset,
    /// What was known of producers is lost with the process: the snapshots that the next one finds are empty.
    ProducersForgottenAtRestart,
    /// Recovery cuts the log at the durable mark, and not at the first bad frame behind it.
    RecoveryCutsAtMark,
    /// What a follower's process has acknowledged is counted for the process that comes after it.
    OlderProcessAck,
    /// Syncs that fail are taken for ones that do not.
    SyncFailureIgnored,
    /// A leader that has restarted takes up the appointment of the process before it.
    LeadsAgain,
    /// Each replica writes its own time into a batch.
    StampedByEach,
    /// Who was turned away for want of room on a connection is not told that there is room again.
    RoomNotTold,
    /// `acks=1` is answered before the leader's disk has the records.
    AnsweredAtWrite,
    /// A replica that is to go removes its log when that is asked for, and not once the others are in sync.
    LeavesEarly,
    /// A leader commits what its own disk has.
    OwnDiskCommits,
    /// A leader takes its epoch's start for committed as soon as its own disk has it.
    StartNotAwaited,
    /// A replica acknowledges once more to the leader that it followed before it was fenced.
    AckAfterFence,
    /// A follower dials a leader to which it has a connection.
    DialsTwice,
    /// A reader of committed records reads to the watermark, and not to the last stable offset.
    ReadUndecided,
    /// The last of the aborted transactions that a reader is told of is left out.
    AbortedLeftOut,
    /// The marker of a coordinator that is not the current one any more is written like the current one's.
    OldCoordinatorsMarker,
    /// A coordinator takes a transaction for ended once the first of its partitions has the marker.
    EndsAtFirstMarker,
}

pub const ALL: [Planted; 38] = [
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
    Planted::AnsweredAtAppend,
    Planted::SequenceLost,
    Planted::SeamSkipsFrame,
    Planted::BatchTwice,
    Planted::WatermarkFalls,
    Planted::AckBeforeWritten,
    Planted::ShrinkNotSettled,
    Planted::ShrinkBelowM,
    Planted::WrongOneLeaves,
    Planted::CutToWatermark,
    Planted::ProducersForgottenAtReset,
    Planted::ProducersForgottenAtRestart,
    Planted::RecoveryCutsAtMark,
    Planted::OlderProcessAck,
    Planted::SyncFailureIgnored,
    Planted::LeadsAgain,
    Planted::StampedByEach,
    Planted::RoomNotTold,
    Planted::AnsweredAtWrite,
    Planted::LeavesEarly,
    Planted::OwnDiskCommits,
    Planted::StartNotAwaited,
    Planted::AckAfterFence,
    Planted::DialsTwice,
    Planted::ReadUndecided,
    Planted::AbortedLeftOut,
    Planted::OldCoordinatorsMarker,
    Planted::EndsAtFirstMarker,
];
