//! A node of a transcript: its disk, and its process while it has one.

use std::io;
use std::path::Path;

use quorate::metadata::{Endpoint, METADATA_VERSION, Registration};
use quorate::partition::{Partition, PartitionOptions};
use quorate::replication::Peers;
use quorate::storage::faulty::FaultyFileSystem;
use quorate::storage::{
    DataDir, IoFailure, LogConfig, LogOptions, LogReader, Marks, Opener, RecoveryReport,
};
use quorate::types::{
    Appointment, ClusterId, DirectoryId, Incarnation, LeaderEpoch, LogPosition, NodeId, Offset,
    PartitionIndex, TopicId, TopicName, TopicPartition,
};

pub const CLUSTER: ClusterId = ClusterId::from_random_bits(7);
pub const PARTITION: TopicPartition = TopicPartition {
    topic: TopicId::from_random_bits(1),
    partition: PartitionIndex(0),
};
const DATA_DIR: &str = "/data";

pub struct Node {
    pub name: String,
    index: usize,
    pub disk: FaultyFileSystem,
    /// Disks that this node has had.
    disks: u64,
    /// Processes that this node has had.
    boots: u64,
    /// Its operator has reason to have the log read through at the next start.
    is_rotten: bool,
    pub process: Option<Process>,
}

pub struct Process {
    pub me: Appointment,
    pub data_dir: DataDir,
    pub partition: Partition,
    pub reader: LogReader,
    /// Whom this node has heard, and when.
    pub peers: Peers,
    pub told: Told,
}

/// What the transcript has said of a replica: what it says next is what differs.
pub struct Told {
    pub role: String,
    pub log: Vec<String>,
    pub durable: LogPosition,
    pub high_watermark: Offset,
}

pub fn topic_name() -> TopicName {
    TopicName::new("t").unwrap()
}

pub fn node_id(index: usize) -> NodeId {
    NodeId::new(index as u32 + 1).unwrap()
}

pub fn index_of(node: NodeId) -> usize {
    node.get() as usize - 1
}

/// The number of a node's process, from 1, in the order of its starts.
pub fn process_number(incarnation: Incarnation) -> u64 {
    incarnation.to_bits() & 0xffff
}

/// The number of a node's disk, from 1.
pub fn disk_number(directory: DirectoryId) -> u128 {
    directory.to_bits() & 0xffff
}

impl Node {
    pub fn new(name: &str, index: usize) -> Node {
        Node {
            name: name.to_owned(),
            index,
            disk: FaultyFileSystem::new(index as u64),
            disks: 1,
            boots: 0,
            is_rotten: false,
            process: None,
        }
    }

    /// Another disk, an empty one.
    pub fn change_disk(&mut self) {
        self.disks += 1;
        self.disk = FaultyFileSystem::new(self.index as u64 + 100 * self.disks);
    }

    /// A bit of the first record flips, unnoticed.
    pub fn rot(&mut self) -> io::Result<()> {
        let segment = Path::new(DATA_DIR)
            .join("partitions")
            .join(PARTITION.to_string())
            .join("00000000000000000000.wal");
        // The epoch start takes 40 bytes, the header of the record's frame as many: this one is in the batch.
        self.disk.flip_bit(&segment, 8 * 100)?;
        self.is_rotten = true;
        Ok(())
    }

    /// Starts a process on the disk, as `server start` does: lock, recovery, the promises that were made.
    pub fn start(&mut self) -> Result<RecoveryReport, String> {
        self.boots += 1;
        let number = self.index as u64 + 1;
        let opener = Opener {
            node_id: node_id(self.index),
            cluster_id: Some(CLUSTER),
            new_directory_id: DirectoryId::from_random_bits(
                u128::from(number) << 64 | u128::from(self.disks),
            ),
            boot_id: Some("machine".to_owned()),
        };
        let data_dir = DataDir::open(self.disk.shared(), Path::new(DATA_DIR), &opener)
            .map_err(|error| error.to_string())?;
        let me = Appointment {
            node: node_id(self.index),
            directory: data_dir.directory_id(),
            incarnation: Incarnation::from_random_bits(number << 32 | self.boots),
        };
        let promised = data_dir.promises().get(PARTITION);
        let mut options = LogOptions::from(LogConfig::default());
        options.known_before = promised > LeaderEpoch::NONE;
        options.verify_all = std::mem::take(&mut self.is_rotten);
        let (log, report) = data_dir
            .open_log(PARTITION, &topic_name(), options)
            .map_err(|error| error.to_string())?;
        let options = PartitionOptions {
            id: PARTITION,
            me,
            promised,
            // Where the last watermark is known, less has to be found out. Here every restart has forgotten it, the worse case.
            high_watermark: Offset::ZERO,
            first_session: number << 48 | self.boots << 32,
        };
        let partition = Partition::new(options, log);
        let reader = partition.reader();
        let told = Told {
            role: String::new(),
            log: super::words::log(&reader),
            durable: partition.durable_end(),
            high_watermark: partition.high_watermark(),
        };
        self.process = Some(Process {
            me,
            data_dir,
            partition,
            reader,
            peers: Peers::new(),
            told,
        });
        Ok(report)
    }

    pub fn registration(me: Appointment) -> Registration {
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
            boot_id: Some("machine".to_owned()),
            metadata_version: METADATA_VERSION,
        }
    }
}

impl Process {
    /// What is known of the log is written down outside it, as the broker does twice a second.
    pub fn write_marks(&self) -> Result<(), IoFailure> {
        let marks = Marks {
            high_watermark: self.partition.high_watermark(),
            durable: self.reader.durable_mark(),
        };
        self.data_dir.write_high_watermarks([(PARTITION, marks)])
    }
}
