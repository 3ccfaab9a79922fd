//! Floor 10: measurements. Whole clusters, each node a process of its own, on this machine.
//!
//! - [`local`]: such a cluster, for the demo as well
//! - [`gap`]: for how long nobody gets an acknowledgement when something breaks

pub mod gap;
pub mod local;
