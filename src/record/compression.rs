//! The codecs of a record batch.
//!
//! Expanding stops at a limit that the caller states, and no codec allocates by a length that it read without comparing
//! it with what the input could hold.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use bytes::Bytes;
use thiserror::Error;

/// The most that one batch's records may expand to, in bytes, unless the caller states another limit. A batch beyond it
/// is refused with [`CompressionError::TooLarge`]; nothing more of it is expanded.
pub const MAX_EXPANDED_BYTES: usize = 128 << 20;

/// The largest zstd window that is accepted, as a power of two: 128 MiB, what zstd's highest level (22) asks for and
/// what every Kafka client accepts. The window's pages are touched only as far as data is really expanded.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// zstd's own default, and Kafka's.
const ZSTD_LEVEL: i32 = 3;

/// What xerial's snappy-java, and so every Java client, puts in front of snappy blocks: a magic, then two versions.
const XERIAL_MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_LEN: usize = 16;
const XERIAL_VERSION: u32 = 1;
/// snappy-java's block size in Kafka, in bytes before compression.
const XERIAL_BLOCK_BYTES: usize = 32 << 10;
/// Snappy's densest element makes 64 bytes of 3, so a block that claims more than this factor lies.
const SNAPPY_MAX_RATIO: usize = 22;

/// A batch's codec: the low three bits of its attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    /// Written in xerial's framing, which Java and librdkafka read; read with it or without.
    Snappy,
    /// LZ4 frames of independent 64 KiB blocks, the only kind that the Java client reads.
    Lz4,
    Zstd,
}

/// Why records could not be compressed or expanded.
#[derive(Debug, Error)]
pub enum CompressionError {
    #[error("the records expand to more than {limit} bytes; consume them with a higher limit")]
    TooLarge { limit: usize },
    #[error("the {codec} block is damaged")]
    Damaged {
        codec: Compression,
        #[source]
        source: io::Error,
    },
    #[error("{codec} cannot compress the records")]
    Compress {
        codec: Compression,
        #[source]
        source: io::Error,
    },
}

/// Text that names no codec.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is no compression: expected none, gzip, snappy, lz4 or zstd")]
pub struct UnknownCompression {
    text: String,
}

impl Compression {
    pub const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    /// The number in the batch's attributes.
    pub const fn codec(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Snappy => 2,
            Compression::Lz4 => 3,
            Compression::Zstd => 4,
        }
    }

    /// `None` for a number that Kafka has not given out.
    pub const fn from_codec(codec: u8) -> Option<Compression> {
        match codec {
            0 => Some(Compression::None),
            1 => Some(Compression::Gzip),
            2 => Some(Compression::Snappy),
            3 => Some(Compression::Lz4),
            4 => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// Kafka's name for it in `compression.type`.
    pub const fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }

    /// Appends `input`, compressed, to `out`.
    pub(super) fn compress(self, input: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
        let result = match self {
            Compression::None => out.write_all(input),
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(&mut *out, flate2::Compression::default());
                encoder
                    .write_all(input)
                    .and_then(|()| encoder.finish().map(|_| ()))
            }
            Compression::Snappy => compress_xerial(input, out),
            Compression::Lz4 => {
                let info = lz4_flex::frame::FrameInfo::new()
                    .block_size(lz4_flex::frame::BlockSize::Max64KB)
                    .block_mode(lz4_flex::frame::BlockMode::Independent);
                let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, &mut *out);
                encoder
                    .write_all(input)
                    .and_then(|()| encoder.try_finish().map_err(io::Error::other))
            }
            Compression::Zstd => zstd::bulk::compress(input, ZSTD_LEVEL)
                .map(|compressed| out.extend_from_slice(&compressed)),
        };
        result.map_err(|source| CompressionError::Compress {
            codec: self,
            source,
        })
    }

    /// Expands `input` to at most `limit` bytes. Without compression the result shares the input.
    pub fn expand(self, input: &Bytes, limit: usize) -> Result<Bytes, CompressionError> {
        let damaged = |source| CompressionError::Damaged {
            codec: self,
            source,
        };
        match self {
            Compression::None if input.len() > limit => Err(CompressionError::TooLarge { limit }),
            Compression::None => Ok(input.clone()),
            Compression::Gzip => {
                self.expand_stream(flate2::read::MultiGzDecoder::new(&input[..]), limit)
            }
            Compression::Snappy => expand_snappy(input, limit),
            Compression::Lz4 => {
                self.expand_stream(lz4_flex::frame::FrameDecoder::new(&input[..]), limit)
            }
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(&input[..]).map_err(damaged)?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG_MAX)
                    .map_err(damaged)?;
                self.expand_stream(decoder, limit)
            }
        }
    }

    /// Reads one byte past the limit to tell "just fits" from "goes on".
    fn expand_stream(self, stream: impl Read, limit: usize) -> Result<Bytes, CompressionError> {
        let mut out = Vec::new();
        stream
            .take(limit as u64 + 1)
            .read_to_end(&mut out)
            .map_err(|source| CompressionError::Damaged {
                codec: self,
                source,
            })?;
        if out.len() > limit {
            return Err(CompressionError::TooLarge { limit });
        }
        Ok(out.into())
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Compression::ALL
            .into_iter()
            .find(|codec| codec.name() == text)
            .ok_or_else(|| UnknownCompression { text: text.into() })
    }
}

/// The xerial header, then for each block its compressed length (`u32`, big-endian) and a raw snappy block.
fn compress_xerial(input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.extend_from_slice(XERIAL_MAGIC);
    out.extend_from_slice(&XERIAL_VERSION.to_be_bytes());
    out.extend_from_slice(&XERIAL_VERSION.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    for block in input.chunks(XERIAL_BLOCK_BYTES) {
        let length_at = out.len();
        let block_at = length_at + 4;
        out.resize(block_at + snap::raw::max_compress_len(block.len()), 0);
        let length = encoder
            .compress(block, &mut out[block_at..])
            .map_err(io::Error::other)?;
        // A block is at most some 38 KiB.
        out[length_at..block_at].copy_from_slice(&(length as u32).to_be_bytes());
        out.truncate(block_at + length);
    }
    Ok(())
}

fn expand_snappy(input: &[u8], limit: usize) -> Result<Bytes, CompressionError> {
    let mut out = Vec::new();
    if input.starts_with(XERIAL_MAGIC) {
        let mut rest = input
            .get(XERIAL_HEADER_LEN..)
            .ok_or_else(|| damaged_snappy("the xerial header is cut off"))?;
        while !rest.is_empty() {
            let (length, after) = rest
                .split_first_chunk::<4>()
                .ok_or_else(|| damaged_snappy("a block's length is cut off"))?;
            let (block, after) = after
                .split_at_checked(u32::from_be_bytes(*length) as usize)
                .ok_or_else(|| damaged_snappy("a block is longer than what is left"))?;
            expand_snappy_block(block, limit, &mut out)?;
            rest = after;
        }
    } else {
        expand_snappy_block(input, limit, &mut out)?;
    }
    Ok(out.into())
}

fn expand_snappy_block(
    block: &[u8],
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    let length = snap::raw::decompress_len(block).map_err(damaged_snappy)?;
    if length > block.len().saturating_mul(SNAPPY_MAX_RATIO) {
        return Err(damaged_snappy("a block claims more than it can hold"));
    }
    let start = out.len();
    if length > limit.saturating_sub(start) {
        return Err(CompressionError::TooLarge { limit });
    }
    out.resize(start + length, 0);
    snap::raw::Decoder::new()
        .decompress(block, &mut out[start..])
        .map_err(damaged_snappy)?;
    Ok(())
}

fn damaged_snappy(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CompressionError {
    CompressionError::Damaged {
        codec: Compression::Snappy,
        source: io::Error::new(io::ErrorKind::InvalidData, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(codec: Compression, input: &[u8]) -> Bytes {
        let mut out = Vec::new();
        codec.compress(input, &mut out).unwrap();
        out.into()
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; 1 << 20];
        for codec in Compression::ALL {
            let bomb = compressed(codec, &zeros);
            assert!(
                matches!(
                    codec.expand(&bomb, (1 << 20) - 1),
                    Err(CompressionError::TooLarge { .. })
                ),
                "{codec}"
            );
            assert_eq!(codec.expand(&bomb, 1 << 20).unwrap(), zeros, "{codec}");
        }
    }

    #[test]
    fn snappy_is_read_raw_and_in_xerial_framing() {
        let text = b"snappy snappy snappy".repeat(5000);
        let raw: Bytes = snap::raw::Encoder::new()
            .compress_vec(&text)
            .unwrap()
            .into();
        assert_eq!(Compression::Snappy.expand(&raw, 1 << 20).unwrap(), text);
        let framed = compressed(Compression::Snappy, &text);
        assert_eq!(
            framed[..16],
            *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01",
            "the header that snappy-java writes"
        );
        assert_eq!(Compression::Snappy.expand(&framed, 1 << 20).unwrap(), text);
    }

    #[test]
    fn a_snappy_block_that_lies_about_its_size_allocates_nothing() {
        // The varint 2^31 - 1, and nothing behind it.
        let liar = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x07]);
        match Compression::Snappy.expand(&liar, usize::MAX) {
            Err(CompressionError::Damaged { source, .. }) => {
                assert_eq!(source.to_string(), "a block claims more than it can hold");
            }
            other => panic!("{other:?}"),
        }
        let mut framed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
        framed.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 1, 2]);
        assert!(Compression::Snappy.expand(&framed.into(), 100).is_err());
    }

    /// Made with the reference tools, so that both ends of ours cannot be wrong together: `printf hello | gzip -n`,
    /// `| lz4 -c` and `| zstd`.
    #[test]
    fn foreign_blocks_are_read() {
        for (codec, block) in [
            (Compression::Gzip, &b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\x48\xcd\xc9\xc9\x07\x00\x86\xa6\x10\x36\x05\x00\x00\x00"[..]),
            (Compression::Lz4, &b"\x04\x22\x4d\x18\x64\x40\xa7\x05\x00\x00\x80\x68\x65\x6c\x6c\x6f\x00\x00\x00\x00\xf9\x77\x00\xfb"[..]),
            (Compression::Zstd, &b"\x28\xb5\x2f\xfd\x04\x58\x29\x00\x00\x68\x65\x6c\x6c\x6f\xa3\x6d\x9f\x88"[..]),
        ] {
            let expanded = codec.expand(&Bytes::from_static(block), 100).unwrap();
            assert_eq!(expanded, &b"hello"[..], "{codec}");
        }
    }

    #[test]
    fn names_come_back() {
        for codec in Compression::ALL {
            assert_eq!(codec.name().parse(), Ok(codec));
            assert_eq!(Compression::from_codec(codec.codec()), Some(codec));
        }
        assert!("brotli".parse::<Compression>().is_err());
    }
}
