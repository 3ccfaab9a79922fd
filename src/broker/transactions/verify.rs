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
use crate::metadata::ClusterImage;
use crate::transactions::{Answer, ClientVersion, Reach, Request};
use crate::types::{ErrorCode, NodeId, ProducerId, TopicPartition};

/// How long a coordinator has for its answer, whatever its asker's own deadline: producers ask again.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

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
        let answers = self
            .ask_about(&image, id, producer, &wanted, reach, by)
            .await;
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
    use kafka_protocol::messages::add_partitions_to_txn_response::{
        AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
    };

    use super::*;

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
