//! The requests, one file each.

pub(super) mod api_versions;
mod create_partitions;
mod create_topics;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod fetch;
mod fetch_response;
mod find_coordinator;
mod incremental_alter_configs;
mod init_producer_id;
mod list_offsets;
mod metadata;
mod produce;

use std::future::Future;
use std::sync::Arc;

use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::{Request, StrBytes};

use super::codec::{BadRequest, RawRequest, text};
use super::connection::{Pending, Reply};
use super::context::Context;
use super::{Refusal, Service};

/// Takes a request in hand. What must happen in the order of requests has happened when this returns; the rest is in the
/// future that it returns.
pub(super) async fn begin<S: Service>(
    context: &Arc<Context<S>>,
    request: RawRequest,
) -> Result<Pending, BadRequest> {
    match request.api.key {
        ApiKey::Produce => produce::begin(context, &request).await,
        ApiKey::Fetch => fetch::begin(context, &request),
        ApiKey::ListOffsets => later(context, &request, list_offsets::handle),
        ApiKey::Metadata => later(context, &request, metadata::handle),
        ApiKey::FindCoordinator => later(context, &request, find_coordinator::handle),
        ApiKey::ApiVersions => later(context, &request, api_versions::handle),
        ApiKey::CreateTopics => later(context, &request, create_topics::handle),
        ApiKey::DeleteTopics => later(context, &request, delete_topics::handle),
        ApiKey::InitProducerId => later(context, &request, init_producer_id::handle),
        ApiKey::DescribeConfigs => later(context, &request, describe_configs::handle),
        ApiKey::CreatePartitions => later(context, &request, create_partitions::handle),
        ApiKey::IncrementalAlterConfigs => {
            later(context, &request, incremental_alter_configs::handle)
        }
        ApiKey::DescribeCluster => later(context, &request, describe_cluster::handle),
        // The table of served requests and this match are kept in step by a test.
        key => Err(BadRequest::UnknownApi {
            key: key as i16,
            version: request.version,
        }),
    }
}

/// A request all of whose work is done when its turn has come.
fn later<S, R, F>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
    handle: fn(Arc<Context<S>>, R, i16) -> F,
) -> Result<Pending, BadRequest>
where
    S: Service,
    R: Request + Send + 'static,
    R::Response: Send,
    F: Future<Output = R::Response> + Send + 'static,
{
    let decoded: R = request.decode()?;
    let answer = request.answer();
    let context = Arc::clone(context);
    Ok(Box::pin(async move {
        let response = handle(context, decoded, answer.version).await;
        Ok(Reply::Send(answer.encode(&response)?.into()))
    }))
}

/// Code and message of a result, as most responses carry them.
fn code_and_message<T>(result: &Result<T, Refusal>) -> (i16, Option<StrBytes>) {
    match result {
        Ok(_) => (0, None),
        Err(refusal) => (
            refusal.error.code(),
            Some(text(
                refusal
                    .message
                    .clone()
                    .unwrap_or_else(|| refusal.error.to_string()),
            )),
        ),
    }
}
