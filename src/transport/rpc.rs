//! Calls from node to node: one bidirectional stream a call.
//!
//! ```text
//! request   length (4)  body             big-endian; the caller ends its side after the body
//! response  status (1)  length (4)  body status 0: the body is the answer; 1: it is a message saying why there is none
//! ```

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::certificate_info::PeerIdentity;
use super::dial::{Dialled, PeerAddress};
use super::explain::ConnectFailure;
use super::identity::CurrentIdentity;
use super::log_limit::LogLimit;
use super::protocol::{Alpn, CloseReason};
use super::sockets::Sockets;
use super::tuning::CALL_STREAMS;

/// The largest request or response, in bytes. A larger one is refused by both ends before it is sent or read.
pub const MAX_CALL_BYTES: usize = 16 * 1024 * 1024;
/// Requests that one connection may have read and not answered, in bytes all together. At the cap, later calls wait.
pub const MAX_CALL_BYTES_HELD: usize = 2 * MAX_CALL_BYTES;
/// Peers that a pool remembers. At the cap, one without a connection is forgotten; if there is none, a call is refused.
pub const MAX_POOLED_PEERS: usize = 1024;
/// The first wait after a dial that failed; it doubles to [`MAX_BACKOFF`], less a random part of up to a half.
pub const MIN_BACKOFF: Duration = Duration::from_millis(50);
pub const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// A dial takes no longer, whatever its callers' own deadlines.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A caller must have sent its whole request after this, or the stream is given up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a close waits for the peers to hear of it.
const CLOSE_WAIT: Duration = Duration::from_millis(500);
/// Calls and answers up to this size go before larger ones on the same connection.
const URGENT_BYTES: usize = 4 * 1024;
const URGENT: i32 = 1;
const OK: u8 = 0;
const REFUSED: u8 = 1;

/// Why a call has no answer. Whether the peer acted on it is unknown, except where it says that nothing was sent.
#[derive(Debug, Clone, Error)]
pub enum CallError {
    #[error("cannot call {peer}, nothing was sent; the next attempt to connect is in {} ms", retry_in.as_millis())]
    Unreachable {
        peer: PeerAddress,
        retry_in: Duration,
        #[source]
        source: Arc<ConnectFailure>,
    },
    #[error("{peer} did not answer within {} ms", waited.as_millis())]
    TimedOut { peer: PeerAddress, waited: Duration },
    #[error(
        "the {what} of {length} bytes, to or from {peer}, is larger than the {MAX_CALL_BYTES} that a call may carry"
    )]
    TooLarge {
        peer: PeerAddress,
        what: &'static str,
        length: usize,
    },
    #[error("{peer} refused the call: {message}")]
    Refused { peer: PeerAddress, message: String },
    #[error("the call to {peer} was lost with its connection")]
    Lost {
        peer: PeerAddress,
        #[source]
        source: Arc<ConnectFailure>,
    },
    #[error("{peer} gave the call up: {text}")]
    Broken { peer: PeerAddress, text: String },
    #[error("cannot call {peer}: this node calls {MAX_POOLED_PEERS} peers already")]
    TooManyPeers { peer: PeerAddress },
    #[error("cannot call {peer}: this node is stopping")]
    Stopping { peer: PeerAddress },
}

/// Calls to other nodes.
pub trait PeerCalls: Send + Sync + 'static {
    /// Sends `request` and waits, at most `timeout` in all, for the answer.
    fn call(
        &self,
        peer: &PeerAddress,
        request: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send;
}

/// Answers calls. An `Err` is a message for the caller.
pub trait CallHandler: Send + Sync + 'static {
    fn handle(
        &self,
        peer: &PeerIdentity,
        request: Bytes,
    ) -> impl Future<Output = Result<Bytes, String>> + Send;
}

impl<F, Fut> CallHandler for F
where
    F: Fn(PeerIdentity, Bytes) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Bytes, String>> + Send,
{
    fn handle(
        &self,
        peer: &PeerIdentity,
        request: Bytes,
    ) -> impl Future<Output = Result<Bytes, String>> + Send {
        self(peer.clone(), request)
    }
}

/// Calls over QUIC, with one connection per peer (node and address), dialled when it is first needed.
///
/// A connection that served a call and is lost is dialled again at once. After a failure, calls fail at once with its
/// cause until the backoff is over: a caller learns of a dead peer without waiting for its own timeout.
#[derive(Debug)]
pub struct CallPool {
    identity: Arc<CurrentIdentity>,
    sockets: Sockets,
    peers: Mutex<Peers>,
}

#[derive(Debug, Default)]
struct Peers {
    slots: HashMap<PeerAddress, Arc<Slot>>,
    stopping: bool,
}

#[derive(Debug)]
struct Slot {
    peer: PeerAddress,
    state: Mutex<State>,
    /// Counts changes of `state`, for those who wait for a dial.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    link: Link,
    /// Dials that failed, and connections that served no call, since the last call that was served.
    failures: u32,
    /// When the present connection came about, or the last one did.
    since: Instant,
    /// Why the last connection is gone, if there was one.
    lost: Option<Arc<ConnectFailure>>,
    /// A line a second of each kind.
    lines: Lines,
}

#[derive(Debug, Default)]
struct Lines {
    up: LogLimit,
    lost: LogLimit,
    failed: LogLimit,
}

#[derive(Debug)]
enum Link {
    Idle,
    Dialling,
    Connected(Dialled),
    Waiting {
        until: Instant,
        cause: Arc<ConnectFailure>,
    },
    Stopped,
}

impl CallPool {
    pub fn new(identity: Arc<CurrentIdentity>) -> CallPool {
        CallPool::on(Sockets::plain(), identity)
    }

    /// A pool whose connections are on one of `sockets` each.
    pub fn on(sockets: Sockets, identity: Arc<CurrentIdentity>) -> CallPool {
        CallPool {
            identity,
            sockets,
            peers: Mutex::new(Peers::default()),
        }
    }

    /// Closes every connection and tells the peers. Calls from now on fail.
    pub async fn close(&self) {
        let slots: Vec<_> = {
            let mut peers = lock(&self.peers);
            peers.stopping = true;
            peers.slots.drain().map(|(_, slot)| slot).collect()
        };
        let closing = slots.into_iter().filter_map(|slot| {
            let link = std::mem::replace(&mut lock(&slot.state).link, Link::Stopped);
            slot.changed();
            match link {
                Link::Connected(dialled) => Some(async move {
                    dialled
                        .close(CloseReason::ShuttingDown, "", CLOSE_WAIT)
                        .await;
                }),
                _ => None,
            }
        });
        futures_util::future::join_all(closing).await;
    }

    fn slot(&self, peer: &PeerAddress) -> Result<Arc<Slot>, CallError> {
        let mut peers = lock(&self.peers);
        if peers.stopping {
            return Err(CallError::Stopping { peer: peer.clone() });
        }
        if let Some(slot) = peers.slots.get(peer) {
            return Ok(Arc::clone(slot));
        }
        if peers.slots.len() >= MAX_POOLED_PEERS {
            let unused = peers
                .slots
                .iter()
                .find(|(_, slot)| !slot.is_in_use())
                .map(|(address, _)| address.clone())
                .ok_or_else(|| CallError::TooManyPeers { peer: peer.clone() })?;
            peers.slots.remove(&unused);
        }
        let slot = Arc::new(Slot {
            peer: peer.clone(),
            state: Mutex::new(State {
                link: Link::Idle,
                failures: 0,
                since: Instant::now(),
                lost: None,
                lines: Lines::default(),
            }),
            changes: watch::Sender::new(0),
        });
        peers.slots.insert(peer.clone(), Arc::clone(&slot));
        Ok(slot)
    }

    /// A live connection, dialled if need be.
    async fn connection(&self, slot: &Arc<Slot>) -> Result<Dialled, CallError> {
        loop {
            let mut changes = slot.changes.subscribe();
            if let Some(settled) = self.settled(slot) {
                return settled;
            }
            // The slot outlives this wait, and so does its sender.
            let _ = changes.changed().await;
        }
    }

    /// The connection or failure that stands; `None` while a dial is under way. Starts one where it is due.
    fn settled(&self, slot: &Arc<Slot>) -> Option<Result<Dialled, CallError>> {
        let now = Instant::now();
        let mut state = lock(&slot.state);
        if let Link::Connected(dialled) = &state.link {
            match dialled.connection.close_reason() {
                None => return Some(Ok(dialled.clone())),
                Some(error) => {
                    let cause = Arc::new(dialled.explain(&error));
                    if let Some(suppressed) = state.lines.lost.allow() {
                        tracing::info!(
                            peer = %slot.peer, %cause, lived_ms = state.since.elapsed().as_millis() as u64,
                            suppressed, "connection for calls lost"
                        );
                    }
                    state.lost = Some(Arc::clone(&cause));
                    state.lost(cause, now);
                }
            }
        }
        match &state.link {
            Link::Waiting { until, cause } if now < *until => {
                return Some(Err(CallError::Unreachable {
                    peer: slot.peer.clone(),
                    retry_in: *until - now,
                    source: Arc::clone(cause),
                }));
            }
            Link::Stopped => {
                return Some(Err(CallError::Stopping {
                    peer: slot.peer.clone(),
                }));
            }
            Link::Dialling => return None,
            Link::Idle | Link::Waiting { .. } | Link::Connected(_) => {}
        }
        state.link = Link::Dialling;
        drop(state);
        let identity = self.identity.get();
        let (slot, sockets) = (Arc::clone(slot), self.sockets.clone());
        // On a task of its own: the dial goes on when the call that began it gives up, and others wait for it too.
        tokio::spawn(async move {
            let dialling = sockets.dial(&identity, &slot.peer, Alpn::Controller, DIAL_TIMEOUT);
            let outcome = dialling.await;
            slot.dialled(outcome, now.elapsed());
        });
        None
    }
}

impl Slot {
    fn dialled(&self, outcome: Result<Dialled, ConnectFailure>, took: Duration) {
        let took_ms = took.as_millis() as u64;
        {
            let mut guard = lock(&self.state);
            let state = &mut *guard;
            match (&state.link, outcome) {
                (Link::Stopped, Ok(dialled)) => {
                    CloseReason::ShuttingDown.close(&dialled.connection, "");
                }
                (Link::Stopped, Err(_)) => {}
                (_, Ok(dialled)) => {
                    if let Some(suppressed) = state.lines.up.allow() {
                        let cause = match &state.lost {
                            None => "a call is to be made".to_owned(),
                            Some(lost) => format!("a call is to be made, after {lost}"),
                        };
                        tracing::info!(
                            peer = %self.peer, cause, took_ms, suppressed, "connected for calls"
                        );
                    }
                    state.since = Instant::now();
                    state.link = Link::Connected(dialled);
                }
                (_, Err(failure)) => {
                    let (failure, now) = (Arc::new(failure), Instant::now());
                    state.failed(Arc::clone(&failure), now);
                    let next_dial_ms = match &state.link {
                        Link::Waiting { until, .. } => (*until - now).as_millis() as u64,
                        _ => 0,
                    };
                    if let Some(suppressed) = state.lines.failed.allow() {
                        tracing::info!(
                            peer = %self.peer, cause = %failure, took_ms, next_dial_ms, suppressed,
                            "cannot connect"
                        );
                    }
                }
            }
        }
        self.changed();
    }

    fn served(&self) {
        lock(&self.state).failures = 0;
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn is_in_use(&self) -> bool {
        match &lock(&self.state).link {
            Link::Connected(dialled) => dialled.connection.close_reason().is_none(),
            Link::Dialling => true,
            Link::Idle | Link::Waiting { .. } | Link::Stopped => false,
        }
    }
}

impl State {
    /// After a connection that was of use, dial at once; one that never was counts as a failed dial, or a peer that
    /// accepts and closes would be dialled without end.
    fn lost(&mut self, cause: Arc<ConnectFailure>, now: Instant) {
        if self.failures == 0 {
            self.link = Link::Idle;
            // Until the next connection has served a call.
            self.failures = 1;
        } else {
            self.failed(cause, now);
        }
    }

    fn failed(&mut self, cause: Arc<ConnectFailure>, now: Instant) {
        let delay = backoff(self.failures).mul_f64(1.0 - rand::random::<f64>() / 2.0);
        self.failures = self.failures.saturating_add(1);
        self.link = Link::Waiting {
            until: now + delay,
            cause,
        };
    }
}

/// The wait after so many failures before this one, without its jitter.
fn backoff(failures: u32) -> Duration {
    MIN_BACKOFF
        .saturating_mul(1 << failures.min(16))
        .min(MAX_BACKOFF)
}

impl PeerCalls for CallPool {
    async fn call(
        &self,
        peer: &PeerAddress,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        if request.len() > MAX_CALL_BYTES {
            return Err(CallError::TooLarge {
                peer: peer.clone(),
                what: "request",
                length: request.len(),
            });
        }
        let slot = self.slot(peer)?;
        let deadline = Instant::now() + timeout;
        let called = timeout_at(deadline, async {
            let mut dialled = self.connection(&slot).await?;
            let streams = match dialled.connection.open_bi().await {
                Ok(streams) => streams,
                // It was dead already, and nothing has been sent on it: one new one is tried.
                Err(_) => {
                    dialled = self.connection(&slot).await?;
                    let opened = dialled.connection.open_bi().await;
                    opened.map_err(|error| lost(peer, &dialled, &error))?
                }
            };
            let answer = exchange(peer, &dialled, streams, request).await;
            if matches!(answer, Ok(_) | Err(CallError::Refused { .. })) {
                slot.served();
            }
            answer
        })
        .await;
        called.unwrap_or_else(|_| {
            Err(CallError::TimedOut {
                peer: peer.clone(),
                waited: timeout,
            })
        })
    }
}

/// Tells the peer that nobody waits any more, when a call is given up half way.
struct GiveUp {
    send: SendStream,
    receive: RecvStream,
    armed: bool,
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if self.armed {
            let _ = self.send.reset(CloseReason::TimedOut.var_int());
            let _ = self.receive.stop(CloseReason::TimedOut.var_int());
        }
    }
}

async fn exchange(
    peer: &PeerAddress,
    dialled: &Dialled,
    (send, receive): (SendStream, RecvStream),
    request: Bytes,
) -> Result<Bytes, CallError> {
    let mut streams = GiveUp {
        send,
        receive,
        armed: true,
    };
    // A heartbeat does not wait behind a snapshot. A stream that is gone already is found to be so by the write.
    if request.len() <= URGENT_BYTES {
        let _ = streams.send.set_priority(URGENT);
    }
    let mut head = BytesMut::with_capacity(4);
    head.put_u32(request.len() as u32);
    // A server that refuses stops the stream and answers; its answer is worth more than the failed write.
    let sent = match streams
        .send
        .write_all_chunks(&mut [head.freeze(), request])
        .await
    {
        Ok(()) => streams.send.finish().is_ok(),
        Err(WriteError::ConnectionLost(error)) => return Err(lost(peer, dialled, &error)),
        Err(_) => false,
    };
    let read = |error| match error {
        BodyError::ConnectionLost(error) => lost(peer, dialled, &error),
        BodyError::TooLarge { length } => CallError::TooLarge {
            peer: peer.clone(),
            what: "response",
            length,
        },
        BodyError::Broken(text) => CallError::Broken {
            peer: peer.clone(),
            text: if sent {
                text
            } else {
                format!("the request was not taken, and {text}")
            },
        },
    };
    let mut status = [0];
    read_exact(&mut streams.receive, &mut status)
        .await
        .map_err(read)?;
    let length = read_length(&mut streams.receive).await.map_err(read)?;
    let body = read_body(&mut streams.receive, length)
        .await
        .map_err(read)?;
    streams.armed = false;
    match status[0] {
        OK => Ok(body),
        _ => Err(CallError::Refused {
            peer: peer.clone(),
            message: String::from_utf8_lossy(&body).into_owned(),
        }),
    }
}

fn lost(peer: &PeerAddress, dialled: &Dialled, error: &ConnectionError) -> CallError {
    CallError::Lost {
        peer: peer.clone(),
        source: Arc::new(dialled.explain(error)),
    }
}

/// Answers the calls of one accepted connection until it ends; returns why. At most [`CALL_STREAMS`] run at once, and they
/// hold at most [`MAX_CALL_BYTES_HELD`] of requests. A handler runs to its end though its caller may have given up.
pub async fn serve_calls<H: CallHandler>(
    connection: Connection,
    peer: PeerIdentity,
    handler: Arc<H>,
) -> ConnectionError {
    let running = Arc::new(Semaphore::new(CALL_STREAMS as usize));
    let held = Arc::new(Semaphore::new(MAX_CALL_BYTES_HELD));
    loop {
        // Never closed, so this never fails.
        let permit = Arc::clone(&running).acquire_owned().await;
        let (send, receive) = match connection.accept_bi().await {
            Ok(streams) => streams,
            Err(error) => return error,
        };
        let (handler, held, peer) = (Arc::clone(&handler), Arc::clone(&held), peer.clone());
        tokio::spawn(async move {
            let _permit = permit;
            serve_call(send, receive, &peer, &*handler, &held).await;
        });
    }
}

async fn serve_call<H: CallHandler>(
    mut send: SendStream,
    mut receive: RecvStream,
    peer: &PeerIdentity,
    handler: &H,
    held: &Semaphore,
) {
    let reading = async {
        let length = read_length(&mut receive).await?;
        let room = held.acquire_many(length as u32).await;
        Ok((read_body(&mut receive, length).await?, room))
    };
    let request = match timeout(REQUEST_TIMEOUT, reading).await {
        Ok(Ok(request)) => request,
        Ok(Err(BodyError::TooLarge { length })) => {
            tracing::warn!(%peer, length, "call refused: its request is too large");
            let _ = receive.stop(CloseReason::TooLarge.var_int());
            let text = format!("a request of {length} bytes is larger than {MAX_CALL_BYTES}");
            respond(&mut send, REFUSED, text.into()).await;
            return;
        }
        Ok(Err(BodyError::ConnectionLost(_) | BodyError::Broken(_))) => return,
        Err(_) => {
            tracing::warn!(%peer, "call given up: its request did not come in time");
            let _ = receive.stop(CloseReason::TimedOut.var_int());
            let _ = send.reset(CloseReason::TimedOut.var_int());
            return;
        }
    };
    let (body, _room) = request;
    match handler.handle(peer, body).await {
        Ok(answer) if answer.len() <= MAX_CALL_BYTES => respond(&mut send, OK, answer).await,
        Ok(answer) => {
            let text = format!("the answer of {} bytes is too large", answer.len());
            respond(&mut send, REFUSED, text.into()).await;
        }
        Err(message) => respond(&mut send, REFUSED, message.into()).await,
    }
}

/// The caller may be gone; then nobody misses the answer.
async fn respond(send: &mut SendStream, status: u8, body: Bytes) {
    if body.len() <= URGENT_BYTES {
        let _ = send.set_priority(URGENT);
    }
    let mut head = BytesMut::with_capacity(5);
    head.put_u8(status);
    head.put_u32(body.len() as u32);
    if send
        .write_all_chunks(&mut [head.freeze(), body])
        .await
        .is_ok()
    {
        let _ = send.finish();
    }
}

enum BodyError {
    ConnectionLost(ConnectionError),
    TooLarge { length: usize },
    Broken(String),
}

async fn read_exact(receive: &mut RecvStream, buffer: &mut [u8]) -> Result<(), BodyError> {
    use quinn::ReadExactError;
    receive
        .read_exact(buffer)
        .await
        .map_err(|error| match error {
            ReadExactError::ReadError(error) => read_error(error),
            ReadExactError::FinishedEarly(_) => BodyError::Broken("it ended early".into()),
        })
}

async fn read_length(receive: &mut RecvStream) -> Result<usize, BodyError> {
    let mut length = [0; 4];
    read_exact(receive, &mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_CALL_BYTES {
        return Err(BodyError::TooLarge { length });
    }
    Ok(length)
}

/// Memory grows with what has come, not with what was announced.
async fn read_body(receive: &mut RecvStream, length: usize) -> Result<Bytes, BodyError> {
    let mut body = BytesMut::new();
    while body.len() < length {
        let wanted = length - body.len();
        match receive.read_chunk(wanted, true).await {
            // One chunk is the whole body as often as not.
            Ok(Some(chunk)) if body.is_empty() && chunk.bytes.len() == length => {
                return Ok(chunk.bytes);
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err(BodyError::Broken("it ended early".into())),
            Err(error) => return Err(read_error(error)),
        }
    }
    Ok(body.freeze())
}

fn read_error(error: ReadError) -> BodyError {
    match error {
        ReadError::ConnectionLost(error) => BodyError::ConnectionLost(error),
        ReadError::Reset(code) => BodyError::Broken(
            CloseReason::from_code(code.into_inner())
                .map_or_else(|| format!("code {code}"), |reason| reason.to_string()),
        ),
        other => BodyError::Broken(other.to_string()),
    }
}

/// Nothing that is done under these locks can panic half way, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::transport::dial;
    use crate::transport::testing::{Cluster, LONG};

    /// A cluster of node 1, which answers calls, and a pool for node 2.
    struct Fixture {
        cluster: Cluster,
        pool: Arc<CallPool>,
        peer: PeerAddress,
        server: crate::transport::Server,
        connections: Arc<AtomicUsize>,
    }

    async fn fixture<H: CallHandler>(handler: H) -> Fixture {
        let cluster = Cluster::new();
        let (server, mut accepted) = cluster.server(1);
        let connections = Arc::new(AtomicUsize::new(0));
        let (handler, count) = (Arc::new(handler), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Some(accepted) = accepted.recv().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve_calls(
                    accepted.connection,
                    accepted.peer,
                    Arc::clone(&handler),
                ));
            }
        });
        let peer = cluster.address_of(&server, 1);
        let identity = CurrentIdentity::new(cluster.node_identity(2));
        Fixture {
            pool: Arc::new(CallPool::new(identity)),
            cluster,
            peer,
            server,
            connections,
        }
    }

    async fn echo(peer: PeerIdentity, request: Bytes) -> Result<Bytes, String> {
        match &request[..] {
            b"fail" => Err(format!("no, {peer}")),
            b"never" => std::future::pending().await,
            b"huge" => Ok(vec![0; MAX_CALL_BYTES + 1].into()),
            _ => Ok(request),
        }
    }

    #[tokio::test]
    async fn a_call_is_answered_or_refused_and_its_size_is_bounded() {
        let f = fixture(echo).await;
        let call = |body: Bytes| f.pool.call(&f.peer, body, LONG);
        assert_eq!(call("hello".into()).await.unwrap(), "hello");
        assert_eq!(call(Bytes::new()).await.unwrap(), "");
        let large: Bytes = vec![7; MAX_CALL_BYTES].into();
        assert_eq!(call(large.clone()).await.unwrap(), large);
        let error = call("fail".into()).await.unwrap_err();
        assert!(matches!(error, CallError::Refused { message, .. } if message == "no, node 2"));
        let error = call("huge".into()).await.unwrap_err().to_string();
        assert!(error.contains("too large"), "{error}");
        let error = call(vec![0; MAX_CALL_BYTES + 1].into()).await.unwrap_err();
        assert!(matches!(
            error,
            CallError::TooLarge {
                what: "request",
                ..
            }
        ));
        assert_eq!(f.connections.load(Ordering::Relaxed), 1, "one connection");
    }

    #[tokio::test]
    async fn an_announced_size_over_the_cap_is_refused_by_the_server() {
        let f = fixture(echo).await;
        let identity = Arc::new(f.cluster.node_identity(2));
        let dialled = dial(&identity, &f.peer, Alpn::Controller, LONG)
            .await
            .unwrap();
        let (mut send, mut receive) = dialled.connection.open_bi().await.unwrap();
        send.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let answer = receive.read_to_end(1000).await.unwrap();
        assert_eq!(answer[0], REFUSED);
        let code = send.stopped().await.unwrap().unwrap();
        assert_eq!(code, CloseReason::TooLarge.var_int());
    }

    #[tokio::test]
    async fn calls_run_side_by_side_and_a_slow_one_times_out_alone() {
        let f = fixture(echo).await;
        let never = f
            .pool
            .call(&f.peer, "never".into(), Duration::from_millis(300));
        let many = futures_util::future::join_all((0..100u32).map(|i| {
            let body = Bytes::from(i.to_be_bytes().to_vec());
            let f = &f;
            async move { f.pool.call(&f.peer, body.clone(), LONG).await.unwrap() == body }
        }));
        let (never, many) = tokio::join!(never, many);
        assert!(matches!(never, Err(CallError::TimedOut { .. })));
        assert!(many.into_iter().all(|same| same));
        assert_eq!(f.connections.load(Ordering::Relaxed), 1, "one connection");
    }

    #[tokio::test]
    async fn no_more_calls_run_at_once_than_the_cap() {
        #[derive(Default)]
        struct Gauge {
            running: AtomicUsize,
            most: AtomicUsize,
            full: tokio::sync::Notify,
        }
        const CAP: usize = CALL_STREAMS as usize;
        let gauge = Arc::new(Gauge::default());
        let gate = Arc::new(Semaphore::new(0));
        let (inside, open) = (Arc::clone(&gauge), Arc::clone(&gate));
        let f = fixture(move |_, request: Bytes| {
            let (gauge, gate) = (Arc::clone(&inside), Arc::clone(&open));
            async move {
                let running = gauge.running.fetch_add(1, Ordering::SeqCst) + 1;
                gauge.most.fetch_max(running, Ordering::SeqCst);
                if running >= CAP {
                    gauge.full.notify_one();
                }
                let _through = gate.acquire().await;
                gauge.running.fetch_sub(1, Ordering::SeqCst);
                Ok(request)
            }
        })
        .await;
        let calls = (0..CAP + 150).map(|_| f.pool.call(&f.peer, "x".into(), LONG));
        let (answers, _) = tokio::join!(futures_util::future::join_all(calls), async {
            timeout(LONG, gauge.full.notified()).await.unwrap();
            gate.add_permits(CAP * 2);
        });
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(gauge.most.load(Ordering::SeqCst), CAP);
    }

    #[tokio::test]
    async fn a_lost_connection_is_dialled_again_at_once_and_a_dead_peer_fails_fast() {
        let f = fixture(echo).await;
        f.pool.call(&f.peer, "a".into(), LONG).await.unwrap();
        let slot = f.pool.slot(&f.peer).unwrap();
        let first = f.pool.connection(&slot).await.unwrap();
        CloseReason::Done.close(&first.connection, "");
        assert_eq!(f.pool.call(&f.peer, "b".into(), LONG).await.unwrap(), "b");
        assert_eq!(f.connections.load(Ordering::Relaxed), 2);
        f.server.close(CloseReason::ShuttingDown, LONG).await;
        drop(f.server);
        let dead = PeerAddress::node(f.peer.node.unwrap(), "127.0.0.1:9");
        for _ in 0..3 {
            let error = f.pool.call(&dead, "c".into(), LONG).await.unwrap_err();
            let CallError::Unreachable { source, .. } = error else {
                panic!("{error}");
            };
            assert!(
                matches!(*source, ConnectFailure::NothingListens { .. }),
                "{source}"
            );
        }
        f.pool.close().await;
        let error = f.pool.call(&dead, "d".into(), LONG).await.unwrap_err();
        assert!(matches!(error, CallError::Stopping { .. }), "{error}");
    }

    #[test]
    fn the_wait_doubles_from_50_ms_to_1_s() {
        let waits: Vec<_> = (0..7).map(|n| backoff(n).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff(u32::MAX), MAX_BACKOFF);
        let mut state = State {
            link: Link::Idle,
            failures: 0,
            since: Instant::now(),
            lost: None,
            lines: Lines::default(),
        };
        let cause = || {
            Arc::new(ConnectFailure::NothingListens {
                address: "x".into(),
            })
        };
        let now = Instant::now();
        state.lost(cause(), now);
        assert!(matches!(state.link, Link::Idle), "of use, so at once");
        state.lost(cause(), now);
        assert!(
            matches!(state.link, Link::Waiting { .. }),
            "of no use since"
        );
    }
}
