//! Identities. Each is a newtype so that one cannot be passed where another is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A node's number in the cluster, chosen by the operator: 1 to 2³¹ − 1, because Kafka's broker id is an `i32` and 0 is
/// left free for "not set".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeId(u32);

impl NodeId {
    /// The largest node id that Kafka's `i32` broker id can carry.
    pub const MAX: u32 = i32::MAX as u32;

    /// `None` when `id` is outside `1..=NodeId::MAX`.
    pub const fn new(id: u32) -> Option<NodeId> {
        if id >= 1 && id <= NodeId::MAX {
            Some(NodeId(id))
        } else {
            None
        }
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    /// The id as Kafka's protocol carries it.
    pub const fn as_broker_id(self) -> i32 {
        self.0 as i32
    }

    /// `None` for −1 ("no broker") and for anything else that no node can have.
    pub fn from_broker_id(id: i32) -> Option<NodeId> {
        u32::try_from(id).ok().and_then(NodeId::new)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().and_then(NodeId::new).ok_or(ParseIdError {
            what: "node id",
            expected: "a whole number from 1 to 2147483647",
        })
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = u32::deserialize(deserializer)?;
        NodeId::new(id).ok_or_else(|| serde::de::Error::custom("node id outside 1..=2147483647"))
    }
}

/// Text that is not the identity it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a {what}: expected {expected}")]
pub struct ParseIdError {
    what: &'static str,
    expected: &'static str,
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $repr:ty, $digits:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($repr);

        impl $name {
            /// Makes an id of bits that the caller drew at random; this room draws none itself.
            pub const fn from_random_bits(bits: $repr) -> Self {
                $name(bits)
            }

            pub const fn to_bits(self) -> $repr {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $digits, "x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:0", $digits, "x})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let error = ParseIdError {
                    what: $what,
                    expected: concat!($digits, " lower-case hexadecimal digits"),
                };
                let digits: usize = $digits.parse().unwrap_or(0);
                let canonical = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if text.len() != digits || !text.bytes().all(canonical) {
                    return Err(error);
                }
                <$repr>::from_str_radix(text, 16).map($name).map_err(|_| error)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

random_id!(
    /// A topic's identity for life. A topic that is deleted and made again under the same name has another id, so a
    /// request that names the id never reaches the new topic. It is a Kafka topic id (a UUID's 128 bits) and the name of
    /// the topic's directories on disk.
    TopicId, u128, "32", "topic id"
);
random_id!(
    /// The cluster's identity, made by its first metadata command.
    ClusterId, u128, "32", "cluster id"
);
random_id!(
    /// A data directory's identity, made with the directory. A node that comes back with another directory id has lost
    /// what it acknowledged and neither votes nor leads until an ISR change names it again.
    DirectoryId, u128, "32", "directory id"
);
random_id!(
    /// One start of a node's process. An appointment names (node, incarnation), so that a restarted node never leads in
    /// an epoch that it was appointed to before.
    Incarnation, u64, "16", "incarnation"
);
random_id!(
    /// One follower's subscription to one partition under one leader epoch.
    SessionId, u64, "16", "session id"
);

/// An idempotent producer's id, as Kafka's record batches carry it. Never negative; −1 on the wire means "none" and is
/// an absent `Option<ProducerId>` here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProducerId(i64);

impl ProducerId {
    pub const MIN: ProducerId = ProducerId(0);
    pub const MAX: ProducerId = ProducerId(i64::MAX);

    pub const fn new(id: i64) -> Option<ProducerId> {
        if id >= 0 { Some(ProducerId(id)) } else { None }
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_kafka_broker_ids_without_zero() {
        assert_eq!(NodeId::new(0), None);
        assert_eq!(NodeId::new(NodeId::MAX).unwrap().as_broker_id(), i32::MAX);
        assert_eq!(NodeId::new(NodeId::MAX + 1), None);
        assert_eq!(NodeId::from_broker_id(-1), None);
        assert!("0".parse::<NodeId>().is_err());
        assert!("-3".parse::<NodeId>().is_err());
        assert_eq!("7".parse::<NodeId>().unwrap().get(), 7);
        assert!(serde_json::from_str::<NodeId>("0").is_err());
    }

    #[test]
    fn random_ids_have_one_spelling() {
        let id = TopicId::from_random_bits(0xab);
        let text = id.to_string();
        assert_eq!(text, "000000000000000000000000000000ab");
        assert_eq!(text.parse::<TopicId>().unwrap(), id);
        for wrong in [
            "ab",
            "000000000000000000000000000000AB",
            "+00000000000000000000000000000ab",
        ] {
            assert!(wrong.parse::<TopicId>().is_err(), "{wrong}");
        }
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<TopicId>(&json).unwrap(), id);
    }
}
