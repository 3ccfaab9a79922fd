//! Why a measurement did not come about.

use std::io;

use thiserror::Error;

use super::local::LocalError;
use crate::client::ClientError;

/// Why a measurement did not come about.
#[derive(Debug, Error)]
pub enum BenchError {
    /// What was asked for cannot be; the text says what to change.
    #[error("{0}")]
    Impossible(String),
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error("cannot {doing}")]
    Client {
        doing: &'static str,
        #[source]
        source: Box<ClientError>,
    },
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Failed(String),
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    /// What was measured could not be told.
    pub(super) fn telling(source: io::Error) -> BenchError {
        BenchError::Io {
            what: "cannot say what a run gave".to_owned(),
            source,
        }
    }

    /// What a client of the cluster could not do.
    pub(super) fn client(doing: &'static str) -> impl FnOnce(ClientError) -> BenchError {
        move |source| BenchError::Client {
            doing,
            source: Box::new(source),
        }
    }
}
