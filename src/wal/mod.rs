//! Floor 2: the WAL frame, the one unit that is appended, replicated and recovered.
//!
//! The frame on disk is the frame on the wire, byte for byte: a follower writes what it received, a leader sends what it
//! has stored, and equal (offset, epoch) means equal bytes. Nothing here does I/O.

mod frame;

pub use frame::{
    Decoded, Frame, FrameError, FrameHeader, FrameKind, FramesError, HEADER_LEN, MAGIC,
    MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, VERSION,
};
