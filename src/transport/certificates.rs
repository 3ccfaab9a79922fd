//! Making and listing certificates.
//!
//! A certificates directory looks like this; a machine needs `ca.crt` and the pair it uses, and only the one that makes
//! certificates needs `ca.key`:
//!
//! ```text
//! ca.crt             ca.key             the cluster's authority
//! node.crt           node.key           one node: server and client at once
//! client.NAME.crt    client.NAME.key    one client
//! ```
//!
//! Role and id stand in a URI SAN (`quorate://node/1`, `quorate://client/ops`), hosts in DNS and IP SANs. Keys are ECDSA
//! P-256, which every Kafka client's TLS library takes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName};
use thiserror::Error;
use time::OffsetDateTime;

use super::certificate_info::{
    CertificateInfo, ClientName, InvalidCertificate, PeerIdentity, Validity, show_time,
};
use super::private_file::{
    FileError, create_private_dir, read_private, read_public, write_private, write_public,
};
use super::tls;
use crate::types::NodeId;

/// How long a new CA is valid unless told otherwise: ten years.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a new node's or client's certificate is valid unless told otherwise: five years, or what is left of the CA.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(5 * 365 * 86_400);
/// A certificate is valid from this long before it was made, so that a machine whose clock runs behind takes it at once.
pub const BACKDATE: Duration = Duration::from_secs(3600);
/// A listed certificate with fewer days left than this is called expiring.
pub const EXPIRING_DAYS: i64 = 30;
/// The most hosts that one certificate may name.
pub const MAX_HOSTS: usize = 128;

/// A host as a certificate names it: an IP address, or a DNS name whose first label may be `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertificateHost(String);

/// Text that cannot stand in a certificate as a host.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{host:?} is neither an IP address nor a DNS name; give names without scheme and port, such as `db1.example.com` or `10.0.0.1`"
)]
pub struct InvalidHost {
    host: String,
}

impl CertificateHost {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn subject_alternative_name(&self) -> Result<SanType, rcgen::Error> {
        match self.0.parse::<IpAddr>() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => Ok(SanType::DnsName(self.0.as_str().try_into()?)),
        }
    }
}

impl FromStr for CertificateHost {
    type Err = InvalidHost;

    fn from_str(host: &str) -> Result<Self, Self::Err> {
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(CertificateHost(ip.to_string()));
        }
        let name = host.strip_prefix("*.").unwrap_or(host);
        // All digits and dots is a mistyped IPv4 address, though DNS would allow it.
        let numeric = name.chars().all(|c| c.is_ascii_digit() || c == '.');
        if numeric || DnsName::try_from(name).is_err() {
            return Err(InvalidHost { host: host.into() });
        }
        Ok(CertificateHost(host.to_ascii_lowercase()))
    }
}

/// Why certificates could not be made or listed.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "there is no certificates directory {dir}: name it with --certs-dir, or make it with `quorate cert create-ca`"
    )]
    NoDirectory { dir: PathBuf },
    #[error(
        "there is no CA certificate at {path}. Make one with `quorate cert create-ca`, or point --certs-dir at its directory"
    )]
    NoCa { path: PathBuf },
    #[error(
        "there is no CA key at {path}. Make certificates where the CA was made, or name its key with --ca-key"
    )]
    NoCaKey { path: PathBuf },
    #[error("{path} holds no certificate that can be read: replace the file")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: InvalidCertificate,
    },
    #[error("{path} holds no private key that can be read: replace the file")]
    UnreadableKey {
        path: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    #[error("{key} is not the key of {certificate}: name the right one with --ca-key")]
    KeyMismatch { key: PathBuf, certificate: PathBuf },
    #[error(
        "{path} is not a CA's certificate: name the directory that `quorate cert create-ca` filled"
    )]
    NotACa { path: PathBuf },
    #[error(
        "the CA {path} is {state}: make a new one with `quorate cert create-ca --overwrite` and every certificate after it"
    )]
    CaNotValid { path: PathBuf, state: String },
    #[error(
        "the CA is valid until {ca_end} and the certificate would outlive it: give --lifetime of at most {days_left} days, or make a new CA"
    )]
    OutlivesCa { ca_end: String, days_left: i64 },
    #[error(
        "a certificate cannot be valid for {seconds} seconds: give --lifetime between 1 minute and 100 years"
    )]
    BadLifetime { seconds: u64 },
    #[error(
        "a node's certificate must name at least one host, the names and addresses that others reach it by"
    )]
    NoHosts,
    #[error("a certificate names at most {MAX_HOSTS} hosts and this one would name {count}")]
    TooManyHosts { count: usize },
    #[error("cannot make the certificate")]
    Generate(#[source] rcgen::Error),
}

/// How a certificate is to be made.
#[derive(Clone, Debug)]
pub struct IssueOptions {
    /// `None`: [`CA_LIFETIME`], or the shorter of [`LEAF_LIFETIME`] and what is left of the CA.
    pub lifetime: Option<Duration>,
    /// Replace files that exist.
    pub overwrite: bool,
    pub now: OffsetDateTime,
}

impl IssueOptions {
    pub fn new(now: OffsetDateTime) -> IssueOptions {
        IssueOptions {
            lifetime: None,
            overwrite: false,
            now,
        }
    }

    fn validity(
        &self,
        default: Duration,
    ) -> Result<(OffsetDateTime, OffsetDateTime), CertificateError> {
        let lifetime = self.lifetime.unwrap_or(default);
        let years = lifetime.as_secs() / (365 * 86_400);
        if lifetime < Duration::from_secs(60) || years > 100 {
            return Err(CertificateError::BadLifetime {
                seconds: lifetime.as_secs(),
            });
        }
        Ok((self.now - BACKDATE, self.now + lifetime))
    }
}

/// The two files that were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub info: CertificateInfo,
}

/// A certificate found in the directory, or why its file could not be read.
#[derive(Debug)]
pub struct Listed {
    pub path: PathBuf,
    /// Where its key lies, and whether that can be used: `None` when there is no key beside it, which is usual for the CA.
    pub key: Option<Result<PathBuf, FileError>>,
    pub info: Result<CertificateInfo, CertificateError>,
    /// Whether it carries the name and signature of the directory's CA.
    pub signed_by_ca: bool,
}

impl Listed {
    /// One word or phrase for what a person should know first.
    pub fn state(&self, now: OffsetDateTime) -> String {
        let info = match &self.info {
            Ok(info) => info,
            Err(_) => return "unreadable".into(),
        };
        match (&info.identity, &self.key) {
            _ if info.validity_at(now) == Validity::Expired => "expired".into(),
            _ if info.validity_at(now) == Validity::NotYetValid => "not yet valid".into(),
            _ if !self.signed_by_ca => "not signed by this CA".into(),
            (Err(_), _) if !info.is_ca => "no role".into(),
            (_, Some(Err(FileError::LooseMode { mode, .. }))) => {
                format!("key too open ({mode:04o})")
            }
            (_, Some(Err(_))) => "key unreadable".into(),
            (_, None) if !info.is_ca => "key missing".into(),
            _ if info.days_left(now) < EXPIRING_DAYS => "expiring".into(),
            _ => "valid".into(),
        }
    }
}

/// A certificates directory, and where its CA's key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertsDir {
    dir: PathBuf,
    ca_key: PathBuf,
}

impl CertsDir {
    /// With the CA's key in the directory itself.
    pub fn new(dir: impl Into<PathBuf>) -> CertsDir {
        let dir = dir.into();
        let ca_key = dir.join("ca.key");
        CertsDir { dir, ca_key }
    }

    /// With the CA's key elsewhere: it need not lie on the machines that the certificates go to.
    pub fn with_ca_key(dir: impl Into<PathBuf>, ca_key: impl Into<PathBuf>) -> CertsDir {
        CertsDir {
            dir: dir.into(),
            ca_key: ca_key.into(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn ca_certificate(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    pub fn ca_key(&self) -> &Path {
        &self.ca_key
    }

    /// Certificate and key of the node that uses this directory.
    pub fn node_pair(&self) -> (PathBuf, PathBuf) {
        (self.dir.join("node.crt"), self.dir.join("node.key"))
    }

    pub fn client_pair(&self, name: &ClientName) -> (PathBuf, PathBuf) {
        (
            self.dir.join(format!("client.{name}.crt")),
            self.dir.join(format!("client.{name}.key")),
        )
    }

    /// Makes a new CA. With `overwrite`, everything that the old one signed stops working and must be made again.
    pub fn create_ca(&self, options: &IssueOptions) -> Result<Created, CertificateError> {
        let certificate_path = self.ca_certificate();
        let (not_before, not_after) = options.validity(CA_LIFETIME)?;
        self.refuse_existing(&[&certificate_path, &self.ca_key], options)?;
        let key = KeyPair::generate().map_err(CertificateError::Generate)?;
        let mut params = CertificateParams::default();
        // Two CAs must differ in name, or a certificate of the one looks like a forgery to the other instead of a
        // stranger's.
        let mark = key
            .public_key_raw()
            .iter()
            .rev()
            .take(4)
            .fold(String::new(), |mark, byte| format!("{mark}{byte:02x}"));
        params.distinguished_name = name(&format!("Quorate CA {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = not_before;
        params.not_after = not_after;
        let certificate = params
            .self_signed(&key)
            .map_err(CertificateError::Generate)?;
        if let Some(parent) = self.ca_key.parent().filter(|p| !p.as_os_str().is_empty()) {
            create_private_dir(parent)?;
        }
        self.write_pair(
            (&certificate_path, &self.ca_key.clone()),
            &certificate,
            &key,
            options,
        )
    }

    /// Makes the certificate of a node: server and client, for every name and address that others reach it by.
    pub fn create_node(
        &self,
        node: NodeId,
        hosts: &[CertificateHost],
        options: &IssueOptions,
    ) -> Result<Created, CertificateError> {
        if hosts.is_empty() {
            return Err(CertificateError::NoHosts);
        }
        let (certificate, key) = self.node_pair();
        self.create_leaf(
            (&certificate, &key),
            &PeerIdentity::Node(node),
            hosts,
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            options,
        )
    }

    /// Makes the certificate of a client. It cannot serve.
    pub fn create_client(
        &self,
        name: &ClientName,
        options: &IssueOptions,
    ) -> Result<Created, CertificateError> {
        let (certificate, key) = self.client_pair(name);
        self.create_leaf(
            (&certificate, &key),
            &PeerIdentity::Client(name.clone()),
            &[],
            vec![ExtendedKeyUsagePurpose::ClientAuth],
            options,
        )
    }

    /// Every certificate in the directory: the CA first, then the node, then clients by name.
    pub fn list(&self) -> Result<Vec<Listed>, CertificateError> {
        let mut clients = BTreeSet::new();
        let entries = std::fs::read_dir(&self.dir).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CertificateError::NoDirectory {
                dir: self.dir.clone(),
            },
            _ => FileError::io("list directory", &self.dir)(error).into(),
        })?;
        for entry in entries {
            let entry = entry.map_err(FileError::io("list directory", &self.dir))?;
            let name = entry.file_name();
            let is_client = name
                .to_str()
                .is_some_and(|name| name.starts_with("client.") && name.ends_with(".crt"));
            if is_client {
                clients.insert(entry.path());
            }
        }
        let ca_path = self.ca_certificate();
        let authorities = read_certificates(&ca_path).unwrap_or_default();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authorities.iter().cloned());
        let roots = Arc::new(roots);
        let own = [ca_path.clone(), self.node_pair().0];
        let paths = own.into_iter().filter(|path| path.exists()).chain(clients);
        Ok(paths
            .map(|path| {
                let key_path = if path == ca_path {
                    self.ca_key.clone()
                } else {
                    path.with_extension("key")
                };
                let chain = read_certificates(&path);
                Listed {
                    key: match read_private(&key_path) {
                        Err(FileError::Missing { .. }) => None,
                        read => Some(read.map(|_| key_path)),
                    },
                    signed_by_ca: chain.as_ref().is_ok_and(|chain| {
                        chain.split_first().is_some_and(|(own, rest)| {
                            authorities.contains(own) || tls::chains_to(&roots, own, rest)
                        })
                    }),
                    info: chain.and_then(|chain| first_info(&path, &chain)),
                    path,
                }
            })
            .collect())
    }

    fn create_leaf(
        &self,
        (certificate_path, key_path): (&Path, &Path),
        identity: &PeerIdentity,
        hosts: &[CertificateHost],
        usages: Vec<ExtendedKeyUsagePurpose>,
        options: &IssueOptions,
    ) -> Result<Created, CertificateError> {
        let hosts: BTreeSet<_> = hosts.iter().collect();
        if hosts.len() > MAX_HOSTS {
            return Err(CertificateError::TooManyHosts { count: hosts.len() });
        }
        self.refuse_existing(&[certificate_path, key_path], options)?;
        let (issuer, ca) = self.load_issuer()?;
        if ca.validity_at(OffsetDateTime::now_utc()) != Validity::Valid {
            return Err(CertificateError::CaNotValid {
                path: self.ca_certificate(),
                state: describe_validity(&ca, OffsetDateTime::now_utc()),
            });
        }
        let (not_before, mut not_after) = options.validity(LEAF_LIFETIME)?;
        if not_after > ca.not_after {
            if options.lifetime.is_some() {
                return Err(CertificateError::OutlivesCa {
                    ca_end: show_time(ca.not_after),
                    days_left: (ca.not_after - options.now).whole_days(),
                });
            }
            not_after = ca.not_after;
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&identity.to_string());
        params.not_before = not_before;
        params.not_after = not_after;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        let uri = identity.uri();
        params.subject_alt_names = std::iter::once(uri.as_str().try_into().map(SanType::URI))
            .chain(hosts.iter().map(|host| host.subject_alternative_name()))
            .collect::<Result<_, _>>()
            .map_err(CertificateError::Generate)?;
        let key = KeyPair::generate().map_err(CertificateError::Generate)?;
        let certificate = params
            .signed_by(&key, &issuer)
            .map_err(CertificateError::Generate)?;
        self.write_pair((certificate_path, key_path), &certificate, &key, options)
    }

    fn load_issuer(&self) -> Result<(Issuer<'static, KeyPair>, CertificateInfo), CertificateError> {
        let path = self.ca_certificate();
        let chain = read_certificates(&path).map_err(|error| match error {
            CertificateError::File(FileError::Missing { path }) => CertificateError::NoCa { path },
            other => other,
        })?;
        let info = first_info(&path, &chain)?;
        if !info.is_ca {
            return Err(CertificateError::NotACa { path });
        }
        let key = read_private(&self.ca_key).map_err(|error| match error {
            FileError::Missing { path } => CertificateError::NoCaKey { path },
            other => other.into(),
        })?;
        let key = std::str::from_utf8(&key)
            .map_err(|_| rcgen::Error::CouldNotParseKeyPair)
            .and_then(KeyPair::from_pem)
            .map_err(|source| CertificateError::UnreadableKey {
                path: self.ca_key.clone(),
                source,
            })?;
        // `first_info` has seen that there is a first one.
        let der = chain
            .first()
            .ok_or(CertificateError::NoCa { path: path.clone() })?;
        if !public_key_is(der, key.public_key_raw()) {
            return Err(CertificateError::KeyMismatch {
                key: self.ca_key.clone(),
                certificate: path,
            });
        }
        let issuer = Issuer::from_ca_cert_der(der, key).map_err(CertificateError::Generate)?;
        Ok((issuer, info))
    }

    /// Looks before anything is made, so that a refusal leaves nothing half written.
    fn refuse_existing(
        &self,
        paths: &[&Path],
        options: &IssueOptions,
    ) -> Result<(), CertificateError> {
        match paths.iter().find(|path| path.exists()) {
            Some(path) if !options.overwrite => Err(FileError::Exists {
                path: path.to_path_buf(),
            }
            .into()),
            _ => Ok(()),
        }
    }

    fn write_pair(
        &self,
        (certificate_path, key_path): (&Path, &Path),
        certificate: &rcgen::Certificate,
        key: &KeyPair,
        options: &IssueOptions,
    ) -> Result<Created, CertificateError> {
        let info = CertificateInfo::parse(certificate.der()).map_err(|source| {
            CertificateError::Unreadable {
                path: certificate_path.into(),
                source,
            }
        })?;
        create_private_dir(&self.dir)?;
        write_private(key_path, key.serialize_pem().as_bytes(), options.overwrite)?;
        write_public(
            certificate_path,
            certificate.pem().as_bytes(),
            options.overwrite,
        )?;
        Ok(Created {
            certificate: certificate_path.into(),
            key: key_path.into(),
            info,
        })
    }
}

/// A certificate's validity in words, for a message: "expired since …", "not valid before …" or "valid until …".
pub fn describe_validity(info: &CertificateInfo, now: OffsetDateTime) -> String {
    match info.validity_at(now) {
        Validity::Expired => format!("expired since {}", show_time(info.not_after)),
        Validity::NotYetValid => format!("not valid before {}", show_time(info.not_before)),
        Validity::Valid => format!("valid until {}", show_time(info.not_after)),
    }
}

/// The certificates of a PEM file, in its order; at least one.
pub(super) fn read_certificates(
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let unreadable = || CertificateError::Unreadable {
        path: path.into(),
        source: InvalidCertificate::Malformed,
    };
    let pem = read_public(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| unreadable())?;
    if chain.is_empty() {
        return Err(unreadable());
    }
    Ok(chain)
}

pub(super) fn first_info(
    path: &Path,
    chain: &[CertificateDer<'_>],
) -> Result<CertificateInfo, CertificateError> {
    chain
        .first()
        .ok_or(InvalidCertificate::Malformed)
        .and_then(CertificateInfo::parse)
        .map_err(|source| CertificateError::Unreadable {
            path: path.into(),
            source,
        })
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Quorate");
    name.push(DnType::CommonName, common_name);
    name
}

fn public_key_is(certificate: &CertificateDer<'_>, raw: &[u8]) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, certificate)| *certificate.public_key().subject_public_key.data == *raw)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn hosts(names: &[&str]) -> Vec<CertificateHost> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn with_ca() -> (tempfile::TempDir, CertsDir) {
        let dir = tempfile::tempdir().unwrap();
        let certs = CertsDir::new(dir.path().join("certs"));
        certs.create_ca(&IssueOptions::new(now())).unwrap();
        (dir, certs)
    }

    #[test]
    fn a_directory_is_filled_as_documented() {
        let (_dir, certs) = with_ca();
        let options = IssueOptions::new(now());
        let hosts = hosts(&["db1.example.com", "*.example.com", "127.0.0.1", "[::1]"]);
        let created = certs.create_node(node(3), &hosts, &options).unwrap();
        assert_eq!(created.info.identity, Ok(PeerIdentity::Node(node(3))));
        assert_eq!(
            created.info.hosts,
            ["*.example.com", "127.0.0.1", "::1", "db1.example.com"]
        );
        let client = ClientName::new("ops").unwrap();
        certs.create_client(&client, &options).unwrap();
        let listed = certs.list().unwrap();
        let names: Vec<_> = listed
            .iter()
            .map(|listed| listed.path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["ca.crt", "node.crt", "client.ops.crt"]);
        for listed in &listed {
            assert_eq!(listed.state(now()), "valid", "{:?}", listed.path);
            let key = listed.key.as_ref().unwrap().as_ref().unwrap();
            assert_eq!(std::fs::metadata(key).unwrap().mode() & 0o777, 0o600);
        }
        let mode = std::fs::metadata(certs.path()).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o700);
    }

    #[test]
    fn lifetimes_are_ten_and_five_years_and_never_beyond_the_cas() {
        let (_dir, certs) = with_ca();
        let mut options = IssueOptions::new(now());
        let days = |info: &CertificateInfo| info.days_left(options.now);
        let ca = certs.list().unwrap().remove(0).info.unwrap();
        assert_eq!(days(&ca), 3650);
        assert!(ca.not_before < options.now);
        let host = hosts(&["localhost"]);
        let leaf = certs.create_node(node(1), &host, &options).unwrap();
        assert_eq!(days(&leaf.info), 1825);
        options.overwrite = true;
        options.lifetime = Some(CA_LIFETIME * 2);
        let error = certs.create_node(node(1), &host, &options).unwrap_err();
        assert!(
            matches!(error, CertificateError::OutlivesCa { .. }),
            "{error}"
        );
        options.lifetime = Some(Duration::ZERO);
        let error = certs.create_node(node(1), &host, &options).unwrap_err();
        assert!(matches!(error, CertificateError::BadLifetime { .. }));
        // A short-lived CA shortens what it signs, when no lifetime was asked for.
        options.lifetime = Some(Duration::from_secs(86_400));
        certs.create_ca(&options).unwrap();
        options.lifetime = None;
        let leaf = certs.create_node(node(1), &host, &options).unwrap();
        assert_eq!(leaf.info.days_left(options.now), 1);
    }

    #[test]
    fn nothing_is_replaced_without_overwrite() {
        let (_dir, certs) = with_ca();
        let mut options = IssueOptions::new(now());
        let before = std::fs::read(certs.ca_certificate()).unwrap();
        assert!(matches!(
            certs.create_ca(&options),
            Err(CertificateError::File(FileError::Exists { .. }))
        ));
        assert_eq!(std::fs::read(certs.ca_certificate()).unwrap(), before);
        // A key alone is worth keeping too.
        std::fs::remove_file(certs.ca_certificate()).unwrap();
        assert!(certs.create_ca(&options).is_err());
        options.overwrite = true;
        certs.create_ca(&options).unwrap();
        assert_ne!(std::fs::read(certs.ca_certificate()).unwrap(), before);
    }

    #[test]
    fn a_stranger_in_the_directory_and_a_loose_key_are_named() {
        let (_dir, certs) = with_ca();
        let options = IssueOptions::new(now());
        let host = hosts(&["localhost"]);
        let created = certs.create_node(node(1), &host, &options).unwrap();
        std::fs::set_permissions(&created.key, PermissionsExt::from_mode(0o640)).unwrap();
        assert_eq!(certs.list().unwrap()[1].state(now()), "key too open (0640)");
        std::fs::set_permissions(certs.ca_key(), PermissionsExt::from_mode(0o644)).unwrap();
        let client = ClientName::new("x").unwrap();
        let error = certs.create_client(&client, &options).unwrap_err();
        assert!(error.to_string().contains("chmod 0600"), "{error}");
        let renew = IssueOptions {
            overwrite: true,
            ..options
        };
        certs.create_ca(&renew).unwrap();
        assert_eq!(
            certs.list().unwrap()[1].state(now()),
            "not signed by this CA"
        );
        std::fs::write(certs.node_pair().0, "rubbish").unwrap();
        assert_eq!(certs.list().unwrap()[1].state(now()), "unreadable");
    }

    #[test]
    fn the_cas_key_may_live_elsewhere_and_must_fit() {
        let dir = tempfile::tempdir().unwrap();
        let safe = dir.path().join("safe/ca.key");
        let certs = CertsDir::with_ca_key(dir.path().join("certs"), &safe);
        let options = IssueOptions::new(now());
        certs.create_ca(&options).unwrap();
        assert!(safe.exists());
        let client = ClientName::new("x").unwrap();
        certs.create_client(&client, &options).unwrap();
        let without = CertsDir::new(certs.path());
        let overwrite = IssueOptions {
            overwrite: true,
            ..options
        };
        let error = without.create_client(&client, &overwrite).unwrap_err();
        assert!(matches!(error, CertificateError::NoCaKey { .. }), "{error}");
        let (_other_dir, other) = with_ca();
        let mixed = CertsDir::with_ca_key(certs.path(), other.ca_key());
        let error = mixed.create_client(&client, &overwrite).unwrap_err();
        assert!(
            matches!(error, CertificateError::KeyMismatch { .. }),
            "{error}"
        );
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for bad in [
            "",
            "a b",
            "host:9092",
            "https://x",
            "1.2.3",
            "1.2.3.4.5",
            "a..b",
            "*",
        ] {
            assert!(bad.parse::<CertificateHost>().is_err(), "{bad:?}");
        }
        let (_dir, certs) = with_ca();
        assert!(matches!(
            certs.create_node(node(1), &[], &IssueOptions::new(now())),
            Err(CertificateError::NoHosts)
        ));
    }
}
