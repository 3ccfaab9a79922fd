//! What the Kafka API of a node has done, counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kafka_protocol::messages::ApiKey;

use crate::types::DurationHistogram;

/// Requests told apart by what they ask for.
#[derive(Debug, Default)]
pub struct Meters {
    pub produce: RequestMeter,
    /// Its times contain the wait for records that a fetch asks for.
    pub fetch: RequestMeter,
    /// All others.
    pub other: RequestMeter,
    refused: AtomicU64,
}

/// Requests of one kind.
#[derive(Debug, Default)]
pub struct RequestMeter {
    /// From the arrival of a request to the moment when its response is ready to be written, error codes included.
    pub times: DurationHistogram,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
}

impl Meters {
    pub(super) fn of(&self, api: ApiKey) -> &RequestMeter {
        match api {
            ApiKey::Produce => &self.produce,
            ApiKey::Fetch => &self.fetch,
            _ => &self.other,
        }
    }

    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections that were closed because the client broke the protocol or a limit.
    pub fn refused_connections(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl RequestMeter {
    pub(super) fn record(&self, took: Duration, request_bytes: usize, response_bytes: usize) {
        self.times.record(took);
        self.request_bytes
            .fetch_add(request_bytes as u64, Ordering::Relaxed);
        self.response_bytes
            .fetch_add(response_bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of requests, without their length fields.
    pub fn request_bytes(&self) -> u64 {
        self.request_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of responses, their length fields included.
    pub fn response_bytes(&self) -> u64 {
        self.response_bytes.load(Ordering::Relaxed)
    }
}
