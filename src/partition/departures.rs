//! Replicas that left this node, and when their logs may go.
//!
//! A node applies the metadata entry by entry, and may be far behind: that a replica left is no proof that it has not been
//! put back since. The leader follows the same metadata at its own pace; it may have taken this very process into the
//! in-sync set again, by what it acknowledged before it came to the entry at which it left. A log that is removed then is one
//! that others count on. So a replica is closed at once, and its log stays until the node knows everything that was committed
//! before it was closed, and is still not among the replicas. Where it was put back in between, the log is opened again as it
//! was. What is acknowledged after a return is never of the log that went: a leader that may have missed the state in between
//! has the replica open its session anew.

use std::collections::BTreeMap;

use crate::types::TopicPartition;

/// The replicas that are closed and whose logs are still there: at most one for each log that the node holds.
#[derive(Debug, Default)]
pub struct Departures {
    waiting: BTreeMap<TopicPartition, Stage>,
    /// The number of the last question.
    asked: u64,
    /// Whether that one has no answer yet.
    is_asking: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No question was put since it was closed.
    Closed,
    /// Covered by the question of this number.
    Asked(u64),
    /// Everything that was committed before it was closed has an index at most this.
    Known(u64),
}

impl Departures {
    /// The replica has just been closed: it acknowledges nothing any more.
    pub fn closed(&mut self, partition: TopicPartition) {
        self.waiting.insert(partition, Stage::Closed);
    }

    /// Whether the log of `partition` is kept until it is known whether it may go.
    pub fn contains(&self, partition: &TopicPartition) -> bool {
        self.waiting.contains_key(partition)
    }

    /// The number of a question to be put now, if one is needed and none is under way: up to which index the cluster's metadata
    /// is committed. Whatever was committed before this call must be counted in the answer.
    pub fn question(&mut self) -> Option<u64> {
        if self.is_asking || !self.waiting.values().any(|&stage| stage == Stage::Closed) {
            return None;
        }
        self.is_asking = true;
        self.asked += 1;
        for stage in self.waiting.values_mut() {
            if *stage == Stage::Closed {
                *stage = Stage::Asked(self.asked);
            }
        }
        Some(self.asked)
    }

    /// The answer to the question `number`.
    pub fn handle_answer(&mut self, number: u64, committed_end: u64) {
        if number == self.asked {
            self.is_asking = false;
        }
        for stage in self.waiting.values_mut() {
            if *stage == Stage::Asked(number) {
                *stage = Stage::Known(committed_end);
            }
        }
    }

    /// The node knows the metadata up to the index `applied`, by which it is a replica where `is_replica` says so. Returns
    /// those whose logs are to be removed now, and forgets them, as well as those that have come back.
    pub fn settle(
        &mut self,
        applied: u64,
        is_replica: impl Fn(&TopicPartition) -> bool,
    ) -> Vec<TopicPartition> {
        let mut removable = Vec::new();
        self.waiting.retain(|partition, stage| {
            if is_replica(partition) {
                return false;
            }
            let may_go = matches!(stage, Stage::Known(end) if *end <= applied);
            if may_go {
                removable.push(*partition);
            }
            !may_go
        });
        removable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PartitionIndex, TopicId};

    fn partition(index: u32) -> TopicPartition {
        TopicPartition {
            topic: TopicId::from_random_bits(1),
            partition: PartitionIndex(index),
        }
    }

    #[test]
    fn a_log_goes_once_the_node_knows_what_was_committed_when_it_was_closed() {
        let mut departures = Departures::default();
        let nowhere = |_: &TopicPartition| false;
        departures.closed(partition(0));
        assert!(departures.settle(10, nowhere).is_empty());
        let question = departures.question().unwrap();
        assert_eq!(departures.question(), None, "one at a time");
        assert!(departures.settle(10, nowhere).is_empty());
        departures.handle_answer(question, 12);
        assert!(departures.settle(11, nowhere).is_empty());
        assert_eq!(departures.settle(12, nowhere), [partition(0)]);
        assert!(!departures.contains(&partition(0)));
        assert_eq!(departures.question(), None);
    }

    #[test]
    fn one_that_was_put_back_keeps_its_log() {
        let mut departures = Departures::default();
        departures.closed(partition(0));
        let question = departures.question().unwrap();
        departures.handle_answer(question, 12);
        assert!(departures.settle(12, |_| true).is_empty());
        assert!(!departures.contains(&partition(0)));
        assert!(departures.settle(13, |_| false).is_empty());
    }

    #[test]
    fn an_answer_says_nothing_of_what_was_closed_after_its_question() {
        let mut departures = Departures::default();
        let nowhere = |_: &TopicPartition| false;
        departures.closed(partition(0));
        departures.closed(partition(1));
        let first = departures.question().unwrap();
        // The first comes back and leaves again, another leaves for the first time.
        assert!(departures.settle(3, |id| *id == partition(0)).is_empty());
        departures.closed(partition(0));
        departures.closed(partition(2));
        departures.handle_answer(first, 5);
        assert_eq!(departures.settle(9, nowhere), [partition(1)]);
        let second = departures.question().unwrap();
        departures.handle_answer(first, 5);
        assert!(departures.settle(9, nowhere).is_empty());
        departures.handle_answer(second, 8);
        assert_eq!(departures.settle(9, nowhere), [partition(0), partition(2)]);
    }
}
