//! What a certificate says: whose it is, for which hosts, and how long.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::types::NodeId;

/// The start of the URI SAN that says role and id: `quorate://node/<id>` or `quorate://client/<name>`.
const ROLE_SCHEME: &str = "quorate://";

/// A client's name: 1 to 64 characters of `[A-Za-z0-9._-]`, not starting with `.` or `-`. It is part of a file's name and
/// of a URI, so nothing that would need quoting in either is allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ClientName(String);

/// Text that cannot be a client's name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{name:?} cannot be a client's name: use 1 to {} letters, digits, '.', '_' or '-', not starting with '.' or '-'",
    ClientName::MAX_LENGTH
)]
pub struct InvalidClientName {
    name: String,
}

impl ClientName {
    /// In characters, all of them ASCII.
    pub const MAX_LENGTH: usize = 64;

    pub fn new(name: &str) -> Result<ClientName, InvalidClientName> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty()
            || name.len() > Self::MAX_LENGTH
            || name.starts_with(['.', '-'])
            || !name.chars().all(legal)
        {
            return Err(InvalidClientName { name: name.into() });
        }
        Ok(ClientName(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClientName {
    type Err = InvalidClientName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ClientName::new(text)
    }
}

/// Who is at the other end, as its certificate says. Only ever made from a certificate that our own CA has signed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerIdentity {
    Node(NodeId),
    Client(ClientName),
}

impl PeerIdentity {
    /// The URI SAN that carries this identity.
    pub fn uri(&self) -> String {
        match self {
            PeerIdentity::Node(id) => format!("{ROLE_SCHEME}node/{id}"),
            PeerIdentity::Client(name) => format!("{ROLE_SCHEME}client/{name}"),
        }
    }

    /// `None` for a URI that is not ours; an error for one that is, and is malformed.
    fn from_uri(uri: &str) -> Option<Result<PeerIdentity, InvalidCertificate>> {
        let rest = uri.strip_prefix(ROLE_SCHEME)?;
        let identity = match rest.split_once('/') {
            // One spelling per identity: "007" would be a second name for node 7.
            Some(("node", id)) => id
                .parse::<NodeId>()
                .ok()
                .filter(|node| node.to_string() == id)
                .map(PeerIdentity::Node),
            Some(("client", name)) => ClientName::new(name).ok().map(PeerIdentity::Client),
            _ => None,
        };
        Some(identity.ok_or_else(|| InvalidCertificate::BadRole { uri: uri.into() }))
    }

    pub fn node(&self) -> Option<NodeId> {
        match self {
            PeerIdentity::Node(id) => Some(*id),
            PeerIdentity::Client(_) => None,
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerIdentity::Node(id) => write!(f, "node {id}"),
            PeerIdentity::Client(name) => write!(f, "client {name}"),
        }
    }
}

/// A certificate that cannot be understood, or names no single role.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidCertificate {
    #[error("the certificate is not valid X.509")]
    Malformed,
    #[error(
        "the certificate names no role; make it with `quorate cert create-node` or `quorate cert create-client`"
    )]
    NoRole,
    #[error("the certificate names more than one role ({first} and {second})")]
    SeveralRoles {
        first: PeerIdentity,
        second: PeerIdentity,
    },
    #[error("the certificate's role {uri:?} is malformed")]
    BadRole { uri: String },
}

/// The parts of a certificate that we read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The common name, or the whole subject where it has none.
    pub subject: String,
    /// The issuer's common name, or the whole of it.
    pub issuer: String,
    pub is_ca: bool,
    /// Role and id, from the URI SAN.
    pub identity: Result<PeerIdentity, InvalidCertificate>,
    /// DNS names and IP addresses of the SAN: where a node may be reached.
    pub hosts: Vec<String>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

impl CertificateInfo {
    pub fn parse(der: &CertificateDer<'_>) -> Result<CertificateInfo, InvalidCertificate> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| InvalidCertificate::Malformed)?;
        if !rest.is_empty() {
            return Err(InvalidCertificate::Malformed);
        }
        let time = |seconds| {
            OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| InvalidCertificate::Malformed)
        };
        let alternative = certificate
            .subject_alternative_name()
            .map_err(|_| InvalidCertificate::Malformed)?;
        let names = alternative.map_or(&[][..], |san| &san.value.general_names[..]);
        let mut hosts = Vec::new();
        for name in names {
            match name {
                GeneralName::DNSName(name) => hosts.push((*name).to_owned()),
                GeneralName::IPAddress(octets) => {
                    let ip = ip_from_octets(octets).ok_or(InvalidCertificate::Malformed)?;
                    hosts.push(ip.to_string());
                }
                _ => {}
            }
        }
        Ok(CertificateInfo {
            subject: common_name(certificate.subject()),
            issuer: common_name(certificate.issuer()),
            is_ca: certificate.is_ca(),
            identity: identity_of(names),
            hosts,
            not_before: time(certificate.validity().not_before.timestamp())?,
            not_after: time(certificate.validity().not_after.timestamp())?,
        })
    }

    pub fn validity_at(&self, now: OffsetDateTime) -> Validity {
        if now < self.not_before {
            Validity::NotYetValid
        } else if now > self.not_after {
            Validity::Expired
        } else {
            Validity::Valid
        }
    }

    /// Days until it expires, to the nearest; negative once it has.
    pub fn days_left(&self, now: OffsetDateTime) -> i64 {
        const DAY: i64 = 86_400;
        ((self.not_after - now).whole_seconds() + DAY / 2).div_euclid(DAY)
    }
}

/// A certificate's state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    NotYetValid,
    Valid,
    Expired,
}

/// The identity in a presented chain: that of its first certificate, which is the peer's own.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, InvalidCertificate> {
    let first = chain.first().ok_or(InvalidCertificate::NoRole)?;
    CertificateInfo::parse(first)?.identity
}

/// A moment as people write it, in UTC, to the minute.
pub fn show_time(time: OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    time.to_offset(time::UtcOffset::UTC)
        .format(format)
        .unwrap_or_else(|_| time.unix_timestamp().to_string())
}

fn identity_of(names: &[GeneralName<'_>]) -> Result<PeerIdentity, InvalidCertificate> {
    let mut found: Option<PeerIdentity> = None;
    for name in names {
        let GeneralName::URI(uri) = name else {
            continue;
        };
        let Some(identity) = PeerIdentity::from_uri(uri) else {
            continue;
        };
        let identity = identity?;
        if let Some(first) = found {
            return Err(InvalidCertificate::SeveralRoles {
                first,
                second: identity,
            });
        }
        found = Some(identity);
    }
    found.ok_or(InvalidCertificate::NoRole)
}

fn common_name(name: &x509_parser::x509::X509Name<'_>) -> String {
    name.iter_common_name()
        .next()
        .and_then(|attribute| attribute.as_str().ok())
        .map_or_else(|| name.to_string(), str::to_owned)
}

fn ip_from_octets(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_one_spelling_and_strangers_uris_are_passed_over() {
        let node = PeerIdentity::Node(NodeId::new(7).unwrap());
        let client = PeerIdentity::Client(ClientName::new("ops.1").unwrap());
        let uris = |uris: &[&'static str]| {
            let names: Vec<_> = uris.iter().map(|uri| GeneralName::URI(uri)).collect();
            identity_of(&names)
        };
        assert_eq!(
            uris(&["spiffe://x/y", "quorate://node/7"]),
            Ok(node.clone())
        );
        assert_eq!(uris(&["quorate://client/ops.1"]), Ok(client.clone()));
        assert_eq!(uris(&["spiffe://x/y"]), Err(InvalidCertificate::NoRole));
        assert_eq!(
            uris(&["quorate://node/7", "quorate://client/ops.1"]),
            Err(InvalidCertificate::SeveralRoles {
                first: node,
                second: client
            })
        );
        for bad in [
            "quorate://node/0",
            "quorate://node/007",
            "quorate://node/+7",
            "quorate://node/",
            "quorate://client/../x",
            "quorate://client/",
            "quorate://root/1",
            "quorate://",
        ] {
            let uri = bad.to_owned();
            assert_eq!(uris(&[bad]), Err(InvalidCertificate::BadRole { uri }));
        }
    }

    #[test]
    fn a_clients_name_is_safe_in_a_file_name() {
        for bad in ["", ".", "-x", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(ClientName::new(bad).is_err(), "{bad:?}");
        }
        assert!(ClientName::new(&"x".repeat(64)).is_ok());
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        for bytes in [&b""[..], b"x", &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]] {
            let der = CertificateDer::from(bytes);
            assert_eq!(
                CertificateInfo::parse(&der),
                Err(InvalidCertificate::Malformed)
            );
        }
        assert_eq!(peer_identity(&[]), Err(InvalidCertificate::NoRole));
    }
}
