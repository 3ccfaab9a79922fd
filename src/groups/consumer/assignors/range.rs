//! The assignor `range`.

use super::Question;
use crate::groups::consumer::partitions::Partitions;

/// Of each topic, its readers in order take neighbouring partitions, the first ones one more where it does not come out even.
/// Static members come first, by their instance ids, so that their rows do not depend on what ids they were given.
pub(super) fn assign(question: &Question<'_>) -> Vec<Partitions> {
    let mut given = vec![Partitions::default(); question.readers.len()];
    for (topic, mut readers) in question.readers_of_topics() {
        readers.sort_by_key(|&place| {
            let reader = &question.readers[place];
            (!reader.is_static, reader.name)
        });
        let partitions = question.topics.get(&topic).copied().unwrap_or_default();
        let count = i32::try_from(readers.len()).unwrap_or(i32::MAX);
        let (each, more) = (partitions / count, partitions % count);
        let mut next = 0;
        for (turn, place) in (0..).zip(readers) {
            let end = next + each + i32::from(turn < more);
            given[place].extend((next..end).map(|partition| (topic, partition)));
            next = end;
        }
    }
    given
}
