//! The WAL frame: a header, and one Kafka v2 record batch or nothing.
//!
//! All integers are big-endian.
//!
//! ```text
//!  byte  length  field
//!     0       4  magic           "QWAL"
//!     4       1  version         1
//!     5       1  flags           bit 0: epoch start; the others are 0
//!     6       2  header length   40 in version 1
//!     8       4  leader epoch    1 ..= 2^31 - 1: the leader that wrote this frame
//!    12       8  base offset     of the first record; where the log ended before this frame
//!    20       8  end offset      exclusive: where the log ends after it. An epoch start has end = base
//!    28       4  previous epoch  leader epoch of the frame before this one, 0 for the first frame of all
//!    32       4  payload length  0 for an epoch start, else 1 ..= MAX_PAYLOAD_BYTES
//!    36       4  CRC-32          (IEEE) over bytes 0..36 and the payload
//!    40       …  payload         one record batch, verbatim
//! ```
//!
//! (base offset, previous epoch) is the position at which the log must end for the frame to fit, and (end offset, leader
//! epoch) is where it ends afterwards. A log is a chain of such links, so a frame that was skipped, doubled or written by
//! another history is noticed where it would be appended.
//!
//! The CRC is over everything else in the frame, the stamped first bytes of the record batch included, which Kafka's own
//! CRC-32C leaves out. A reader learns of any corruption here and need not look into the batch.

use std::fmt;

use bytes::{Buf, BufMut, Bytes};
use thiserror::Error;

use crate::types::{LeaderEpoch, LogPosition, Offset};

/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"QWAL";
/// The version of the frame's layout that this code reads and writes.
pub const VERSION: u8 = 1;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 40;
/// The largest record batch that a frame carries: 16 MiB. It bounds what a peer can make a receiver buffer, and so
/// `max.message.bytes` is never above it. A frame that claims more is refused before anything is allocated for it.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024 * 1024;
/// The largest frame, header included.
pub const MAX_FRAME_BYTES: usize = HEADER_LEN + MAX_PAYLOAD_BYTES;

const FLAG_EPOCH_START: u8 = 1;
/// Where the CRC stands: it covers what is before it and the payload after it.
const CRC_AT: usize = 36;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A new leader's first frame: no records, no offset consumed.
    EpochStart,
    /// One record batch.
    Records,
}

/// A frame's header whose fields are possible and consistent with each other. By itself it does not mean that the CRC was
/// checked: only a [`Frame`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub kind: FrameKind,
    pub leader_epoch: LeaderEpoch,
    pub base_offset: Offset,
    /// Exclusive.
    pub end_offset: Offset,
    pub previous_epoch: LeaderEpoch,
    /// At most [`MAX_PAYLOAD_BYTES`].
    pub payload_len: usize,
    pub crc: u32,
}

/// Why bytes are not whole frames one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FramesError {
    #[error("a message that ends in the middle of a frame")]
    CutOff,
    #[error("a bad frame: {0}")]
    Bad(#[from] FrameError),
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("no frame begins here: the first bytes are {found:02x?}, not \"QWAL\"")]
    BadMagic { found: [u8; 4] },
    #[error("frame version {found} is not supported: this build reads version {VERSION}")]
    UnsupportedVersion { found: u8 },
    #[error("frame flags {found:#04x} are not defined in version {VERSION}")]
    UnknownFlags { found: u8 },
    #[error("frame header length {found} is impossible: version {VERSION} has {HEADER_LEN} bytes")]
    HeaderLength { found: u16 },
    #[error("frame payload length {found} is above the limit of {MAX_PAYLOAD_BYTES} bytes")]
    PayloadTooLong { found: u32 },
    #[error("frame leader epoch {found} is outside 1..=2147483647")]
    LeaderEpoch { found: u32 },
    #[error("frame offset {found} is above 2^63 - 1")]
    Offset { found: u64 },
    #[error(
        "an epoch start of epoch {epoch} at offset {base} has end offset {end} and {payload_len} payload bytes; it has \
         no records"
    )]
    EpochStartWithRecords {
        epoch: LeaderEpoch,
        base: Offset,
        end: Offset,
        payload_len: usize,
    },
    #[error("an epoch start of epoch {epoch} follows a frame of epoch {previous}: epochs rise")]
    EpochDoesNotRise {
        epoch: LeaderEpoch,
        previous: LeaderEpoch,
    },
    #[error(
        "records of epoch {epoch} follow a frame of epoch {previous}: an epoch begins with an epoch start"
    )]
    EpochWithoutStart {
        epoch: LeaderEpoch,
        previous: LeaderEpoch,
    },
    #[error(
        "a frame of records from offset {base} to {end} with {payload_len} payload bytes holds none"
    )]
    NoRecords {
        base: Offset,
        end: Offset,
        payload_len: usize,
    },
    #[error("frame CRC mismatch: stored {stored:08x}, computed {computed:08x}")]
    CrcMismatch { stored: u32, computed: u32 },
}

impl FrameHeader {
    /// Reads the header at the start of `input` and checks everything but the CRC. `Ok(None)` when `input` is shorter than
    /// [`HEADER_LEN`]. Looks at the first [`HEADER_LEN`] bytes only and allocates nothing.
    pub fn parse(input: &[u8]) -> Result<Option<FrameHeader>, FrameError> {
        let Some(header) = input.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let magic = array_at(header, 0);
        if magic != MAGIC {
            return Err(FrameError::BadMagic { found: magic });
        }
        if header[4] != VERSION {
            return Err(FrameError::UnsupportedVersion { found: header[4] });
        }
        let kind = match header[5] {
            0 => FrameKind::Records,
            FLAG_EPOCH_START => FrameKind::EpochStart,
            found => return Err(FrameError::UnknownFlags { found }),
        };
        let header_len = u16::from_be_bytes(array_at(header, 6));
        if usize::from(header_len) != HEADER_LEN {
            return Err(FrameError::HeaderLength { found: header_len });
        }
        let payload_len_field = u32::from_be_bytes(array_at(header, 32));
        let payload_len = usize::try_from(payload_len_field)
            .ok()
            .filter(|&len| len <= MAX_PAYLOAD_BYTES)
            .ok_or(FrameError::PayloadTooLong {
                found: payload_len_field,
            })?;
        let parsed = FrameHeader {
            kind,
            leader_epoch: epoch_at(header, 8)?,
            base_offset: offset_at(header, 12)?,
            end_offset: offset_at(header, 20)?,
            previous_epoch: epoch_at(header, 28)?,
            payload_len,
            crc: u32::from_be_bytes(array_at(header, CRC_AT)),
        };
        parsed.check()?;
        Ok(Some(parsed))
    }

    /// Where the log must end for the frame to fit: (base offset, previous epoch).
    pub const fn start(&self) -> LogPosition {
        LogPosition::new(self.base_offset, self.previous_epoch)
    }

    /// Where the log ends after the frame: (end offset, leader epoch).
    pub const fn end(&self) -> LogPosition {
        LogPosition::new(self.end_offset, self.leader_epoch)
    }

    /// Length of the whole frame in bytes: at least [`HEADER_LEN`], at most [`MAX_FRAME_BYTES`].
    pub const fn frame_len(&self) -> usize {
        HEADER_LEN + self.payload_len
    }

    /// What a CRC alone would not notice: fields of a well-transmitted frame that contradict each other.
    fn check(&self) -> Result<(), FrameError> {
        if self.leader_epoch == LeaderEpoch::NONE {
            return Err(FrameError::LeaderEpoch { found: 0 });
        }
        match self.kind {
            FrameKind::EpochStart => {
                if self.end_offset != self.base_offset || self.payload_len != 0 {
                    return Err(FrameError::EpochStartWithRecords {
                        epoch: self.leader_epoch,
                        base: self.base_offset,
                        end: self.end_offset,
                        payload_len: self.payload_len,
                    });
                }
                if self.previous_epoch >= self.leader_epoch {
                    return Err(FrameError::EpochDoesNotRise {
                        epoch: self.leader_epoch,
                        previous: self.previous_epoch,
                    });
                }
            }
            FrameKind::Records => {
                if self.end_offset <= self.base_offset || self.payload_len == 0 {
                    return Err(FrameError::NoRecords {
                        base: self.base_offset,
                        end: self.end_offset,
                        payload_len: self.payload_len,
                    });
                }
                if self.previous_epoch != self.leader_epoch {
                    return Err(FrameError::EpochWithoutStart {
                        epoch: self.leader_epoch,
                        previous: self.previous_epoch,
                    });
                }
            }
        }
        Ok(())
    }

    /// The header's bytes with `crc` in its place.
    fn encode(&self, crc: u32) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        let mut out = &mut header[..];
        out.put_slice(&MAGIC);
        out.put_u8(VERSION);
        out.put_u8(match self.kind {
            FrameKind::EpochStart => FLAG_EPOCH_START,
            FrameKind::Records => 0,
        });
        out.put_u16(HEADER_LEN as u16);
        out.put_u32(self.leader_epoch.get());
        out.put_u64(self.base_offset.get());
        out.put_u64(self.end_offset.get());
        out.put_u32(self.previous_epoch.get());
        out.put_u32(self.payload_len as u32);
        out.put_u32(crc);
        header
    }
}

/// One whole frame in one contiguous buffer, CRC-checked or built here. Cloning shares the buffer.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    header: FrameHeader,
    /// Header and payload, exactly [`FrameHeader::frame_len`] bytes.
    bytes: Bytes,
}

/// What [`Frame::decode`] found at the start of its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A whole frame; [`Frame::len`] tells how much of the input it took.
    Frame(Frame),
    /// So far nothing is wrong, but the frame is not all there.
    Incomplete {
        /// Length in bytes that the input must have for decoding to get further: [`HEADER_LEN`] until the header is
        /// there, then the frame's length, which is at most [`MAX_FRAME_BYTES`].
        needed: usize,
    },
}

impl Frame {
    /// A new leader's first frame, after a log that ends at `previous`.
    ///
    /// # Panics
    /// When `epoch` is not above `previous.epoch`. The caller was appointed in `epoch`, and its promise is above every
    /// epoch in its log.
    pub fn epoch_start(epoch: LeaderEpoch, previous: LogPosition) -> Frame {
        Frame::build(
            FrameHeader {
                kind: FrameKind::EpochStart,
                leader_epoch: epoch,
                base_offset: previous.offset,
                end_offset: previous.offset,
                previous_epoch: previous.epoch,
                payload_len: 0,
                crc: 0,
            },
            &[],
        )
    }

    /// One record batch, whose records take the offsets from `previous.offset` up to `end`, exclusive. The parts are
    /// concatenated, so that a caller can stamp a batch's first bytes without copying the rest twice.
    ///
    /// # Panics
    /// When `end` is not above `previous.offset`, when `previous.epoch` is not `epoch` (an epoch begins with an epoch
    /// start), or when the parts are empty or together longer than [`MAX_PAYLOAD_BYTES`]. The caller has checked the batch
    /// against `max.message.bytes`, which is no larger.
    pub fn records(
        epoch: LeaderEpoch,
        previous: LogPosition,
        end: Offset,
        payload_parts: &[&[u8]],
    ) -> Frame {
        Frame::build(
            FrameHeader {
                kind: FrameKind::Records,
                leader_epoch: epoch,
                base_offset: previous.offset,
                end_offset: end,
                previous_epoch: previous.epoch,
                payload_len: payload_parts.iter().map(|part| part.len()).sum(),
                crc: 0,
            },
            payload_parts,
        )
    }

    fn build(mut header: FrameHeader, payload_parts: &[&[u8]]) -> Frame {
        assert!(
            header.payload_len <= MAX_PAYLOAD_BYTES,
            "a frame's payload is at most {MAX_PAYLOAD_BYTES} bytes, not {}",
            header.payload_len
        );
        if let Err(error) = header.check() {
            panic!("a frame was put together wrongly: {error}");
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header.encode(0)[..CRC_AT]);
        for part in payload_parts {
            crc.update(part);
        }
        header.crc = crc.finalize();
        let mut bytes = Vec::with_capacity(header.frame_len());
        bytes.extend_from_slice(&header.encode(header.crc));
        for part in payload_parts {
            bytes.extend_from_slice(part);
        }
        Frame {
            header,
            bytes: bytes.into(),
        }
    }

    /// Decodes the frame at the start of `input`, without copying: the frame is a slice of it. Nothing is allocated, and a
    /// length is checked against [`MAX_FRAME_BYTES`] before it is asked for.
    pub fn decode(input: &Bytes) -> Result<Decoded, FrameError> {
        let Some(header) = FrameHeader::parse(input)? else {
            return Ok(Decoded::Incomplete { needed: HEADER_LEN });
        };
        let len = header.frame_len();
        if input.len() < len {
            return Ok(Decoded::Incomplete { needed: len });
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&input[..CRC_AT]);
        crc.update(&input[HEADER_LEN..len]);
        let computed = crc.finalize();
        if computed != header.crc {
            return Err(FrameError::CrcMismatch {
                stored: header.crc,
                computed,
            });
        }
        Ok(Decoded::Frame(Frame {
            header,
            bytes: input.slice(..len),
        }))
    }

    /// Decodes `input`, which consists of whole frames and nothing else.
    pub fn decode_all(mut input: Bytes) -> Result<Vec<Frame>, FramesError> {
        let mut frames = Vec::new();
        while !input.is_empty() {
            match Frame::decode(&input)? {
                Decoded::Frame(frame) => {
                    input.advance(frame.len());
                    frames.push(frame);
                }
                Decoded::Incomplete { .. } => return Err(FramesError::CutOff),
            }
        }
        Ok(frames)
    }

    pub const fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// Where the log must end for this frame to fit: (base offset, previous epoch).
    pub const fn start(&self) -> LogPosition {
        self.header.start()
    }

    /// Where the log ends after this frame: (end offset, leader epoch).
    pub const fn end(&self) -> LogPosition {
        self.header.end()
    }

    pub const fn base_offset(&self) -> Offset {
        self.header.base_offset
    }

    /// Exclusive; equal to the base offset for an epoch start.
    pub const fn end_offset(&self) -> Offset {
        self.header.end_offset
    }

    pub const fn leader_epoch(&self) -> LeaderEpoch {
        self.header.leader_epoch
    }

    pub const fn is_epoch_start(&self) -> bool {
        matches!(self.header.kind, FrameKind::EpochStart)
    }

    /// The record batch; empty for an epoch start. Shares the frame's buffer.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(HEADER_LEN..)
    }

    /// The whole frame as it stands on disk and on the wire.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Length of the whole frame in bytes. Never 0: a frame has a header.
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(&self) -> usize {
        self.header.frame_len()
    }
}

impl fmt::Debug for Frame {
    /// Without the payload: logs do not show records.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Frame({:?} {} -> {}, {} bytes)",
            self.header.kind,
            self.start(),
            self.end(),
            self.len()
        )
    }
}

/// `N` bytes of the header at `at`; every call names a field inside it.
fn array_at<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| header[at + i])
}

fn epoch_at(header: &[u8; HEADER_LEN], at: usize) -> Result<LeaderEpoch, FrameError> {
    let found = u32::from_be_bytes(array_at(header, at));
    LeaderEpoch::new(found).ok_or(FrameError::LeaderEpoch { found })
}

fn offset_at(header: &[u8; HEADER_LEN], at: usize) -> Result<Offset, FrameError> {
    let found = u64::from_be_bytes(array_at(header, at));
    Offset::new(found).ok_or(FrameError::Offset { found })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch(epoch: u32) -> LeaderEpoch {
        LeaderEpoch::new(epoch).unwrap()
    }

    fn offset(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    fn at(o: u64, e: u32) -> LogPosition {
        LogPosition::new(offset(o), epoch(e))
    }

    fn whole(decoded: Result<Decoded, FrameError>) -> Frame {
        match decoded {
            Ok(Decoded::Frame(frame)) => frame,
            other => panic!("no frame: {other:?}"),
        }
    }

    /// A header made of exactly these fields, with a right CRC, however wrong the fields are.
    fn forged(change: impl FnOnce(&mut [u8]), payload: &[u8]) -> Bytes {
        let mut bytes = Frame::records(epoch(3), at(10, 3), offset(12), &[b"payload"])
            .bytes()
            .to_vec();
        bytes.truncate(HEADER_LEN);
        bytes[32..36].copy_from_slice(&(payload.len() as u32).to_be_bytes());
        change(&mut bytes);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..CRC_AT]);
        crc.update(payload);
        bytes[CRC_AT..].copy_from_slice(&crc.finalize().to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes.into()
    }

    #[test]
    fn the_layout_on_disk_stays_what_it_is() {
        let frame = Frame::records(
            epoch(0x0102),
            at(0x0304, 0x0102),
            offset(0x0306),
            &[b"ab", b"c"],
        );
        let mut expected = b"QWAL\x01\x00\x00\x28\x00\x00\x01\x02".to_vec();
        expected
            .extend_from_slice(b"\0\0\0\0\0\0\x03\x04\0\0\0\0\0\0\x03\x06\0\0\x01\x02\0\0\0\x03");
        let mut crc = crc32fast::Hasher::new();
        crc.update(&expected);
        crc.update(b"abc");
        expected.extend_from_slice(&crc.finalize().to_be_bytes());
        expected.extend_from_slice(b"abc");
        assert_eq!(frame.bytes()[..], expected[..]);
        assert_eq!(frame.len(), HEADER_LEN + 3);
    }

    #[test]
    fn positions_chain() {
        let start = Frame::epoch_start(epoch(2), at(5, 1));
        assert_eq!((start.start(), start.end()), (at(5, 1), at(5, 2)));
        assert!(start.is_epoch_start());
        assert!(start.payload().is_empty());
        let records = Frame::records(epoch(2), start.end(), offset(9), &[b"x"]);
        assert_eq!((records.start(), records.end()), (at(5, 2), at(9, 2)));
        assert_eq!(&records.payload()[..], b"x");
    }

    #[test]
    fn contradictions_are_refused_though_the_crc_is_right() {
        assert!(Frame::decode(&forged(|_| (), b"payload")).is_ok());
        let refused = |change: &dyn Fn(&mut [u8]), payload: &[u8]| {
            Frame::decode(&forged(change, payload)).unwrap_err()
        };
        assert!(matches!(
            refused(&|b| b[0] = b'q', b"p"),
            FrameError::BadMagic { .. }
        ));
        assert!(matches!(
            refused(&|b| b[4] = 2, b"p"),
            FrameError::UnsupportedVersion { found: 2 }
        ));
        assert!(matches!(
            refused(&|b| b[5] = 0x82, b"p"),
            FrameError::UnknownFlags { found: 0x82 }
        ));
        assert!(matches!(
            refused(&|b| b[7] = 41, b"p"),
            FrameError::HeaderLength { found: 41 }
        ));
        assert!(matches!(
            refused(
                &|b| b[32..36].copy_from_slice(&u32::MAX.to_be_bytes()),
                b"p"
            ),
            FrameError::PayloadTooLong { found: u32::MAX }
        ));
        assert!(matches!(
            refused(&|b| b[8..12].fill(0), b"p"),
            FrameError::LeaderEpoch { found: 0 }
        ));
        assert!(matches!(
            refused(&|b| b[8] = 0x80, b"p"),
            FrameError::LeaderEpoch { .. }
        ));
        assert!(matches!(
            refused(&|b| b[12] = 0x80, b"p"),
            FrameError::Offset { .. }
        ));
        // end = base, end < base
        assert!(matches!(
            refused(&|b| b[27] = 10, b"p"),
            FrameError::NoRecords { .. }
        ));
        assert!(matches!(
            refused(&|b| b[27] = 9, b"p"),
            FrameError::NoRecords { .. }
        ));
        assert!(matches!(
            refused(&|_| (), b""),
            FrameError::NoRecords { .. }
        ));
        // previous epoch below, above
        assert!(matches!(
            refused(&|b| b[31] = 2, b"p"),
            FrameError::EpochWithoutStart { .. }
        ));
        assert!(matches!(
            refused(&|b| b[31] = 4, b"p"),
            FrameError::EpochWithoutStart { .. }
        ));
        let as_start = |b: &mut [u8]| {
            b[5] = FLAG_EPOCH_START;
            b[27] = 10;
            b[31] = 2;
        };
        assert!(Frame::decode(&forged(as_start, b"")).is_ok());
        assert!(matches!(
            refused(&as_start, b"p"),
            FrameError::EpochStartWithRecords { .. }
        ));
        assert!(matches!(
            refused(
                &|b| {
                    as_start(b);
                    b[27] = 11;
                },
                b""
            ),
            FrameError::EpochStartWithRecords { .. }
        ));
        assert!(matches!(
            refused(
                &|b| {
                    as_start(b);
                    b[31] = 3;
                },
                b""
            ),
            FrameError::EpochDoesNotRise { .. }
        ));
    }

    #[test]
    #[should_panic(expected = "at most")]
    fn a_payload_above_the_limit_is_never_framed() {
        let huge = vec![0; MAX_PAYLOAD_BYTES + 1];
        Frame::records(epoch(1), at(0, 1), offset(1), &[&huge]);
    }

    #[test]
    fn the_largest_payload_passes() {
        let payload = vec![7; MAX_PAYLOAD_BYTES];
        let frame = Frame::records(epoch(1), at(0, 1), offset(1), &[&payload]);
        assert_eq!(frame.len(), MAX_FRAME_BYTES);
        assert_eq!(whole(Frame::decode(frame.bytes())), frame);
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let payload = prop::collection::vec(any::<u8>(), 1..300);
        (
            any::<bool>(),
            1..=LeaderEpoch::MAX.get(),
            0..i64::MAX as u64,
            1..1000u64,
            payload,
            0..300usize,
        )
            .prop_map(|(is_start, e, base, records, payload, split)| {
                if is_start {
                    return Frame::epoch_start(epoch(e), at(base, e - 1));
                }
                let end = offset((base + records).min(Offset::MAX.get()));
                let (head, tail) = payload.split_at(split.min(payload.len()));
                Frame::records(epoch(e), at(base, e), end, &[head, tail])
            })
    }

    proptest! {
        #[test]
        fn a_frame_comes_back_and_takes_no_more_than_its_own(
            frame in any_frame(),
            after in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = frame.bytes().to_vec();
            bytes.extend_from_slice(&after);
            let input = Bytes::from(bytes);
            let back = whole(Frame::decode(&input));
            prop_assert_eq!(&back, &frame);
            // A slice of the input, not a copy of it.
            prop_assert_eq!(back.bytes().as_ptr(), input.as_ptr());
        }

        #[test]
        fn a_cut_frame_is_incomplete_and_says_what_it_needs(frame in any_frame(), cut in any::<prop::sample::Index>()) {
            let kept = cut.index(frame.len());
            let needed = if kept < HEADER_LEN { HEADER_LEN } else { frame.len() };
            prop_assert_eq!(
                Frame::decode(&frame.bytes().slice(..kept)),
                Ok(Decoded::Incomplete { needed })
            );
        }

        #[test]
        fn every_single_flipped_bit_is_noticed(frame in any_frame()) {
            for bit in 0..frame.len() * 8 {
                let mut bytes = frame.bytes().to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                // A longer length may leave the frame incomplete, which is no frame either.
                let decoded = Frame::decode(&bytes.into());
                prop_assert!(!matches!(decoded, Ok(Decoded::Frame(_))), "bit {bit}: {decoded:?}");
            }
        }

        #[test]
        fn a_burst_of_changed_bytes_is_noticed(
            frame in any_frame(),
            from in any::<prop::sample::Index>(),
            burst in prop::collection::vec(any::<u8>(), 1..4),
        ) {
            let mut bytes = frame.bytes().to_vec();
            let from = from.index(bytes.len());
            for (byte, change) in bytes[from..].iter_mut().zip(&burst) {
                *byte ^= change;
            }
            // Up to 32 changed bits in a row are within what a CRC-32 is certain to notice; the CRC field itself ends
            // where the payload begins, so a burst there meets both, and is noticed with overwhelming likelihood only.
            let crosses_crc = from < HEADER_LEN && from + burst.len() > CRC_AT;
            if bytes[..] != frame.bytes()[..] && !crosses_crc {
                prop_assert!(!matches!(Frame::decode(&bytes.into()), Ok(Decoded::Frame(_))));
            }
        }

        #[test]
        fn noise_is_never_a_panic_and_never_asks_for_more_than_a_frame(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            looks_like_one in any::<bool>(),
        ) {
            let mut noise = noise;
            if looks_like_one {
                for (byte, magic) in noise.iter_mut().zip(b"QWAL\x01\x00\x00\x28") {
                    *byte = *magic;
                }
            }
            match Frame::decode(&noise.into()) {
                Ok(Decoded::Incomplete { needed }) => prop_assert!(needed <= MAX_FRAME_BYTES),
                Ok(Decoded::Frame(frame)) => prop_assert!(false, "noise became {frame:?}"),
                Err(_) => {}
            }
        }
    }
}
