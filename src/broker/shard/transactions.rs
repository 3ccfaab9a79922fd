//! Ends of transactions, and questions about them, for an owner thread's partitions.

use super::Shard;
use crate::broker::clock::wall_clock_ms;
use crate::broker::event::MarkerEvent;
use crate::partition::MarkerRequest;
use crate::replication::{Acks, ProducerDescription, Verification};
use crate::types::{ErrorCode, ProducerId, TopicPartition};

impl Shard {
    pub(super) fn handle_marker(&mut self, event: MarkerEvent) {
        // Who has given it up asks again, and this one could come behind the next transaction of the same epoch and end that.
        if event.reply.is_closed() || event.deadline <= self.clock.now() {
            let _ = event.reply.send(Err(ErrorCode::RequestTimedOut));
            return;
        }
        let Some(owned) = self.partitions.get_mut(&event.id) else {
            let _ = event.reply.send(Err(ErrorCode::UnknownTopicOrPartition));
            return;
        };
        let now = self.clock.now();
        let ticket = self.replies.wait(now, event.id, Acks::All, event.reply);
        let request = MarkerRequest {
            ticket,
            marker: event.marker,
            wall_clock_ms: wall_clock_ms(),
            deadline: event.deadline,
        };
        owned.partition.handle_marker(now, request, &self.peers);
        self.drain(event.id);
    }

    pub(super) fn verification(
        &self,
        id: TopicPartition,
        (producer, epoch): (ProducerId, i16),
    ) -> Result<Verification, ErrorCode> {
        let owned = self.partitions.get(&id);
        let owned = owned.ok_or(ErrorCode::UnknownTopicOrPartition)?;
        owned.partition.verification(producer, epoch)
    }

    pub(super) fn describe_producers(
        &self,
        id: TopicPartition,
    ) -> Result<Vec<ProducerDescription>, ErrorCode> {
        let owned = self.partitions.get(&id);
        let owned = owned.ok_or(ErrorCode::UnknownTopicOrPartition)?;
        owned.partition.describe_producers()
    }
}
