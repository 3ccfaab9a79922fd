//! Checked reads of big-endian fields, shared by every message.

use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::types::{LeaderEpoch, LogPosition, Offset};

/// Bytes from a peer that are not the message they claim to be. The connection that brought them is closed: a peer that
/// speaks wrongly once cannot be trusted to have framed the rest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("{what} is cut off: it needs {needed} more bytes and has {left}")]
    Truncated {
        what: &'static str,
        needed: usize,
        left: usize,
    },
    #[error("{what} claims {length} bytes and at most {max} are allowed")]
    TooLong {
        what: &'static str,
        length: usize,
        max: usize,
    },
    #[error("{what} has the impossible value {value}")]
    Invalid { what: &'static str, value: u64 },
    #[error("{left} bytes are left over after {what}")]
    Trailing { what: &'static str, left: usize },
}

/// Reads fields off the front of a message. `what` names the message in errors.
pub(super) struct Reader {
    what: &'static str,
    rest: Bytes,
}

impl Reader {
    pub(super) fn new(what: &'static str, message: Bytes) -> Reader {
        Reader {
            what,
            rest: message,
        }
    }

    fn need(&self, needed: usize) -> Result<(), WireError> {
        let left = self.rest.len();
        if left < needed {
            return Err(WireError::Truncated {
                what: self.what,
                needed: needed - left,
                left,
            });
        }
        Ok(())
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.need(2)?;
        Ok(self.rest.get_u16())
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.need(4)?;
        Ok(self.rest.get_u32())
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.need(8)?;
        Ok(self.rest.get_u64())
    }

    pub(super) fn u128(&mut self) -> Result<u128, WireError> {
        self.need(16)?;
        Ok(self.rest.get_u128())
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<Bytes, WireError> {
        self.need(length)?;
        Ok(self.rest.split_to(length))
    }

    /// Whatever is left, which may be nothing.
    pub(super) fn rest(self) -> Bytes {
        self.rest
    }

    pub(super) fn offset(&mut self) -> Result<Offset, WireError> {
        let value = self.u64()?;
        Offset::new(value).ok_or_else(|| self.invalid(value))
    }

    pub(super) fn epoch(&mut self) -> Result<LeaderEpoch, WireError> {
        let value = self.u32()?;
        LeaderEpoch::new(value).ok_or_else(|| self.invalid(value.into()))
    }

    pub(super) fn position(&mut self) -> Result<LogPosition, WireError> {
        let offset = self.offset()?;
        let epoch = self.epoch()?;
        Ok(LogPosition::new(offset, epoch))
    }

    pub(super) fn invalid(&self, value: u64) -> WireError {
        WireError::Invalid {
            what: self.what,
            value,
        }
    }

    /// A message ends where its last field ends: trailing bytes are another version's fields or a framing error.
    pub(super) fn finish(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(WireError::Trailing {
                what: self.what,
                left,
            }),
        }
    }
}
