//! EndTxn: a producer commits or aborts its transaction.

use std::sync::Arc;

use kafka_protocol::messages::{EndTxnRequest, EndTxnResponse};

use super::transactions::{in_words_of, producer, tell};
use crate::kafka::Service;
use crate::kafka::context::Context;
use crate::transactions::{Ending, Request};
use crate::types::ErrorCode;

/// Since this version, a producer that was fenced is told so in a word of its own.
const FENCED_SINCE: i16 = 2;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: EndTxnRequest,
    version: i16,
) -> EndTxnResponse {
    let code = match end(&context, &request).await {
        Ok(()) => 0,
        Err(error) => in_words_of(version, FENCED_SINCE, error).code(),
    };
    EndTxnResponse::default().with_error_code(code)
}

async fn end<S: Service>(context: &Context<S>, request: &EndTxnRequest) -> Result<(), ErrorCode> {
    let asked = Request::End {
        producer: producer(request.producer_id)?,
        epoch: request.producer_epoch,
        ending: match request.committed {
            true => Ending::Commit,
            false => Ending::Abort,
        },
    };
    tell(context, &request.transactional_id, asked).await
}
