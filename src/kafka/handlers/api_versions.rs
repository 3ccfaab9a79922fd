//! ApiVersions: which requests a client may send, and which features the cluster has.

use std::sync::Arc;

use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};

use crate::kafka::Service;
use crate::kafka::codec::{Answer, BadRequest};
use crate::kafka::connection::{Pending, Reply};
use crate::kafka::context::Context;
use crate::kafka::features::put_features;
use crate::kafka::versions::SERVED_APIS;
use crate::types::ErrorCode;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    _request: ApiVersionsRequest,
    version: i16,
) -> ApiVersionsResponse {
    put_features(&context.service.image(), version, table())
}

/// The answer to a version that is not served: version 0, whose header and body every client reads, with an error that
/// makes it ask again in a version of the table.
pub(in crate::kafka) fn unknown_version(correlation_id: i32) -> Result<Pending, BadRequest> {
    let answer = Answer {
        key: ApiKey::ApiVersions,
        version: 0,
        correlation_id,
    };
    let response = table().with_error_code(ErrorCode::UnsupportedVersion.code());
    let bytes = answer.encode(&response)?;
    Ok(Box::pin(async { Ok(Reply::Send(bytes.into())) }))
}

fn table() -> ApiVersionsResponse {
    let apis = SERVED_APIS.iter().map(|api| {
        ApiVersion::default()
            .with_api_key(api.key as i16)
            .with_min_version(api.advertised_min)
            .with_max_version(api.max)
    });
    ApiVersionsResponse::default().with_api_keys(apis.collect())
}
