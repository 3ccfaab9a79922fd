//! Which partition a record goes to.

use std::collections::HashMap;

use crate::client::backoff::Random;
use crate::client::metadata::TopicView;
use crate::types::{PartitionIndex, TopicName};

/// How records without an explicit partition are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partitioning {
    /// By the key's murmur2 hash where a record has a key, exactly as Kafka's Java client does it, so that both put the
    /// same key into the same partition; sticky where it has none.
    #[default]
    KeyHash,
    /// Sticky for all: one partition at random until its batch is closed, then another. Full batches, even load.
    Sticky,
}

/// Keeps the sticky choice per topic.
#[derive(Debug)]
pub(super) struct Partitioner {
    partitioning: Partitioning,
    sticky: HashMap<TopicName, Sticky>,
    random: Random,
}

#[derive(Clone, Copy, Debug)]
struct Sticky {
    partition: PartitionIndex,
    /// How many batches of the partition were closed when it was chosen: when there are more, another is chosen.
    closed_batches: u64,
}

impl Partitioner {
    pub(super) fn new(partitioning: Partitioning, seed: u64) -> Partitioner {
        Partitioner {
            partitioning,
            sticky: HashMap::new(),
            random: Random::new(seed),
        }
    }

    /// The partition for a record. `topic` has at least one; `closed_batches` counts a partition's closed batches.
    pub(super) fn choose(
        &mut self,
        topic: &TopicView,
        key: Option<&[u8]>,
        closed_batches: impl Fn(PartitionIndex) -> u64,
    ) -> PartitionIndex {
        if let (Partitioning::KeyHash, Some(key)) = (self.partitioning, key) {
            return partition_of_key(key, topic.partitions.len() as u32);
        }
        let current = self.sticky.get(&topic.name).copied();
        if let Some(current) = current
            && closed_batches(current.partition) == current.closed_batches
            && (current.partition.0 as usize) < topic.partitions.len()
        {
            return current.partition;
        }
        let partition = self.another(topic, current.map(|current| current.partition));
        let sticky = Sticky {
            partition,
            closed_batches: closed_batches(partition),
        };
        self.sticky.insert(topic.name.clone(), sticky);
        partition
    }

    /// A random partition other than `last`, one with a leader if any has one.
    fn another(&mut self, topic: &TopicView, last: Option<PartitionIndex>) -> PartitionIndex {
        let random = self.random.next() as usize;
        let partitions = &topic.partitions;
        let pick = |wanted: &dyn Fn(&&crate::client::PartitionView) -> bool| {
            let count = partitions.iter().filter(wanted).count();
            let turn = random.checked_rem(count)?;
            partitions.iter().filter(wanted).nth(turn)
        };
        pick(&|p| p.leader.is_some() && Some(p.partition) != last)
            .or_else(|| pick(&|p| p.leader.is_some()))
            .or_else(|| pick(&|_| true))
            .map_or(PartitionIndex(0), |partition| partition.partition)
    }
}

/// The Java client's rule: the hash without its sign bit, modulo the number of partitions.
fn partition_of_key(key: &[u8], partitions: u32) -> PartitionIndex {
    let positive = murmur2(key) & 0x7fff_ffff;
    PartitionIndex(positive.checked_rem(partitions).unwrap_or(0))
}

/// MurmurHash2, 32 bits, with the seed that Kafka's `Utils.murmur2` uses.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    let mut h = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::client::ClusterView;
    use crate::client::metadata::tests::response;

    /// The values that Kafka's own unit test of `Utils.murmur2` expects.
    #[test]
    fn murmur2_is_kafkas() {
        for (data, hash) in [
            (&b"21"[..], -973_932_308_i32),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            (b"abc", 479_470_107),
        ] {
            assert_eq!(murmur2(data) as i32, hash, "{data:?}");
        }
        // -973932308 without its sign bit is 1173551340.
        assert_eq!(partition_of_key(b"21", 100), PartitionIndex(40));
    }

    fn topic(leaders: &[(i32, i32)]) -> TopicView {
        let mut view = ClusterView::default();
        let now = tokio::time::Instant::now();
        view.merge(&response(&["a:1"], "t", leaders), now);
        view.topics.into_values().next().unwrap()
    }

    #[test]
    fn a_sticky_partition_lasts_as_long_as_its_batch() {
        let topic = topic(&[(1, 1), (-1, 1), (1, 1), (1, 1)]);
        let mut partitioner = Partitioner::new(Partitioning::KeyHash, 3);
        let closed = RefCell::new([0u64; 4]);
        let mut seen = Vec::new();
        for _ in 0..200 {
            let count = |p: PartitionIndex| closed.borrow()[p.0 as usize];
            let first = partitioner.choose(&topic, None, count);
            assert_eq!(partitioner.choose(&topic, None, count), first);
            assert_ne!(Some(&first), seen.last(), "another one after each batch");
            closed.borrow_mut()[first.0 as usize] += 1;
            seen.push(first);
        }
        for partition in [0, 2, 3] {
            assert!(seen.contains(&PartitionIndex(partition)), "{partition}");
        }
        assert!(!seen.contains(&PartitionIndex(1)), "it has no leader");
    }

    #[test]
    fn keys_are_ignored_only_when_asked() {
        let topic = topic(&[(1, 1); 10]);
        let mut partitioner = Partitioner::new(Partitioning::KeyHash, 3);
        let by_key = partitioner.choose(&topic, Some(b"21"), |_| 0);
        assert_eq!(by_key, PartitionIndex(0));
        let mut partitioner = Partitioner::new(Partitioning::Sticky, 3);
        let keys = (0..50u8).map(|key| partitioner.choose(&topic, Some(&[key]), |_| 0));
        assert_eq!(keys.collect::<std::collections::HashSet<_>>().len(), 1);
    }
}
