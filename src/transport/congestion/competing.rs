//! While others fill the queue: their own way of sharing it.

use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;

/// A path that loses less than this of itself gives no credit: each loss may be congestion.
const CREDIT_ABOVE: f64 = 0.001;
/// Credit is given for this multiple of what the path loses, since losses come in clusters.
const CREDIT_FACTOR: f64 = 1.5;
/// Credit never exceeds what the path loses of a window, and this many packets.
const CREDIT_PACKETS: f64 = 16.0;

/// quinn's CUBIC, told only of losses beyond what the path loses whatever is sent.
pub(super) struct Competing {
    cubic: Box<dyn Controller>,
    calm_epochs: u32,
    mtu: u64,
    /// Bytes that the path may lose before a loss counts as a sign of congestion.
    credit: f64,
}

impl Competing {
    /// Goes on with `window` bytes.
    pub(super) fn new(now: Instant, window: u64, mtu: u64) -> Competing {
        let mut config = CubicConfig::default();
        // A fresh CUBIC would double its window each round. A first congestion event ends that, and takes 0.7 of it.
        config.initial_window(window * 10 / 7);
        let mut cubic = Arc::new(config).build(now, u16::try_from(mtu).unwrap_or(u16::MAX));
        cubic.on_congestion_event(now, now, false, mtu);
        Competing {
            cubic,
            calm_epochs: 0,
            mtu,
            credit: 0.0,
        }
    }

    pub(super) fn window(&self) -> u64 {
        self.cubic.window()
    }

    /// `base_loss` is what the path loses of itself, 0 to 1.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
        base_loss: f64,
    ) {
        if base_loss > CREDIT_ABOVE {
            let most = CREDIT_PACKETS * self.mtu as f64 + base_loss * self.window() as f64;
            self.credit = (self.credit + CREDIT_FACTOR * base_loss * bytes as f64).min(most);
        }
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    /// A loss, or with 0 bytes a mark.
    pub(super) fn on_congestion_event(&mut self, now: Instant, sent: Instant, lost_bytes: u64) {
        if lost_bytes > 0 && self.credit >= lost_bytes as f64 {
            self.credit -= lost_bytes as f64;
            return;
        }
        self.credit = 0.0;
        self.cubic.on_congestion_event(now, sent, false, lost_bytes);
    }

    pub(super) fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.cubic.on_mtu_update(new_mtu);
    }

    /// Ends an epoch, in which there was no queue if it was `calm`. Returns how many in a row were.
    pub(super) fn epoch(&mut self, calm: bool) -> u32 {
        self.calm_epochs = if calm { self.calm_epochs + 1 } else { 0 };
        self.calm_epochs
    }
}

impl Clone for Competing {
    fn clone(&self) -> Competing {
        Competing {
            cubic: self.cubic.clone_box(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_with_the_window_that_there_was_and_yields_to_loss_and_marks() {
        let now = Instant::now();
        let mut competing = Competing::new(now, 700_000, 1200);
        let window = competing.window();
        assert!((690_000..=700_000).contains(&window), "{window}");
        let later = now + std::time::Duration::from_secs(1);
        competing.on_congestion_event(later, later, 1200);
        let cut = competing.window();
        assert!(cut < window / 4 * 3, "{cut} of {window}");
        let later = later + std::time::Duration::from_secs(1);
        competing.on_congestion_event(later, later, 0);
        assert!(competing.clone().window() < cut);
    }

    #[test]
    fn credit_covers_the_paths_own_losses_only() {
        let now = Instant::now();
        let mut competing = Competing::new(now, 700_000, 1200);
        competing.credit = 2400.0;
        let window = competing.window();
        let later = now + std::time::Duration::from_secs(1);
        competing.on_congestion_event(later, later, 1200);
        competing.on_congestion_event(later, later, 1200);
        assert_eq!(competing.window(), window);
        competing.on_congestion_event(later, later, 1200);
        assert!(competing.window() < window);
    }
}
