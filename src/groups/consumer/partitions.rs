//! Sets of partitions.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::TopicId;

/// Partitions of topics, by topic id. A topic without partitions is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partitions(BTreeMap<TopicId, BTreeSet<i32>>);

impl Partitions {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many partitions there are.
    pub fn len(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    pub fn contains(&self, topic: TopicId, partition: i32) -> bool {
        self.0.get(&topic).is_some_and(|of| of.contains(&partition))
    }

    pub fn insert(&mut self, topic: TopicId, partition: i32) {
        self.0.entry(topic).or_default().insert(partition);
    }

    pub(super) fn remove(&mut self, topic: TopicId, partition: i32) {
        if let Some(of) = self.0.get_mut(&topic) {
            of.remove(&partition);
            if of.is_empty() {
                self.0.remove(&topic);
            }
        }
    }

    /// By topic and number.
    pub fn iter(&self) -> impl Iterator<Item = (TopicId, i32)> {
        self.0
            .iter()
            .flat_map(|(&topic, of)| of.iter().map(move |&partition| (topic, partition)))
    }

    /// By topic.
    pub fn topics(&self) -> impl Iterator<Item = (TopicId, &BTreeSet<i32>)> {
        self.0.iter().map(|(&topic, of)| (topic, of))
    }

    pub(super) fn is_within(&self, other: &Partitions) -> bool {
        self.iter()
            .all(|(topic, partition)| other.contains(topic, partition))
    }

    pub(super) fn meets(&self, other: &Partitions) -> bool {
        self.iter()
            .any(|(topic, partition)| other.contains(topic, partition))
    }

    /// What is in both.
    pub(super) fn and(&self, other: &Partitions) -> Partitions {
        let both = self.iter();
        both.filter(|&(topic, partition)| other.contains(topic, partition))
            .collect()
    }

    /// What is here and not in `other`.
    pub(super) fn minus(&self, other: &Partitions) -> Partitions {
        let rest = self.iter();
        rest.filter(|&(topic, partition)| !other.contains(topic, partition))
            .collect()
    }
}

impl FromIterator<(TopicId, i32)> for Partitions {
    fn from_iter<I: IntoIterator<Item = (TopicId, i32)>>(from: I) -> Partitions {
        let mut partitions = Partitions::default();
        partitions.extend(from);
        partitions
    }
}

impl Extend<(TopicId, i32)> for Partitions {
    fn extend<I: IntoIterator<Item = (TopicId, i32)>>(&mut self, from: I) {
        for (topic, partition) in from {
            self.insert(topic, partition);
        }
    }
}
