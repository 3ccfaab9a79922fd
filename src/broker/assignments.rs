//! Follows the cluster's metadata: which partitions this node holds, which leaders it follows, where they are.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::BrokerOptions;
use super::committed_end::committed_end;
use super::event::{Adoption, Event};
use super::leader_link::{self, LinkOptions};
use super::opening;
use super::shared::{PartitionHandle, Shared};
use super::tcp_link;
use crate::controller::Controller;
use crate::metadata::{ClusterImage, FlushPolicy, Topic, TopicConfig};
use crate::partition::{Departures, Partition, PartitionOptions};
use crate::storage::{DataDir, Flush, LogConfig, LogOptions};
use crate::transport::{CurrentIdentity, Sockets};
use crate::types::{
    Incarnation, LeaderEpoch, NodeId, Offset, PartitionState, TopicName, TopicPartition,
};

/// Session ids of one partition: a range of 2³² each.
const SESSIONS_PER_PARTITION: u64 = 1 << 32;
/// Partitions that are being opened at a time. Opening waits for the disk several times, mostly one sync after the other; so
/// many keep it busy, and each takes a thread.
const OPENED_AT_ONCE: usize = 16;

type OpeningTask = JoinHandle<Result<Partition, String>>;

pub(super) struct Assignments {
    shared: Arc<Shared>,
    data_dir: Arc<DataDir>,
    default_flush: FlushPolicy,
    verify_logs: bool,
    identity: Arc<CurrentIdentity>,
    sockets: Sockets,
    tcp_congestion: Option<String>,
    /// Partitions that are open, with the state and configuration that their owner was last told.
    open: HashMap<TopicPartition, Told>,
    /// Partitions that could not be opened. They stay shut until the process starts again: an operator has to look.
    unopened: BTreeSet<TopicPartition>,
    links: BTreeMap<NodeId, Link>,
    /// Those that have left this node, and whose logs are not removed yet.
    departures: Departures,
    /// Whether logs that were left behind have been looked for.
    tidied: bool,
    /// Whether the machine's boot is still to be noted, which tells the next process that every log has heard of the restart
    /// before it. Taken back for good where a log cannot be opened, listed or removed: it may come back, and must hear of it then.
    boot_note_due: bool,
    next_session: u64,
}

#[derive(Clone, PartialEq)]
struct Told {
    state: PartitionState,
    config: LogConfig,
    min_insync: usize,
    deleted_before: Offset,
}

struct Link {
    address: watch::Sender<String>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Where the sessions' numbers begin: elsewhere in each process, so that what an earlier one sent is of no session of this one.
/// Half of the numbers are left to go up in.
fn first_sessions(process: Incarnation) -> u64 {
    let drawn = process.to_bits() as u32 >> 1;
    (u64::from(drawn) + 1) * SESSIONS_PER_PARTITION
}

impl Assignments {
    pub(super) fn new(shared: Arc<Shared>, options: &BrokerOptions) -> Assignments {
        Assignments {
            data_dir: options.data_dir.clone(),
            default_flush: options.default_flush,
            verify_logs: options.verify_logs,
            identity: options.identity.clone(),
            sockets: options.sockets.clone(),
            tcp_congestion: options.tcp_congestion.clone(),
            open: HashMap::new(),
            unopened: BTreeSet::new(),
            links: BTreeMap::new(),
            departures: Departures::default(),
            tidied: false,
            boot_note_due: true,
            next_session: first_sessions(shared.me.incarnation),
            shared,
        }
    }

    /// Runs until the node stops, or the metadata does.
    pub(super) async fn follow(mut self, controller: Controller) {
        let mut images = controller.image();
        let (answer, mut answers) = mpsc::channel(1);
        loop {
            let image = images.borrow_and_update().clone();
            self.apply(&image).await;
            if let Some(number) = self.departures.question() {
                let asked = committed_end(self.shared.clone(), controller.clone());
                let answer = answer.clone();
                // It ends with the node, or with its answer: the next question is put only then.
                tokio::spawn(async move {
                    if let Some(end) = asked.await {
                        let _ = answer.send((number, end)).await;
                    }
                });
            }
            tokio::select! {
                () = self.shared.stopping.cancelled() => break,
                changed = images.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                Some((number, end)) = answers.recv() => self.departures.handle_answer(number, end),
            }
        }
        for (_, link) in std::mem::take(&mut self.links) {
            link.stop.cancel();
            let _ = link.task.await;
        }
    }

    async fn apply(&mut self, image: &ClusterImage) {
        self.drop_unassigned(image).await;
        self.tidy_up(image).await;
        self.link_leaders(image);
        let mut assigned = Vec::new();
        for topic in image.topics() {
            let (config, settings) = self.log_config(topic);
            for (index, state) in topic.indexed_partitions() {
                if !state.replicas.contains(&self.shared.me.node) {
                    continue;
                }
                let id = TopicPartition {
                    topic: topic.id,
                    partition: index,
                };
                let told = Told {
                    state: state.clone(),
                    config: config.clone(),
                    min_insync: settings.min_insync(state.wanted_replicas().len()) as usize,
                    deleted_before: image.deleted_before(id),
                };
                assigned.push((id, topic.name.clone(), told));
            }
        }
        self.tell_all(assigned).await;
        self.note_boot().await;
    }

    /// Writes down in which boot of the machine the directory is used, once all of its logs have been opened in the knowledge
    /// of the one before. Without it each restart would count as a loss of power, and a log that is not synced at each append
    /// would lose its vote.
    async fn note_boot(&mut self) {
        if !self.tidied || !self.boot_note_due || self.shared.stopping.is_cancelled() {
            return;
        }
        let data_dir = self.data_dir.clone();
        let noted = tokio::task::spawn_blocking(move || data_dir.note_boot()).await;
        self.boot_note_due = false;
        let cause = match noted {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            cause,
            "cannot note the machine's boot: the next start counts as one after a loss of power"
        );
    }

    /// Opens the partitions of `assigned` that are not open yet, some at a time and in their order, and tells the owner of each
    /// what is new.
    async fn tell_all(&mut self, assigned: Vec<(TopicPartition, TopicName, Told)>) {
        let mut opening = VecDeque::with_capacity(OPENED_AT_ONCE);
        for (id, topic, news) in assigned {
            if self.unopened.contains(&id) {
                continue;
            }
            if self.open.contains_key(&id) {
                self.tell(id, news).await;
                continue;
            }
            if opening.len() == OPENED_AT_ONCE
                && let Some(first) = opening.pop_front()
            {
                self.finish_opening(first).await;
            }
            let task = self.begin_opening(id, &topic, &news);
            opening.push_back((id, topic, news, task));
        }
        for next in opening {
            self.finish_opening(next).await;
        }
    }

    fn begin_opening(&mut self, id: TopicPartition, topic: &TopicName, news: &Told) -> OpeningTask {
        let partition = PartitionOptions {
            id,
            me: self.shared.me,
            promised: self.data_dir.promises().get(id),
            high_watermark: self.data_dir.last_high_watermark(id),
            first_session: self.next_session,
        };
        self.next_session += SESSIONS_PER_PARTITION;
        let me = self.shared.me.node;
        let mut log = LogOptions::from(news.config.clone());
        log.others_in_sync = news.state.isr.iter().any(|member| member.node != me);
        log.verify_all = self.verify_logs;
        log.known_before =
            partition.promised > LeaderEpoch::NONE || partition.high_watermark > Offset::ZERO;
        let (data_dir, topic) = (self.data_dir.clone(), topic.clone());
        tokio::task::spawn_blocking(move || opening::open(&data_dir, &topic, log, partition))
    }

    async fn finish_opening(
        &mut self,
        (id, topic, news, task): (TopicPartition, TopicName, Told, OpeningTask),
    ) {
        let opened = task.await.unwrap_or_else(|error| Err(error.to_string()));
        let adopted = match opened {
            Ok(partition) => self.adopt(id, partition).await,
            Err(cause) => Err(cause),
        };
        match adopted {
            Ok(()) => self.tell(id, news).await,
            Err(cause) => {
                tracing::error!(partition = %id, %topic, cause, "cannot open the partition; it stays shut");
                self.unopened.insert(id);
                self.boot_note_due = false;
            }
        }
    }

    /// Hands a partition that was opened to its owner.
    async fn adopt(&self, id: TopicPartition, partition: Partition) -> Result<(), String> {
        let view = partition.view();
        let (view_sender, view_receiver) = watch::channel(view);
        let (watermark_sender, watermark_receiver) = watch::channel(view.high_watermark);
        let Some((_, shard)) = self.shared.shard_of(id) else {
            return Err("the node is stopping".to_owned());
        };
        self.shared.insert(
            id,
            PartitionHandle {
                view: view_receiver,
                watermark: watermark_receiver,
                reader: partition.reader(),
            },
        );
        let adoption = Box::new(Adoption {
            partition,
            view: view_sender,
            watermark: watermark_sender,
        });
        let _ = shard.mailbox.send(Event::Adopt(adoption)).await;
        Ok(())
    }

    /// Tells an open partition's owner what is new.
    async fn tell(&mut self, id: TopicPartition, news: Told) {
        if self.open.get(&id) == Some(&news) {
            return;
        }
        let Some((_, shard)) = self.shared.shard_of(id) else {
            return;
        };
        let told = self.open.insert(id, news.clone());
        let Told {
            state,
            config,
            min_insync,
            deleted_before,
        } = news;
        if told.as_ref().is_some_and(|told| told.config != config) {
            let _ = shard.mailbox.send(Event::Config { id, config }).await;
        }
        if told
            .as_ref()
            .is_none_or(|told| told.min_insync != min_insync)
        {
            let event = Event::MinInsync { id, min_insync };
            let _ = shard.mailbox.send(event).await;
        }
        // Before the replica leads, so that it never shows them.
        let known = told
            .as_ref()
            .map_or(Offset::ZERO, |told| told.deleted_before);
        if known != deleted_before {
            let before = deleted_before;
            let _ = shard
                .mailbox
                .send(Event::DeletedRecords { id, before })
                .await;
        }
        if told.is_none_or(|told| told.state != state) {
            let state = Box::new(state);
            let _ = shard.mailbox.send(Event::State { id, state }).await;
        }
    }

    /// Closes partitions that this node holds no more, and removes their logs once it is sure that the cluster has committed
    /// that nobody needs them here.
    async fn drop_unassigned(&mut self, image: &ClusterImage) {
        let me = self.shared.me.node;
        let is_replica = |id: &TopicPartition| image.is_replica(*id, me);
        for id in self.departures.settle(image.applied_index(), is_replica) {
            self.remove_log(id).await;
        }
        let is_gone = |id: &TopicPartition| !is_replica(id);
        let gone: Vec<TopicPartition> = self.open.keys().copied().filter(is_gone).collect();
        // One that could not be opened may come back another time, as a new replica.
        let left: Vec<TopicPartition> = self.unopened.iter().copied().filter(is_gone).collect();
        for id in left {
            self.unopened.remove(&id);
            self.departures.closed(id);
        }
        for id in gone {
            self.open.remove(&id);
            self.shared.remove(id);
            if let Some((_, shard)) = self.shared.shard_of(id) {
                let (done, released) = oneshot::channel();
                if shard
                    .mailbox
                    .send(Event::Release { id, done })
                    .await
                    .is_ok()
                {
                    let _ = released.await;
                }
            }
            self.departures.closed(id);
        }
    }

    /// Removes logs of partitions that were deleted, or moved away, while this node was not running: it never opened them.
    ///
    /// Only metadata that shows this very process registered is as new as everything that was committed before it began;
    /// by an older image a log could be taken for one that nobody needs.
    async fn tidy_up(&mut self, image: &ClusterImage) {
        let me = self.shared.me;
        if self.tidied || image.registered(me.node) != Some(me) {
            return;
        }
        self.tidied = true;
        let data_dir = self.data_dir.clone();
        let found = tokio::task::spawn_blocking(move || data_dir.partitions()).await;
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::error!(cause = %error, "cannot look for logs that were left behind");
                self.boot_note_due = false;
                return;
            }
            Err(_) => {
                self.boot_note_due = false;
                return;
            }
        };
        for (id, topic) in found {
            let assigned = image.is_replica(id, me.node);
            // It was open in this process, and may have been acknowledged from.
            let is_kept = self.departures.contains(&id);
            if !assigned && !is_kept {
                tracing::info!(partition = %id, %topic, "the partition left this node while it was not running");
                self.remove_log(id).await;
            }
        }
    }

    async fn remove_log(&mut self, id: TopicPartition) {
        let data_dir = self.data_dir.clone();
        let removed = tokio::task::spawn_blocking(move || data_dir.delete_partition(id)).await;
        let cause = match removed {
            Ok(Ok(())) => {
                tracing::info!(partition = %id, "partition removed");
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(partition = %id, cause, "cannot remove the partition's log");
        self.boot_note_due = false;
    }

    /// Keeps a connection to each node that leads a partition of this node's, and to no other.
    fn link_leaders(&mut self, image: &ClusterImage) {
        let me = self.shared.me.node;
        let Some(cluster) = image.cluster_id() else {
            return;
        };
        let mut leaders: BTreeSet<NodeId> = BTreeSet::new();
        for (_, state) in image.partitions_of(me) {
            leaders.extend(state.leader_node().filter(|&leader| leader != me));
        }
        self.links.retain(|node, link| {
            let followed = leaders.contains(node);
            if !followed {
                link.stop.cancel();
            }
            followed
        });
        for leader in leaders {
            let Some(endpoint) = image.quic_endpoint(leader) else {
                continue;
            };
            let host_port = endpoint.to_string();
            if let Some(link) = self.links.get(&leader) {
                link.address.send_if_modified(|known| {
                    let changed = *known != host_port;
                    if changed {
                        *known = host_port;
                    }
                    changed
                });
                continue;
            }
            let (address, addresses) = watch::channel(host_port);
            let stop = self.shared.stopping.child_token();
            let (shared, over_tcp) = (self.shared.clone(), self.tcp_congestion.clone());
            let options = LinkOptions {
                identity: self.identity.clone(),
                sockets: self.sockets.clone(),
                cluster,
            };
            let until = stop.clone();
            let task = tokio::spawn(async move {
                match over_tcp {
                    None => leader_link::keep(shared, options, leader, addresses, until).await,
                    Some(name) => {
                        tcp_link::keep(shared, options, name, leader, addresses, until).await;
                    }
                }
            });
            self.links.insert(
                leader,
                Link {
                    address,
                    stop,
                    task,
                },
            );
        }
    }

    fn log_config(&self, topic: &Topic) -> (LogConfig, TopicConfig) {
        // What is in the image was validated before it was committed; a newer node's setting that this one cannot read
        // falls back to the defaults.
        let config = TopicConfig::from_map(&topic.config).unwrap_or_default();
        let flush = match config.flush.unwrap_or(self.default_flush) {
            FlushPolicy::Fsync => Flush::Fsync,
            FlushPolicy::Os => Flush::Os,
        };
        let log_config = LogConfig {
            segment_bytes: config.segment_bytes,
            segment_ms: config.segment_ms,
            index_interval_bytes: config.index_interval_bytes,
            retention_ms: config.retention_ms.filter(|_| config.delete),
            retention_bytes: config.retention_bytes.filter(|_| config.delete),
            compact: config.compact,
            delete_retention_ms: config.delete_retention_ms,
            flush,
        };
        (log_config, config)
    }
}
