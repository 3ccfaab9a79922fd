//! What becomes of a record that was handed over.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Shared;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::client::error::ClientError;
use crate::client::metadata::PartitionName;
use crate::types::{ErrorCode, Offset, PartitionIndex, TopicName};

/// What became of a batch, or why it failed.
pub(super) type BatchResult = Result<BatchOutcome, Arc<DeliveryError>>;
pub(super) type BatchDone = Shared<oneshot::Receiver<BatchResult>>;

/// How a batch came to an end without having failed.
#[derive(Clone, Debug)]
pub(super) enum BatchOutcome {
    /// The first record's offset. `None` where it is not known: `acks=0`, or a duplicate that the leader no longer remembers
    /// the offset of.
    Stored(Option<i64>),
    /// It was too large for the topic, and its records went on in two batches: the first `first_count` of them in one, the
    /// others in the other.
    Split {
        first_count: i32,
        first: BatchDone,
        second: BatchDone,
    },
}

/// A record that the cluster acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub partition: PartitionIndex,
    /// `None` with `acks=0`, where nobody says; and where the record was sent twice and the leader remembers that it has
    /// it, but no longer where.
    pub offset: Option<Offset>,
}

/// A record that was not acknowledged.
#[derive(Clone, Debug, Error)]
#[error("{topic}-{partition}: not acknowledged after {elapsed:.1?} and {attempts} attempts")]
pub struct DeliveryError {
    pub topic: TopicName,
    pub partition: PartitionIndex,
    /// How often its batch was sent.
    pub attempts: u32,
    /// From when its batch was opened.
    pub elapsed: Duration,
    /// Whether the record may be in the log although it was not acknowledged. `false` is certain.
    pub may_be_stored: bool,
    #[source]
    pub cause: DeliveryCause,
}

/// Why a record was not acknowledged.
#[derive(Clone, Debug, Error)]
pub enum DeliveryCause {
    /// The cluster refused it, and trying again would not help.
    #[error(transparent)]
    Failed(ClientError),
    /// `delivery.timeout.ms` is over. `last` is why the last attempt failed, if there was one.
    #[error("the time for its delivery is over{}", last_words(last))]
    TimedOut { last: Option<Box<ClientError>> },
    /// The producer's id had to be replaced while it was not known whether the record had been appended.
    #[error(
        "whether it was stored is unknown, and it cannot be sent again without the risk of storing it twice{}",
        last_words(last)
    )]
    OutcomeUnknown { last: Option<Box<ClientError>> },
    #[error("the producer was closed before the record was acknowledged")]
    Closed,
}

fn last_words(last: &Option<Box<ClientError>>) -> String {
    let Some(error) = last else {
        return String::new();
    };
    let mut words = format!(": {error}");
    let mut source = std::error::Error::source(error.as_ref());
    while let Some(error) = source {
        words.push_str(&format!(": {error}"));
        source = error.source();
    }
    words
}

impl DeliveryCause {
    /// The leader lost what it had acknowledged.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, DeliveryCause::Failed(error)
            if error.error_code() == Some(ErrorCode::OutOfOrderSequenceNumber))
    }
}

impl DeliveryError {
    /// Kafka's code, where the cluster gave one.
    pub fn error_code(&self) -> Option<ErrorCode> {
        self.last_failure().and_then(ClientError::error_code)
    }

    /// The failure of the last attempt.
    pub fn last_failure(&self) -> Option<&ClientError> {
        match &self.cause {
            DeliveryCause::Failed(error) => Some(error),
            DeliveryCause::TimedOut { last } | DeliveryCause::OutcomeUnknown { last } => {
                last.as_deref()
            }
            DeliveryCause::Closed => None,
        }
    }
}

/// Resolves when its record is acknowledged or has failed. Dropping it changes nothing for the record.
#[derive(Clone, Debug)]
#[must_use = "a record is only known to be stored when its delivery says so"]
pub struct Delivery {
    name: PartitionName,
    index: i32,
    done: BatchDone,
}

impl Delivery {
    pub(super) fn new(name: PartitionName, index: i32, done: BatchDone) -> Delivery {
        Delivery { name, index, done }
    }

    /// The partition that the record goes to.
    pub fn partition(&self) -> PartitionIndex {
        self.name.partition
    }
}

impl Future for Delivery {
    type Output = Result<Delivered, DeliveryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = loop {
            match std::task::ready!(Pin::new(&mut self.done).poll(cx)) {
                // The record went on in another batch.
                Ok(Ok(BatchOutcome::Split {
                    first_count,
                    first,
                    second,
                })) => {
                    if self.index < first_count {
                        self.done = first;
                    } else {
                        self.index -= first_count;
                        self.done = second;
                    }
                }
                Ok(Ok(BatchOutcome::Stored(base))) => break Ok(Ok(base)),
                Ok(Err(error)) => break Ok(Err(error)),
                Err(gone) => break Err(gone),
            }
        };
        Poll::Ready(match result {
            Ok(Ok(base)) => Ok(Delivered {
                partition: self.name.partition,
                offset: base
                    .and_then(|base| base.checked_add(i64::from(self.index)))
                    .and_then(Offset::from_wire),
            }),
            Ok(Err(error)) => Err(Arc::unwrap_or_clone(error)),
            // The sender is gone without an answer: its runtime was shut down.
            Err(_) => Err(DeliveryError {
                topic: self.name.topic.clone(),
                partition: self.name.partition,
                attempts: 0,
                elapsed: Duration::ZERO,
                may_be_stored: true,
                cause: DeliveryCause::Closed,
            }),
        })
    }
}
