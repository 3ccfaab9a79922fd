//! A bare stream to a node: a Kafka connection whose requests are made by somebody else, as behind the proxy.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::connection::{Await, Awaited};
use super::error::ClientError;
use super::link::Link;
use super::{Client, ConnectCause, ConnectError};

/// How long a node that is one of several has to give a sign of life before the next is tried.
const SIGN_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked for one.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long others are then asked before it.
const SILENCE: Duration = Duration::from_secs(5);

/// One stream on a node's connection, which the client keeps alive, moves and dials anew as it does its own.
pub struct ClientStream {
    pub send: quinn::SendStream,
    pub receive: quinn::RecvStream,
    connection: quinn::Connection,
    link: Arc<Link>,
    awaited: Arc<Awaited>,
}

/// While it lives, an answer is expected soon: a silent node is asked for a sign of life.
#[derive(Debug)]
pub struct Expectation {
    _await: Await,
}

/// What remains of a [`ClientStream`] when its halves are taken: how its connection is.
pub struct StreamWatch {
    connection: quinn::Connection,
    link: Arc<Link>,
    awaited: Arc<Awaited>,
}

impl ClientStream {
    /// Whether the node gives a sign of life within [`SIGN_WITHIN`] or a few round trips. It is asked for one meanwhile.
    async fn is_heard(&self) -> bool {
        let _asks = self.awaited.begin();
        let heard = || self.connection.stats().udp_rx.datagrams;
        let before = heard();
        let until = Instant::now() + SIGN_WITHIN.max(self.connection.rtt() * 4);
        while Instant::now() < until {
            tokio::time::sleep(LOOK_EVERY).await;
            if heard() != before {
                return true;
            }
        }
        false
    }

    /// The two halves, and what tells of their connection.
    pub fn split(self) -> (quinn::SendStream, quinn::RecvStream, StreamWatch) {
        let watch = StreamWatch {
            connection: self.connection,
            link: self.link,
            awaited: self.awaited,
        };
        (self.send, self.receive, watch)
    }
}

impl StreamWatch {
    pub fn expect(&self) -> Expectation {
        Expectation {
            _await: self.awaited.begin(),
        }
    }

    /// How many datagrams have come from the node so far: a sign of life each.
    pub fn heard(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// The node answers nothing: for so long others are asked before it.
    pub fn note_silence(&self, lasting: Duration) {
        self.link.note_silence(Instant::now() + lasting);
    }
}

impl Client {
    /// Opens a stream to the node at `address`, over the connection that there is, or a new one.
    ///
    /// # Errors
    /// [`ClientError::Connect`], at once where the node has just been found silent.
    pub async fn open_stream(&self, address: &str) -> Result<ClientStream, ClientError> {
        let link = self.link(address);
        if link.is_silent() {
            return Err(ClientError::Connect(ConnectError {
                address: address.to_owned(),
                cause: ConnectCause::TimedOut {
                    after: Duration::ZERO,
                },
            }));
        }
        self.open_stream_on(link).await
    }

    /// Opens a stream to any node that can be reached and gives a sign of life: each that is known is tried once. A connection
    /// that stands may be one to a node that has just died.
    pub async fn open_any_stream(&self) -> Result<ClientStream, ClientError> {
        let mut failure = ClientError::Closed;
        for link in self.candidates() {
            match self.open_stream_on(link.clone()).await {
                Ok(stream) if stream.is_heard().await => return Ok(stream),
                Ok(_) => {
                    link.note_silence(Instant::now() + SILENCE);
                    failure = ClientError::Connect(ConnectError {
                        address: link.address.clone(),
                        cause: ConnectCause::TimedOut { after: SIGN_WITHIN },
                    });
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn open_stream_on(&self, link: Arc<Link>) -> Result<ClientStream, ClientError> {
        let within = self.config().connect_timeout;
        let refused = |cause| ConnectError {
            address: link.address.clone(),
            cause,
        };
        let opening = async {
            let session = link.session().await?;
            let connection = session.reached.connection.clone();
            let opened = connection.open_bi().await;
            let (send, receive) = opened.map_err(|error| refused(ConnectCause::Lost(error)))?;
            Ok::<_, ConnectError>(ClientStream {
                send,
                receive,
                connection,
                link: link.clone(),
                awaited: session.awaited.clone(),
            })
        };
        match tokio::time::timeout(within, opening).await {
            Ok(opened) => Ok(opened?),
            Err(_) => Err(refused(ConnectCause::TimedOut { after: within }).into()),
        }
    }
}
