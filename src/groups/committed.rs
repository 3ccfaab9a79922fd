//! Committed offsets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::limits::ENTRY_BYTES;

/// An offset that a group has committed for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next record to read. Clients choose it: it may lie outside the log.
    pub offset: i64,
    /// The leader epoch of the last record that was read; −1 where the client names none.
    pub leader_epoch: i32,
    /// Text of the client's own.
    pub metadata: Arc<str>,
    /// Milliseconds since the Unix epoch, by the coordinator's clock.
    pub timestamp_ms: i64,
}

/// The offsets of one group, by topic and partition.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    topics: BTreeMap<Arc<str>, BTreeMap<i32, Committed>>,
    bytes: usize,
}

fn weight(committed: &Committed) -> usize {
    ENTRY_BYTES + committed.metadata.len()
}

impl Offsets {
    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// What they count for, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.topics.get(topic)?.get(&partition)
    }

    pub(super) fn insert(&mut self, topic: &Arc<str>, partition: i32, committed: Committed) {
        let partitions = match self.topics.get_mut(topic) {
            Some(partitions) => partitions,
            None => {
                self.bytes += ENTRY_BYTES + topic.len();
                self.topics.entry(topic.clone()).or_default()
            }
        };
        self.bytes += weight(&committed);
        if let Some(before) = partitions.insert(partition, committed) {
            self.bytes -= weight(&before);
        }
    }

    pub(super) fn remove(&mut self, topic: &str, partition: i32) {
        let Some(partitions) = self.topics.get_mut(topic) else {
            return;
        };
        if let Some(before) = partitions.remove(&partition) {
            self.bytes -= weight(&before);
        }
        if partitions.is_empty() {
            self.topics.remove(topic);
            self.bytes -= ENTRY_BYTES + topic.len();
        }
    }

    /// All of them, by topic and partition.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, i32, &Committed)> {
        self.topics.iter().flat_map(|(topic, partitions)| {
            partitions
                .iter()
                .map(move |(&partition, committed)| (topic, partition, committed))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_counts_for_nothing() {
        let mut offsets = Offsets::default();
        let topic: Arc<str> = "orders".into();
        let at = |offset, metadata: &str| Committed {
            offset,
            leader_epoch: -1,
            metadata: metadata.into(),
            timestamp_ms: 0,
        };
        offsets.insert(&topic, 0, at(1, "some text"));
        offsets.insert(&topic, 1, at(2, ""));
        offsets.insert(&topic, 0, at(3, "less"));
        assert_eq!(offsets.get("orders", 0).unwrap().offset, 3);
        assert_eq!(offsets.bytes(), 3 * ENTRY_BYTES + 6 + 4);
        offsets.remove("orders", 7);
        offsets.remove("orders", 0);
        offsets.remove("orders", 1);
        assert!(offsets.is_empty());
        assert_eq!(offsets.bytes(), 0);
    }
}
