//! Topic names, checked once where they enter.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A legal topic name: 1 to 249 characters of `[a-zA-Z0-9._-]`, not `.` or `..`. Kafka's rule, which also keeps a name
/// from being a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

/// Why a topic name was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidTopicName {
    #[error("a topic name cannot be empty")]
    Empty,
    #[error(
        "a topic name has at most {} characters and this one has {length}",
        TopicName::MAX_LENGTH
    )]
    TooLong { length: usize },
    #[error("a topic cannot be named \".\" or \"..\"")]
    Dots,
    #[error("a topic name is made of letters, digits, '.', '_' and '-', not {character:?}")]
    IllegalCharacter { character: char },
}

impl TopicName {
    /// Kafka's limit, in characters; all legal ones are ASCII, so in bytes too.
    pub const MAX_LENGTH: usize = 249;

    pub fn new(name: &str) -> Result<TopicName, InvalidTopicName> {
        if name.is_empty() {
            return Err(InvalidTopicName::Empty);
        }
        if name.len() > Self::MAX_LENGTH {
            return Err(InvalidTopicName::TooLong { length: name.len() });
        }
        if name == "." || name == ".." {
            return Err(InvalidTopicName::Dots);
        }
        match name
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'))
        {
            Some(character) => Err(InvalidTopicName::IllegalCharacter { character }),
            None => Ok(TopicName(name.into())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for TopicName {
    type Err = InvalidTopicName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TopicName::new(text)
    }
}

impl Serialize for TopicName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TopicName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        TopicName::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_rule_keeps_paths_out() {
        for good in ["a", "orders.v1", "A_b-C.9", "...", &"x".repeat(249)] {
            assert!(TopicName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../etc",
            "a/b",
            "a\\b",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(250),
        ] {
            assert!(TopicName::new(bad).is_err(), "{bad:?}");
        }
    }
}
