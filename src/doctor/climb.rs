//! One ladder, climbed from here to one endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use super::finding::{Check, Finding, Verdict};
use super::judge::{self, AFTER_THAT, Looked, NOT_REACHED};
use super::vitals::{Answered, Inquiry};
use crate::transport::{
    Alpn, CloseReason, Identity, LookFailure, MAX_ADDRESSES, Passage, PeerAddress, TcpAnswer,
    UdpAnswer, UdpBuffers, ask_passage, ask_tcp, ask_udp, dial, look, look_for_protocol,
    sample_path,
};
use crate::types::NodeId;

/// The most that any one question waits for its answer.
pub const MAX_RUNG_WAIT: Duration = Duration::from_secs(3);
/// Datagrams by which a path is judged: a fifth of a second of them.
const SAMPLE_DATAGRAMS: u32 = 100;
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// The rungs, from the lowest. The last three are a node's own affair, and are climbed only where a whole node is examined.
const RUNGS: &[Check] = &[
    Check::HostName,
    Check::Reachable,
    Check::PacketSize,
    Check::QuicVersion,
    Check::Protocol,
    Check::Authority,
    Check::Role,
    Check::HostInCertificate,
    Check::Validity,
    Check::ClientCertificate,
    Check::NodeId,
    Check::Cluster,
    Check::Clock,
    Check::Path,
];
const NODE_RUNGS: &[Check] = &[Check::NodeSocket, Check::DiskSync, Check::DiskSpace];

/// What is examined.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The node that should be there, where that is known.
    pub node: Option<NodeId>,
    /// `HOST:PORT` or `[IPV6]:PORT`.
    pub host_port: String,
}

impl Endpoint {
    /// As findings name it.
    pub fn label(&self) -> String {
        match self.node {
            Some(node) => format!("node {node} at {}", self.host_port),
            None => self.host_port.clone(),
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Climb {
    /// One for each rung, but for that of the cluster where the node has said which it is in: whether that is the right one
    /// is for the caller to say. In the order of the rungs.
    pub findings: Vec<Finding>,
    /// The node's answer, if it was reached.
    pub answered: Option<Answered>,
}

/// Climbs as far as it goes. `from` says who does. Takes at most some [`MAX_RUNG_WAIT`] a rung.
///
/// Without `identity` it ends where a certificate is needed. With `whole_node`, the node's own socket and disk are examined
/// too.
pub async fn climb(
    identity: Option<&Arc<Identity>>,
    endpoint: &Endpoint,
    from: &str,
    inquiry: &dyn Inquiry,
    whole_node: bool,
) -> Climb {
    let mut ladder = Ladder {
        from,
        target: endpoint.label(),
        climb: Climb::default(),
    };
    ladder.go(identity, endpoint, inquiry, whole_node).await;
    let rungs = RUNGS
        .iter()
        .chain(if whole_node { NODE_RUNGS } else { &[] });
    let mut climb = ladder.climb;
    for rung in rungs {
        let is_there = climb.findings.iter().any(|found| found.check == *rung);
        let is_callers = *rung == Check::Cluster && climb.answered.is_some();
        if !is_there && !is_callers {
            let skipped = Verdict::skipped(NOT_REACHED, AFTER_THAT);
            climb
                .findings
                .push(skipped.of(*rung, from, &endpoint.label()));
        }
    }
    climb.findings.sort_by_key(|found| found.check);
    climb
}

struct Ladder<'a> {
    from: &'a str,
    target: String,
    climb: Climb,
}

impl Ladder<'_> {
    /// Notes a verdict; says whether the next rung can be tried.
    fn note(&mut self, check: Check, verdict: Verdict) -> bool {
        let goes_on = !verdict.is_fail();
        self.climb
            .findings
            .push(verdict.of(check, self.from, &self.target));
        goes_on
    }

    async fn go(
        &mut self,
        identity: Option<&Arc<Identity>>,
        endpoint: &Endpoint,
        inquiry: &dyn Inquiry,
        whole_node: bool,
    ) {
        let peer = PeerAddress {
            node: endpoint.node,
            host_port: endpoint.host_port.clone(),
        };
        let Some((host, port)) = peer.host_and_port() else {
            let verdict = Verdict::fail(
                format!("{:?} is not an address", endpoint.host_port),
                "write it as HOST:PORT, or [IPV6]:PORT",
            );
            self.note(Check::HostName, verdict);
            return;
        };
        let addresses = resolve(host, port).await;
        if !self.note(Check::HostName, judge::resolved(host, &addresses)) {
            return;
        }
        let Some(remote) = self.reach(&addresses.unwrap_or_default()).await else {
            return;
        };
        let Some(identity) = identity else {
            let verdict = Verdict::skipped(
                "without a certificate of its own this end gets no further",
                "mend this end's certificate first (see own certificate)",
            );
            self.note(Check::Protocol, verdict);
            return;
        };
        if !self.certificate(identity, host, remote, endpoint).await {
            return;
        }
        let dialled = dial(identity, &peer, Alpn::Admin, MAX_RUNG_WAIT).await;
        let now = OffsetDateTime::now_utc();
        let outcome = dialled.as_ref().map(|_| ());
        let verdict = judge::client_certificate(identity.peer(), outcome, now);
        self.note(Check::ClientCertificate, verdict);
        let Ok(dialled) = dialled else {
            return;
        };
        let connection = &dialled.connection;
        let asked_unix_ms = unix_ms();
        let start = Instant::now();
        let vitals = answer(inquiry.vitals(connection)).await;
        let took = start.elapsed();
        match vitals {
            Ok(vitals) => {
                let answered = Answered {
                    vitals,
                    asked_unix_ms,
                    took,
                };
                let verdict = judge::node_id(&answered, endpoint.node, &endpoint.host_port);
                self.note(Check::NodeId, verdict);
                self.note(Check::Clock, judge::clock(&answered));
                if whole_node {
                    let granted = judge::buffers(UdpBuffers {
                        asked: size(answered.vitals.udp_asked_bytes),
                        receive: size(answered.vitals.udp_receive_bytes),
                        send: size(answered.vitals.udp_send_bytes),
                    });
                    self.note(Check::NodeSocket, granted);
                }
                self.climb.answered = Some(answered);
            }
            Err(cause) => {
                let verdict = Verdict::fail(
                    format!("connected, but asked how it is it did not say: {cause}"),
                    "upgrade the node if it is older than this program; else look at its log and load",
                );
                self.note(Check::NodeId, verdict);
            }
        }
        let sample = sample_path(connection, SAMPLE_DATAGRAMS).await;
        self.note(Check::Path, judge::path(&sample));
        if whole_node && self.climb.answered.is_some() {
            match answer(inquiry.disk(connection)).await {
                Ok(report) => {
                    let (sync, space) = judge::disk(&report);
                    self.note(Check::DiskSync, sync);
                    self.note(Check::DiskSpace, space);
                }
                Err(cause) => {
                    let verdict = Verdict::fail(
                        format!("it could not write and sync a few kilobytes: {cause}"),
                        "look at that machine's disk and kernel log (dmesg); every acknowledgement waits for such a sync",
                    );
                    self.note(Check::DiskSync, verdict);
                }
            }
        }
        dialled.close(CloseReason::Done, "", CLOSE_WAIT).await;
    }

    /// The first of the addresses that answers QUIC. Where none does, the first of them is looked at more closely.
    async fn reach(&mut self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
        let answers = join_all(
            addresses
                .iter()
                .map(|remote| async move { (*remote, ask_udp(*remote, MAX_RUNG_WAIT).await) }),
        )
        .await;
        let is_quic = |answer: &UdpAnswer| matches!(answer, UdpAnswer::Quic { .. });
        let best = answers.iter().find(|(_, answer)| is_quic(answer));
        let (remote, answer) = best.or(answers.first())?;
        let UdpAnswer::Quic { versions, .. } = answer else {
            let (tcp, passage) = self.look_closer(*remote, answer).await;
            let (port, size) = judge::reachable(*remote, answer, tcp, passage);
            self.note(Check::Reachable, port);
            self.note(Check::PacketSize, size);
            return None;
        };
        let (mut port, size) = judge::reachable(*remote, answer, None, None);
        let dead: Vec<String> = answers
            .iter()
            .filter(|(_, answer)| !is_quic(answer))
            .map(|(remote, _)| remote.ip().to_string())
            .collect();
        if !dead.is_empty() {
            port = Verdict::warn(
                format!("{}, but not at {}", port.detail, dead.join(", ")),
                "take the addresses that do not answer out of the name, or have the node listen on them too",
            );
        }
        self.note(Check::Reachable, port);
        self.note(Check::PacketSize, size);
        self.note(Check::QuicVersion, judge::quic_version(versions))
            .then_some(*remote)
    }

    async fn look_closer(
        &self,
        remote: SocketAddr,
        answer: &UdpAnswer,
    ) -> (Option<TcpAnswer>, Option<Passage>) {
        match answer {
            UdpAnswer::Closed => (Some(ask_tcp(remote, MAX_RUNG_WAIT).await), None),
            UdpAnswer::Silent { .. } => {
                let (tcp, passage) = tokio::join!(
                    ask_tcp(remote, MAX_RUNG_WAIT),
                    timeout(MAX_RUNG_WAIT, ask_passage(remote.ip()))
                );
                (Some(tcp), passage.ok())
            }
            _ => (None, None),
        }
    }

    /// The server's certificate and protocols: all that this end may use, because a peer may speak a later version of one of
    /// them only. Says whether this end would trust it.
    async fn certificate(
        &mut self,
        identity: &Arc<Identity>,
        host: &str,
        remote: SocketAddr,
        endpoint: &Endpoint,
    ) -> bool {
        let first = look_at(identity, Alpn::Admin, host, remote).await;
        let mut looks = vec![first];
        // Where it is another service altogether, or does not answer, one look says as much as four.
        if looks[0].seen.is_ok() {
            let others = Alpn::ALL
                .into_iter()
                .filter(|alpn| *alpn != Alpn::Admin && alpn.admits(identity.peer()))
                .map(|alpn| look_at(identity, alpn, host, remote));
            looks.extend(join_all(others).await);
        }
        self.note(Check::Protocol, judge::protocol(&looks));
        let Ok(seen) = looks.swap_remove(0).seen else {
            return false;
        };
        let ca = identity.ca_path().display().to_string();
        let verdict = judge::authority(&seen, identity.ca_names(), &ca);
        let mut is_trusted = self.note(Check::Authority, verdict);
        let Ok(info) = &seen.certificate else {
            return false;
        };
        let now = OffsetDateTime::now_utc();
        is_trusted &= self.note(Check::Role, judge::role(info, endpoint.node));
        let verdict = judge::host_in_certificate(host, &seen, info);
        is_trusted &= self.note(Check::HostInCertificate, verdict);
        is_trusted &= self.note(Check::Validity, judge::validity(info, now));
        is_trusted
    }
}

async fn look_at(identity: &Identity, alpn: Alpn, host: &str, remote: SocketAddr) -> Looked {
    let seen = look(identity, alpn, host, remote, MAX_RUNG_WAIT).await;
    let instead = match &seen {
        Err(LookFailure::NoCommonProtocol) => {
            look_for_protocol(identity, alpn, host, remote, MAX_RUNG_WAIT).await
        }
        _ => None,
    };
    Looked {
        alpn,
        seen,
        instead,
    }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match timeout(MAX_RUNG_WAIT, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => Ok(found.take(MAX_ADDRESSES).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the name server does not answer".to_owned()),
    }
}

async fn answer<T>(asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match timeout(MAX_RUNG_WAIT, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {}", judge::span(MAX_RUNG_WAIT))),
    }
}

/// The wall clock, in ms since 1970.
pub(crate) fn unix_ms() -> i64 {
    let nanos = OffsetDateTime::now_utc().unix_timestamp_nanos();
    i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
