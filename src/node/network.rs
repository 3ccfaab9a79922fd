//! The controller's way to other nodes: calls over QUIC.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::controller::{self, PeerNetwork};
use crate::transport::{self, CallPool, PeerAddress, PeerCalls};
use crate::types::NodeId;

pub(super) struct Network(pub(super) Arc<CallPool>);

impl PeerNetwork for Network {
    fn call<'a>(
        &'a self,
        node: NodeId,
        address: &'a str,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, controller::CallError>> {
        Box::pin(async move {
            let peer = PeerAddress::node(node, address);
            let called = self.0.call(&peer, request, timeout).await;
            called.map_err(|error| match error {
                transport::CallError::TimedOut { waited, .. } => {
                    controller::CallError::TimedOut(waited)
                }
                error => controller::CallError::Unreachable(with_causes(&error)),
            })
        })
    }
}

/// An error with everything that led to it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
