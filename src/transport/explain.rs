//! Why a connection could not be made, or broke, in one sentence that says what to do.
//!
//! Under TLS 1.3 a client's handshake ends before the server has looked at the client's certificate, so a refusal arrives
//! afterwards, as the error of whatever the client does next. [`super::dial`] waits for the server's confirmation and so
//! reports it itself; whoever uses [`super::dial_unconfirmed`], or holds a connection that breaks later, must pass the
//! [`ConnectionError`] of any operation to [`Dialled::explain`](super::Dialled::explain).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use quinn::{ConnectionError, TransportErrorCode};
use rustls::AlertDescription;
use thiserror::Error;
use time::OffsetDateTime;

use super::certificate_info::{InvalidCertificate, PeerIdentity, Validity, show_time};
use super::certificates::describe_validity;
use super::identity::{Identity, IdentityError};
use super::protocol::{Alpn, CloseReason};
use super::tls::{ServerRefused, TlsConfigError};
use crate::types::NodeId;

/// The longest text of a peer's that is repeated in a message, in characters.
const MAX_PEER_TEXT: usize = 200;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectFailure {
    /// The sentence is the problem's own, so that it stays one; it is not repeated as a source.
    #[error("cannot connect to {address}: {problem}")]
    OwnIdentity {
        address: String,
        problem: IdentityError,
    },
    #[error(
        "cannot connect to {address} with the certificate of {own}: only nodes may use {alpn} (wrong role). Use a certificate made with `quorate cert create-node`"
    )]
    OwnWrongRole {
        address: String,
        own: PeerIdentity,
        alpn: Alpn,
    },
    #[error("{address:?} is not an address: write it as HOST:PORT, or [IPV6]:PORT")]
    BadAddress { address: String },
    #[error(
        "cannot connect to {address}: its host name could not be resolved. Check the name and this machine's DNS"
    )]
    Unresolvable {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot open a UDP socket to connect to {address}")]
    Socket {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "nothing listens on UDP port {address}: start the server there, or correct the address"
    )]
    NothingListens { address: String },
    #[error(
        "{address} did not answer within {} ms (unreachable): check that the server runs, and that UDP gets through to it",
        waited.as_millis()
    )]
    Unreachable { address: String, waited: Duration },
    #[error(
        "{address} cannot be reached with QUIC's packets: the path's MTU is {mtu} bytes, and {needed} are needed. Raise the MTU of the interface or tunnel on the way"
    )]
    PathTooNarrow {
        address: String,
        mtu: u32,
        needed: u32,
    },
    #[error(
        "{address} cannot be reached with QUIC's packets: small ones arrive there, and larger ones are lost on the way, which must carry {needed} bytes. Raise the MTU of the tunnel or link on the way"
    )]
    LargePacketsLost { address: String, needed: u32 },
    #[error(
        "{address} answered with {bytes} bytes that are no QUIC: another UDP service has the port. Correct the address, or stop that service"
    )]
    NotQuic { address: String, bytes: usize },
    #[error(
        "the certificate of {address} was signed by {issuer:?}, and this end trusts only {trusted} (wrong CA): use the cluster's ca.crt in place of {ca}"
    )]
    ServerUnknownCa {
        address: String,
        issuer: String,
        trusted: String,
        ca: PathBuf,
    },
    #[error(
        "the certificate of {address} has expired: it was valid until {not_after}. Make a new one there with `quorate cert create-node --overwrite`"
    )]
    ServerExpired { address: String, not_after: String },
    #[error(
        "the certificate of {address} is not yet valid: it begins at {not_before}. Check the clocks of both machines"
    )]
    ServerNotYetValid { address: String, not_before: String },
    #[error(
        "the certificate of {address} does not name the host {host:?} (host not in SAN); it names {}. Connect to one of these, or make a certificate for {host:?} with `quorate cert create-node`",
        list(names)
    )]
    HostNotNamed {
        address: String,
        host: String,
        names: Vec<String>,
    },
    #[error(
        "{address} is not a node: it shows the certificate of {found} (wrong role). Give it one made with `quorate cert create-node`"
    )]
    ServerNotANode { address: String, found: String },
    #[error(
        "{address} is node {found}, not node {expected}: correct the address of node {expected}, or the certificate there"
    )]
    WrongNode {
        address: String,
        expected: NodeId,
        found: NodeId,
    },
    #[error(
        "the certificate of {address} names no role that can be understood: make it with `quorate cert create-node`"
    )]
    ServerBadRole {
        address: String,
        #[source]
        source: InvalidCertificate,
    },
    #[error("TLS with {address} failed: {text}")]
    Tls { address: String, text: String },
    #[error(
        "{address} refused this end because it showed no client certificate: give --certs-dir a directory with one"
    )]
    NoClientCertificate { address: String },
    #[error(
        "{address} refused the certificate {own}: it does not trust the CA that signed it (wrong CA). Use a certificate of the cluster's own CA"
    )]
    RejectedUnknownCa { address: String, own: PathBuf },
    #[error(
        "{address} refused the certificate {own} as expired or not yet valid; by this machine's clock it is {here}. Compare the clocks of both machines"
    )]
    RejectedValidity {
        address: String,
        own: PathBuf,
        here: String,
    },
    #[error(
        "{address} refused the certificate {own}: {text}. Make a new one with the cluster's CA"
    )]
    RejectedOther {
        address: String,
        own: PathBuf,
        text: String,
    },
    #[error(
        "{address} does not speak {alpn}: one of the two is too old, or another service listens there"
    )]
    NoCommonProtocol { address: String, alpn: Alpn },
    #[error(
        "{address} speaks no version of QUIC that this end does: another service listens there"
    )]
    VersionMismatch { address: String },
    #[error("{address} takes no more connections: wait, or use another node")]
    Overloaded { address: String },
    #[error("{address} closed the connection: {reason}{detail}")]
    Closed {
        address: String,
        reason: CloseReason,
        detail: String,
    },
    #[error("{address} has restarted, and with it went the connection: connect again")]
    Restarted { address: String },
    #[error("the connection to {address} fell silent and was given up: connect again")]
    Silent { address: String },
    #[error("the connection to {address} was closed by this end")]
    ClosedHere { address: String },
    #[error("the connection to {address} failed")]
    Other {
        address: String,
        #[source]
        source: ConnectionError,
    },
    #[error("cannot connect to {address}")]
    Config {
        address: String,
        #[source]
        source: TlsConfigError,
    },
}

impl ConnectFailure {
    /// Whether trying again may help without anyone doing anything: it never does for a refused certificate.
    pub fn is_transient(&self) -> bool {
        use ConnectFailure::*;
        matches!(
            self,
            Unresolvable { .. }
                | Socket { .. }
                | NothingListens { .. }
                | Unreachable { .. }
                | PathTooNarrow { .. }
                | LargePacketsLost { .. }
                | NotQuic { .. }
                | Overloaded { .. }
                | Closed { .. }
                | Restarted { .. }
                | Silent { .. }
                | Other { .. }
        )
    }
}

/// What is known about a dial, for explaining its end.
#[derive(Debug)]
pub(super) struct DialContext {
    pub(super) address: String,
    pub(super) host: String,
    pub(super) expected: Option<NodeId>,
    pub(super) alpn: Alpn,
    pub(super) identity: std::sync::Arc<Identity>,
    pub(super) refusal: super::tls::Refusal,
}

impl DialContext {
    /// A connection's end, from the dialling side.
    pub(super) fn explain(&self, error: &ConnectionError) -> ConnectFailure {
        if let Some(refused) = self.refusal.take() {
            return self.server_refused(refused);
        }
        let address = self.address.clone();
        match error {
            ConnectionError::VersionMismatch => ConnectFailure::VersionMismatch { address },
            ConnectionError::TransportError(error) => match alert_of(error.code) {
                Some(_) => ConnectFailure::Tls {
                    address,
                    text: tame(&error.reason),
                },
                None => self.other(ConnectionError::TransportError(error.clone())),
            },
            ConnectionError::ConnectionClosed(close) => match alert_of(close.error_code) {
                Some(alert) => self.rejected(alert, &String::from_utf8_lossy(&close.reason)),
                None if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
                    ConnectFailure::Overloaded { address }
                }
                None => self.other(ConnectionError::ConnectionClosed(close.clone())),
            },
            ConnectionError::ApplicationClosed(close) => {
                match CloseReason::from_code(close.error_code.into_inner()) {
                    Some(CloseReason::Overloaded) => ConnectFailure::Overloaded { address },
                    Some(reason) => ConnectFailure::Closed {
                        address,
                        reason,
                        detail: match tame(&String::from_utf8_lossy(&close.reason)) {
                            text if text.is_empty() => text,
                            text => format!(" ({text})"),
                        },
                    },
                    None => self.other(ConnectionError::ApplicationClosed(close.clone())),
                }
            }
            ConnectionError::Reset => ConnectFailure::Restarted { address },
            ConnectionError::TimedOut => ConnectFailure::Silent { address },
            ConnectionError::LocallyClosed => ConnectFailure::ClosedHere { address },
            ConnectionError::CidsExhausted => self.other(ConnectionError::CidsExhausted),
        }
    }

    fn other(&self, source: ConnectionError) -> ConnectFailure {
        ConnectFailure::Other {
            address: self.address.clone(),
            source,
        }
    }

    fn server_refused(&self, refused: ServerRefused) -> ConnectFailure {
        let address = self.address.clone();
        match (refused, self.expected) {
            (ServerRefused::UnknownCa { issuer }, _) => ConnectFailure::ServerUnknownCa {
                address,
                issuer: tame(&issuer),
                trusted: format!("{:?}", self.identity.ca_names()),
                ca: self.identity.ca_path().into(),
            },
            (ServerRefused::OutsideValidity { info }, _) => {
                match info.validity_at(OffsetDateTime::now_utc()) {
                    Validity::NotYetValid => ConnectFailure::ServerNotYetValid {
                        address,
                        not_before: show_time(info.not_before),
                    },
                    _ => ConnectFailure::ServerExpired {
                        address,
                        not_after: show_time(info.not_after),
                    },
                }
            }
            (ServerRefused::HostNotNamed { names }, _) => ConnectFailure::HostNotNamed {
                address,
                host: self.host.clone(),
                names: names.iter().map(|name| tame(name)).collect(),
            },
            (ServerRefused::NotANode { found }, _) => ConnectFailure::ServerNotANode {
                address,
                found: found.map_or_else(|| "nobody we know".into(), |found| found.to_string()),
            },
            (ServerRefused::WrongNode { found }, Some(expected)) => ConnectFailure::WrongNode {
                address,
                expected,
                found,
            },
            (ServerRefused::WrongNode { found }, None) => ConnectFailure::Tls {
                address,
                text: format!("it is node {found}"),
            },
            (ServerRefused::BadRole { source }, _) => {
                ConnectFailure::ServerBadRole { address, source }
            }
            (ServerRefused::Other { text }, _) => ConnectFailure::Tls {
                address,
                text: tame(&text),
            },
        }
    }

    /// The server's alert, as QUIC carries it: 0x100 + the alert's number.
    fn rejected(&self, alert: AlertDescription, text: &str) -> ConnectFailure {
        let address = self.address.clone();
        let own = self.identity.certificate_path().to_owned();
        match alert {
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
                ConnectFailure::NoClientCertificate { address }
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                ConnectFailure::RejectedUnknownCa { address, own }
            }
            AlertDescription::CertificateExpired => ConnectFailure::RejectedValidity {
                address,
                own,
                here: describe_validity(self.identity.info(), OffsetDateTime::now_utc()),
            },
            AlertDescription::NoApplicationProtocol => ConnectFailure::NoCommonProtocol {
                address,
                alpn: self.alpn,
            },
            AlertDescription::ProtocolVersion => ConnectFailure::VersionMismatch { address },
            _ => ConnectFailure::RejectedOther {
                address,
                own,
                text: match tame(text) {
                    text if text.is_empty() => format!("TLS alert {alert:?}"),
                    text => text,
                },
            },
        }
    }
}

/// The accepting side's sentence for its log: who tried, and what was wrong.
pub fn explain_refused_peer(remote: SocketAddr, error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(error) => match alert_of(error.code) {
            Some(AlertDescription::CertificateRequired) => {
                format!("{remote} was refused: it showed no certificate")
            }
            Some(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
                format!("{remote} was refused: its certificate is not of this cluster's CA")
            }
            Some(AlertDescription::NoApplicationProtocol) => {
                format!("{remote} was refused: it speaks no protocol that this node does")
            }
            // Expired and not yet valid have one alert; rustls' text tells them apart.
            _ => format!("{remote} was refused: {}", tame(&error.reason)),
        },
        ConnectionError::ConnectionClosed(close) if alert_of(close.error_code).is_some() => {
            format!(
                "{remote} did not accept this node's certificate: {}",
                tame(&String::from_utf8_lossy(&close.reason))
            )
        }
        other => format!("the handshake with {remote} failed: {other}"),
    }
}

pub(super) fn alert_of(code: TransportErrorCode) -> Option<AlertDescription> {
    let code = u64::from(code);
    match code {
        0x100..0x200 => Some(AlertDescription::from(code as u8)),
        _ => None,
    }
}

/// A peer's text, made fit for a terminal and a log: no control characters, and not long.
pub(super) fn tame(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_PEER_TEXT)
        .collect()
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "no host at all".into()
    } else {
        names.join(", ")
    }
}
