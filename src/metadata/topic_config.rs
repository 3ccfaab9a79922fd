//! The topic configuration that this broker honours: names, meanings and defaults are Kafka's.
//!
//! A name that is not honoured is refused and not stored, so that nobody relies on a setting that does nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::image::MAX_CONFIG_VALUE_BYTES;
use crate::types::quorum;

/// Kafka's default of `max.message.bytes`.
const DEFAULT_MAX_MESSAGE_BYTES: u32 = 1_048_588;
/// The largest `max.message.bytes`: a batch must fit a WAL frame.
const LARGEST_MESSAGE_BYTES: i64 = 16 * 1024 * 1024;
/// The smallest `segment.bytes`. Kafka's is 14, which makes a file of every batch.
const SMALLEST_SEGMENT_BYTES: i64 = 4096;

/// When a replica counts a record as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlushPolicy {
    /// After fdatasync.
    Fsync,
    /// When the kernel has it. A machine that loses power loses such records.
    Os,
}

/// A topic's configuration, typed, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// Whether old segments go by age and size.
    pub delete: bool,
    /// Whether of the records with one key only the last is kept. Then every record must have a key.
    pub compact: bool,
    /// How long a compacted partition keeps a tombstone, in milliseconds.
    pub delete_retention_ms: u64,
    /// How long records are kept, in milliseconds. `None`: for ever.
    pub retention_ms: Option<u64>,
    /// How many bytes a partition keeps. `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// When a segment is closed, by size in bytes.
    pub segment_bytes: u64,
    /// When a segment is closed, by age in milliseconds.
    pub segment_ms: u64,
    /// Log bytes between two index entries.
    pub index_interval_bytes: u64,
    /// The largest record batch, in bytes.
    pub max_message_bytes: u32,
    /// The wish. What holds is `PartitionState::min_insync`, which follows it through the partition's leader. `None`: a
    /// majority of the replication factor.
    pub min_insync_replicas: Option<u32>,
    /// `None`: as the server is configured.
    pub flush: Option<FlushPolicy>,
}

/// Kafka's type of a configuration value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigKind {
    Boolean,
    String,
    Int,
    Long,
    List,
}

impl ConfigKind {
    /// Kafka's number for it in DescribeConfigs.
    pub const fn code(self) -> i8 {
        match self {
            ConfigKind::Boolean => 1,
            ConfigKind::String => 2,
            ConfigKind::Int => 3,
            ConfigKind::Long => 5,
            ConfigKind::List => 7,
        }
    }
}

/// How a list is changed without being said anew. Kafka's APPEND and SUBTRACT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListEdit {
    Append,
    Subtract,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    Topic,
    Default,
}

impl ConfigSource {
    /// Kafka's number for it in DescribeConfigs: DYNAMIC_TOPIC_CONFIG or DEFAULT_CONFIG.
    pub const fn code(self) -> i8 {
        match self {
            ConfigSource::Topic => 1,
            ConfigSource::Default => 5,
        }
    }
}

/// One line of DescribeConfigs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    pub name: &'static str,
    pub value: String,
    /// What holds without a setting.
    pub default: String,
    pub source: ConfigSource,
    pub kind: ConfigKind,
    pub documentation: &'static str,
}

/// What a value may be.
#[derive(Clone, Copy, Debug)]
enum Allowed {
    /// A whole number from the first to the second, both included.
    Range(i64, i64),
    /// One of these words.
    Words(&'static [&'static str]),
}

/// A name that is honoured.
#[derive(Clone, Copy, Debug)]
pub struct ConfigDefinition {
    pub name: &'static str,
    pub kind: ConfigKind,
    /// `None` where the default depends on the topic or the server.
    pub default: Option<&'static str>,
    pub documentation: &'static str,
    allowed: Allowed,
}

/// Every name that is honoured, in alphabetical order.
const DEFINITIONS: &[ConfigDefinition] = &[
    ConfigDefinition {
        name: CLEANUP_POLICY,
        kind: ConfigKind::List,
        default: Some("delete"),
        documentation: "What happens to old segments: \"delete\" removes them by age and size, \"compact\" keeps the last record of each key, \"compact,delete\" does both.",
        allowed: Allowed::Words(&["delete", "compact", "compact,delete", "delete,compact"]),
    },
    ConfigDefinition {
        name: COMPRESSION_TYPE,
        kind: ConfigKind::String,
        default: Some("producer"),
        documentation: "Record batches are kept as the producer compressed them; no other value is available.",
        allowed: Allowed::Words(&["producer"]),
    },
    ConfigDefinition {
        name: DELETE_RETENTION_MS,
        kind: ConfigKind::Long,
        default: Some("86400000"),
        documentation: "How long a compacted partition keeps a record without a value after the first compaction that meets it, in milliseconds.",
        allowed: Allowed::Range(0, i64::MAX),
    },
    ConfigDefinition {
        name: FLUSH,
        kind: ConfigKind::String,
        default: None,
        documentation: "When a replica counts a record as durable: \"fsync\" after fdatasync, \"os\" when the kernel has it. Without a setting, as the server is configured.",
        allowed: Allowed::Words(&["fsync", "os"]),
    },
    ConfigDefinition {
        name: INDEX_INTERVAL_BYTES,
        kind: ConfigKind::Int,
        default: Some("4096"),
        documentation: "Log bytes between two index entries.",
        allowed: Allowed::Range(0, i32::MAX as i64),
    },
    ConfigDefinition {
        name: MAX_MESSAGE_BYTES,
        kind: ConfigKind::Int,
        default: Some("1048588"),
        documentation: "The largest record batch that is taken, in bytes, after compression.",
        allowed: Allowed::Range(0, LARGEST_MESSAGE_BYTES),
    },
    ConfigDefinition {
        name: MESSAGE_TIMESTAMP_TYPE,
        kind: ConfigKind::String,
        default: Some("CreateTime"),
        documentation: "Records carry the time that the producer gave them; no other value is available.",
        allowed: Allowed::Words(&["CreateTime"]),
    },
    ConfigDefinition {
        name: MIN_INSYNC_REPLICAS,
        kind: ConfigKind::Int,
        default: None,
        documentation: "How many in-sync replicas must hold a record durably before acks=all is answered. Without a setting, a majority of the replication factor.",
        allowed: Allowed::Range(1, i32::MAX as i64),
    },
    ConfigDefinition {
        name: RETENTION_BYTES,
        kind: ConfigKind::Long,
        default: Some("-1"),
        documentation: "How many bytes a partition keeps before old segments are deleted; -1 for no limit.",
        allowed: Allowed::Range(-1, i64::MAX),
    },
    ConfigDefinition {
        name: RETENTION_MS,
        kind: ConfigKind::Long,
        default: Some("604800000"),
        documentation: "How long records are kept, in milliseconds; -1 for ever.",
        allowed: Allowed::Range(-1, i64::MAX),
    },
    ConfigDefinition {
        name: SEGMENT_BYTES,
        kind: ConfigKind::Int,
        default: Some("1073741824"),
        documentation: "The size in bytes at which a segment file is closed and the next one begun.",
        allowed: Allowed::Range(SMALLEST_SEGMENT_BYTES, i32::MAX as i64),
    },
    ConfigDefinition {
        name: SEGMENT_MS,
        kind: ConfigKind::Long,
        default: Some("604800000"),
        documentation: "The age in milliseconds at which a segment file is closed, even if it is not full.",
        allowed: Allowed::Range(1, i64::MAX),
    },
    ConfigDefinition {
        name: UNCLEAN_LEADER_ELECTION_ENABLE,
        kind: ConfigKind::Boolean,
        default: Some("false"),
        documentation: "A replica outside the in-sync set never leads by itself; no other value is available.",
        allowed: Allowed::Words(&["false"]),
    },
];

const CLEANUP_POLICY: &str = "cleanup.policy";
const COMPRESSION_TYPE: &str = "compression.type";
const DELETE_RETENTION_MS: &str = "delete.retention.ms";
const FLUSH: &str = "flush";
const INDEX_INTERVAL_BYTES: &str = "index.interval.bytes";
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const MESSAGE_TIMESTAMP_TYPE: &str = "message.timestamp.type";
const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";
const RETENTION_BYTES: &str = "retention.bytes";
const RETENTION_MS: &str = "retention.ms";
const SEGMENT_BYTES: &str = "segment.bytes";
const SEGMENT_MS: &str = "segment.ms";
const UNCLEAN_LEADER_ELECTION_ENABLE: &str = "unclean.leader.election.enable";

/// A setting that is refused. The text is made for the one who set it.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ConfigError {
    #[error(
        "there is no topic setting named {name:?}; the settings are {}",
        names()
    )]
    UnknownName { name: String },
    #[error("{name} cannot be {value:?}: it must be {expected}")]
    InvalidValue {
        name: String,
        /// Cut to a length that is fit to show.
        value: String,
        expected: String,
    },
    #[error("the value of {name} is longer than {MAX_CONFIG_VALUE_BYTES} bytes")]
    TooLong { name: String },
}

impl Default for TopicConfig {
    fn default() -> Self {
        TopicConfig {
            delete: true,
            compact: false,
            delete_retention_ms: 24 * 60 * 60 * 1000,
            retention_ms: Some(7 * 24 * 60 * 60 * 1000),
            retention_bytes: None,
            segment_bytes: 1024 * 1024 * 1024,
            segment_ms: 7 * 24 * 60 * 60 * 1000,
            index_interval_bytes: 4096,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            min_insync_replicas: None,
            flush: None,
        }
    }
}

impl TopicConfig {
    /// Every name that is honoured, in alphabetical order.
    pub const fn definitions() -> &'static [ConfigDefinition] {
        DEFINITIONS
    }

    /// Reads what was set for a topic; what is absent has its default.
    pub fn from_map(set: &BTreeMap<String, String>) -> Result<TopicConfig, ConfigError> {
        let mut config = TopicConfig::default();
        for (name, value) in set {
            config.set(name, value)?;
        }
        Ok(config)
    }

    /// Whether there is a setting of this name.
    pub fn check_name(name: &str) -> Result<(), ConfigError> {
        definition(name).map(|_| ())
    }

    /// Whether `name` may be set to `value`.
    pub fn check(name: &str, value: &str) -> Result<(), ConfigError> {
        TopicConfig::default().set(name, value)
    }

    /// What a setting that is a list comes to once `elements` are added to it, or taken away from it: those it has in
    /// `set`, else by default, and each once. `None` where the setting is no list.
    pub fn edit_list(
        set: &BTreeMap<String, String>,
        name: &str,
        edit: ListEdit,
        elements: &str,
    ) -> Result<Option<String>, ConfigError> {
        let definition = definition(name)?;
        if definition.kind != ConfigKind::List {
            return Ok(None);
        }
        let value = set.get(name).map(String::as_str).or(definition.default);
        let split = |text: &str| -> Vec<String> {
            let parts = text.split(',').map(|part| part.trim().to_owned());
            parts.filter(|part| !part.is_empty()).collect()
        };
        let mut list = split(value.unwrap_or_default());
        for element in split(elements) {
            let present = list.contains(&element);
            match edit {
                ListEdit::Append if !present => list.push(element),
                ListEdit::Append => {}
                ListEdit::Subtract => list.retain(|other| *other != element),
            }
        }
        Ok(Some(list.join(",")))
    }

    /// `m` for a partition with `replication_factor` replicas.
    pub fn min_insync(&self, replication_factor: usize) -> u32 {
        self.min_insync_replicas
            .unwrap_or_else(|| default_min_insync(replication_factor))
    }

    /// Every setting with its value and source, in alphabetical order. `set` holds what was set for the topic;
    /// `server_flush` is the server's own flush policy.
    pub fn describe(
        set: &BTreeMap<String, String>,
        replication_factor: usize,
        server_flush: FlushPolicy,
    ) -> Vec<ConfigEntry> {
        DEFINITIONS
            .iter()
            .map(|definition| {
                let default = match (definition.default, definition.name) {
                    (Some(default), _) => default.to_owned(),
                    (None, MIN_INSYNC_REPLICAS) => {
                        default_min_insync(replication_factor).to_string()
                    }
                    (None, _) => match server_flush {
                        FlushPolicy::Fsync => "fsync".to_owned(),
                        FlushPolicy::Os => "os".to_owned(),
                    },
                };
                let (value, source) = match set.get(definition.name) {
                    Some(value) => (value.clone(), ConfigSource::Topic),
                    None => (default.clone(), ConfigSource::Default),
                };
                ConfigEntry {
                    name: definition.name,
                    value,
                    default,
                    source,
                    kind: definition.kind,
                    documentation: definition.documentation,
                }
            })
            .collect()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let definition = definition(name)?;
        if value.len() > MAX_CONFIG_VALUE_BYTES {
            return Err(ConfigError::TooLong {
                name: name.to_owned(),
            });
        }
        let invalid = |expected: String| ConfigError::InvalidValue {
            name: name.to_owned(),
            value: value.chars().take(64).collect(),
            expected,
        };
        let number = match definition.allowed {
            Allowed::Words(words) => {
                if !words.contains(&value) {
                    let words: Vec<String> = words.iter().map(|w| format!("{w:?}")).collect();
                    return Err(invalid(words.join(" or ")));
                }
                0
            }
            Allowed::Range(from, to) => value
                .parse::<i64>()
                .ok()
                .filter(|number| (from..=to).contains(number))
                .ok_or_else(|| invalid(format!("a whole number from {from} to {to}")))?,
        };
        // Negative only where −1 is allowed, and there it means "no limit".
        let limit = u64::try_from(number).ok();
        let wide = limit.unwrap_or_default();
        let narrow = u32::try_from(wide).unwrap_or(u32::MAX);
        match name {
            CLEANUP_POLICY => {
                self.delete = value.contains("delete");
                self.compact = value.contains("compact");
            }
            DELETE_RETENTION_MS => self.delete_retention_ms = wide,
            RETENTION_MS => self.retention_ms = limit,
            RETENTION_BYTES => self.retention_bytes = limit,
            SEGMENT_BYTES => self.segment_bytes = wide,
            SEGMENT_MS => self.segment_ms = wide,
            INDEX_INTERVAL_BYTES => self.index_interval_bytes = wide,
            MAX_MESSAGE_BYTES => self.max_message_bytes = narrow,
            MIN_INSYNC_REPLICAS => self.min_insync_replicas = Some(narrow),
            FLUSH if value == "os" => self.flush = Some(FlushPolicy::Os),
            FLUSH => self.flush = Some(FlushPolicy::Fsync),
            // The others allow one value only, which is what the broker does.
            _ => {}
        }
        Ok(())
    }
}

/// A majority, as configurations carry it.
fn default_min_insync(replication_factor: usize) -> u32 {
    u32::try_from(quorum::default_min_insync(replication_factor)).unwrap_or(u32::MAX)
}

fn definition(name: &str) -> Result<&'static ConfigDefinition, ConfigError> {
    DEFINITIONS
        .iter()
        .find(|definition| definition.name == name)
        .ok_or_else(|| ConfigError::UnknownName {
            name: name.chars().take(64).collect(),
        })
}

fn names() -> String {
    let names: Vec<&str> = DEFINITIONS.iter().map(|d| d.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_documented_defaults_are_those_that_hold() {
        let documented = DEFINITIONS
            .iter()
            .filter_map(|d| Some((d.name, d.default?)))
            .collect::<Vec<_>>();
        assert_eq!(
            TopicConfig::from_map(&map(&documented)).unwrap(),
            TopicConfig::default()
        );
    }

    #[test]
    fn minus_one_means_no_limit_only_where_kafka_says_so() {
        let config = TopicConfig::from_map(&map(&[("retention.ms", "-1")])).unwrap();
        assert_eq!(config.retention_ms, None);
        for (name, value) in [
            ("segment.ms", "-1"),
            ("segment.bytes", "13"),
            ("retention.bytes", "-2"),
            ("min.insync.replicas", "0"),
            ("min.insync.replicas", "2147483648"),
            ("max.message.bytes", "1e6"),
            ("cleanup.policy", "compress"),
            ("unclean.leader.election.enable", "true"),
            ("flush", ""),
        ] {
            let error = TopicConfig::check(name, value).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn old_segments_go_or_are_compacted_or_both() {
        for (policy, delete, compact) in [
            ("delete", true, false),
            ("compact", false, true),
            ("compact,delete", true, true),
        ] {
            let config = TopicConfig::from_map(&map(&[("cleanup.policy", policy)])).unwrap();
            assert_eq!(
                (config.delete, config.compact),
                (delete, compact),
                "{policy}"
            );
        }
    }

    #[test]
    fn a_list_is_added_to_and_taken_from() {
        use ListEdit::{Append, Subtract};
        let unset = BTreeMap::new();
        let both = map(&[(CLEANUP_POLICY, "compact,delete")]);
        for (set, edit, elements, expected) in [
            (&unset, Append, "compact", "delete,compact"),
            (&unset, Append, "delete", "delete"),
            (&unset, Append, " compact , delete,", "delete,compact"),
            (&both, Append, "compact", "compact,delete"),
            (&both, Subtract, "delete", "compact"),
            (&both, Subtract, "delete,compact", ""),
            (&unset, Subtract, "compact", "delete"),
        ] {
            let edited = TopicConfig::edit_list(set, CLEANUP_POLICY, edit, elements);
            assert_eq!(edited, Ok(Some(expected.to_owned())), "{edit:?} {elements}");
        }
        let edited = TopicConfig::edit_list(&unset, RETENTION_MS, Append, "1");
        assert_eq!(edited, Ok(None));
        assert!(TopicConfig::edit_list(&unset, "colour", Append, "red").is_err());
    }

    #[test]
    fn what_is_not_honoured_is_refused() {
        let error = TopicConfig::check("preallocate", "true").unwrap_err();
        assert!(error.to_string().contains("min.insync.replicas"), "{error}");
        let long = "9".repeat(MAX_CONFIG_VALUE_BYTES + 1);
        assert!(matches!(
            TopicConfig::check("retention.ms", &long),
            Err(ConfigError::TooLong { .. })
        ));
    }

    #[test]
    fn a_description_says_where_a_value_comes_from() {
        let set = map(&[("retention.ms", "5")]);
        let entries = TopicConfig::describe(&set, 5, FlushPolicy::Os);
        let entry = |name| entries.iter().find(|e| e.name == name).unwrap();
        assert_eq!(entry("retention.ms").source, ConfigSource::Topic);
        assert_eq!(entry("retention.ms").value, "5");
        assert_eq!(entry("retention.ms").default, "604800000");
        assert_eq!(entry("min.insync.replicas").value, "3");
        assert_eq!(entry("min.insync.replicas").source, ConfigSource::Default);
        assert_eq!(entry("flush").value, "os");
        assert!(entries.is_sorted_by_key(|e| e.name));
    }
}
