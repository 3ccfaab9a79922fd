//! TLS over TCP, for the Kafka and the admin listener.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate_info::{InvalidCertificate, PeerIdentity, peer_identity};
use super::identity::Identity;
use super::server::HANDSHAKE_TIMEOUT;
use super::tls::{self, ClientAuth, TlsConfigError};

/// Why a client's TLS handshake failed. For the log: a TLS client is told by an alert.
#[derive(Debug, Error)]
pub enum TcpTlsError {
    #[error(
        "{remote} speaks no TLS: set security.protocol=SSL in a Kafka client and write https:// for the admin endpoint, or \
         let the listener be plaintext"
    )]
    NotTls { remote: SocketAddr },
    #[error(
        "{remote} showed no certificate: give the client one made with `quorate cert create-client`"
    )]
    NoCertificate { remote: SocketAddr },
    #[error("{remote} was refused: {reason}")]
    Refused {
        remote: SocketAddr,
        reason: rustls::Error,
    },
    #[error("{remote} was refused: its certificate cannot be used")]
    BadRole {
        remote: SocketAddr,
        #[source]
        source: InvalidCertificate,
    },
    #[error("{remote} did not finish the TLS handshake in time")]
    TimedOut { remote: SocketAddr },
    #[error("the TLS handshake with {remote} broke off")]
    Io {
        remote: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Takes TLS connections. One for all connections of a listener.
pub struct TcpTls {
    client_auth: ClientAuth,
    acceptor: RwLock<TlsAcceptor>,
}

impl TcpTls {
    pub fn new(identity: &Identity, client_auth: ClientAuth) -> Result<TcpTls, TlsConfigError> {
        Ok(TcpTls {
            client_auth,
            acceptor: RwLock::new(acceptor(identity, client_auth)?),
        })
    }

    /// Shows new connections another certificate. Live ones go on as they are.
    pub fn use_identity(&self, identity: &Identity) -> Result<(), TlsConfigError> {
        let new = acceptor(identity, self.client_auth)?;
        *self
            .acceptor
            .write()
            .unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Does the handshake, in at most [`HANDSHAKE_TIMEOUT`]. The identity is `None` only for a client that showed no
    /// certificate and did not have to. Run it on the connection's own task: a slow client must not keep others waiting.
    pub async fn accept(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> Result<(TlsStream<TcpStream>, Option<PeerIdentity>), TcpTlsError> {
        let acceptor = self
            .acceptor
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Responses are small and awaited; Nagle's algorithm would hold them back.
        let _ = stream.set_nodelay(true);
        let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
            .await
            .map_err(|_| TcpTlsError::TimedOut { remote })?
            .map_err(|error| refused(remote, error))?;
        let peer = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(peer_identity)
            .transpose()
            .map_err(|source| TcpTlsError::BadRole { remote, source })?;
        Ok((stream, peer))
    }
}

fn acceptor(identity: &Identity, client_auth: ClientAuth) -> Result<TlsAcceptor, TlsConfigError> {
    let config = tls::tcp_server(identity, client_auth)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn refused(remote: SocketAddr, source: io::Error) -> TcpTlsError {
    let reason = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(rustls::Error::InvalidMessage(_)) => TcpTlsError::NotTls { remote },
        Some(rustls::Error::NoCertificatesPresented) => TcpTlsError::NoCertificate { remote },
        Some(reason) => TcpTlsError::Refused {
            remote,
            reason: reason.clone(),
        },
        None => TcpTlsError::Io { remote, source },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::transport::testing::Cluster;

    enum Shows {
        Client(&'static str),
        Nothing,
    }

    async fn handshake(
        cluster: &Cluster,
        auth: ClientAuth,
        shows: Shows,
        tls12: bool,
    ) -> Result<Option<PeerIdentity>, TcpTlsError> {
        let kafka = TcpTls::new(&cluster.node_identity(1), auth).unwrap();
        let listener = crate::transport::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let versions = match tls12 {
            true => vec![&rustls::version::TLS12],
            false => vec![&rustls::version::TLS13],
        };
        let identity = cluster.client_identity("x");
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(tls::provider()))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(Arc::clone(identity.roots()));
        let config = match shows {
            Shows::Nothing => builder.with_no_client_auth(),
            Shows::Client(name) => {
                let key = Arc::clone(cluster.client_identity(name).certified_key());
                let resolver = rustls::sign::SingleCertAndKey::from(key);
                builder.with_client_cert_resolver(Arc::new(resolver))
            }
        };
        let connect = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = "localhost".try_into().unwrap();
            let connector = TlsConnector::from(Arc::new(config));
            if let Ok(mut stream) = connector.connect(name, stream).await {
                let _ = stream.write_all(b"ping").await;
                let _ = stream.read(&mut [0; 4]).await;
            }
        };
        let accept = async {
            let (stream, remote) = listener.accept().await.unwrap();
            let (mut stream, peer) = kafka.accept(stream, remote).await?;
            let mut buffer = [0; 4];
            stream.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"ping");
            Ok(peer)
        };
        tokio::join!(connect, accept).1
    }

    #[tokio::test]
    async fn clients_are_known_by_their_certificates_over_both_versions() {
        let cluster = Cluster::new();
        let client = Some(PeerIdentity::Client("ops".parse().unwrap()));
        for tls12 in [false, true] {
            let shows = Shows::Client("ops");
            let peer = handshake(&cluster, ClientAuth::Required, shows, tls12).await;
            assert_eq!(peer.unwrap(), client);
            let peer = handshake(&cluster, ClientAuth::Required, Shows::Nothing, tls12).await;
            assert!(matches!(peer, Err(TcpTlsError::NoCertificate { .. })));
            let peer = handshake(&cluster, ClientAuth::Requested, Shows::Nothing, tls12).await;
            assert_eq!(peer.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_client_without_tls_is_told_apart() {
        let cluster = Cluster::new();
        let kafka = TcpTls::new(&cluster.node_identity(1), ClientAuth::Required).unwrap();
        let listener = crate::transport::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        client.write_all(&[0, 0, 0, 20, 0, 18, 0, 3]).await.unwrap();
        let (stream, remote) = listener.accept().await.unwrap();
        let error = kafka.accept(stream, remote).await.err().unwrap();
        assert!(matches!(error, TcpTlsError::NotTls { .. }), "{error}");
    }
}
