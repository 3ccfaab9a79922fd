//! Waiting for the end of a producer's last transaction, which its client need not wait for.

use std::time::Duration;

use tokio::time::Instant;

/// How long a coordinator is asked again on a client's behalf: most often the transaction before is complete, or another partition
/// added, before the client would have heard of it and asked again. Kafka has 100 ms for it
/// (`add.partitions.to.txn.retry.backoff.max.ms`). The client's connection waits meanwhile.
const WAITED: Duration = Duration::from_millis(200);
/// The first pause; it doubles up to [`MAX_PAUSE`]. Up to a half of it is taken off at random.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(40);

/// The attempts of one request.
pub(super) struct Busy {
    by: Instant,
    pause: Duration,
}

impl Busy {
    /// Nothing is waited for after `deadline`.
    pub(super) fn new(deadline: Instant) -> Busy {
        Busy {
            by: deadline.min(Instant::now() + WAITED),
            pause: FIRST_PAUSE,
        }
    }

    /// Waits before the next attempt. False, at once, where there is no time for one. `random` is any number.
    pub(super) async fn wait(&mut self, random: u64) -> bool {
        let off = (self.pause / 2).mul_f64((random % 1024) as f64 / 1024.0);
        let next = Instant::now() + self.pause - off;
        if next >= self.by {
            return false;
        }
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        tokio::time::sleep_until(next).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock is the test's own.
    #[tokio::test(start_paused = true)]
    async fn there_are_a_few_attempts_and_an_end() {
        let begin = Instant::now();
        for (random, attempts) in [(0, 5..8), (1023, 8..14)] {
            let begin = Instant::now();
            let mut busy = Busy::new(begin + Duration::from_secs(5));
            let mut tried = 0;
            while busy.wait(random).await {
                tried += 1;
            }
            assert!(attempts.contains(&tried), "{tried}");
            assert!(begin.elapsed() < WAITED);
        }
        let late = Instant::now();
        let mut busy = Busy::new(late + Duration::from_millis(1));
        assert!(!busy.wait(0).await);
        assert_eq!(late.elapsed(), Duration::ZERO);
        assert!(begin.elapsed() > WAITED);
    }
}
