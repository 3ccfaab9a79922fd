//! What nodes ask of each other in Kafka's protocol: about transactions.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, WriteTxnMarkersRequest,
    WriteTxnMarkersResponse,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::api::Spoken;
use super::backoff::{Backoff, Random};
use super::connection::Lane;
use super::dial::Dialer;
use super::error::ClientError;
use super::link::{Link, Session};

/// For a connection, and again for the node's first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions that wait for an answer, each on a stream of its own: half of the streams that a node lets another have open.
/// Further ones wait within their own time.
const MAX_QUESTIONS: usize = 512;

/// One node's way to another, whose certificate must name it a node: a connection for questions and one for markers, each
/// dialled when it is first needed and then with backoff. Every request has a stream of its own, so none waits for another's
/// answer.
pub struct NodeCalls {
    questions: Arc<Link>,
    markers: Arc<Link>,
    room: Semaphore,
}

impl NodeCalls {
    /// The way to `address` (`host:port`). `seed` is any number: for jitter.
    pub fn new(address: String, dialer: Arc<dyn Dialer>, seed: u64) -> NodeCalls {
        let mut random = Random::new(seed);
        let mut link = || {
            let (address, dialer) = (address.clone(), dialer.clone());
            let seed = random.next();
            let link = Link::new(address, dialer, CONNECT_TIMEOUT, Backoff::default(), seed);
            Arc::new(link)
        };
        NodeCalls {
            questions: link(),
            markers: link(),
            room: Semaphore::new(MAX_QUESTIONS),
        }
    }

    pub fn address(&self) -> &str {
        &self.questions.address
    }

    /// Asks a coordinator about a transaction's partitions, until `by`. Version 4 or later: the request names transactions.
    pub async fn add_partitions(
        &self,
        request: &AddPartitionsToTxnRequest,
        by: Instant,
    ) -> Result<AddPartitionsToTxnResponse, ClientError> {
        let begin = Instant::now();
        let asked = async {
            // The semaphore is never closed.
            let _room = self.room.acquire().await.ok();
            let (lane, session) = self.questions.open_lane().await?;
            call(&lane, &session, self.address(), request, by).await
        };
        timeout_at(by, asked).await.unwrap_or_else(|_| {
            Err(ClientError::TimedOut {
                address: self.address().to_owned(),
                request: AddPartitionsToTxnRequest::NAME,
                after: begin.elapsed(),
            })
        })
    }

    /// Has markers written, until `by`. Where this fails or is given up, the connection that the request went out on is closed:
    /// the request may still be on its way, and could be overtaken when it is sent again on another stream. Then it would end a
    /// transaction that its producer has begun since. What goes with a closed connection arrives before that, or never.
    pub async fn write_markers(
        &self,
        request: &WriteTxnMarkersRequest,
        by: Instant,
    ) -> Result<WriteTxnMarkersResponse, ClientError> {
        let (lane, session) = self.markers.open_lane().await?;
        let mut closing = CloseUnlessAnswered {
            session,
            answered: false,
        };
        let answer = call(&lane, &closing.session, self.address(), request, by).await;
        closing.answered = answer.is_ok();
        answer
    }
}

async fn call<R: Spoken>(
    lane: &Lane,
    session: &Session,
    address: &str,
    request: &R,
    by: Instant,
) -> Result<R::Response, ClientError> {
    let version = session.versions.pick::<R>(address)?;
    let left = by.saturating_duration_since(Instant::now());
    lane.call(request, version, R::NAME, left).await
}

/// Closes a connection when it is dropped, unless the answer came that it was kept for.
struct CloseUnlessAnswered {
    session: Arc<Session>,
    answered: bool,
}

impl Drop for CloseUnlessAnswered {
    fn drop(&mut self) {
        if !self.answered {
            let connection = &self.session.reached.connection;
            connection.close(0u32.into(), b"a request was given up");
        }
    }
}

impl Drop for NodeCalls {
    fn drop(&mut self) {
        self.questions.close();
        self.markers.close();
    }
}
