//! A look at a request before it is decoded.
//!
//! The decoder of `kafka-protocol` reserves memory for as many array elements as the wire claims, so that a request of
//! thirty bytes can ask for gigabytes. Here a request is walked by its schema first, and refused where it claims more
//! than its bytes can hold: every string within what remains, every array at most as many elements as would fit if each
//! were as small as can be, and in all at most [`MAX_REQUEST_ELEMENTS`], because an element that takes two bytes on the
//! wire takes a hundred once decoded.
//!
//! The walk allocates nothing and recurses only as deep as the schema.

use thiserror::Error;

use super::limits::MAX_REQUEST_ELEMENTS;
use super::schema::{Field, Kind, Schema};

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Malformed {
    #[error("it ends within a field that takes {wanted} bytes, with {remaining} left")]
    CutShort { wanted: usize, remaining: usize },
    #[error("a length of {0} where none can be negative but \"none\", which is -1")]
    NegativeLength(i32),
    #[error("it claims {claimed} elements and has {remaining} bytes left for them")]
    TooManyElements { claimed: usize, remaining: usize },
    #[error("it has more than {MAX_REQUEST_ELEMENTS} elements")]
    OverElementLimit,
}

/// What a request's body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Array elements and tagged fields, all levels together.
    pub(super) elements: usize,
    /// Bytes behind the last field. Nobody reads them.
    pub(super) left_over: usize,
}

/// Walks the body of a request: what follows its header.
pub(super) fn check(schema: &Schema, version: i16, body: &[u8]) -> Result<Extent, Malformed> {
    let mut walk = Walk {
        rest: body,
        version,
        flexible: version >= schema.flexible_since,
        elements: 0,
    };
    walk.fields(schema.fields)?;
    Ok(Extent {
        elements: walk.elements,
        left_over: walk.rest.len(),
    })
}

/// Skips tagged fields, and returns what follows them. Request headers of version 2 end in them.
pub(super) fn skip_tags(input: &[u8]) -> Result<&[u8], Malformed> {
    let mut walk = Walk {
        rest: input,
        version: 0,
        flexible: true,
        elements: 0,
    };
    walk.tags()?;
    Ok(walk.rest)
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
    elements: usize,
}

impl Walk<'_> {
    fn fields(&mut self, fields: &[Field]) -> Result<(), Malformed> {
        for field in fields {
            if field.is_in(self.version) {
                self.value(&field.kind)?;
            }
        }
        if self.flexible {
            self.tags()?;
        }
        Ok(())
    }

    fn value(&mut self, kind: &Kind) -> Result<(), Malformed> {
        match *kind {
            Kind::Fixed(size) => self.skip(size),
            Kind::Text => {
                let length = if self.flexible {
                    self.compact_length()?
                } else {
                    let length = i16::from_be_bytes(self.array()?);
                    plain_length(length.into())?
                };
                self.skip(length)
            }
            Kind::Blob => {
                let length = self.long_length()?;
                self.skip(length)
            }
            Kind::Items(item) => {
                let least = least_size(item, self.flexible);
                for _ in 0..self.count(least)? {
                    self.value(item)?;
                }
                Ok(())
            }
            Kind::Structs(fields) => {
                let least = least_struct(fields, self.version, self.flexible);
                for _ in 0..self.count(least)? {
                    self.fields(fields)?;
                }
                Ok(())
            }
        }
    }

    /// How many elements an array claims, if that many can be there.
    fn count(&mut self, least_size: usize) -> Result<usize, Malformed> {
        let claimed = self.long_length()?;
        let remaining = self.rest.len();
        // Every element of a request takes at least a byte.
        if claimed > remaining / least_size.max(1) {
            return Err(Malformed::TooManyElements { claimed, remaining });
        }
        self.charge(claimed)?;
        Ok(claimed)
    }

    fn charge(&mut self, elements: usize) -> Result<(), Malformed> {
        self.elements = self.elements.saturating_add(elements);
        if self.elements > MAX_REQUEST_ELEMENTS {
            return Err(Malformed::OverElementLimit);
        }
        Ok(())
    }

    fn tags(&mut self) -> Result<(), Malformed> {
        let claimed = self.varint()? as usize;
        let remaining = self.rest.len();
        // A tag and a size take a byte each.
        if claimed > remaining / 2 {
            return Err(Malformed::TooManyElements { claimed, remaining });
        }
        self.charge(claimed)?;
        for _ in 0..claimed {
            self.varint()?;
            let size = self.varint()? as usize;
            self.skip(size)?;
        }
        Ok(())
    }

    /// The length of a blob or an array; "none" has none.
    fn long_length(&mut self) -> Result<usize, Malformed> {
        if self.flexible {
            self.compact_length()
        } else {
            plain_length(i32::from_be_bytes(self.array()?))
        }
    }

    fn compact_length(&mut self) -> Result<usize, Malformed> {
        Ok((self.varint()? as usize).saturating_sub(1))
    }

    /// Exactly as the decoder reads it: at most five bytes, and what the fifth has too much is dropped.
    fn varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for i in 0..5 {
            let [byte] = self.array()?;
            value |= u32::from(byte & 0x7f) << (i * 7);
            if byte < 0x80 {
                break;
            }
        }
        Ok(value)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Malformed::CutShort {
            wanted: N,
            remaining: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(*taken)
    }

    fn skip(&mut self, size: usize) -> Result<(), Malformed> {
        self.rest = self.rest.get(size..).ok_or(Malformed::CutShort {
            wanted: size,
            remaining: self.rest.len(),
        })?;
        Ok(())
    }
}

fn plain_length(length: i32) -> Result<usize, Malformed> {
    match length {
        -1 => Ok(0),
        _ => usize::try_from(length).map_err(|_| Malformed::NegativeLength(length)),
    }
}

/// The fewest bytes that a value of this kind takes.
fn least_size(kind: &Kind, flexible: bool) -> usize {
    match *kind {
        Kind::Fixed(size) => size,
        _ if flexible => 1,
        Kind::Text => 2,
        Kind::Blob | Kind::Items(_) | Kind::Structs(_) => 4,
    }
}

fn least_struct(fields: &[Field], version: i16, flexible: bool) -> usize {
    let fields = fields.iter().filter(|field| field.is_in(version));
    let size: usize = fields.map(|field| least_size(&field.kind, flexible)).sum();
    size + usize::from(flexible)
}
