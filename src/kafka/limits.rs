//! What a client may take of the node. Every cap has a name here and a sentence on what happens at it.

use std::time::Duration;

/// A Produce request. A larger one closes the connection before anything is allocated for it.
pub const MAX_REQUEST_BYTES: usize = 64 << 20;
/// Any other request. A larger one closes the connection before anything is allocated for it.
pub const MAX_CONTROL_REQUEST_BYTES: usize = 8 << 20;
/// Array elements and tagged fields in one request, all levels together. A request with more closes the connection before
/// it is decoded.
pub const MAX_REQUEST_ELEMENTS: usize = 128 << 10;
/// What an element counts for in the memory for requests besides its bytes: the decoder makes structures of 50 to 200
/// bytes of them, however small they are on the wire, and the handler keeps about as much again.
pub const ELEMENT_BYTES: usize = 256;
/// Requests of one connection that are read and not yet answered. At the cap the connection is not read further.
pub const MAX_OUTSTANDING_REQUESTS: usize = 64;
/// Bytes of Produce requests that are read and not yet answered, all connections together. At the cap connections wait
/// before they read on; one that is within a request may finish it beyond the cap, one at a time.
pub const PRODUCE_MEMORY_BYTES: usize = 64 << 20;
/// The same for all other requests. A budget of their own, so that consumers that wait for records keep no producer
/// waiting. Requests of the cluster's own nodes have two of the same size apart: clients keep no transaction from its end.
pub const CONTROL_MEMORY_BYTES: usize = 64 << 20;
/// Bytes of records in fetch responses, and of descriptions, that are not yet written, all connections together. At the
/// cap fetches wait, and answer with what they have when their time is up; descriptions wait.
pub const RESPONSE_MEMORY_BYTES: usize = 64 << 20;
/// Bytes of records in one fetch response, whatever the client asks for; only a first batch may be larger.
pub const MAX_FETCH_BYTES: usize = 16 << 20;
/// How long a fetch waits for memory when its own wait is shorter.
pub const FETCH_MEMORY_WAIT: Duration = Duration::from_secs(5);
/// Connections, QUIC streams included. Further ones are closed at once.
pub const MAX_CONNECTIONS: usize = 20_000;
/// Connections of the cluster's own nodes, which ask each other about transactions, counted apart: however many clients there
/// are, transactions end. Further ones are closed at once.
pub const MAX_NODE_CONNECTIONS: usize = 16_384;
/// `connections.max.idle.ms`: a connection without a request and without an answer for so long is closed.
pub const MAX_IDLE: Duration = Duration::from_secs(600);
/// How long a request that has begun may take to arrive, and beyond that a second for each [`MIN_BYTES_PER_SECOND`] it
/// has brought. A slower one closes the connection.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// The slowest pace of a request, past [`REQUEST_DEADLINE`].
pub const MIN_BYTES_PER_SECOND: usize = 16 << 10;
/// How long a client may leave its answers unread. Then the connection is closed.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(60);
/// The longest wait that a request can ask for; a longer one is cut to this.
pub const MAX_REQUEST_WAIT: Duration = Duration::from_secs(300);
/// How long a Metadata request waits for topics that it creates; then they answer LEADER_NOT_AVAILABLE.
pub const AUTO_CREATE_DEADLINE: Duration = Duration::from_secs(5);
/// Answers to requests that describe much (Metadata, DescribeConfigs) in the making at one time, all connections
/// together. Further ones wait for their turn.
pub const MAX_DESCRIPTIONS: usize = 4;
/// Bytes of groups and offsets in one answer to DescribeGroups or OffsetFetch. The groups that are named after it is reached
/// answer POLICY_VIOLATION.
pub const MAX_DESCRIPTION_BYTES: usize = 16 << 20;
/// Partitions in all fetch sessions of the node together. A client that asks for a session beyond it gets none, and fetches
/// without one.
pub const MAX_SESSION_PARTITIONS: usize = 200_000;
/// Passwords that are checked at one time, all connections together: each check keeps a processor busy for milliseconds.
/// Further ones wait for their turn.
pub const MAX_PASSWORD_CHECKS: usize = 2;
/// A request before its client has logged in. A larger one closes the connection.
pub const MAX_LOGIN_REQUEST_BYTES: usize = 64 << 10;
/// How long a client has to log in. Then the connection is closed.
pub const LOGIN_DEADLINE: Duration = Duration::from_secs(10);
/// Resources that one DescribeConfigs request describes. Those beyond answer POLICY_VIOLATION.
pub const MAX_DESCRIBED_RESOURCES: usize = 4096;
/// Topics that one Metadata request creates. Those beyond answer LEADER_NOT_AVAILABLE, and come with the next request.
pub const MAX_AUTO_CREATED_TOPICS: usize = 100;

/// The limits of one [`Server`](super::Server). The defaults are this file's constants.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// See [`MAX_REQUEST_BYTES`].
    pub max_request_bytes: usize,
    /// See [`MAX_OUTSTANDING_REQUESTS`]. At least 1.
    pub max_outstanding_requests: usize,
    /// See [`PRODUCE_MEMORY_BYTES`].
    pub produce_memory_bytes: usize,
    /// See [`CONTROL_MEMORY_BYTES`].
    pub control_memory_bytes: usize,
    /// See [`RESPONSE_MEMORY_BYTES`].
    pub response_memory_bytes: usize,
    /// See [`MAX_FETCH_BYTES`]. Lowered to `response_memory_bytes` where that is less.
    pub max_fetch_bytes: usize,
    /// See [`MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// See [`MAX_IDLE`].
    pub max_idle: Duration,
    /// See [`REQUEST_DEADLINE`].
    pub request_deadline: Duration,
    /// See [`WRITE_DEADLINE`].
    pub write_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_request_bytes: MAX_REQUEST_BYTES,
            max_outstanding_requests: MAX_OUTSTANDING_REQUESTS,
            produce_memory_bytes: PRODUCE_MEMORY_BYTES,
            control_memory_bytes: CONTROL_MEMORY_BYTES,
            response_memory_bytes: RESPONSE_MEMORY_BYTES,
            max_fetch_bytes: MAX_FETCH_BYTES,
            max_connections: MAX_CONNECTIONS,
            max_idle: MAX_IDLE,
            request_deadline: REQUEST_DEADLINE,
            write_deadline: WRITE_DEADLINE,
        }
    }
}
