//! What quinn knows of a connection's path and does not tell, and the one thing that it must be told.
//!
//! A [`Watched`] controller stands around any other and leaves its decisions alone. It learns two figures on the way: the
//! variance of the round trip, and the bytes in flight. And it can be given an *allowance*: room beyond the window for an end
//! that hears nothing.
//!
//! Why that must be: an end whose window is full of packets that were lost in a blackout may send nothing but quinn's own
//! probes, and those come at doubling intervals without a cap. After 20 s of blackout the next one may be 10 s away, and
//! what the peer sends does not shorten that: it acknowledges nothing new. With an allowance the next heartbeat leaves, its
//! acknowledgement shows what was lost, and everything goes on.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::Connection;
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

use super::tuning::INITIAL_RTT;

/// The most bytes that are ever allowed beyond a window. It bounds what is sent into a blackout: at one packet each 100 ms
/// enough for a minute, after which only quinn's own probes are left, and a new connection.
const MAX_ALLOWANCE: u64 = 1024 * 1024;

/// The largest packet with which quinn asks whether the path takes larger ones. One is under way at a time.
const MTU_PROBE_BYTES: u64 = 1452;

/// What is known of one path of a connection. A path to another address has its own.
#[derive(Debug, Default)]
pub struct PathSigns {
    rtt_variance_us: AtomicU64,
    in_flight: AtomicU64,
    window: AtomicU64,
    mtu: AtomicU64,
    /// Probes of the MTU that were answered: each of them has raised it.
    probes_answered: AtomicU64,
    /// The bytes of a probe that is under way. It counts as in flight for quinn, which does not tell its controller of it.
    probe: AtomicU64,
    allowance: AtomicU64,
}

impl PathSigns {
    /// Those of a connection's present path. `None` for a connection that was made without them.
    pub fn of(connection: &Connection) -> Option<Arc<PathSigns>> {
        let controller = connection.congestion_state().into_any();
        let watched = controller.downcast::<WatchedController>().ok()?;
        let path = connection.stats().path;
        watched
            .signs
            .note_probes(path.sent_plpmtud_probes, path.lost_plpmtud_probes);
        Some(watched.signs)
    }

    /// So many probes of the MTU were sent and lost on the connection, over all its paths. On a path to another address one may be
    /// taken for under way that an earlier path had: then a packet more than one may leave.
    fn note_probes(&self, sent: u64, lost: u64) {
        let answered = self.probes_answered.load(Ordering::Relaxed);
        let is_under_way = sent > lost + answered;
        let bytes = if is_under_way { MTU_PROBE_BYTES } else { 0 };
        self.probe.store(bytes, Ordering::Relaxed);
    }

    /// Mean deviation of the round trip (RFC 9002's `rttvar`). Zero until two samples were taken.
    pub fn rtt_variance(&self) -> Duration {
        Duration::from_micros(self.rtt_variance_us.load(Ordering::Relaxed))
    }

    /// Bytes that were sent and neither acknowledged nor given up.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The congestion window, without an allowance.
    pub fn window(&self) -> u64 {
        self.window.load(Ordering::Relaxed)
    }

    /// Lets one more heartbeat leave, however full the window is. Meant for an end that hears nothing, each time that it sends
    /// one.
    pub fn allow_one_more(&self) {
        // quinn sends while what is in flight and one more packet stay below the window. It fills that packet up with stream data.
        let in_flight = self.in_flight() + self.probe.load(Ordering::Relaxed);
        let wanted = in_flight + self.mtu.load(Ordering::Relaxed) + 1;
        let beyond = wanted.saturating_sub(self.window.load(Ordering::Relaxed));
        self.allowance
            .store(beyond.min(MAX_ALLOWANCE), Ordering::Relaxed);
    }

    /// Takes the allowance back: the peer is heard again.
    pub fn allow_no_more(&self) {
        self.allowance.store(0, Ordering::Relaxed);
    }
}

/// The smoothed round trip of a connection's present path, and its variance. Without figures, half of the round trip stands in for
/// the variance, as at the start of RFC 9002's estimate.
pub fn round_trip(connection: &Connection) -> (Duration, Duration) {
    let rtt = connection.rtt();
    let variance = PathSigns::of(connection).map_or(rtt / 2, |signs| signs.rtt_variance());
    (rtt, variance)
}

/// Notices whatever arrives on a connection, be it an acknowledgement alone.
#[derive(Debug, Default)]
pub struct Ear {
    datagrams: u64,
}

impl Ear {
    pub fn new(connection: &Connection) -> Ear {
        Ear {
            datagrams: connection.stats().udp_rx.datagrams,
        }
    }

    /// Whether anything has arrived since the last look.
    pub fn has_heard(&mut self, connection: &Connection) -> bool {
        let before = self.datagrams;
        self.datagrams = connection.stats().udp_rx.datagrams;
        self.datagrams != before
    }
}

/// Makes controllers that are watched.
pub(super) struct Watched<F> {
    inner: Arc<F>,
}

impl<F> Watched<F> {
    pub(super) fn new(inner: F) -> Watched<F> {
        Watched {
            inner: Arc::new(inner),
        }
    }
}

impl<F: ControllerFactory> ControllerFactory for Watched<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::clone(&self.inner).build(now, current_mtu);
        let signs = PathSigns::default();
        signs.window.store(inner.window(), Ordering::Relaxed);
        signs.mtu.store(u64::from(current_mtu), Ordering::Relaxed);
        Box::new(WatchedController {
            inner,
            signs: Arc::new(signs),
            smoothed: None,
            variance: Duration::ZERO,
        })
    }
}

struct WatchedController {
    inner: Box<dyn Controller>,
    signs: Arc<PathSigns>,
    /// As it was at the last acknowledgement.
    smoothed: Option<Duration>,
    variance: Duration,
}

impl WatchedController {
    fn note_window(&self) {
        self.signs
            .window
            .store(self.inner.window(), Ordering::Relaxed);
    }

    /// quinn's estimator shows the smoothed round trip only. It moves by an eighth of each sample's distance from it, so the
    /// sample can be told from the move, and with it the variance be kept as quinn keeps its own.
    fn note_rtt(&mut self, smoothed: Duration) {
        match self.smoothed {
            Some(before) if before == smoothed => return,
            Some(before) => {
                let distance = before.abs_diff(smoothed) * 8;
                self.variance = (3 * self.variance + distance) / 4;
            }
            None => self.variance = smoothed / 2,
        }
        self.smoothed = Some(smoothed);
        let micros = u64::try_from(self.variance.as_micros()).unwrap_or(u64::MAX);
        self.signs.rtt_variance_us.store(micros, Ordering::Relaxed);
    }
}

impl Controller for WatchedController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.signs.in_flight.fetch_add(bytes, Ordering::Relaxed);
        self.inner.on_sent(now, bytes, last_packet_number);
        self.note_window();
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        // Until the first sample it is a guess.
        if rtt.conservative() != INITIAL_RTT {
            self.note_rtt(rtt.get());
        }
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.signs.in_flight.store(in_flight, Ordering::Relaxed);
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
        self.note_window();
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        let left = self.signs.in_flight().saturating_sub(lost_bytes);
        self.signs.in_flight.store(left, Ordering::Relaxed);
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        self.note_window();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        let before = self.signs.mtu.swap(u64::from(new_mtu), Ordering::Relaxed);
        if u64::from(new_mtu) > before {
            self.signs.probes_answered.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.on_mtu_update(new_mtu);
        self.note_window();
    }

    fn window(&self) -> u64 {
        let allowance = self.signs.allowance.load(Ordering::Relaxed);
        self.inner.window().saturating_add(allowance)
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    /// The copy shares the signs: it is what a look at them from outside is given, and what the same path goes on with after
    /// its port has changed.
    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(WatchedController {
            inner: self.inner.clone_box(),
            signs: Arc::clone(&self.signs),
            smoothed: self.smoothed,
            variance: self.variance,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use quinn::congestion::CubicConfig;

    use super::*;

    const WINDOW: u64 = 12_000;
    const MTU: u16 = 1200;

    fn controller() -> (WatchedController, Instant) {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(WINDOW);
        let now = Instant::now();
        let built = Arc::new(Watched::new(cubic)).build(now, MTU);
        (
            *built.into_any().downcast::<WatchedController>().unwrap(),
            now,
        )
    }

    #[test]
    fn a_full_window_lets_one_more_heartbeat_through_and_not_two_bursts() {
        let (mut controller, now) = controller();
        controller.on_sent(now, WINDOW, 10);
        assert_eq!(controller.window(), WINDOW);
        controller.signs.allow_one_more();
        let room = controller.window() - controller.signs.in_flight();
        assert_eq!(room, u64::from(MTU) + 1);
        // Asking again without having sent anything gives no more.
        controller.signs.allow_one_more();
        assert_eq!(controller.window() - controller.signs.in_flight(), room);
        controller.signs.allow_no_more();
        assert_eq!(controller.window(), WINDOW);
    }

    #[test]
    fn a_window_with_room_is_left_as_it_is_and_an_allowance_has_an_end() {
        let (mut controller, now) = controller();
        controller.on_sent(now, 1200, 1);
        controller.signs.allow_one_more();
        assert_eq!(controller.window(), WINDOW);
        for packet in 0..10_000 {
            controller.signs.allow_one_more();
            controller.on_sent(now, u64::from(MTU), packet);
        }
        assert_eq!(controller.window(), WINDOW + MAX_ALLOWANCE);
    }

    #[test]
    fn a_probe_of_the_mtu_that_is_lost_in_the_blackout_does_not_hold_the_heartbeat_up() {
        let (mut controller, now) = controller();
        let room = |controller: &WatchedController| {
            controller.signs.allow_one_more();
            controller.window() - controller.signs.in_flight()
        };
        controller.on_sent(now, WINDOW, 10);
        controller.signs.note_probes(1, 0);
        assert_eq!(room(&controller), MTU_PROBE_BYTES + u64::from(MTU) + 1);
        // Answered, one lost, and none under way.
        controller.on_mtu_update(1300);
        controller.signs.note_probes(2, 1);
        assert_eq!(room(&controller), 1300 + 1);
        // A path that takes less than it did is no answer.
        controller.on_mtu_update(MTU);
        controller.signs.note_probes(3, 1);
        assert_eq!(room(&controller), MTU_PROBE_BYTES + u64::from(MTU) + 1);
    }

    #[test]
    fn the_variance_follows_the_samples_as_rfc_9002_has_it() {
        let (mut controller, _) = controller();
        let ms = Duration::from_millis;
        controller.note_rtt(ms(80));
        assert_eq!(controller.signs.rtt_variance(), ms(40));
        // A sample of 160 ms: the smoothed round trip moves from 80 to 90 ms, the variance to (3 × 40 + 80) / 4.
        controller.note_rtt(ms(90));
        assert_eq!(controller.signs.rtt_variance(), ms(50));
    }

    #[test]
    fn what_is_in_flight_is_what_was_sent_less_what_was_acknowledged_or_lost() {
        let (mut controller, now) = controller();
        controller.on_sent(now, 3000, 2);
        controller.on_congestion_event(now, now, false, 1000);
        assert_eq!(controller.signs.in_flight(), 2000);
        controller.on_end_acks(now, 500, false, Some(2));
        assert_eq!(controller.signs.in_flight(), 500);
        let copy = controller.clone_box();
        let copy = copy.into_any().downcast::<WatchedController>().unwrap();
        assert_eq!(copy.signs.in_flight(), 500);
    }
}
