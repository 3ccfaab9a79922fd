//! What must never happen.

use std::fmt;

use crate::log::Position;

/// A broken invariant. Nodes are indexes, from 0; records are as in [`super::log`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// Invariants 1 and 2: a leader lacks an acknowledged record of an earlier epoch.
    LeaderWithoutRecord { node: usize, epoch: u8, record: u8 },
    /// Invariants 1, 3 and 10: two records were acknowledged at one offset.
    TwoRecordsAtOneOffset {
        node: usize,
        first: u8,
        second: u8,
        offset: u8,
    },
    /// Invariant 9: a leader of the committing epoch or a later one makes a follower cut off an acknowledged record.
    AcknowledgedRecordCut { node: usize, epoch: u8, record: u8 },
    /// Invariant 3: two logs have a position in common and differ before it.
    LogsDiffer { position: Position },
    /// Invariant 4: a leader takes its watermark for the true one, and it is not.
    WatermarkFell {
        node: usize,
        watermark: u8,
        true_one: u8,
    },
    /// Invariant 5 (and 1): fewer than q members of a set that counts hold what the watermark covers.
    WatermarkNotHeld {
        node: usize,
        watermark: Position,
        holders: usize,
        quorum: usize,
    },
    /// Invariant 6: the controller's set is neither the leader's nor its proposal.
    LeaderCountsByAnotherSet { node: usize },
    /// Invariant 7: a counted ack is above what that follower holds.
    AckAboveLog { leader: usize, follower: usize },
    /// Invariant 8: an epoch has two leaders, or two reigns.
    TwoLeaders { epoch: u8 },
    /// Invariant 8: a log's epochs fall.
    EpochsFall { node: usize },
}

impl Violation {
    /// Whether a record that was acknowledged is lost or another one is in its place: what the protocol is there to prevent.
    /// The other violations show where a proof breaks, and may still be harmless.
    pub(crate) fn is_loss(self) -> bool {
        matches!(
            self,
            Violation::LeaderWithoutRecord { .. }
                | Violation::TwoRecordsAtOneOffset { .. }
                | Violation::AcknowledgedRecordCut { .. }
        )
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Violation::LeaderWithoutRecord {
                node,
                epoch,
                record,
            } => write!(
                f,
                "LOST: n{} leads epoch {epoch} without r{record}, which was acknowledged",
                node + 1
            ),
            Violation::TwoRecordsAtOneOffset {
                node,
                first,
                second,
                offset,
            } => write!(
                f,
                "LOST: r{first} was acknowledged at offset {offset}, and n{} acknowledges r{second} there",
                node + 1
            ),
            Violation::AcknowledgedRecordCut {
                node,
                epoch,
                record,
            } => write!(
                f,
                "LOST: the leader of epoch {epoch} makes n{} cut off r{record}, which was acknowledged before",
                node + 1
            ),
            Violation::LogsDiffer { position } => write!(
                f,
                "invariant 3: two logs have position {position} and differ before it"
            ),
            Violation::WatermarkFell {
                node,
                watermark,
                true_one,
            } => write!(
                f,
                "invariant 4: n{} has started its epoch with high watermark {watermark}, and {true_one} records were acknowledged",
                node + 1
            ),
            Violation::WatermarkNotHeld {
                node,
                watermark,
                holders,
                quorum,
            } => write!(
                f,
                "invariant 5: the high watermark of n{} is {watermark}; {holders} members hold it, and {quorum} have to",
                node + 1
            ),
            Violation::LeaderCountsByAnotherSet { node } => write!(
                f,
                "invariant 6: n{} counts by another in-sync set than the controller's",
                node + 1
            ),
            Violation::AckAboveLog { leader, follower } => write!(
                f,
                "invariant 7: n{} counts an ack that n{}'s durable log does not hold",
                leader + 1,
                follower + 1
            ),
            Violation::TwoLeaders { epoch } => {
                write!(f, "invariant 8: epoch {epoch} has a second leader")
            }
            Violation::EpochsFall { node } => {
                write!(
                    f,
                    "invariant 8: the epochs in the log of n{} fall",
                    node + 1
                )
            }
        }
    }
}
