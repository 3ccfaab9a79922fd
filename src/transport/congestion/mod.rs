//! Congestion control: which controller a connection has, and our own for links that lose packets.

mod choice;
mod competing;
mod config;
mod keel;
mod min_rtt;
mod rate;
mod rounds;
mod selectable;

pub use choice::{
    Congestion, CongestionPolicy, InvalidLinkCongestion, LinkCongestion, UnknownCongestion,
};
pub use config::KeelConfig;
pub use keel::Keel;
pub(super) use selectable::{SelectableConfig, Selection};
