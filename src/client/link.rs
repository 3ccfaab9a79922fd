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
use super::connection::{Awaited, Encoded, Lane, decode_response};
use super::dial::{Dialer, Reached};
use super::error::{ClientError, ConnectCause, ConnectError, LostCause};
use super::keep;

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

/// What one client's way to one address has been through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientLink {
    /// `host:port`, as the client dials it.
    pub address: String,
    pub is_up: bool,
    /// Smoothed round trip; zero without a connection.
    pub rtt: Duration,
    /// How often the connection went on over another local socket, without a handshake.
    pub migrations: u64,
    /// Connections that came about.
    pub handshakes: u64,
    /// Dials beyond the first.
    pub redials: u64,
    /// How often the node fell silent for longer than is normal.
    pub suspicions: u64,
    /// What last went wrong, in words.
    pub last_error: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) migrations: u64,
    pub(super) handshakes: u64,
    pub(super) dials: u64,
    pub(super) suspicions: u64,
    pub(super) last_error: Option<String>,
}

struct State {
    counts: Counts,
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
    pub(super) reached: Reached,
    pub(super) awaited: Arc<Awaited>,
    pub(super) versions: Versions,
    since: Instant,
    /// For requests that are answered soon: metadata, administration. Opened again when it broke.
    control: Mutex<Lane>,
}

impl Session {
    fn is_up(&self) -> bool {
        self.reached.connection.close_reason().is_none()
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
                counts: Counts::default(),
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
            let connection = &session.reached.connection;
            connection.close(0u32.into(), b"client closed");
        }
    }

    pub(super) fn view(&self) -> ClientLink {
        let state = self.lock();
        let counts = &state.counts;
        let session = state.session.as_ref().filter(|session| session.is_up());
        ClientLink {
            address: self.address.clone(),
            is_up: session.is_some(),
            rtt: session.map_or(Duration::ZERO, |s| s.reached.connection.rtt()),
            migrations: counts.migrations,
            handshakes: counts.handshakes,
            redials: counts.dials.saturating_sub(1),
            suspicions: counts.suspicions,
            last_error: counts.last_error.clone(),
        }
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock().counts);
    }

    /// Puts `new` in the place of `old`. False where another has taken that place already, or nobody needs one any more.
    pub(super) fn replace(&self, old: &Arc<Session>, new: &Arc<Session>) -> bool {
        let mut state = self.lock();
        match &mut state.session {
            Some(current) if Arc::ptr_eq(current, old) => {
                *current = new.clone();
                state.silent_until = None;
                true
            }
            _ => false,
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
                tokio::spawn(keep::keep(
                    Arc::downgrade(&self),
                    session.clone(),
                    state.random.next(),
                ));
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                state.counts.last_error = Some(error.to_string());
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

    /// One dial, and what the node offers.
    pub(super) async fn connect(&self) -> Result<Arc<Session>, ConnectError> {
        self.connect_within(self.connect_timeout).await
    }

    /// Dials, and waits for an answer at least as long as is configured.
    pub(super) async fn connect_patiently(
        &self,
        patience: Duration,
    ) -> Result<Arc<Session>, ConnectError> {
        self.connect_within(self.connect_timeout.max(patience))
            .await
    }

    async fn connect_within(&self, within: Duration) -> Result<Arc<Session>, ConnectError> {
        self.count(|counts| counts.dials += 1);
        let reached = self.dialer.dial(&self.address, within).await?;
        let connection = &reached.connection;
        let awaited = Arc::new(Awaited::default());
        let control = self.open_lane_on(connection, &awaited).await?;
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
        self.count(|counts| counts.handshakes += 1);
        Ok(Arc::new(Session {
            reached,
            awaited,
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

    async fn open_lane_on(
        &self,
        connection: &quinn::Connection,
        awaited: &Arc<Awaited>,
    ) -> Result<Lane, ConnectError> {
        let (send, receive) = connection
            .open_bi()
            .await
            .map_err(|error| self.error(ConnectCause::Lost(error)))?;
        let address = self.address.clone();
        Ok(Lane::start(address, send, receive, awaited.clone()))
    }

    /// A new lane for the caller alone, and what the node at its other end offers.
    pub(super) async fn open_lane(self: &Arc<Self>) -> Result<(Lane, Arc<Session>), ClientError> {
        let session = self.session().await?;
        // A node may have no room for another stream; it is not waited for longer than for a connection.
        let opened = self.open_lane_on(&session.reached.connection, &session.awaited);
        let lane = tokio::time::timeout(self.connect_timeout, opened)
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
            let connection = &session.reached.connection;
            let lane = self.open_lane_on(connection, &session.awaited).await?;
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
