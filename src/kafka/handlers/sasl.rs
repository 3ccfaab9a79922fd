//! SaslHandshake and SaslAuthenticate: a client says who it is, and proves it.
//!
//! Both are done before the next request is read, because what may come next depends on them.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};

use crate::kafka::Service;
use crate::kafka::codec::{BadRequest, RawRequest, text};
use crate::kafka::connection::{Pending, Reply};
use crate::kafka::context::Context;
use crate::kafka::login::FAILED_LOGIN_DELAY;

/// Answers SaslHandshake.
pub(super) fn handshake<S: Service>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
) -> Result<Pending, BadRequest> {
    let decoded: SaslHandshakeRequest = request.decode()?;
    let mut login = context.login();
    let chosen = login.choose(&decoded.mechanism);
    let mechanisms = login.mechanisms().into_iter().map(text).collect();
    let response = SaslHandshakeResponse::default()
        .with_error_code(chosen.err().map_or(0, |error| error.code()))
        .with_mechanisms(mechanisms);
    let bytes = request.answer().encode(&response)?;
    Ok(reply(bytes, chosen.is_ok() || !login.is_due()))
}

/// Answers SaslAuthenticate.
pub(super) async fn authenticate<S: Service>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
) -> Result<Pending, BadRequest> {
    let decoded: SaslAuthenticateRequest = request.decode()?;
    let mut login = context.login().take();
    let stepped = login
        .step(&decoded.auth_bytes, &*context.service, &context.doorman)
        .await;
    *context.login() = login;
    let goes_on = stepped.is_ok();
    let response = match stepped {
        Ok(message) => SaslAuthenticateResponse::default()
            .with_error_message(None)
            .with_auth_bytes(message.into()),
        Err(error) => SaslAuthenticateResponse::default()
            .with_error_code(error.code())
            .with_error_message(Some(text(error.to_string()))),
    };
    let bytes = request.answer().encode(&response)?;
    Ok(reply(bytes, goes_on))
}

/// A client that has failed waits for its answer, which is its last.
fn reply(bytes: Bytes, goes_on: bool) -> Pending {
    Box::pin(async move {
        if goes_on {
            return Ok(Reply::Send(bytes.into()));
        }
        tokio::time::sleep(FAILED_LOGIN_DELAY).await;
        Ok(Reply::Last(bytes.into()))
    })
}
