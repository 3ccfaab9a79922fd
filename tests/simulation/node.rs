//! A node: its disk, and its process while it has one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::metadata::{Endpoint, METADATA_VERSION, Registration};
use quorate::partition::{Departures, Partition, PartitionOptions};
use quorate::replication::{Peers, ProduceTicket};
use quorate::storage::faulty::FaultyFileSystem;
use quorate::storage::{
    DataDir, Flush, Impairment, LogConfig, LogOptions, LogReader, Marks, Opener, RecoveryBudget,
};
use quorate::types::{
    Appointment, ClusterId, DirectoryId, ErrorCode, Incarnation, IsrChange, LeaderEpoch,
    LogPosition, MonotonicTime, NodeId, Offset, PartitionIndex, PartitionState, SessionId, TopicId,
    TopicName, TopicPartition,
};
use quorate::wire::{Ack, SessionAnswer};

use super::checker::Counting;
use super::event::{Event, ProduceCall};
use super::schedule::Setup;
use super::transactors::TransactionCall;

/// A session's ids begin here in each process, as in the broker.
const SESSIONS_PER_PARTITION: u64 = 1 << 32;
pub const CLUSTER: ClusterId = ClusterId::from_random_bits(7);
/// Partitions are dealt to so many topics in turn.
pub const TOPICS: usize = 2;
pub const DATA_DIR: &str = "/data";

pub struct Node {
    pub index: usize,
    recovery_budget_bytes: u64,
    pub disk: FaultyFileSystem,
    /// Disks that this node has had.
    disks: u64,
    /// Processes that this node has had; 0: none yet.
    pub boot: u64,
    /// Starts of the machine.
    power_ups: u64,
    /// How much of the controller's history this node's own copy of it has; it survives a restart, a new disk has none.
    pub applied: usize,
    pub process: Option<Process>,
    /// What waits for the process while it is stopped.
    pub stopped: Option<Vec<Event>>,
    /// How much slower the disk is than usual.
    pub slowness: u64,
    /// By partition: whether a bit was flipped that no recovery has found yet.
    pub was_harmed: Vec<bool>,
    /// By partition: whether this process has set its corrupt log aside.
    pub was_set_aside: Vec<bool>,
    /// By partition: whether its log was removed here, because the replica went elsewhere, and no other was begun since.
    pub was_left: Vec<bool>,
    /// The disk was replaced, and no process has begun on it yet.
    pub is_new_disk: bool,
    /// Whether reads or writes were made to fail in this process's time.
    pub errors_injected: bool,
    /// How many faults keep the disk full.
    pub full: u32,
    /// Whether the machine goes down when the process dies at its appointed operation.
    pub dies_with_power: bool,
    /// An operator has asked for every log to be read through at the next start.
    pub verify_all: bool,
}

/// A running process, as the broker of one node.
pub struct Process {
    pub me: Appointment,
    pub data_dir: DataDir,
    pub replicas: Vec<Option<Replica>>,
    /// Those that could not be opened: they stay shut for as long as the process lives.
    pub unopened: Vec<bool>,
    pub peers: Peers,
    pub links: BTreeMap<usize, Link>,
    pub promises: Vec<(usize, LeaderEpoch)>,
    pub promises_under_way: bool,
    pub ticks: u64,
    next_ticket: u64,
    next_session: u64,
    pub waiting: BTreeMap<ProduceTicket, Waiting>,
    pub registered: bool,
    /// Replicas that are closed and whose logs are still there.
    pub departures: Departures,
    /// The question that the controller is asked for them, and when again.
    pub question: Option<(u64, MonotonicTime)>,
    /// When this process registers again if it is not registered by then.
    pub register_at: MonotonicTime,
    /// For a planted mistake: the last answer of each leader, by leader and partition.
    pub old_answers: BTreeMap<(usize, usize), SessionAnswer>,
}

/// One partition on a node, as its owner thread keeps it.
pub struct Replica {
    pub partition: Partition,
    pub reader: LogReader,
    pub sessions: BTreeMap<usize, FollowerSession>,
    pub told: Option<PartitionState>,
    /// The change of the in-sync set that this leader counts by until it is settled.
    pub proposed: Option<IsrChange>,
    /// The epoch in which it was last asked to hand over.
    pub handing_over: Option<LeaderEpoch>,
    /// For a planted mistake: the watermark that its leader told it last.
    pub overheard: Option<Offset>,
    /// For a planted mistake: the last ack of each follower that was counted, and the process that sent it.
    pub last_acks: BTreeMap<usize, (Incarnation, Ack)>,
    /// And the last ack that it sent.
    pub last_sent: Option<(NodeId, Ack)>,
}

impl Replica {
    /// The change that is proposed to the state that this leader was last told: whatever is heard of it, it counts until a
    /// state with another partition epoch comes.
    pub fn proposal_that_counts(&self) -> Option<&IsrChange> {
        let (leader, told) = (self.partition.leader()?, self.told.as_ref()?);
        self.proposed.as_ref().filter(|change| {
            change.leader_epoch == leader.epoch()
                && change.leader_epoch == told.leader_epoch
                && change.partition_epoch == told.partition_epoch
        })
    }

    /// By what this replica counts, while it leads.
    pub fn counting(&self) -> Option<Counting<'_>> {
        let leader = self.partition.leader()?;
        Some(Counting {
            leader_epoch: leader.epoch(),
            sets: leader.counted_sets().collect(),
            acks: leader.counted_acks().collect(),
            told: self.told.as_ref(),
            proposed: self.proposal_that_counts(),
        })
    }
}

pub struct FollowerSession {
    pub connection: u64,
    pub session: SessionId,
    pub outstanding: usize,
    /// For a planted mistake: whether the last frames went out to catch up, and the place of one that was left out.
    pub was_catching_up: bool,
    pub skipped: Option<LogPosition>,
}

/// A connection to a leader, or the dialling of one.
#[derive(Default)]
pub struct Link {
    pub connection: Option<u64>,
    /// Whether it is greeted and welcomed.
    pub up: bool,
    pub dial_planned: bool,
    pub pause_ms: u64,
}

pub struct Waiting {
    pub call: Call,
    pub partition: usize,
}

/// Who waits for an answer.
pub enum Call {
    Produce(ProduceCall),
    Transaction(TransactionCall),
}

/// What opening a log on a restarted node came to.
pub struct Opened {
    pub created: bool,
    pub quarantined: bool,
    /// The index of the active segment spared reading a part of it.
    pub was_spared: bool,
    pub impairment: Option<Impairment>,
}

pub fn node_id(index: usize) -> NodeId {
    NodeId::new(index as u32 + 1).unwrap()
}

pub fn index_of(node: NodeId) -> usize {
    node.get() as usize - 1
}

pub fn partition_id(partition: usize) -> TopicPartition {
    TopicPartition {
        topic: topic_id(partition % TOPICS),
        partition: PartitionIndex((partition / TOPICS) as u32),
    }
}

pub fn partition_index(id: TopicPartition) -> usize {
    let topic = (0..TOPICS).find(|&topic| topic_id(topic) == id.topic);
    id.partition.0 as usize * TOPICS + topic.unwrap_or(0)
}

pub fn topic_id(topic: usize) -> TopicId {
    TopicId::from_random_bits(topic as u128 + 1)
}

pub fn topic_name(topic: usize) -> TopicName {
    TopicName::new(&format!("t{topic}")).unwrap()
}

pub fn partition_dir(partition: usize) -> PathBuf {
    Path::new(DATA_DIR)
        .join("partitions")
        .join(partition_id(partition).to_string())
}

pub fn log_config(setup: &Setup) -> LogConfig {
    LogConfig {
        segment_bytes: setup.segment_bytes,
        retention_bytes: setup.retention_bytes,
        retention_ms: None,
        flush: Flush::Fsync,
        ..LogConfig::default()
    }
}

impl Node {
    pub fn new(setup: &Setup, index: usize, lying: bool) -> Node {
        let mut node = Node {
            index,
            recovery_budget_bytes: setup.recovery_budget_bytes,
            disk: FaultyFileSystem::new(0),
            disks: 0,
            boot: 0,
            power_ups: 1,
            applied: 0,
            process: None,
            stopped: None,
            slowness: 1,
            was_harmed: vec![false; setup.partitions],
            was_set_aside: vec![false; setup.partitions],
            was_left: vec![false; setup.partitions],
            is_new_disk: true,
            errors_injected: false,
            full: 0,
            dies_with_power: false,
            verify_all: false,
        };
        node.change_disk(setup, lying);
        node
    }

    /// Another disk, an empty one.
    pub fn change_disk(&mut self, setup: &Setup, lying: bool) {
        self.disks += 1;
        self.disk = FaultyFileSystem::new(
            setup.seed ^ ((self.index as u64 + 1) << 32) ^ (self.disks << 40),
        );
        if lying {
            self.disk.lie_about_syncs();
        }
        self.applied = 0;
        self.is_new_disk = true;
        self.was_harmed.fill(false);
        // Until a partition has been opened on it, which a full disk may not let the first process do.
        self.was_left.fill(true);
    }

    /// Whether something was done to this node's disk that explains a failure.
    pub fn is_excused(&self) -> bool {
        self.errors_injected
            || self.full > 0
            || self.disk.has_crashed()
            || self.was_harmed.contains(&true)
    }

    pub fn directory(&self, keeps_name: bool) -> DirectoryId {
        let disk = if keeps_name { 1 } else { self.disks };
        DirectoryId::from_random_bits(((self.index as u128 + 1) << 64) | u128::from(disk))
    }

    pub fn incarnation(&self, boot: u64) -> Incarnation {
        Incarnation::from_random_bits(((self.index as u64 + 1) << 32) | boot)
    }

    pub fn registration(&self, me: Appointment) -> Registration {
        Registration {
            node: me.node,
            directory: me.directory,
            incarnation: me.incarnation,
            quic: Endpoint {
                host: format!("n{}", me.node),
                port: 9000,
            },
            kafka: None,
            kafka_listeners: std::collections::BTreeMap::new(),
            boot_id: Some(self.power_ups.to_string()),
            metadata_version: METADATA_VERSION,
        }
    }

    /// The process is gone, and with it what only it knew. The page cache stays, or not.
    pub fn kill(&mut self, power_loss: bool) {
        // Before the disk comes back: what the process drops must not reach it.
        if power_loss {
            self.disk.power_loss();
            self.power_ups += 1;
        } else {
            self.disk.kill();
        }
        self.process = None;
        self.stopped = None;
        self.was_set_aside.fill(false);
    }

    /// Starts a process on the data directory. `Err` when the directory cannot be opened: the process has ended again.
    pub fn start(
        &mut self,
        now: MonotonicTime,
        partitions: usize,
        keeps_name: bool,
    ) -> Result<(), String> {
        self.boot += 1;
        let opener = Opener {
            node_id: node_id(self.index),
            cluster_id: Some(CLUSTER),
            new_directory_id: self.directory(keeps_name),
            boot_id: Some(self.power_ups.to_string()),
        };
        let mut data_dir = DataDir::open(self.disk.shared(), Path::new(DATA_DIR), &opener)
            .map_err(|error| error.to_string())?;
        data_dir.set_recovery_budget(RecoveryBudget::of(self.recovery_budget_bytes));
        let me = Appointment {
            node: node_id(self.index),
            directory: data_dir.directory_id(),
            incarnation: self.incarnation(self.boot),
        };
        self.process = Some(Process {
            me,
            data_dir,
            replicas: (0..partitions).map(|_| None).collect(),
            unopened: vec![false; partitions],
            peers: Peers::new(),
            links: BTreeMap::new(),
            promises: Vec::new(),
            promises_under_way: false,
            ticks: 0,
            next_ticket: 0,
            next_session: SESSIONS_PER_PARTITION,
            waiting: BTreeMap::new(),
            registered: false,
            departures: Departures::default(),
            question: None,
            register_at: now,
            old_answers: BTreeMap::new(),
        });
        self.stopped = None;
        Ok(())
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some() && self.stopped.is_none()
    }

    pub fn replica(&mut self, partition: usize) -> Option<&mut Replica> {
        self.process.as_mut()?.replicas.get_mut(partition)?.as_mut()
    }

    pub fn view_replica(&self, partition: usize) -> Option<&Replica> {
        self.process.as_ref()?.replicas.get(partition)?.as_ref()
    }
}

impl Process {
    /// Opens a partition's log, as the broker does when the metadata first names it.
    pub fn open(
        &mut self,
        setup: &Setup,
        partition: usize,
        forget_promise: bool,
        verify_all: bool,
        others_in_sync: bool,
    ) -> Result<Opened, String> {
        let id = partition_id(partition);
        let promised = if forget_promise {
            LeaderEpoch::NONE
        } else {
            self.data_dir.promises().get(id)
        };
        let high_watermark = self.data_dir.last_high_watermark(id);
        let first_session = self.next_session;
        self.next_session += SESSIONS_PER_PARTITION;
        let mut options = LogOptions::from(log_config(setup));
        options.tail_cache_bytes = setup.tail_cache_bytes;
        options.verify_all = verify_all;
        options.others_in_sync = others_in_sync;
        options.known_before = promised > LeaderEpoch::NONE || high_watermark > Offset::ZERO;
        let (log, report) = self
            .data_dir
            .open_log(id, &topic_name(partition % TOPICS), options)
            .map_err(|error| error.to_string())?;
        let opened = Opened {
            created: report.created,
            quarantined: report.quarantined.is_some(),
            was_spared: report.bytes_indexed > 0,
            impairment: report.impairment.clone(),
        };
        let options = PartitionOptions {
            id,
            me: self.me,
            promised,
            high_watermark: self.data_dir.high_watermark_of(&log),
            first_session,
        };
        let partition_core = Partition::new(options, log);
        self.replicas[partition] = Some(Replica {
            reader: partition_core.reader(),
            partition: partition_core,
            sessions: BTreeMap::new(),
            told: None,
            proposed: None,
            handing_over: None,
            overheard: None,
            last_acks: BTreeMap::new(),
            last_sent: None,
        });
        Ok(opened)
    }

    pub fn ticket(&mut self, call: Call, partition: usize) -> ProduceTicket {
        self.next_ticket += 1;
        let ticket = ProduceTicket(self.next_ticket);
        self.waiting.insert(ticket, Waiting { call, partition });
        ticket
    }

    /// High watermarks and durable marks are written down, as the broker does.
    pub fn write_high_watermarks(&self) -> Result<(), String> {
        let marks = self.replicas.iter().enumerate().filter_map(|(i, replica)| {
            let replica = replica.as_ref()?;
            let marks = Marks {
                high_watermark: replica.partition.high_watermark(),
                durable: replica.reader.durable_mark(),
            };
            Some((partition_id(i), marks))
        });
        self.data_dir
            .write_high_watermarks(marks)
            .map_err(|error| error.to_string())
    }
}

/// How long a client waits for an answer to a produce at the leader.
pub const PRODUCE_DEADLINE: Duration = Duration::from_millis(800);

/// Whether a producer may try again after this.
pub fn is_retriable(error: ErrorCode) -> bool {
    matches!(
        error,
        ErrorCode::NotLeaderOrFollower
            | ErrorCode::RequestTimedOut
            | ErrorCode::NotEnoughReplicas
            | ErrorCode::NotEnoughReplicasAfterAppend
            | ErrorCode::KafkaStorageError
            | ErrorCode::ThrottlingQuotaExceeded
            | ErrorCode::UnknownTopicOrPartition
            | ErrorCode::OutOfOrderSequenceNumber
    )
}
