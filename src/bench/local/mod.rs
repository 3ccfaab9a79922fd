//! A cluster of processes of its own on this machine: for the demo, and to measure.
//!
//! - [`folder`]: where everything of one cluster lies
//! - [`processes`]: the nodes, started and stopped
//! - [`watcher`]: what each node says of itself
//! - [`start`]: from nothing to a cluster that serves

mod folder;
mod processes;
mod start;
mod watcher;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use folder::{Folder, MAX_NODES, NodePlan, Wishes};
pub use processes::{Processes, State, Stopped};
pub use start::start_up;
pub use watcher::{ASK_EVERY, Watchers};

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
