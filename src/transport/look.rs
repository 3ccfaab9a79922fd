//! A look at a server that is trusted for nothing yet: which protocol it speaks and which certificate it shows, whatever is
//! wrong with either. For diagnosis only: nothing is ever asked of a peer over such a connection.
//!
//! [`dial`](super::dial) stops at the first thing that is wrong. A look goes on, so that a certificate of another CA that has
//! also expired and names another host is found wrong three times, and is made anew once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig};
use quinn::{ConnectionError, Endpoint, TokioRuntime, TransportErrorCode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::certificate_info::{CertificateInfo, InvalidCertificate};
use super::endpoint_keys::EndpointKeys;
use super::explain::{alert_of, tame};
use super::identity::{Chain, Identity};
use super::protocol::{Alpn, CloseReason};
use super::socket::bind_udp_for;
use super::{tls, tuning};

/// Later versions of a protocol that are asked for by name, when a peer does not speak ours.
const LATER_VERSIONS: std::ops::RangeInclusive<u32> = 2..=16;
/// Services that are found on UDP ports and speak QUIC as well.
const STRANGERS: [&str; 4] = ["h3", "h3-29", "doq", "hq-interop"];
/// How long a peer has to take note of the end of a look.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// What a server showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The protocol that it chose of those it was offered; `None` where it did not choose.
    pub protocol: Option<String>,
    pub certificate: Result<CertificateInfo, InvalidCertificate>,
    /// Whether the certificate was signed by an authority that this end trusts, whatever its dates.
    pub is_of_our_ca: bool,
    /// Whether the certificate is for the host by which it was dialled.
    pub names_host: bool,
}

/// Why nothing was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookFailure {
    /// It speaks none of the protocols that it was offered.
    NoCommonProtocol,
    NoCommonVersion,
    /// It takes no more connections.
    Overloaded,
    Silent {
        waited: Duration,
    },
    Other {
        text: String,
    },
}

/// Looks at the server by way of one protocol.
pub async fn look(
    identity: &Identity,
    alpn: Alpn,
    host: &str,
    remote: SocketAddr,
    within: Duration,
) -> Result<Seen, LookFailure> {
    let offered = vec![alpn.name().into()];
    attempt(identity, host, remote, offered, within).await
}

/// For a server that does not speak `alpn`: what it speaks instead, if it is a later version of that or one of a few well-known
/// services.
pub async fn look_for_protocol(
    identity: &Identity,
    alpn: Alpn,
    host: &str,
    remote: SocketAddr,
    within: Duration,
) -> Option<String> {
    let mut offered: Vec<Vec<u8>> = Vec::new();
    for version in LATER_VERSIONS {
        let name = alpn.name();
        let stem = name.rsplit_once('/').map_or(name, |(stem, _)| stem);
        offered.push(format!("{stem}/{version}").into());
    }
    offered.extend(STRANGERS.map(|name| name.as_bytes().to_vec()));
    let seen = attempt(identity, host, remote, offered, within).await;
    seen.ok()?.protocol
}

/// Looks at a server of TLS at the other end of a TCP connection, such as a node's Kafka listener. `host` is by what name it
/// was dialled.
pub async fn look_over_tcp(
    identity: &Identity,
    host: &str,
    stream: TcpStream,
    within: Duration,
) -> Result<Seen, LookFailure> {
    let other = |text: String| LookFailure::Other { text };
    let config = tls_config(identity, Vec::new()).map_err(|error| other(error.to_string()))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| other(format!("{host:?} is no name that a certificate could hold")))?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = match timeout(within, connecting).await {
        Err(_) => return Err(LookFailure::Silent { waited: within }),
        Ok(connected) => connected.map_err(|error| other(tame(&error.to_string())))?,
    };
    let chain = stream.get_ref().1.peer_certificates();
    seen(identity, host, None, chain.unwrap_or_default())
}

/// Whether this end's own certificate is for this host.
pub fn own_certificate_names(identity: &Identity, host: &str) -> bool {
    let chain = &identity.certified_key().cert;
    chain.first().is_some_and(|own| names(own, host))
}

async fn attempt(
    identity: &Identity,
    host: &str,
    remote: SocketAddr,
    offered: Vec<Vec<u8>>,
    within: Duration,
) -> Result<Seen, LookFailure> {
    let other = |text: String| LookFailure::Other { text };
    let crypto = tls_config(identity, offered)
        .and_then(|config| Ok(QuicClientConfig::try_from(config)?))
        .map_err(|error| other(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(tuning::dialler(Alpn::Admin)));
    let socket = bind_udp_for(remote).map_err(|error| other(error.to_string()))?;
    let keys = EndpointKeys::random().map_err(|error| other(error.to_string()))?;
    let endpoint = Endpoint::new(keys.endpoint_config(), None, socket, Arc::new(TokioRuntime))
        .map_err(|error| other(error.to_string()))?;
    let connecting = endpoint
        .connect_with(config, remote, host)
        .map_err(|error| other(error.to_string()))?;
    let outcome = match timeout(within, connecting).await {
        Err(_) => return Err(LookFailure::Silent { waited: within }),
        Ok(outcome) => outcome,
    };
    let connection = outcome.map_err(|error| failure(&error, within))?;
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol)
        .map(|name| tame(&String::from_utf8_lossy(&name)));
    let chain = connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Chain>().ok());
    CloseReason::Done.close(&connection, "");
    let _ = timeout(CLOSE_WAIT, endpoint.wait_idle()).await;
    let chain = chain.map(|chain| *chain).unwrap_or_default();
    seen(identity, host, protocol, &chain)
}

fn seen(
    identity: &Identity,
    host: &str,
    protocol: Option<String>,
    chain: &[CertificateDer<'_>],
) -> Result<Seen, LookFailure> {
    let Some((own, rest)) = chain.split_first() else {
        return Err(LookFailure::Other {
            text: "it showed no certificate".to_owned(),
        });
    };
    Ok(Seen {
        protocol,
        certificate: CertificateInfo::parse(own),
        is_of_our_ca: tls::chains_to(identity.roots(), own, rest),
        names_host: names(own, host),
    })
}

/// With this end's certificate, as any client shows it, so that the server's log has no refusal that nobody meant.
fn tls_config(
    identity: &Identity,
    offered: Vec<Vec<u8>>,
) -> Result<ClientConfig, tls::TlsConfigError> {
    let algorithms = tls::provider().signature_verification_algorithms;
    let mut config = ClientConfig::builder_with_provider(Arc::clone(tls::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone { algorithms }))
        .with_client_cert_resolver(tls::own_certificate(identity));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = offered;
    Ok(config)
}

fn names(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let (Ok(parsed), Ok(name)) = (
        ParsedCertificate::try_from(certificate),
        ServerName::try_from(host),
    ) else {
        return false;
    };
    verify_server_name(&parsed, &name).is_ok()
}

fn failure(error: &ConnectionError, within: Duration) -> LookFailure {
    let by_alert = |alert, text: &str| match alert {
        Some(AlertDescription::NoApplicationProtocol) => LookFailure::NoCommonProtocol,
        _ => LookFailure::Other { text: tame(text) },
    };
    match error {
        ConnectionError::VersionMismatch => LookFailure::NoCommonVersion,
        ConnectionError::TimedOut => LookFailure::Silent { waited: within },
        ConnectionError::TransportError(error) => by_alert(alert_of(error.code), &error.reason),
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            LookFailure::Overloaded
        }
        ConnectionError::ConnectionClosed(close) => by_alert(
            alert_of(close.error_code),
            &String::from_utf8_lossy(&close.reason),
        ),
        other => LookFailure::Other {
            text: tame(&other.to_string()),
        },
    }
}

/// Takes any certificate whose key the server has.
#[derive(Debug)]
struct Anyone {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
