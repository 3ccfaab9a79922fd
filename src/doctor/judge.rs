//! What the answers mean: from what was seen to a verdict, with what to do about it. No I/O.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use time::OffsetDateTime;

use super::finding::Verdict;
use super::vitals::{Answered, DiskReport};
use crate::transport::{
    Alpn, CertificateInfo, CloseReason, ConnectFailure, EXPIRING_DAYS, LookFailure, Passage,
    PathSample, PeerIdentity, QUIC_DATAGRAM_BYTES, QUIC_VERSION, Seen, TcpAnswer, UdpAnswer,
    UdpBuffers, Validity, show_time,
};
use crate::types::{ClusterId, NodeId};

/// Less receive buffer than this loses packets whenever a burst arrives while the process is busy.
const LITTLE_BUFFER_BYTES: usize = 1 << 20;
/// Clocks that differ by less are as good as NTP makes them.
const CLOCK_DIFFERS_MS: i64 = 1_000;
/// Clocks that differ by more put records an operator looks for elsewhere, and certificates out of their dates.
const CLOCK_IS_WRONG: Duration = Duration::from_secs(60);
/// Loss from which batches wait noticeably for packets that are sent again, in packets of a thousand; fewer lost packets than
/// the second number are chance.
const LOSSY_PER_MILLE: u64 = 10;
const LOST_BY_CHANCE: u64 = 2;
const FAR: Duration = Duration::from_millis(500);
const SLOW_SYNC_US: u64 = 20_000;
const STUCK_SYNC_US: u64 = 500_000;
/// Free space below which it is time to do something.
const LITTLE_SPACE_BYTES: u64 = 1 << 30;

/// What a step of the ladder says of the one above it.
pub(super) const NOT_REACHED: &str = "not reached";
pub(super) const AFTER_THAT: &str = "mend what failed above, then run this again";

pub(super) fn resolved(host: &str, found: &Result<Vec<SocketAddr>, String>) -> Verdict {
    match found {
        Ok(addresses) if addresses.is_empty() => Verdict::fail(
            format!("{host} has no address"),
            "correct the name, or give it an address in DNS or /etc/hosts",
        ),
        Ok(addresses) => {
            let list: Vec<String> = addresses.iter().map(|a| a.ip().to_string()).collect();
            match list.as_slice() {
                [one] if one == host => Verdict::ok("it is an address already"),
                _ => Verdict::ok(format!("{host} is {}", list.join(", "))),
            }
        }
        Err(cause) => Verdict::fail(
            format!("{host} cannot be resolved: {cause}"),
            "correct the name, or this machine's DNS or /etc/hosts",
        ),
    }
}

/// Whether anything is there, and whether QUIC's packets get through. `tcp` and `passage` are asked where UDP is silent or
/// closed.
pub(super) fn reachable(
    remote: SocketAddr,
    udp: &UdpAnswer,
    tcp: Option<TcpAnswer>,
    passage: Option<Passage>,
) -> (Verdict, Verdict) {
    let port = remote.port();
    let size_unknown = || Verdict::skipped(NOT_REACHED, AFTER_THAT);
    match udp {
        UdpAnswer::Quic { waited, .. } => (
            Verdict::ok(format!(
                "QUIC answers on UDP port {port} after {}",
                span(*waited)
            )),
            Verdict::ok(format!(
                "packets of {QUIC_DATAGRAM_BYTES} bytes pass, as QUIC needs them"
            )),
        ),
        UdpAnswer::Closed => {
            let verdict = if tcp == Some(TcpAnswer::Open) {
                Verdict::fail(
                    format!(
                        "nothing listens on UDP port {port} (the host refused it), but a TCP service does: \
                         that is another service's port"
                    ),
                    "use the UDP port of --listen, not that of the Kafka or HTTP listener or of another program",
                )
            } else {
                Verdict::fail(
                    format!(
                        "nothing listens on UDP port {port}: the host is up and refused it (port unreachable)"
                    ),
                    "start the node there, or correct the address; a node's log names the port it listens on",
                )
            };
            (verdict, size_unknown())
        }
        UdpAnswer::Other { bytes } => (
            Verdict::fail(
                format!(
                    "UDP port {port} answered with {bytes} bytes that are no QUIC: another service is there"
                ),
                "correct the address, or move that service: a node and it cannot share the port",
            ),
            Verdict::ok(format!("packets of {QUIC_DATAGRAM_BYTES} bytes pass")),
        ),
        UdpAnswer::TooLarge { mtu } => (
            Verdict::skipped(
                "a packet as large as QUIC's does not fit the path, so it was not sent",
                "see packet size",
            ),
            too_small(remote, *mtu),
        ),
        UdpAnswer::Unsendable { cause } => (
            Verdict::fail(
                format!("this machine does not send to {remote}: {cause}"),
                "check its routes (ip route get) and its own firewall's outgoing rules (nft list ruleset)",
            ),
            size_unknown(),
        ),
        UdpAnswer::Silent { waited } => {
            let swallowed = passage.is_some_and(|passage| passage.small && !passage.large);
            if swallowed {
                return (
                    Verdict::skipped(
                        format!("UDP port {port} was silent, but small packets do reach the host"),
                        "see packet size",
                    ),
                    too_small(remote, None),
                );
            }
            (silent(port, *waited, tcp, passage), size_unknown())
        }
    }
}

fn silent(
    port: u16,
    waited: Duration,
    tcp: Option<TcpAnswer>,
    passage: Option<Passage>,
) -> Verdict {
    let nothing = format!(
        "nothing came back from UDP port {port} within {}",
        span(waited)
    );
    let is_up = passage.is_some_and(|passage| passage.small);
    match tcp {
        Some(TcpAnswer::Open | TcpAnswer::Refused) => Verdict::fail(
            format!(
                "{nothing}, yet the host answers TCP: either a firewall drops UDP to this port, or the process there hangs \
                 or is stopped; from here it cannot be told which"
            ),
            format!(
                "on that host: ss -ulnp 'sport = :{port}' shows whether a process has the port; then allow UDP {port} both ways"
            ),
        ),
        _ if is_up => Verdict::fail(
            format!(
                "{nothing}, yet the host refuses UDP on other ports: a firewall drops this port, or the process there hangs \
                 or is stopped; from here it cannot be told which"
            ),
            format!(
                "on that host: ss -ulnp 'sport = :{port}' shows whether a process has the port; then allow UDP {port} both ways"
            ),
        ),
        _ => Verdict::fail(
            format!(
                "{nothing}: a firewall drops it, or the host is down; from here it cannot be told which"
            ),
            format!(
                "check that the host is up, and that UDP port {port} is allowed on the way there and back"
            ),
        ),
    }
}

fn too_small(remote: SocketAddr, mtu: Option<u32>) -> Verdict {
    let needed = QUIC_DATAGRAM_BYTES + if remote.is_ipv4() { 28 } else { 48 };
    let found = match mtu {
        Some(mtu) => format!("the path's MTU is {mtu} bytes"),
        None => "packets of 1 byte reach the host and larger ones are lost on the way".to_owned(),
    };
    Verdict::fail(
        format!(
            "{found}: QUIC's packets have {QUIC_DATAGRAM_BYTES} bytes (an MTU of {needed}) at least, and are never cut"
        ),
        format!(
            "raise the MTU of the interface or tunnel on the way to {needed} or more (ip link set dev … mtu {needed})"
        ),
    )
}

pub(super) fn quic_version(versions: &[u32]) -> Verdict {
    if versions.contains(&QUIC_VERSION) {
        return Verdict::ok("version 1");
    }
    let named: Vec<String> = versions.iter().map(|v| format!("0x{v:08x}")).collect();
    Verdict::fail(
        format!(
            "it speaks QUIC {}, and this program version {QUIC_VERSION} only",
            if named.is_empty() {
                "in no version that it names".to_owned()
            } else {
                named.join(", ")
            }
        ),
        "correct the address: another service listens there, or upgrade the older of the two programs",
    )
}

/// A look by way of one protocol.
pub(super) struct Looked {
    pub(super) alpn: Alpn,
    pub(super) seen: Result<Seen, LookFailure>,
    /// What it speaks, where it does not speak ours and that could be found out.
    pub(super) instead: Option<String>,
}

/// Fails for the first of the protocols that it does not speak.
pub(super) fn protocol(looks: &[Looked]) -> Verdict {
    let mut spoken = Vec::new();
    for look in looks {
        let verdict = one_protocol(look);
        if verdict.is_fail() {
            return verdict;
        }
        spoken.push(verdict.detail);
    }
    Verdict::ok(spoken.join(", "))
}

fn one_protocol(look: &Looked) -> Verdict {
    let ours = look.alpn.name();
    let stem = ours.rsplit_once('/').map_or(ours, |(stem, _)| stem);
    match (&look.seen, look.instead.as_deref()) {
        (Ok(seen), _) => Verdict::ok(seen.protocol.clone().unwrap_or_else(|| ours.to_owned())),
        (Err(LookFailure::NoCommonProtocol), Some(other)) if other.starts_with(stem) => {
            Verdict::fail(
                format!("it speaks {other}, and this program {ours}: the node there is newer"),
                "upgrade this program to the node's version; a node speaks its own and the previous version",
            )
        }
        (Err(LookFailure::NoCommonProtocol), Some(other)) => Verdict::fail(
            format!("it speaks {other:?}, which is another service's protocol"),
            "correct the address: that is no node of Quorate",
        ),
        (Err(LookFailure::NoCommonProtocol), None) => Verdict::fail(
            format!("it speaks QUIC, but not {ours} nor a later version of it"),
            "correct the address: another service listens there",
        ),
        (Err(LookFailure::NoCommonVersion), _) => Verdict::fail(
            "it took back the version of QUIC that it had offered",
            "correct the address: another service listens there",
        ),
        (Err(LookFailure::Overloaded), _) => Verdict::fail(
            "it takes no more connections",
            "wait, or find out who holds them: quorate_quic_connections on its HTTP endpoint",
        ),
        (Err(LookFailure::Silent { waited }), _) => Verdict::fail(
            format!(
                "it names its versions, but the handshake was not answered within {}",
                span(*waited)
            ),
            "look at the node's log and load: it is overloaded, or loses most packets",
        ),
        (Err(LookFailure::Other { text }), _) => Verdict::fail(
            format!("TLS failed: {text}"),
            "look at the log of the node there for the same moment",
        ),
    }
}

pub(super) fn authority(seen: &Seen, trusted: &str, ca: &str) -> Verdict {
    match (&seen.certificate, seen.is_of_our_ca) {
        (Ok(info), true) => Verdict::ok(format!("signed by {:?}", info.issuer)),
        (Ok(info), false) => Verdict::fail(
            format!(
                "its certificate was signed by {:?}, and {ca} holds {trusted:?}: another cluster's, or a CA made anew",
                info.issuer
            ),
            "use the ca.crt and the certificates of that node's cluster here (--certs-dir), or make the node's with this CA",
        ),
        (Err(error), _) => Verdict::fail(
            format!("its certificate cannot be read: {error}"),
            "make it anew there with quorate cert create-node --overwrite",
        ),
    }
}

/// Whether the certificate is a node's, and the expected one's.
pub(super) fn role(info: &CertificateInfo, expected: Option<NodeId>) -> Verdict {
    match (&info.identity, expected) {
        (Ok(PeerIdentity::Node(found)), Some(expected)) if *found != expected => Verdict::fail(
            format!("it shows the certificate of node {found}, where node {expected} should be"),
            format!(
                "correct the address of node {expected} (--advertise, --controllers), or the certificates there"
            ),
        ),
        (Ok(PeerIdentity::Node(found)), _) => {
            Verdict::ok(format!("the certificate is that of node {found}"))
        }
        (Ok(found), _) => Verdict::fail(
            format!("it shows the certificate of {found}, and a node must show a node's"),
            "give that node a certificate made with quorate cert create-node",
        ),
        (Err(error), _) => Verdict::fail(
            format!("its certificate names no role: {error}"),
            "give that node a certificate made with quorate cert create-node",
        ),
    }
}

pub(super) fn host_in_certificate(host: &str, seen: &Seen, info: &CertificateInfo) -> Verdict {
    if seen.names_host {
        return Verdict::ok(format!("the certificate names {host}"));
    }
    let names = if info.hosts.is_empty() {
        "no host at all".to_owned()
    } else {
        info.hosts.join(", ")
    };
    Verdict::fail(
        format!("the certificate does not name {host}; it names {names}"),
        format!(
            "use one of these names, or make it anew there with quorate cert create-node ID {host} … --overwrite"
        ),
    )
}

pub(super) fn validity(info: &CertificateInfo, now: OffsetDateTime) -> Verdict {
    match info.validity_at(now) {
        Validity::Expired => Verdict::fail(
            format!(
                "its certificate has expired: it was valid until {}; here it is {}",
                show_time(info.not_after),
                show_time(now)
            ),
            "make it anew there with quorate cert create-node --overwrite; if that date lies ahead, this clock is wrong",
        ),
        Validity::NotYetValid => Verdict::fail(
            format!(
                "its certificate is not yet valid: it begins at {}; here it is {}",
                show_time(info.not_before),
                show_time(now)
            ),
            "set the clocks of both machines (NTP): one of them is wrong",
        ),
        Validity::Valid if info.days_left(now) <= EXPIRING_DAYS => Verdict::warn(
            format!(
                "its certificate expires in {} days, at {}",
                info.days_left(now),
                show_time(info.not_after)
            ),
            "make it anew there with quorate cert create-node --overwrite, and restart the node",
        ),
        Validity::Valid => Verdict::ok(format!(
            "until {}, {} days from now",
            show_time(info.not_after),
            info.days_left(now)
        )),
    }
}

/// What came of connecting as commands and nodes do it, where nothing was found wrong with the server.
pub(super) fn client_certificate(
    own: &PeerIdentity,
    dialled: Result<(), &ConnectFailure>,
    now: OffsetDateTime,
) -> Verdict {
    use ConnectFailure::*;
    let failure = match dialled {
        Ok(()) => return Verdict::ok(format!("it takes that of {own}")),
        Err(failure) => failure,
    };
    match failure {
        NoClientCertificate { .. } => Verdict::fail(
            "it refused this end, which showed no certificate",
            "give --certs-dir a directory with a client's certificate (quorate cert create-client NAME)",
        ),
        RejectedUnknownCa { own, .. } => Verdict::fail(
            format!(
                "it refused {}: it does not trust the CA that signed it",
                own.display()
            ),
            "use a certificate of that node's own CA, or give the node this ca.crt and restart it",
        ),
        RejectedValidity { own, here, .. } => Verdict::fail(
            format!(
                "it refused {} as expired or not yet valid, though here it is neither ({here}; here it is {}): that \
                 machine's clock is wrong, or this one's",
                own.display(),
                show_time(now)
            ),
            "set the clocks of both machines (NTP): compare date -u on each",
        ),
        RejectedOther { own, text, .. } => Verdict::fail(
            format!("it refused {}: {text}", own.display()),
            "make a new certificate with the cluster's CA",
        ),
        OwnWrongRole { own, alpn, .. } => Verdict::fail(
            format!("{own} may not use {alpn}: it is for nodes (wrong role)"),
            "use a certificate made with quorate cert create-node",
        ),
        Closed {
            reason: CloseReason::WrongRole,
            ..
        } => Verdict::fail(
            format!("it does not let {own} do that (wrong role)"),
            "use a certificate of the role that is needed: quorate cert create-client, or create-node for a node",
        ),
        OwnIdentity { problem, .. } => Verdict::fail(
            problem.to_string(),
            "mend this end's certificate first (see own certificate)",
        ),
        other => Verdict::fail(
            other.to_string(),
            "run this again; if it stays, look at the node's log for the same moment",
        ),
    }
}

pub(super) fn node_id(answered: &Answered, expected: Option<NodeId>, host_port: &str) -> Verdict {
    let vitals = &answered.vitals;
    let node = vitals.node;
    if let Some(expected) = expected.filter(|expected| *expected != node) {
        return Verdict::fail(
            format!("node {node} answers where node {expected} should be"),
            format!("correct the address of node {expected}, or start node {expected} there"),
        );
    }
    let registered = vitals.nodes.iter().find(|known| known.node == node);
    let beside = match registered {
        Some(known) if known.quic != host_port => format!(", registered at {}", known.quic),
        Some(_) => String::new(),
        None => ", not registered in its cluster yet".to_owned(),
    };
    Verdict::ok(format!(
        "node {node} has this port: process {}, version {}{beside}",
        vitals.incarnation, vitals.version
    ))
}

/// Which cluster most of them are in. `None` where none has said.
pub fn most_common_cluster(
    clusters: impl IntoIterator<Item = Option<ClusterId>>,
) -> Option<ClusterId> {
    let mut counts: BTreeMap<ClusterId, usize> = BTreeMap::new();
    for cluster in clusters.into_iter().flatten() {
        *counts.entry(cluster).or_default() += 1;
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map(|(cluster, _)| cluster)
}

/// A node's cluster beside the one it should be in.
pub fn cluster(found: Option<ClusterId>, expected: Option<ClusterId>) -> Verdict {
    match (found, expected) {
        (None, None) => Verdict::fail(
            "its cluster is not founded yet",
            "start every node of --controllers: the cluster is founded once all of them have been up together",
        ),
        (None, Some(expected)) => Verdict::fail(
            format!("it is in no cluster yet, and the others are in {expected}"),
            "look at its log for why it cannot register; its --controllers must name the cluster's controllers",
        ),
        (Some(found), Some(expected)) if found != expected => Verdict::fail(
            format!("it is in cluster {found}, and not in {expected} as the others are"),
            "correct its --controllers and empty its data directory, or correct the address",
        ),
        (Some(found), _) => Verdict::ok(found.to_string()),
    }
}

/// The node's clock beside this machine's. It was read at some moment of the question's way there and back.
pub(super) fn clock(answered: &Answered) -> Verdict {
    let theirs = answered.vitals.unix_ms;
    let took_ms = i64::try_from(answered.took.as_millis()).unwrap_or(i64::MAX);
    // Saturating: a node may say anything.
    let first = answered.asked_unix_ms;
    let last = first.saturating_add(took_ms);
    let least = theirs
        .saturating_sub(last)
        .max(first.saturating_sub(theirs));
    if least < CLOCK_DIFFERS_MS {
        let within = Duration::from_millis(u64::try_from(least).unwrap_or(0));
        return Verdict::ok(format!(
            "within {} of this one",
            span(within.max(answered.took))
        ));
    }
    let word = if theirs > last { "ahead of" } else { "behind" };
    // Most likely it was read halfway; nobody wants to know to the millisecond how wrong a clock is.
    let off = theirs.abs_diff(first.saturating_add(took_ms / 2));
    let off = match off {
        0..60_000 => Duration::from_millis(off),
        _ => Duration::from_secs(off.saturating_add(500) / 1000),
    };
    let detail = format!("its clock is {} {word} this one", span(off));
    let fix = "set the clocks by NTP on both machines (chronyc tracking, timedatectl): records are stamped by them, and \
               certificates are judged by them";
    if off < CLOCK_IS_WRONG {
        Verdict::warn(detail, fix)
    } else {
        Verdict::fail(detail, fix)
    }
}

pub(super) fn path(sample: &PathSample) -> Verdict {
    let lost = sample.lost_per_mille();
    let mut detail = format!(
        "round trip {}, {} of {} packets lost ({}.{} %), MTU {}",
        span(sample.rtt),
        sample.lost_packets,
        sample.sent_packets,
        lost / 10,
        lost % 10,
        sample.mtu
    );
    if usize::from(sample.mtu) <= QUIC_DATAGRAM_BYTES {
        detail.push_str(" (the least that QUIC works with)");
    }
    if lost >= LOSSY_PER_MILLE && sample.lost_packets > LOST_BY_CHANCE {
        return Verdict::warn(
            detail,
            "find where they are lost: mtr -u to the node, errors and drops of the interfaces (ip -s link)",
        );
    }
    if sample.rtt >= FAR {
        return Verdict::warn(
            detail,
            "acks=all takes a round trip to the quorum: place nodes nearer, or find the queue on the way",
        );
    }
    Verdict::ok(detail)
}

/// What the kernel grants: this machine's, or a node's.
pub(super) fn buffers(buffers: UdpBuffers) -> Verdict {
    let detail = format!(
        "{} to receive and {} to send, of {} asked for",
        bytes(buffers.receive as u64),
        bytes(buffers.send as u64),
        bytes(buffers.asked as u64)
    );
    if buffers.receive < LITTLE_BUFFER_BYTES || buffers.send < LITTLE_BUFFER_BYTES {
        return Verdict::warn(
            format!("{detail}: bursts are dropped when the process is busy"),
            format!(
                "sysctl -w net.core.rmem_max={} net.core.wmem_max={} on that machine, then restart the node",
                buffers.asked, buffers.asked
            ),
        );
    }
    Verdict::ok(detail)
}

/// Sync time and free space.
pub fn disk(report: &DiskReport) -> (Verdict, Verdict) {
    let directory = &report.directory;
    let detail = format!(
        "{} in the middle and {} at worst, of {} syncs in {directory}",
        span(Duration::from_micros(report.sync_median_us)),
        span(Duration::from_micros(report.sync_worst_us)),
        report.syncs
    );
    let slow =
        "move the data directory to a faster disk, or find what else writes to it (iostat -x 1)";
    let sync = match report.sync_median_us {
        us if us >= STUCK_SYNC_US => Verdict::fail(detail, slow),
        us if us >= SLOW_SYNC_US => Verdict::warn(detail, slow),
        _ => Verdict::ok(detail),
    };
    let detail = format!("{} free in {directory}", bytes(report.free_bytes));
    let space = if report.free_bytes < report.reserved_bytes {
        Verdict::fail(
            format!(
                "{detail}: records are refused below {}",
                bytes(report.reserved_bytes)
            ),
            "free space on that disk, or lower retention.bytes or retention.ms",
        )
    } else if report.free_bytes < LITTLE_SPACE_BYTES {
        Verdict::warn(
            format!(
                "{detail}; records are refused below {}",
                bytes(report.reserved_bytes)
            ),
            "free space on that disk, or lower retention.bytes or retention.ms",
        )
    } else {
        Verdict::ok(detail)
    };
    (sync, space)
}

/// A span of time in the unit that suits it.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    if time < Duration::from_millis(10) {
        format!("{:.2} ms", time.as_secs_f64() * 1e3)
    } else if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else if seconds < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else if seconds < 3600 {
        format!("{} min {} s", seconds / 60, seconds % 60)
    } else if seconds < 86_400 {
        format!("{} h {} min", seconds / 3600, seconds / 60 % 60)
    } else {
        format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24)
    }
}

/// A size in the unit that suits it.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{NodeVitals, Outcome};
    use crate::types::Incarnation;

    fn remote() -> SocketAddr {
        "192.0.2.1:9292".parse().unwrap()
    }

    fn says(verdict: &Verdict, outcome: Outcome, words: &[&str]) {
        let told = format!("{} | {:?}", verdict.detail, verdict.fix);
        assert_eq!(verdict.outcome, outcome, "{told}");
        for word in words {
            assert!(told.contains(word), "{word:?} in {told}");
        }
        assert_eq!(verdict.fix.is_none(), outcome == Outcome::Ok, "{told}");
    }

    #[test]
    fn a_closed_port_is_not_called_a_firewall_and_silence_is_not_called_either() {
        let (port, size) = reachable(remote(), &UdpAnswer::Closed, Some(TcpAnswer::Refused), None);
        says(
            &port,
            Outcome::Fail,
            &["nothing listens on UDP port 9292", "host is up"],
        );
        says(&size, Outcome::Skipped, &[]);
        let (port, _) = reachable(remote(), &UdpAnswer::Closed, Some(TcpAnswer::Open), None);
        says(
            &port,
            Outcome::Fail,
            &["a TCP service does", "another service's port"],
        );

        let silent = UdpAnswer::Silent {
            waited: Duration::from_secs(2),
        };
        let nothing = Passage {
            small: false,
            large: false,
        };
        let (port, _) = reachable(remote(), &silent, Some(TcpAnswer::Silent), Some(nothing));
        says(
            &port,
            Outcome::Fail,
            &["firewall", "host is down", "cannot be told which"],
        );
        let (port, _) = reachable(remote(), &silent, Some(TcpAnswer::Refused), Some(nothing));
        says(
            &port,
            Outcome::Fail,
            &["answers TCP", "cannot be told which", "ss -ulnp"],
        );
        assert!(!port.detail.contains("host is down"));
        let both = Passage {
            small: true,
            large: true,
        };
        let (port, _) = reachable(remote(), &silent, Some(TcpAnswer::Silent), Some(both));
        says(&port, Outcome::Fail, &["refuses UDP on other ports"]);
    }

    #[test]
    fn a_path_that_swallows_large_packets_is_named_by_its_size() {
        let silent = UdpAnswer::Silent {
            waited: Duration::from_secs(2),
        };
        let small_only = Passage {
            small: true,
            large: false,
        };
        let (port, size) = reachable(remote(), &silent, None, Some(small_only));
        says(&port, Outcome::Skipped, &["small packets do reach"]);
        says(&size, Outcome::Fail, &["1200 bytes", "1228"]);
        let too_large = UdpAnswer::TooLarge { mtu: Some(1100) };
        let (_, size) = reachable("[2001:db8::1]:9".parse().unwrap(), &too_large, None, None);
        says(&size, Outcome::Fail, &["MTU is 1100", "1248"]);
    }

    #[test]
    fn a_peer_of_another_version_or_service_is_named() {
        says(&quic_version(&[1, 0x6b33_43cf]), Outcome::Ok, &[]);
        says(
            &quic_version(&[0x6b33_43cf]),
            Outcome::Fail,
            &["0x6b3343cf"],
        );
        says(&quic_version(&[]), Outcome::Fail, &["no version"]);
        let no_common = Err(LookFailure::NoCommonProtocol);
        let protocol = |seen: &Result<Seen, LookFailure>, instead: Option<&str>| {
            protocol(&[Looked {
                alpn: Alpn::Admin,
                seen: seen.clone(),
                instead: instead.map(str::to_owned),
            }])
        };
        let newer = protocol(&no_common, Some("quorate-admin/2"));
        says(
            &newer,
            Outcome::Fail,
            &["quorate-admin/2", "quorate-admin/1", "newer", "upgrade"],
        );
        says(
            &protocol(&no_common, Some("h3")),
            Outcome::Fail,
            &["\"h3\"", "another service"],
        );
        says(
            &protocol(&no_common, None),
            Outcome::Fail,
            &["another service"],
        );
    }

    fn answered(theirs_minus_ours_ms: i64, took_ms: u64) -> Answered {
        let asked = 1_700_000_000_000;
        Answered {
            vitals: NodeVitals {
                node: NodeId::new(1).unwrap(),
                incarnation: Incarnation::from_random_bits(1),
                version: "0".to_owned(),
                cluster: None,
                unix_ms: asked + theirs_minus_ours_ms,
                nodes: Vec::new(),
                udp_asked_bytes: 0,
                udp_receive_bytes: 0,
                udp_send_bytes: 0,
                certificate_ends_unix_s: 0,
                links: Vec::new(),
            },
            asked_unix_ms: asked,
            took: Duration::from_millis(took_ms),
        }
    }

    #[test]
    fn a_clock_that_is_off_is_told_from_a_slow_answer() {
        says(&clock(&answered(0, 1)), Outcome::Ok, &[]);
        says(&clock(&answered(4_000, 5_000)), Outcome::Ok, &[]);
        says(
            &clock(&answered(-2_000, 100)),
            Outcome::Warn,
            &["2.0 s behind"],
        );
        says(
            &clock(&answered(3_600_500, 500)),
            Outcome::Fail,
            &["1 h 0 min ahead of", "NTP"],
        );
        says(
            &clock(&answered(-3_600_000, 500)),
            Outcome::Fail,
            &["1 h 0 min behind"],
        );
        let mut absurd = answered(0, 1);
        for unix_ms in [i64::MIN, i64::MAX] {
            absurd.vitals.unix_ms = unix_ms;
            says(&clock(&absurd), Outcome::Fail, &[]);
        }
    }

    #[test]
    fn a_node_of_another_cluster_or_number_is_named() {
        let [a, b] = [1, 2].map(ClusterId::from_random_bits);
        assert_eq!(
            most_common_cluster([Some(a), None, Some(b), Some(b)]),
            Some(b)
        );
        assert_eq!(most_common_cluster([None]), None);
        says(&cluster(Some(a), Some(a)), Outcome::Ok, &[]);
        says(
            &cluster(Some(a), Some(b)),
            Outcome::Fail,
            &[&a.to_string(), &b.to_string()],
        );
        says(&cluster(None, Some(b)), Outcome::Fail, &["no cluster yet"]);
        says(&cluster(None, None), Outcome::Fail, &["not founded"]);
        let one = answered(0, 1);
        says(
            &node_id(&one, NodeId::new(2), "a:1"),
            Outcome::Fail,
            &["node 1 answers", "node 2"],
        );
        says(
            &node_id(&one, NodeId::new(1), "a:1"),
            Outcome::Ok,
            &["not registered"],
        );
    }

    #[test]
    fn loss_counts_once_it_is_more_than_chance() {
        let sample = |sent_packets, lost_packets| PathSample {
            rtt: Duration::from_millis(40),
            sent_packets,
            lost_packets,
            mtu: 1452,
            black_holes: 0,
        };
        says(
            &path(&sample(100, 2)),
            Outcome::Ok,
            &["40 ms", "2.0 %", "MTU 1452"],
        );
        says(
            &path(&sample(100, 3)),
            Outcome::Warn,
            &["3 of 100", "3.0 %"],
        );
        says(&path(&sample(1000, 5)), Outcome::Ok, &["0.5 %"]);
        says(&path(&sample(0, 0)), Outcome::Ok, &["0.0 %"]);
    }

    #[test]
    fn a_slow_or_full_disk_is_told_by_degrees() {
        let report = |median, free_bytes| DiskReport {
            directory: "/d".to_owned(),
            sync_median_us: median,
            sync_worst_us: 2 * median,
            syncs: 9,
            free_bytes,
            reserved_bytes: 32 << 20,
        };
        let (sync, space) = disk(&report(500, 10 << 30));
        says(&sync, Outcome::Ok, &["0.50 ms", "/d"]);
        says(&space, Outcome::Ok, &["10 GiB"]);
        let (sync, space) = disk(&report(SLOW_SYNC_US, 1 << 29));
        says(&sync, Outcome::Warn, &["20 ms"]);
        says(&space, Outcome::Warn, &["512 MiB", "32 MiB"]);
        let (sync, space) = disk(&report(STUCK_SYNC_US, 1 << 20));
        says(&sync, Outcome::Fail, &[]);
        says(&space, Outcome::Fail, &["records are refused"]);
    }

    #[test]
    fn small_buffers_are_named_with_the_setting_that_raises_them() {
        let granted = |receive| UdpBuffers {
            asked: 8 << 20,
            receive,
            send: 8 << 20,
        };
        says(&buffers(granted(4 << 20)), Outcome::Ok, &["4 MiB", "8 MiB"]);
        says(
            &buffers(granted(212_992)),
            Outcome::Warn,
            &["208 KiB", "net.core.rmem_max=8388608"],
        );
    }

    #[test]
    fn spans_and_sizes_are_in_the_unit_that_suits_them() {
        let ms = |ms| span(Duration::from_millis(ms));
        assert_eq!(span(Duration::from_micros(170)), "0.17 ms");
        assert_eq!(
            [ms(40), ms(2500), ms(61_000), ms(3_660_000), ms(90_000_000)],
            ["40 ms", "2.5 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]
        );
        assert_eq!(
            [bytes(512), bytes(1536), bytes(3 << 40)],
            ["512 bytes", "1.5 KiB", "3 TiB"]
        );
    }
}
