//! One configured Kafka listener, looked at from this machine: its port, where clients are told to find it, its certificate.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::doctor::Verdict;
use crate::metadata::Endpoint;
use crate::node::{KafkaListener, KafkaSecurity};
use crate::transport::{Identity, LookFailure, PeerIdentity, look_over_tcp, own_certificate_names};
use crate::types::{ListenerName, NodeId};

/// For a connection, and for a TLS handshake on it.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct KafkaPort {
    node: NodeId,
    name: ListenerName,
    address: SocketAddr,
    /// Where clients are told to find it.
    advertised: Endpoint,
    tls: bool,
    /// Of the port, a moment ago.
    bound: Result<(), io::Error>,
}

impl KafkaPort {
    /// Tries whether the port can be had, and gives it back.
    pub(super) fn new(node: NodeId, name: ListenerName, listener: &KafkaListener) -> KafkaPort {
        let address = listener.listen;
        KafkaPort {
            node,
            name,
            address,
            advertised: listener.advertise.clone().unwrap_or_else(|| Endpoint {
                host: address.ip().to_string(),
                port: address.port(),
            }),
            tls: matches!(listener.security, KafkaSecurity::Tls(_)),
            bound: TcpListener::bind(address).map(drop),
        }
    }

    /// What comes first of all that is wrong. Without an identity, nothing is said of certificates.
    pub(super) async fn examine(&self, identity: Option<&Identity>) -> Verdict {
        let held = match &self.bound {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => true,
            Err(error) => {
                return self.fail(
                    &format!("TCP port {} cannot be bound: {error}", self.address),
                    "listen on an address of this machine, or 0.0.0.0 with an advertised address, and on a port above 1023",
                );
            }
        };
        let identity = identity.filter(|_| self.tls);
        if let Some(identity) = identity
            && !own_certificate_names(identity, &self.advertised.host)
        {
            return self.names_another(&identity.info().hosts);
        }
        if !held {
            return self.ok(&format!(
                "TCP port {} is free: node {} does not run here at present",
                self.address, self.node
            ));
        }
        let stream = match self.connect().await {
            Ok(stream) => stream,
            Err(cause) => {
                return self.fail(
                    &format!(
                        "TCP port {} is held, and clients, who are told to find it at {}, find nobody there: {cause}",
                        self.address, self.advertised
                    ),
                    "correct the listener's advertised address, or let TCP through to it; from where clients are it may look otherwise",
                );
            }
        };
        let Some(identity) = identity else {
            return self.ok(&format!("{} takes connections", self.advertised));
        };
        match look_over_tcp(identity, &self.advertised.host, stream, ANSWER_WITHIN).await {
            Err(failure) => self.no_tls(&failure),
            Ok(seen) => match seen.certificate.as_ref().map(|info| &info.identity) {
                Ok(Ok(PeerIdentity::Node(found))) if *found == self.node && seen.is_of_our_ca => {
                    match (seen.names_host, &seen.certificate) {
                        (false, Ok(info)) => self.names_another(&info.hosts),
                        _ => self.ok(&format!(
                            "node {} answers at {}, and its certificate names that host",
                            self.node, self.advertised
                        )),
                    }
                }
                _ => self.fail(
                    &format!(
                        "at {} another than node {} answers: it shows the certificate of {}",
                        self.advertised,
                        self.node,
                        match &seen.certificate {
                            Ok(info) => info.subject.as_str(),
                            Err(_) => "nobody",
                        }
                    ),
                    &format!(
                        "ss -ltnp 'sport = :{}' names the process: stop it, or correct the listener's address",
                        self.address.port()
                    ),
                ),
            },
        }
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        let to = (self.advertised.host.as_str(), self.advertised.port);
        match timeout(ANSWER_WITHIN, TcpStream::connect(to)).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())),
        }
    }

    fn names_another(&self, names: &[String]) -> Verdict {
        let host = &self.advertised.host;
        let names = match names {
            [] => "no host at all".to_owned(),
            names => names.join(", "),
        };
        self.fail(
            &format!("clients are told to find it at {host}, and the certificate names {names}"),
            &format!(
                "advertise one of these names, or make the certificate anew with quorate cert create-node {} {host} … --overwrite",
                self.node
            ),
        )
    }

    fn no_tls(&self, failure: &LookFailure) -> Verdict {
        let cause = match failure {
            LookFailure::Silent { waited } => format!("no answer within {} s", waited.as_secs()),
            LookFailure::Other { text } => text.clone(),
            other => format!("{other:?}"),
        };
        self.fail(
            &format!(
                "{} takes connections and does no TLS on them: {cause}",
                self.advertised
            ),
            &format!(
                "ss -ltnp 'sport = :{}' names the process that has the port; restart the node if its configuration was changed since",
                self.address.port()
            ),
        )
    }

    fn ok(&self, detail: &str) -> Verdict {
        Verdict::ok(format!("{}: {detail}", self.name))
    }

    fn fail(&self, detail: &str, fix: &str) -> Verdict {
        Verdict::fail(format!("{}: {detail}", self.name), fix)
    }
}
