//! What can go wrong between a client and a cluster. Every failure names the address or the partition, and its cause.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::types::{ErrorCode, Offset, PartitionIndex, TopicName};

/// Why no connection to a node could be made. A command that meets one exits with 3.
#[derive(Debug, Clone, Error)]
#[error("cannot connect to {address}")]
pub struct ConnectError {
    /// `host:port` as it was configured or as the cluster's metadata gives it.
    pub address: String,
    #[source]
    pub cause: ConnectCause,
}

/// See [`ConnectError`].
#[derive(Debug, Clone, Error)]
pub enum ConnectCause {
    #[error("{address:?} is not an address; expected HOST:PORT")]
    InvalidAddress { address: String },
    #[error("its host name cannot be resolved")]
    Resolve(#[source] Arc<io::Error>),
    #[error("its host name has no address")]
    NoAddress,
    /// The endpoint refused to start the connection: no packet was sent.
    #[error("the connection cannot be started")]
    Start(#[source] quinn::ConnectError),
    /// The handshake failed, or the peer closed the connection before it answered its first request. With TLS 1.3 a
    /// server that refuses the client's certificate is heard of only then.
    #[error("the connection was refused or lost")]
    Lost(#[source] quinn::ConnectionError),
    #[error("no answer within {after:?}")]
    TimedOut { after: Duration },
    /// The connection stands, but the peer does not speak Kafka's protocol on it as expected.
    #[error("the handshake failed: {what}")]
    Handshake { what: String },
    /// What a dialler that knows more than this room says of it: which certificate was refused, and what to do.
    #[error(transparent)]
    Explained(ExplainedFailure),
}

/// A dialler's own words; see [`ConnectCause::Explained`].
#[derive(Debug, Clone, Error)]
#[error("{error}")]
pub struct ExplainedFailure {
    pub error: Arc<dyn std::error::Error + Send + Sync>,
    /// Whether the same attempt may succeed later.
    pub transient: bool,
}

impl ConnectError {
    /// Whether trying again as things are is of no use: TLS, on either end, refused the other, or there is no such address.
    pub fn is_final(&self) -> bool {
        let error = match &self.cause {
            ConnectCause::InvalidAddress { .. } => return true,
            ConnectCause::Explained(failure) => return !failure.transient,
            ConnectCause::Lost(error) => error,
            _ => return false,
        };
        // QUIC carries a TLS alert as transport error 0x100 + the alert's number (RFC 9001, section 4.8).
        let code: u64 = match error {
            quinn::ConnectionError::TransportError(error) => error.code.into(),
            quinn::ConnectionError::ConnectionClosed(close) => close.error_code.into(),
            _ => return false,
        };
        (0x100..0x200).contains(&code)
    }
}

/// Why a stream broke while requests were on it.
#[derive(Debug, Clone, Error)]
pub enum LostCause {
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error("the node ended the stream")]
    Ended,
    #[error("the node reset the stream with code {code}")]
    Reset { code: u64 },
    #[error("the node sent what is no response: {what}")]
    Malformed { what: String },
    #[error("another request on the stream had no response within {after:?}, so it was given up")]
    Stalled { after: Duration },
    #[error("this end closed the stream")]
    Closed,
}

/// Why a request failed.
#[derive(Debug, Clone, Error)]
pub enum ClientError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The request may or may not have been carried out.
    #[error("the connection to {address} broke while {request} waited for its response")]
    Lost {
        address: String,
        request: &'static str,
        #[source]
        cause: LostCause,
    },
    /// The request may or may not have been carried out.
    #[error("{address} did not answer {request} within {after:?}")]
    TimedOut {
        address: String,
        request: &'static str,
        after: Duration,
    },
    /// Kafka's answer, and the node's own words where it gave any.
    #[error("{what}: {}", message.as_deref().map_or_else(|| code.to_string(), str::to_owned))]
    Refused {
        what: String,
        code: ErrorCode,
        message: Option<String>,
    },
    #[error(
        "{address} does not support {request} in a version that this client speaks ({ours}; it offers {theirs})"
    )]
    Unsupported {
        address: String,
        request: &'static str,
        ours: String,
        theirs: String,
    },
    #[error("{address} answered {request} with what cannot be read: {what}")]
    Malformed {
        address: String,
        request: &'static str,
        what: String,
    },
    #[error("{request} cannot be written: {what}")]
    Unwritable { request: &'static str, what: String },
    #[error("topic {topic} does not exist; create it with `quorate topic create {topic}`")]
    UnknownTopic { topic: TopicName },
    #[error("topic {topic} has no partition {partition}; it has {partitions}")]
    UnknownPartition {
        topic: TopicName,
        partition: PartitionIndex,
        partitions: usize,
    },
    #[error("{topic}-{partition} had no leader within {after:?}; see which of its replicas are up")]
    NoLeader {
        topic: TopicName,
        partition: PartitionIndex,
        after: Duration,
    },
    #[error("{what} was not done within {after:?}")]
    GaveUp {
        what: String,
        after: Duration,
        /// The last failure.
        #[source]
        cause: Box<ClientError>,
    },
    #[error(
        "offset {offset} of {topic}-{partition} is out of range: the log holds {start} up to, not including, {end}"
    )]
    OffsetOutOfRange {
        topic: TopicName,
        partition: PartitionIndex,
        offset: Offset,
        start: Offset,
        end: Offset,
    },
    #[error("a batch of {topic}-{partition} at offset {offset} cannot be read: {what}")]
    Unreadable {
        topic: TopicName,
        partition: PartitionIndex,
        offset: i64,
        what: String,
    },
    #[error("{what}")]
    Configuration { what: String },
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    /// Whether the same request may succeed later, on another connection or another node, without the caller changing
    /// it.
    pub fn is_retriable(&self) -> bool {
        match self {
            // A node that refuses this client may be given another certificate, or another node its partitions.
            ClientError::Connect(_)
            | ClientError::Lost { .. }
            | ClientError::TimedOut { .. }
            | ClientError::NoLeader { .. } => true,
            ClientError::Refused { code, .. } => code.is_retriable(),
            _ => false,
        }
    }

    /// The connection error at the root of this one, where there is one: a command that meets it exits with 3.
    pub fn connect_error(&self) -> Option<&ConnectError> {
        match self {
            ClientError::Connect(error) => Some(error),
            ClientError::GaveUp { cause, .. } => cause.connect_error(),
            _ => None,
        }
    }

    pub fn error_code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused { code, .. } => Some(*code),
            ClientError::GaveUp { cause, .. } => cause.error_code(),
            _ => None,
        }
    }

    /// `Err` unless `code` is 0.
    pub(super) fn check(
        code: i16,
        message: Option<&str>,
        what: impl FnOnce() -> String,
    ) -> Result<(), ClientError> {
        ErrorCode::from_code(code).map_err(|known| ClientError::Refused {
            what: what(),
            message: match (message, known.code() == code) {
                (Some(message), _) => Some(message.to_owned()),
                (None, true) => None,
                (None, false) => Some(format!("error code {code}")),
            },
            code: known,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_we_do_not_know_is_still_named() {
        let what = || "creating topic t".to_owned();
        assert!(ClientError::check(0, None, what).is_ok());
        let error = ClientError::check(61, None, what).unwrap_err();
        assert_eq!(error.to_string(), "creating topic t: error code 61");
        let error = ClientError::check(36, None, what).unwrap_err();
        assert_eq!(error.error_code(), Some(ErrorCode::TopicAlreadyExists));
    }
}
