//! One arm's cluster: a node on each host of a lab, and a client beside the leader.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::{Arm, NODES};
use crate::bench::BenchError;
use crate::bench::lab::Lab;
use crate::bench::local::{
    Folder, Processes, Seat, Watchers, Wishes, connect, create_topic, start_up,
};
use crate::client::{Client, NewTopic};
use crate::types::{NodeId, TopicName};

/// How often nodes are asked what they know.
const ASK_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Stage {
    pub(super) client: Client,
    pub(super) topic: TopicName,
    partitions: u32,
    watchers: Watchers,
}

/// The folder of an arm's nodes.
pub(super) fn open_folder(lab: &Lab, arm: &Arm, dir: &Path) -> Result<Folder, BenchError> {
    let mut flags = arm.flags();
    // A leadership that goes back to the preferred replica by itself would be an election that nobody asked for.
    flags.extend(["--auto-leader-rebalance-enable", "false"].map(str::to_owned));
    let seats = lab.hosts().iter().map(|host| Seat {
        address: host.address.into(),
        command: lab.command_prefix(host.number),
    });
    let wishes = Wishes {
        name: "bench",
        nodes: Some(NODES),
        flags,
        seats: seats.collect(),
        ..Wishes::default()
    };
    Ok(Folder::open(Some(dir), wishes)?)
}

impl Stage {
    /// Waits until the nodes are a cluster, and makes the topic, led by node 1, with everyone in sync. The links are to be well.
    pub(super) async fn set(
        folder: &mut Folder,
        processes: &mut Processes,
        partitions: u32,
        within: Duration,
    ) -> Result<Stage, BenchError> {
        let watchers = start_up(within, folder, processes, ASK_EVERY, |_| Ok(()), |_| {}).await?;
        let client = connect(folder).await?;
        let topic: TopicName = "arms"
            .parse()
            .map_err(|_| BenchError::Failed("a topic cannot be called arms".to_owned()))?;
        let replicas: Vec<NodeId> = folder.nodes().iter().map(|node| node.id).collect();
        let mut new = NewTopic::new(topic.clone());
        new.assignment = Some(vec![replicas; partitions as usize]);
        new.configs
            .insert("min.insync.replicas".to_owned(), "2".to_owned());
        create_topic(&client, &new, within)
            .await
            .map_err(BenchError::client("create the topic"))?;
        let stage = Stage {
            client,
            topic,
            partitions,
            watchers,
        };
        if !stage.until_whole(within).await {
            return Err(BenchError::Failed(format!(
                "not all replicas were in sync under node 1 within {} s: {:?}",
                within.as_secs(),
                stage.watchers.partitions(&stage.topic)
            )));
        }
        Ok(stage)
    }

    fn is_whole(&self) -> bool {
        let partitions = self.watchers.partitions(&self.topic);
        partitions.len() == self.partitions as usize
            && partitions.iter().all(|partition| {
                partition.leader == NodeId::new(1) && partition.isr.len() == usize::from(NODES)
            })
    }

    /// Waits until every partition is led by node 1 with every replica in sync.
    pub(super) async fn until_whole(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while !self.is_whole() {
            if Instant::now() >= deadline {
                return false;
            }
            let _ = tokio::time::timeout(ASK_EVERY, self.watchers.changed()).await;
        }
        true
    }

    /// Leader and partition epochs of all partitions: their differences tell elections and ISR changes.
    pub(super) fn epochs(&self) -> (u64, u64) {
        let partitions = self.watchers.partitions(&self.topic);
        partitions.iter().fold((0, 0), |(leaders, all), partition| {
            let leader = u64::from(partition.leader_epoch.get());
            (
                leaders + leader,
                all + u64::from(partition.partition_epoch.0),
            )
        })
    }

    /// Waits until all replicas have everything and know it, so that what the nodes note down when they stop covers it.
    pub(super) async fn settle(&self, within: Duration) -> bool {
        self.watchers.until_settled(&self.topic, within).await
    }
}
