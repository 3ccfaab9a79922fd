//! A partition's leader asks the coordinator of a transaction whether that reaches the partition, or has it reach it.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_request::{
    AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction,
};
use kafka_protocol::messages::{self, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::{Broker, transactions_topic};
use crate::broker::internal_topics::place_of;
use crate::client::Backoff;
use crate::metadata::ClusterImage;
use crate::transactions::{Answer, ClientVersion, Reach, Request};
use crate::types::{ErrorCode, NodeId, ProducerId, TopicPartition};

/// How long a coordinator has for its answer, whatever its asker's own deadline: producers ask again.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// How long it is asked again on a producer's behalf whose last transaction is just being completed, or whose partition waits for
/// another one to be added: most often that is over before an answer would have reached the producer and come back. Kafka has
/// 100 ms for it (`add.partitions.to.txn.retry.backoff.max.ms`). The producer's connection waits meanwhile.
const BUSY_WITHIN: Duration = Duration::from_millis(200);
const BUSY_BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(10),
    max: Duration::from_millis(40),
};

/// A partition by name, as transactions know it.
type Named = (String, i32);
/// One for each partition.
type Answers = Vec<Result<(), ErrorCode>>;

impl Broker {
    /// One answer for each partition, in the same order. A producer that is fenced is told so in the word that producers know.
    pub(in crate::broker) async fn verify_with_coordinator(
        &self,
        id: &str,
        producer: (ProducerId, i16),
        partitions: &[TopicPartition],
        reach: Reach,
        deadline: Instant,
    ) -> Vec<Result<(), ErrorCode>> {
        let image = self.image_now();
        let named: Vec<Option<Named>> = partitions.iter().map(|id| name(&image, *id)).collect();
        let wanted: Vec<Named> = named.iter().flatten().cloned().collect();
        let by = deadline.min(Instant::now() + ANSWERED_WITHIN);
        let ask = || self.ask_about(&image, id, producer, &wanted, reach, by);
        let answers = match reach {
            Reach::Verify => ask().await,
            Reach::Add => while_busy(by, ask).await,
        };
        let mut answers = match answers {
            Ok(answers) => answers.into_iter(),
            Err(error) => return vec![Err(producers(error)); partitions.len()],
        };
        named
            .into_iter()
            .map(|named| match named {
                None => Err(ErrorCode::UnknownTopicOrPartition),
                Some(_) => answers
                    .next()
                    .unwrap_or(Err(ErrorCode::CoordinatorNotAvailable)),
            })
            .map(|answer| answer.map_err(producers))
            .collect()
    }

    async fn ask_about(
        &self,
        image: &ClusterImage,
        id: &str,
        (producer, epoch): (ProducerId, i16),
        wanted: &[Named],
        reach: Reach,
        by: Instant,
    ) -> Result<Answers, ErrorCode> {
        self.transactions.check_served(image)?;
        let leader: Option<NodeId> = transactions_topic(image).and_then(|topic| {
            topic
                .partition(place_of(topic, id).partition)?
                .leader_node()
        });
        let leader = leader.ok_or(ErrorCode::CoordinatorNotAvailable)?;
        if leader == self.shared.me.node {
            let partitions = wanted.to_vec();
            let request = match reach {
                Reach::Verify => Request::Verify {
                    producer,
                    epoch,
                    partitions,
                },
                Reach::Add => Request::AddPartitions {
                    producer,
                    epoch,
                    partitions,
                    version: ClientVersion::V2,
                },
            };
            return match self.transactions.ask(image, id, request, by).await? {
                Answer::Done => Ok(vec![Ok(()); wanted.len()]),
                Answer::Verified(verified) => Ok(verified
                    .into_iter()
                    .map(|reaches| reaches.then_some(()).ok_or(ErrorCode::InvalidTxnState))
                    .collect()),
                _ => Err(ErrorCode::UnknownServerError),
            };
        }
        let way = self
            .transactions
            .calls
            .to(image, leader)
            .ok_or(ErrorCode::CoordinatorNotAvailable)?;
        let request = request(id, producer, epoch, wanted, reach);
        match way.add_partitions(&request, by).await {
            Ok(response) => read(response, wanted),
            Err(error) => {
                tracing::debug!(node = %leader, cause = %error, "a transaction coordinator cannot be asked");
                Err(ErrorCode::CoordinatorNotAvailable)
            }
        }
    }
}

/// Asks until the transaction is not busy with something else, for [`BUSY_WITHIN`] and no longer than until `by`.
async fn while_busy<F>(by: Instant, ask: impl Fn() -> F) -> Result<Answers, ErrorCode>
where
    F: Future<Output = Result<Answers, ErrorCode>>,
{
    let by = by.min(Instant::now() + BUSY_WITHIN);
    let mut failures = 0;
    loop {
        let answers = ask().await;
        let busy = Err(ErrorCode::ConcurrentTransactions);
        let is_busy = match &answers {
            Ok(answers) => answers.contains(&busy),
            Err(error) => Err(*error) == busy,
        };
        failures += 1;
        let again = Instant::now() + BUSY_BACKOFF.after(failures, rand::random());
        if !is_busy || again >= by {
            return answers;
        }
        tokio::time::sleep_until(again).await;
    }
}

fn name(image: &ClusterImage, id: TopicPartition) -> Option<Named> {
    let topic = image.topic(id.topic)?;
    let index = i32::try_from(id.partition.0).ok()?;
    Some((topic.name.as_str().to_owned(), index))
}

/// What a coordinator says, as producers know it. Kafka's translation.
fn producers(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::ProducerFenced => ErrorCode::InvalidProducerEpoch,
        error => error,
    }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn request(
    id: &str,
    producer: ProducerId,
    epoch: i16,
    wanted: &[Named],
    reach: Reach,
) -> AddPartitionsToTxnRequest {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in wanted {
        topics.entry(topic).or_default().push(*partition);
    }
    let topics = topics.into_iter().map(|(name, partitions)| {
        AddPartitionsToTxnTopic::default()
            .with_name(messages::TopicName(text(name)))
            .with_partitions(partitions)
    });
    let transaction = AddPartitionsToTxnTransaction::default()
        .with_transactional_id(messages::TransactionalId(text(id)))
        .with_producer_id(messages::ProducerId(producer.get()))
        .with_producer_epoch(epoch)
        .with_verify_only(reach == Reach::Verify)
        .with_topics(topics.collect());
    AddPartitionsToTxnRequest::default().with_transactions(vec![transaction])
}

fn read(response: AddPartitionsToTxnResponse, wanted: &[Named]) -> Result<Answers, ErrorCode> {
    ErrorCode::from_code(response.error_code)?;
    let mut codes: BTreeMap<(String, i32), i16> = BTreeMap::new();
    for topic in response
        .results_by_transaction
        .into_iter()
        .flat_map(|transaction| transaction.topic_results)
    {
        for result in &topic.results_by_partition {
            let place = (topic.name.as_str().to_owned(), result.partition_index);
            codes.insert(place, result.partition_error_code);
        }
    }
    Ok(wanted
        .iter()
        .map(|place| match codes.get(place) {
            Some(code) => ErrorCode::from_code(*code),
            None => Err(ErrorCode::UnknownServerError),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use kafka_protocol::messages::add_partitions_to_txn_response::{
        AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
    };

    use super::*;

    /// The clock is the test's own.
    #[tokio::test(start_paused = true)]
    async fn a_busy_transaction_is_asked_again_and_not_for_long() {
        let begin = Instant::now();
        let asked = AtomicU32::new(0);
        let busy_for = |busy: u32| {
            let asked = &asked;
            move || async move {
                match asked.fetch_add(1, Ordering::Relaxed) < busy {
                    true => Ok(vec![Ok(()), Err(ErrorCode::ConcurrentTransactions)]),
                    false => Ok(vec![Ok(()), Ok(())]),
                }
            }
        };
        let by = begin + Duration::from_secs(5);
        assert_eq!(while_busy(by, busy_for(3)).await, Ok(vec![Ok(()), Ok(())]));
        assert_eq!(asked.load(Ordering::Relaxed), 4);
        assert!(begin.elapsed() < BUSY_WITHIN);
        let begin = Instant::now();
        let busy = while_busy(by, busy_for(u32::MAX)).await;
        assert_eq!(
            busy,
            Ok(vec![Ok(()), Err(ErrorCode::ConcurrentTransactions)])
        );
        assert!(begin.elapsed() < BUSY_WITHIN);
        // What else is refused is refused at once, and so is everything when there is no time left.
        let asked = AtomicU32::new(0);
        let ask = |error| {
            let asked = &asked;
            move || async move {
                asked.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        };
        let fenced = while_busy(by, ask(ErrorCode::ProducerFenced)).await;
        assert_eq!(fenced, Err(ErrorCode::ProducerFenced));
        let late = while_busy(Instant::now(), ask(ErrorCode::ConcurrentTransactions)).await;
        assert_eq!(late, Err(ErrorCode::ConcurrentTransactions));
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn answers_are_found_by_name_in_whatever_order_they_come() {
        let wanted = [
            ("b".to_owned(), 1),
            ("a".to_owned(), 0),
            ("b".to_owned(), 0),
        ];
        let producer = ProducerId::new(7).unwrap();
        let asked = request("id", producer, 3, &wanted, Reach::Verify);
        assert_eq!(asked.transactions[0].topics.len(), 2);
        assert!(asked.transactions[0].verify_only);
        let added = request("id", producer, 3, &wanted, Reach::Add);
        assert!(!added.transactions[0].verify_only);
        let result = |partition, code| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(partition)
                .with_partition_error_code(code)
        };
        let topic = |name: &str, results| {
            AddPartitionsToTxnTopicResult::default()
                .with_name(messages::TopicName(text(name)))
                .with_results_by_partition(results)
        };
        let transaction = AddPartitionsToTxnResult::default().with_topic_results(vec![
            topic("a", vec![result(0, 0)]),
            topic("b", vec![result(0, 48)]),
        ]);
        let response =
            AddPartitionsToTxnResponse::default().with_results_by_transaction(vec![transaction]);
        assert_eq!(
            read(response, &wanted),
            Ok(vec![
                Err(ErrorCode::UnknownServerError),
                Ok(()),
                Err(ErrorCode::InvalidTxnState),
            ])
        );
        let refused = AddPartitionsToTxnResponse::default().with_error_code(31);
        let error = Err(ErrorCode::ClusterAuthorizationFailed);
        assert_eq!(read(refused, &wanted), error);
        assert_eq!(
            producers(ErrorCode::ProducerFenced),
            ErrorCode::InvalidProducerEpoch
        );
    }
}
