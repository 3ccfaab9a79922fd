//! A client of a cluster of this machine, and its topics.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Folder, LocalError};
use crate::client::{Client, ClientConfig, ClientError, IdentityDialer, NewTopic};
use crate::transport::{CurrentIdentity, Identity};
use crate::types::ErrorCode;

/// Before a topic that the cluster could not make yet is asked for again.
const TOPIC_PAUSE: Duration = Duration::from_millis(100);

/// The client's certificate and key.
pub fn load_identity(folder: &Folder) -> Result<Identity, LocalError> {
    let dir = folder.client_certs();
    Identity::load_client(&dir, None).map_err(|source| LocalError::Identity { dir, source })
}

/// A client with the ordinary settings. Must be called within a tokio runtime.
pub async fn connect(folder: &Folder) -> Result<Client, LocalError> {
    let servers = folder.nodes().iter().map(|node| node.quic.to_string());
    let config = ClientConfig::new(servers);
    let dialer = IdentityDialer::new(CurrentIdentity::new(load_identity(folder)?));
    Client::connect(config, Arc::new(dialer))
        .await
        .map_err(|source| LocalError::Client(Box::new(source)))
}

/// Makes a topic, or finds it made. On a busy machine a young cluster may change its controller once more, so that this is tried
/// again, `within` that time.
pub async fn create_topic(
    client: &Client,
    topic: &NewTopic,
    within: Duration,
) -> Result<(), ClientError> {
    let deadline = Instant::now() + within;
    loop {
        let error = match client.admin().create_topic(topic, false).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match error.error_code() {
            // Of a kept cluster, or of an earlier attempt whose answer was lost.
            Some(ErrorCode::TopicAlreadyExists) => return Ok(()),
            _ if error.is_retriable() && Instant::now() < deadline => {
                tokio::time::sleep(TOPIC_PAUSE).await;
            }
            _ => return Err(error),
        }
    }
}
