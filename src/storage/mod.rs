//! Floor 4: what is on the disk.
//!
//! A [`DataDir`] belongs to one node; in it each partition's [`Log`] has a directory of its own. A log is frames in segment
//! files ([`crate::wal`]), appended by one owner, made durable by [`GroupCommit`], read from any thread through
//! [`LogReader`]. [`inspect`] looks at a directory from outside, beside a running node.
//!
//! Everything goes through [`FileSystem`], so that it can be run on a disk that fails on purpose ([`faulty`]).

mod checkpoints;
mod committed;
mod compaction;
#[cfg(test)]
mod compaction_tests;
mod data_dir;
mod decided;
pub mod faulty;
mod file_system;
mod group_commit;
mod impairment;
mod index;
pub mod inspect;
mod kept_tail;
mod log;
mod log_start;
#[cfg(test)]
mod log_tests;
mod probe;
mod promises;
mod quarantine;
mod reader;
mod recovery;
mod recovery_budget;
mod retention;
mod segment;
mod small_file;
mod snapshots;
mod space;
mod sync;
mod tail_cache;
mod tail_index;
#[cfg(test)]
mod tail_tests;
#[cfg(test)]
mod test_frames;
#[cfg(test)]
mod test_logs;
#[cfg(test)]
mod transaction_tests;
mod truncate;
mod unsynced;

pub use checkpoints::{Marks, read_high_watermarks, write_high_watermarks};
pub use committed::CommittedRecords;
pub use compaction::{Compacted, CompactionError, CompactionJob, CompactionReport};
pub use data_dir::{DataDir, DataDirError, FORMAT_VERSION, Meta, Opener, read_meta};
pub use file_system::{
    DirEntry, File, FileLock, FileSystem, IoFailure, OpenMode, RealFileSystem, is_no_space,
};
pub use group_commit::{Completion, GroupCommit, MAX_WAITING_TICKETS, SYNC_THREADS};
pub use impairment::{Impairment, ImpairmentReason};
pub use log::{
    AppendError, Flush, Log, LogConfig, LogOptions, MIN_INDEX_INTERVAL_BYTES, TAIL_CACHE_BYTES,
};
pub use probe::{DiskProbe, probe_disk};
pub use promises::{PromiseError, Promises};
pub use reader::{Frames, LogReader, READ_OVERHEAD_BYTES, ReadError};
pub use recovery::{Cut, OpenError, Quarantine, RecoveryReport};
pub use recovery_budget::RecoveryBudget;
pub use retention::Retained;
pub use segment::{BadFrame, FrameFault};
pub use small_file::SmallFileError;
pub use space::{DiskSpace, RESERVED_BYTES};
pub use sync::{DurableMark, SyncError, SyncTicket};
pub use truncate::TruncateError;
