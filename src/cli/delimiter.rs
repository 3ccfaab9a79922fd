//! Delimiters as they are written on a command line, and records cut by them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use thiserror::Error;

/// How much is read at once.
const READ_BYTES: usize = 256 << 10;

/// One byte or more between two records, or between key and value. Written with escapes: `\n`, `\r`, `\t`, `\0`, `\\`,
/// `\xHH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delimiter(Bytes);

/// A text that stands for no delimiter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no delimiter: write at least one character; escapes are \\n \\r \\t \\0 \\\\ and \\xHH"
)]
pub struct InvalidDelimiter {
    text: String,
}

impl Delimiter {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Where it first stands in `input`.
    pub(super) fn find(&self, input: &[u8]) -> Option<usize> {
        memchr::memmem::find(input, &self.0)
    }
}

impl FromStr for Delimiter {
    type Err = InvalidDelimiter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDelimiter { text: text.into() };
        let bytes = unescape(text).ok_or_else(invalid)?;
        if bytes.is_empty() {
            return Err(invalid());
        }
        Ok(Delimiter(bytes.into()))
    }
}

impl fmt::Display for Delimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Resolves escapes; `None` for one that means nothing.
pub(super) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                u8::from_str_radix(digits, 16).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

/// A record cut from an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    /// Whether the delimiter stood behind it: false only for what is left at the end of the input.
    pub(super) delimited: bool,
}

/// What stood between two delimiters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cut {
    Record(Piece),
    /// A record beyond the cap, which was passed over and not held: its length in bytes.
    TooLong(u64),
}

/// Cuts an input into records, without ever holding more of it than one record and one read.
pub(super) struct Splitter<R> {
    input: R,
    delimiter: Delimiter,
    buffer: BytesMut,
    /// How much of the buffer was searched in vain.
    searched: usize,
    /// Of a record beyond the cap: what was thrown away of it already.
    passed_over: u64,
    max_record_bytes: usize,
    ended: bool,
}

impl<R: Read> Splitter<R> {
    /// A record beyond `max_record_bytes` comes out as [`Cut::TooLong`], and what is behind it goes on.
    pub(super) fn new(input: R, delimiter: Delimiter, max_record_bytes: usize) -> Splitter<R> {
        Splitter {
            input,
            delimiter,
            buffer: BytesMut::new(),
            searched: 0,
            passed_over: 0,
            max_record_bytes,
            ended: false,
        }
    }

    /// The next record; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Cut>> {
        loop {
            let length = self.delimiter.as_bytes().len();
            if let Some(found) = self.delimiter.find(&self.buffer[self.searched..]) {
                let bytes = self.buffer.split_to(self.searched + found).freeze();
                let _ = self.buffer.split_to(length);
                self.searched = 0;
                return Ok(Some(self.cut(bytes, true)));
            }
            // A delimiter may be cut in two by the end of what was read.
            self.searched = self.buffer.len().saturating_sub(length - 1);
            if self.ended {
                if self.buffer.is_empty() && self.passed_over == 0 {
                    return Ok(None);
                }
                self.searched = 0;
                let bytes = self.buffer.split().freeze();
                return Ok(Some(self.cut(bytes, false)));
            }
            if self.buffer.len() > self.max_record_bytes {
                self.passed_over += self.searched as u64;
                let _ = self.buffer.split_to(self.searched);
                self.searched = 0;
            }
            self.fill()?;
        }
    }

    fn cut(&mut self, bytes: Bytes, delimited: bool) -> Cut {
        let length = self.passed_over + bytes.len() as u64;
        self.passed_over = 0;
        if length > self.max_record_bytes as u64 {
            return Cut::TooLong(length);
        }
        Cut::Record(Piece { bytes, delimited })
    }

    fn fill(&mut self) -> io::Result<()> {
        let filled = self.buffer.len();
        self.buffer.resize(filled + READ_BYTES, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer
            .truncate(filled + read.as_ref().copied().unwrap_or(0));
        self.ended = read? == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives out one byte at a time, as a slow pipe may.
    struct Dripping<'a>(&'a [u8]);

    impl Read for Dripping<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else {
                return Ok(0);
            };
            into[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    fn pieces(input: impl Read, delimiter: &str) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = Splitter::new(input, delimiter.parse().unwrap(), 1 << 20);
        std::iter::from_fn(|| splitter.next().unwrap())
            .map(|cut| match cut {
                Cut::Record(piece) => (piece.bytes.to_vec(), piece.delimited),
                Cut::TooLong(length) => panic!("{length} bytes"),
            })
            .collect()
    }

    #[test]
    fn escapes_name_bytes() {
        let bytes = |text: &str| text.parse::<Delimiter>().map(|d| d.as_bytes().to_vec());
        assert_eq!(bytes(r"\n").unwrap(), b"\n");
        assert_eq!(bytes(r"a\x00\xfF\\").unwrap(), b"a\0\xff\\");
        for wrong in ["", r"\", r"\q", r"\x1", r"\xgg"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn empty_records_are_records_and_the_rest_is_one_too() {
        let piece = |text: &[u8], delimited| (text.to_vec(), delimited);
        assert_eq!(
            pieces(&b"a\n\nb"[..], r"\n"),
            [piece(b"a", true), piece(b"", true), piece(b"b", false)]
        );
        assert_eq!(pieces(&b"a\n"[..], r"\n"), [piece(b"a", true)]);
        assert!(pieces(&b""[..], r"\n").is_empty());
    }

    #[test]
    fn a_record_that_is_too_long_is_passed_over_and_not_held() {
        const LONG: u64 = 3 << 20;
        let input = (&b"before--"[..])
            .chain(io::repeat(b'-').take(1))
            .chain(io::repeat(b'x').take(LONG))
            .chain(&b"-y--after--"[..])
            .chain(io::repeat(b'z').take(LONG));
        let mut splitter = Splitter::new(input, "--".parse().unwrap(), 1 << 20);
        let mut cuts = Vec::new();
        while let Some(cut) = splitter.next().unwrap() {
            assert!(splitter.buffer.capacity() <= (1 << 20) + 4 * READ_BYTES);
            cuts.push(cut);
        }
        let record = |bytes| {
            Cut::Record(Piece {
                bytes: Bytes::from_static(bytes),
                delimited: true,
            })
        };
        assert_eq!(
            cuts,
            [
                record(b"before"),
                Cut::TooLong(1 + LONG + 2),
                record(b"after"),
                Cut::TooLong(LONG)
            ]
        );
    }

    proptest! {
        #[test]
        fn records_and_delimiters_make_the_input_again(input in proptest::collection::vec(0u8..3, 0..200)) {
            for delimiter in [r"\x00", r"\x01\x02", r"\x01\x01"] {
                let parsed: Delimiter = delimiter.parse().unwrap();
                let mut again = Vec::new();
                for (bytes, delimited) in pieces(Dripping(&input), delimiter) {
                    again.extend(bytes);
                    if delimited {
                        again.extend(parsed.as_bytes());
                    }
                }
                prop_assert_eq!(&again, &input);
            }
        }
    }
}
