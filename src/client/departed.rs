//! Noticing that a node which owes an answer will not give it: another one leads by now, or it is itself to be had elsewhere.

use std::time::Duration;

use tokio::time::Instant;

use super::Client;
use super::error::ClientError;
use super::metadata::{ClusterView, PartitionName};
use crate::types::{ErrorCode, NodeId, TopicName};

/// A node that answers nothing for this long, while requests wait there, may have ceased to lead, or have moved: another
/// node is asked. A commit that waits for a slow disk or a far replica may take as long, so this alone gives nothing up.
pub(super) const SUSPECT_AFTER: Duration = Duration::from_millis(150);
/// While a node has been silent for less than this, its successor may be found any moment, and the pauses between two
/// questions do not grow beyond those of [`SUSPECT_ROUNDS`] rounds: 200 ms by default.
pub(super) const SUSPECT_FOR: Duration = Duration::from_secs(10);
pub(super) const SUSPECT_ROUNDS: u32 = 3;

impl Client {
    /// Ends when one of `partitions` is led by another node than `node`, or `node` is to be had elsewhere than at `address`. A
    /// node that was killed, was cut off or has moved answers nothing and refuses nothing: its answer would be waited for
    /// until the request's time is over.
    ///
    /// The first look is after `patience`: by then the answer should be there.
    pub(super) async fn departed(
        &self,
        node: NodeId,
        address: &str,
        partitions: &[PartitionName],
        patience: Duration,
    ) -> ClientError {
        let mut topics: Vec<TopicName> = partitions.iter().map(|name| name.topic.clone()).collect();
        topics.sort_unstable();
        topics.dedup();
        tokio::time::sleep(patience).await;
        let silent_since = Instant::now();
        let mut looks = 0;
        loop {
            self.note_silence(node, Instant::now() + SUSPECT_FOR);
            // What cannot be asked now can be asked at the next turn.
            if let Ok((view, _)) = self.refresh(&topics, false).await
                && has_departed(&view, node, address, partitions)
            {
                return ClientError::Refused {
                    what: format!("waiting for node {node} at {address}"),
                    code: ErrorCode::NotLeaderOrFollower,
                    message: None,
                };
            }
            looks += 1;
            if silent_since.elapsed() < SUSPECT_FOR {
                looks = looks.min(SUSPECT_ROUNDS);
            }
            tokio::time::sleep(self.wait_after(looks)).await;
        }
    }
}

/// Whether one of `partitions` is led by another node than `node`, or `node` is to be had elsewhere than at `address`.
pub(super) fn has_departed<'a>(
    view: &ClusterView,
    node: NodeId,
    address: &str,
    partitions: impl IntoIterator<Item = &'a PartitionName>,
) -> bool {
    let is_led_by_another = partitions.into_iter().any(|name| {
        view.leader(&name.topic, name.partition)
            .is_some_and(|(leader, _, _)| leader != node)
    });
    let is_elsewhere = view.nodes.get(&node).is_some_and(|now| now != address);
    is_led_by_another || is_elsewhere
}
