//! Keel, a congestion controller for links that lose packets.
//!
//! It steers one number, the window: the bytes that may be in flight. quinn paces at 1.25 × window ÷ smoothed round trip, so
//! the window is the rate as well. What it goes by is the queue, as the round trip shows it, not loss:
//!
//! ```text
//!            queue or plateau                 every 10 epochs: one round a little below the pipe
//!   Startup ────────────────▶ Steady ◀────────────────────────────────▶ Dip   (sees the path's true round trip)
//!                               │  ▲
//!      queue stays, or minimum  │  │ the queue was ours, or the route is longer: the minimum is replaced
//!      not met for 10 s         ▼  │
//!                             Emptying: half a window for two rounds
//!                               │  ▲
//!        someone else's queue   ▼  │ minimum not met for 10 s, or the queue is gone
//!                             Competing: CUBIC, for losses beyond what the path always loses
//! ```
//!
//! `docs/congestion.md` gives the reasons and the evidence. Everything here is a function of what it is told: time is an
//! argument, and there is no randomness.

mod others;

use std::any::Any;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerMetrics};
use quinn_proto::RttEstimator;

use self::others::{Calm, Trial};
use super::competing::Competing;
use super::config::KeelConfig;
use super::min_rtt::MinRtt;
use super::rate::DeliveryRate;
use super::rounds::{Round, Rounds};

/// The standing queue that is aimed at is never more than this part of the minimum round trip: half of the shallowest queue
/// that is expected, a quarter of the bandwidth-delay product.
const TARGET_PART_MAX: f64 = 1.0 / 8.0;
/// Nor less than this: below it, timers and bursts of acknowledgements look like a queue.
const TARGET_MIN: Duration = Duration::from_millis(1);
/// Jitter lengthens the queue that is aimed at by no more than this part of the minimum round trip.
const JITTER_PART_MAX: f64 = 1.0 / 4.0;
/// A round trip this much above the minimum ends the start, if it is more than [`STARTUP_QUEUE_MIN`].
const STARTUP_QUEUE_PART: f64 = 1.0 / 8.0;
const STARTUP_QUEUE_MIN: Duration = Duration::from_millis(2);
/// The start ends when this many rounds have passed without the rate rising by a quarter.
const STARTUP_FLAT_ROUNDS: u32 = 3;
/// The start ends when a round loses this much: no path that is worth using does, and a queue without depth may.
const STARTUP_LOSS: f64 = 0.3;
/// The window changes by no more than this at a time.
const STEP_MAX: f64 = 0.25;
/// How much faster the window may grow while the queue stays empty; doubled with each empty epoch.
const SPEED_MAX: f64 = 8.0;
/// Epochs between two dips.
const DIP_EVERY: u32 = 10;
/// How far below the pipe a dip goes.
const DIP_DEPTH: f64 = 0.03;
/// Epochs in a row with more than twice the target before it is asked whose queue that is.
const CROWDED_EPOCHS: u32 = 4;
/// A window grows where this part of it is in flight in the mean of a round.
const FILLED_PART: f64 = 0.75;
/// What is left after an epoch of the memory of a larger window.
const LATELY_KEPT: f64 = 0.99;
/// Neighbouring round trips that differ by more than this part of the minimum are a path of much jitter.
const NOISY_PART: f64 = 1.0 / 16.0;
/// There the queue that is borne is longer by this part of the minimum: as long as what CUBIC fills where queues are as deep as
/// is usual, because nothing shorter can be told from jitter.
const NOISY_QUEUE_PART: f64 = 1.0;
/// The memory of that is of about so many acknowledgements.
const NOISE_SAMPLES: f64 = 64.0;
/// The memory of losses is of about so many packets.
const LOSS_LATELY_PACKETS: f64 = 400.0;
/// What is left after an epoch of how much longer than the minimum a round trip may be without being a queue.
const UNRESPONSIVE_KEPT: f64 = 0.998;
const RELAPSE_WITHIN: Duration = Duration::from_secs(30);
/// Marks cut the window by this part of the share of acknowledgements that bring one, as DCTCP does, and by no less than
/// [`CUT_MIN`].
const MARK_CUT: f64 = 0.5;
const CUT_MIN: f64 = 0.02;
const CUT_MAX: f64 = 0.5;
/// Epochs without growth after losses of our own doing, and after marks, which cost nobody anything.
const HOLD_AFTER_LOSS: u32 = 16;
const HOLD_AFTER_MARK: u32 = 2;
/// Marks cut no more than this at a time: the path is not losing anything yet.
const MARK_CUT_MAX: f64 = 0.15;
/// Loss beyond the path's own counts from here on, before allowance for chance.
const EXCESS_LOSS: f64 = 0.005;
/// Loss that is still more than this part of what it was has not been helped by a cut.
const CUT_IN_VAIN: f64 = 0.7;
/// A start ends when a round loses this much more than those before it.
const STARTUP_EXCESS_LOSS: f64 = 0.1;
/// While competing on a path of much jitter, it is tried after so long whether that is necessary; twice as long after each time that it was.
const TRY_AGAIN: Duration = Duration::from_secs(4);
/// Acknowledgements that stay away for two round trips and this have met a path that was gone.
const GAP_MIN: Duration = Duration::from_millis(50);
/// No window is larger. A guard for the arithmetic, far above what the flow-control windows let out.
const WINDOW_MAX: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Startup {
        best_rate: f64,
        flat_rounds: u32,
    },
    Steady,
    /// One round with this window, in bytes.
    Dip {
        window: u64,
    },
    /// Half the window until the second round ends, because the minimum round trip has not been met for long.
    Emptying {
        rounds: u32,
    },
    /// The window grows although the round trip is long, to learn why it is.
    Trial(Trial),
}

/// The controller of one path.
pub struct Keel {
    config: KeelConfig,
    mtu: u64,
    window: u64,
    phase: Phase,
    rounds: Rounds,
    min_rtt: MinRtt,
    rate: DeliveryRate,
    /// What the path loses whatever is sent, 0 to 1; learnt in rounds without a queue.
    base_loss: Option<f64>,
    /// Packets sent before this say nothing about the present window: it was cut, or the path was gone.
    forgiven: Instant,
    /// The shortest of the last few round trips, for a queue that grows within a round.
    recent_rtts: [Option<Duration>; 8],
    next_rtt: usize,
    last_ack: Instant,
    /// Whether the next round shows what the present window does. Rounds come in pairs, called epochs: in the first,
    /// packets that were sent under the window before are acknowledged.
    measures: bool,
    speed: f64,
    hold_epochs: u32,
    epochs_to_dip: u32,
    crowded_epochs: u32,
    /// The window and the typical round trip, in seconds, when the crowd came.
    before_crowd: (u64, f64),
    excess_before: bool,
    /// The window, and the loss, before a cut whose effect has not been seen yet.
    cut_for_loss: Option<(u64, f64)>,
    /// The largest window of the last while, in bytes, so that a window which dwindles does not come to bear the queue that
    /// makes it dwindle.
    lately: f64,
    /// The step of the epoch before, and what the path took then, in bytes a second.
    last_step: f64,
    last_rate: f64,
    /// How much longer than the shortest the mean round trip of a round is, in seconds, at the least: jitter, not queue.
    jitter: f64,
    competing: Option<Competing>,
    calm: Option<Calm>,
    /// A competitor that was there not longer ago than this is the first suspect.
    competed_until: Option<Instant>,
    /// The window and the shortest round trip, in seconds, of the epoch before.
    last_epoch: (u64, f64),
    /// Epochs in a row in which the window shrank and the round trip did not follow.
    in_vain: u32,
    /// The mean round trip, in seconds, that a trial found to be the same whatever the window, or 0: what is
    /// between the minimum and this is the path's doing. Packets that keep their order on a path of much jitter wait for the
    /// slowest before them, so the more of them there are, the less often does one meet the minimum.
    unresponsive: f64,
    /// The round trip before, and by how much one differs from the next, in seconds. A queue lets neighbours differ little.
    last_rtt: Duration,
    noise: f64,
    /// What has been lost lately whatever the reason, 0 to 1: a trial looks for more than that.
    loss_lately: f64,
    /// When it is tried again whether there is a competitor, and how long that was put off.
    try_again: (Instant, Duration),
}

impl Keel {
    pub fn new(config: KeelConfig, now: Instant, mtu: u16) -> Keel {
        Keel {
            config,
            mtu: u64::from(mtu),
            window: config.initial_window,
            phase: Phase::Startup {
                best_rate: 0.0,
                flat_rounds: 0,
            },
            rounds: Rounds::new(now),
            min_rtt: MinRtt::new(now),
            rate: DeliveryRate::default(),
            base_loss: None,
            forgiven: now,
            recent_rtts: [None; 8],
            next_rtt: 0,
            last_ack: now,
            measures: false,
            speed: 1.0,
            hold_epochs: 0,
            epochs_to_dip: DIP_EVERY,
            crowded_epochs: 0,
            before_crowd: (0, 0.0),
            excess_before: false,
            cut_for_loss: None,
            lately: 0.0,
            last_step: 0.0,
            last_rate: 0.0,
            jitter: 0.0,
            competing: None,
            calm: None,
            competed_until: None,
            last_epoch: (0, 0.0),
            in_vain: 0,
            unresponsive: 0.0,
            last_rtt: Duration::ZERO,
            noise: 0.0,
            loss_lately: 0.0,
            try_again: (now, TRY_AGAIN),
        }
    }

    /// What it is doing, in one word, for logs and views.
    pub fn doing(&self) -> &'static str {
        match (self.phase, &self.competing) {
            (Phase::Startup { .. }, _) => "startup",
            (Phase::Emptying { .. }, _) => "emptying",
            (Phase::Dip { .. }, _) => "dip",
            (Phase::Trial(_), _) => "trial",
            (Phase::Steady, Some(_)) => "competing",
            (Phase::Steady, None) => "steady",
        }
    }

    /// The round trip that it takes for the path's own, without queue.
    pub fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt.get()
    }

    /// What it takes for the path's own loss, 0 to 1.
    pub fn base_loss(&self) -> f64 {
        self.base_loss.unwrap_or(0.0)
    }

    /// The queue that this flow wants to keep standing, in seconds. The smaller a flow's window, the longer the queue it
    /// bears, so flows that share a link end with equal windows: at the same queue the smaller still grows while the larger
    /// shrinks.
    fn target(&self, min_rtt: Duration) -> f64 {
        self.target_of(self.window as f64, min_rtt)
    }

    /// The same for a window of that many bytes.
    fn target_of(&self, window: f64, min_rtt: Duration) -> f64 {
        self.plain_target(window, min_rtt) + self.jitter_allowed(min_rtt)
    }

    /// The same where round trips do not differ.
    fn plain_target(&self, window: f64, min_rtt: Duration) -> f64 {
        let packets = (window / self.mtu as f64).max(1.0);
        let min_rtt = min_rtt.as_secs_f64();
        (min_rtt / packets.sqrt())
            .min(min_rtt * TARGET_PART_MAX)
            .max(TARGET_MIN.as_secs_f64())
    }

    /// Whether the path has so much jitter that the round trips of a few packets say nothing about a queue.
    fn is_noisy(&self) -> bool {
        let min_rtt = self.min_rtt.get().unwrap_or(Duration::MAX);
        self.noise > min_rtt.as_secs_f64() * NOISY_PART
    }

    /// What jitter adds to the target, in seconds.
    fn jitter_allowed(&self, min_rtt: Duration) -> f64 {
        let min_rtt = min_rtt.as_secs_f64();
        if self.is_noisy() {
            return min_rtt * NOISY_QUEUE_PART;
        }
        self.jitter.min(min_rtt * JITTER_PART_MAX)
    }

    /// Comes back from what a trial found, by and by, and soon if round trips are shorter now. `rtt` is a round's mean.
    fn forget_unresponsive(&mut self, min_rtt: Duration, rtt: f64) {
        let min_rtt = min_rtt.as_secs_f64();
        if rtt < self.unresponsive {
            self.unresponsive += (rtt - self.unresponsive) / 8.0;
        }
        self.unresponsive = min_rtt + (self.unresponsive - min_rtt).max(0.0) * UNRESPONSIVE_KEPT;
    }

    fn lowest(&self) -> u64 {
        4 * self.mtu
    }

    fn set_window(&mut self, window: f64) {
        self.window = (window as u64).clamp(self.lowest(), WINDOW_MAX);
    }

    fn note_rtt(&mut self, rtt: Duration) {
        self.recent_rtts[self.next_rtt] = Some(rtt);
        self.next_rtt = (self.next_rtt + 1) % self.recent_rtts.len();
    }

    /// The shortest of the last eight round trips, once there are eight.
    fn recent_min(&self) -> Option<Duration> {
        self.recent_rtts
            .iter()
            .copied()
            .reduce(|a, b| Some(a?.min(b?)))
            .flatten()
    }

    /// Ends the start if a queue has begun to grow.
    fn watch_startup(&mut self, now: Instant) {
        let (Some(min), Some(recent)) = (self.min_rtt.get(), self.recent_min()) else {
            return;
        };
        let queue = recent.saturating_sub(min);
        let limit = min.mul_f64(STARTUP_QUEUE_PART).max(STARTUP_QUEUE_MIN);
        if queue < limit {
            return;
        }
        let rate = self.rate.recent(now, recent / 4);
        self.leave_startup(now, min, rate);
        // If that queue was there before, it does not go away.
        self.calm = Some(Calm {
            until: now + RELAPSE_WITHIN,
            window: self.window,
            rtt: recent.as_secs_f64(),
        });
    }

    /// Takes the window that the rate fills, if there is one; it cannot be far from the present.
    fn leave_startup(&mut self, now: Instant, rtt: Duration, rate: Option<f64>) {
        let present = self.window as f64;
        let wanted = rate.map_or(present / 2.0, |rate| {
            let sent = rate / (1.0 - self.base_loss.unwrap_or(0.0).min(0.5));
            sent * (rtt.as_secs_f64() + self.target(rtt))
        });
        self.set_window(wanted.clamp(present / 3.0, present));
        self.phase = Phase::Steady;
        self.new_window(now);
    }

    /// Takes in that a packet has arrived.
    fn acknowledged(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        smoothed_rtt: Duration,
    ) {
        // A gap is a path that was gone, not one that is full. What it swallowed is forgiven.
        let gap = now.saturating_duration_since(self.last_ack);
        if gap > smoothed_rtt * 2 + GAP_MIN {
            self.forgiven = now;
            self.measures = false;
        }
        self.last_ack = now;
        self.rounds.on_ack(sent, bytes);
        self.rate.on_delivered(now, bytes, smoothed_rtt / 64);
        if matches!(self.phase, Phase::Startup { .. }) && !app_limited {
            self.set_window((self.window + bytes) as f64);
        }
    }

    /// The window has changed: losses of what was sent before are forgiven, and the next round measures nothing.
    fn new_window(&mut self, now: Instant) {
        self.forgiven = now;
        self.measures = false;
    }

    fn on_round(&mut self, now: Instant, round: Round) {
        let Some(shortest) = round.min_rtt else {
            return;
        };
        let Some(min_rtt) = self.min_rtt.get() else {
            return;
        };
        let packets = ((round.acked + round.lost) / self.mtu) as f64;
        self.loss_lately +=
            (round.loss() - self.loss_lately) * (packets / LOSS_LATELY_PACKETS).min(0.25);
        let empty = min_rtt.as_secs_f64().max(self.unresponsive);
        let queue = (shortest.as_secs_f64() - empty).max(0.0);
        let used = round.peak_in_flight + 4 * self.mtu >= self.window() / 5 * 4;
        if used {
            self.rate.on_round(round.delivery_rate());
        }
        match self.phase {
            Phase::Startup {
                best_rate,
                flat_rounds,
            } => self.startup_round(now, round, used, best_rate, flat_rounds),
            Phase::Steady if !self.measures => self.measures = true,
            Phase::Steady if self.competing.is_some() => self.competing_epoch(now, queue, &round),
            Phase::Steady => self.steady_epoch(now, queue, used, round),
            Phase::Dip { .. } => {
                self.phase = Phase::Steady;
                self.measures = false;
            }
            Phase::Emptying { rounds: 0 } => self.phase = Phase::Emptying { rounds: 1 },
            Phase::Emptying { .. } => self.emptied(now, shortest, queue),
            Phase::Trial(_) if !self.measures => self.measures = true,
            Phase::Trial(trial) => self.trial_epoch(now, trial, used, &round),
        }
    }

    fn startup_round(
        &mut self,
        now: Instant,
        round: Round,
        used: bool,
        best_rate: f64,
        flat_rounds: u32,
    ) {
        let before = self.base_loss.unwrap_or(STARTUP_LOSS);
        if round.marked > 0.0 || round.loss() > before + STARTUP_EXCESS_LOSS + self.chance(&round) {
            self.leave_startup(now, round.mean_rtt, Some(round.delivery_rate()));
            return;
        }
        let min = self.min_rtt.get().unwrap_or(round.mean_rtt);
        let limit = min.mul_f64(STARTUP_QUEUE_PART).max(STARTUP_QUEUE_MIN);
        if round.mean_rtt < min + limit / 4 {
            self.learn_base_loss(&round);
        }
        if !used {
            return;
        }
        let rate = round.delivery_rate();
        let (best_rate, flat_rounds) = if rate > best_rate * 1.25 {
            (rate, 0)
        } else {
            (best_rate, flat_rounds + 1)
        };
        self.phase = Phase::Startup {
            best_rate,
            flat_rounds,
        };
        if flat_rounds >= STARTUP_FLAT_ROUNDS {
            self.leave_startup(now, round.mean_rtt, self.rate.best());
        }
    }

    fn steady_epoch(&mut self, now: Instant, queue: f64, used: bool, round: Round) {
        let Some(min_rtt) = self.min_rtt.get() else {
            return;
        };
        let target = self.target(min_rtt);
        let shortest = round.min_rtt.unwrap_or(min_rtt).as_secs_f64();
        if self.has_relapsed(now, shortest, self.typical(&round)) {
            return;
        }
        let excess = self.excess_loss(&round);
        if round.marked > 0.0 {
            let part = (MARK_CUT * round.marked).min(MARK_CUT_MAX);
            self.cut(now, part, HOLD_AFTER_MARK);
            return;
        }
        if let Some((before, loss)) = self.cut_for_loss.take()
            && queue < target / 2.0
            && round.loss() > CUT_IN_VAIN * loss
        {
            // The queue is gone and the loss is not: it is the path's. It is taken at its word, and the cut back.
            self.base_loss = Some(round.loss().min(STARTUP_LOSS));
            self.hold_epochs = 0;
            self.set_window(before as f64);
            self.new_window(now);
            return;
        }
        if let Some(excess) = excess {
            // Once may be chance, or a burst on the air; with a queue, or twice, it is our doing.
            if queue >= target / 2.0 || self.excess_before {
                self.excess_before = false;
                self.cut_for_loss = Some((self.window, round.loss()));
                self.cut(now, excess, HOLD_AFTER_LOSS);
                return;
            }
            self.excess_before = true;
        } else {
            self.excess_before = false;
            if queue <= 1.5 * target {
                self.learn_base_loss(&round);
            }
        }
        if self.min_rtt.is_stale(now) {
            self.empty(now);
            return;
        }
        if !used {
            self.crowded_epochs = 0;
            self.speed = 1.0;
            return;
        }
        let rtt = round.mean_rtt.as_secs_f64().max(1e-6);
        self.forget_unresponsive(min_rtt, rtt);
        self.lately = (self.lately * LATELY_KEPT).max(self.window as f64);
        let typical = self.typical(&round);
        let plain = if self.is_noisy() {
            self.plain_target(self.lately, min_rtt)
        } else {
            self.target_of(self.lately, min_rtt)
        };
        if queue > self.target_of(self.lately, min_rtt) + plain {
            if self.crowded_epochs == 0 {
                self.before_crowd = (self.window, typical);
            }
            self.crowded_epochs += 1;
            if self.crowded_epochs >= CROWDED_EPOCHS {
                self.crowded_epochs = 0;
                if !self.is_own_queue(typical) {
                    self.find_out(now, self.before_crowd.0, typical);
                    return;
                }
            }
        } else {
            self.crowded_epochs = 0;
        }
        let jitter = (rtt - shortest).max(0.0);
        self.jitter = if jitter < self.jitter {
            jitter
        } else {
            self.jitter + (jitter - self.jitter) / 8.0
        };
        self.epochs_to_dip = self.epochs_to_dip.saturating_sub(1);
        if self.epochs_to_dip == 0 {
            self.epochs_to_dip = DIP_EVERY;
            let window = self.window as f64 * (1.0 - queue / rtt) * (1.0 - DIP_DEPTH);
            self.phase = Phase::Dip {
                window: (window as u64).max(self.lowest()),
            };
            return;
        }
        self.hold_epochs = self.hold_epochs.saturating_sub(1);
        let rate = round.send_rate();
        let followed = rate >= self.last_rate * (1.0 + self.last_step / 2.0);
        let mut step = (target - queue) / rtt;
        if step > 0.0 {
            if self.hold_epochs > 0 || excess.is_some() {
                return;
            }
            // An application that sends in bursts fills the window for a moment and leaves no queue behind, however large the
            // window is: its next burst is what a queue has no room for.
            if (round.mean_in_flight as f64) < FILLED_PART * self.window as f64 {
                self.speed = 1.0;
                return;
            }
            // A window that grows without the rate following is a queue in the making, whatever the round trip says.
            self.speed = if queue < target / 2.0 && followed {
                (self.speed * 2.0).min(SPEED_MAX)
            } else {
                1.0
            };
            step *= self.speed;
        }
        let step = step.clamp(-STEP_MAX, STEP_MAX);
        self.last_step = step.max(0.0);
        self.last_rate = rate;
        self.set_window(self.window as f64 * (1.0 + step));
        self.new_window(now);
    }

    /// The round trip, in seconds, that says how a round was: the shortest, which jitter and bursts do not touch; but on a path
    /// of much jitter the mean, since the shortest of a few is chance.
    fn typical(&self, round: &Round) -> f64 {
        match round.min_rtt {
            Some(shortest) if !self.is_noisy() => shortest,
            _ => round.mean_rtt,
        }
        .as_secs_f64()
    }

    /// Cuts the window and lets it be for a while.
    fn cut(&mut self, now: Instant, part: f64, hold_epochs: u32) {
        self.set_window(self.window as f64 * (1.0 - part.clamp(CUT_MIN, CUT_MAX)));
        self.hold_epochs = hold_epochs;
        self.speed = 1.0;
        self.crowded_epochs = 0;
        self.new_window(now);
    }

    fn empty(&mut self, now: Instant) {
        self.phase = Phase::Emptying { rounds: 0 };
        self.new_window(now);
    }

    /// The queue is as empty as half a window makes it.
    fn emptied(&mut self, now: Instant, shortest: Duration, queue: f64) {
        self.phase = Phase::Steady;
        self.new_window(now);
        let Some(min_rtt) = self.min_rtt.get() else {
            return;
        };
        let calm = queue <= 1.5 * self.target(min_rtt);
        if calm {
            // Close enough: a queue of others' may be what is left.
            self.min_rtt.keep(now);
        } else if self.min_rtt.is_stale(now) {
            let noise = Duration::from_secs_f64(4.0 * self.target(min_rtt));
            self.min_rtt.renew(now, shortest, noise);
        }
        if calm && let Some(competing) = self.competing.take() {
            // Perhaps nobody else is left; half of the queue's window is close to what the path holds.
            self.leave_competing(now, competing.window(), shortest.as_secs_f64());
            self.set_window(competing.window() as f64 * 0.75);
        }
    }

    /// How much more the round lost than the path always loses and chance explains.
    fn excess_loss(&self, round: &Round) -> Option<f64> {
        let excess = round.loss() - self.base_loss.unwrap_or(0.0);
        (excess > EXCESS_LOSS + self.chance(round)).then_some(excess)
    }

    /// By how much a round's loss may exceed the path's own by chance.
    fn chance(&self, round: &Round) -> f64 {
        self.chance_of(self.base_loss.unwrap_or(0.0), round.acked + round.lost)
    }

    /// By how much the loss of so many bytes may exceed `expected` by chance: three standard deviations, and two packets.
    fn chance_of(&self, expected: f64, bytes: u64) -> f64 {
        let packets = (bytes / self.mtu).max(1) as f64;
        3.0 * (expected * (1.0 - expected) / packets).sqrt() + 2.0 / packets
    }

    fn learn_base_loss(&mut self, round: &Round) {
        let packets = (round.acked + round.lost) as f64 / self.mtu as f64;
        self.base_loss = Some(match self.base_loss {
            None => round.loss().min(STARTUP_LOSS),
            Some(base) => base + (round.loss() - base) * (packets / 1000.0).clamp(0.005, 0.3),
        });
    }
}

impl Controller for Keel {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.acknowledged(now, sent, bytes, app_limited, rtt.get());
        if let Some(competing) = &mut self.competing {
            let base = self.base_loss.unwrap_or(0.0);
            competing.on_ack(now, sent, bytes, app_limited, rtt, base);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        _app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        let Some((rtt, round)) = self.rounds.on_end_acks(now, in_flight) else {
            return;
        };
        self.min_rtt.sample(now, rtt);
        self.note_rtt(rtt);
        let step = rtt.abs_diff(self.last_rtt).as_secs_f64();
        self.last_rtt = rtt;
        self.noise += (step - self.noise) / NOISE_SAMPLES;
        if matches!(self.phase, Phase::Startup { .. }) {
            self.watch_startup(now);
        }
        if let Some(round) = round {
            self.on_round(now, round);
        }
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        // A blackout as a rule: what it swallowed says nothing about the path's rate, and a collapsed window would make
        // the first second after it useless.
        _is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        let mark = lost_bytes == 0;
        if sent > self.forgiven {
            if mark {
                self.rounds.on_mark();
            } else {
                self.rounds.on_loss(lost_bytes);
            }
            if let Some(competing) = &mut self.competing {
                competing.on_congestion_event(now, sent, lost_bytes);
            }
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        if let Some(competing) = &mut self.competing {
            competing.on_mtu_update(new_mtu);
        }
    }

    fn window(&self) -> u64 {
        let steady = self
            .competing
            .as_ref()
            .map_or(self.window, |competing| competing.window());
        match self.phase {
            Phase::Dip { window } => window,
            Phase::Emptying { .. } => steady / 2,
            Phase::Startup { .. } | Phase::Steady | Phase::Trial(_) => steady,
        }
        .max(self.lowest())
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window();
        metrics.pacing_rate = self.rate.best().map(|rate| (rate * 8.0) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.config.initial_window.max(self.lowest())
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl Clone for Keel {
    fn clone(&self) -> Keel {
        Keel {
            rounds: self.rounds.clone(),
            min_rtt: self.min_rtt.clone(),
            rate: self.rate.clone(),
            competing: self.competing.clone(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);
    const MTU: u64 = 1200;

    fn keel() -> (Keel, Instant) {
        let now = Instant::now();
        (Keel::new(KeelConfig::default(), now, MTU as u16), now)
    }

    /// One round: the whole window is sent at `now` and acknowledged after `rtt`, evenly over a tenth of it, `lost` packets
    /// excepted. Returns when it ends.
    fn round(
        keel: &mut Keel,
        now: Instant,
        rtt: Duration,
        lost: u64,
        app_limited: bool,
    ) -> Instant {
        let packets = keel.window() / MTU;
        let apart = rtt / 10 / packets as u32;
        if lost > 0 {
            keel.on_congestion_event(now + rtt, now, false, lost * MTU);
        }
        for number in 0..packets - lost {
            let sent = now + apart * number as u32;
            keel.acknowledged(sent + rtt, sent, MTU, app_limited, rtt);
            // What fills the window sends a packet for each that arrives.
            let left = if app_limited { 0 } else { (packets - 1) * MTU };
            keel.on_end_acks(sent + rtt, left, app_limited, None);
        }
        now + rtt + rtt / 10
    }

    /// A controller whose start a queue has ended, on a path of [`RTT`].
    fn steady() -> (Keel, Instant) {
        let (mut keel, mut now) = keel();
        now = round(&mut keel, now, RTT, 0, false);
        now = round(&mut keel, now, RTT + RTT / 4, 0, false);
        assert_eq!(keel.doing(), "steady");
        (keel, now)
    }

    #[test]
    fn a_start_doubles_the_window_each_round_until_a_queue_grows() {
        let (mut keel, mut now) = keel();
        let first = keel.window();
        now = round(&mut keel, now, RTT, 0, false);
        let second = keel.window();
        assert!(second >= first / 10 * 19, "{first} then {second}");
        now = round(&mut keel, now, RTT, 0, false);
        assert!(keel.window() >= second / 10 * 19);
        assert_eq!(keel.doing(), "startup");
        let before = keel.window();
        round(&mut keel, now, RTT + RTT / 4, 0, false);
        assert_eq!(keel.doing(), "steady");
        assert!(keel.window() <= before);
    }

    #[test]
    fn bursts_that_leave_no_queue_behind_do_not_enlarge_the_window() {
        let (mut keel, mut now) = steady();
        let window = keel.window();
        for _ in 0..20 {
            let packets = keel.window() / MTU;
            for number in 0..packets {
                keel.acknowledged(now + RTT, now, MTU, false, RTT);
                keel.on_end_acks(now + RTT, (packets - number - 1) * MTU, false, None);
            }
            now += RTT * 2;
        }
        assert!(keel.window() <= window, "{window} then {}", keel.window());
        for _ in 0..8 {
            now = round(&mut keel, now, RTT, 0, false);
        }
        assert!(keel.window() > window, "{window} then {}", keel.window());
    }

    #[test]
    fn an_application_that_sends_little_does_not_enlarge_the_window() {
        let (mut keel, mut now) = keel();
        let window = keel.window();
        for _ in 0..20 {
            now = round(&mut keel, now, RTT, 0, true);
        }
        assert_eq!((keel.doing(), keel.window()), ("startup", window));
    }

    #[test]
    fn loss_without_a_queue_is_the_paths_and_costs_no_window() {
        let (mut keel, mut now) = steady();
        let window = keel.window();
        for _ in 0..40 {
            let lost = keel.window() / MTU / 50;
            now = round(&mut keel, now, RTT, lost, false);
        }
        assert!(keel.window() >= window, "{} of {window}", keel.window());
        assert!(
            (0.005..0.03).contains(&keel.base_loss()),
            "{}",
            keel.base_loss()
        );
    }

    #[test]
    fn loss_with_a_queue_cuts_the_window_and_stops_its_growth() {
        let (mut keel, mut now) = steady();
        let long = RTT + Duration::from_millis(3);
        let window = keel.window();
        for _ in 0..4 {
            let lost = keel.window() / MTU / 5;
            now = round(&mut keel, now, long, lost, false);
        }
        let cut = keel.window();
        assert!(cut < window / 10 * 9, "{cut} of {window}");
        for _ in 0..8 {
            now = round(&mut keel, now, RTT, 0, false);
        }
        assert!(keel.window() <= cut);
    }

    #[test]
    fn a_queue_beyond_the_target_shrinks_the_window_and_an_empty_one_enlarges_it() {
        let (mut keel, mut now) = steady();
        let window = keel.window();
        for _ in 0..4 {
            now = round(&mut keel, now, RTT + RTT / 8, 0, false);
        }
        let shrunk = keel.window();
        assert!(shrunk < window, "{shrunk} of {window}");
        for _ in 0..12 {
            now = round(&mut keel, now, RTT, 0, false);
        }
        assert!(keel.window() > shrunk);
    }

    #[test]
    fn marks_cut_the_window_once_an_epoch() {
        let (mut keel, mut now) = steady();
        for _ in 0..2 {
            now = round(&mut keel, now, RTT, 0, false);
        }
        let window = keel.window();
        for _ in 0..2 {
            keel.on_congestion_event(now, now, false, 0);
            now = round(&mut keel, now, RTT, 0, false);
        }
        let cut = keel.window();
        assert!(cut < window && cut >= window / 10 * 8, "{cut} of {window}");
    }

    #[test]
    fn a_blackout_collapses_nothing() {
        let (mut keel, now) = steady();
        let (window, min_rtt) = (keel.window(), keel.min_rtt());
        let healed = now + Duration::from_secs(60);
        keel.acknowledged(healed, healed - RTT, MTU, false, RTT);
        keel.on_end_acks(healed, window, false, None);
        keel.on_congestion_event(healed, now, true, window);
        assert_eq!((keel.window(), keel.min_rtt()), (window, min_rtt));
        let mut now = healed;
        for _ in 0..4 {
            now = round(&mut keel, now, RTT, 0, false);
        }
        assert!(keel.window() >= window);
        assert_eq!(keel.base_loss(), 0.0);
    }

    #[test]
    fn a_copy_for_a_new_path_goes_on_where_the_old_one_is() {
        let (keel, _) = steady();
        let copy = keel.clone_box().into_any().downcast::<Keel>().unwrap();
        assert_eq!(
            (copy.window(), copy.min_rtt(), copy.doing()),
            (keel.window(), keel.min_rtt(), keel.doing())
        );
    }
}
