//! The process's monotonic clock, as the protocol rooms take it.

use std::time::{Duration, Instant};

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
