//! How an input that does not end in the delimiter comes back byte for byte.
//!
//! `produce` cuts its input at delimiters and `consume` puts one behind each record. The last record of an input that lacks
//! the last delimiter carries a header that says so; `consume` then holds the delimiter back until another record follows.

use bytes::Bytes;

use crate::record::Header;

const NAME: &str = "quorate.no-delimiter";

pub(super) fn header() -> Header {
    (NAME.to_owned(), Some(Bytes::new()))
}

/// Whether the record was the last of an input that did not end in the delimiter.
pub(super) fn is_marked(headers: &[Header]) -> bool {
    headers.iter().any(|(name, _)| name == NAME)
}
