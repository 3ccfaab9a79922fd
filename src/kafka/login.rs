//! A connection's login: what must come before anything else where the client has shown no certificate.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Service;
use super::limits::MAX_PASSWORD_CHECKS;
use super::scram::{self, Exchange, First};
use crate::metadata::{ClusterImage, ScramMechanism, ScramVerifier};
use crate::types::ErrorCode;

/// How long a client that failed waits for its answer, and then for the end of its connection. Who guesses is slowed down by
/// it, and holds one of the connections meanwhile.
pub(super) const FAILED_LOGIN_DELAY: Duration = Duration::from_secs(1);

/// What a listener wants of clients that have shown no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// Nothing: whoever reaches the listener is served.
    None,
    /// A name and a password, by one of SCRAM's mechanisms; by PLAIN as well where the connection is encrypted.
    Password { encrypted: bool },
}

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mechanism {
    Plain,
    Scram(ScramMechanism),
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::Scram(scram) => scram.name(),
        }
    }
}

/// Where a login stands.
enum Stage {
    /// No mechanism is chosen.
    Open,
    Chosen(Mechanism),
    /// The client's proof is due.
    Challenged(Box<Exchange>),
    Passed,
    /// The connection is about to be closed.
    Failed,
}

/// The login of one connection.
pub(super) struct LoginState {
    offer: Login,
    /// Whether the client is known already, by its certificate.
    by_certificate: bool,
    stage: Stage,
}

/// What all logins of a node share.
pub(super) struct Doorman {
    /// Makes decoys that look the same for as long as the process runs.
    secret: [u8; 32],
    /// Turns to derive a key from a password: each keeps a processor busy for milliseconds.
    checks: Arc<Semaphore>,
}

impl Default for Doorman {
    fn default() -> Doorman {
        Doorman {
            secret: rand::random(),
            checks: Arc::new(Semaphore::new(MAX_PASSWORD_CHECKS)),
        }
    }
}

impl LoginState {
    pub(super) fn new(offer: Login, by_certificate: bool) -> LoginState {
        LoginState {
            offer,
            by_certificate,
            stage: Stage::Open,
        }
    }

    /// Takes the login out for a step; what is left in its place has failed.
    pub(super) fn take(&mut self) -> LoginState {
        let failed = LoginState {
            stage: Stage::Failed,
            ..LoginState::new(self.offer, self.by_certificate)
        };
        std::mem::replace(self, failed)
    }

    /// Whether the client has still to say who it is.
    pub(super) fn is_due(&self) -> bool {
        self.offer != Login::None && !self.by_certificate && !matches!(self.stage, Stage::Passed)
    }

    /// Whether the client may say who may log in. Users are the whole cluster's: a listener that lets everybody in must not be the
    /// way to become one.
    pub(super) fn may_change_users(&self) -> bool {
        self.by_certificate
    }

    fn offered(&self) -> Vec<Mechanism> {
        let scram = [ScramMechanism::Sha512, ScramMechanism::Sha256].map(Mechanism::Scram);
        match self.offer {
            Login::None => Vec::new(),
            Login::Password { encrypted: false } => scram.to_vec(),
            Login::Password { encrypted: true } => [&scram[..], &[Mechanism::Plain]].concat(),
        }
    }

    /// The names of what can be chosen.
    pub(super) fn mechanisms(&self) -> Vec<&'static str> {
        self.offered().into_iter().map(Mechanism::name).collect()
    }

    /// The client chooses a mechanism. After an error the connection is to be closed.
    pub(super) fn choose(&mut self, name: &str) -> Result<(), ErrorCode> {
        if self.offer == Login::None || !matches!(self.stage, Stage::Open) {
            return Err(ErrorCode::IllegalSaslState);
        }
        let found = self.offered().into_iter().find(|one| one.name() == name);
        let Some(mechanism) = found else {
            self.stage = Stage::Failed;
            return Err(ErrorCode::UnsupportedSaslMechanism);
        };
        self.stage = Stage::Chosen(mechanism);
        Ok(())
    }

    /// The client's next message; what to answer. After an error the connection is to be closed.
    pub(super) async fn step<S: Service>(
        &mut self,
        message: &[u8],
        service: &S,
        doorman: &Doorman,
    ) -> Result<Vec<u8>, ErrorCode> {
        let failed = ErrorCode::SaslAuthenticationFailed;
        match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Chosen(Mechanism::Plain) => {
                let (user, password) = scram::read_plain(message).ok_or(failed)?;
                let image = service.image();
                if !doorman.admits(&image, user, password).await {
                    return Err(failed);
                }
                self.stage = Stage::Passed;
                Ok(Vec::new())
            }
            Stage::Chosen(Mechanism::Scram(mechanism)) => {
                let first = First::read(message).ok_or(failed)?;
                let image = service.image();
                let known = image.scram_verifier(&first.user, mechanism).cloned();
                let is_known = known.is_some();
                let verifier =
                    known.unwrap_or_else(|| scram::decoy(mechanism, &doorman.secret, &first.user));
                let (exchange, challenge) =
                    Exchange::begin(mechanism, first, verifier, is_known, rand::random());
                self.stage = Stage::Challenged(Box::new(exchange));
                Ok(challenge)
            }
            Stage::Challenged(exchange) => {
                let (_, proof) = exchange.finish(message).ok_or(failed)?;
                self.stage = Stage::Passed;
                Ok(proof)
            }
            Stage::Open | Stage::Passed | Stage::Failed => Err(ErrorCode::IllegalSaslState),
        }
    }
}

impl Doorman {
    async fn admits(&self, image: &ClusterImage, user: &str, password: &[u8]) -> bool {
        let found = ScramMechanism::ALL.into_iter().find_map(|mechanism| {
            Some((mechanism, image.scram_verifier(user, mechanism)?.clone()))
        });
        let is_known = found.is_some();
        let (mechanism, verifier): (ScramMechanism, ScramVerifier) = found.unwrap_or_else(|| {
            let mechanism = ScramMechanism::Sha256;
            (mechanism, scram::decoy(mechanism, &self.secret, user))
        });
        let password = password.to_vec();
        // The semaphore is never closed.
        let turn = Arc::clone(&self.checks).acquire_owned().await.ok();
        let check = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            scram::is_password(mechanism, &verifier, &password)
        });
        check.await.unwrap_or(false) && is_known
    }
}
