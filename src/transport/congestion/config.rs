//! How Keel begins, and what quinn makes it with.

use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

use super::keel::Keel;

/// How a [`Keel`] begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeelConfig {
    /// The first window, in bytes.
    pub initial_window: u64,
}

impl Default for KeelConfig {
    fn default() -> KeelConfig {
        KeelConfig {
            initial_window: 128 * 1024,
        }
    }
}

impl ControllerFactory for KeelConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Keel::new(*self, now, current_mtu))
    }
}
