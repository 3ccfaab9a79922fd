//! A cluster of processes of its own on this machine: for the demo, and to measure.
//!
//! - [`folder`]: where everything of one cluster lies
//! - [`processes`]: the nodes, started and stopped
//! - [`watcher`]: what each node says of itself
//! - [`cast`]: which node leads, and which follow
//! - [`client`]: a client of it, and its topics
//! - [`agreement`]: whether the replicas hold the same in the end
//! - [`place`]: where several of them lie
//! - [`start`]: from nothing to a cluster that serves

mod agreement;
mod cast;
mod client;
mod folder;
mod place;
mod processes;
mod start;
mod watcher;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use agreement::{Agreement, Replica, compare};
pub use cast::Cast;
pub use client::{connect, create_topic, load_identity};
pub use folder::{Folder, MAX_NODES, NodePlan, Seat, Wishes};
pub use place::Place;
pub use processes::{Processes, State, Stopped};
pub use start::start_up;
pub use watcher::{ASK_EVERY, Watchers};

use crate::client::ClientError;
use crate::transport::{CertificateError, IdentityError, InvalidClientName, InvalidHost};

/// Why a cluster could not be had.
#[derive(Debug, Error)]
pub enum LocalError {
    /// What was asked for cannot be; the text says what to change.
    #[error("{0}")]
    Usage(String),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the certificates in {}", dir.display())]
    Identity {
        dir: PathBuf,
        #[source]
        source: IdentityError,
    },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    ClientName(#[from] InvalidClientName),
    #[error(transparent)]
    Host(#[from] InvalidHost),
    #[error("cannot connect to the cluster")]
    Client(#[source] Box<ClientError>),
    #[error("{0}")]
    Failed(String),
}

/// Says what was being done when an operation of the system failed.
trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, LocalError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, LocalError> {
        self.map_err(|source| LocalError::Io {
            what: what(),
            source,
        })
    }
}
