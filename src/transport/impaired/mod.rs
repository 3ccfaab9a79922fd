//! Links that are made worse on purpose: loss, delay, jitter, reordering, duplication, a slow link with a queue, cuts and NAT
//! rebinding, without any privilege.
//!
//! - [`spec`]: what is wished for, in words; [`watch`]: the file that changes it
//! - [`model`]: what becomes of one packet of one way of one link; pure and seeded
//! - [`link_table`], [`announcement`]: which address is whose, and which link that is
//! - [`held`], [`line`]: packets that are not due yet
//! - [`socket`]: all of it under quinn
//!
//! The lab network of `quorate bench lab` carries IP packets through the same models; see `bench::lab`.

mod announcement;
mod held;
mod line;
mod link_table;
mod links;
mod model;
mod socket;
#[cfg(test)]
mod socket_tests;
mod spec;
mod watch;

pub use held::HeldPackets;
pub use line::{MAX_HELD_BYTES, MAX_HELD_PACKETS};
pub use links::ImpairedLinks;
pub use model::{
    DropCause, Fate, Impairment, ImpairmentCounts, ImpairmentModel, PACKET_OVERHEAD,
    mixed as mixed_seed,
};
pub(super) use socket::ImpairedSocket;
pub use spec::{Cut, ImpairmentSpec, InvalidSpec, LinkEnd, LinkImpairment, MAX_DELAY, Peers};
pub use watch::{WatchedRules, watch_impairment};
