//! Floor 10: measurements. Whole clusters, each node a process of its own, on this machine.
//!
//! - [`local`]: such a cluster, for the demo as well
//! - [`records`]: records on their way, and whether every one of them is there, once
//! - [`gap`]: for how long nobody gets an acknowledgement when something breaks
//! - [`flow`]: how fast records flow, and what a link costs
//! - [`times`], [`series`]: how long things took, in all and in the course of time
//! - [`usage`]: what processes took of the machine
//! - [`report`]: pages and drawings for people
//! - [`arms`]: QUIC beside TCP, in that network
//! - [`lab`]: a network of its own, whose links are as bad as is wished, for any program

#[cfg(target_os = "linux")]
pub mod arms;
mod error;
pub mod flow;
pub mod gap;
#[cfg(target_os = "linux")]
pub mod lab;
pub mod local;
pub mod records;
pub mod report;
mod series;
mod times;
mod usage;

pub use error::BenchError;
pub use series::{Point, Series};
pub use times::{Times, millis};
pub use usage::Usage;
