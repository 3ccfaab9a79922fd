//! Reading what is committed of transactions: records, and which of them are to be left out.

use std::ops::Range;

use bytes::Bytes;

use super::reader::{LogReader, ReadError, Segment, Shared};
use crate::record::{AbortedTransaction, BatchHeader};
use crate::types::Offset;

/// How often a read begins anew because the log was compacted, truncated or trimmed under it: each time its owner has changed
/// it, so it cannot happen without end.
const MAX_RETRIES: usize = 16;

/// Record batches, and the transactions that were aborted of which some may hold records.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CommittedRecords {
    pub records: Vec<Bytes>,
    /// In the order of their markers. Each has a marker among the records, or was open behind them: so there are at most as many
    /// as the records have batches, and as many as can be open at once.
    pub aborted: Vec<AbortedTransaction>,
}

impl LogReader {
    /// Whole record batches, as [`LogReader::read_records`] gives them, and every aborted transaction with records among them.
    /// `below` is the last stable offset: what is not decided is not read.
    pub fn read_committed(
        &self,
        from: Offset,
        max_bytes: usize,
        below: Offset,
    ) -> Result<CommittedRecords, ReadError> {
        let mut retries = 0;
        loop {
            // A compaction between the two reads could take a marker away and leave the records that were read before.
            let before = self.shared.state().generation;
            let records = self.read_records(from, max_bytes, below)?;
            let found = match (records.first().and_then(base), records.last().and_then(end)) {
                (Some(from), Some(to)) => self.shared.aborted(from, to),
                _ => Ok(Vec::new()),
            };
            if before == self.shared.state().generation || retries >= MAX_RETRIES {
                return Ok(CommittedRecords {
                    records,
                    aborted: found?,
                });
            }
            retries += 1;
        }
    }
}

impl Shared {
    /// The aborted transactions that have records between `from` and `to`, in the order of their markers. Every transaction that
    /// begins before `to` has ended. Reads the indexes of segments that have any, from the one with `from` on, and stops where no
    /// later one can have any.
    pub(super) fn aborted(
        &self,
        from: Offset,
        to: Offset,
    ) -> Result<Vec<AbortedTransaction>, ReadError> {
        self.aborted_with_markers_below(Offset::MAX, from..to)
    }

    /// The same where all their markers lie in segments that begin below `below`.
    pub(super) fn aborted_with_markers_below(
        &self,
        below: Offset,
        range: Range<Offset>,
    ) -> Result<Vec<AbortedTransaction>, ReadError> {
        let (from, to) = (range.start, range.end);
        let mut found = Vec::new();
        let (sealed, active, interval) = {
            let state = self.state();
            let after = state
                .segments
                .partition_point(|segment| segment.base <= from);
            let segments = &state.segments[after.saturating_sub(1)..];
            let sealed = &segments[..segments.len().saturating_sub(1)];
            let sealed: Vec<Segment> = sealed
                .iter()
                .filter(|s| s.aborted > 0 && s.base < below)
                .copied()
                .collect();
            let mut active = Vec::new();
            state.active_index.add_aborted(from, to, &mut active);
            (sealed, active, state.index_interval)
        };
        for segment in &sealed {
            let index = self.sealed_index(segment, interval)?;
            if !index.add_aborted(from, to, &mut found) {
                return Ok(found);
            }
        }
        found.extend(active);
        Ok(found)
    }
}

fn base(batch: &Bytes) -> Option<Offset> {
    Offset::from_wire(BatchHeader::decode(batch).ok()?.base_offset)
}

fn end(batch: &Bytes) -> Option<Offset> {
    Offset::from_wire(BatchHeader::decode(batch).ok()?.next_offset())
}
