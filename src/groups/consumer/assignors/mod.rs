//! Who is to read which partition. An assignor is a function of what the members read and hold: the same question has always
//! the same answer.

mod range;
mod uniform;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::partitions::Partitions;
use crate::types::TopicId;

/// How partitions are given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Assignor {
    /// As many to each as to any other, and as few moved as that takes.
    Uniform,
    /// Of each topic a row of neighbours to each member, so that equal partitions of equal topics come together.
    Range,
}

impl Assignor {
    /// What a group uses whose members wish for nothing.
    pub const DEFAULT: Assignor = Assignor::Uniform;

    /// Kafka's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Assignor::Uniform => "uniform",
            Assignor::Range => "range",
        }
    }

    pub fn from_name(name: &str) -> Option<Assignor> {
        [Assignor::Uniform, Assignor::Range]
            .into_iter()
            .find(|assignor| assignor.name() == name)
    }

    /// One answer for each member, in their order. Every partition of a topic that somebody reads has one member.
    pub(super) fn assign(self, question: &Question<'_>) -> Vec<Partitions> {
        match self {
            Assignor::Uniform => uniform::assign(question),
            Assignor::Range => range::assign(question),
        }
    }
}

/// One member, as an assignor sees it.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    /// What decides among equals: the instance id of a static member, else the member id.
    pub(super) name: &'a str,
    pub(super) is_static: bool,
    /// What it reads, sorted, each topic once. Members that read the same share it.
    pub(super) topics: Arc<Vec<TopicId>>,
    /// The target that it has so far.
    pub(super) before: &'a Partitions,
}

#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) readers: Vec<Reader<'a>>,
    /// The number of partitions of each topic that anybody reads.
    pub(super) topics: &'a BTreeMap<TopicId, i32>,
}

impl Question<'_> {
    /// Who reads each topic, by their places.
    fn readers_of_topics(&self) -> BTreeMap<TopicId, Vec<usize>> {
        let mut readers: BTreeMap<TopicId, Vec<usize>> = BTreeMap::new();
        for (place, reader) in self.readers.iter().enumerate() {
            for &topic in reader.topics.iter() {
                if self.topics.contains_key(&topic) {
                    readers.entry(topic).or_default().push(place);
                }
            }
        }
        readers
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(number: u128) -> TopicId {
        TopicId::from_random_bits(number + 1)
    }

    /// Asks about members with what each reads and has had.
    fn ask(
        assignor: Assignor,
        topics: &[i32],
        members: &[(Vec<usize>, Partitions)],
    ) -> Vec<Partitions> {
        let shapes: BTreeMap<TopicId, i32> = (0..)
            .zip(topics)
            .map(|(number, &partitions)| (topic(number), partitions))
            .collect();
        let names: Vec<String> = (0..members.len()).map(|i| format!("m{i:04}")).collect();
        let readers = members.iter().zip(&names).map(|((reads, before), name)| {
            let mut topics: Vec<TopicId> = reads.iter().map(|&i| topic(i as u128)).collect();
            topics.sort_unstable();
            topics.dedup();
            Reader {
                name,
                is_static: false,
                topics: Arc::new(topics),
                before,
            }
        });
        let question = Question {
            readers: readers.collect(),
            topics: &shapes,
        };
        let answer = assignor.assign(&question);
        check(&question, &answer);
        assert_eq!(answer, assignor.assign(&question), "the same again");
        answer
    }

    /// Every partition that somebody reads has one member, which reads its topic.
    fn check(question: &Question<'_>, answer: &[Partitions]) {
        assert_eq!(answer.len(), question.readers.len());
        let mut seen = Partitions::default();
        for (reader, given) in question.readers.iter().zip(answer) {
            for (topic, partition) in given.iter() {
                assert!(reader.topics.contains(&topic));
                assert!((0..question.topics[&topic]).contains(&partition));
                assert!(!seen.contains(topic, partition), "given twice");
                seen.insert(topic, partition);
            }
        }
        let expected = question.readers_of_topics();
        let expected: i32 = expected.keys().map(|topic| question.topics[topic]).sum();
        assert_eq!(seen.len(), expected as usize);
    }

    fn sizes(answer: &[Partitions]) -> Vec<usize> {
        answer.iter().map(Partitions::len).collect()
    }

    fn moved(before: &[Partitions], after: &[Partitions]) -> usize {
        let pairs = before.iter().zip(after);
        pairs.map(|(before, after)| after.minus(before).len()).sum()
    }

    fn all_read(count: usize, topics: usize) -> Vec<(Vec<usize>, Partitions)> {
        vec![((0..topics).collect(), Partitions::default()); count]
    }

    #[test]
    fn uniform_gives_each_as_many_and_moves_only_what_it_must() {
        let first = ask(Assignor::Uniform, &[12, 12], &all_read(6, 2));
        assert_eq!(sizes(&first), [4; 6]);
        // Two more come: each of the six gives up one of its four.
        let mut members: Vec<_> = first.iter().map(|p| (vec![0, 1], p.clone())).collect();
        members.extend(all_read(2, 2));
        let second = ask(Assignor::Uniform, &[12, 12], &members);
        assert_eq!(sizes(&second), [3; 8]);
        assert_eq!(moved(&first, &second[..6]), 0);
        // One goes: only what was its moves.
        let members: Vec<_> = second[1..]
            .iter()
            .map(|p| (vec![0, 1], p.clone()))
            .collect();
        let third = ask(Assignor::Uniform, &[12, 12], &members);
        assert_eq!(moved(&second[1..], &third), 3);
        // Nothing happens: nothing moves.
        let members: Vec<_> = third.iter().map(|p| (vec![0, 1], p.clone())).collect();
        let fourth = ask(Assignor::Uniform, &[12, 12], &members);
        assert_eq!(third, fourth);
    }

    #[test]
    fn uniform_balances_members_that_read_different_topics() {
        let members = [
            (vec![0], Partitions::default()),
            (vec![0, 1], Partitions::default()),
            (vec![1], Partitions::default()),
        ];
        let answer = ask(Assignor::Uniform, &[6, 6], &members);
        assert_eq!(sizes(&answer), [4, 4, 4]);
        // The one in the middle had everything.
        let all = [0, 1]
            .into_iter()
            .flat_map(|t| (0..6).map(move |p| (topic(t), p)));
        let members = [
            (vec![0], Partitions::default()),
            (vec![0, 1], all.collect()),
            (vec![1], Partitions::default()),
        ];
        let answer = ask(Assignor::Uniform, &[6, 6], &members);
        // Of each topic, no reader has two more than another.
        let sizes = sizes(&answer);
        assert!(sizes[0].abs_diff(sizes[1]) < 2 && sizes[1].abs_diff(sizes[2]) < 2);
    }

    #[test]
    fn range_gives_neighbours_and_the_same_ones_of_each_topic() {
        let answer = ask(Assignor::Range, &[5, 5], &all_read(2, 2));
        let row = |range: std::ops::Range<i32>| -> Partitions {
            let of = |t| range.clone().map(move |p| (topic(t), p));
            of(0).chain(of(1)).collect()
        };
        assert_eq!(answer, [row(0..3), row(3..5)]);
        // More members than partitions.
        let answer = ask(Assignor::Range, &[2], &all_read(3, 1));
        assert_eq!(sizes(&answer), [1, 1, 0]);
    }

    #[test]
    fn nobody_and_nothing_are_no_trouble() {
        for assignor in [Assignor::Uniform, Assignor::Range] {
            assert!(ask(assignor, &[3], &[]).is_empty());
            assert_eq!(sizes(&ask(assignor, &[], &all_read(2, 1))), [0, 0]);
            assert_eq!(sizes(&ask(assignor, &[3], &all_read(2, 0))), [0, 0]);
        }
    }

    proptest! {
        #[test]
        fn every_partition_has_one_reader(
            topics in proptest::collection::vec(1_i32..20, 0..5),
            first in proptest::collection::vec(proptest::collection::vec(0_usize..5, 0..5), 0..12),
            second in proptest::collection::vec(proptest::collection::vec(0_usize..5, 0..5), 0..12),
            uniform in any::<bool>(),
        ) {
            let assignor = if uniform { Assignor::Uniform } else { Assignor::Range };
            let mut members: Vec<_> =
                first.into_iter().map(|reads| (reads, Partitions::default())).collect();
            let given = ask(assignor, &topics, &members);
            // They read something else now, some are gone and some new.
            for (place, reads) in second.into_iter().enumerate() {
                let before = given.get(place).cloned().unwrap_or_default();
                match members.get_mut(place) {
                    Some(member) => *member = (reads, before),
                    None => members.push((reads, before)),
                }
            }
            ask(assignor, &topics, &members);
        }

        #[test]
        fn uniform_is_balanced_where_all_read_the_same(
            topics in proptest::collection::vec(1_i32..30, 1..4),
            count in 1_usize..12,
            joined in 0_usize..4,
        ) {
            let number = topics.len();
            let first = ask(Assignor::Uniform, &topics, &all_read(count, number));
            let spread = |answer: &[Partitions]| {
                let sizes = sizes(answer);
                sizes.iter().max().unwrap() - sizes.iter().min().unwrap()
            };
            prop_assert!(spread(&first) <= 1);
            let all: Vec<usize> = (0..number).collect();
            let mut members: Vec<_> = first.iter().map(|p| (all.clone(), p.clone())).collect();
            members.extend(all_read(joined, number));
            let second = ask(Assignor::Uniform, &topics, &members);
            prop_assert!(spread(&second) <= 1);
            // Nobody who was there gains anything.
            prop_assert_eq!(moved(&first, &second[..count]), 0);
        }
    }
}
