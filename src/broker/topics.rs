//! Changes to topics, carried to the active controller.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::Broker;
use crate::controller::SubmitError;
use crate::kafka::{CreatedTopic, Refusal, Service};
use crate::metadata::{
    ClusterImage, Command, ConfigChange, CreatePartitionsRequest, CreateTopicRequest, Rejection,
};
use crate::types::{ErrorCode, NodeId, TopicId};

impl Broker {
    pub(super) async fn create_topic(
        &self,
        request: CreateTopicRequest,
        validate_only: bool,
        deadline: Instant,
    ) -> Result<CreatedTopic, Refusal> {
        if validate_only {
            let image = self.try_out(|image, alive| request.resolve(image, alive))?;
            return created(&image, request.id).ok_or(ErrorCode::UnknownServerError.into());
        }
        let id = request.id;
        let id = match self
            .controller
            .create_topic(request, time_left(deadline))
            .await
        {
            Ok(topic) => topic,
            // The same request sent twice: the first attempt's answer was lost.
            Err(SubmitError::Rejected(Rejection::TopicExists(_)))
                if self.image().topic(id).is_some() =>
            {
                id
            }
            Err(error) => return Err(refused(&error)),
        };
        self.until(|image| image.topic(id).is_some(), deadline)
            .await;
        created(&self.image(), id).ok_or(ErrorCode::RequestTimedOut.into())
    }

    pub(super) async fn add_partitions(
        &self,
        request: CreatePartitionsRequest,
        validate_only: bool,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        if validate_only {
            self.try_out(|image, alive| request.resolve(image, alive))?;
            return Ok(());
        }
        let (topic, total) = (request.topic, request.total as usize);
        self.controller
            .create_partitions(request, time_left(deadline))
            .await
            .map_err(|error| refused(&error))?;
        let grown = |image: &ClusterImage| {
            image
                .topic(topic)
                .is_some_and(|topic| topic.partitions.len() >= total)
        };
        self.until(grown, deadline).await;
        Ok(())
    }

    pub(super) fn validate_config(
        &self,
        topic: TopicId,
        changes: &[ConfigChange],
    ) -> Result<(), Refusal> {
        let changes = changes.to_vec();
        self.try_out(|_, _| Ok(Command::SetTopicConfigs { topic, changes }))?;
        Ok(())
    }

    /// What the metadata would be after a command, which is not proposed: everything is checked and nothing done.
    fn try_out(
        &self,
        resolve: impl FnOnce(&ClusterImage, &BTreeSet<NodeId>) -> Result<Command, Rejection>,
    ) -> Result<ClusterImage, Refusal> {
        let mut image = (*self.image()).clone();
        let command = resolve(&image, &self.controller.alive()).map_err(rejected)?;
        image.apply(&command).map_err(rejected)?;
        Ok(image)
    }

    /// Has a command committed, then waits until this node's own image shows it, so that a client that asks again sees what
    /// it did.
    pub(super) async fn command(
        &self,
        command: Command,
        shown: impl Fn(&ClusterImage) -> bool,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        self.controller
            .submit(command, time_left(deadline))
            .await
            .map_err(|error| refused(&error))?;
        self.until(shown, deadline).await;
        Ok(())
    }

    async fn until(&self, shown: impl Fn(&ClusterImage) -> bool, deadline: Instant) {
        let mut images = self.controller.image();
        let wait = images.wait_for(|image| shown(image));
        // The change is committed either way; only this node is late.
        let _ = tokio::time::timeout_at(deadline, wait).await;
    }
}

fn time_left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

fn created(image: &ClusterImage, topic: TopicId) -> Option<CreatedTopic> {
    let topic = image.topic(topic)?;
    Some(CreatedTopic {
        partitions: u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX),
        replication_factor: u32::try_from(topic.replication_factor()).unwrap_or(u32::MAX),
    })
}

fn rejected(rejection: Rejection) -> Refusal {
    Refusal {
        error: rejection.error_code(),
        message: Some(rejection.to_string()),
    }
}

fn refused(error: &SubmitError) -> Refusal {
    Refusal {
        error: error.error_code(),
        message: Some(error.to_string()),
    }
}
