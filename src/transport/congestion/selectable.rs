//! A controller that can be exchanged while its connection lives.
//!
//! quinn makes a connection's controller before the handshake, when a server does not know who is there, and again when the
//! peer's address changes. So a server gives each connection a factory of its own, and sets that factory's choice once TLS
//! has said who the peer is; what the factory has made follows at the next packet.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

use super::choice::Congestion;

/// One connection's choice, shared between whoever decides it and the connection's controllers.
#[derive(Debug, Clone)]
pub(in crate::transport) struct Selection(Arc<AtomicU8>);

impl Default for Selection {
    fn default() -> Selection {
        Selection::new(Congestion::default())
    }
}

impl Selection {
    pub(in crate::transport) fn new(choice: Congestion) -> Selection {
        Selection(Arc::new(AtomicU8::new(choice as u8)))
    }

    pub(in crate::transport) fn set(&self, choice: Congestion) {
        self.0.store(choice as u8, Ordering::Relaxed);
    }

    fn get(&self) -> Congestion {
        let code = self.0.load(Ordering::Relaxed);
        Congestion::ALL
            .into_iter()
            .find(|choice| *choice as u8 == code)
            .unwrap_or_default()
    }
}

/// Makes controllers that follow a [`Selection`], with a window that never falls below a floor.
#[derive(Debug)]
pub(in crate::transport) struct SelectableConfig {
    pub(in crate::transport) selection: Selection,
    /// The first window, in bytes.
    pub(in crate::transport) initial_window: u64,
    /// The window never falls below this, in bytes, whatever the controller says.
    pub(in crate::transport) floor: u64,
}

impl ControllerFactory for SelectableConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let choice = self.selection.get();
        Box::new(Selectable {
            inner: choice.build(self.initial_window, now, current_mtu),
            choice,
            mtu: current_mtu,
            config: self,
        })
    }
}

struct Selectable {
    inner: Box<dyn Controller>,
    choice: Congestion,
    mtu: u16,
    config: Arc<SelectableConfig>,
}

impl Selectable {
    /// Takes the chosen controller, if it is another by now. It begins with the window that there is.
    fn follow(&mut self, now: Instant) {
        let choice = self.config.selection.get();
        if choice != self.choice {
            self.choice = choice;
            self.inner = choice.build(self.window(), now, self.mtu);
        }
    }
}

impl Controller for Selectable {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.follow(now);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().max(self.config.floor)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Selectable {
            inner: self.inner.clone_box(),
            choice: self.choice,
            mtu: self.mtu,
            config: Arc::clone(&self.config),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window().max(self.config.floor)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FLOOR: u64 = 256 * 1024;

    fn config(choice: Congestion) -> Arc<SelectableConfig> {
        Arc::new(SelectableConfig {
            selection: Selection::new(choice),
            initial_window: FLOOR,
            floor: FLOOR,
        })
    }

    #[test]
    fn a_window_stays_above_the_floor_whatever_is_lost() {
        for choice in Congestion::ALL {
            let now = Instant::now();
            let mut controller = config(choice).build(now, 1200);
            for i in 1..50 {
                let later = now + Duration::from_secs(i);
                controller.on_congestion_event(later, later, true, 100_000);
            }
            assert!(controller.window() >= FLOOR, "{choice}");
            assert!(controller.clone_box().window() >= FLOOR, "{choice}");
        }
    }

    #[test]
    fn a_selection_reaches_live_controllers_and_those_of_a_new_path() {
        let config = config(Congestion::Cubic);
        let now = Instant::now();
        let mut live = Arc::clone(&config).build(now, 1200);
        let mut copy = live.clone_box();
        config.selection.set(Congestion::Keel);
        let next = Arc::clone(&config).build(now, 1200);
        live.on_sent(now, 1200, 1);
        copy.on_sent(now, 1200, 1);
        for controller in [live, copy, next] {
            let controller = controller.into_any().downcast::<Selectable>().unwrap();
            assert_eq!(controller.choice, Congestion::Keel);
        }
    }
}
