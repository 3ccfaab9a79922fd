//! Answers admin requests over a connection.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Semaphore;

use super::message::{AdminRequest, AdminResponse, MAX_REQUEST_BYTES};
use super::status::node_status;
use crate::broker::Broker;

/// Requests of one connection that are answered at a time; further ones wait.
const MAX_RUNNING: usize = 8;
/// How long a request may take to arrive, and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves one connection until it ends.
pub async fn serve(broker: Arc<Broker>, connection: Connection) {
    let running = Arc::new(Semaphore::new(MAX_RUNNING));
    loop {
        // Never closed, so this never fails.
        let permit = running.clone().acquire_owned().await;
        let Ok((send, receive)) = connection.accept_bi().await else {
            return;
        };
        let broker = broker.clone();
        tokio::spawn(async move {
            let answered = tokio::time::timeout(PATIENCE, answer(&broker, send, receive)).await;
            if answered.is_err() {
                tracing::debug!("an admin request was given up: the peer took too long");
            }
            drop(permit);
        });
    }
}

async fn answer(broker: &Broker, mut send: SendStream, mut receive: RecvStream) {
    let response = match receive.read_to_end(MAX_REQUEST_BYTES).await {
        Ok(body) => match serde_json::from_slice(&body) {
            Ok(AdminRequest::Status) => AdminResponse::Status(Box::new(node_status(broker).await)),
            Err(error) => AdminResponse::Refused(format!("the request cannot be read: {error}")),
        },
        Err(error) => AdminResponse::Refused(format!("the request did not arrive: {error}")),
    };
    match serde_json::to_vec(&response) {
        Ok(body) => {
            // A peer that has gone away has no use for the answer.
            let _ = send.write_all(&body).await;
            let _ = send.finish();
        }
        Err(error) => tracing::error!(cause = %error, "an admin answer cannot be written"),
    }
}
