//! How long something takes, in the mean of about so many of the latest.

use std::time::Duration;

/// The mean of about `LATEST` of them, of which the newer ones count for more; zero before the first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MeanTime<const LATEST: u32>(Duration);

impl<const LATEST: u32> MeanTime<LATEST> {
    /// One took so long.
    pub(super) fn took(&mut self, time: Duration) {
        self.0 = (self.0 * (LATEST - 1) + time) / LATEST;
    }

    pub(super) fn get(self) -> Duration {
        self.0
    }
}
