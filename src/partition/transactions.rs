//! The ends of transactions, and what is shown of them.

use super::Partition;
use super::producers::snapshot_roll;
use super::replica::Role;
use crate::record::{Batch, Marker, STAMP_LEN, stamped_prefix};
use crate::replication::{Acks, Peers, ProduceTicket, ProducerDescription, Verification};
use crate::types::{ErrorCode, MonotonicTime, Offset, ProducerId};
use crate::wal::Frame;

/// A marker to append. It is answered when a commit quorum holds it durably, as with acks=all.
#[derive(Debug, Clone, Copy)]
pub struct MarkerRequest {
    pub ticket: ProduceTicket,
    /// What it takes back is found out here.
    pub marker: Marker,
    /// Milliseconds since 1970.
    pub wall_clock_ms: u64,
    pub deadline: MonotonicTime,
}

impl Partition {
    /// Appends the marker that ends a transaction, or refuses it before anything is written. While this replica hands over,
    /// markers are refused: a coordinator asks again.
    pub fn handle_marker(&mut self, now: MonotonicTime, request: MarkerRequest, peers: &Peers) {
        let ticket = request.ticket;
        if let Err(error) = self.append_marker(now, request, peers) {
            self.refuse(ticket, error);
        }
        self.changed();
    }

    fn append_marker(
        &mut self,
        now: MonotonicTime,
        request: MarkerRequest,
        peers: &Peers,
    ) -> Result<(), ErrorCode> {
        let is_handing_over = self.hand_over.is_some();
        let Role::Leader(leader) = &mut self.role else {
            return Err(self.not_leading());
        };
        if is_handing_over {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        let admission = leader.admit_marker(now, request.marker, peers)?;
        let (previous, marker) = (admission.previous, admission.marker);
        let timestamp = i64::try_from(request.wall_clock_ms).unwrap_or(i64::MAX);
        let batch = Batch::decode(&marker.batch(timestamp)).map_err(|error| error.error_code())?;
        let prefix = stamped_prefix(&batch, previous.offset, leader.epoch());
        let rest = &batch.bytes[STAMP_LEN..];
        let frame = Frame::records(leader.epoch(), previous, admission.end, &[&prefix, rest]);
        let appended = frame.end();
        if let Err(error) = self.log.append(&[frame]) {
            return Err(self.append_failed(error));
        }
        self.found_no_room = false;
        if !self.log.take_rolls().is_empty() {
            snapshot_roll(&mut self.log, leader.producers(), previous);
        }
        leader.handle_marker_appended(&marker, previous.offset, appended);
        leader.wait(
            request.ticket,
            Acks::All,
            previous.offset,
            admission.end,
            request.deadline,
        );
        self.drain_leader();
        self.sync();
        Ok(())
    }

    /// Whether the producer's next batch needs its coordinator's word, if this replica leads.
    pub fn verification(
        &self,
        producer: ProducerId,
        epoch: i16,
    ) -> Result<Verification, ErrorCode> {
        match &self.role {
            Role::Leader(leader) => Ok(leader.verification(producer, epoch)),
            _ => Err(self.not_leading()),
        }
    }

    /// What is known of each producer, if this replica leads.
    pub fn describe_producers(&self) -> Result<Vec<ProducerDescription>, ErrorCode> {
        match &self.role {
            Role::Leader(leader) => Ok(leader.producers().describe()),
            _ => Err(self.not_leading()),
        }
    }

    /// See [`crate::replication::ProducerStates::last_stable_offset`]; at least the start of what is shown of the log.
    pub(super) fn last_stable_offset(&self, log_start: Offset) -> Offset {
        self.producers()
            .last_stable_offset(self.high_watermark)
            .max(log_start)
            .min(self.high_watermark.max(log_start))
    }

    /// What a request is answered that only a leader can serve.
    pub(super) fn not_leading(&self) -> ErrorCode {
        match self.role {
            Role::Failed => ErrorCode::KafkaStorageError,
            _ => ErrorCode::NotLeaderOrFollower,
        }
    }
}
