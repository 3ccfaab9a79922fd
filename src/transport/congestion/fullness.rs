//! When the window was full: what was sent then tells whether a larger one would do.
//!
//! An application that sends in bursts fills the window for a moment and then waits. The shortest round trip of a round is then
//! that of a burst's first packets, which meet no queue however large the window is; whether the path can take bursts of this
//! size is what their last packets tell.

use std::time::Instant;

/// A window is full where this part of it is in flight.
const FULL_PART: f64 = 0.9;
/// The spans that are remembered. A burst is one; what is older than so many is not asked for any more.
const SPANS: usize = 8;

/// In which spans of time the window was full.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fullness {
    /// Bytes, as of the latest packet that was sent or acknowledged.
    in_flight: u64,
    /// Since when it is full.
    since: Option<Instant>,
    /// When it was, in no order.
    spans: [Option<(Instant, Instant)>; SPANS],
    next: usize,
}

impl Fullness {
    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64, window: u64) {
        self.in_flight += bytes;
        if self.is_full(window) && self.since.is_none() {
            self.since = Some(now);
        }
    }

    pub(super) fn on_end_acks(&mut self, now: Instant, in_flight: u64, window: u64) {
        self.in_flight = in_flight;
        if !self.is_full(window)
            && let Some(since) = self.since.take()
        {
            self.spans[self.next] = Some((since, now));
            self.next = (self.next + 1) % SPANS;
        }
    }

    /// Whether it was full when something was sent at that time.
    pub(super) fn was_full(&self, sent: Instant) -> bool {
        self.since.is_some_and(|since| sent >= since)
            || self
                .spans
                .iter()
                .flatten()
                .any(|(from, until)| (*from..=*until).contains(&sent))
    }

    fn is_full(&self, window: u64) -> bool {
        self.in_flight as f64 >= FULL_PART * window as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_is_known_of_what_was_sent_while_the_window_was_full() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut fullness = Fullness::default();
        fullness.on_sent(at(0), 800, 1000);
        fullness.on_sent(at(1), 100, 1000);
        fullness.on_sent(at(2), 100, 1000);
        assert!(!fullness.was_full(at(0)));
        assert!(fullness.was_full(at(1)) && fullness.was_full(at(2)));
        fullness.on_end_acks(at(20), 500, 1000);
        assert!(fullness.was_full(at(2)) && !fullness.was_full(at(21)));
        // The same bytes do not fill a larger window.
        fullness.on_sent(at(30), 500, 2000);
        assert!(!fullness.was_full(at(30)));
        for burst in 1..=SPANS as u64 {
            fullness.on_sent(at(100 * burst), 1000, 1000);
            fullness.on_end_acks(at(100 * burst + 20), 0, 1000);
        }
        assert!(!fullness.was_full(at(2)));
        assert!(fullness.was_full(at(100)) && fullness.was_full(at(800)));
    }
}
