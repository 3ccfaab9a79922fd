//! Floor 10: measurements. Whole clusters, each node a process of its own, on this machine.
//!
//! - [`local`]: such a cluster, for the demo as well
//! - [`gap`]: for how long nobody gets an acknowledgement when something breaks
//! - [`lab`]: a network of its own, whose links are as bad as is wished, for any program

pub mod gap;
#[cfg(target_os = "linux")]
pub mod lab;
pub mod local;
