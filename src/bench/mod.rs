//! Floor 10: measurements. Whole clusters, each node a process of its own, on this machine.
//!
//! - [`local`]: such a cluster, for the demo as well

pub mod local;
