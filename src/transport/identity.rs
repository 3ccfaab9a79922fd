//! This process's own identity: its certificate and key, and the CA that it trusts.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use time::OffsetDateTime;

use super::certificate_info::{
    CertificateInfo, ClientName, InvalidCertificate, PeerIdentity, Validity, show_time,
};
use super::certificates::{CertificateError, CertsDir, first_info, read_certificates};
use super::private_file::{FileError, read_private};
use super::tls;

/// Why this process has no usable identity. All of it is known before anything is sent.
#[derive(Debug, Error)]
pub enum IdentityError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(
        "there is no CA certificate at {path}: point --certs-dir at a directory with ca.crt, or make one with `quorate cert create-ca`"
    )]
    NoCa { path: PathBuf },
    #[error(
        "there is no node certificate at {path}: make one with `quorate cert create-node ID HOST...`"
    )]
    NoNodeCertificate { path: PathBuf },
    #[error(
        "there is no client certificate in {dir}: make one with `quorate cert create-client NAME`"
    )]
    NoClientCertificate { dir: PathBuf },
    #[error("there is no certificate {path}: make it with `quorate cert create-client {name}`")]
    NoSuchClient { path: PathBuf, name: ClientName },
    #[error(
        "{dir} holds several client certificates ({names}): choose one, or keep each in a directory of its own"
    )]
    SeveralClients { dir: PathBuf, names: String },
    #[error(
        "the certificate {certificate} has no key: {key} does not exist. Copy it there, or make the pair again with --overwrite"
    )]
    NoKey { certificate: PathBuf, key: PathBuf },
    #[error("{key} is not the key of {certificate}: make the pair again with --overwrite")]
    KeyMismatch { key: PathBuf, certificate: PathBuf },
    #[error("{key} holds no private key that can be read: make the pair again with --overwrite")]
    UnreadableKey { key: PathBuf },
    #[error("{path} cannot be used")]
    BadRole {
        path: PathBuf,
        #[source]
        source: InvalidCertificate,
    },
    #[error(
        "{path} is the certificate of {found}, not of a {expected}: use the directory that holds the right one"
    )]
    WrongRole {
        path: PathBuf,
        found: PeerIdentity,
        expected: &'static str,
    },
    #[error(
        "your own certificate {path} has expired: it was valid until {not_after}. Make a new one with --overwrite"
    )]
    Expired { path: PathBuf, not_after: String },
    #[error(
        "your own certificate {path} is not yet valid: it begins at {not_before}. Check this machine's clock, or make a new one with --overwrite"
    )]
    NotYetValid { path: PathBuf, not_before: String },
    #[error(
        "your own certificate {path} was not signed by the CA in {ca} (wrong CA): make a new one there, or use the CA that signed it"
    )]
    NotSignedByCa { path: PathBuf, ca: PathBuf },
}

/// A certificate, its key and the CA, read and checked against each other.
#[derive(Debug)]
pub struct Identity {
    peer: PeerIdentity,
    info: CertificateInfo,
    certificate_path: PathBuf,
    ca_path: PathBuf,
    ca_names: String,
    roots: Arc<RootCertStore>,
    certified_key: Arc<CertifiedKey>,
}

impl Identity {
    /// Reads `ca.crt`, `node.crt` and `node.key`.
    pub fn load_node(dir: &Path) -> Result<Identity, IdentityError> {
        let certs = CertsDir::new(dir);
        let (certificate, key) = certs.node_pair();
        if !certificate.exists() {
            need_ca(&certs)?;
            return Err(IdentityError::NoNodeCertificate { path: certificate });
        }
        let identity = Identity::load(&certs, certificate, key)?;
        match &identity.peer {
            PeerIdentity::Node(_) => Ok(identity),
            found => Err(IdentityError::WrongRole {
                path: identity.certificate_path.clone(),
                found: found.clone(),
                expected: "node",
            }),
        }
    }

    /// Reads `ca.crt` and the certificate of the client `name`. Without a name: the only client certificate there is, or,
    /// where there is none, the node's, which is a client's as well.
    pub fn load_client(dir: &Path, name: Option<&ClientName>) -> Result<Identity, IdentityError> {
        let certs = CertsDir::new(dir);
        need_ca(&certs)?;
        let name = match name {
            Some(name) => Some(name.clone()),
            None => only_client(dir)?,
        };
        let Some(name) = name else {
            let (certificate, key) = certs.node_pair();
            if !certificate.exists() {
                return Err(IdentityError::NoClientCertificate { dir: dir.into() });
            }
            return Identity::load(&certs, certificate, key);
        };
        let (certificate, key) = certs.client_pair(&name);
        if !certificate.exists() {
            return Err(IdentityError::NoSuchClient {
                path: certificate,
                name,
            });
        }
        Identity::load(&certs, certificate, key)
    }

    fn load(
        certs: &CertsDir,
        certificate: PathBuf,
        key: PathBuf,
    ) -> Result<Identity, IdentityError> {
        need_ca(certs)?;
        let ca_path = certs.ca_certificate();
        let authorities = read_certificates(&ca_path)?;
        let mut roots = RootCertStore::empty();
        let mut names = Vec::new();
        for der in &authorities {
            let unreadable = || CertificateError::Unreadable {
                path: ca_path.clone(),
                source: InvalidCertificate::Malformed,
            };
            let info = CertificateInfo::parse(der).map_err(|_| unreadable())?;
            if !info.is_ca {
                return Err(CertificateError::NotACa { path: ca_path }.into());
            }
            names.push(info.subject);
            roots.add(der.clone()).map_err(|_| unreadable())?;
        }
        let chain = read_certificates(&certificate)?;
        let info = first_info(&certificate, &chain)?;
        let peer = info
            .identity
            .clone()
            .map_err(|source| IdentityError::BadRole {
                path: certificate.clone(),
                source,
            })?;
        let pem = read_private(&key).map_err(|error| match error {
            FileError::Missing { path } => IdentityError::NoKey {
                certificate: certificate.clone(),
                key: path,
            },
            other => other.into(),
        })?;
        let signer = PrivateKeyDer::from_pem_slice(&pem)
            .ok()
            .and_then(|der| tls::provider().key_provider.load_private_key(der).ok())
            .ok_or_else(|| IdentityError::UnreadableKey { key: key.clone() })?;
        let certified_key = CertifiedKey::new(chain, signer);
        certified_key
            .keys_match()
            .map_err(|_| IdentityError::KeyMismatch {
                key,
                certificate: certificate.clone(),
            })?;
        Ok(Identity {
            peer,
            info,
            certificate_path: certificate,
            ca_path,
            ca_names: names.join(", "),
            roots: Arc::new(roots),
            certified_key: Arc::new(certified_key),
        })
    }

    /// Who this process is to others.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    pub fn certificate_path(&self) -> &Path {
        &self.certificate_path
    }

    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// The CAs that are trusted, by name, for messages.
    pub fn ca_names(&self) -> &str {
        &self.ca_names
    }

    pub(super) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    pub(super) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified_key
    }

    /// Says what a peer would find wrong with this certificate, exactly, before any peer is asked: TLS has one alert for
    /// expired and not yet valid, and none of its alerts names a file.
    pub fn check(&self, now: OffsetDateTime) -> Result<(), IdentityError> {
        let path = self.certificate_path.clone();
        match self.info.validity_at(now) {
            Validity::Expired => Err(IdentityError::Expired {
                path,
                not_after: show_time(self.info.not_after),
            }),
            Validity::NotYetValid => Err(IdentityError::NotYetValid {
                path,
                not_before: show_time(self.info.not_before),
            }),
            Validity::Valid if !self.signed_by_ca() => Err(IdentityError::NotSignedByCa {
                path,
                ca: self.ca_path.clone(),
            }),
            Validity::Valid => Ok(()),
        }
    }

    fn signed_by_ca(&self) -> bool {
        self.certified_key
            .cert
            .split_first()
            .is_some_and(|(own, rest)| tls::chains_to(&self.roots, own, rest))
    }
}

/// The identity that is in use, replaceable while everything runs: new connections take the new one, live ones are left
/// as they are.
#[derive(Debug)]
pub struct CurrentIdentity {
    identity: RwLock<Arc<Identity>>,
}

impl CurrentIdentity {
    pub fn new(identity: Identity) -> Arc<CurrentIdentity> {
        Arc::new(CurrentIdentity {
            identity: RwLock::new(Arc::new(identity)),
        })
    }

    pub fn get(&self) -> Arc<Identity> {
        match self.identity.read() {
            Ok(identity) => Arc::clone(&identity),
            // Nothing can panic while the lock is held, and an Arc is never half written.
            Err(poisoned) => Arc::clone(&poisoned.into_inner()),
        }
    }

    pub fn replace(&self, identity: Identity) {
        let identity = Arc::new(identity);
        match self.identity.write() {
            Ok(mut current) => *current = identity,
            Err(poisoned) => *poisoned.into_inner() = identity,
        }
    }
}

fn need_ca(certs: &CertsDir) -> Result<(), IdentityError> {
    let path = certs.ca_certificate();
    if path.exists() {
        Ok(())
    } else {
        Err(IdentityError::NoCa { path })
    }
}

/// The one client whose certificate lies in `dir`; `None` when there is none.
fn only_client(dir: &Path) -> Result<Option<ClientName>, IdentityError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(FileError::io("list directory", dir))? {
        let file = entry
            .map_err(FileError::io("list directory", dir))?
            .file_name();
        let name = file
            .to_str()
            .and_then(|file| file.strip_prefix("client.")?.strip_suffix(".crt"))
            .and_then(|name| ClientName::new(name).ok());
        names.extend(name);
    }
    names.sort();
    match names.len() {
        0 | 1 => Ok(names.pop()),
        _ => Err(IdentityError::SeveralClients {
            dir: dir.into(),
            names: names
                .iter()
                .map(ClientName::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// A presented chain as quinn and rustls hand it over.
pub(super) type Chain = Vec<CertificateDer<'static>>;
