//! The client's way to one address: one QUIC connection, redialled with backoff, and any number of lanes on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use kafka_protocol::messages::ApiVersionsRequest;
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::api::{Spoken, Versions};
use super::backoff::{Backoff, Random};
use super::connection::{Encoded, Lane, decode_response};
use super::dial::Dialer;
use super::error::{ClientError, ConnectCause, ConnectError, LostCause};

/// A connection that lasted at least this long counts as a good one: the next failure starts the backoff anew.
const LASTING: Duration = Duration::from_secs(1);
/// `UNSUPPORTED_VERSION`, which a node answers to an ApiVersions request newer than it knows, in version 0.
const UNSUPPORTED_VERSION: i16 = 35;

/// See the file's head. Shared by everything in a client that talks to this address.
pub(super) struct Link {
    pub(super) address: String,
    dialer: Arc<dyn Dialer>,
    /// For the connection, and again for its ApiVersions exchange.
    connect_timeout: Duration,
    backoff: Backoff,
    state: Mutex<State>,
}

struct State {
    session: Option<Arc<Session>>,
    /// The attempt that is under way. Everybody who needs the connection waits for the same one.
    connecting: Option<Connecting>,
    failures: u32,
    not_before: Option<Instant>,
    /// Others are asked first until then.
    silent_until: Option<Instant>,
    random: Random,
}

type Connecting = Shared<BoxFuture<'static, Result<Arc<Session>, ConnectError>>>;

/// A connection that answered ApiVersions.
pub(super) struct Session {
    connection: quinn::Connection,
    pub(super) versions: Versions,
    since: Instant,
    /// For requests that are answered soon: metadata, administration. Opened again when it broke.
    control: Mutex<Lane>,
}

impl Session {
    fn is_up(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

impl Link {
    pub(super) fn new(
        address: String,
        dialer: Arc<dyn Dialer>,
        connect_timeout: Duration,
        backoff: Backoff,
        seed: u64,
    ) -> Link {
        Link {
            address,
            dialer,
            connect_timeout,
            backoff,
            state: Mutex::new(State {
                session: None,
                connecting: None,
                failures: 0,
                not_before: None,
                silent_until: None,
                random: Random::new(seed),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_up(&self) -> bool {
        self.lock().session.as_ref().is_some_and(|s| s.is_up())
    }

    /// It answers nothing at the moment, though its connection stands.
    pub(super) fn note_silence(&self, until: Instant) {
        self.lock().silent_until = Some(until);
    }

    /// Whether others should be asked first.
    pub(super) fn is_silent(&self) -> bool {
        let silent_until = self.lock().silent_until;
        silent_until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn close(&self) {
        if let Some(session) = self.lock().session.take() {
            session.connection.close(0u32.into(), b"client closed");
        }
    }

    /// The live connection, made if there is none. After failures the attempt waits for its turn first.
    pub(super) async fn session(self: &Arc<Self>) -> Result<Arc<Session>, ConnectError> {
        let connecting = {
            let mut state = self.lock();
            match &state.session {
                Some(session) if session.is_up() => return Ok(session.clone()),
                Some(session) => {
                    let lasted = session.since.elapsed() >= LASTING;
                    state.session = None;
                    state.failures = if lasted { 0 } else { state.failures + 1 };
                    self.schedule(&mut state);
                }
                None => {}
            }
            match &state.connecting {
                Some(connecting) => connecting.clone(),
                None => {
                    let connecting = self.clone().attempt(state.not_before).boxed().shared();
                    state.connecting = Some(connecting.clone());
                    connecting
                }
            }
        };
        connecting.await
    }

    /// When the next attempt may be made.
    fn schedule(&self, state: &mut State) {
        let wait = self.backoff.after(state.failures, state.random.next());
        state.not_before = Some(Instant::now() + wait);
    }

    /// One attempt, which notes its own result. It holds its link, and the link holds it, until it is done.
    async fn attempt(
        self: Arc<Self>,
        not_before: Option<Instant>,
    ) -> Result<Arc<Session>, ConnectError> {
        if let Some(not_before) = not_before {
            tokio::time::sleep_until(not_before).await;
        }
        // The parts have their own limits; this one is for a dialler that does not keep to its own.
        let within = self.connect_timeout * 2;
        let result = tokio::time::timeout(within, self.connect())
            .await
            .unwrap_or_else(|_| Err(self.error(ConnectCause::TimedOut { after: within })));
        let mut state = self.lock();
        state.connecting = None;
        match &result {
            Ok(session) => {
                tracing::debug!(address = %self.address, "connected");
                state.session = Some(session.clone());
                state.silent_until = None;
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                self.schedule(&mut state);
                tracing::debug!(
                    address = %self.address,
                    failures = state.failures,
                    cause = %error.cause,
                    source = std::error::Error::source(&error.cause).map(tracing::field::display),
                    "cannot connect"
                );
            }
        }
        result
    }

    async fn connect(&self) -> Result<Arc<Session>, ConnectError> {
        let connection = self
            .dialer
            .dial(&self.address, self.connect_timeout)
            .await?;
        let control = self.open_lane_on(&connection).await?;
        let versions = self.handshake(&control).await.map_err(|error| {
            self.error(match error {
                ClientError::Lost {
                    cause: LostCause::Connection(error),
                    ..
                } => ConnectCause::Lost(error),
                error => match connection.close_reason() {
                    Some(reason) => ConnectCause::Lost(reason),
                    None => ConnectCause::Handshake {
                        what: match std::error::Error::source(&error) {
                            Some(source) => format!("{error}: {source}"),
                            None => error.to_string(),
                        },
                    },
                },
            })
        })?;
        Ok(Arc::new(Session {
            connection,
            versions,
            since: Instant::now(),
            control: Mutex::new(control),
        }))
    }

    /// Asks what the node offers. A node that does not know our version of the question answers in version 0.
    async fn handshake(&self, lane: &Lane) -> Result<Versions, ClientError> {
        type Ask = ApiVersionsRequest;
        let request = Ask::default()
            .with_client_software_name(StrBytes::from_static_str("quorate"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let version = Ask::SPOKEN.max;
        let body = lane
            .send(Encoded::new(&request, version, Ask::NAME)?)?
            .response(self.connect_timeout)
            .await?;
        // The error code comes first in every version.
        let refused = body
            .first_chunk::<2>()
            .map(|code| i16::from_be_bytes(*code))
            == Some(UNSUPPORTED_VERSION);
        let version = if refused { 0 } else { version };
        let response = decode_response::<Ask>(body, version, &self.address, Ask::NAME)?;
        if !refused {
            ClientError::check(response.error_code, None, || {
                format!("asking {} for its versions", self.address)
            })?;
        }
        Ok(Versions::new(&response))
    }

    fn error(&self, cause: ConnectCause) -> ConnectError {
        ConnectError {
            address: self.address.clone(),
            cause,
        }
    }

    async fn open_lane_on(&self, connection: &quinn::Connection) -> Result<Lane, ConnectError> {
        let (send, receive) = connection
            .open_bi()
            .await
            .map_err(|error| self.error(ConnectCause::Lost(error)))?;
        Ok(Lane::start(self.address.clone(), send, receive))
    }

    /// A new lane for the caller alone, and what the node at its other end offers.
    pub(super) async fn open_lane(self: &Arc<Self>) -> Result<(Lane, Arc<Session>), ClientError> {
        let session = self.session().await?;
        // A node may have no room for another stream; it is not waited for longer than for a connection.
        let lane =
            tokio::time::timeout(self.connect_timeout, self.open_lane_on(&session.connection))
                .await
                .unwrap_or_else(|_| {
                    Err(self.error(ConnectCause::TimedOut {
                        after: self.connect_timeout,
                    }))
                })?;
        Ok((lane, session))
    }

    /// Sends a request on the control lane. `timeout` covers the wait for the connection too.
    pub(super) async fn call<R: Spoken>(
        self: &Arc<Self>,
        request: &R,
        timeout: Duration,
    ) -> Result<R::Response, ClientError> {
        let deadline = Instant::now() + timeout;
        let ready = async {
            let session = self.session().await?;
            let version = session.versions.pick::<R>(&self.address)?;
            let lane = session.control().clone();
            if !lane.is_broken() {
                return Ok::<_, ClientError>((lane, version));
            }
            let lane = self.open_lane_on(&session.connection).await?;
            *session.control() = lane.clone();
            Ok((lane, version))
        };
        let (lane, version) = match tokio::time::timeout(timeout, ready).await {
            Ok(ready) => ready?,
            Err(_) => {
                return Err(ClientError::Connect(
                    self.error(ConnectCause::TimedOut { after: timeout }),
                ));
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        lane.call(request, version, R::NAME, left).await
    }
}

impl Session {
    fn control(&self) -> MutexGuard<'_, Lane> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
