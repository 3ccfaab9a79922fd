//! One member of a group.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::effects::Ticket;
use super::limits::{ENTRY_BYTES, MAX_PROTOCOL_NAME_BYTES, MAX_PROTOCOLS};
use super::log_format::MemberValue;
use crate::types::{ErrorCode, MonotonicTime};

#[derive(Debug)]
pub(super) struct Member {
    /// The name of a static member, which outlives its process.
    pub(super) instance: Option<Arc<str>>,
    pub(super) client_id: Arc<str>,
    pub(super) client_host: Arc<str>,
    pub(super) session: Duration,
    pub(super) rebalance: Duration,
    pub(super) protocols: Protocols,
    pub(super) assignment: Bytes,
    /// When it was heard last.
    pub(super) heard: MonotonicTime,
    /// Its JoinGroup that waits for the others.
    pub(super) joining: Option<Ticket>,
    /// Its SyncGroup that waits for the leader's.
    pub(super) syncing: Option<Ticket>,
}

impl Member {
    /// One that waits for an answer is there, however long that takes: its client sends nothing else meanwhile.
    pub(super) fn is_waiting(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }

    pub(super) fn expires(&self) -> MonotonicTime {
        self.heard + self.session
    }

    /// What it counts for, in bytes.
    pub(super) fn bytes(&self) -> usize {
        ENTRY_BYTES
            + self.client_id.len()
            + self.client_host.len()
            + self.assignment.len()
            + self.protocols.bytes()
    }

    /// As it is written down, with another assignment.
    pub(super) fn value(&self, id: &Arc<str>, protocol: &str, assignment: Bytes) -> MemberValue {
        MemberValue {
            member: id.clone(),
            instance: self.instance.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            rebalance_ms: milliseconds(self.rebalance),
            session_ms: milliseconds(self.session),
            subscription: self.protocols.metadata(protocol),
            assignment,
        }
    }
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// The assignment protocols that a member offers, by preference. At least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Protocols(Vec<(Arc<str>, Bytes)>);

impl Protocols {
    /// Copies, so that no request is kept for a few of its bytes.
    pub(super) fn new(offered: &[(String, Bytes)]) -> Result<Protocols, ErrorCode> {
        let legal = |(name, _): &(String, Bytes)| name.len() <= MAX_PROTOCOL_NAME_BYTES;
        if offered.is_empty() || offered.len() > MAX_PROTOCOLS || !offered.iter().all(legal) {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        let copied = |(name, metadata): &(String, Bytes)| {
            (name.as_str().into(), Bytes::copy_from_slice(metadata))
        };
        Ok(Protocols(offered.iter().map(copied).collect()))
    }

    /// The one that a group used when it was written down.
    pub(super) fn restored(name: Arc<str>, metadata: Bytes) -> Protocols {
        Protocols(vec![(name, metadata)])
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|(name, _)| name)
    }

    pub(super) fn has(&self, protocol: &str) -> bool {
        self.names().any(|name| &**name == protocol)
    }

    /// What the member says under a protocol; nothing under one that it does not offer.
    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.0.iter().find(|(name, _)| &**name == protocol);
        found
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }

    pub(super) fn bytes(&self) -> usize {
        let bytes = |(name, metadata): &(Arc<str>, Bytes)| name.len() + metadata.len() + 32;
        self.0.iter().map(bytes).sum()
    }
}
