//! One connection: requests in, answers out, in the same order.
//!
//! A reader and a writer run in one task, with a bounded queue of answers between them. The reader takes a request off the
//! stream, and for a produce also hands its batches to their partitions, before it looks at the next one; what remains of
//! the work is a future in the queue. The writer runs those futures one after another and writes what they give. So
//! produces are pipelined and keep their order, and everything else happens in turn, as with Kafka.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use kafka_protocol::messages::ApiKey;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::budget::{Budget, Held, RequestMemory};
use super::chunks::Chunks;
use super::codec::{BadRequest, Header, read_header};
use super::context::{Config, Context, ListenerKind};
use super::framing::{FrameError, FrameReader};
use super::limits::{
    ELEMENT_BYTES, LOGIN_DEADLINE, Limits, MAX_DESCRIPTIONS, MAX_LOGIN_REQUEST_BYTES,
    MAX_NODE_CONNECTIONS, MAX_SESSION_PARTITIONS,
};
use super::login::{Doorman, Login, LoginState};
use super::meters::Meters;
use super::{Service, handlers};
use crate::transport::LogLimit;
use crate::types::NodeId;

/// Lines a second about connections that were closed for what they sent. Further ones are counted.
const MAX_COMPLAINTS: u32 = 20;

/// The Kafka API of one node: what all its connections share.
pub struct Server<S> {
    service: Arc<S>,
    config: Config,
    request_memory: RequestMemory,
    /// The same for requests of the cluster's own nodes.
    node_memory: RequestMemory,
    response_memory: Budget,
    descriptions: Arc<Semaphore>,
    session_room: Arc<Semaphore>,
    doorman: Arc<Doorman>,
    connections: Arc<Semaphore>,
    node_connections: Arc<Semaphore>,
    log_limit: LogLimit,
    meters: Meters,
}

/// Who is at the other end, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    /// The name in the client's certificate, where it has shown one.
    pub name: Option<Arc<str>>,
    /// Which node of the cluster it is, by its certificate; `None` for a client. Some requests are for nodes alone.
    pub node: Option<NodeId>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} at {}", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client closed it, or went away between two requests. Everything that it had asked was answered, or could not
    /// be delivered.
    ByClient,
    /// The node is stopping.
    Shutdown,
    /// Nothing came for the idle time.
    Idle,
    /// The client broke the protocol or a limit. It was logged, with the peer.
    Refused,
    /// Reading or writing failed.
    Failed,
}

/// What is to be written in answer to a request.
pub(super) enum Reply {
    Send(Response),
    /// The connection is closed behind it.
    Last(Response),
    /// A produce with acks=0 has no response.
    Nothing,
    /// The connection is to be closed: the client cannot be told otherwise.
    Close(String),
}

/// A response as it goes on the wire.
pub(super) struct Response {
    pub(super) bytes: Chunks,
    /// The memory that it counts for until it is written.
    pub(super) held: Held,
}

impl From<Bytes> for Response {
    fn from(bytes: Bytes) -> Response {
        Response {
            bytes: Chunks::from(bytes),
            held: Held::default(),
        }
    }
}

/// A request in the queue of answers.
struct Queued {
    pending: Pending,
    /// What it counts for until it is answered.
    held: Held,
    api: ApiKey,
    bytes: usize,
    arrived: Instant,
}

/// An answer that comes when its turn has come.
pub(super) type Pending = BoxFuture<'static, Result<Reply, BadRequest>>;

impl<S: Service> Server<S> {
    pub fn new(service: Arc<S>, config: Config) -> Arc<Server<S>> {
        let limits = config.limits;
        Arc::new(Server {
            service,
            config,
            request_memory: RequestMemory::new(&limits),
            node_memory: RequestMemory::new(&limits),
            response_memory: Budget::new(limits.response_memory_bytes),
            descriptions: Arc::new(Semaphore::new(MAX_DESCRIPTIONS)),
            doorman: Arc::default(),
            session_room: Arc::new(Semaphore::new(MAX_SESSION_PARTITIONS)),
            connections: Arc::new(Semaphore::new(
                limits.max_connections.min(Semaphore::MAX_PERMITS),
            )),
            node_connections: Arc::new(Semaphore::new(MAX_NODE_CONNECTIONS)),
            log_limit: LogLimit::new(MAX_COMPLAINTS),
            meters: Meters::default(),
        })
    }

    /// Admits a connection, before anything is spent on it. `None` when there are too many: close it; that was logged.
    pub fn admit(self: &Arc<Self>, peer: Peer, listener: ListenerKind) -> Option<Connection<S>> {
        let (room, most) = match peer.node {
            Some(_) => (&self.node_connections, MAX_NODE_CONNECTIONS),
            None => (&self.connections, self.config.limits.max_connections),
        };
        let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
            self.complain(
                &peer,
                &format_args!("there are {most} connections already, the limit"),
            );
            return None;
        };
        Some(Connection {
            server: Arc::clone(self),
            peer,
            listener,
            login: Login::None,
            _permit: permit,
        })
    }

    /// Connections of clients that are open now.
    pub fn connection_count(&self) -> usize {
        self.config
            .limits
            .max_connections
            .saturating_sub(self.connections.available_permits())
    }

    /// What was done so far.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    fn complain(&self, peer: &Peer, reason: &dyn fmt::Display) {
        self.meters.refuse();
        if let Some(suppressed) = self.log_limit.allow() {
            warn!(%peer, suppressed, "Kafka connection closed: {reason}");
        }
    }
}

/// A connection that was admitted. It counts until it is dropped.
pub struct Connection<S> {
    server: Arc<Server<S>>,
    peer: Peer,
    listener: ListenerKind,
    login: Login,
    _permit: OwnedSemaphorePermit,
}

impl<S: Service> Connection<S> {
    /// What the client has to say of itself, unless it is known by a certificate.
    pub fn wants(mut self, login: Login) -> Connection<S> {
        self.login = login;
        self
    }

    /// The client has shown a certificate, after it was admitted.
    pub fn is_known_as(mut self, name: Arc<str>) -> Connection<S> {
        self.peer.name = Some(name);
        self
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Serves the connection until it ends. The streams are dropped then, which closes them.
    ///
    /// When `shutdown` is cancelled no further request is read, and those already read are answered. Dropping the future
    /// ends the connection at once; produces that were handed to their partitions go on there.
    pub async fn run<R, W>(self, reader: R, writer: W, shutdown: CancellationToken) -> Ended
    where
        R: AsyncRead + Send + Unpin,
        W: AsyncWrite + Send + Unpin,
    {
        let context = Arc::new(Context {
            service: Arc::clone(&self.server.service),
            config: self.server.config,
            listener: self.listener.clone(),
            peer_node: self.peer.node,
            client_host: format!("/{}", self.peer.address.ip()),
            response_memory: self.server.response_memory.clone(),
            descriptions: Arc::clone(&self.server.descriptions),
            fetch_rotation: AtomicUsize::new(0),
            fetch_session: Mutex::default(),
            session_room: Arc::clone(&self.server.session_room),
            login: Mutex::new(LoginState::new(self.login, self.peer.name.is_some())),
            doorman: Arc::clone(&self.server.doorman),
        });
        let outstanding = AtomicUsize::new(0);
        let capacity = self.server.config.limits.max_outstanding_requests.max(1);
        let (queue, pending) = mpsc::channel(capacity);
        let write = self.write(writer, pending, &outstanding);
        let read = self.read(reader, queue, context, &outstanding, &shutdown);
        tokio::pin!(write);
        let ended = {
            tokio::pin!(read);
            tokio::select! {
                biased;
                ended = &mut write => return ended.unwrap_or(Ended::ByClient),
                ended = &mut read => ended,
            }
        };
        // The queue's sender is gone with the reader: the writer ends when it has answered everything.
        match ended {
            Ended::ByClient | Ended::Shutdown => write.await.unwrap_or(ended),
            Ended::Idle | Ended::Refused | Ended::Failed => ended,
        }
    }

    async fn read<R>(
        &self,
        reader: R,
        queue: mpsc::Sender<Queued>,
        context: Arc<Context<S>>,
        outstanding: &AtomicUsize,
        shutdown: &CancellationToken,
    ) -> Ended
    where
        R: AsyncRead + Send + Unpin,
    {
        let limits = &self.server.config.limits;
        let mut frames = FrameReader::new(reader);
        let memory = match self.peer.node {
            Some(_) => &self.server.node_memory,
            None => &self.server.request_memory,
        };
        let log_in_by = Instant::now() + LOGIN_DEADLINE;
        let before_login = Limits {
            max_request_bytes: MAX_LOGIN_REQUEST_BYTES,
            ..*limits
        };
        loop {
            let login_is_due = context.login().is_due();
            let limits = if login_is_due { &before_login } else { limits };
            let next = async {
                // Room first, so that no request is read that could not be queued.
                let slot = queue.reserve().await.ok();
                (slot, frames.next(limits, memory).await)
            };
            // Only here, so that a request that has been read is also taken in hand.
            let (slot, frame) = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ended::Shutdown,
                () = sleep_until(log_in_by), if login_is_due => {
                    self.server.complain(
                        &self.peer,
                        &format_args!("the client has not logged in within {LOGIN_DEADLINE:?}"),
                    );
                    return Ended::Refused;
                }
                next = next => next,
            };
            let Some(slot) = slot else {
                return Ended::Failed;
            };
            let (frame, mut held) = match frame {
                Ok(frame) => frame,
                Err(FrameError::Idle) if outstanding.load(Ordering::Relaxed) > 0 => continue,
                Err(error) => return self.ended_by(error),
            };
            let (bytes, arrived) = (frame.len(), Instant::now());
            let mut api = ApiKey::ApiVersions;
            let pending = match read_header(frame) {
                Ok(Header::Request(request)) => {
                    api = request.api.key;
                    if login_is_due && !handlers::may_come_before_login(api) {
                        self.server.complain(
                            &self.peer,
                            &format_args!(
                                "a {api:?} request before the login: set the client's security.protocol, \
                                 sasl.mechanism and credentials, or give it a certificate"
                            ),
                        );
                        return Ended::Refused;
                    }
                    let decoded = request.elements.saturating_mul(ELEMENT_BYTES);
                    let budget = memory.of(request.api.key as i16);
                    budget.take(&mut held, decoded).await;
                    handlers::begin(&context, request).await
                }
                Ok(Header::UnknownApiVersions { correlation_id }) => {
                    handlers::api_versions::unknown_version(correlation_id)
                }
                Err(error) => Err(error),
            };
            match pending {
                Ok(pending) => {
                    outstanding.fetch_add(1, Ordering::Relaxed);
                    slot.send(Queued {
                        pending,
                        held,
                        api,
                        bytes,
                        arrived,
                    });
                }
                Err(error) => {
                    self.server.complain(&self.peer, &error);
                    return Ended::Refused;
                }
            }
        }
    }

    fn ended_by(&self, error: FrameError) -> Ended {
        match error {
            FrameError::Closed => Ended::ByClient,
            FrameError::Idle => {
                debug!(peer = %self.peer, "Kafka connection closed: {error}");
                Ended::Idle
            }
            FrameError::Io(_) => {
                debug!(peer = %self.peer, "Kafka connection closed: {error}");
                Ended::Failed
            }
            FrameError::CutShort { .. }
            | FrameError::TooLarge { .. }
            | FrameError::TooSmall { .. }
            | FrameError::TooSlow { .. } => {
                self.server.complain(&self.peer, &error);
                Ended::Refused
            }
        }
    }

    /// Answers what is in the queue. `None` when the queue's other end is gone and everything is answered.
    async fn write<W>(
        &self,
        mut writer: W,
        mut queue: mpsc::Receiver<Queued>,
        outstanding: &AtomicUsize,
    ) -> Option<Ended>
    where
        W: AsyncWrite + Send + Unpin,
    {
        while let Some(queued) = queue.recv().await {
            let reply = queued.pending.await;
            // What the request counted for goes before the response is written, which may take its reader's time.
            drop(queued.held);
            let meter = self.server.meters.of(queued.api);
            let done = |response_bytes| {
                meter.record(queued.arrived.elapsed(), queued.bytes, response_bytes);
            };
            match reply {
                Ok(Reply::Send(response)) => {
                    done(response.bytes.remaining());
                    if let Err(ended) = self.send(&mut writer, response).await {
                        return Some(ended);
                    }
                }
                Ok(Reply::Last(response)) => {
                    done(response.bytes.remaining());
                    self.server.complain(&self.peer, &"the login failed");
                    let _ = self.send(&mut writer, response).await;
                    return Some(Ended::Refused);
                }
                Ok(Reply::Nothing) => done(0),
                Ok(Reply::Close(reason)) => {
                    self.server.complain(&self.peer, &reason);
                    return Some(Ended::Refused);
                }
                Err(error) => {
                    self.server.complain(&self.peer, &error);
                    return Some(Ended::Refused);
                }
            }
            outstanding.fetch_sub(1, Ordering::Relaxed);
        }
        // A client that waits for the end of the stream is told of it.
        let _ = timeout(self.server.config.limits.write_deadline, writer.shutdown()).await;
        None
    }

    /// Writes a response. The deadline holds for each part that the stream takes: a slow reader has time, one that
    /// stands still has not.
    async fn send<W>(&self, writer: &mut W, response: Response) -> Result<(), Ended>
    where
        W: AsyncWrite + Send + Unpin,
    {
        let deadline = self.server.config.limits.write_deadline;
        let Response { mut bytes, held } = response;
        while bytes.has_remaining() {
            match timeout(deadline, writer.write_buf(&mut bytes)).await {
                Ok(Ok(0)) => return Err(Ended::Failed),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    debug!(peer = %self.peer, "Kafka connection closed: writing failed: {error}");
                    return Err(Ended::Failed);
                }
                Err(_) => return Err(self.stalled()),
            }
        }
        drop(held);
        match timeout(deadline, writer.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                debug!(peer = %self.peer, "Kafka connection closed: writing failed: {error}");
                Err(Ended::Failed)
            }
            Err(_) => Err(self.stalled()),
        }
    }

    fn stalled(&self) -> Ended {
        let deadline = self.server.config.limits.write_deadline;
        self.server.complain(
            &self.peer,
            &format_args!("the client has not read its answers for {deadline:?}"),
        );
        Ended::Refused
    }
}
