//! Bytes in several pieces, so that records go from the log to the socket without being copied together.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Pieces up to this size are copied together: a piece of its own costs more than copying it.
const COPIED_BYTES: usize = 4 << 10;

/// Pieces, first to last. None is empty.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    pieces: VecDeque<Bytes>,
    remaining: usize,
}

impl From<Bytes> for Chunks {
    fn from(bytes: Bytes) -> Chunks {
        let mut chunks = Chunks::default();
        chunks.push(bytes);
        chunks
    }
}

impl Chunks {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.remaining += piece.len();
            self.pieces.push_back(piece);
        }
    }
}

impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced past the end");
        self.remaining -= count;
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
    }
}

/// Builds a length-prefixed response of small fields and large pieces.
#[derive(Debug)]
pub(super) struct ChunksBuilder {
    /// The first piece, which begins with the length.
    head: Option<BytesMut>,
    pieces: Vec<Bytes>,
    /// What comes after the pieces so far.
    tail: BytesMut,
    /// All but what is in `tail`.
    done: usize,
}

impl ChunksBuilder {
    pub(super) fn new() -> ChunksBuilder {
        let mut tail = BytesMut::with_capacity(COPIED_BYTES);
        tail.put_i32(0);
        ChunksBuilder {
            head: None,
            pieces: Vec::new(),
            tail,
            done: 0,
        }
    }

    /// Where small fields go.
    pub(super) fn fields(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Adds bytes that are there already.
    pub(super) fn put_bytes(&mut self, piece: &Bytes) {
        if piece.len() <= COPIED_BYTES {
            self.tail.put_slice(piece);
            return;
        }
        self.close_tail();
        self.done += piece.len();
        self.pieces.push(piece.clone());
    }

    /// The response; `None` if it is longer than its length can say (2 GiB).
    pub(super) fn finish(mut self) -> Option<Chunks> {
        self.close_tail();
        let length = i32::try_from(self.done - 4).ok()?;
        let mut head = self.head?;
        head[..4].copy_from_slice(&length.to_be_bytes());
        let mut chunks = Chunks::from(head.freeze());
        for piece in self.pieces {
            chunks.push(piece);
        }
        Some(chunks)
    }

    fn close_tail(&mut self) {
        let fields = self.tail.split();
        self.done += fields.len();
        if self.head.is_none() {
            self.head = Some(fields);
        } else if !fields.is_empty() {
            self.pieces.push(fields.freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_as_they_went_in() {
        let large = Bytes::from(vec![7; COPIED_BYTES + 1]);
        let small = Bytes::from(vec![8; COPIED_BYTES]);
        let mut builder = ChunksBuilder::new();
        builder.fields().put_u8(1);
        builder.put_bytes(&large);
        builder.put_bytes(&large);
        builder.fields().put_u8(2);
        builder.put_bytes(&small);
        let mut chunks = builder.finish().unwrap();

        let mut expected = ((2 + 2 * large.len() + small.len()) as u32)
            .to_be_bytes()
            .to_vec();
        for part in [&[1][..], &large, &large, &[2], &small] {
            expected.extend_from_slice(part);
        }
        assert_eq!(chunks.remaining(), expected.len());
        let mut slices = [IoSlice::new(&[]); 8];
        assert_eq!(chunks.chunks_vectored(&mut slices), 4);
        assert_eq!(slices[1].as_ptr(), large.as_ptr(), "not copied");
        let mut out = Vec::new();
        while chunks.has_remaining() {
            let take = chunks.chunk().len().min(1000);
            out.extend_from_slice(&chunks.chunk()[..take]);
            chunks.advance(take);
        }
        assert_eq!(out, expected);
    }

    #[test]
    fn one_advance_may_pass_several_pieces() {
        let mut chunks = Chunks::default();
        for piece in ["ab", "", "c", "def"] {
            chunks.push(Bytes::from_static(piece.as_bytes()));
        }
        chunks.advance(4);
        assert_eq!(chunks.chunk(), b"ef");
        assert_eq!(chunks.remaining(), 2);
        chunks.advance(2);
        assert_eq!(chunks.chunk(), b"");
    }
}
