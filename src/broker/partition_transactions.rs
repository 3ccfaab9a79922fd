//! What the partitions of this node are asked about transactions.

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Broker;
use super::event::{Event, MarkerEvent};
use crate::record::Marker;
use crate::replication::{ProducerDescription, Verification};
use crate::types::{ErrorCode, ProducerId, TopicPartition};

impl Broker {
    pub(super) async fn ask_verification(
        &self,
        id: TopicPartition,
        producer: (ProducerId, i16),
        deadline: Instant,
    ) -> Result<Verification, ErrorCode> {
        self.ask(id, deadline, |reply| Event::Verification {
            id,
            producer,
            reply,
        })
        .await
    }

    pub(super) async fn ask_producers(
        &self,
        id: TopicPartition,
        deadline: Instant,
    ) -> Result<Vec<ProducerDescription>, ErrorCode> {
        self.ask(id, deadline, |reply| Event::Producers { id, reply })
            .await
    }

    /// Appends the marker to the partition's log, and waits until it is committed.
    pub(super) async fn append_marker(
        &self,
        id: TopicPartition,
        marker: Marker,
        deadline: Instant,
    ) -> Result<(), ErrorCode> {
        let until = self.shared.clock.at(deadline.into_std());
        let event = |reply| {
            Event::Marker(Box::new(MarkerEvent {
                id,
                marker,
                deadline: until,
                reply,
            }))
        };
        self.ask(id, deadline, event).await.map(|_| ())
    }

    /// Asks the partition's owner. Both its turn and its answer come by the deadline, or the request has timed out.
    async fn ask<T>(
        &self,
        id: TopicPartition,
        deadline: Instant,
        event: impl FnOnce(oneshot::Sender<Result<T, ErrorCode>>) -> Event,
    ) -> Result<T, ErrorCode> {
        self.partition(id)?;
        let (reply, answer) = oneshot::channel();
        let event = event(reply);
        let asked = async {
            let delivered = self.shared.deliver(id, event).await;
            delivered.map_err(|_| ErrorCode::NotLeaderOrFollower)?;
            // An owner that goes away without a word leaves it to the next leader.
            answer.await.unwrap_or(Err(ErrorCode::NotLeaderOrFollower))
        };
        timeout_at(deadline, asked)
            .await
            .unwrap_or(Err(ErrorCode::RequestTimedOut))
    }
}
