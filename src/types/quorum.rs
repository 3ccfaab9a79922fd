//! Quorum arithmetic. It imports nothing, so that it can be read and tested on its own.
//!
//! `n` is the size of the in-sync set (ISR), `m` is `min.insync.replicas`. A commit quorum and an election quorum of the
//! same ISR always share a replica: `commit_quorum + election_quorum = n + 1`.

/// How many ISR members, leader included, must hold a record durably before it is committed:
/// `min(n, max(m, n/2 + 1))`.
///
/// More than half of the ISR, so that any two commit quorums meet; at least `m`, so that the promise of
/// `min.insync.replicas` holds; never more than there are. Zero only for an empty ISR.
pub const fn commit_quorum(n: usize, m: usize) -> usize {
    let majority = n / 2 + 1;
    let wanted = if m > majority { m } else { majority };
    if wanted < n { wanted } else { n }
}

/// How many ISR members must answer a fence before a leader may be picked from their logs: `n - q + 1`, at least 1. The
/// smallest number of members that meets every commit quorum.
pub const fn election_quorum(n: usize, m: usize) -> usize {
    let quorum = n - commit_quorum(n, m) + 1;
    if quorum > 1 { quorum } else { 1 }
}

/// The default of `min.insync.replicas`: a majority of the replication factor.
pub const fn default_min_insync(replication_factor: usize) -> usize {
    replication_factor / 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_replicas_commit_on_the_fastest_two() {
        assert_eq!(commit_quorum(3, 2), 2);
        assert_eq!(election_quorum(3, 2), 2);
    }

    #[test]
    fn every_commit_quorum_meets_every_election_quorum_and_every_other_commit_quorum() {
        for n in 1..=9 {
            for m in 1..=9 {
                let q = commit_quorum(n, m);
                assert!(q >= 1 && q <= n);
                assert!(q + election_quorum(n, m) > n, "n {n} m {m}");
                assert!(2 * q > n, "n {n} m {m}");
                if n >= m {
                    assert!(q >= m, "n {n} m {m}");
                }
            }
        }
    }

    #[test]
    fn one_replica_is_its_own_quorum() {
        assert_eq!(commit_quorum(1, 1), 1);
        assert_eq!(election_quorum(1, 1), 1);
        assert_eq!(default_min_insync(1), 1);
        assert_eq!(default_min_insync(3), 2);
        assert_eq!(default_min_insync(5), 3);
    }
}
