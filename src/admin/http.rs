//! The HTTP endpoint for probes, for Prometheus and for people with curl: read only, and a few pages of it.
//!
//! | path | answer |
//! | --- | --- |
//! | `/health/live` | 200 while the process answers at all |
//! | `/health/ready` | 200 or 503, with [`Readiness`](super::Readiness) as JSON |
//! | `/metrics` | Prometheus' text format |
//! | `/cluster` | [`NodeStatus`] as JSON: what `quorate cluster status` asks for |
//! | `/links` | its links alone |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::doctor::Doctor;
use super::exposition;
use super::health::readiness;
use super::message::NodeStatus;
use super::metrics;
use super::status::node_status;
use crate::broker::Broker;
use crate::{kafka, transport};

/// Connections at a time, TLS handshakes included. Further ones are closed at once.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a connection may last, whatever it does: a client that wants more connects again.
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// How long the head of a request may take to arrive, from the end of the one before.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// The most bytes of a request's head. A longer one is answered with 431. No request's body is ever read.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Pages in the making at a time, all connections together; each asks every owner thread of the node. Further ones wait.
const MAX_RUNNING: usize = 2;

/// What pages and answers are made from.
pub struct Sources {
    pub broker: Arc<Broker>,
    pub kafka: Arc<kafka::Server<Broker>>,
    pub quic: transport::Server,
    pub(super) doctor: Doctor,
    running: Semaphore,
}

impl Sources {
    pub fn new(
        broker: Arc<Broker>,
        kafka: Arc<kafka::Server<Broker>>,
        quic: transport::Server,
    ) -> Sources {
        Sources {
            broker,
            kafka,
            doctor: Doctor::new(quic.udp_buffers()),
            quic,
            running: Semaphore::new(MAX_RUNNING),
        }
    }
}

/// Serves one connection until it ends, or `shutdown` is cancelled, or its time is over.
pub async fn serve_http(
    sources: Arc<Sources>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let sources = sources.clone();
        async move { Ok::<_, Infallible>(answer(&sources, &request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let served = tokio::time::timeout(MAX_CONNECTION_AGE, connection);
    tokio::select! {
        () = shutdown.cancelled() => {}
        served = served => if let Ok(Err(error)) = served {
            tracing::debug!(cause = %error, "an admin connection ended");
        },
    }
}

async fn answer(sources: &Sources, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "this endpoint is read only: use GET\n",
        );
        let allowed = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, allowed);
        return refused;
    }
    match request.uri().path() {
        "/health/live" => text(StatusCode::OK, "live\n"),
        "/health/ready" => {
            let told = readiness(&status(sources).await);
            let code = if told.ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            json(code, &told)
        }
        "/metrics" => {
            let status = status(sources).await;
            let page = metrics::page(sources, &status);
            respond(StatusCode::OK, exposition::CONTENT_TYPE, page)
        }
        "/cluster" => json(StatusCode::OK, &status(sources).await),
        "/links" => {
            let views = sources.broker.views().await;
            json(StatusCode::OK, &sources.broker.link_views(&views))
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /health/live, /health/ready, /metrics, /cluster and /links\n",
        ),
    }
}

async fn status(sources: &Sources) -> NodeStatus {
    // Never closed, so this is only ever a wait.
    let _turn = sources.running.acquire().await;
    node_status(&sources.broker).await
}

fn json(code: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(value) {
        Ok(mut body) => {
            body.push('\n');
            respond(code, "application/json", body)
        }
        Err(error) => {
            tracing::error!(cause = %error, "an admin answer cannot be written");
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the answer cannot be written: see the node's log\n",
            )
        }
    }
}

fn text(code: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(code, "text/plain; charset=utf-8", body.to_owned())
}

fn respond(code: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
