//! Lanes: one-way streams of frames, whatever the frames are.
//!
//! quinn looks through all unacknowledged chunks of a stream on every loss, so many small writes make retransmission
//! quadratic: a writer here gathers small pieces into chunks of 16 to 64 KiB. And a stream exists for the peer only once
//! data has come on it, so a writer sends its header at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::ahead_budget::{AheadBudget, AheadShare};
use super::copy_sink::CopySink;
use super::protocol::CloseReason;
use super::splice::Splice;
use super::tcp_link::{TcpChannel, TcpLinkWriter};
use crate::wire::LaneCopy;

/// Pieces at least this large are sent as they are, without being copied; in bytes.
pub const COALESCE_BELOW: usize = 16 * 1024;
/// Smaller pieces are gathered up to this size, in bytes.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// The most that is taken from a lane's queue for one write, in bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// What a queued piece counts besides its own bytes, so that a queue of tiny ones is bounded too.
pub const PIECE_OVERHEAD: usize = 64;
/// What a reader asks of quinn at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// How a lane is to be written.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    /// Sent first and at once. Not empty, or the peer would not learn of the stream before its first frame.
    pub header: Bytes,
    /// Streams with a higher number go first; 0 is quinn's default.
    pub priority: i32,
    /// What may wait in the queue, in bytes, [`PIECE_OVERHEAD`] for each piece included. A piece larger than all of it is
    /// taken when nothing else waits.
    pub queue_bytes: usize,
    /// Who wants to know what is written, and the number that it knows this lane by.
    pub copies: Option<(u16, CopySink)>,
}

/// Why a lane takes no more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LaneClosed {
    #[error("the lane was finished by this end")]
    Finished,
    #[error("the lane was given up by this end: {0}")]
    Aborted(CloseReason),
    #[error("the peer stopped the lane (code {code})")]
    Stopped { code: u64 },
    #[error("the lane's connection ended: {0}")]
    ConnectionLost(#[from] quinn::ConnectionError),
    #[error("the lane's stream was closed")]
    StreamClosed,
}

/// Why a piece was not queued. It is given back.
#[derive(Debug, Error)]
pub enum PushError {
    #[error("the lane's queue is full")]
    Full(Bytes),
    #[error("{1}")]
    Closed(Bytes, LaneClosed),
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// Released once quinn has taken the bytes.
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Last {
    Finish(oneshot::Sender<()>),
    Abort(CloseReason),
}

/// The queue in front of one outgoing stream, and the task that writes it. Dropping it finishes the stream after what is
/// queued.
#[derive(Debug)]
pub struct LaneWriter {
    pieces: mpsc::UnboundedSender<Piece>,
    last: Option<oneshot::Sender<Last>>,
    room: Arc<Semaphore>,
    capacity: u32,
    ended: watch::Receiver<Option<LaneClosed>>,
}

impl LaneWriter {
    /// Takes the stream over. Must be called within a tokio runtime.
    pub fn spawn(stream: SendStream, options: LaneOptions) -> LaneWriter {
        LaneWriter::spawn_onto(options.queue_bytes, |queue, at_last| {
            write_lane(stream, options, queue, at_last)
        })
    }

    /// A lane that shares one stream on TCP with everything else. It has no priority and no header of its own.
    pub fn spawn_on_tcp(
        writer: TcpLinkWriter,
        channel: TcpChannel,
        queue_bytes: usize,
    ) -> LaneWriter {
        LaneWriter::spawn_onto(queue_bytes, move |queue, at_last| {
            write_tcp_lane(writer, channel, queue, at_last)
        })
    }

    fn spawn_onto<F: Future<Output = LaneClosed> + Send + 'static>(
        queue_bytes: usize,
        write: impl FnOnce(mpsc::UnboundedReceiver<Piece>, oneshot::Receiver<Last>) -> F,
    ) -> LaneWriter {
        // The semaphore counts in u32; a queue of 4 GiB is none that anyone asks for.
        let capacity = u32::try_from(queue_bytes.max(1)).unwrap_or(u32::MAX);
        let capacity = capacity.min(Semaphore::MAX_PERMITS.try_into().unwrap_or(u32::MAX));
        let (pieces, queue) = mpsc::unbounded_channel();
        let (last, at_last) = oneshot::channel();
        let (end, ended) = watch::channel(None);
        let writing = write(queue, at_last);
        tokio::spawn(async move {
            let closed = writing.await;
            end.send_replace(Some(closed));
        });
        LaneWriter {
            pieces,
            last: Some(last),
            room: Arc::new(Semaphore::new(capacity as usize)),
            capacity,
            ended,
        }
    }

    /// Queues a piece if there is room now.
    pub fn try_push(&self, bytes: Bytes) -> Result<(), PushError> {
        if let Some(closed) = self.closed() {
            return Err(PushError::Closed(bytes, closed));
        }
        match Arc::clone(&self.room).try_acquire_many_owned(self.cost(&bytes)) {
            Ok(room) => self.enqueue(bytes, room),
            Err(_) => Err(PushError::Full(bytes)),
        }
    }

    /// Queues a piece, waiting for room. Cancel-safe: a push that is dropped while it waits has queued nothing.
    pub async fn push(&self, bytes: Bytes) -> Result<(), PushError> {
        let mut ended = self.ended.clone();
        let room = tokio::select! {
            room = Arc::clone(&self.room).acquire_many_owned(self.cost(&bytes)) => room,
            closed = wait_closed(&mut ended) => return Err(PushError::Closed(bytes, closed)),
        };
        match room {
            Ok(room) => self.enqueue(bytes, room),
            Err(_) => Err(PushError::Closed(bytes, LaneClosed::StreamClosed)),
        }
    }

    /// Bytes that wait in the queue or are being handed to quinn, overheads included. Never above the bound.
    pub fn queued_bytes(&self) -> usize {
        (self.capacity as usize).saturating_sub(self.room.available_permits())
    }

    /// Why the lane takes no more; `None` while it does.
    pub fn closed(&self) -> Option<LaneClosed> {
        self.ended.borrow().clone()
    }

    /// Waits until the lane takes no more, and says why.
    pub async fn ended(&self) -> LaneClosed {
        wait_closed(&mut self.ended.clone()).await
    }

    /// Writes what is queued, ends the stream, and returns once quinn has all of it (not once the peer has).
    pub async fn finish(mut self) -> Result<(), LaneClosed> {
        let (done, is_done) = oneshot::channel();
        if let Some(last) = self.last.take() {
            let _ = last.send(Last::Finish(done));
        }
        let mut ended = self.ended.clone();
        drop(self);
        match is_done.await {
            Ok(()) => Ok(()),
            Err(_) => match wait_closed(&mut ended).await {
                LaneClosed::Finished => Ok(()),
                closed => Err(closed),
            },
        }
    }

    /// Drops what is queued and resets the stream.
    pub fn abort(mut self, reason: CloseReason) {
        if let Some(last) = self.last.take() {
            let _ = last.send(Last::Abort(reason));
        }
    }

    fn cost(&self, bytes: &Bytes) -> u32 {
        u32::try_from(bytes.len() + PIECE_OVERHEAD)
            .unwrap_or(u32::MAX)
            .min(self.capacity)
    }

    fn enqueue(&self, bytes: Bytes, room: OwnedSemaphorePermit) -> Result<(), PushError> {
        let piece = Piece { bytes, _room: room };
        self.pieces.send(piece).map_err(|refused| {
            let closed = self.closed().unwrap_or(LaneClosed::StreamClosed);
            PushError::Closed(refused.0.bytes, closed)
        })
    }
}

async fn wait_closed(ended: &mut watch::Receiver<Option<LaneClosed>>) -> LaneClosed {
    match ended.wait_for(Option::is_some).await {
        Ok(closed) => closed.clone().unwrap_or(LaneClosed::StreamClosed),
        Err(_) => LaneClosed::StreamClosed,
    }
}

async fn write_lane(
    mut stream: SendStream,
    options: LaneOptions,
    mut queue: mpsc::UnboundedReceiver<Piece>,
    mut at_last: oneshot::Receiver<Last>,
) -> LaneClosed {
    // Fails only on a stream that is closed already, which the first write reports.
    let _ = stream.set_priority(options.priority);
    let stopped = stream.stopped();
    tokio::pin!(stopped);
    let mut offset = options.header.len() as u64;
    if let Err(error) = stream.write_chunk(options.header).await {
        return write_error(error);
    }
    let mut batch = Batch::default();
    let mut finishing = None;
    loop {
        let first = tokio::select! {
            // In this order, because an abort also closes the queue, and that alone would be a finish.
            biased;
            // What was asked for last matters only once it is asked for.
            last = &mut at_last, if finishing.is_none() => match last {
                Ok(Last::Abort(reason)) => return abort(stream, reason),
                Ok(Last::Finish(done)) => {
                    finishing = Some(Some(done));
                    continue;
                }
                Err(_) => {
                    finishing = Some(None);
                    continue;
                }
            },
            piece = queue.recv() => piece,
            // An idle lane learns here that the peer wants no more of it.
            stop = &mut stopped => return match stop {
                Ok(Some(code)) => LaneClosed::Stopped { code: code.into_inner() },
                Ok(None) => LaneClosed::StreamClosed,
                Err(quinn::StoppedError::ConnectionLost(error)) => error.into(),
                Err(quinn::StoppedError::ZeroRttRejected) => LaneClosed::StreamClosed,
            },
        };
        let Some(first) = first else {
            // Every sender is gone and the queue is empty: the end of the lane.
            let _ = stream.finish();
            if let Some(Some(done)) = finishing {
                let _ = done.send(());
            }
            return LaneClosed::Finished;
        };
        batch.add(first);
        while batch.bytes < BATCH_BYTES {
            match queue.try_recv() {
                Ok(piece) => batch.add(piece),
                Err(_) => break,
            }
        }
        let length = batch.bytes as u64;
        let (mut chunks, room) = batch.take();
        let copied = options
            .copies
            .as_ref()
            .filter(|(_, copies)| copies.copies() > 0);
        // Counted references; quinn takes the chunks away.
        let copied = copied.map(|(lane, copies)| (*lane, copies, chunks.clone()));
        let written = {
            let writing = stream.write_all_chunks(&mut chunks);
            tokio::pin!(writing);
            loop {
                tokio::select! {
                    written = &mut writing => break Ok(written),
                    last = &mut at_last, if finishing.is_none() => match last {
                        Ok(Last::Abort(reason)) => break Err(reason),
                        Ok(Last::Finish(done)) => finishing = Some(Some(done)),
                        Err(_) => finishing = Some(None),
                    },
                }
            }
        };
        drop(room);
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return write_error(error),
            Err(reason) => return abort(stream, reason),
        }
        if let Some((lane, copies, chunks)) = copied {
            copies.wrote(lane, offset, &chunks);
        }
        offset += length;
    }
}

/// Until its queue is closed or the stream is gone. What was asked for last is an abort, or else what is queued is written first.
async fn write_tcp_lane(
    writer: TcpLinkWriter,
    channel: TcpChannel,
    mut queue: mpsc::UnboundedReceiver<Piece>,
    mut at_last: oneshot::Receiver<Last>,
) -> LaneClosed {
    let mut batch = Batch::default();
    let mut finishing = None;
    loop {
        let first = tokio::select! {
            biased;
            last = &mut at_last, if finishing.is_none() => match last {
                Ok(Last::Abort(reason)) => return LaneClosed::Aborted(reason),
                Ok(Last::Finish(done)) => {
                    finishing = Some(Some(done));
                    continue;
                }
                Err(_) => {
                    finishing = Some(None);
                    continue;
                }
            },
            piece = queue.recv() => piece,
            () = writer.closed() => return LaneClosed::StreamClosed,
        };
        let Some(first) = first else {
            if let Some(Some(done)) = finishing {
                let _ = done.send(());
            }
            return LaneClosed::Finished;
        };
        batch.add(first);
        while batch.bytes < BATCH_BYTES {
            match queue.try_recv() {
                Ok(piece) => batch.add(piece),
                Err(_) => break,
            }
        }
        let (chunks, room) = batch.take();
        for chunk in chunks {
            if !writer.send(channel, chunk).await {
                return LaneClosed::StreamClosed;
            }
        }
        drop(room);
    }
}

fn abort(mut stream: SendStream, reason: CloseReason) -> LaneClosed {
    let _ = stream.reset(reason.var_int());
    LaneClosed::Aborted(reason)
}

fn write_error(error: WriteError) -> LaneClosed {
    match error {
        WriteError::Stopped(code) => LaneClosed::Stopped {
            code: code.into_inner(),
        },
        WriteError::ConnectionLost(error) => error.into(),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => LaneClosed::StreamClosed,
    }
}

/// Pieces on their way into chunks, in order.
#[derive(Default)]
struct Batch {
    chunks: Vec<Bytes>,
    /// Small neighbours, not yet a chunk.
    small: Vec<Bytes>,
    small_bytes: usize,
    room: Vec<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, piece: Piece) {
        let Piece { bytes, _room: room } = piece;
        self.room.push(room);
        self.bytes += bytes.len();
        if bytes.len() >= COALESCE_BELOW {
            self.gather();
            self.chunks.push(bytes);
            return;
        }
        if self.small_bytes + bytes.len() > CHUNK_BYTES {
            self.gather();
        }
        self.small_bytes += bytes.len();
        self.small.push(bytes);
    }

    fn gather(&mut self) {
        match self.small.len() {
            0 => {}
            // Alone, it needs no copy.
            1 => self.chunks.append(&mut self.small),
            _ => {
                let mut chunk = BytesMut::with_capacity(self.small_bytes);
                for piece in self.small.drain(..) {
                    chunk.extend_from_slice(&piece);
                }
                self.chunks.push(chunk.freeze());
            }
        }
        self.small_bytes = 0;
    }

    fn take(&mut self) -> (Vec<Bytes>, Vec<OwnedSemaphorePermit>) {
        self.gather();
        self.bytes = 0;
        (
            std::mem::take(&mut self.chunks),
            std::mem::take(&mut self.room),
        )
    }
}

/// What a frame's beginning says of its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The frame takes this many bytes from the start, header included; more than 0.
    Frame { length: usize },
    /// At least so many bytes are needed to know more.
    Need { total: usize },
}

/// Why no frame could be read.
#[derive(Debug, Error)]
pub enum LaneReadError<E> {
    #[error("a frame of {length} bytes was announced and at most {cap} are taken")]
    TooLarge { length: usize, cap: usize },
    #[error("the stream ended {} bytes into a frame", .got)]
    CutShort { got: usize },
    #[error("the frame cannot be read")]
    Frame(#[source] E),
    #[error("the peer gave the stream up (code {code})")]
    Reset { code: u64 },
    #[error("the connection ended: {0}")]
    ConnectionLost(#[source] quinn::ConnectionError),
    #[error("the stream was closed by this end")]
    StreamClosed,
}

/// Cuts an incoming stream into frames. It can be told of copies of some of the stream's bytes that came another way; what the
/// stream lacks is then taken from them.
#[derive(Debug)]
pub struct LaneReader {
    stream: RecvStream,
    buffer: BytesMut,
    cap: usize,
    ended: bool,
    copies: Option<mpsc::Receiver<LaneCopy>>,
    /// What it has of its connection's budget; `None` where no copies come, and so nothing waits for others.
    share: Option<AheadShare>,
    /// What came too early, and where the next byte of the buffer lies in the stream.
    splice: Splice,
    /// Whether a copy has brought what the stream lacked. From then on the stream is read in whatever order its packets come in: quinn
    /// holds what is read in order back until its own retransmission has come, whatever is known of it here.
    unordered: bool,
    max_ahead: usize,
    /// Whether what was read last left the gap as it was.
    gap_is_left: bool,
}

/// Memory for what waits of a lane for bytes in front of it, at most and about: at the cap, and where the budget of all lanes is spent,
/// the stream is asked for no more than what lacks, and each [`SLOW_READ`] only after it had something else, so that flow control holds
/// the sender up. What copies bring further ahead than this, or while the budget is spent, is dropped.
const MAX_AHEAD_BYTES: usize = 8 * 1024 * 1024;
const SLOW_READ: Duration = Duration::from_millis(10);

impl LaneReader {
    /// Holds at most `cap` bytes of an incomplete frame, and one read more.
    pub fn new(stream: RecvStream, cap: usize) -> LaneReader {
        LaneReader {
            stream,
            buffer: BytesMut::new(),
            cap,
            ended: false,
            copies: None,
            share: None,
            splice: Splice::default(),
            unordered: false,
            max_ahead: MAX_AHEAD_BYTES,
            gap_is_left: false,
        }
    }

    /// From now on bytes of this stream may also come by `copies`. They must be the stream's own: whoever sends them is the peer.
    /// `budget` is what the lanes of this connection share.
    pub fn take_copies(&mut self, copies: mpsc::Receiver<LaneCopy>, budget: &AheadBudget) {
        self.copies = Some(copies);
        self.share = Some(budget.share());
    }

    /// The next frame, whole; `None` at the stream's end. `measure` looks at what has come (at least one byte) and is
    /// called again when there is more. Nothing is allocated for a length that was only announced.
    ///
    /// Cancel-safe: what has been read stays for the next call.
    pub async fn next<E>(
        &mut self,
        mut measure: impl FnMut(&[u8]) -> Result<Measure, E>,
    ) -> Result<Option<Bytes>, LaneReadError<E>> {
        loop {
            let need = if self.buffer.is_empty() {
                1
            } else {
                match measure(&self.buffer).map_err(LaneReadError::Frame)? {
                    Measure::Frame { length } if length <= self.buffer.len() => {
                        // A frame of no bytes would be read for ever.
                        return Ok(Some(self.buffer.split_to(length.max(1)).freeze()));
                    }
                    Measure::Frame { length } => length,
                    Measure::Need { total } => total.max(self.buffer.len() + 1),
                }
            };
            if need > self.cap {
                return Err(LaneReadError::TooLarge {
                    length: need,
                    cap: self.cap,
                });
            }
            while self.buffer.len() < need {
                if !self.fill().await? {
                    return match self.buffer.len() {
                        0 => Ok(None),
                        got => Err(LaneReadError::CutShort { got }),
                    };
                }
            }
        }
    }

    /// Exactly `length` bytes: a stream's header. `length` is at least 1 and at most the cap.
    pub async fn header(
        &mut self,
        length: usize,
    ) -> Result<Option<Bytes>, LaneReadError<std::convert::Infallible>> {
        self.next(|_| Ok(Measure::Frame { length })).await
    }

    /// Reads more into the buffer; `false` at the stream's end. For a caller that cuts frames itself, from
    /// [`LaneReader::buffer`], and keeps it below its own bound.
    pub async fn fill<E>(&mut self) -> Result<bool, LaneReadError<E>> {
        if self.ended {
            return Ok(false);
        }
        let before = self.buffer.len();
        while self.buffer.len() == before {
            let is_full = self.splice.held() >= self.max_ahead || self.is_budget_spent();
            let lacking = self.splice.gap().filter(|_| is_full);
            let lacking = lacking.map(|gap| usize::try_from(gap).unwrap_or(usize::MAX));
            let is_slow = lacking.is_some() && self.gap_is_left;
            let most = lacking.map_or(READ_BYTES, |gap| gap.min(READ_BYTES));
            let (stream, ordered) = (&mut self.stream, !self.unordered);
            let read = async move {
                // quinn gives out first what lies first: what lacks, once it has come. As long as it does, there is nothing to wait for.
                if is_slow {
                    tokio::time::sleep(SLOW_READ).await;
                }
                stream.read_chunk(most, ordered).await
            };
            tokio::select! {
                copy = next_copy(&mut self.copies) => self.splice_in(&copy),
                chunk = read => match chunk {
                    Ok(Some(chunk)) => {
                        self.gap_is_left = chunk.offset > self.splice.next();
                        self.splice_at(chunk.offset, &chunk.bytes);
                    }
                    Ok(None) => {
                        self.ended = true;
                        return Ok(false);
                    }
                    Err(error) => return Err(read_error(error)),
                },
            }
        }
        Ok(true)
    }

    fn splice_in(&mut self, copy: &LaneCopy) {
        let next = self.splice.next();
        let ahead = copy.offset.saturating_sub(next);
        let is_of_use = copy.offset.saturating_add(copy.bytes.len() as u64) > next
            && ahead <= self.max_ahead as u64
            && (ahead == 0 || !self.is_budget_spent());
        if is_of_use {
            self.unordered = true;
            self.splice_at(copy.offset, &copy.bytes);
            self.gap_is_left &= self.splice.next() == next;
        }
    }

    fn splice_at(&mut self, offset: u64, bytes: &[u8]) {
        self.splice.take(offset, bytes, &mut self.buffer);
        if let Some(share) = &mut self.share {
            share.set(self.splice.held());
        }
    }

    fn is_budget_spent(&self) -> bool {
        self.share.as_ref().is_some_and(AheadShare::is_spent)
    }

    /// What has come and is not yet cut.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Tells the peer that no more of this stream is wanted.
    pub fn stop(mut self, reason: CloseReason) {
        let _ = self.stream.stop(reason.var_int());
    }
}

/// The next copy; never, where there are none.
async fn next_copy(copies: &mut Option<mpsc::Receiver<LaneCopy>>) -> LaneCopy {
    if let Some(receiver) = copies {
        if let Some(copy) = receiver.recv().await {
            return copy;
        }
        *copies = None;
    }
    std::future::pending().await
}

pub(super) fn read_error<E>(error: ReadError) -> LaneReadError<E> {
    match error {
        ReadError::Reset(code) => LaneReadError::Reset {
            code: code.into_inner(),
        },
        ReadError::ConnectionLost(error) => LaneReadError::ConnectionLost(error),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            LaneReadError::StreamClosed
        }
    }
}

#[cfg(test)]
mod copy_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Alpn;
    use tokio::time::timeout;

    use crate::transport::testing::{LONG, pair};

    fn piece(bytes: impl Into<Bytes>) -> Piece {
        let semaphore = Arc::new(Semaphore::new(1));
        Piece {
            bytes: bytes.into(),
            _room: semaphore.try_acquire_owned().unwrap(),
        }
    }

    /// A frame is one length byte and so many more.
    fn short_frames(bytes: &[u8]) -> Result<Measure, std::convert::Infallible> {
        Ok(Measure::Frame {
            length: 1 + bytes[0] as usize,
        })
    }

    #[test]
    fn small_pieces_become_chunks_and_large_ones_are_not_copied() {
        let mut batch = Batch::default();
        for _ in 0..100 {
            batch.add(piece(vec![1; 1000]));
        }
        let large = Bytes::from(vec![2; COALESCE_BELOW]);
        batch.add(piece(large.clone()));
        let alone = Bytes::from_static(b"alone");
        batch.add(piece(alone.clone()));
        let (chunks, room) = batch.take();
        let sizes: Vec<_> = chunks.iter().map(Bytes::len).collect();
        assert_eq!(sizes, [65_000, 35_000, COALESCE_BELOW, 5]);
        assert_eq!(chunks[2].as_ptr(), large.as_ptr());
        assert_eq!(chunks[3].as_ptr(), alone.as_ptr());
        assert_eq!(room.len(), 102);
        assert!(batch.take().0.is_empty());
    }

    #[tokio::test]
    async fn frames_cross_in_order_and_the_queue_is_bounded() {
        let pair = pair(Alpn::Replication).await;
        let stream = pair.accepted.connection.open_uni().await.unwrap();
        let options = LaneOptions {
            header: Bytes::from_static(b"HEAD"),
            priority: 5,
            queue_bytes: 4096,
            copies: None,
        };
        let lane = LaneWriter::spawn(stream, options);
        let incoming = pair.dialled.connection.accept_uni().await.unwrap();
        let reading = tokio::spawn(async move {
            let mut reader = LaneReader::new(incoming, 300);
            assert_eq!(reader.header(4).await.unwrap().unwrap(), "HEAD");
            let mut frames = Vec::new();
            while let Some(frame) = reader.next(short_frames).await.unwrap() {
                frames.push(frame);
            }
            frames
        });
        let frame = |i: usize| {
            let mut frame = vec![i as u8; 1 + i % 250];
            frame[0] = (i % 250) as u8;
            Bytes::from(frame)
        };
        for i in 0..2000 {
            lane.push(frame(i)).await.unwrap();
            assert!(lane.queued_bytes() <= 4096);
        }
        lane.finish().await.unwrap();
        let frames = reading.await.unwrap();
        assert_eq!(frames.len(), 2000);
        assert!(frames.iter().enumerate().all(|(i, got)| *got == frame(i)));
    }

    #[tokio::test]
    async fn a_full_queue_gives_the_piece_back_and_a_huge_piece_passes_alone() {
        let pair = pair(Alpn::Replication).await;
        let stream = pair.accepted.connection.open_uni().await.unwrap();
        let options = LaneOptions {
            header: Bytes::from_static(b"H"),
            priority: 0,
            queue_bytes: 100_000,
            copies: None,
        };
        let lane = LaneWriter::spawn(stream, options);
        // Nobody reads, so quinn's windows fill and then the queue does.
        let piece = Bytes::from(vec![7; 90_000]);
        let fill = async {
            loop {
                match lane.try_push(piece.clone()) {
                    Ok(()) => tokio::task::yield_now().await,
                    Err(PushError::Full(back)) if lane.queued_bytes() == 90_064 => break back,
                    Err(PushError::Full(_)) => tokio::task::yield_now().await,
                    Err(other) => panic!("{other}"),
                }
            }
        };
        let refused = timeout(LONG, fill).await.unwrap();
        assert_eq!(refused, piece);
        let incoming = pair.dialled.connection.accept_uni().await.unwrap();
        let huge = Bytes::from(vec![8; 1_000_000]);
        let mut reader = LaneReader::new(incoming, 2_000_000);
        let (pushed, read) = tokio::join!(lane.push(huge.clone()), async {
            let mut total = 0;
            while reader.buffer().last() != Some(&8) {
                assert!(reader.fill::<()>().await.unwrap());
                total += reader.buffer().len();
                let keep = reader.buffer().len().min(1);
                let cut = reader.buffer().len() - keep;
                let _ = reader.buffer().split_to(cut);
            }
            total
        });
        pushed.unwrap();
        assert!(read > 90_000);
        reader.stop(CloseReason::Overloaded);
        let code = u64::from(CloseReason::Overloaded.code());
        assert_eq!(lane.ended().await, LaneClosed::Stopped { code });
        assert!(matches!(lane.try_push(huge), Err(PushError::Closed(..))));
    }

    #[tokio::test]
    async fn announced_sizes_are_capped_and_a_cut_frame_is_told_from_an_end() {
        let pair = pair(Alpn::Replication).await;
        let mut stream = pair.accepted.connection.open_uni().await.unwrap();
        stream.write_all(&[200, 1, 2]).await.unwrap();
        let incoming = pair.dialled.connection.accept_uni().await.unwrap();
        let error = LaneReader::new(incoming, 100).next(short_frames).await;
        assert!(matches!(
            error,
            Err(LaneReadError::TooLarge {
                length: 201,
                cap: 100
            })
        ));
        let mut stream = pair.accepted.connection.open_uni().await.unwrap();
        stream.write_all(&[1, 1, 9]).await.unwrap();
        stream.finish().unwrap();
        let incoming = pair.dialled.connection.accept_uni().await.unwrap();
        let mut reader = LaneReader::new(incoming, 100);
        assert!(reader.next(short_frames).await.unwrap().is_some());
        let error = reader.next(short_frames).await;
        assert!(matches!(error, Err(LaneReadError::CutShort { got: 1 })));
        let stream = pair.accepted.connection.open_uni().await.unwrap();
        let options = LaneOptions {
            header: Bytes::from_static(b"H"),
            priority: 0,
            queue_bytes: 100,
            copies: None,
        };
        LaneWriter::spawn(stream, options).abort(CloseReason::Superseded);
        let incoming = pair.dialled.connection.accept_uni().await.unwrap();
        let mut reader = LaneReader::new(incoming, 100);
        let error = loop {
            match reader.next(short_frames).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        let code = u64::from(CloseReason::Superseded.code());
        assert!(
            matches!(error, LaneReadError::Reset { code: c } if c == code),
            "{error}"
        );
    }
}
