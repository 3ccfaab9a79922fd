//! The big-endian fields of keys and values that are kept in the cluster's own topics.

use thiserror::Error;

/// Bytes that are not the fields which they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FieldError {
    #[error("it ends within a field that takes {wanted} bytes, with {remaining} left")]
    CutShort { wanted: usize, remaining: usize },
    #[error("a length of {0}")]
    BadLength(i64),
    #[error("text that is not UTF-8")]
    NotText,
}

/// Reads fields off a slice. Nothing is allocated before its bytes are known to be there.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields { rest: bytes }
    }

    fn take(&mut self, wanted: usize) -> Result<&'a [u8], FieldError> {
        match self.rest.split_at_checked(wanted) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(FieldError::CutShort {
                wanted,
                remaining: self.rest.len(),
            }),
        }
    }

    /// As many bytes as a length says that was read off them.
    fn take_length(&mut self, length: i64) -> Result<&'a [u8], FieldError> {
        self.take(usize::try_from(length).map_err(|_| FieldError::BadLength(length))?)
    }

    pub fn text_of(&mut self, length: i64) -> Result<&'a str, FieldError> {
        std::str::from_utf8(self.take_length(length)?).map_err(|_| FieldError::NotText)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FieldError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub fn i8(&mut self) -> Result<i8, FieldError> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    pub fn i16(&mut self) -> Result<i16, FieldError> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub fn i32(&mut self) -> Result<i32, FieldError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub fn i64(&mut self) -> Result<i64, FieldError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// Text after its length, an i16.
    pub fn text(&mut self) -> Result<&'a str, FieldError> {
        self.optional_text()?.ok_or(FieldError::BadLength(-1))
    }

    /// The same; a length of −1 is "absent".
    pub fn optional_text(&mut self) -> Result<Option<&'a str>, FieldError> {
        match self.i16()? {
            -1 => Ok(None),
            length => self.text_of(length.into()).map(Some),
        }
    }

    /// Bytes after their length, an i32; absent ones are empty ones.
    pub fn bytes(&mut self) -> Result<&'a [u8], FieldError> {
        match self.i32()? {
            -1 => Ok(&[]),
            length => self.take_length(length.into()),
        }
    }

    /// A variable-length integer of at most 32 bits, seven in each byte, the lowest first.
    pub fn unsigned(&mut self) -> Result<u32, FieldError> {
        let mut value = 0_u64;
        for shift in (0..35).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return u32::try_from(value).map_err(|_| FieldError::BadLength(value as i64));
            }
        }
        Err(FieldError::BadLength(value as i64))
    }

    /// Tagged fields: each is shown by its number, with its own bytes.
    pub fn tags<E: From<FieldError>>(
        &mut self,
        mut see: impl FnMut(u32, Fields<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        for _ in 0..self.unsigned()? {
            let tag = self.unsigned()?;
            let length = self.unsigned()?;
            let field = self.take_length(length.into())?;
            see(tag, Fields::new(field))?;
        }
        Ok(())
    }
}
