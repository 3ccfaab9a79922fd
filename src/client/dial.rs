//! How a client gets a QUIC connection. Certificates and sockets are the dialler's affair.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::error::{ConnectCause, ConnectError};

/// The protocol that a client asks for (ALPN): Kafka connections as bidirectional streams, version 1.
pub const CLIENT_ALPN: &[u8] = b"quorate-client/1";

/// Makes connections. Called again for each new connection, so it may pick up rotated certificates.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `address` (`host:port`), handshake included. The caller limits the time that it may take and spaces
    /// its attempts.
    fn dial<'a>(
        &'a self,
        address: &'a str,
    ) -> BoxFuture<'a, Result<quinn::Connection, ConnectError>>;
}

/// Dials from one endpoint with one configuration, which must offer [`CLIENT_ALPN`]. A host name with several addresses
/// is tried at each of them in turn.
#[derive(Clone, Debug)]
pub struct EndpointDialer {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
}

impl EndpointDialer {
    pub fn new(endpoint: quinn::Endpoint, config: quinn::ClientConfig) -> EndpointDialer {
        EndpointDialer { endpoint, config }
    }

    async fn connect(&self, address: &str) -> Result<quinn::Connection, ConnectCause> {
        let host = host_of(address).ok_or_else(|| ConnectCause::InvalidAddress {
            address: address.to_owned(),
        })?;
        let found = tokio::net::lookup_host(address)
            .await
            .map_err(|error| ConnectCause::Resolve(Arc::new(error)))?;
        let mut last = ConnectCause::NoAddress;
        for remote in found {
            let connecting = self
                .endpoint
                .connect_with(self.config.clone(), remote, host);
            last = match connecting {
                Ok(connecting) => match connecting.await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => ConnectCause::Lost(error),
                },
                Err(error) => ConnectCause::Start(error),
            };
        }
        Err(last)
    }
}

impl Dialer for EndpointDialer {
    fn dial<'a>(
        &'a self,
        address: &'a str,
    ) -> BoxFuture<'a, Result<quinn::Connection, ConnectError>> {
        Box::pin(async move {
            self.connect(address).await.map_err(|cause| ConnectError {
                address: address.to_owned(),
                cause,
            })
        })
    }
}

/// The host of `host:port`, or of `[v6 address]:port`, as a certificate names it. `None` where it has another form.
fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_taken_from_addresses() {
        assert_eq!(host_of("node-1.example:9000"), Some("node-1.example"));
        assert_eq!(host_of("[::1]:9000"), Some("::1"));
        for bad in [
            "node-1",
            "node-1:",
            "node:70000",
            "::1:9000",
            ":9000",
            "[::1:9",
        ] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }
}
