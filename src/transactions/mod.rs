//! Floor 3: transactions, without I/O.
//!
//! A [`Coordinator`] looks after the transactional ids of one partition of the internal topic
//! [`TRANSACTIONS_TOPIC`](crate::types::TRANSACTIONS_TOPIC): which producer holds each, what its transaction has written to,
//! and how that ends. The leader of that partition runs it. Requests, time and randomness come in as arguments; answers,
//! records to write and markers to send are polled. Nothing is answered or acted upon before it is written, so a coordinator
//! that is rebuilt from the log goes on where the last one stood.
//!
//! ```text
//!            first partition            EndTxn                 every partition has its marker
//!   Empty ───────────────────▶ Ongoing ────────▶ PrepareCommit ──────────────────▶ CompleteCommit
//!     ▲                        ▲     │                                                 │
//!     │ a producer begins      │     └─────────▶ PrepareAbort ───────────────────▶ CompleteAbort
//!     │ with the id            │      EndTxn, timeout, another producer                │
//!     └────────────────────────┴───────────────────────────────────────────────────────┘
//! ```
//!
//! `Dead` is an id whose removal is being written. A transaction that runs out of time, or whose id another producer claims,
//! is aborted under the next producer epoch, so that whoever began it is fenced; Kafka calls the step PrepareEpochFence, and
//! never writes it. A client of [`ClientVersion::V2`] gets its next epoch with the end of each transaction, and may abort one that
//! has no partition. The rules are Kafka's (KIP-98, KIP-360, KIP-890), so that any client's transactions work here; the record
//! formats are Kafka's, so that tools read them.

mod coordinator;
mod effects;
mod limits;
mod log_format;
mod markers;
mod partitions;
mod request;
mod state;
#[cfg(test)]
mod tests;
mod transaction;
mod version;

pub use coordinator::Coordinator;
pub use effects::Ticket;
pub use limits::{MAX_IDS, MAX_PARTITIONS, MAX_STATE_BYTES, MAX_TRANSACTIONAL_ID_BYTES, Settings};
pub use log_format::{FormatError, LogKey, decode_key, reread_record};
pub use markers::{Marked, Marker};
pub use request::{Answer, Description, Filter, Listing, Now, Reach, Request};
pub use state::{Ending, State};
pub use version::ClientVersion;
