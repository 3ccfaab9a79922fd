//! Links that are made worse on purpose: loss, delay, jitter, reordering, duplication, a slow link with a queue, cuts and NAT
//! rebinding, without any privilege.
//!
//! - [`spec`]: what is wished for, in words
//! - [`model`]: what becomes of one packet; pure and seeded

mod model;
mod spec;

pub use model::{DropCause, Fate, Impairment, ImpairmentCounts, ImpairmentModel, PACKET_OVERHEAD};
pub use spec::{Cut, ImpairmentSpec, InvalidSpec, LinkImpairment, MAX_DELAY, Peers};
