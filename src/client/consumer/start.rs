//! Where a consumer starts in a partition.

use std::str::FromStr;

use thiserror::Error;

use crate::types::Offset;

/// See the file's head. Parsed from kcat's spelling: `beginning`, `end`, `N`, `-N`, `@MILLISECONDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first record that the log still has.
    Beginning,
    /// The next record that is committed.
    End,
    Offset(Offset),
    /// So many offsets before the end, or the beginning where the log has fewer.
    FromEnd(u64),
    /// The first record whose timestamp, in milliseconds since 1970, is at least this; the end where there is none.
    Timestamp(i64),
}

/// Text that names no start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no place to start: expected beginning, end, an offset N, -N (so many before the end) or @MS (milliseconds since 1970)"
)]
pub struct ParseStartError {
    text: String,
}

impl FromStr for Start {
    type Err = ParseStartError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `parse` takes a leading plus, which means nothing here.
        let number = |digits: &str| -> Option<u64> {
            digits
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| digits.parse().ok())?
        };
        let start = match text {
            "beginning" => Some(Start::Beginning),
            "end" => Some(Start::End),
            _ => match (text.strip_prefix('-'), text.strip_prefix('@')) {
                (Some(digits), _) => number(digits).map(Start::FromEnd),
                (_, Some(digits)) => number(digits)
                    .and_then(|ms| i64::try_from(ms).ok())
                    .map(Start::Timestamp),
                _ => number(text).and_then(Offset::new).map(Start::Offset),
            },
        };
        start.ok_or_else(|| ParseStartError { text: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kcats_spelling_is_read() {
        for (text, start) in [
            ("beginning", Start::Beginning),
            ("end", Start::End),
            ("0", Start::Offset(Offset::ZERO)),
            ("42", Start::Offset(Offset::new(42).unwrap())),
            ("-10", Start::FromEnd(10)),
            ("@1700000000000", Start::Timestamp(1_700_000_000_000)),
        ] {
            assert_eq!(text.parse(), Ok(start));
        }
        for bad in [
            "",
            "-",
            "@",
            "+1",
            "-+1",
            "@-1",
            "1.5",
            "begin",
            "9223372036854775808",
        ] {
            assert!(bad.parse::<Start>().is_err(), "{bad:?}");
        }
    }
}
