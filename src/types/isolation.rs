//! What a reader is shown of transactions.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Kafka's `isolation.level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IsolationLevel {
    /// Every committed record, also those of transactions that have not ended, or were aborted.
    #[default]
    ReadUncommitted,
    /// The records of committed transactions, and those outside any, up to the first that is not decided yet.
    ReadCommitted,
}

impl IsolationLevel {
    /// Kafka's number for it.
    pub const fn to_wire(self) -> i8 {
        match self {
            IsolationLevel::ReadUncommitted => 0,
            IsolationLevel::ReadCommitted => 1,
        }
    }

    /// As Kafka does, everything but 1 is taken for 0.
    pub const fn from_wire(number: i8) -> IsolationLevel {
        match number {
            1 => IsolationLevel::ReadCommitted,
            _ => IsolationLevel::ReadUncommitted,
        }
    }
}

/// A text that names no isolation level.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is no isolation level; there are read-uncommitted and read-committed")]
pub struct ParseIsolationError {
    text: String,
}

impl FromStr for IsolationLevel {
    type Err = ParseIsolationError;

    /// Kafka's words are taken as well: `read_committed`.
    fn from_str(text: &str) -> Result<IsolationLevel, ParseIsolationError> {
        match text {
            "read-uncommitted" | "read_uncommitted" => Ok(IsolationLevel::ReadUncommitted),
            "read-committed" | "read_committed" => Ok(IsolationLevel::ReadCommitted),
            _ => Err(ParseIsolationError {
                text: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for IsolationLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IsolationLevel::ReadUncommitted => "read-uncommitted",
            IsolationLevel::ReadCommitted => "read-committed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_come_back() {
        for level in [
            IsolationLevel::ReadUncommitted,
            IsolationLevel::ReadCommitted,
        ] {
            assert_eq!(level.to_string().parse(), Ok(level));
            assert_eq!(IsolationLevel::from_wire(level.to_wire()), level);
        }
        let error = "committed".parse::<IsolationLevel>().unwrap_err();
        assert!(error.to_string().contains("read-committed"), "{error}");
    }
}
