//! The cluster's own topics, and where in them the state of a group or of a transactional id lives.

use super::PartitionIndex;

/// The internal topic that holds committed offsets and the groups' generations. Kafka's name for it.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// The internal topic that holds the state of transactions. Kafka's name for it.
pub const TRANSACTIONS_TOPIC: &str = "__transaction_state";

/// Whether a topic is the cluster's own: clients read it and neither write to it nor make or delete it.
pub fn is_internal(topic: &str) -> bool {
    matches!(topic, OFFSETS_TOPIC | TRANSACTIONS_TOPIC)
}

/// The partition of an internal topic that holds a group or a transactional id, of `partitions` in all. Kafka's rule, so that
/// its tools look in the right place: the absolute value of Java's hash of the name, modulo the partitions.
pub fn partition_of(name: &str, partitions: u32) -> PartitionIndex {
    // `i32::MIN` has no absolute value; Kafka takes 0.
    let hash = java_hash(name).checked_abs().unwrap_or(0);
    PartitionIndex(hash.unsigned_abs() % partitions.max(1))
}

/// `String.hashCode` of Java: over UTF-16 code units.
fn java_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0_i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_javas() {
        assert_eq!(java_hash(""), 0);
        assert_eq!(java_hash("abc"), 96_354);
        // Known to collide in Java.
        assert_eq!(java_hash("Aa"), java_hash("BB"));
        // Outside the basic plane a character is two units.
        assert_eq!(java_hash("😀"), 0xd83d * 31 + 0xde00);
        assert_eq!(java_hash("polygenelubricants"), i32::MIN);
    }

    #[test]
    fn every_name_has_a_partition() {
        assert_eq!(partition_of("abc", 50), PartitionIndex(4));
        assert_eq!(partition_of("polygenelubricants", 50), PartitionIndex(0));
        assert_eq!(partition_of("abc", 0), PartitionIndex(0));
    }
}
