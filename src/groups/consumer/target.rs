//! Who is to read what: subscriptions and the cluster's topics, worked out into targets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::assignors::{Question, Reader};
use super::group::ConsumerGroup;
use super::partitions::Partitions;
use super::pattern;
use super::topics::Topics;
use crate::types::TopicId;

/// What the members of a group read, of the topics that there are.
#[derive(Debug)]
pub(super) struct Resolved {
    /// By topic, how many partitions it has.
    topics: BTreeMap<TopicId, i32>,
    /// In the order of the members; those that read the same share it.
    reads: Vec<Arc<Vec<TopicId>>>,
    /// Of the names, ids and partitions of all of them: another one tells that a topic has come or gone, or has grown. It is
    /// written down, and so must stay what it is.
    pub(super) hash: i64,
}

/// By which names and which pattern a member reads.
type ReadsBy<'a> = (&'a [Arc<str>], Option<&'a str>);

impl ConsumerGroup {
    pub(super) fn resolve(&self, topics: &dyn Topics) -> Resolved {
        let mut found: BTreeMap<Arc<str>, (TopicId, i32)> = BTreeMap::new();
        let mut patterns: BTreeMap<&str, Vec<TopicId>> = BTreeMap::new();
        let mut known: BTreeMap<ReadsBy<'_>, Arc<Vec<TopicId>>> = BTreeMap::new();
        let mut reads = Vec::with_capacity(self.members.len());
        for member in self.members.values() {
            let subscription = &member.subscription;
            let key = (&subscription.names[..], subscription.pattern.as_deref());
            if let Some(same) = known.get(&key) {
                reads.push(same.clone());
                continue;
            }
            let mut ids: BTreeSet<TopicId> = BTreeSet::new();
            for name in &subscription.names {
                if let Some(shape) = topics.topic(name) {
                    ids.insert(shape.id);
                    found.insert(name.clone(), (shape.id, shape.partitions));
                }
            }
            if let Some(pattern) = subscription.pattern.as_deref() {
                let matching = patterns.entry(pattern).or_insert_with(|| {
                    let mut matching = Vec::new();
                    if let Some(compiled) = pattern::compile(pattern) {
                        topics.each(&mut |name, shape| {
                            if compiled.is_match(name) {
                                matching.push(shape.id);
                                found.insert(name.into(), (shape.id, shape.partitions));
                            }
                        });
                    }
                    matching
                });
                ids.extend(matching.iter().copied());
            }
            let ids = Arc::new(ids.into_iter().collect::<Vec<_>>());
            known.insert(key, ids.clone());
            reads.push(ids);
        }
        Resolved {
            hash: hash(&found),
            topics: found.into_values().collect(),
            reads,
        }
    }

    /// Gives the partitions out for the present group epoch.
    pub(super) fn retarget(&mut self, resolved: &Resolved) {
        let nothing = Partitions::default();
        let readers = self.members.iter().zip(&resolved.reads);
        let readers = readers.map(|((id, member), topics)| {
            let instance = member.subscription.instance.as_deref();
            Reader {
                name: instance.unwrap_or(id),
                is_static: instance.is_some(),
                topics: topics.clone(),
                before: self.targets.get(id).map_or(&nothing, |target| target),
            }
        });
        let question = Question {
            readers: readers.collect(),
            topics: &resolved.topics,
        };
        let answer = self.assignor().assign(&question);
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for (id, given) in ids.into_iter().zip(answer) {
            let same = self.targets.get(&id).is_some_and(|known| **known == given);
            if !same {
                self.targets.insert(id, Arc::new(given));
            }
        }
        self.target_epoch = self.epoch;
    }
}

/// FNV-1a of 64 bits.
fn hash(topics: &BTreeMap<Arc<str>, (TopicId, i32)>) -> i64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for (name, (id, partitions)) in topics {
        add(name.as_bytes());
        add(&id.to_bits().to_be_bytes());
        add(&partitions.to_be_bytes());
    }
    hash as i64
}
