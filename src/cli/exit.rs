//! What the program's exit code says.

use std::process::ExitCode;

use thiserror::Error;

use crate::bench::BenchError;
#[cfg(target_os = "linux")]
use crate::bench::lab::LabError;
use crate::bench::local::LocalError;
use crate::transport::{ConnectFailure, IdentityError};

/// How a command ended. The numbers are part of the command line's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Failure = 1,
    /// The command line was wrong.
    Usage = 2,
    /// No connection, or TLS refused it.
    CannotConnect = 3,
    /// Some records were not acknowledged.
    NotAcknowledged = 4,
    /// What was examined is not well.
    Unhealthy = 10,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The exit that an error stands for: [`ExitWith`]'s own; [`Exit::CannotConnect`] for a connection or an identity that
    /// failed; [`Exit::Ok`] when the reader of our output has gone; else [`Exit::Failure`].
    pub fn of(error: &anyhow::Error) -> Exit {
        // As a context it is told apart only by the error itself, not by the links of its chain.
        if let Some(with) = error.downcast_ref::<ExitWith>() {
            return with.exit;
        }
        for cause in error.chain() {
            if let Some(with) = cause.downcast_ref::<ExitWith>() {
                return with.exit;
            }
            if let Some(LocalError::Usage(_)) = cause.downcast_ref() {
                return Exit::Usage;
            }
            match cause.downcast_ref() {
                Some(BenchError::Impossible(_) | BenchError::Local(LocalError::Usage(_))) => {
                    return Exit::Usage;
                }
                Some(BenchError::Interrupted) => return Exit::Interrupted,
                _ => {}
            }
            #[cfg(target_os = "linux")]
            if let Some(LabError::Impossible(_)) = cause.downcast_ref() {
                return Exit::Usage;
            }
            if cause.is::<ConnectFailure>() || cause.is::<IdentityError>() {
                return Exit::CannotConnect;
            }
            if cause.is::<OutputClosed>() {
                return Exit::Ok;
            }
        }
        Exit::Failure
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error that ends the program with a particular code. Its text is for people and says what to do next.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct ExitWith {
    pub exit: Exit,
    pub message: String,
}

impl ExitWith {
    pub fn new(exit: Exit, message: impl Into<String>) -> ExitWith {
        ExitWith {
            exit,
            message: message.into(),
        }
    }
}

/// Whoever read our output wants no more of it, as `head` does. No error is shown.
#[derive(Debug, Error)]
#[error("the reader of the output has gone")]
pub struct OutputClosed;

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    /// The exit is in the middle: around a cause that says nothing, within another context.
    fn plain_context() -> anyhow::Error {
        anyhow::anyhow!("x").context(ExitWith::new(Exit::Usage, "y"))
    }

    #[test]
    fn the_code_comes_from_the_innermost_known_cause() {
        let plain = anyhow::anyhow!("x");
        assert_eq!(Exit::of(&plain), Exit::Failure);
        let address = "a:1".to_owned();
        let refused = Err::<(), _>(ConnectFailure::NothingListens { address })
            .context("cannot list topics")
            .unwrap_err();
        assert_eq!(Exit::of(&refused), Exit::CannotConnect);
        let with = anyhow::Error::new(ExitWith::new(Exit::NotAcknowledged, "2 of 5")).context("y");
        assert_eq!(Exit::of(&with).code(), 4);
        let with = plain_context().context("z");
        assert_eq!(Exit::of(&with), Exit::Usage);
        assert_eq!(Exit::of(&anyhow::Error::new(OutputClosed)), Exit::Ok);
        assert_eq!(Exit::Interrupted.code(), 130);
    }
}
