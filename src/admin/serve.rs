//! Answers admin requests over a connection.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Semaphore;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::http::Sources;
use super::message::{AdminRequest, AdminResponse, MAX_REQUEST_BYTES};
use super::status::{node_links, node_status};
use crate::broker::Broker;
use crate::controller::{OperateError, Operation};

/// Requests of one connection that are answered at a time; further ones wait.
const MAX_RUNNING: usize = 8;
/// How long a request may take to arrive, and its answer to be made and taken.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that an operation is waited for, whatever its client asks for.
const MAX_OPERATE_TIMEOUT: Duration = Duration::from_secs(600);

/// Serves one connection until it ends.
pub async fn serve(sources: Arc<Sources>, connection: Connection) {
    let running = Arc::new(Semaphore::new(MAX_RUNNING));
    loop {
        // Never closed, so this never fails.
        let permit = running.clone().acquire_owned().await;
        let Ok((send, receive)) = connection.accept_bi().await else {
            return;
        };
        let sources = sources.clone();
        tokio::spawn(async move {
            if serve_one(&sources, send, receive).await.is_err() {
                tracing::debug!("an admin request was given up: the peer took too long");
            }
            drop(permit);
        });
    }
}

async fn serve_one(
    sources: &Sources,
    send: SendStream,
    mut receive: RecvStream,
) -> Result<(), Elapsed> {
    let broker = &*sources.broker;
    let arrived = timeout(PATIENCE, receive.read_to_end(MAX_REQUEST_BYTES)).await?;
    let response = match arrived {
        Ok(body) => match serde_json::from_slice(&body) {
            Ok(AdminRequest::Status) => {
                let status = timeout(PATIENCE, node_status(broker)).await?;
                AdminResponse::Status(Box::new(status))
            }
            Ok(AdminRequest::Links) => {
                AdminResponse::Links(timeout(PATIENCE, node_links(broker)).await?)
            }
            Ok(AdminRequest::Vitals) => {
                let vitals = timeout(PATIENCE, sources.doctor.vitals(broker)).await?;
                AdminResponse::Vitals(Box::new(vitals))
            }
            Ok(AdminRequest::MeasureDisk) => {
                AdminResponse::Disk(timeout(PATIENCE, sources.doctor.disk(broker)).await?)
            }
            // The time that it is given bounds it, and a cap of its own.
            Ok(AdminRequest::ExaminePeers { within_ms }) => {
                let within = Duration::from_millis(within_ms);
                AdminResponse::Findings(sources.doctor.examine_peers(broker, within).await)
            }
            // Its own timeout bounds it.
            Ok(AdminRequest::Operate {
                operation,
                timeout_ms,
            }) => operate(broker, operation, Duration::from_millis(timeout_ms)).await,
            Err(error) => AdminResponse::Refused(format!("the request cannot be read: {error}")),
        },
        Err(error) => AdminResponse::Refused(format!("the request did not arrive: {error}")),
    };
    timeout(PATIENCE, answer(send, response)).await
}

async fn operate(broker: &Broker, operation: Operation, within: Duration) -> AdminResponse {
    tracing::info!(?operation, "an operator asks");
    let within = within.min(MAX_OPERATE_TIMEOUT);
    match broker.controller().operate(operation, within).await {
        Ok(outcome) => AdminResponse::Operated(outcome),
        Err(OperateError::Refused(refusal)) => AdminResponse::NotDone(refusal.to_string()),
        Err(error) => AdminResponse::Unknown(error.to_string()),
    }
}

async fn answer(mut send: SendStream, response: AdminResponse) {
    match serde_json::to_vec(&response) {
        Ok(body) => {
            // A peer that has gone away has no use for the answer.
            let _ = send.write_all(&body).await;
            let _ = send.finish();
        }
        Err(error) => tracing::error!(cause = %error, "an admin answer cannot be written"),
    }
}
