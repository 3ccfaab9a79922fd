//! The process's clocks: the monotonic one, as the protocol rooms take it, and the wall's.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::types::MonotonicTime;

/// Counts from the start of the process. Copies agree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
}

impl Clock {
    pub(super) fn start() -> Clock {
        Clock {
            started: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> MonotonicTime {
        self.at(Instant::now())
    }

    /// A point on the same clock; one before its start counts as its start.
    pub(super) fn at(&self, instant: Instant) -> MonotonicTime {
        MonotonicTime::ZERO + instant.saturating_duration_since(self.started)
    }

    pub(super) fn elapsed_since(&self, earlier: MonotonicTime) -> Duration {
        self.now().since(earlier)
    }
}

/// Milliseconds since 1970; 0 on a machine that believes it is earlier. For the age of records and offsets alone, never for a
/// timeout.
pub(super) fn wall_clock_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
