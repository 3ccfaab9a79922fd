//! What every part of the broker reaches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::event::Event;
use super::follower_channel::CatchUpShare;
use super::follower_link::FollowerLine;
use super::inbox::Inbox;
use super::links::Links;
use super::shard::{Internal, Promise, ShardHandle};
use crate::metadata::ElectionStart;
use crate::partition::PartitionView;
use crate::storage::{GroupCommit, LogReader};
use crate::transport::LogLimits;
use crate::types::{Appointment, IsrChange, NodeId, Offset, TopicPartition};

/// How readers and network tasks reach one partition.
#[derive(Clone)]
pub(super) struct PartitionHandle {
    pub(super) view: watch::Receiver<PartitionView>,
    /// Changes whenever a fetch may have another answer than before.
    pub(super) watermark: watch::Receiver<Offset>,
    pub(super) reader: LogReader,
}

pub(super) struct Shared {
    pub(super) me: Appointment,
    pub(super) clock: Clock,
    pub(super) group_commit: GroupCommit,
    /// Promises on their way to the disk. At most one a partition.
    pub(super) promises: Inbox<Promise>,
    /// Changes of in-sync sets on their way to the controller. At most one a partition.
    pub(super) isr_changes: Inbox<IsrChange>,
    /// Elections that leaders here ask for, because they cannot lead. At most one a partition.
    pub(super) resignations: Inbox<ElectionStart>,
    pub(super) links: Links,
    /// Whether small frames go out more than once on links that lose packets.
    pub(super) link_copies: bool,
    /// By how many followers that catch up the room for that is shared.
    pub(super) catch_up_share: Arc<CatchUpShare>,
    /// A line a second of each kind about each follower, over all of its connections.
    pub(super) follower_lines: LogLimits<(FollowerLine, NodeId)>,
    shards: OnceLock<Vec<ShardHandle>>,
    /// The partitions that are open on this node.
    partitions: RwLock<HashMap<TopicPartition, PartitionHandle>>,
    /// Why the process must stop, once it must.
    failure: Mutex<Option<String>>,
    pub(super) failed: CancellationToken,
    /// Cancelled when the node stops.
    pub(super) stopping: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        me: Appointment,
        clock: Clock,
        group_commit: GroupCommit,
        link_copies: bool,
    ) -> Shared {
        Shared {
            me,
            clock,
            group_commit,
            promises: Inbox::new(),
            isr_changes: Inbox::new(),
            resignations: Inbox::new(),
            links: Links::default(),
            link_copies,
            catch_up_share: Arc::default(),
            follower_lines: LogLimits::default(),
            shards: OnceLock::new(),
            partitions: RwLock::default(),
            failure: Mutex::default(),
            failed: CancellationToken::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Gives the owner threads, once, before anything else happens.
    pub(super) fn set_shards(&self, shards: Vec<ShardHandle>) {
        let _ = self.shards.set(shards);
    }

    pub(super) fn shards(&self) -> &[ShardHandle] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    /// The owner thread of a partition, open or not: always the same.
    pub(super) fn shard_of(&self, id: TopicPartition) -> Option<(usize, &ShardHandle)> {
        let shards = self.shards();
        let topic = id.topic.to_bits();
        let folded = (topic as u64) ^ ((topic >> 64) as u64);
        let index = folded.wrapping_add(u64::from(id.partition.0)) as usize % shards.len().max(1);
        shards.get(index).map(|shard| (index, shard))
    }

    /// Hands an event to a partition's owner, waiting for room in its mailbox. `Err` says why there is no owner any more.
    pub(super) async fn deliver(&self, id: TopicPartition, event: Event) -> Result<(), String> {
        let stopping = || "this node is stopping".to_owned();
        let (_, shard) = self.shard_of(id).ok_or_else(stopping)?;
        shard.mailbox.send(event).await.map_err(|_| stopping())
    }

    pub(super) fn partition(&self, id: TopicPartition) -> Option<PartitionHandle> {
        let partitions = self
            .partitions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        partitions.get(&id).cloned()
    }

    pub(super) fn partitions(&self) -> Vec<(TopicPartition, PartitionHandle)> {
        let partitions = self
            .partitions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        partitions
            .iter()
            .map(|(&id, handle)| (id, handle.clone()))
            .collect()
    }

    pub(super) fn insert(&self, id: TopicPartition, handle: PartitionHandle) {
        let mut partitions = self
            .partitions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        partitions.insert(id, handle);
    }

    pub(super) fn remove(&self, id: TopicPartition) {
        let mut partitions = self
            .partitions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        partitions.remove(&id);
    }

    /// Tells every owner thread that the connection to a follower has room again.
    pub(super) fn tell_all_of_room(&self, node: NodeId) {
        for shard in self.shards() {
            shard.inbox.push(Internal::FollowerHasRoom { node });
        }
    }

    /// A partition's log failed. Where nothing that the disk says can be trusted any more, the process stops: a failed fsync
    /// is never retried.
    pub(super) fn handle_failure(&self, id: TopicPartition, cause: &str, stop_process: bool) {
        if !stop_process {
            tracing::error!(partition = %id, cause, "storage failure");
            return;
        }
        self.stop_process(cause);
    }

    /// Ends the process, with the first cause that is given.
    pub(super) fn stop_process(&self, cause: &str) {
        tracing::error!(cause, "the node stops");
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| cause.to_owned());
        drop(failure);
        self.failed.cancel();
    }

    /// Why the process must stop.
    pub(super) fn failure(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }
}
