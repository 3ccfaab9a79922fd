//! Passwords of clients that show no certificate, as SCRAM verifiers (RFC 5802): what a server needs to check a password, and
//! from which it cannot be had.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use ring::{digest, hmac, pbkdf2};
use serde::{Deserialize, Serialize};

use super::command::{Outcome, Rejection};
use super::image::ClusterImage;

/// Users with a password. The next one is refused with POLICY_VIOLATION.
pub const MAX_USERS: usize = 1_000;
/// Length of a user's name. A longer one is refused with UNACCEPTABLE_CREDENTIAL.
pub const MAX_USER_NAME_BYTES: usize = 255;
/// Length of a salt. A longer one is refused with UNACCEPTABLE_CREDENTIAL.
pub const MAX_SALT_BYTES: usize = 64;
/// Rounds of the password's derivation: Kafka's bounds. Fewer are guessed too fast, more cost the server too much.
pub const MIN_SCRAM_ITERATIONS: u32 = 4_096;
/// What verifiers are made with where nothing else is said: twice Kafka's least. Those of users that there are not say the same.
pub const DEFAULT_SCRAM_ITERATIONS: u32 = 8_192;
pub const MAX_SCRAM_ITERATIONS: u32 = 16_384;

/// The hash that a verifier is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ScramMechanism {
    Sha256,
    Sha512,
}

impl ScramMechanism {
    pub const ALL: [ScramMechanism; 2] = [ScramMechanism::Sha256, ScramMechanism::Sha512];

    /// As SASL names it.
    pub const fn name(self) -> &'static str {
        match self {
            ScramMechanism::Sha256 => "SCRAM-SHA-256",
            ScramMechanism::Sha512 => "SCRAM-SHA-512",
        }
    }

    pub fn from_name(name: &str) -> Option<ScramMechanism> {
        ScramMechanism::ALL
            .into_iter()
            .find(|mechanism| mechanism.name() == name)
    }

    /// Kafka's number for it in requests.
    pub const fn code(self) -> i8 {
        match self {
            ScramMechanism::Sha256 => 1,
            ScramMechanism::Sha512 => 2,
        }
    }

    pub fn from_code(code: i8) -> Option<ScramMechanism> {
        ScramMechanism::ALL
            .into_iter()
            .find(|mechanism| mechanism.code() == code)
    }

    /// HMAC with this hash.
    pub fn sign(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            ScramMechanism::Sha256 => hmac::HMAC_SHA256,
            ScramMechanism::Sha512 => hmac::HMAC_SHA512,
        };
        let key = hmac::Key::new(algorithm, key);
        hmac::sign(&key, message).as_ref().to_vec()
    }

    pub fn hash(self, bytes: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            ScramMechanism::Sha256 => &digest::SHA256,
            ScramMechanism::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, bytes).as_ref().to_vec()
    }

    /// What a password is turned into before any key is derived. It costs as much time as `iterations` say: milliseconds.
    pub fn salted_password(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        let algorithm = match self {
            ScramMechanism::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            ScramMechanism::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        };
        let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        let mut out = vec![0; self.hash_bytes()];
        pbkdf2::derive(algorithm, iterations, salt, password, &mut out);
        out
    }

    /// Length of its hash, and so of both keys.
    pub const fn hash_bytes(self) -> usize {
        match self {
            ScramMechanism::Sha256 => 32,
            ScramMechanism::Sha512 => 64,
        }
    }
}

/// What is kept of a password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScramVerifier {
    /// 1 to [`MAX_SALT_BYTES`], drawn at random.
    pub salt: Vec<u8>,
    /// [`MIN_SCRAM_ITERATIONS`] to [`MAX_SCRAM_ITERATIONS`].
    pub iterations: u32,
    /// Tells that the client knows the password: the hash of its key.
    pub stored_key: Vec<u8>,
    /// Proves to the client that the server has its verifier.
    pub server_key: Vec<u8>,
}

impl ScramVerifier {
    /// The verifier of a password that has been salted.
    pub fn derived(
        mechanism: ScramMechanism,
        salted_password: &[u8],
        salt: &[u8],
        iterations: u32,
    ) -> ScramVerifier {
        let client_key = mechanism.sign(salted_password, b"Client Key");
        ScramVerifier {
            salt: salt.to_vec(),
            iterations,
            stored_key: mechanism.hash(&client_key),
            server_key: mechanism.sign(salted_password, b"Server Key"),
        }
    }
}

impl fmt::Debug for ScramVerifier {
    /// Without the keys: who has them can play the server, and guess at the password offline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramVerifier")
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

/// The verifiers of each user that has one.
pub(super) type Credentials = BTreeMap<String, BTreeMap<ScramMechanism, ScramVerifier>>;

impl ClusterImage {
    /// How a user's password is checked by this mechanism; `None` where there is no such user, or no such verifier of it.
    pub fn scram_verifier(&self, user: &str, mechanism: ScramMechanism) -> Option<&ScramVerifier> {
        self.credentials.get(user)?.get(&mechanism)
    }

    /// The users with a password, by name, with what their verifiers are made with.
    pub fn users(
        &self,
    ) -> impl Iterator<Item = (&str, impl Iterator<Item = (ScramMechanism, u32)>)> {
        self.credentials.iter().map(|(user, verifiers)| {
            let made_with = verifiers
                .iter()
                .map(|(mechanism, verifier)| (*mechanism, verifier.iterations));
            (user.as_str(), made_with)
        })
    }

    pub(super) fn set_credential(
        &mut self,
        user: &str,
        mechanism: ScramMechanism,
        verifier: &ScramVerifier,
    ) -> Result<Outcome, Rejection> {
        check_user_name(user)?;
        check_verifier(mechanism, verifier)?;
        if self.scram_verifier(user, mechanism) == Some(verifier) {
            return Ok(Outcome::Unchanged);
        }
        if !self.credentials.contains_key(user) && self.credentials.len() >= MAX_USERS {
            return Err(Rejection::Limit {
                what: "users".to_owned(),
                limit: MAX_USERS,
            });
        }
        let verifiers = Arc::make_mut(&mut self.credentials);
        let verifiers = verifiers.entry(user.to_owned()).or_default();
        verifiers.insert(mechanism, verifier.clone());
        Ok(Outcome::Done)
    }

    pub(super) fn delete_credential(
        &mut self,
        user: &str,
        mechanism: ScramMechanism,
    ) -> Result<Outcome, Rejection> {
        if self.scram_verifier(user, mechanism).is_none() {
            return Err(Rejection::UnknownCredential {
                user: user.to_owned(),
                mechanism,
            });
        }
        let users = Arc::make_mut(&mut self.credentials);
        if let Some(verifiers) = users.get_mut(user) {
            verifiers.remove(&mechanism);
            if verifiers.is_empty() {
                users.remove(user);
            }
        }
        Ok(Outcome::Done)
    }
}

fn check_user_name(user: &str) -> Result<(), Rejection> {
    if user.is_empty() || user.len() > MAX_USER_NAME_BYTES || user.contains(char::is_control) {
        return Err(Rejection::InvalidCredential(format!(
            "a user's name has 1 to {MAX_USER_NAME_BYTES} bytes and no control characters"
        )));
    }
    Ok(())
}

fn check_verifier(mechanism: ScramMechanism, verifier: &ScramVerifier) -> Result<(), Rejection> {
    let refuse = |reason: String| Err(Rejection::InvalidCredential(reason));
    if !(MIN_SCRAM_ITERATIONS..=MAX_SCRAM_ITERATIONS).contains(&verifier.iterations) {
        return refuse(format!(
            "{} iterations: {MIN_SCRAM_ITERATIONS} to {MAX_SCRAM_ITERATIONS} are taken",
            verifier.iterations
        ));
    }
    if verifier.salt.is_empty() || verifier.salt.len() > MAX_SALT_BYTES {
        return refuse(format!("a salt has 1 to {MAX_SALT_BYTES} bytes"));
    }
    let length = mechanism.hash_bytes();
    if verifier.stored_key.len() != length || verifier.server_key.len() != length {
        return refuse(format!(
            "the keys of {} have {length} bytes",
            mechanism.name()
        ));
    }
    Ok(())
}
