//! What a check found.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! checks {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $title:literal;)*) => {
        /// A rung of the ladder: one thing that is looked at. In the order in which they are climbed, because most of them need
        /// the one before.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Check {
            $($(#[$doc])* #[serde(rename = $id)] $name,)*
        }

        impl Check {
            pub const ALL: &[Check] = &[$(Check::$name,)*];

            /// By which programs and the documentation know it.
            pub const fn id(self) -> &'static str {
                match self { $(Check::$name => $id,)* }
            }

            /// For a line on a screen.
            pub const fn title(self) -> &'static str {
                match self { $(Check::$name => $title,)* }
            }
        }
    };
}

checks! {
    /// Flags, environment and configuration file, as far as they can be judged without starting anything.
    Configuration = "configuration", "configuration";
    /// This end's certificate and key, and the CA that it trusts.
    OwnCertificate = "own_certificate", "own certificate";
    /// A UDP socket, and what the kernel grants it.
    UdpSocket = "udp_socket", "UDP socket";
    /// The ports that a configuration names: free, or held, and by whom.
    ListenPort = "listen_port", "listen port";
    /// A node's listener for Kafka clients: its port, whether it answers where clients are told to find it, and its certificate.
    KafkaListener = "kafka_listener", "Kafka listener";
    HostName = "host_name", "host name";
    /// Whether anything answers on the UDP port.
    Reachable = "reachable", "reachable";
    /// Whether packets as large as QUIC's pass.
    PacketSize = "packet_size", "packet size";
    QuicVersion = "quic_version", "QUIC version";
    /// The application protocol and its version (ALPN).
    Protocol = "protocol", "protocol";
    Authority = "ca", "CA";
    /// Whether the certificate is a node's.
    Role = "role", "role";
    HostInCertificate = "san", "host in SAN";
    Validity = "validity", "validity";
    /// What the peer makes of this end's certificate.
    ClientCertificate = "client_certificate", "our certificate";
    NodeId = "node_id", "node id";
    Cluster = "cluster", "cluster";
    Clock = "clock", "clock";
    /// Round trip, loss and MTU, as measured.
    Path = "path", "path";
    /// The UDP socket that the node serves on.
    NodeSocket = "node_udp_socket", "its UDP socket";
    DiskSync = "disk_sync", "disk sync";
    DiskSpace = "disk_space", "disk space";
    /// Attempts of a follower to reach its leader: how many, how the last one ended, when the next one comes.
    Dials = "dials", "dials";
    /// The replication connection between a leader and a follower.
    Link = "link", "link";
    /// Whether a node that was asked to examine its peers has answered.
    Answer = "answer", "answer";
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    /// It could not be looked at, because of something else.
    Skipped,
    /// It works, and not as well as it should.
    Warn,
    /// It is wrong.
    Fail,
}

/// What one check came to, before it is said of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub outcome: Outcome,
    pub detail: String,
    /// What to do about it. There is none exactly where the outcome is [`Outcome::Ok`].
    pub fix: Option<String>,
}

impl Verdict {
    pub fn ok(detail: impl Into<String>) -> Verdict {
        Verdict {
            outcome: Outcome::Ok,
            detail: detail.into(),
            fix: None,
        }
    }

    pub fn warn(detail: impl Into<String>, fix: impl Into<String>) -> Verdict {
        Verdict {
            outcome: Outcome::Warn,
            detail: detail.into(),
            fix: Some(fix.into()),
        }
    }

    pub fn fail(detail: impl Into<String>, fix: impl Into<String>) -> Verdict {
        Verdict {
            outcome: Outcome::Fail,
            detail: detail.into(),
            fix: Some(fix.into()),
        }
    }

    pub fn skipped(detail: impl Into<String>, fix: impl Into<String>) -> Verdict {
        Verdict {
            outcome: Outcome::Skipped,
            detail: detail.into(),
            fix: Some(fix.into()),
        }
    }

    pub fn is_fail(&self) -> bool {
        self.outcome == Outcome::Fail
    }

    pub fn of(self, check: Check, from: &str, target: &str) -> Finding {
        Finding {
            check,
            from: from.to_owned(),
            target: target.to_owned(),
            outcome: self.outcome,
            detail: self.detail,
            fix: self.fix,
        }
    }
}

/// One check of one thing, seen from one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub check: Check,
    /// Who looked: `here`, or `node 2`.
    pub from: String,
    /// What was looked at: `here`, `node 1 at db1:9292`, a directory.
    pub target: String,
    pub outcome: Outcome,
    pub detail: String,
    pub fix: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn checks_have_one_name_each_and_it_is_the_one_in_json() {
        let ids: BTreeSet<_> = Check::ALL.iter().map(|check| check.id()).collect();
        assert_eq!(ids.len(), Check::ALL.len());
        for check in Check::ALL {
            let json = serde_json::to_string(check).unwrap();
            assert_eq!(json, format!("{:?}", check.id()));
        }
    }

    #[test]
    fn whatever_is_not_ok_has_a_fix() {
        assert_eq!(Verdict::ok("x").fix, None);
        for verdict in [
            Verdict::warn("x", "y"),
            Verdict::fail("x", "y"),
            Verdict::skipped("x", "y"),
        ] {
            assert_eq!(verdict.fix.as_deref(), Some("y"));
        }
    }
}
