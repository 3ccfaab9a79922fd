//! Opening a partition: its log's recovery, the replay that tells its producers, and what an operator has to hear of either.

use crate::partition::{Partition, PartitionOptions};
use crate::storage::{DataDir, FrameFault, Impairment, ImpairmentReason, LogOptions};
use crate::types::TopicName;

/// Opens the log of `partition` and the replica on it, whose high watermark is what the log that was found allows. Blocks for as
/// long as recovery takes. An error says why the partition has to stay shut.
pub(super) fn open(
    data_dir: &DataDir,
    topic: &TopicName,
    log: LogOptions,
    partition: PartitionOptions,
) -> Result<Partition, String> {
    let id = partition.id;
    let dir = data_dir.partition_dir(id);
    let (log, report) = data_dir
        .open_log(id, topic, log)
        .map_err(|error| error.to_string())?;
    let lost = |note: &Impairment| note.reason == ImpairmentReason::Lost;
    if report.impairment.as_ref().is_some_and(lost) {
        tracing::error!(
            partition = %id, %topic, dir = %dir.display(),
            "the log is gone: this replica neither votes nor leads until the in-sync set names it again"
        );
    }
    if let Some(cut) = &report.cut {
        tracing::warn!(partition = %id, %topic, at = %cut.at, end = %cut.end, bytes = cut.bytes, "cut a torn tail");
    }
    if let Some(quarantine) = &report.quarantined {
        let what = match quarantine.cause.cause {
            FrameFault::Unreadable => "cannot be read",
            _ => "is corrupt",
        };
        tracing::error!(
            partition = %id, %topic, cause = %quarantine.cause, moved_to = %quarantine.moved_to.display(),
            "the log {what} and was set aside; it is fetched anew from the leader"
        );
    }
    let options = PartitionOptions {
        high_watermark: data_dir.high_watermark_of(&log),
        ..partition
    };
    Ok(Partition::new(options, log))
}
