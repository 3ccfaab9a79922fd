//! Nodes whose clocks are off, as their heartbeats show it. It is for the log: nothing is ever decided by a wall clock.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::metadata::MAX_NODES;
use crate::types::NodeId;

/// Clocks that differ by more are wrong. A heartbeat is on its way for some of it, at most a few seconds.
const WRONG_MS: u64 = 60_000;
/// What stays wrong is told again after this long.
const TELL_EVERY: Duration = Duration::from_secs(300);

/// What was told of whom. Bounded by the nodes that a cluster may have.
#[derive(Debug, Default)]
pub(super) struct ClockSkews {
    told: BTreeMap<NodeId, Duration>,
}

/// Something to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SkewNews {
    /// By so many ms the other clock is ahead of this one, or behind it where this is negative.
    Off(i64),
    /// It was off, and is no longer.
    Right,
}

impl ClockSkews {
    /// `node` said what its wall clock is, at `now` of the monotonic clock and `own_unix_ms` of this end's.
    pub(super) fn handle(
        &mut self,
        node: NodeId,
        their_unix_ms: i64,
        own_unix_ms: i64,
        now: Duration,
    ) -> Option<SkewNews> {
        let off = their_unix_ms.saturating_sub(own_unix_ms);
        if off.unsigned_abs() <= WRONG_MS {
            return self.told.remove(&node).map(|_| SkewNews::Right);
        }
        let is_due = match self.told.get(&node) {
            Some(at) => now.saturating_sub(*at) >= TELL_EVERY,
            None => self.told.len() < MAX_NODES,
        };
        if !is_due {
            return None;
        }
        self.told.insert(node, now);
        Some(SkewNews::Off(off))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_now_and_then_and_once_when_it_is_right_again() {
        let node = NodeId::new(2).unwrap();
        let at = Duration::from_secs;
        let mut skews = ClockSkews::default();
        assert_eq!(skews.handle(node, 60_000, 0, at(0)), None);
        let hour = 3_600_000;
        assert_eq!(
            skews.handle(node, hour, 0, at(1)),
            Some(SkewNews::Off(hour))
        );
        assert_eq!(skews.handle(node, hour, 0, at(2)), None);
        assert_eq!(
            skews.handle(node, -hour, 0, at(301)),
            Some(SkewNews::Off(-hour))
        );
        assert_eq!(skews.handle(node, 0, 0, at(302)), Some(SkewNews::Right));
        assert_eq!(skews.handle(node, 0, 0, at(303)), None);
        assert_eq!(
            skews.handle(node, i64::MIN, hour, at(304)),
            Some(SkewNews::Off(i64::MIN))
        );
    }
}
