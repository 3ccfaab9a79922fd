//! How long what is sent to a follower takes to be acknowledged.

use std::time::Duration;

use crate::types::MonotonicTime;

/// For how long a delivery is remembered at least, and half of for how long at most.
const REMEMBERED: Duration = Duration::from_secs(5);

/// The deliveries of one node, of all partitions together: what waits in one queue tells how long that queue is.
#[derive(Debug, Clone, Copy)]
pub struct Deliveries {
    /// When something that had been sent was last acknowledged.
    pub at: MonotonicTime,
    /// The longest that something was under way, in the present span of [`REMEMBERED`] and in the one before.
    longest: [Duration; 2],
    /// When the present span began.
    since: MonotonicTime,
}

impl Deliveries {
    pub(super) fn first(at: MonotonicTime, waited: Duration) -> Deliveries {
        Deliveries {
            at,
            longest: [waited, Duration::ZERO],
            since: at,
        }
    }

    /// Something was acknowledged at `at` that had been under way for so long.
    pub(super) fn add(&mut self, at: MonotonicTime, waited: Duration) {
        let passed = at.since(self.since);
        if passed > REMEMBERED {
            let [present, _] = self.longest;
            let before = if passed > 2 * REMEMBERED {
                Duration::ZERO
            } else {
                present
            };
            (self.longest, self.since) = ([Duration::ZERO, before], at);
        }
        self.at = self.at.max(at);
        self.longest[0] = self.longest[0].max(waited);
    }

    /// The longest that something was under way lately: between the last 5 and the last 10 seconds before the last delivery.
    pub fn longest(&self) -> Duration {
        let [present, before] = self.longest;
        present.max(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::ZERO + ms(millis)
    }

    #[test]
    fn the_longest_delivery_counts_until_it_is_some_seconds_old() {
        let mut deliveries = Deliveries::first(at(0), ms(40));
        deliveries.add(at(1000), ms(900));
        deliveries.add(at(2000), ms(3));
        assert_eq!(deliveries.longest(), ms(900));
        // It began a span.
        deliveries.add(at(5001), ms(3));
        assert_eq!(deliveries.longest(), ms(900), "of the span before");
        deliveries.add(at(10_002), ms(4));
        assert_eq!(deliveries.longest(), ms(4));
        assert_eq!(deliveries.at, at(10_002));
    }

    #[test]
    fn after_a_long_rest_nothing_of_what_was_is_left() {
        let mut deliveries = Deliveries::first(at(0), ms(3000));
        deliveries.add(at(60_000), ms(2));
        assert_eq!(deliveries.longest(), ms(2));
    }
}
