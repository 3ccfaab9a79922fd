//! The Kafka listeners that a node is started with.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::metadata::{Endpoint, MAX_LISTENERS};
use crate::transport::ClientAuth;
use crate::types::ListenerName;

/// A TCP listener for Kafka clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaListener {
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where clients are told to find it; `None`: `listen` itself, which then is no wildcard address.
    pub advertise: Option<Endpoint>,
    pub security: KafkaSecurity,
    /// Whether clients that show no certificate must log in with a name and a password.
    pub sasl: bool,
    /// Plaintext is served to whoever reaches the machine, because the operator has said that it is to be.
    pub plaintext_beyond_loopback: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KafkaSecurity {
    Tls(ClientAuth),
    /// Only on a loopback address, unless the listener says otherwise of itself: whoever reaches the port may read and, where
    /// no login is wanted, write every topic.
    Plaintext,
}

impl KafkaListener {
    /// What Kafka calls it in `listener.security.protocol.map`.
    pub(super) fn security_protocol(&self) -> &'static str {
        match (self.security, self.sasl) {
            (KafkaSecurity::Tls(_), false) => "SSL",
            (KafkaSecurity::Tls(_), true) => "SASL_SSL",
            (KafkaSecurity::Plaintext, false) => "PLAINTEXT",
            (KafkaSecurity::Plaintext, true) => "SASL_PLAINTEXT",
        }
    }
}

/// Listeners that cannot work. Nothing was started or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ListenersError {
    #[error("{count} Kafka listeners are configured: a node has at most {MAX_LISTENERS}")]
    TooMany { count: usize },
    #[error(
        "clients cannot dial {address}, which stands for every address of this machine: say with {how} by which name and port \
         they reach the Kafka listener {listener}"
    )]
    WildcardAdvertised {
        listener: ListenerName,
        address: SocketAddr,
        how: &'static str,
    },
    #[error(
        "the Kafka listener {listener} listens on port 0, any free one, and advertises {advertise}: name the port on which it \
         is to listen"
    )]
    PortNotNamed {
        listener: ListenerName,
        advertise: Endpoint,
    },
    #[error(
        "the Kafka listener {listener} cannot be dialled at port 0 of {host}: advertise another port"
    )]
    AdvertisedPortZero {
        listener: ListenerName,
        host: String,
    },
    #[error(
        "a plaintext Kafka listener at {address} would be open to everyone who can reach it: let {listener} listen on 127.0.0.1, or \
         use TLS; where the network itself keeps strangers out, say so of a named listener with plaintext_beyond_loopback"
    )]
    PlaintextNotLoopback {
        listener: ListenerName,
        address: SocketAddr,
    },
    #[error(
        "two listeners, {first} and {second}, cannot both have TCP port {port} of the same address: give one another port"
    )]
    SameAddress {
        first: String,
        second: String,
        port: u16,
    },
}

/// Refuses what cannot work. `admin` is the address of the node's own listener for HTTP, whose port no other may have.
pub(super) fn check(
    listeners: &BTreeMap<ListenerName, KafkaListener>,
    admin: Option<SocketAddr>,
) -> Result<(), ListenersError> {
    if listeners.len() > MAX_LISTENERS {
        return Err(ListenersError::TooMany {
            count: listeners.len(),
        });
    }
    for (name, listener) in listeners {
        check_alone(name, listener)?;
    }
    let mut addresses: Vec<(&str, SocketAddr)> = listeners
        .iter()
        .map(|(name, listener)| (name.as_str(), listener.listen))
        .collect();
    addresses.extend(admin.map(|address| ("the admin endpoint", address)));
    for (index, (first, address)) in addresses.iter().enumerate() {
        let same = addresses[index + 1..]
            .iter()
            .find(|(_, other)| overlap(*address, *other));
        if let Some((second, _)) = same {
            return Err(ListenersError::SameAddress {
                first: (*first).to_owned(),
                second: (*second).to_owned(),
                port: address.port(),
            });
        }
    }
    Ok(())
}

fn check_alone(name: &ListenerName, listener: &KafkaListener) -> Result<(), ListenersError> {
    let address = listener.listen;
    match &listener.advertise {
        None if address.ip().is_unspecified() => {
            return Err(ListenersError::WildcardAdvertised {
                listener: name.clone(),
                address,
                how: match name.is_unnamed() {
                    true => "--kafka-advertise HOST:PORT",
                    false => "advertise",
                },
            });
        }
        None => {}
        Some(advertise) if advertise.port == 0 => {
            return Err(ListenersError::AdvertisedPortZero {
                listener: name.clone(),
                host: advertise.host.clone(),
            });
        }
        Some(advertise) if address.port() == 0 => {
            return Err(ListenersError::PortNotNamed {
                listener: name.clone(),
                advertise: advertise.clone(),
            });
        }
        Some(_) => {}
    }
    if listener.security == KafkaSecurity::Plaintext
        && !address.ip().is_loopback()
        && !listener.plaintext_beyond_loopback
    {
        return Err(ListenersError::PlaintextNotLoopback {
            listener: name.clone(),
            address,
        });
    }
    Ok(())
}

/// Whether one socket takes what is sent to the other. Port 0 is a free one each time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    // An IPv6 socket takes IPv4 as well.
    let covers =
        |wide: IpAddr, other: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || other.is_ipv4());
    a.port() != 0
        && a.port() == b.port()
        && (a.ip() == b.ip() || covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(listen: &str) -> KafkaListener {
        KafkaListener {
            listen: listen.parse().unwrap(),
            advertise: None,
            security: KafkaSecurity::Tls(ClientAuth::Required),
            sasl: false,
            plaintext_beyond_loopback: false,
        }
    }

    fn checked(listeners: &[(&str, KafkaListener)]) -> Result<(), ListenersError> {
        let named = listeners
            .iter()
            .map(|(name, listener)| (ListenerName::new(name).unwrap(), listener.clone()))
            .collect();
        check(&named, Some("127.0.0.1:9600".parse().unwrap()))
    }

    #[test]
    fn a_wildcard_address_needs_an_advertised_one() {
        let mut internal = listener("0.0.0.0:9092");
        assert!(matches!(
            checked(&[("internal", internal.clone())]),
            Err(ListenersError::WildcardAdvertised {
                how: "advertise",
                ..
            })
        ));
        internal.advertise = Some(Endpoint {
            host: "node1.example".to_owned(),
            port: 9092,
        });
        assert_eq!(checked(&[("internal", internal)]), Ok(()));
    }

    #[test]
    fn an_advertised_port_is_one_that_can_be_dialled() {
        let mut internal = listener("127.0.0.1:0");
        assert_eq!(checked(&[("internal", internal.clone())]), Ok(()));
        internal.advertise = Some(Endpoint {
            host: "node1.example".to_owned(),
            port: 9092,
        });
        assert!(matches!(
            checked(&[("internal", internal.clone())]),
            Err(ListenersError::PortNotNamed { .. })
        ));
        internal.listen.set_port(9092);
        assert_eq!(checked(&[("internal", internal.clone())]), Ok(()));
        internal.advertise.as_mut().unwrap().port = 0;
        assert!(matches!(
            checked(&[("internal", internal)]),
            Err(ListenersError::AdvertisedPortZero { .. })
        ));
    }

    #[test]
    fn plaintext_stays_on_this_machine_unless_it_is_said_that_it_may_leave() {
        for sasl in [false, true] {
            for (listen, fine) in [("127.0.0.1:9092", true), ("192.0.2.1:9092", false)] {
                let mut open = listener(listen);
                open.security = KafkaSecurity::Plaintext;
                open.sasl = sasl;
                assert_eq!(checked(&[("a", open.clone())]).is_ok(), fine, "{listen}");
                open.plaintext_beyond_loopback = true;
                assert_eq!(checked(&[("a", open)]), Ok(()), "{listen}");
            }
        }
    }

    #[test]
    fn no_two_listeners_have_one_address() {
        let pair = |a: &str, b: &str| {
            let advertise = Some(Endpoint {
                host: "node1.example".to_owned(),
                port: 1,
            });
            let [a, b] = [a, b].map(|listen| KafkaListener {
                advertise: (!listen.ends_with(":0"))
                    .then(|| advertise.clone())
                    .flatten(),
                ..listener(listen)
            });
            checked(&[("a", a), ("b", b)]).is_ok()
        };
        assert!(pair("127.0.0.1:9092", "127.0.0.1:9093"));
        assert!(pair("127.0.0.1:9092", "127.0.0.2:9092"));
        assert!(pair("127.0.0.1:0", "127.0.0.1:0"));
        assert!(pair("0.0.0.0:9092", "[::1]:9092"));
        assert!(!pair("127.0.0.1:9092", "127.0.0.1:9092"));
        assert!(!pair("0.0.0.0:9092", "127.0.0.1:9092"));
        assert!(!pair("127.0.0.1:9092", "[::]:9092"));
        let error = checked(&[("a", listener("127.0.0.1:9600"))]).unwrap_err();
        assert!(error.to_string().contains("admin"), "{error}");
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        let listeners = names.map(|name| (name, listener("127.0.0.1:0")));
        assert_eq!(checked(&listeners[..MAX_LISTENERS]), Ok(()));
        assert!(matches!(
            checked(&listeners),
            Err(ListenersError::TooMany { count: 9 })
        ));
    }
}
