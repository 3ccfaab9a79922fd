//! The server's side of SCRAM (RFC 5802, RFC 7677), and of PLAIN over the same verifiers.
//!
//! Nothing here waits or does I/O. Who has no password here is answered as one who has, up to the last message, so that
//! nobody learns by asking which users there are.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use subtle::ConstantTimeEq;

use crate::metadata::{DEFAULT_SCRAM_ITERATIONS, ScramMechanism, ScramVerifier};

/// Length of the server's part of the nonce, as text.
const NONCE_BYTES: usize = 24;
/// A message of a client is a name, a nonce and little else.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Whether a password is the one that a verifier was made of. As slow as
/// [`ScramMechanism::salted_password`].
pub(super) fn is_password(
    mechanism: ScramMechanism,
    known: &ScramVerifier,
    password: &[u8],
) -> bool {
    let salted = mechanism.salted_password(password, &known.salt, known.iterations);
    let offered = ScramVerifier::derived(mechanism, &salted, &known.salt, known.iterations);
    bool::from(offered.stored_key.ct_eq(&known.stored_key))
}

/// A verifier that no password fits, the same each time for a user's name: `secret` is drawn when the process starts.
pub(super) fn decoy(mechanism: ScramMechanism, secret: &[u8], user: &str) -> ScramVerifier {
    let mut salt = ScramMechanism::Sha256.sign(secret, user.as_bytes());
    salt.truncate(16);
    ScramVerifier {
        stored_key: mechanism.sign(secret, &salt),
        server_key: mechanism.sign(secret, &salt),
        salt,
        iterations: DEFAULT_SCRAM_ITERATIONS,
    }
}

/// A PLAIN message: the user's name and the password. `None` where it is not one, or asks to act for somebody else.
pub fn read_plain(message: &[u8]) -> Option<(&str, &[u8])> {
    if message.len() > MAX_MESSAGE_BYTES {
        return None;
    }
    let mut parts = message.split(|byte| *byte == 0);
    let (acts_for, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    let user = std::str::from_utf8(user)
        .ok()
        .filter(|user| !user.is_empty())?;
    let is_own = acts_for.is_empty() || acts_for == user.as_bytes();
    (is_own && parts.next().is_none()).then_some((user, password))
}

/// A client's first message, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct First {
    pub(super) user: String,
    /// What the client says of channel binding, as it must say again.
    header: String,
    bare: String,
    nonce: String,
}

impl First {
    /// `None` where it is malformed, asks for channel binding, or asks to act for somebody else.
    pub(super) fn read(message: &[u8]) -> Option<First> {
        if message.len() > MAX_MESSAGE_BYTES {
            return None;
        }
        let text = std::str::from_utf8(message).ok()?;
        let mut parts = text.splitn(3, ',');
        let (binding, acts_for, bare) = (parts.next()?, parts.next()?, parts.next()?);
        if binding != "n" && binding != "y" {
            return None;
        }
        let mut fields = bare.split(',');
        let user = unescape(fields.next()?.strip_prefix("n=")?)?;
        let nonce = fields.next()?.strip_prefix("r=")?;
        let is_own = match acts_for {
            "" => true,
            other => unescape(other.strip_prefix("a=")?)? == user,
        };
        let sound = is_own && !user.is_empty() && !nonce.is_empty();
        sound.then(|| First {
            user,
            header: format!("{binding},{acts_for},"),
            bare: bare.to_owned(),
            nonce: nonce.to_owned(),
        })
    }
}

/// `=2C` is a comma and `=3D` an equals sign; nothing else may follow one.
fn unescape(name: &str) -> Option<String> {
    let mut parts = name.split('=');
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let (plain, rest) = match part.get(..2)? {
            "2C" => (',', &part[2..]),
            "3D" => ('=', &part[2..]),
            _ => return None,
        };
        out.push(plain);
        out.push_str(rest);
    }
    Some(out)
}

/// An exchange whose first message is answered.
pub(super) struct Exchange {
    mechanism: ScramMechanism,
    verifier: ScramVerifier,
    /// A decoy is never passed.
    known: bool,
    first: First,
    nonce: String,
    challenge: String,
}

impl Exchange {
    /// Answers a first message. `random` is drawn anew for each exchange.
    pub(super) fn begin(
        mechanism: ScramMechanism,
        first: First,
        verifier: ScramVerifier,
        known: bool,
        random: [u8; NONCE_BYTES / 4 * 3],
    ) -> (Exchange, Vec<u8>) {
        let nonce = format!("{}{}", first.nonce, BASE64.encode(random));
        let challenge = format!(
            "r={nonce},s={},i={}",
            BASE64.encode(&verifier.salt),
            verifier.iterations
        );
        let message = challenge.clone().into_bytes();
        let exchange = Exchange {
            mechanism,
            verifier,
            known,
            first,
            nonce,
            challenge,
        };
        (exchange, message)
    }

    /// Checks the client's proof. Returns the user's name, and what proves to the client that the server knows it.
    pub(super) fn finish(self, message: &[u8]) -> Option<(String, Vec<u8>)> {
        if message.len() > MAX_MESSAGE_BYTES {
            return None;
        }
        let text = std::str::from_utf8(message).ok()?;
        let (unproven, proof) = text.rsplit_once(",p=")?;
        let mut fields = unproven.split(',');
        let header = BASE64.decode(fields.next()?.strip_prefix("c=")?).ok()?;
        let nonce = fields.next()?.strip_prefix("r=")?;
        // librdkafka before 2.6.1 puts its own nonce before the whole one once more, which is as fresh; Kafka takes it, too.
        if header != self.first.header.as_bytes() || !nonce.ends_with(&self.nonce) {
            return None;
        }
        let proof = BASE64.decode(proof).ok()?;
        let signed = format!("{},{},{unproven}", self.first.bare, self.challenge);
        let signature = self
            .mechanism
            .sign(&self.verifier.stored_key, signed.as_bytes());
        if proof.len() != signature.len() {
            return None;
        }
        let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let offered = self.mechanism.hash(&client_key);
        let fits = bool::from(offered.ct_eq(&self.verifier.stored_key));
        if !fits || !self.known {
            return None;
        }
        let signature = self
            .mechanism
            .sign(&self.verifier.server_key, signed.as_bytes());
        let message = format!("v={}", BASE64.encode(signature));
        Some((self.first.user, message.into_bytes()))
    }
}

/// Whom a login by SCRAM names, and who has passed, if its messages are these two. For tests and fuzzers: a
/// [`Server`](super::Server) asks its users for the verifier and draws `random`.
pub fn read_scram(
    mechanism: ScramMechanism,
    verifier: ScramVerifier,
    random: [u8; NONCE_BYTES / 4 * 3],
    first: &[u8],
    last: &[u8],
) -> (Option<String>, Option<String>) {
    let Some(first) = First::read(first) else {
        return (None, None);
    };
    let named = first.user.clone();
    let (exchange, _) = Exchange::begin(mechanism, first, verifier, true, random);
    (Some(named), exchange.finish(last).map(|(user, _)| user))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_of(
        mechanism: ScramMechanism,
        password: &str,
        salt: &str,
        rounds: u32,
    ) -> ScramVerifier {
        let salt = BASE64.decode(salt).unwrap();
        let salted = mechanism.salted_password(password.as_bytes(), &salt, rounds);
        ScramVerifier::derived(mechanism, &salted, &salt, rounds)
    }

    /// The exchange that RFC 7677 prints.
    fn printed() -> Exchange {
        let known = made_of(
            ScramMechanism::Sha256,
            "pencil",
            "W22ZaJ0SNY7soEsUEjb6gQ==",
            4096,
        );
        let first = First::read(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        assert_eq!(first.user, "user");
        let (mut exchange, _) =
            Exchange::begin(ScramMechanism::Sha256, first, known, true, [7; 18]);
        // Its server draws another nonce than any that we would write.
        exchange.nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned();
        exchange.challenge = format!("r={},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", exchange.nonce);
        exchange
    }

    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    #[test]
    fn the_exchange_of_the_standard_is_passed() {
        let (user, proof) = printed().finish(FINAL.as_bytes()).unwrap();
        assert_eq!(user, "user");
        assert_eq!(proof, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn nothing_else_is_passed() {
        for (what, with) in [
            ("p=dHzb", "p=eHzb"),
            ("c=biws", "c=eSws"),
            ("hNlF$k0", "hNlF$k1"),
            ("c=biws,", ""),
            ("AndVQ=", "AndVQ"),
        ] {
            let message = FINAL.replace(what, with);
            assert_ne!(message, FINAL);
            assert!(printed().finish(message.as_bytes()).is_none(), "{message}");
        }
        for cut in 0..FINAL.len() {
            assert!(printed().finish(&FINAL.as_bytes()[..cut]).is_none());
        }
        let unknown = Exchange {
            known: false,
            ..printed()
        };
        assert!(unknown.finish(FINAL.as_bytes()).is_none());
    }

    #[test]
    fn a_nonce_that_older_clients_double_is_as_good() {
        let mut exchange = printed();
        let doubled = format!("{}{}", exchange.first.nonce, exchange.nonce);
        let signed = format!(
            "{},{},c=biws,r={doubled}",
            exchange.first.bare, exchange.challenge
        );
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let mechanism = ScramMechanism::Sha256;
        let salted = mechanism.salted_password(b"pencil", &salt, 4096);
        let client_key = mechanism.sign(&salted, b"Client Key");
        let signature = mechanism.sign(&mechanism.hash(&client_key), signed.as_bytes());
        let proof: Vec<u8> = client_key
            .iter()
            .zip(&signature)
            .map(|(a, b)| a ^ b)
            .collect();
        let message = format!("c=biws,r={doubled},p={}", BASE64.encode(proof));
        exchange.known = true;
        assert!(exchange.finish(message.as_bytes()).is_some());
    }

    #[test]
    fn first_messages_are_read_and_what_they_may_not_ask_is_refused() {
        let name = |message: &str| First::read(message.as_bytes()).map(|first| first.user);
        assert_eq!(name("n,,n=a=2Cb=3Dc,r=x"), Some("a,b=c".to_owned()));
        assert_eq!(
            name("y,a=me,n=me,r=x,tokenauth=true"),
            Some("me".to_owned())
        );
        for refused in [
            "",
            "n",
            "n,,",
            "n,,n=,r=x",
            "n,,n=me",
            "n,,n=me,r=",
            "n,,n=a=2Db,r=x",
            "n,,n=a=,r=x",
            "p=tls-unique,,n=me,r=x",
            "n,a=you,n=me,r=x",
            "n,,m=ext,n=me,r=x",
        ] {
            assert_eq!(name(refused), None, "{refused}");
        }
        assert!(First::read(&[b'n'; MAX_MESSAGE_BYTES + 1]).is_none());
        assert!(First::read(b"n,,n=\xff,r=x").is_none());
    }

    #[test]
    fn plain_is_checked_against_the_same_verifiers() {
        for mechanism in ScramMechanism::ALL {
            let known = made_of(mechanism, "secret", "c2FsdA==", 4096);
            assert!(is_password(mechanism, &known, b"secret"));
            assert!(!is_password(mechanism, &known, b"Secret"));
            let nobody = decoy(mechanism, b"process", "nobody");
            assert_eq!(nobody, decoy(mechanism, b"process", "nobody"));
            assert!(!is_password(mechanism, &nobody, b"secret"));
        }
        assert_eq!(read_plain(b"\0me\0pass"), Some(("me", &b"pass"[..])));
        assert_eq!(read_plain(b"me\0me\0pass"), Some(("me", &b"pass"[..])));
        for refused in [
            &b""[..],
            b"me",
            b"\0me",
            b"\0\0pass",
            b"you\0me\0pass",
            b"\0me\0a\0b",
        ] {
            assert_eq!(read_plain(refused), None);
        }
    }
}
