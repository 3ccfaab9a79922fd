//! The partitions of one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::limits::{PARTITION_BYTES, TOPIC_BYTES};

/// Partitions by topic. Cloning shares them: each change of a transaction's state carries them along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Partitions {
    topics: Arc<BTreeMap<Arc<str>, BTreeSet<i32>>>,
    count: usize,
    bytes: usize,
}

impl Partitions {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// What they count for, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn contains(&self, topic: &str, partition: i32) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|partitions| partitions.contains(&partition))
    }

    pub(super) fn insert(&mut self, topic: &str, partition: i32) {
        let topics = Arc::make_mut(&mut self.topics);
        let partitions = match topics.get_mut(topic) {
            Some(partitions) => partitions,
            None => {
                self.bytes += TOPIC_BYTES + topic.len();
                topics.entry(topic.into()).or_default()
            }
        };
        if partitions.insert(partition) {
            self.count += 1;
            self.bytes += PARTITION_BYTES;
        }
    }

    pub(super) fn topics(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &BTreeSet<i32>)> {
        self.topics.iter()
    }

    /// All of them, by topic and number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, i32)> {
        self.topics
            .iter()
            .flat_map(|(topic, partitions)| partitions.iter().map(move |&number| (topic, number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_once_and_a_copy_stays_as_it_was() {
        let mut partitions = Partitions::default();
        partitions.insert("orders", 1);
        let before = partitions.clone();
        partitions.insert("orders", 1);
        partitions.insert("orders", 0);
        partitions.insert("bills", 0);
        assert_eq!((before.len(), partitions.len()), (1, 3));
        assert!(partitions.contains("bills", 0) && !before.contains("bills", 0));
        let bytes = 2 * TOPIC_BYTES + "orders".len() + "bills".len() + 3 * PARTITION_BYTES;
        assert_eq!(partitions.bytes(), bytes);
        let all: Vec<_> = partitions.iter().map(|(t, p)| (t.to_string(), p)).collect();
        let expected = [("bills", 0), ("orders", 0), ("orders", 1)];
        assert_eq!(all, expected.map(|(t, p)| (t.to_owned(), p)));
    }
}
