//! EndTxn: a producer commits or aborts its transaction and, since version 5, gets the epoch of its next one.

use std::sync::Arc;

use kafka_protocol::messages::{EndTxnRequest, EndTxnResponse, ProducerId};

use super::transactions::{ask, in_words_of, producer};
use crate::kafka::Service;
use crate::kafka::context::Context;
use crate::transactions::{Answer, ClientVersion, Ending, Request};
use crate::types::{self, ErrorCode};

/// Since this version, a producer that was fenced is told so in a word of its own.
const FENCED_SINCE: i16 = 2;
/// Since this version, each transaction of the client has an epoch of its own.
const BUMPS_SINCE: i16 = 5;

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: EndTxnRequest,
    version: i16,
) -> EndTxnResponse {
    let (code, next) = match end(&context, &request, version).await {
        Ok(next) => (0, next),
        Err(error) => (in_words_of(version, FENCED_SINCE, error).code(), None),
    };
    let (producer, epoch) = next.map_or((-1, -1), |(producer, epoch)| (producer.get(), epoch));
    EndTxnResponse::default()
        .with_error_code(code)
        .with_producer_id(ProducerId(producer))
        .with_producer_epoch(epoch)
}

/// What the producer is from its next transaction on, where it gets another epoch.
async fn end<S: Service>(
    context: &Context<S>,
    request: &EndTxnRequest,
    version: i16,
) -> Result<Option<(types::ProducerId, i16)>, ErrorCode> {
    let asked = Request::End {
        producer: producer(request.producer_id)?,
        epoch: request.producer_epoch,
        ending: match request.committed {
            true => Ending::Commit,
            false => Ending::Abort,
        },
        version: match version >= BUMPS_SINCE {
            true => ClientVersion::V2,
            false => ClientVersion::V1,
        },
        fresh: None,
    };
    match ask(context, &request.transactional_id, asked).await? {
        Answer::Done => Ok(None),
        Answer::Producer { producer, epoch } => Ok(Some((producer, epoch))),
        _ => Err(ErrorCode::UnknownServerError),
    }
}
