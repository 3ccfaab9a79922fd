//! Whose queue it is that does not go away: this flow's, somebody else's, or nobody's because the route is longer.

use std::time::{Duration, Instant};

use super::{
    EXCESS_LOSS, Keel, Phase, RELAPSE_WITHIN, SPEED_MAX, STARTUP_LOSS, STEP_MAX, TRY_AGAIN,
};
use crate::transport::congestion::competing::Competing;
use crate::transport::congestion::rounds::Round;

/// Epochs in a row without a queue before the competitor counts as gone.
const CALM_EPOCHS: u32 = 20;
/// A window below this part of the one that competing ended with, within this time, is a relapse.
const RELAPSE_PART: f64 = 0.8;
/// For so long after a competition the same competitor is suspected first.
const COMPETED_WITHIN: Duration = Duration::from_secs(60);
/// So many epochs in a row must shrink the window in vain before.
const RELAPSE_EPOCHS: u32 = 3;
/// A trial enlarges the window this often by a quarter, unless something is lost.
const TRIAL_EPOCHS: u32 = 16;
const TRY_AGAIN_MAX: Duration = Duration::from_secs(64);
/// A round trip that rises by less than this part while the window grows by a half or more does so because of the route.
const TRIAL_FLAT: f64 = 0.02;

/// What a trial began with, and what was lost since.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trial {
    /// Whether the path has so much jitter that means are compared, of round trips and of losses.
    pub(super) noisy: bool,
    /// The typical round trip, in seconds.
    pub(super) rtt: f64,
    /// The sum of the epochs' typical round trips since, in seconds.
    pub(super) rtts: f64,
    /// What was being lost, 0 to 1.
    pub(super) loss: f64,
    pub(super) epochs: u32,
    /// Bytes sent and lost since.
    pub(super) sent: u64,
    pub(super) lost: u64,
}

/// The time after a start or a competition, in which the competitor may show itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calm {
    pub(super) until: Instant,
    /// The largest window since.
    pub(super) window: u64,
    /// The shortest round trip, in seconds, when it began.
    pub(super) rtt: f64,
}

impl Keel {
    /// Ends the calm if the window has dwindled and the round trip has not become shorter by it: whoever was there has only
    /// paused, or had filled the queue before this flow came.
    pub(super) fn has_relapsed(&mut self, now: Instant, shortest: f64, typical: f64) -> bool {
        let shrunk = (self.last_epoch.0 as f64 / self.window as f64).ln();
        let shortened = (self.last_epoch.1 / shortest).ln();
        self.last_epoch = (self.window, shortest);
        self.in_vain = if shrunk > 0.0 && shortened < shrunk / 2.0 {
            self.in_vain + 1
        } else {
            0
        };
        let Some(calm) = &mut self.calm else {
            return false;
        };
        calm.window = calm.window.max(self.window);
        let calm = *calm;
        if now > calm.until {
            self.calm = None;
            return false;
        }
        let dwindled = (self.window as f64) < calm.window as f64 * RELAPSE_PART;
        if !dwindled || shortest < calm.rtt || self.in_vain < RELAPSE_EPOCHS {
            return false;
        }
        self.find_out(now, calm.window, typical);
        true
    }

    /// Whether the queue became shorter as the window did, since the crowd came. A queue that this flow alone makes shrinks
    /// with its window; half of that is enough. `now` is the typical round trip.
    pub(super) fn is_own_queue(&self, now: f64) -> bool {
        let (window, rtt) = self.before_crowd;
        let shrunk = (window as f64 / self.window as f64).ln();
        let shortened = (rtt / now).ln();
        shrunk > 0.0 && shortened > shrunk / 2.0
    }

    /// The queue is not this flow's. Who competed lately is taken for the reason; else a trial tells.
    pub(super) fn find_out(&mut self, now: Instant, window: u64, rtt: f64) {
        self.set_window(window as f64);
        self.crowded_epochs = 0;
        self.in_vain = 0;
        self.calm = None;
        if self.competed_until.is_some_and(|until| now < until) {
            self.compete(now);
        } else {
            self.try_more(now, rtt);
        }
        self.new_window(now);
    }

    /// Lets the window grow, to learn whether the round trip, typically `rtt` seconds, does with it.
    pub(super) fn try_more(&mut self, now: Instant, rtt: f64) {
        tracing::debug!(
            window = self.window,
            rtt_ms = rtt * 1e3,
            min_rtt_ms = self.min_rtt.get().map(|min| min.as_secs_f64() * 1e3),
            "a queue does not go away: the window grows, to find out whose it is"
        );
        self.phase = Phase::Trial(Trial {
            noisy: self.is_noisy(),
            rtt,
            rtts: 0.0,
            loss: self.base_loss.unwrap_or(0.0).max(self.loss_lately),
            epochs: 0,
            sent: 0,
            lost: 0,
        });
        self.new_window(now);
    }

    /// Looks whether the round trip grows with the window. A longer route does not care; a queue that is someone else's
    /// grows, and so does this flow's part of it.
    pub(super) fn trial_epoch(
        &mut self,
        now: Instant,
        mut trial: Trial,
        used: bool,
        round: &Round,
    ) {
        let Some(shortest) = round.min_rtt else {
            return;
        };
        trial.epochs += 1;
        trial.sent += round.acked + round.lost;
        trial.lost += round.lost;
        let typical = if trial.noisy {
            round.mean_rtt
        } else {
            shortest
        }
        .as_secs_f64();
        trial.rtts += typical;
        let loss = trial.lost as f64 / trial.sent.max(1) as f64;
        let lost = if trial.noisy {
            loss - trial.loss > EXCESS_LOSS + self.chance_of(trial.loss, trial.sent)
        } else {
            self.excess_loss(round).is_some()
        };
        let tolerance = if trial.noisy { self.jitter / 2.0 } else { 0.0 };
        let flat = typical < trial.rtt * (1.0 + TRIAL_FLAT) + tolerance;
        // An application that does not fill the window has all that it asks for: there is nothing to compete for.
        let nobodys = (flat || (trial.noisy && !used)) && trial.epochs > 2;
        if lost || round.marked > 0.0 || (trial.epochs > TRIAL_EPOCHS && !nobodys) {
            self.phase = Phase::Steady;
            self.compete(now);
        } else if nobodys {
            self.min_rtt.replace(now, shortest);
            if trial.noisy {
                self.unresponsive = trial.rtts / f64::from(trial.epochs);
                // What is lost whatever the window is the path's.
                let base = self.base_loss.unwrap_or(0.0).max(loss);
                self.base_loss = Some(base.min(STARTUP_LOSS));
            }
            self.speed = SPEED_MAX / 2.0;
            self.phase = Phase::Steady;
            self.try_again = (now, TRY_AGAIN);
            self.calm = Some(Calm {
                until: now + RELAPSE_WITHIN,
                window: self.window,
                rtt: shortest.as_secs_f64(),
            });
        } else {
            self.set_window(self.window as f64 * (1.0 + STEP_MAX));
            self.phase = Phase::Trial(trial);
        }
        self.new_window(now);
    }

    pub(super) fn compete(&mut self, now: Instant) {
        tracing::debug!(
            window = self.window,
            base_loss = self.base_loss,
            "a competitor fills the queue: CUBIC takes the window over"
        );
        self.competing = Some(Competing::new(now, self.window, self.mtu));
        let (_, wait) = self.try_again;
        self.try_again = (now + wait, (wait * 2).min(TRY_AGAIN_MAX));
    }

    pub(super) fn competing_epoch(&mut self, now: Instant, queue: f64, round: &Round) {
        let Some(min_rtt) = self.min_rtt.get() else {
            return;
        };
        let calm = queue <= 1.5 * self.target(min_rtt);
        if self.min_rtt.is_stale(now) {
            self.empty(now);
            return;
        }
        let again = now >= self.try_again.0 && self.is_noisy();
        let Some(competing) = &mut self.competing else {
            return;
        };
        if competing.epoch(calm) >= CALM_EPOCHS {
            let window = competing.window();
            self.competing = None;
            self.leave_competing(now, window, min_rtt.as_secs_f64() + queue);
        } else if again {
            // Perhaps there never was anybody, and CUBIC dwindles by losses that are the path's own.
            let window = competing.window();
            self.set_window(window as f64);
            self.competing = None;
            self.try_more(now, self.typical(round));
        }
        self.measures = false;
    }

    pub(super) fn leave_competing(&mut self, now: Instant, window: u64, rtt: f64) {
        tracing::debug!(window, rtt_ms = rtt * 1e3, "the competitor is gone");
        self.set_window(window as f64);
        self.competed_until = Some(now + COMPETED_WITHIN);
        self.calm = Some(Calm {
            until: now + RELAPSE_WITHIN,
            window,
            rtt,
        });
    }
}
