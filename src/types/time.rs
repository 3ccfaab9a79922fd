//! Time as an argument.

use std::ops::Add;
use std::time::Duration;

/// A point on a monotonic clock that someone else reads: microseconds since a moment of that clock's own choosing.
///
/// The protocol rooms never ask what time it is; they are told. A simulator hands them virtual time, the broker its
/// process clock. A wall clock never becomes one of these, so a step of the wall clock cannot move a timeout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonotonicTime(u64);

impl MonotonicTime {
    pub const ZERO: MonotonicTime = MonotonicTime(0);

    pub const fn from_micros(micros: u64) -> MonotonicTime {
        MonotonicTime(micros)
    }

    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero where it is not after it, so that no subtraction ever wraps.
    pub const fn since(self, earlier: MonotonicTime) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for MonotonicTime {
    type Output = MonotonicTime;

    /// Saturates at the end of the range, some 580,000 years on.
    fn add(self, later: Duration) -> MonotonicTime {
        let micros = u64::try_from(later.as_micros()).unwrap_or(u64::MAX);
        MonotonicTime(self.0.saturating_add(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_backwards_is_no_time_at_all() {
        let early = MonotonicTime::from_micros(5);
        let late = early + Duration::from_secs(1);
        assert_eq!(late.since(early), Duration::from_secs(1));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
