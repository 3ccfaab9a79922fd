//! When records are due at a rate that does not care for acknowledgements.
//!
//! The timer of the runtime has a grain of 1 ms, which is as long as what is measured. So a thread of its own sleeps, with the
//! grain of the system.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the thread sleeps at most: it looks so often whether it is to end.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// Lets one record after the other go when it is due. Dropping it is not enough: the token ends its thread.
#[derive(Debug)]
pub(super) struct Pacer {
    rate: u64,
    begun: Instant,
    due: Arc<Semaphore>,
    next: AtomicU64,
}

impl Pacer {
    /// `rate` records a second, at least one, from now until `stop`.
    pub(super) fn start(rate: u64, stop: CancellationToken) -> io::Result<Arc<Pacer>> {
        let pacer = Arc::new(Pacer {
            rate: rate.max(1),
            begun: Instant::now(),
            due: Arc::new(Semaphore::new(0)),
            next: AtomicU64::new(0),
        });
        let its = Arc::clone(&pacer);
        std::thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || its.let_go(&stop))?;
        Ok(pacer)
    }

    fn let_go(&self, stop: &CancellationToken) {
        let mut gone = 0;
        while !stop.is_cancelled() {
            let due = due_by(self.rate, self.begun.elapsed());
            // What nobody takes is kept: it is late then, and counts as that.
            self.due.add_permits((due - gone) as usize);
            gone = due;
            let until_next = due_at(self.rate, gone).saturating_sub(self.begun.elapsed());
            std::thread::sleep(until_next.min(LONGEST_SLEEP));
        }
    }

    /// Waits for the next record's time and returns it, as the moment for which it was meant: those who come late find it in the
    /// past.
    pub(super) async fn next(&self) -> Instant {
        // It is never closed.
        if let Ok(permit) = self.due.acquire().await {
            permit.forget();
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.begun + due_at(self.rate, number)
    }

    /// The moments for which those records were meant that were due by `until` and that nobody took. To be asked when nobody takes
    /// any more.
    pub(super) fn left(&self, until: Instant) -> impl Iterator<Item = Instant> {
        let due = due_by(self.rate, until.saturating_duration_since(self.begun));
        let taken = self.next.load(Ordering::Relaxed);
        (taken..due).map(|number| self.begun + due_at(self.rate, number))
    }
}

/// How many records are due by a time since the start, at which the first is.
fn due_by(rate: u64, time: Duration) -> u64 {
    let passed = time.as_nanos() * u128::from(rate) / 1_000_000_000;
    u64::try_from(passed).unwrap_or(u64::MAX - 1) + 1
}

/// When a record, counted from 0, is due.
fn due_at(rate: u64, number: u64) -> Duration {
    let nanos = u128::from(number) * 1_000_000_000;
    // Up, so that at this time it is due.
    let nanos = nanos.div_ceil(u128::from(rate));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_due_at_even_distances() {
        for rate in [1, 3, 7, 1000, 333_333] {
            for number in [0, 1, 2, 10, 1_000_003] {
                let at = due_at(rate, number);
                assert_eq!(due_by(rate, at), number + 1, "{number} of {rate}");
                if number > 0 {
                    let before = at - Duration::from_nanos(1);
                    assert_eq!(due_by(rate, before), number, "{number} of {rate}");
                }
            }
        }
        assert_eq!(due_at(1000, 2500), Duration::from_millis(2500));
    }

    #[tokio::test]
    async fn who_comes_late_is_told_when_it_should_have_been() {
        let stop = CancellationToken::new();
        let pacer = Pacer::start(1000, stop.clone()).unwrap();
        let begun = pacer.begun;
        // Nobody takes the first records in time, and yet each has its own.
        while begun.elapsed() < Duration::from_millis(20) {
            tokio::task::yield_now().await;
        }
        for number in 0..10 {
            assert_eq!(pacer.next().await - begun, Duration::from_millis(number));
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn what_was_due_and_nobody_took_is_left_with_its_time() {
        let stop = CancellationToken::new();
        let pacer = Pacer::start(1000, stop.clone()).unwrap();
        let begun = pacer.begun;
        for _ in 0..3 {
            pacer.next().await;
        }
        stop.cancel();
        let left: Vec<_> = pacer.left(begun + Duration::from_millis(6)).collect();
        let expected = [3, 4, 5, 6].map(|ms| begun + Duration::from_millis(ms));
        assert_eq!(left, expected);
        assert_eq!(pacer.left(begun).count(), 0, "none of it was due by then");
    }
}
