//! For how long one request is tried again.

use std::time::Duration;

use tokio::time::Instant;

use super::Client;
use super::error::ClientError;

/// The time that a request may take in all, with a pause between its attempts.
pub(super) struct Patience<'a> {
    client: &'a Client,
    start: Instant,
    timeout: Duration,
    failures: u32,
}

impl<'a> Patience<'a> {
    pub(super) fn new(client: &'a Client, timeout: Duration) -> Patience<'a> {
        Patience {
            client,
            start: Instant::now(),
            timeout,
            failures: 0,
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.elapsed())
    }

    /// An attempt has failed: waits until it is time for the next. False, at once, where the time would be over by then.
    pub(super) async fn pause(&mut self) -> bool {
        self.failures += 1;
        let wait = self.client.wait_after(self.failures);
        if self.elapsed() + wait >= self.timeout {
            return false;
        }
        tokio::time::sleep(wait).await;
        true
    }

    /// What is said of `what` when it is not tried again.
    pub(super) fn gave_up(&self, what: String, cause: ClientError) -> ClientError {
        ClientError::GaveUp {
            what,
            after: self.elapsed(),
            cause: Box::new(cause),
        }
    }
}
