//! Which member reads which partitions: Kafka's range assignor, so that our members and others' agree on what it does.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::client::metadata::PartitionName;
use crate::groups::Assignment;
use crate::types::{PartitionIndex, TopicName};

/// The assignor's name in the group's protocol.
pub(super) const RANGE: &str = "range";

/// What each member is to read: of each topic that it subscribes to, a run of neighbouring partitions. Runs are as long as
/// each other, or one longer for the first members by id. `partitions`: how many each topic has.
pub(super) fn range(
    members: &BTreeMap<String, Vec<Arc<str>>>,
    partitions: &BTreeMap<Arc<str>, i32>,
) -> BTreeMap<String, Assignment> {
    let mut assignments: BTreeMap<String, Assignment> = members
        .keys()
        .map(|member| (member.clone(), Assignment::default()))
        .collect();
    for (topic, &count) in partitions {
        let readers: Vec<&String> = members
            .iter()
            .filter(|(_, topics)| topics.contains(topic))
            .map(|(member, _)| member)
            .collect();
        let mut next = 0;
        for (i, member) in readers.iter().enumerate() {
            let (each, longer) = (
                count as usize / readers.len(),
                count as usize % readers.len(),
            );
            let run = (each + usize::from(i < longer)) as i32;
            if run > 0
                && let Some(assignment) = assignments.get_mut(*member)
            {
                assignment
                    .partitions
                    .insert(topic.clone(), (next..next + run).collect());
            }
            next += run;
        }
    }
    assignments
}

/// The partitions of an assignment. What is no topic's name or no partition's number is left out: a leader may be of any make.
pub(super) fn partition_names(assignment: Assignment) -> Vec<PartitionName> {
    let mut found = Vec::new();
    for (topic, partitions) in assignment.partitions {
        let Ok(topic) = TopicName::new(&topic) else {
            continue;
        };
        let indexes = partitions.into_iter().filter_map(PartitionIndex::from_wire);
        found.extend(indexes.map(|index| PartitionName::new(topic.clone(), index)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_partitions_go_to_members_by_id() {
        let topic = |name: &str| Arc::<str>::from(name);
        let members = BTreeMap::from([
            ("m1".to_owned(), vec![topic("a"), topic("b")]),
            ("m2".to_owned(), vec![topic("a")]),
            ("m3".to_owned(), vec![topic("a"), topic("b")]),
            ("m4".to_owned(), vec![]),
        ]);
        let partitions = BTreeMap::from([(topic("a"), 7), (topic("b"), 1), (topic("c"), 3)]);
        let found = range(&members, &partitions);
        let of = |member: &str, name: &str| {
            let assignment = &found[member];
            assignment.partitions.get(name).cloned().unwrap_or_default()
        };
        assert_eq!(of("m1", "a"), [0, 1, 2]);
        assert_eq!(of("m2", "a"), [3, 4]);
        assert_eq!(of("m3", "a"), [5, 6]);
        assert_eq!(of("m1", "b"), [0]);
        assert!(of("m3", "b").is_empty());
        assert_eq!(found["m4"], Assignment::default());
    }
}
