//! DescribeCluster: the nodes, and which of them leads the metadata quorum.

use std::sync::Arc;

use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::{BrokerId, DescribeClusterRequest, DescribeClusterResponse};

use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::Context;
use crate::types::ErrorCode;

/// The endpoints that are described: those of brokers.
const BROKERS: i8 = 1;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: DescribeClusterRequest,
    version: i16,
) -> DescribeClusterResponse {
    if request.endpoint_type != BROKERS {
        return DescribeClusterResponse::default()
            .with_error_code(ErrorCode::InvalidRequest.code())
            .with_error_message(Some(text(
                "controllers have no endpoints of their own here: ask for brokers (endpoint type 1)",
            )));
    }
    let image = context.service.image();
    // Nodes that are down are listed only where the response can say that they are.
    let brokers = image
        .nodes()
        .filter_map(|node| {
            let fenced = !context.service.is_live(node.node);
            if fenced && !(version >= 2 && request.include_fenced_brokers) {
                return None;
            }
            let endpoint = context.listener.endpoint(node)?;
            Some(
                DescribeClusterBroker::default()
                    .with_broker_id(BrokerId(node.node.as_broker_id()))
                    .with_host(text(endpoint.host.clone()))
                    .with_port(endpoint.port.into())
                    .with_is_fenced(fenced),
            )
        })
        .collect();
    DescribeClusterResponse::default()
        .with_cluster_id(text(
            image
                .cluster_id()
                .map_or(String::new(), |id| id.to_string()),
        ))
        .with_controller_id(context.controller_id(&image).into())
        .with_brokers(brokers)
        .with_cluster_authorized_operations(i32::MIN)
}
