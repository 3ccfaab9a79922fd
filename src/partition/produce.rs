//! A batch's way into the log.

use super::Partition;
use super::output::Output;
use super::producers::{producer_batch, snapshot_roll};
use super::replica::Role;
use crate::record::{Batch, STAMP_LEN, stamped_prefix};
use crate::replication::{Acks, Admission, Peers, ProduceTicket, VerificationGuard};
use crate::storage::AppendError;
use crate::types::{ErrorCode, MonotonicTime};
use crate::wal::Frame;

/// A batch to append.
#[derive(Debug)]
pub struct ProduceRequest {
    pub ticket: ProduceTicket,
    /// Checked already: structure, CRC, codec, size, and `last_offset_delta + 1 == record_count`.
    pub batch: Batch,
    pub acks: Acks,
    pub deadline: MonotonicTime,
    /// Of a batch that may begin a transaction: see [`Partition::verification`].
    pub guard: Option<VerificationGuard>,
}

impl Partition {
    /// Appends a batch, or refuses it before anything is written. While this replica hands over, the batch waits.
    pub fn handle_produce(&mut self, now: MonotonicTime, request: ProduceRequest, peers: &Peers) {
        if let Some(request) = self.hold_back(request) {
            let ticket = request.ticket;
            if let Err(error) = self.append_batch(now, request, peers) {
                self.refuse(ticket, error);
            }
        }
        self.changed();
    }

    pub(super) fn refuse(&mut self, ticket: ProduceTicket, error: ErrorCode) {
        self.outputs.push_back(Output::Complete {
            ticket,
            result: Err(error),
        });
    }

    fn append_batch(
        &mut self,
        now: MonotonicTime,
        request: ProduceRequest,
        peers: &Peers,
    ) -> Result<(), ErrorCode> {
        let Role::Leader(leader) = &mut self.role else {
            return Err(self.not_leading());
        };
        let batch =
            producer_batch(&request.batch, request.guard).ok_or(ErrorCode::InvalidRecord)?;
        let mut acks = request.acks;
        let (base, end) = match leader.admit(now, batch, acks, peers)? {
            Admission::Duplicate { base, end } => {
                // Whatever the producer asks for now, it is told that its batch is there only once it is there to stay.
                if acks == Acks::Leader {
                    acks = Acks::All;
                }
                (base, end)
            }
            Admission::Append { previous, end } => {
                let prefix = stamped_prefix(&request.batch, previous.offset, leader.epoch());
                let rest = &request.batch.bytes[STAMP_LEN..];
                let frame = Frame::records(leader.epoch(), previous, end, &[&prefix, rest]);
                let appended = frame.end();
                if let Err(error) = self.log.append(&[frame]) {
                    return Err(self.append_failed(error));
                }
                self.found_no_room = false;
                if !self.log.take_rolls().is_empty() {
                    snapshot_roll(&mut self.log, leader.producers(), previous);
                }
                leader.handle_appended(batch, previous.offset, appended);
                (previous.offset, end)
            }
        };
        leader.wait(request.ticket, acks, base, end, request.deadline);
        self.drain_leader();
        self.sync();
        Ok(())
    }

    pub(super) fn append_failed(&mut self, error: AppendError) -> ErrorCode {
        if matches!(error, AppendError::NoSpace { .. }) {
            // The write was cut back: the log is whole, reads go on, and the next append may succeed.
            self.found_no_room = true;
            self.outputs.push_back(Output::Failed {
                cause: format!("cannot append to partition {}: {error}", self.id),
                stop_process: false,
            });
        } else {
            self.fail(
                format!("cannot append to partition {}: {error}", self.id),
                true,
            );
        }
        ErrorCode::KafkaStorageError
    }
}
