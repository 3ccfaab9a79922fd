//! How often a producer looks for what is to be sent.
//!
//! A pass over the partitions costs this process and each node on the way about the same, whether it brings the batch of one of them
//! or of a hundred: a few wake-ups, system calls and packets. Where somebody on the way has more to do than it can, passes come a
//! small part of an answer's time apart, and what became due meanwhile shares their price. Distance is no reason for that: it makes
//! every answer late, and where packets are lost, many small batches that go by themselves are better than a few large ones
//! together. The two are told apart by the answer that took the shortest time.

use std::time::Duration;

use tokio::time::Instant;

use super::hold::HOLD_BELOW;
use super::mean_time::MeanTime;

/// Passes are so small a part of an answer's time apart.
const PART: u32 = 16;
/// And no longer than this.
const LONGEST: Duration = Duration::from_millis(8);
/// That time is the mean of about so many answers.
const ANSWERS: u32 = 16;
/// Somebody is overloaded where an answer takes so many times the shortest. With 5 % of packets lost, distance makes it three times.
const OVERLOAD: u32 = 4;
/// The shortest time is that of the last one or two such periods: leaders move.
const PERIOD: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Passes {
    answers_take: MeanTime<ANSWERS>,
    /// The shortest in this period, with when it began, and in the one before.
    shortest: Option<(Instant, Duration)>,
    shortest_before: Option<Duration>,
    /// When the latest pass that sent something began.
    latest: Option<Instant>,
}

impl Passes {
    /// An answer came so long after its request was sent.
    pub(super) fn answered(&mut self, now: Instant, took: Duration) {
        self.answers_take.took(took);
        match &mut self.shortest {
            Some((began, shortest)) if now.saturating_duration_since(*began) < PERIOD => {
                *shortest = took.min(*shortest);
            }
            period => {
                self.shortest_before = period.replace((now, took)).map(|(_, shortest)| shortest);
            }
        }
    }

    /// A pass began, and sent something.
    pub(super) fn sent(&mut self, now: Instant) {
        self.latest = Some(now);
    }

    /// Before when there is to be no other; `None` where there may be one now. With nothing on its way there always may: who sends
    /// one record at a time waits for nothing.
    pub(super) fn not_before(&self, now: Instant, in_flight: usize) -> Option<Instant> {
        if in_flight == 0 || !self.is_overloaded() {
            return None;
        }
        let next = self.latest? + (self.answers_take.get() / PART).min(LONGEST);
        (now < next).then_some(next)
    }

    fn is_overloaded(&self) -> bool {
        let this_period = self.shortest.map(|(_, shortest)| shortest);
        let shortest = this_period.into_iter().chain(self.shortest_before).min();
        shortest.is_some_and(|shortest| {
            self.answers_take.get() > HOLD_BELOW.max(shortest.saturating_mul(OVERLOAD))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// One answer that took `first`, many that took `then`, and a pass.
    fn after_answers(first: Duration, then: Duration) -> (Passes, Instant) {
        let mut passes = Passes::default();
        let now = Instant::now();
        passes.answered(now, first);
        for _ in 0..200 {
            passes.answered(now, then);
        }
        passes.sent(now);
        (passes, now)
    }

    #[test]
    fn passes_are_a_part_of_an_answers_time_apart_under_overload() {
        let (passes, now) = after_answers(ms(2), ms(64));
        let next = passes.not_before(now, 1).unwrap();
        assert!((ms(3)..=ms(4)).contains(&(next - now)), "{:?}", next - now);
        assert_eq!(passes.not_before(next, 1), None);
        let (passes, now) = after_answers(ms(2), Duration::from_secs(5));
        assert_eq!(passes.not_before(now, 1), Some(now + LONGEST));
    }

    #[test]
    fn distance_is_no_overload() {
        let (passes, now) = after_answers(ms(41), ms(41));
        assert_eq!(passes.not_before(now, 100), None);
        let (passes, now) = after_answers(ms(41), ms(120));
        assert_eq!(passes.not_before(now, 100), None);
        let (passes, now) = after_answers(ms(41), ms(200));
        assert!(passes.not_before(now, 100).is_some());
    }

    #[test]
    fn nothing_waits_where_answers_come_soon_or_nothing_is_on_its_way() {
        let (passes, now) = after_answers(ms(1), HOLD_BELOW);
        assert_eq!(passes.not_before(now, 100), None);
        let (passes, now) = after_answers(ms(2), ms(64));
        assert_eq!(passes.not_before(now, 0), None);
        // One slow answer of many is no overload.
        let (mut passes, now) = after_answers(ms(1), ms(1));
        passes.answered(now, ms(100));
        assert_eq!(passes.not_before(now, 100), None);
        assert_eq!(Passes::default().not_before(now, 100), None);
    }

    #[test]
    fn the_shortest_answer_is_forgotten_in_time() {
        let (mut passes, now) = after_answers(ms(2), ms(64));
        let is_overloaded = |passes: &mut Passes, at: Instant| {
            passes.answered(at, ms(64));
            passes.sent(at);
            passes.not_before(at, 100).is_some()
        };
        assert!(is_overloaded(&mut passes, now + PERIOD));
        assert!(!is_overloaded(&mut passes, now + 2 * PERIOD));
    }
}
