//! Floor 7: the runtime around partitions.
//!
//! [`Broker`] owns the node's replicas. Owner threads hold partitions and handle their events one at a time; network tasks
//! carry replication connections; readers go to the log directly. [`assignments`] follows the cluster's metadata and decides
//! what is open and which leaders are dialled. The Kafka API reaches all of it through the `Service` trait.

mod assignments;
mod clock;
mod committed_end;
mod deletions;
mod event;
mod fence;
mod follower_channel;
mod follower_link;
mod groups;
mod heartbeat;
mod inbox;
mod internal_topics;
mod isr_proposals;
mod lane_copies;
mod leader_channel;
mod leader_connection;
mod leader_link;
mod links;
mod live_answers;
mod offsets;
mod opening;
mod partition_transactions;
mod producer_ids;
mod promises;
mod resignations;
mod service;
mod shard;
mod shared;
mod spread;
mod tcp_link;
mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use assignments::Assignments;
use clock::Clock;
use event::Event;
use fence::Fencer;
use groups::Groups;
use producer_ids::ProducerIds;
use shared::Shared;
use transactions::Transactions;

pub use links::{FollowerLag, LinkDirection, LinkError, LinkState, LinkView};

use crate::controller::{Controller, FenceHandler};
use crate::kafka::{NodeSetting, Service};
use crate::metadata::FlushPolicy;
use crate::partition::{PartitionView, RoleView};
use crate::storage::{DataDir, GroupCommit, Marks, RESERVED_BYTES};
use crate::transport::{
    CloseReason, CurrentIdentity, Identity, ImpairmentCounts, Sockets, TcpLink,
};
use crate::types::{Appointment, NodeId, TopicPartition};

/// The most owner threads. A partition is always on the same one.
const MAX_SHARDS: usize = 8;
/// How often high watermarks are written down for readers of the data directory, and how far each log is synced for the next
/// start.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(500);

/// How often the room on the disk is looked at. What can be written meanwhile must fit what is reserved.
const CHECK_SPACE_EVERY: Duration = Duration::from_millis(200);

/// What the node tells its broker.
#[derive(Clone)]
pub struct BrokerOptions {
    pub me: Appointment,
    pub identity: Arc<CurrentIdentity>,
    /// What links to leaders are dialled on.
    pub sockets: Sockets,
    /// For measurements only: leaders are followed over TCP, with this congestion control of the kernel, and not over QUIC.
    pub tcp_congestion: Option<String>,
    /// Whether small frames go out more than once on links that lose packets.
    pub link_copies: bool,
    pub data_dir: Arc<DataDir>,
    /// What `flush` is for topics that do not set it.
    pub default_flush: FlushPolicy,
    /// Whether every frame of a log is read and checked when it is opened.
    pub verify_logs: bool,
    /// The node's own settings, for DescribeConfigs.
    pub settings: Vec<NodeSetting>,
}

/// A broker that can be fenced and does nothing else yet: the controller must be able to fence replicas from its first
/// moment on.
pub struct Starting {
    options: BrokerOptions,
    shared: Arc<Shared>,
}

/// The replicas of one node.
pub struct Broker {
    options: BrokerOptions,
    shared: Arc<Shared>,
    controller: Controller,
    producer_ids: Arc<ProducerIds>,
    groups: Arc<Groups>,
    transactions: Arc<Transactions>,
    tasks: TaskTracker,
}

impl Starting {
    /// Starts the owner threads.
    pub fn new(options: BrokerOptions, group_commit: GroupCommit) -> io::Result<Starting> {
        let clock = Clock::start();
        let shared = Arc::new(Shared::new(
            options.me,
            clock,
            group_commit,
            options.link_copies,
        ));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..threads.min(MAX_SHARDS))
            .map(|index| shard::spawn(index, shared.clone(), clock))
            .collect::<io::Result<Vec<_>>>()?;
        shared.set_shards(shards);
        Ok(Starting { options, shared })
    }

    /// What the controller fences this node's replicas through.
    pub fn fence_handler(&self) -> Arc<dyn FenceHandler> {
        Arc::new(Fencer {
            shared: self.shared.clone(),
            data_dir: self.options.data_dir.clone(),
        })
    }

    /// Begins to follow the metadata.
    pub fn start(self, controller: Controller) -> Arc<Broker> {
        let Starting { options, shared } = self;
        let tasks = TaskTracker::new();
        tasks.spawn(promises::keep(shared.clone(), options.data_dir.clone()));
        let assignments = Assignments::new(shared.clone(), &options);
        tasks.spawn(assignments.follow(controller.clone()));
        tasks.spawn(isr_proposals::keep(shared.clone(), controller.clone()));
        tasks.spawn(resignations::keep(shared.clone(), controller.clone()));
        tasks.spawn(checkpoint(shared.clone(), options.data_dir.clone()));
        tasks.spawn(watch_space(shared.clone(), options.data_dir.clone()));
        let producer_ids = Arc::new(ProducerIds::default());
        tasks.spawn({
            let (ids, controller, stop) = (
                producer_ids.clone(),
                controller.clone(),
                shared.stopping.clone(),
            );
            async move { ids.keep_stocked(&controller, stop).await }
        });
        let groups = Arc::new(Groups::default());
        tasks.spawn(groups::keep(
            shared.clone(),
            controller.clone(),
            groups.clone(),
        ));
        tasks.spawn(spread::keep(shared.clone(), controller.clone()));
        let calls = transactions::Calls::new(options.identity.clone(), options.sockets.clone());
        let transactions = Arc::new(Transactions::new(calls));
        let broker = Arc::new(Broker {
            options,
            shared: shared.clone(),
            controller: controller.clone(),
            producer_ids,
            groups,
            transactions: transactions.clone(),
            tasks,
        });
        // Markers for partitions that are led here go through the broker itself.
        let keep = transactions::keep(shared, controller, transactions, Arc::downgrade(&broker));
        broker.tasks.spawn(keep);
        broker
    }
}

impl Broker {
    /// Serves a replication connection that `node`'s certificate was shown on, until it ends.
    pub async fn serve_follower(&self, node: NodeId, connection: Connection) {
        let Some(cluster) = self.image().cluster_id() else {
            CloseReason::WrongCluster.close(&connection, "this node is in no cluster yet");
            return;
        };
        follower_link::serve(self.shared.clone(), cluster, node, connection).await;
    }

    /// The same over TCP, for measurements only.
    pub async fn serve_follower_on_tcp(&self, node: NodeId, link: TcpLink) {
        if let Some(cluster) = self.image().cluster_id() {
            tcp_link::serve(self.shared.clone(), cluster, node, link).await;
        }
    }

    /// Every open partition with its view and role.
    pub async fn views(&self) -> Vec<(TopicPartition, PartitionView, RoleView)> {
        let mut views = Vec::new();
        for shard in self.shared.shards() {
            let (reply, answer) = oneshot::channel();
            if shard.mailbox.send(Event::Views { reply }).await.is_ok()
                && let Ok(some) = answer.await
            {
                views.extend(some);
            }
        }
        views
    }

    /// The replication links of this node, both ways, without the followers' lags.
    pub fn links(&self) -> Vec<LinkView> {
        self.shared.links.views()
    }

    /// The same with the lag of each follower in the partitions that are led here, by what [`Broker::views`] has shown. A
    /// follower that never dialled has a link too: one that is down.
    pub fn link_views(&self, views: &[(TopicPartition, PartitionView, RoleView)]) -> Vec<LinkView> {
        let lags = links::follower_lags(views, self.shared.clock.now());
        self.shared.links.views_with_lags(&lags)
    }

    /// A native client's connection goes on from another address.
    pub fn note_client_migration(&self) {
        self.shared.links.count_client_migration();
    }

    /// How often that was, since the process began.
    pub fn client_migrations(&self) -> u64 {
        self.shared.links.client_migrations()
    }

    /// What became of the packets to each node, where links are impaired on purpose; else nothing.
    pub fn impaired_packets(&self) -> BTreeMap<NodeId, ImpairmentCounts> {
        self.options.sockets.impaired_packets()
    }

    /// How often each leader was dialled since the process began: 1 for a link that never failed.
    pub fn dials(&self) -> BTreeMap<NodeId, u64> {
        self.shared.links.dials()
    }

    /// The syncs of this node's logs.
    pub fn group_commit(&self) -> &GroupCommit {
        &self.shared.group_commit
    }

    /// This node, its data directory and its process.
    pub fn me(&self) -> Appointment {
        self.shared.me
    }

    /// The certificate that new connections show now.
    pub fn identity(&self) -> Arc<Identity> {
        self.options.identity.get()
    }

    pub fn data_dir(&self) -> &Arc<DataDir> {
        &self.options.data_dir
    }

    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Ends when the process must stop, with the reason.
    pub async fn failed(&self) -> String {
        self.shared.failed.cancelled().await;
        self.shared
            .failure()
            .unwrap_or_else(|| "the reason was lost".to_owned())
    }

    /// Stops serving: connections are closed, waiting producers answered, logs synced, watermarks written.
    pub async fn stop(&self) {
        self.shared.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let marks = marks(&self.shared);
        for shard in self.shared.shards() {
            let (done, stopped) = oneshot::channel();
            if shard.mailbox.send(Event::Stop { done }).await.is_ok() {
                let _ = stopped.await;
            }
        }
        write_marks(&self.options.data_dir, marks).await;
    }
}

/// Refuses records before the disk is so full that nothing else could be written either.
async fn watch_space(shared: Arc<Shared>, data_dir: Arc<DataDir>) {
    let mut every = tokio::time::interval(CHECK_SPACE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            _ = every.tick() => {}
        }
        let dir = data_dir.clone();
        match tokio::task::spawn_blocking(move || dir.check_space()).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(true))) => tracing::error!(
                dir = %data_dir.path().display(), reserved_bytes = RESERVED_BYTES,
                "the disk is full: records are refused, reads go on; free some space, or lower retention"
            ),
            Ok(Ok(Some(false))) => {
                tracing::info!("there is room on the disk again: records are taken")
            }
            Ok(Err(error)) => tracing::warn!(cause = %error, "cannot tell how much room is left"),
            Err(error) => tracing::warn!(cause = %error, "cannot tell how much room is left"),
        }
    }
}

type AllMarks = BTreeMap<TopicPartition, Marks>;

/// Writes down what is known of each log: see [`DataDir::write_high_watermarks`]. Nothing is ever cut because of it.
async fn checkpoint(shared: Arc<Shared>, data_dir: Arc<DataDir>) {
    let mut written = AllMarks::new();
    let mut every = tokio::time::interval(CHECKPOINT_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            _ = every.tick() => {}
        }
        let current = marks(&shared);
        if current != written {
            written = current.clone();
            write_marks(&data_dir, current).await;
        }
    }
}

fn marks(shared: &Shared) -> AllMarks {
    let marks = shared.partitions().into_iter().map(|(id, handle)| {
        let durable = handle.reader.durable_mark();
        let high_watermark = handle.view.borrow().high_watermark;
        let marks = Marks {
            high_watermark,
            durable,
        };
        (id, marks)
    });
    marks.collect()
}

async fn write_marks(data_dir: &Arc<DataDir>, marks: AllMarks) {
    let dir = data_dir.clone();
    let written = tokio::task::spawn_blocking(move || dir.write_high_watermarks(marks)).await;
    match written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(cause = %error, "cannot write the high watermarks down"),
        Err(error) => tracing::warn!(cause = %error, "cannot write the high watermarks down"),
    }
}
