//! A stream of records of one size, read in the order in which its packets come.
//!
//! A stream that is read in order holds everything up behind one lost packet, for at least a round trip. Where each record
//! stands for itself, as a cumulative ack does, that is a wait for nothing: at 5 % loss and a packet every millisecond there is
//! always a hole somewhere, and the way back would cost one and a half round trips more than the way there.

use std::collections::BTreeMap;

use bytes::BytesMut;
use quinn::RecvStream;
use thiserror::Error;

use super::lanes::{LaneReadError, read_error};

/// How much one read may bring.
const READ_BYTES: usize = 64 * 1024;

/// The size of a record, in bytes. What writes the stream has to agree.
pub const RECORD_BYTES: usize = 32;

/// Records of which a part has come. A packet's edge makes one at most, so this many wait only where that many packets are lost at
/// once, or where a peer leaves holes on purpose.
const MAX_PARTS: usize = 16_384;

/// Reads a stream of records of [`RECORD_BYTES`], as they come: a later one may overtake an earlier one.
#[derive(Debug)]
pub struct RecordReader {
    stream: RecvStream,
    parts: Parts,
}

impl RecordReader {
    pub fn new(stream: RecvStream) -> RecordReader {
        RecordReader {
            stream,
            parts: Parts::default(),
        }
    }

    /// Appends to `whole` the records that have come whole, perhaps none; `false` at the stream's end.
    ///
    /// Cancel-safe: what has been read stays for the next call.
    pub async fn next(&mut self, whole: &mut BytesMut) -> Result<bool, RecordReadError> {
        match self.stream.read_chunk(READ_BYTES, false).await {
            Ok(Some(chunk)) => {
                self.parts.take(chunk.offset, &chunk.bytes, whole)?;
                Ok(true)
            }
            Ok(None) if self.parts.started.is_empty() => Ok(false),
            Ok(None) => Err(RecordReadError::CutShort),
            Err(error) => Err(RecordReadError::Stream(read_error(error))),
        }
    }
}

/// Why no records could be read.
#[derive(Debug, Error)]
pub enum RecordReadError {
    #[error("{MAX_PARTS} records have come in part")]
    TooManyParts,
    #[error("the stream ended within a record")]
    CutShort,
    #[error(transparent)]
    Stream(LaneReadError<std::convert::Infallible>),
}

/// Puts records together that packets have cut.
#[derive(Debug, Default)]
struct Parts {
    /// By the record's place in the stream. At most [`MAX_PARTS`].
    started: BTreeMap<u64, Part>,
}

#[derive(Debug, Default)]
struct Part {
    bytes: [u8; RECORD_BYTES],
    /// A bit for each byte that has come.
    has: u32,
}

impl Parts {
    /// Takes `bytes`, which begin `offset` bytes into the stream. What has come before may come again.
    fn take(
        &mut self,
        mut offset: u64,
        mut bytes: &[u8],
        whole: &mut BytesMut,
    ) -> Result<(), RecordReadError> {
        const SIZE: u64 = RECORD_BYTES as u64;
        while !bytes.is_empty() {
            let within = (offset % SIZE) as usize;
            if within == 0 && bytes.len() >= RECORD_BYTES {
                let length = bytes.len() - bytes.len() % RECORD_BYTES;
                whole.extend_from_slice(&bytes[..length]);
                offset += length as u64;
                bytes = &bytes[length..];
                continue;
            }
            let length = bytes.len().min(RECORD_BYTES - within);
            let record = offset / SIZE;
            let part = self.started.entry(record).or_default();
            for (i, byte) in bytes[..length].iter().enumerate() {
                part.bytes[within + i] = *byte;
                part.has |= 1 << (within + i);
            }
            if part.has == u32::MAX {
                whole.extend_from_slice(&part.bytes);
                self.started.remove(&record);
            } else if self.started.len() > MAX_PARTS {
                return Err(RecordReadError::TooManyParts);
            }
            offset += length as u64;
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Alpn;
    use crate::transport::testing::{LONG, pair};
    use bytes::Bytes;
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};
    use tokio::time::timeout;

    fn records(count: u8) -> Vec<u8> {
        (0..count).flat_map(|i| [i; RECORD_BYTES]).collect()
    }

    /// The first byte of each record, which must be whole.
    fn names(whole: &[u8]) -> Vec<u8> {
        whole
            .chunks(RECORD_BYTES)
            .map(|record| {
                assert_eq!(record, [record[0]; RECORD_BYTES]);
                record[0]
            })
            .collect()
    }

    #[test]
    fn what_comes_whole_is_there_at_once_and_what_was_cut_when_its_rest_comes() {
        let stream = records(5);
        let mut parts = Parts::default();
        let mut whole = BytesMut::new();
        parts.take(40, &stream[40..140], &mut whole).unwrap();
        assert_eq!(names(&whole.split()), [2, 3]);
        parts.take(0, &stream[..40], &mut whole).unwrap();
        assert_eq!(names(&whole.split()), [0, 1]);
        parts.take(140, &stream[140..], &mut whole).unwrap();
        assert_eq!(names(&whole), [4]);
        assert!(parts.started.is_empty());
    }

    #[test]
    fn any_cut_and_any_order_gives_every_record_once() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let stream = records(200);
        for _ in 0..50 {
            let mut pieces = Vec::new();
            let mut at = 0;
            while at < stream.len() {
                let length = random.random_range(1..100).min(stream.len() - at);
                pieces.push((at, &stream[at..at + length]));
                at += length;
            }
            pieces.shuffle(&mut random);
            let mut parts = Parts::default();
            let mut whole = BytesMut::new();
            for (at, piece) in pieces {
                parts.take(at as u64, piece, &mut whole).unwrap();
            }
            let mut names = names(&whole);
            names.sort_unstable();
            assert_eq!(names, (0..200).collect::<Vec<_>>());
            assert!(parts.started.is_empty());
        }
    }

    #[test]
    fn holes_left_on_purpose_end_at_the_cap() {
        let mut parts = Parts::default();
        let mut whole = BytesMut::new();
        for record in 0..MAX_PARTS as u64 {
            parts.take(record * 32, b"x", &mut whole).unwrap();
        }
        let refused = parts.take(MAX_PARTS as u64 * 32, b"x", &mut whole);
        assert!(matches!(refused, Err(RecordReadError::TooManyParts)));
        assert!(whole.is_empty());
    }

    #[tokio::test]
    async fn a_stream_brings_its_records_and_its_end() {
        let pair = pair(Alpn::Replication).await;
        let mut stream = pair.accepted.connection.open_uni().await.unwrap();
        let sent = records(250);
        let writing = async {
            for piece in sent.chunks(37) {
                let piece = Bytes::copy_from_slice(piece);
                stream.write_chunk(piece).await.unwrap();
            }
            stream.finish().unwrap();
        };
        let reading = async {
            let incoming = pair.dialled.connection.accept_uni().await.unwrap();
            let mut reader = RecordReader::new(incoming);
            let mut whole = BytesMut::new();
            while reader.next(&mut whole).await.unwrap() {}
            whole
        };
        let (whole, ()) = timeout(LONG, async { tokio::join!(reading, writing) })
            .await
            .unwrap();
        let mut names = names(&whole);
        names.sort_unstable();
        assert_eq!(names, (0..250).collect::<Vec<_>>());

        let mut cut = pair.accepted.connection.open_uni().await.unwrap();
        cut.write_all(&sent[..33]).await.unwrap();
        cut.finish().unwrap();
        let incoming = pair.dialled.connection.accept_uni().await.unwrap();
        let mut reader = RecordReader::new(incoming);
        let mut whole = BytesMut::new();
        let end = loop {
            match reader.next(&mut whole).await {
                Ok(true) => {}
                Ok(false) => panic!("half a record is no end"),
                Err(error) => break error,
            }
        };
        assert!(matches!(end, RecordReadError::CutShort), "{end}");
    }
}
