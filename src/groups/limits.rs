//! What groups may take of a node. Every cap has a name here and a sentence on what happens at it.

use std::time::Duration;

/// The longest name of a group, in bytes of UTF-8. A longer one, and an empty one, answer INVALID_GROUP_ID. Kafka has no cap
/// of its own; this one keeps every key in the log short.
pub const MAX_GROUP_ID_BYTES: usize = 255;
/// `offset.metadata.max.bytes`: what a client may store beside an offset. Longer text answers OFFSET_METADATA_TOO_LARGE.
pub const MAX_METADATA_BYTES: usize = 4096;
/// Assignment protocols that one member may offer. More answer INCONSISTENT_GROUP_PROTOCOL.
pub const MAX_PROTOCOLS: usize = 64;
/// What the members of one group may hold together: the metadata of all their protocols, and their assignments. A member
/// that would pass it is refused with GROUP_MAX_SIZE_REACHED. Below what one record batch takes, because a group's state is
/// one record.
pub const MAX_GROUP_BYTES: usize = 4 << 20;
/// All assignments of one generation together. More answer INVALID_REQUEST.
pub const MAX_ASSIGNMENT_BYTES: usize = 4 << 20;
/// The records of one OffsetCommit. More answer INVALID_COMMIT_OFFSET_SIZE for each partition.
pub const MAX_COMMIT_BYTES: usize = 8 << 20;
/// What one producer may have pending with one coordinator, in all groups together: offsets of a transaction that has not ended.
/// More answer INVALID_COMMIT_OFFSET_SIZE. Its end is one batch, which must fit a frame.
pub const MAX_PENDING_BYTES: usize = 4 << 20;
/// Producers of which a coordinator remembers how their last transactions ended. Beyond it the one whose transaction ended
/// first is forgotten; a commit that comes as late as that is refused by its transaction's coordinator.
pub const MAX_ENDED_PRODUCERS: usize = 10_000;
/// Groups of one coordinator, which looks after one partition of the internal topic. A new one is refused with
/// POLICY_VIOLATION.
pub const MAX_GROUPS: usize = 10_000;
/// What the groups of one coordinator may hold in memory together, members and offsets. Beyond it, new groups, new members
/// and commits of new partitions are refused with POLICY_VIOLATION; what is there goes on, commits included.
pub const MAX_STATE_BYTES: usize = 64 << 20;

/// The longest client id that is kept of a member, in bytes; the rest is cut off.
pub(super) const MAX_CLIENT_ID_BYTES: usize = 255;
/// The longest instance id of a static member, in bytes. A longer one answers INVALID_REQUEST.
pub(super) const MAX_INSTANCE_ID_BYTES: usize = 255;
/// The longest id that a member may choose for itself, in bytes. A longer one answers INVALID_REQUEST.
pub(super) const MAX_MEMBER_ID_BYTES: usize = 255;
/// The longest name of a member's rack, in bytes. A longer one answers INVALID_REQUEST.
pub(super) const MAX_RACK_BYTES: usize = 255;
/// Different patterns by which the members of one group may subscribe: each is matched with every topic's name. One more
/// answers INVALID_REGULAR_EXPRESSION.
pub(super) const MAX_PATTERNS: usize = 64;
/// The longest name of a protocol or protocol type, in bytes. A longer one answers INCONSISTENT_GROUP_PROTOCOL.
pub(super) const MAX_PROTOCOL_NAME_BYTES: usize = 255;
/// Records of removals that go into one batch, in bytes: a group with many offsets is removed by several.
pub(super) const REMOVAL_BATCH_BYTES: usize = 1 << 20;
/// At this size a batch is closed, whatever else waits to be written.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// What an entry counts for in [`MAX_STATE_BYTES`] besides its text.
pub(super) const ENTRY_BYTES: usize = 128;

/// The operator's choices. Names and defaults are Kafka's, unless it says why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `group.min.session.timeout.ms`. A member that asks for less is refused with INVALID_SESSION_TIMEOUT.
    pub min_session: Duration,
    /// `group.max.session.timeout.ms`. The same for more.
    pub max_session: Duration,
    /// `group.initial.rebalance.delay.ms`: how long an empty group waits for more members after the first. Kafka waits 3 s;
    /// consumers that start together come within less.
    pub initial_rebalance_delay: Duration,
    /// `group.max.size`: members of one group, those included that were only given an id yet. One more is refused with
    /// GROUP_MAX_SIZE_REACHED. Kafka's default is no limit.
    pub max_size: usize,
    /// `group.consumer.session.timeout.ms`: a member of the newer protocol that is not heard for so long is out.
    pub consumer_session: Duration,
    /// `group.consumer.heartbeat.interval.ms`: how often such a member is asked to come.
    pub consumer_heartbeat: Duration,
    /// `offsets.retention.minutes`: how long the offsets of a group without members are kept.
    pub offsets_retention: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            min_session: Duration::from_secs(6),
            max_session: Duration::from_secs(30 * 60),
            initial_rebalance_delay: Duration::from_millis(500),
            max_size: 1000,
            consumer_session: Duration::from_secs(45),
            consumer_heartbeat: Duration::from_secs(5),
            offsets_retention: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// The first `limit` bytes of a text, or a little less: whole characters.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("abc", 5), "abc");
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("é", 0), "");
    }
}
