//! `TOPIC` or `TOPIC:PARTITION`, as commands name partitions.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::admin::{NodeStatus, PartitionStatus};
use crate::types::{PartitionIndex, TopicName, TopicPartition};

/// A topic, or one partition of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) topic: TopicName,
    /// `None`: every partition.
    pub(super) partition: Option<PartitionIndex>,
}

#[derive(Debug, Error)]
#[error("{text:?} names no partition: write TOPIC or TOPIC:PARTITION, such as orders:0")]
pub(super) struct InvalidPlace {
    text: String,
}

impl FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let invalid = || InvalidPlace {
            text: text.chars().take(300).collect(),
        };
        let (topic, partition) = match text.split_once(':') {
            Some((topic, partition)) => {
                let index = partition.parse().ok().and_then(PartitionIndex::from_wire);
                (topic, Some(index.ok_or_else(invalid)?))
            }
            None => (text, None),
        };
        Ok(Place {
            topic: TopicName::new(topic).map_err(|_| invalid())?,
            partition,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            Some(partition) => write!(f, "{}:{partition}", self.topic),
            None => self.topic.fmt(f),
        }
    }
}

impl Place {
    /// The partitions that are meant. An error where there are none.
    pub(super) fn find<'a>(
        &self,
        status: &'a NodeStatus,
    ) -> anyhow::Result<Vec<&'a PartitionStatus>> {
        let found: Vec<&PartitionStatus> = status
            .partitions
            .iter()
            .filter(|known| {
                known.topic == self.topic
                    && self.partition.is_none_or(|index| index == known.partition)
            })
            .collect();
        if found.is_empty() {
            anyhow::bail!("there is no partition {self}: \"quorate topic list\" shows the topics");
        }
        Ok(found)
    }
}

pub(super) fn id(partition: &PartitionStatus) -> TopicPartition {
    TopicPartition {
        topic: partition.topic_id,
        partition: partition.partition,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["orders", "orders:0", "a.b-c_d:17"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["", ":1", "orders:", "orders:x", "orders:-1", "a/b:0"] {
            let error = text.parse::<Place>().unwrap_err();
            assert!(error.to_string().contains("TOPIC:PARTITION"), "{error}");
        }
    }
}
