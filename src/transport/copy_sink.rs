//! Where lanes tell what they have written, for as long as somebody wants copies of it sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::wire::LaneCopy;

/// Chunks larger than this are not copied: whoever sends frames of that size waits for throughput. It is more than what a producer with a
/// few hundred small records in flight puts into one batch when a hole is filled and all of them are acknowledged at once.
const MAX_COPIED_BYTES: usize = 256 * 1024;
/// Pieces that may wait until they are taken. At the cap what is written then is not copied.
const MAX_WRITTEN: usize = 256;

/// What the lanes of one connection share. None is wanted at first.
#[derive(Clone, Debug)]
pub struct CopySink {
    copies: Arc<AtomicU8>,
    written: mpsc::Sender<LaneCopy>,
}

impl CopySink {
    pub fn new() -> (CopySink, mpsc::Receiver<LaneCopy>) {
        let (written, pieces) = mpsc::channel(MAX_WRITTEN);
        let copies = Arc::new(AtomicU8::new(0));
        (CopySink { copies, written }, pieces)
    }

    /// How many copies of what the lanes write are wanted; with 0 they tell nothing.
    pub fn set_copies(&self, copies: u8) {
        self.copies.store(copies, Ordering::Relaxed);
    }

    pub fn copies(&self) -> u8 {
        self.copies.load(Ordering::Relaxed)
    }

    /// What quinn has just taken of one lane.
    pub(super) fn wrote(&self, lane: u16, mut offset: u64, chunks: &[Bytes]) {
        for bytes in chunks {
            let piece = LaneCopy {
                lane,
                offset,
                bytes: bytes.clone(),
            };
            offset += bytes.len() as u64;
            if bytes.len() <= MAX_COPIED_BYTES {
                let _ = self.written.try_send(piece);
            }
        }
    }
}
