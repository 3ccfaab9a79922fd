//! The keys by which a node's UDP endpoint recognises packets of the process before it.
//!
//! With both kept, a restarted node answers a packet of an old connection with a stateless reset that the peer believes,
//! so the peer learns of the restart at its first packet instead of waiting out a timeout. The reset key makes the reset's
//! token; the connection-id key makes old connection ids pass for ours, without which nothing would be answered at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quinn::{ConnectionIdGenerator, EndpointConfig};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::private_file::{FileError, read_private, shell_word, write_private};

/// The version of the file that this program writes and reads.
const VERSION: u32 = 1;

/// Why a node's endpoint keys could not be loaded or made.
#[derive(Debug, Error)]
pub enum EndpointKeysError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{path} does not hold endpoint keys that this version reads. They only speed up recognising a restart: remove the file and new ones are made. Run: rm {}",
        shell_word(path)
    )]
    Unreadable { path: PathBuf },
    #[error("the system gave no random numbers for new endpoint keys")]
    Random,
}

/// Both keys. Secret: whoever has them can end this node's connections.
#[derive(Clone)]
pub struct EndpointKeys {
    reset_key: [u8; 32],
    connection_id_key: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    /// 64 hexadecimal digits.
    reset_key: String,
    /// 16 hexadecimal digits.
    connection_id_key: String,
}

impl EndpointKeys {
    /// New keys that no other process has: for an endpoint without a data directory.
    pub fn random() -> Result<EndpointKeys, EndpointKeysError> {
        let mut reset_key = [0; 32];
        let mut connection_id_key = [0; 8];
        let random = SystemRandom::new();
        random
            .fill(&mut reset_key)
            .and_then(|()| random.fill(&mut connection_id_key))
            .map_err(|_| EndpointKeysError::Random)?;
        Ok(EndpointKeys {
            reset_key,
            connection_id_key: u64::from_be_bytes(connection_id_key),
        })
    }

    /// Reads the keys at `path`, or makes them there (mode 0600). A file that others may read is refused.
    pub fn load_or_create(path: &Path) -> Result<EndpointKeys, EndpointKeysError> {
        match read_private(path) {
            Ok(bytes) => EndpointKeys::parse(&bytes)
                .ok_or_else(|| EndpointKeysError::Unreadable { path: path.into() }),
            Err(FileError::Missing { .. }) => {
                let keys = EndpointKeys::random()?;
                write_private(path, keys.to_json().as_bytes(), false)?;
                Ok(keys)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn parse(bytes: &[u8]) -> Option<EndpointKeys> {
        let stored: Stored = serde_json::from_slice(bytes).ok()?;
        let hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
        };
        if stored.version != VERSION
            || !hex(&stored.reset_key, 64)
            || !hex(&stored.connection_id_key, 16)
        {
            return None;
        }
        let mut reset_key = [0; 32];
        for (byte, digits) in reset_key
            .iter_mut()
            .zip(stored.reset_key.as_bytes().chunks(2))
        {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(EndpointKeys {
            reset_key,
            connection_id_key: u64::from_str_radix(&stored.connection_id_key, 16).ok()?,
        })
    }

    fn to_json(&self) -> String {
        let stored = Stored {
            version: VERSION,
            reset_key: self
                .reset_key
                .iter()
                .fold(String::new(), |text, byte| format!("{text}{byte:02x}")),
            connection_id_key: format!("{:016x}", self.connection_id_key),
        };
        // Three plain fields always serialise.
        serde_json::to_string(&stored).unwrap_or_default()
    }

    /// A file of keys as it is written once it was read. For tests and fuzzers.
    pub fn reread(file: &[u8]) -> Option<Vec<u8>> {
        EndpointKeys::parse(file).map(|keys| keys.to_json().into_bytes())
    }

    pub(super) fn endpoint_config(&self) -> EndpointConfig {
        let mut config =
            EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.reset_key)));
        let key = self.connection_id_key;
        config.cid_generator(move || -> Box<dyn ConnectionIdGenerator> {
            Box::new(HashedConnectionIdGenerator::from_key(key))
        });
        config
    }
}

impl std::fmt::Debug for EndpointKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EndpointKeys(secret)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_outlive_the_process_that_made_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoint-keys.json");
        let made = EndpointKeys::load_or_create(&path).unwrap();
        let loaded = EndpointKeys::load_or_create(&path).unwrap();
        assert_eq!(made.reset_key, loaded.reset_key);
        assert_eq!(made.connection_id_key, loaded.connection_id_key);
        assert_ne!(made.reset_key, EndpointKeys::random().unwrap().reset_key);
        assert!(!format!("{made:?}").contains(&made.connection_id_key.to_string()));
    }

    #[test]
    fn a_loose_or_broken_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        EndpointKeys::load_or_create(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let error = EndpointKeys::load_or_create(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 0600"), "{error}");
        std::fs::remove_file(&path).unwrap();
        for bad in [
            "",
            "{}",
            r#"{"version":1,"reset_key":"é","connection_id_key":""}"#,
        ] {
            write_private(&path, bad.as_bytes(), true).unwrap();
            let error = EndpointKeys::load_or_create(&path).unwrap_err();
            assert!(
                matches!(error, EndpointKeysError::Unreadable { .. }),
                "{bad}"
            );
        }
    }
}
