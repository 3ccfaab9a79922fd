//! A record for one of the cluster's own topics.

use bytes::Bytes;

/// What a coordinator has written down: a key of its topic, and what holds of it from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    pub key: Bytes,
    /// `None` is a tombstone.
    pub value: Option<Bytes>,
}

impl LogRecord {
    /// What it adds to a batch, roughly and rather too much.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + 32
    }
}
