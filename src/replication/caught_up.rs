//! When a follower last had everything.

use std::collections::VecDeque;

use crate::types::{LogPosition, MonotonicTime};

/// Where the leader's log ended, and until when: what a follower's *caught-up time* is read from. That is the latest time, no
/// later than the arrival of its last message, at which the leader's log ended at or below what the follower holds durably.
///
/// A measure of lag in time, which unlike a count of records says the same of a busy and of an idle partition, and which
/// grows by itself when a follower falls silent.
#[derive(Debug)]
pub(super) struct EndTimes {
    /// Ends in rising order, each with the last time at which it was the end. Never more than [`EndTimes::MAX_ENDS`].
    ends: VecDeque<(LogPosition, MonotonicTime)>,
}

impl EndTimes {
    /// The most ends that are remembered. Noted every 50 ms they reach back further than `replica.lag.time.max.ms`; a follower
    /// that is further behind keeps the caught-up time that it has.
    pub(super) const MAX_ENDS: usize = 256;

    pub(super) fn new() -> EndTimes {
        EndTimes {
            ends: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The log ends at `end` now.
    pub(super) fn note(&mut self, now: MonotonicTime, end: LogPosition) {
        match self.ends.back_mut() {
            Some((known, until)) if *known == end => *until = now,
            _ => {
                if self.ends.len() == Self::MAX_ENDS {
                    self.ends.pop_front();
                }
                self.ends.push_back((end, now));
            }
        }
    }

    /// The caught-up time of a follower that holds everything up to `durable` and was last heard at `heard`. `end` is where
    /// the log ends now. `None` if it was not caught up at any time that is remembered.
    pub(super) fn caught_up_at(
        &self,
        durable: LogPosition,
        end: LogPosition,
        heard: MonotonicTime,
    ) -> Option<MonotonicTime> {
        if durable >= end {
            return Some(heard);
        }
        let after = self.ends.partition_point(|&(end, _)| end <= durable);
        let (_, until) = self.ends.get(after.checked_sub(1)?)?;
        Some((*until).min(heard))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::{LeaderEpoch, Offset};

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::ZERO + Duration::from_millis(millis)
    }

    fn position(offset: u64) -> LogPosition {
        LogPosition::new(Offset::new(offset).unwrap(), LeaderEpoch::new(1).unwrap())
    }

    #[test]
    fn an_idle_follower_that_is_heard_stays_caught_up() {
        let mut ends = EndTimes::new();
        ends.note(at(0), position(5));
        ends.note(at(9000), position(5));
        assert_eq!(
            ends.caught_up_at(position(5), position(5), at(8950)),
            Some(at(8950))
        );
    }

    #[test]
    fn a_silent_follower_is_caught_up_no_later_than_it_was_heard() {
        let mut ends = EndTimes::new();
        ends.note(at(0), position(5));
        ends.note(at(9000), position(5));
        let silent_since = at(100);
        assert_eq!(
            ends.caught_up_at(position(5), position(6), silent_since),
            Some(silent_since)
        );
    }

    #[test]
    fn a_follower_behind_was_caught_up_when_the_log_ended_where_its_own_does() {
        let mut ends = EndTimes::new();
        for i in 0..10 {
            ends.note(at(100 * i), position(10 * i));
        }
        let caught_up = |offset| ends.caught_up_at(position(offset), position(95), at(950));
        assert_eq!(caught_up(0), Some(at(0)));
        assert_eq!(caught_up(40), Some(at(400)));
        assert_eq!(
            caught_up(49),
            Some(at(400)),
            "the log ended at 50 only later"
        );
        assert_eq!(caught_up(95), Some(at(950)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ends = EndTimes::new();
        for i in 0..10 * EndTimes::MAX_ENDS as u64 {
            ends.note(at(i), position(i));
        }
        assert_eq!(ends.ends.len(), EndTimes::MAX_ENDS);
        assert_eq!(ends.caught_up_at(position(7), position(9999), at(1)), None);
    }
}
