//! How long a batch waits behind others for more records.
//!
//! Every batch that is not sent by itself spares each node its price, so behind another one a short wait costs less than it gives.
//! With nothing on its way a batch goes at once: who sends one record at a time waits for nothing.

use std::time::Duration;

use super::mean_time::MeanTime;

/// The wait.
pub(super) const HOLD: Duration = Duration::from_millis(1);
/// Where answers take longer than this, there is none. That is distance: few records come in a millisecond of it, and where packets
/// are lost small batches are the better ones, since each lost packet holds up all the records of its batch.
pub(super) const HOLD_BELOW: Duration = Duration::from_millis(16);
/// An answer's time is the mean of about so many.
const ANSWERS: u32 = 8;

/// What is known of a partition's answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hold {
    answers_take: MeanTime<ANSWERS>,
}

impl Hold {
    /// An answer came so long after its batch was sent.
    pub(super) fn answered(&mut self, took: Duration) {
        self.answers_take.took(took);
    }

    /// How long a batch waits with so many before it on their way.
    pub(super) fn wait(self, in_flight: usize) -> Duration {
        if in_flight == 0 || self.answers_take.get() > HOLD_BELOW {
            return Duration::ZERO;
        }
        HOLD
    }
}
