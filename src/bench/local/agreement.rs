//! Whether the replicas of a topic hold the same, as `quorate log digest` tells it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::folder::NodePlan;
use crate::storage::RealFileSystem;
use crate::storage::inspect::{PartitionView, inspect};
use crate::types::{NodeId, Offset, PartitionIndex, TopicName};

/// One partition, compared over its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agreement {
    pub partition: PartitionIndex,
    /// Where the longest replica's committed records end.
    pub committed: u64,
    /// Over those.
    pub digest: String,
    pub replicas: Vec<Replica>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replica {
    pub node: NodeId,
    /// Where the records end that this replica knows to be committed.
    pub committed: u64,
    /// Whether it holds the same as the longest replica, as far as it reaches.
    pub agrees: bool,
    /// What kept it from being read, or damage.
    pub fault: Option<String>,
}

impl Agreement {
    /// Whether every replica agrees as far as it reaches, and none is damaged.
    pub fn agrees(&self) -> bool {
        self.replicas.iter().all(|replica| replica.agrees)
    }
}

/// Compares the stopped nodes' replicas of a topic. A node whose data cannot be read has no replica.
pub fn compare(nodes: &[NodePlan], topic: &TopicName) -> Vec<Agreement> {
    let mut partitions: BTreeMap<PartitionIndex, Vec<(NodeId, PartitionView)>> = BTreeMap::new();
    for node in nodes {
        let views = match inspect(&RealFileSystem, &node.data_dir) {
            Ok(inspection) => inspection.partitions,
            Err(error) => {
                tracing::warn!(node = %node.id, %error, "the data of a node cannot be read");
                continue;
            }
        };
        for view in views.into_iter().filter(|view| view.topic == *topic) {
            let replicas = partitions.entry(view.id.partition).or_default();
            replicas.push((node.id, view));
        }
    }
    partitions
        .into_iter()
        .map(|(partition, replicas)| compare_partition(partition, &replicas))
        .collect()
}

fn compare_partition(partition: PartitionIndex, views: &[(NodeId, PartitionView)]) -> Agreement {
    let committed = |view: &PartitionView| view.high_watermark.unwrap_or(Offset::ZERO);
    let longest = views.iter().max_by_key(|(_, view)| committed(view));
    let Some((_, longest)) = longest else {
        return Agreement {
            partition,
            committed: 0,
            digest: String::new(),
            replicas: Vec::new(),
        };
    };
    let whole = Digested::read(longest, None, None);
    let replicas = views.iter().map(|(node, view)| {
        let end = committed(view);
        let own = Digested::read(view, None, Some(end));
        let agrees = if own.start == whole.start && end == committed(longest) {
            own.digest == whole.digest
        } else {
            // Compared over what both have.
            let from = Some(own.start.max(whole.start));
            let read = |view| Digested::read(view, from, Some(end)).digest;
            read(view) == read(longest)
        };
        Replica {
            node: *node,
            committed: end.get(),
            agrees: agrees && own.fault.is_none(),
            fault: own.fault,
        }
    });
    Agreement {
        partition,
        committed: committed(longest).get(),
        replicas: replicas.collect(),
        digest: whole.digest,
    }
}

struct Digested {
    start: Offset,
    digest: String,
    fault: Option<String>,
}

impl Digested {
    fn read(view: &PartitionView, from: Option<Offset>, to: Option<Offset>) -> Digested {
        match view.digest(&RealFileSystem, from, to) {
            Ok(found) => Digested {
                start: found.log_start_offset,
                digest: found.digest,
                fault: found.damage.first().map(|damage| {
                    format!(
                        "{} is damaged at byte {}: {}",
                        damage.path.display(),
                        damage.byte,
                        damage.cause
                    )
                }),
            },
            Err(error) => Digested {
                start: Offset::ZERO,
                digest: String::new(),
                fault: Some(error.to_string()),
            },
        }
    }
}
