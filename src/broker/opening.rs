//! Opening a partition: its log's recovery, the replay that tells its producers, and what an operator has to hear of either.

use crate::partition::{Partition, PartitionOptions};
use crate::storage::{DataDir, FrameFault, Impairment, ImpairmentReason, LogOptions};
use crate::types::{Appointment, LeaderEpoch, TopicName, TopicPartition};

/// Of which partition, and as whose replica.
pub(super) struct Opening {
    pub(super) id: TopicPartition,
    pub(super) topic: TopicName,
    pub(super) me: Appointment,
    pub(super) promised: LeaderEpoch,
    pub(super) first_session: u64,
    pub(super) options: LogOptions,
}

impl Opening {
    /// Blocks for as long as recovery takes. An error says why the partition has to stay shut.
    pub(super) fn run(self, data_dir: &DataDir) -> Result<Partition, String> {
        let Opening {
            id,
            topic,
            me,
            promised,
            first_session,
            options,
        } = self;
        let dir = data_dir.partition_dir(id);
        let (log, report) = data_dir
            .open_log(id, &topic, options)
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
            id,
            me,
            promised,
            high_watermark: data_dir.high_watermark_of(&log),
            first_session,
        };
        Ok(Partition::new(options, log))
    }
}
