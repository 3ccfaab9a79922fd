//! Logins by SCRAM and by PLAIN.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate::kafka::{read_plain, read_scram};
use quorate::metadata::{MIN_SCRAM_ITERATIONS, ScramMechanism, ScramVerifier};

const SALT: &[u8] = b"0123456789abcdef";
const PASSWORD: &[u8] = b"pencil";
const RANDOM: [u8; 18] = [7; 18];
const MECHANISM: ScramMechanism = ScramMechanism::Sha256;

/// Slow to make, and the same each time.
static SALTED: LazyLock<Vec<u8>> =
    LazyLock::new(|| MECHANISM.salted_password(PASSWORD, SALT, MIN_SCRAM_ITERATIONS));

fn verifier() -> ScramVerifier {
    ScramVerifier::derived(MECHANISM, &SALTED, SALT, MIN_SCRAM_ITERATIONS)
}

/// The client's last message: its proof, after a first message of `header` and `bare` with this nonce.
fn proven(header: &str, bare: &str, nonce: &str) -> String {
    let nonce = format!("{nonce}{}", BASE64.encode(RANDOM));
    let salt = BASE64.encode(SALT);
    let challenge = format!("r={nonce},s={salt},i={MIN_SCRAM_ITERATIONS}");
    let unproven = format!("c={},r={nonce}", BASE64.encode(header));
    let signed = format!("{bare},{challenge},{unproven}");
    let client_key = MECHANISM.sign(&SALTED, b"Client Key");
    let signature = MECHANISM.sign(&MECHANISM.hash(&client_key), signed.as_bytes());
    let proof: Vec<u8> = client_key
        .iter()
        .zip(&signature)
        .map(|(a, b)| a ^ b)
        .collect();
    format!("{unproven},p={}", BASE64.encode(proof))
}

fn escape(user: &str) -> String {
    user.replace('=', "=3D").replace(',', "=2C")
}

/// Two messages, with a zero byte between them where there are two; or one of PLAIN, which has two zero bytes.
pub(crate) fn login(input: &[u8]) {
    if let Some((user, password)) = read_plain(input) {
        let again = [&b"\0"[..], user.as_bytes(), b"\0", password].concat();
        assert_eq!(read_plain(&again), Some((user, password)));
    }
    let split = input.iter().position(|byte| *byte == 0);
    let (first, last) = match split {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &[][..]),
    };
    let (named, passed) = read_scram(MECHANISM, verifier(), RANDOM, first, last);
    let Some(user) = named else {
        assert_eq!(passed, None);
        return;
    };
    assert!(user.len() <= input.len());
    if let Some(passed) = passed {
        assert_eq!(passed, user, "nobody passes under another name");
    }
    // Whoever it is can log in under that name, and only with the proof that belongs to it.
    let bare = format!("n={},r=fresh", escape(&user));
    let message = format!("n,,{bare}");
    let proof = proven("n,,", &bare, "fresh");
    let through = |last: &[u8]| read_scram(MECHANISM, verifier(), RANDOM, message.as_bytes(), last);
    assert_eq!(
        through(proof.as_bytes()),
        (Some(user.clone()), Some(user.clone()))
    );
    if last != proof.as_bytes() {
        assert_eq!(through(last), (Some(user), None));
    }
}

pub(crate) fn login_seeds() -> Vec<Vec<u8>> {
    let exchange = |header: &str, bare: &str, nonce: &str| {
        let first = format!("{header}{bare}");
        [
            first.as_bytes(),
            b"\0",
            proven(header, bare, nonce).as_bytes(),
        ]
        .concat()
    };
    let seeds = vec![
        exchange(
            "n,,",
            "n=user,r=rOprNGfwEbeRWgbNEkqO",
            "rOprNGfwEbeRWgbNEkqO",
        ),
        exchange("y,a=user,", "n=user,r=x,tokenauth=true", "x"),
        exchange("n,,", "n=a=2Cb=3Dc,r=x", "x"),
    ];
    for seed in &seeds {
        let at = seed
            .iter()
            .position(|byte| *byte == 0)
            .expect("two messages");
        let read = read_scram(MECHANISM, verifier(), RANDOM, &seed[..at], &seed[at + 1..]);
        assert!(read.1.is_some(), "{}", String::from_utf8_lossy(seed));
    }
    let plain = [&b"\0user\0pencil"[..], b"user\0user\0pencil"];
    seeds.into_iter().chain(plain.map(<[u8]>::to_vec)).collect()
}
