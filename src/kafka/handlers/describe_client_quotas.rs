//! DescribeClientQuotas: there are no quotas. Tools ask for them together with users.

use std::sync::Arc;

use kafka_protocol::messages::{DescribeClientQuotasRequest, DescribeClientQuotasResponse};

use crate::kafka::Service;
use crate::kafka::context::Context;

pub(super) async fn handle<S: Service>(
    _context: Arc<Context<S>>,
    _request: DescribeClientQuotasRequest,
    _version: i16,
) -> DescribeClientQuotasResponse {
    DescribeClientQuotasResponse::default()
        .with_error_message(None)
        .with_entries(Some(Vec::new()))
}
