//! What transactions may take of a node. Every cap has a name here and a sentence on what happens at it.

use std::time::Duration;

/// The longest transactional id, in bytes of UTF-8. A longer one, and an empty one, answer INVALID_REQUEST. Kafka has no cap
/// of its own; this one keeps every key in the log short.
pub const MAX_TRANSACTIONAL_ID_BYTES: usize = 255;
/// Transactional ids of one coordinator, which looks after one partition of the internal topic. A new one is refused with
/// POLICY_VIOLATION.
pub const MAX_IDS: usize = 50_000;
/// Partitions of one transaction, those of `__consumer_offsets` included. A transaction that would have more is refused
/// further ones with POLICY_VIOLATION. Its state is one record, which so stays far below what a batch takes.
pub const MAX_PARTITIONS: usize = 5_000;
/// What the ids of one coordinator may hold in memory together. Beyond it, new ids and new partitions are refused with
/// POLICY_VIOLATION; what is there goes on, and ends.
pub const MAX_STATE_BYTES: usize = 64 << 20;

/// At this size a batch is closed, whatever else waits to be written.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// What an id counts for in [`MAX_STATE_BYTES`] besides its text.
pub(super) const ID_BYTES: usize = 512;
/// What a topic of a transaction counts for besides its name.
pub(super) const TOPIC_BYTES: usize = 128;
/// What a partition of a transaction counts for, its marker on the way included.
pub(super) const PARTITION_BYTES: usize = 160;

/// The first pause before a marker is sent again, or a completion written again; it doubles up to [`MAX_PAUSE`]. Half of it
/// is drawn at random.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The operator's choices. Names and defaults are Kafka's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `transaction.max.timeout.ms`. A producer that asks for more, or for less than 1 ms, is refused with
    /// INVALID_TRANSACTION_TIMEOUT.
    pub max_timeout: Duration,
    /// `transactional.id.expiration.ms`: how long an id is kept that has no transaction and that nobody uses.
    pub expiration: Duration,
    /// `transaction.remove.expired.transaction.cleanup.interval.ms`: how often it is looked for such ids.
    pub expire_every: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            max_timeout: Duration::from_secs(15 * 60),
            expiration: Duration::from_secs(7 * 24 * 3600),
            expire_every: Duration::from_secs(3600),
        }
    }
}
