//! One client's connection and the stream that carries it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use kafka_protocol::messages::ApiKey;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::expected::Expected;
use super::peek::{PEEK_BYTES, Peeked, peek};
use super::rewrite::{Unreadable, names_nodes, rewrite};
use super::{Shared, Target};
use crate::client::{ClientError, StreamWatch};
use crate::kafka::limits::MAX_REQUEST_BYTES;

/// What is copied at a time.
const COPY_BYTES: usize = 64 << 10;
/// A response that is rewritten. A larger one ends the connection.
const MAX_REWRITTEN_BYTES: usize = 64 << 20;
/// Correlation id and, of a request, what stands before it.
const MIN_REQUEST_BYTES: usize = 8;
/// A node that has not been heard for so long, while an answer is due, is given up: its clients look for another. By then the
/// link has moved to another socket and dialled beside itself in vain.
const DEAD_AFTER: Duration = Duration::from_secs(5);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why a connection ended, other than by one of its ends.
#[derive(Debug, Error)]
pub(super) enum PipeError {
    #[error("no node can be reached: {0}")]
    Connect(#[from] ClientError),
    #[error("the node has not been heard for {DEAD_AFTER:?}")]
    Silent,
    #[error("a request of {size} bytes, and 8 to {MAX_REQUEST_BYTES} are taken")]
    RequestSize { size: i32 },
    #[error("a response of {size} bytes that names nodes; at most {MAX_REWRITTEN_BYTES} are taken")]
    ResponseSize { size: usize },
    #[error("a response with the length {size}")]
    NoResponse { size: i32 },
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Carries a connection until one of its ends is gone.
pub(super) async fn run(
    shared: &Arc<Shared>,
    stream: TcpStream,
    target: &Target,
) -> Result<(), PipeError> {
    // Responses are small and awaited; Nagle's algorithm would hold them back.
    let _ = stream.set_nodelay(true);
    let opened = match target {
        Target::Any => shared.client.open_any_stream().await?,
        Target::Node(node) => shared.client.open_stream(&node.address()).await?,
    };
    let (send, receive, watch) = opened.split();
    let (from_client, to_client) = stream.into_split();
    let expected = Expected::default();
    tokio::select! {
        ended = requests(from_client, send, &expected, &watch) => ended,
        ended = responses(shared, receive, to_client, &expected) => ended,
        () = silence(&watch, &expected) => {
            watch.note_silence(DEAD_AFTER);
            Err(PipeError::Silent)
        }
    }
}

/// Ends when the node is silent though it should answer.
async fn silence(watch: &StreamWatch, expected: &Expected) {
    let (mut heard, mut heard_at) = (watch.heard(), Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = watch.heard();
        if now != heard || expected.is_empty() {
            (heard, heard_at) = (now, Instant::now());
        } else if heard_at.elapsed() >= DEAD_AFTER {
            return;
        }
    }
}

/// Carries requests, and notes what answers are due.
async fn requests(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    expected: &Expected,
    watch: &StreamWatch,
) -> Result<(), PipeError> {
    let mut begin = BytesMut::with_capacity(4 + PEEK_BYTES);
    loop {
        let Some(size) = length(&mut from).await? else {
            // The client says no more; what it has asked is still answered, until the node ends the stream.
            to.shutdown().await?;
            return std::future::pending().await;
        };
        let whole = usize::try_from(size).ok();
        let whole = whole.filter(|whole| (MIN_REQUEST_BYTES..=MAX_REQUEST_BYTES).contains(whole));
        let whole = whole.ok_or(PipeError::RequestSize { size })?;
        begin.clear();
        begin.extend_from_slice(&size.to_be_bytes());
        begin.resize(4 + whole.min(PEEK_BYTES), 0);
        from.read_exact(&mut begin[4..]).await?;
        if let Some(request) = peek(&begin[4..]).filter(|request| request.is_answered) {
            let expectation = comes_soon(&request).then(|| watch.expect());
            expected.push(request, expectation).await;
        }
        to.write_all(&begin).await?;
        copy(&mut from, &mut to, whole + 4 - begin.len()).await?;
    }
}

/// Whether a node that does not answer at once has fallen silent. These may wait: for records, and for other members.
fn comes_soon(request: &Peeked) -> bool {
    !matches!(
        ApiKey::try_from(request.api_key),
        Ok(ApiKey::Fetch | ApiKey::JoinGroup | ApiKey::SyncGroup)
    )
}

/// Carries responses, those that name nodes rewritten.
async fn responses(
    shared: &Arc<Shared>,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    expected: &Expected,
) -> Result<(), PipeError> {
    loop {
        let Some(size) = length(&mut from).await? else {
            to.shutdown().await?;
            return Ok(());
        };
        let whole = usize::try_from(size).ok().filter(|whole| *whole >= 4);
        let whole = whole.ok_or(PipeError::NoResponse { size })?;
        let correlation_id = from.read_i32().await?;
        let request = expected.take(correlation_id);
        match request.filter(names_nodes) {
            Some(request) => {
                if whole > MAX_REWRITTEN_BYTES {
                    return Err(PipeError::ResponseSize { size: whole });
                }
                // The semaphore is never closed.
                let turn = shared.rewrites.acquire().await.ok();
                let mut response = BytesMut::zeroed(whole);
                response[..4].copy_from_slice(&correlation_id.to_be_bytes());
                from.read_exact(&mut response[4..]).await?;
                let host = shared.ip().to_string();
                let rewritten = rewrite(&request, response.freeze(), &mut |node, endpoint| {
                    match shared.ports.of(shared, node, endpoint) {
                        Ok(port) => Some((host.clone(), port)),
                        Err(error) => {
                            tracing::warn!(node, at = %endpoint, cause = %error, "a node gets no local port and is not named");
                            None
                        }
                    }
                })?;
                drop(turn);
                to.write_all(&rewritten).await?;
            }
            None => {
                let mut head = [0; 8];
                head[..4].copy_from_slice(&size.to_be_bytes());
                head[4..].copy_from_slice(&correlation_id.to_be_bytes());
                to.write_all(&head).await?;
                copy(&mut from, &mut to, whole - 4).await?;
            }
        }
    }
}

/// The length before a message; `None` where the stream has ended before it.
async fn length(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<i32>> {
    let mut length = [0; 4];
    if from.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..]).await?;
    Ok(Some(i32::from_be_bytes(length)))
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut left: usize,
) -> io::Result<()> {
    let mut buffer = vec![0; left.min(COPY_BYTES)];
    while left > 0 {
        let room = left.min(COPY_BYTES);
        let read = from.read(&mut buffer[..room]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&buffer[..read]).await?;
        left -= read;
    }
    Ok(())
}
