//! Floor 5: one partition's protocol core joined to its log.
//!
//! Synchronous glue: the broker's owner threads and the simulator run this same code. Events come in as calls, effects go
//! out as [`Output`]s, polled until there are none. This is the only room that touches both the core and the log.

mod actions;
#[cfg(test)]
mod cluster_tests;
mod damage;
mod departures;
#[cfg(test)]
mod fault_tests;
mod hand_over;
mod output;
mod produce;
mod producers;
mod replica;
mod resign;
mod transactions;
mod views;

pub use departures::Departures;
pub use hand_over::HandOverError;
pub use output::{FenceAnswer, Frames, FramesReady, Hello, Output, PartitionView, RoleView};
pub use produce::ProduceRequest;
pub use replica::{Partition, PartitionOptions};
pub use transactions::MarkerRequest;
