//! One lane: a Kafka connection that is a QUIC bidirectional stream.
//!
//! Requests go out in the order in which they were started, each with a correlation id, many of them before the first
//! response; responses come back in that order, as Kafka's protocol promises. A lane that breaks fails everything on it
//! at once; opening another one is its owner's affair.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    FetchRequest, JoinGroupRequest, RequestHeader, ResponseHeader, SyncGroupRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::Spoken;
use super::error::{ClientError, LostCause};

/// The name under which this client's requests are logged by nodes.
const CLIENT_ID: StrBytes = StrBytes::from_static_str("quorate");
/// Requests that may wait for their response on one lane. At the cap [`Lane::has_room`] is false and a request is refused;
/// the producer keeps its batches queued, others wait.
pub(super) const MAX_OUTSTANDING: usize = 1024;
/// The largest response that is read, in bytes. A longer one breaks the lane.
const MAX_RESPONSE_BYTES: usize = 256 << 20;
/// Memory that a response is given before any of it has come: from there the buffer grows with what really arrives.
const RESPONSE_RESERVE: usize = 256 << 10;
/// Small requests are joined up to this size before they are handed to QUIC, and large ones are cut to it: it keeps track
/// of every chunk until it is acknowledged.
const CHUNK_BYTES: usize = 64 << 10;
/// How long a stream that ended is kept for the node to confirm that it has everything.
const LINGER: Duration = Duration::from_secs(5);

/// A request as it goes over the wire, but for its correlation id.
#[derive(Debug)]
pub(super) struct Encoded {
    name: &'static str,
    /// Length prefix, header and body.
    frame: BytesMut,
    response_header_version: i16,
}

/// Where the correlation id stands in a frame: after the length (4), the api key (2) and the version (2).
const CORRELATION_AT: usize = 8;

impl Encoded {
    pub(super) fn new<R: Request>(
        request: &R,
        version: i16,
        name: &'static str,
    ) -> Result<Encoded, ClientError> {
        let unwritable = |error: &dyn std::fmt::Display| ClientError::Unwritable {
            request: name,
            what: error.to_string(),
        };
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_client_id(Some(CLIENT_ID));
        let body = request.compute_size(version).map_err(|e| unwritable(&e))?;
        let mut frame = BytesMut::with_capacity(body + 64);
        frame.put_i32(0);
        header
            .encode(&mut frame, R::header_version(version))
            .map_err(|e| unwritable(&e))?;
        request
            .encode(&mut frame, version)
            .map_err(|e| unwritable(&e))?;
        let length = i32::try_from(frame.len() - 4).map_err(|e| unwritable(&e))?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        Ok(Encoded {
            name,
            frame,
            response_header_version: R::Response::header_version(version),
        })
    }
}

/// Decodes the body of a response to an `R` of `version`. Record bytes in it share `body`.
pub(super) fn decode_response<R: Request>(
    mut body: Bytes,
    version: i16,
    address: &str,
    name: &'static str,
) -> Result<R::Response, ClientError> {
    R::Response::decode(&mut body, version).map_err(|error| ClientError::Malformed {
        address: address.to_owned(),
        request: name,
        what: error.to_string(),
    })
}

/// The requests on all lanes of one connection whose answer should come soon. A fetch is none: it may wait for records as
/// long as its consumer likes.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    count: AtomicUsize,
    begun: Notify,
}

impl Awaited {
    pub(super) fn begin(self: &Arc<Self>) -> Await {
        if self.count.fetch_add(1, Ordering::AcqRel) == 0 {
            self.begun.notify_one();
        }
        Await(self.clone())
    }

    /// Whether any answer is awaited.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Ends when an answer is awaited and none was before.
    pub(super) async fn begun(&self) {
        self.begun.notified().await;
    }
}

/// One of them.
#[derive(Debug)]
pub(super) struct Await(Arc<Awaited>);

impl Drop for Await {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A handle to a lane. Clones share it; when the last one goes, what was started is still written, then the stream ends.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    shared: Arc<Shared>,
    outgoing: mpsc::UnboundedSender<Bytes>,
}

#[derive(Debug)]
struct Shared {
    address: String,
    awaited: Arc<Awaited>,
    state: Mutex<State>,
    /// Cancelled when the lane is broken: both tasks end.
    end: CancellationToken,
    /// Cancelled when the writing task has ended.
    written: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which the requests went out. At most [`MAX_OUTSTANDING`].
    waiting: VecDeque<Waiting>,
    next_correlation: i32,
    /// When the last response came, or the first request that waits went out. Means nothing while nothing waits.
    heard_at: Option<Instant>,
    /// Set once: nothing more goes out or comes in.
    broken: Option<LostCause>,
}

#[derive(Debug)]
struct Waiting {
    correlation: i32,
    response_header_version: i16,
    respond: oneshot::Sender<Result<Bytes, LostCause>>,
    _awaited: Option<Await>,
}

/// A request that is on its way.
#[derive(Debug)]
pub(super) struct InFlight {
    lane: Lane,
    name: &'static str,
    response: oneshot::Receiver<Result<Bytes, LostCause>>,
}

impl Lane {
    /// Starts the two tasks that own the stream's ends.
    pub(super) fn start(
        address: String,
        send: quinn::SendStream,
        receive: quinn::RecvStream,
        awaited: Arc<Awaited>,
    ) -> Lane {
        let shared = Arc::new(Shared {
            address,
            awaited,
            state: Mutex::default(),
            end: CancellationToken::new(),
            written: CancellationToken::new(),
        });
        // Unbounded by type, bounded in fact: everything in it has a place in `waiting`, or is a request without a
        // response, which the producer's memory bound covers.
        let (outgoing, queue) = mpsc::unbounded_channel();
        tokio::spawn(write_requests(shared.clone(), queue, send));
        tokio::spawn(read_responses(shared.clone(), receive));
        Lane { shared, outgoing }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.shared.lock().broken.is_some()
    }

    /// Whether another request can be started now.
    pub(super) fn has_room(&self) -> bool {
        self.shared.lock().waiting.len() < MAX_OUTSTANDING
    }

    /// Since when requests wait without any response having come. `None` while nothing waits.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        let state = self.shared.lock();
        if state.waiting.is_empty() {
            return None;
        }
        state.heard_at
    }

    /// Breaks the lane: what waits on it has no known outcome.
    pub(super) fn give_up(&self, after: Duration) {
        self.shared.fail(LostCause::Stalled { after });
    }

    /// Puts a request behind those started before it, without waiting. `Err` only where the lane is broken or full: the
    /// request has not left then.
    pub(super) fn send(&self, request: Encoded) -> Result<InFlight, ClientError> {
        let (respond, response) = oneshot::channel();
        let name = request.name;
        self.enqueue(request, Some(respond))?;
        Ok(InFlight {
            lane: self.clone(),
            name,
            response,
        })
    }

    /// As [`Lane::send`], for a request that has no response.
    pub(super) fn send_without_response(&self, request: Encoded) -> Result<(), ClientError> {
        self.enqueue(request, None)
    }

    /// Sends a request and waits for its response; see [`InFlight::response`].
    pub(super) async fn call<R: Request>(
        &self,
        request: &R,
        version: i16,
        name: &'static str,
        timeout: Duration,
    ) -> Result<R::Response, ClientError> {
        let body = self
            .send(Encoded::new(request, version, name)?)?
            .response(timeout)
            .await?;
        decode_response::<R>(body, version, &self.shared.address, name)
    }

    /// Drops this handle. If it was the last one, waits until the node's machine has everything that was sent, for a few
    /// seconds at most.
    pub(super) async fn finish(self) {
        let Lane { shared, outgoing } = self;
        drop(outgoing);
        shared.written.cancelled().await;
    }

    fn enqueue(
        &self,
        request: Encoded,
        respond: Option<oneshot::Sender<Result<Bytes, LostCause>>>,
    ) -> Result<(), ClientError> {
        let Encoded {
            name,
            mut frame,
            response_header_version,
        } = request;
        let lost = |cause| ClientError::Lost {
            address: self.shared.address.clone(),
            request: name,
            cause,
        };
        let mut state = self.shared.lock();
        if let Some(cause) = &state.broken {
            return Err(lost(cause.clone()));
        }
        if respond.is_some() && state.waiting.len() >= MAX_OUTSTANDING {
            return Err(ClientError::Configuration {
                what: format!(
                    "{MAX_OUTSTANDING} requests wait for {} already; make fewer at a time",
                    self.shared.address
                ),
            });
        }
        let correlation = state.next_correlation;
        state.next_correlation = correlation.wrapping_add(1) & i32::MAX;
        frame[CORRELATION_AT..CORRELATION_AT + 4].copy_from_slice(&correlation.to_be_bytes());
        if let Some(respond) = respond {
            if state.waiting.is_empty() {
                state.heard_at = Some(Instant::now());
            }
            state.waiting.push_back(Waiting {
                correlation,
                response_header_version,
                respond,
                _awaited: (!waits_for_others(name)).then(|| self.shared.awaited.begin()),
            });
        }
        // Under the lock, so that the order of the queue is the order of `waiting`.
        self.outgoing
            .send(frame.freeze())
            .map_err(|_| lost(LostCause::Closed))
    }
}

/// Whether a node may hold a request back for long and be well: until records come, or other members of a group.
fn waits_for_others(name: &str) -> bool {
    name == FetchRequest::NAME || name == JoinGroupRequest::NAME || name == SyncGroupRequest::NAME
}

impl InFlight {
    /// The response's body. After `timeout` the whole lane is given up, as Kafka's clients do with a connection: what is
    /// behind an unanswered request would not be answered either.
    pub(super) async fn response(self, timeout: Duration) -> Result<Bytes, ClientError> {
        let InFlight {
            lane,
            name,
            response,
        } = self;
        let address = || lane.shared.address.clone();
        match tokio::time::timeout(timeout, response).await {
            Ok(Ok(Ok(body))) => Ok(body),
            Ok(Ok(Err(cause))) => Err(ClientError::Lost {
                address: address(),
                request: name,
                cause,
            }),
            Ok(Err(_)) => Err(ClientError::Lost {
                address: address(),
                request: name,
                cause: LostCause::Closed,
            }),
            Err(_) => {
                lane.shared.fail(LostCause::Stalled { after: timeout });
                Err(ClientError::TimedOut {
                    address: address(),
                    request: name,
                    after: timeout,
                })
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks the lane: everything that waits fails with `cause`. The first cause stands.
    fn fail(&self, cause: LostCause) {
        let waiting = {
            let mut state = self.lock();
            if state.broken.is_some() {
                return;
            }
            state.broken = Some(cause.clone());
            std::mem::take(&mut state.waiting)
        };
        self.end.cancel();
        for waiting in waiting {
            // A caller that gave up is not there to hear it.
            let _ = waiting.respond.send(Err(cause.clone()));
        }
    }
}

async fn write_requests(
    shared: Arc<Shared>,
    mut queue: mpsc::UnboundedReceiver<Bytes>,
    mut send: quinn::SendStream,
) {
    let _written = shared.written.clone().drop_guard();
    let writing = async {
        while let Some(first) = queue.recv().await {
            let mut chunk = BytesMut::new();
            let mut next = Some(first);
            while let Some(frame) = next.take() {
                if frame.len() >= CHUNK_BYTES / 2 {
                    write_cut(&mut send, chunk.split().freeze()).await?;
                    write_cut(&mut send, frame).await?;
                } else {
                    if chunk.len() + frame.len() > CHUNK_BYTES {
                        write_cut(&mut send, chunk.split().freeze()).await?;
                    }
                    chunk.extend_from_slice(&frame);
                }
                next = queue.try_recv().ok();
            }
            write_cut(&mut send, chunk.freeze()).await?;
        }
        Ok(())
    };
    let result = tokio::select! {
        result = writing => result,
        () = shared.end.cancelled() => Ok(()),
    };
    match result {
        Ok(()) => {
            shared.fail(LostCause::Closed);
            // Both fail only where the stream or its connection is gone already. Holding the stream until the node has
            // everything keeps the connection open for that long.
            if send.finish().is_ok() {
                let _ = tokio::time::timeout(LINGER, send.stopped()).await;
            }
        }
        Err(quinn::WriteError::ConnectionLost(error)) => shared.fail(error.into()),
        Err(quinn::WriteError::Stopped(code)) => shared.fail(LostCause::Reset {
            code: code.into_inner(),
        }),
        Err(_) => shared.fail(LostCause::Closed),
    }
}

async fn write_cut(
    send: &mut quinn::SendStream,
    mut bytes: Bytes,
) -> Result<(), quinn::WriteError> {
    while !bytes.is_empty() {
        let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
        send.write_chunk(chunk).await?;
    }
    Ok(())
}

async fn read_responses(shared: Arc<Shared>, mut receive: quinn::RecvStream) {
    let reading = async {
        let mut frames = Frames::default();
        loop {
            while let Some(frame) = frames.take()? {
                shared.deliver(frame)?;
            }
            match receive.read_chunk(usize::MAX, true).await {
                Ok(Some(chunk)) => frames.feed(chunk.bytes),
                Ok(None) => return Err(LostCause::Ended),
                Err(quinn::ReadError::ConnectionLost(error)) => return Err(error.into()),
                Err(quinn::ReadError::Reset(code)) => {
                    return Err(LostCause::Reset {
                        code: code.into_inner(),
                    });
                }
                Err(_) => return Err(LostCause::Closed),
            }
        }
    };
    let result: Result<(), LostCause> = tokio::select! {
        result = reading => result,
        () = shared.end.cancelled() => Ok(()),
    };
    shared.fail(result.err().unwrap_or(LostCause::Closed));
}

impl Shared {
    fn deliver(&self, mut frame: Bytes) -> Result<(), LostCause> {
        let malformed = |what: String| LostCause::Malformed { what };
        let waiting = {
            let mut state = self.lock();
            state.heard_at = Some(Instant::now());
            state.waiting.pop_front()
        };
        let Some(waiting) = waiting else {
            return Err(malformed("no request waits for it".into()));
        };
        let header = ResponseHeader::decode(&mut frame, waiting.response_header_version);
        let result = match header {
            Ok(header) if header.correlation_id == waiting.correlation => Ok(frame),
            Ok(header) => Err(malformed(format!(
                "it has correlation id {} and {} is next",
                header.correlation_id, waiting.correlation
            ))),
            Err(error) => Err(malformed(error.to_string())),
        };
        let broken = result.as_ref().err().cloned();
        // A caller that gave up is not there to hear it.
        let _ = waiting.respond.send(result);
        broken.map_or(Ok(()), Err)
    }
}

/// Cuts a stream of bytes into length-prefixed frames.
#[derive(Default)]
struct Frames {
    /// What has come and was not taken.
    buffer: BytesMut,
}

impl Frames {
    fn feed(&mut self, bytes: Bytes) {
        self.buffer.extend_from_slice(&bytes);
    }

    /// The next whole frame, without its length.
    fn take(&mut self) -> Result<Option<Bytes>, LostCause> {
        let Some(length) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = i32::from_be_bytes(*length);
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= MAX_RESPONSE_BYTES)
            .ok_or_else(|| LostCause::Malformed {
                what: format!("it claims {length} bytes; at most {MAX_RESPONSE_BYTES} are read"),
            })?;
        if self.buffer.len() < 4 + length {
            let missing = 4 + length - self.buffer.len();
            self.buffer.reserve(missing.min(RESPONSE_RESERVE));
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(4 + length).freeze();
        Ok(Some(frame.split_off(4)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_however_the_bytes_are_cut() {
        let stream = b"\0\0\0\x03abc\0\0\0\0\0\0\0\x01d";
        for step in 1..=stream.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for bytes in stream.chunks(step) {
                frames.feed(Bytes::copy_from_slice(bytes));
                while let Some(frame) = frames.take().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, [&b"abc"[..], b"", b"d"], "step {step}");
        }
    }

    #[test]
    fn a_length_that_lies_reserves_little_and_an_impossible_one_breaks_the_lane() {
        let mut frames = Frames::default();
        frames.feed(Bytes::from_static(b"\x0f\xff\xff\xff"));
        assert!(frames.take().unwrap().is_none());
        assert!(frames.buffer.capacity() <= 2 * RESPONSE_RESERVE);
        for bad in [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"] {
            let mut frames = Frames::default();
            frames.feed(Bytes::from_static(bad));
            assert!(frames.take().is_err());
        }
    }
}
