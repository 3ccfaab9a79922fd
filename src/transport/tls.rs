//! rustls configurations: TLS 1.3 under QUIC, 1.2 and 1.3 for the Kafka listener, always with certificates of our own CA.
//!
//! Resumption is off everywhere: a resumed session takes the peer's identity from the ticket and so never checks the
//! certificate again. 0-RTT is off: a replayed first flight would repeat a produce.

use std::sync::{Arc, LazyLock, Mutex};

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;

use super::certificate_info::{CertificateInfo, InvalidCertificate, PeerIdentity, peer_identity};
use super::identity::Identity;
use super::protocol::Alpn;
use crate::types::NodeId;

/// An identity that rustls does not take. [`Identity`] checks everything that can be wrong with one, so this is not
/// expected.
#[derive(Debug, Error)]
pub enum TlsConfigError {
    #[error("rustls refused the certificates: make them again with `quorate cert`")]
    Rustls(#[from] rustls::Error),
    #[error("rustls refused the CA: make it again with `quorate cert create-ca`")]
    Verifier(#[from] VerifierBuilderError),
    #[error("this build has no cipher suite that QUIC can start with")]
    NoInitialCipherSuite(#[from] NoInitialCipherSuite),
}

/// Whether a Kafka client must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    #[default]
    Required,
    /// One is asked for and checked if given.
    Requested,
    None,
}

/// ring, by name: the process's default provider may be another library's choice.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    &PROVIDER
}

/// The QUIC server's side, for the given protocols.
pub(super) fn quic_server(
    identity: &Identity,
    alpns: &[Alpn],
) -> Result<QuicServerConfig, TlsConfigError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(client_verifier(identity)?.build()?)
        .with_cert_resolver(Arc::new(Own(Arc::clone(identity.certified_key()))));
    forget_sessions(&mut config);
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.name().into()).collect();
    Ok(QuicServerConfig::try_from(config)?)
}

/// The QUIC client's side. The verifier writes into `refusal` why it refused a server.
pub(super) fn quic_client(
    identity: &Identity,
    alpn: Alpn,
    expected: Option<NodeId>,
    refusal: &Refusal,
) -> Result<QuicClientConfig, TlsConfigError> {
    let mut config = node_client(identity, expected, refusal)?;
    config.alpn_protocols = vec![alpn.name().into()];
    Ok(QuicClientConfig::try_from(config)?)
}

/// The side of a node that dials another one over TCP.
pub(super) fn tcp_client(
    identity: &Identity,
    expected: Option<NodeId>,
) -> Result<ClientConfig, TlsConfigError> {
    node_client(identity, expected, &Refusal::default())
}

fn node_client(
    identity: &Identity,
    expected: Option<NodeId>,
    refusal: &Refusal,
) -> Result<ClientConfig, TlsConfigError> {
    let webpki = WebPkiServerVerifier::builder_with_provider(
        Arc::clone(identity.roots()),
        Arc::clone(provider()),
    )
    .build()?;
    let verifier = NodeVerifier {
        webpki,
        expected,
        refusal: refusal.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Own(Arc::clone(identity.certified_key()))));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The Kafka listener's side, over TCP.
pub(super) fn tcp_server(
    identity: &Identity,
    client_auth: ClientAuth,
) -> Result<ServerConfig, TlsConfigError> {
    let verifier: Arc<dyn ClientCertVerifier> = match client_auth {
        ClientAuth::Required => client_verifier(identity)?.build()?,
        ClientAuth::Requested => client_verifier(identity)?.allow_unauthenticated().build()?,
        ClientAuth::None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Own(Arc::clone(identity.certified_key()))));
    forget_sessions(&mut config);
    Ok(config)
}

fn forget_sessions(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
}

fn client_verifier(
    identity: &Identity,
) -> Result<rustls::server::ClientCertVerifierBuilder, TlsConfigError> {
    Ok(WebPkiClientVerifier::builder_with_provider(
        Arc::clone(identity.roots()),
        Arc::clone(provider()),
    ))
}

/// Whether `certificate` was signed by one of `roots`, whatever the time: a certificate out of its dates is another
/// complaint.
pub(super) fn chains_to(
    roots: &Arc<RootCertStore>,
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> bool {
    let Ok(verifier) =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider()))
            .build()
    else {
        return false;
    };
    !matches!(
        verifier.verify_client_cert(certificate, intermediates, UnixTime::now()),
        Err(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer
                | CertificateError::BadSignature
                | CertificateError::BadEncoding
        ))
    )
}

/// Why a client refused a server's certificate, with the facts that the error text of a failed handshake has lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerRefused {
    UnknownCa { issuer: String },
    OutsideValidity { info: Box<CertificateInfo> },
    HostNotNamed { names: Vec<String> },
    NotANode { found: Option<PeerIdentity> },
    WrongNode { found: NodeId },
    BadRole { source: InvalidCertificate },
    Other { text: String },
}

/// Where a verifier leaves its reason. One per dial.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal(Arc<Mutex<Option<ServerRefused>>>);

impl Refusal {
    pub(super) fn take(&self) -> Option<ServerRefused> {
        self.0.lock().ok().and_then(|mut slot| slot.take())
    }

    fn set(&self, reason: ServerRefused) {
        if let Ok(mut slot) = self.0.lock() {
            *slot = Some(reason);
        }
    }
}

/// Chain, dates and host as WebPKI checks them; then that the certificate is a node's, and the expected one's.
#[derive(Debug)]
struct NodeVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    expected: Option<NodeId>,
    refusal: Refusal,
}

impl NodeVerifier {
    fn check_role(&self, certificate: &CertificateDer<'_>) -> Result<(), ServerRefused> {
        let found = peer_identity(std::slice::from_ref(certificate))
            .map_err(|source| ServerRefused::BadRole { source })?;
        match (found, self.expected) {
            (PeerIdentity::Node(found), Some(expected)) if found != expected => {
                Err(ServerRefused::WrongNode { found })
            }
            (PeerIdentity::Node(_), _) => Ok(()),
            (found, _) => Err(ServerRefused::NotANode { found: Some(found) }),
        }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self
            .webpki
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .inspect_err(|error| self.refusal.set(refused(error, end_entity)))?;
        self.check_role(end_entity).map_err(|reason| {
            self.refusal.set(reason);
            rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        })?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

fn refused(error: &rustls::Error, certificate: &CertificateDer<'_>) -> ServerRefused {
    let info = CertificateInfo::parse(certificate);
    let other = || ServerRefused::Other {
        text: error.to_string(),
    };
    let rustls::Error::InvalidCertificate(problem) = error else {
        return other();
    };
    match (problem, info) {
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, info) => {
            ServerRefused::UnknownCa {
                issuer: info.map_or_else(|_| "an unreadable name".into(), |info| info.issuer),
            }
        }
        (
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
            Ok(info),
        ) => ServerRefused::OutsideValidity {
            info: Box::new(info),
        },
        (
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            Ok(info),
        ) => ServerRefused::HostNotNamed { names: info.hosts },
        (
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
            info,
        ) => ServerRefused::NotANode {
            found: info.ok().and_then(|info| info.identity.ok()),
        },
        _ => other(),
    }
}

/// This end's certificate, for whoever asks.
pub(super) fn own_certificate(identity: &Identity) -> Arc<dyn ResolvesClientCert> {
    Arc::new(Own(Arc::clone(identity.certified_key())))
}

/// Shows our one certificate to whoever asks. rustls' hints (names, authorities) are passed over on purpose: a peer of
/// another CA should hear from TLS that the certificate is not its CA's, and not that there was none.
#[derive(Debug)]
struct Own(Arc<CertifiedKey>);

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
