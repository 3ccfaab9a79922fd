//! The protocols that a QUIC endpoint speaks, and the reasons for which a connection is closed.

use std::fmt;

use quinn::{Connection, VarInt};

use super::certificate_info::PeerIdentity;

/// What a connection is for. TLS negotiates it (ALPN), so a peer that does not speak this version of this protocol is told
/// so in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// Follower to leader: control stream, lanes, acks, heartbeats. Nodes only.
    Replication,
    /// Node to node: one call a stream. Nodes only.
    Controller,
    /// A client to a node: every bidirectional stream is a Kafka connection.
    Client,
    /// Views and operations that Kafka's API has no word for.
    Admin,
}

impl Alpn {
    pub const ALL: [Alpn; 4] = [
        Alpn::Replication,
        Alpn::Controller,
        Alpn::Client,
        Alpn::Admin,
    ];

    /// Name and version, as TLS carries them.
    pub const fn name(self) -> &'static str {
        match self {
            Alpn::Replication => "quorate-replication/1",
            Alpn::Controller => "quorate-controller/1",
            Alpn::Client => "quorate-client/1",
            Alpn::Admin => "quorate-admin/1",
        }
    }

    pub fn from_name(name: &[u8]) -> Option<Alpn> {
        Alpn::ALL
            .into_iter()
            .find(|alpn| alpn.name().as_bytes() == name)
    }

    /// Whether a peer in this role may speak this protocol. What it may do by it is for the protocol to decide.
    pub const fn admits(self, peer: &PeerIdentity) -> bool {
        match self {
            Alpn::Replication | Alpn::Controller => matches!(peer, PeerIdentity::Node(_)),
            Alpn::Client | Alpn::Admin => true,
        }
    }
}

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! close_reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why one end closed a connection or reset a stream: the application error code that QUIC carries.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseReason {
            $($(#[$doc])* $name,)*
        }

        impl CloseReason {
            pub const fn code(self) -> u32 {
                match self { $(CloseReason::$name => $code,)* }
            }

            /// `None` for a code that this version does not know.
            pub const fn from_code(code: u64) -> Option<CloseReason> {
                match code { $($code => Some(CloseReason::$name),)* _ => None }
            }
        }

        impl fmt::Display for CloseReason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(CloseReason::$name => $text,)* })
            }
        }
    };
}

close_reasons! {
    /// Nothing is wrong: this end has no more use for it.
    Done = 0, "it is no longer needed";
    ShuttingDown = 1, "the node is stopping";
    /// The certificate's role may not speak this protocol.
    WrongRole = 2, "the certificate's role may not use this protocol";
    /// The certificate, or the hello, names another node than expected.
    WrongNode = 3, "the certificate names another node";
    ProtocolError = 4, "the peer broke the protocol";
    /// A limit on connections, streams or bytes was reached.
    Overloaded = 5, "a limit was reached";
    /// A newer connection between the same two took this one's place.
    Superseded = 6, "a newer connection took its place";
    /// A frame or message larger than its cap.
    TooLarge = 7, "a message was larger than allowed";
    /// What was asked for took longer than it may.
    TimedOut = 8, "it took too long";
    InternalError = 9, "an internal error occurred";
    /// The peer belongs to another cluster.
    WrongCluster = 10, "the peer belongs to another cluster";
}

impl CloseReason {
    pub fn var_int(self) -> VarInt {
        VarInt::from_u32(self.code())
    }

    /// Closes the connection and tells the peer why. `detail` may be empty; it reaches the peer's log, so it names nothing
    /// that the peer should not know.
    pub fn close(self, connection: &Connection, detail: &str) {
        connection.close(self.var_int(), detail.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    #[test]
    fn codes_and_names_go_there_and_back() {
        for code in 0..32 {
            if let Some(reason) = CloseReason::from_code(code) {
                assert_eq!(u64::from(reason.code()), code);
            }
        }
        assert_eq!(CloseReason::from_code(u64::MAX), None);
        for alpn in Alpn::ALL {
            assert_eq!(Alpn::from_name(alpn.name().as_bytes()), Some(alpn));
        }
        assert_eq!(Alpn::from_name(b"quorate-client/2"), None);
    }

    #[test]
    fn only_nodes_replicate_and_call() {
        let client = PeerIdentity::Client("x".parse().unwrap());
        let node = PeerIdentity::Node(NodeId::new(1).unwrap());
        assert!(Alpn::ALL.iter().all(|alpn| alpn.admits(&node)));
        let open: Vec<_> = Alpn::ALL.iter().filter(|a| a.admits(&client)).collect();
        assert_eq!(open, [&Alpn::Client, &Alpn::Admin]);
    }
}
