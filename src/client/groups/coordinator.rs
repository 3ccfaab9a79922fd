//! The node that looks after a group. It changes with the leader of the partition that holds the group.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::FindCoordinatorRequest;

use crate::client::api::Spoken;
use crate::client::error::ClientError;
use crate::client::link::Link;
use crate::client::metadata::host_port;
use crate::client::patience::Patience;
use crate::client::{Client, wire_str};
use crate::types::{ErrorCode, NodeId};

/// How often it is asked, while a coordinator owes an answer, whether it still is the coordinator.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Whether a coordinator may answer otherwise soon, or another one does.
pub(super) fn is_passing(error: &ClientError) -> bool {
    let code = matches!(
        error.error_code(),
        Some(
            ErrorCode::NotCoordinator
                | ErrorCode::CoordinatorNotAvailable
                | ErrorCode::CoordinatorLoadInProgress
                | ErrorCode::RequestTimedOut
        )
    );
    let is_lost = matches!(
        error,
        ClientError::Connect(_) | ClientError::Lost { .. } | ClientError::TimedOut { .. }
    );
    code || is_lost
}

impl Client {
    /// The group's coordinator and the way to it, as the cluster says now.
    pub(super) async fn find_coordinator(
        &self,
        group: &str,
    ) -> Result<(NodeId, Arc<Link>), ClientError> {
        let request = FindCoordinatorRequest::default()
            .with_key_type(0)
            .with_coordinator_keys(vec![wire_str(group)]);
        let timeout = self.config().request_timeout;
        let response = self.call_any(&request, timeout, false).await?;
        let found = response.coordinators.first();
        let found = found.ok_or_else(|| ClientError::Malformed {
            address: "the cluster".to_owned(),
            request: FindCoordinatorRequest::NAME,
            what: format!("it says nothing of group {group}"),
        })?;
        ClientError::check(found.error_code, found.error_message.as_deref(), || {
            format!("looking for the coordinator of group {group}")
        })?;
        let node =
            NodeId::from_broker_id(found.node_id.0).ok_or_else(|| ClientError::Malformed {
                address: "the cluster".to_owned(),
                request: FindCoordinatorRequest::NAME,
                what: format!("{} is no node id", found.node_id.0),
            })?;
        Ok((node, self.link(&host_port(&found.host, found.port))))
    }

    /// Ends when the group has another coordinator than `node`, or that one is elsewhere than `link` leads. One that was killed, or is cut off, answers nothing and refuses
    /// nothing: a request to it would be waited for long after another node has taken its groups over.
    pub(super) async fn coordinator_moved(
        &self,
        group: &str,
        node: NodeId,
        link: &Link,
    ) -> ClientError {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Ok((now, way)) = self.find_coordinator(group).await
                && (now != node || way.address != link.address)
            {
                return ClientError::Refused {
                    what: format!("waiting for node {node}, which looked after group {group}"),
                    code: ErrorCode::NotCoordinator,
                    message: None,
                };
            }
        }
    }

    /// Asks a group's coordinator; where it has moved or is not ready, again, for as long as a request may take. So a request
    /// may be carried out twice. `read` is told which node has answered.
    pub(super) async fn at_coordinator<R: Spoken, T>(
        &self,
        group: &str,
        request: &R,
        read: impl Fn(R::Response, NodeId) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut patience = Patience::new(self, self.config().request_timeout);
        loop {
            let left = patience.left();
            let attempt = async {
                let (node, link) = self.find_coordinator(group).await?;
                tokio::select! {
                    response = link.call(request, left) => read(response?, node),
                    moved = self.coordinator_moved(group, node, &link) => Err(moved),
                }
            };
            let error = match attempt.await {
                Ok(found) => return Ok(found),
                Err(error) if is_passing(&error) => error,
                Err(error) => return Err(error),
            };
            if !patience.pause().await {
                let what = format!("{} request for group {group}", R::NAME);
                return Err(patience.gave_up(what, error));
            }
        }
    }
}
