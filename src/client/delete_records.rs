//! Deleting the first records of a partition.

use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::{self, DeleteRecordsRequest};

use super::admin::Admin;
use super::error::ClientError;
use super::metadata::PartitionName;
use super::patience::Patience;
use super::wire_str;
use crate::types::Offset;

impl Admin {
    /// Deletes a partition's records below `before`, on every replica and for good; below its high watermark where none is
    /// given. Returns where the partition begins now. Asked again while the leader moves, because it does no harm twice.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `OffsetOutOfRange` where `before` is above the high watermark.
    pub async fn delete_records(
        &self,
        partition: &PartitionName,
        before: Option<Offset>,
    ) -> Result<Offset, ClientError> {
        let client = self.client();
        let mut patience = Patience::new(client, client.config().request_timeout);
        loop {
            let error = match self.delete_once(partition, before).await {
                Ok(start) => return Ok(start),
                Err(error) if error.is_retriable() => error,
                Err(error) => return Err(error),
            };
            if !patience.pause().await {
                return Err(patience.gave_up(format!("deleting records of {partition}"), error));
            }
            client
                .refresh(std::slice::from_ref(&partition.topic), false)
                .await?;
        }
    }

    async fn delete_once(
        &self,
        partition: &PartitionName,
        before: Option<Offset>,
    ) -> Result<Offset, ClientError> {
        let client = self.client();
        let no_leader = || ClientError::NoLeader {
            topic: partition.topic.clone(),
            partition: partition.partition,
            after: std::time::Duration::ZERO,
        };
        let view = client.view();
        let (leader, ..) = view
            .leader(&partition.topic, partition.partition)
            .ok_or_else(no_leader)?;
        let link = client.node_link(leader).ok_or_else(no_leader)?;
        let timeout = client.config().request_timeout;
        let asked = DeleteRecordsPartition::default()
            .with_partition_index(partition.partition.to_wire())
            .with_offset(before.map_or(-1, Offset::to_wire));
        let topic = DeleteRecordsTopic::default()
            .with_name(messages::TopicName(wire_str(partition.topic.as_str())))
            .with_partitions(vec![asked]);
        let request = DeleteRecordsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX));
        let response = link.call(&request, timeout).await?;
        let answers = response.topics.iter().flat_map(|topic| &topic.partitions);
        for answer in answers {
            let what = || format!("deleting records of {partition}");
            ClientError::check(answer.error_code, None, what)?;
            if let Some(start) = Offset::from_wire(answer.low_watermark) {
                return Ok(start);
            }
        }
        Err(no_leader())
    }
}
