//! The assignor `uniform`.

use std::collections::{BTreeMap, BTreeSet};

use super::Question;
use crate::groups::consumer::partitions::Partitions;
use crate::types::TopicId;

pub(super) fn assign(question: &Question<'_>) -> Vec<Partitions> {
    let mut readers = question.readers.iter();
    let alike = match readers.next() {
        Some(first) => readers.all(|reader| reader.topics == first.topics),
        None => return Vec::new(),
    };
    let (mut given, free) = keep(question);
    if alike {
        even_out(&mut given, free);
    } else {
        give_out(question, &mut given, free);
        balance(question, &mut given);
    }
    given
}

/// What each member had and still reads, and what nobody has.
fn keep(question: &Question<'_>) -> (Vec<Partitions>, Vec<(TopicId, i32)>) {
    let mut taken = Partitions::default();
    let mut given = Vec::with_capacity(question.readers.len());
    for reader in &question.readers {
        let mut kept = Partitions::default();
        for (topic, partition) in reader.before.iter() {
            let exists = question.topics.get(&topic).is_some_and(|&n| partition < n);
            let reads = reader.topics.binary_search(&topic).is_ok();
            if exists && reads && !taken.contains(topic, partition) {
                taken.insert(topic, partition);
                kept.insert(topic, partition);
            }
        }
        given.push(kept);
    }
    let read = question.readers_of_topics();
    let all = read.keys().flat_map(|&topic| {
        let partitions = question.topics.get(&topic).copied().unwrap_or_default();
        (0..partitions).map(move |partition| (topic, partition))
    });
    let free = all
        .filter(|&(topic, partition)| !taken.contains(topic, partition))
        .collect();
    (given, free)
}

/// All read the same: each has its share, and those who have one more than it keep that as long as there are such places.
fn even_out(given: &mut [Partitions], mut free: Vec<(TopicId, i32)>) {
    let total: usize = given.iter().map(Partitions::len).sum::<usize>() + free.len();
    let (share, mut more) = (total / given.len(), total % given.len());
    for kept in given.iter_mut() {
        let mut quota = share;
        if kept.len() > share && more > 0 {
            more -= 1;
            quota += 1;
        }
        let surplus: Vec<(TopicId, i32)> = kept.iter().skip(quota).collect();
        for (topic, partition) in surplus {
            kept.remove(topic, partition);
            free.push((topic, partition));
        }
    }
    free.sort_unstable();
    let mut free = free.into_iter();
    for kept in given.iter_mut() {
        let mut quota = share;
        if kept.len() <= share && more > 0 {
            more -= 1;
            quota += 1;
        }
        let missing = quota.saturating_sub(kept.len());
        kept.extend(free.by_ref().take(missing));
    }
}

/// What is free goes to whoever of its readers has least; the topics with the fewest readers first, because others have more
/// of a choice later.
fn give_out(question: &Question<'_>, given: &mut [Partitions], mut free: Vec<(TopicId, i32)>) {
    let readers = question.readers_of_topics();
    let choices = |topic: &TopicId| readers.get(topic).map_or(0, Vec::len);
    free.sort_by_key(|&(topic, partition)| (choices(&topic), topic, partition));
    let mut sizes: Vec<usize> = given.iter().map(Partitions::len).collect();
    let mut by_size: BTreeSet<(usize, usize)> = BTreeSet::new();
    let mut present = None;
    for (topic, partition) in free {
        let Some(of) = readers.get(&topic) else {
            continue;
        };
        if present != Some(topic) {
            present = Some(topic);
            by_size = of.iter().map(|&place| (sizes[place], place)).collect();
        }
        let Some((size, place)) = by_size.pop_first() else {
            continue;
        };
        given[place].insert(topic, partition);
        sizes[place] = size + 1;
        by_size.insert((size + 1, place));
    }
}

/// Within each topic, partitions move from who has most to who has least, until no reader of it has two more than another. Each
/// move makes them more equal, so that it ends; the rounds over all topics are bounded besides, and what is left uneven then
/// stays so until the next change.
fn balance(question: &Question<'_>, given: &mut [Partitions]) {
    let readers = question.readers_of_topics();
    let mut sizes: Vec<usize> = given.iter().map(Partitions::len).collect();
    for _ in 0..=readers.len().min(MAX_ROUNDS) {
        let mut moved = false;
        for (&topic, of) in &readers {
            moved |= balance_topic(topic, of, given, &mut sizes);
        }
        if !moved {
            return;
        }
    }
}

/// Times that all topics are looked at.
const MAX_ROUNDS: usize = 16;

fn balance_topic(
    topic: TopicId,
    readers: &[usize],
    given: &mut [Partitions],
    sizes: &mut [usize],
) -> bool {
    let mut owned: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
    for &place in readers {
        let mine = given[place].topics().find(|&(of, _)| of == topic);
        if let Some((_, mine)) = mine {
            owned.insert(place, mine.iter().copied().collect());
        }
    }
    let mut all: BTreeSet<(usize, usize)> = readers.iter().map(|&r| (sizes[r], r)).collect();
    let mut owners: BTreeSet<(usize, usize)> = owned.keys().map(|&r| (sizes[r], r)).collect();
    let mut moved = false;
    while let (Some(&(most, from)), Some(&(least, to))) = (owners.last(), all.first()) {
        if most < least + 2 {
            break;
        }
        owners.remove(&(most, from));
        let Some(mine) = owned.get_mut(&from) else {
            continue;
        };
        let Some(partition) = mine.pop() else {
            continue;
        };
        let is_left = !mine.is_empty();
        given[from].remove(topic, partition);
        given[to].insert(topic, partition);
        owned.entry(to).or_default().push(partition);
        all.remove(&(most, from));
        all.remove(&(least, to));
        owners.remove(&(least, to));
        sizes[from] = most - 1;
        sizes[to] = least + 1;
        all.insert((most - 1, from));
        all.insert((least + 1, to));
        owners.insert((least + 1, to));
        if is_left {
            owners.insert((most - 1, from));
        }
        moved = true;
    }
    moved
}
