//! Names of Kafka listeners, checked once where they enter.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// By what name a node's Kafka listener is known in the cluster: 1 to 32 of `[a-z0-9_-]`, beginning with a letter.
///
/// Kafka does not tell names apart by case alone, and neither does this: a name is kept in lower case, however it was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerName(Arc<str>);

/// Why a listener's name was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidListenerName {
    #[error("a listener's name cannot be empty")]
    Empty,
    #[error(
        "a listener's name has at most {} characters and this one has {length}",
        ListenerName::MAX_LENGTH
    )]
    TooLong { length: usize },
    #[error("a listener's name begins with a letter, not {character:?}")]
    NotALetterFirst { character: char },
    #[error("a listener's name is made of letters, digits, '_' and '-', not {character:?}")]
    IllegalCharacter { character: char },
}

impl ListenerName {
    /// In characters; all legal ones are ASCII, so in bytes too.
    pub const MAX_LENGTH: usize = 32;

    pub fn new(name: &str) -> Result<ListenerName, InvalidListenerName> {
        if name.len() > Self::MAX_LENGTH {
            return Err(InvalidListenerName::TooLong {
                length: name.chars().count(),
            });
        }
        match name.chars().next() {
            None => return Err(InvalidListenerName::Empty),
            Some(character) if !character.is_ascii_alphabetic() => {
                return Err(InvalidListenerName::NotALetterFirst { character });
            }
            Some(_) => {}
        }
        match name
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-'))
        {
            Some(character) => Err(InvalidListenerName::IllegalCharacter { character }),
            None => Ok(ListenerName(name.to_ascii_lowercase().into())),
        }
    }

    /// The name of the listener of a node that has one and gave it no name, `default`; and of the one listener that nodes had
    /// before they could have several.
    pub fn unnamed() -> ListenerName {
        static UNNAMED: LazyLock<ListenerName> = LazyLock::new(|| ListenerName("default".into()));
        UNNAMED.clone()
    }

    pub fn is_unnamed(&self) -> bool {
        *self == Self::unnamed()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for ListenerName {
    type Err = InvalidListenerName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ListenerName::new(text)
    }
}

impl Serialize for ListenerName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ListenerName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        ListenerName::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_begins_with_a_letter_and_has_no_case() {
        for good in ["a", "default", "internal-2", "a_b", &"x".repeat(32)] {
            assert_eq!(ListenerName::new(good).unwrap().as_str(), good);
        }
        assert_eq!(ListenerName::new("EXTERNAL").unwrap().as_str(), "external");
        assert!(ListenerName::new("Default").unwrap().is_unnamed());
        for bad in ["", "1a", "-a", "a b", "a.b", "ä", "a=", &"x".repeat(33)] {
            assert!(ListenerName::new(bad).is_err(), "{bad:?}");
        }
    }
}
