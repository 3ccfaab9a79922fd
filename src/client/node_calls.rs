//! What nodes ask of each other in Kafka's protocol: about transactions.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, WriteTxnMarkersRequest,
    WriteTxnMarkersResponse,
};

use super::api::Spoken;
use super::backoff::Backoff;
use super::dial::Dialer;
use super::error::ClientError;
use super::link::Link;

/// For a connection, and again for the node's first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One node's way to another, whose certificate must name it a node. One connection, dialled when it is first needed and
/// then with backoff; nothing waits in it.
pub struct NodeCalls {
    link: Arc<Link>,
}

impl NodeCalls {
    /// The way to `address` (`host:port`). `seed` is any number: for jitter.
    pub fn new(address: String, dialer: Arc<dyn Dialer>, seed: u64) -> NodeCalls {
        let backoff = Backoff::default();
        NodeCalls {
            link: Arc::new(Link::new(address, dialer, CONNECT_TIMEOUT, backoff, seed)),
        }
    }

    pub fn address(&self) -> &str {
        &self.link.address
    }

    /// Asks a coordinator about a transaction's partitions. Version 4 or later: the request names transactions.
    pub async fn add_partitions(
        &self,
        request: &AddPartitionsToTxnRequest,
        timeout: Duration,
    ) -> Result<AddPartitionsToTxnResponse, ClientError> {
        self.link.call(request, timeout).await
    }

    /// Has markers written, on a stream of the request's own: the answer may take as long as a commit, and keeps no other
    /// waiting.
    pub async fn write_markers(
        &self,
        request: &WriteTxnMarkersRequest,
        timeout: Duration,
    ) -> Result<WriteTxnMarkersResponse, ClientError> {
        let (lane, session) = self.link.open_lane().await?;
        let version = session
            .versions
            .pick::<WriteTxnMarkersRequest>(&self.link.address)?;
        let name = WriteTxnMarkersRequest::NAME;
        let answer = lane.call(request, version, name, timeout).await;
        if let Err(ClientError::TimedOut { .. } | ClientError::Lost { .. }) = &answer {
            // It may still be on its way. Sent again on another stream it could be overtaken, and then end a transaction that
            // its producer has begun since: what goes with this connection arrives before that, or never.
            self.link.close();
        }
        answer
    }
}

impl Drop for NodeCalls {
    fn drop(&mut self) {
        self.link.close();
    }
}
